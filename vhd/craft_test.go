package vhd

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"math/rand/v2"
	"testing"

	"xenkeep/internal/disk"
	"xenkeep/internal/disk/disktest"
)

// craft builds VHDs like those of other tools: any block size, any bitmap, any
// order.
type craft struct {
	size      int64
	blockSize int64
	delta     bool
	blocks    map[int64][]byte // data of blockSize bytes by VHD block
	bitmaps   map[int64][]byte // nil: all ones
	order     []int64          // physical order; nil: ascending
	gap       int              // sectors of garbage before each block
	extra     int64            // more BAT entries than needed
	batAt     int64            // 0: 1536
}

func (c craft) entries() int64 { return (c.size+c.blockSize-1)/c.blockSize + c.extra }

func (c craft) bytes() []byte {
	f := Footer{
		Features: 2, Version: formatVersion, DataOffset: footerSize, Creator: [4]byte{'t', 'e', 's', 't'},
		OriginalSize: uint64(c.size), CurrentSize: uint64(c.size), Geometry: GeometryOf(c.size), Type: TypeDynamic, ID: UUID{1},
	}
	if c.delta {
		f.Type = TypeDifferencing
	}
	h := Header{DataOffset: noOffset, TableOffset: 1536, Version: formatVersion, Entries: uint32(c.entries()), BlockSize: uint32(c.blockSize)}
	if c.batAt != 0 {
		h.TableOffset = uint64(c.batAt)
	}
	out := append(f.Encode(), h.Encode()...)
	out = append(out, make([]byte, int64(h.TableOffset)-int64(len(out)))...)
	bat := bytes.Repeat([]byte{0xff}, int(roundUp(4*c.entries())))
	batAt := len(out)
	out = append(out, bat...)
	order := c.order
	if order == nil {
		for b := range c.entries() {
			if c.blocks[b] != nil {
				order = append(order, b)
			}
		}
	}
	for _, b := range order {
		out = append(out, bytes.Repeat([]byte{0x5a}, c.gap*SectorSize)...)
		binary.BigEndian.PutUint32(out[batAt+4*int(b):], uint32(len(out)/SectorSize))
		bm := make([]byte, roundUp(c.blockSize/SectorSize/8))
		if c.bitmaps[b] == nil {
			copy(bm, bytes.Repeat([]byte{0xff}, int(c.blockSize/SectorSize/8)))
		} else {
			copy(bm, c.bitmaps[b])
		}
		out = append(out, bm...)
		out = append(out, c.blocks[b]...)
	}
	return append(out, f.Encode()...)
}

// noise returns n bytes that are not compressible and never equal by
// coincidence.
func noise(seed uint64, n int64) []byte {
	p := make([]byte, (n+7)&^7)
	r := rand.New(rand.NewPCG(seed, 1))
	for i := 0; i < len(p); i += 8 {
		binary.LittleEndian.PutUint64(p[i:], r.Uint64())
	}
	return p[:n]
}

// drainTo copies a source to a disk and checks the guarantees of Source.
func drainTo(t testing.TB, src disk.Source, to *disktest.Mem) (extents []disk.Extent) {
	t.Helper()
	extents, err := apply(src, to)
	if err != nil {
		t.Fatalf("read: %v", err)
	}
	end := int64(0)
	for _, e := range extents {
		if e.Offset < end || e.Length <= 0 || e.Offset/disk.BlockSize != (e.End()-1)/disk.BlockSize || e.End() > src.Size() {
			t.Fatalf("extent %+v after %d, size %d", e, end, src.Size())
		}
		end = e.End()
	}
	if _, err := src.Next(context.Background(), make([]byte, disk.BlockSize)); err != io.EOF {
		t.Fatalf("after the end: %v", err)
	}
	return extents
}

func apply(src disk.Source, to *disktest.Mem) (extents []disk.Extent, err error) {
	ctx := context.Background()
	buf := make([]byte, disk.BlockSize)
	for {
		e, err := src.Next(ctx, buf)
		if err == io.EOF {
			return extents, nil
		}
		if err != nil {
			return extents, err
		}
		extents = append(extents, e)
		if err := to.WriteAt(ctx, buf[:e.Length], e.Offset); err != nil {
			return extents, err
		}
	}
}

// contents returns a small disk's bytes.
func contents(t testing.TB, m io.ReaderAt, size int64) []byte {
	t.Helper()
	p := make([]byte, size)
	if _, err := m.ReadAt(p, 0); err != nil && err != io.EOF {
		t.Fatal(err)
	}
	return p
}

// write builds a VHD of the given blocks with Writer.
func write(t testing.TB, l Layout, blocks map[int64][]byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := NewWriter(&out, l)
	if err != nil {
		t.Fatal(err)
	}
	want := w.ContentLength()
	for b := range l.Blocks() {
		if p := blocks[b]; p != nil {
			if err := w.WriteAt(context.Background(), p, b*BlockSize); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if int64(out.Len()) != want {
		t.Fatalf("wrote %d bytes, announced %d", out.Len(), want)
	}
	return out.Bytes()
}

// streamOf returns a small XenServer stream with blocks 0, 2 and 3 of 9 MiB,
// and the content of the disk.
func streamOf(t testing.TB, fill func(n int64) []byte) (stream, raw []byte) {
	t.Helper()
	const size = 10 << 20
	blocks := map[int64][]byte{}
	raw = make([]byte, size)
	for _, b := range []int64{0, 2, 3} {
		blocks[b] = fill(BlockSize)
		copy(raw[b*BlockSize:], blocks[b])
	}
	l := Layout{Profile: ForXAPI, Size: size, ID: UUID{7}, Present: func(b int64) bool { return blocks[b] != nil }}
	return write(t, l, blocks), raw
}
