package backup

import (
	"bytes"
	"context"
	"fmt"
	"sync"

	"xenkeep/chunkstore/chunk"
	"xenkeep/internal/disk"
	"xenkeep/repo"
)

// oldNode is a GiB of the base: the IDs and, once asked for, the lists.
type oldNode struct {
	index int
	ids   repo.NodeIDs

	once  sync.Mutex
	lists map[int][]byte // by block within the node; nil until read
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
		p, err := d.run.r.Store().Load(ctx, chunk.Node, id)
		if err != nil {
			return nil, fmt.Errorf("base: %w", err)
		}
		ids, err := repo.DecodeNode(p)
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
	i := int(block / repo.NodeBlocks)
	d.mu.Lock()
	defer d.mu.Unlock()
	if n := d.old[i%len(d.old)]; n != nil && n.index == i {
		return n.ids[block%repo.NodeBlocks]
	}
	return chunk.ID{}
}

// oldPieces returns the base's pieces of a block, none where it has zeros
// there. All lists of the node are read together the first time.
func (d *diskRun) oldPieces(ctx context.Context, block int64) ([]repo.Piece, error) {
	if d.base == nil {
		return nil, nil
	}
	n, err := d.oldNode(ctx, int(block/repo.NodeBlocks))
	if err != nil {
		return nil, d.unlessHelp(ctx, err)
	}
	at := int(block % repo.NodeBlocks)
	if n.ids[at].IsZero() {
		return nil, nil
	}
	n.once.Lock()
	defer n.once.Unlock()
	if n.lists == nil {
		lists := make(map[int][]byte)
		var ids []chunk.ID
		var where []int
		for i, id := range n.ids {
			if !id.IsZero() {
				ids, where = append(ids, id), append(where, i)
			}
		}
		var mu sync.Mutex
		err := d.run.r.Store().Fetch(ctx, chunk.List, ids, func(i int, p []byte) error {
			mu.Lock()
			defer mu.Unlock()
			lists[where[i]] = bytes.Clone(p)
			return nil
		})
		if err != nil && d.suspects != nil {
			// Blocks whose lists cannot be read are read whole.
			var all [][]byte
			if all, err = readLists(ctx, d.run.r, ids); err != nil {
				return nil, err
			}
			for i, p := range all {
				if p != nil {
					lists[where[i]] = p
				}
			}
		}
		if err != nil {
			if err = d.unlessHelp(ctx, err); err != nil {
				return nil, err
			}
			lists = map[int][]byte{}
		}
		n.lists = lists
	}
	list, ok := n.lists[at]
	if !ok {
		return nil, nil
	}
	pieces, err := repo.DecodeList(nil, list, repo.BlockLength(d.base.Size, block))
	if err != nil {
		return nil, d.unlessHelp(ctx, err)
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
	n, err := d.oldNode(ctx, int(last/repo.NodeBlocks))
	if err != nil {
		return err
	}
	if n.ids[last%repo.NodeBlocks].IsZero() {
		return nil
	}
	w, err := d.newBlockWorker()
	if err != nil {
		return err
	}
	defer w.k.Done()
	b := block{index: last, data: make([]byte, repo.BlockLength(d.o.Size, last))}
	if err := d.fill(ctx, b); err != nil {
		return err
	}
	grown := &node{index: n.index, lists: n.ids}
	if grown.lists[last%repo.NodeBlocks], err = w.block(ctx, b); err != nil {
		return err
	}
	d.counts.Stored += w.counts.Stored
	d.counts.New += w.counts.New
	d.building[n.index] = grown
	return nil
}
