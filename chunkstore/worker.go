package chunkstore

import (
	"fmt"
	"sync"
	"time"

	"xenkeep/chunkstore/chunk"
	"xenkeep/chunkstore/pack"
	"xenkeep/chunkstore/seal"
)

// Worker is the state that one goroutine needs to call Put.
type Worker struct {
	w      *Writer
	hasher *chunk.Hasher
	comps  [seal.LevelBest + 1]*seal.Compressor // by level; created when they are needed
	buf    []byte                               // compressed
	plain  []byte                               // a group whose pieces are not adjacent in memory
	group  []Item
	one    [1]Item
	used   map[pack.ID]struct{}
	last   pack.ID
	waited time.Duration

	// For the choice of the level.
	reported time.Time // when Report was called last, or the worker was created
	spent    workTime  // since then; total and idle are set by Report
}

// NewWorker returns a Worker. The caller must call Done.
func (w *Writer) NewWorker() (*Worker, error) {
	k := &Worker{
		w: w, hasher: w.s.hasher.Clone(), buf: make([]byte, 0, seal.Bound(pack.GroupSize)),
		used: make(map[pack.ID]struct{}), reported: w.opts.Now(),
	}
	_, err := k.compressor(w.adapt.current())
	return k, err
}

func (k *Worker) compressor(l seal.Level) (*seal.Compressor, error) {
	if k.comps[l] == nil {
		c, err := seal.NewCompressor(l)
		if err != nil {
			return nil, err
		}
		k.comps[l] = c
	}
	return k.comps[l], nil
}

// Done ends the worker, and adds the packs that it referenced to those of the
// Writer.
func (k *Worker) Done() {
	for i, c := range k.comps {
		if c != nil {
			c.Close()
			k.comps[i] = nil
		}
	}
	k.w.mu.Lock()
	defer k.w.mu.Unlock()
	for id := range k.used {
		k.w.packs.used[id] = struct{}{}
	}
}

// Waited returns how long the worker's Puts have waited for the storage so far,
// that is, for space in a pack while all buffers are in use by uploads.
func (k *Worker) Waited() time.Duration { return k.waited }

// Report reports that the worker has processed seen bytes of a disk since the last
// report, and that it waited for them for the time idle. With seal.LevelAuto the
// level of the following blobs depends on these reports.
func (k *Worker) Report(seen int64, idle time.Duration) {
	now := k.w.opts.Now()
	k.spent.total, k.spent.idle, k.spent.seen = now.Sub(k.reported), idle, seen
	k.w.adapt.observe(k.spent)
	k.reported, k.spent = now, workTime{}
}

// Sum returns the ID of p as data of kind kind.
func (k *Worker) Sum(kind chunk.Kind, p []byte) chunk.ID { return k.hasher.Sum(kind, p) }

// Item is plain data to be stored under its ID, which is the result of
// Worker.Sum.
type Item struct {
	ID   chunk.ID
	Data []byte
}

// PutResult counts the data that was not stored before, in bytes.
type PutResult struct {
	New    int64 // plain
	Stored int64 // compressed and encrypted, in packs
}

// Put stores one piece, unless its ID is already stored.
func (k *Worker) Put(kind chunk.Kind, id chunk.ID, p []byte) (PutResult, error) {
	k.one[0] = Item{ID: id, Data: p}
	return k.PutAll(kind, k.one[:])
}

// PutAll stores those of pieces whose IDs are not stored yet. Data chunks that
// are new in the same call share blobs of up to pack.GroupSize: neighbouring
// data on a disk is similar, so it compresses better together. PutAll does not
// retain pieces. It waits while the storage is slow. An error means that the
// whole run has failed.
func (k *Worker) PutAll(kind chunk.Kind, pieces []Item) (PutResult, error) {
	k.w.flush.RLock()
	defer k.w.flush.RUnlock()
	var res PutResult
	k.group = k.group[:0]
	size := 0
	for _, p := range pieces {
		if most := kind.MaxPlain(); int64(len(p.Data)) > most {
			return res, fmt.Errorf("a %v of %d bytes: at most %d are possible", kind, len(p.Data), most)
		}
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
	level := k.w.adapt.current()
	comp, err := k.compressor(level)
	if err != nil {
		return err
	}
	began := k.w.opts.Now()
	body, enc := comp.Compress(k.buf, plain)
	compressed := k.w.opts.Now()
	k.spent.compress += compressed.Sub(began)
	k.spent.encoded += int64(len(plain))
	k.w.adapt.count(level, enc, len(plain), len(body))
	if enc == seal.Zstd && cap(body) > cap(k.buf) {
		k.buf = body
	}
	content := make([]pack.Entry, len(k.group))
	for i, p := range k.group {
		content[i] = pack.Entry{ID: p.ID, Length: uint32(len(p.Data))}
	}
	k.group = k.group[:0]
	f, slot, err := k.w.packers[pack.KindOf(kind)-1].reserve(kind, enc, content, len(body))
	waited := k.w.opts.Now().Sub(compressed)
	k.waited += waited
	k.spent.storage += waited
	if err != nil {
		ids := make([]chunk.ID, len(content))
		for i, p := range content {
			ids[i] = p.ID
		}
		k.w.pending.remove(ids) // nobody may reference a piece that was not stored
		return err
	}
	defer f.blobs.Done()
	res.New += int64(len(plain))
	res.Stored += int64(slot.Stored())
	return f.b.Fill(slot, body)
}

// joined returns the bytes of the group's pieces. If they are adjacent in
// memory, as most chunks of one block are, the result refers to them; otherwise
// it is a copy.
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

// shards is a set of IDs. It is split so that workers rarely wait for each
// other.
type shards [64]struct {
	mu  sync.Mutex
	set map[chunk.ID]struct{}
}

// add adds id, and reports whether it was not in the set before.
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
