package job_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"xenkeep/internal/disk"
	"xenkeep/job"
	"xenkeep/xapi"
	"xenkeep/xapi/xapisim"
)

// write makes the guest of disk 0 write, and returns the disk's new image.
func (w *world) write(name, from string, seed uint64, n int) string {
	w.t.Helper()
	next := filepath.Join(w.dir, name)
	copyFile(w.t, next, from)
	f, err := os.OpenFile(next, os.O_RDWR, 0)
	if err != nil {
		w.t.Fatal(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		w.t.Fatal(err)
	}
	scribble(w.t, f, st.Size(), seed, n)
	if _, err := w.sim.GuestWrite(w.sim.Ready().VMs[0].Disks[0].VDI, next); err != nil {
		w.t.Fatal(err)
	}
	return next
}

// With NBD and changed-block tracking only what has changed is read, the pool
// keeps lists of changes and no data, and every day comes back as it was.
func TestTrackedDays(t *testing.T) {
	w := newWorld(t, xapisim.Config{NBD: xapisim.NBDTLS})
	file := filepath.Join(w.dir, "web0.img")
	o := w.options("web")
	o.VerifyCBT = true
	var ids, sums []string
	for day := range 4 {
		if day > 0 {
			file = w.write(fmt.Sprintf("day%d.img", day), file, uint64(day+50), 2)
		}
		s := w.backup(o)
		d := s.Snapshots[0].Disks[0]
		want := "cbt"
		if day == 0 {
			want = "full"
		}
		if d.Method != want {
			t.Errorf("day %d: %s (%s), want %s", day, d.Method, d.Reason, want)
		}
		// A block or two for each change, and those that are compared.
		if day > 0 && d.Read > 3*mib+4*disk.BlockSize {
			t.Errorf("day %d: %d bytes are read", day, d.Read)
		}
		ids, sums = append(ids, s.Snapshots[0].ID), append(sums, fileSum(t, file))
		for ref, n := range w.bases() {
			if n != 1 {
				t.Errorf("day %d: %d bases of %s", day, n, ref)
			}
		}
		vdis, err := w.pool.VDIs(t.Context())
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
		if got := w.restoredTo(w.snapshot(id), "xvda"); got != sums[i] {
			t.Errorf("day %d comes back otherwise", i)
		}
	}
	w.clean()
}

// Where tracking cannot be used or trusted, the disk is read otherwise, with
// the reason, and rightly.
func TestUntracked(t *testing.T) {
	for name, c := range map[string]struct {
		cfg    xapisim.Config
		before func(w *world)
		want   string
		reason string
	}{
		"no NBD":     {xapisim.Config{}, nil, "vhd-delta", ""},
		"plain NBD":  {xapisim.Config{NBD: xapisim.NBDPlain}, nil, "vhd-delta", ""},
		"no licence": {xapisim.Config{NBD: xapisim.NBDTLS, Unlicensed: true}, nil, "vhd-delta", ""},
		"tracking switched off and on": {xapisim.Config{NBD: xapisim.NBDTLS}, func(w *world) {
			for _, call := range []string{"VDI.disable_cbt", "VDI.enable_cbt"} {
				ref, err := w.pool.VDIByUUID(w.t.Context(), w.sim.Ready().VMs[0].Disks[0].VDI)
				if err == nil {
					err = w.pool.Call(w.t.Context(), call, nil, ref)
				}
				if err != nil {
					w.t.Fatal(err)
				}
			}
		}, "full", "cbt failed"},
		"a bitmap fails": {xapisim.Config{NBD: xapisim.NBDTLS}, func(w *world) {
			w.sim.Fault(xapisim.Fault{On: "VDI.list_changed_blocks", Code: "SR_BACKEND_FAILURE_459", Params: []string{"", "x", ""}, Times: -1})
		}, "full", "cbt failed"},
		"the base is gone": {xapisim.Config{NBD: xapisim.NBDTLS}, func(w *world) {
			vdis, err := w.pool.VDIs(w.t.Context())
			if err != nil {
				w.t.Fatal(err)
			}
			for _, v := range vdis {
				if v.OtherConfig["xenkeep:role"] == "base" {
					if err := w.pool.DestroyVDI(w.t.Context(), v.Ref); err != nil {
						w.t.Fatal(err)
					}
				}
			}
		}, "full", "no longer on the pool"},
		"another generation": {xapisim.Config{NBD: xapisim.NBDTLS}, func(w *world) {
			vm, err := w.pool.FindVM(w.t.Context(), "web")
			if err != nil {
				w.t.Fatal(err)
			}
			snap, err := w.pool.SnapshotVM(w.t.Context(), vm.Ref, "mine")
			if err == nil {
				_, err = w.pool.Async(w.t.Context(), "VM.revert", snap)
			}
			if err != nil {
				w.t.Fatal(err)
			}
		}, "full", ""},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, c.cfg)
			w.backup(w.options("web"))
			file := w.write("day1.img", filepath.Join(w.dir, "web0.img"), 77, 2)
			if c.before != nil {
				c.before(w)
			}
			o := w.options("web")
			s, err := job.Backup(t.Context(), w.repo, w.pool, o)
			if err != nil {
				t.Fatal(err)
			}
			d := s.Snapshots[0].Disks[0]
			if d.Method != c.want || !strings.Contains(d.Reason, c.reason) {
				t.Errorf("%s (%s), want %s", d.Method, d.Reason, c.want)
			}
			t.Log(d.Reason)
			if got := w.restoredTo(w.snapshot(s.Snapshots[0].ID), "xvda"); got != fileSum(t, file) {
				t.Error("the disk comes back otherwise")
			}
			w.clean()
		})
	}
}

