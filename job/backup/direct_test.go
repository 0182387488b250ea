package backup_test

import (
	"encoding/json"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"xenkeep/job"
	"xenkeep/job/backup"
	"xenkeep/job/doctor"
	"xenkeep/job/jobtest"
	"xenkeep/job/lease"
	"xenkeep/job/vmplan"
	"xenkeep/xapi"
	"xenkeep/xapi/xapisim"
)

// rawWorld is a pool with a VM that has a VHD disk and a raw disk.
type rawWorld struct {
	*jobtest.World
	raw  xapi.VDI
	file string // the content of the raw disk
}

func newRawWorld(t *testing.T, kind string, cfg xapisim.Config) *rawWorld {
	t.Helper()
	cfg.SRs = []xapisim.SRConfig{{Name: "sr", Type: kind, Shared: kind != "ext" && kind != "lvm", Size: 8 << 30}}
	w := &rawWorld{World: jobtest.NightPool(t, cfg, "web", "other")}
	w.file = jobtest.Image(t, filepath.Join(w.Dir, "raw.img"), 12*jobtest.MiB, 7, 20)
	w.Halt("web")
	w.raw = w.AddRaw("web", "sr", w.file, 12*jobtest.MiB)
	return w
}

func (w *rawWorld) options(kinds ...vmplan.Kind) backup.Options {
	o := w.Options()
	o.Keep, o.RawOffline, o.Selected = backup.KeepNone, true, w.Requests("web")
	o.Selected[0].Kinds = kinds
	return o
}

// bare checks that the VM has no marks or blocks of a backup.
func (w *rawWorld) bare(state string) {
	w.T.Helper()
	vm := w.VM("web")
	if vm.PowerState != state || len(vm.BlockedOperations) > 0 {
		w.T.Errorf("the VM is %s, want %s; blocked: %v", vm.PowerState, state, vm.BlockedOperations)
	}
	for k := range vm.OtherConfig {
		if strings.HasPrefix(k, "xenkeep:") {
			w.T.Errorf("the mark %s stays", k)
		}
	}
	if len(vm.Snapshots) > 0 {
		w.T.Errorf("%d VM snapshots stay", len(vm.Snapshots))
	}
}

// Row X6 of the fault list: a raw disk, which the pool cannot snapshot, is read while
// its VM is halted if the options permit it: because the VM is halted, or because the
// kind of snapshot shuts it down. Any other VM fails with the reason before the pool
// is changed, or its raw disk is left out. Preview and run agree.
func TestRawOffline(t *testing.T) {
	offline := []vmplan.Kind{vmplan.KindOffline}
	for _, c := range []struct {
		what    string
		sr      string
		running bool
		state   string // "", or the call that brings the VM into the state
		off     bool   // without the option
		skip    bool
		kinds   []vmplan.Kind
		cfg     xapisim.Config
		want    string // kind
		left    bool   // the raw disk is left out
		says    string
		hint    string
	}{
		{what: "halted, a file", sr: "nfs", want: "regular"},
		{what: "halted, a volume", sr: "lvmoiscsi", want: "regular"},
		{what: "halted, over NBD", sr: "nfs", want: "regular", cfg: xapisim.Config{NBD: xapisim.NBDTLS}},
		{what: "halted, offline", sr: "ext", kinds: offline, want: "offline"},
		{what: "running, offline", sr: "nfs", running: true, kinds: offline, want: "offline"},
		{what: "running, offline as the last kind", sr: "lvm", running: true, kinds: []vmplan.Kind{vmplan.KindQuiesced, vmplan.KindRegular, vmplan.KindOffline}, want: "offline"},
		{what: "running, offline, skipped elsewhere", sr: "nfs", running: true, skip: true, kinds: offline, want: "offline"},
		{what: "running", sr: "nfs", running: true, says: "disk xvdf (raw): cannot be snapshotted: it is a raw file, and its SR's driver cannot snapshot those; it can be read without one while the VM is halted, and the VM is running", hint: "kind offline"},
		{what: "running, skipped", sr: "nfs", running: true, skip: true, want: "regular", left: true},
		{what: "suspended", sr: "nfs", running: true, state: "suspend", kinds: offline, says: "and the VM is suspended", hint: "shut the VM down"},
		{what: "not asked for", sr: "nfs", off: true, says: "it is a raw file", hint: "--raw-offline, or leave it out with --skip-unsupported"},
		{what: "old hosts", sr: "nfs", running: true, kinds: offline, cfg: xapisim.Config{Version: xapisim.Version82}, says: "hosts of version 8.2 and older cannot leave it out", hint: "upgrade the pool"},
	} {
		t.Run(c.what, func(t *testing.T) {
			w := newRawWorld(t, c.sr, c.cfg)
			if c.running {
				w.Must(nil, "VM.start", w.VM("web").Ref, false, false)
			}
			if c.state != "" {
				w.Must(nil, "VM."+c.state, w.VM("web").Ref)
			}
			state := w.VM("web").PowerState
			before := w.Sim.Dump()
			o := w.options(c.kinds...)
			o.RawOffline, o.SkipUnsupported = !c.off, c.skip
			if c.cfg.NBD != "" {
				o.Transport = backup.TransportNBD
			}
			forecast, ferr := w.Preview(o)
			s, err := backup.Run(t.Context(), w.Repo, w.Pool, o)
			if got := kindOf(s); got != c.want {
				t.Fatalf("kind %q, want %q: %v", got, c.want, err)
			}
			if planned := ferr == nil; planned != (c.want != "") {
				t.Errorf("the plan: %v", ferr)
			}
			w.bare(state)
			if c.want == "" {
				if !errors.Is(err, job.ErrUnsupported) || !strings.Contains(err.Error(), c.says) || !strings.Contains(job.HintOf(err), c.hint) {
					t.Errorf("%v; hint %q; want %q and %q", err, job.HintOf(err), c.says, c.hint)
				}
				jobtest.SamePool(t, before, w.Sim.Dump())
				return
			}
			w.checkRaw(s, forecast, c.left)
			if told := strings.Contains(strings.Join(forecast.Warnings, "\n"), "it stays shut down until its raw disks are read (12 MiB)"); told != (c.running && !c.left) {
				t.Errorf("the plan warns: %q", forecast.Warnings)
			}
			// The next backup compares with the last, and stores nothing twice.
			if s, err = backup.Run(t.Context(), w.Repo, w.Pool, o); err != nil || s.Stored > jobtest.MiB {
				t.Errorf("again: %v, %d bytes stored", err, s.Stored)
			}
			w.bare(state)
			w.CheckRepository()
		})
	}
}

