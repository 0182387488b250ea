// Package qcow2 writes the qcow2 image format sequentially, without seeking:
// the position of every part is known before the first byte is written. It is a
// codec and only writes; images of other programs are read through qemu.
//
// All integers are big-endian, all structures are aligned to clusters of 64
// KiB:
//
//	header | refcount table | refcount blocks | L1 table | L2 tables | data
//
// An L1 entry points to an L2 table of 8192 entries, each of which points to a
// cluster of the disk; a zero entry means that the cluster reads as zeros.
// Every cluster up to the file's end has the reference count 1.
//
// Source: "Qcow2 Image File Format", docs/interop/qcow2.rst of qemu.
package qcow2

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"xenkeep/internal/disk"
)

const (
	clusterBits = 16
	// ClusterSize is the cluster size of written images: qemu's own default.
	ClusterSize = 1 << clusterBits

	perBlock   = disk.BlockSize / ClusterSize // clusters per block of the disk
	perL2      = ClusterSize / 8              // entries of an L2 table
	perRefs    = ClusterSize / 2              // 16-bit counts of a refcount block
	copied     = 1 << 63                      // the cluster's reference count is 1
	headerSize = 104
	// maxL1 is the largest L1 table that qemu accepts, in bytes
	// (block/qcow2.h).
	maxL1 = 32 << 20
)

// MaxSize is the largest disk that an image written by this package can hold:
// qemu's limit for the L1 table.
const MaxSize = maxL1 / 8 * perL2 * ClusterSize

// ErrTooLarge is returned for disks larger than MaxSize.
var ErrTooLarge = errors.New("too large for a qcow2 image")

// Layout describes a qcow2 image to be written.
type Layout struct {
	// Size is the disk's size in bytes. The size in the image is Size rounded
	// up to a sector of 512 bytes.
	Size int64
	// Present reports whether the image holds a block (of disk.BlockSize); nil:
	// it holds all of them. It must always return the same result for the same
	// block.
	Present func(block int64) bool
}

// plan holds the position of every part, in clusters.
type plan struct {
	size           int64 // of the disk
	tables         int64 // L1 entries
	l1, l2, data   int64 // number of clusters of each
	refs, refTable int64
	total          int64
	atRefs, atL1   int64
	atL2, atData   int64
}

func (l Layout) present(b int64) bool { return l.Present == nil || l.Present(b) }

// clusters returns the number of clusters of block b: the last block may be
// shorter.
func (l Layout) clusters(b int64) int64 {
	return min(perBlock, (l.size()-b*disk.BlockSize+ClusterSize-1)/ClusterSize)
}

func (l Layout) size() int64 { return (l.Size + disk.SectorSize - 1) &^ (disk.SectorSize - 1) }

// holds reports whether L2 table t has any entry.
func (l Layout) holds(t int64) bool {
	const blocks = perL2 / perBlock
	for b := t * blocks; b < min((t+1)*blocks, disk.Blocks(l.Size)); b++ {
		if l.present(b) {
			return true
		}
	}
	return false
}

func (l Layout) plan() plan {
	p := plan{size: l.size()}
	p.tables = (p.size + perL2*ClusterSize - 1) / (perL2 * ClusterSize)
	p.l1 = max(1, (p.tables*8+ClusterSize-1)/ClusterSize)
	for t := range p.tables {
		if l.holds(t) {
			p.l2++
		}
	}
	for b := range disk.Blocks(l.Size) {
		if l.present(b) {
			p.data += l.clusters(b)
		}
	}
	// The refcount blocks also count themselves, so the numbers converge after
	// a few rounds.
	for {
		p.total = 1 + p.refTable + p.refs + p.l1 + p.l2 + p.data
		refs := (p.total + perRefs - 1) / perRefs
		table := (refs*8 + ClusterSize - 1) / ClusterSize
		if refs == p.refs && table == p.refTable {
			break
		}
		p.refs, p.refTable = refs, table
	}
	p.atRefs = 1 + p.refTable
	p.atL1 = p.atRefs + p.refs
	p.atL2 = p.atL1 + p.l1
	p.atData = p.atL2 + p.l2
	return p
}

// Writer streams a qcow2 image: a disk.Sink. After an error, a Writer fails
// permanently.
type Writer struct {
	w   io.Writer
	l   Layout
	p   plan
	err error

	begun   bool
	block   int64 // the next block to begin, or the one begun
	at      int64 // bytes of it that are written; 0: not begun
	written int64
}

// NewWriter returns a Writer of the image that layout describes. It writes
// nothing before the first WriteAt or Close.
func NewWriter(w io.Writer, layout Layout) (*Writer, error) {
	if layout.Size < 0 {
		return nil, fmt.Errorf("qcow2: size %d", layout.Size)
	}
	if layout.Size > MaxSize {
		return nil, fmt.Errorf("qcow2: %d bytes, the most is %d: %w", layout.Size, int64(MaxSize), ErrTooLarge)
	}
	return &Writer{w: w, l: layout, p: layout.plan()}, nil
}

// ContentLength returns the whole image's length in bytes.
func (w *Writer) ContentLength() int64 { return w.p.total * ClusterSize }

