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
	// treesInFlight bounds the total size, in bytes, of tree packs that are
	// being fetched.
	treesInFlight = 64 << 20
	// treesKept is the maximum size of the cache, in bytes. It is enough for
	// the trees of about 3 TiB of unique data.
	treesKept = 4 << 30
)

// treeCache caches whole tree packs in a folder of this machine, for storage in
// which each request is expensive. An incremental backup reads lists in all
// parts of its base's tree; with the cache, each pack takes one request, and
// the next backup needs none. The content of the cache is content-addressed: it
// is never stale. It is verified against the pack's name when it is fetched,
// and by AES-GCM when it is read.
type treeCache struct {
	s   *Store
	dir string
	off atomic.Bool

	flight *semaphore.Weighted

	mu      sync.Mutex
	coming  map[pack.ID]chan struct{} // closed when the pack is cached, or cannot be fetched
	used    map[pack.ID]bool          // by this process, which has set its time
	refused map[pack.ID]bool          // packs that are not read from the cache
	size    int64                     // of the folder; -1: unknown
}

// newTreeCache returns nil if trees are not cached.
func newTreeCache(s *Store, dir string) *treeCache {
	if dir == "" || !s.objects.Traits().PreferWholeReads {
		return nil
	}
	return &treeCache{
		s: s, dir: dir, flight: semaphore.NewWeighted(treesInFlight), size: -1,
		coming: make(map[pack.ID]chan struct{}), used: make(map[pack.ID]bool), refused: make(map[pack.ID]bool),
	}
}

// BypassCache makes all later reads bypass the cache, for callers that must check
// the stored data.
func (s *Store) BypassCache() {
	if s.trees != nil {
		s.trees.off.Store(true)
	}
}

// ranges reads parts of packs.
type ranges interface {
	Get(ctx context.Context, name string, offset, length int64) ([]byte, error)
	GetInto(ctx context.Context, name string, offset int64, p []byte) error
}

// ranges returns the source from which blobs of a kind in one pack should be
// read. The caller must call done after reading.
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

// open returns a tree pack as a file, and fetches it if it is not cached. It
// returns nil on failure; the pack must then be read from storage in parts.
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

// fetch fetches a pack with one request.
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

// put adds a pack to the cache, and reports whether it succeeded.
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

// shrink measures the folder. If it is larger than limit, shrink removes the
// least recently used packs until a tenth of the limit is free, except those
// that this process has used. The caller must hold mu.
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

// drop removes a pack that was read from the cache and is damaged. It reports
// whether there was one.
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
