package qcow2_test

import (
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"xenkeep/qcow2"
)

func qemuImg(t *testing.T, args ...string) {
	t.Helper()
	tool, err := exec.LookPath("qemu-img")
	if err != nil {
		t.Skip("SKIP: no qemu-img")
	}
	if out, err := exec.Command(tool, args...).CombinedOutput(); err != nil {
		t.Fatalf("qemu-img %v: %v: %s", args, err, out)
	}
}

// whole opens an image and verifies that all of it is present.
func whole(t *testing.T, file string) error {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	h, err := qcow2.ReadHead(f)
	if err != nil {
		return err
	}
	return h.Whole(f, st.Size())
}

// Row C3 of the fault list: every image that qemu-img writes passes as
// complete, and no image passes that lost the end of its data.
func TestWhole(t *testing.T) {
	dir := t.TempDir()
	for _, size := range []int64{512, 3*512 + 65536*5, 5 << 20, 5<<20 + 512, 600 << 20} {
		raw := filepath.Join(dir, "b.raw")
		f, err := os.Create(raw)
		if err != nil {
			t.Fatal(err)
		}
		p := make([]byte, min(size, 2<<20))
		_, _ = rand.NewChaCha8([32]byte{3}).Read(p)
		_, err = f.WriteAt(p, size-int64(len(p)))
		if err := errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
		for _, options := range []string{"", "compat=0.10", "cluster_size=512", "cluster_size=2M", "extended_l2=on", "preallocation=metadata", "preallocation=full", "-c", "-c compression_type=zstd", "lazy_refcounts=on"} {
			if options == "cluster_size=512" && size > 64<<20 || options == "preallocation=full" && size > 64<<20 {
				continue
			}
			file := filepath.Join(dir, "a.qcow2")
			args := []string{"convert", "-f", "raw", "-O", "qcow2"}
			o, zip := strings.CutPrefix(options, "-c")
			if zip {
				args = append(args, "-c")
			}
			if o = strings.TrimSpace(o); o != "" {
				args = append(args, "-o", o)
			}
			qemuImg(t, append(args, raw, file)...)
			if err := whole(t, file); err != nil {
				t.Errorf("%d bytes, %q: %v", size, options, err)
				continue
			}
			st, err := os.Stat(file)
			if err != nil {
				t.Fatal(err)
			}
			for _, n := range []int64{st.Size() / 2, 300, 50, 0} {
				if n >= st.Size() {
					continue
				}
				if err := os.Truncate(file, n); err != nil {
					t.Fatal(err)
				}
				if err := whole(t, file); !errors.Is(err, qcow2.ErrTruncated) {
					t.Errorf("%d bytes, %q, cut to %d of %d: %v", size, options, n, st.Size(), err)
				}
			}
		}
	}
}

// An image that depends on other files or on secrets is refused.
func TestNotAlone(t *testing.T) {
	dir := t.TempDir()
	base, child, apart, secret := filepath.Join(dir, "base"), filepath.Join(dir, "child"), filepath.Join(dir, "apart"), filepath.Join(dir, "secret")
	qemuImg(t, "create", "-f", "qcow2", base, "1M")
	qemuImg(t, "create", "-f", "qcow2", "-b", base, "-F", "qcow2", child)
	qemuImg(t, "create", "-f", "qcow2", "-o", "data_file="+filepath.Join(dir, "data"), apart, "1M")
	qemuImg(t, "create", "--object", "secret,id=s,data=x", "-f", "qcow2", "-o", "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10", secret, "1M")
	if err := whole(t, base); err != nil {
		t.Error(err)
	}
	for _, file := range []string{child, apart, secret} {
		if err := whole(t, file); !errors.Is(err, qcow2.ErrNotAlone) {
			t.Errorf("%s: %v", file, err)
		}
	}
}

func FuzzHead(f *testing.F) {
	f.Add([]byte("QFI\xfb\x00\x00\x00\x03"))
	f.Fuzz(func(t *testing.T, p []byte) {
		r := strings.NewReader(string(p))
		if h, err := qcow2.ReadHead(r); err == nil {
			_ = h.Whole(r, int64(len(p)))
		}
	})
}
