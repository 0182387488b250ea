package s3

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"

	"xenkeep/chunkstore/object"
)

// SetLockDays implements object.Versioned.
func (s *Store) SetLockDays(days int) { s.keep.Store(int64(days)) }

func (s *Store) lockMode() minio.RetentionMode {
	if s.c.LockMode == Governance {
		return minio.Governance
	}
	return minio.Compliance
}

// ListVersions implements object.Versioned.
func (s *Store) ListVersions(ctx context.Context, prefix string, fn func(object.Version) error) error {
	if err := object.CheckPrefix("list", prefix); err != nil {
		return err
	}
	opts := minio.ListObjectsOptions{Prefix: s.root + prefix, Recursive: true, WithVersions: true}
	var held sorter
	limit := 4 * page
	for i := range s.client.ListObjectsIter(ctx, s.bucket, opts) {
		if i.Err != nil {
			return s.fail(ctx, "list versions of", prefix, i.Err)
		}
		name, ok := strings.CutPrefix(i.Key, s.root)
		if !ok || object.CheckName("list", name) != nil {
			continue
		}
		v := object.Version{
			Info: object.Info{Name: name, Size: i.Size, Modified: i.LastModified},
			ID:   i.VersionID, Latest: i.IsLatest, Deleted: i.IsDeleteMarker,
		}
		held = append(held, v)
		if len(held) >= limit {
			var err error
			if held, err = held.emit(len(held)-2*page, fn); err != nil {
				return err
			}
			limit = len(held) + 2*page // because one name may have more versions
		}
	}
	if err := ctx.Err(); err != nil {
		return s.fail(ctx, "list versions of", prefix, err)
	}
	_, err := held.emit(len(held), fn)
	return err
}

// page is the number of entries on one page of a server's listing.
const page = 1000

// sorter sorts the entries of a listing, because some servers list the
// deletions of a page before its versions. Entries that are two pages old are
// in order by name.
type sorter []object.Version

// emit calls fn for up to n entries, for complete names only, and returns the
// other entries.
func (h sorter) emit(n int, fn func(object.Version) error) (sorter, error) {
	rank := func(v object.Version) int {
		switch {
		case v.Latest:
			return 0
		case v.Deleted:
			return 2
		}
		return 1
	}
	slices.SortStableFunc(h, func(a, b object.Version) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), rank(a)-rank(b))
	})
	for n > 0 && n < len(h) && h[n-1].Name == h[n].Name {
		n--
	}
	for _, v := range h[:n] {
		if err := fn(v); err != nil {
			return nil, err
		}
	}
	return slices.Clone(h[n:]), nil
}

// versionsOf lists the versions of one object, newest first.
func (s *Store) versionsOf(ctx context.Context, name string) (all []object.Version, err error) {
	err = s.ListVersions(ctx, name, func(v object.Version) error {
		if v.Name == name {
			all = append(all, v)
		}
		return nil
	})
	return all, err
}

// LockedUntil implements object.Versioned. The time is in the headers of the
// object (Amazon S3 API Reference, HeadObject).
func (s *Store) LockedUntil(ctx context.Context, name, id string) (time.Time, error) {
	if err := check(ctx, "stat", name); err != nil {
		return time.Time{}, err
	}
	if err := s.enter(ctx, "stat", name); err != nil {
		return time.Time{}, err
	}
	defer s.leave()
	_, header, err := s.head(ctx, name, id)
	if err != nil {
		return time.Time{}, err
	}
	if header.Get("X-Amz-Object-Lock-Mode") == "" {
		return time.Time{}, nil
	}
	return time.Parse(time.RFC3339, header.Get("X-Amz-Object-Lock-Retain-Until-Date"))
}

// Lock implements object.Versioned.
func (s *Store) Lock(ctx context.Context, name, id string, until time.Time) error {
	if err := check(ctx, "lock", name); err != nil {
		return err
	}
	if err := s.enter(ctx, "lock", name); err != nil {
		return err
	}
	defer s.leave()
	mode := s.lockMode()
	until = until.UTC().Truncate(time.Second)
	err := s.client.PutObjectRetention(ctx, s.bucket, s.root+name, minio.PutObjectRetentionOptions{
		Mode: &mode, RetainUntilDate: &until, VersionID: id,
	})
	if err != nil {
		return s.fail(ctx, "lock", name, err)
	}
	return nil
}

// deleteVersions removes all versions of an object, unless one is locked.
func (s *Store) deleteVersions(ctx context.Context, name string) error {
	all, err := s.versionsOf(ctx, name)
	if err != nil {
		return err
	}
	// If one version must stay, all stay: a partial history is worse than a
	// full one.
	var last time.Time
	for _, v := range all {
		if v.Deleted || !object.LockedName(name) {
			continue
		}
		until, err := s.LockedUntil(ctx, name, v.ID)
		if errors.Is(err, object.ErrNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		if until.After(last) {
			last = until
		}
	}
	if last.After(time.Now()) {
		return &object.LockedError{Name: name, Until: last}
	}
	for _, v := range all {
		if err := s.remove(ctx, name, v.ID); err != nil {
			return err
		}
	}
	return nil
}

// RemoveVersion deletes one version of an object if it is not locked. It serves
// to prove that locks are effective.
func (s *Store) RemoveVersion(ctx context.Context, name, id string) error {
	if err := check(ctx, "delete", name); err != nil {
		return err
	}
	return s.remove(ctx, name, id)
}
