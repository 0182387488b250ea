// Package restore reads disks from a repository: Open reads a disk's tree far
// enough to determine which blocks contain data, Run writes them to a disk.Sink and
// verifies each chunk against its ID.
package restore

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"xenkeep/chunkstore"
	"xenkeep/chunkstore/chunk"
	"xenkeep/chunkstore/object"
	"xenkeep/chunkstore/seal"
	"xenkeep/internal/disk"
	"xenkeep/repo"
	"xenkeep/repo/tree"

	"golang.org/x/sync/errgroup"
)

// window is the number of blocks that are read together: 32 MiB. Two windows are in
// memory, one being read, one being written.
const window = 16

// Image is a disk in a repository.
type Image struct {
	r       *repo.Repository
	root    *tree.Root
	present []uint64 // bitmap of blocks that contain data
	blocks  int64    // number of blocks that contain data
}

// Open reads the root and the nodes of a disk. The index must have been loaded.
func Open(ctx context.Context, r *repo.Repository, root chunk.ID) (*Image, error) {
	m := &Image{r: r}
	var err error
	if m.root, err = tree.ReadRoot(ctx, r.Store(), root); err != nil {
		return nil, err
	}
	m.present = make([]uint64, (disk.Blocks(m.root.Size)+63)/64)
	err = tree.ReadNodes(ctx, r.Store(), m.root, func(at tree.Part, n *tree.Node) error {
		for i, id := range n {
			if !id.IsZero() {
				b := at.Offset/disk.BlockSize + int64(i)
				m.present[b/64] |= 1 << (b % 64)
				m.blocks++
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return m, nil
}

// Size returns the disk's size in bytes.
func (m *Image) Size() int64 { return m.root.Size }

// Present reports whether block i contains data; the other blocks are zero.
func (m *Image) Present(i int64) bool { return m.present[i/64]&(1<<(i%64)) != 0 }

// Blocks returns the number of blocks that contain data.
func (m *Image) Blocks() int64 { return m.blocks }

// Options configures Run.
type Options struct {
	// Zeros writes zeros too. It must be set unless the target is known to read as
	// zeros wherever nothing is written.
	Zeros bool
	// Only, if set, selects the blocks that are written if they contain data or
	// Zeros is set; the other blocks are skipped, and not read.
	Only func(block int64) bool
	// Progress, if set, is called with the bytes of the disk that are done, holes
	// included, from one goroutine.
	Progress func(n int64)
}

// Result counts the bytes written.
type Result struct {
	Written int64
}

// Run writes the disk to sink sequentially, from one goroutine, while others read
// ahead.
//
// Pipeline: one goroutine reads batches (read), the other writes them. The reader
// takes an empty batch from free and sends it through full, which is unbuffered; the
// writer returns it to free. The two batches bound the memory. The reader closes full
// when it ends; free is never closed. After an error, both sides stop through ctx.
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
		next := int64(0) // the next block
		for b := range full {
			for i := range b.blocks[:b.n] {
				blk := &b.blocks[i]
				index := blk.Offset / disk.BlockSize
				if err := m.gap(ctx, sink, o, next, index, &res); err != nil {
					return err
				}
				if err := m.write(ctx, sink, o, blk, &res); err != nil {
					return err
				}
				next = index + 1
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
	blocks [window]tree.Block
	n      int
}

// read fills windows, node by node.
func (m *Image) read(ctx context.Context, only func(int64) bool, free <-chan *batch, full chan<- *batch) error {
	var parts []tree.Part
	for i := range m.root.Nodes {
		at := m.root.Node(i)
		if at.ID.IsZero() {
			continue
		}
		node, err := tree.ReadNode(ctx, m.r.Store(), at.ID)
		if err != nil {
			return err
		}
		parts = node.Lists(parts[:0], at)
		if only != nil {
			parts = slices.DeleteFunc(parts, func(p tree.Part) bool { return !only(p.Offset / disk.BlockSize) })
		}
		for todo := range slices.Chunk(parts, window) {
			var b *batch
			select {
			case b = <-free:
			case <-ctx.Done():
				return ctx.Err()
			}
			if err := m.fill(ctx, b, todo); err != nil {
				return err
			}
			select {
			case full <- b:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
	return nil
}

// fill reads the lists and the chunks of a window.
func (m *Image) fill(ctx context.Context, b *batch, lists []tree.Part) error {
	b.n = len(lists)
	for i, p := range lists {
		b.blocks[i].Part = p
	}
	blocks := b.blocks[:b.n]
	if err := tree.ReadLists(ctx, m.r.Store(), blocks, nil); err != nil {
		return err
	}
	err := tree.ReadData(ctx, m.r.Store(), blocks)
	lost := errors.Is(err, seal.ErrCorrupt) || errors.Is(err, chunkstore.ErrMissing) || errors.Is(err, object.ErrNotFound)
	if ctx.Err() == nil && lost {
		return fmt.Errorf("disk bytes %d to %d: %w", blocks[0].Offset, blocks[b.n-1].End(), err)
	}
	return err
}

var zeroBlock [disk.BlockSize]byte

// gap handles the blocks [from, to), which are zero.
func (m *Image) gap(ctx context.Context, sink disk.Sink, o Options, from, to int64, res *Result) error {
	for ; from < to; from++ {
		n := disk.BlockLength(m.root.Size, from)
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
func (m *Image) write(ctx context.Context, sink disk.Sink, o Options, b *tree.Block, res *Result) error {
	put := func(from, to int) error {
		if from == to {
			return nil
		}
		res.Written += int64(to - from)
		return sink.WriteAt(ctx, b.Data[from:to], b.Offset+int64(from))
	}
	from := 0
	for _, p := range b.Pieces {
		if o.Zeros || !p.IsZero() {
			continue
		}
		if err := put(from, p.Offset); err != nil {
			return err
		}
		from = p.Offset + p.Length
	}
	if err := put(from, len(b.Data)); err != nil {
		return err
	}
	if o.Progress != nil {
		o.Progress(int64(len(b.Data)))
	}
	return nil
}
