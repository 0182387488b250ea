package sr

import (
	"bytes"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

func qemuImg(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command("qemu-img", args...).CombinedOutput(); err != nil {
		t.Fatalf("qemu-img %v: %v\n%s", args, err, out)
	}
}

// VHDs written by qemu-img are read as the same disks, and qemu-img reads full
// exports as the disks from which they were made.
func TestQemuImg(t *testing.T) {
	if _, err := exec.LookPath("qemu-img"); err != nil {
		t.Skip("SKIP: qemu-img is not installed")
	}
	dir := t.TempDir()
	rnd := rand.New(rand.NewPCG(7, 8))
	disk := make([]byte, 12*mib)
	for _, off := range []int{0, 5 * mib, 12*mib - 4096} {
		for i := range 4096 {
			disk[off+i] = byte(rnd.Uint32())
		}
	}
	raw := filepath.Join(dir, "disk.raw")
	if err := os.WriteFile(raw, disk, 0o600); err != nil {
		t.Fatal(err)
	}
	s := newSR(t, Config{Type: "ext"})
	for _, kind := range []string{"dynamic", "fixed"} {
		path := filepath.Join(dir, kind+".vhd")
		qemuImg(t, "convert", "-O", "vpc", "-o", "force_size=on,subformat="+kind, raw, path)
		v, err := s.AddImage(kind, path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(content(t, v), disk) {
			t.Errorf("%s VHD: content differs", kind)
		}
		write(t, v, []byte("guest"), 7*mib+3)
		got, want := filepath.Join(dir, kind+"-export.vhd"), filepath.Join(dir, kind+"-export.raw")
		for path, format := range map[string]string{got: "vhd", want: "raw"} {
			if err := os.WriteFile(path, export(t, v, format, nil), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		qemuImg(t, "compare", "--image-opts",
			"driver=vpc,force_size_calc=current_size,file.filename="+got, "driver=raw,file.filename="+want)
	}
}
