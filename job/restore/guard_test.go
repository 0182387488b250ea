package restore_test

import (
	"encoding/json"
	"errors"
	"maps"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"xenkeep/job"
	"xenkeep/job/backup"
	"xenkeep/job/doctor"
	"xenkeep/job/jobtest"
	"xenkeep/job/lease"
	jobrestore "xenkeep/job/restore"
	"xenkeep/repo"
	"xenkeep/xapi"
	"xenkeep/xapi/xapisim"
)

// overWorld is a halted VM web with one disk, a snapshot of it, and other data on the
// disk since then.
type overWorld struct {
	*jobtest.World
	s    *repo.Snapshot
	file string // content in the snapshot
	vdi  xapi.VDI
}

func newOverWorld(t *testing.T, cfg xapisim.Config) *overWorld {
	t.Helper()
	w := &overWorld{file: jobtest.Image(t, filepath.Join(t.TempDir(), "a.img"), 24*jobtest.MiB, 1, 40)}
	cfg.SRs = jobtest.RestoreSRs
	cfg.VMs = []xapisim.VMConfig{{Name: "web", SR: "one", Halted: true, Disks: []string{w.file}}}
	w.World = jobtest.New(t, cfg)
	w.s = jobtest.BackupOf(w.World, "web")
	w.vdi = w.DiskAt("web", "0")
	w.change()
	return w
}

func (w *overWorld) change() {
	w.T.Helper()
	if _, err := w.Sim.GuestWrite(w.vdi.UUID, w.Write("other.img", w.file, 77, 12)); err != nil {
		w.T.Fatal(err)
	}
}

func (w *overWorld) over(over jobrestore.Overwrite) (*jobrestore.Restored, error) {
	return jobrestore.WriteOver(w.T.Context(), w.Repo, w.Pool, w.s, jobtest.DisksOf(w.s), over, jobrestore.Options{})
}

// bare checks that the VM and its disk have no block and no marks of a restore.
func (w *overWorld) bare(blocked map[string]string) {
	w.T.Helper()
	vm := w.VM("web")
	if !maps.Equal(vm.BlockedOperations, blocked) {
		w.T.Errorf("blocked: %v, want %v", vm.BlockedOperations, blocked)
	}
	for _, other := range []map[string]string{vm.OtherConfig, w.DiskAt("web", "0").OtherConfig} {
		for k := range other {
			if strings.HasPrefix(k, "xenkeep:") {
				w.T.Errorf("the mark %s stays", k)
			}
		}
	}
}

func (w *overWorld) restored() {
	w.T.Helper()
	if w.VolumeSum(w.vdi.UUID, 24*jobtest.MiB) != jobtest.FileSum(w.T, w.file) {
		w.T.Error("the disk differs")
	}
}

// Row X1 of the fault list: a host holds a disk for a moment after it was read over
// NBD, and refuses to write it meanwhile. A restore that compares first waits for it.
func TestRestoreOverWaits(t *testing.T) {
	for _, over := range []jobrestore.Overwrite{{}, {VDI: "web", Differential: true}} {
		w := newOverWorld(t, xapisim.Config{NBD: xapisim.NBDTLS, NBDLinger: 200 * time.Millisecond})
		if over.VDI != "" {
			over.VDI = w.vdi.UUID
		}
		imports := 0
		w.Sim.Watch(func(method string) {
			if method == "task.create" {
				imports++
			}
		})
		_, err := w.over(over)
		w.Sim.Watch(nil)
		if err != nil {
			t.Fatal(err)
		}
		if imports != 1 {
			t.Errorf("the disk was written to in %d attempts", imports)
		}
		w.restored()
		w.bare(nil)
	}
}

