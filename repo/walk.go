package repo

import (
	"bytes"
	"context"
	"sync"

	"xenkeep/chunkstore/chunk"
	"xenkeep/chunkstore/object"
	"xenkeep/internal/disk"
)

// WalkDisk calls fn for every chunk of a disk with its offset on the disk,
// block after block. The index must have been loaded.
func WalkDisk(ctx context.Context, r *Repository, root chunk.ID, fn func(p Piece, at int64)) error {
	return WalkTree(ctx, r, root, func(chunk.ID) {}, fn)
}

// WalkReadable is WalkDisk that passes over nodes and block lists that cannot be
// read; the root must be.
func WalkReadable(ctx context.Context, r *Repository, root chunk.ID, fn func(p Piece, at int64)) error {
	return walk(ctx, r, root, true, func(chunk.ID) {}, fn)
}

// WalkTree is WalkDisk that calls tree too, for the root, each node and each
// block list.
func WalkTree(ctx context.Context, r *Repository, root chunk.ID, tree func(id chunk.ID), fn func(p Piece, at int64)) error {
	return walk(ctx, r, root, false, tree, fn)
}

func walk(ctx context.Context, r *Repository, root chunk.ID, lenient bool, tree func(id chunk.ID), fn func(p Piece, at int64)) error {
	pass := func(err error) bool { return lenient && ctx.Err() == nil && !object.Retriable(err) }
	tree(root)
	rn, err := r.ReadRoot(ctx, root)
	if err != nil {
		return err
	}
	for i, id := range rn.Nodes {
		if id.IsZero() {
			continue
		}
		tree(id)
		node, err := r.ReadNode(ctx, id)
		if err != nil {
			if pass(err) {
				continue
			}
			return err
		}
		var ids []chunk.ID
		var at []int64
		for j, list := range node {
			if !list.IsZero() {
				tree(list)
				ids, at = append(ids, list), append(at, int64(i)*NodeBlocks+int64(j))
			}
		}
		lists, err := r.ReadLists(ctx, ids)
		if err != nil {
			if !pass(err) {
				return err
			}
			for j := range lists { // each by itself
				if lists[j] == nil {
					lists[j], _ = r.store.Load(ctx, chunk.List, ids[j])
				}
			}
		}
		var pieces []Piece
		for j, list := range lists {
			if list == nil {
				continue
			}
			if pieces, err = DecodeList(pieces[:0], list, BlockLength(rn.Size, at[j])); err != nil {
				if pass(err) {
					continue
				}
				return err
			}
			for _, piece := range pieces {
				if !piece.IsGap() {
					fn(piece, at[j]*disk.BlockSize+int64(piece.Offset))
				}
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

// ReadNode reads the part of a disk's tree that holds one GiB.
func (r *Repository) ReadNode(ctx context.Context, id chunk.ID) (*NodeIDs, error) {
	p, err := r.store.Load(ctx, chunk.Node, id)
	if err != nil {
		return nil, err
	}
	return DecodeNode(p)
}

// ReadLists reads block lists. With an error come those that could be read
// before it; the others are nil.
func (r *Repository) ReadLists(ctx context.Context, ids []chunk.ID) ([][]byte, error) {
	lists := make([][]byte, len(ids))
	var mu sync.Mutex
	err := r.store.Fetch(ctx, chunk.List, ids, func(i int, p []byte) error {
		mu.Lock()
		defer mu.Unlock()
		lists[i] = bytes.Clone(p)
		return nil
	})
	return lists, err
}
