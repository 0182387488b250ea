package object

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"
)

// The classes of error that a Store tells apart. A caller asks with errors.Is.
var (
	// ErrNotFound: no object has this name.
	ErrNotFound = errors.New("object not found")
	// ErrShort: the object ends before the range that was asked for. It is
	// also an io.ErrUnexpectedEOF.
	ErrShort = fmt.Errorf("object too short: %w", io.ErrUnexpectedEOF)
	// ErrNoRepository: nothing of a repository is at the location: a wrong
	// path, a missing bucket, a mount that is not or no longer there.
	ErrNoRepository = errors.New("no repository there")
	// ErrExists: a repository was to be made where there is something already.
	ErrExists = errors.New("not empty")
	// ErrNoSpace: the storage, or the user's quota on it, is full.
	ErrNoSpace = errors.New("storage is full")
	// ErrPermission: the storage refuses us this operation, or knows us not.
	ErrPermission = errors.New("permission denied by the storage")
	// ErrClock: the storage refuses a request since the clocks of the two
	// machines differ too much.
	// It is an ErrPermission with words of its own.
	ErrClock error = clockError{}
	// ErrUnavailable: the storage did not answer properly this time. It is the
	// only class worth trying again.
	ErrUnavailable = errors.New("storage not available")
	// ErrLocked: the object may not be deleted before a certain time; a
	// LockedError says when.
	ErrLocked = errors.New("locked against deletion")
	// ErrUnsupported: the storage does not offer what was asked for.
	ErrUnsupported = errors.New("not offered by the storage")
	// ErrName: the name is none that CheckName allows, or the range is none.
	ErrName = errors.New("invalid name or range")
)

type clockError struct{}

func (clockError) Error() string {
	return "the clocks of this machine and of the storage differ too much"
}

func (clockError) Unwrap() error { return ErrPermission }

// Error is an operation that went wrong. Unwrap gives the class alone: what a
// backend's own error unwraps to (say, io.ErrUnexpectedEOF of a broken
// connection) must not be taken for a fact about the object.
type Error struct {
	Op    string // "put", "get", "stat", "list", "delete", "open", "create"
	Name  string // object, prefix, or for open and create the location
	Class error  // one of the sentinels, a context error, or the cause if none fits
	Cause error  // what the backend said; may be nil
	Hint  string // what the user can do about it; may be empty
}

func (e *Error) Error() string {
	s := e.Op + " " + e.Name + ": " + e.Class.Error()
	if e.Cause != nil && e.Cause != e.Class {
		s += ": " + e.Cause.Error()
	}
	return s
}

// Unwrap gives the class.
func (e *Error) Unwrap() error { return e.Class }

// HintOf is what can be done about an error, as the backend knows it; empty
// where it does not.
func HintOf(err error) string {
	var e *Error
	if errors.As(err, &e) {
		return e.Hint
	}
	return ""
}

// LockedError is an object that may not be deleted yet.
type LockedError struct {
	Name  string
	Until time.Time
}

func (e *LockedError) Error() string {
	return fmt.Sprintf("delete %s: %v until %s", e.Name, ErrLocked, e.Until.UTC().Format(time.RFC3339))
}

// Unwrap gives the class.
func (e *LockedError) Unwrap() error { return ErrLocked }

// Retriable tells whether the same call may well succeed a little later.
func Retriable(err error) bool {
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return false
	case errors.Is(err, ErrUnavailable):
		return true
	default:
		return false
	}
}
