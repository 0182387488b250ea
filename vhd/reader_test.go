package vhd

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"testing"

	"xenkeep/internal/disk"
	"xenkeep/internal/disk/disktest"
)

// flat returns the content of c's disk, and which of its sectors the VHD holds.
func (c craft) flat() (raw []byte, held []bool) {
	raw = make([]byte, c.entries()*c.blockSize)
	held = make([]bool, len(raw)/SectorSize)
	for b, data := range c.blocks {
		for s := range c.blockSize / SectorSize {
			if bm := c.bitmaps[b]; bm != nil && bm[s/8]&(0x80>>(s%8)) == 0 {
				continue
			}
			copy(raw[b*c.blockSize+s*SectorSize:][:SectorSize], data[s*SectorSize:])
			held[b*c.blockSize/SectorSize+s] = true
		}
	}
	return raw[:c.size], held
}

// TestBlockSizesAndBitmaps reads random VHDs as stream and as file: every block
// size, full, empty and mixed bitmaps, dynamic and differencing.
func TestBlockSizesAndBitmaps(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for _, blockSize := range []int64{64 << 10, 512 << 10, 1 << 20, 2 << 20, 4 << 20, 16 << 20} {
		for _, delta := range []bool{false, true} {
			for round := range 4 {
				t.Run(fmt.Sprintf("%d/%v/%d", blockSize, delta, round), func(t *testing.T) {
					c := craft{
						size: 9<<20 + 512*rnd.Int64N(4000), blockSize: blockSize, delta: delta,
						blocks: map[int64][]byte{}, bitmaps: map[int64][]byte{},
						gap: round, extra: int64(round) * 3, batAt: []int64{1536, 2048, 1536, 65536}[round],
					}
					for b := range c.entries() - c.extra {
						if rnd.IntN(4) == 0 {
							continue
						}
						c.blocks[b] = noise(rnd.Uint64(), blockSize)
						if behind := (b+1)*blockSize - c.size; behind > 0 {
							clear(c.blocks[b][blockSize-behind:])
						}
						if round > 0 {
							c.bitmaps[b] = raggedBitmap(rnd, blockSize/SectorSize)
						}
					}
					raw, held := c.flat()
					stream := c.bytes()
					r, err := NewReader(bytes.NewReader(stream), Options{})
					if err != nil {
						t.Fatal(err)
					}
					checkSource(t, r, delta, raw, held)

					c.order = slices.Collect(mapKeys(c.blocks)) // any order
					file := c.bytes()
					f, err := OpenFile(bytes.NewReader(file), int64(len(file)), Options{})
					if err != nil {
						t.Fatal(err)
					}
					checkSource(t, f.Reader(), delta, raw, held)
					checkSource(t, f.Reader(), delta, raw, held)
					checkReadAt(t, rnd, f, raw, held)
				})
			}
		}
	}
}

