package restore_test

import (
	"path/filepath"
	"testing"

	"xenkeep/job/jobtest"
	"xenkeep/job/restore"
	"xenkeep/repo"
	"xenkeep/xapi"
	"xenkeep/xapi/xapisim"
)

// A new raw volume contains garbage: a restore to one writes zeros, too, up to the
// last byte of the volume, and verifies successfully.
func TestRestoreToRawVolume(t *testing.T) {
	w := jobtest.New(t, xapisim.Config{})
	s := w.Snapshot(w.Backup(w.Options("web")).Snapshots[0].ID)
	sr, err := w.Pool.FindSR(t.Context(), "iSCSI virtual disk storage")
	if err != nil {
		t.Fatal(err)
	}
	for i := range s.Disks {
		d := &s.Disks[i]
		ref, err := w.Pool.CreateVDI(t.Context(), xapi.VDIFields{
			Name: "raw", SR: sr.Ref, Size: d.Size, SMConfig: map[string]string{"type": "raw"},
		})
		if err != nil {
			t.Fatal(err)
		}
		vdi, err := w.Pool.VDI(t.Context(), ref)
		if err != nil {
			t.Fatal(err)
		}
		want := jobtest.FileSum(t, filepath.Join(w.Dir, []string{"web0.img", "web1.img"}[i]))
		if w.VolumeSum(vdi.UUID, d.Size) == want {
			t.Fatal("the volume is not garbage before the restore")
		}
		if err := restore.FillVDI(t.Context(), w.Repo, w.Pool, d, ref); err != nil {
			t.Fatal(err)
		}
		if w.VolumeSum(vdi.UUID, d.Size) != want {
			t.Errorf("disk %s differs", d.Device)
		}
	}
}

// Disks on an SR with qcow2 are restored raw, too.
func TestRestoreToQCOW2(t *testing.T) {
	w := jobtest.New(t, xapisim.Config{SRs: []xapisim.SRConfig{
		{Name: "vhd", Type: "nfs", Shared: true}, {Name: "qcow2", Type: "ext", QCOW2: true},
	}})
	s := w.Snapshot(w.Backup(w.Options("web")).Snapshots[0].ID)
	out, err := restore.Disks(t.Context(), w.Repo, w.Pool, s, []*repo.Disk{&s.Disks[0]}, restore.Target{SR: "qcow2"}, restore.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if w.VolumeSum(out.Disks[0].VDI, out.Disks[0].Size) != jobtest.FileSum(t, filepath.Join(w.Dir, "web0.img")) {
		t.Error("the disk differs")
	}
}
