package chunkstore

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"xenkeep/chunkstore/index"
	"xenkeep/chunkstore/object"
	"xenkeep/chunkstore/pack"
	"xenkeep/chunkstore/seal"

	"golang.org/x/sync/errgroup"
)

// A write-only key is on a machine that may be stolen, and it can store wrong bytes
// under the ID of any chunk. So in a repository that has, or had, such keys, a copy
// of a blob is trusted only if its pack was written with a full key, or by this
// machine according to its cache folder, or if a full key has opened all of the pack
// and has published that (a proof). Only trusted copies are used in place of storing
// data again, and prune never gives up a trusted copy in favour of one that is not.
//
// An index object of a full key is believed. One of a write-only key is believed
// about the packs that the same key signed, as far as their own tables of contents
// agree: their entries are taken from these tables.

// trusting is the state of a Store that decides about trust.
type trusting struct {
	authors    *authors
	inherited  map[pack.ID]bool                 // nil, except after an update from a version that recorded no authors
	proved     map[pack.ID]bool                 // guarded by the mu of the Store
	untrusted  atomic.Pointer[map[pack.ID]bool] // packs in the index that are not trusted
	trustAll   bool                             // only in tests of attacks
	believeAll bool                             // only in tests of attacks
	believing  sync.Mutex
}

// Mixed reports whether the repository has, or had, write-only keys, as far as this
// machine has learned.
func (s *Store) Mixed() bool { return s.authors.isMixed() && !s.trustAll }

// SetMixed records that the repository has, or had, write-only keys.
func (s *Store) SetMixed() { s.authors.setMixed() }

// SetProved sets the packs that a full key has opened completely. Each call replaces
// the packs of the previous one.
func (s *Store) SetProved(packs map[pack.ID]bool) {
	s.mu.Lock()
	s.proved = packs
	s.mu.Unlock()
	s.hide()
}

// Proved reports whether a full key has opened all of a pack.
func (s *Store) Proved(id pack.ID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.proved[id]
}

// TrustsPack reports whether the blobs of a pack are trusted to be what their IDs
// stand for.
func (s *Store) TrustsPack(id pack.ID) bool {
	if !s.Mixed() {
		return true
	}
	w, known := s.authors.of(id)
	if known && s.keys.Refuses(w.writer, id) {
		return false
	}
	return known && (w.full || w.own) || s.Proved(id)
}

// Author returns the writer of a pack and reports whether it has a full key. ok is
// false if that is not known, for example because the repository has no write-only
// keys.
func (s *Store) Author(id pack.ID) (writer seal.WriterID, full, ok bool) {
	w, ok := s.authors.of(id)
	return w.writer, w.full, ok
}

// Own records that this machine wrote an object with the key in use: a pack, or a
// snapshot, by its SHA-256.
func (s *Store) Own(id [32]byte) {
	s.authors.add(map[[32]byte]author{id: {writer: s.keys.Cert.Writer(), full: s.keys.Cert.Role() == seal.Full, own: true}})
}

// IsOwn reports whether the cache folder of this machine records that it wrote an
// object.
func (s *Store) IsOwn(id [32]byte) bool {
	w, ok := s.authors.of(id)
	return ok && w.own
}

// Distrust makes Usable look up every blob, and makes backups verify the trees that
// they build upon, as Avoid with distrust does.
func (s *Store) Distrust() { s.avoid.CompareAndSwap(nil, &avoided{}) }

// hide sets the packs that Lookup treats as absent: the avoided ones, and those that
// are not trusted.
func (s *Store) hide() {
	var hide [][32]byte
	untrusted := make(map[pack.ID]bool)
	if s.Mixed() {
		for p := range s.index.Packs() {
			if !s.TrustsPack(p.ID) {
				untrusted[p.ID] = true
				hide = append(hide, p.ID)
			}
		}
	}
	s.untrusted.Store(&untrusted)
	if a := s.avoid.Load(); a != nil {
		for id := range a.packs {
			hide = append(hide, id)
		}
	}
	s.index.HidePacks(hide)
}

// distrusts reports whether a pack is in the index and is not trusted.
func (s *Store) distrusts(id pack.ID) bool {
	u := s.untrusted.Load()
	return u != nil && (*u)[id]
}

// learnAuthors reads the directories of the packs in the index whose authors are not
// known, if the repository has write-only keys.
func (s *Store) learnAuthors(ctx context.Context) error {
	if !s.Mixed() {
		return nil
	}
	s.authors.load()
	unknown := make(map[pack.ID]int64)
	s.mu.Lock()
	for p := range s.index.Packs() {
		if _, known := s.authors.of(p.ID); !known && s.unusable[p.ID] == nil {
			unknown[p.ID] = p.Size
		}
	}
	s.mu.Unlock()
	if len(unknown) > 0 {
		if _, err := s.directories(ctx, unknown); err != nil {
			return err
		}
	}
	s.hide()
	return nil
}

