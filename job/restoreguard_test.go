package job_test

import (
	"encoding/json"
	"errors"
	"maps"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"xenkeep/job"
	"xenkeep/repo"
	"xenkeep/xapi"
	"xenkeep/xapi/xapisim"
)

// overWorld is a halted VM web with one disk, a snapshot of it, and other data on
// the disk since.
type overWorld struct {
	*world
	s    *repo.Snapshot
	file string // what the snapshot holds
	vdi  xapi.VDI
}

func newOverWorld(t *testing.T, cfg xapisim.Config) *overWorld {
	t.Helper()
	w := &overWorld{file: image(t, filepath.Join(t.TempDir(), "a.img"), 24*mib, 1, 40)}
	cfg.SRs = restoreSRs
	cfg.VMs = []xapisim.VMConfig{{Name: "web", SR: "one", Halted: true, Disks: []string{w.file}}}
	w.world = newWorld(t, cfg)
	w.s = backupOf(w.world, "web")
	w.vdi = w.diskAt("web", "0")
	w.change()
	return w
}

func (w *overWorld) change() {
	w.t.Helper()
	if _, err := w.sim.GuestWrite(w.vdi.UUID, w.write("other.img", w.file, 77, 12)); err != nil {
		w.t.Fatal(err)
	}
}

func (w *overWorld) over(over job.Over) (*job.Restored, error) {
	return job.RestoreOver(w.t.Context(), w.repo, w.pool, w.s, disksOf(w.s), over, job.RestoreOptions{})
}

// bare checks that nothing of a restore is left on the VM and its disk.
func (w *overWorld) bare(blocked map[string]string) {
	w.t.Helper()
	vm := w.vm("web")
	if !maps.Equal(vm.BlockedOperations, blocked) {
		w.t.Errorf("blocked: %v, want %v", vm.BlockedOperations, blocked)
	}
	for _, other := range []map[string]string{vm.OtherConfig, w.diskAt("web", "0").OtherConfig} {
		for k := range other {
			if strings.HasPrefix(k, "xenkeep:") {
				w.t.Errorf("the mark %s stays", k)
			}
		}
	}
}

func (w *overWorld) restored() {
	w.t.Helper()
	if w.volumeSum(w.vdi.UUID, 24*mib) != fileSum(w.t, w.file) {
		w.t.Error("the disk differs")
	}
}

