package chunkstore

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"xenkeep/chunkstore/chunk"
	"xenkeep/chunkstore/index"
	"xenkeep/chunkstore/pack"
	"xenkeep/chunkstore/seal"

	"golang.org/x/sync/errgroup"
)

const (
	// minPack is how large the first packs of a run get: a pack is about
	// 1/48 of what the run has uploaded, between minPack and
	// pack.TargetSize, so that a killed run loses little of its work.
	minPack      = 4 << 20
	packFraction = 48
	// packRoom is what a pack's buffer has beyond TargetSize, for the table.
	packRoom = 3 << 20
	// A run's index is put after this much stored data or time, whichever
	// comes first.
	indexBytes  = 1 << 30
	indexPeriod = 5 * time.Minute
)

// WriterOptions tell how a run writes.
type WriterOptions struct {
	Run   RunID
	Level seal.Level
	// Uploads is how many packs may be on their way at once; 0 is the
	// storage's choice. The writer holds one pack (32 MiB) for each, and two
	// more.
	Uploads int
	// Now is the clock for the index period; nil is time.Now.
	Now func() time.Time
}

// WriteStats count what a Writer did.
type WriteStats struct {
	Packs  int64 // put
	Stored int64 // bytes of packs put
}

// Writer adds blobs, for one run. Put may be called at once, each goroutine
// with a Worker of its own.
type Writer struct {
	s    *Store
	opts WriterOptions

	// start runs a function in a goroutine that Write waits for, under the
	// context of the whole run. What a Put has begun ends with the run alone,
	// not with the disk that asked: another disk may lean on the same blob.
	start   func(func(ctx context.Context) error)
	stopped <-chan struct{} // closed when the run is over

	open    [2]openPack // data, tree
	buffers chan []byte

	// Put holds it for reading: a Flush must not end the open packs between a
	// Put's claim of an ID and its place in a pack, else another disk's
	// snapshot could be published that leans on a chunk still in memory.
	flush sync.RWMutex

	pending shards // IDs in packs that the index does not hold yet

	mu       sync.Mutex
	done     []finishedPack // put, not in the index yet
	doneSize int64
	indexed  time.Time
	stats    WriteStats
	err      error
	inFlight sync.WaitGroup // packs on their way
	used     map[pack.ID]struct{}
	made     map[pack.ID]struct{}
}

type finishedPack struct {
	entries index.PackEntries
	ids     []chunk.ID
}

// openPack is the pack of one kind that blobs go into now.
type openPack struct {
	mu sync.Mutex
	*filling
}

type filling struct {
	b       *pack.Builder
	buf     []byte
	blobs   sync.WaitGroup // reserved and not yet filled
	ids     []chunk.ID
	targets int
	tree    bool
}

