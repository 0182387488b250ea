package nbd

import (
	"context"
	"errors"
	"fmt"
	"io"

	"xenkeep/internal/disk"
)

// Held returns the ranges that a complete read of the disk must read, in order:
// every range that the server does not report as zero, or the whole disk if it
// reports no allocation.
func (d *Disk) Held(ctx context.Context) ([]disk.Extent, error) {
	if d.Size() == 0 {
		return nil, nil
	}
	ext, err := d.Extents(ctx, 0, d.Size())
	if errors.Is(err, ErrNoAllocation) {
		return []disk.Extent{{Length: d.Size()}}, nil
	}
	if err != nil {
		return nil, err
	}
	var held []disk.Extent
	for _, e := range ext {
		switch k := len(held) - 1; {
		case e.Zero:
		case k >= 0 && held[k].End() == e.Offset:
			held[k].Length += e.Length
		default:
			held = append(held, e.Extent)
		}
	}
	return held, nil
}

// Source is a disk.Source of some ranges of a Disk, with read-ahead.
type Source struct {
	d     *Disk
	want  []disk.Extent // the ranges left to read, without the first skip bytes of the first
	skip  int64
	ahead int
	queue []*piece // being read or completely read, in order
	free  []*piece
	err   error
}

var _ disk.Source = (*Source)(nil)

// piece is a part of one block, in a buffer of the source.
type piece struct {
	extent disk.Extent
	buf    []byte
	done   chan error // receives one value
}

// Source reads the ranges in want, which must ascend and not overlap, with up
// to ahead concurrent reads of at most a block: twice the number of the disk's
// connections is enough, which is the default if ahead is zero. The source
// holds that many buffers of disk.BlockSize. It must be closed, which leaves
// the disk open.
func (d *Disk) Source(want []disk.Extent, ahead int) (*Source, error) {
	at := int64(0)
	for _, e := range want {
		if e.Offset < at || e.Length < 0 || e.Offset > d.Size() || e.Length > d.Size()-e.Offset {
			return nil, fmt.Errorf("read ranges: %d bytes at %d: out of order or beyond the disk's %d bytes", e.Length, e.Offset, d.Size())
		}
		at = e.End()
	}
	if ahead <= 0 {
		ahead = 2 * d.opts.Connections
	}
	return &Source{d: d, want: want, ahead: ahead}, nil
}

// Size returns the disk's size in bytes.
func (s *Source) Size() int64 { return s.d.Size() }

// Next implements disk.Source. The reads that it starts for later calls use its
// ctx.
func (s *Source) Next(ctx context.Context, buf []byte) (disk.Extent, error) {
	if s.err != nil {
		return disk.Extent{}, s.err
	}
	for len(s.queue) < s.ahead && s.start(ctx) {
	}
	if len(s.queue) == 0 {
		s.err = io.EOF
		return disk.Extent{}, s.err
	}
	p := s.queue[0]
	select {
	case err := <-p.done:
		s.queue = s.queue[1:]
		s.free = append(s.free, p)
		if err != nil {
			s.err = err
			return disk.Extent{}, err
		}
	case <-ctx.Done():
		s.err = ctx.Err()
		return disk.Extent{}, s.err
	}
	copy(buf, p.buf[:p.extent.Length])
	return p.extent, nil
}

// start begins to read the next piece, if there is one.
func (s *Source) start(ctx context.Context) bool {
	for len(s.want) > 0 && s.skip == s.want[0].Length {
		s.want, s.skip = s.want[1:], 0
	}
	if len(s.want) == 0 {
		return false
	}
	off := s.want[0].Offset + s.skip
	e := disk.Extent{Offset: off, Length: min(s.want[0].Length-s.skip, disk.BlockSize-off%disk.BlockSize)}
	s.skip += e.Length
	var p *piece
	if k := len(s.free) - 1; k >= 0 {
		p, s.free = s.free[k], s.free[:k]
	} else {
		p = &piece{buf: make([]byte, disk.BlockSize), done: make(chan error, 1)}
	}
	p.extent = e
	s.queue = append(s.queue, p)
	go func() {
		_, err := s.d.ReadAt(ctx, p.buf[:p.extent.Length], p.extent.Offset)
		p.done <- err
	}()
	return true
}

// Close waits for the reads in progress; to shorten the wait, cancel the
// context that was passed to Next.
func (s *Source) Close() error {
	for _, p := range s.queue {
		<-p.done
	}
	s.queue = nil
	if s.err == nil {
		s.err = ErrClosed
	}
	return nil
}
