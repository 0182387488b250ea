package chunkstore

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"xenkeep/chunkstore/chunk"
	"xenkeep/chunkstore/index"
	"xenkeep/chunkstore/pack"
	"xenkeep/chunkstore/seal"
	"xenkeep/internal/cpu"

	"golang.org/x/sync/errgroup"
)

const (
	// minPack is the size of the first packs of a run, in bytes. The size of a
	// pack is about 1/48 of the data that the run has uploaded, between minPack
	// and pack.TargetSize, so that a killed run loses little of its work.
	minPack      = 4 << 20
	packFraction = 48
	// packRoom is the capacity of a pack's buffer beyond TargetSize, for the
	// table.
	packRoom = 3 << 20
	// The index of a run is put after this much stored data or this much time,
	// whichever comes first.
	indexBytes  = 1 << 30
	indexPeriod = 5 * time.Minute
)

// WriterOptions configure a Writer.
type WriterOptions struct {
	Run RunID
	// Level is the compression level; with seal.LevelAuto, it follows the run.
	Level seal.Level
	// Uploads is the maximum number of concurrent uploads of packs; 0 means the
	// default of the storage. The writer holds one pack (32 MiB) in memory for
	// each, and two more.
	Uploads int
	// Now is the clock of the run; nil means time.Now.
	Now func() time.Time
}

// WriteStats count the packs that a Writer has put.
type WriteStats struct {
	Packs  int64        // put
	Stored int64        // bytes of packs put
	Levels []LevelStats // compression levels that were used
}

// Writer adds blobs during one run. Any number of goroutines may use it
// concurrently, each with its own Worker.
type Writer struct {
	s    *Store
	opts WriterOptions

	// start runs a function in a goroutine, for which Write waits, with the
	// context of the whole run. Work that a Put has started is cancelled only
	// with the run, and not with the disk for which it was started, because
	// another disk may reference the same blob.
	start   func(func(ctx context.Context) error)
	stopped <-chan struct{} // closed when the run has ended

	adapt   *adapt
	packers [2]packer // data, tree
	buffers chan []byte

	// Put holds flush for reading. A Flush must not end the open packs between
	// the time when a Put claims an ID and the time when it reserves space in a
	// pack. Otherwise the snapshot of another disk could be published while it
	// references a chunk that is still in memory.
	flush sync.RWMutex

	pending shards // IDs in packs that are not in the index yet

	mu       sync.Mutex
	done     donePacks
	stats    WriteStats
	err      error
	inFlight sync.WaitGroup // packs being uploaded
	packs    runPacks
}

// runPacks are the packs that a run depends on.
type runPacks struct {
	used map[pack.ID]struct{} // it references them, as far as its workers are done
	made map[pack.ID]struct{} // it has put them
}

// donePacks are packs that were put but are not in the index yet.
type donePacks struct {
	packs []finishedPack
	size  int64
	since time.Time // when the index was put last
}

type finishedPack struct {
	entries index.PackEntries
	ids     []chunk.ID
}

func (d *donePacks) add(p finishedPack) {
	d.packs = append(d.packs, p)
	d.size += p.entries.Size
}

// Write runs fn with a Writer, and returns when all started work has ended. Fn
// must call Flush last. Data that is put after the last Flush is in no index
// object; a later run adopts it.
//
// Pipeline: the callers of Put fill the open pack of each kind. The caller that fills
// it up starts a goroutine that finishes and uploads it, and then returns its buffer
// to buffers (send). The Uploads + 2 buffers bound the memory and the goroutines: a
// caller that needs a new pack waits for a buffer. Nothing is closed; Write returns
// when fn and all uploads have ended, and after an error all stop through ctx.
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
		s: s, opts: o, adapt: newAdapt(o.Level, cpu.Read), done: donePacks{since: o.Now()}, stopped: ctx.Done(),
		start:   func(f func(ctx context.Context) error) { g.Go(func() error { return f(ctx) }) },
		buffers: make(chan []byte, o.Uploads+2),
		packs:   runPacks{used: make(map[pack.ID]struct{}), made: make(map[pack.ID]struct{})},
	}
	for range cap(w.buffers) {
		w.buffers <- nil
	}
	for i := range w.packers {
		w.packers[i].w, w.packers[i].kind = w, pack.Kind(i+1)
	}
	g.Go(func() error { return fn(ctx, w) })
	return g.Wait()
}

