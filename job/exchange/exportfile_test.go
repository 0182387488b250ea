package exchange_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"xenkeep/job"
	"xenkeep/job/exchange"
	"xenkeep/job/jobtest"
	"xenkeep/job/records"
	"xenkeep/job/vmplan"
	"xenkeep/qcow2"
	"xenkeep/repo"
	"xenkeep/vhd"
	"xenkeep/xapi/xapisim"
)

// Each version of the server imports an exported XVA as the same VM, with each
// compression, and the archive has the structure that its readers require.
func TestExportXVA(t *testing.T) {
	for _, v := range []struct {
		version  xapisim.Version
		compress string
		suffix   string
	}{{xapisim.VersionCurrent, "", ".xxhash"}, {xapisim.Version82, "zstd", ".xxhash"}, {xapisim.Version80, "gzip", ".checksum"}} {
		t.Run(fmt.Sprint(v.version), func(t *testing.T) {
			w := jobtest.New(t, xapisim.Config{Version: v.version})
			old, err := w.Pool.FindVM(t.Context(), "web")
			if err != nil {
				t.Fatal(err)
			}
			s := w.Snapshot(w.Backup(w.Options("web")).Snapshots[0].ID)
			want := w.DiskSums(old)
			file := filepath.Join(w.Dir, "web.xva")
			res, err := exchange.Export(t.Context(), w.Repo, s, file, nil, exchange.ExportOptions{Format: exchange.FormatXVA, Compress: v.compress})
			if err != nil || len(res.Disks) != 2 || len(res.Warnings) != 0 {
				t.Fatal(res, err)
			}
			vm := w.ImportXVA(file)
			if got := w.DiskSums(vm); fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("disks %v, want %v", got, want)
			}
			if vm.NameLabel != "web" || vm.PowerState != "Halted" || vm.IsATemplate || vm.MemoryStaticMax != old.MemoryStaticMax || len(vm.VIFs) != len(old.VIFs) || len(vm.VBDs) != len(old.VBDs) {
				t.Errorf("the VM came back as %+v", vm)
			}
			if v.compress == "" {
				checkEntries(t, file, v.suffix)
			}
			// Export one disk of the VM.
			if _, err = exchange.Export(t.Context(), w.Repo, s, file, nil, exchange.ExportOptions{Format: exchange.FormatXVA, Disk: "xvdb", Force: true}); err != nil {
				t.Fatal(err)
			}
			if got := w.DiskSums(w.ImportXVA(file)); len(got) != 1 || got["1"] != want["1"] {
				t.Errorf("disk %v, want that of %v", got, want)
			}
		})
	}
}

// checkEntries checks the names in an archive: ova.xml first, disks in the order of
// their names as text, ascending numbers, each block before its checksum, and the
// first and the last block present.
func checkEntries(t *testing.T, file, suffix string) {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r := tar.NewReader(f)
	last, blocks, n := "", 0, 0
	seen := map[string][]string{}
	for ; ; n++ {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		switch {
		case n == 0:
			if h.Name != "ova.xml" {
				t.Errorf("begins with %s", h.Name)
			}
		case n%2 == 1:
			if h.Name <= last || h.Size == 0 || h.Size > 1<<20 {
				t.Errorf("%s of %d bytes after %s", h.Name, h.Size, last)
			}
			disk, number, _ := strings.Cut(h.Name, "/")
			seen[disk] = append(seen[disk], number)
			last, blocks = h.Name, blocks+1
		default:
			if h.Name != last+suffix {
				t.Errorf("%s after %s", h.Name, last)
			}
		}
	}
	if len(seen) != 2 || n != 1+2*blocks || blocks >= 40 {
		t.Errorf("%d entries, %d blocks, disks %v", n, blocks, seen)
	}
	for disk, numbers := range seen {
		if end := numbers[len(numbers)-1]; numbers[0] != "00000000" || end != "00000023" && end != "00000015" {
			t.Errorf("%s: blocks %s to %s", disk, numbers[0], end)
		}
	}
}

