package xapisim

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"testing"
)

// TestPythonClient backs up a VM with Python's xmlrpc.client and http.client;
// the pool is the same before and after.
func TestPythonClient(t *testing.T) {
	c := start(t, nil)
	before := c.p.Dump()
	dir := t.TempDir()
	out, err := foreign(t, "python3", "testdata/client.py", c.p.URL(), c.p.User(), c.p.Password(), c.p.Ready().VMs[0].UUID, dir)
	if err != nil {
		t.Fatalf("%v:\n%s", err, out)
	}
	var got map[string]any
	if err := json.Unmarshal([]byte(out), &got); err != nil {
		t.Fatalf("%s: %v", out, err)
	}
	for k, want := range map[string]any{
		"power_state": "Running", "memory": "2147483648", "time": "19700101T00:00:00Z", "disks": 2.0, "same": true, "bitmap": 16.0, "tasks": 0.0,
		"statuses": []any{"success", "success", "success"}, "error": []any{"HANDLE_INVALID", "VM", "OpaqueRef:none"},
		"vhd": float64(2048 + 512 + 4*(512+2*mib) + 512),
	} {
		if !reflect.DeepEqual(got[k], want) {
			t.Errorf("%s: %v, want %v", k, got[k], want)
		}
	}
	disk, err := os.ReadFile(filepath.Join(dir, "disk.raw"))
	if err != nil || !bytes.Equal(disk, pattern(1, 8*mib)) {
		t.Errorf("the disk: %v", err)
	}
	c.p.GC()
	after := c.p.Dump()
	for cls := range before { // the record of the latest snapshot remains
		for ref, o := range before[cls] {
			for k, v := range o {
				if !reflect.DeepEqual(after[cls][ref][k], v) {
					t.Errorf("%s %s: %s was %v, is %v", cls, ref, k, v, after[cls][ref][k])
				}
			}
		}
		if len(after[cls]) != len(before[cls]) {
			t.Errorf("%d of %s, before %d", len(after[cls]), cls, len(before[cls]))
		}
	}
}
