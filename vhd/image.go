package vhd

import (
	"encoding/binary"
	"fmt"
	"iter"

	"xenkeep/internal/disk"
)

// Options are options for reading.
type Options struct {
	// Size is the disk's true size in bytes (a VDI's virtual_size); 0: the
	// footer's current size. The VHD may be larger, because XenServer rounds
	// up: its content after Size must be zero and is dropped. A smaller VHD is
	// an error, because the rest of the disk would be unknown.
	Size int64
}

// Image describes a VHD by its head: everything except the data. It is
// immutable.
type Image struct {
	footer    Footer
	header    Header // unused in a fixed VHD
	size      int64  // of the disk
	blockSize int64
	bitmapLen int64    // number of bytes that precede a block's data
	bat       []Sector // header.Entries entries
	present   int64    // entries that are not Absent
}

// Footer returns the footer.
func (m *Image) Footer() Footer { return m.footer }

// Header returns the header; zero in a fixed VHD.
func (m *Image) Header() Header { return m.header }

// Size returns the disk's size in bytes: Options.Size if set, otherwise the
// footer's current size.
func (m *Image) Size() int64 { return m.size }

// IsDelta reports whether sectors that are not returned are inherited from a
// parent. Otherwise they are zero.
func (m *Image) IsDelta() bool { return m.footer.Type == TypeDifferencing }

func (m *Image) fixed() bool { return m.footer.Type == TypeFixed }

// Allocated returns the number of bytes of data in the VHD, without bitmaps: a
// measure for progress.
func (m *Image) Allocated() int64 {
	if m.fixed() {
		return m.size
	}
	return m.present * m.blockSize
}

// Present reports whether the VHD holds any part of the disk's block (of
// disk.BlockSize). A differencing VHD may hold only some of its sectors.
func (m *Image) Present(block int64) bool {
	if block < 0 || block >= disk.Blocks(m.size) {
		return false
	}
	if m.fixed() {
		return true
	}
	first := block * disk.BlockSize / m.blockSize
	last := (min((block+1)*disk.BlockSize, m.size) - 1) / m.blockSize
	for _, s := range m.bat[first : last+1] {
		if s != Absent {
			return true
		}
	}
	return false
}

// PresentBlocks returns the disk's blocks that are Present, in ascending order.
func (m *Image) PresentBlocks() iter.Seq[int64] {
	return func(yield func(int64) bool) {
		for b := range disk.Blocks(m.size) {
			if m.Present(b) && !yield(b) {
				return
			}
		}
	}
}

// newImage combines footer, header and opts, and checks that they agree.
func newImage(f Footer, h Header, opts Options) (*Image, error) {
	if f.CurrentSize > maxReadSize && f.Type != TypeFixed || f.CurrentSize > 1<<62 {
		return nil, fmt.Errorf("vhd: footer: current size %d: %w", f.CurrentSize, ErrCorrupt)
	}
	current := int64(f.CurrentSize)
	m := &Image{footer: f, header: h, size: current}
	if opts.Size != 0 {
		m.size = opts.Size
	}
	if m.size < 0 || m.size > current {
		return nil, fmt.Errorf("vhd: current size is %d, the disk has %d bytes: %w", current, m.size, ErrCorrupt)
	}
	if m.fixed() {
		return m, nil
	}
	m.blockSize = int64(h.BlockSize)
	m.bitmapLen = roundUp(m.blockSize / SectorSize / 8)
	if need := (current + m.blockSize - 1) / m.blockSize; int64(h.Entries) < need {
		return nil, fmt.Errorf("vhd: header: %d blocks, the disk has %d: %w", h.Entries, need, ErrCorrupt)
	}
	return m, nil
}

// blockEnd returns the position after the block whose bitmap is at s.
func (m *Image) blockEnd(s Sector) int64 {
	return int64(s)*SectorSize + m.bitmapLen + m.blockSize
}

// batSize returns the BAT's length in the VHD, in bytes.
func (m *Image) batSize() int64 { return roundUp(4 * int64(m.header.Entries)) }

// input provides the bytes of a VHD by their position.
type input interface {
	// readAt fills p from byte off. For a stream, off must ascend.
	readAt(p []byte, off int64) error
	// finish is called once after the last readAt of a pass.
	finish() error
}

// readBAT reads the BAT. Its memory grows with the input that arrives, not with
// the size in the header.
func (m *Image) readBAT(in input) error {
	var buf [16 << 10]byte
	at := int64(m.header.TableOffset)
	for left := m.batSize(); left > 0; {
		p := buf[:min(left, int64(len(buf)))]
		if err := in.readAt(p, at); err != nil {
			return err
		}
		at, left = at+int64(len(p)), left-int64(len(p))
		for ; len(p) > 0 && len(m.bat) < int(m.header.Entries); p = p[4:] {
			s := Sector(binary.BigEndian.Uint32(p))
			if s != Absent {
				m.present++
			}
			m.bat = append(m.bat, s)
		}
	}
	return nil
}
