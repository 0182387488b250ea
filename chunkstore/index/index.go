// Package index knows where each chunk lies: ID -> (pack, offset, length). It
// is a cache of the repository's index objects on this machine, and can always
// be made again from them; losing it costs time, never data.
//
// Entries are kept in segments: immutable files, sorted by ID, read through a
// memory map, so that memory does not grow with the repository. A manifest,
// replaced atomically, names the segments that count. Several processes may
// share a cache folder; each keeps its maps while another merges.
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

// Prefix is the first half of a chunk ID. IDs are uniformly random, so that
// 128 bits are enough to find one; the whole ID is compared when the blob is
// opened.
type Prefix [16]byte

// PrefixOf gives the prefix of a chunk ID.
func PrefixOf(id [32]byte) Prefix { return Prefix(id[:16]) }

// Location is where a blob lies: bytes [Offset, Offset+Length) of a pack.
type Location struct {
	Pack           [32]byte
	Offset, Length uint32
}

// Entry is one blob of a pack.
type Entry struct {
	Prefix         Prefix
	Offset, Length uint32
}

// PackEntries is what an index object says of one pack. Entries need not be in
// order, nor be all of the pack: index objects split by prefix each hold a part.
type PackEntries struct {
	Pack    [32]byte
	Size    int64 // of the pack, bytes
	Entries []Entry
}

// Source is one index object of the repository, by its name.
type Source struct {
	Name  string
	Packs []PackEntries
}

// Pack is a pack that at least one source covers.
type Pack struct {
	ID      [32]byte
	Size    int64  // bytes
	Entries uint32 // known here
}

// Stats are figures of an index.
type Stats struct {
	Sources, Packs, Segments int
	Entries                  int64 // of packs that a source covers
	Bytes                    int64 // of all segment files
}

var errClosed = errors.New("index is closed")

// Index finds chunks. All methods may be called at once; lookups take no lock.
type Index struct {
	folder folder
	view   atomic.Pointer[view]

	mu     sync.Mutex // held by what changes the view
	hidden map[[32]byte]struct{}
	closed bool
}

// Open opens the index kept in the folder dir, one folder per repository, which
// is made if need be. What is damaged or not of this version there is thrown
// away: Sources then lacks what must be taken in again. With dir == "" the
// index is kept in memory alone.
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

// Close frees the index. Lookups then find nothing.
func (x *Index) Close() error {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.closed = true
	x.view.Store(newView(nil, nil, [sumSize]byte{}))
	return nil
}

// Sources gives the names of the index objects taken in, sorted.
func (x *Index) Sources() []string {
	return slices.Sorted(maps.Keys(x.view.Load().sources))
}

// HasSource tells whether an index object is taken in.
func (x *Index) HasSource(name string) bool {
	_, ok := x.view.Load().sources[name]
	return ok
}

// Lookup finds a chunk in a pack that is not hidden. It allocates nothing.
func (x *Index) Lookup(p Prefix) (Location, bool) {
	v := x.view.Load()
	hi, lo := split(p)
	at, ok := v.lookup(hi, lo)
	runtime.KeepAlive(v) // and with it the maps
	return at, ok
}

// Locate appends every place of a chunk to dst, hidden packs last: for reading,
// where a second copy helps when the first is damaged.
func (x *Index) Locate(p Prefix, dst []Location) []Location {
	v := x.view.Load()
	hi, lo := split(p)
	dst = v.locate(hi, lo, false, dst)
	dst = v.locate(hi, lo, true, dst)
	runtime.KeepAlive(v)
	return dst
}

// HidePacks makes Lookup treat these packs as absent, in place of those hidden
// before, so that chunks in condemned or damaged packs are stored again. It is
// of this process and not kept.
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

// Packs gives the packs that sources cover, hidden ones too, sorted by ID.
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

// Stats gives the index's figures.
func (x *Index) Stats() Stats { return x.view.Load().stats }
