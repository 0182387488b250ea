package backup

import (
	"context"
	"fmt"
	"sync"

	"xenkeep/chunkstore/chunk"
	"xenkeep/internal/disk"
	"xenkeep/repo/tree"
)

// oldNode is a GiB of the base: the IDs of its lists and, once one is asked for, the
// pieces of all of them.
type oldNode struct {
	index int
	ids   tree.Node

	once   sync.Mutex
	pieces [][]tree.Piece // by block within the node; nil until the lists are read
}

// oldNode returns a node of the base, all zero where the base has none.
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

// oldList is the ID of the base's list of a block, zero where it has none. It
// answers only for nodes in use: elsewhere no list can be equal.
func (d *diskRun) oldList(block int64) chunk.ID {
	i := int(block / tree.NodeBlocks)
	d.mu.Lock()
	defer d.mu.Unlock()
	if n := d.old[i%len(d.old)]; n != nil && n.index == i {
		return n.ids[block%tree.NodeBlocks]
	}
	return chunk.ID{}
}

// oldPieces returns the base's pieces of a block, none if it has zeros there. The
// caller must not change them. All lists of the node are read together the first
// time.
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
	if n.pieces == nil {
		pieces, err := d.readOld(ctx, n)
		if err != nil {
			if err = d.unlessHelp(ctx, err); err != nil {
				return nil, err
			}
			pieces = make([][]tree.Piece, tree.NodeBlocks)
		}
		n.pieces = pieces
	}
	return n.pieces[at], nil
}

// readOld reads all lists of a node of the base. Where something of the base is
// suspect, lists that cannot be read are passed over: their blocks are read whole.
func (d *diskRun) readOld(ctx context.Context, n *oldNode) ([][]tree.Piece, error) {
	parts := n.ids.Lists(nil, d.base.Node(n.index))
	blocks := make([]tree.Block, len(parts))
	for i, p := range parts {
		blocks[i].Part = p
	}
	var broken func(*tree.Block, error) error
	if d.suspects != nil {
		broken = func(*tree.Block, error) error { return nil }
	}
	if err := tree.ReadLists(ctx, d.run.r.Store(), blocks, broken); err != nil {
		return nil, err
	}
	first := int64(n.index) * tree.NodeBlocks
	pieces := make([][]tree.Piece, tree.NodeBlocks)
	for i := range blocks {
		pieces[blocks[i].Offset/disk.BlockSize-first] = blocks[i].Pieces
	}
	return pieces, nil
}

// unlessHelp passes an error on unless the base is only a help to find known
// chunks sooner: then it is done without.
func (d *diskRun) unlessHelp(ctx context.Context, err error) error {
	if d.o.Delta || ctx.Err() != nil {
		return fmt.Errorf("base: %w", err)
	}
	return nil
}

// grow prepares a delta of a disk that is larger than its base: the block that
// was the last one, and short, is now longer, and zero there unless the source
// says otherwise. It is read and cut again, as its last page has changed.
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
