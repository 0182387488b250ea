// Package mem is an object.Store in memory, for tests and experiments.
package mem

import (
	"bytes"
	"context"
	"io"
	"strings"
	"sync"
	"time"

	"xenkeep/chunkstore/object"
)

// Store stores objects in a map. The zero value is not usable: use New.
type Store struct {
	now func() time.Time

	mu      sync.RWMutex
	objects map[string]entry
}

type entry struct {
	data     []byte // never changed once stored
	modified time.Time
}

var _ object.Store = (*Store)(nil)

// New returns an empty store that takes the times of objects from the real
// clock.
func New() *Store { return NewAt(time.Now) }

// NewAt returns an empty store that takes the times of objects from now.
func NewAt(now func() time.Time) *Store {
	return &Store{now: now, objects: make(map[string]entry)}
}

// Clone returns a store with the same objects that changes independently: the
// state of the storage at this instant, as a crash would leave it.
func (s *Store) Clone() *Store {
	s.mu.RLock()
	defer s.mu.RUnlock()
	c := NewAt(s.now)
	for name, e := range s.objects {
		c.objects[name] = e
	}
	return c
}

// Put implements object.Store.
func (s *Store) Put(ctx context.Context, name string, data []byte) error {
	if err := check(ctx, "put", name); err != nil {
		return err
	}
	// Memory has no connection that could be slow, so only the throttle limits
	// the rate.
	if _, err := io.Copy(io.Discard, object.ThrottledReader(ctx, bytes.NewReader(data))); err != nil {
		return &object.Error{Op: "put", Name: name, Class: err}
	}
	e := entry{data: bytes.Clone(data), modified: s.now()}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.objects[name] = e
	return nil
}

// Get implements object.Store.
func (s *Store) Get(ctx context.Context, name string, offset, length int64) ([]byte, error) {
	data, err := s.span(ctx, name, offset, length)
	if err != nil {
		return nil, err
	}
	return append(make([]byte, 0, len(data)), data...), nil
}

// GetInto implements object.Store.
func (s *Store) GetInto(ctx context.Context, name string, offset int64, p []byte) error {
	data, err := s.span(ctx, name, offset, int64(len(p)))
	if err != nil {
		return err
	}
	copy(p, data)
	return nil
}

func (s *Store) span(ctx context.Context, name string, offset, length int64) ([]byte, error) {
	if err := object.CheckRange("get", name, offset, length); err != nil {
		return nil, err
	}
	e, err := s.find(ctx, "get", name)
	if err != nil {
		return nil, err
	}
	from, n, err := object.Span("get", name, int64(len(e.data)), offset, length)
	if err != nil {
		return nil, err
	}
	return e.data[from : from+n], nil
}

// Stat implements object.Store.
func (s *Store) Stat(ctx context.Context, name string) (object.Info, error) {
	e, err := s.find(ctx, "stat", name)
	if err != nil {
		return object.Info{}, err
	}
	return info(name, e), nil
}

// List implements object.Store. It lists the objects that exist when it begins.
func (s *Store) List(ctx context.Context, prefix string, fn func(object.Info) error) error {
	if err := object.CheckPrefix("list", prefix); err != nil {
		return err
	}
	s.mu.RLock()
	var found []object.Info
	for name, e := range s.objects {
		if strings.HasPrefix(name, prefix) {
			found = append(found, info(name, e))
		}
	}
	s.mu.RUnlock()
	for _, i := range found {
		if err := ctx.Err(); err != nil {
			return &object.Error{Op: "list", Name: prefix, Class: err}
		}
		if err := fn(i); err != nil {
			return err
		}
	}
	return nil
}

// Delete implements object.Store.
func (s *Store) Delete(ctx context.Context, name string) error {
	if err := check(ctx, "delete", name); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.objects, name)
	return nil
}

// Traits implements object.Store.
func (s *Store) Traits() object.Traits { return object.Traits{Parallel: 2} }

// Location implements object.Store.
func (s *Store) Location() string { return "memory" }

// Close implements object.Store. The objects remain.
func (s *Store) Close() error { return nil }

func (s *Store) find(ctx context.Context, op, name string) (entry, error) {
	if err := check(ctx, op, name); err != nil {
		return entry{}, err
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	e, ok := s.objects[name]
	if !ok {
		return entry{}, &object.Error{Op: op, Name: name, Class: object.ErrNotFound}
	}
	return e, nil
}

func check(ctx context.Context, op, name string) error {
	if err := ctx.Err(); err != nil {
		return &object.Error{Op: op, Name: name, Class: err}
	}
	return object.CheckName(op, name)
}

func info(name string, e entry) object.Info {
	return object.Info{Name: name, Size: int64(len(e.data)), Modified: e.modified}
}
