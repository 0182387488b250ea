// Package view reads disks of a repository at random positions, not only from the
// beginning to the end: for mounts, NBD, and readers of a partition table.
//
// A [View] is a cache with a limit in bytes, shared by all disks opened through it:
// data that two snapshots share is read and cached once. A [Disk] is a disk.Reader.
// Sequential reads are detected, and the data after them is read ahead.
package view

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"

	"xenkeep/chunkstore/chunk"
	"xenkeep/internal/disk"
	"xenkeep/repo"
	"xenkeep/repo/tree"

	"golang.org/x/sync/semaphore"
)

const (
	// DefaultCache is the default size of the cache: 64 MiB.
	DefaultCache = 64 << 20
	// minCache prevents read-ahead and the tree from evicting each other.
	minCache = 8 << 20
	// inFlight limits the bytes of data that are being read concurrently.
	inFlight = 32 << 20
	// listGroup is the number of block lists that are read together, because they
	// are stored together.
	listGroup = 16
)

// ErrClosed is returned by reads after Close.
var ErrClosed = errors.New("view: closed")

// Options configures a View; the zero value is valid.
type Options struct {
	// Cache is the number of bytes that may be cached; 0 means DefaultCache.
	Cache int64
	// Ahead is the maximum number of bytes that are read ahead of a sequential
	// reader. 0 means 8 MiB or a quarter of the cache, whichever is less; a
	// negative value disables read-ahead.
	Ahead int64
}

// View opens disks of one repository. Its methods are safe for concurrent use.
type View struct {
	r       *repo.Repository
	cache   *cache
	ahead   int64
	flight  *semaphore.Weighted
	ctx     context.Context // for reads, which may outlive the caller that requested them first
	cancel  context.CancelCauseFunc
	readers sync.WaitGroup
	closing sync.RWMutex // read-locked while a reader is started
}

// New returns a View of r, whose index must have been loaded.
func New(r *repo.Repository, o Options) *View {
	if o.Cache <= 0 {
		o.Cache = DefaultCache
	}
	o.Cache = max(o.Cache, minCache)
	switch {
	case o.Ahead == 0:
		o.Ahead = min(8<<20, o.Cache/4)
	case o.Ahead < 0:
		o.Ahead = 0
	}
	v := &View{r: r, cache: newCache(o.Cache), ahead: min(o.Ahead, o.Cache/4), flight: semaphore.NewWeighted(inFlight)}
	v.ctx, v.cancel = context.WithCancelCause(context.Background())
	return v
}

// Close cancels all reads, which fail with ErrClosed, and waits for them.
func (v *View) Close() {
	v.closing.Lock() // no reader is being started
	v.cancel(ErrClosed)
	v.closing.Unlock()
	v.readers.Wait()
}

// begin runs fn in a goroutine that Close waits for. It returns false, and does not
// run fn, after Close.
func (v *View) begin(fn func()) bool {
	v.closing.RLock()
	defer v.closing.RUnlock()
	if v.ctx.Err() != nil {
		return false
	}
	v.readers.Go(fn)
	return true
}

// Open reads a disk's root.
func (v *View) Open(ctx context.Context, root chunk.ID) (*Disk, error) {
	rn, err := tree.ReadRoot(ctx, v.r.Store(), root)
	if err != nil {
		return nil, err
	}
	return &Disk{v: v, root: rn}, nil
}

// request lists the blobs of one kind that one Fetch reads.
type request struct {
	ids     []chunk.ID
	entries []*entry
	bytes   int64
	decode  []func(p []byte) (any, error) // nil for data
}

// value decodes or verifies the stored bytes p of entry i.
func (rq request) value(i int, p []byte) (any, error) {
	if rq.decode != nil {
		return rq.decode[i](p)
	}
	piece := tree.Piece{ID: rq.ids[i], Length: int(rq.entries[i].size)}
	if err := piece.Check(p); err != nil {
		return nil, err
	}
	return bytes.Clone(p), nil
}