// Write runs fn with a Writer and returns when all that was started has ended.
// fn must call Flush last; what was put after the last Flush is in no index
// object, and a later run adopts it.
func (s *Store) Write(ctx context.Context, o WriterOptions, fn func(ctx context.Context, w *Writer) error) error {
	if o.Uploads <= 0 {
		t := s.objects.Traits()
		if o.Uploads = t.Uploads; o.Uploads <= 0 {
			o.Uploads = min(max(t.Parallel, 1), 3)
		}
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	g, ctx := errgroup.WithContext(ctx)
	w := &Writer{
		s: s, opts: o, indexed: o.Now(), stopped: ctx.Done(),
		start:   func(f func(ctx context.Context) error) { g.Go(func() error { return f(ctx) }) },
		buffers: make(chan []byte, o.Uploads+2),
		used:    make(map[pack.ID]struct{}), made: make(map[pack.ID]struct{}),
	}
	for range cap(w.buffers) {
		w.buffers <- nil
	}
	g.Go(func() error { return fn(ctx, w) })
	return g.Wait()
}

// Worker is what one goroutine needs to Put.
type Worker struct {
	w      *Writer
	hasher *chunk.Hasher
	comp   *seal.Compressor
	buf    []byte // compressed
	plain  []byte // a group whose pieces lie apart
	group  []Piece
	one    [1]Piece
	used   map[pack.ID]struct{}
	last   pack.ID
	waited time.Duration
}

// NewWorker returns a Worker; Done ends it.
func (w *Writer) NewWorker() (*Worker, error) {
	c, err := seal.NewCompressor(w.opts.Level)
	if err != nil {
		return nil, err
	}
	return &Worker{
		w: w, hasher: w.s.hasher.Clone(), comp: c, buf: make([]byte, 0, seal.Bound(pack.GroupSize)),
		used: make(map[pack.ID]struct{}),
	}, nil
}

// Done ends the worker: it hands in what it knows of packs it leant on.
func (k *Worker) Done() {
	k.comp.Close()
	k.comp = nil
	k.w.mu.Lock()
	defer k.w.mu.Unlock()
	for id := range k.used {
		k.w.used[id] = struct{}{}
	}
}

// Waited is how long the worker's Puts have waited for the storage so far: for
// room in a pack while all buffers are on their way.
func (k *Worker) Waited() time.Duration { return k.waited }

// Sum names p as data of kind kind.
func (k *Worker) Sum(kind chunk.Kind, p []byte) chunk.ID { return k.hasher.Sum(kind, p) }

// Piece is plain data to be stored under its ID, which is Worker.Sum of it.
type Piece struct {
	ID   chunk.ID
	Data []byte
}

// PutResult counts what was not known before, in bytes.
type PutResult struct {
	New    int64 // plain
	Stored int64 // as it lies in packs
}

// Put stores one piece unless its ID is stored already.
func (k *Worker) Put(kind chunk.Kind, id chunk.ID, p []byte) (PutResult, error) {
	k.one[0] = Piece{ID: id, Data: p}
	return k.PutAll(kind, k.one[:])
}

// PutAll stores those of pieces whose IDs are not stored already. Data chunks
// that are new together share blobs of up to pack.GroupSize: what lies together
// on a disk is alike, so that it compresses better as one. Nothing of pieces is
// kept. PutAll waits while the storage is slow; an error means that the whole
// run has failed.
func (k *Worker) PutAll(kind chunk.Kind, pieces []Piece) (PutResult, error) {
	k.w.flush.RLock()
	defer k.w.flush.RUnlock()
	var res PutResult
	k.group = k.group[:0]
	size := 0
	for _, p := range pieces {
		if at, ok := k.w.s.locate(p.ID); ok {
			if at.Pack != k.last {
				k.last = at.Pack
				k.used[at.Pack] = struct{}{}
			}
			continue
		}
		if !k.w.pending.add(p.ID) {
			continue
		}
		if len(k.group) > 0 && (kind != chunk.Data || size+len(p.Data) > pack.GroupSize || len(k.group) == pack.MaxGroup) {
			if err := k.putGroup(kind, &res); err != nil {
				return res, err
			}
			size = 0
		}
		k.group = append(k.group, p)
		size += len(p.Data)
	}
	err := k.putGroup(kind, &res)
	return res, err
}

// putGroup stores the pieces of the group as one blob.
func (k *Worker) putGroup(kind chunk.Kind, res *PutResult) error {
	if len(k.group) == 0 {
		return nil
	}
	plain := k.joined()
	body, enc := k.comp.Compress(k.buf, plain)
	if enc == seal.Zstd && cap(body) > cap(k.buf) {
		k.buf = body
	}
	content := make([]pack.Piece, len(k.group))
	for i, p := range k.group {
		content[i] = pack.Piece{ID: p.ID, Length: uint32(len(p.Data))}
	}
	k.group = k.group[:0]
	began := time.Now()
	f, slot, err := k.w.reserve(kind, enc, content, len(body))
	k.waited += time.Since(began)
	if err != nil {
		ids := make([]chunk.ID, len(content))
		for i, p := range content {
			ids[i] = p.ID
		}
		k.w.pending.remove(ids) // nobody may lean on what was not stored
		return err
	}
	defer f.blobs.Done()
	res.New += int64(len(plain))
	res.Stored += int64(slot.Stored())
	return f.b.Fill(slot, body)
}

// joined gives the bytes of the group's pieces: as they lie where they follow
// one another in memory, as chunks of one block mostly do, else a copy.
func (k *Worker) joined() []byte {
	first := k.group[0].Data
	if len(k.group) == 1 {
		return first
	}
	n := len(first)
	together := true
	for _, p := range k.group[1:] {
		whole := first[:cap(first)]
		together = together && n+len(p.Data) <= len(whole) && len(p.Data) > 0 && &whole[n] == &p.Data[0]
		n += len(p.Data)
	}
	if together {
		return first[:n:n]
	}
	k.plain = k.plain[:0]
	for _, p := range k.group {
		k.plain = append(k.plain, p.Data...)
	}
	return k.plain
}

// reserve finds room in the open pack of the right kind for a blob of n encoded
// bytes; a full one is sent off first. It waits while all pack buffers are on
// their way.
func (w *Writer) reserve(kind chunk.Kind, e seal.Encoding, pieces []pack.Piece, n int) (*filling, pack.Slot, error) {
	pk := pack.KindOf(kind)
	o := &w.open[pk-1]
	o.mu.Lock()
	defer o.mu.Unlock()
	for {
		if o.filling == nil {
			f, err := w.begin(pk, n)
			if err != nil {
				return nil, pack.Slot{}, err
			}
			o.filling = f
		}
		slot, ok := o.b.Reserve(kind, e, pieces, n, o.targets)
		if ok {
			for _, p := range pieces {
				o.ids = append(o.ids, p.ID)
			}
			o.blobs.Add(1)
			return o.filling, slot, nil
		}
		if n > pack.TargetSize {
			return nil, pack.Slot{}, fmt.Errorf("%v of %d bytes does not fit a pack", kind, n)
		}
		w.send(o.filling)
		o.filling = nil
	}
}

// begin waits for a buffer and begins a pack in it that takes a blob of n
// encoded bytes at least.
func (w *Writer) begin(k pack.Kind, n int) (*filling, error) {
	var buf []byte
	select {
	case buf = <-w.buffers:
	case <-w.stopped:
		return nil, w.failure()
	}
	w.mu.Lock()
	target := int(min(max(w.stats.Stored/packFraction, minPack), pack.TargetSize))
	w.mu.Unlock()
	// A buffer grows with the packs, by doubling: small runs need little.
	if need := max(target, min(n, pack.TargetSize)); cap(buf) < need+packRoom {
		size := minPack
		for size < need {
			size *= 2
		}
		buf = make([]byte, 0, min(size, pack.TargetSize)+packRoom)
	}
	b, err := pack.NewBuilder(w.s.keys, k, buf)
	if err != nil {
		return nil, err
	}
	return &filling{b: b, buf: buf, targets: target, tree: k == pack.Tree}, nil
}

// send puts a pack on its way, in a goroutine of its own; how many there are
// is bounded by the buffers.
func (w *Writer) send(f *filling) {
	w.inFlight.Add(1)
	w.start(func(ctx context.Context) error {
		defer w.inFlight.Done()
		err := w.upload(ctx, f)
		if err != nil {
			w.mu.Lock()
			if w.err == nil {
				w.err = err
			}
			w.mu.Unlock()
			return err
		}
		w.buffers <- f.buf
		return w.indexIfDue(ctx)
	})
}

// failure is why the run is over.
func (w *Writer) failure() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err != nil {
		return w.err
	}
	return context.Canceled
}

