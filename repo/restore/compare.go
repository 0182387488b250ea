package restore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"runtime"

	"xenkeep/chunkstore/chunk"
	"xenkeep/internal/disk"
	"xenkeep/repo"

	"golang.org/x/sync/errgroup"
)

// Compare reads a whole disk and tells in which blocks (of disk.BlockSize) it
// differs from the image: bit i%64 of word i/64. What src does not return is
// zero; src may be longer than the image, and is looked at as far as that goes.
// The image's tree alone is read, not its data: the disk's bytes are hashed.
// Progress, where set, is called with the bytes of disk that are done.
func (m *Image) Compare(ctx context.Context, src disk.Source, progress func(n int64)) ([]uint64, error) {
	if src.Size() < m.Size() {
		return nil, fmt.Errorf("a disk of %d bytes cannot be compared with one of %d", src.Size(), m.Size())
	}
	c := &comparison{m: m, differs: make([]uint64, len(m.present)), progress: progress}
	// What is not read is zero: it differs where the image holds data.
	copy(c.differs, m.present)
	for range runtime.GOMAXPROCS(0) {
		c.hashers = append(c.hashers, m.r.Store().NewHasher())
	}
	if err := c.read(ctx, src); err != nil {
		return nil, err
	}
	return c.differs, nil
}

// Differing counts the blocks of a bitmap that Compare gave.
func Differing(bitmap []uint64) int64 {
	n := 0
	for _, w := range bitmap {
		n += bits.OnesCount64(w)
	}
	return int64(n)
}

// comparison holds one window of the disk: 32 MiB.
type comparison struct {
	m        *Image
	differs  []uint64
	hashers  []*chunk.Hasher
	progress func(n int64)
	blocks   [window]blockData
	n        int
	node     *repo.NodeIDs
	nodeAt   int64
}

// block is the buffer of a block: that of the last one, or a new one, zeroed.
func (c *comparison) block(i int64) *blockData {
	if c.n > 0 && c.blocks[c.n-1].index == i {
		return &c.blocks[c.n-1]
	}
	b := &c.blocks[c.n]
	c.n++
	if b.buf == nil {
		b.buf = make([]byte, disk.BlockSize)
	}
	b.index, b.data = i, b.buf[:repo.BlockLength(c.m.Size(), i)]
	clear(b.data)
	return b
}

func (c *comparison) read(ctx context.Context, src disk.Source) error {
	buf := make([]byte, disk.BlockSize)
	last := int64(-1)
	for {
		e, err := src.Next(ctx, buf)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		i := e.Offset / disk.BlockSize
		if e.Offset >= c.m.Size() {
			continue // behind the image's end; read on for the source's verdict
		}
		if i != last && c.n == window {
			if err := c.flush(ctx); err != nil {
				return err
			}
		}
		last = i
		copy(c.block(i).data[e.Offset-i*disk.BlockSize:], buf[:e.Length])
	}
	return c.flush(ctx)
}

// flush hashes the window.
func (c *comparison) flush(ctx context.Context) error {
	var lists []chunk.ID
	var of []*blockData
	for i := range c.n {
		b := &c.blocks[i]
		b.pieces = b.pieces[:0]
		if !c.m.Present(b.index) {
			if !zero(b.data) {
				c.differs[b.index/64] |= 1 << (b.index % 64)
			}
			continue
		}
		id, err := c.list(ctx, b.index)
		if err != nil {
			return err
		}
		lists, of = append(lists, id), append(of, b)
	}
	if len(lists) > 0 {
		if err := c.m.r.Store().Fetch(ctx, chunk.List, lists, func(i int, p []byte) (err error) {
			of[i].pieces, err = repo.DecodeList(of[i].pieces, p, len(of[i].data))
			return err
		}); err != nil {
			return err
		}
	}
	same := make([]bool, len(of))
	g, _ := errgroup.WithContext(ctx)
	for w, h := range c.hashers {
		g.Go(func() error {
			for i := w; i < len(of); i += len(c.hashers) {
				same[i] = equal(h, of[i])
			}
			return nil
		})
	}
	_ = g.Wait()
	for i, b := range of {
		if same[i] {
			c.differs[b.index/64] &^= 1 << (b.index % 64)
		}
	}
	if c.progress != nil {
		for i := range c.n {
			c.progress(int64(len(c.blocks[i].data)))
		}
	}
	c.n = 0
	return nil
}

func equal(h *chunk.Hasher, b *blockData) bool {
	for _, p := range b.pieces {
		part := b.data[p.Offset : p.Offset+p.Length]
		if p.IsGap() && !zero(part) || !p.IsGap() && h.Sum(chunk.Data, part) != p.ID {
			return false
		}
	}
	return true
}

// list is the ID of a block's list; the node it is in is kept.
func (c *comparison) list(ctx context.Context, block int64) (chunk.ID, error) {
	if n := block / repo.NodeBlocks; c.node == nil || n != c.nodeAt {
		p, err := c.m.r.Store().Load(ctx, chunk.Node, c.m.root.Nodes[n])
		if err != nil {
			return chunk.ID{}, err
		}
		if c.node, err = repo.DecodeNode(p); err != nil {
			return chunk.ID{}, err
		}
		c.nodeAt = n
	}
	return c.node[block%repo.NodeBlocks], nil
}

func zero(p []byte) bool {
	for len(p) > 0 {
		n := min(len(p), len(zeroBlock))
		if string(p[:n]) != string(zeroBlock[:n]) {
			return false
		}
		p = p[n:]
	}
	return true
}
