package qcow2_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"xenkeep/internal/disk"
	"xenkeep/internal/disk/disktest"
	"xenkeep/qcow2"
)

// write writes the content of m to a file.
func write(t *testing.T, name string, m *disktest.Mem) {
	t.Helper()
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w, err := qcow2.NewWriter(f, qcow2.Layout{Size: m.Size(), Present: m.Holds})
	if err != nil {
		t.Fatal(err)
	}
	src, buf := m.Source(), make([]byte, disk.BlockSize)
	for {
		e, err := src.Next(t.Context(), buf)
		if err == io.EOF {
			break
		}
		p := buf[:e.Length]
		if len(p) > 5000 { // a gap in between becomes zeros
			clear(buf[3000:5000])
			if err := m.WriteAt(t.Context(), make([]byte, 2000), e.Offset+3000); err != nil {
				t.Fatal(err)
			}
			if err := w.WriteAt(t.Context(), p[:3000], e.Offset); err != nil {
				t.Fatal(err)
			}
			if err := w.WriteAt(t.Context(), p[5000:], e.Offset+5000); err != nil {
				t.Fatal(err)
			}
		} else if err := w.WriteAt(t.Context(), p, e.Offset); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if st, err := f.Stat(); err != nil || st.Size() != w.ContentLength() {
		t.Fatalf("%d bytes, announced %d", st.Size(), w.ContentLength())
	}
}

func TestJudge(t *testing.T) {
	tool, err := exec.LookPath("qemu-img")
	if err != nil {
		t.Skip("SKIP: no qemu-img")
	}
	for name, c := range map[string]struct {
		size   int64
		blocks []int64
	}{
		"empty":        {10 << 20, nil},
		"full":         {8 << 20, []int64{0, 1, 2, 3}},
		"odd size":     {5<<20 + 512, []int64{0, 2}},
		"tiny":         {512, []int64{0}},
		"many tables":  {3 << 30, []int64{0, 255, 256, 1000, 1535}},
		"beyond 2 TiB": {3 << 40, []int64{1, 1 << 20, 3<<19 - 1}},
		"far apart":    {2200 << 20, manyBlocks(20)},
	} {
		t.Run(name, func(t *testing.T) {
			m := disktest.NewMem(c.size)
			data := rand.NewChaCha8([32]byte{1})
			for _, b := range c.blocks {
				p := make([]byte, min(100_000, c.size-b*disk.BlockSize))
				_, _ = data.Read(p)
				if err := m.WriteAt(t.Context(), p, b*disk.BlockSize); err != nil {
					t.Fatal(err)
				}
			}
			dir := t.TempDir()
			file := filepath.Join(dir, "x.qcow2")
			write(t, file, m)
			if out, err := exec.Command(tool, "check", file).CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			raw, err := os.Create(filepath.Join(dir, "x.raw"))
			if err != nil {
				t.Fatal(err)
			}
			defer raw.Close()
			if err := raw.Truncate(c.size); err != nil {
				t.Fatal(err)
			}
			src, buf := m.Source(), make([]byte, disk.BlockSize)
			for {
				e, err := src.Next(t.Context(), buf)
				if err == io.EOF {
					break
				}
				if _, err := raw.WriteAt(buf[:e.Length], e.Offset); err != nil {
					t.Fatal(err)
				}
			}
			if out, err := exec.Command(tool, "compare", "-s", "-f", "raw", "-F", "qcow2", raw.Name(), file).CombinedOutput(); err != nil && c.size%512 == 0 {
				// -s compares allocation sizes too strictly for files with
				// holes
				if out, err = exec.Command(tool, "compare", "-f", "raw", "-F", "qcow2", raw.Name(), file).CombinedOutput(); err != nil {
					t.Fatalf("%v: %s", err, out)
				}
			} else if err != nil {
				t.Fatalf("%v: %s", err, out)
			}
		})
	}
}

func manyBlocks(n int64) (all []int64) {
	for b := range n {
		all = append(all, b*7)
	}
	return all
}

type failing struct{ left int }

func (f *failing) Write(p []byte) (int, error) {
	if f.left -= len(p); f.left < 0 {
		return 0, errors.New("full")
	}
	return len(p), nil
}

func TestRefusals(t *testing.T) {
	if _, err := qcow2.NewWriter(io.Discard, qcow2.Layout{Size: qcow2.MaxSize + 1}); !errors.Is(err, qcow2.ErrTooLarge) {
		t.Errorf("too large: %v", err)
	}
	if _, err := qcow2.NewWriter(io.Discard, qcow2.Layout{Size: -1}); err == nil {
		t.Error("negative size")
	}
	ctx := context.Background()
	for name, do := range map[string]func(w *qcow2.Writer) error{
		"behind the end":  func(w *qcow2.Writer) error { return w.WriteAt(ctx, make([]byte, 10), 4<<20-5) },
		"not announced":   func(w *qcow2.Writer) error { return w.WriteAt(ctx, make([]byte, 10), 2<<20) },
		"crosses an edge": func(w *qcow2.Writer) error { return w.WriteAt(ctx, make([]byte, 10), 2<<20-5) },
		"backwards": func(w *qcow2.Writer) error {
			return errors.Join(w.WriteAt(ctx, make([]byte, 10), 100), w.WriteAt(ctx, make([]byte, 10), 50))
		},
	} {
		var out bytes.Buffer
		w, err := qcow2.NewWriter(&out, qcow2.Layout{Size: 4 << 20, Present: func(b int64) bool { return b == 0 }})
		if err != nil {
			t.Fatal(err)
		}
		if do(w) == nil || w.Close() == nil {
			t.Errorf("%s: no error", name)
		}
	}
	w, err := qcow2.NewWriter(&failing{300 << 10}, qcow2.Layout{Size: 4 << 20})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err == nil || w.WriteAt(ctx, []byte{1}, 0) == nil {
		t.Errorf("a full file: %v", err)
	}
}

var zeros [256 << 10]byte

// holes is a file that skips writes of zeros.
type holes struct{ f *os.File }

func (h holes) Write(p []byte) (int, error) {
	if len(p) <= len(zeros) && bytes.Equal(p, zeros[:len(p)]) {
		_, err := h.f.Seek(int64(len(p)), io.SeekCurrent)
		return len(p), err
	}
	return h.f.Write(p)
}

// A disk with more clusters than one refcount block can count.
func TestManyClusters(t *testing.T) {
	tool, err := exec.LookPath("qemu-img")
	if err != nil {
		t.Skip("SKIP: no qemu-img")
	}
	f, err := os.Create(filepath.Join(t.TempDir(), "x.qcow2"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w, err := qcow2.NewWriter(holes{f}, qcow2.Layout{Size: 2100 << 20})
	if err == nil {
		err = w.WriteAt(t.Context(), []byte("in the middle"), 1050<<20)
	}
	if err == nil {
		err = w.Close()
	}
	if err == nil {
		err = f.Truncate(w.ContentLength())
	}
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(tool, "check", f.Name()).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}
