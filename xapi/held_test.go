package xapi

import (
	"strings"
	"testing"
)

// Row X1 of the fault list: if a control domain still holds a disk, the refusal
// to attach it is worth another try; other internal errors are retried for a
// shorter time.
func TestHeldElsewhere(t *testing.T) {
	held := &Error{Code: "INTERNAL_ERROR", Params: []string{"Storage_error ([S(Illegal_transition)", "[[S(Activated)", "S(RO)]"}}
	other := &Error{Code: "INTERNAL_ERROR", Params: []string{"Not_found"}}
	if !InUse(held) || InUse(other) || !InUse(&Error{Code: VDIInUse}) || InUse(nil) {
		t.Error("wrong errors count as in use")
	}
	if p := policy(held); p.Attempts != policy(&Error{Code: VDIInUse}).Attempts || p.Class != RetryYes {
		t.Errorf("%+v", p)
	}
	if p := policy(other); p.Attempts != 1 {
		t.Errorf("%+v", p)
	}
	if !strings.Contains(held.Error(), "attached to a control domain") || held.Hint() == other.Hint() {
		t.Errorf("%v, hint %q", held, held.Hint())
	}
}

// In a transfer, NO_HOSTS_AVAILABLE means missing storage; at a VM's start, it
// mostly means missing memory.
func TestNoHostsAvailable(t *testing.T) {
	for method, says := range map[string]string{"VM.start": "memory", "VM.resume": "memory", "VDI.snapshot": "reach the storage", "": "reach the storage"} {
		e := &Error{Code: NoHostsAvailable, Method: method}
		if !strings.Contains(e.Error(), says) || (says == "memory") != strings.Contains(e.Hint(), "memory") {
			t.Errorf("%v, hint %q", e, e.Hint())
		}
	}
}
