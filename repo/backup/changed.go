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

// ErrMissedChange is returned if a block that was reported as unchanged has
// changed: the source of the change information cannot be trusted, and the base may
// be wrong.
var ErrMissedChange = errors.New("a block that was called unchanged has changed")

// ChangedOptions describes a disk for which the ranges that may have changed are
// known.
type ChangedOptions struct {
	Size int64
	// Base is the root of the disk's last backup; everything outside Changed is the
	// same as there.
	Base chunk.ID
	// Changed lists the ranges that may differ from Base, ascending and disjoint.
	// Everything after the end of a smaller base counts as changed.
	Changed []disk.Extent
	// Verify selects unchanged blocks that are read nevertheless and compared; nil
	// selects none.
	Verify func(block int64) bool
	// Readers is the number of blocks that are read concurrently. 0 means 8.
	Readers  int
	Progress func(n int64) // called with the bytes read; from several goroutines concurrently
}

// BackupChanged stores a disk from its last backup and the changes since, and reads
// little more than those changes: see rechunker. Parts of the base that are damaged
// or condemned are read again too. The root is the same as after a full read.
func (run *Run) BackupChanged(ctx context.Context, r disk.Reader, o ChangedOptions) (DiskResult, error) {
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

// readAhead starts the reading goroutines in g and returns the channel of blocks
// that have been read. The readers wait for the transport most of the time and run
// ahead of the workers; as many workers would evict each other's data from the
// processor's caches.
//
// Pipeline: a goroutine opens the nodes and sends the changed blocks through work to
// Readers readers. Each reader takes a buffer from free, reads the block, and sends it
// through ready to Workers workers, which return the buffer to free. The buffers in
// free, Readers + Workers, bound the memory; the other channels are unbuffered. The
// first goroutine closes work, another closes ready when all readers have ended; free
// is never closed. After an error, all stop through ctx.
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
			if b.node, err = d.beginBlock(ctx, b.index); err != nil {
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

// workChanged is the loop of a worker: it chunks the blocks from ready again and
// returns them to free.
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
		w.k.Report(c.read, began.Sub(asked))
		if err != nil {
			return err
		}
		if err := d.endBlock(w.k, block{index: c.index, node: c.node}, list); err != nil {
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

// changedBlock is a block to be chunked again or, if it has no dirty part, to be
// compared.
type changedBlock struct {
	index int64
	node  *node
	dirty []disk.Extent // relative to the block, in whole pages
}

// changedBlocks iterates over the blocks to be processed, in ascending order.
type changedBlocks struct {
	o     ChangedOptions
	at    int64 // the next block
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
		// Jump to the next block that is changed or beyond the base.
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

// dirty returns the changed parts of the current block, rounded to pages, and
// removes the extents that end in or before it.
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
			break // it continues in the next block
		}
		c.o.Changed = c.o.Changed[1:]
	}
	if c.o.Size > c.base && c.base < end {
		// The disk has grown: everything after the old end is dirty, and the block
		// of the old end as a whole, because its last page and the stretch of pages
		// there now end elsewhere.
		return []disk.Extent{{Offset: 0, Length: end - start}}
	}
	return out
}

// changedRead is a changed block of which, in most cases, all needed bytes have
// been read.
type changedRead struct {
	rechunker
	index  int64
	node   *node
	verify bool // compared only, not changed
}

// readChanged reads into c the bytes that chunking b again needs in any case.
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

// changed chunks a block again, or compares it.
func (w *blockWorker) changed(ctx context.Context, c *changedRead) (chunk.ID, error) {
	d := w.d
	w.fresh = w.fresh[:0]
	pieces, err := c.pieces(ctx, w.cut, func(p []byte) (chunk.ID, error) {
		id := w.k.Sum(chunk.Data, p)
		if !w.known(id, c.old) {
			// Stored below, while c still holds the bytes.
			w.fresh = append(w.fresh, chunkstore.Item{ID: id, Data: p})
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
	was := c.node.lists[c.index%tree.NodeBlocks] // the base's list, until this block is finished
	d.mu.Unlock()
	if c.verify && id != was {
		start := c.index * disk.BlockSize
		return chunk.ID{}, fmt.Errorf("bytes %d to %d: %w", start, start+int64(disk.BlockLength(d.o.Size, c.index)), ErrMissedChange)
	}
	return id, nil
}

// Sample selects one block in n, different ones for each seed, for
// ChangedOptions.Verify.
func Sample(n, seed int64) func(block int64) bool {
	return func(block int64) bool {
		// A multiplicative hash spreads neighbouring blocks.
		return uint64((block^seed)*0x9E3779B97F4A7C)>>8%uint64(max(n, 1)) == 0
	}
}
