package object

import (
	"context"
	"strings"
)

// sumLength is the length of a SHA-256 in hexadecimal.
const sumLength = 64

// Own reports whether a name has the form of those that a repository gives to
// its objects (docs/format.md, section 2). All others are foreign: what file
// managers and synchronising programs put into a folder, for example. They are
// no damage, and are left alone.
func Own(name string) bool {
	folder, rest, _ := strings.Cut(name, "/")
	switch folder {
	case "config":
		return name == "config"
	case "slots":
		side, id, _ := strings.Cut(rest, "/")
		return (side == "a" || side == "b") && len(id) >= 8 && isHex(id)
	case "packs":
		two, sum, _ := strings.Cut(rest, "/")
		return len(two) == 2 && isHex(two) && len(sum) == sumLength && isHex(sum)
	case "index", "snapshots", "notes", "condemned", "damage", "revoked", "catalogue":
		return len(rest) == sumLength && isHex(rest)
	case "claims", "references", "retired", "over":
		run, sum, _ := strings.Cut(rest, "-")
		return run != "" && isHex(run) && len(sum) == sumLength && isHex(sum)
	}
	return false
}

func isHex(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// ListOwn is Store.List without foreign objects.
func ListOwn(ctx context.Context, s Store, prefix string, fn func(Info) error) error {
	return s.List(ctx, prefix, func(i Info) error {
		if !Own(i.Name) {
			return nil
		}
		return fn(i)
	})
}

// A ForeignLister is a storage that can list all that is in its place and is
// foreign, also what has a name that no object may have.
type ForeignLister interface {
	// ListForeign calls fn for each foreign file, and once for each folder that
	// no object can lie in, whose name then ends in a slash.
	ListForeign(ctx context.Context, fn func(name string) error) error
}

// ForeignListerOf is the store's own ForeignLister, or that of a store below it.
func ForeignListerOf(s Store) (ForeignLister, bool) {
	for {
		if f, ok := s.(ForeignLister); ok {
			return f, true
		}
		u, ok := s.(interface{ Unwrap() Store })
		if !ok {
			return nil, false
		}
		s = u.Unwrap()
	}
}
