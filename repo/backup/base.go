package backup

import (
	"context"
	"fmt"
	"sync"

	"xenkeep/chunkstore/chunk"
	"xenkeep/internal/disk"
	"xenkeep/repo/tree"
)

// oldNode is a node (one GiB) of the base: the IDs of its lists and, after the
// first request for one of them, all lists.
type oldNode struct {
	index int
	ids   tree.Node

	once  sync.Mutex
	lists []tree.Block // by block within the node; nil until they are read
}

// oldNode returns a node of the base; it is all zero if the base has none there.
func (d *diskRun) oldNode(ctx context.Context, i int) (*oldNode, error) {
	slot := i % len(d.old)
	d.mu.Lock()
	n := d.old[slot]
	d.mu.Unlock()
	if n != nil && n.index == i {
		return n, nil
	}
	n = &oldNode{index: i}
	if id := d.baseNode(i); !id.IsZero() && (d.suspects == nil || !d.suspects.nodes[i]) {
		ids, err := tree.ReadNode(ctx, d.run.r.Store(), id)
		if err != nil {
			return nil, fmt.Errorf("base: %w", err)
		}
		n.ids = *ids
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if cur := d.old[slot]; cur != nil && cur.index == i {
		return cur, nil
	}
	d.old[slot] = n
	return n, nil
}

// oldList returns the ID of the base's list of a block, or zero if there is none.
// It returns zero too for a node that is not in d.old: the caller then only misses
// the chance to skip a Put.
func (d *diskRun) oldList(block int64) chunk.ID {
	i := int(block / tree.NodeBlocks)
	d.mu.Lock()
	defer d.mu.Unlock()
	if n := d.old[i%len(d.old)]; n != nil && n.index == i {
		return n.ids[block%tree.NodeBlocks]
	}
	return chunk.ID{}
}

// oldPieces returns the base's pieces of a block, or none if the block is zero
// there. All lists of the node are read together the first time.
func (d *diskRun) oldPieces(ctx context.Context, block int64) ([]tree.Piece, error) {
	if d.base == nil {
		return nil, nil
	}
	n, err := d.oldNode(ctx, int(block/tree.NodeBlocks))
	if err != nil {
		return nil, d.unlessHelp(ctx, err)
	}
	at := int(block % tree.NodeBlocks)
	if n.ids[at].IsZero() {
		return nil, nil
	}
	n.once.Lock()
	defer n.once.Unlock()
	if n.lists == nil {
		if n.lists, err = d.readOld(ctx, n); err != nil {
			if err = d.unlessHelp(ctx, err); err != nil {
				return nil, err
			}
			n.lists = make([]tree.Block, tree.NodeBlocks)
		}
	}
	pieces, err := n.lists[at].Decode()
	if err != nil {
		return nil, d.unlessHelp(ctx, err)
	}
	return pieces, nil
}

// readOld reads all lists of a node of the base. If parts of the base are suspect,
// lists that cannot be read are skipped: their blocks are read whole.
func (d *diskRun) readOld(ctx context.Context, n *oldNode) ([]tree.Block, error) {
	lists := make([]tree.Block, tree.NodeBlocks)
	for i := range lists {
		lists[i].Part = n.ids.List(d.base.Node(n.index), i)
	}
	var broken func(*tree.Block, error) error
	if d.suspects != nil {
		broken = func(*tree.Block, error) error { return nil }
	}
	if err := tree.FetchLists(ctx, d.run.r.Store(), lists, broken); err != nil {
		return nil, err
	}
	return lists, nil
}

// unlessHelp returns err, unless the base only serves to find known chunks sooner:
// then it returns nil, and the backup continues without the base.
func (d *diskRun) unlessHelp(ctx context.Context, err error) error {
	if d.o.Delta || ctx.Err() != nil {
		return fmt.Errorf("base: %w", err)
	}
	return nil
}

// grow prepares a delta of a disk that is larger than its base: the last block of
// the base, if it was short, is longer now, and zero in the new part unless the
// source delivers other data. It is read and chunked again, because its last page
// has changed.
func (d *diskRun) grow(ctx context.Context) error {
	if !d.o.Delta || d.base.Size == d.o.Size || d.base.Size%disk.BlockSize == 0 {
		return nil
	}
	last := d.base.Size / disk.BlockSize
	n, err := d.oldNode(ctx, int(last/tree.NodeBlocks))
	if err != nil {
		return err
	}
	if n.ids[last%tree.NodeBlocks].IsZero() {
		return nil
	}
	w, err := d.newBlockWorker()
	if err != nil {
		return err
	}
	defer w.k.Done()
	b := block{index: last, data: make([]byte, disk.BlockLength(d.o.Size, last))}
	if err := d.fill(ctx, b); err != nil {
		return err
	}
	grown := &node{index: n.index, lists: n.ids}
	if grown.lists[last%tree.NodeBlocks], err = w.block(ctx, b); err != nil {
		return err
	}
	d.counts.Stored += w.counts.Stored
	d.counts.New += w.counts.New
	d.building[n.index] = grown
	return nil
}
