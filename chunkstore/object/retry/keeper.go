package retry

import (
	"context"
	"time"

	"xenkeep/chunkstore/object"
)

var _ object.Versioned = (*Store)(nil)

// Unwrap returns the store below.
func (s *Store) Unwrap() object.Store { return s.Store }

// SetLockDays implements object.Versioned.
func (s *Store) SetLockDays(days int) {
	if k, ok := object.VersionedOf(s.Store); ok {
		k.SetLockDays(days)
	}
}

func unsupported(op, name string) error {
	return &object.Error{Op: op, Name: name, Class: object.ErrUnsupported}
}

// ListVersions implements object.Versioned. A listing that fails is started again,
// and skips the versions that fn has already received.
func (s *Store) ListVersions(ctx context.Context, prefix string, fn func(object.Version) error) error {
	k, ok := object.VersionedOf(s.Store)
	if !ok {
		return unsupported("list versions of", prefix)
	}
	var shown seen
	var stopped error
	err := s.do(ctx, "list versions of", prefix, func() error {
		err := k.ListVersions(ctx, prefix, func(v object.Version) error {
			if shown.again(v.Name + "\x00" + v.ID) {
				return nil
			}
			stopped = fn(v)
			return stopped
		})
		if stopped != nil {
			return nil
		}
		return err
	})
	if stopped != nil {
		return stopped
	}
	return err
}

// GetVersion implements object.Versioned.
func (s *Store) GetVersion(ctx context.Context, name, id string, offset, length int64) (p []byte, err error) {
	k, ok := object.VersionedOf(s.Store)
	if !ok {
		return nil, unsupported("get", name)
	}
	err = s.do(ctx, "get", name, func() error {
		p, err = k.GetVersion(ctx, name, id, offset, length)
		return err
	})
	return p, err
}

// LockedUntil implements object.Versioned.
func (s *Store) LockedUntil(ctx context.Context, name, id string) (until time.Time, err error) {
	k, ok := object.VersionedOf(s.Store)
	if !ok {
		return time.Time{}, unsupported("stat", name)
	}
	err = s.do(ctx, "stat", name, func() error {
		until, err = k.LockedUntil(ctx, name, id)
		return err
	})
	return until, err
}

// Lock implements object.Versioned.
func (s *Store) Lock(ctx context.Context, name, id string, until time.Time) error {
	k, ok := object.VersionedOf(s.Store)
	if !ok {
		return unsupported("lock", name)
	}
	return s.do(ctx, "lock", name, func() error { return k.Lock(ctx, name, id, until) })
}
