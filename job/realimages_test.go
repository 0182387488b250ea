package job_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"xenkeep/chunkstore"
	"xenkeep/chunkstore/object"
	"xenkeep/inspect/inspecttest"
	"xenkeep/job/browse"
	"xenkeep/job/exchange"
	"xenkeep/job/jobtest"
	"xenkeep/xapi/xapisim"
)

// Disks with real file systems are imported and exported in every format. Afterwards
// the file systems' own checkers find no errors, and all files exist.
func TestRealImages(t *testing.T) {
	const mib = inspecttest.MiB
	files := inspecttest.Files()
	ext, xfs, ntfs := inspecttest.Ext(t, "ext4", 24*mib, files), inspecttest.XFS(t, files), inspecttest.NTFS(t, 16*mib, files)
	disk := inspecttest.Disk(t, "gpt", "L="+ext, "L="+xfs, "L="+ntfs,
		"V="+inspecttest.LVM(t, 40*mib, map[string]string{"root": ext}, "root"))
	want := jobtest.FileSum(t, disk)
	w := jobtest.New(t, xapisim.Config{})
	at := time.Date(2022, 1, 1, 0, 0, 0, 0, time.UTC)
	first := w.Snapshot(w.Import(exchange.ImportOptions{Name: "disk", Date: at}, disk).Snapshots[0].ID)
	if v, err := browse.Verify(t.Context(), w.Repo, first, ""); err != nil || v.Bad != 0 || len(v.Findings) != 6 {
		t.Errorf("verify: %+v, %v", v, err)
	}
	var last string
	for i, name := range []string{"out.raw", "out.vhd", "out.qcow2", "out.xva", "out.xva.gz"} {
		o := exchange.ExportOptions{}
		o.Format, _ = exchange.FormatOf(strings.TrimSuffix(name, ".gz"))
		if strings.HasSuffix(name, ".gz") {
			o.Compress = "gzip"
		}
		out := filepath.Join(w.Dir, name)
		if _, err := exchange.Export(t.Context(), w.Repo, first, out, nil, o); err != nil {
			t.Fatal(name, err)
		}
		if o.Format == exchange.FormatQCOW2 {
			if _, err := exec.LookPath("qemu-nbd"); err != nil {
				t.Log("SKIP: no qemu-nbd")
				continue
			}
		}
		s := w.Snapshot(w.Import(exchange.ImportOptions{Name: name, Date: at.AddDate(0, 0, i+1)}, out).Snapshots[0].ID)
		if s.Disks[0].Root != first.Disks[0].Root || s.Disks[0].Counts.New != 0 {
			t.Errorf("%s: another disk came back: %+v", name, s.Disks[0])
		}
		last = filepath.Join(w.Dir, "back.raw")
	}
	s := w.Snapshot("latest")
	if _, err := exchange.Export(t.Context(), w.Repo, s, last, nil, exchange.ExportOptions{Format: exchange.FormatRaw}); err != nil {
		t.Fatal(err)
	}
	if jobtest.FileSum(t, last) != want {
		t.Error("the restored disk differs")
	}
	// The last restored disk, for the checkers.
	cut := func(from, size int64) string {
		out := filepath.Join(t.TempDir(), "part")
		inspecttest.Run(t, "dd", "if="+last, "of="+out, "bs=1M", "conv=sparse", "status=none", "skip="+strconv.FormatInt(from, 10), "count="+strconv.FormatInt(size, 10))
		if err := os.Truncate(out, size*mib); err != nil {
			t.Fatal(err)
		}
		return out
	}
	e := cut(1, 24)
	inspecttest.Run(t, "e2fsck", "-fn", e)
	x := cut(25, 300)
	inspecttest.Run(t, "xfs_repair", "-n", "-f", x)
	n := cut(325, 16)
	inspecttest.Run(t, "ntfsfix", "-n", n)
	inspecttest.Run(t, "e2fsck", "-fn", cut(342, 24))
	inspecttest.Same(t, inspecttest.Mount(t, "-o", "loop,ro", e), files)
	inspecttest.Same(t, inspecttest.Mount(t, "-o", "loop,ro", x), files)
	for name, want := range files {
		if len(want) > 0 && inspecttest.Run(t, "ntfscat", n, name) != string(want) {
			t.Errorf("ntfs: %s differs", name)
		}
	}
}

// A repository with a missing pack exports no file, in any format.
func TestExportDamaged(t *testing.T) {
	w := jobtest.New(t, xapisim.Config{})
	s := w.Snapshot(w.Backup(w.Options("web")).Snapshots[0].ID)
	var packs []object.Info
	if err := w.Objects.List(t.Context(), "packs/", func(i object.Info) error {
		packs = append(packs, i)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	for _, p := range packs {
		if p.Size > 1<<20 { // data packs; the tree packs remain
			if err := w.Objects.Delete(t.Context(), p.Name); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, name := range []string{"x.raw", "x.vhd", "x.qcow2", "x.xva"} {
		o := exchange.ExportOptions{}
		if o.Format, _ = exchange.FormatOf(name); o.Format != exchange.FormatXVA {
			o.Disk = "xvda"
		}
		_, err := exchange.Export(t.Context(), w.Repo, s, filepath.Join(w.Dir, name), nil, o)
		if !errors.Is(err, object.ErrNotFound) && !errors.Is(err, chunkstore.ErrMissing) {
			t.Errorf("%s: %v", name, err)
		}
	}
	left, err := filepath.Glob(filepath.Join(w.Dir, "*x.*"))
	if err != nil || len(left) != 0 {
		t.Errorf("left %v, %v", left, err)
	}
}
