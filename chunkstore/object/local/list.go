package local

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"strings"
	"time"

	"xenkeep/chunkstore/object"
)

// listBatch is how many names of a folder are in memory at a time.
const listBatch = 1024

// List implements object.Store. It reads only the folders that can contain
// names with the prefix.
func (s *Store) List(ctx context.Context, prefix string, fn func(object.Info) error) error {
	if err := object.CheckPrefix("list", prefix); err != nil {
		return err
	}
	// An unmounted repository must not look like an empty one.
	if err := s.present(); err != nil {
		return s.fail("list", prefix, err)
	}
	folder := prefix[:strings.LastIndexByte(prefix, '/')+1]
	return s.list(ctx, folder, prefix, fn)
}

// list walks folder, which is "" or a name with its slash, and calls fn for
// objects that begin with prefix.
func (s *Store) list(ctx context.Context, folder, prefix string, fn func(object.Info) error) error {
	d, err := os.Open(s.path(folder))
	if err != nil {
		if err = s.fail("list", prefix, err); errors.Is(err, object.ErrNotFound) {
			return nil
		}
		return err
	}
	defer d.Close()
	var inner []string // folders, walked after this one is closed
	for {
		if err := ctx.Err(); err != nil {
			return &object.Error{Op: "list", Name: prefix, Class: err}
		}
		entries, readErr := d.ReadDir(listBatch)
		for _, e := range entries {
			if isTemp(e.Name()) {
				s.removeOldTemp(folder, e)
				continue
			}
			name := folder + e.Name()
			below := strings.HasPrefix(name, prefix) || strings.HasPrefix(prefix, name+"/")
			if !below || object.CheckName("list", name) != nil {
				continue
			}
			info, err := entryInfo(s.path(name), e)
			switch {
			case errors.Is(err, fs.ErrNotExist): // deleted meanwhile
			case err != nil:
				return s.fail("list", name, err)
			case info.IsDir():
				inner = append(inner, name+"/")
			case info.Mode().IsRegular() && strings.HasPrefix(name, prefix):
				if err := fn(object.Info{Name: name, Size: info.Size(), Modified: info.ModTime()}); err != nil {
					return err
				}
			}
		}
		if errors.Is(readErr, io.EOF) {
			break
		}
		if readErr != nil {
			return s.fail("list", prefix, readErr)
		}
	}
	d.Close()
	for _, f := range inner {
		if err := s.list(ctx, f, prefix, fn); err != nil {
			return err
		}
	}
	return nil
}

// entryInfo follows symbolic links, so that a folder may be on another disk.
func entryInfo(path string, e fs.DirEntry) (fs.FileInfo, error) {
	if e.Type()&fs.ModeSymlink != 0 {
		return os.Stat(path)
	}
	return e.Info()
}

// removeOldTemp removes a temporary file of a dead writer. It does not matter
// if this fails, for example on a read-only mount.
func (s *Store) removeOldTemp(folder string, e fs.DirEntry) {
	info, err := e.Info()
	if err == nil && info.Mode().IsRegular() && time.Since(info.ModTime()) > tempAge {
		os.Remove(s.path(folder + e.Name()))
	}
}
