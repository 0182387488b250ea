package browse_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"xenkeep/inspect/inspecttest"
	"xenkeep/job/browse"
	"xenkeep/job/jobtest"
	"xenkeep/repo"
)

// Changes are attributed to the file system that contains them, as used or free.
func TestDiffAttributesChanges(t *testing.T) {
	const mib = inspecttest.MiB
	files := inspecttest.Files()
	ext, ntfs := inspecttest.Ext(t, "ext4", 48*mib, files), inspecttest.NTFS(t, 16*mib, files)
	lv := inspecttest.Ext(t, "ext4", 24*mib, files)
	make := func() string {
		return inspecttest.Disk(t, "gpt", "L="+ext, "L="+ntfs, "V="+inspecttest.LVM(t, 40*mib, map[string]string{"data": lv}, "data"))
	}
	r := jobtest.NewRepository(t)
	a := jobtest.ImageBackup(t, r, make())
	more := filepath.Join(t.TempDir(), "more")
	if err := os.WriteFile(more, bytes.Repeat([]byte("0123456789abcdefg"), 100_000), 0o600); err != nil {
		t.Fatal(err)
	}
	inspecttest.Run(t, "debugfs", "-w", "-R", "write "+more+" more", ext)
	inspecttest.Run(t, "ntfscp", "-q", "-f", ntfs, more, "more")
	// Write garbage to the last MiB of the logical volume, which is free.
	f, err := os.OpenFile(lv, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(bytes.Repeat([]byte("junk"), 1<<18), 23*mib); err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
	b := jobtest.ImageBackup(t, r, make())
	var ranges int64
	last := int64(0)
	res, err := browse.Diff(t.Context(), r, a, b, "", func(x browse.ChangedRange) error {
		if x.Offset < last || x.Length <= 0 {
			t.Errorf("range %+v after %d", x, last)
		}
		last = x.Offset + x.Length
		ranges += x.Length
		return nil
	})
	if err != nil || len(res.Disks) != 1 || ranges != res.Disks[0].Changed {
		t.Fatal(res, ranges, err)
	}
	got := map[string]browse.VolumeChanges{}
	for _, v := range res.Disks[0].Volumes {
		if v.Used+v.Free+v.Unknown+v.Zeroed != v.Changed {
			t.Errorf("%+v does not add up", v)
		}
		got[v.Volume] = v
	}
	const file = 1_700_000
	for name, c := range map[string]struct{ used, usedMost, free, freeMost int64 }{
		"image1": {file, file + 600_000, 0, 400_000}, "image2": {file, file + 600_000, 0, 400_000}, "vg/data": {0, 100_000, mib, mib + 200_000},
	} {
		v := got[name]
		if v.Used < c.used || v.Used > c.usedMost || v.Free < c.free || v.Free > c.freeMost || v.Unknown != 0 {
			t.Errorf("%s: %+v, want %+v", name, v, c)
		}
	}
	same, err := browse.Diff(t.Context(), r, b, b, "", nil)
	if err != nil || same.Disks[0].Changed != 0 || len(same.Disks[0].Volumes) != 0 {
		t.Errorf("with itself: %+v, %v", same, err)
	}
	other := *a
	other.Disks = []repo.Disk{{Device: "xvdq", VDI: "q", Size: 5}, a.Disks[0]}
	if res, err = browse.Diff(t.Context(), r, &other, b, "", nil); err != nil || len(res.Disks) != 2 || res.Disks[1].SizeB != 0 {
		t.Errorf("with one disk more: %+v, %v", res, err)
	}
}
