package prune

import (
	"cmp"
	"context"
	"encoding/binary"
	"slices"

	"xenkeep/chunkstore/chunk"
	"xenkeep/chunkstore/index"
	"xenkeep/repo"
)

// walkChunks is how many chunks a walk gathers, of some 90 bytes each, before it
// looks them up.
var walkChunks = 1 << 18

// walk marks what is below a root. IDs are random, and an index is larger than
// what memory holds at hand, so chunks are gathered and looked up in the order
// of their IDs, which passes through the index once; they are marked in the
// order of the disk, in which they mostly lie in packs. A list is marked when
// all below it is, and a node remembered when all its lists are marked: whoever
// meets them later need not look below.
type walk struct {
	s       *survey
	lenient bool  // what is nowhere is passed over
	size    int64 // of the disk

	queued map[nodeKey]struct{} // nodes of this walk
	nodes  []walkedNode
	lists  []walkedList
	chunks []chunk.ID
	listOf []uint32 // of each chunk
}

type walkedNode struct {
	key   nodeKey
	whole bool
}

type walkedList struct {
	id       chunk.ID
	node     int
	complete bool
}

// node takes in a node whose first block is number first of the disk.
func (w *walk) node(ctx context.Context, key nodeKey, first int64) error {
	if _, again := w.queued[key]; again {
		return nil
	}
	w.queued[key] = struct{}{}
	s := w.s
	if err := s.mark(ctx, chunk.Node, key.id); err != nil {
		if absent(err, w.lenient) {
			return nil
		}
		return err
	}
	blocks, err := s.r.ReadNode(ctx, key.id)
	if err != nil {
		return err
	}
	n := walkedNode{key: key, whole: true}
	var ids []chunk.ID
	var at []int64
	for i, list := range blocks {
		if list.IsZero() {
			continue
		}
		copies, err := s.find(ctx, chunk.List, list)
		if err != nil {
			if !absent(err, w.lenient) {
				return err
			}
			n.whole = false
			continue
		}
		if s.seen(list, copies) {
			continue
		}
		ids, at = append(ids, list), append(at, first+int64(i))
	}
	lists, err := s.r.ReadLists(ctx, ids)
	if err != nil {
		return err
	}
	w.nodes = append(w.nodes, n)
	var pieces []repo.Piece
	for i, list := range lists {
		if pieces, err = repo.DecodeList(pieces[:0], list, repo.BlockLength(w.size, at[i])); err != nil {
			return err
		}
		for _, piece := range pieces {
			if !piece.IsGap() {
				w.chunks = append(w.chunks, piece.ID)
				w.listOf = append(w.listOf, uint32(len(w.lists)))
			}
		}
		w.lists = append(w.lists, walkedList{id: ids[i], node: len(w.nodes) - 1, complete: true})
	}
	if len(w.chunks) < walkChunks {
		return nil
	}
	return w.flush(ctx)
}

// flush marks what was gathered.
func (w *walk) flush(ctx context.Context) error {
	s := w.s
	type wanted struct {
		key uint64
		n   uint32
	}
	order := make([]wanted, len(w.chunks))
	for n, id := range w.chunks {
		order[n] = wanted{binary.BigEndian.Uint64(id[:]), uint32(n)}
	}
	slices.SortFunc(order, func(a, b wanted) int { return cmp.Compare(a.key, b.key) })
	where := make([]index.Location, len(w.chunks)) // of no length: nothing to mark
	for _, o := range order {
		copies, err := s.find(ctx, chunk.Data, w.chunks[o.n])
		if err != nil {
			if !absent(err, w.lenient) {
				return err
			}
			w.lists[w.listOf[o.n]].complete = false
		}
		for i, at := range copies {
			if i == 0 {
				where[o.n] = at
				continue
			}
			s.packs[at.Pack].mark(at)
		}
	}
	for _, at := range where {
		if at.Length > 0 {
			s.packs[at.Pack].mark(at)
		}
	}
	for _, l := range w.lists {
		if err := s.mark(ctx, chunk.List, l.id); err != nil {
			return err
		}
		if l.complete {
			delete(s.partial, index.PrefixOf(l.id))
			continue
		}
		s.partial[index.PrefixOf(l.id)] = struct{}{}
		w.nodes[l.node].whole = false
	}
	for _, n := range w.nodes {
		if n.whole {
			s.nodes[n.key] = struct{}{}
		}
	}
	w.nodes, w.lists, w.chunks, w.listOf = w.nodes[:0], w.lists[:0], w.chunks[:0], w.listOf[:0]
	return nil
}
