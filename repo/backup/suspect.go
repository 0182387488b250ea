package backup

import (
	"cmp"
	"context"
	"slices"

	"xenkeep/chunkstore/chunk"
	"xenkeep/chunkstore/object"
	"xenkeep/internal/disk"
	"xenkeep/repo"
)

// suspects are what of a base must be stored again: parts that are damaged or
// condemned as far as is known, or cannot be read.
type suspects struct {
	nodes  map[int]bool // that cannot be read: all of their blocks are dirty
	blocks []disk.Extent
}

// suspects walks the tree of the base. Where nothing at all is known to be bad
// it answers at once, with nil.
func (d *diskRun) findSuspects(ctx context.Context) (*suspects, error) {
	s := d.run.r.Store()
	if !s.Avoids() {
		return nil, nil
	}
	found := &suspects{nodes: make(map[int]bool)}
	block := func(i int64, n int64) {
		at := i * disk.BlockSize
		found.blocks = append(found.blocks, disk.Extent{Offset: at, Length: min(n*disk.BlockSize, d.o.Size-at)})
	}
	unless := func(err error) error {
		if ctx.Err() != nil || object.Retriable(err) {
			return err
		}
		return nil
	}
	for i, id := range d.base.Nodes {
		if id.IsZero() {
			continue
		}
		first := int64(i) * repo.NodeBlocks
		p, err := s.Load(ctx, chunk.Node, id)
		var node *repo.NodeIDs
		if err == nil {
			node, err = repo.DecodeNode(p)
		}
		if err != nil {
			if err := unless(err); err != nil {
				return nil, err
			}
			found.nodes[i] = true
			block(first, repo.NodeBlocks)
			continue
		}
		var ids []chunk.ID
		var at []int64
		for j, list := range node {
			if !list.IsZero() {
				ids, at = append(ids, list), append(at, first+int64(j))
			}
		}
		lists, err := readLists(ctx, d.run.r, ids)
		if err != nil {
			return nil, err
		}
		again := !s.Has(id) // one dirty block, and the node is stored anew
		for j, list := range lists {
			sound := list != nil && s.Has(ids[j])
			var pieces []repo.Piece
			if sound {
				pieces, err = repo.DecodeList(nil, list, repo.BlockLength(d.base.Size, at[j]))
				sound = err == nil
			}
			for _, piece := range pieces {
				sound = sound && (piece.IsGap() || s.Has(piece.ID))
			}
			if !sound || again {
				block(at[j], 1)
				again = false
			}
		}
	}
	return found, nil
}

// readLists reads block lists; those that cannot be read are nil.
func readLists(ctx context.Context, r *repo.Repository, ids []chunk.ID) ([][]byte, error) {
	lists, err := r.ReadLists(ctx, ids)
	if err == nil {
		return lists, nil
	}
	for i, id := range ids {
		if lists[i] != nil {
			continue
		}
		p, err := r.Store().Load(ctx, chunk.List, id)
		if err != nil && (ctx.Err() != nil || object.Retriable(err)) {
			return nil, err
		}
		lists[i] = p
	}
	return lists, nil
}

// merge gives the extents of both, ascending and apart.
func merge(a, b []disk.Extent) []disk.Extent {
	all := slices.Concat(a, b)
	slices.SortFunc(all, func(x, y disk.Extent) int { return cmp.Compare(x.Offset, y.Offset) })
	out := all[:0]
	for _, e := range all {
		if n := len(out); n > 0 && e.Offset <= out[n-1].End() {
			out[n-1].Length = max(out[n-1].End(), e.End()) - out[n-1].Offset
			continue
		}
		out = append(out, e)
	}
	return out
}
