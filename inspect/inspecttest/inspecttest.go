// Package inspecttest creates disks with real partition tables and file systems
// for tests, with the standard tools. If a tool is missing, the test is
// skipped.
package inspecttest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// MiB is the number of bytes in a mebibyte.
const MiB = 1 << 20

// Need finds a tool, also in the administrator's folders, or skips the test.
func Need(t testing.TB, tool string) string {
	t.Helper()
	if path, err := exec.LookPath(tool); err == nil {
		return path
	}
	for _, dir := range []string{"/usr/sbin", "/sbin", "/usr/local/sbin"} {
		if path := filepath.Join(dir, tool); unix.Access(path, unix.X_OK) == nil {
			return path
		}
	}
	t.Skipf("SKIP: no %s", tool)
	return ""
}

// Run runs a tool, which must succeed, and returns its output.
func Run(t testing.TB, tool string, args ...string) string {
	t.Helper()
	cmd := exec.Command(Need(t, tool), args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "LVM_SUPPRESS_FD_WARNINGS=1")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v: %s", tool, args, err, out)
	}
	return string(out)
}

// Files returns folders and files to be stored in a file system: a name that
// ends with "/" is a folder.
func Files() map[string][]byte {
	data := rand.NewChaCha8([32]byte{42})
	some := func(n int) []byte {
		p := make([]byte, n)
		_, _ = data.Read(p)
		return p
	}
	return map[string][]byte{
		"hello.txt": []byte("hello\n"), "empty": {}, "big.bin": some(1500000), "medium.bin": some(70001), "small": some(3),
	}
}

