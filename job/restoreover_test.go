package job_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"xenkeep/chunkstore/seal"
	"xenkeep/job"
	"xenkeep/repo"
	"xenkeep/xapi"
	"xenkeep/xapi/xapisim"
)

func (w *world) halt(name string) {
	w.t.Helper()
	if err := w.pool.HardShutdown(w.t.Context(), w.vm(name).Ref); err != nil {
		w.t.Fatal(err)
	}
}

// disksOf are pointers to all disks of a snapshot.
func disksOf(s *repo.Snapshot) []*repo.Disk {
	var all []*repo.Disk
	for i := range s.Disks {
		all = append(all, &s.Disks[i])
	}
	return all
}

// A disk of 3 TiB, which no VHD holds, comes back in pieces, without its zeros.
func TestRestoreHuge(t *testing.T) {
	w := newWorld(t, xapisim.Config{SRs: restoreSRs})
	file := filepath.Join(w.dir, "huge.raw")
	const size = 3 << 40
	sparse(t, file, size)
	s := imageBackup(t, w.repo, file)
	out, err := job.RestoreDisks(t.Context(), w.repo, w.pool, s, disksOf(s), job.Target{SR: "qcow2"}, job.RestoreOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if d := out.Disks[0]; d.Size != size || d.Written > 16*mib {
		t.Errorf("%+v", d)
	}
	v, err := w.sim.Volume(out.Disks[0].VDI)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, off := range []int64{0, 2*mib - 4096, 1<<30 - 4096, 1 << 30, 2 << 30, 1 << 40, 2 << 40, size - 8192} {
		want, got := make([]byte, 8192), make([]byte, 8192)
		if _, err := f.ReadAt(want, off); err != nil {
			t.Fatal(err)
		}
		if _, err := v.ReadAt(got, off); err != nil {
			t.Fatal(err)
		}
		if string(want) != string(got) {
			t.Errorf("at %d the disk differs", off)
		}
	}
	held := 0
	for off := int64(0); off < size; off += 2 * mib {
		if v.Holds(off) {
			held++
		}
	}
	if held > 10 {
		t.Errorf("%d blocks are allocated", held)
	}
	if _, err := job.RestoreDisks(t.Context(), w.repo, w.pool, s, disksOf(s), job.Target{SR: "one"}, job.RestoreOptions{}); err == nil {
		t.Error("an SR of VHDs takes it")
	} else {
		t.Log(err)
	}
}

// Disks come back to each kind of SR and equal what was saved, read back over
// NBD or by an export.
func TestRestoreVerified(t *testing.T) {
	for _, nbd := range []xapisim.NBDMode{xapisim.NBDOff, xapisim.NBDTLS} {
		w := newWorld(t, xapisim.Config{SRs: restoreSRs, NBD: nbd})
		s := backupOf(w, "web")
		before := w.sim.Dump()
		for _, sr := range []string{"one", "two", "qcow2"} {
			out, err := job.RestoreDisks(t.Context(), w.repo, w.pool, s, disksOf(s), job.Target{SR: sr}, job.RestoreOptions{Verify: true})
			if err != nil {
				t.Fatal(err)
			}
			for i, d := range out.Disks {
				if !d.Verified || w.volumeSum(d.VDI, d.Size) != fileSum(t, w.files()[fmt.Sprint(i)]) {
					t.Errorf("%+v", d)
				}
				w.must(nil, "VDI.destroy", w.vdiOf(d.VDI).Ref)
			}
		}
		// Somebody writes to it before it is read back.
		w.sim.Fault(xapisim.Fault{On: "VDI.get_nbd_info", Do: func() {
			all, _ := w.sim.Dump()["VDI"], 0
			for _, v := range all {
				if oc, _ := v["other_config"].(map[string]any); oc["xenkeep:role"] == "restore" {
					if vol, err := w.sim.Volume(v["uuid"].(string)); err == nil {
						_, _ = vol.WriteAt([]byte("other"), 9*mib)
					}
				}
			}
		}})
		_, err := job.RestoreDisks(t.Context(), w.repo, w.pool, s, disksOf(s)[:1], job.Target{SR: "one"}, job.RestoreOptions{Verify: true})
		if !errors.Is(err, seal.ErrCorrupt) || !strings.Contains(err.Error(), "first at byte 8388608") {
			t.Errorf("another content: %v", err)
		}
		w.sim.ClearFaults()
		w.sim.GC()
		samePool(t, before, w.sim.Dump())
	}
}

func (w *world) vdiOf(uuid string) xapi.VDI {
	w.t.Helper()
	v, err := w.pool.FindVDI(w.t.Context(), uuid)
	if err != nil {
		w.t.Fatal(err)
	}
	return v
}

// Restored disks are attached to a VM, running or not, or nothing is left.
func TestRestoreAttach(t *testing.T) {
	w := newWorld(t, xapisim.Config{SRs: restoreSRs})
	s := backupOf(w, "web")
	before := w.sim.Dump()
	o := job.RestoreOptions{Attach: "web"}
	w.sim.Fault(xapisim.Fault{On: "VBD.create", Nth: 2, Code: "DEVICE_ALREADY_EXISTS", Params: []string{"4"}})
	if _, err := job.RestoreDisks(t.Context(), w.repo, w.pool, s, disksOf(s), job.Target{SR: "one"}, o); err == nil {
		t.Fatal("no error")
	}
	w.sim.ClearFaults()
	w.sim.GC()
	samePool(t, before, w.sim.Dump())
	out, err := job.RestoreDisks(t.Context(), w.repo, w.pool, s, disksOf(s), job.Target{SR: "one"}, o)
	if err != nil || len(out.Warnings) > 0 {
		t.Fatal(err, out.Warnings)
	}
	if out.Disks[0].VMDevice != "xvdc" || out.Disks[1].VMDevice != "xvde" { // 3 is the CD drive
		t.Errorf("%+v", out.Disks)
	}
	for _, d := range out.Disks {
		v := w.vdiOf(d.VDI)
		b, err := w.pool.VBD(t.Context(), v.VBDs[0])
		if err != nil || !b.CurrentlyAttached || b.VM != w.vm("web").Ref {
			t.Errorf("%+v: %v", b, err)
		}
	}
	o.Attach = "nosuch"
	if _, err := job.RestoreDisks(t.Context(), w.repo, w.pool, s, disksOf(s), job.Target{SR: "one"}, o); err == nil || !strings.Contains(err.Error(), "nosuch") {
		t.Errorf("%v", err)
	}
}

// In place only what differs is written, whatever the disks are kept as and
// however they are read; what was there is kept where that is asked for.
func TestRestoreInPlace(t *testing.T) {
	for _, c := range []struct {
		sr  string
		raw bool
		nbd xapisim.NBDMode
	}{{"one", false, xapisim.NBDOff}, {"one", false, xapisim.NBDTLS}, {"two", false, xapisim.NBDTLS}, {"qcow2", false, xapisim.NBDOff}, {"two", true, xapisim.NBDOff}} {
		t.Run(fmt.Sprintf("%s raw %v nbd %s", c.sr, c.raw, c.nbd), func(t *testing.T) {
			dir := t.TempDir()
			files := map[string]string{"0": image(t, filepath.Join(dir, "a.img"), 24*mib, 1, 40), "1": image(t, filepath.Join(dir, "b.img"), 16*mib, 2, 10)}
			w := newWorld(t, xapisim.Config{SRs: restoreSRs, NBD: c.nbd, VMs: []xapisim.VMConfig{{Name: "web", SR: c.sr, RawDisks: c.raw, Halted: true, Disks: []string{files["0"], files["1"]}}}})
			var s *repo.Snapshot
			if c.raw { // such disks cannot be snapshotted
				s = imageBackup(t, w.repo, files["0"])
			} else {
				s = backupOf(w, "web")
			}
			first := w.diskAt("web", "0")
			day2 := w.write(filepath.Base(dir)+"day2.img", files["0"], 77, 1)
			if _, err := w.sim.GuestWrite(first.UUID, day2); err != nil {
				t.Fatal(err)
			}
			over, disks := job.Over{KeepOld: !c.raw}, disksOf(s)
			if c.raw {
				over.VDI, over.Differential, disks = first.UUID, true, disks[:1]
			}
			out, err := job.RestoreOver(t.Context(), w.repo, w.pool, s, disks, over, job.RestoreOptions{Verify: true})
			if err != nil || len(out.Warnings) > 0 {
				t.Fatal(err, out)
			}
			d := out.Disks[0]
			if d.Written == 0 || d.Written > 4*mib || d.Written%(2*mib) != 0 || d.Compared != 24*mib || !d.Verified || d.VDI != first.UUID {
				t.Errorf("%+v", d)
			}
			if w.volumeSum(first.UUID, 24*mib) != fileSum(t, files["0"]) {
				t.Error("the disk differs")
			}
			if c.raw {
				return
			}
			if w.volumeSum(d.Old, 24*mib) != fileSum(t, day2) {
				t.Error("what was there is lost")
			}
			if second := out.Disks[1]; second.Written != 0 || second.Old != "" {
				t.Errorf("an equal disk: %+v", second)
			}
		})
	}
}

// diskAt is the VDI at a place of a VM.
func (w *world) diskAt(name, userdevice string) xapi.VDI {
	w.t.Helper()
	for _, ref := range w.vm(name).VBDs {
		if b, err := w.pool.VBD(w.t.Context(), ref); err == nil && b.UserDevice == userdevice {
			v, err := w.pool.VDI(w.t.Context(), b.VDI)
			if err != nil {
				w.t.Fatal(err)
			}
			return v
		}
	}
	w.t.Fatalf("VM %s has no disk %s", name, userdevice)
	return xapi.VDI{}
}

// What must not be written over is refused before anything is written, and a
// failure on the way says how to go on.
func TestRestoreInPlaceRefusals(t *testing.T) {
	w := newWorld(t, xapisim.Config{SRs: restoreSRs})
	s := backupOf(w, "web")
	before := w.sim.Dump()
	try := func(says string, over job.Over, disks []*repo.Disk) {
		t.Helper()
		if _, err := job.RestoreOver(t.Context(), w.repo, w.pool, s, disks, over, job.RestoreOptions{}); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%v, want %q", err, says)
		}
	}
	try("VM web is running: shut it down first", job.Over{}, disksOf(s))
	try("which is running", job.Over{VDI: w.diskAt("web", "0").UUID}, disksOf(s)[:1])
	w.sim.GC()
	samePool(t, before, w.sim.Dump())
	w.halt("web")
	try("it has 25165824 bytes, the disk in the snapshot 16777216", job.Over{VDI: w.diskAt("web", "0").UUID}, disksOf(s)[1:])
	try("nosuch", job.Over{VDI: "nosuch"}, disksOf(s)[:1])
	first := w.diskAt("web", "0")
	day2 := w.write("day2.img", w.files()["0"], 77, 12)
	if _, err := w.sim.GuestWrite(first.UUID, day2); err != nil {
		t.Fatal(err)
	}
	w.sim.Fault(xapisim.Fault{On: "VDI.snapshot", Code: "SR_BACKEND_FAILURE_44", Params: []string{"", "no space", ""}})
	try("nothing of it was written", job.Over{KeepOld: true}, disksOf(s))
	w.sim.ClearFaults()
	if w.volumeSum(first.UUID, 24*mib) != fileSum(t, day2) {
		t.Fatal("it was written to")
	}
	w.sim.Fault(xapisim.Fault{On: "/import_raw_vdi", Code: "VDI_IO_ERROR", Params: []string{"Device I/O errors"}, Cut: true, CutAt: 3 * mib, Embedded: true})
	_, err := job.RestoreOver(t.Context(), w.repo, w.pool, s, disksOf(s), job.Over{KeepOld: true}, job.RestoreOptions{})
	if err == nil || !strings.Contains(err.Error(), "disk xvda of VM web is half restored: do not start the VM; run the same command again; what was there is kept as VDI snapshot ") {
		t.Fatalf("%v", err)
	}
	w.sim.ClearFaults()
	if _, err = job.RestoreOver(t.Context(), w.repo, w.pool, s, disksOf(s), job.Over{}, job.RestoreOptions{}); err != nil {
		t.Fatal(err)
	}
	if w.volumeSum(first.UUID, 24*mib) != fileSum(t, w.files()["0"]) {
		t.Error("the disk differs")
	}
	// The VM itself is gone.
	w.remove(w.vm("web"))
	try("not found", job.Over{}, disksOf(s))
}

