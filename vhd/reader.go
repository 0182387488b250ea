package vhd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"xenkeep/internal/disk"
)

// Reader is one forward pass over the disk in a VHD: a disk.Source.
//
// Sectors whose bitmap bit is not set are zero in a dynamic VHD. In a
// differencing VHD they are inherited: they are not returned, and they separate
// the extents. A block of a dynamic VHD is returned as a whole.
//
// A Reader must not be used concurrently. Its errors: ErrCorrupt, ErrTruncated,
// *EmbeddedError, or an error of the underlying reader.
type Reader struct {
	*Image
	in  input
	err error // permanent once set

	next   int64 // the BAT index at which to continue
	open   bool  // bitmap is that of block next
	sector int64 // next sector to process within that block
	bitmap []byte
	ones   []byte
	full   bool // all bits are set
}

// NewReader reads the head of a dynamic or differencing VHD from r and returns
// a Reader of its disk. The stream is read only forward and must have the order
// of XenServer's /export_raw_vdi: the BAT before the blocks, the blocks in
// ascending order (otherwise ErrOrder: see OpenFile), the footer directly after
// the last block.
//
// The stream's exact length follows from the BAT. The Reader returns io.EOF
// only if that many bytes were received, the footer after them equals the one
// at the beginning, and r then has ended. Only if the received length differs,
// the Reader searches its last 16 KiB for the HTTP response by which XenServer
// reports a failure; this response is then the error: *EmbeddedError.
//
// The Reader cannot interrupt reads from r; to do so, close the source of r.
func NewReader(r io.Reader, opts Options) (*Reader, error) {
	s := newStream(r)
	m, err := readHead(s, opts)
	if err != nil {
		return nil, s.reject(err)
	}
	return newReader(m, s), nil
}

func readHead(s *stream, opts Options) (*Image, error) {
	s.head = make([]byte, footerSize)
	if err := s.readAt(s.head, 0); err != nil {
		return nil, err
	}
	f, err := DecodeFooter(s.head)
	if err != nil {
		return nil, err
	}
	if f.Type == TypeFixed {
		return nil, fmt.Errorf("vhd: footer: a fixed disk's at the start of a stream: %w", ErrCorrupt)
	}
	if f.DataOffset < footerSize || f.DataOffset > maxReadSize {
		return nil, fmt.Errorf("vhd: footer: header at byte %d: %w", f.DataOffset, ErrCorrupt)
	}
	raw := make([]byte, headerSize)
	if err := s.readAt(raw, int64(f.DataOffset)); err != nil {
		return nil, err
	}
	h, err := DecodeHeader(raw)
	if err != nil {
		return nil, err
	}
	m, err := newImage(f, h, opts)
	if err != nil {
		return nil, err
	}
	if err := m.readBAT(s); err != nil {
		return nil, err
	}
	// A BAT without entries has a position, too.
	end, err := m.checkOrder(max(s.pos, int64(h.TableOffset)))
	if err != nil {
		return nil, err
	}
	s.total = end + footerSize
	return m, nil
}

// checkOrder returns an error unless the blocks ascend from byte head on; it
// returns the position after the last one.
func (m *Image) checkOrder(head int64) (int64, error) {
	start, end := int64(0), head // of the previous block, or of the head
	for i, s := range m.bat {
		if s == Absent {
			continue
		}
		at := int64(s) * SectorSize
		if at < end {
			why := ErrOrder
			if at < head || m.blockEnd(s) > start {
				why = ErrCorrupt // it overlaps the head or the previous block
			}
			return 0, fmt.Errorf("vhd: block %d at byte %d, expected from %d on: %w", i, at, end, why)
		}
		start, end = at, m.blockEnd(s)
	}
	return end, nil
}

func newReader(m *Image, in input) *Reader {
	r := &Reader{Image: m, in: in}
	if !m.fixed() {
		r.bitmap = make([]byte, m.bitmapLen)
		r.ones = bytes.Repeat([]byte{0xff}, int(m.blockSize/SectorSize/8))
	}
	return r
}

// Next implements disk.Source. Data are read from the underlying reader
// directly into buf.
func (r *Reader) Next(ctx context.Context, buf []byte) (disk.Extent, error) {
	if r.err != nil {
		return disk.Extent{}, r.err
	}
	if len(buf) < disk.BlockSize {
		return disk.Extent{}, errors.New("vhd: buffer smaller than a block")
	}
	var e disk.Extent
	if r.fixed() {
		e, r.err = r.nextFixed(ctx, buf)
	} else {
		e, r.err = r.nextBlock(ctx, buf)
	}
	if r.err == io.EOF {
		if err := r.in.finish(); err != nil {
			r.err = err
		}
	}
	return e, r.err
}

