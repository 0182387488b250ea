package restore_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"xenkeep/job"
	"xenkeep/job/backup"
	"xenkeep/job/jobtest"
	"xenkeep/job/lease"
	jobrestore "xenkeep/job/restore"
	"xenkeep/xapi"
	"xenkeep/xapi/xapisim"
)

// warned reports whether one of the warnings holds a text.
func warned(out *jobrestore.Restored, text string) bool {
	return slices.ContainsFunc(out.Warnings, func(w string) bool { return strings.Contains(w, text) })
}

// Rows X5 and B10 of the fault list: fields that VM.create leaves out are set
// afterwards, a VM without a generation ID remains without, the mark of an import and
// devices of the host are not restored, and settings that the pool refuses are named.
func TestRestoreIdentity(t *testing.T) {
	ctx := t.Context()
	w := jobtest.New(t, xapisim.Config{SRs: jobtest.RestoreSRs})
	w.Halt("web")
	// BIOS strings can be set once, and not after the first start of a VM.
	old := w.VM("web")
	fields, err := xapi.VMFields(&old)
	if err != nil {
		t.Fatal(err)
	}
	fields["name_label"], fields["other_config"] = "acme", map[string]string{}
	ref, err := w.Pool.CreateVM(ctx, fields)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Pool.CreateVBD(ctx, xapi.VBD{VM: ref, VDI: w.DiskAt("web", "0").Ref, UserDevice: "0", Mode: "RW", Type: "Disk"}); err != nil {
		t.Fatal(err)
	}
	web := w.VM("acme")
	w.Must(nil, "VM.set_bios_strings", web.Ref, map[string]string{"bios-vendor": "ACME", "system-serial-number": "SN123"})
	w.Must(nil, "VM.set_suspend_SR", web.Ref, w.SR("two").Ref)
	for k, v := range map[string]string{"import_task": "OpaqueRef:1", "pci": "0/0000:04:01.0", "vgpu_pci": "0000:05:00.0", "folder": "/web"} {
		w.Must(nil, "VM.add_to_other_config", web.Ref, k, v)
	}
	s := jobtest.BackupOf(w, "acme")
	back := func(v jobrestore.VMOptions) (xapi.VM, *jobrestore.Restored) {
		t.Helper()
		v.SR = "one"
		out, err := jobrestore.VM(ctx, w.Repo, w.Pool, s, v, jobrestore.Options{})
		if err != nil {
			t.Fatal(err)
		}
		return w.VM(out.VM), out
	}
	is, out := back(jobrestore.VMOptions{})
	if is.BIOSStrings["bios-vendor"] != "ACME" || is.BIOSStrings["system-serial-number"] != "SN123" || warned(out, "BIOS") {
		t.Errorf("%v %q", is.BIOSStrings, out.Warnings)
	}
	if is.SuspendSR != w.SR("two").Ref {
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
	is, out = back(jobrestore.VMOptions{KeepPCI: true})
	if is.OtherConfig["pci"] != "0/0000:04:01.0" || warned(out, "04:01.0") {
		t.Errorf("%v %q", is.OtherConfig, out.Warnings)
	}
	// A pool that accepts fewer keys.
	w.Sim.Fault(xapisim.Fault{On: "VM.set_bios_strings", Code: "INVALID_VALUE", Params: []string{"system-serial-number", "Unknown key"}})
	is, out = back(jobrestore.VMOptions{})
	if is.BIOSStrings["bios-vendor"] != "ACME" || !warned(out, "lost: system-serial-number") {
		t.Errorf("%v %q", is.BIOSStrings, out.Warnings)
	}
	for i := range out.Warnings {
		if strings.Contains(out.Warnings[i], "oem-1") {
			t.Errorf("%q", out.Warnings)
		}
	}
}

// Row X5 of the fault list: an empty generation_id does not request a new one.
func TestRestoreNoGeneration(t *testing.T) {
	w := jobtest.New(t, xapisim.Config{SRs: jobtest.RestoreSRs})
	var ref xapi.Ref
	old := w.VM("web")
	fields, err := xapi.VMFields(&old)
	if err != nil {
		t.Fatal(err)
	}
	fields["name_label"], fields["generation_id"], fields["other_config"] = "old", "", map[string]string{}
	if ref, err = w.Pool.CreateVM(t.Context(), fields); err != nil {
		t.Fatal(err)
	}
	w.Halt("web")
	if _, err := w.Pool.CreateVBD(t.Context(), xapi.VBD{VM: ref, VDI: w.DiskAt("web", "0").Ref, UserDevice: "0", Mode: "RW", Type: "Disk"}); err != nil {
		t.Fatal(err)
	}
	s := jobtest.BackupOf(w, "old")
	out, err := jobrestore.VM(t.Context(), w.Repo, w.Pool, s, jobrestore.VMOptions{Target: jobrestore.Target{SR: "one"}}, jobrestore.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if got := w.VM(out.VM).GenerationID; got != "" {
		t.Errorf("generation_id %q", got)
	}
}

// Row N3 of the fault list: a restore never creates a second VM of the same name. It
// warns about MAC addresses that another VM has.
func TestRestoreNamed(t *testing.T) {
	w := jobtest.New(t, xapisim.Config{SRs: jobtest.RestoreSRs})
	s := jobtest.BackupOf(w, "web")
	day := time.Now().Format(time.DateOnly)
	for i, want := range []string{"web (restored " + day + ")", "web (restored " + day + ") 2"} {
		out, err := jobrestore.VM(t.Context(), w.Repo, w.Pool, s, jobrestore.VMOptions{Target: jobrestore.Target{SR: "one"}, KeepMAC: i == 1}, jobrestore.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if out.VMName != want || w.VM(want).UUID != out.VM || !warned(out, want) {
			t.Errorf("%q, want %q: %q", out.VMName, want, out.Warnings)
		}
		if warned(out, "VM web ("+w.VM("web").UUID+") has the MAC address") != (i == 1) {
			t.Errorf("%q", out.Warnings)
		}
	}
	out, err := jobrestore.VM(t.Context(), w.Repo, w.Pool, s, jobrestore.VMOptions{Target: jobrestore.Target{SR: "one"}, Name: "web"}, jobrestore.Options{})
	if err != nil || out.VMName != "web" {
		t.Errorf("a name that is asked for: %v %q", err, out.VMName)
	}
}

// If the memory of a suspended VM is not in the snapshot, the restore warns.
func TestRestoreMemoryLost(t *testing.T) {
	w := jobtest.New(t, xapisim.Config{SRs: jobtest.RestoreSRs})
	if _, err := w.Pool.Async(t.Context(), "VM.suspend", w.VM("web").Ref); err != nil {
		t.Fatal(err)
	}
	o := w.Options("web")
	o.Keep = backup.KeepNone
	sum, err := backup.Run(t.Context(), w.Repo, w.Pool, o)
	if err != nil {
		t.Fatal(err)
	}
	out, err := jobrestore.VM(t.Context(), w.Repo, w.Pool, w.Snapshot(sum.Snapshots[0].ID), jobrestore.VMOptions{Target: jobrestore.Target{SR: "one"}, Name: "back"}, jobrestore.Options{})
	if err != nil || out.Power != "Halted" || !warned(out, "its memory is not in the snapshot") {
		t.Errorf("%v %+v", err, out)
	}
}

// Row B15 of the fault list: a disk that is not in the snapshot is not overwritten,
// unless the options request it.
func TestRestoreInPlaceReplaced(t *testing.T) {
	w := newOverWorld(t, xapisim.Config{})
	ctx := t.Context()
	vm := w.VM("web")
	for _, ref := range vm.VBDs {
		if b, err := w.Pool.VBD(ctx, ref); err == nil && b.Type == "Disk" {
			if err := w.Pool.DestroyVBD(ctx, ref); err != nil {
				t.Fatal(err)
			}
		}
	}
	ref, err := w.Pool.CreateVDI(ctx, xapi.VDIFields{Name: "precious", SR: w.SR("one").Ref, Size: 24 * jobtest.MiB})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Pool.CreateVBD(ctx, xapi.VBD{VM: vm.Ref, VDI: ref, UserDevice: "0", Mode: "RW", Type: "Disk"}); err != nil {
		t.Fatal(err)
	}
	other := w.DiskAt("web", "0")
	was := w.VolumeSum(other.UUID, 24*jobtest.MiB)
	_, err = w.over(jobrestore.Overwrite{})
	if err == nil || !strings.Contains(err.Error(), `another disk there, "precious"`) || !strings.Contains(err.Error(), w.vdi.UUID) || !strings.Contains(job.HintOf(err), "--replaced") {
		t.Fatal(err)
	}
	if w.VolumeSum(other.UUID, 24*jobtest.MiB) != was {
		t.Error("it was written to")
	}
	out, err := w.over(jobrestore.Overwrite{Replaced: true})
	if err != nil || !warned(out, "has taken the place") || w.VolumeSum(other.UUID, 24*jobtest.MiB) != jobtest.FileSum(t, w.file) {
		t.Errorf("%v %+v", err, out)
	}
}

// Row N18 of the fault list: for a mistyped SR the error suggests the right one;
// without an SR a VM is restored to the pool's default.
func TestRestoreSRNames(t *testing.T) {
	w := jobtest.New(t, xapisim.Config{SRs: []xapisim.SRConfig{{Name: "Local storage", Type: "ext"}, {Name: "fast, =new", Type: "nfs", Shared: true}}})
	s := jobtest.BackupOf(w, "web")
	restore := func(sr string) (*jobrestore.Restored, error) {
		t.Helper()
		target, err := jobrestore.ParseTarget(sr)
		if err != nil {
			t.Fatal(err)
		}
		return jobrestore.VM(t.Context(), w.Repo, w.Pool, s, jobrestore.VMOptions{Target: target, Name: "back"}, jobrestore.Options{})
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
	rec, err := w.Pool.Pool(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for sr, want := range map[string]xapi.Ref{"": rec.DefaultSR, w.SR("fast, =new").UUID: w.SR("fast, =new").Ref} {
		out, err := restore(sr)
		if err != nil {
			t.Fatal(err)
		}
		if got := w.VDIOf(out.Disks[0].VDI).SR; got != want {
			t.Errorf("%q: SR %s, want %s", sr, got, want)
		}
	}
	w.Must(nil, "pool.set_default_SR", rec.Ref, xapi.NullRef)
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
		ref, err := w.Pool.CreateTask(ctx, "xenkeep: import", "import to "+string(of))
		if err != nil {
			t.Fatal(err)
		}
		w.Must(nil, "task.set_status", ref, "success")
		return ref
	}
	gone := task("OpaqueRef:that-is-gone")
	fresh := task(w.vdi.Ref)
	rep, err := lease.Cleanup(ctx, w.Repo, w.Pool, lease.CleanupOptions{})
	if err != nil || rep.Err() != nil || len(rep.Found) != 1 || rep.Found[0].Class != "task" {
		t.Fatalf("%v %+v", err, rep)
	}
	if _, err := w.Pool.Task(ctx, gone); !xapi.IsCode(err, xapi.HandleInvalid) {
		t.Error("the task stays")
	}
	if _, err := w.Pool.Task(ctx, fresh); err != nil {
		t.Error("a run may still wait for it:", err)
	}
	if _, err := w.over(jobrestore.Overwrite{}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Pool.Task(ctx, fresh); !xapi.IsCode(err, xapi.HandleInvalid) {
		t.Error("the restore of the same disk leaves it")
	}
}