// checkRaw checks that the raw disk of a backup was read, or left out, and that its
// preview agrees.
func (w *rawWorld) checkRaw(s *job.Summary, forecast *backup.VMPreview, left bool) {
	t := w.T
	t.Helper()
	i := slices.IndexFunc(forecast.Disks, func(d backup.DiskPreview) bool { return d.Device == "xvdf" })
	if i < 0 || (forecast.Disks[i].Left != "") != left {
		t.Fatalf("the plan: %+v", forecast.Disks)
	}
	saved := w.Snapshot(s.Snapshots[0].ID)
	if left {
		if len(saved.Missing) != 1 || saved.Missing[0].Device != "xvdf" || len(saved.Disks) != 1 {
			t.Errorf("%+v", saved)
		}
		return
	}
	const reason = "raw disk, read while its VM was halted"
	d, err := saved.Disk("xvdf")
	if err != nil || !strings.HasPrefix(d.Reason, reason) || d.Method != "full" || d.VDISnapshot != "" || len(saved.Missing) > 0 {
		t.Fatalf("%v %+v", err, d)
	}
	if f := forecast.Disks[i]; f.Reason != reason || f.Method != "full" || f.Bytes != d.Size {
		t.Errorf("the plan: %+v", f)
	}
	if w.RestoredTo(saved, "xvdf") != jobtest.FileSum(t, w.file) {
		t.Error("the raw disk comes back otherwise")
	}
	if w.RestoredTo(saved, "xvda") != w.VolumeSum(w.DiskAt("web", "0").UUID, 4*jobtest.MiB) {
		t.Error("the other disk comes back otherwise")
	}
}

