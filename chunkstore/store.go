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
	trees   *treeCache // nil where none are kept

	adopting sync.Mutex // one at a time looks for packs that no index object covers

	mu       sync.Mutex
	adopted  map[pack.ID]int64 // size of packs that no index object covers, taken in all the same
	unusable map[pack.ID]error // those that do not open, and why

	avoid atomic.Pointer[avoided] // nil where nothing is to be avoided
}

// avoided is what Has denies.
type avoided struct {
	packs map[pack.ID]bool
	blobs map[chunk.ID]map[pack.ID]bool // a zero pack ID stands for every pack
}

// BadBlob is a blob known to be damaged in one pack, or wherever it lies where
// Pack is zero.
type BadBlob struct {
	ID   chunk.ID
	Pack pack.ID
}

// Options are what a Store stands on; all are needed.
type Options struct {
	Objects object.Store
	Keys    *seal.Keys
	Params  chunk.Params
	Index   *index.Index
	// TreeDir is a folder for tree packs, which are read again and again; ""
	// or a storage near by: none are kept.
	TreeDir string
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
	s.trees = newTreeCache(s, o.TreeDir)
	s.adopted = make(map[pack.ID]int64)
	s.unusable = make(map[pack.ID]error)
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
// damaged, and these blobs, which are known to be damaged: what they hold is
// stored again when it is met. With distrust, nothing that a tree names is taken
// to be there unseen, even where nothing is to be avoided. It replaces what was
// avoided before.
func (s *Store) Avoid(packs []pack.ID, blobs []BadBlob, distrust bool) {
	hide := make([][32]byte, len(packs))
	a := &avoided{packs: make(map[pack.ID]bool, len(packs)), blobs: make(map[chunk.ID]map[pack.ID]bool)}
	for i, id := range packs {
		hide[i] = id
		a.packs[id] = true
	}
	for _, b := range blobs {
		if a.blobs[b.ID] == nil {
			a.blobs[b.ID] = make(map[pack.ID]bool)
		}
		a.blobs[b.ID][b.Pack] = true
	}
	s.index.HidePacks(hide)
	if len(packs)+len(blobs) == 0 && !distrust {
		a = nil
	}
	s.avoid.Store(a)
}

// Avoids tells whether anything is avoided.
func (s *Store) Avoids() bool { return s.avoid.Load() != nil }

// AvoidsPack tells whether a pack is to be avoided.
func (s *Store) AvoidsPack(id pack.ID) bool {
	a := s.avoid.Load()
	return a != nil && a.packs[id]
}

// Trusted tells whether a blob that a readable tree names may be leant on. It
// is Has, but answers at once where nothing is to be avoided.
func (s *Store) Trusted(id chunk.ID) bool { return s.avoid.Load() == nil || s.Has(id) }

// locate finds the place to write no second copy beside.
func (s *Store) locate(id chunk.ID) (index.Location, bool) {
	if a := s.avoid.Load(); a != nil {
		if in := a.blobs[id]; in != nil {
			return s.locateSound(id, a, in)
		}
	}
	return s.index.Lookup(index.PrefixOf(id))
}

// locateSound finds a place other than those in packs where id is damaged.
func (s *Store) locateSound(id chunk.ID, a *avoided, in map[pack.ID]bool) (index.Location, bool) {
	if in[pack.ID{}] {
		return index.Location{}, false
	}
	for _, at := range s.index.Locate(index.PrefixOf(id), nil) {
		if !in[at.Pack] && !a.packs[at.Pack] {
			return at, true
		}
	}
	return index.Location{}, false
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
	// An object that was listed and is gone when it is read was replaced
	// meanwhile: only another list tells by what. One that stays so is lost.
	for try := 0; ; try++ {
		problems, replaced, err := s.loadIndex(ctx)
		if err != nil || !replaced || try == 2 {
			return problems, err
		}
	}
}

func (s *Store) loadIndex(ctx context.Context) (problems []IndexProblem, replaced bool, err error) {
	// Known before the list: what is put between the two is not gone.
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

// takeIn reads index objects at once and adds them to the index.
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
	return problems, errors.Join(err, in.Finish()) // what was read need not be read again
}

func (s *Store) readIndexObject(ctx context.Context, name string) (*IndexObject, error) {
	data, err := s.objects.Get(ctx, name, 0, -1)
	if err != nil {
		return nil, err
	}
	if err := seal.CheckName(name, data); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
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

// adoptBatch is how many packs are taken in at once: about a million blobs.
const adoptBatch = 1024

// batches cuts a set of packs into sets of at most adoptBatch.
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
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, nil, err
	}
	return taken, unread, nil
}

// AdoptForReading makes the blobs of packs that no index object covers readable
// in this process; it reports whether there was anything new. It is the way out
// when an index object is lost. A Writer that leans on such packs covers them.
func (s *Store) AdoptForReading(ctx context.Context) (bool, error) {
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
		// A name that no index object has, so that the next LoadIndex of any
		// process forgets it.
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
	return found, nil
}

// Adopted tells whether a pack is known only because it was found in storage:
// no index object covers it.
func (s *Store) Adopted(id pack.ID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.adopted[id]
	return ok
}

// Unusable is why a pack that no index object covers could not be taken in; nil
// where that was not tried, or worked.
func (s *Store) Unusable(id pack.ID) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.unusable[id]
}

// dropAvoided takes the packs to be avoided out of a set.
func (s *Store) dropAvoided(packs map[pack.ID]int64) {
	if a := s.avoid.Load(); a != nil {
		for id := range a.packs {
			delete(packs, id)
		}
	}
}

// takeAdopted gives the adopted packs and forgets that they were.
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
