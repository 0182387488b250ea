package repo

import (
	"context"

	"xenkeep/chunkstore/chunk"
)

// DiffBlocks calls fn for each block of 2 MiB that differs between two disks,
// ascending, until fn returns false; blocks behind the end of one of them
// differ where the other is not zero there. It reads no more of the trees than
// what differs. The index must have been loaded.
func DiffBlocks(ctx context.Context, r *Repository, a, b chunk.ID, fn func(block int64) bool) error {
	if a == b {
		return nil
	}
	ra, err := r.ReadRoot(ctx, a)
	if err != nil {
		return err
	}
	rb, err := r.ReadRoot(ctx, b)
	if err != nil {
		return err
	}
	for i := range max(len(ra.Nodes), len(rb.Nodes)) {
		var ids [2]chunk.ID
		var nodes [2]NodeIDs
		for k, root := range []*RootNode{ra, rb} {
			if i < len(root.Nodes) {
				ids[k] = root.Nodes[i]
			}
		}
		if ids[0] == ids[1] {
			continue
		}
		for k, id := range ids {
			if id.IsZero() {
				continue
			}
			n, err := r.readNode(ctx, id)
			if err != nil {
				return err
			}
			nodes[k] = *n
		}
		for j := range nodes[0] {
			if nodes[0][j] != nodes[1][j] && !fn(int64(i)*NodeBlocks+int64(j)) {
				return nil
			}
		}
	}
	return nil
}

// ReadRoot reads the top of a disk's tree.
func (r *Repository) ReadRoot(ctx context.Context, id chunk.ID) (*RootNode, error) {
	p, err := r.store.Load(ctx, chunk.Root, id)
	if err != nil {
		return nil, err
	}
	return DecodeRoot(p)
}

func (r *Repository) readNode(ctx context.Context, id chunk.ID) (*NodeIDs, error) {
	p, err := r.store.Load(ctx, chunk.Node, id)
	if err != nil {
		return nil, err
	}
	return DecodeNode(p)
}