// Row X1 of the fault list: while a host holds the disk the pool fails an import with
// INTERNAL_ERROR, which is temporary. If the host never releases the disk, nothing was
// written, and the error does not report that anything was.
func TestRestoreOverHeld(t *testing.T) {
	held := xapisim.Fault{On: "/import_raw_vdi", Code: "INTERNAL_ERROR",
		Params: []string{"Storage_error ([S(Illegal_transition);[[S(Activated);S(RO)];[S(Activated);S(RW)]]])"}}
	w := newOverWorld(t, xapisim.Config{NBD: xapisim.NBDTLS})
	before := w.Sim.Dump()
	held.Times = -1
	w.Sim.Fault(held)
	_, err := w.over(jobrestore.Overwrite{})
	if err == nil || !strings.Contains(err.Error(), "nothing of it was written") || strings.Contains(err.Error(), "half") || !xapi.InUse(err) {
		t.Fatal(err)
	}
	w.Sim.ClearFaults()
	w.Sim.GC()
	jobtest.SamePool(t, before, w.Sim.Dump())
	held.Times = 3
	w.Sim.Fault(held)
	if _, err := w.over(jobrestore.Overwrite{}); err != nil {
		t.Fatal(err)
	}
	w.restored()
	w.bare(nil)
}

// Row X2 of the fault list: the pool would start a VM while its disk is written, and
// so the restore blocks the VM for that time. It does not change other blocks.
func TestRestoreOverBlocks(t *testing.T) {
	for _, over := range []jobrestore.Overwrite{{}, {VDI: "disk"}} {
		w := newOverWorld(t, xapisim.Config{NBD: xapisim.NBDTLS})
		if over.VDI != "" {
			over.VDI = w.vdi.UUID
		}
		mine := map[string]string{"destroy": "precious", "revert": "never"}
		w.Must(nil, "VM.set_blocked_operations", w.VM("web").Ref, mine)
		tried := 0
		// The task of the import is created immediately before its data are sent.
		w.Sim.Fault(xapisim.Fault{On: "task.create", Do: func() {
			tried++
			for op, why := range map[string]string{"start": "", "start_on": "", "resume": "", "resume_on": "", "snapshot": "", "revert": "never"} {
				if got := w.VM("web").BlockedOperations[op]; got == "" || why != "" && got != why {
					t.Errorf("%s is blocked by %q", op, got)
				}
			}
			if err := w.Pool.StartVM(t.Context(), w.VM("web").Ref); !xapi.IsCode(err, "OPERATION_BLOCKED") || !strings.Contains(err.Error(), "restor") {
				t.Errorf("start: %v", err)
			}
		}})
		if _, err := w.over(over); err != nil {
			t.Fatal(err)
		}
		if tried != 1 {
			t.Errorf("tried %d times", tried)
		}
		w.restored()
		w.bare(mine)
		if err := w.Pool.StartVM(t.Context(), w.VM("web").Ref); err != nil {
			t.Error(err)
		}
	}
}

// Row X2 of the fault list: a VM that ran nevertheless while its disk was written is
// reported, and its disk counts as half restored.
func TestRestoreOverStarted(t *testing.T) {
	w := newOverWorld(t, xapisim.Config{NBD: xapisim.NBDTLS})
	w.Sim.Fault(xapisim.Fault{On: "task.destroy", Do: func() { // after the write, before the end of the run
		w.Must(nil, "VM.set_blocked_operations", w.VM("web").Ref, map[string]string{})
		if err := w.Pool.StartVM(t.Context(), w.VM("web").Ref); err != nil {
			t.Error(err)
		}
	}})
	_, err := w.over(jobrestore.Overwrite{})
	var half *jobrestore.HalfRestoredError
	if !errors.As(err, &half) || !errors.Is(err, job.ErrNotHalted) || !strings.Contains(err.Error(), "it ran while its disks were written") {
		t.Fatal(err)
	}
	w.Halt("web")
	if _, err := w.over(jobrestore.Overwrite{}); err != nil {
		t.Fatal(err)
	}
	w.restored()
	w.bare(nil)

	// A VM that starts before it is blocked is refused.
	w.change()
	w.Sim.Fault(xapisim.Fault{On: "VM.add_to_other_config", Do: func() {
		if err := w.Pool.StartVM(t.Context(), w.VM("web").Ref); err != nil {
			t.Error(err)
		}
	}})
	if _, err := w.over(jobrestore.Overwrite{}); !errors.Is(err, job.ErrNotHalted) || errors.As(err, &half) {
		t.Fatal(err)
	}
	w.bare(nil)
}

func (w *overWorld) cutMidway() {
	w.Sim.Fault(xapisim.Fault{On: "/import_raw_vdi", Code: "VDI_IO_ERROR", Params: []string{"Device I/O errors"}, Cut: true, CutAt: 3 * jobtest.MiB, Embedded: true})
}