// Row X10 of the fault list: a disk that grew is read by its list of changes, or
// its VHD delta, and the area that is new; the reason says so, and every day
// comes back as it was.
func TestGrownDisk(t *testing.T) {
	for _, c := range []struct {
		what   string
		nbd    xapisim.NBDMode
		method string
	}{{"cbt", xapisim.NBDTLS, "cbt"}, {"delta", "", "vhd-delta"}} {
		t.Run(c.what, func(t *testing.T) {
			const old, size = 24*mib - 3*4096, 40*mib - 5*4096 // the ends of blocks are elsewhere
			dir := t.TempDir()
			file := image(t, filepath.Join(dir, "disk.img"), old, 1, 40)
			w := newWorld(t, xapisim.Config{NBD: c.nbd, VMs: []xapisim.VMConfig{{Name: "web", Disks: []string{file}}}})
			o := w.options("web")
			o.VerifyCBT = true
			w.backup(o)
			vdi := w.vdiOf(w.sim.Ready().VMs[0].Disks[0].VDI)
			w.halt("web")
			w.must(nil, "VDI.resize", vdi.Ref, int64(size))
			grown := filepath.Join(w.dir, "grown.img")
			copyFile(t, grown, file)
			if err := os.Truncate(grown, int64(w.vdiOf(vdi.UUID).VirtualSize)); err != nil {
				t.Fatal(err)
			}
			for day := range 3 {
				// The first day nothing is written: the new area is zero.
				if day > 0 {
					grown = w.write(fmt.Sprintf("day%d.img", day), grown, uint64(day+70), 3)
				}
				s := w.backup(o)
				d := s.Snapshots[0].Disks[0]
				says := "changes since snapshot "
				if day == 0 {
					says = "by which the disk has grown"
				}
				if d.Method != c.method || !strings.Contains(d.Reason, says) {
					t.Errorf("day %d: %s (%s), want %s and %q", day, d.Method, d.Reason, c.method, says)
				}
				if day == 0 && c.nbd != "" && d.Read > 16*mib+7*disk.BlockSize {
					t.Errorf("%d bytes are read", d.Read)
				}
				if got, want := w.restoredTo(w.snapshot(s.Snapshots[0].ID), "xvda"), fileSum(t, grown); got != want {
					t.Errorf("day %d comes back otherwise", day)
				}
			}
			w.clean()
		})
	}
}

// A disk that is attached to two VMs is backed up as a delta for each of them:
// neither's run takes the other's base away.
func TestDiskOfTwoVMs(t *testing.T) {
	for _, nbd := range []xapisim.NBDMode{"", xapisim.NBDTLS} {
		dir := t.TempDir()
		w := newWorld(t, xapisim.Config{NBD: nbd, VMs: []xapisim.VMConfig{
			{Name: "one", Disks: []string{image(t, filepath.Join(dir, "one.img"), 8*mib, 1, 10)}},
			{Name: "two", Disks: []string{image(t, filepath.Join(dir, "two.img"), 8*mib, 2, 10)}},
		}})
		w.halt("one")
		w.halt("two")
		shared := w.vdiOf(w.sim.Ready().VMs[0].Disks[0].VDI)
		if _, err := w.pool.CreateVBD(t.Context(), xapi.VBD{VM: w.vm("two").Ref, VDI: shared.Ref, UserDevice: "5", Mode: "RW", Type: "Disk"}); err != nil {
			t.Fatal(err)
		}
		for night := range 3 {
			for _, name := range []string{"one", "two"} {
				s := w.backup(w.options(name))
				for _, d := range s.Snapshots[0].Disks {
					if night > 0 && d.Method == "full" {
						t.Errorf("night %d: %s %s is read in full: %s", night, name, d.Device, d.Reason)
					}
				}
			}
			if n := w.bases()[shared.Ref]; n != 2 {
				t.Errorf("night %d: %d bases of the disk", night, n)
			}
		}
		w.clean()
	}
}
