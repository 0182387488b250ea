package object

import (
	"errors"
	"fmt"
	"strings"
)

// ErrTooLarge means that an object is larger than any object of a repository
// with such a name. It is damage or a forgery. Nothing of it was read.
var ErrTooLarge = errors.New("larger than any object of its kind")

// Sizes in bytes that objects have at most (docs/format.md, section 6). Anyone
// who can write to the storage can put an object of any size, so that readers
// compare the size with these limits before they allocate memory.
const (
	// MaxPack is the size that a pack has at most.
	MaxPack = 64 << 20

	maxConfig    = 1 << 20
	maxSlot      = 2 << 20 // it contains the config
	maxSmall     = 16 << 20
	maxCatalogue = 64 << 20
	// maxList includes the plain head, which names packs.
	maxList = 1<<30 + 64<<20
	// maxOther applies to names that are not those of a repository's objects.
	maxOther = 64 << 20
)

// MaxSize returns the size in bytes that an object with this name has at most.
func MaxSize(name string) int64 {
	folder, _, _ := strings.Cut(name, "/")
	switch folder {
	case "config":
		return maxConfig
	case "slots":
		return maxSlot
	case "packs":
		return MaxPack
	case "snapshots", "notes", "claims", "retired", "over", "proofs":
		return maxSmall
	case "catalogue":
		return maxCatalogue
	case "index", "references", "condemned", "damage", "revoked", "forgotten":
		return maxList
	}
	return maxOther
}

// MaxWhole returns the number of bytes that Get reads at most if it reads to
// the end of an object with this name. It equals MaxSize, except for lists,
// which may be larger but rarely are: a larger list must be verified in pieces
// before it is read into memory.
func MaxWhole(name string) int64 {
	if n := MaxSize(name); n != maxList {
		return n
	}
	return maxSmall
}

// CheckWhole checks that n bytes of an object may be read into memory, because
// they are not more than MaxWhole. The error is of class ErrTooLarge.
func CheckWhole(op, name string, n int64) error {
	most := MaxWhole(name)
	if n <= most {
		return nil
	}
	return &Error{Op: op, Name: name, Class: ErrTooLarge, Cause: fmt.Errorf("%d bytes, at most %d are read at once", n, most)}
}
