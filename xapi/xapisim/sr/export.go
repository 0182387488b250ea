package sr

import (
	"bytes"
	"context"
	"fmt"
	"io"

	"xenkeep/internal/disk"
	"xenkeep/qcow2"
	"xenkeep/vhd"
)

// Export is the stream of a volume's data, byte for byte as XenServer's export
// tool sends it (xen-api, ocaml/libs/vhd/vhd_format/f.ml and
// ocaml/vhd-tool/src/impl.ml). It pins the layers that it reads until Close.
type Export struct {
	sr     *SR
	top    *layer
	pinned []*layer
	size   int64 // of the device
	// include is the set of blocks that are sent with their data.
	include bitset
	// layout describes the VHD, and qcow the qcow2 image; both are nil for a
	// raw stream.
	layout *vhd.Layout
	qcow   *qcow2.Layout
}

// Export prepares a stream in format "vhd", "raw" or "qcow2"; with a base, it
// contains only the difference to the base, which qcow2 does not support.
//
// Full streams contain the blocks that any file of the chain has allocated, or,
// for volumes without a VHD, the blocks that are not entirely zero. The
// difference to a base contains the blocks allocated in any file that is not
// part of both chains, whether or not the content differs. A raw stream has the
// disk's full length, with zeros for omitted blocks.
//
// Errors: ErrGone, ErrNotVHD, ErrTooLarge, and ErrIO if reading failed.
func (v *Volume) Export(format string, base *Volume) (_ *Export, err error) {
	if format != "vhd" && format != "raw" && (format != "qcow2" || base != nil) {
		return nil, fmt.Errorf("export %s: unknown format %q", v.uuid, format)
	}
	var from []*layer
	var parent *vhd.Parent
	if base != nil {
		if from, parent, err = base.asParent(); err != nil {
			return nil, fmt.Errorf("export %s: base: %w", v.uuid, err)
		}
	}
	s := v.sr
	e := &Export{sr: s}
	s.mu.RLock()
	if v.top == nil {
		s.mu.RUnlock()
		return nil, fmt.Errorf("export %s: %w", v.uuid, ErrGone)
	}
	e.top, e.size = v.top, v.top.size
	for l := v.top; l != nil; l = l.parent {
		l.use()
		e.pinned = append(e.pinned, l)
	}
	s.mu.RUnlock()
	defer func() {
		if err != nil {
			e.Close()
		}
	}()

	nbd := s.cfg.NBDHybrid && base == nil
	switch {
	case base != nil && v.bare():
		return nil, fmt.Errorf("export %s: %w", v.uuid, ErrNotVHD)
	case format == "vhd" && e.size > MaxVHDSize:
		return nil, fmt.Errorf("export %s: %w", v.uuid, ErrTooLarge)
	case base != nil:
		e.difference(from)
	case e.top.garbage, v.raw && format == "vhd" && !s.cfg.ZeroScan:
		e.all()
	default:
		e.difference(nil)
	}
	if v.bare() && !nbd && format != "raw" && (!v.raw || s.cfg.ZeroScan) {
		if err := e.dropZeros(); err != nil {
			return nil, err
		}
	}
	switch format {
	case "raw":
		return e, nil
	case "qcow2":
		e.qcow = &qcow2.Layout{Size: e.size, Present: e.include.has}
		if _, err := qcow2.NewWriter(io.Discard, *e.qcow); err != nil {
			return nil, fmt.Errorf("export %s: %w", v.uuid, ErrTooLarge)
		}
		return e, nil
	}
	e.layout = &vhd.Layout{
		Profile: vhd.ForXAPI,
		Size:    e.size,
		Present: e.include.has,
		ID:      newUUID(),
		Parent:  parent,
	}
	if v.bare() || nbd {
		// These modes see only the device and count its blocks.
		e.layout.Size = roundUp(e.size, blockSize)
	}
	if err := e.layout.Check(); err != nil {
		return nil, fmt.Errorf("export %s: %w", v.uuid, err)
	}
	return e, nil
}

// asParent returns v's chain and the description of v as the parent in a
// difference.
func (v *Volume) asParent() ([]*layer, *vhd.Parent, error) {
	s := v.sr
	s.mu.RLock()
	defer s.mu.RUnlock()
	switch {
	case v.top == nil:
		return nil, nil, fmt.Errorf("%s: %w", v.uuid, ErrGone)
	case v.bare():
		return nil, nil, fmt.Errorf("%s: %w", v.uuid, ErrNotVHD)
	}
	var chain []*layer
	for l := v.top; l != nil; l = l.parent {
		chain = append(chain, l)
	}
	return chain, &vhd.Parent{
		ID:   v.top.footer,
		Time: vhd.Time(v.top.modified()),
		Path: s.filePath(v.top),
	}, nil
}

// difference includes the blocks of every layer that is in one of the chains of
// top and from, but not in both.
func (e *Export) difference(from []*layer) {
	in := make(map[*layer]int)
	for _, l := range e.pinned {
		in[l]++
	}
	for _, l := range from {
		in[l]++
	}
	for l, n := range in {
		if n != 1 {
			continue
		}
		l.mu.RLock()
		e.include.union(l.own.some)
		if l.image != nil {
			e.include.union(l.image.have.some)
		}
		l.mu.RUnlock()
	}
	e.include.cut(disk.Blocks(e.size))
}

