package xapisim

import (
	"os"
	"path/filepath"
	"regexp"
	"testing"
)

// Row X3 of the fault list: calls without an Async. form fail with the error
// code Fault, and the error for an unknown call contains its name without the
// prefix.
func TestCallsWithoutAsyncForm(t *testing.T) {
	c := start(t, nil)
	for _, m := range []string{"VMSS.snapshot_now", "VM.set_snapshot_schedule", "VDI.get_nbd_info", "VM.set_NVRAM", "VDI.set_sharable", "host.get_servertime"} {
		c.refused([]string{"Fault", "No async mode for this operation (rpc: " + m + ")"}, "Async."+m)
	}
	c.refused([]string{"MESSAGE_METHOD_UNKNOWN", "VM.nonsense"}, "Async.VM.nonsense")
}

// Row X3: our client requests a task only if the call has an Async. form.
func TestClientAsksForTasksThatExist(t *testing.T) {
	files, err := filepath.Glob("../*.go")
	if err != nil {
		t.Fatal(err)
	}
	sch, err := loadSchema()
	if err != nil {
		t.Fatal(err)
	}
	asks := regexp.MustCompile(`[aA]sync(?:Ref)?\(ctx, "([A-Za-z]+\.[A-Za-z_]+)"`)
	n := 0
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range asks.FindAllSubmatch(b, -1) {
			n++
			if def := sch.methods[string(m[1])]; def == nil || !def.async() {
				t.Errorf("%s: %s has no Async form", filepath.Base(f), m[1])
			}
		}
	}
	if n < 15 {
		t.Errorf("only %d calls found: the pattern no longer matches the client", n)
	}
}