// nextFixed reads the next block of a fixed VHD; r.next counts the disk's
// blocks.
func (r *Reader) nextFixed(ctx context.Context, buf []byte) (disk.Extent, error) {
	current := int64(r.footer.CurrentSize)
	for r.next < disk.Blocks(current) {
		if err := ctx.Err(); err != nil {
			return disk.Extent{}, err
		}
		from := r.next * disk.BlockSize
		p := buf[:min(disk.BlockSize, current-from)]
		if err := r.in.readAt(p, from); err != nil {
			return disk.Extent{}, err
		}
		r.next++
		if e, ok, err := r.cut(p, from); ok || err != nil {
			return e, err
		}
	}
	return disk.Extent{}, io.EOF
}

// nextBlock reads from the other kinds: it returns the next stretch of held
// sectors, up to the end of a block of the disk, which may consist of several
// small VHD blocks.
func (r *Reader) nextBlock(ctx context.Context, buf []byte) (disk.Extent, error) {
	for {
		if err := ctx.Err(); err != nil {
			return disk.Extent{}, err
		}
		if !r.open {
			for r.next < int64(len(r.bat)) && r.bat[r.next] == Absent {
				r.next++
			}
			if r.next == int64(len(r.bat)) {
				return disk.Extent{}, io.EOF
			}
			if err := r.openBlock(); err != nil {
				return disk.Extent{}, err
			}
		}
		first, last := r.run()
		if first == last {
			r.open = false
			r.next++
			continue
		}
		from := r.next*r.blockSize + first*SectorSize
		edge := (from/disk.BlockSize + 1) * disk.BlockSize
		n := min((last-first)*SectorSize, edge-from)
		if err := r.readSectors(buf[:n], first); err != nil {
			return disk.Extent{}, err
		}
		for from+n < edge && r.atBlockEnd() && r.next+1 < int64(len(r.bat)) && r.bat[r.next+1] != Absent {
			r.next++
			if err := r.openBlock(); err != nil {
				return disk.Extent{}, err
			}
			if first, last = r.run(); first != 0 || last == 0 {
				break
			}
			more := min(last*SectorSize, edge-from-n)
			if err := r.readSectors(buf[n:n+more], 0); err != nil {
				return disk.Extent{}, err
			}
			n += more
		}
		if e, ok, err := r.cut(buf[:n], from); ok || err != nil {
			return e, err
		}
	}
}

// openBlock reads the bitmap of block next.
func (r *Reader) openBlock() error {
	if err := r.in.readAt(r.bitmap, int64(r.bat[r.next])*SectorSize); err != nil {
		return err
	}
	r.open, r.sector = true, 0
	r.full = bytes.Equal(r.bitmap[:len(r.ones)], r.ones)
	return nil
}

func (r *Reader) atBlockEnd() bool { return r.open && r.sector == r.blockSize/SectorSize }

// run returns the next sectors of the open block that are to be returned, as
// [first, last); if there are none, first == last.
func (r *Reader) run() (first, last int64) {
	end := r.blockSize / SectorSize
	first = r.sector
	if r.full || !r.IsDelta() {
		return first, end
	}
	for first < end && !r.held(first) {
		first++
	}
	for last = first; last < end && r.held(last); last++ {
	}
	return first, last
}

// held reports whether the bitmap's bit of a sector is set, the most
// significant bit first.
func (r *Reader) held(sector int64) bool {
	return r.bitmap[sector/8]&(0x80>>(sector%8)) != 0
}

// readSectors reads sectors of the open block from first on into p.
func (r *Reader) readSectors(p []byte, first int64) error {
	at := int64(r.bat[r.next])*SectorSize + r.bitmapLen + first*SectorSize
	if err := r.in.readAt(p, at); err != nil {
		return err
	}
	r.sector = first + int64(len(p))/SectorSize
	if r.full || r.IsDelta() {
		return nil
	}
	for s := first; s < r.sector; s++ {
		if !r.held(s) {
			clear(p[(s-first)*SectorSize:][:SectorSize])
		}
	}
	return nil
}

// cut returns the extent of p, which was read from offset from of the disk.
// Content after the disk's end must be zero; ok is false if nothing remains.
func (r *Reader) cut(p []byte, from int64) (e disk.Extent, ok bool, err error) {
	n := min(int64(len(p)), max(r.size-from, 0))
	for i, c := range p[n:] {
		if c != 0 {
			return e, false, fmt.Errorf("vhd: data at offset %d, the disk has %d bytes: %w",
				from+n+int64(i), r.size, ErrCorrupt)
		}
	}
	return disk.Extent{Offset: from, Length: n}, n > 0, nil
}