// load fetches the blobs of a request, in the background.
func (v *View) load(k chunk.Kind, rq request) {
	if len(rq.ids) == 0 {
		return
	}
	settled := make([]bool, len(rq.ids))
	fail := func(err error) {
		for i, e := range rq.entries {
			if !settled[i] {
				v.cache.settle(e, nil, err)
			}
		}
	}
	ok := v.begin(func() {
		if n := min(rq.bytes, inFlight); n > 0 {
			if err := v.flight.Acquire(v.ctx, n); err != nil {
				fail(context.Cause(v.ctx))
				return
			}
			defer v.flight.Release(n)
		}
		var mu sync.Mutex
		err := v.r.Store().Fetch(v.ctx, k, rq.ids, func(i int, p []byte) error {
			value, err := rq.value(i, p)
			mu.Lock()
			settled[i] = true
			mu.Unlock()
			v.cache.settle(rq.entries[i], value, err)
			return nil // the other blobs may be sound
		})
		if err == nil {
			return
		}
		if v.ctx.Err() != nil {
			fail(context.Cause(v.ctx))
			return
		}
		v.oneByOne(k, rq, settled)
	})
	if !ok {
		fail(ErrClosed)
	}
}

// oneByOne fetches the blobs that a failed Fetch did not deliver, so that damage is
// reported for the blobs that it concerns and for no others.
func (v *View) oneByOne(k chunk.Kind, rq request, settled []bool) {
	for i, e := range rq.entries {
		if settled[i] {
			continue
		}
		var value any
		p, err := v.r.Store().Load(v.ctx, k, rq.ids[i])
		if err == nil {
			value, err = rq.value(i, p)
		} else if v.ctx.Err() != nil {
			err = context.Cause(v.ctx)
		}
		v.cache.settle(e, value, err)
	}
}