// Row X1 of the fault list: a host holds a disk for a moment after it was read over
// NBD, and refuses to write to it meanwhile. A restore that compares first waits.
func TestRestoreOverWaits(t *testing.T) {
	for _, over := range []job.Over{{}, {VDI: "web", Differential: true}} {
		w := newOverWorld(t, xapisim.Config{NBD: xapisim.NBDTLS, NBDLinger: 200 * time.Millisecond})
		if over.VDI != "" {
			over.VDI = w.vdi.UUID
		}
		imports := 0
		w.sim.Watch(func(method string) {
			if method == "task.create" {
				imports++
			}
		})
		_, err := w.over(over)
		w.sim.Watch(nil)
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

// Row X1 of the fault list: while a host holds the disk the pool fails an import
// with INTERNAL_ERROR, which passes; where it does not, nothing was written, and the
// error does not say that anything was.
func TestRestoreOverHeld(t *testing.T) {
	held := xapisim.Fault{On: "/import_raw_vdi", Code: "INTERNAL_ERROR",
		Params: []string{"Storage_error ([S(Illegal_transition);[[S(Activated);S(RO)];[S(Activated);S(RW)]]])"}}
	w := newOverWorld(t, xapisim.Config{NBD: xapisim.NBDTLS})
	before := w.sim.Dump()
	held.Times = -1
	w.sim.Fault(held)
	_, err := w.over(job.Over{})
	if err == nil || !strings.Contains(err.Error(), "nothing of it was written") || strings.Contains(err.Error(), "half") || !xapi.InUse(err) {
		t.Fatal(err)
	}
	w.sim.ClearFaults()
	w.sim.GC()
	samePool(t, before, w.sim.Dump())
	held.Times = 3
	w.sim.Fault(held)
	if _, err := w.over(job.Over{}); err != nil {
		t.Fatal(err)
	}
	w.restored()
	w.bare(nil)
}

// Row X2 of the fault list: the pool lets a VM start while its disk is written, so
// that the restore blocks the VM for that time, and leaves blocks of others alone.
func TestRestoreOverBlocks(t *testing.T) {
	for _, over := range []job.Over{{}, {VDI: "disk"}} {
		w := newOverWorld(t, xapisim.Config{NBD: xapisim.NBDTLS})
		if over.VDI != "" {
			over.VDI = w.vdi.UUID
		}
		mine := map[string]string{"destroy": "precious", "revert": "never"}
		w.must(nil, "VM.set_blocked_operations", w.vm("web").Ref, mine)
		tried := 0
		// The task of the import is made right before its data are sent.
		w.sim.Fault(xapisim.Fault{On: "task.create", Do: func() {
			tried++
			for op, why := range map[string]string{"start": "", "start_on": "", "resume": "", "resume_on": "", "snapshot": "", "revert": "never"} {
				if got := w.vm("web").BlockedOperations[op]; got == "" || why != "" && got != why {
					t.Errorf("%s is blocked by %q", op, got)
				}
			}
			if err := w.pool.StartVM(t.Context(), w.vm("web").Ref); !xapi.IsCode(err, "OPERATION_BLOCKED") || !strings.Contains(err.Error(), "restor") {
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
		if err := w.pool.StartVM(t.Context(), w.vm("web").Ref); err != nil {
			t.Error(err)
		}
	}
}

// Row X2 of the fault list: a VM that ran all the same while its disk was written
// is reported, and its disk counts as half restored.
func TestRestoreOverStarted(t *testing.T) {
	w := newOverWorld(t, xapisim.Config{NBD: xapisim.NBDTLS})
	w.sim.Fault(xapisim.Fault{On: "task.destroy", Do: func() { // the write is over, the run is not
		w.must(nil, "VM.set_blocked_operations", w.vm("web").Ref, map[string]string{})
		if err := w.pool.StartVM(t.Context(), w.vm("web").Ref); err != nil {
			t.Error(err)
		}
	}})
	_, err := w.over(job.Over{})
	var half *job.HalfRestoredError
	if !errors.As(err, &half) || !errors.Is(err, job.ErrNotHalted) || !strings.Contains(err.Error(), "it ran while its disks were written") {
		t.Fatal(err)
	}
	w.halt("web")
	if _, err := w.over(job.Over{}); err != nil {
		t.Fatal(err)
	}
	w.restored()
	w.bare(nil)

	// One that starts before the block stands is refused.
	w.change()
	w.sim.Fault(xapisim.Fault{On: "VM.add_to_other_config", Do: func() {
		if err := w.pool.StartVM(t.Context(), w.vm("web").Ref); err != nil {
			t.Error(err)
		}
	}})
	if _, err := w.over(job.Over{}); !errors.Is(err, job.ErrNotHalted) || errors.As(err, &half) {
		t.Fatal(err)
	}
	w.bare(nil)
}

func (w *overWorld) cutMidway() {
	w.sim.Fault(xapisim.Fault{On: "/import_raw_vdi", Code: "VDI_IO_ERROR", Params: []string{"Device I/O errors"}, Cut: true, CutAt: 3 * mib, Embedded: true})
}

// Row N2 of the fault list: a disk that a restore left half written bears a mark
// which backups, plans, doctor and cleanup respect, its VM cannot be started, and
// the same command ends all that.
func TestRestoreOverHalf(t *testing.T) {
	ctx := t.Context()
	w := newOverWorld(t, xapisim.Config{NBD: xapisim.NBDTLS})
	mine := map[string]string{"start": "not before Monday"}
	w.must(nil, "VM.set_blocked_operations", w.vm("web").Ref, mine)
	w.cutMidway()
	_, err := w.over(job.Over{})
	var half *job.HalfRestoredError
	if !errors.As(err, &half) || half.VM != "web" || len(half.Disks) != 1 || half.Disks[0] != "xvda" || job.HintOf(err) != half.Hint() {
		t.Fatal(err)
	}
	vm := w.vm("web")
	for _, op := range []string{"start", "start_on"} {
		if vm.BlockedOperations[op] == "" {
			t.Errorf("%s is not blocked", op)
		}
	}
	sum, err := job.Backup(ctx, w.repo, w.pool, w.options("web"))
	if err == nil || len(sum.Failed) != 1 || !strings.Contains(sum.Failed[0].Error, "its disk xvda is half restored") || !strings.Contains(sum.Failed[0].Hint, "run the same restore again") {
		t.Errorf("backup: %v %+v", err, sum)
	}
	findings, err := job.DoctorPool(ctx, w.pool)
	if err != nil {
		t.Fatal(err)
	}
	told := false
	for _, f := range findings {
		told = told || f.Level == job.Fail && f.What == "disk xvda of VM web" && strings.Contains(f.Text, "half restored from snapshot "+w.s.Short())
	}
	if !told {
		t.Errorf("doctor: %+v", findings)
	}
	for _, dry := range []bool{true, false} {
		rep, err := job.Cleanup(ctx, w.repo, w.pool, job.CleanupOptions{DryRun: dry})
		if err != nil || rep.Err() != nil || len(rep.Found) != 2 {
			t.Fatalf("%v %+v", err, rep)
		}
		for _, l := range rep.Found {
			if l.State != job.StateDead || l.Action != job.ActNone || l.Role != "over" || l.Hint == "" || l.Repository != w.repo.ID() {
				t.Errorf("%+v", l)
			}
		}
	}
	// Another failure before anything is written changes nothing of that.
	w.sim.Fault(xapisim.Fault{On: "VDI.get_nbd_info", Code: "INTERNAL_ERROR", Times: -1})
	w.sim.Fault(xapisim.Fault{On: "/export_raw_vdi", Status: 500, Times: -1})
	if _, err = w.over(job.Over{}); !errors.As(err, &half) {
		t.Fatal(err)
	}
	w.sim.ClearFaults()
	if _, err := w.over(job.Over{}); err != nil {
		t.Fatal(err)
	}
	w.restored()
	w.bare(mine)

	// Whoever wants the disk as it is says so.
	w.change()
	w.cutMidway()
	if _, err := w.over(job.Over{}); err == nil {
		t.Fatal("no error")
	}
	rep, err := job.Cleanup(ctx, w.repo, w.pool, job.CleanupOptions{Unblock: true})
	if err != nil || rep.Err() != nil || len(rep.Found) != 2 || rep.Found[0].Action != job.ActUnblock {
		t.Fatalf("%v %+v", err, rep)
	}
	w.bare(mine)
}

// Row N2 of the fault list: a half-restored disk that no VM has is marked too, and
// fails the backup of a VM that it is attached to.
func TestRestoreOverHalfLoose(t *testing.T) {
	ctx := t.Context()
	w := newOverWorld(t, xapisim.Config{NBD: xapisim.NBDTLS})
	made, err := job.RestoreDisks(ctx, w.repo, w.pool, w.s, disksOf(w.s), job.Target{SR: "one"}, job.RestoreOptions{})
	if err != nil {
		t.Fatal(err)
	}
	vdi := w.vdiOf(made.Disks[0].VDI)
	w.cutMidway()
	_, err = w.over(job.Over{VDI: vdi.UUID, KeepOld: true})
	var half *job.HalfRestoredError
	if !errors.As(err, &half) || len(half.Old) != 1 {
		t.Fatal(err)
	}
	if oc := w.vdiOf(half.Old[0]).OtherConfig; len(oc) > 0 {
		t.Errorf("the VDI snapshot bears %v", oc)
	}
	if _, err := w.pool.CreateVBD(ctx, xapi.VBD{VM: w.vm("web").Ref, VDI: vdi.Ref, UserDevice: "5", Mode: "RW", Type: "Disk"}); err != nil {
		t.Fatal(err)
	}
	sum, err := job.Backup(ctx, w.repo, w.pool, w.options("web"))
	if err == nil || len(sum.Failed) != 1 || !strings.Contains(sum.Failed[0].Error, "half restored") {
		t.Errorf("backup: %v %+v", err, sum)
	}
	if _, err := w.over(job.Over{VDI: vdi.UUID}); err != nil {
		t.Fatal(err)
	}
	if oc := w.vdiOf(vdi.UUID).OtherConfig; len(oc) > 0 {
		t.Errorf("the disk bears %v", oc)
	}
	w.bare(nil)
}

// Row X2 of the fault list: two restores never write one VM's disks at a time.
func TestRestoreOverActive(t *testing.T) {
	w := newOverWorld(t, xapisim.Config{NBD: xapisim.NBDTLS})
	w.sim.Fault(xapisim.Fault{On: "task.create", Do: func() {
		if _, err := w.over(job.Over{}); !errors.Is(err, job.ErrActive) {
			t.Errorf("a second restore: %v", err)
		}
		rep, err := job.Cleanup(t.Context(), w.repo, w.pool, job.CleanupOptions{Unblock: true})
		if err != nil || len(rep.Found) != 2 || rep.Found[0].State != job.StateLive || rep.Found[1].State != job.StateLive || rep.Found[0].Action != job.ActNone {
			t.Errorf("%v %+v", err, rep)
		}
	}})
	if _, err := w.over(job.Over{}); err != nil {
		t.Fatal(err)
	}
	w.restored()
	w.bare(nil)
}

// A disk that a control domain does not let go of is not written to: another program
// may be reading or writing it.
func TestRestoreOverNotReleased(t *testing.T) {
	w := newOverWorld(t, xapisim.Config{NBD: xapisim.NBDTLS, NBDLinger: time.Hour})
	was := w.volumeSum(w.vdi.UUID, 24*mib)
	_, err := w.over(job.Over{})
	if err == nil || !strings.Contains(err.Error(), "a control domain has held the disk for a minute") || !strings.Contains(err.Error(), "nothing of it was written") {
		t.Fatal(err)
	}
	if w.volumeSum(w.vdi.UUID, 24*mib) != was {
		t.Error("it was written to")
	}
	w.bare(nil)
}

// A restore that reads its disk back, and meets a restart of the toolstack, says so
// rather than that a VHD is truncated.
func TestRestoreToolstackRestart(t *testing.T) {
	w := newWorld(t, xapisim.Config{SRs: restoreSRs})
	s := backupOf(w, "web")
	for _, at := range []int64{100, 3 * mib} {
		w.sim.Fault(xapisim.Fault{On: "/export_raw_vdi", Cut: true, CutAt: at, Stall: true})
		stalled := make(chan bool)
		go func() { // the export stands still at that byte, until the restart ends it
			defer close(stalled)
			for range 2000 {
				for _, v := range w.sim.Dump()["VBD"] {
					if v["currently_attached"] == true && v["mode"] == "RO" && v["type"] == "Disk" {
						w.sim.Restart()
						return
					}
				}
				time.Sleep(5 * time.Millisecond)
			}
		}()
		_, err := job.RestoreDisks(t.Context(), w.repo, w.pool, s, disksOf(s)[:1], job.Target{SR: "one"}, job.RestoreOptions{Verify: true})
		<-stalled
		w.sim.ClearFaults()
		if err == nil || strings.Contains(err.Error(), "truncated") {
			t.Errorf("%v", err)
		}
		t.Log(err, job.HintOf(err))
	}
	// A connection that ends without more.
	w.sim.Fault(xapisim.Fault{On: "/export_raw_vdi", Cut: true, CutAt: 3 * mib})
	_, err := job.RestoreDisks(t.Context(), w.repo, w.pool, s, disksOf(s)[:1], job.Target{SR: "one"}, job.RestoreOptions{Verify: true})
	if err == nil || !strings.Contains(err.Error(), "restart of its toolstack") || !strings.Contains(job.HintOf(err), "again") {
		t.Errorf("%v", err)
	}
}

// Row X1 of the fault list: a VM is started once the host has let go of the disks that
// were read back.
func TestRestoreStartWaits(t *testing.T) {
	w := newWorld(t, xapisim.Config{SRs: restoreSRs, NBD: xapisim.NBDTLS, NBDLinger: 200 * time.Millisecond})
	s := backupOf(w, "web")
	starts := 0
	w.sim.Watch(func(method string) {
		if method == "VM.start" {
			starts++
		}
	})
	w.sim.Fault(xapisim.Fault{On: "VM.start", Do: func() {
		for _, v := range w.sim.Dump()["VBD"] {
			if v["currently_attached"] == true && v["mode"] == "RO" && v["type"] == "Disk" {
				t.Error("a disk is still held")
			}
		}
	}})
	out, err := job.RestoreVM(t.Context(), w.repo, w.pool, s, job.VMRestore{Target: job.Target{SR: "one"}, Name: "back", Start: true}, job.RestoreOptions{Verify: true})
	w.sim.Watch(nil)
	if err != nil || out.Power != "Running" || starts != 1 {
		t.Errorf("%v %+v, started %d times", err, out, starts)
	}
}

// A restore in place that finds nothing to write, or reads back what it wrote, ends
// once no host holds the disk: its VM can be started right after it.
func TestRestoreOverReleases(t *testing.T) {
	for _, same := range []bool{true, false} {
		w := newOverWorld(t, xapisim.Config{NBD: xapisim.NBDTLS, NBDLinger: 200 * time.Millisecond})
		if same {
			if _, err := w.sim.GuestWrite(w.vdi.UUID, w.file); err != nil {
				t.Fatal(err)
			}
		}
		out, err := job.RestoreOver(t.Context(), w.repo, w.pool, w.s, disksOf(w.s), job.Over{}, job.RestoreOptions{Verify: !same})
		if err != nil || same != (out.Disks[0].Written == 0) {
			t.Fatalf("%v %+v", err, out)
		}
		for _, v := range w.sim.Dump()["VBD"] {
			if v["currently_attached"] == true && v["mode"] == "RO" && v["type"] == "Disk" {
				t.Error("a disk is still held")
			}
		}
		w.must(nil, "VM.start", w.vm("web").Ref, false, false)
	}
}

// A disk that stays held after it was restored is a warning: it is whole.
func TestRestoreOverStaysHeld(t *testing.T) {
	w := newOverWorld(t, xapisim.Config{NBD: xapisim.NBDTLS, NBDLinger: time.Hour})
	if _, err := w.sim.GuestWrite(w.vdi.UUID, w.file); err != nil {
		t.Fatal(err)
	}
	out, err := w.over(job.Over{})
	if err != nil || len(out.Warnings) != 1 || !strings.Contains(out.Warnings[0], "still holds VDI "+w.vdi.UUID) {
		t.Fatalf("%v %+v", err, out)
	}
	w.bare(nil)
}

// A disk that two restores in turn leave half written is marked as half restored from
// the snapshot of the later one, and is never without a mark meanwhile.
func TestRestoreOverHalfTwice(t *testing.T) {
	w := newOverWorld(t, xapisim.Config{NBD: xapisim.NBDTLS})
	first := w.s
	w.s = backupOf(w.world, "web")
	if w.s.ID() == first.ID() {
		t.Fatal("one snapshot")
	}
	restore := func(s *repo.Snapshot) {
		t.Helper()
		w.cutMidway()
		_, err := job.RestoreOver(t.Context(), w.repo, w.pool, s, disksOf(s), job.Over{}, job.RestoreOptions{})
		var half *job.HalfRestoredError
		if !errors.As(err, &half) {
			t.Fatal(err)
		}
		f := w.findingOf("disk xvda of VM web")
		if f == nil || !strings.Contains(f.Text, "half restored from snapshot "+s.Short()) {
			t.Errorf("%+v", f)
		}
	}
	restore(first)
	if _, err := w.sim.GuestWrite(w.vdi.UUID, w.write("third.img", w.file, 99, 12)); err != nil {
		t.Fatal(err)
	}
	w.sim.Watch(func(method string) {
		if method == "VDI.remove_from_other_config" {
			t.Error("the mark is taken off before the new one is there")
		}
	})
	restore(w.s)
	w.sim.Watch(nil)
	if _, err := w.over(job.Over{}); err != nil {
		t.Fatal(err)
	}
	w.bare(nil)
}

// A restore over a VM's disks that was killed before it wrote anything leaves a block.
// A run takes it off before it plans its VMs, so that a plan finds nothing wrong, and
// doctor names the command. Where the restore was of another repository, the run leaves
// the block, and the hint says who takes it off.
func TestRestoreOverDeadBlock(t *testing.T) {
	ctx := t.Context()
	w := newOverWorld(t, xapisim.Config{NBD: xapisim.NBDTLS})
	vm := w.vm("web")
	block := func(repository string, age time.Duration) {
		t.Helper()
		text, err := json.Marshal(map[string]any{"uuid": vm.UUID, "repository": repository, "run": "0123456789abcdef", "machine": "elsewhere",
			"process": "", "since": time.Now().Add(-age)})
		if err != nil {
			t.Fatal(err)
		}
		if err := w.pool.SetOtherConfig(ctx, "VM", vm.Ref, "xenkeep:writer", string(text)); err != nil {
			t.Fatal(err)
		}
		blocked := map[string]string{}
		for _, op := range []string{"start", "start_on", "snapshot"} {
			blocked[op] = "xenkeep is restoring disks of this VM; if no restore runs, run the same restore again, or see xenkeep cleanup"
		}
		w.must(nil, "VM.set_blocked_operations", vm.Ref, blocked)
	}
	foresee := func() error {
		t.Helper()
		f, err := job.Foresee(ctx, w.repo, w.pool, w.options("web"))
		if err != nil {
			t.Fatal(err)
		}
		_, err = f.VM(ctx, job.Chosen{UUID: vm.UUID, Name: "web"})
		return err
	}

	block(w.repo.ID(), time.Second)
	if err := foresee(); err == nil || !strings.Contains(err.Error(), "a restore is writing over its disks") {
		t.Errorf("a live restore: %v", err)
	}
	if f := w.findingOf("VM web"); f != nil {
		t.Errorf("a live restore: %+v", f)
	}

	block(w.repo.ID(), 3*time.Hour)
	if err := foresee(); err != nil {
		t.Errorf("a dead restore: %v", err)
	}
	if f := w.findingOf("VM web"); f == nil || f.Level != job.Warn || f.Text != "start is blocked by a restore that has ended" || !strings.Contains(f.Hint, "xenkeep cleanup") {
		t.Errorf("a dead restore: %+v", f)
	}
	if _, err := job.Backup(ctx, w.repo, w.pool, w.options("web")); err != nil {
		t.Errorf("backup: %v", err)
	}
	w.bare(nil)

	block("fedcba9876543210", 3*time.Hour)
	if err := foresee(); err == nil || !strings.Contains(job.HintOf(err), "repository fedcba98") || !strings.Contains(job.HintOf(err), "--foreign") {
		t.Errorf("another repository: %v, %s", err, job.HintOf(err))
	}
	if f := w.findingOf("VM web"); f == nil || !strings.Contains(f.Hint, "--foreign") {
		t.Errorf("another repository: %+v", f)
	}
	if _, err := job.Backup(ctx, w.repo, w.pool, w.options("web")); err == nil {
		t.Error("the backup passes over the block")
	}
	if _, err := job.Cleanup(ctx, w.repo, w.pool, job.CleanupOptions{Foreign: true}); err != nil {
		t.Fatal(err)
	}
	w.bare(nil)
}
