// Package diff compares disks of a repository by their trees alone: parts with
// equal IDs are equal and are never read.
package diff

import (
	"context"

	"xenkeep/chunkstore/chunk"
	"xenkeep/internal/disk"
	"xenkeep/repo"
	"xenkeep/repo/tree"
)

// open reads the roots of two disks.
func open(ctx context.Context, r *repo.Repository, a, b chunk.ID) (ra, rb *tree.Root, err error) {
	if ra, err = tree.ReadRoot(ctx, r.Store(), a); err == nil {
		rb, err = tree.ReadRoot(ctx, r.Store(), b)
	}
	return ra, rb, err
}

// walk calls fn for each node (one GiB) in which some block differs, with the nodes
// of both disks; it reads no lists.
func walk(ctx context.Context, r *repo.Repository, a, b *tree.Root, fn func(first int64, na, nb *tree.Node) error) error {
	for i := range max(len(a.Nodes), len(b.Nodes)) {
		ia, ib := a.Node(i).ID, b.Node(i).ID
		if ia == ib {
			continue
		}
		na, err := tree.ReadNode(ctx, r.Store(), ia)
		if err != nil {
			return err
		}
		nb, err := tree.ReadNode(ctx, r.Store(), ib)
		if err != nil {
			return err
		}
		if err := fn(int64(i)*tree.NodeBlocks, na, nb); err != nil {
			return err
		}
	}
	return nil
}

// Blocks returns a bitmap of the blocks (of disk.BlockSize) in which disk b differs
// from disk a, as long as the longer of the two: bit i%64 of word i/64. It reads
// only roots and nodes.
func Blocks(ctx context.Context, r *repo.Repository, a, b chunk.ID) ([]uint64, error) {
	ra, rb, err := open(ctx, r, a, b)
	if err != nil {
		return nil, err
	}
	bits := make([]uint64, (disk.Blocks(max(ra.Size, rb.Size))+63)/64)
	err = walk(ctx, r, ra, rb, func(first int64, na, nb *tree.Node) error {
		for j := range na {
			if i := first + int64(j); na[j] != nb[j] && i < int64(len(bits))*64 {
				bits[i/64] |= 1 << (i % 64)
			}
		}
		return nil
	})
	return bits, err
}

// Range is a byte range in which two disks differ.
type Range struct {
	disk.Extent
	// Zero is set if the range is all zero in the second disk: it was freed, or
	// overwritten with zeros.
	Zero bool
}

// Ranges calls fn for the ranges in which disk b differs from disk a, in ascending
// order; adjacent ranges of the same kind are merged. Their granularity is that of
// chunks, tens of KiB: bytes within a range may be equal. If one disk is longer,
// the other one counts as zero beyond its end.
func Ranges(ctx context.Context, r *repo.Repository, a, b chunk.ID, fn func(Range) error) error {
	ra, rb, err := open(ctx, r, a, b)
	if err != nil {
		return err
	}
	var last Range
	flush := func() error {
		if last.Length == 0 {
			return nil
		}
		x := last
		last = Range{}
		return fn(x)
	}
	add := func(x Range) error {
		if last.Length > 0 && last.End() == x.Offset && last.Zero == x.Zero {
			last.Length += x.Length
			return nil
		}
		err := flush()
		last = x
		return err
	}
	// Both lists of 32 blocks are read together.
	const step = 32
	blocks := make([]tree.Block, 2*step)
	err = walk(ctx, r, ra, rb, func(first int64, na, nb *tree.Node) error {
		at, bt := ra.Node(int(first/tree.NodeBlocks)), rb.Node(int(first/tree.NodeBlocks))
		for from := 0; from < tree.NodeBlocks; from += step {
			for j := range step {
				la, lb := na.List(at, from+j), nb.List(bt, from+j)
				if la.ID == lb.ID {
					la.ID, lb.ID = chunk.ID{}, chunk.ID{}
				}
				blocks[2*j].Part, blocks[2*j+1].Part = la, lb
			}
			if err := tree.ReadLists(ctx, r.Store(), blocks, nil); err != nil {
				return err
			}
			for j := range step {
				if na[from+j] == nb[from+j] {
					continue
				}
				if err := compare(filled(&blocks[2*j]), filled(&blocks[2*j+1]), (first+int64(from+j))*disk.BlockSize, add); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return flush()
}

// filled returns the pieces of a block, followed by zeros up to the size of a block
// that is not the disk's last one.
func filled(b *tree.Block) []tree.Piece {
	length := 0
	if len(b.Pieces) > 0 {
		length = int(b.Length)
	}
	if length < disk.BlockSize {
		b.Pieces = append(b.Pieces, tree.Piece{Offset: length, Length: disk.BlockSize - length})
	}
	return b.Pieces
}

// compare finds the differences between two blocks: chunks are equal if their IDs
// and positions are equal.
func compare(a, b []tree.Piece, at int64, add func(Range) error) error {
	for off := 0; off < disk.BlockSize; {
		for a[0].Offset+a[0].Length <= off {
			a = a[1:]
		}
		for b[0].Offset+b[0].Length <= off {
			b = b[1:]
		}
		end := min(a[0].Offset+a[0].Length, b[0].Offset+b[0].Length)
		same := a[0].ID == b[0].ID && (a[0].IsZero() || a[0].Offset == b[0].Offset)
		if !same {
			if err := add(Range{disk.Extent{Offset: at + int64(off), Length: int64(end - off)}, b[0].IsZero()}); err != nil {
				return err
			}
		}
		off = end
	}
	return nil
}