// Tree writes files below a new folder and returns it.
func Tree(t testing.TB, files map[string][]byte) string {
	t.Helper()
	dir := t.TempDir()
	for name, p := range files {
		if err := os.WriteFile(filepath.Join(dir, name), p, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// blank creates a file of zeros.
func blank(t testing.TB, size int64) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "image")
	f, err := os.Create(name)
	if err == nil {
		err = errors.Join(f.Truncate(size), f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	return name
}

// Ext creates an ext2, ext3 or ext4 with the files in it.
func Ext(t testing.TB, kind string, size int64, files map[string][]byte, options ...string) string {
	t.Helper()
	name := blank(t, size)
	Run(t, "mke2fs", append(append([]string{"-q", "-F", "-t", kind, "-L", "label", "-d", Tree(t, files)}, options...), name)...)
	return name
}

// XFS creates an XFS of 300 MiB with the files in it.
func XFS(t testing.TB, files map[string][]byte, options ...string) string {
	t.Helper()
	dir := Tree(t, files)
	var proto strings.Builder
	proto.WriteString("/dev/null\n0 0\nd--755 0 0\n")
	for name := range files {
		fmt.Fprintf(&proto, "%s ---644 0 0 %s\n", name, filepath.Join(dir, name))
	}
	proto.WriteString("$\n$\n")
	list := filepath.Join(t.TempDir(), "proto")
	if err := os.WriteFile(list, []byte(proto.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	name := blank(t, 300*MiB)
	Run(t, "mkfs.xfs", append(append([]string{"-q", "-L", "label", "-p", list}, options...), name)...)
	return name
}

// NTFS creates an NTFS with the files in it.
func NTFS(t testing.TB, size int64, files map[string][]byte) string {
	t.Helper()
	name := blank(t, size)
	Run(t, "mkntfs", "-q", "-F", "-f", "-L", "label", "-p", "0", "-H", "0", "-S", "0", name)
	dir := Tree(t, files)
	for file, p := range files {
		if len(p) > 0 { // ntfscp does not accept an empty file
			Run(t, "ntfscp", "-q", "-f", name, filepath.Join(dir, file), file)
		}
	}
	return name
}

// FAT creates a FAT of 12, 16 or 32 bits.
func FAT(t testing.TB, bits string, size int64) string {
	t.Helper()
	name := blank(t, size)
	Run(t, "mkfs.fat", "-F", bits, "-n", "LABEL", name)
	return name
}

// Btrfs creates a btrfs.
func Btrfs(t testing.TB, size int64) string {
	t.Helper()
	name := blank(t, size)
	Run(t, "mkfs.btrfs", "-q", "-L", "label", name)
	return name
}

// Swap creates swap space.
func Swap(t testing.TB, size int64) string {
	t.Helper()
	name := blank(t, size)
	Run(t, "mkswap", name)
	return name
}

// Loop attaches a file as a block device, or skips the test if that is not
// possible.
func Loop(t testing.TB, options ...string) string {
	t.Helper()
	tool := Need(t, "losetup")
	out, err := exec.Command(tool, append([]string{"--find", "--show"}, options...)...).CombinedOutput()
	if err != nil {
		t.Skipf("SKIP: kernel: no loop device: %s", bytes.TrimSpace(out))
	}
	dev := strings.TrimSpace(string(out))
	t.Cleanup(func() { _ = exec.Command(tool, "--detach", dev).Run() })
	return dev
}

// LVM creates a physical volume of size bytes with the volume group "vg", whose
// logical volumes contain the named images.
func LVM(t testing.TB, size int64, volumes map[string]string, order ...string) string {
	t.Helper()
	Need(t, "lvm")
	name := blank(t, size)
	dev := Loop(t, name)
	conf := `devices{use_devicesfile=0 global_filter=["a|^` + dev + `$|","r|.*|"]} activation{udev_sync=0 udev_rules=0} backup{backup=0 archive=0} global{event_activation=0 use_lvmpolld=0}`
	common := []string{"--driverloaded", "n", "--config", conf}
	Run(t, "lvm", append([]string{"pvcreate", "-y", dev}, common...)...)
	Run(t, "lvm", append([]string{"vgcreate", "vg", dev}, common...)...)
	for _, lv := range order {
		st, err := os.Stat(volumes[lv])
		if err != nil {
			t.Fatal(err)
		}
		Run(t, "lvm", append([]string{"lvcreate", "-y", "-an", "-Zn", "-Wn", "-n", lv, "-L", fmt.Sprintf("%db", st.Size()), "vg"}, common...)...)
	}
	// The position of each logical volume, as LVM reports it.
	for _, line := range strings.Split(Run(t, "lvm", append([]string{"lvs", "--noheadings", "--units", "b", "--nosuffix", "-o", "lv_name,seg_pe_ranges", "vg"}, common...)...), "\n") {
		f := strings.Fields(line)
		if len(f) != 2 || volumes[f[0]] == "" {
			continue
		}
		var from, to int64
		if _, err := fmt.Sscanf(f[1][strings.LastIndex(f[1], ":")+1:], "%d-%d", &from, &to); err != nil {
			t.Fatal(line, err)
		}
		Place(t, name, MiB+from*4*MiB, volumes[f[0]])
	}
	Run(t, "losetup", "--detach", dev)
	return name
}

// Place writes an image into another at a byte offset.
func Place(t testing.TB, into string, at int64, image string) {
	t.Helper()
	src, err := os.Open(image)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	dst, err := os.OpenFile(into, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer dst.Close()
	buf := make([]byte, MiB)
	for off := int64(0); ; {
		n, err := io.ReadFull(src, buf)
		if n > 0 && !bytes.Equal(buf[:n], make([]byte, n)) {
			if _, werr := dst.WriteAt(buf[:n], at+off); werr != nil {
				t.Fatal(werr)
			}
		}
		off += int64(n)
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// Disk creates a disk with a partition table ("gpt" or "dos") and the images as
// partitions, the first at 1 MiB. An image has the form "type=path", where type
// is sfdisk's letter for the partition type: L, S, U ...
func Disk(t testing.TB, table string, images ...string) string {
	t.Helper()
	at := int64(MiB)
	script := "label: " + table + "\n"
	var starts []int64
	for _, image := range images {
		kind, path, _ := strings.Cut(image, "=")
		st, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		size := (st.Size() + MiB - 1) &^ (MiB - 1)
		script += fmt.Sprintf("start=%d, size=%d, type=%s\n", at/512, st.Size()/512, kind)
		starts = append(starts, at)
		at += size
	}
	name := blank(t, at+MiB)
	cmd := exec.Command(Need(t, "sfdisk"), "--quiet", name)
	cmd.Stdin = strings.NewReader(script)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("sfdisk: %v: %s\n%s", err, out, script)
	}
	for i, image := range images {
		_, path, _ := strings.Cut(image, "=")
		Place(t, name, starts[i], path)
	}
	return name
}

// Mount mounts a file or device on a folder, or skips the test if that is not
// allowed; the folder is unmounted at the end of the test.
func Mount(t testing.TB, args ...string) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "inspecttest-")
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(Need(t, "mount"), append(args, dir)...).CombinedOutput(); err != nil {
		_ = os.Remove(dir)
		t.Skipf("SKIP: kernel: mount %s: %s", args, bytes.TrimSpace(out))
	}
	t.Cleanup(func() {
		if out, err := exec.Command(Need(t, "umount"), dir).CombinedOutput(); err != nil {
			t.Errorf("umount: %v: %s", err, out)
		}
		_ = os.Remove(dir)
	})
	return dir
}

// Same compares the files below a folder with their expected content.
func Same(t testing.TB, dir string, files map[string][]byte) {
	t.Helper()
	for name, want := range files {
		got, err := os.ReadFile(filepath.Join(dir, name))
		if errors.Is(err, fs.ErrNotExist) && len(want) == 0 {
			continue
		}
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes, want %d (%v)", name, len(got), len(want), err)
		}
	}
}