func (w *Writer) upload(ctx context.Context, f *filling) error {
	f.blobs.Wait()
	id, data, blobs, err := f.b.Finish()
	if err != nil {
		return err
	}
	if err := w.s.objects.Put(ctx, id.ObjectName(), data); err != nil {
		return err
	}
	if c := w.s.trees; c != nil && f.tree {
		c.put(id, data) // the next run builds on it
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.done = append(w.done, finishedPack{entries: packEntries(id, int64(len(data)), blobs), ids: f.ids})
	w.doneSize += int64(len(data))
	w.stats.Packs++
	w.stats.Stored += int64(len(data))
	w.made[id] = struct{}{}
	return nil
}

func (w *Writer) indexIfDue(ctx context.Context) error {
	w.mu.Lock()
	due := w.doneSize >= indexBytes || w.opts.Now().Sub(w.indexed) >= indexPeriod
	w.mu.Unlock()
	if !due {
		return nil
	}
	return w.putIndex(ctx, nil)
}

// putIndex makes the packs put so far, and extra ones, part of the index: in
// storage first, then here, then they need not be remembered any more.
func (w *Writer) putIndex(ctx context.Context, extra []index.PackEntries) error {
	w.mu.Lock()
	done := w.done
	w.done, w.doneSize, w.indexed = nil, 0, w.opts.Now()
	w.mu.Unlock()
	o := &IndexObject{Run: w.opts.Run, Packs: extra}
	for _, p := range done {
		o.Packs = append(o.Packs, p.entries)
	}
	if len(o.Packs) == 0 {
		return nil
	}
	data, name, err := SealIndexObject(w.s.keys, o)
	if err == nil {
		err = w.s.objects.Put(ctx, name, data)
	}
	if err == nil {
		err = w.s.index.Add(name, o.Packs)
	}
	if err != nil {
		w.mu.Lock()
		for _, p := range done { // for Salvage
			w.done = append(w.done, p)
			w.doneSize += p.entries.Size
		}
		w.mu.Unlock()
		return err
	}
	for _, p := range done {
		w.pending.remove(p.ids)
	}
	return nil
}

// AdoptOrphans takes packs that a killed run left without an index into this
// run's index, so that nothing they hold is uploaded again. It returns how many
// there were; packs that cannot be read are passed over, they harm nobody, and
// so are those to be avoided: a pruner may be about to delete them.
func (w *Writer) AdoptOrphans(ctx context.Context) (int, error) {
	orphans, err := w.s.Orphans(ctx)
	if err != nil {
		return 0, err
	}
	w.s.takeAdopted() // they are among the orphans
	w.s.dropAvoided(orphans)
	n := 0
	for _, batch := range batches(orphans) {
		taken, _, err := w.s.Adopt(ctx, batch)
		if err == nil {
			err = w.putIndex(ctx, taken)
		}
		if err != nil {
			return n, err
		}
		n += len(taken)
	}
	return n, nil
}

// coverAdopted makes packs that were found without an index object, and that
// this run may lean on, part of the index again.
func (w *Writer) coverAdopted(ctx context.Context) error {
	adopted := w.s.takeAdopted()
	w.s.dropAvoided(adopted)
	for _, batch := range batches(adopted) {
		taken, _, err := w.s.Adopt(ctx, batch)
		if err != nil {
			return err
		}
		if err := w.putIndex(ctx, taken); err != nil {
			return err
		}
	}
	return nil
}

// Salvage puts the index of what a failed or cancelled run has uploaded, so
// that the next run uploads none of it again. Write must have returned.
func (w *Writer) Salvage(ctx context.Context) error { return w.putIndex(ctx, nil) }

// Flush ends the open packs and returns when all packs are in storage and in
// the index. Puts that come meanwhile wait.
func (w *Writer) Flush(ctx context.Context) error {
	w.flush.Lock()
	defer w.flush.Unlock()
	if err := w.coverAdopted(ctx); err != nil {
		return err
	}
	for i := range w.open {
		o := &w.open[i]
		o.mu.Lock()
		if o.filling != nil {
			w.send(o.filling)
			o.filling = nil
		}
		o.mu.Unlock()
	}
	w.inFlight.Wait()
	w.mu.Lock()
	err := w.err
	w.mu.Unlock()
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return err
	}
	return w.putIndex(ctx, nil)
}

