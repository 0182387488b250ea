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
	"xenkeep/repo/tree"

	"golang.org/x/sync/errgroup"
)

// Compare reads a whole disk and returns a bitmap of the blocks (of disk.BlockSize)
// in which it differs from the image: bit i%64 of word i/64. Ranges that src does
// not return are zero; src may be longer than the image, and is compared up to the
// image's end. Only the image's tree is read, not its data: the disk's bytes are
// hashed. progress, if set, is called with the bytes of the disk that are done.
func (m *Image) Compare(ctx context.Context, src disk.Source, progress func(n int64)) ([]uint64, error) {
	if src.Size() < m.Size() {
		return nil, fmt.Errorf("a disk of %d bytes cannot be compared with one of %d", src.Size(), m.Size())
	}
	c := &comparison{m: m, differs: make([]uint64, len(m.present)), progress: progress}
	// Blocks that are not read are zero: they differ if the image contains data.
	copy(c.differs, m.present)
	for range runtime.GOMAXPROCS(0) {
		c.hashers = append(c.hashers, m.r.Store().NewHasher())
	}
	if err := c.read(ctx, src); err != nil {
		return nil, err
	}
	return c.differs, nil
}

// Differing returns the number of blocks that are set in a bitmap of Compare.
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
	blocks   [window]tree.Block
	n        int
	node     *tree.Node
	nodeAt   tree.Part
}

// block returns the buffer of a block: the current one, or a new one, zeroed.
func (c *comparison) block(i int64) *tree.Block {
	if c.n > 0 && c.blocks[c.n-1].Offset == i*disk.BlockSize {
		return &c.blocks[c.n-1]
	}
	b := &c.blocks[c.n]
	c.n++
	if b.Data == nil {
		b.Data = make([]byte, disk.BlockSize)
	}
	b.Extent = disk.Extent{Offset: i * disk.BlockSize, Length: int64(disk.BlockLength(c.m.Size(), i))}
	b.Data = b.Data[:b.Length]
	clear(b.Data)
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
			continue // after the image's end; read on for errors of the source
		}
		if i != last && c.n == window {
			if err := c.flush(ctx); err != nil {
				return err
			}
		}
		last = i
		copy(c.block(i).Data[e.Offset-i*disk.BlockSize:], buf[:e.Length])
	}
	return c.flush(ctx)
}

// flush hashes the blocks of the window, and clears it. The hashers divide the blocks
// among each other by their indexes; each writes only its own elements of same, and
// all have ended when flush continues. The window bounds the memory.
func (c *comparison) flush(ctx context.Context) error {
	blocks := c.blocks[:c.n]
	for i := range blocks {
		b := &blocks[i]
		if err := c.setList(ctx, b); err != nil {
			return err
		}
	}
	if err := tree.ReadLists(ctx, c.m.r.Store(), blocks, nil); err != nil {
		return err
	}
	same := make([]bool, len(blocks))
	g, _ := errgroup.WithContext(ctx)
	for w, h := range c.hashers {
		g.Go(func() error {
			for i := w; i < len(blocks); i += len(c.hashers) {
				same[i] = equal(h, &blocks[i])
			}
			return nil
		})
	}
	_ = g.Wait()
	for i := range blocks {
		n := blocks[i].Offset / disk.BlockSize
		if same[i] {
			c.differs[n/64] &^= 1 << (n % 64)
		} else {
			c.differs[n/64] |= 1 << (n % 64)
		}
	}
	if c.progress != nil {
		for i := range c.n {
			c.progress(int64(len(c.blocks[i].Data)))
		}
	}
	c.n = 0
	return nil
}

// equal reports whether a block of the disk has the content that its pieces name.
func equal(h *chunk.Hasher, b *tree.Block) bool {
	if len(b.Pieces) == 0 {
		return zero(b.Data)
	}
	for _, p := range b.Pieces {
		part := b.Data[p.Offset : p.Offset+p.Length]
		if p.IsZero() && !zero(part) || !p.IsZero() && h.Sum(chunk.Data, part) != p.ID {
			return false
		}
	}
	return true
}

// setList sets the list of a block. The node that the list is in is kept for the
// next block.
func (c *comparison) setList(ctx context.Context, b *tree.Block) error {
	if n := b.Offset / tree.NodeSize; c.node == nil || n != c.nodeAt.Offset/tree.NodeSize {
		at := c.m.root.Node(int(n))
		node, err := tree.ReadNode(ctx, c.m.r.Store(), at.ID)
		if err != nil {
			return err
		}
		c.node, c.nodeAt = node, at
	}
	b.Part = c.node.List(c.nodeAt, int((b.Offset-c.nodeAt.Offset)/disk.BlockSize))
	return nil
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
