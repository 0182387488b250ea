// Package chunkstore is the content-addressed store: plain pieces of data go
// in and come out by ID, and lie in packs, encrypted, each once.
//
// A Store reads; a Writer, which lives for one run, adds. Both stand on the
// packages below: chunk (cut and name), seal (compress, encrypt, sign), pack
// (bytes of a pack), index (where each ID lies), slot (keys at rest) and object
// (the storage). The store knows no disks and no snapshots.
package chunkstore

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"xenkeep/chunkstore/chunk"
	"xenkeep/chunkstore/index"
	"xenkeep/chunkstore/object"
	"xenkeep/chunkstore/pack"
	"xenkeep/chunkstore/seal"

	"golang.org/x/sync/errgroup"
)

// ErrMissing is returned for IDs that no pack holds.
var ErrMissing = errors.New("not in the repository")

// BlobError says which blob could not be had, and from which pack.
type BlobError struct {
	Kind chunk.Kind
	ID   chunk.ID
	Pack pack.ID // zero where no pack is known to hold it
	Err  error
}

func (e *BlobError) Error() string {
	if e.Pack == (pack.ID{}) {
		return fmt.Sprintf("%v %s: %v", e.Kind, e.ID.String()[:8], e.Err)
	}
	return fmt.Sprintf("pack %s: %v %s: %v", e.Pack.Short(), e.Kind, e.ID.String()[:8], e.Err)
}

func (e *BlobError) Unwrap() error { return e.Err }

// Store reads blobs. Its methods may be called at once.
type Store struct {
	objects object.Store
	keys    *seal.Keys
	params  chunk.Params
	hasher  *chunk.Hasher
	index   *index.Index
	dirs    directories

	mu      sync.Mutex
	adopted map[pack.ID]bool // packs that no index object covers, taken in all the same

	bad    atomic.Pointer[map[chunk.ID]bool]
	avoids atomic.Bool
}

// Options are what a Store stands on; all are needed.
type Options struct {
	Objects object.Store
	Keys    *seal.Keys
	Params  chunk.Params
	Index   *index.Index
}

// New returns a Store. It reads nothing yet: see LoadIndex.
func New(o Options) (*Store, error) {
	h, err := chunk.NewHasher(o.Keys.ID[:])
	if err != nil {
		return nil, err
	}
	if err := o.Params.Validate(); err != nil {
		return nil, err
	}
	s := &Store{objects: o.Objects, keys: o.Keys, params: o.Params, hasher: h, index: o.Index}
	s.adopted = make(map[pack.ID]bool)
	s.dirs.max = 256
	return s, nil
}

// Objects is the storage below.
func (s *Store) Objects() object.Store { return s.objects }

// Keys are the keys in use.
func (s *Store) Keys() *seal.Keys { return s.keys }

// Index is where each chunk lies, as far as it is known here.
func (s *Store) Index() *index.Index { return s.index }

// NewChunker returns a chunker as this repository cuts.
func (s *Store) NewChunker() (chunk.Chunker, error) { return chunk.NewChunker(s.params, s.keys.Cut[:]) }

// NewHasher returns a hasher of this repository's IDs.
func (s *Store) NewHasher() *chunk.Hasher { return s.hasher.Clone() }

// Avoid makes Has deny what lies in these packs, which are condemned or
// damaged, and these IDs, which are known to be damaged: what they named is
// stored again when it is met. It replaces what was avoided before.
func (s *Store) Avoid(packs []pack.ID, ids []chunk.ID) {
	hide := make([][32]byte, len(packs))
	for i, id := range packs {
		hide[i] = id
	}
	s.index.HidePacks(hide)
	bad := make(map[chunk.ID]bool, len(ids))
	for _, id := range ids {
		bad[id] = true
	}
	s.bad.Store(&bad)
	s.avoids.Store(len(packs)+len(ids) > 0)
}

// Trusted tells whether a blob that a readable tree names may be leant on. It
// is Has, but answers at once where nothing is to be avoided.
func (s *Store) Trusted(id chunk.ID) bool { return !s.avoids.Load() || s.Has(id) }

// locate finds the place to write no second copy beside.
func (s *Store) locate(id chunk.ID) (index.Location, bool) {
	if bad := s.bad.Load(); bad != nil && (*bad)[id] {
		return index.Location{}, false
	}
	return s.index.Lookup(index.PrefixOf(id))
}

// Has tells whether id is stored in a pack that is neither condemned nor
// damaged as far as is known here.
func (s *Store) Has(id chunk.ID) bool {
	_, ok := s.locate(id)
	return ok
}

// IndexProblem is an index object that cannot be used.
type IndexProblem struct {
	Object string // its name in storage
	Err    error
}