// Over any VDI of the same size, whatever it holds, with and without reading it
// first.
func TestRestoreOverVDI(t *testing.T) {
	w := newWorld(t, xapisim.Config{SRs: restoreSRs, NBD: xapisim.NBDTLS})
	s := backupOf(w, "web")
	one := disksOf(s)[:1]
	made, err := job.RestoreDisks(t.Context(), w.repo, w.pool, s, one, job.Target{SR: "one"}, job.RestoreOptions{})
	if err != nil {
		t.Fatal(err)
	}
	vdi := made.Disks[0].VDI
	day2 := w.write("day2.img", w.files()["0"], 78, 1)
	want := fileSum(t, w.files()["0"])
	for _, differential := range []bool{true, false} {
		if _, err := w.sim.GuestWrite(vdi, day2); err != nil {
			t.Fatal(err)
		}
		out, err := job.RestoreOver(t.Context(), w.repo, w.pool, s, one, job.Over{VDI: vdi, Differential: differential}, job.RestoreOptions{})
		if err != nil {
			t.Fatal(err)
		}
		d := out.Disks[0]
		if (d.Written <= 4*mib) != differential || (d.Compared > 0) != differential || w.volumeSum(vdi, 24*mib) != want {
			t.Errorf("differential %v: %+v", differential, d)
		}
	}
}

