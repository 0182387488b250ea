package mount_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"xenkeep/chunkstore/object/mem"
	"xenkeep/inspect/inspecttest"
	"xenkeep/job"
	"xenkeep/job/exchange"
	"xenkeep/mount"
	"xenkeep/repo"
	"xenkeep/repo/repotest"
)

// put imports an image as a snapshot of a VM.
func put(t *testing.T, r *repo.Repository, file, name string, date time.Time) {
	t.Helper()
	if _, err := exchange.Import(t.Context(), r, []string{file}, exchange.ImportOptions{Common: job.Common{StateDir: t.TempDir()}, Name: name, Date: date}); err != nil {
		t.Fatal(err)
	}
}

// served mounts the repository until the test ends, or until stop is called,
// which returns the result of Serve.
func served(t *testing.T, r *repo.Repository, o mount.Options) (dir string, stop func() error) {
	t.Helper()
	dir, err := os.MkdirTemp("", "mount-")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ready, over := make(chan struct{}), make(chan error, 1)
	o.Ready, o.Location = func() { close(ready) }, time.UTC
	if o.Log == nil {
		o.Log = func(text string) { t.Error(text) }
	}
	go func() { over <- mount.Serve(ctx, r, dir, o) }()
	var once sync.Once
	stop = func() (err error) {
		once.Do(func() {
			cancel()
			err = <-over
			if rerr := os.Remove(dir); rerr != nil {
				t.Error(rerr)
			}
		})
		return err
	}
	select {
	case <-ready:
	case err := <-over:
		cancel()
		_ = os.Remove(dir)
		if errors.Is(err, mount.ErrFUSE) {
			t.Skipf("SKIP: kernel: %v", err)
		}
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = stop() })
	return dir, stop
}

func sum(t *testing.T, name string) string {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", h.Sum(nil))
}

func names(t *testing.T, dir string) string {
	t.Helper()
	all, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range all {
		out = append(out, e.Name())
	}
	return strings.Join(out, " ")
}

var day1, day2 = time.Date(2024, 5, 6, 7, 8, 9, 0, time.UTC), time.Date(2024, 5, 7, 7, 8, 9, 0, time.UTC)