// await waits for an entry.
func (v *View) await(ctx context.Context, e *entry) (any, error) {
	select {
	case <-e.done:
		return e.value, e.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// Disk is one disk of the repository; it implements disk.Reader. Its methods are
// safe for concurrent use. It does not have to be closed.
type Disk struct {
	v    *View
	root *tree.Root

	mu      sync.Mutex
	streams [4]stream // sequential readers, the most recent one first
}

var _ disk.Reader = (*Disk)(nil)

// Size returns the disk's size in bytes.
func (d *Disk) Size() int64 { return d.root.Size }

// ReadAt fills p from byte offset off. Reading beyond the disk's end is an error.
func (d *Disk) ReadAt(ctx context.Context, p []byte, off int64) error {
	if off < 0 || off+int64(len(p)) > d.root.Size {
		return fmt.Errorf("view: bytes %d to %d of a disk of %d", off, off+int64(len(p)), d.root.Size)
	}
	d.follow(off, int64(len(p)))
	for len(p) > 0 {
		b := off / disk.BlockSize
		n := min(int64(len(p)), (b+1)*disk.BlockSize-off)
		if err := d.readBlock(ctx, b, p[:n], int(off-b*disk.BlockSize)); err != nil {
			return err
		}
		p, off = p[n:], off+n
	}
	return nil
}

// readBlock fills p from byte at of block b.
func (d *Disk) readBlock(ctx context.Context, b int64, p []byte, at int) error {
	pieces, err := d.Pieces(ctx, b)
	if err != nil {
		return err
	}
	if pieces == nil {
		clear(p)
		return nil
	}
	type part struct {
		e    *entry
		to   []byte
		from int
	}
	var parts []part
	var rq request
	for _, piece := range pieces {
		from, to := max(piece.Offset, at), min(piece.Offset+piece.Length, at+len(p))
		if from >= to {
			continue
		}
		dst := p[from-at : to-at]
		if piece.IsZero() {
			clear(dst)
			continue
		}
		e := d.want(&rq, piece)
		parts = append(parts, part{e, dst, from - piece.Offset})
	}
	d.v.load(chunk.Data, rq)
	for _, x := range parts {
		value, err := d.v.await(ctx, x.e)
		if err != nil {
			return fmt.Errorf("disk bytes %d to %d: %w", b*disk.BlockSize+int64(at), b*disk.BlockSize+int64(at+len(p)), err)
		}
		copy(x.to, value.([]byte)[x.from:])
	}
	return nil
}

// want returns the entry of a chunk; if the chunk is not cached, it is added to rq.
func (d *Disk) want(rq *request, p tree.Piece) *entry {
	e, mine := d.v.cache.get(key{chunk.Data, p.ID}, int64(p.Length))
	if mine {
		rq.ids, rq.entries, rq.bytes = append(rq.ids, p.ID), append(rq.entries, e), rq.bytes+int64(p.Length)
	}
	return e
}

// Pieces returns the pieces of block b, or nil if the block is zero. The caller
// must not modify them.
func (d *Disk) Pieces(ctx context.Context, b int64) ([]tree.Piece, error) {
	if b < 0 || b >= disk.Blocks(d.root.Size) {
		return nil, fmt.Errorf("view: block %d of a disk of %d bytes", b, d.root.Size)
	}
	node, err := d.node(ctx, int(b/tree.NodeBlocks))
	if err != nil || node == nil {
		return nil, err
	}
	at := int(b % tree.NodeBlocks)
	if node[at].IsZero() {
		return nil, nil
	}
	e, mine := d.v.cache.get(key{chunk.List, node[at]}, listSize)
	if mine {
		d.loadLists(node, b, at, e)
	}
	value, err := d.v.await(ctx, e)
	if err != nil {
		return nil, fmt.Errorf("disk bytes %d to %d: %w", b*disk.BlockSize, b*disk.BlockSize+int64(disk.BlockLength(d.root.Size, b)), err)
	}
	return value.([]tree.Piece), nil
}

// The memory used by a decoded list of about 60 pieces, and by a node.
const (
	listSize = 60 * 48
	nodeSize = tree.NodeBlocks * chunk.IDSize
)

// loadLists reads the list of block b, whose entry is e, and those after it.
func (d *Disk) loadLists(node *tree.Node, b int64, at int, e *entry) {
	var rq request
	add := func(i int, e *entry) {
		length := disk.BlockLength(d.root.Size, b-int64(at)+int64(i))
		rq.ids, rq.entries = append(rq.ids, node[i]), append(rq.entries, e)
		rq.decode = append(rq.decode, func(p []byte) (any, error) { return tree.DecodeList(nil, p, length) })
	}
	add(at, e)
	for i := at + 1; i < min(at+listGroup, tree.NodeBlocks); i++ {
		if node[i].IsZero() {
			continue
		}
		if e, mine := d.v.cache.get(key{chunk.List, node[i]}, listSize); mine {
			add(i, e)
		}
	}
	d.v.load(chunk.List, rq)
}

// node returns node i, or nil if it is zero.
func (d *Disk) node(ctx context.Context, i int) (*tree.Node, error) {
	id := d.root.Nodes[i]
	if id.IsZero() {
		return nil, nil
	}
	e, mine := d.v.cache.get(key{chunk.Node, id}, nodeSize)
	if mine {
		d.v.load(chunk.Node, request{ids: []chunk.ID{id}, entries: []*entry{e}, decode: []func([]byte) (any, error){
			func(p []byte) (any, error) { return tree.DecodeNode(p) },
		}})
	}
	value, err := d.v.await(ctx, e)
	if err != nil {
		return nil, err
	}
	return value.(*tree.Node), nil
}

// Extents returns the allocation of length bytes at off according to the tree:
// alternating stretches of data and of zeros, in order, without gaps. It reads only
// the tree, and at most limit block lists; therefore it may end before off+length.
func (d *Disk) Extents(ctx context.Context, off, length int64, limit int) ([]Extent, error) {
	var out []Extent
	add := func(at, n int64, zero bool) {
		if last := len(out) - 1; last >= 0 && out[last].Zero == zero {
			out[last].Length += n
			return
		}
		out = append(out, Extent{disk.Extent{Offset: at, Length: n}, zero})
	}
	end := min(off+length, d.root.Size)
	for read := 0; off < end; {
		b := off / disk.BlockSize
		stop := min(end, (b+1)*disk.BlockSize)
		if i := int(b / tree.NodeBlocks); d.root.Nodes[i].IsZero() {
			stop = min(end, int64(i+1)*tree.NodeBlocks*disk.BlockSize)
			add(off, stop-off, true)
			off = stop
			continue
		}
		if read == limit {
			break
		}
		pieces, err := d.Pieces(ctx, b)
		if err != nil {
			return nil, err
		}
		if pieces == nil {
			add(off, stop-off, true)
			off = stop
			continue
		}
		read++
		for _, p := range pieces {
			from, to := max(off, b*disk.BlockSize+int64(p.Offset)), min(stop, b*disk.BlockSize+int64(p.Offset+p.Length))
			if from < to {
				add(from, to-from, p.IsZero())
			}
		}
		off = stop
	}
	return out, nil
}

// Extent is a byte range of a disk that contains data, or only zeros.
type Extent struct {
	disk.Extent
	Zero bool
}
