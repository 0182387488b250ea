// Package disk is the leaf that engines and transports share: it defines a disk
// for reading (Source) and for writing (Sink), independent of hypervisors,
// image formats and repositories.
//
// A disk is cut into aligned blocks of BlockSize; the last one may be short. A
// Source returns extents that never cross a block boundary, so that blocks can
// be processed independently and in parallel.
package disk

import "context"

const (
	// BlockSize is the unit of the Merkle tree and of VHD blocks, and equals 32
	// granules of XenServer's changed block tracking.
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

// End returns the offset of the first byte after e.
func (e Extent) End() int64 { return e.Offset + e.Length }

// Blocks returns how many blocks a disk of size bytes has.
func Blocks(size int64) int64 { return (size + BlockSize - 1) / BlockSize }

// BlockLength returns the length of block i of a disk of size bytes. Only the last
// block may be shorter than BlockSize.
func BlockLength(size, i int64) int { return int(min(BlockSize, size-i*BlockSize)) }

// Source is one disk at one instant, read once, sequentially.
//
// Ranges that a Source does not return are either zero (a complete source) or
// inherited from the disk's base (a delta); which of the two applies is known
// to the code that opened the Source, not to the Source.
type Source interface {
	// Size returns the disk's size in bytes.
	Size() int64
	// Next reads the next extent for which the source has data into
	// buf[:Length] and returns its position. Extents ascend, do not overlap,
	// and each is within one block; buf is at least BlockSize long and is not
	// kept. A source that has data for a whole block returns it as one extent.
	// After the last extent, and only after the source has verified that it was
	// complete, Next returns io.EOF; further calls return the same error.
	Next(ctx context.Context, buf []byte) (Extent, error)
}

// Reader is a disk with random access. It is safe for concurrent use.
type Reader interface {
	// Size returns the disk's size in bytes.
	Size() int64
	// ReadAt fills p from byte offset off, or fails.
	ReadAt(ctx context.Context, p []byte, off int64) error
}

// Sink is one disk that one goroutine writes sequentially.
type Sink interface {
	// WriteAt writes p at byte offset off. Offsets ascend, ranges do not
	// overlap, and each is within one block. p is not kept.
	WriteAt(ctx context.Context, p []byte, off int64) error
}
