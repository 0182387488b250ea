package object

import (
	"context"
	"strings"
	"time"
)

// Version is one version of an object.
type Version struct {
	Info
	ID      string
	Latest  bool // the version that Get reads
	Deleted bool // a deletion, without content
}

// Versioned is a Store that keeps overwritten and deleted objects as versions,
// and can lock versions against removal. Traits.Versioned reports whether a store
// is one; see VersionedOf. A bucket without versioning has one version of each
// object. Methods for which the storage has no support return ErrUnsupported.
type Versioned interface {
	Store

	// SetLockDays makes every later Put lock its object for that many days, if
	// LockedName returns true for its name. It also makes Delete remove all
	// versions of an object, but only if none of them is still locked;
	// otherwise Delete returns a LockedError. With 0 days, Put locks nothing
	// and Delete is the ordinary one.
	SetLockDays(days int)

	// ListVersions calls fn for each version of each object whose name begins
	// with prefix. The versions of one object come together: the latest first,
	// then the others, newest first. Deletions among the others may come last.
	ListVersions(ctx context.Context, prefix string, fn func(Version) error) error

	// GetVersion is Get of one version.
	GetVersion(ctx context.Context, name, id string, offset, length int64) ([]byte, error)

	// LockedUntil returns the time until which a version is locked, or the zero
	// time if it is not locked. An empty id means the latest version.
	LockedUntil(ctx context.Context, name, id string) (time.Time, error)

	// Lock locks a version until a time. A lock that ends later than that is
	// kept.
	Lock(ctx context.Context, name, id string, until time.Time) error
}

// VersionedOf returns s as a Versioned store, if it is one.
func VersionedOf(s Store) (Versioned, bool) {
	k, ok := s.(Versioned)
	return k, ok && s.Traits().Versioned
}

// LockedName reports whether an object with this name is locked when locks are
// requested: packs, index objects, snapshots, revocations, key slots and the config
// are. All other objects are short-lived, or cost little when they are lost.
func LockedName(name string) bool {
	folder, _, _ := strings.Cut(name, "/")
	switch folder {
	case "packs", "index", "snapshots", "slots", "config", "revoked":
		return true
	}
	return false
}

// A Recoverer can read an older version of an object if the latest version is
// damaged.
type Recoverer interface {
	// Recover searches for an intact version of an object whose latest version
	// is damaged or missing, and makes the store read that version from now on.
	// It reports whether that version differs from the latest one. If so, the
	// caller should read the object again, once.
	Recover(ctx context.Context, name string) (bool, error)
}