// An image without a VM is exported as a plain VM.
func TestExportXVAOfImage(t *testing.T) {
	w := jobtest.New(t, xapisim.Config{Version: xapisim.Version80})
	file := jobtest.Image(t, filepath.Join(t.TempDir(), "x.raw"), 6*jobtest.MiB, 9, 10)
	s := jobtest.ImageBackup(t, w.Repo, file)
	out := filepath.Join(w.Dir, "x.xva")
	res, err := exchange.Export(t.Context(), w.Repo, s, out, nil, exchange.ExportOptions{Format: exchange.FormatXVA})
	if err != nil || len(res.Warnings) != 1 {
		t.Fatal(res, err)
	}
	if got := w.DiskSums(w.ImportXVA(out)); len(got) != 1 || got["0"] != jobtest.FileSum(t, file) {
		t.Errorf("disks %v", got)
	}
}

func TestExportDisk(t *testing.T) {
	r := jobtest.NewRepository(t)
	dir := t.TempDir()
	file := jobtest.Image(t, filepath.Join(dir, "a.raw"), 20*jobtest.MiB, 5, 30)
	first := jobtest.ImageBackup(t, r, file)
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	// Data becomes zeros, zeros become data, and some blocks stay unchanged.
	if _, err := f.WriteAt(make([]byte, 3*jobtest.MiB), 4*jobtest.MiB); err != nil {
		t.Fatal(err)
	}
	jobtest.Scribble(t, f, 20*jobtest.MiB, 77, 2)
	_ = f.Close()
	jobtest.CopyFile(t, filepath.Join(dir, "b.raw"), file)
	second := jobtest.ImageBackup(t, r, file)
	export := func(s *repo.Snapshot, name string, o exchange.ExportOptions) *exchange.Exported {
		t.Helper()
		o.Format, _ = exchange.FormatOf(name)
		res, err := exchange.Export(t.Context(), r, s, filepath.Join(dir, name), nil, o)
		if err != nil {
			t.Fatal(err)
		}
		if st, err := os.Stat(filepath.Join(dir, name)); err != nil || st.Size() != res.Bytes {
			t.Errorf("%s: %v, reported %d bytes (%v)", name, st.Size(), res.Bytes, err)
		}
		return res
	}
	for _, name := range []string{"out.raw", "out.vhd", "out.qcow2"} {
		export(second, name, exchange.ExportOptions{})
		format, _ := exchange.FormatOf(name)
		var out bytes.Buffer
		res, err := exchange.Export(t.Context(), r, second, "-", &out, exchange.ExportOptions{Format: format})
		if err != nil || res.Bytes != int64(out.Len()) {
			t.Fatal(res, err)
		}
		if p, err := os.ReadFile(filepath.Join(dir, name)); err != nil || !bytes.Equal(p, out.Bytes()) {
			t.Errorf("%s differs from the standard output (%v)", name, err)
		}
	}
	if jobtest.FileSum(t, filepath.Join(dir, "out.raw")) != jobtest.FileSum(t, file) {
		t.Error("raw differs")
	}
	export(first, "base.vhd", exchange.ExportOptions{})
	if res := export(second, "child.vhd", exchange.ExportOptions{Base: first, BaseFile: "base.vhd"}); res.Bytes > 10*jobtest.MiB || res.BaseFile != "base.vhd" {
		t.Errorf("differences of %d bytes, parent %s", res.Bytes, res.BaseFile)
	}
	export(second, "same.vhd", exchange.ExportOptions{Base: second, BaseFile: "child.vhd"})
	child := openVHD(t, filepath.Join(dir, "child.vhd"))
	base := openVHD(t, filepath.Join(dir, "base.vhd"))
	if child.Header().ParentID != base.Footer().ID || child.Header().ParentName() != "base.vhd" {
		t.Errorf("parent %s %s, the base is %s", child.Header().ParentID, child.Header().ParentName(), base.Footer().ID)
	}
	qemu, err := exec.LookPath("qemu-img")
	if err != nil {
		t.Skip("SKIP: no qemu-img")
	}
	for _, args := range [][]string{
		{"compare", "-f", "raw", "-F", "vpc", file, filepath.Join(dir, "out.vhd")},
		{"compare", "-f", "raw", "-F", "qcow2", file, filepath.Join(dir, "out.qcow2")},
		{"check", "-f", "qcow2", filepath.Join(dir, "out.qcow2")},
	} {
		if out, err := exec.Command(qemu, args...).CombinedOutput(); err != nil {
			t.Errorf("qemu-img %s: %v: %s", args, err, out)
		}
	}
}

