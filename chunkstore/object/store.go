// Package object is what xenkeep asks of the storage below a repository: named
// objects that are put whole, read by ranges, listed by prefix and deleted.
//
// A Store gives no locks, no appending, no renaming and no promise about the
// order of a listing, so that a folder, an NFS mount and S3 can all be one. The
// backends are the packages below this one: local, s3 and mem; retry wraps any
// of them; package all picks one by its location. What a backend promises is
// written as tests in objecttest.
package object

import (
	"context"
	"time"
)

// Info is what a store knows of an object without reading it.
type Info struct {
	Name     string
	Size     int64     // bytes
	Modified time.Time // by the storage's clock, which need not be ours
}

// Traits are properties of a storage that its users must reckon with.
type Traits struct {
	// ListDelay is how late an object whose Put has returned may appear in a
	// List by another client, or in a Stat or Get by one that asked for it
	// before it was there.
	ListDelay time.Duration
	// Parallel is how many requests at once serve this storage best: few for a
	// disk, more where each request waits for a network.
	Parallel int
	// Uploads is how many large objects at once are best put; 0: three, or as
	// many as Parallel if that is less.
	Uploads int
	// Page is how many objects one request of a listing gives; 0: all.
	Page int
	// Whole tells that an object of some MiB is better read whole, once, than
	// in several ranges: each request costs time, and perhaps money.
	Whole bool
	// Keeps tells that the store is a Keeper.
	Keeps bool
}

// A Store keeps objects under names such as "config" or "packs/ab/<hex>"; what
// a name may be says CheckName. All methods may be called at once from many
// goroutines, and after any error. Errors name the operation and the object
// and answer errors.Is for one of the sentinels of this package, or for the
// context's error when ctx ended the call.
type Store interface {
	// Put stores data under name, whole or not at all, in place of what may be
	// there; when it returns nil the object survives a power loss. Data is not
	// kept. Repeating a Put with the same bytes is harmless. After an error the
	// object may or may not be there, but never a part of it.
	Put(ctx context.Context, name string, data []byte) error

	// Get reads length bytes from offset; with length < 0 it reads to the end.
	// With offset < 0, where length must be negative too, it reads the last
	// -offset bytes, or the whole object if that is shorter: so a trailer is
	// read when the size is not known. The result belongs to the caller. An
	// object that ends before offset+length is ErrShort; reading to the end
	// from its very end gives no bytes and no error.
	Get(ctx context.Context, name string, offset, length int64) ([]byte, error)

	// GetInto is Get of exactly len(p) bytes from offset >= 0, into p. After an
	// error the content of p is undefined.
	GetInto(ctx context.Context, name string, offset int64, p []byte) error

	// Stat gives an object's size and time, or ErrNotFound.
	Stat(ctx context.Context, name string) (Info, error)

	// List calls fn for each object whose name begins with prefix, in any
	// order, from one goroutine, each object once. It ends with fn's first
	// error. A prefix without objects is no error. Objects put or deleted
	// meanwhile may be missing or shown.
	List(ctx context.Context, prefix string, fn func(Info) error) error

	// Delete removes an object; one that is not there is no error.
	Delete(ctx context.Context, name string) error

	// Traits never changes during the life of a Store.
	Traits() Traits

	// Location names the storage in messages; it holds no secret.
	Location() string

	// Close frees what the store holds. No other call may follow or be under
	// way.
	Close() error
}