// Row N2 of the fault list: a disk that a restore left half written has a mark, which
// backups, plans, doctor and cleanup respect; its VM cannot be started, and the same
// command completes the restore.
func TestRestoreOverHalf(t *testing.T) {
	ctx := t.Context()
	w := newOverWorld(t, xapisim.Config{NBD: xapisim.NBDTLS})
	mine := map[string]string{"start": "not before Monday"}
	w.Must(nil, "VM.set_blocked_operations", w.VM("web").Ref, mine)
	w.cutMidway()
	_, err := w.over(jobrestore.Overwrite{})
	var half *jobrestore.HalfRestoredError
	if !errors.As(err, &half) || half.VM != "web" || len(half.Disks) != 1 || half.Disks[0] != "xvda" || job.HintOf(err) != half.Hint() {
		t.Fatal(err)
	}
	vm := w.VM("web")
	for _, op := range []string{"start", "start_on"} {
		if vm.BlockedOperations[op] == "" {
			t.Errorf("%s is not blocked", op)
		}
	}
	sum, err := backup.Run(ctx, w.Repo, w.Pool, w.Options("web"))
	if err == nil || len(sum.Failed) != 1 || !strings.Contains(sum.Failed[0].Error, "its disk xvda is half restored") || !strings.Contains(sum.Failed[0].Hint, "run the same restore again") {
		t.Errorf("backup: %v %+v", err, sum)
	}
	findings, err := doctor.Pool(ctx, w.Pool)
	if err != nil {
		t.Fatal(err)
	}
	told := false
	for _, f := range findings {
		told = told || f.Level == doctor.Fail && f.What == "disk xvda of VM web" && strings.Contains(f.Text, "half restored from snapshot "+w.s.Short())
	}
	if !told {
		t.Errorf("doctor: %+v", findings)
	}
	for _, dry := range []bool{true, false} {
		rep, err := lease.Cleanup(ctx, w.Repo, w.Pool, lease.CleanupOptions{DryRun: dry})
		if err != nil || rep.Err() != nil || len(rep.Found) != 2 {
			t.Fatalf("%v %+v", err, rep)
		}
		for _, l := range rep.Found {
			if l.State != lease.StateDead || l.Action != lease.ActNone || l.Role != "over" || l.Hint == "" || l.Repository != w.Repo.ID() {
				t.Errorf("%+v", l)
			}
		}
	}
	// Another failure before anything is written does not change this state.
	w.Sim.Fault(xapisim.Fault{On: "VDI.get_nbd_info", Code: "INTERNAL_ERROR", Times: -1})
	w.Sim.Fault(xapisim.Fault{On: "/export_raw_vdi", Status: 500, Times: -1})
	if _, err = w.over(jobrestore.Overwrite{}); !errors.As(err, &half) {
		t.Fatal(err)
	}
	w.Sim.ClearFaults()
	if _, err := w.over(jobrestore.Overwrite{}); err != nil {
		t.Fatal(err)
	}
	w.restored()
	w.bare(mine)

	// A user who wants the disk as it is requests that.
	w.change()
	w.cutMidway()
	if _, err := w.over(jobrestore.Overwrite{}); err == nil {
		t.Fatal("no error")
	}
	rep, err := lease.Cleanup(ctx, w.Repo, w.Pool, lease.CleanupOptions{Unblock: true})
	if err != nil || rep.Err() != nil || len(rep.Found) != 2 || rep.Found[0].Action != lease.ActUnblock {
		t.Fatalf("%v %+v", err, rep)
	}
	w.bare(mine)
}