func (w *Writer) indexIfDue(ctx context.Context) error {
	w.mu.Lock()
	due := w.done.size >= indexBytes || w.opts.Now().Sub(w.done.since) >= indexPeriod
	w.mu.Unlock()
	if !due {
		return nil
	}
	return w.putIndex(ctx, nil)
}

// putIndex adds the packs that were put so far, and extra ones, to the index:
// first in storage, then on this machine. After that their IDs are no longer
// pending.
func (w *Writer) putIndex(ctx context.Context, extra []index.PackEntries) error {
	w.mu.Lock()
	done := w.done.packs
	w.done = donePacks{since: w.opts.Now()}
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
		for _, p := range done { // for IndexUploaded
			w.done.add(p)
		}
		w.mu.Unlock()
		return err
	}
	for _, p := range done {
		w.pending.remove(p.ids)
	}
	return nil
}

// IndexOrphans adds packs that a killed run left without an index to this run's
// index, so that their content is not uploaded again. It returns how many it
// has added. It skips packs that cannot be read, which do no harm, and packs to
// be avoided, because a pruner may be about to delete them.
func (w *Writer) IndexOrphans(ctx context.Context) (int, error) {
	orphans, err := w.s.Orphans(ctx)
	if err != nil {
		return 0, err
	}
	w.s.takeAdopted() // they are among the orphans
	w.s.dropAvoided(orphans)
	return w.cover(ctx, orphans)
}

// coverAdopted adds packs that were found without an index object, and that
// this run may reference, to the index again.
func (w *Writer) coverAdopted(ctx context.Context) error {
	adopted := w.s.takeAdopted()
	w.s.dropAvoided(adopted)
	_, err := w.cover(ctx, adopted)
	return err
}

// cover adds packs that no index object covers to this run's index, and returns how
// many. A write-only key leaves out those of other keys, about which it would not be
// believed.
func (w *Writer) cover(ctx context.Context, packs map[pack.ID]int64) (n int, err error) {
	for _, batch := range batches(packs) {
		taken, _, err := w.s.Adopt(ctx, batch)
		if err != nil {
			return n, err
		}
		taken = slices.DeleteFunc(taken, func(p index.PackEntries) bool { return !w.s.mayIndex(p.Pack) })
		if err := w.putIndex(ctx, taken); err != nil {
			return n, err
		}
		n += len(taken)
	}
	if n > 0 {
		w.s.hide()
	}
	return n, nil
}

// IndexUploaded puts the index of the packs that a failed or cancelled run has
// uploaded, so that the next run does not upload their content again. Write
// must have returned before.
func (w *Writer) IndexUploaded(ctx context.Context) error { return w.putIndex(ctx, nil) }

// Flush ends the open packs, and returns when all packs are in storage and in
// the index. Concurrent Puts wait.
func (w *Writer) Flush(ctx context.Context) error {
	w.flush.Lock()
	defer w.flush.Unlock()
	if err := w.coverAdopted(ctx); err != nil {
		return err
	}
	for i := range w.packers {
		w.packers[i].flush()
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

// Unflushed returns the number of bytes in open packs.
func (w *Writer) Unflushed() int64 {
	var n int64
	for i := range w.packers {
		n += w.packers[i].size()
	}
	return n
}

// Stats returns the counts so far.
func (w *Writer) Stats() WriteStats {
	w.mu.Lock()
	defer w.mu.Unlock()
	st := w.stats
	st.Levels = w.adapt.stats()
	return st
}

// Used returns the packs that this run references and did not write, as far as
// its workers have called Done.
func (w *Writer) Used() []pack.ID {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := make([]pack.ID, 0, len(w.packs.used))
	for id := range w.packs.used {
		if _, own := w.packs.made[id]; !own {
			out = append(out, id)
		}
	}
	return out
}

// Made returns the packs that this run has put.
func (w *Writer) Made() []pack.ID {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Collect(maps.Keys(w.packs.made))
}
