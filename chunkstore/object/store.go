// Package object is the interface between xenkeep and the storage of a
// repository: named objects that are written as a whole, read by ranges, listed
// by prefix and deleted.
//
// A Store offers no locks, no appending, no renaming and no guarantee about the
// order of a listing, so that a folder, an NFS mount and S3 can all implement
// it. The backends are the packages local, s3 and mem in folders of this one.
// Package retry wraps any of them, and package all selects one by its location.
// The contract of a backend is written as tests in package objecttest.
package object

import (
	"context"
	"time"
)

// Info is the metadata of an object, which a store returns without reading the
// object.
type Info struct {
	Name     string
	Size     int64     // bytes
	Modified time.Time // according to the storage's clock, which may differ from ours
}

// Traits are properties of a storage that its users must take into account.
type Traits struct {
	// ListDelay bounds the time after which an object whose Put has returned
	// appears in a List by another client, or in a Stat or Get by a client that
	// requested the object before it existed.
	ListDelay time.Duration
	// Parallel is the number of concurrent requests with which the storage is
	// fastest: few for a disk, more if each request waits for a network.
	Parallel int
	// Uploads is the recommended number of concurrent Puts of large objects. 0
	// means three, or Parallel if that is less.
	Uploads int
	// ListPageSize is the number of objects that one request of a listing returns. 0
	// means all.
	ListPageSize int
	// PreferWholeReads reports that it is better to read an object of some MiB once as a
	// whole than in several ranges, because each request costs time and perhaps
	// money.
	PreferWholeReads bool
	// Versioned reports that the store implements Versioned.
	Versioned bool
}

// A Store stores objects under names such as "config" or "packs/ab/<hex>";
// CheckName defines valid names. All methods are safe for concurrent use, and
// may be called after any error. Errors name the operation and the object. They
// match, with errors.Is, one of the sentinels of this package, or the context's
// error if ctx ended the call.
type Store interface {
	// Put stores data under name, completely or not at all, and replaces an
	// existing object. When it returns nil, the object survives a power loss.
	// Put does not retain data. Repeating a Put with the same bytes is
	// harmless. After an error the object may exist or not, but never in part.
	Put(ctx context.Context, name string, data []byte) error

	// Get reads length bytes from offset. With length < 0 it reads to the end.
	// With offset < 0, where length must be negative too, it reads the last
	// -offset bytes, or the whole object if that is shorter; so a trailer can
	// be read if the size is unknown. The result belongs to the caller. If the
	// object ends before offset+length, the error is ErrShort. Reading to the
	// end from exactly the end returns no bytes and no error. If more than
	// MaxWhole(name) bytes would be read to the end, Get reads nothing and the
	// error is ErrTooLarge.
	Get(ctx context.Context, name string, offset, length int64) ([]byte, error)

	// GetInto is Get of exactly len(p) bytes from offset >= 0, into p. After an
	// error the content of p is undefined.
	GetInto(ctx context.Context, name string, offset int64, p []byte) error

	// Stat returns an object's size and time. If there is no such object, the
	// error is ErrNotFound.
	Stat(ctx context.Context, name string) (Info, error)

	// List calls fn once for each object whose name begins with prefix, in any
	// order, from one goroutine. It stops at fn's first error and returns it. A
	// prefix without objects is not an error. Objects that are put or deleted
	// during the listing may be missing or included.
	List(ctx context.Context, prefix string, fn func(Info) error) error

	// Delete removes an object. It is not an error if there is no such object.
	Delete(ctx context.Context, name string) error

	// Traits returns the same value during the whole life of a Store.
	Traits() Traits

	// Location returns the name of the storage for messages. It contains no
	// secret.
	Location() string

	// Close frees the resources of the store. No other call may be in progress
	// or follow.
	Close() error
}
