// Package chunkstore is the content-addressed store: it stores plain pieces of
// data in encrypted packs, each piece once, and returns them by ID.
//
// A Store reads; a Writer, which exists for one run, adds. Both use the
// packages below: chunk (cuts and IDs), seal (compress, encrypt, sign), pack
// (bytes of a pack), index (location of each ID), slot (stored keys) and object
// (the storage). The store does not depend on disks or snapshots.
package chunkstore

import (
	"context"
	"crypto/rand"
	"encoding/hex"
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

// ErrMissing is returned for IDs that no pack contains.
var ErrMissing = errors.New("not in the repository")

// BlobError reports a blob that could not be read, and its pack.
type BlobError struct {
	Kind chunk.Kind
	ID   chunk.ID
	Pack pack.ID // zero if no pack is known to contain it
	Err  error
}

func (e *BlobError) Error() string {
	if e.Pack == (pack.ID{}) {
		return fmt.Sprintf("%v %s: %v", e.Kind, e.ID.String()[:8], e.Err)
	}
	return fmt.Sprintf("pack %s: %v %s: %v", e.Pack.Short(), e.Kind, e.ID.String()[:8], e.Err)
}

func (e *BlobError) Unwrap() error { return e.Err }

// Store reads blobs. Its methods are safe for concurrent use.
type Store struct {
	objects object.Store
	keys    *seal.Keys
	params  chunk.Params
	hasher  *chunk.Hasher
	index   *index.Index
	dirs    directories
	trees   *treeCache // nil if tree packs are not cached

	adopting sync.Mutex // held while searching for packs that no index object covers

	mu       sync.Mutex
	adopted  map[pack.ID]int64 // sizes of packs that were added to the index although no index object covers them
	unusable map[pack.ID]error // packs that cannot be opened, and the reason

	avoid atomic.Pointer[avoided] // nil if nothing is avoided and distrust is not set

	firstWriters bool // packs of copied blobs name them
	trusting
}

// avoided is the set of packs and blobs that Has treats as absent.
type avoided struct {
	packs map[pack.ID]bool
	blobs map[chunk.ID]map[pack.ID]bool // a zero pack ID stands for every pack
}

// BadBlob is a blob that is known to be damaged in one pack, or in all packs if
// Pack is zero.
type BadBlob struct {
	ID   chunk.ID
	Pack pack.ID
}

// Options configure a Store. Objects, Keys, Params and Index are required.
type Options struct {
	Objects object.Store
	Keys    *seal.Keys
	Params  chunk.Params
	Index   *index.Index
	// TreeDir is a folder in which tree packs are cached, because they are read
	// repeatedly. They are not cached if TreeDir is "", or if the storage does
	// not prefer whole reads (object.Traits.Whole).
	TreeDir string
	// AuthorDir is a folder in which the writers of packs are recorded, and the
	// packs that this machine wrote. They are kept in memory only if it is "".
	AuthorDir string
	// FirstWriters makes packs of copied blobs name the writers that stored them
	// first. Older versions cannot read such packs.
	FirstWriters bool
	// TrustAll and BelieveAll switch off the rules about whose packs and whose index
	// objects are trusted. Only tests of attacks set them.
	TrustAll, BelieveAll bool
}

// New returns a Store. It does not read from storage; call LoadIndex for that.
func New(o Options) (*Store, error) {
	h, err := chunk.NewHasher(o.Keys.ID[:])
	if err != nil {
		return nil, err
	}
	if err := o.Params.Validate(); err != nil {
		return nil, err
	}
	s := &Store{objects: o.Objects, keys: o.Keys, params: o.Params, hasher: h, index: o.Index}
	s.trees = newTreeCache(s, o.TreeDir)
	s.adopted = make(map[pack.ID]int64)
	s.unusable = make(map[pack.ID]error)
	s.firstWriters = o.FirstWriters
	s.trustAll, s.believeAll = o.TrustAll, o.BelieveAll
	s.authors = newAuthors(o.AuthorDir)
	s.inherit()
	if o.Keys.Cert.Role() != seal.Full || o.Keys.AnyRevoked() {
		s.SetMixed()
	}
	return s, nil
}

// Objects returns the underlying storage.
func (s *Store) Objects() object.Store { return s.objects }

// Keys returns the keys of the store.
func (s *Store) Keys() *seal.Keys { return s.keys }

// Index returns the index of this machine, which contains the location of each
// known chunk.
func (s *Store) Index() *index.Index { return s.index }

// NewChunker returns a chunker with the parameters and the key of this
// repository.
func (s *Store) NewChunker() (chunk.Chunker, error) { return chunk.NewChunker(s.params, s.keys.Cut[:]) }

// NewHasher returns a hasher for the IDs of this repository.
func (s *Store) NewHasher() *chunk.Hasher { return s.hasher.Clone() }

// Exclude makes Has treat as absent all content of these packs, which are
// condemned or damaged, and these blobs, which are known to be damaged. Their
// content is stored again when a backup encounters it. If distrust is true,
// content that a tree references is never assumed to be present without a
// lookup, even if nothing is avoided. Each call replaces the packs and blobs of
// the previous one.
func (s *Store) Exclude(packs []pack.ID, blobs []BadBlob, distrust bool) {
	a := &avoided{packs: make(map[pack.ID]bool, len(packs)), blobs: make(map[chunk.ID]map[pack.ID]bool)}
	for _, id := range packs {
		a.packs[id] = true
	}
	for _, b := range blobs {
		if a.blobs[b.ID] == nil {
			a.blobs[b.ID] = make(map[pack.ID]bool)
		}
		a.blobs[b.ID][b.Pack] = true
	}
	if len(packs)+len(blobs) == 0 && !distrust {
		a = nil
	}
	s.avoid.Store(a)
	s.hide()
}

// HasExclusions reports whether anything is avoided, or distrust is set.
func (s *Store) HasExclusions() bool { return s.avoid.Load() != nil }

// ExcludesPack reports whether a pack is avoided, or is not trusted.
func (s *Store) ExcludesPack(id pack.ID) bool {
	a := s.avoid.Load()
	return a != nil && a.packs[id] || s.distrusts(id)
}

// Usable reports whether a new snapshot may reference a blob that a readable
// tree names, without storing it again. It is the same as Has, but returns true
// immediately if HasExclusions returns false.
func (s *Store) Usable(id chunk.ID) bool { return s.avoid.Load() == nil || s.Has(id) }

// locate returns the location of id, so that the caller can skip storing it
// again.
func (s *Store) locate(id chunk.ID) (index.Location, bool) {
	if a := s.avoid.Load(); a != nil {
		if in := a.blobs[id]; in != nil {
			return s.locateSound(id, a, in)
		}
	}
	return s.index.Lookup(index.PrefixOf(id))
}

// locateSound returns a location of id in a pack that is not avoided, and in
// which id is not damaged.
func (s *Store) locateSound(id chunk.ID, a *avoided, in map[pack.ID]bool) (index.Location, bool) {
	if in[pack.ID{}] {
		return index.Location{}, false
	}
	for _, at := range s.index.Locate(index.PrefixOf(id), nil) {
		if !in[at.Pack] && !a.packs[at.Pack] && !s.distrusts(at.Pack) {
			return at, true
		}
	}
	return index.Location{}, false
}

// Has reports whether id is stored in a pack that is trusted and neither condemned
// nor damaged, as far as this process has learned.
func (s *Store) Has(id chunk.ID) bool {
	_, ok := s.locate(id)
	return ok
}

// IndexProblem reports an index object that cannot be used.
type IndexProblem struct {
	Object string // its name in storage
	Err    error
}

// LoadIndex adds index objects that are new in the repository to the index, and
// removes those that no longer exist. Objects that cannot be read are returned
// and are not fatal: their entries are treated as absent until they are found
// in the packs themselves.
func (s *Store) LoadIndex(ctx context.Context) ([]IndexProblem, error) {
	// An object that was listed, but does not exist when it is read, was
	// replaced meanwhile; only a new listing shows the replacement. An object
	// that is still missing after that is lost.
	for try := 0; ; try++ {
		problems, replaced, err := s.loadIndex(ctx)
		if err == nil && (!replaced || try == 2) {
			return problems, s.learnAuthors(ctx)
		}
		if err != nil {
			return problems, err
		}
	}
}

func (s *Store) loadIndex(ctx context.Context) (problems []IndexProblem, replaced bool, err error) {
	// Read the sources before the listing: objects that are put in between must
	// not be treated as deleted.
	known := s.index.Sources()
	present := make(map[string]bool)
	var missing []object.Info
	if err := object.ListOwn(ctx, s.objects, "index/", func(i object.Info) error {
		present[i.Name] = true
		if !s.index.HasSource(i.Name) {
			missing = append(missing, i)
		}
		return nil
	}); err != nil {
		return nil, false, err
	}
	for len(missing) > 0 {
		var size int64
		n := 0
		for n < len(missing) && (n == 0 || size+missing[n].Size <= s.index.Portion()) {
			size += missing[n].Size
			n++
		}
		bad, err := s.takeIn(ctx, missing[:n])
		if err != nil {
			return nil, false, err
		}
		problems = append(problems, bad...)
		missing = missing[n:]
	}
	for _, p := range problems {
		replaced = replaced || errors.Is(p.Err, object.ErrNotFound)
	}
	var gone []string
	for _, name := range known {
		if !present[name] {
			gone = append(gone, name)
		}
	}
	if len(gone) == 0 {
		return problems, replaced, nil
	}
	return problems, replaced, s.index.Update(gone, nil)
}

// takeIn reads index objects concurrently and adds them to the index.
func (s *Store) takeIn(ctx context.Context, objects []object.Info) (problems []IndexProblem, err error) {
	in := s.index.Intake()
	defer in.Close()
	var mu sync.Mutex
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(max(2, s.objects.Traits().Parallel))
	for _, i := range objects {
		g.Go(func() error {
			o, err := s.readIndexObject(gctx, i.Name)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil:
				return in.Add(index.Source{Name: i.Name, Packs: o.Packs})
			case gctx.Err() != nil:
				return gctx.Err()
			case object.Retriable(err):
				return err
			default:
				problems = append(problems, IndexProblem{Object: i.Name, Err: err})
			}
			return nil
		})
	}
	err = g.Wait()
	if err != nil && (ctx.Err() != nil || !object.Retriable(err)) {
		return nil, err
	}
	return problems, errors.Join(err, in.Finish()) // keep the objects that were read, so that they need not be read again
}

