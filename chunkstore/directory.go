package chunkstore

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"sync"
	"unsafe"

	"xenkeep/chunkstore/object"
	"xenkeep/chunkstore/pack"
	"xenkeep/chunkstore/seal"
)

// tailGuess is how many bytes of a pack's end are read first. The table of
// contents of a full data pack usually fits.
const tailGuess = 96 << 10

// Limits of the cache of directories: the maximum size in bytes, and the number
// of packs that are kept in any case.
const (
	maxDirBytes = 64 << 20
	minDirs     = 8
)

// directories caches the directories of packs, up to a limit in bytes, because
// a pack has from a thousand to 32768 entries.
type directories struct {
	mu    sync.Mutex
	bytes int
	byID  map[pack.ID]*list.Element
	lru   list.List
}

// shrink removes the least recently used directories. The caller must hold mu.
func (c *directories) shrink() {
	for c.bytes > maxDirBytes && c.lru.Len() > minDirs {
		old := c.lru.Remove(c.lru.Back()).(*cachedDirectory)
		delete(c.byID, old.id)
		c.bytes -= old.n
	}
}

type cachedDirectory struct {
	id   pack.ID
	done chan struct{} // closed once d or err is set
	n    int           // bytes that count against the limit
	d    *pack.Directory
	err  error
}

// directory returns the unlocked directory of a pack, from the cache or from
// the pack. It is read only once, however many callers request it concurrently.
func (s *Store) directory(ctx context.Context, from ranges, id pack.ID) (*pack.Directory, error) {
	c := &s.dirs
	for {
		c.mu.Lock()
		if c.byID == nil {
			c.byID = make(map[pack.ID]*list.Element)
		}
		e, ok := c.byID[id]
		if !ok {
			d := &cachedDirectory{id: id, done: make(chan struct{})}
			c.byID[id] = c.lru.PushFront(d)
			c.mu.Unlock()
			d.d, d.err = s.readProven(ctx, from, id, -1)
			if d.err == nil {
				d.err = d.d.Unlock()
			}
			c.mu.Lock()
			if e, ok := c.byID[id]; ok && e.Value == d {
				if d.err != nil { // errors are not cached
					c.lru.Remove(e)
					delete(c.byID, id)
				} else {
					for i := range d.d.Blobs {
						d.n += int(unsafe.Sizeof(pack.Blob{})) + len(d.d.Blobs[i].Pieces)*int(unsafe.Sizeof(pack.Entry{}))
					}
					c.bytes += d.n
					c.shrink()
				}
			}
			c.mu.Unlock()
			close(d.done)
			return d.d, d.err
		}
		c.lru.MoveToFront(e)
		d := e.Value.(*cachedDirectory)
		c.mu.Unlock()
		select {
		case <-d.done:
			if d.err != nil && ctx.Err() == nil {
				continue // the other caller may have failed because it was cancelled
			}
			return d.d, d.err
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// recoverPack replaces a damaged pack by another copy or version. It returns
// true if an intact one is read from now on.
func (s *Store) recoverPack(ctx context.Context, id pack.ID) bool {
	if !s.trees.drop(id) { // otherwise the copy on this machine was damaged
		r, ok := s.objects.(object.Recoverer)
		if !ok {
			return false
		}
		if found, err := r.Recover(ctx, id.ObjectName()); err != nil || !found {
			return false
		}
	}
	// The cached table of contents may belong to the damaged version.
	s.dirs.mu.Lock()
	defer s.dirs.mu.Unlock()
	if e, ok := s.dirs.byID[id]; ok {
		s.dirs.lru.Remove(e)
		delete(s.dirs.byID, id)
		s.dirs.bytes -= e.Value.(*cachedDirectory).n
	}
	return true
}

// ReadDirectory reads and verifies the header and the table of contents of a
// pack. If the pack's size is known (not negative), the blobs must fill it
// exactly.
func (s *Store) ReadDirectory(ctx context.Context, id pack.ID, size int64) (*pack.Directory, error) {
	return s.readProven(ctx, s.objects, id, size)
}

// readProven is ReadDirectory with the pack's bytes from from. If these are
// damaged, it tries to recover the pack and reads it from storage.
func (s *Store) readProven(ctx context.Context, from ranges, id pack.ID, size int64) (*pack.Directory, error) {
	d, err := s.readDirectory(ctx, from, id, size)
	if errors.Is(err, seal.ErrCorrupt) && s.recoverPack(ctx, id) {
		d, err = s.readDirectory(ctx, s.objects, id, size)
	}
	if err != nil {
		return nil, &pack.Error{Pack: id, Offset: -1, Err: err}
	}
	return d, nil
}

func (s *Store) readDirectory(ctx context.Context, from ranges, id pack.ID, size int64) (*pack.Directory, error) {
	name := id.ObjectName()
	tail, err := from.Get(ctx, name, -tailGuess, -1)
	if err != nil {
		return nil, err
	}
	n := int64(len(tail))
	if n < pack.TrailerSize {
		return nil, fmt.Errorf("%d bytes: %w", n, seal.ErrCorrupt)
	}
	limit := size
	if limit < 0 {
		limit = 1<<32 - 1
		if n < tailGuess {
			limit = n
		}
	}
	t, err := pack.ParseTrailer(tail[n-pack.TrailerSize:], limit)
	if err != nil {
		return nil, err
	}
	if t.Table+pack.TrailerSize > n {
		if tail, err = from.Get(ctx, name, -(t.Table + pack.TrailerSize), -1); err != nil {
			return nil, err
		}
		if n = int64(len(tail)); n != t.Table+pack.TrailerSize {
			return nil, fmt.Errorf("table of contents: %w", seal.ErrCorrupt)
		}
	}
	header := make([]byte, t.Header)
	if err := from.GetInto(ctx, name, 0, header); err != nil {
		return nil, err
	}
	d, err := pack.OpenDirectory(s.keys, header, tail[n-pack.TrailerSize-t.Table:])
	if err == nil && size >= 0 {
		err = d.Covers(t, size)
	}
	return d, err
}
