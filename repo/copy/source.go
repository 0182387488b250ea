package copy

import (
	"context"
	"errors"
	"fmt"
	"io"
	mathbits "math/bits"

	"xenkeep/chunkstore/chunk"
	"xenkeep/chunkstore/object"
	"xenkeep/internal/disk"
	"xenkeep/repo"
	"xenkeep/repo/diff"
	"xenkeep/repo/tree"
)

// window is the number of blocks that are read together: 32 MiB. Two windows are in
// memory, one being read, one being copied.
const window = 16

func isGone(err error) bool { return errors.Is(err, object.ErrNotFound) }

// source is a disk of a repository as a disk.Source: all blocks that contain data,
// or those that differ from another disk.
type source struct {
	r    *repo.Repository
	root *tree.Root
	id   chunk.ID

	node   *tree.Node // the last node that was read
	nodeAt int

	cancel context.CancelFunc
	full   chan *batch
	free   chan *batch
	ended  chan struct{}
	err    error // of the reader; valid after full is closed

	cur      *batch
	next     int // index into cur
	read     int64
	progress func(upTo int64)
}

type batch struct {
	blocks [window]tree.Block
	n      int
}

func openSource(ctx context.Context, r *repo.Repository, id chunk.ID, size int64) (*source, error) {
	root, err := tree.ReadRoot(ctx, r.Store(), id)
	if err == nil {
		err = root.CheckSize(size)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errSource, err)
	}
	return &source{r: r, root: root, id: id, nodeAt: -1}, nil
}

// blocks calls yield for block numbers, ascending, until it returns false.
type blocks func(ctx context.Context, yield func(block int64) bool) error

// all yields the blocks that contain data.
func (s *source) all(ctx context.Context, yield func(block int64) bool) error {
	for i, id := range s.root.Nodes {
		if id.IsZero() {
			continue
		}
		node, err := s.readNode(ctx, i)
		if err != nil {
			return err
		}
		for j, list := range node {
			if !list.IsZero() && !yield(int64(i)*tree.NodeBlocks+int64(j)) {
				return nil
			}
		}
	}
	return nil
}

// differing returns the blocks in which this disk differs from another one, which
// must exist in the source.
func (s *source) differing(ctx context.Context, other chunk.ID) (blocks, error) {
	bits, err := diff.Blocks(ctx, s.r, other, s.id)
	if err != nil {
		return nil, err
	}
	return func(_ context.Context, yield func(block int64) bool) error {
		for i, word := range bits {
			for ; word != 0; word &= word - 1 {
				if !yield(int64(i)*64 + int64(mathbits.TrailingZeros64(word))) {
					return nil
				}
			}
		}
		return nil
	}, nil
}

func (s *source) readNode(ctx context.Context, i int) (*tree.Node, error) {
	if s.nodeAt == i {
		return s.node, nil
	}
	node, err := tree.ReadNode(ctx, s.r.Store(), s.root.Node(i).ID)
	if err != nil {
		return nil, err
	}
	s.node, s.nodeAt = node, i
	return node, nil
}

// begin starts reading ahead. If zeros is set, blocks without data are delivered
// too.
func (s *source) begin(ctx context.Context, which blocks, zeros bool, progress func(upTo int64)) {
	ctx, s.cancel = context.WithCancel(ctx)
	s.progress = progress
	s.full, s.free, s.ended = make(chan *batch), make(chan *batch, 2), make(chan struct{})
	for range cap(s.free) {
		s.free <- new(batch)
	}
	go func() {
		defer close(s.ended)
		defer close(s.full)
		s.err = s.readAll(ctx, which, zeros)
	}()
}

// close stops the reader and waits for it.
func (s *source) close() {
	if s.cancel != nil {
		s.cancel()
		<-s.ended
	}
}

func (s *source) readAll(ctx context.Context, which blocks, zeros bool) error {
	var todo []int64
	var failed error
	emit := func() bool {
		var b *batch
		select {
		case b = <-s.free:
		case <-ctx.Done():
			failed = ctx.Err()
			return false
		}
		if failed = s.fill(ctx, b, todo, zeros); failed != nil {
			return false
		}
		todo = todo[:0]
		select {
		case s.full <- b:
			return true
		case <-ctx.Done():
			failed = ctx.Err()
			return false
		}
	}
	err := which(ctx, func(block int64) bool {
		if block >= disk.Blocks(s.root.Size) {
			return true // of the other disk, which is larger
		}
		if todo = append(todo, block); len(todo) == window {
			return emit()
		}
		return true
	})
	if err == nil && failed == nil && len(todo) > 0 {
		emit()
	}
	return errors.Join(err, failed)
}

// fill reads the lists and the chunks of a window.
func (s *source) fill(ctx context.Context, b *batch, todo []int64, zeros bool) error {
	b.n = 0
	for _, i := range todo {
		at := s.root.Node(int(i / tree.NodeBlocks))
		node, err := s.readNode(ctx, int(i/tree.NodeBlocks))
		if err != nil {
			return err
		}
		if list := node.List(at, int(i%tree.NodeBlocks)); zeros || !list.ID.IsZero() {
			b.blocks[b.n].Part = list
			b.n++
		}
	}
	blocks := b.blocks[:b.n]
	if err := tree.ReadLists(ctx, s.r.Store(), blocks, nil); err != nil {
		return err
	}
	err := tree.ReadData(ctx, s.r.Store(), blocks)
	if err != nil && ctx.Err() == nil {
		return fmt.Errorf("bytes %d to %d: %w", blocks[0].Offset, blocks[b.n-1].End(), err)
	}
	return err
}

// Size implements disk.Source.
func (s *source) Size() int64 { return s.root.Size }

// Next implements disk.Source.
func (s *source) Next(ctx context.Context, buf []byte) (disk.Extent, error) {
	for s.cur == nil || s.next == s.cur.n {
		if s.cur != nil {
			s.free <- s.cur // does not block: free has capacity for all batches
			s.cur = nil
		}
		select {
		case b, ok := <-s.full:
			if !ok {
				if s.err != nil {
					return disk.Extent{}, fmt.Errorf("%w: %w", errSource, s.err)
				}
				return disk.Extent{}, io.EOF
			}
			s.cur, s.next = b, 0
		case <-ctx.Done():
			return disk.Extent{}, context.Cause(ctx)
		}
	}
	blk := &s.cur.blocks[s.next]
	s.next++
	n := int64(copy(buf, blk.Data))
	s.read += n
	e := disk.Extent{Offset: blk.Offset, Length: n}
	s.progress(e.End())
	return e, nil
}
