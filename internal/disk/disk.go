// Package disk is the leaf that engines and transports share: what a disk is
// when it is read (Source) and when it is written (Sink), without knowing of
// hypervisors, image formats or repositories.
//
// A disk is cut into aligned blocks of BlockSize; the last one may be short.
// A Source gives extents that never cross a block boundary, so that blocks can
// be worked on independently and in parallel.
package disk

import "context"

const (
	// BlockSize is the unit of the Merkle tree, of VHD blocks, and 32
	// granules of XenServer's changed-block tracking.
	BlockSize = 2 << 20
	// PageSize is the unit in which zeros are recognised.
	PageSize = 4096
	// SectorSize is the unit of VHD sector bitmaps and of NBD alignment.
	SectorSize = 512
)

// Extent is a byte range of a disk.
type Extent struct {
	Offset int64
	Length int64
}

// End is the offset of the first byte behind e.
func (e Extent) End() int64 { return e.Offset + e.Length }

// Blocks returns how many blocks a disk of size bytes has.
func Blocks(size int64) int64 { return (size + BlockSize - 1) / BlockSize }

// BlockLength returns the length of block i of a disk of size bytes. Only the last
// block may be shorter than BlockSize.
func BlockLength(size, i int64) int { return int(min(BlockSize, size-i*BlockSize)) }

// Source is one disk at one instant, read once, front to back.
//
// What a Source does not return is either zero (a complete source) or
// inherited from the disk's base (a delta); which of the two is known to
// whoever opened it, not to the Source.
type Source interface {
	// Size is the disk's size in bytes.
	Size() int64
	// Next reads the next extent that the source holds data for into
	// buf[:Length] and returns where it lies. Extents ascend, do not overlap,
	// and each lies within one block; buf is at least BlockSize long and is
	// not kept. A source that holds a whole block returns it as one extent.
	// After the last extent, and only once the source has proved that it was
	// complete, Next returns io.EOF; the error stays on further calls.
	Next(ctx context.Context, buf []byte) (Extent, error)
}

// Reader is a disk that can be read anywhere, by several goroutines at once.
type Reader interface {
	// Size is the disk's size in bytes.
	Size() int64
	// ReadAt fills p from byte offset off, or fails.
	ReadAt(ctx context.Context, p []byte, off int64) error
}

// Sink is one disk being written, by one goroutine, front to back.
type Sink interface {
	// WriteAt writes p at byte offset off. Offsets ascend, ranges do not
	// overlap, and each lies within one block. p is not kept.
	WriteAt(ctx context.Context, p []byte, off int64) error
}
