package backup_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"xenkeep/chunkstore/object/local"
	"xenkeep/job"
	"xenkeep/job/backup"
	"xenkeep/job/jobtest"
	"xenkeep/job/restore"
	"xenkeep/repo"
)

func restoreImage(t *testing.T, r *repo.Repository, s *repo.Snapshot, file string) {
	t.Helper()
	if _, err := restore.File(t.Context(), r, s, &s.Disks[0], file, restore.Options{}); err != nil {
		t.Fatal(err)
	}
}

// sameSparse compares two files, without reading areas that are holes in both.
func sameSparse(t *testing.T, a, b string) {
	t.Helper()
	if out, err := exec.Command("cmp", a, b).CombinedOutput(); err != nil {
		t.Fatalf("cmp: %v: %s", err, out)
	}
}

// A raw file and a VHD of the same disk have the same root, and are restored exactly,
// raw and as a VHD.
func TestImageSizes(t *testing.T) {
	for _, size := range []int64{0, 1, 511, 512, 4095, 4097, 2*jobtest.MiB - 1, 2 * jobtest.MiB, 2*jobtest.MiB + 512, 1<<30 + 4096, 3 << 40} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			dir := t.TempDir()
			r := jobtest.NewRepository(t)
			raw := filepath.Join(dir, "in.raw")
			jobtest.Sparse(t, raw, size)
			s := jobtest.ImageBackup(t, r, raw)
			if s.Disks[0].Size != size {
				t.Fatalf("size %d", s.Disks[0].Size)
			}
			out := filepath.Join(dir, "out.raw")
			restoreImage(t, r, s, out)
			st, err := os.Stat(out)
			if err != nil || st.Size() != size {
				t.Fatalf("restored to %d bytes: %v", st.Size(), err)
			}
			if size <= 2<<30 { // cmp reads holes, too
				sameSparse(t, raw, out)
			} else {
				again := jobtest.ImageBackup(t, r, out)
				if again.Disks[0].Root != s.Disks[0].Root {
					t.Fatal("the restored file has another root")
				}
			}
			if size == 0 || size%512 != 0 || size > 2040<<30 {
				return // a VHD contains whole sectors, and at most 2040 GiB
			}
			vhdFile := filepath.Join(dir, "out.vhd")
			restoreImage(t, r, s, vhdFile)
			fromVHD := jobtest.ImageBackup(t, r, vhdFile)
			if fromVHD.Disks[0].Root != s.Disks[0].Root {
				t.Fatal("from the VHD the root is another")
			}
			if fromVHD.Disks[0].Counts.Stored != 0 {
				t.Errorf("the same disk from a VHD stores %d bytes", fromVHD.Disks[0].Counts.Stored)
			}
		})
	}
}

// VHDs made by qemu-img are read correctly, and qemu-img and vhdiinfo accept ours.
func TestImageTools(t *testing.T) {
	for _, tool := range []string{"qemu-img", "vhdiinfo"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("SKIP: %s is not installed", tool)
		}
	}
	dir := t.TempDir()
	raw := jobtest.Image(t, filepath.Join(dir, "in.raw"), 17*jobtest.MiB, 5, 30)
	r := jobtest.NewRepository(t)
	s := jobtest.ImageBackup(t, r, raw)
	for _, sub := range []string{"dynamic", "fixed"} {
		file := filepath.Join(dir, sub+".vhd")
		jobtest.RunTool(t, "qemu-img", "convert", "-f", "raw", "-O", "vpc", "-o", "subformat="+sub+",force_size=on", raw, file)
		if got := jobtest.ImageBackup(t, r, file); got.Disks[0].Root != s.Disks[0].Root {
			t.Errorf("qemu-img's %s VHD is read otherwise", sub)
		}
	}
	out := filepath.Join(dir, "out.vhd")
	restoreImage(t, r, s, out)
	jobtest.RunTool(t, "qemu-img", "compare", "-f", "raw", "-F", "vpc", raw, out)
	jobtest.RunTool(t, "vhdiinfo", out)
}

// A file that is no image, or an incomplete one, is refused with an error that names
// it, and nothing is stored.
func TestForeignImages(t *testing.T) {
	dir := t.TempDir()
	r := jobtest.NewRepository(t)
	write := func(name string, data []byte) string {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, data, 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	raw := jobtest.Image(t, filepath.Join(dir, "in.raw"), 6*jobtest.MiB, 5, 5)
	s := jobtest.ImageBackup(t, r, raw)
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
		_, err := backup.Image(t.Context(), r, backup.ImageOptions{Common: job.Common{StateDir: dir}, File: file})
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

// A restore to a file refuses to overwrite a file, and removes its own file if it
// fails.
func TestRestoreFileIsWholeOrAbsent(t *testing.T) {
	dir := t.TempDir()
	objects, err := local.Create(filepath.Join(dir, "repo"))
	if err != nil {
		t.Fatal(err)
	}
	r, err := repo.Init(t.Context(), objects, repo.Options{Secret: jobtest.Secret})
	if err != nil {
		t.Fatal(err)
	}
	raw := jobtest.Image(t, filepath.Join(dir, "in.raw"), 6*jobtest.MiB, 5, 20)
	s := jobtest.ImageBackup(t, r, raw)
	out := filepath.Join(dir, "out", "out.raw")
	if err := os.Mkdir(filepath.Dir(out), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(out, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	restoreTo := func(force bool) error {
		_, err := restore.File(t.Context(), r, s, &s.Disks[0], out, restore.Options{Force: force})
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
		t.Fatalf("left: %v", left)
	}
}
