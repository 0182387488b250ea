// Package restore gets disks out of a repository: Open reads a disk's tree far
// enough to know which blocks hold data, Run writes them to a disk.Sink, each
// chunk verified against its ID.
package restore

import (
	"context"
	"errors"
	"fmt"

	"xenkeep/chunkstore"
	"xenkeep/chunkstore/chunk"
	"xenkeep/chunkstore/object"
	"xenkeep/chunkstore/seal"
	"xenkeep/internal/disk"
	"xenkeep/repo"

	"golang.org/x/sync/errgroup"
)

// window is how many blocks are read at once: 32 MiB. Two windows are in
// memory, one being read, one being written.
const window = 16

// Image is a disk in a repository.
type Image struct {
	r       *repo.Repository
	root    *repo.RootNode
	present []uint64 // bitmap of blocks that hold data
	blocks  int64    // how many do
}

// Open reads the root and the nodes of a disk. The index must have been loaded.
func Open(ctx context.Context, r *repo.Repository, root chunk.ID) (*Image, error) {
	p, err := r.Store().Load(ctx, chunk.Root, root)
	if err != nil {
		return nil, err
	}
	m := &Image{r: r}
	if m.root, err = repo.DecodeRoot(p); err != nil {
		return nil, err
	}
	m.present = make([]uint64, (disk.Blocks(m.root.Size)+63)/64)
	ids, at := nonZero(m.root.Nodes)
	nodes := make([]*repo.NodeIDs, len(ids))
	for from := 0; from < len(ids); from += 64 { // a node of few blocks is small, of many 16 KiB
		to := min(from+64, len(ids))
		if err := r.Store().Fetch(ctx, chunk.Node, ids[from:to], func(i int, p []byte) (err error) {
			nodes[from+i], err = repo.DecodeNode(p)
			return err
		}); err != nil {
			return nil, err
		}
		for i := from; i < to; i++ {
			for j, id := range nodes[i] {
				if !id.IsZero() {
					b := int64(at[i])*repo.NodeBlocks + int64(j)
					if b >= disk.Blocks(m.root.Size) {
						return nil, fmt.Errorf("node %d: block %d behind the disk's end: %w", at[i], b, seal.ErrCorrupt)
					}
					m.present[b/64] |= 1 << (b % 64)
					m.blocks++
				}
			}
			nodes[i] = nil
		}
	}
	return m, nil
}

func nonZero(all []chunk.ID) (ids []chunk.ID, at []int) {
	for i, id := range all {
		if !id.IsZero() {
			ids, at = append(ids, id), append(at, i)
		}
	}
	return ids, at
}

// Size is the disk's size in bytes.
func (m *Image) Size() int64 { return m.root.Size }

// Present tells whether block i holds data: others are zero.
func (m *Image) Present(i int64) bool { return m.present[i/64]&(1<<(i%64)) != 0 }

// Blocks is how many blocks hold data.
func (m *Image) Blocks() int64 { return m.blocks }

// Options tell how a disk is written.
type Options struct {
	// Zeros writes zeros too. It must be set unless the target is known to
	// read as zeros where nothing is written.
	Zeros bool
	// Only, where set, says which blocks are written, if they hold data or
	// Zeros is set; the others are passed over, and not read.
	Only func(block int64) bool
	// Progress, where set, is called with the bytes of disk that are done,
	// holes included; from one goroutine.
	Progress func(n int64)
}

// Result counts what was written, in bytes.
type Result struct {
	Written int64
}

// Run writes the disk to sink, front to back, from one goroutine, while others
// read ahead.
func (m *Image) Run(ctx context.Context, sink disk.Sink, o Options) (Result, error) {
	free := make(chan *batch, 2)
	full := make(chan *batch)
	for range cap(free) {
		free <- new(batch)
	}
	var res Result
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		defer close(full)
		return m.read(ctx, o.Only, free, full)
	})
	g.Go(func() error {
		next := int64(0) // block
		for b := range full {
			for i := range b.blocks[:b.n] {
				blk := &b.blocks[i]
				if err := m.gap(ctx, sink, o, next, blk.index, &res); err != nil {
					return err
				}
				if err := m.write(ctx, sink, o, blk, &res); err != nil {
					return err
				}
				next = blk.index + 1
			}
			free <- b
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		return m.gap(ctx, sink, o, next, disk.Blocks(m.root.Size), &res)
	})
	if err := g.Wait(); err != nil {
		return res, err
	}
	return res, nil
}

// batch is a window of blocks.
type batch struct {
	blocks [window]blockData
	n      int
}