// Unflushed is how many bytes lie in open packs or on their way.
func (w *Writer) Unflushed() int64 {
	var n int64
	for i := range w.open {
		o := &w.open[i]
		o.mu.Lock()
		if o.filling != nil {
			n += int64(o.b.Size())
		}
		o.mu.Unlock()
	}
	return n
}

// Stats are the counts so far.
func (w *Writer) Stats() WriteStats {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.stats
}

// Used lists the packs that this run leans on and did not make, as far as its
// workers have handed them in.
func (w *Writer) Used() []pack.ID {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := make([]pack.ID, 0, len(w.used))
	for id := range w.used {
		if _, own := w.made[id]; !own {
			out = append(out, id)
		}
	}
	return out
}

// Made lists the packs that this run has put.
func (w *Writer) Made() []pack.ID {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Collect(maps.Keys(w.made))
}

// shards is a set of IDs, split so that workers rarely wait for each other.
type shards [64]struct {
	mu  sync.Mutex
	set map[chunk.ID]struct{}
}

// add reports whether id was not in the set.
func (s *shards) add(id chunk.ID) bool {
	p := &s[id[0]%64]
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, ok := p.set[id]; ok {
		return false
	}
	if p.set == nil {
		p.set = make(map[chunk.ID]struct{})
	}
	p.set[id] = struct{}{}
	return true
}

func (s *shards) remove(ids []chunk.ID) {
	for _, id := range ids {
		p := &s[id[0]%64]
		p.mu.Lock()
		delete(p.set, id)
		p.mu.Unlock()
	}
}
