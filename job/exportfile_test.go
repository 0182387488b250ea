package job_test

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"xenkeep/job"
	"xenkeep/qcow2"
	"xenkeep/repo"
	"xenkeep/vhd"
	"xenkeep/xapi"
	"xenkeep/xapi/xapisim"
)

// importXVA sends an archive to the pool and returns the VM it became.
func (w *world) importXVA(file string) xapi.VM {
	w.t.Helper()
	task, err := w.pool.CreateTask(w.t.Context(), "import", "")
	if err != nil {
		w.t.Fatal(err)
	}
	var sr string
	for _, s := range w.sim.Ready().SRs {
		if s.Type == "nfs" {
			sr = s.UUID
		}
	}
	f, err := os.Open(file)
	if err != nil {
		w.t.Fatal(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		w.t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(w.t.Context(), http.MethodPut, w.sim.URL()+"/import?"+url.Values{"task_id": {string(task)}, "sr_uuid": {sr}}.Encode(), f)
	if err != nil {
		w.t.Fatal(err)
	}
	req.ContentLength = st.Size()
	req.SetBasicAuth(w.sim.User(), w.sim.Password())
	c := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true}}
	resp, err := c.Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	body, _ := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	refs, err := w.pool.WaitTask(w.t.Context(), task)
	if err != nil || len(refs) != 1 {
		w.t.Fatalf("import: %v %q: %s", err, refs, body)
	}
	vm, err := w.pool.VM(w.t.Context(), xapi.Ref(refs[0]))
	if err != nil {
		w.t.Fatal(err)
	}
	return vm
}

// diskSums are the checksums of a VM's disks, by userdevice.
func (w *world) diskSums(vm xapi.VM) map[string]string {
	w.t.Helper()
	out := make(map[string]string)
	for _, ref := range vm.VBDs {
		b, err := w.pool.VBD(w.t.Context(), ref)
		if err != nil {
			w.t.Fatal(err)
		}
		if b.Type != "Disk" {
			continue
		}
		vdi, err := w.pool.VDI(w.t.Context(), b.VDI)
		if err != nil {
			w.t.Fatal(err)
		}
		out[b.UserDevice] = w.volumeSum(vdi.UUID, int64(vdi.VirtualSize))
	}
	return out
}

// An XVA that we write becomes the same VM on each version of the server,
// however compressed, and holds what its readers demand.
func TestExportXVA(t *testing.T) {
	for _, v := range []struct {
		version  xapisim.Version
		compress string
		suffix   string
	}{{xapisim.VersionCurrent, "", ".xxhash"}, {xapisim.Version82, "zstd", ".xxhash"}, {xapisim.Version80, "gzip", ".checksum"}} {
		t.Run(fmt.Sprint(v.version), func(t *testing.T) {
			w := newWorld(t, xapisim.Config{Version: v.version})
			old, err := w.pool.FindVM(t.Context(), "web")
			if err != nil {
				t.Fatal(err)
			}
			s := w.snapshot(w.backup(w.options("web")).Snapshots[0].ID)
			want := w.diskSums(old)
			file := filepath.Join(w.dir, "web.xva")
			res, err := job.Export(t.Context(), w.repo, s, file, nil, job.ExportOptions{Format: job.FormatXVA, Compress: v.compress})
			if err != nil || len(res.Disks) != 2 || len(res.Warnings) != 0 {
				t.Fatal(res, err)
			}
			vm := w.importXVA(file)
			if got := w.diskSums(vm); fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("disks %v, want %v", got, want)
			}
			if vm.NameLabel != "web" || vm.PowerState != "Halted" || vm.IsATemplate || vm.MemoryStaticMax != old.MemoryStaticMax || len(vm.VIFs) != len(old.VIFs) || len(vm.VBDs) != len(old.VBDs) {
				t.Errorf("the VM came back as %+v", vm)
			}
			if v.compress == "" {
				checkEntries(t, file, v.suffix)
			}
			// One disk of it.
			if _, err = job.Export(t.Context(), w.repo, s, file, nil, job.ExportOptions{Format: job.FormatXVA, Disk: "xvdb", RestoreOptions: job.RestoreOptions{Force: true}}); err != nil {
				t.Fatal(err)
			}
			if got := w.diskSums(w.importXVA(file)); len(got) != 1 || got["1"] != want["1"] {
				t.Errorf("disk %v, want that of %v", got, want)
			}
		})
	}
}