type blockData struct {
	index  int64
	buf    []byte
	data   []byte // the block, gaps zeroed
	pieces []repo.Piece
}

// read fills windows, node by node.
func (m *Image) read(ctx context.Context, only func(int64) bool, free <-chan *batch, full chan<- *batch) error {
	for i, id := range m.root.Nodes {
		if id.IsZero() {
			continue
		}
		p, err := m.r.Store().Load(ctx, chunk.Node, id)
		if err != nil {
			return err
		}
		node, err := repo.DecodeNode(p)
		if err != nil {
			return err
		}
		if only != nil {
			for j := range node {
				if !node[j].IsZero() && !only(int64(i)*repo.NodeBlocks+int64(j)) {
					node[j] = chunk.ID{}
				}
			}
		}
		ids, at := nonZero(node[:])
		for len(ids) > 0 {
			n := min(window, len(ids))
			var b *batch
			select {
			case b = <-free:
			case <-ctx.Done():
				return ctx.Err()
			}
			if err := m.fill(ctx, b, int64(i)*repo.NodeBlocks, ids[:n], at[:n]); err != nil {
				return err
			}
			select {
			case full <- b:
			case <-ctx.Done():
				return ctx.Err()
			}
			ids, at = ids[n:], at[n:]
		}
	}
	return nil
}

// fill reads the lists and the chunks of a window.
func (m *Image) fill(ctx context.Context, b *batch, first int64, lists []chunk.ID, at []int) error {
	b.n = len(lists)
	store := m.r.Store()
	if err := store.Fetch(ctx, chunk.List, lists, func(i int, p []byte) (err error) {
		blk := &b.blocks[i]
		blk.index = first + int64(at[i])
		blk.pieces, err = repo.DecodeList(blk.pieces[:0], p, repo.BlockLength(m.root.Size, blk.index))
		return err
	}); err != nil {
		return err
	}
	var ids []chunk.ID
	var to [][]byte
	for i := range b.n {
		blk := &b.blocks[i]
		if blk.buf == nil {
			blk.buf = make([]byte, disk.BlockSize)
		}
		blk.data = blk.buf[:repo.BlockLength(m.root.Size, blk.index)]
		for _, p := range blk.pieces {
			if part := blk.data[p.Offset : p.Offset+p.Length]; p.IsGap() {
				clear(part)
			} else {
				ids, to = append(ids, p.ID), append(to, part)
			}
		}
	}
	err := store.Fetch(ctx, chunk.Data, ids, func(i int, p []byte) error {
		if len(p) != len(to[i]) {
			return fmt.Errorf("chunk %s: %d bytes where its block list says %d: %w", ids[i].String()[:8], len(p), len(to[i]), seal.ErrCorrupt)
		}
		copy(to[i], p)
		return nil
	})
	lost := errors.Is(err, seal.ErrCorrupt) || errors.Is(err, chunkstore.ErrMissing) || errors.Is(err, object.ErrNotFound)
	if ctx.Err() == nil && lost {
		return fmt.Errorf("disk bytes %d to %d: %w", b.blocks[0].index*disk.BlockSize,
			b.blocks[b.n-1].index*disk.BlockSize+int64(len(b.blocks[b.n-1].data)), err)
	}
	return err
}

var zeroBlock [disk.BlockSize]byte

// gap passes blocks [from, to), which are zero.
func (m *Image) gap(ctx context.Context, sink disk.Sink, o Options, from, to int64, res *Result) error {
	for ; from < to; from++ {
		n := repo.BlockLength(m.root.Size, from)
		if o.Zeros && (o.Only == nil || o.Only(from)) {
			if err := sink.WriteAt(ctx, zeroBlock[:n], from*disk.BlockSize); err != nil {
				return err
			}
			res.Written += int64(n)
		}
		if o.Progress != nil {
			o.Progress(int64(n))
		}
	}
	return nil
}

// write writes a block: all of it, or its stretches of data.
func (m *Image) write(ctx context.Context, sink disk.Sink, o Options, b *blockData, res *Result) error {
	at := b.index * disk.BlockSize
	put := func(from, to int) error {
		if from == to {
			return nil
		}
		res.Written += int64(to - from)
		return sink.WriteAt(ctx, b.data[from:to], at+int64(from))
	}
	from := 0
	for _, p := range b.pieces {
		if o.Zeros || !p.IsGap() {
			continue
		}
		if err := put(from, p.Offset); err != nil {
			return err
		}
		from = p.Offset + p.Length
	}
	if err := put(from, len(b.data)); err != nil {
		return err
	}
	if o.Progress != nil {
		o.Progress(int64(len(b.data)))
	}
	return nil
}