// Allocated lists the blocks within a range that any file of the volume's chain
// holds, in order; the space between them reads as zeros. In a volume without
// an image format, all blocks are allocated.
func (v *Volume) Allocated(off, length int64) []disk.Extent {
	s := v.sr
	s.mu.RLock()
	var some bitset
	size := int64(0)
	if v.top != nil {
		size = v.top.size
	}
	all := v.raw || v.top != nil && v.top.garbage
	for l := v.top; l != nil; l = l.parent {
		l.mu.RLock()
		some.union(l.own.some)
		if l.image != nil {
			some.union(l.image.have.some)
		}
		l.mu.RUnlock()
	}
	s.mu.RUnlock()
	end := min(off+length, size)
	if all && end > off {
		return []disk.Extent{{Offset: off, Length: end - off}}
	}
	var out []disk.Extent
	for b := some.next(off / blockSize); b >= 0 && b*blockSize < end; b = some.next(b + 1) {
		from := max(b*blockSize, off)
		out = append(out, disk.Extent{Offset: from, Length: min((b+1)*blockSize, end) - from})
	}
	return out
}

// all includes every block.
func (e *Export) all() {
	for b := range disk.Blocks(e.size) {
		e.include.set(b)
	}
}

// dropZeros excludes the blocks that contain only zeros.
func (e *Export) dropZeros() error {
	buf := make([]byte, blockSize)
	var keep bitset
	for b := e.include.next(0); b >= 0; b = e.include.next(b + 1) {
		n, err := e.read(buf, b)
		if err != nil {
			return err
		}
		if !bytes.Equal(buf[:n], zeros[:n]) {
			keep.set(b)
		}
	}
	e.include = keep
	return nil
}

// Length returns the stream's length in bytes, without the tool's faults
// (ErrHangs).
func (e *Export) Length() int64 {
	if e.qcow != nil {
		w, err := qcow2.NewWriter(io.Discard, *e.qcow)
		if err != nil {
			return 0
		}
		return w.ContentLength()
	}
	if e.layout == nil {
		return e.size
	}
	return e.layout.Length()
}

// Blocks returns the number of 2 MiB blocks whose data are sent.
func (e *Export) Blocks() int64 { return e.include.count() }

var (
	zeros [blockSize]byte
	ones  = bytes.Repeat([]byte{0xff}, disk.SectorSize)
)

// WriteTo sends the stream and returns the number of bytes written. It returns
// an error of w unchanged; a read error wraps ErrIO; ErrHangs means that the
// real tool would now keep the connection open forever.
func (e *Export) WriteTo(w io.Writer) (int64, error) {
	out := &counter{w: w}
	var err error
	switch {
	case e.qcow != nil:
		err = e.writeQCOW2(out)
	case e.layout != nil:
		err = e.writeVHD(out)
	default:
		err = e.writeRaw(out)
	}
	return out.n, err
}

func (e *Export) writeVHD(out *counter) error {
	if err := out.write(e.layout.Head()); err != nil {
		return err
	}
	// Bitmap and data are written together; the bitmap's bits are always set.
	buf := make([]byte, len(ones)+blockSize)
	copy(buf, ones)
	for b := e.include.next(0); b >= 0; b = e.include.next(b + 1) {
		n, err := e.read(buf[len(ones):], b)
		if err != nil {
			return err
		}
		if err := out.write(buf[:len(ones)+n]); err != nil {
			return err
		}
		if n < blockSize {
			return ErrHangs
		}
	}
	return out.write(e.layout.Tail())
}

// writeQCOW2 sends the blocks that are not empty as a qcow2 file without
// backing file. The writer chooses the positions of the clusters, as the real
// tool does.
func (e *Export) writeQCOW2(out *counter) error {
	w, err := qcow2.NewWriter(out, *e.qcow)
	if err != nil {
		return err
	}
	buf := make([]byte, blockSize)
	for b := e.include.next(0); b >= 0; b = e.include.next(b + 1) {
		n, err := e.read(buf, b)
		if err != nil {
			return err
		}
		if err := w.WriteAt(context.Background(), buf[:n], b*blockSize); err != nil {
			return err
		}
	}
	return w.Close()
}

func (e *Export) writeRaw(out *counter) error {
	buf := make([]byte, blockSize)
	for b := range disk.Blocks(e.size) {
		part := zeros[:min(blockSize, e.size-b*blockSize)]
		if e.include.has(b) {
			n, err := e.read(buf, b)
			if err != nil {
				return err
			}
			part = buf[:n]
		}
		if err := out.write(part); err != nil {
			return err
		}
	}
	return nil
}

// read reads a block, up to the end of the device.
func (e *Export) read(buf []byte, block int64) (int, error) {
	n := int(min(blockSize, e.size-block*blockSize))
	e.sr.mu.RLock()
	defer e.sr.mu.RUnlock()
	if err := e.top.readBlock(buf[:n], block, 0, nil); err != nil {
		return 0, fmt.Errorf("export: %w: %v", ErrIO, err)
	}
	return n, nil
}

// Close releases the layers.
func (e *Export) Close() error {
	var first error
	for _, l := range e.pinned {
		if err := l.unuse(); err != nil && first == nil {
			first = err
		}
	}
	e.pinned = nil
	return first
}

// counter counts the bytes that w has accepted.
type counter struct {
	w io.Writer
	n int64
}

// Write implements io.Writer.
func (c *counter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}

func (c *counter) write(p []byte) error {
	_, err := c.Write(p)
	return err
}
