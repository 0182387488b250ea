package vhd

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"xenkeep/internal/disk/disktest"

	"github.com/klauspost/compress/zstd"
)

const (
	sumRoot   = "68963b25950e3b2065660cd45ce15555386b2035eb5dfb5cbef14820f64fc114"
	sumS1     = "c0acea4ae1e6119c7be20104347cf4ba37dd599f6d673f3226e290cf8dc3537b"
	sumB1     = "1757d43e16d553b37bf84d10b9518a695d1b2f397a2848a27c22168ce59c7f1b"
	sumG      = "1745ffa55e491f2cc5ae9ac584f4aaba7640a6432bf5bb3486ae1f80ca1f8068"
	sumSparse = "77512f4ff877966f5d8a029dc16a2a03cce1744e250ce66807b7909a78483ef3"
)

func sample(t testing.TB, name string) []byte {
	t.Helper()
	packed, err := os.ReadFile(filepath.Join("testdata", "vhd-tool", name+".vhd.zst"))
	if err != nil {
		t.Fatal(err)
	}
	d, err := zstd.NewReader(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	p, err := d.DecodeAll(packed, nil)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func sum(t testing.TB, m *disktest.Mem) string {
	t.Helper()
	h := sha256.New()
	if _, err := io.Copy(h, io.NewSectionReader(m, 0, m.Size())); err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(h.Sum(nil))
}

func openSample(t testing.TB, name string) *File {
	t.Helper()
	p := sample(t, name)
	f, err := OpenFile(bytes.NewReader(p), int64(len(p)), Options{})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// chainDisk builds a disk from the VHD files of a storage repository.
func chainDisk(t testing.TB, names ...string) *disktest.Mem {
	t.Helper()
	last := openSample(t, "chain/"+names[len(names)-1])
	m := disktest.NewMem(last.Size())
	for i, name := range names {
		f := openSample(t, "chain/"+name)
		if f.IsDelta() != (i > 0) {
			t.Fatalf("%s: delta %v", name, f.IsDelta())
		}
		drainTo(t, f.Reader(), m)
	}
	return m
}

// TestChains reads files written by blktap's libvhd: partial bitmaps, blocks
// out of order, batmaps between BAT and blocks.
func TestChains(t *testing.T) {
	for _, c := range []struct {
		names []string
		sum   string
	}{
		{[]string{"root"}, sumRoot},
		{[]string{"root", "s1"}, sumS1},
		{[]string{"root", "s1", "s2"}, sumS1},
		{[]string{"root", "b1"}, sumB1},
		{[]string{"root", "s1", "s2", "g"}, sumG},
	} {
		if got := sum(t, chainDisk(t, c.names...)); got != c.sum {
			t.Errorf("%v: %s", c.names, got)
		}
	}
}

// TestSampleStreams reads streams sent by XenServer's vhd-tool, and writes each
// of them again from the reader's results: byte for byte the same.
func TestSampleStreams(t *testing.T) {
	for _, c := range []struct {
		name   string
		base   []string // nil: a full stream
		sum    string
		blocks []int64
	}{
		{"full", nil, sumRoot, []int64{0, 1}},
		{"full-rawmode", nil, sumRoot, []int64{0, 1}},
		{"full-nbdhybrid", nil, sumRoot, []int64{0, 1}},
		{"full-sparse", nil, sumSparse, []int64{0, 1538, 2047}},
		{"delta", []string{"root"}, sumS1, []int64{0, 3, 4}},
		{"delta-branch", []string{"root", "b1"}, sumS1, []int64{0, 2, 3}},
		{"delta-zeroblock", []string{"root", "s1"}, sumS1, []int64{4}},
		{"delta-empty", []string{"root", "s1", "s2"}, sumS1, nil},
		{"delta-reverse", []string{"root", "s1", "s2"}, sumRoot, []int64{0, 3, 4}},
		{"delta-grown", []string{"root", "s1", "s2"}, sumG, []int64{9}},
	} {
		t.Run(c.name, func(t *testing.T) {
			raw := sample(t, c.name)
			r, err := NewReader(bytes.NewReader(raw), Options{})
			if err != nil {
				t.Fatal(err)
			}
			if r.IsDelta() != (c.base != nil) {
				t.Errorf("delta %v", r.IsDelta())
			}
			if got := slices.Collect(r.PresentBlocks()); !slices.Equal(got, c.blocks) {
				t.Errorf("present %v", got)
			}
			if want := int64(len(c.blocks)) * BlockSize; r.Allocated() != want {
				t.Errorf("allocated %d", r.Allocated())
			}
			m := disktest.NewMem(r.Size())
			if c.base != nil {
				base := chainDisk(t, c.base...).Source()
				drainTo(t, base, m)
			}
			extents := drainTo(t, r, m)
			if len(extents) != len(c.blocks) {
				t.Errorf("%d extents for %d blocks", len(extents), len(c.blocks))
			}
			if got := sum(t, m); got != c.sum {
				t.Errorf("contents %s", got)
			}

			l := Layout{Profile: ForXAPI, Size: r.Size(), ID: r.Footer().ID, Present: r.Present}
			if r.IsDelta() {
				l.Parent = &Parent{ID: r.Header().ParentID, Time: r.Header().ParentTime, Path: r.Header().ParentName()}
			}
			blocks := map[int64][]byte{}
			for i, b := range c.blocks {
				blocks[b] = contents(t, io.NewSectionReader(m, extents[i].Offset, extents[i].Length), BlockSize)
			}
			if !bytes.Equal(write(t, l, blocks), raw) {
				t.Error("written anew, the stream differs")
			}
		})
	}
}

// TestStreamNeedsOrder: a chain's file may hold its blocks in any order, which
// cannot be read sequentially as a stream.
func TestStreamNeedsOrder(t *testing.T) {
	if _, err := NewReader(bytes.NewReader(sample(t, "chain/s1")), Options{}); !errors.Is(err, ErrOrder) {
		t.Errorf("s1, whose block 3 lies before block 0: %v", err)
	}
	r, err := NewReader(bytes.NewReader(sample(t, "chain/root")), Options{})
	if err != nil {
		t.Fatal(err)
	}
	m := disktest.NewMem(r.Size())
	drainTo(t, r, m)
	if got := sum(t, m); got != sumRoot {
		t.Errorf("root as a stream: %s", got)
	}
}
