// Package versions reads older versions in place of objects that were
// overwritten or deleted, in a storage that keeps versions. The names of most
// objects of a repository are their SHA-256. The oldest version whose SHA-256
// is its name is therefore the one that was put originally, whatever was
// written later.
package versions

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"strings"
	"sync"
	"time"

	"xenkeep/chunkstore/object"
)

// Store is a Versioned store that falls back to older versions.
//
// If locks are requested (SetLockDays), only Delete removes versions, and it
// removes all versions of an object. An object with a version therefore exists,
// and listings include it. Otherwise listings are those of the storage.
type Store struct {
	object.Versioned

	recovering sync.Mutex

	mu     sync.Mutex
	deep   bool                      // listings are made from versions
	pinned map[string]object.Version // read in place of the latest
	proved map[string]bool           // pinned versions whose content was compared with the name
}

var (
	_ object.Versioned    = (*Store)(nil)
	_ object.Recoverer    = (*Store)(nil)
	_ interface{ Deep() } = (*Store)(nil)
)

// New wraps inner.
func New(inner object.Versioned) *Store {
	return &Store{Versioned: inner, pinned: make(map[string]object.Version), proved: make(map[string]bool)}
}

// Unwrap returns the store below.
func (s *Store) Unwrap() object.Store { return s.Versioned }

// SetLockDays implements object.Versioned.
func (s *Store) SetLockDays(days int) {
	s.Versioned.SetLockDays(days)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.deep = s.deep || days > 0
}

// Deep makes listings include, from now on, deleted objects of which a version
// is kept.
func (s *Store) Deep() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.deep = true
}

func (s *Store) isDeep() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.deep
}

func (s *Store) pin(name string) (object.Version, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v, ok := s.pinned[name]
	return v, ok
}

func (s *Store) unpin(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.pinned, name)
	delete(s.proved, name)
}

// Sum returns the SHA-256 that is an object's name, or false for objects with
// other names.
func Sum(name string) ([32]byte, bool) {
	var sum [32]byte
	if !object.LockedName(name) {
		return sum, false // such objects are short-lived
	}
	last := name[strings.LastIndexByte(name, '/')+1:]
	if len(last) != 64 {
		return sum, false
	}
	_, err := hex.Decode(sum[:], []byte(last))
	return sum, err == nil
}

// mayFallBack reports whether a missing object should be searched for among
// older versions. Without locks this is true only for packs, because other
// objects may still refer to them.
func (s *Store) mayFallBack(name string) bool {
	_, named := Sum(name)
	return named && strings.HasPrefix(name, "packs/") || s.isDeep() && object.LockedName(name)
}

// Get implements object.Store.
func (s *Store) Get(ctx context.Context, name string, offset, length int64) ([]byte, error) {
	sum, named := Sum(name)
	for try := 0; ; try++ {
		var p []byte
		var err error
		if v, ok := s.pin(name); ok {
			p, err = s.Versioned.GetVersion(ctx, name, v.ID, offset, length)
		} else {
			p, err = s.Versioned.Get(ctx, name, offset, length)
		}
		wrong := err == nil && named && offset == 0 && length < 0 && sha256.Sum256(p) != sum
		if !wrong && (err == nil || !s.worth(name, named, err)) || try > 0 {
			return p, err // the caller must refuse content that does not match
		}
		if found, rerr := s.Recover(ctx, name); rerr != nil || !found {
			return p, err
		}
	}
}

// worth reports whether an older version may help after an error.
func (s *Store) worth(name string, named bool, err error) bool {
	return errors.Is(err, object.ErrNotFound) && s.mayFallBack(name) || named && (errors.Is(err, object.ErrShort) || errors.Is(err, object.ErrTooLarge))
}

// GetInto implements object.Store.
func (s *Store) GetInto(ctx context.Context, name string, offset int64, p []byte) error {
	_, named := Sum(name)
	for try := 0; ; try++ {
		var err error
		if v, ok := s.pin(name); ok {
			var q []byte
			if q, err = s.Versioned.GetVersion(ctx, name, v.ID, offset, int64(len(p))); err == nil {
				copy(p, q)
			}
		} else {
			err = s.Versioned.GetInto(ctx, name, offset, p)
		}
		if err == nil || try > 0 || !s.worth(name, named, err) {
			return err
		}
		if found, rerr := s.Recover(ctx, name); rerr != nil || !found {
			return err
		}
	}
}

// Stat implements object.Store.
func (s *Store) Stat(ctx context.Context, name string) (object.Info, error) {
	if v, ok := s.pin(name); ok {
		return v.Info, nil
	}
	info, err := s.Versioned.Stat(ctx, name)
	if errors.Is(err, object.ErrNotFound) && s.isDeep() && object.LockedName(name) {
		if found, rerr := s.Recover(ctx, name); rerr == nil && found {
			if v, ok := s.pin(name); ok {
				return v.Info, nil
			}
		}
	}
	return info, err
}

