package job_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"xenkeep/job/jobtest"
	"xenkeep/xapi/xapisim"
)

// The matrix of errors: a child process makes a backup or a restore, and one of its
// calls fails, in each way that the pool has; afterwards the invariants of the crash
// matrix must hold. By default a sample of the cases runs, with XENKEEP_CRASH=all all
// of them.

// refusals are the errors that the pool returns for a call in addition to the errors
// of any call, according to xen-api ocaml/idl/datamodel.ml and the exceptions that
// xapi raises. HANDLE_INVALID for an existing object is not among them: a client
// correctly interprets it as deleted.
var refusals = map[string][]string{
	"VM.snapshot": {
		"VM_BAD_POWER_STATE", "SR_FULL", "SR_BACKEND_FAILURE_44", "SR_BACKEND_FAILURE_82", "SR_BACKEND_FAILURE_109",
		"OPERATION_BLOCKED", "OTHER_OPERATION_IN_PROGRESS", "VDI_IN_USE", "TASK_CANCELLED", "VM_HAS_VUSBS", "XAPI_HOOK_FAILED",
		"HOST_OFFLINE", "CANNOT_CONTACT_HOST", "NO_HOSTS_AVAILABLE", "SR_OPERATION_NOT_SUPPORTED", "NOT_SUPPORTED_DURING_UPGRADE",
	},
	"VM.destroy":                   {"OTHER_OPERATION_IN_PROGRESS", "OPERATION_NOT_ALLOWED", "VM_BAD_POWER_STATE"},
	"VM.create":                    {"OPERATION_NOT_ALLOWED", "LICENCE_RESTRICTION"},
	"VDI.create":                   {"SR_BACKEND_FAILURE_44", "SR_BACKEND_FAILURE_78", "SR_HAS_NO_PBDS", "SR_NOT_ATTACHED", "SR_FULL"},
	"VDI.destroy":                  {"VDI_IN_USE", "OTHER_OPERATION_IN_PROGRESS", "SR_BACKEND_FAILURE_80", "SR_BACKEND_FAILURE_46"},
	"VDI.enable_cbt":               {"LICENCE_RESTRICTION", "SR_BACKEND_FAILURE_457", "VDI_INCOMPATIBLE_TYPE", "SR_OPERATION_NOT_SUPPORTED"},
	"VDI.data_destroy":             {"VDI_IN_USE", "VDI_NO_CBT_METADATA", "SR_BACKEND_FAILURE_46"},
	"VDI.list_changed_blocks":      {"SR_BACKEND_FAILURE_459", "SR_BACKEND_FAILURE_460", "VDI_IN_USE"},
	"VDI.get_nbd_info":             {"VDI_INCOMPATIBLE_TYPE"},
	"VUSB.create":                  {"USB_GROUP_CONFLICT", "TOO_MANY_VUSBS", "LICENCE_RESTRICTION", "OPERATION_NOT_ALLOWED"},
	"VUSB.destroy":                 {"OPERATION_NOT_ALLOWED"},
	"VBD.create":                   {"DEVICE_ALREADY_EXISTS", "VDI_IN_USE", "OPERATION_NOT_ALLOWED"},
	"VIF.create":                   {"DEVICE_ALREADY_EXISTS", "MAC_INVALID"},
	"VM.add_to_other_config":       {"MAP_DUPLICATE_KEY"},
	"VDI.add_to_other_config":      {"MAP_DUPLICATE_KEY"},
	"VM.add_to_blocked_operations": {"MAP_DUPLICATE_KEY"},
	"task.create":                  {"TOO_MANY_PENDING_TASKS"},
}

// fault is one failure of one call or transfer.
type fault struct {
	what  string
	fault xapisim.Fault
}

// faultsOf lists the possible faults of the calls of a run, which are in order. crash
// reports whether the guest may be lost with its host.
func faultsOf(sim *xapisim.Pool, calls []string, crash bool) []fault {
	var all []fault
	seen := make(map[string]int)
	for i, method := range calls {
		seen[method]++
		at := fmt.Sprintf("call %d, %s the %d. time", i+1, method, seen[method])
		add := func(what string, f xapisim.Fault) {
			f.On, f.Nth = method, seen[method]
			all = append(all, fault{at + ": " + what, f})
		}
		for _, code := range append([]string{"INTERNAL_ERROR", "RBAC_PERMISSION_DENIED"}, refusals[method]...) {
			add(code, xapisim.Fault{Code: code, Params: []string{"one", "two", "three"}})
		}
		add("connection lost before", xapisim.Fault{Reset: true})
		add("connection lost after", xapisim.Fault{Reset: true, After: true})
		add("session lost", xapisim.Fault{DropSession: true})
		add("toolstack restarted", xapisim.Fault{Do: sim.Restart})
		if crash {
			add("host crashed", xapisim.Fault{Do: func() { sim.CrashHost(0) }})
		}
	}
	for _, path := range []string{"/export_raw_vdi", "/import_raw_vdi", "/export_metadata", "nbd"} {
		for _, f := range []xapisim.Fault{
			{Status: 500}, {Status: 503}, {Status: 408}, {Status: 403}, {Status: 404},
			{Code: "VDI_IO_ERROR", Params: []string{"Device I/O errors"}},
			{Code: "VDI_IO_ERROR", Params: []string{"Device I/O errors"}, Cut: true, CutAt: jobtest.MiB + 77, Embedded: true},
			{Cut: true, CutAt: 100}, {Cut: true, CutAt: 2*jobtest.MiB + 13}, {Reset: true, Cut: true, CutAt: jobtest.MiB},
		} {
			f.On = path
			all = append(all, fault{fmt.Sprintf("%s: %d %s cut %d", path, f.Status, f.Code, f.CutAt), f})
		}
	}
	return all
}

// errors injects faults into the calls of a child, n of all faults or all, and checks
// the invariants after each.
func (op operation) errors(n int) {
	w := op.w
	t := w.T
	t.Helper()
	var calls []string
	o := op.prepare()
	w.Sim.Watch(func(method string) { calls = append(calls, method) })
	w.k.run(o, 0)
	w.Sim.Watch(nil)
	op.after()
	if t.Failed() {
		t.Fatal("without an error")
	}
	calls = slices.DeleteFunc(calls, func(m string) bool { return strings.HasPrefix(m, "session.") })
	all := faultsOf(w.Sim, calls, op.crash)
	t.Logf("%d calls, %d mishaps", len(calls), len(all))
	w.k.mayFail = true
	for _, i := range sampled(len(all), n) {
		m := all[i-1]
		o := op.prepare()
		w.Sim.Fault(m.fault)
		w.k.run(o, 0)
		w.Sim.ClearFaults()
		said := w.k.failed
		t.Logf("%s: %q", m.what, said)
		if strings.Contains(said, "panic") || strings.Contains(said, "goroutine ") {
			t.Errorf("panic: %s", said)
		}
		op.after()
		if t.Failed() {
			t.Fatalf("after fault %d: %s; the run reported %q", i, m.what, said)
		}
	}
}

func TestErrorsFull(t *testing.T) { fullBackup(t).errors(16) }

func TestErrorsIncremental(t *testing.T) {
	// If the pool prevented the cleanup of a run, the next run may have no base.
	incremental(t, xapisim.NBDOff, "vhd-delta", "full").errors(16)
}

func TestErrorsTracked(t *testing.T) {
	incremental(t, xapisim.NBDTLS, "cbt", "vhd-delta", "full").errors(16)
}

func TestErrorsRestore(t *testing.T) { restoreVM(t).errors(16) }
