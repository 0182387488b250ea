package vhd

import (
	"context"
	"fmt"

	"xenkeep/internal/disk"
)

// Virtual is a VHD that is not stored anywhere: its bytes are generated from a
// disk as they are read. It is safe for concurrent use.
type Virtual struct {
	layout  Layout
	r       disk.Reader
	head    []byte
	tail    []byte
	present []uint32 // present blocks, ascending; nil: all of them, in a fixed VHD
	length  int64
}

// NewVirtual returns the VHD of the disk r that layout describes. It keeps in
// memory the head, four bytes for each block of the disk, and four more for
// each present block.
func NewVirtual(layout Layout, r disk.Reader) (*Virtual, error) {
	if err := layout.Check(); err != nil {
		return nil, err
	}
	if layout.Size != r.Size() {
		return nil, fmt.Errorf("vhd: layout of %d bytes for a disk of %d", layout.Size, r.Size())
	}
	v := &Virtual{layout: layout, r: r, head: layout.Head(), tail: layout.Tail()}
	if layout.Fixed {
		v.length = layout.Length()
		return v, nil
	}
	for b := range layout.Blocks() {
		if layout.present(b) {
			v.present = append(v.present, uint32(b))
		}
	}
	v.length = int64(len(v.head)) + int64(len(v.present))*blockBytes + footerSize
	return v, nil
}

// Size returns the VHD's length in bytes.
func (v *Virtual) Size() int64 { return v.length }

// ReadAt fills p from byte off of the VHD; it implements disk.Reader for the
// VHD file.
func (v *Virtual) ReadAt(ctx context.Context, p []byte, off int64) error {
	if off < 0 || off+int64(len(p)) > v.length {
		return fmt.Errorf("vhd: bytes %d to %d of %d", off, off+int64(len(p)), v.length)
	}
	for len(p) > 0 {
		n, err := v.readSome(ctx, p, off)
		if err != nil {
			return err
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// readSome reads the first bytes of p, up to the end of one part of the VHD.
func (v *Virtual) readSome(ctx context.Context, p []byte, off int64) (int, error) {
	switch tail := v.length - int64(len(v.tail)); {
	case off < int64(len(v.head)):
		return copy(p, v.head[off:]), nil
	case off >= tail:
		return copy(p, v.tail[off-tail:]), nil
	case v.layout.Fixed:
		return v.readDisk(ctx, p[:min(int64(len(p)), tail-off)], off)
	}
	at := off - int64(len(v.head))
	block, within := int64(v.present[at/blockBytes]), at%blockBytes
	if within < SectorSize {
		return copy(p, v.layout.BlockHead(block)[within:]), nil
	}
	within -= SectorSize
	return v.readDisk(ctx, p[:min(int64(len(p)), BlockSize-within)], block*BlockSize+within)
}

// readDisk reads from the disk, with zeros after its end.
func (v *Virtual) readDisk(ctx context.Context, p []byte, off int64) (int, error) {
	n := max(0, min(int64(len(p)), v.r.Size()-off))
	clear(p[n:])
	if n == 0 {
		return len(p), nil
	}
	return len(p), v.r.ReadAt(ctx, p[:n], off)
}