// List implements object.Store.
func (s *Store) List(ctx context.Context, prefix string, fn func(object.Info) error) error {
	if folder, _, whole := strings.Cut(prefix, "/"); !s.isDeep() || whole && !object.LockedName(folder) {
		return s.Versioned.List(ctx, prefix, fn)
	}
	var name string
	var all []object.Version
	flush := func() error {
		v, ok := s.choose(name, all)
		all = all[:0]
		if !ok {
			return nil
		}
		return fn(v.Info)
	}
	if err := s.ListVersions(ctx, prefix, func(v object.Version) error {
		if v.Name != name {
			if err := flush(); err != nil {
				return err
			}
			name = v.Name
		}
		all = append(all, v)
		return nil
	}); err != nil {
		return err
	}
	return flush()
}

// choose selects the version of an object that is read. The versions must be
// ordered newest first.
func (s *Store) choose(name string, all []object.Version) (object.Version, bool) {
	var real []object.Version
	for _, v := range all {
		if !v.Deleted {
			real = append(real, v)
		}
	}
	if len(real) == 0 {
		return object.Version{}, false
	}
	if !object.LockedName(name) {
		return real[0], real[0].Latest
	}
	best := real[0]
	if _, named := Sum(name); named {
		best = real[len(real)-1]
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.proved[name]:
		return s.pinned[name], true
	case best.Latest:
		delete(s.pinned, name)
	default:
		s.pinned[name] = best
	}
	return best, true
}

// Recover implements object.Recoverer.
func (s *Store) Recover(ctx context.Context, name string) (bool, error) {
	// Only one recovery runs at a time, because each may read 32 MiB.
	s.recovering.Lock()
	defer s.recovering.Unlock()
	s.mu.Lock()
	known, done := s.pinned[name], s.proved[name]
	s.mu.Unlock()
	if done {
		return !known.Latest, nil
	}
	v, ok, err := Sound(ctx, s.Versioned, name)
	if err != nil || !ok {
		return false, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pinned[name], s.proved[name] = v, true
	return !v.Latest, nil
}

// Sound returns the version of an object that should be read. If the object's
// name is a SHA-256, this is the oldest version with that SHA-256; otherwise it
// is the newest version that is not a deletion.
func Sound(ctx context.Context, k object.Versioned, name string) (object.Version, bool, error) {
	var all []object.Version
	if err := k.ListVersions(ctx, name, func(v object.Version) error {
		if v.Name == name && !v.Deleted {
			all = append(all, v)
		}
		return nil
	}); err != nil {
		return object.Version{}, false, err
	}
	sum, named := Sum(name)
	if !named {
		if len(all) == 0 {
			return object.Version{}, false, nil
		}
		return all[0], true, nil
	}
	for i := len(all) - 1; i >= 0; i-- {
		got, err := sumOf(ctx, k, &all[i])
		switch {
		case errors.Is(err, object.ErrNotFound), errors.Is(err, object.ErrTooLarge):
		case err != nil:
			return object.Version{}, false, err
		case got == sum:
			return all[i], true, nil
		}
	}
	return object.Version{}, false, nil
}

// sumPiece is how many bytes of a large version are in memory at a time.
const sumPiece = 8 << 20

// sumOf returns the SHA-256 of a version's content.
func sumOf(ctx context.Context, k object.Versioned, v *object.Version) (sum [32]byte, err error) {
	if v.Size <= object.MaxWhole(v.Name) {
		p, err := k.GetVersion(ctx, v.Name, v.ID, 0, -1)
		return sha256.Sum256(p), err
	}
	if v.Size > object.MaxSize(v.Name) {
		return sum, object.CheckWhole("get", v.Name, v.Size)
	}
	h := sha256.New()
	for at := int64(0); at < v.Size; at += sumPiece {
		p, err := k.GetVersion(ctx, v.Name, v.ID, at, min(sumPiece, v.Size-at))
		if err != nil {
			return sum, err
		}
		h.Write(p)
	}
	return [32]byte(h.Sum(nil)), nil
}

// Put implements object.Store.
func (s *Store) Put(ctx context.Context, name string, data []byte) error {
	err := s.Versioned.Put(ctx, name, data)
	if err == nil {
		s.unpin(name)
	}
	return err
}

// Delete implements object.Store.
func (s *Store) Delete(ctx context.Context, name string) error {
	err := s.Versioned.Delete(ctx, name)
	if err == nil {
		s.unpin(name)
	}
	return err
}

// read returns the ID of the version that is read for a requested one.
func (s *Store) read(name, id string) string {
	if v, ok := s.pin(name); ok && id == "" {
		return v.ID
	}
	return id
}

// LockedUntil implements object.Versioned.
func (s *Store) LockedUntil(ctx context.Context, name, id string) (time.Time, error) {
	return s.Versioned.LockedUntil(ctx, name, s.read(name, id))
}

// Lock implements object.Versioned.
func (s *Store) Lock(ctx context.Context, name, id string, until time.Time) error {
	return s.Versioned.Lock(ctx, name, s.read(name, id), until)
}
