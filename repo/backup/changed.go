package backup

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"xenkeep/chunkstore"
	"xenkeep/chunkstore/chunk"
	"xenkeep/internal/disk"
	"xenkeep/repo/tree"

	"golang.org/x/sync/errgroup"
)

// ErrUnsaidChange is returned when a block that was called unchanged is not:
// what told of the changes cannot be believed, and the base may be wrong.
var ErrUnsaidChange = errors.New("a block that was called unchanged has changed")

// ChangedOptions describe a disk of which it is known what may have changed.
type ChangedOptions struct {
	Size int64
	// Base is the root of the disk's last backup; all that is not changed is
	// as there.
	Base chunk.ID
	// Changed are the ranges that may differ from Base, ascending and apart.
	// What lies behind the end of a smaller base counts as changed.
	Changed []disk.Extent
	// Verify tells which unchanged blocks are read all the same and compared;
	// nil: none.
	Verify func(block int64) bool
	// Readers is how many blocks are read at once. 0 is 8.
	Readers  int
	Progress func(n int64) // bytes read; from several goroutines at once
}

// Changed stores a disk from its last backup and what has changed since,
// reading little more than that: see recutter. What of the base is damaged or
// condemned is read again too. The root is that of a full read.
func (run *Run) Changed(ctx context.Context, r disk.Reader, o ChangedOptions) (DiskResult, error) {
	d := &diskRun{run: run, o: DiskOptions{Size: o.Size, Base: o.Base, Delta: true}, building: make(map[int]*node), mends: true}
	if o.Size < 0 || o.Size > tree.MaxSize {
		return DiskResult{}, fmt.Errorf("disk of %d bytes", o.Size)
	}
	if o.Readers <= 0 {
		o.Readers = 8
	}
	if err := d.openBase(ctx); err != nil {
		return DiskResult{}, err
	}
	if d.suspects != nil {
		o.Changed = merge(o.Changed, d.suspects.blocks)
	}
	d.nodes = make([]chunk.ID, tree.Nodes(o.Size))
	copy(d.nodes, d.base.Nodes)

	var read atomic.Int64
	began := time.Now()
	get := func(ctx context.Context, p []byte, off int64) error {
		if err := r.ReadAt(ctx, p, off); err != nil {
			return err
		}
		read.Add(int64(len(p)))
		if o.Progress != nil {
			o.Progress(int64(len(p)))
		}
		return nil
	}
	free := make(chan *changedRead, o.Readers+d.run.opts.Workers)
	for range cap(free) {
		free <- new(changedRead)
	}
	g, gctx := errgroup.WithContext(ctx)
	ready := d.readAhead(gctx, g, o, get, free)
	for range d.run.opts.Workers {
		g.Go(func() error { return d.workChanged(gctx, ready, free) })
	}
	if err := g.Wait(); err != nil {
		return DiskResult{}, err
	}
	d.counts.Read = read.Load()
	res, err := d.finish()
	res.Waited = d.ahead(time.Since(began))
	return res, err
}

