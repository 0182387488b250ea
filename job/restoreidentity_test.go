package job_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"xenkeep/job"
	"xenkeep/xapi"
	"xenkeep/xapi/xapisim"
)

// warned reports whether one of the warnings holds a text.
func warned(out *job.Restored, text string) bool {
	return slices.ContainsFunc(out.Warnings, func(w string) bool { return strings.Contains(w, text) })
}

// Rows X5 and B10 of the fault list: what VM.create leaves out is set afterwards, a VM
// without a generation stays without, the mark of an import and devices of the host do
// not come back, and what the pool refuses is named.
func TestRestoreIdentity(t *testing.T) {
	ctx := t.Context()
	w := newWorld(t, xapisim.Config{SRs: restoreSRs})
	w.halt("web")
	// The strings of a VM can be set once, and not after its first start.
	old := w.vm("web")
	fields, err := xapi.VMFields(&old)
	if err != nil {
		t.Fatal(err)
	}
	fields["name_label"], fields["other_config"] = "acme", map[string]string{}
	ref, err := w.pool.CreateVM(ctx, fields)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.pool.CreateVBD(ctx, xapi.VBD{VM: ref, VDI: w.diskAt("web", "0").Ref, UserDevice: "0", Mode: "RW", Type: "Disk"}); err != nil {
		t.Fatal(err)
	}
	web := w.vm("acme")
	w.must(nil, "VM.set_bios_strings", web.Ref, map[string]string{"bios-vendor": "ACME", "system-serial-number": "SN123"})
	w.must(nil, "VM.set_suspend_SR", web.Ref, w.sr("two").Ref)
	for k, v := range map[string]string{"import_task": "OpaqueRef:1", "pci": "0/0000:04:01.0", "vgpu_pci": "0000:05:00.0", "folder": "/web"} {
		w.must(nil, "VM.add_to_other_config", web.Ref, k, v)
	}
	s := backupOf(w, "acme")
	back := func(v job.VMRestore) (xapi.VM, *job.Restored) {
		t.Helper()
		v.SR = "one"
		out, err := job.RestoreVM(ctx, w.repo, w.pool, s, v, job.RestoreOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return w.vm(out.VM), out
	}
	is, out := back(job.VMRestore{})
	if is.BIOSStrings["bios-vendor"] != "ACME" || is.BIOSStrings["system-serial-number"] != "SN123" || warned(out, "BIOS") {
		t.Errorf("%v %q", is.BIOSStrings, out.Warnings)
	}
	if is.SuspendSR != w.sr("two").Ref {
		t.Errorf("suspend_SR %s", is.SuspendSR)
	}
	oc := is.OtherConfig
	if oc["import_task"] != "" || oc["pci"] != "" || oc["vgpu_pci"] != "" || oc["folder"] != "/web" {
		t.Errorf("other_config %v", oc)
	}
	if !warned(out, "0/0000:04:01.0") || !warned(out, "vgpu_pci") {
		t.Errorf("%q", out.Warnings)
	}
	if is.GenerationID == "" {
		t.Error("it has no generation")
	}
	is, out = back(job.VMRestore{KeepPCI: true})
	if is.OtherConfig["pci"] != "0/0000:04:01.0" || warned(out, "04:01.0") {
		t.Errorf("%v %q", is.OtherConfig, out.Warnings)
	}
	// A pool that takes fewer keys.
	w.sim.Fault(xapisim.Fault{On: "VM.set_bios_strings", Code: "INVALID_VALUE", Params: []string{"system-serial-number", "Unknown key"}})
	is, out = back(job.VMRestore{})
	if is.BIOSStrings["bios-vendor"] != "ACME" || !warned(out, "lost: system-serial-number") {
		t.Errorf("%v %q", is.BIOSStrings, out.Warnings)
	}
	for i := range out.Warnings {
		if strings.Contains(out.Warnings[i], "oem-1") {
			t.Errorf("%q", out.Warnings)
		}
	}
}

// Row X5 of the fault list: an empty generation_id is not a wish for a new one.
func TestRestoreNoGeneration(t *testing.T) {
	w := newWorld(t, xapisim.Config{SRs: restoreSRs})
	var ref xapi.Ref
	old := w.vm("web")
	fields, err := xapi.VMFields(&old)
	if err != nil {
		t.Fatal(err)
	}
	fields["name_label"], fields["generation_id"], fields["other_config"] = "old", "", map[string]string{}
	if ref, err = w.pool.CreateVM(t.Context(), fields); err != nil {
		t.Fatal(err)
	}
	w.halt("web")
	if _, err := w.pool.CreateVBD(t.Context(), xapi.VBD{VM: ref, VDI: w.diskAt("web", "0").Ref, UserDevice: "0", Mode: "RW", Type: "Disk"}); err != nil {
		t.Fatal(err)
	}
	s := backupOf(w, "old")
	out, err := job.RestoreVM(t.Context(), w.repo, w.pool, s, job.VMRestore{Target: job.Target{SR: "one"}}, job.RestoreOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if got := w.vm(out.VM).GenerationID; got != "" {
		t.Errorf("generation_id %q", got)
	}
}

// Row N3 of the fault list: two VMs never have one name because of a restore. MAC
// addresses that another VM has are warned of.
func TestRestoreNamed(t *testing.T) {
	w := newWorld(t, xapisim.Config{SRs: restoreSRs})
	s := backupOf(w, "web")
	day := time.Now().Format(time.DateOnly)
	for i, want := range []string{"web (restored " + day + ")", "web (restored " + day + ") 2"} {
		out, err := job.RestoreVM(t.Context(), w.repo, w.pool, s, job.VMRestore{Target: job.Target{SR: "one"}, KeepMAC: i == 1}, job.RestoreOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if out.VMName != want || w.vm(want).UUID != out.VM || !warned(out, want) {
			t.Errorf("%q, want %q: %q", out.VMName, want, out.Warnings)
		}
		if warned(out, "VM web ("+w.vm("web").UUID+") has the MAC address") != (i == 1) {
			t.Errorf("%q", out.Warnings)
		}
	}
	out, err := job.RestoreVM(t.Context(), w.repo, w.pool, s, job.VMRestore{Target: job.Target{SR: "one"}, Name: "web"}, job.RestoreOptions{})
	if err != nil || out.VMName != "web" {
		t.Errorf("a name that is asked for: %v %q", err, out.VMName)
	}
}

// The memory of a suspended VM that is not in the snapshot is not left out silently.
func TestRestoreMemoryLost(t *testing.T) {
	w := newWorld(t, xapisim.Config{SRs: restoreSRs})
	if _, err := w.pool.Async(t.Context(), "VM.suspend", w.vm("web").Ref); err != nil {
		t.Fatal(err)
	}
	o := w.options("web")
	o.Keep = job.KeepNone
	sum, err := job.Backup(t.Context(), w.repo, w.pool, o)
	if err != nil {
		t.Fatal(err)
	}
	out, err := job.RestoreVM(t.Context(), w.repo, w.pool, w.snapshot(sum.Snapshots[0].ID), job.VMRestore{Target: job.Target{SR: "one"}, Name: "back"}, job.RestoreOptions{})
	if err != nil || out.Power != "Halted" || !warned(out, "its memory is not in the snapshot") {
		t.Errorf("%v %+v", err, out)
	}
}

// Row B15 of the fault list: a disk that was never in the snapshot is not written over,
// unless that is asked for.
func TestRestoreInPlaceReplaced(t *testing.T) {
	w := newOverWorld(t, xapisim.Config{})
	ctx := t.Context()
	vm := w.vm("web")
	for _, ref := range vm.VBDs {
		if b, err := w.pool.VBD(ctx, ref); err == nil && b.Type == "Disk" {
			if err := w.pool.DestroyVBD(ctx, ref); err != nil {
				t.Fatal(err)
			}
		}
	}
	ref, err := w.pool.CreateVDI(ctx, xapi.VDIFields{Name: "precious", SR: w.sr("one").Ref, Size: 24 * mib})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.pool.CreateVBD(ctx, xapi.VBD{VM: vm.Ref, VDI: ref, UserDevice: "0", Mode: "RW", Type: "Disk"}); err != nil {
		t.Fatal(err)
	}
	other := w.diskAt("web", "0")
	was := w.volumeSum(other.UUID, 24*mib)
	_, err = w.over(job.Over{})
	if err == nil || !strings.Contains(err.Error(), `another disk there, "precious"`) || !strings.Contains(err.Error(), w.vdi.UUID) || !strings.Contains(job.HintOf(err), "--replaced") {
		t.Fatal(err)
	}
	if w.volumeSum(other.UUID, 24*mib) != was {
		t.Error("it was written to")
	}
	out, err := w.over(job.Over{Replaced: true})
	if err != nil || !warned(out, "has taken the place") || w.volumeSum(other.UUID, 24*mib) != fileSum(t, w.file) {
		t.Errorf("%v %+v", err, out)
	}
}

// Row N18 of the fault list: an SR that is mistyped is suggested, and without one a VM
// goes to the pool's default.
func TestRestoreSRNames(t *testing.T) {
	w := newWorld(t, xapisim.Config{SRs: []xapisim.SRConfig{{Name: "Local storage", Type: "ext"}, {Name: "fast, =new", Type: "nfs", Shared: true}}})
	s := backupOf(w, "web")
	restore := func(sr string) (*job.Restored, error) {
		t.Helper()
		target, err := job.ParseTarget(sr)
		if err != nil {
			t.Fatal(err)
		}
		return job.RestoreVM(t.Context(), w.repo, w.pool, s, job.VMRestore{Target: target, Name: "back"}, job.RestoreOptions{})
	}
	for wrong, want := range map[string]string{"Local Storage": `did you mean "Local storage"?`, "local-storag": `did you mean "Local storage"?`, "tape": ""} {
		_, err := restore(wrong)
		if !errors.Is(err, xapi.ErrNotFound) || !strings.Contains(err.Error(), want) || want == "" && strings.Contains(err.Error(), "mean") {
			t.Errorf("%v", err)
		}
		if !strings.Contains(job.HintOf(err), "xenkeep pool srs") || !strings.Contains(job.HintOf(err), "UUID") {
			t.Errorf("hint %q", job.HintOf(err))
		}
	}
	rec, err := w.pool.Pool(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for sr, want := range map[string]xapi.Ref{"": rec.DefaultSR, w.sr("fast, =new").UUID: w.sr("fast, =new").Ref} {
		out, err := restore(sr)
		if err != nil {
			t.Fatal(err)
		}
		if got := w.vdiOf(out.Disks[0].VDI).SR; got != want {
			t.Errorf("%q: SR %s, want %s", sr, got, want)
		}
	}
	w.must(nil, "pool.set_default_SR", rec.Ref, xapi.NullRef)
	if _, err := restore(""); err == nil || !strings.Contains(err.Error(), "no default SR") {
		t.Errorf("%v", err)
	}
}

// Row X11 of the fault list: the task of an import that ended after its run was killed
// is removed by the next run, or by cleanup.
func TestEndedTasks(t *testing.T) {
	ctx := t.Context()
	w := newOverWorld(t, xapisim.Config{})
	task := func(of xapi.Ref) xapi.Ref {
		t.Helper()
		ref, err := w.pool.CreateTask(ctx, "xenkeep: import", "import to "+string(of))
		if err != nil {
			t.Fatal(err)
		}
		w.must(nil, "task.set_status", ref, "success")
		return ref
	}
	gone := task("OpaqueRef:that-is-gone")
	fresh := task(w.vdi.Ref)
	rep, err := job.Cleanup(ctx, w.repo, w.pool, job.CleanupOptions{})
	if err != nil || rep.Err() != nil || len(rep.Found) != 1 || rep.Found[0].Class != "task" {
		t.Fatalf("%v %+v", err, rep)
	}
	if _, err := w.pool.Task(ctx, gone); !xapi.IsCode(err, xapi.HandleInvalid) {
		t.Error("the task stays")
	}
	if _, err := w.pool.Task(ctx, fresh); err != nil {
		t.Error("a run may still wait for it:", err)
	}
	if _, err := w.over(job.Over{}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.pool.Task(ctx, fresh); !xapi.IsCode(err, xapi.HandleInvalid) {
		t.Error("the restore of the same disk leaves it")
	}
}
