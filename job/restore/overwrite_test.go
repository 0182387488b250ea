package restore_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"xenkeep/chunkstore/seal"
	"xenkeep/job/jobtest"
	"xenkeep/job/lease"
	jobrestore "xenkeep/job/restore"
	"xenkeep/repo"
	"xenkeep/xapi"
	"xenkeep/xapi/xapisim"
)

// A disk of 3 TiB, which is too large for a VHD, is restored in pieces, without its
// zeros.
func TestRestoreHuge(t *testing.T) {
	w := jobtest.New(t, xapisim.Config{SRs: jobtest.RestoreSRs})
	file := filepath.Join(w.Dir, "huge.raw")
	const size = 3 << 40
	jobtest.Sparse(t, file, size)
	s := jobtest.ImageBackup(t, w.Repo, file)
	out, err := jobrestore.Disks(t.Context(), w.Repo, w.Pool, s, jobtest.DisksOf(s), jobrestore.Target{SR: "qcow2"}, jobrestore.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if d := out.Disks[0]; d.Size != size || d.Written > 16*jobtest.MiB {
		t.Errorf("%+v", d)
	}
	v, err := w.Sim.Volume(out.Disks[0].VDI)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, off := range []int64{0, 2*jobtest.MiB - 4096, 1<<30 - 4096, 1 << 30, 2 << 30, 1 << 40, 2 << 40, size - 8192} {
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
	for off := int64(0); off < size; off += 2 * jobtest.MiB {
		if v.Holds(off) {
			held++
		}
	}
	if held > 10 {
		t.Errorf("%d blocks are allocated", held)
	}
	if _, err := jobrestore.Disks(t.Context(), w.Repo, w.Pool, s, jobtest.DisksOf(s), jobrestore.Target{SR: "one"}, jobrestore.Options{}); err == nil {
		t.Error("an SR of VHDs takes it")
	} else {
		t.Log(err)
	}
}

// Disks are restored to each kind of SR and equal the saved disks, read back over NBD
// or by an export.
func TestRestoreVerified(t *testing.T) {
	for _, nbd := range []xapisim.NBDMode{xapisim.NBDOff, xapisim.NBDTLS} {
		w := jobtest.New(t, xapisim.Config{SRs: jobtest.RestoreSRs, NBD: nbd})
		s := jobtest.BackupOf(w, "web")
		before := w.Sim.Dump()
		for _, sr := range []string{"one", "two", "qcow2"} {
			out, err := jobrestore.Disks(t.Context(), w.Repo, w.Pool, s, jobtest.DisksOf(s), jobrestore.Target{SR: sr}, jobrestore.Options{Verify: true})
			if err != nil {
				t.Fatal(err)
			}
			for i, d := range out.Disks {
				if !d.Verified || w.VolumeSum(d.VDI, d.Size) != jobtest.FileSum(t, w.Files()[fmt.Sprint(i)]) {
					t.Errorf("%+v", d)
				}
				w.Must(nil, "VDI.destroy", w.VDIOf(d.VDI).Ref)
			}
		}
		// Another client writes to it before it is read back.
		w.Sim.Fault(xapisim.Fault{On: "VDI.get_nbd_info", Do: func() {
			all, _ := w.Sim.Dump()["VDI"], 0
			for _, v := range all {
				if oc, _ := v["other_config"].(map[string]any); oc["xenkeep:role"] == "restore" {
					if vol, err := w.Sim.Volume(v["uuid"].(string)); err == nil {
						_, _ = vol.WriteAt([]byte("other"), 9*jobtest.MiB)
					}
				}
			}
		}})
		_, err := jobrestore.Disks(t.Context(), w.Repo, w.Pool, s, jobtest.DisksOf(s)[:1], jobrestore.Target{SR: "one"}, jobrestore.Options{Verify: true})
		if !errors.Is(err, seal.ErrCorrupt) || !strings.Contains(err.Error(), "first at byte 8388608") {
			t.Errorf("another content: %v", err)
		}
		w.Sim.ClearFaults()
		w.Sim.GC()
		jobtest.SamePool(t, before, w.Sim.Dump())
	}
}

// Restored disks are attached to a VM, running or not; on failure nothing remains.
func TestRestoreAttach(t *testing.T) {
	w := jobtest.New(t, xapisim.Config{SRs: jobtest.RestoreSRs})
	s := jobtest.BackupOf(w, "web")
	before := w.Sim.Dump()
	o := jobrestore.Options{Attach: "web"}
	w.Sim.Fault(xapisim.Fault{On: "VBD.create", Nth: 2, Code: "DEVICE_ALREADY_EXISTS", Params: []string{"4"}})
	if _, err := jobrestore.Disks(t.Context(), w.Repo, w.Pool, s, jobtest.DisksOf(s), jobrestore.Target{SR: "one"}, o); err == nil {
		t.Fatal("no error")
	}
	w.Sim.ClearFaults()
	w.Sim.GC()
	jobtest.SamePool(t, before, w.Sim.Dump())
	out, err := jobrestore.Disks(t.Context(), w.Repo, w.Pool, s, jobtest.DisksOf(s), jobrestore.Target{SR: "one"}, o)
	if err != nil || len(out.Warnings) > 0 {
		t.Fatal(err, out.Warnings)
	}
	if out.Disks[0].VMDevice != "xvdc" || out.Disks[1].VMDevice != "xvde" { // 3 is the CD drive
		t.Errorf("%+v", out.Disks)
	}
	for _, d := range out.Disks {
		v := w.VDIOf(d.VDI)
		b, err := w.Pool.VBD(t.Context(), v.VBDs[0])
		if err != nil || !b.CurrentlyAttached || b.VM != w.VM("web").Ref {
			t.Errorf("%+v: %v", b, err)
		}
	}
	o.Attach = "nosuch"
	if _, err := jobrestore.Disks(t.Context(), w.Repo, w.Pool, s, jobtest.DisksOf(s), jobrestore.Target{SR: "one"}, o); err == nil || !strings.Contains(err.Error(), "nosuch") {
		t.Errorf("%v", err)
	}
}

// In place only blocks that differ are written, whatever the format of the disks and
// the method of reading them; the old content is kept if the options request it.
func TestRestoreInPlace(t *testing.T) {
	for _, c := range []struct {
		sr  string
		raw bool
		nbd xapisim.NBDMode
	}{{"one", false, xapisim.NBDOff}, {"one", false, xapisim.NBDTLS}, {"two", false, xapisim.NBDTLS}, {"qcow2", false, xapisim.NBDOff}, {"two", true, xapisim.NBDOff}} {
		t.Run(fmt.Sprintf("%s raw %v nbd %s", c.sr, c.raw, c.nbd), func(t *testing.T) {
			dir := t.TempDir()
			files := map[string]string{"0": jobtest.Image(t, filepath.Join(dir, "a.img"), 24*jobtest.MiB, 1, 40), "1": jobtest.Image(t, filepath.Join(dir, "b.img"), 16*jobtest.MiB, 2, 10)}
			w := jobtest.New(t, xapisim.Config{SRs: jobtest.RestoreSRs, NBD: c.nbd, VMs: []xapisim.VMConfig{{Name: "web", SR: c.sr, RawDisks: c.raw, Halted: true, Disks: []string{files["0"], files["1"]}}}})
			var s *repo.Snapshot
			if c.raw { // raw disks cannot be snapshotted
				s = jobtest.ImageBackup(t, w.Repo, files["0"])
			} else {
				s = jobtest.BackupOf(w, "web")
			}
			first := w.DiskAt("web", "0")
			day2 := w.Write(filepath.Base(dir)+"day2.img", files["0"], 77, 1)
			if _, err := w.Sim.GuestWrite(first.UUID, day2); err != nil {
				t.Fatal(err)
			}
			over, disks := jobrestore.Overwrite{KeepOld: !c.raw}, jobtest.DisksOf(s)
			if c.raw {
				over.VDI, over.Differential, disks = first.UUID, true, disks[:1]
			}
			out, err := jobrestore.WriteOver(t.Context(), w.Repo, w.Pool, s, disks, over, jobrestore.Options{Verify: true})
			if err != nil || len(out.Warnings) > 0 {
				t.Fatal(err, out)
			}
			d := out.Disks[0]
			if d.Written == 0 || d.Written > 4*jobtest.MiB || d.Written%(2*jobtest.MiB) != 0 || d.Compared != 24*jobtest.MiB || !d.Verified || d.VDI != first.UUID {
				t.Errorf("%+v", d)
			}
			if w.VolumeSum(first.UUID, 24*jobtest.MiB) != jobtest.FileSum(t, files["0"]) {
				t.Error("the disk differs")
			}
			if c.raw {
				return
			}
			if w.VolumeSum(d.Old, 24*jobtest.MiB) != jobtest.FileSum(t, day2) {
				t.Error("the old content is lost")
			}
			if second := out.Disks[1]; second.Written != 0 || second.Old != "" {
				t.Errorf("an equal disk: %+v", second)
			}
		})
	}
}

// Disks that must not be overwritten are refused before anything is written, and after
// a failure the error contains the next step.
func TestRestoreInPlaceRefusals(t *testing.T) {
	w := jobtest.New(t, xapisim.Config{SRs: jobtest.RestoreSRs})
	s := jobtest.BackupOf(w, "web")
	before := w.Sim.Dump()
	try := func(says string, over jobrestore.Overwrite, disks []*repo.Disk) {
		t.Helper()
		if _, err := jobrestore.WriteOver(t.Context(), w.Repo, w.Pool, s, disks, over, jobrestore.Options{}); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%v, want %q", err, says)
		}
	}
	try("VM web is running: shut it down first", jobrestore.Overwrite{}, jobtest.DisksOf(s))
	try("which is running", jobrestore.Overwrite{VDI: w.DiskAt("web", "0").UUID}, jobtest.DisksOf(s)[:1])
	w.Sim.GC()
	jobtest.SamePool(t, before, w.Sim.Dump())
	w.Halt("web")
	try("it has 25165824 bytes, the disk in the snapshot 16777216", jobrestore.Overwrite{VDI: w.DiskAt("web", "0").UUID}, jobtest.DisksOf(s)[1:])
	try("nosuch", jobrestore.Overwrite{VDI: "nosuch"}, jobtest.DisksOf(s)[:1])
	first := w.DiskAt("web", "0")
	day2 := w.Write("day2.img", w.Files()["0"], 77, 12)
	if _, err := w.Sim.GuestWrite(first.UUID, day2); err != nil {
		t.Fatal(err)
	}
	w.Sim.Fault(xapisim.Fault{On: "VDI.snapshot", Code: "SR_BACKEND_FAILURE_44", Params: []string{"", "no space", ""}})
	try("nothing of it was written", jobrestore.Overwrite{KeepOld: true}, jobtest.DisksOf(s))
	w.Sim.ClearFaults()
	if w.VolumeSum(first.UUID, 24*jobtest.MiB) != jobtest.FileSum(t, day2) {
		t.Fatal("it was written to")
	}
	w.Sim.Fault(xapisim.Fault{On: "/import_raw_vdi", Code: "VDI_IO_ERROR", Params: []string{"Device I/O errors"}, Cut: true, CutAt: 3 * jobtest.MiB, Embedded: true})
	_, err := jobrestore.WriteOver(t.Context(), w.Repo, w.Pool, s, jobtest.DisksOf(s), jobrestore.Overwrite{KeepOld: true}, jobrestore.Options{})
	if err == nil || !strings.Contains(err.Error(), "disk xvda of VM web is half restored: do not start the VM; run the same command again; its old content is kept as VDI snapshot ") {
		t.Fatalf("%v", err)
	}
	w.Sim.ClearFaults()
	if _, err = jobrestore.WriteOver(t.Context(), w.Repo, w.Pool, s, jobtest.DisksOf(s), jobrestore.Overwrite{}, jobrestore.Options{}); err != nil {
		t.Fatal(err)
	}
	if w.VolumeSum(first.UUID, 24*jobtest.MiB) != jobtest.FileSum(t, w.Files()["0"]) {
		t.Error("the disk differs")
	}
	// The VM itself does not exist any more.
	w.Remove(w.VM("web"))
	try("not found", jobrestore.Overwrite{}, jobtest.DisksOf(s))
}

// A restore over any VDI of the same size, whatever its content, with and without
// comparing first.
func TestRestoreOverVDI(t *testing.T) {
	w := jobtest.New(t, xapisim.Config{SRs: jobtest.RestoreSRs, NBD: xapisim.NBDTLS})
	s := jobtest.BackupOf(w, "web")
	one := jobtest.DisksOf(s)[:1]
	made, err := jobrestore.Disks(t.Context(), w.Repo, w.Pool, s, one, jobrestore.Target{SR: "one"}, jobrestore.Options{})
	if err != nil {
		t.Fatal(err)
	}
	vdi := made.Disks[0].VDI
	day2 := w.Write("day2.img", w.Files()["0"], 78, 1)
	want := jobtest.FileSum(t, w.Files()["0"])
	for _, differential := range []bool{true, false} {
		if _, err := w.Sim.GuestWrite(vdi, day2); err != nil {
			t.Fatal(err)
		}
		out, err := jobrestore.WriteOver(t.Context(), w.Repo, w.Pool, s, one, jobrestore.Overwrite{VDI: vdi, Differential: differential}, jobrestore.Options{})
		if err != nil {
			t.Fatal(err)
		}
		d := out.Disks[0]
		if (d.Written <= 4*jobtest.MiB) != differential || (d.Compared > 0) != differential || w.VolumeSum(vdi, 24*jobtest.MiB) != want {
			t.Errorf("differential %v: %+v", differential, d)
		}
	}
}

// A restore continues with the data of a failed restore if the options request it;
// backups do not touch them, and cleanup removes them only on request.
func TestRestoreResume(t *testing.T) {
	for _, whole := range []bool{false, true} {
		w := jobtest.New(t, xapisim.Config{SRs: jobtest.RestoreSRs, NBD: xapisim.NBDTLS})
		s := jobtest.BackupOf(w, "web")
		before := w.Sim.Dump()
		restore := func(resume bool) (*jobrestore.Restored, error) {
			o := jobrestore.Options{Resume: resume}
			if whole {
				return jobrestore.VM(t.Context(), w.Repo, w.Pool, s, jobrestore.VMOptions{Target: jobrestore.Target{SR: "one"}, Name: "back"}, o)
			}
			return jobrestore.Disks(t.Context(), w.Repo, w.Pool, s, jobtest.DisksOf(s), jobrestore.Target{SR: "one"}, o)
		}
		fault := xapisim.Fault{On: "/import_raw_vdi", Nth: 2, Code: "VDI_IO_ERROR", Params: []string{"Device I/O errors"}, Cut: true, CutAt: 5 * jobtest.MiB, Embedded: true}
		w.Sim.Fault(fault)
		if _, err := restore(false); err == nil || strings.Contains(err.Error(), "stays") {
			t.Fatal(err)
		}
		w.Sim.GC()
		jobtest.SamePool(t, before, w.Sim.Dump())
		w.Sim.Fault(fault)
		_, err := restore(true)
		if err == nil || !strings.Contains(err.Error(), "the same command continues with them") || xapi.IsCode(err, "") {
			t.Fatal(err)
		}
		w.Backup(w.Options("web"))
		if rep, err := lease.Cleanup(t.Context(), w.Repo, w.Pool, lease.CleanupOptions{}); err != nil || len(rep.Found) != 2 || rep.Found[0].Action != lease.ActNone || rep.Found[0].Role != "resume" {
			t.Fatalf("%v %+v", err, rep)
		}
		out, err := restore(true)
		if err != nil {
			t.Fatal(err)
		}
		if a, b := out.Disks[0], out.Disks[1]; a.Written != 0 || a.Compared != 24*jobtest.MiB || b.Compared != 16*jobtest.MiB || b.Written > 12*jobtest.MiB {
			t.Errorf("%+v", out.Disks)
		}
		for i, d := range out.Disks {
			if w.VolumeSum(d.VDI, d.Size) != jobtest.FileSum(t, w.Files()[fmt.Sprint(i)]) {
				t.Errorf("disk %s differs", d.Device)
			}
			if oc := w.VDIOf(d.VDI).OtherConfig; len(oc) > 0 {
				t.Errorf("disk %s has the marks %v", d.Device, oc)
			}
		}
		w.Sim.Fault(fault)
		if _, err := restore(true); err == nil {
			t.Fatal("no error")
		}
		rep, err := lease.Cleanup(t.Context(), w.Repo, w.Pool, lease.CleanupOptions{Unfinished: true})
		if err != nil || rep.Err() != nil || len(rep.Found) != 2 {
			t.Fatalf("%v %+v", err, rep)
		}
		if rep, err = lease.Cleanup(t.Context(), w.Repo, w.Pool, lease.CleanupOptions{}); err != nil || len(rep.Found) != 0 {
			t.Errorf("%v %+v", err, rep)
		}
	}
}

// At each step a resource may disappear: the space on the SR, the disk, the network.
// Then nothing remains, and the error names it.
func TestRestoreFaults(t *testing.T) {
	w := jobtest.New(t, xapisim.Config{SRs: jobtest.RestoreSRs, VMs: []xapisim.VMConfig{
		{Name: "web", SR: "one", Disks: []string{jobtest.Image(t, filepath.Join(t.TempDir(), "a.img"), 24*jobtest.MiB, 1, 40)}},
	}})
	s := jobtest.BackupOf(w, "web")
	before := w.Sim.Dump()
	destroy := func() {
		for _, v := range w.Sim.Dump()["VDI"] {
			if oc, _ := v["other_config"].(map[string]any); oc["xenkeep:role"] == "restore" {
				w.Must(nil, "VDI.destroy", w.VDIOf(v["uuid"].(string)).Ref)
			}
		}
	}
	for what, c := range map[string]struct {
		fault xapisim.Fault
		says  string
	}{
		"SR full when made":    {xapisim.Fault{On: "VDI.create", Code: "SR_BACKEND_FAILURE_44", Params: []string{"", "There is insufficient space", ""}}, "SR_BACKEND_FAILURE_44"},
		"SR full midway":       {xapisim.Fault{On: "/import_raw_vdi", Code: "VDI_IO_ERROR", Params: []string{"Device I/O errors"}, Cut: true, CutAt: 7 * jobtest.MiB, Embedded: true}, "VDI_IO_ERROR"},
		"network lost":         {xapisim.Fault{On: "/import_raw_vdi", Cut: true, CutAt: 7 * jobtest.MiB, Reset: true}, "import"},
		"VM cannot be made":    {xapisim.Fault{On: "VM.create", Code: "LICENCE_RESTRICTION", Params: []string{"x"}}, "LICENCE_RESTRICTION"},
		"VDI gone before data": {xapisim.Fault{On: "VDI.get_SR", Do: destroy}, "HANDLE_INVALID"},
		"VDI gone before VBD":  {xapisim.Fault{On: "VBD.create", Do: destroy}, "HANDLE_INVALID"},
	} {
		w.Sim.Fault(c.fault)
		_, err := jobrestore.VM(t.Context(), w.Repo, w.Pool, s, jobrestore.VMOptions{Target: jobrestore.Target{SR: "one"}, Name: "back"}, jobrestore.Options{})
		w.Sim.ClearFaults()
		if err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", what, err)
		}
		w.Sim.GC()
		jobtest.SamePool(t, before, w.Sim.Dump())
	}
}
