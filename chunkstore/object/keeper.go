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
	Latest  bool // what Get gives
	Deleted bool // no content: the object was deleted then
}

// A Keeper is a Store that keeps what was overwritten and deleted, and locks
// versions of objects against being removed. Which stores are, Traits.Keeps
// tells; see KeeperOf. A bucket without versions has one version of each
// object. Where the storage has no such thing the error is ErrUnsupported.
type Keeper interface {
	Store

	// KeepFor has every later Put of an object that LockedName names lock it
	// for so many days, and Delete remove all versions of an object, and
	// that only when none of them is locked any more: else it is a
	// LockedError. 0 days: none of that.
	KeepFor(days int)

	// ListVersions calls fn for each version of each object whose name begins
	// with prefix, those of one name together: the latest first, then the
	// others, newest first; deletions among these may come last.
	ListVersions(ctx context.Context, prefix string, fn func(Version) error) error

	// GetVersion is Get of one version.
	GetVersion(ctx context.Context, name, id string, offset, length int64) ([]byte, error)

	// LockedUntil tells until when a version is locked; zero where it is not.
	// The empty id is the latest version.
	LockedUntil(ctx context.Context, name, id string) (time.Time, error)

	// Lock locks a version until a time, or longer where it is so already.
	Lock(ctx context.Context, name, id string, until time.Time) error
}

// KeeperOf gives s as a Keeper, where it is one.
func KeeperOf(s Store) (Keeper, bool) {
	k, ok := s.(Keeper)
	return k, ok && s.Traits().Keeps
}

// LockedName tells whether an object of a repository is locked where locks are
// asked for: packs, index objects, snapshots, keys and the config. All others
// come and go.
func LockedName(name string) bool {
	folder, _, _ := strings.Cut(name, "/")
	switch folder {
	case "packs", "index", "snapshots", "slots", "config":
		return true
	}
	return false
}

// A Recoverer reads an object's older version where the latest is not what it
// should be.
type Recoverer interface {
	// Recover looks for a sound version of an object that turned out not to
	// be, or not to be there, and has the store read that from now on. It
	// reports whether that is another than the latest: then it is worth
	// reading again, once.
	Recover(ctx context.Context, name string) (bool, error)
}
