package vhd

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"xenkeep/internal/disk"
	"xenkeep/internal/disk/disktest"
)

func judge(t *testing.T, name string) {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Skipf("SKIP: %s is not installed", name)
	}
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// rawFile creates a file with data, holes and zeros.
func rawFile(t *testing.T, dir string, size int64) (string, []byte) {
	t.Helper()
	raw := make([]byte, size)
	for i, e := range [][2]int64{{0, 70000}, {3 << 20, 1 << 20}, {9<<20 + 512, 4096}, {size - 600, 600}} {
		if e[0] >= 0 && e[0]+e[1] <= size {
			copy(raw[e[0]:], noise(uint64(i)+1, e[1]))
		}
	}
	name := filepath.Join(dir, "disk.raw")
	if err := os.WriteFile(name, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	return name, raw
}

// TestReadQemu reads files written by qemu-img.
func TestReadQemu(t *testing.T) {
	judge(t, "qemu-img")
	for _, size := range []int64{512 << 10, 10 << 20, 33<<20 + 512, 80 << 20} {
		for _, options := range []string{"subformat=dynamic", "subformat=fixed", "subformat=dynamic,force_size=on", "subformat=fixed,force_size=on"} {
			t.Run(fmt.Sprintf("%d/%s", size, options), func(t *testing.T) {
				dir := t.TempDir()
				name, raw := rawFile(t, dir, size)
				image := filepath.Join(dir, "disk.vhd")
				run(t, "qemu-img", "convert", "-f", "raw", "-O", "vpc", "-o", options, name, image)
				f, err := os.Open(image)
				if err != nil {
					t.Fatal(err)
				}
				defer f.Close()
				info, err := f.Stat()
				if err != nil {
					t.Fatal(err)
				}
				// qemu rounds up to a geometry by default.
				v, err := OpenFile(f, info.Size(), Options{Size: size})
				if err != nil {
					t.Fatal(err)
				}
				m := disktest.NewMem(size)
				drainTo(t, v.Reader(), m)
				if !bytes.Equal(contents(t, m, size), raw) || !bytes.Equal(contents(t, v, size), raw) {
					t.Error("contents differ")
				}
				if v.fixed() {
					return
				}
				if _, err := f.Seek(0, 0); err != nil {
					t.Fatal(err)
				}
				m, err = readAll(f, Options{Size: size})
				if err != nil || !bytes.Equal(contents(t, m, size), raw) {
					t.Errorf("as a stream: %v", err)
				}
			})
		}
	}
}

// TestFilesForPeople checks the files that this package writes with qemu-img
// and libvhdi.
func TestFilesForPeople(t *testing.T) {
	judge(t, "qemu-img")
	judge(t, "vhdiinfo")
	for _, size := range []int64{512, 4096, 2 << 20, 2<<20 + 512, 10 << 20, 33<<20 + 512, 127<<20 - 512} {
		for _, fixed := range []bool{false, true} {
			t.Run(fmt.Sprintf("%d/%v", size, fixed), func(t *testing.T) {
				dir := t.TempDir()
				name, raw := rawFile(t, dir, size)
				blocks := map[int64][]byte{}
				for b := range disk.Blocks(size) {
					p := raw[b*BlockSize : min((b+1)*BlockSize, size)]
					if len(bytes.Trim(p, "\x00")) > 0 {
						blocks[b] = p
					}
				}
				l := Layout{
					Profile: ForFile, Fixed: fixed, Size: size, ID: UUID{0xab, 1}, Time: Time(day),
					Present: func(b int64) bool { return blocks[b] != nil },
				}
				image := filepath.Join(dir, "disk.vhd")
				if err := os.WriteFile(image, write(t, l, blocks), 0o600); err != nil {
					t.Fatal(err)
				}
				if out := run(t, "qemu-img", "info", "-f", "vpc", image); !strings.Contains(out, fmt.Sprintf("(%d bytes)", size)) {
					t.Errorf("qemu-img sees another size:\n%s", out)
				}
				run(t, "qemu-img", "compare", "-f", "raw", "-F", "vpc", name, image)
				back := filepath.Join(dir, "back.raw")
				run(t, "qemu-img", "convert", "-f", "vpc", "-O", "raw", image, back)
				got, err := os.ReadFile(back)
				if err != nil || !bytes.Equal(got, raw) {
					t.Errorf("converted back: %v", err)
				}
				// Some versions of qemu-img have no check for this format, and
				// report that; the message for damage is different.
				if out, err := exec.Command("qemu-img", "check", "-f", "vpc", image).CombinedOutput(); err != nil &&
					!strings.Contains(string(out), "does not support checks") {
					t.Errorf("qemu-img check: %v\n%s", err, out)
				}
				out := run(t, "vhdiinfo", image)
				for _, want := range []string{fmt.Sprintf("(%d bytes)", size), "ab010000-0000-0000-0000-000000000000", "Format version\t\t: 1.0"} {
					if !strings.Contains(out, want) && !(size < 1024 && strings.Contains(want, "bytes")) {
						t.Errorf("vhdiinfo does not say %q:\n%s", want, out)
					}
				}
			})
		}
	}
}

// TestDeltaForPeople: libvhdi can read the parent of a differencing file.
func TestDeltaForPeople(t *testing.T) {
	judge(t, "vhdiinfo")
	dir := t.TempDir()
	const size = 10 << 20
	base := Layout{Profile: ForFile, Size: size, ID: UUID{1}, Time: Time(day)}
	baseData := map[int64][]byte{}
	for b := range base.Blocks() {
		baseData[b] = noise(uint64(b), BlockSize)
	}
	delta := Layout{
		Profile: ForFile, Size: size, ID: UUID{2}, Time: Time(day),
		Parent:  &Parent{ID: base.ID, Time: Time(day), Path: "base.vhd"},
		Present: func(b int64) bool { return b == 2 },
	}
	for name, p := range map[string][]byte{
		"base.vhd":  write(t, base, baseData),
		"delta.vhd": write(t, delta, map[int64][]byte{2: noise(99, BlockSize)}),
	} {
		if err := checkRules(p, Time(day), true); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), p, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	out := run(t, "vhdiinfo", filepath.Join(dir, "delta.vhd"))
	for _, want := range []string{"Differential", "Parent identifier\t: " + base.ID.String(), "Parent filename\t\t: base.vhd", delta.ID.String()} {
		if !strings.Contains(out, want) {
			t.Errorf("vhdiinfo does not say %q:\n%s", want, out)
		}
	}
}

// TestLargeForPeople: a sparse disk of the largest size, which no geometry can
// express.
func TestLargeForPeople(t *testing.T) {
	judge(t, "qemu-img")
	image := filepath.Join(t.TempDir(), "large.vhd")
	f, err := os.Create(image)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	last := int64(MaxSize/BlockSize - 1)
	w, err := NewWriter(f, Layout{Profile: ForFile, Size: MaxSize, Time: Time(day), Present: func(b int64) bool { return b == last }})
	if err != nil {
		t.Fatal(err)
	}
	data := noise(5, BlockSize)
	if err := w.WriteAt(context.Background(), data, last*BlockSize); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	out := run(t, "qemu-img", "info", "-f", "vpc", image)
	if !strings.Contains(out, fmt.Sprintf("(%d bytes)", int64(MaxSize))) {
		t.Errorf("qemu-img sees another size:\n%s", out)
	}
	back := filepath.Join(t.TempDir(), "back.raw")
	run(t, "qemu-img", "dd", "-f", "vpc", "-O", "raw", "if="+image, "of="+back, "bs=2M", fmt.Sprintf("skip=%d", last))
	if got, err := os.ReadFile(back); err != nil || !bytes.Equal(got, data) {
		t.Errorf("the last block: %v, %d bytes", err, len(got))
	}
}
