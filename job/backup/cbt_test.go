package backup_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"xenkeep/internal/disk"
	"xenkeep/job/backup"
	"xenkeep/job/jobtest"
	"xenkeep/xapi"
	"xenkeep/xapi/xapisim"
)

// With NBD and changed-block tracking only changed blocks are read, the pool keeps
// lists of changes and no data, and the disk of every day is restored exactly.
func TestTrackedDays(t *testing.T) {
	w := jobtest.New(t, xapisim.Config{NBD: xapisim.NBDTLS})
	file := filepath.Join(w.Dir, "web0.img")
	o := w.Options("web")
	o.VerifyCBT = true
	var ids, sums []string
	for day := range 4 {
		if day > 0 {
			file = w.Write(fmt.Sprintf("day%d.img", day), file, uint64(day+50), 2)
		}
		s := w.Backup(o)
		d := s.Snapshots[0].Disks[0]
		want := "cbt"
		if day == 0 {
			want = "full"
		}
		if d.Method != want {
			t.Errorf("day %d: %s (%s), want %s", day, d.Method, d.Reason, want)
		}
		// One or two blocks for each change, and the blocks that are verified.
		if day > 0 && d.Read > 3*jobtest.MiB+4*disk.BlockSize {
			t.Errorf("day %d: %d bytes are read", day, d.Read)
		}
		ids, sums = append(ids, s.Snapshots[0].ID), append(sums, jobtest.FileSum(t, file))
		for ref, n := range w.Bases() {
			if n != 1 {
				t.Errorf("day %d: %d bases of %s", day, n, ref)
			}
		}
		vdis, err := w.Pool.VDIs(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range vdis {
			if v.OtherConfig["xenkeep:role"] == "base" && v.Type != "cbt_metadata" {
				t.Errorf("day %d: base %s keeps its data", day, v.UUID)
			}
		}
	}
	for i, id := range ids {
		if got := w.RestoredTo(w.Snapshot(id), "xvda"); got != sums[i] {
			t.Errorf("day %d comes back otherwise", i)
		}
	}
	w.CheckRepository()
}

// If tracking cannot be used or trusted, the disk is read by another method, with the
// reason, and correctly.
func TestUntracked(t *testing.T) {
	for name, c := range map[string]struct {
		cfg    xapisim.Config
		before func(w *jobtest.World)
		want   string
		reason string
	}{
		"no NBD":     {xapisim.Config{}, nil, "vhd-delta", ""},
		"plain NBD":  {xapisim.Config{NBD: xapisim.NBDPlain}, nil, "vhd-delta", ""},
		"no licence": {xapisim.Config{NBD: xapisim.NBDTLS, Unlicensed: true}, nil, "vhd-delta", ""},
		"tracking switched off and on": {xapisim.Config{NBD: xapisim.NBDTLS}, func(w *jobtest.World) {
			for _, call := range []string{"VDI.disable_cbt", "VDI.enable_cbt"} {
				ref, err := w.Pool.VDIByUUID(w.T.Context(), w.Sim.Ready().VMs[0].Disks[0].VDI)
				if err == nil {
					err = w.Pool.Call(w.T.Context(), call, nil, ref)
				}
				if err != nil {
					w.T.Fatal(err)
				}
			}
		}, "full", "cbt failed"},
		"a bitmap fails": {xapisim.Config{NBD: xapisim.NBDTLS}, func(w *jobtest.World) {
			w.Sim.Fault(xapisim.Fault{On: "VDI.list_changed_blocks", Code: "SR_BACKEND_FAILURE_459", Params: []string{"", "x", ""}, Times: -1})
		}, "full", "cbt failed"},
		"the base is gone": {xapisim.Config{NBD: xapisim.NBDTLS}, func(w *jobtest.World) {
			vdis, err := w.Pool.VDIs(w.T.Context())
			if err != nil {
				w.T.Fatal(err)
			}
			for _, v := range vdis {
				if v.OtherConfig["xenkeep:role"] == "base" {
					if err := w.Pool.DestroyVDI(w.T.Context(), v.Ref); err != nil {
						w.T.Fatal(err)
					}
				}
			}
		}, "full", "no longer on the pool"},
		"another generation": {xapisim.Config{NBD: xapisim.NBDTLS}, func(w *jobtest.World) {
			vm, err := w.Pool.FindVM(w.T.Context(), "web")
			if err != nil {
				w.T.Fatal(err)
			}
			snap, err := w.Pool.SnapshotVM(w.T.Context(), vm.Ref, "mine")
			if err == nil {
				_, err = w.Pool.Async(w.T.Context(), "VM.revert", snap)
			}
			if err != nil {
				w.T.Fatal(err)
			}
		}, "full", ""},
	} {
		t.Run(name, func(t *testing.T) {
			w := jobtest.New(t, c.cfg)
			w.Backup(w.Options("web"))
			file := w.Write("day1.img", filepath.Join(w.Dir, "web0.img"), 77, 2)
			if c.before != nil {
				c.before(w)
			}
			o := w.Options("web")
			s, err := backup.Run(t.Context(), w.Repo, w.Pool, o)
			if err != nil {
				t.Fatal(err)
			}
			d := s.Snapshots[0].Disks[0]
			if d.Method != c.want || !strings.Contains(d.Reason, c.reason) {
				t.Errorf("%s (%s), want %s", d.Method, d.Reason, c.want)
			}
			t.Log(d.Reason)
			if got := w.RestoredTo(w.Snapshot(s.Snapshots[0].ID), "xvda"); got != jobtest.FileSum(t, file) {
				t.Error("the disk comes back otherwise")
			}
			w.CheckRepository()
		})
	}
}

// Row X10 of the fault list: of a disk that grew, the changes are read by its list of
// changes or its VHD delta, and the new area; the reason mentions it, and the disk of
// every day is restored exactly.
func TestGrownDisk(t *testing.T) {
	for _, c := range []struct {
		what   string
		nbd    xapisim.NBDMode
		method string
	}{{"cbt", xapisim.NBDTLS, "cbt"}, {"delta", "", "vhd-delta"}} {
		t.Run(c.what, func(t *testing.T) {
			const old, size = 24*jobtest.MiB - 3*4096, 40*jobtest.MiB - 5*4096 // neither size is a multiple of the block size
			dir := t.TempDir()
			file := jobtest.Image(t, filepath.Join(dir, "disk.img"), old, 1, 40)
			w := jobtest.New(t, xapisim.Config{NBD: c.nbd, VMs: []xapisim.VMConfig{{Name: "web", Disks: []string{file}}}})
			o := w.Options("web")
			o.VerifyCBT = true
			w.Backup(o)
			vdi := w.VDIOf(w.Sim.Ready().VMs[0].Disks[0].VDI)
			w.Halt("web")
			w.Must(nil, "VDI.resize", vdi.Ref, int64(size))
			grown := filepath.Join(w.Dir, "grown.img")
			jobtest.CopyFile(t, grown, file)
			if err := os.Truncate(grown, int64(w.VDIOf(vdi.UUID).VirtualSize)); err != nil {
				t.Fatal(err)
			}
			for day := range 3 {
				// On the first day nothing is written: the new area is zero.
				if day > 0 {
					grown = w.Write(fmt.Sprintf("day%d.img", day), grown, uint64(day+70), 3)
				}
				s := w.Backup(o)
				d := s.Snapshots[0].Disks[0]
				says := "changes since snapshot "
				if day == 0 {
					says = "by which the disk has grown"
				}
				if d.Method != c.method || !strings.Contains(d.Reason, says) {
					t.Errorf("day %d: %s (%s), want %s and %q", day, d.Method, d.Reason, c.method, says)
				}
				if day == 0 && c.nbd != "" && d.Read > 16*jobtest.MiB+7*disk.BlockSize {
					t.Errorf("%d bytes are read", d.Read)
				}
				if got, want := w.RestoredTo(w.Snapshot(s.Snapshots[0].ID), "xvda"), jobtest.FileSum(t, grown); got != want {
					t.Errorf("day %d comes back otherwise", day)
				}
			}
			w.CheckRepository()
		})
	}
}

// A disk that is attached to two VMs is backed up as a delta for each of them: neither
// run deletes the base of the other.
func TestDiskOfTwoVMs(t *testing.T) {
	for _, nbd := range []xapisim.NBDMode{"", xapisim.NBDTLS} {
		dir := t.TempDir()
		w := jobtest.New(t, xapisim.Config{NBD: nbd, VMs: []xapisim.VMConfig{
			{Name: "one", Disks: []string{jobtest.Image(t, filepath.Join(dir, "one.img"), 8*jobtest.MiB, 1, 10)}},
			{Name: "two", Disks: []string{jobtest.Image(t, filepath.Join(dir, "two.img"), 8*jobtest.MiB, 2, 10)}},
		}})
		w.Halt("one")
		w.Halt("two")
		shared := w.VDIOf(w.Sim.Ready().VMs[0].Disks[0].VDI)
		if _, err := w.Pool.CreateVBD(t.Context(), xapi.VBD{VM: w.VM("two").Ref, VDI: shared.Ref, UserDevice: "5", Mode: "RW", Type: "Disk"}); err != nil {
			t.Fatal(err)
		}
		for night := range 3 {
			for _, name := range []string{"one", "two"} {
				s := w.Backup(w.Options(name))
				for _, d := range s.Snapshots[0].Disks {
					if night > 0 && d.Method == "full" {
						t.Errorf("night %d: %s %s is read in full: %s", night, name, d.Device, d.Reason)
					}
				}
			}
			if n := w.Bases()[shared.Ref]; n != 2 {
				t.Errorf("night %d: %d bases of the disk", night, n)
			}
		}
		w.CheckRepository()
	}
}