// readAhead starts readers in g, which wait for the transport most of the time
// and run ahead of the workers: as many of these would push each other out of
// the processor's caches. It returns where the blocks that are read come from.
func (d *diskRun) readAhead(ctx context.Context, g *errgroup.Group, o ChangedOptions, get fetch, free <-chan *changedRead) <-chan *changedRead {
	work, ready := make(chan changedBlock), make(chan *changedRead)
	g.Go(func() error {
		defer close(work)
		blocks := newChangedBlocks(o, d.base.Size)
		for {
			b, ok := blocks.next()
			if !ok {
				return d.closeNodes(len(d.nodes))
			}
			var err error
			if b.node, err = d.enter(ctx, b.index); err != nil {
				return err
			}
			select {
			case work <- b:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
	})
	var readers sync.WaitGroup
	readers.Add(o.Readers)
	for range o.Readers {
		g.Go(func() error {
			defer readers.Done()
			for b := range work {
				var c *changedRead
				select {
				case c = <-free:
				case <-ctx.Done():
					return context.Cause(ctx)
				}
				if err := d.readChanged(ctx, c, b, get); err != nil {
					return err
				}
				select {
				case ready <- c:
				case <-ctx.Done():
					return context.Cause(ctx)
				}
			}
			return nil
		})
	}
	g.Go(func() error {
		readers.Wait()
		close(ready)
		return nil
	})
	return ready
}

// workChanged is a worker: it cuts again what is ready, and gives it back.
func (d *diskRun) workChanged(ctx context.Context, ready <-chan *changedRead, free chan<- *changedRead) error {
	w, err := d.newBlockWorker()
	if err != nil {
		return err
	}
	defer w.k.Done()
	var idle time.Duration
	for {
		asked := time.Now()
		c, ok := <-ready
		began := time.Now()
		idle += began.Sub(asked)
		if !ok {
			break
		}
		list, err := w.changed(ctx, c)
		w.busy += time.Since(began)
		if err != nil {
			return err
		}
		if err := d.leave(w.k, block{index: c.index, node: c.node}, list); err != nil {
			return err
		}
		free <- c
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.counts.Changed += w.counts.Changed
	d.counts.New += w.counts.New
	d.counts.Stored += w.counts.Stored
	d.spent.source += idle
	d.spent.busy += w.busy
	d.spent.storage += w.k.Waited()
	return nil
}

// changedBlock is a block to be cut again, or with no dirty part one to be
// compared.
type changedBlock struct {
	index int64
	node  *node
	dirty []disk.Extent // in the block, in whole pages
}

// changedBlocks gives the blocks that are to be worked on, ascending.
type changedBlocks struct {
	o     ChangedOptions
	at    int64 // block
	limit int64
	base  int64 // size of the base
}

func newChangedBlocks(o ChangedOptions, base int64) *changedBlocks {
	return &changedBlocks{o: o, limit: disk.Blocks(o.Size), base: base}
}

func (c *changedBlocks) next() (changedBlock, bool) {
	for ; c.at < c.limit; c.at++ {
		b := changedBlock{index: c.at, dirty: c.dirty()}
		if len(b.dirty) > 0 || (c.o.Verify != nil && c.o.Verify(c.at)) {
			c.at++
			return b, true
		}
		// Jump to the next block that anything is said of.
		if c.o.Verify == nil && (c.at+1)*disk.BlockSize <= c.base {
			next := c.limit
			if len(c.o.Changed) > 0 {
				next = c.o.Changed[0].Offset / disk.BlockSize
			}
			if c.o.Size > c.base {
				next = min(next, c.base/disk.BlockSize)
			}
			c.at = max(c.at, min(next, c.limit)-1)
		}
	}
	return changedBlock{}, false
}

// dirty gives the changed parts of the block at hand, rounded to pages, and
// drops the extents that end in or before it.
func (c *changedBlocks) dirty() []disk.Extent {
	start := c.at * disk.BlockSize
	end := start + int64(disk.BlockLength(c.o.Size, c.at))
	var out []disk.Extent
	add := func(from, to int64) {
		from = max(from, start) / disk.PageSize * disk.PageSize
		to = min((to+disk.PageSize-1)/disk.PageSize*disk.PageSize, end)
		if from >= to {
			return
		}
		if n := len(out); n > 0 && out[n-1].Offset+start+out[n-1].Length >= from {
			out[n-1].Length = max(out[n-1].Length, to-start-out[n-1].Offset)
			return
		}
		out = append(out, disk.Extent{Offset: from - start, Length: to - from})
	}
	for len(c.o.Changed) > 0 && c.o.Changed[0].Offset < end {
		add(c.o.Changed[0].Offset, c.o.Changed[0].End())
		if c.o.Changed[0].End() > end {
			break // it goes on in the next block
		}
		c.o.Changed = c.o.Changed[1:]
	}
	if c.o.Size > c.base && c.base < end {
		// Grown: all behind the old end, and its block whole, as its last
		// page and the run there end otherwise now.
		return []disk.Extent{{Offset: 0, Length: end - start}}
	}
	return out
}

// changedRead is a changed block of which what is needed was read, in most
// cases.
type changedRead struct {
	recutter
	index  int64
	node   *node
	verify bool // compared, not changed
}

// readChanged reads into c what cutting b again needs for certain.
func (d *diskRun) readChanged(ctx context.Context, c *changedRead, b changedBlock, get fetch) error {
	length := disk.BlockLength(d.o.Size, b.index)
	start := b.index * disk.BlockSize
	c.index, c.node, c.verify = b.index, b.node, len(b.dirty) == 0
	dirty := b.dirty
	if c.verify {
		dirty = []disk.Extent{{Length: int64(length)}}
	}
	var old []tree.Piece
	whole := len(dirty) == 1 && dirty[0].Offset == 0 && dirty[0].Length == int64(length) && !c.verify
	if start < d.base.Size && disk.BlockLength(d.base.Size, b.index) == length && !whole {
		var err error
		if old, err = d.oldPieces(ctx, b.index); err != nil {
			return err
		}
	}
	return c.begin(ctx, length, old, dirty, func(ctx context.Context, p []byte, off int64) error { return get(ctx, p, start+off) })
}

// changed cuts a block again, or compares it.
func (w *blockWorker) changed(ctx context.Context, c *changedRead) (chunk.ID, error) {
	d := w.d
	w.fresh = w.fresh[:0]
	pieces, err := c.pieces(ctx, w.cut, func(p []byte) (chunk.ID, error) {
		id := w.k.Sum(chunk.Data, p)
		if !w.known(id, c.old) {
			// Stored below, while c still holds the bytes.
			w.fresh = append(w.fresh, chunkstore.Piece{ID: id, Data: p})
		}
		if !c.verify {
			w.counts.Changed += int64(len(p))
		}
		return id, nil
	})
	if err != nil {
		return chunk.ID{}, err
	}
	res, err := w.k.PutAll(chunk.Data, w.fresh)
	if err != nil {
		return chunk.ID{}, err
	}
	w.counts.New += res.New
	w.counts.Stored += res.Stored
	var id chunk.ID
	if len(pieces) > 0 && !(len(pieces) == 1 && pieces[0].IsZero()) {
		w.list = tree.AppendList(w.list[:0], pieces)
		id = w.k.Sum(chunk.List, w.list)
		if res, err = d.putUnless(w.k, chunk.List, id, w.list, d.oldList(c.index)); err != nil {
			return chunk.ID{}, err
		}
		w.counts.Stored += res.Stored
	}
	d.mu.Lock()
	was := c.node.lists[c.index%tree.NodeBlocks] // the base's, until this block is done
	d.mu.Unlock()
	if c.verify && id != was {
		start := c.index * disk.BlockSize
		return chunk.ID{}, fmt.Errorf("bytes %d to %d: %w", start, start+int64(disk.BlockLength(d.o.Size, c.index)), ErrUnsaidChange)
	}
	return id, nil
}

// Sample picks one block in n, others for each seed, for ChangedOptions.Verify.
func Sample(n, seed int64) func(block int64) bool {
	return func(block int64) bool {
		// A multiplicative hash spreads neighbours.
		return uint64((block^seed)*0x9E3779B97F4A7C)>>8%uint64(max(n, 1)) == 0
	}
}
