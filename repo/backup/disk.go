package backup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"xenkeep/chunkstore"
	"xenkeep/chunkstore/chunk"
	"xenkeep/chunkstore/seal"
	"xenkeep/internal/disk"
	"xenkeep/repo"
	"xenkeep/repo/tree"

	"golang.org/x/sync/errgroup"
)

// DiskOptions describes one disk.
type DiskOptions struct {
	// Size is the disk's size in bytes. Data that the source delivers beyond it
	// must be zero, and is dropped.
	Size int64
	// Base is the root of this disk's last backup, or zero if there is none. It is
	// useful for a full read too: known chunks are then found sooner.
	Base chunk.ID
	// Delta means that ranges which the source does not deliver are the same as in
	// Base. Without it, they are zero.
	Delta bool
	// Progress, if set, is called with the bytes of each extent read, from one
	// goroutine.
	Progress func(n int64)
}

// DiskResult describes a disk that was stored in the repository.
type DiskResult struct {
	Root   chunk.ID
	Counts repo.DiskRead
	Waited Timing
	// Emptied reports that the disk contains only zeros although its base contains
	// data.
	Emptied bool
}

// BackupDisk reads a source to its end and stores the data that is new. The root depends
// only on the disk's size and content.
func (run *Run) BackupDisk(ctx context.Context, src disk.Source, o DiskOptions) (DiskResult, error) {
	d := &diskRun{run: run, src: src, o: o, building: make(map[int]*node)}
	if o.Size < 0 || o.Size > tree.MaxSize {
		return DiskResult{}, fmt.Errorf("disk of %d bytes", o.Size)
	}
	select {
	case run.disks <- struct{}{}:
		defer func() { <-run.disks }()
	case <-ctx.Done():
		return DiskResult{}, context.Cause(ctx)
	}
	if err := d.openBase(ctx); err != nil {
		return DiskResult{}, err
	}
	d.nodes = make([]chunk.ID, tree.Nodes(o.Size))
	if o.Delta {
		copy(d.nodes, d.base.Nodes)
		if err := d.grow(ctx); err != nil {
			return DiskResult{}, err
		}
	}
	// Pipeline: one goroutine reads blocks (read) into buffers of the run and sends them
	// through work, which is unbuffered, to Workers workers, which return the buffers to
	// the run. The run's buffers bound the memory, over all disks. The reader closes
	// work when it ends. After an error, all stop through gctx.
	work := make(chan block)
	began := time.Now()
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		defer close(work)
		return d.read(gctx, work)
	})
	for range run.opts.Workers {
		g.Go(func() error {
			w, err := d.newBlockWorker()
			if err != nil {
				return err
			}
			defer w.k.Done()
			return d.work(gctx, work, w)
		})
	}
	if err := g.Wait(); err != nil {
		return DiskResult{}, err
	}
	res, err := d.finish()
	res.Waited = d.inOrder(time.Since(began))
	return res, err
}

// diskRun is the state of one disk's backup. It uses at most the run's block
// buffers and the lists of a few GiB of the base.
type diskRun struct {
	run  *Run
	src  disk.Source
	o    DiskOptions
	base *tree.Root // nil without one

	mends    bool // store suspect parts of the base again
	suspects *suspects

	mu       sync.Mutex
	nodes    []chunk.ID // of the new root, filled as nodes are finished
	building map[int]*node
	old      [4]*oldNode // recently used nodes of the base
	counts   repo.DiskRead
	spent    spent
}

// block is one block as read; data has its full length.
type block struct {
	index int64
	data  []byte
	node  *node
}

// node is a node (one GiB) that is being built.
type node struct {
	index  int
	lists  tree.Node
	open   int  // blocks that are being processed
	closed bool // no more blocks follow
}

func (d *diskRun) openBase(ctx context.Context) error {
	if d.o.Base.IsZero() {
		if d.o.Delta {
			return errors.New("a delta without a base")
		}
		return nil
	}
	if !d.run.holds(d.o.Base) {
		// Nothing would protect it from a pruner.
		return errors.New("the base is not among the roots that the run claims or has stored")
	}
	var err error
	d.base, err = tree.ReadRoot(ctx, d.run.r.Store(), d.o.Base)
	if err == nil && d.o.Delta && d.base.Size > d.o.Size {
		err = fmt.Errorf("the base is larger: %d bytes, not %d", d.base.Size, d.o.Size)
	}
	if err != nil && !d.o.Delta && ctx.Err() == nil {
		d.base = nil // the base only saves work, so continue without it
		return nil
	}
	switch {
	case err != nil:
	case d.mends:
		d.suspects, err = d.findSuspects(ctx)
	case d.o.Delta:
		err = d.run.CheckBase(ctx, d.o.Base)
	}
	if err != nil {
		return fmt.Errorf("base: %w", err)
	}
	return nil
}