// checkEntries looks at the names of an archive: ova.xml first, disks in the
// order of texts, numbers growing, each block before its checksum, the first
// and the last block there.
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
				t.Errorf("%s of %d bytes behind %s", h.Name, h.Size, last)
			}
			disk, number, _ := strings.Cut(h.Name, "/")
			seen[disk] = append(seen[disk], number)
			last, blocks = h.Name, blocks+1
		default:
			if h.Name != last+suffix {
				t.Errorf("%s behind %s", h.Name, last)
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

// An image without a VM becomes a plain VM.
func TestExportXVAOfImage(t *testing.T) {
	w := newWorld(t, xapisim.Config{Version: xapisim.Version80})
	file := image(t, filepath.Join(t.TempDir(), "x.raw"), 6*mib, 9, 10)
	s := imageBackup(t, w.repo, file)
	out := filepath.Join(w.dir, "x.xva")
	res, err := job.Export(t.Context(), w.repo, s, out, nil, job.ExportOptions{Format: job.FormatXVA})
	if err != nil || len(res.Warnings) != 1 {
		t.Fatal(res, err)
	}
	if got := w.diskSums(w.importXVA(out)); len(got) != 1 || got["0"] != fileSum(t, file) {
		t.Errorf("disks %v", got)
	}
}

func TestExportDisk(t *testing.T) {
	r := newRepo(t)
	dir := t.TempDir()
	file := image(t, filepath.Join(dir, "a.raw"), 20*mib, 5, 30)
	first := imageBackup(t, r, file)
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	// Data becomes zeros, zeros become data, and some block stays.
	if _, err := f.WriteAt(make([]byte, 3*mib), 4*mib); err != nil {
		t.Fatal(err)
	}
	scribble(t, f, 20*mib, 77, 2)
	_ = f.Close()
	copyFile(t, filepath.Join(dir, "b.raw"), file)
	second := imageBackup(t, r, file)
	export := func(s *repo.Snapshot, name string, o job.ExportOptions) *job.Exported {
		t.Helper()
		o.Format, _ = job.FormatOf(name)
		res, err := job.Export(t.Context(), r, s, filepath.Join(dir, name), nil, o)
		if err != nil {
			t.Fatal(err)
		}
		if st, err := os.Stat(filepath.Join(dir, name)); err != nil || st.Size() != res.Bytes {
			t.Errorf("%s: %v, said %d bytes (%v)", name, st.Size(), res.Bytes, err)
		}
		return res
	}
	for _, name := range []string{"out.raw", "out.vhd", "out.qcow2"} {
		export(second, name, job.ExportOptions{})
		format, _ := job.FormatOf(name)
		var out bytes.Buffer
		res, err := job.Export(t.Context(), r, second, "-", &out, job.ExportOptions{Format: format})
		if err != nil || res.Bytes != int64(out.Len()) {
			t.Fatal(res, err)
		}
		if p, err := os.ReadFile(filepath.Join(dir, name)); err != nil || !bytes.Equal(p, out.Bytes()) {
			t.Errorf("%s differs from what goes to the standard output (%v)", name, err)
		}
	}
	if fileSum(t, filepath.Join(dir, "out.raw")) != fileSum(t, file) {
		t.Error("raw differs")
	}
	export(first, "base.vhd", job.ExportOptions{})
	if res := export(second, "child.vhd", job.ExportOptions{Base: first, BaseFile: "base.vhd"}); res.Bytes > 10*mib || res.BaseFile != "base.vhd" {
		t.Errorf("differences of %d bytes, parent %s", res.Bytes, res.BaseFile)
	}
	export(second, "same.vhd", job.ExportOptions{Base: second, BaseFile: "child.vhd"})
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
	w := newWorld(t, xapisim.Config{})
	s := w.snapshot(w.backup(w.options("web")).Snapshots[0].ID)
	there := filepath.Join(w.dir, "there.raw")
	if err := os.WriteFile(there, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	huge := &repo.Snapshot{Disks: []repo.Disk{{Device: "xvda", Size: 1}}}
	for name, c := range map[string]struct {
		s    *repo.Snapshot
		file string
		o    job.ExportOptions
		want error
	}{
		"two disks":       {s, "x.raw", job.ExportOptions{}, repo.ErrAmbiguous},
		"no such disk":    {s, "x.raw", job.ExportOptions{Disk: "xvdz"}, repo.ErrNoSnapshot},
		"there":           {s, there, job.ExportOptions{Disk: "xvda"}, job.ErrExists},
		"a folder":        {s, w.dir, job.ExportOptions{Disk: "xvda", Format: job.FormatRaw}, job.ErrExists},
		"base of raw":     {s, "x.raw", job.ExportOptions{Disk: "xvda", Base: s}, job.ErrFormat},
		"other size":      {s, "x.vhd", job.ExportOptions{Disk: "xvda", Base: huge}, job.ErrFormat},
		"compressed disk": {s, "x.vhd", job.ExportOptions{Disk: "xvda", Compress: "zstd"}, job.ErrFormat},
		"unknown":         {s, "x.raw", job.ExportOptions{Disk: "xvda", Format: "vmdk"}, job.ErrFormat},
	} {
		if c.o.Format == "" {
			c.o.Format, _ = job.FormatOf(c.file)
		}
		if !filepath.IsAbs(c.file) {
			c.file = filepath.Join(w.dir, c.file)
		}
		if _, err := job.Export(t.Context(), w.repo, c.s, c.file, nil, c.o); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := job.Export(ctx, w.repo, s, filepath.Join(w.dir, "y.xva"), nil, job.ExportOptions{Format: job.FormatXVA}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if left, _ := filepath.Glob(filepath.Join(w.dir, ".*.part")); len(left) != 0 {
		t.Errorf("left %v", left)
	}
	if int64(qcow2.MaxSize) < 64<<40 {
		t.Error("qcow2 holds less than the largest disk")
	}
}

// Of a VM that was backed up with its memory the archive holds the disks.
func TestExportXVAOfCheckpoint(t *testing.T) {
	w := nightPool(t, xapisim.Config{}, "web")
	o := w.options()
	o.Chosen = w.chosen("web")
	o.Chosen[0].Kinds = []job.Kind{job.KindCheckpoint}
	s := w.snapshot(w.backup(o).Snapshots[0].ID)
	file := filepath.Join(w.dir, "web.xva")
	res, err := job.Export(t.Context(), w.repo, s, file, nil, job.ExportOptions{Format: job.FormatXVA})
	if err != nil || len(res.Disks) != 1 || len(res.Warnings) != 1 || !strings.Contains(res.Warnings[0], "memory") {
		t.Fatalf("%+v, %v", res, err)
	}
	if vm := w.importXVA(file); vm.PowerState != "Halted" || len(w.diskSums(vm)) != 1 {
		t.Errorf("the VM came back as %+v", vm)
	}
	if _, err := job.Export(t.Context(), w.repo, s, file, nil, job.ExportOptions{Format: job.FormatXVA, Disk: job.MemoryDevice}); !errors.Is(err, job.ErrFormat) {
		t.Errorf("the memory alone: %v", err)
	}
}
