// Package index maps each chunk ID to its location: a pack, an offset and a
// length. It is a local cache of the repository's index objects and can always
// be rebuilt from them; losing it costs time, never data.
//
// Entries are kept in segments: immutable files, sorted by ID, read through a
// memory map, so that memory does not grow with the repository. A manifest,
// replaced atomically, names the segments that are in use. Several processes
// may share a cache folder; each keeps its memory maps while another one
// merges.
package index

import (
	"errors"
	"fmt"
	"iter"
	"maps"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
)

// Prefix is the first half of a chunk ID. IDs are uniformly random, so 128 bits
// are enough to find a chunk; the whole ID is compared when the blob is opened.
type Prefix [16]byte

// PrefixOf returns the prefix of a chunk ID.
func PrefixOf(id [32]byte) Prefix { return Prefix(id[:16]) }

// Location is the position of a blob: bytes [Offset, Offset+Length) of a pack.
type Location struct {
	Pack           [32]byte
	Offset, Length uint32
}

// Entry describes one blob of a pack.
type Entry struct {
	Prefix         Prefix
	Offset, Length uint32
}

// PackEntries is the part of an index object that describes one pack. Entries
// may be in any order, and may be only some of the pack's entries: index
// objects that are split by prefix contain a part each.
type PackEntries struct {
	Pack    [32]byte
	Size    int64 // of the pack, bytes
	Entries []Entry
}

// Source is one index object of the repository, identified by its name.
type Source struct {
	Name  string
	Packs []PackEntries
}

// Pack is a pack that at least one source covers.
type Pack struct {
	ID      [32]byte
	Size    int64  // bytes
	Entries uint32 // entries in this index
}

// Stats are statistics of an index.
type Stats struct {
	Sources, Packs, Segments int
	Entries                  int64 // of packs that a source covers
	Bytes                    int64 // of all segment files
}

var errClosed = errors.New("index is closed")

// Index finds chunks. Its methods are safe for concurrent use, and lookups take
// no lock.
type Index struct {
	folder folder
	view   atomic.Pointer[view]

	mu     sync.Mutex // held while the view is changed
	hidden map[[32]byte]struct{}
	closed bool
}

// Open opens the index in the folder dir, which must belong to a single
// repository; the folder is created if it does not exist. Files that are
// damaged or of another version are discarded: Sources then lacks the index
// objects that the caller must add again. If dir is "", the index is kept in
// memory only.
func Open(dir string) (*Index, error) {
	x := &Index{folder: folder{path: dir}}
	x.view.Store(newView(nil, nil, [sumSize]byte{}))
	err := x.change(func() error {
		if x.folder.memory() {
			return nil
		}
		x.folder.clean(manifestOf(x.view.Load().segments))
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("open index: %w", err)
	}
	return x, nil
}

// Close frees the index. Later lookups find nothing.
func (x *Index) Close() error {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.closed = true
	x.view.Store(newView(nil, nil, [sumSize]byte{}))
	return nil
}

// Sources returns the names of the index objects that the index contains,
// sorted.
func (x *Index) Sources() []string {
	return slices.Sorted(maps.Keys(x.view.Load().sources))
}

// HasSource reports whether the index contains an index object.
func (x *Index) HasSource(name string) bool {
	_, ok := x.view.Load().sources[name]
	return ok
}

// Lookup returns the location of a chunk in a pack that is not hidden. It does
// not allocate.
func (x *Index) Lookup(p Prefix) (Location, bool) {
	v := x.view.Load()
	hi, lo := split(p)
	at, ok := v.lookup(hi, lo)
	runtime.KeepAlive(v) // keeps the memory maps too
	return at, ok
}

// Locate appends every location of a chunk to dst, those in hidden packs last.
// It serves reading, where a second copy helps if the first is damaged.
func (x *Index) Locate(p Prefix, dst []Location) []Location {
	v := x.view.Load()
	hi, lo := split(p)
	dst = v.locate(hi, lo, false, dst)
	dst = v.locate(hi, lo, true, dst)
	runtime.KeepAlive(v)
	return dst
}

// HidePacks makes Lookup treat these packs as absent, so that chunks in
// condemned or damaged packs are stored again. The packs replace those of
// earlier calls. They are hidden in this process only, and are not stored.
func (x *Index) HidePacks(packs [][32]byte) {
	hidden := make(map[[32]byte]struct{}, len(packs))
	for _, p := range packs {
		hidden[p] = struct{}{}
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	x.hidden = hidden
	v := x.view.Load()
	x.view.Store(newView(v.copyParts(), hidden, v.stamp))
}

// Packs returns the packs that at least one source covers, including hidden
// ones, sorted by ID.
func (x *Index) Packs() iter.Seq[Pack] {
	return func(yield func(Pack) bool) {
		v := x.view.Load()
		eachPack(v.segments, func(id []byte, where []numbered) bool {
			p := Pack{ID: [32]byte(id)}
			if w := where[0]; !v.segments[w.part].live.has(w.pack) {
				return true
			}
			for _, w := range where {
				size, entries := v.segments[w.part].packInfo(int(w.pack))
				p.Size = max(p.Size, size)
				p.Entries += entries
			}
			return yield(p)
		})
		runtime.KeepAlive(v)
	}
}

// Stats returns statistics of the index.
func (x *Index) Stats() Stats { return x.view.Load().stats }
