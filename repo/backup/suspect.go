package backup

import (
	"cmp"
	"context"
	"slices"

	"xenkeep/chunkstore/chunk"
	"xenkeep/internal/disk"
	"xenkeep/repo/tree"
)

// suspects lists the parts of a base that must be stored again: those that are
// known to be damaged or condemned, or cannot be read.
type suspects struct {
	nodes  map[int]bool // nodes that cannot be read: all of their blocks are dirty
	blocks []disk.Extent
}

// findSuspects walks the tree of the base. It returns nil immediately if no damaged
// or condemned data is known.
func (d *diskRun) findSuspects(ctx context.Context) (*suspects, error) {
	s := d.run.r.Store()
	if !s.HasExclusions() {
		return nil, nil
	}
	found := &suspects{nodes: make(map[int]bool)}
	again := false // the node must be stored again; one dirty block causes that
	err := tree.Walk(ctx, s, d.base, tree.Visitor{
		Enter: func(p tree.Part) (bool, error) {
			if p.Kind == chunk.Node {
				again = !s.Has(p.ID)
			}
			return true, nil
		},
		List: func(p tree.Part, pieces []tree.Piece) error {
			sound := s.Has(p.ID)
			for i := range pieces {
				sound = sound && (pieces[i].IsZero() || s.Has(pieces[i].ID))
			}
			if !sound || again {
				found.blocks, again = append(found.blocks, p.Extent), false
			}
			return nil
		},
		Broken: func(p tree.Part, _ error) error {
			if p.Kind == chunk.Node {
				found.nodes[int(p.Offset/tree.NodeSize)] = true
			}
			if p.Length > 0 {
				found.blocks, again = append(found.blocks, p.Extent), false
			}
			return nil
		},
	})
	if err != nil {
		return nil, err
	}
	return found, nil
}

// merge returns the union of both lists of extents, ascending and disjoint.
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
