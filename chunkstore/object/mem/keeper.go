package mem

import (
	"bytes"
	"context"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"xenkeep/chunkstore/object"
)

// Keeper is a store in memory that keeps versions and locks them, like a bucket
// with object lock.
type Keeper struct {
	now func() time.Time

	mu      sync.RWMutex
	days    int
	next    int
	objects map[string][]version // oldest first
}

type version struct {
	id       string
	data     []byte
	modified time.Time
	until    time.Time // locked until then
	deleted  bool
}

var _ object.Versioned = (*Keeper)(nil)

// NewKeeper returns an empty Keeper that uses now as its clock.
func NewKeeper(now func() time.Time) *Keeper {
	return &Keeper{now: now, objects: make(map[string][]version)}
}

// Put implements object.Store.
func (s *Keeper) Put(ctx context.Context, name string, data []byte) error {
	if err := check(ctx, "put", name); err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, object.ThrottledReader(ctx, bytes.NewReader(data))); err != nil {
		return &object.Error{Op: "put", Name: name, Class: err}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	v := version{data: bytes.Clone(data), modified: s.now()}
	if s.days > 0 && object.LockedName(name) {
		v.until = v.modified.Add(time.Duration(s.days) * 24 * time.Hour)
	}
	s.add(name, v)
	return nil
}

// add adds v as the latest version. The caller must hold mu.
func (s *Keeper) add(name string, v version) {
	s.next++
	v.id = strconv.Itoa(s.next)
	s.objects[name] = append(slices.Clip(s.objects[name]), v)
}

// find returns a version, or the latest one if id is empty. The caller must
// hold mu.
func (s *Keeper) find(op, name, id string) (*version, error) {
	all := s.objects[name]
	for i := len(all) - 1; i >= 0; i-- {
		if id == "" || all[i].id == id {
			if all[i].deleted {
				break
			}
			return &all[i], nil
		}
	}
	return nil, &object.Error{Op: op, Name: name, Class: object.ErrNotFound}
}

// Get implements object.Store.
func (s *Keeper) Get(ctx context.Context, name string, offset, length int64) ([]byte, error) {
	return s.GetVersion(ctx, name, "", offset, length)
}

// GetVersion implements object.Versioned.
func (s *Keeper) GetVersion(ctx context.Context, name, id string, offset, length int64) ([]byte, error) {
	if err := check(ctx, "get", name); err != nil {
		return nil, err
	}
	if err := object.CheckRange("get", name, offset, length); err != nil {
		return nil, err
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	v, err := s.find("get", name, id)
	if err != nil {
		return nil, err
	}
	from, n, err := object.Span("get", name, int64(len(v.data)), offset, length)
	if err != nil {
		return nil, err
	}
	return append(make([]byte, 0, n), v.data[from:from+n]...), nil
}

// GetInto implements object.Store.
func (s *Keeper) GetInto(ctx context.Context, name string, offset int64, p []byte) error {
	q, err := s.GetVersion(ctx, name, "", offset, int64(len(p)))
	copy(p, q)
	return err
}

// Stat implements object.Store.
func (s *Keeper) Stat(ctx context.Context, name string) (object.Info, error) {
	if err := check(ctx, "stat", name); err != nil {
		return object.Info{}, err
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	v, err := s.find("stat", name, "")
	if err != nil {
		return object.Info{}, err
	}
	return object.Info{Name: name, Size: int64(len(v.data)), Modified: v.modified}, nil
}

// List implements object.Store.
func (s *Keeper) List(ctx context.Context, prefix string, fn func(object.Info) error) error {
	return s.ListVersions(ctx, prefix, func(v object.Version) error {
		if !v.Latest || v.Deleted {
			return nil
		}
		return fn(v.Info)
	})
}

// ListVersions implements object.Versioned.
func (s *Keeper) ListVersions(ctx context.Context, prefix string, fn func(object.Version) error) error {
	if err := object.CheckPrefix("list", prefix); err != nil {
		return err
	}
	s.mu.RLock()
	var found []object.Version
	for _, name := range slices.Sorted(maps.Keys(s.objects)) {
		if !strings.HasPrefix(name, prefix) {
			continue
		}
		all := s.objects[name]
		for i, v := range slices.Backward(all) {
			found = append(found, object.Version{
				Info: object.Info{Name: name, Size: int64(len(v.data)), Modified: v.modified},
				ID:   v.id, Latest: i == len(all)-1, Deleted: v.deleted,
			})
		}
	}
	s.mu.RUnlock()
	for _, v := range found {
		if err := ctx.Err(); err != nil {
			return &object.Error{Op: "list", Name: prefix, Class: err}
		}
		if err := fn(v); err != nil {
			return err
		}
	}
	return nil
}

// Delete implements object.Store.
func (s *Keeper) Delete(ctx context.Context, name string) error {
	if err := check(ctx, "delete", name); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	all := s.objects[name]
	if s.days == 0 {
		if len(all) > 0 && !all[len(all)-1].deleted {
			s.add(name, version{modified: s.now(), deleted: true})
		}
		return nil
	}
	var last time.Time
	for _, v := range all {
		if v.until.After(last) {
			last = v.until
		}
	}
	if last.After(s.now()) && object.LockedName(name) {
		return &object.LockedError{Name: name, Until: last}
	}
	delete(s.objects, name)
	return nil
}

// RemoveVersion deletes a version unless it is locked. Anyone with the
// credentials can request this.
func (s *Keeper) RemoveVersion(name, id string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, v := range s.objects[name] {
		if v.id != id {
			continue
		}
		if v.until.After(s.now()) {
			return &object.Error{Op: "delete", Name: name, Class: object.ErrPermission}
		}
		s.objects[name] = slices.Delete(slices.Clone(s.objects[name]), i, i+1)
	}
	if len(s.objects[name]) == 0 {
		delete(s.objects, name)
	}
	return nil
}

// SetLockDays implements object.Versioned.
func (s *Keeper) SetLockDays(days int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.days = days
}

// LockedUntil implements object.Versioned.
func (s *Keeper) LockedUntil(ctx context.Context, name, id string) (time.Time, error) {
	if err := check(ctx, "stat", name); err != nil {
		return time.Time{}, err
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	v, err := s.find("stat", name, id)
	if err != nil {
		return time.Time{}, err
	}
	return v.until, nil
}

// Lock implements object.Versioned.
func (s *Keeper) Lock(ctx context.Context, name, id string, until time.Time) error {
	if err := check(ctx, "lock", name); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	v, err := s.find("lock", name, id)
	if err != nil {
		return err
	}
	if until.After(v.until) {
		v.until = until
	}
	return nil
}

// Traits implements object.Store.
func (s *Keeper) Traits() object.Traits { return object.Traits{Parallel: 2, Versioned: true} }

// Location implements object.Store.
func (s *Keeper) Location() string { return "memory with versions" }

// Close implements object.Store.
func (s *Keeper) Close() error { return nil }
