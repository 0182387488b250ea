// Package diff compares disks of a repository by their trees alone: what has
// equal IDs is equal and is never read.
package diff

import (
	"context"
	"fmt"

	"xenkeep/chunkstore/chunk"
	"xenkeep/internal/disk"
	"xenkeep/repo"
)

// tree is the upper part of a disk's tree; of no disk where root is nil.
type tree struct {
	r    *repo.Repository
	root *repo.RootNode
}

func open(ctx context.Context, r *repo.Repository, root chunk.ID) (*tree, error) {
	top, err := r.ReadRoot(ctx, root)
	return &tree{r: r, root: top}, err
}

func (t *tree) nodeID(i int) chunk.ID {
	if i >= len(t.root.Nodes) {
		return chunk.ID{}
	}
	return t.root.Nodes[i]
}

func (t *tree) node(ctx context.Context, id chunk.ID) (*repo.NodeIDs, error) {
	if id.IsZero() {
		return new(repo.NodeIDs), nil
	}
	return t.r.ReadNode(ctx, id)
}

// walk calls fn for each GiB in which some block differs, with the block lists
// of both disks there; it reads no lists.
func walk(ctx context.Context, a, b *tree, fn func(first int64, na, nb *repo.NodeIDs) error) error {
	for i := range max(len(a.root.Nodes), len(b.root.Nodes)) {
		ia, ib := a.nodeID(i), b.nodeID(i)
		if ia == ib {
			continue
		}
		na, err := a.node(ctx, ia)
		if err != nil {
			return err
		}
		nb, err := b.node(ctx, ib)
		if err != nil {
			return err
		}
		if err := fn(int64(i)*repo.NodeBlocks, na, nb); err != nil {
			return err
		}
	}
	return nil
}

// Blocks returns a bitmap of the blocks (of disk.BlockSize) in which disk b
// differs from disk a, as long as the longer of the two: bit i%64 of word i/64.
// It reads roots and nodes alone.
func Blocks(ctx context.Context, r *repo.Repository, a, b chunk.ID) ([]uint64, error) {
	ta, err := open(ctx, r, a)
	if err != nil {
		return nil, err
	}
	tb, err := open(ctx, r, b)
	if err != nil {
		return nil, err
	}
	bits := make([]uint64, (disk.Blocks(max(ta.root.Size, tb.root.Size))+63)/64)
	err = walk(ctx, ta, tb, func(first int64, na, nb *repo.NodeIDs) error {
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
	// Zero tells that it is all zero in the second disk: it was freed, or
	// overwritten with zeros.
	Zero bool
}

// Ranges calls fn for the ranges in which disk b differs from disk a, in
// ascending order, touching ones of a kind joined. They are as fine as the
// chunks are, tens of KiB: within one, bytes may be equal. What one of the disks
// has behind the other's end counts as zero in that.
func Ranges(ctx context.Context, r *repo.Repository, a, b chunk.ID, fn func(Range) error) error {
	ta, err := open(ctx, r, a)
	if err != nil {
		return err
	}
	tb, err := open(ctx, r, b)
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
	err = walk(ctx, ta, tb, func(first int64, na, nb *repo.NodeIDs) error {
		// Both lists of 32 blocks at once.
		const step = 32
		for from := 0; from < repo.NodeBlocks; from += step {
			var ids []chunk.ID
			var at []int // index of the block, twice: of a, then of b
			for j := from; j < from+step; j++ {
				if na[j] != nb[j] {
					for k, id := range [2]chunk.ID{na[j], nb[j]} {
						if !id.IsZero() {
							ids, at = append(ids, id), append(at, 2*j+k)
						}
					}
				}
			}
			read, err := r.ReadLists(ctx, ids)
			if err != nil {
				return err
			}
			lists := make(map[int][]byte, len(ids))
			for i, list := range read {
				lists[at[i]] = list
			}
			for j := from; j < from+step; j++ {
				if na[j] == nb[j] {
					continue
				}
				block := first + int64(j)
				pa, err := pieces(lists[2*j], ta.root.Size, block)
				if err != nil {
					return err
				}
				pb, err := pieces(lists[2*j+1], tb.root.Size, block)
				if err != nil {
					return err
				}
				if err := compare(pa, pb, block*disk.BlockSize, add); err != nil {
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

// pieces are those of a block, which is all zero without a list, and filled up
// with zeros behind the disk's end.
func pieces(list []byte, size, block int64) ([]repo.Piece, error) {
	length := 0
	if block < disk.Blocks(size) {
		length = repo.BlockLength(size, block)
	}
	var out []repo.Piece
	if list != nil {
		var err error
		if out, err = repo.DecodeList(nil, list, length); err != nil {
			return nil, fmt.Errorf("block %d: %w", block, err)
		}
	} else {
		length = 0
	}
	if length < disk.BlockSize {
		out = append(out, repo.Piece{Offset: length, Length: disk.BlockSize - length})
	}
	return out, nil
}

// compare finds where two blocks differ: chunks are equal where ID and place
// are.
func compare(a, b []repo.Piece, at int64, add func(Range) error) error {
	for off := 0; off < disk.BlockSize; {
		for a[0].Offset+a[0].Length <= off {
			a = a[1:]
		}
		for b[0].Offset+b[0].Length <= off {
			b = b[1:]
		}
		end := min(a[0].Offset+a[0].Length, b[0].Offset+b[0].Length)
		same := a[0].ID == b[0].ID && (a[0].IsGap() || a[0].Offset == b[0].Offset)
		if !same {
			if err := add(Range{disk.Extent{Offset: at + int64(off), Length: int64(end - off)}, b[0].IsGap()}); err != nil {
				return err
			}
		}
		off = end
	}
	return nil
}
