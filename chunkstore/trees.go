package chunkstore

import (
	"cmp"
	"context"
	"crypto/sha256"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"xenkeep/chunkstore/chunk"
	"xenkeep/chunkstore/object"
	"xenkeep/chunkstore/pack"

	"github.com/google/renameio/v2"
	"golang.org/x/sync/semaphore"
)

const (
	// treesInFlight bounds the bytes of tree packs that are being fetched.
	treesInFlight = 64 << 20
	// treesKept is how much of them is kept on this machine, in bytes: the
	// trees of 3 TiB of unique data or so.
	treesKept = 4 << 30
)

// treeCache keeps whole tree packs in a folder of this machine, where the
// storage is one that is better asked seldom. An incremental backup reads lists
// all over its base's tree; so one request brings a pack, and the next backup
// asks for nothing. What it holds is content-addressed: it is never stale, and
// proved by the packs' names when it comes and by AES-GCM when it is read.
type treeCache struct {
	s   *Store
	dir string
	off atomic.Bool

	flight *semaphore.Weighted

	mu      sync.Mutex
	coming  map[pack.ID]chan struct{} // closed when it is there, or could not be had
	used    map[pack.ID]bool          // by this process: its time is new
	refused map[pack.ID]bool          // those that are not read from here
	size    int64                     // of the folder; -1: not known
}

// newTreeCache gives nil where trees are not kept.
func newTreeCache(s *Store, dir string) *treeCache {
	if dir == "" || !s.objects.Traits().Whole {
		return nil
	}
	return &treeCache{
		s: s, dir: dir, flight: semaphore.NewWeighted(treesInFlight), size: -1,
		coming: make(map[pack.ID]chan struct{}), used: make(map[pack.ID]bool), refused: make(map[pack.ID]bool),
	}
}

// AsStored makes all reads go to the storage from now on, whatever is kept
// here: for whoever wants to know what is stored.
func (s *Store) AsStored() {
	if s.trees != nil {
		s.trees.off.Store(true)
	}
}

// ranges is what reads parts of packs.
type ranges interface {
	Get(ctx context.Context, name string, offset, length int64) ([]byte, error)
	GetInto(ctx context.Context, name string, offset int64, p []byte) error
}

// ranges gives what to read blobs of a kind from, in one pack. The caller calls
// done when it has read.
func (s *Store) ranges(ctx context.Context, k chunk.Kind, id pack.ID) (from ranges, done func()) {
	c := s.trees
	if c == nil || pack.KindOf(k) != pack.Tree || c.off.Load() {
		return s.objects, func() {}
	}
	f := c.open(ctx, id)
	if f == nil {
		return s.objects, func() {}
	}
	return fileRanges{f}, func() { _ = f.Close() }
}

type fileRanges struct{ f *os.File }

// Get reads like object.Store.Get.
func (r fileRanges) Get(_ context.Context, name string, offset, length int64) ([]byte, error) {
	info, err := r.f.Stat()
	if err != nil {
		return nil, err
	}
	from, n, err := object.Span("get", name, info.Size(), offset, length)
	if err != nil {
		return nil, err
	}
	p := make([]byte, n)
	_, err = r.f.ReadAt(p, from)
	if err == io.EOF && n == 0 {
		err = nil
	}
	return p, err
}

// GetInto reads like object.Store.GetInto.
func (r fileRanges) GetInto(_ context.Context, name string, offset int64, p []byte) error {
	if _, err := r.f.ReadAt(p, offset); err == io.EOF {
		return &object.Error{Op: "get", Name: name, Class: object.ErrShort}
	} else if err != nil {
		return err
	}
	return nil
}

func (c *treeCache) file(id pack.ID) string { return filepath.Join(c.dir, id.String()) }

// open gives a tree pack as a file, fetched where it is not there; nil where
// that cannot be done: then it is read from the storage in parts.
func (c *treeCache) open(ctx context.Context, id pack.ID) *os.File {
	for {
		c.mu.Lock()
		if c.refused[id] {
			c.mu.Unlock()
			return nil
		}
		wait, coming := c.coming[id]
		if !coming {
			fresh := !c.used[id]
			c.used[id] = true
			if f, err := os.Open(c.file(id)); err == nil {
				c.mu.Unlock()
				if fresh {
					now := time.Now()
					_ = os.Chtimes(c.file(id), now, now)
				}
				return f
			}
			wait = make(chan struct{})
			c.coming[id] = wait
			c.mu.Unlock()
			ok := c.fetch(ctx, id)
			c.mu.Lock()
			delete(c.coming, id)
			if !ok && ctx.Err() == nil {
				c.refused[id] = true
			}
			c.mu.Unlock()
			close(wait)
			if !ok {
				return nil
			}
			continue
		}
		c.mu.Unlock()
		select {
		case <-wait:
		case <-ctx.Done():
			return nil
		}
	}
}

// fetch brings a pack by one request.
func (c *treeCache) fetch(ctx context.Context, id pack.ID) bool {
	weight := int64(treesInFlight)
	for p := range c.s.index.Packs() {
		if p.ID == id {
			weight = min(p.Size, treesInFlight)
			break
		}
	}
	if c.flight.Acquire(ctx, weight) != nil {
		return false
	}
	defer c.flight.Release(weight)
	data, err := c.s.objects.Get(ctx, id.ObjectName(), 0, -1)
	if err != nil || sha256.Sum256(data) != id {
		return false
	}
	return c.put(id, data)
}

// put keeps a pack; it reports whether that could be done.
func (c *treeCache) put(id pack.ID, data []byte) bool {
	if os.MkdirAll(c.dir, 0o700) != nil || renameio.WriteFile(c.file(id), data, 0o600) != nil {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.used[id] = true
	delete(c.refused, id)
	if c.size >= 0 {
		c.size += int64(len(data))
	}
	if c.size < 0 || c.size > treesKept {
		c.shrink(treesKept)
	}
	return true
}

// shrink measures the folder and removes what was used longest ago, but nothing
// that this process has used, until a tenth of the limit is free; mu must be
// held.
func (c *treeCache) shrink(limit int64) {
	entries, err := os.ReadDir(c.dir)
	if err != nil {
		return
	}
	type kept struct {
		name string
		size int64
		used time.Time
	}
	var all []kept
	c.size = 0
	for _, e := range entries {
		if info, err := e.Info(); err == nil {
			all = append(all, kept{e.Name(), info.Size(), info.ModTime()})
			c.size += info.Size()
		}
	}
	if c.size <= limit {
		return
	}
	slices.SortFunc(all, func(a, b kept) int { return cmp.Compare(a.used.UnixNano(), b.used.UnixNano()) })
	mine := make(map[string]bool, len(c.used))
	for id := range c.used {
		mine[id.String()] = true
	}
	for _, k := range all {
		if c.size <= limit-limit/10 {
			return
		}
		if !mine[k.name] && os.Remove(filepath.Join(c.dir, k.name)) == nil {
			c.size -= k.size
		}
	}
}

// drop forgets a pack that was read from here and is not what it should be; it
// reports whether there was one.
func (c *treeCache) drop(id pack.ID) bool {
	if c == nil || c.off.Load() {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.refused[id] || os.Remove(c.file(id)) != nil {
		return false
	}
	c.refused[id] = true
	return true
}