// ErrBadBase is returned for a delta whose base contains parts that are known to be
// damaged or about to be deleted: the disk must be read in full.
var ErrBadBase = errors.New("the last backup has parts that must be stored again")

// CheckBase returns ErrBadBase if a delta cannot be built on a root, because a
// part below it is known to be damaged or condemned. It returns nil immediately if
// no damaged or condemned data is known.
func (run *Run) CheckBase(ctx context.Context, root chunk.ID) error {
	s := run.r.Store()
	if !s.HasExclusions() {
		return nil
	}
	bad := false
	if err := tree.IDs(ctx, s, root, func(id chunk.ID) { bad = bad || !s.Has(id) }); err != nil {
		return err
	}
	if bad {
		return ErrBadBase
	}
	return nil
}

// read reads the source and passes blocks to the workers. Whole blocks are passed
// on as they are; parts of a block are assembled first.
func (d *diskRun) read(ctx context.Context, work chan<- block) error {
	var cur block // the block that is being assembled; data is nil if there is none
	defer func() {
		if cur.data != nil {
			d.run.giveBack(cur.data)
		}
	}()
	emit := func() error {
		if cur.data == nil {
			return nil
		}
		select {
		case work <- cur:
			cur = block{}
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	last := int64(0)
	for {
		buf, err := d.run.buffer(ctx)
		if err != nil {
			return err
		}
		asked := time.Now()
		e, err := d.src.Next(ctx, buf)
		d.spent.source += time.Since(asked)
		if err == nil {
			err = checkExtent(e, last)
		}
		if err == nil {
			last = e.End()
			d.counts.Read += e.Length
			if d.o.Progress != nil {
				d.o.Progress(e.Length)
			}
			e, err = clip(e, buf, d.o.Size)
		}
		index := e.Offset / disk.BlockSize
		if err == nil && cur.data != nil && cur.index != index {
			err = emit()
		}
		switch {
		case err == nil && e.Length == 0: // all of it is after the end
			d.run.giveBack(buf)
		case err == nil && cur.data == nil && int(e.Length) == disk.BlockLength(d.o.Size, index):
			cur = block{index: index, data: buf[:e.Length]}
			if cur.node, err = d.beginBlock(ctx, index); err == nil {
				err = emit()
			}
			if err != nil {
				return err
			}
		case err == nil:
			if cur.data == nil {
				cur, err = d.begin(ctx, index)
			}
			if err == nil {
				copy(cur.data[e.Offset%disk.BlockSize:], buf[:e.Length])
			}
			d.run.giveBack(buf)
			if err != nil {
				return err
			}
		default:
			d.run.giveBack(buf)
			if err != io.EOF {
				return err
			}
			if err := emit(); err != nil {
				return err
			}
			return d.closeNodes(len(d.nodes))
		}
	}
}

func checkExtent(e disk.Extent, last int64) error {
	if e.Offset < last || e.Length <= 0 || e.Offset/disk.BlockSize != (e.End()-1)/disk.BlockSize {
		return fmt.Errorf("source returned extent %d+%d, which is empty, begins before %d or crosses a block boundary", e.Offset, e.Length, last)
	}
	return nil
}

// clip drops the part of an extent after the disk's end, which must be zero.
func clip(e disk.Extent, data []byte, size int64) (disk.Extent, error) {
	if e.End() <= size {
		return e, nil
	}
	keep := max(0, size-e.Offset)
	if i := firstNonZero(data[keep:e.Length]); i >= 0 {
		return e, fmt.Errorf("data after the disk's end: offset %d of a disk of %d bytes: %w", e.Offset+keep+int64(i), size, seal.ErrCorrupt)
	}
	e.Length = keep
	return e, nil
}

// begin takes a buffer for a block that is assembled from parts.
func (d *diskRun) begin(ctx context.Context, index int64) (block, error) {
	n, err := d.beginBlock(ctx, index)
	if err != nil {
		return block{}, err
	}
	whole, err := d.run.buffer(ctx)
	if err != nil {
		return block{}, err
	}
	b := block{index: index, data: whole[:disk.BlockLength(d.o.Size, index)], node: n}
	return b, d.fill(ctx, b)
}

// fill initializes a block of which only parts will be read: with zeros, or with
// the base's data.
func (d *diskRun) fill(ctx context.Context, b block) error {
	if !d.o.Delta {
		clear(b.data)
		return nil
	}
	pieces, err := d.oldPieces(ctx, b.index)
	if err != nil {
		return err
	}
	at := b.index * disk.BlockSize
	old := tree.Block{Part: tree.Part{Extent: disk.Extent{Offset: at, Length: int64(len(b.data))}}, Pieces: pieces, Data: b.data}
	if n := d.base.Size - at; n < old.Length {
		old.Length = max(n, 0)
		clear(b.data[old.Length:])
	}
	if err := tree.ReadData(ctx, d.run.r.Store(), []tree.Block{old}); err != nil {
		return fmt.Errorf("base: %w", err)
	}
	return nil
}

// beginBlock records that a block is in progress and closes the nodes before it. It
// returns the block's node.
func (d *diskRun) beginBlock(ctx context.Context, index int64) (*node, error) {
	n := int(index / tree.NodeBlocks)
	if err := d.closeNodes(n); err != nil {
		return nil, err
	}
	d.mu.Lock()
	cur := d.building[n]
	d.mu.Unlock()
	if cur == nil {
		cur = &node{index: n}
		if d.o.Delta {
			old, err := d.oldNode(ctx, n)
			if err != nil {
				return nil, err
			}
			cur.lists = old.ids
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.building[n] = cur
	cur.open++
	return cur, nil
}

// closeNodes closes the nodes below limit, of which no more blocks follow, and
// stores those that are finished.
func (d *diskRun) closeNodes(limit int) error {
	d.mu.Lock()
	var ready []*node
	for i, n := range d.building {
		if i < limit && !n.closed {
			n.closed = true
			if n.open == 0 {
				ready = append(ready, n)
				delete(d.building, i)
			}
		}
	}
	d.mu.Unlock()
	if len(ready) == 0 {
		return nil
	}
	k, err := d.run.w.NewWorker()
	if err != nil {
		return err
	}
	defer k.Done()
	for _, n := range ready {
		if err := d.putNode(k, n); err != nil {
			return err
		}
	}
	return nil
}

// endBlock records a block's list, and stores its node if the block was the last one
// of a closed node.
func (d *diskRun) endBlock(k *chunkstore.Worker, b block, list chunk.ID) error {
	d.mu.Lock()
	b.node.lists[b.index%tree.NodeBlocks] = list
	b.node.open--
	ready := b.node.closed && b.node.open == 0
	if ready {
		delete(d.building, b.node.index)
	}
	d.mu.Unlock()
	if !ready {
		return nil
	}
	return d.putNode(k, b.node)
}

func (d *diskRun) putNode(k *chunkstore.Worker, n *node) error {
	var id chunk.ID
	if !n.lists.IsZero() {
		p := tree.AppendNode(nil, &n.lists)
		id = k.Sum(chunk.Node, p)
		res, err := d.putUnless(k, chunk.Node, id, p, d.baseNode(n.index))
		if err != nil {
			return err
		}
		d.mu.Lock()
		d.counts.Stored += res.Stored
		d.mu.Unlock()
	}
	d.mu.Lock()
	d.nodes[n.index] = id
	d.mu.Unlock()
	return nil
}

// putUnless stores a tree blob unless it equals the base's blob at the same place
// and that is usable.
func (d *diskRun) putUnless(k *chunkstore.Worker, kind chunk.Kind, id chunk.ID, p []byte, old chunk.ID) (chunkstore.PutResult, error) {
	if id == old && d.run.r.Store().Has(id) {
		return chunkstore.PutResult{}, nil
	}
	return k.Put(kind, id, p)
}

func (d *diskRun) baseNode(i int) chunk.ID {
	if d.base == nil || i >= len(d.base.Nodes) {
		return chunk.ID{}
	}
	return d.base.Nodes[i]
}

// finish writes the root.
func (d *diskRun) finish() (DiskResult, error) {
	k, err := d.run.w.NewWorker()
	if err != nil {
		return DiskResult{}, err
	}
	defer k.Done()
	p := tree.AppendRoot(nil, &tree.Root{Size: d.o.Size, Nodes: d.nodes})
	id := k.Sum(chunk.Root, p)
	res, err := d.putUnless(k, chunk.Root, id, p, d.o.Base)
	if err != nil {
		return DiskResult{}, err
	}
	d.counts.Stored += res.Stored
	d.run.mu.Lock()
	d.run.roots[id] = true
	d.run.mu.Unlock()
	return DiskResult{Root: id, Counts: d.counts, Emptied: d.base != nil && allZero(d.nodes) && !allZero(d.base.Nodes)}, nil
}

// allZero reports whether no node of a disk contains data.
func allZero(nodes []chunk.ID) bool {
	return !slices.ContainsFunc(nodes, func(id chunk.ID) bool { return !id.IsZero() })
}

func (d *diskRun) work(ctx context.Context, work <-chan block, w *blockWorker) error {
	for {
		asked := time.Now()
		b, ok := <-work
		if !ok {
			break
		}
		began := time.Now()
		list, err := w.block(ctx, b)
		w.busy += time.Since(began)
		w.k.Report(int64(len(b.data)), began.Sub(asked))
		d.run.giveBack(b.data)
		if err != nil {
			return err
		}
		if err := d.endBlock(w.k, b, list); err != nil {
			return err
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.counts.Changed += w.counts.Changed
	d.counts.New += w.counts.New
	d.counts.Stored += w.counts.Stored
	d.spent.busy += w.busy
	d.spent.storage += w.k.Waited()
	return nil
}

// blockWorker chunks, hashes and stores blocks, one after another.
type blockWorker struct {
	d      *diskRun
	k      *chunkstore.Worker
	cut    chunk.Chunker
	ends   []int
	pieces []tree.Piece
	fresh  []chunkstore.Item // chunks of the block that may be new
	list   []byte
	counts repo.DiskRead
	busy   time.Duration // processing blocks, including waiting for the storage
}

func (d *diskRun) newBlockWorker() (*blockWorker, error) {
	cut, err := d.run.r.Store().NewChunker()
	if err != nil {
		return nil, err
	}
	k, err := d.run.w.NewWorker()
	return &blockWorker{d: d, k: k, cut: cut}, err
}

// block stores the new chunks of a block and returns the ID of its list, or zero
// for a block of zeros.
func (w *blockWorker) block(ctx context.Context, b block) (chunk.ID, error) {
	pieces := w.pieces[:0]
	w.fresh = w.fresh[:0]
	var old []tree.Piece
	looked := false
	next := 0 // index into old
	for at := 0; at < len(b.data); {
		end := at
		for end < len(b.data) && zeroPage(b.data, end) {
			end = min(end+disk.PageSize, len(b.data))
		}
		if end > at {
			pieces = append(pieces, tree.Piece{Offset: at, Length: end - at})
			at = end
			continue
		}
		for end < len(b.data) && !zeroPage(b.data, end) {
			end = min(end+disk.PageSize, len(b.data))
		}
		if !looked {
			looked = true
			var err error
			if old, err = w.d.oldPieces(ctx, b.index); err != nil {
				return chunk.ID{}, err
			}
		}
		w.ends = w.cut.Ends(w.ends[:0], b.data[at:end])
		run := at
		for _, e := range w.ends {
			p := b.data[at : run+e]
			id := w.k.Sum(chunk.Data, p)
			for next < len(old) && old[next].Offset < at {
				next++
			}
			if next >= len(old) || old[next].Offset != at || old[next].ID != id || !w.d.run.r.Store().Usable(id) {
				if !w.known(id, old) {
					w.fresh = append(w.fresh, chunkstore.Item{ID: id, Data: p})
				}
				w.counts.Changed += int64(len(p))
			}
			pieces = append(pieces, tree.Piece{ID: id, Offset: at, Length: len(p)})
			at = run + e
		}
	}
	w.pieces = pieces
	res, err := w.k.PutAll(chunk.Data, w.fresh)
	if err != nil {
		return chunk.ID{}, err
	}
	w.counts.New += res.New
	w.counts.Stored += res.Stored
	if len(pieces) == 0 || (len(pieces) == 1 && pieces[0].IsZero()) {
		return chunk.ID{}, nil
	}
	w.list = tree.AppendList(w.list[:0], pieces)
	id := w.k.Sum(chunk.List, w.list)
	res, err = w.d.putUnless(w.k, chunk.List, id, w.list, w.d.oldList(b.index))
	w.counts.Stored += res.Stored
	return id, err
}

// known reports whether a chunk only moved within its block, so that the base
// contains it.
func (w *blockWorker) known(id chunk.ID, old []tree.Piece) bool {
	for i := range old {
		if old[i].ID == id {
			return w.d.run.r.Store().Usable(id)
		}
	}
	return false
}

var zeros [disk.PageSize]byte

// zeroPage reports whether the page that begins at offset at is zero; the last page
// may be short.
func zeroPage(data []byte, at int) bool {
	p := data[at:min(at+disk.PageSize, len(data))]
	return bytes.Equal(p, zeros[:len(p)])
}

// firstNonZero returns the index of the first byte that is not zero, or -1.
func firstNonZero(p []byte) int {
	for i, b := range p {
		if b != 0 {
			return i
		}
	}
	return -1
}