// Row N2 of the fault list: a half-restored disk that is attached to no VM is marked,
// too, and fails the backup of a VM to which it is attached later.
func TestRestoreOverHalfLoose(t *testing.T) {
	ctx := t.Context()
	w := newOverWorld(t, xapisim.Config{NBD: xapisim.NBDTLS})
	made, err := jobrestore.Disks(ctx, w.Repo, w.Pool, w.s, jobtest.DisksOf(w.s), jobrestore.Target{SR: "one"}, jobrestore.Options{})
	if err != nil {
		t.Fatal(err)
	}
	vdi := w.VDIOf(made.Disks[0].VDI)
	w.cutMidway()
	_, err = w.over(jobrestore.Overwrite{VDI: vdi.UUID, KeepOld: true})
	var half *jobrestore.HalfRestoredError
	if !errors.As(err, &half) || len(half.Old) != 1 {
		t.Fatal(err)
	}
	if oc := w.VDIOf(half.Old[0]).OtherConfig; len(oc) > 0 {
		t.Errorf("the VDI snapshot has the marks %v", oc)
	}
	if _, err := w.Pool.CreateVBD(ctx, xapi.VBD{VM: w.VM("web").Ref, VDI: vdi.Ref, UserDevice: "5", Mode: "RW", Type: "Disk"}); err != nil {
		t.Fatal(err)
	}
	sum, err := backup.Run(ctx, w.Repo, w.Pool, w.Options("web"))
	if err == nil || len(sum.Failed) != 1 || !strings.Contains(sum.Failed[0].Error, "half restored") {
		t.Errorf("backup: %v %+v", err, sum)
	}
	if _, err := w.over(jobrestore.Overwrite{VDI: vdi.UUID}); err != nil {
		t.Fatal(err)
	}
	if oc := w.VDIOf(vdi.UUID).OtherConfig; len(oc) > 0 {
		t.Errorf("the disk has the marks %v", oc)
	}
	w.bare(nil)
}

// Row X2 of the fault list: two restores never write one VM's disks concurrently.
func TestRestoreOverActive(t *testing.T) {
	w := newOverWorld(t, xapisim.Config{NBD: xapisim.NBDTLS})
	w.Sim.Fault(xapisim.Fault{On: "task.create", Do: func() {
		if _, err := w.over(jobrestore.Overwrite{}); !errors.Is(err, job.ErrActive) {
			t.Errorf("a second restore: %v", err)
		}
		rep, err := lease.Cleanup(t.Context(), w.Repo, w.Pool, lease.CleanupOptions{Unblock: true})
		if err != nil || len(rep.Found) != 2 || rep.Found[0].State != lease.StateLive || rep.Found[1].State != lease.StateLive || rep.Found[0].Action != lease.ActNone {
			t.Errorf("%v %+v", err, rep)
		}
	}})
	if _, err := w.over(jobrestore.Overwrite{}); err != nil {
		t.Fatal(err)
	}
	w.restored()
	w.bare(nil)
}

// A disk that a control domain does not release is not written: another program may be
// reading or writing it.
func TestRestoreOverNotReleased(t *testing.T) {
	w := newOverWorld(t, xapisim.Config{NBD: xapisim.NBDTLS, NBDLinger: time.Hour})
	was := w.VolumeSum(w.vdi.UUID, 24*jobtest.MiB)
	_, err := w.over(jobrestore.Overwrite{})
	if err == nil || !strings.Contains(err.Error(), "a control domain has held the disk for a minute") || !strings.Contains(err.Error(), "nothing of it was written") {
		t.Fatal(err)
	}
	if w.VolumeSum(w.vdi.UUID, 24*jobtest.MiB) != was {
		t.Error("it was written to")
	}
	w.bare(nil)
}

// If the toolstack restarts while a restore reads its disk back, the error reports
// that, and not a truncated VHD.
func TestRestoreToolstackRestart(t *testing.T) {
	w := jobtest.New(t, xapisim.Config{SRs: jobtest.RestoreSRs})
	s := jobtest.BackupOf(w, "web")
	for _, at := range []int64{100, 3 * jobtest.MiB} {
		w.Sim.Fault(xapisim.Fault{On: "/export_raw_vdi", Cut: true, CutAt: at, Stall: true})
		stalled := make(chan bool)
		go func() { // the export stops at that byte until the restart ends it
			defer close(stalled)
			for range 2000 {
				for _, v := range w.Sim.Dump()["VBD"] {
					if v["currently_attached"] == true && v["mode"] == "RO" && v["type"] == "Disk" {
						w.Sim.Restart()
						return
					}
				}
				time.Sleep(5 * time.Millisecond)
			}
		}()
		_, err := jobrestore.Disks(t.Context(), w.Repo, w.Pool, s, jobtest.DisksOf(s)[:1], jobrestore.Target{SR: "one"}, jobrestore.Options{Verify: true})
		<-stalled
		w.Sim.ClearFaults()
		if err == nil || strings.Contains(err.Error(), "truncated") {
			t.Errorf("%v", err)
		}
		t.Log(err, job.HintOf(err))
	}
	// A connection that is closed without an error.
	w.Sim.Fault(xapisim.Fault{On: "/export_raw_vdi", Cut: true, CutAt: 3 * jobtest.MiB})
	_, err := jobrestore.Disks(t.Context(), w.Repo, w.Pool, s, jobtest.DisksOf(s)[:1], jobrestore.Target{SR: "one"}, jobrestore.Options{Verify: true})
	if err == nil || !strings.Contains(err.Error(), "restart of its toolstack") || !strings.Contains(job.HintOf(err), "again") {
		t.Errorf("%v", err)
	}
}

