package inspect

import (
	"fmt"
	"runtime"
)

// A guest writes every byte that is inspected here, so nothing on a disk may
// decide how much is read, how deep a structure is followed or how much memory
// a probe takes. A budget bounds the bytes; the parsers bound their own depth
// and the number of values. An honest file system stays far below both: the
// maps of free space are 1/32768 of a volume (ext, NTFS), at most 1/1024 of it
// in an XFS whose free space is fragmented as badly as it can be, and group
// headers are 1/4096 of it at most.

// minBudget is read of any volume, however small, in bytes.
const minBudget = 64 << 20

// budget is a number of bytes that may still be read, out of a larger one where
// parent is set. A nil budget has no limit.
type budget struct {
	left, all int64
	parent    *budget
}

// newBudget returns a budget of least bytes and one byte for each share bytes
// of size.
func newBudget(parent *budget, least, size, share int64) *budget {
	n := least + size/share
	return &budget{left: n, all: n, parent: parent}
}

// spend takes n bytes out of the budget, or returns a *boundError.
func (b *budget) spend(n int64) error {
	for ; b != nil; b = b.parent {
		if n > b.left {
			return &boundError{fmt.Sprintf("its structures ask for more than %d MiB to be read", b.all>>20)}
		}
		b.left -= n
	}
	return nil
}

// boundError is returned where a structure on the disk asks for more than an
// inspection is ready to spend.
type boundError struct{ text string }

func (e *boundError) Error() string { return e.text }

// guard calls fn and returns a panic of it as a *boundError, so that one volume
// that no one foresaw ends its own probe and nothing else.
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