// What a failed restore wrote is gone on with where that is asked for; backups
// leave it alone, and cleanup removes it only when told to.
func TestRestoreResume(t *testing.T) {
	for _, whole := range []bool{false, true} {
		w := newWorld(t, xapisim.Config{SRs: restoreSRs, NBD: xapisim.NBDTLS})
		s := backupOf(w, "web")
		before := w.sim.Dump()
		restore := func(resume bool) (*job.Restored, error) {
			o := job.RestoreOptions{Resume: resume}
			if whole {
				return job.RestoreVM(t.Context(), w.repo, w.pool, s, job.VMRestore{Target: job.Target{SR: "one"}, Name: "back"}, o)
			}
			return job.RestoreDisks(t.Context(), w.repo, w.pool, s, disksOf(s), job.Target{SR: "one"}, o)
		}
		fault := xapisim.Fault{On: "/import_raw_vdi", Nth: 2, Code: "VDI_IO_ERROR", Params: []string{"Device I/O errors"}, Cut: true, CutAt: 5 * mib, Embedded: true}
		w.sim.Fault(fault)
		if _, err := restore(false); err == nil || strings.Contains(err.Error(), "stays") {
			t.Fatal(err)
		}
		w.sim.GC()
		samePool(t, before, w.sim.Dump())
		w.sim.Fault(fault)
		_, err := restore(true)
		if err == nil || !strings.Contains(err.Error(), "the same command goes on with it") || xapi.IsCode(err, "") {
			t.Fatal(err)
		}
		w.backup(w.options("web"))
		if rep, err := job.Cleanup(t.Context(), w.repo, w.pool, job.CleanupOptions{}); err != nil || len(rep.Found) != 2 || rep.Found[0].Action != job.ActNone || rep.Found[0].Role != "resume" {
			t.Fatalf("%v %+v", err, rep)
		}
		out, err := restore(true)
		if err != nil {
			t.Fatal(err)
		}
		if a, b := out.Disks[0], out.Disks[1]; a.Written != 0 || a.Compared != 24*mib || b.Compared != 16*mib || b.Written > 12*mib {
			t.Errorf("%+v", out.Disks)
		}
		for i, d := range out.Disks {
			if w.volumeSum(d.VDI, d.Size) != fileSum(t, w.files()[fmt.Sprint(i)]) {
				t.Errorf("disk %s differs", d.Device)
			}
			if oc := w.vdiOf(d.VDI).OtherConfig; len(oc) > 0 {
				t.Errorf("disk %s bears %v", d.Device, oc)
			}
		}
		w.sim.Fault(fault)
		if _, err := restore(true); err == nil {
			t.Fatal("no error")
		}
		rep, err := job.Cleanup(t.Context(), w.repo, w.pool, job.CleanupOptions{Unfinished: true})
		if err != nil || rep.Err() != nil || len(rep.Found) != 2 {
			t.Fatalf("%v %+v", err, rep)
		}
		if rep, err = job.Cleanup(t.Context(), w.repo, w.pool, job.CleanupOptions{}); err != nil || len(rep.Found) != 0 {
			t.Errorf("%v %+v", err, rep)
		}
	}
}

