package vhd_test

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"testing"

	"xenkeep/internal/disk"
	"xenkeep/internal/disk/disktest"
	"xenkeep/vhd"
)

type memDisk struct{ *disktest.Mem }

func (m memDisk) ReadAt(_ context.Context, p []byte, off int64) error {
	_, err := m.Mem.ReadAt(p, off)
	return err
}

// A virtual VHD has the same bytes as one written by the Writer, at every
// position.
func TestVirtual(t *testing.T) {
	for _, size := range []int64{9 << 20, 5<<20 + 12345, 2 << 20, 0} {
		m := disktest.NewMem(size)
		data := rand.NewChaCha8([32]byte{1})
		for off := int64(0); off < size; off += 4 << 20 {
			p := make([]byte, min(70000, size-off))
			_, _ = data.Read(p)
			if err := m.WriteAt(t.Context(), p, off); err != nil {
				t.Fatal(err)
			}
		}
		for _, fixed := range []bool{false, true} {
			l := vhd.Layout{Profile: vhd.ForFile, Size: size, Present: m.Holds, ID: vhd.UUID{7}, Fixed: fixed}
			var want bytes.Buffer
			w, err := vhd.NewWriter(&want, l)
			if err != nil {
				t.Fatal(err)
			}
			src, buf := m.Source(), make([]byte, disk.BlockSize)
			for {
				e, err := src.Next(t.Context(), buf)
				if err == io.EOF {
					break
				}
				if err := w.WriteAt(t.Context(), buf[:e.Length], e.Offset); err != nil {
					t.Fatal(err)
				}
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			v, err := vhd.NewVirtual(l, memDisk{m})
			if err != nil || v.Size() != int64(want.Len()) {
				t.Fatal(v.Size(), want.Len(), err)
			}
			all := make([]byte, v.Size())
			if err := v.ReadAt(t.Context(), all, 0); err != nil || !bytes.Equal(all, want.Bytes()) {
				t.Errorf("size %d, fixed %v: differs (%v)", size, fixed, err)
			}
			random := rand.New(rand.NewPCG(1, 2))
			for range 300 {
				off := random.Int64N(v.Size())
				p := make([]byte, random.Int64N(min(5000, v.Size()-off))+1)
				p = p[:min(int64(len(p)), v.Size()-off)]
				if err := v.ReadAt(t.Context(), p, off); err != nil || !bytes.Equal(p, all[off:off+int64(len(p))]) {
					t.Fatalf("size %d, fixed %v: %d bytes at %d differ (%v)", size, fixed, len(p), off, err)
				}
			}
			if v.ReadAt(t.Context(), make([]byte, 2), v.Size()-1) == nil {
				t.Error("a read behind the end is no error")
			}
		}
	}
	if _, err := vhd.NewVirtual(vhd.Layout{Size: 5}, memDisk{disktest.NewMem(6)}); err == nil {
		t.Error("another size is no error")
	}
}
