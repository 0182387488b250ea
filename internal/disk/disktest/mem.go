// Package disktest provides an in-memory disk for tests, and helpers that fill,
// copy and compare such disks.
package disktest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"xenkeep/internal/disk"
)

// Mem is an in-memory disk. It is a disk.Sink. Blocks that were never written
// read as zeros and use no memory, so a large sparse disk is cheap.
type Mem struct {
	size   int64
	blocks map[int64][]byte
}

var _ disk.Sink = (*Mem)(nil)

// NewMem returns a disk of size bytes, all zero.
func NewMem(size int64) *Mem {
	return &Mem{size: size, blocks: make(map[int64][]byte)}
}

// Size returns the disk's size in bytes.
func (m *Mem) Size() int64 { return m.size }

// WriteAt implements disk.Sink. Ranges may cross blocks and come in any order.
func (m *Mem) WriteAt(_ context.Context, p []byte, off int64) error {
	if off < 0 || off+int64(len(p)) > m.size {
		return errors.New("disk: write beyond the end")
	}
	for len(p) > 0 {
		b := off / disk.BlockSize
		at := off % disk.BlockSize
		block := m.blocks[b]
		if block == nil {
			block = make([]byte, min(disk.BlockSize, m.size-b*disk.BlockSize))
			m.blocks[b] = block
		}
		n := copy(block[at:], p)
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// ReadAt reads from the disk as io.ReaderAt does.
func (m *Mem) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, errors.New("disk: negative offset")
	}
	done := 0
	for done < len(p) && off < m.size {
		b := off / disk.BlockSize
		at := off % disk.BlockSize
		n := int(min(int64(len(p)-done), disk.BlockSize-at, m.size-off))
		if block := m.blocks[b]; block != nil {
			copy(p[done:done+n], block[at:])
		} else {
			clear(p[done : done+n])
		}
		done, off = done+n, off+int64(n)
	}
	if done < len(p) {
		return done, io.EOF
	}
	return done, nil
}

// Holds reports whether block i was ever written; other blocks are zero.
func (m *Mem) Holds(i int64) bool { return m.blocks[i] != nil }

// Source returns a complete disk.Source of the disk as it is: every block
// written so far, in order.
func (m *Mem) Source() disk.Source { return &source{m: m} }

type source struct {
	m    *Mem
	next int64
}

func (s *source) Size() int64 { return s.m.size }

func (s *source) Next(ctx context.Context, buf []byte) (disk.Extent, error) {
	for ; s.next < disk.Blocks(s.m.size); s.next++ {
		if err := ctx.Err(); err != nil {
			return disk.Extent{}, err
		}
		if block := s.m.blocks[s.next]; block != nil {
			e := disk.Extent{Offset: s.next * disk.BlockSize, Length: int64(copy(buf, block))}
			s.next++
			return e, nil
		}
	}
	return disk.Extent{}, io.EOF
}

// Reader returns a disk.Reader of the disk.
func (m *Mem) Reader() disk.Reader { return reader{m} }

type reader struct{ m *Mem }

func (r reader) Size() int64 { return r.m.size }

func (r reader) ReadAt(_ context.Context, p []byte, off int64) error {
	_, err := r.m.ReadAt(p, off)
	return err
}

// Clone returns a copy of the disk.
func (m *Mem) Clone() *Mem { return m.Resized(m.size) }

// Resized returns a copy of the disk with size bytes: truncated, or extended
// with zeros.
func (m *Mem) Resized(size int64) *Mem {
	c := NewMem(size)
	for b, block := range m.blocks {
		if b >= disk.Blocks(size) {
			continue
		}
		to := make([]byte, min(disk.BlockSize, size-b*disk.BlockSize))
		copy(to, block)
		c.blocks[b] = to
	}
	return c
}

// Scribble writes n ranges of up to 300 KiB of random bytes to m. Some begin at
// a page, and some begin with zeros. The same seed writes the same bytes.
func Scribble(tb testing.TB, m *Mem, seed uint64, n int) {
	tb.Helper()
	r := rand.New(rand.NewPCG(seed, 1))
	for range n {
		if m.size == 0 {
			return
		}
		p := make([]byte, 1+r.IntN(300<<10))
		for i := range p {
			p[i] = byte(r.Uint32())
		}
		if r.IntN(3) == 0 {
			clear(p[:len(p)/2])
		}
		off := r.Int64N(m.size)
		if r.IntN(2) == 0 {
			off -= off % disk.PageSize
		}
		p = p[:min(int64(len(p)), m.size-off)]
		if err := m.WriteAt(tb.Context(), p, off); err != nil {
			tb.Fatal(err)
		}
	}
}

// Content returns a disk with one block for each seed, which begins with 100
// KiB of random bytes. Equal seeds make equal blocks.
func Content(seeds ...uint64) *Mem {
	m := NewMem(int64(len(seeds)) * disk.BlockSize)
	for i, seed := range seeds {
		r := rand.New(rand.NewPCG(seed, 7))
		block := make([]byte, disk.BlockSize)
		for j := range 100 << 10 {
			block[j] = byte(r.Uint32())
		}
		m.blocks[int64(i)] = block
	}
	return m
}

// MustEqual fails the test unless got and want have the same size and bytes.
func MustEqual(tb testing.TB, got, want *Mem) {
	tb.Helper()
	if got.size != want.size {
		tb.Fatalf("a disk of %d bytes, want %d", got.size, want.size)
	}
	a, b := make([]byte, disk.BlockSize), make([]byte, disk.BlockSize)
	written := maps.Clone(got.blocks)
	maps.Copy(written, want.blocks)
	for _, i := range slices.Sorted(maps.Keys(written)) {
		n := min(disk.BlockSize, want.size-i*disk.BlockSize)
		if _, err := got.ReadAt(a[:n], i*disk.BlockSize); err != nil {
			tb.Fatal(err)
		}
		if _, err := want.ReadAt(b[:n], i*disk.BlockSize); err != nil {
			tb.Fatal(err)
		}
		if !bytes.Equal(a[:n], b[:n]) {
			tb.Fatalf("block %d differs", i)
		}
	}
}