// Every snapshot with its disks and partitions, equal to the backed-up content.
func TestTree(t *testing.T) {
	const mib = inspecttest.MiB
	r := repotest.Init(t, mem.New())
	files := inspecttest.Files()
	ext, ntfs := inspecttest.Ext(t, "ext4", 24*mib, files), inspecttest.NTFS(t, 16*mib, files)
	disk := inspecttest.Disk(t, "gpt", "L="+ext, "L="+ntfs)
	put(t, r, disk, "xvda", day1)
	inspecttest.Run(t, "debugfs", "-w", "-R", "rm small", ext)
	second := inspecttest.Disk(t, "gpt", "L="+ext, "L="+ntfs)
	put(t, r, second, "xvda", day2)
	put(t, r, ext, "a/b", day2)
	dir, stop := served(t, r, mount.Options{Cache: 16 * mib})
	if got := names(t, dir); got != "a_b xvda" {
		t.Errorf("VMs %q", got)
	}
	vm := filepath.Join(dir, "xvda")
	if got := names(t, vm); got != "2024-05-06T07-08-09 2024-05-07T07-08-09 latest" {
		t.Errorf("times %q", got)
	}
	latest := filepath.Join(vm, "latest")
	if got := names(t, latest); got != "xvda.raw xvda.vhd xvda1.raw xvda2.raw" {
		t.Errorf("files %q", got)
	}
	for name, want := range map[string]string{
		filepath.Join(vm, "2024-05-06T07-08-09", "xvda.raw"): disk, filepath.Join(latest, "xvda.raw"): second,
		filepath.Join(latest, "xvda1.raw"): ext, filepath.Join(latest, "xvda2.raw"): ntfs, filepath.Join(dir, "a_b", "latest", "a_b.raw"): ext,
	} {
		if sum(t, name) != sum(t, want) {
			t.Errorf("%s differs", name)
		}
	}
	st, err := os.Stat(filepath.Join(latest, "xvda.raw"))
	if err != nil || st.Mode() != 0o400 || !st.ModTime().Equal(day2) {
		t.Errorf("%v of %v, %v", st.Mode(), st.ModTime(), err)
	}
	if _, err := os.OpenFile(filepath.Join(latest, "xvda.raw"), os.O_RDWR, 0); err == nil {
		t.Error("it can be written")
	}
	if err := os.WriteFile(filepath.Join(dir, "new"), nil, 0o600); err == nil {
		t.Error("a file can be made")
	}
	if _, err := os.Stat(filepath.Join(vm, "nosuch")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("nosuch: %v", err)
	}
	// As a VHD it is the same disk; checked with qemu if it is installed.
	if qemu, err := exec.LookPath("qemu-img"); err == nil {
		if out, err := exec.Command(qemu, "compare", "-f", "raw", "-F", "vpc", second, filepath.Join(latest, "xvda.vhd")).CombinedOutput(); err != nil {
			t.Errorf("qemu-img: %v: %s", err, out)
		}
	}
	// If the mount is in use, it is detached and ends with its user.
	var mu sync.Mutex
	var said []string
	_ = stop()
	dir, stop = served(t, r, mount.Options{VM: "xvda", AllowOther: true, Log: func(text string) {
		mu.Lock()
		defer mu.Unlock()
		said = append(said, text)
	}})
	if got := names(t, dir); got != "xvda" {
		t.Errorf("one VM: %q", got)
	}
	held, err := os.Open(filepath.Join(dir, "xvda", "latest", "xvda.raw"))
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error)
	go func() { ended <- stop() }()
	p := make([]byte, 4096)
	for range 1000 {
		mu.Lock()
		n := len(said)
		mu.Unlock()
		if n > 0 {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	if _, err := held.ReadAt(p, 30*mib); err != nil {
		t.Errorf("read of what is detached: %v", err)
	}
	_ = held.Close()
	if err := <-ended; !errors.Is(err, context.Canceled) || len(said) != 1 || !strings.Contains(said[0], "still in use") {
		t.Errorf("ended with %v, said %q", err, said)
	}
}

// Single files can be restored through the mount as docs/files.md describes:
// from ext4 and XFS with a loop device, from NTFS with ntfs-3g, from LVM with
// the logical volumes' own files.
func TestFileRestore(t *testing.T) {
	const mib = inspecttest.MiB
	files := inspecttest.Files()
	for name, c := range map[string]struct {
		disk func() string
		file string
		open func(t *testing.T, file string) string
	}{
		"ext4": {func() string { return inspecttest.Disk(t, "gpt", "L="+inspecttest.Ext(t, "ext4", 24*mib, files)) }, "xvda1.raw", loop("noload")},
		"xfs":  {func() string { return inspecttest.Disk(t, "dos", "83="+inspecttest.XFS(t, files)) }, "xvda1.raw", loop("norecovery,nouuid")},
		"ntfs": {func() string { return inspecttest.Disk(t, "dos", "7="+inspecttest.NTFS(t, 16*mib, files)) }, "xvda1.raw", ntfs3g},
		"lvm": {func() string {
			return inspecttest.Disk(t, "gpt", "V="+inspecttest.LVM(t, 40*mib, map[string]string{"root": inspecttest.Ext(t, "ext4", 24*mib, files)}, "root"))
		}, "vg-root.raw", loop("noload")},
	} {
		t.Run(name, func(t *testing.T) {
			r := repotest.Init(t, mem.New())
			put(t, r, c.disk(), "xvda", day1)
			dir, stop := served(t, r, mount.Options{})
			t.Run("files", func(t *testing.T) { // mounts made in it are unmounted at its end
				inspecttest.Same(t, c.open(t, filepath.Join(dir, "xvda", "latest", c.file)), files)
			})
			if err := stop(); !errors.Is(err, context.Canceled) {
				t.Errorf("ended with %v", err)
			}
		})
	}
}

func loop(options string) func(*testing.T, string) string {
	return func(t *testing.T, file string) string {
		t.Helper()
		return inspecttest.Mount(t, "-o", "loop,ro,"+options, file)
	}
}

func ntfs3g(t *testing.T, file string) string {
	t.Helper()
	tool := inspecttest.Need(t, "ntfs-3g")
	dir, err := os.MkdirTemp("", "ntfs-")
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(tool, "-o", "ro", file, dir).CombinedOutput(); err != nil {
		_ = os.Remove(dir)
		t.Skipf("SKIP: kernel: ntfs-3g: %s", bytes.TrimSpace(out))
	}
	t.Cleanup(func() {
		// Serve ends a moment after the unmount.
		if out, err := exec.Command(inspecttest.Need(t, "fusermount3"), "-u", dir).CombinedOutput(); err != nil {
			t.Errorf("fusermount3: %v: %s", err, out)
		}
		_ = os.Remove(dir)
	})
	return dir
}

func TestRefusals(t *testing.T) {
	r := repotest.Init(t, mem.New())
	full := t.TempDir()
	if err := os.WriteFile(filepath.Join(full, "x"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		dir  string
		o    mount.Options
		want error
	}{
		"not there": {filepath.Join(full, "nosuch"), mount.Options{}, os.ErrNotExist}, "not empty": {full, mount.Options{}, nil},
		"a file": {filepath.Join(full, "x"), mount.Options{}, nil}, "no such VM": {t.TempDir(), mount.Options{VM: "q"}, repo.ErrNoSnapshot},
	} {
		if err := mount.Serve(t.Context(), r, c.dir, c.o); err == nil || c.want != nil && !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