func (s *Store) readIndexObject(ctx context.Context, name string) (*IndexObject, error) {
	data, err := ReadSmall(ctx, s.objects, s.keys, seal.KindIndex, name)
	if err != nil {
		return nil, err
	}
	o, by, err := openNamedIndex(s.keys, name, data)
	if err == nil && by.Role() != seal.Full {
		o.Packs, err = s.believe(ctx, o, by.Writer())
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return o, nil
}

// Orphans returns the packs in storage that no index object covers, for example
// those of a killed run, with their sizes. It lists all packs.
func (s *Store) Orphans(ctx context.Context) (map[pack.ID]int64, error) {
	known := make(map[pack.ID]bool)
	for p := range s.index.Packs() {
		known[p.ID] = true
	}
	s.mu.Lock()
	for id := range s.adopted {
		delete(known, id)
	}
	s.mu.Unlock()
	orphans := make(map[pack.ID]int64)
	err := s.objects.List(ctx, "packs/", func(i object.Info) error {
		if id, ok := pack.ParseObjectName(i.Name); ok && !known[id] {
			orphans[id] = i.Size
		}
		return nil
	})
	return orphans, err
}

// adoptBatch is how many packs are adopted in one batch: about a million blobs.
const adoptBatch = 1024

// batches splits a set of packs into sets of at most adoptBatch.
func batches(packs map[pack.ID]int64) []map[pack.ID]int64 {
	var out []map[pack.ID]int64
	for id, size := range packs {
		if n := len(out); n == 0 || len(out[n-1]) == adoptBatch {
			out = append(out, make(map[pack.ID]int64))
		}
		out[len(out)-1][id] = size
	}
	return out
}

// Adopt reads the tables of contents of packs that no index object covers, and
// returns their entries. Packs that cannot be read are returned in unread, and
// are left alone.
func (s *Store) Adopt(ctx context.Context, orphans map[pack.ID]int64) (taken []index.PackEntries, unread map[pack.ID]error, err error) {
	unread = make(map[pack.ID]error)
	fresh := make(map[[32]byte]author)
	var mu sync.Mutex
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(max(2, s.objects.Traits().Parallel))
	for id, size := range orphans {
		g.Go(func() error {
			d, err := s.ReadDirectory(gctx, id, size)
			if err == nil && s.keys.Refuses(d.Cert.Writer(), id) {
				err = &pack.Error{Pack: id, Offset: -1, Err: fmt.Errorf("writer %s: %w", d.Cert.Writer(), seal.ErrRevoked)}
			}
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				if ctxErr := gctx.Err(); ctxErr != nil {
					return ctxErr
				}
				unread[id] = err
				return nil
			}
			taken = append(taken, packEntries(id, size, d.Blobs))
			fresh[id] = author{writer: d.Cert.Writer(), full: d.Cert.Role() == seal.Full}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, nil, err
	}
	for _, w := range fresh {
		if !w.full {
			s.SetMixed()
		}
	}
	s.authors.add(fresh)
	return taken, unread, nil
}

// LoadOrphans makes the blobs of packs that no index object covers readable
// in this process, and reports whether it found any new ones. It is the
// fallback if an index object is lost. If a Writer references such packs, it
// adds them to an index object.
func (s *Store) LoadOrphans(ctx context.Context) (bool, error) {
	s.adopting.Lock()
	defer s.adopting.Unlock()
	orphans, err := s.Orphans(ctx)
	if err != nil {
		return false, err
	}
	s.mu.Lock()
	for id := range s.adopted {
		delete(orphans, id)
	}
	for id := range s.unusable {
		delete(orphans, id)
	}
	s.mu.Unlock()
	found := false
	for _, batch := range batches(orphans) {
		taken, unread, err := s.Adopt(ctx, batch)
		if err != nil {
			return found, err
		}
		s.mu.Lock()
		for id, err := range unread {
			s.unusable[id] = err
		}
		s.mu.Unlock()
		if len(taken) == 0 {
			continue
		}
		found = true
		// The name is one that no index object has, so that the next LoadIndex
		// of any process removes it.
		var name [8]byte
		_, _ = rand.Read(name[:])
		if err := s.index.Update(nil, []index.Source{{Name: "index/adopted-" + hex.EncodeToString(name[:]), Packs: taken}}); err != nil {
			return found, err
		}
		s.mu.Lock()
		for _, p := range taken {
			s.adopted[p.Pack] = p.Size
		}
		s.mu.Unlock()
	}
	if found {
		s.hide()
	}
	return found, nil
}

// Adopted reports whether a pack is known only because it was found in storage,
// while no index object covers it.
func (s *Store) Adopted(id pack.ID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.adopted[id]
	return ok
}

// Unusable returns the error with which adopting a pack that no index object
// covers failed. It returns nil if this was not tried, or succeeded.
func (s *Store) Unusable(id pack.ID) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.unusable[id]
}

// dropAvoided removes the avoided packs from a set.
func (s *Store) dropAvoided(packs map[pack.ID]int64) {
	if a := s.avoid.Load(); a != nil {
		for id := range a.packs {
			delete(packs, id)
		}
	}
}

// takeAdopted returns the adopted packs and clears that set.
func (s *Store) takeAdopted() map[pack.ID]int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	taken := s.adopted
	s.adopted = make(map[pack.ID]int64)
	return taken
}

func packEntries(id pack.ID, size int64, blobs []pack.Blob) index.PackEntries {
	p := index.PackEntries{Pack: id, Size: size}
	for i := range blobs {
		b := &blobs[i]
		for _, piece := range b.Pieces {
			p.Entries = append(p.Entries, index.Entry{Prefix: index.PrefixOf(piece.ID), Offset: b.Offset, Length: b.Stored})
		}
	}
	return p
}
