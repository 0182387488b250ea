package disk

import (
	"context"
	"errors"
	"io"
)

// Mem is a disk in memory, for tests and small metadata. Its zero value is an
// empty disk. Bytes beyond the blocks it holds read as zero, so that a large
// sparse disk costs nothing.
type Mem struct {
	size   int64
	blocks map[int64][]byte
}

// NewMem returns a disk of size bytes, all zero.
func NewMem(size int64) *Mem {
	return &Mem{size: size, blocks: make(map[int64][]byte)}
}

// Size is the disk's size in bytes.
func (m *Mem) Size() int64 { return m.size }

// WriteAt implements Sink; ranges may cross blocks and come in any order.
func (m *Mem) WriteAt(_ context.Context, p []byte, off int64) error {
	if off < 0 || off+int64(len(p)) > m.size {
		return errors.New("disk: write beyond the end")
	}
	for len(p) > 0 {
		b := off / BlockSize
		at := off % BlockSize
		block := m.blocks[b]
		if block == nil {
			block = make([]byte, min(BlockSize, m.size-b*BlockSize))
			m.blocks[b] = block
		}
		n := copy(block[at:], p)
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// ReadAt reads from the disk like io.ReaderAt.
func (m *Mem) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, errors.New("disk: negative offset")
	}
	done := 0
	for done < len(p) && off < m.size {
		b := off / BlockSize
		at := off % BlockSize
		n := int(min(int64(len(p)-done), BlockSize-at, m.size-off))
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

// Holds tells whether block i was ever written to; others are zero.
func (m *Mem) Holds(i int64) bool { return m.blocks[i] != nil }

// Source returns a complete Source of the disk as it is: every block written
// to so far, in order.
func (m *Mem) Source() Source {
	return &memSource{m: m}
}

type memSource struct {
	m    *Mem
	next int64
}

func (s *memSource) Size() int64 { return s.m.size }

func (s *memSource) Next(ctx context.Context, buf []byte) (Extent, error) {
	for ; s.next < Blocks(s.m.size); s.next++ {
		if err := ctx.Err(); err != nil {
			return Extent{}, err
		}
		if block := s.m.blocks[s.next]; block != nil {
			e := Extent{Offset: s.next * BlockSize, Length: int64(copy(buf, block))}
			s.next++
			return e, nil
		}
	}
	return Extent{}, io.EOF
}