func mapKeys[V any](m map[int64]V) func(func(int64) bool) {
	return func(yield func(int64) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

// raggedBitmap has stretches of all lengths, few of them short.
func raggedBitmap(rnd *rand.Rand, sectors int64) []byte {
	bm := make([]byte, sectors/8)
	on := rnd.IntN(2) == 0
	for s := int64(0); s < sectors; on = !on {
		n := int64(1) << rnd.IntN(13)
		for range min(n, sectors-s) {
			if on {
				bm[s/8] |= 0x80 >> (s % 8)
			}
			s++
		}
	}
	return bm
}

// checkSource reads src: a delta must return exactly the held sectors, a full
// source the correct bytes.
func checkSource(t *testing.T, src disk.Source, delta bool, raw []byte, held []bool) {
	t.Helper()
	m := disktest.NewMem(src.Size())
	extents := drainTo(t, src, m)
	if got := contents(t, m, src.Size()); !bytes.Equal(got, raw) {
		t.Error("contents differ")
	}
	if !delta {
		return
	}
	got := make([]bool, len(held))
	for i, e := range extents {
		for s := e.Offset / SectorSize; s < (e.End()+SectorSize-1)/SectorSize; s++ {
			got[s] = true
		}
		if i > 0 && extents[i-1].End() == e.Offset && e.Offset%disk.BlockSize != 0 {
			t.Errorf("extents %+v and %+v could be one", extents[i-1], e)
		}
	}
	limit := len(raw) / SectorSize
	if !slices.Equal(got[:limit], held[:limit]) {
		t.Error("other sectors than those held")
	}
}

func checkReadAt(t *testing.T, rnd *rand.Rand, f *File, raw []byte, held []bool) {
	t.Helper()
	size := int64(len(raw))
	for range 50 {
		off := rnd.Int64N(size)
		p := make([]byte, 1+rnd.IntN(3<<20))
		n, err := f.ReadAt(p, off)
		want := raw[off:min(off+int64(len(p)), size)]
		if (err == io.EOF) != (n < len(p)) || err != nil && err != io.EOF || !bytes.Equal(p[:n], want) {
			t.Fatalf("read %d at %d: %d, %v", len(p), off, n, err)
		}
		m, is, err := f.Held(off, size)
		if err != nil || m <= 0 || off+m > size {
			t.Fatalf("held at %d: %d, %v", off, m, err)
		}
		for s := off / SectorSize; s < (off+m+SectorSize-1)/SectorSize; s++ {
			if held[s] != is {
				t.Fatalf("held at %d: %v for %d bytes, but not sector %d", off, is, m, s)
			}
		}
	}
}

// TestAuthoritativeSize: the pool determines the disk's size; the VHD may be
// larger only by zeros.
func TestAuthoritativeSize(t *testing.T) {
	current := int64(4 * BlockSize)
	for _, size := range []int64{current, current - 1, current - 512, 3*BlockSize + 1, 3 * BlockSize, 3*BlockSize - 1, BlockSize + 4096, 1} {
		blocks := map[int64][]byte{}
		raw := make([]byte, current)
		for _, b := range []int64{0, 1, 2, 3} {
			if n := min(size-b*BlockSize, BlockSize); n > 0 {
				blocks[b] = append(noise(uint64(b)+1, n), make([]byte, BlockSize-n)...)
			} else {
				blocks[b] = make([]byte, BlockSize)
			}
			copy(raw[b*BlockSize:], blocks[b])
		}
		l := Layout{Profile: ForXAPI, Size: current}
		stream := write(t, l, blocks)
		m, err := readAll(bytes.NewReader(stream), Options{Size: size})
		if err != nil || m.Size() != size || !bytes.Equal(contents(t, m, size), raw[:size]) {
			t.Errorf("size %d: %v", size, err)
		}
		f, err := OpenFile(bytes.NewReader(stream), int64(len(stream)), Options{Size: size})
		if err != nil {
			t.Fatal(err)
		}
		m = disktest.NewMem(size)
		drainTo(t, f.Reader(), m)
		if !bytes.Equal(contents(t, m, size), raw[:size]) {
			t.Errorf("size %d as a file: contents differ", size)
		}
		if size == current {
			continue
		}
		for _, at := range []int64{size, current - 1} {
			spoilt := bytes.Clone(stream)
			spoilt[2560+(at/BlockSize)*blockBytes+512+at%BlockSize] = 1
			_, err = readAll(bytes.NewReader(spoilt), Options{Size: size})
			if want := fmt.Sprintf("offset %d,", at); !errors.Is(err, ErrCorrupt) || !bytes.Contains([]byte(err.Error()), []byte(want)) {
				t.Errorf("size %d, data at %d: %v", size, at, err)
			}
		}
	}
	stream, _ := streamOf(t, noiseFill())
	for _, size := range []int64{10<<20 + 1, 1 << 40, -1} {
		if _, err := NewReader(bytes.NewReader(stream), Options{Size: size}); !errors.Is(err, ErrCorrupt) {
			t.Errorf("size %d of a VHD of 10 MiB: %v", size, err)
		}
	}
}

// TestFixed reads a fixed VHD, which can be recognized only by its end.
func TestFixed(t *testing.T) {
	for _, size := range []int64{0, 1, 512, 513, 2 << 20, 2<<20 + 512, 5<<20 - 1} {
		raw := noise(3, size)
		blocks := map[int64][]byte{}
		for b := int64(0); b*BlockSize < size; b++ {
			blocks[b] = raw[b*BlockSize : min((b+1)*BlockSize, size)]
		}
		file := write(t, Layout{Profile: ForFile, Fixed: true, Size: size, ID: UUID{1}}, blocks)
		f, err := OpenFile(bytes.NewReader(file), int64(len(file)), Options{Size: size})
		if err != nil {
			t.Fatal(err)
		}
		m := disktest.NewMem(size)
		drainTo(t, f.Reader(), m)
		if !bytes.Equal(contents(t, m, size), raw) || f.IsDelta() || f.Allocated() != size {
			t.Errorf("size %d differs", size)
		}
		if got := contents(t, f, size); !bytes.Equal(got, raw) {
			t.Errorf("size %d by ReadAt differs", size)
		}
		if size >= 512 {
			if _, err := OpenFile(bytes.NewReader(file[512:]), int64(len(file)-512), Options{}); !errors.Is(err, ErrTruncated) {
				t.Errorf("size %d, the beginning lost: %v", size, err)
			}
			if _, err := NewReader(bytes.NewReader(file), Options{}); !errors.Is(err, ErrNotVHD) {
				t.Errorf("size %d as a stream: %v", size, err)
			}
		}
	}
}

// TestBadHeads: each invalid value in the head is detected.
func TestBadHeads(t *testing.T) {
	stream, _ := streamOf(t, noiseFill())
	be := binary.BigEndian
	footer := func(change func(*Footer)) func([]byte) {
		return func(p []byte) {
			f, err := DecodeFooter(p[:512])
			if err != nil {
				t.Fatal(err)
			}
			change(&f)
			copy(p, f.Encode())
			copy(p[len(p)-512:], f.Encode())
		}
	}
	header := func(change func(*Header)) func([]byte) {
		return func(p []byte) {
			h, err := DecodeHeader(p[512:1536])
			if err != nil {
				t.Fatal(err)
			}
			change(&h)
			copy(p[512:], h.Encode())
		}
	}
	for _, c := range []struct {
		name   string
		change func(p []byte)
		stream error
		file   error
	}{
		{"nothing", func(p []byte) {}, nil, nil},
		{"cookie", func(p []byte) { p[0] = 'x' }, ErrNotVHD, ErrCorrupt},
		{"both cookies", func(p []byte) { p[0], p[len(p)-512] = 'x', 'x' }, ErrNotVHD, ErrNotVHD},
		{"last cookie", func(p []byte) { p[len(p)-512] = 'x' }, ErrCorrupt, ErrTruncated},
		{"footer checksum", func(p []byte) { p[80] ^= 1 }, ErrCorrupt, ErrCorrupt},
		{"footer version", footer(func(f *Footer) { f.Version++ }), ErrCorrupt, ErrCorrupt},
		{"type", footer(func(f *Footer) { f.Type = 6 }), ErrCorrupt, ErrCorrupt},
		{"current size", footer(func(f *Footer) { f.CurrentSize += BlockSize }), ErrCorrupt, ErrCorrupt},
		{"current size huge", footer(func(f *Footer) { f.CurrentSize = 1 << 63 }), ErrCorrupt, ErrCorrupt},
		{"header offset", footer(func(f *Footer) { f.DataOffset = 1 << 60 }), ErrCorrupt, ErrCorrupt},
		{"header offset 0", footer(func(f *Footer) { f.DataOffset = 0 }), ErrCorrupt, ErrCorrupt},
		{"ids differ", func(p []byte) {
			f, _ := DecodeFooter(p[:512])
			f.ID[3]++
			copy(p[len(p)-512:], f.Encode())
		}, ErrCorrupt, ErrCorrupt},
		{"header cookie", func(p []byte) { p[512] = 'x' }, ErrCorrupt, ErrCorrupt},
		{"header checksum", func(p []byte) { p[1535] ^= 1 }, ErrCorrupt, ErrCorrupt},
		{"header version", header(func(h *Header) { h.Version++ }), ErrCorrupt, ErrCorrupt},
		{"entries few", header(func(h *Header) { h.Entries-- }), ErrCorrupt, ErrCorrupt},
		{"entries many", header(func(h *Header) { h.Entries = 1 << 31 }), ErrCorrupt, ErrCorrupt},
		{"entries of data", header(func(h *Header) { h.Entries = 1 << 20 }), ErrCorrupt, ErrCorrupt},
		{"block size odd", header(func(h *Header) { h.BlockSize = 3 << 19 }), ErrCorrupt, ErrCorrupt},
		{"block size 512", header(func(h *Header) { h.BlockSize = 512 }), ErrCorrupt, ErrCorrupt},
		{"block size 0", header(func(h *Header) { h.BlockSize = 0 }), ErrCorrupt, ErrCorrupt},
		{"BAT far off", header(func(h *Header) { h.TableOffset = 1 << 62 }), ErrCorrupt, ErrCorrupt},
		{"BAT before header", header(func(h *Header) { h.TableOffset = 512 }), ErrOrder, ErrCorrupt},
		{"block in head", func(p []byte) { be.PutUint32(p[2048:], 1) }, ErrCorrupt, ErrCorrupt},
		{"duplicate", func(p []byte) { copy(p[2048+4:2048+8], p[2048:]) }, ErrCorrupt, ErrCorrupt},
		{"overlap", func(p []byte) { be.PutUint32(p[2048+8:], be.Uint32(p[2048+8:])-1) }, ErrCorrupt, ErrCorrupt},
		{"swapped", func(p []byte) {
			var a [4]byte
			copy(a[:], p[2048:])
			copy(p[2048:2052], p[2048+8:])
			copy(p[2048+8:], a[:])
		}, ErrOrder, nil},
		{"block behind the end", func(p []byte) { be.PutUint32(p[2048+12:], be.Uint32(p[2048+12:])+1) }, ErrTruncated, ErrCorrupt},
	} {
		p := bytes.Clone(stream)
		c.change(p)
		if _, err := readAll(bytes.NewReader(p), Options{}); !errors.Is(err, c.stream) {
			t.Errorf("%s: stream: %v", c.name, err)
		}
		f, err := OpenFile(bytes.NewReader(p), int64(len(p)), Options{})
		if !errors.Is(err, c.file) {
			t.Errorf("%s: file: %v", c.name, err)
		}
		if err == nil {
			drainTo(t, f.Reader(), disktest.NewMem(f.Size()))
		}
	}
	for _, n := range []int{0, 1, 511, 512, 600, len(stream) - 1, len(stream) - 512, len(stream) / 2} {
		if _, err := OpenFile(bytes.NewReader(stream[:n]), int64(n), Options{}); !errors.Is(err, ErrTruncated) && !errors.Is(err, ErrNotVHD) && !errors.Is(err, ErrCorrupt) {
			t.Errorf("file cut at %d: %v", n, err)
		}
	}
}

func TestCancelled(t *testing.T) {
	stream, _ := streamOf(t, noiseFill())
	r, err := NewReader(bytes.NewReader(stream), Options{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := r.Next(ctx, make([]byte, disk.BlockSize)); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if _, err := r.Next(context.Background(), make([]byte, disk.BlockSize-1)); err == nil {
		t.Error("a small buffer is taken")
	}
}
