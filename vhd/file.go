package vhd

import (
	"errors"
	"fmt"
	"io"
	"slices"
)

// File is a VHD of any kind with random access. It is safe for concurrent use.
type File struct {
	*Image
	in fileInput
}

// OpenFile reads the head of a VHD of size bytes: fixed, dynamic or
// differencing, with its blocks in any order. The footer at the end is used;
// the copy at the start must agree with it.
//
// Errors: ErrNotVHD, ErrCorrupt, ErrTruncated or an error of f. OpenFile
// verifies that the VHD is complete: it ends with the footer, and each block is
// within it and overlaps no other part.
func OpenFile(f io.ReaderAt, size int64, opts Options) (*File, error) {
	in := fileInput{f}
	if size < footerSize {
		return nil, fmt.Errorf("vhd: file of %d bytes: %w", size, ErrNotVHD)
	}
	raw := make([]byte, footerSize)
	if err := in.readAt(raw, size-footerSize); err != nil {
		return nil, err
	}
	foot, err := DecodeFooter(raw)
	if err != nil {
		return nil, missingFooter(in, err)
	}
	if foot.Type == TypeFixed {
		m, err := newImage(foot, Header{}, opts)
		if err != nil {
			return nil, err
		}
		if int64(foot.CurrentSize) > size-footerSize {
			return nil, fmt.Errorf("vhd: file of %d bytes for a disk of %d: %w", size, foot.CurrentSize, ErrTruncated)
		}
		return &File{Image: m, in: in}, nil
	}
	if err := in.readAt(raw, 0); err != nil {
		return nil, err
	}
	first, err := DecodeFooter(raw)
	if err != nil {
		return nil, fmt.Errorf("vhd: footer copy at the start: %w: %w", err, ErrCorrupt)
	}
	if first.Type != foot.Type || first.CurrentSize != foot.CurrentSize || first.ID != foot.ID || first.DataOffset != foot.DataOffset {
		return nil, fmt.Errorf("vhd: the footers at start and end describe different disks: %w", ErrCorrupt)
	}
	if foot.DataOffset > uint64(size-footerSize) {
		return nil, fmt.Errorf("vhd: footer: header at byte %d: %w", foot.DataOffset, ErrCorrupt)
	}
	raw = make([]byte, headerSize)
	if err := in.readAt(raw, int64(foot.DataOffset)); err != nil {
		return nil, err
	}
	h, err := DecodeHeader(raw)
	if err != nil {
		return nil, err
	}
	m, err := newImage(foot, h, opts)
	if err != nil {
		return nil, err
	}
	if int64(h.TableOffset)+m.batSize() > size-footerSize {
		return nil, fmt.Errorf("vhd: header: BAT is beyond the file's end: %w", ErrCorrupt)
	}
	if err := m.readBAT(in); err != nil {
		return nil, err
	}
	if err := m.checkPlaces(size - footerSize); err != nil {
		return nil, err
	}
	return &File{Image: m, in: in}, nil
}

// missingFooter returns the error for a file that does not end with a footer:
// it reports a truncated VHD if the file begins like a VHD.
func missingFooter(in fileInput, err error) error {
	raw := make([]byte, footerSize)
	if errors.Is(err, ErrNotVHD) && in.readAt(raw, 0) == nil {
		if _, err := DecodeFooter(raw); err == nil {
			return fmt.Errorf("vhd: no footer at the end: %w", ErrTruncated)
		}
	}
	return err
}

// checkPlaces returns an error unless head, BAT and blocks are before byte end
// and do not overlap.
func (m *Image) checkPlaces(end int64) error {
	type place struct{ from, to int64 }
	places := make([]place, 0, m.present+3)
	places = append(places,
		place{0, footerSize},
		place{int64(m.footer.DataOffset), int64(m.footer.DataOffset) + headerSize})
	if at := int64(m.header.TableOffset); m.batSize() > 0 {
		places = append(places, place{at, at + m.batSize()})
	}
	for i, s := range m.bat {
		if s == Absent {
			continue
		}
		if m.blockEnd(s) > end {
			return fmt.Errorf("vhd: block %d at sector %d is beyond the file's end: %w", i, s, ErrCorrupt)
		}
		places = append(places, place{int64(s) * SectorSize, m.blockEnd(s)})
	}
	slices.SortFunc(places, func(a, b place) int { return int(min(max(a.from-b.from, -1), 1)) })
	for i := 1; i < len(places); i++ {
		if a, b := places[i-1], places[i]; a.to > b.from {
			return fmt.Errorf("vhd: bytes %d to %d are used twice: %w", b.from, min(a.to, b.to), ErrCorrupt)
		}
	}
	return nil
}

// Reader returns a new pass over the disk, from its start.
func (f *File) Reader() *Reader { return newReader(f.Image, f.in) }

// ReadAt reads from the disk like io.ReaderAt. Sectors that are not present in
// the VHD read as zeros, also in a differencing VHD: callers must check Held
// first there.
func (f *File) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, errors.New("vhd: negative offset")
	}
	done := 0
	for done < len(p) && off < f.size {
		n, held, err := f.heldRun(off, min(int64(len(p)-done), f.size-off))
		if err != nil {
			return done, err
		}
		q := p[done : done+int(n)]
		if !held {
			clear(q)
		} else if err := f.in.readAt(q, f.dataAt(off)); err != nil {
			return done, err
		}
		done, off = done+int(n), off+n
	}
	if done < len(p) {
		return done, io.EOF
	}
	return done, nil
}

// Held reports whether the VHD itself holds the byte at off, and for how many
// bytes, at most limit, the same is true.
func (f *File) Held(off, limit int64) (n int64, held bool, err error) {
	if off < 0 || off >= f.size || limit <= 0 {
		return 0, false, nil
	}
	return f.heldRun(off, min(limit, f.size-off))
}

// heldRun is Held within the disk, limited to one VHD block.
func (f *File) heldRun(off, limit int64) (n int64, held bool, err error) {
	if f.fixed() {
		return limit, true, nil
	}
	block, within := off/f.blockSize, off%f.blockSize
	limit = min(limit, f.blockSize-within)
	if f.bat[block] == Absent {
		return limit, false, nil
	}
	first, last := within/SectorSize, (within+limit-1)/SectorSize
	bits := make([]byte, last/8-first/8+1)
	if err := f.in.readAt(bits, int64(f.bat[block])*SectorSize+first/8); err != nil {
		return 0, false, err
	}
	bit := func(s int64) bool { return bits[s/8-first/8]&(0x80>>(s%8)) != 0 }
	end := first + 1
	for end <= last && bit(end) == bit(first) {
		end++
	}
	return min(end*SectorSize-within, limit), bit(first), nil
}

// dataAt returns the position in the VHD of byte off of the disk, in a present
// block.
func (f *File) dataAt(off int64) int64 {
	if f.fixed() {
		return off
	}
	return int64(f.bat[off/f.blockSize])*SectorSize + f.bitmapLen + off%f.blockSize
}

// fileInput is a file as input.
type fileInput struct{ f io.ReaderAt }

func (in fileInput) readAt(p []byte, off int64) error {
	n, err := in.f.ReadAt(p, off)
	switch {
	case n == len(p):
		return nil
	case errors.Is(err, io.EOF), err == nil:
		return fmt.Errorf("vhd: file ended at byte %d: %w", off+int64(n), ErrTruncated)
	}
	return fmt.Errorf("vhd: read file at byte %d: %w", off, err)
}

// finish returns nil: OpenFile has verified that nothing is missing.
func (in fileInput) finish() error { return nil }
