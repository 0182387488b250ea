// Package count counts the requests to a storage by verb. The counts are the
// cost of a run if requests are paid for, or if each request waits for a
// network.
package count

import (
	"context"
	"strings"
	"sync/atomic"
	"time"

	"xenkeep/chunkstore/object"
)

// Requests are numbers of requests, including failed and repeated ones. A
// listing counts once for each page.
type Requests struct {
	Put    int64 `json:"put"`
	Get    int64 `json:"get"`
	Stat   int64 `json:"stat"`
	List   int64 `json:"list"`
	Delete int64 `json:"delete"`
	Lock   int64 `json:"lock"` // requests that query or set the lock of an object

	// Those of the above that concern packs.
	PackPut int64 `json:"pack_put"`
	PackGet int64 `json:"pack_get"`
}

// Total returns the number of all requests.
func (r Requests) Total() int64 { return r.Put + r.Get + r.Stat + r.List + r.Delete + r.Lock }

// Metadata returns the number of requests that do not transfer packs.
func (r Requests) Metadata() int64 { return r.Total() - r.PackPut - r.PackGet }

// Sub returns the number of requests made since earlier.
func (r Requests) Sub(earlier Requests) Requests {
	return Requests{
		Put: r.Put - earlier.Put, Get: r.Get - earlier.Get, Stat: r.Stat - earlier.Stat, List: r.List - earlier.List,
		Delete: r.Delete - earlier.Delete, Lock: r.Lock - earlier.Lock,
		PackPut: r.PackPut - earlier.PackPut, PackGet: r.PackGet - earlier.PackGet,
	}
}

// A Counter counts the requests made so far.
type Counter interface{ Requests() Requests }

// Of returns the requests that a store, or a store below it, has counted so
// far. It returns zero if none of them counts.
func Of(s object.Store) Requests {
	for {
		if c, ok := s.(Counter); ok {
			return c.Requests()
		}
		u, ok := s.(interface{ Unwrap() object.Store })
		if !ok {
			return Requests{}
		}
		s = u.Unwrap()
	}
}

// Store is a store that counts. It must be placed below a store that retries,
// so that each attempt counts.
type Store struct {
	inner object.Store
	page  int64

	put, get, stat, list, delete, lock, packPut, packGet atomic.Int64
}

var (
	_ object.Versioned = (*Store)(nil)
	_ Counter          = (*Store)(nil)
)

// New wraps inner.
func New(inner object.Store) *Store {
	return &Store{inner: inner, page: int64(inner.Traits().ListPageSize)}
}

// Unwrap returns the store below.
func (s *Store) Unwrap() object.Store { return s.inner }

// Requests implements Counter.
func (s *Store) Requests() Requests {
	return Requests{
		Put: s.put.Load(), Get: s.get.Load(), Stat: s.stat.Load(), List: s.list.Load(), Delete: s.delete.Load(),
		Lock: s.lock.Load(), PackPut: s.packPut.Load(), PackGet: s.packGet.Load(),
	}
}

func one(n, packs *atomic.Int64, name string) {
	n.Add(1)
	if strings.HasPrefix(name, "packs/") {
		packs.Add(1)
	}
}

// Put implements object.Store.
func (s *Store) Put(ctx context.Context, name string, data []byte) error {
	one(&s.put, &s.packPut, name)
	return s.inner.Put(ctx, name, data)
}

// Get implements object.Store.
func (s *Store) Get(ctx context.Context, name string, offset, length int64) ([]byte, error) {
	one(&s.get, &s.packGet, name)
	return s.inner.Get(ctx, name, offset, length)
}

// GetInto implements object.Store.
func (s *Store) GetInto(ctx context.Context, name string, offset int64, p []byte) error {
	one(&s.get, &s.packGet, name)
	return s.inner.GetInto(ctx, name, offset, p)
}

// Stat implements object.Store.
func (s *Store) Stat(ctx context.Context, name string) (object.Info, error) {
	s.stat.Add(1)
	return s.inner.Stat(ctx, name)
}

// List implements object.Store.
func (s *Store) List(ctx context.Context, prefix string, fn func(object.Info) error) error {
	s.list.Add(1)
	n := int64(0)
	return s.inner.List(ctx, prefix, func(i object.Info) error {
		if n++; s.page > 0 && n > s.page && n%s.page == 1 {
			s.list.Add(1)
		}
		return fn(i)
	})
}

// Delete implements object.Store.
func (s *Store) Delete(ctx context.Context, name string) error {
	s.delete.Add(1)
	return s.inner.Delete(ctx, name)
}

// Traits implements object.Store.
func (s *Store) Traits() object.Traits { return s.inner.Traits() }

// Location implements object.Store.
func (s *Store) Location() string { return s.inner.Location() }

// Close implements object.Store.
func (s *Store) Close() error { return s.inner.Close() }

// SetLockDays implements object.Versioned.
func (s *Store) SetLockDays(days int) {
	if k, ok := object.VersionedOf(s.inner); ok {
		k.SetLockDays(days)
	}
}

func unsupported(op, name string) error {
	return &object.Error{Op: op, Name: name, Class: object.ErrUnsupported}
}

// ListVersions implements object.Versioned.
func (s *Store) ListVersions(ctx context.Context, prefix string, fn func(object.Version) error) error {
	k, ok := object.VersionedOf(s.inner)
	if !ok {
		return unsupported("list versions of", prefix)
	}
	s.list.Add(1)
	n := int64(0)
	return k.ListVersions(ctx, prefix, func(v object.Version) error {
		if n++; s.page > 0 && n > s.page && n%s.page == 1 {
			s.list.Add(1)
		}
		return fn(v)
	})
}

// GetVersion implements object.Versioned.
func (s *Store) GetVersion(ctx context.Context, name, id string, offset, length int64) ([]byte, error) {
	k, ok := object.VersionedOf(s.inner)
	if !ok {
		return nil, unsupported("get", name)
	}
	one(&s.get, &s.packGet, name)
	return k.GetVersion(ctx, name, id, offset, length)
}

// LockedUntil implements object.Versioned.
func (s *Store) LockedUntil(ctx context.Context, name, id string) (time.Time, error) {
	k, ok := object.VersionedOf(s.inner)
	if !ok {
		return time.Time{}, unsupported("stat", name)
	}
	s.lock.Add(1)
	return k.LockedUntil(ctx, name, id)
}

// Lock implements object.Versioned.
func (s *Store) Lock(ctx context.Context, name, id string, until time.Time) error {
	k, ok := object.VersionedOf(s.inner)
	if !ok {
		return unsupported("lock", name)
	}
	s.lock.Add(1)
	return k.Lock(ctx, name, id, until)
}
