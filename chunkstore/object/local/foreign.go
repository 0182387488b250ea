package local

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"xenkeep/chunkstore/object"
)

var _ object.ForeignLister = (*Store)(nil)

// litter contains the names of files and folders that operating systems create
// in any folder.
var litter = map[string]bool{"desktop.ini": true, "thumbs.db": true, ".ds_store": true, "lost+found": true, ".directory": true}

// isLitter reports whether an operating system creates files or folders of this
// name.
func isLitter(name string) bool { return litter[strings.ToLower(name)] }

// folders are the top-level folders of a repository. Packs and slots have
// subfolders.
var folders = map[string]bool{
	"slots": true, "packs": true, "index": true, "snapshots": true, "notes": true, "condemned": true, "damage": true,
	"revoked": true, "catalogue": true, "claims": true, "references": true, "retired": true, "over": true, "proofs": true, "forgotten": true,
}

// ListForeign implements object.ForeignLister. Temporary files of this package
// are not foreign.
func (s *Store) ListForeign(ctx context.Context, fn func(name string) error) error {
	if err := s.present(); err != nil {
		return s.fail("list", "", err)
	}
	err := filepath.WalkDir(s.root, func(path string, e fs.DirEntry, err error) error {
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case path == s.root || errors.Is(err, fs.ErrNotExist): // deleted meanwhile
			return nil
		}
		rel, rerr := filepath.Rel(s.root, path)
		if rerr != nil {
			return rerr
		}
		name := filepath.ToSlash(rel)
		dir := e.IsDir()
		if e.Type()&fs.ModeSymlink != 0 {
			if info, serr := os.Stat(path); serr == nil {
				dir = info.IsDir()
			}
		}
		switch {
		case !dir && (isTemp(e.Name()) || object.Own(name)):
			return nil
		case !dir:
			return fn(name)
		case ownFolder(name):
			return err // for a folder that cannot be read
		}
		if ferr := fn(name + "/"); ferr != nil {
			return ferr
		}
		if e.IsDir() {
			return fs.SkipDir
		}
		return nil
	})
	if err != nil {
		return s.fail("list", "", err)
	}
	return nil
}

// ownFolder reports whether a folder can contain objects of a repository.
func ownFolder(name string) bool {
	top, rest, below := strings.Cut(name, "/")
	return folders[top] && (!below || top == "slots" && (rest == "a" || rest == "b") || top == "packs" && object.Own(name+"/"+strings.Repeat("0", 64)))
}