// Row X1 of the fault list: a VM is started after the host has released the disks that
// were read back.
func TestRestoreStartWaits(t *testing.T) {
	w := jobtest.New(t, xapisim.Config{SRs: jobtest.RestoreSRs, NBD: xapisim.NBDTLS, NBDLinger: 200 * time.Millisecond})
	s := jobtest.BackupOf(w, "web")
	starts := 0
	w.Sim.Watch(func(method string) {
		if method == "VM.start" {
			starts++
		}
	})
	w.Sim.Fault(xapisim.Fault{On: "VM.start", Do: func() {
		for _, v := range w.Sim.Dump()["VBD"] {
			if v["currently_attached"] == true && v["mode"] == "RO" && v["type"] == "Disk" {
				t.Error("a disk is still held")
			}
		}
	}})
	out, err := jobrestore.VM(t.Context(), w.Repo, w.Pool, s, jobrestore.VMOptions{Target: jobrestore.Target{SR: "one"}, Name: "back", Start: true}, jobrestore.Options{Verify: true})
	w.Sim.Watch(nil)
	if err != nil || out.Power != "Running" || starts != 1 {
		t.Errorf("%v %+v, started %d times", err, out, starts)
	}
}

// A restore in place that has nothing to write, or that verifies its data, ends when
// no host holds the disk: its VM can be started immediately afterwards.
func TestRestoreOverReleases(t *testing.T) {
	for _, same := range []bool{true, false} {
		w := newOverWorld(t, xapisim.Config{NBD: xapisim.NBDTLS, NBDLinger: 200 * time.Millisecond})
		if same {
			if _, err := w.Sim.GuestWrite(w.vdi.UUID, w.file); err != nil {
				t.Fatal(err)
			}
		}
		out, err := jobrestore.WriteOver(t.Context(), w.Repo, w.Pool, w.s, jobtest.DisksOf(w.s), jobrestore.Overwrite{}, jobrestore.Options{Verify: !same})
		if err != nil || same != (out.Disks[0].Written == 0) {
			t.Fatalf("%v %+v", err, out)
		}
		for _, v := range w.Sim.Dump()["VBD"] {
			if v["currently_attached"] == true && v["mode"] == "RO" && v["type"] == "Disk" {
				t.Error("a disk is still held")
			}
		}
		w.Must(nil, "VM.start", w.VM("web").Ref, false, false)
	}
}

// If a host does not release a restored disk, that is only a warning: the disk is
// complete.
func TestRestoreOverStaysHeld(t *testing.T) {
	w := newOverWorld(t, xapisim.Config{NBD: xapisim.NBDTLS, NBDLinger: time.Hour})
	if _, err := w.Sim.GuestWrite(w.vdi.UUID, w.file); err != nil {
		t.Fatal(err)
	}
	out, err := w.over(jobrestore.Overwrite{})
	if err != nil || len(out.Warnings) != 1 || !strings.Contains(out.Warnings[0], "still holds VDI "+w.vdi.UUID) {
		t.Fatalf("%v %+v", err, out)
	}
	w.bare(nil)
}