// Row X6 of the fault list: a VM cannot be started while its raw disk is read. If the
// block is removed meanwhile, the VM fails and nothing of it is stored. The VM is
// started before its other disks are read.
func TestRawOfflineGuard(t *testing.T) {
	t.Run("blocked", func(t *testing.T) {
		w := newRawWorld(t, "nfs", xapisim.Config{})
		ref := w.VM("web").Ref
		w.Must(nil, "VM.start", ref, false, false)
		reads := 0
		w.Sim.Fault(xapisim.Fault{On: "/export_raw_vdi", Times: -1, Do: func() {
			reads++
			vm := w.VM("web")
			if reads > 1 {
				if vm.PowerState != "Running" || len(vm.BlockedOperations) > 0 {
					t.Errorf("while the VM snapshot is read: %s, %v", vm.PowerState, vm.BlockedOperations)
				}
				return
			}
			if err := w.Pool.Call(t.Context(), "VM.start", nil, ref, false, true); !xapi.IsCode(err, "OPERATION_BLOCKED") || !strings.Contains(err.Error(), "xenkeep is reading raw disks of this VM") {
				t.Errorf("start: %v", err)
			}
			if l := w.Cleanup(lease.CleanupOptions{})["web"]; l.State != lease.StateLive || l.Action != lease.ActNone {
				t.Errorf("cleanup: %+v", l)
			}
			if f, err := doctor.Blocked(t.Context(), w.Pool); err != nil || len(f) > 0 {
				t.Errorf("doctor: %+v %v", f, err)
			}
		}})
		o := w.options(vmplan.KindOffline)
		o.DiskConcurrency = 1
		if _, err := backup.Run(t.Context(), w.Repo, w.Pool, o); err != nil || reads != 2 {
			t.Fatalf("%v, %d reads", err, reads)
		}
		w.bare("Running")
		w.CheckRepository()
	})
	for _, c := range []struct {
		what string
		at   string
		do   func(w *rawWorld)
		says string
		hint string
	}{
		{"the block is removed", "/export_raw_vdi", func(w *rawWorld) {
			w.Must(nil, "VM.remove_from_blocked_operations", w.VM("web").Ref, "start")
		}, "somebody removed the block of its start", "leave the VM halted"},
		{"resized", "VM.snapshot", func(w *rawWorld) {
			w.Must(nil, "VDI.resize", w.raw.Ref, 16*jobtest.MiB)
		}, "it was resized", ""},
	} {
		t.Run(c.what, func(t *testing.T) {
			w := newRawWorld(t, "nfs", xapisim.Config{})
			before := w.Sim.Dump()
			w.Sim.Fault(xapisim.Fault{On: c.at, Do: func() { c.do(w) }})
			s, err := backup.Run(t.Context(), w.Repo, w.Pool, w.options())
			if err == nil || len(s.Snapshots) > 0 || !strings.Contains(err.Error(), c.says) || !strings.Contains(job.HintOf(err), c.hint) {
				t.Errorf("%v, hint %q, %+v", err, job.HintOf(err), s.Snapshots)
			}
			w.bare("Halted")
			if c.what != "resized" {
				w.Sim.GC()
				jobtest.SamePool(t, before, w.Sim.Dump())
			}
		})
	}
	t.Run("another VM has the disk", func(t *testing.T) {
		w := newRawWorld(t, "nfs", xapisim.Config{})
		w.Halt("other")
		other := w.VM("other").Ref
		if _, err := w.Pool.CreateVBD(t.Context(), xapi.VBD{VM: other, VDI: w.raw.Ref, UserDevice: "6", Mode: "RW", Type: "Disk"}); err != nil {
			t.Fatal(err)
		}
		w.Must(nil, "VM.start", other, false, false)
		if _, err := backup.Run(t.Context(), w.Repo, w.Pool, w.options()); !errors.Is(err, job.ErrNotHalted) || !strings.Contains(err.Error(), "VM other is running") {
			t.Errorf("%v", err)
		}
		w.bare("Halted")
		if vm := w.VM("other"); len(vm.BlockedOperations) > 0 {
			t.Errorf("blocked: %v", vm.BlockedOperations)
		}
	})
	// The block of a half-restored VM is not removed together with ours.
	t.Run("another VM has the disk and is half restored", func(t *testing.T) {
		w := newRawWorld(t, "nfs", xapisim.Config{})
		w.Halt("other")
		other := w.VM("other")
		if _, err := w.Pool.CreateVBD(t.Context(), xapi.VBD{VM: other.Ref, VDI: w.raw.Ref, UserDevice: "6", Mode: "RW", Type: "Disk"}); err != nil {
			t.Fatal(err)
		}
		vdi := w.DiskAt("other", "0")
		mark, err := json.Marshal(lease.HalfMark{UUID: vdi.UUID, Snapshot: strings.Repeat("cd", 32)})
		if err != nil {
			t.Fatal(err)
		}
		w.Must(nil, "VDI.add_to_other_config", vdi.Ref, lease.MarkHalf, string(mark))
		w.Must(nil, "VM.add_to_blocked_operations", other.Ref, "start", lease.GuardOver.Text())
		_, err = backup.Run(t.Context(), w.Repo, w.Pool, w.options())
		if err == nil || !strings.Contains(err.Error(), "VM other: its disk") || !strings.Contains(err.Error(), "half restored") || job.HintOf(err) != lease.HalfHint {
			t.Errorf("%v, hint %q", err, job.HintOf(err))
		}
		if now := w.VM("other"); now.BlockedOperations["start"] != lease.GuardOver.Text() {
			t.Errorf("blocked: %v", now.BlockedOperations)
		}
		w.bare("Halted")
	})
	t.Run("another run reads it", func(t *testing.T) {
		w := newRawWorld(t, "nfs", xapisim.Config{})
		l, err := lease.New(t.Context(), w.Pool, lease.Owner{Repository: "another", Run: strings.Repeat("ab", 16), Machine: "elsewhere"})
		if err != nil {
			t.Fatal(err)
		}
		vm := w.VM("web")
		if err := l.Block(t.Context(), &vm, lease.GuardRead); err != nil {
			t.Fatal(err)
		}
		s, err := backup.Run(t.Context(), w.Repo, w.Pool, w.options())
		if !errors.Is(err, job.ErrActive) || !strings.Contains(err.Error(), "run abababab on elsewhere is reading its raw disks") || !strings.Contains(job.HintOf(err), "xenkeep cleanup --dry-run") {
			t.Errorf("%v %+v", err, s)
		}
		if now := w.VM("web"); now.BlockedOperations["start"] != lease.GuardRead.Text() {
			t.Errorf("blocked: %v", now.BlockedOperations)
		}
		// A backup without the raw disk is not affected.
		o := w.options()
		o.RawOffline, o.SkipUnsupported = false, true
		w.Backup(o)
	})
}