// directories reads the directories of packs, concurrently, and records their
// authors. Packs that cannot be read are missing in the result; those that are
// damaged or forged are not read again by this process.
func (s *Store) directories(ctx context.Context, packs map[pack.ID]int64) (map[pack.ID]*pack.Directory, error) {
	found := make(map[pack.ID]*pack.Directory, len(packs))
	fresh := make(map[[32]byte]author, len(packs))
	var mu sync.Mutex
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(max(2, s.objects.Traits().Parallel))
	for id, size := range packs {
		g.Go(func() error {
			d, err := s.ReadDirectory(gctx, id, size)
			if gctx.Err() != nil {
				return gctx.Err()
			}
			if object.Retriable(err) {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				if !errors.Is(err, object.ErrNotFound) {
					s.mu.Lock()
					s.unusable[id] = err
					s.mu.Unlock()
				}
				return nil
			}
			found[id] = d
			w := author{writer: d.Cert.Writer(), full: d.Cert.Role() == seal.Full}
			w.own = s.inherited[id] && w.writer == s.keys.Cert.Writer()
			fresh[id] = w
			return nil
		})
	}
	err := g.Wait()
	s.authors.add(fresh)
	return found, err
}

// believe returns the packs for which an index object is believed, with entries from
// their own tables of contents. Packs that another key signed, that are no packs, or
// that do not exist are left out: the thief of a key must not be able to make packs
// look lost. If one exists later, it is found like a pack that no index object covers.
func (s *Store) believe(ctx context.Context, o *IndexObject, by seal.WriterID) ([]index.PackEntries, error) {
	s.authors.setMixed()
	if s.believeAll {
		return o.Packs, nil
	}
	s.believing.Lock() // many index objects are read concurrently
	defer s.believing.Unlock()
	s.authors.load()
	unread := make(map[pack.ID]int64)
	for i := range o.Packs {
		if w, known := s.authors.of(o.Packs[i].Pack); !known || w.writer == by {
			unread[o.Packs[i].Pack] = o.Packs[i].Size
		}
	}
	dirs, err := s.directories(ctx, unread)
	if err != nil {
		return nil, err
	}
	var believed []index.PackEntries
	for i := range o.Packs {
		p := &o.Packs[i]
		w, known := s.authors.of(p.Pack)
		if d := dirs[p.Pack]; known && w.writer == by && d != nil {
			believed = append(believed, packEntries(p.Pack, p.Size, d.Blobs))
		}
	}
	return believed, nil
}

// inherit records which packs the index in the cache folder contained before the
// folder recorded authors: an older version added a pack there when it wrote the pack
// with the key in use. Otherwise an update would make a machine with a write-only key
// store everything again.
func (s *Store) inherit() {
	if s.authors.dir == "" || s.keys.Cert.Role() == seal.Full || s.authors.load() {
		return
	}
	s.inherited = make(map[pack.ID]bool)
	for p := range s.index.Packs() {
		s.inherited[p.ID] = true
	}
}

// mayIndex reports whether an index object of the key in use is believed about a
// pack whose author is known.
func (s *Store) mayIndex(id pack.ID) bool {
	w, known := s.authors.of(id)
	return s.keys.Cert.Role() == seal.Full || known && w.writer == s.keys.Cert.Writer()
}

// Unproved returns the number of packs in the index that are not trusted.
func (s *Store) Unproved() int {
	if u := s.untrusted.Load(); u != nil {
		return len(*u)
	}
	return 0
}

// Prove opens a whole pack and verifies every blob in it against its ID. It needs a
// full key, unless the pack contains trees. The error is ErrCorrupt if a blob is not
// what its ID stands for.
func (s *Store) Prove(ctx context.Context, id pack.ID) error {
	data, err := s.objects.Get(ctx, id.ObjectName(), 0, -1)
	if err != nil {
		return err
	}
	if err := seal.CheckName(id.String(), data); err != nil {
		return err
	}
	d, err := pack.Parse(s.keys, data)
	if err == nil {
		err = d.Unlock()
	}
	if err != nil {
		return err
	}
	h := s.NewHasher()
	var plain []byte
	for i := range d.Blobs {
		b := &d.Blobs[i]
		if plain, err = d.Open(plain, b, data[b.Offset:b.Offset+b.Stored]); err != nil {
			return err
		}
		from := 0
		for _, piece := range b.Pieces {
			to := from + int(piece.Length)
			if err := CheckID(h, b.Kind, piece.ID, plain[from:to]); err != nil {
				return err
			}
			from = to
		}
	}
	return nil
}

// Refute records on this machine that a pack was opened, and that a blob in it is
// not what its ID stands for.
func (s *Store) Refute(id pack.ID) {
	w, _ := s.authors.of(id)
	w.refuted = true
	s.authors.add(map[[32]byte]author{id: w})
}

// Refuted reports whether Refute was called for a pack.
func (s *Store) Refuted(id pack.ID) bool {
	w, ok := s.authors.of(id)
	return ok && w.refuted
}

// DisbelievedError reports an index object of a write-only key that names packs
// which this key did not write.
type DisbelievedError struct {
	Writer seal.WriterID
	Packs  int
}

func (e *DisbelievedError) Error() string {
	return fmt.Sprintf("key %s claims to know the content of %d packs that it did not write: ignored", e.Writer, e.Packs)
}

// Disbelieved returns the index objects that state something about packs which their
// writers did not write. It reads the heads of all index objects.
func (s *Store) Disbelieved(ctx context.Context) ([]IndexProblem, error) {
	if !s.Mixed() {
		return nil, nil
	}
	heads, err := s.IndexHeads(ctx)
	if err != nil {
		return nil, err
	}
	var problems []IndexProblem
	for i := range heads {
		if n := heads[i].disbelieved; n > 0 {
			problems = append(problems, IndexProblem{Object: heads[i].Name, Err: &DisbelievedError{Writer: heads[i].writer, Packs: n}})
		}
	}
	return problems, nil
}
