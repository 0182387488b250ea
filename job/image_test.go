package job_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"xenkeep/chunkstore/object/local"
	"xenkeep/chunkstore/object/mem"
	"xenkeep/job"
	"xenkeep/repo"
)

func newRepo(t *testing.T) *repo.Repository {
	t.Helper()
	r, err := repo.Init(t.Context(), mem.New(), repo.Options{Secret: secret})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func imageBackup(t *testing.T, r *repo.Repository, file string) *repo.Snapshot {
	t.Helper()
	s, err := job.BackupImage(t.Context(), r, job.ImageOptions{Common: job.Common{StateDir: t.TempDir()}, File: file, Name: "image"})
	if err != nil {
		t.Fatal(err)
	}
	all, _, err := r.Snapshots(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	snap, err := repo.Resolve(all, s.Snapshots[0].ID)
	if err != nil {
		t.Fatal(err)
	}
	return snap
}

func restoreImage(t *testing.T, r *repo.Repository, s *repo.Snapshot, file string) {
	t.Helper()
	if _, err := job.RestoreFile(t.Context(), r, s, &s.Disks[0], file, job.RestoreOptions{}); err != nil {
		t.Fatal(err)
	}
}

// sparse makes an image of any size with a little data at odd places.
func sparse(t *testing.T, name string, size int64) {
	t.Helper()
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	for _, off := range []int64{0, 511, 4095, 70_000, 2*mib - 3, 2*mib + 100, 1<<30 - 5, 1 << 30, 1<<40 + 9, size - 1} {
		if off >= 0 && off < size {
			if _, err := f.WriteAt([]byte(fmt.Sprint(off))[:1], off); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// sameSparse compares two files, passing over what is a hole in both.
func sameSparse(t *testing.T, a, b string) {
	t.Helper()
	if out, err := exec.Command("cmp", a, b).CombinedOutput(); err != nil {
		t.Fatalf("cmp: %v: %s", err, out)
	}
}

// The same disk from a raw file and from a VHD has the same root, and comes
// back as it was, raw and as a VHD, to the last byte.
func TestImageSizes(t *testing.T) {
	for _, size := range []int64{0, 1, 511, 512, 4095, 4097, 2*mib - 1, 2 * mib, 2*mib + 512, 1<<30 + 4096, 3 << 40} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			dir := t.TempDir()
			r := newRepo(t)
			raw := filepath.Join(dir, "in.raw")
			sparse(t, raw, size)
			s := imageBackup(t, r, raw)
			if s.Disks[0].Size != size {
				t.Fatalf("size %d", s.Disks[0].Size)
			}
			out := filepath.Join(dir, "out.raw")
			restoreImage(t, r, s, out)
			st, err := os.Stat(out)
			if err != nil || st.Size() != size {
				t.Fatalf("restored to %d bytes: %v", st.Size(), err)
			}
			if size <= 2<<30 { // cmp reads holes too
				sameSparse(t, raw, out)
			} else {
				again := imageBackup(t, r, out)
				if again.Disks[0].Root != s.Disks[0].Root {
					t.Fatal("the restored file has another root")
				}
			}
			if size == 0 || size%512 != 0 || size > 2040<<30 {
				return // a VHD holds whole sectors, at most 2040 GiB
			}
			vhdFile := filepath.Join(dir, "out.vhd")
			restoreImage(t, r, s, vhdFile)
			fromVHD := imageBackup(t, r, vhdFile)
			if fromVHD.Disks[0].Root != s.Disks[0].Root {
				t.Fatal("from the VHD the root is another")
			}
			if fromVHD.Disks[0].Counts.Stored != 0 {
				t.Errorf("the same disk from a VHD stores %d bytes", fromVHD.Disks[0].Counts.Stored)
			}
		})
	}
}

// VHDs made by qemu-img are read right, and qemu-img and vhdiinfo take ours.
func TestImageJudges(t *testing.T) {
	for _, tool := range []string{"qemu-img", "vhdiinfo"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("SKIP: %s is not installed", tool)
		}
	}
	dir := t.TempDir()
	raw := image(t, filepath.Join(dir, "in.raw"), 17*mib, 5, 30)
	r := newRepo(t)
	s := imageBackup(t, r, raw)
	for _, sub := range []string{"dynamic", "fixed"} {
		file := filepath.Join(dir, sub+".vhd")
		run(t, "qemu-img", "convert", "-f", "raw", "-O", "vpc", "-o", "subformat="+sub+",force_size=on", raw, file)
		if got := imageBackup(t, r, file); got.Disks[0].Root != s.Disks[0].Root {
			t.Errorf("qemu-img's %s VHD is read otherwise", sub)
		}
	}
	out := filepath.Join(dir, "out.vhd")
	restoreImage(t, r, s, out)
	run(t, "qemu-img", "compare", "-f", "raw", "-F", "vpc", raw, out)
	run(t, "vhdiinfo", out)
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
}

// What is no image, or not a whole one, is refused with a line that names it,
// and leaves nothing.
func TestForeignImages(t *testing.T) {
	dir := t.TempDir()
	r := newRepo(t)
	write := func(name string, data []byte) string {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, data, 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	raw := image(t, filepath.Join(dir, "in.raw"), 6*mib, 5, 5)
	s := imageBackup(t, r, raw)
	whole := filepath.Join(dir, "whole.vhd")
	restoreImage(t, r, s, whole)
	data, err := os.ReadFile(whole)
	if err != nil {
		t.Fatal(err)
	}
	for name, file := range map[string]string{
		"cut":    write("cut.vhd", data[:len(data)/2]),
		"qcow2":  write("a.qcow2", append([]byte("QFI\xfb"), make([]byte, 1000)...)),
		"vhdx":   write("a.vhdx", append([]byte("vhdxfile"), make([]byte, 1000)...)),
		"folder": dir,
		"absent": filepath.Join(dir, "absent"),
	} {
		_, err := job.BackupImage(t.Context(), r, job.ImageOptions{Common: job.Common{StateDir: dir}, File: file})
		if err == nil {
			t.Errorf("%s is taken", name)
		} else {
			t.Log(err)
		}
	}
	all, bad, err := r.Snapshots(t.Context())
	if err != nil || len(all) != 1 || len(bad) != 0 {
		t.Fatal(len(all), bad, err)
	}
}

// A restore to a file refuses what exists, and a failed one leaves nothing.
func TestRestoreFileIsWholeOrAbsent(t *testing.T) {
	dir := t.TempDir()
	objects, err := local.Create(filepath.Join(dir, "repo"))
	if err != nil {
		t.Fatal(err)
	}
	r, err := repo.Init(t.Context(), objects, repo.Options{Secret: secret})
	if err != nil {
		t.Fatal(err)
	}
	raw := image(t, filepath.Join(dir, "in.raw"), 6*mib, 5, 20)
	s := imageBackup(t, r, raw)
	out := filepath.Join(dir, "out", "out.raw")
	if err := os.Mkdir(filepath.Dir(out), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(out, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	restoreTo := func(force bool) error {
		_, err := job.RestoreFile(t.Context(), r, s, &s.Disks[0], out, job.RestoreOptions{Force: force})
		return err
	}
	if err := restoreTo(false); !errors.Is(err, job.ErrExists) {
		t.Fatalf("over a file: %v", err)
	}
	packs, err := filepath.Glob(filepath.Join(dir, "repo", "packs", "*", "*"))
	if err != nil || len(packs) == 0 {
		t.Fatal(packs, err)
	}
	for _, p := range packs { // damage every pack's blobs
		f, err := os.OpenFile(p, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		st, _ := f.Stat()
		_, _ = f.WriteAt([]byte("damage"), st.Size()/2)
		f.Close()
	}
	if err := restoreTo(true); err == nil {
		t.Fatal("a damaged disk is restored")
	} else {
		t.Log(err)
	}
	if p, err := os.ReadFile(out); err != nil || string(p) != "mine" {
		t.Fatalf("the old file is %q: %v", p, err)
	}
	left, err := filepath.Glob(filepath.Join(dir, "out", ".*"))
	if err != nil || len(left) != 0 {
		t.Fatalf("left behind: %v", left)
	}
}
