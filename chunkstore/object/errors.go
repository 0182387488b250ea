package object

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"
)

// The classes of error that a Store distinguishes. Callers test for them with
// errors.Is.
var (
	// ErrNotFound means that no object has this name.
	ErrNotFound = errors.New("object not found")
	// ErrShort means that the object ends before the end of the requested
	// range. It is also an io.ErrUnexpectedEOF.
	ErrShort = fmt.Errorf("object too short: %w", io.ErrUnexpectedEOF)
	// ErrNoRepository means that the location does not contain a repository:
	// for example because the path is wrong, the bucket is missing, or a mount
	// is missing or lost.
	ErrNoRepository = errors.New("no repository there")
	// ErrExists means that a repository cannot be created because the location
	// is not empty.
	ErrExists = errors.New("not empty")
	// ErrNoSpace means that the storage, or the user's quota on it, is full.
	ErrNoSpace = errors.New("storage is full")
	// ErrPermission means that credentials are missing, invalid or lack the
	// permission for this operation.
	ErrPermission = errors.New("permission denied by the storage")
	// ErrClock means that the storage refuses a request because the clocks of
	// the two machines differ too much. It is an ErrPermission with a message
	// of its own.
	ErrClock error = clockError{}
	// ErrUnavailable means that the storage did not answer, or answered with a
	// temporary failure. It is the only class that is worth a retry.
	ErrUnavailable = errors.New("storage not available")
	// ErrLocked means that the object must not be deleted before a certain
	// time, which a LockedError contains.
	ErrLocked = errors.New("locked against deletion")
	// ErrUnsupported means that the storage does not offer this operation.
	ErrUnsupported = errors.New("not offered by the storage")
	// ErrName means that CheckName does not allow the name, or that the range
	// is invalid.
	ErrName = errors.New("invalid name or range")
)

type clockError struct{}

func (clockError) Error() string {
	return "the clocks of this machine and of the storage differ too much"
}

func (clockError) Unwrap() error { return ErrPermission }

// Error is a failed operation. It unwraps to its class only: the errors to
// which a backend's own error unwraps (for example io.ErrUnexpectedEOF after a
// broken connection) must not be mistaken for a fact about the object.
type Error struct {
	Op    string // "put", "get", "stat", "list", "delete", "open", "create"
	Name  string // object or prefix; for open and create the location
	Class error  // one of the sentinels, a context error, or the cause if no sentinel matches
	Cause error  // the backend's own error; may be nil
	Hint  string // the next step for the user; may be empty
}

func (e *Error) Error() string {
	s := e.Op + " " + e.Name + ": " + e.Class.Error()
	if e.Cause != nil && e.Cause != e.Class {
		s += ": " + e.Cause.Error()
	}
	return s
}

// Unwrap returns the class.
func (e *Error) Unwrap() error { return e.Class }

// HintOf returns the backend's hint for the user about an error, or "" if there
// is none.
func HintOf(err error) string {
	var e *Error
	if errors.As(err, &e) {
		return e.Hint
	}
	return ""
}

// LockedError reports an object that must not be deleted yet.
type LockedError struct {
	Name  string
	Until time.Time
}

func (e *LockedError) Error() string {
	return fmt.Sprintf("delete %s: %v until %s", e.Name, ErrLocked, e.Until.UTC().Format(time.RFC3339))
}

// Unwrap returns the class.
func (e *LockedError) Unwrap() error { return ErrLocked }

// Retriable reports whether the same call may succeed a little later.
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
