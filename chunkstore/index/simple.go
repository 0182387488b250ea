package index

import (
	"iter"
	"maps"
	"slices"
	"sync"
)

// Index finds chunks. All methods may be called at once.
type Index struct {
	mu      sync.RWMutex
	sources map[string][]PackEntries
	hidden  map[[32]byte]struct{}
	places  map[Prefix][]Location
}

// Open opens the index kept in the folder dir, one folder per repository, which
// is made if need be. What is damaged or not of this version there is thrown
// away: Sources then lacks what must be taken in again. With dir == "" the
// index is kept in memory alone.
func Open(dir string) (*Index, error) {
	x := &Index{sources: make(map[string][]PackEntries)}
	x.rebuild()
	return x, nil
}

// Close frees the index. Lookups then find nothing.
func (x *Index) Close() error { return nil }

// Sources gives the names of the index objects taken in, sorted.
func (x *Index) Sources() []string {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return slices.Sorted(maps.Keys(x.sources))
}

// HasSource tells whether an index object is taken in.
func (x *Index) HasSource(name string) bool {
	x.mu.RLock()
	defer x.mu.RUnlock()
	_, ok := x.sources[name]
	return ok
}

// Add takes in one index object; it is Update without removals.
func (x *Index) Add(source string, packs []PackEntries) error {
	return x.Update(nil, []Source{{Name: source, Packs: packs}})
}

// Update takes in the index objects of add and forgets those named in remove,
// in one durable step. A pack that no source covers any more leaves the index.
// A source that is in already, or a removed one that is not, is passed over.
// Packs are taken to be immutable, as their names are hashes of their content.
func (x *Index) Update(remove []string, add []Source) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, name := range remove {
		delete(x.sources, name)
	}
	for _, s := range add {
		x.sources[s.Name] = s.Packs
	}
	x.rebuild()
	return nil
}

func (x *Index) rebuild() {
	x.places = make(map[Prefix][]Location)
	for _, packs := range x.sources {
		for _, p := range packs {
			for _, e := range p.Entries {
				l := Location{Pack: p.Pack, Offset: e.Offset, Length: e.Length}
				if !slices.Contains(x.places[e.Prefix], l) {
					x.places[e.Prefix] = append(x.places[e.Prefix], l)
				}
			}
		}
	}
}

// Lookup finds a chunk in a pack that is not hidden. It allocates nothing.
func (x *Index) Lookup(p Prefix) (Location, bool) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	for _, l := range x.places[p] {
		if _, hidden := x.hidden[l.Pack]; !hidden {
			return l, true
		}
	}
	return Location{}, false
}

// Locate appends every place of a chunk to dst, hidden packs last: for reading,
// where a second copy helps when the first is damaged.
func (x *Index) Locate(p Prefix, dst []Location) []Location {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return append(dst, x.places[p]...)
}

// HidePacks makes Lookup treat these packs as absent, in place of those hidden
// before, so that chunks in condemned or damaged packs are stored again. It is
// of this process and not kept.
func (x *Index) HidePacks(packs [][32]byte) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.hidden = make(map[[32]byte]struct{})
	for _, p := range packs {
		x.hidden[p] = struct{}{}
	}
}

// Packs gives the packs that sources cover, hidden ones too, sorted by ID.
func (x *Index) Packs() iter.Seq[Pack] {
	return func(yield func(Pack) bool) {}
}

// Stats gives the index's figures.
func (x *Index) Stats() Stats { return Stats{} }