// At each step something may be lost: the room on the SR, the disk, the
// network. Nothing is left, and the error names it.
func TestRestoreFaults(t *testing.T) {
	w := newWorld(t, xapisim.Config{SRs: restoreSRs, VMs: []xapisim.VMConfig{
		{Name: "web", SR: "one", Disks: []string{image(t, filepath.Join(t.TempDir(), "a.img"), 24*mib, 1, 40)}},
	}})
	s := backupOf(w, "web")
	before := w.sim.Dump()
	destroy := func() {
		for _, v := range w.sim.Dump()["VDI"] {
			if oc, _ := v["other_config"].(map[string]any); oc["xenkeep:role"] == "restore" {
				w.must(nil, "VDI.destroy", w.vdiOf(v["uuid"].(string)).Ref)
			}
		}
	}
	for what, c := range map[string]struct {
		fault xapisim.Fault
		says  string
	}{
		"SR full when made":    {xapisim.Fault{On: "VDI.create", Code: "SR_BACKEND_FAILURE_44", Params: []string{"", "There is insufficient space", ""}}, "SR_BACKEND_FAILURE_44"},
		"SR full midway":       {xapisim.Fault{On: "/import_raw_vdi", Code: "VDI_IO_ERROR", Params: []string{"Device I/O errors"}, Cut: true, CutAt: 7 * mib, Embedded: true}, "VDI_IO_ERROR"},
		"network lost":         {xapisim.Fault{On: "/import_raw_vdi", Cut: true, CutAt: 7 * mib, Reset: true}, "import"},
		"VM cannot be made":    {xapisim.Fault{On: "VM.create", Code: "LICENCE_RESTRICTION", Params: []string{"x"}}, "LICENCE_RESTRICTION"},
		"VDI gone before data": {xapisim.Fault{On: "VDI.get_SR", Do: destroy}, "HANDLE_INVALID"},
		"VDI gone before VBD":  {xapisim.Fault{On: "VBD.create", Do: destroy}, "HANDLE_INVALID"},
	} {
		w.sim.Fault(c.fault)
		_, err := job.RestoreVM(t.Context(), w.repo, w.pool, s, job.VMRestore{Target: job.Target{SR: "one"}, Name: "back"}, job.RestoreOptions{})
		w.sim.ClearFaults()
		if err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", what, err)
		}
		w.sim.GC()
		samePool(t, before, w.sim.Dump())
	}
}