// LoadIndex takes in the index objects that are new in the repository and
// forgets those that are gone. Objects that cannot be read are returned, not
// fatal: what they covered counts as absent until it is found in its packs.
func (s *Store) LoadIndex(ctx context.Context) ([]IndexProblem, error) {
	present := make(map[string]bool)
	var missing []string
	if err := s.objects.List(ctx, "index/", func(i object.Info) error {
		present[i.Name] = true
		if !s.index.HasSource(i.Name) {
			missing = append(missing, i.Name)
		}
		return nil
	}); err != nil {
		return nil, err
	}
	var gone []string
	for _, name := range s.index.Sources() {
		if !present[name] {
			gone = append(gone, name)
		}
	}
	// In batches, so that a fresh machine does not hold a whole index in
	// memory; what is gone goes with the last one, when all that replaced it
	// is in.
	var problems []IndexProblem
	for {
		n := min(len(missing), indexBatch)
		sources, bad, err := s.readIndexObjects(ctx, missing[:n])
		if err != nil {
			return nil, err
		}
		problems = append(problems, bad...)
		if missing = missing[n:]; len(missing) == 0 {
			return problems, s.index.Update(gone, sources)
		}
		if err := s.index.Update(nil, sources); err != nil {
			return nil, err
		}
	}
}

// indexBatch is how many index objects are held in memory at once; one covers
// up to indexBytes of packs.
const indexBatch = 32

func (s *Store) readIndexObjects(ctx context.Context, names []string) (sources []index.Source, problems []IndexProblem, err error) {
	var mu sync.Mutex
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(max(2, s.objects.Traits().Parallel))
	for _, name := range names {
		g.Go(func() error {
			o, err := s.readIndexObject(gctx, name)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				if ctxErr := gctx.Err(); ctxErr != nil {
					return ctxErr
				}
				problems = append(problems, IndexProblem{Object: name, Err: err})
				return nil
			}
			sources = append(sources, index.Source{Name: name, Packs: o.Packs})
			return nil
		})
	}
	return sources, problems, g.Wait()
}

func (s *Store) readIndexObject(ctx context.Context, name string) (*IndexObject, error) {
	data, err := s.objects.Get(ctx, name, 0, -1)
	if err != nil {
		return nil, err
	}
	if "index/"+seal.Name(data) != name {
		return nil, fmt.Errorf("%s: content does not fit its name: %w", name, seal.ErrCorrupt)
	}
	o, err := OpenIndexObject(s.keys, data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return o, nil
}

// Orphans lists the packs in storage that no index object covers, such as a
// killed run leaves behind, with their sizes. It lists all packs.
func (s *Store) Orphans(ctx context.Context) (map[pack.ID]int64, error) {
	known := make(map[pack.ID]bool)
	for p := range s.index.Packs() {
		known[p.ID] = true
	}
	orphans := make(map[pack.ID]int64)
	err := s.objects.List(ctx, "packs/", func(i object.Info) error {
		if id, ok := pack.ParseObjectName(i.Name); ok && !known[id] {
			orphans[id] = i.Size
		}
		return nil
	})
	return orphans, err
}

// Adopt reads the tables of contents of packs that no index object covers and
// makes their blobs known here. Packs that cannot be read are returned; they
// are left alone.
func (s *Store) Adopt(ctx context.Context, orphans map[pack.ID]int64) (taken []index.PackEntries, unread map[pack.ID]error, err error) {
	unread = make(map[pack.ID]error)
	var mu sync.Mutex
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(max(2, s.objects.Traits().Parallel))
	for id, size := range orphans {
		g.Go(func() error {
			d, err := s.ReadDirectory(gctx, id, size)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				if ctxErr := gctx.Err(); ctxErr != nil {
					return ctxErr
				}
				unread[id] = err
				return nil
			}
			taken = append(taken, packEntries(id, size, d.Entries))
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, nil, err
	}
	return taken, unread, nil
}

// adoptForReading makes the blobs of uncovered packs readable in this process
// alone; it reports whether there was anything new. It is the way out when an
// index object is lost.
func (s *Store) adoptForReading(ctx context.Context) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	orphans, err := s.Orphans(ctx)
	if err != nil {
		return false, err
	}
	for id := range s.adopted {
		delete(orphans, id)
	}
	if len(orphans) == 0 {
		return false, nil
	}
	taken, _, err := s.Adopt(ctx, orphans)
	if err != nil {
		return false, err
	}
	for id := range orphans {
		s.adopted[id] = true
	}
	// The name is one that no index object has, so that LoadIndex forgets it.
	name := fmt.Sprintf("index/adopted-%d", len(s.adopted))
	return len(taken) > 0, s.index.Update(nil, []index.Source{{Name: name, Packs: taken}})
}

func packEntries(id pack.ID, size int64, entries []pack.Entry) index.PackEntries {
	p := index.PackEntries{Pack: id, Size: size, Entries: make([]index.Entry, len(entries))}
	for i := range entries {
		e := &entries[i]
		p.Entries[i] = index.Entry{Prefix: index.PrefixOf(e.ID), Offset: e.Offset, Length: e.Stored}
	}
	return p
}
