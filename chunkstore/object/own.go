package object

import (
	"context"
	"strings"
)

// sumLength is the length of a SHA-256 in hexadecimal.
const sumLength = 64

// Own reports whether a name has the form that a repository uses for its
// objects (docs/format.md, section 2). All other objects are foreign, for
// example files that file managers and synchronising programs put into a
// folder. Foreign objects are not damage, and are left alone.
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
	case "index", "snapshots", "notes", "condemned", "damage", "revoked", "catalogue", "proofs", "forgotten":
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

// A ForeignLister is a storage that can list everything foreign in its
// location, including files whose names are not valid object names.
type ForeignLister interface {
	// ListForeign calls fn for each foreign file, and once for each folder in
	// which no object can be stored. The name of a folder ends in a slash.
	ListForeign(ctx context.Context, fn func(name string) error) error
}

// ForeignListerOf returns s as a ForeignLister, or the first store below it
// that is one.
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