// WriteAt implements disk.Sink. p must be within one block, which must be
// present in the layout. Unwritten parts become zeros.
func (w *Writer) WriteAt(ctx context.Context, p []byte, off int64) error {
	if w.err == nil {
		w.err = ctx.Err()
	}
	if w.err == nil {
		w.err = w.writeAt(p, off)
	}
	return w.err
}

func (w *Writer) writeAt(p []byte, off int64) error {
	b, within := off/disk.BlockSize, off%disk.BlockSize
	switch {
	case off < 0 || off+int64(len(p)) > w.l.Size:
		return fmt.Errorf("qcow2: write at offset %d: the disk has %d bytes", off, w.l.Size)
	case within+int64(len(p)) > disk.BlockSize:
		return fmt.Errorf("qcow2: write of %d bytes at offset %d crosses a block's edge", len(p), off)
	case b < w.block || b == w.block && within < w.at:
		return fmt.Errorf("qcow2: write at offset %d after one at a higher offset", off)
	case !w.l.present(b):
		return fmt.Errorf("qcow2: write at offset %d: block %d was not announced", off, b)
	}
	if err := w.to(b); err != nil {
		return err
	}
	if err := w.zeros(within - w.at); err != nil {
		return err
	}
	w.at += int64(len(p))
	return w.put(p)
}

// to writes everything that precedes block b.
func (w *Writer) to(b int64) error {
	if !w.begun {
		w.begun = true
		if err := w.head(); err != nil {
			return err
		}
	}
	for ; w.block < b; w.block++ {
		if !w.l.present(w.block) {
			continue
		}
		if err := w.zeros(w.l.clusters(w.block)*ClusterSize - w.at); err != nil {
			return err
		}
		w.at = 0
	}
	return nil
}

// zeros writes n zero bytes to the block.
func (w *Writer) zeros(n int64) error {
	for n > 0 {
		k := min(n, int64(len(zeroes)))
		if err := w.put(zeroes[:k]); err != nil {
			return err
		}
		n, w.at = n-k, w.at+k
	}
	return nil
}

var zeroes [256 << 10]byte

func (w *Writer) put(p []byte) error {
	n, err := w.w.Write(p)
	w.written += int64(n)
	if err == nil && n < len(p) {
		err = io.ErrShortWrite
	}
	return err
}

// Close writes the remaining parts. Only then is the image complete.
func (w *Writer) Close() error {
	if w.err != nil {
		return w.err
	}
	w.err = w.to(disk.Blocks(w.l.Size))
	if w.err == nil && w.written != w.ContentLength() {
		w.err = fmt.Errorf("qcow2: wrote %d bytes, announced %d: the layout's blocks changed", w.written, w.ContentLength())
	}
	if w.err != nil {
		return w.err
	}
	w.err = errors.New("qcow2: writer is closed")
	return nil
}

// head writes everything that precedes the data.
func (w *Writer) head() error {
	p := &w.p
	h := make([]byte, ClusterSize)
	copy(h, "QFI\xfb")
	be := binary.BigEndian
	be.PutUint32(h[4:], 3) // version
	be.PutUint32(h[20:], clusterBits)
	be.PutUint64(h[24:], uint64(p.size))
	be.PutUint32(h[36:], uint32(p.tables))
	be.PutUint64(h[40:], uint64(p.atL1*ClusterSize))
	be.PutUint64(h[48:], ClusterSize) // refcount table
	be.PutUint32(h[56:], uint32(p.refTable))
	be.PutUint32(h[96:], 4) // counts of 1<<4 bits
	be.PutUint32(h[100:], headerSize)
	if err := w.put(h); err != nil {
		return err
	}
	// The refcount table, then the counts.
	if err := w.entries(p.refTable, p.refs, func(i int64) uint64 { return uint64((p.atRefs + i) * ClusterSize) }); err != nil {
		return err
	}
	for i := range p.refs {
		clear(h)
		for j := range min(perRefs, p.total-i*perRefs) {
			be.PutUint16(h[2*j:], 1)
		}
		if err := w.put(h); err != nil {
			return err
		}
	}
	next := p.atL2
	if err := w.entries(p.l1, p.tables, func(t int64) uint64 {
		if !w.l.holds(t) {
			return 0
		}
		next++
		return uint64((next-1)*ClusterSize) | copied
	}); err != nil {
		return err
	}
	data := p.atData
	for t := range p.tables {
		if !w.l.holds(t) {
			continue
		}
		if err := w.entries(1, perL2, func(i int64) uint64 {
			cluster := t*perL2 + i
			b := cluster / perBlock
			if cluster*ClusterSize >= p.size || !w.l.present(b) {
				return 0
			}
			data++
			return uint64((data-1)*ClusterSize) | copied
		}); err != nil {
			return err
		}
	}
	return nil
}

// entries writes a table of n entries of eight bytes, padded to clusters
// clusters.
func (w *Writer) entries(clusters, n int64, at func(i int64) uint64) error {
	buf := make([]byte, ClusterSize)
	for c := range clusters {
		clear(buf)
		for j := range min(perL2, n-c*perL2) {
			binary.BigEndian.PutUint64(buf[8*j:], at(c*perL2+j))
		}
		if err := w.put(buf); err != nil {
			return err
		}
	}
	return nil
}
