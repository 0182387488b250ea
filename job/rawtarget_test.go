package job_test

import (
	"path/filepath"
	"testing"

	"xenkeep/job"
	"xenkeep/repo"
	"xenkeep/xapi"
	"xenkeep/xapi/xapisim"
)

// A raw volume is full of garbage when it is new: a restore to one writes its
// zeros too, to the last byte of the volume, and compares equal.
func TestRestoreToRawVolume(t *testing.T) {
	w := newWorld(t, xapisim.Config{})
	s := w.snapshot(w.backup(w.options("web")).Snapshots[0].ID)
	sr, err := w.pool.FindSR(t.Context(), "iSCSI virtual disk storage")
	if err != nil {
		t.Fatal(err)
	}
	for i := range s.Disks {
		d := &s.Disks[i]
		ref, err := w.pool.CreateVDI(t.Context(), xapi.VDIFields{
			Name: "raw", SR: sr.Ref, Size: d.Size, SMConfig: map[string]string{"type": "raw"},
		})
		if err != nil {
			t.Fatal(err)
		}
		vdi, err := w.pool.VDI(t.Context(), ref)
		if err != nil {
			t.Fatal(err)
		}
		want := fileSum(t, filepath.Join(w.dir, []string{"web0.img", "web1.img"}[i]))
		if w.volumeSum(vdi.UUID, d.Size) == want {
			t.Fatal("the volume is not garbage before the restore")
		}
		if err := job.FillVDI(t.Context(), w.repo, w.pool, d, ref); err != nil {
			t.Fatal(err)
		}
		if w.volumeSum(vdi.UUID, d.Size) != want {
			t.Errorf("disk %s differs", d.Device)
		}
	}
}

// Disks of an SR that keeps qcow2 are restored raw as well.
func TestRestoreToQCOW2(t *testing.T) {
	w := newWorld(t, xapisim.Config{SRs: []xapisim.SRConfig{
		{Name: "vhd", Type: "nfs", Shared: true}, {Name: "qcow2", Type: "ext", QCOW2: true},
	}})
	s := w.snapshot(w.backup(w.options("web")).Snapshots[0].ID)
	out, err := job.RestoreDisks(t.Context(), w.repo, w.pool, s, []*repo.Disk{&s.Disks[0]}, job.Target{SR: "qcow2"}, job.RestoreOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if w.volumeSum(out.Disks[0].VDI, out.Disks[0].Size) != fileSum(t, filepath.Join(w.dir, "web0.img")) {
		t.Error("the disk differs")
	}
}
