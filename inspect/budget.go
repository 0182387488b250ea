package inspect

import (
	"fmt"
	"runtime"
)

// A guest can write every byte that this package reads. Therefore nothing on a
// disk may decide how much is read, how deep a structure is followed or how
// much memory a probe uses. A budget bounds the bytes; the parsers bound their
// own depth and the number of values. A regular file system stays far below
// both: the maps of free space are 1/32768 of a volume (ext, NTFS), at most
// 1/1024 of it in an XFS whose free space is fragmented as much as possible,
// and group headers are at most 1/4096 of it.

// minBudget is the minimum budget for a volume of any size, in bytes.
const minBudget = 64 << 20

// budget is a number of bytes that may still be read; they also count towards
// parent if it is set. A nil budget has no limit.
type budget struct {
	left, all int64
	parent    *budget
}

// newBudget returns a budget of least bytes plus one byte for each share bytes
// of size.
func newBudget(parent *budget, least, size, share int64) *budget {
	n := least + size/share
	return &budget{left: n, all: n, parent: parent}
}

// spend subtracts n bytes from the budget, or returns a *boundError.
func (b *budget) spend(n int64) error {
	for ; b != nil; b = b.parent {
		if n > b.left {
			return &boundError{fmt.Sprintf("its structures ask for more than %d MiB to be read", b.all>>20)}
		}
		b.left -= n
	}
	return nil
}

// boundError is returned if a structure on the disk requires more than the
// limits of an inspection allow.
type boundError struct{ text string }

func (e *boundError) Error() string { return e.text }

// guard calls fn and returns a panic of fn as a *boundError, so that an
// unforeseen volume ends only its own probe.
func guard(fn func() error) (err error) {
	defer func() {
		switch p := recover().(type) {
		case nil:
		case runtime.Error:
			err = &boundError{fmt.Sprintf("a structure that is not understood (%v)", p)}
		default:
			panic(p)
		}
	}()
	return fn()
}