// A disk that two restores in turn leave half written is marked as half restored from
// the snapshot of the later one, and has a mark at all times.
func TestRestoreOverHalfTwice(t *testing.T) {
	w := newOverWorld(t, xapisim.Config{NBD: xapisim.NBDTLS})
	first := w.s
	w.s = jobtest.BackupOf(w.World, "web")
	if w.s.ID() == first.ID() {
		t.Fatal("one snapshot")
	}
	restore := func(s *repo.Snapshot) {
		t.Helper()
		w.cutMidway()
		_, err := jobrestore.WriteOver(t.Context(), w.Repo, w.Pool, s, jobtest.DisksOf(s), jobrestore.Overwrite{}, jobrestore.Options{})
		var half *jobrestore.HalfRestoredError
		if !errors.As(err, &half) {
			t.Fatal(err)
		}
		f := w.FindingOf("disk xvda of VM web")
		if f == nil || !strings.Contains(f.Text, "half restored from snapshot "+s.Short()) {
			t.Errorf("%+v", f)
		}
	}
	restore(first)
	if _, err := w.Sim.GuestWrite(w.vdi.UUID, w.Write("third.img", w.file, 99, 12)); err != nil {
		t.Fatal(err)
	}
	w.Sim.Watch(func(method string) {
		if method == "VDI.remove_from_other_config" {
			t.Error("the mark is taken off before the new one is there")
		}
	})
	restore(w.s)
	w.Sim.Watch(nil)
	if _, err := w.over(jobrestore.Overwrite{}); err != nil {
		t.Fatal(err)
	}
	w.bare(nil)
}

// A restore over a VM's disks that was killed before it wrote anything leaves a block.
// A run removes it before it plans its VMs, so that a preview finds no error, and
// doctor names the command. If the restore belongs to another repository, the run keeps
// the block, and the hint says who can remove it.
func TestRestoreOverDeadBlock(t *testing.T) {
	ctx := t.Context()
	w := newOverWorld(t, xapisim.Config{NBD: xapisim.NBDTLS})
	vm := w.VM("web")
	block := func(repository string, age time.Duration) {
		t.Helper()
		text, err := json.Marshal(map[string]any{"uuid": vm.UUID, "repository": repository, "run": "0123456789abcdef", "machine": "elsewhere",
			"process": "", "since": time.Now().Add(-age)})
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Pool.SetOtherConfig(ctx, "VM", vm.Ref, "xenkeep:writer", string(text)); err != nil {
			t.Fatal(err)
		}
		blocked := map[string]string{}
		for _, op := range []string{"start", "start_on", "snapshot"} {
			blocked[op] = "xenkeep is restoring disks of this VM; if no restore runs, run the same restore again, or see xenkeep cleanup"
		}
		w.Must(nil, "VM.set_blocked_operations", vm.Ref, blocked)
	}
	foresee := func() error {
		t.Helper()
		f, err := backup.NewPreview(ctx, w.Repo, w.Pool, w.Options("web"))
		if err != nil {
			t.Fatal(err)
		}
		_, err = f.VM(ctx, backup.VMRequest{UUID: vm.UUID, Name: "web"})
		return err
	}

	block(w.Repo.ID(), time.Second)
	if err := foresee(); err == nil || !strings.Contains(err.Error(), "a restore is writing over its disks") {
		t.Errorf("a live restore: %v", err)
	}
	if f := w.FindingOf("VM web"); f != nil {
		t.Errorf("a live restore: %+v", f)
	}

	block(w.Repo.ID(), 3*time.Hour)
	if err := foresee(); err != nil {
		t.Errorf("a dead restore: %v", err)
	}
	if f := w.FindingOf("VM web"); f == nil || f.Level != doctor.Warn || f.Text != "start is blocked by a restore that has ended" || !strings.Contains(f.Hint, "xenkeep cleanup") {
		t.Errorf("a dead restore: %+v", f)
	}
	if _, err := backup.Run(ctx, w.Repo, w.Pool, w.Options("web")); err != nil {
		t.Errorf("backup: %v", err)
	}
	w.bare(nil)

	block("fedcba9876543210", 3*time.Hour)
	if err := foresee(); err == nil || !strings.Contains(job.HintOf(err), "repository fedcba98") || !strings.Contains(job.HintOf(err), "--foreign") {
		t.Errorf("another repository: %v, %s", err, job.HintOf(err))
	}
	if f := w.FindingOf("VM web"); f == nil || !strings.Contains(f.Hint, "--foreign") {
		t.Errorf("another repository: %+v", f)
	}
	if _, err := backup.Run(ctx, w.Repo, w.Pool, w.Options("web")); err == nil {
		t.Error("the backup passes over the block")
	}
	if _, err := lease.Cleanup(ctx, w.Repo, w.Pool, lease.CleanupOptions{Foreign: true}); err != nil {
		t.Fatal(err)
	}
	w.bare(nil)
}