func openVHD(t *testing.T, name string) *vhd.File {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	v, err := vhd.OpenFile(f, st.Size(), vhd.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestExportRefusals(t *testing.T) {
	w := jobtest.New(t, xapisim.Config{})
	s := w.Snapshot(w.Backup(w.Options("web")).Snapshots[0].ID)
	there := filepath.Join(w.Dir, "there.raw")
	if err := os.WriteFile(there, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	huge := &repo.Snapshot{Disks: []repo.Disk{{Device: "xvda", Size: 1}}}
	for name, c := range map[string]struct {
		s    *repo.Snapshot
		file string
		o    exchange.ExportOptions
		want error
	}{
		"two disks":       {s, "x.raw", exchange.ExportOptions{}, repo.ErrAmbiguous},
		"no such disk":    {s, "x.raw", exchange.ExportOptions{Disk: "xvdz"}, repo.ErrNoDisk},
		"there":           {s, there, exchange.ExportOptions{Disk: "xvda"}, job.ErrExists},
		"a folder":        {s, w.Dir, exchange.ExportOptions{Disk: "xvda", Format: exchange.FormatRaw}, job.ErrExists},
		"base of raw":     {s, "x.raw", exchange.ExportOptions{Disk: "xvda", Base: s}, exchange.ErrFormat},
		"other size":      {s, "x.vhd", exchange.ExportOptions{Disk: "xvda", Base: huge}, exchange.ErrFormat},
		"compressed disk": {s, "x.vhd", exchange.ExportOptions{Disk: "xvda", Compress: "zstd"}, exchange.ErrFormat},
		"unknown":         {s, "x.raw", exchange.ExportOptions{Disk: "xvda", Format: "vmdk"}, exchange.ErrFormat},
	} {
		if c.o.Format == "" {
			c.o.Format, _ = exchange.FormatOf(c.file)
		}
		if !filepath.IsAbs(c.file) {
			c.file = filepath.Join(w.Dir, c.file)
		}
		if _, err := exchange.Export(t.Context(), w.Repo, c.s, c.file, nil, c.o); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := exchange.Export(ctx, w.Repo, s, filepath.Join(w.Dir, "y.xva"), nil, exchange.ExportOptions{Format: exchange.FormatXVA}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if left, _ := filepath.Glob(filepath.Join(w.Dir, ".*.part")); len(left) != 0 {
		t.Errorf("left %v", left)
	}
	if int64(qcow2.MaxSize) < 64<<40 {
		t.Error("qcow2 holds less than the largest disk")
	}
}

// An archive of a VM that was backed up with its memory contains only the disks.
func TestExportXVAOfCheckpoint(t *testing.T) {
	w := jobtest.NightPool(t, xapisim.Config{}, "web")
	o := w.Options()
	o.Selected = w.Requests("web")
	o.Selected[0].Kinds = []vmplan.Kind{vmplan.KindCheckpoint}
	s := w.Snapshot(w.Backup(o).Snapshots[0].ID)
	file := filepath.Join(w.Dir, "web.xva")
	res, err := exchange.Export(t.Context(), w.Repo, s, file, nil, exchange.ExportOptions{Format: exchange.FormatXVA})
	if err != nil || len(res.Disks) != 1 || len(res.Warnings) != 1 || !strings.Contains(res.Warnings[0], "memory") {
		t.Fatalf("%+v, %v", res, err)
	}
	if vm := w.ImportXVA(file); vm.PowerState != "Halted" || len(w.DiskSums(vm)) != 1 {
		t.Errorf("the VM came back as %+v", vm)
	}
	if _, err := exchange.Export(t.Context(), w.Repo, s, file, nil, exchange.ExportOptions{Format: exchange.FormatXVA, Disk: records.MemoryDevice}); !errors.Is(err, exchange.ErrFormat) {
		t.Errorf("only the memory: %v", err)
	}
}
