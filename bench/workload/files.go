package workload

import (
	"context"
	"errors"
	"hash/fnv"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// epoch is when all guests' files were last written on day one; day two is a day
// later.
var epoch = time.Date(2025, time.March, 3, 2, 0, 0, 0, time.UTC)

// A realFile is a file of this machine. Its mark, a hash of the path, is uniformly
// distributed in [0, 1): a window of marks is a uniform sample of the machine, and
// two windows share the files in their intersection.
type realFile struct {
	path string
	size int64
	mark float64
}

// realFiles lists regular files below root by path, without those that are too
// large to be typical.
func realFiles(root string) (files []realFile, total int64, err error) {
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrPermission) || errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		info, err := d.Info()
		if err != nil || info.Size() == 0 || info.Size() > 128*mib {
			return nil // deleted, or not useful
		}
		h := fnv.New64a()
		io.WriteString(h, path)
		// FNV's high bits vary little over short suffixes; a multiplication mixes
		// them.
		mark := float64((h.Sum64()*0x9e3779b97f4a7c15)>>11) / (1 << 53)
		files = append(files, realFile{path, info.Size(), mark})
		total += info.Size()
		return nil
	})
	return files, total, err
}

// window is the part of the marks from start on, modulo 1, that contains about want
// bytes of total; never more than all.
type window struct{ start, width float64 }

func windowOf(start float64, want, total int64) window {
	return window{start, min(1, float64(want)/float64(max(total, 1)))}
}

func (w window) has(mark float64) bool {
	d := mark - w.start
	if d < 0 {
		d++
	}
	return d < w.width
}

// copyReal copies the files within w below dir, at most limit bytes, and returns
// the number of bytes copied.
func copyReal(ctx context.Context, files []realFile, w window, dir string, limit int64) (int64, error) {
	var n int64
	for _, f := range files {
		if !w.has(f.mark) || n+f.size > limit {
			continue
		}
		if err := ctx.Err(); err != nil {
			return n, err
		}
		if err := copyFile(f.path, filepath.Join(dir, f.path), epoch); err != nil {
			if errors.Is(err, fs.ErrPermission) || errors.Is(err, fs.ErrNotExist) {
				continue
			}
			return n, err
		}
		n += f.size
	}
	return n, nil
}

func copyFile(from, to string, modified time.Time) error {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	return writeFile(to, modified, func(w io.Writer) error {
		_, err := io.Copy(w, src)
		return err
	})
}

// writeFile creates a file and the folders that it needs.
func writeFile(path string, modified time.Time, fill func(w io.Writer) error) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o644)
	if errors.Is(err, fs.ErrNotExist) {
		if err = os.MkdirAll(filepath.Dir(path), 0o755); err == nil {
			f, err = os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o644)
		}
	}
	if err != nil {
		return err
	}
	err = fill(f)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	return os.Chtimes(path, modified, modified)
}

// CopyTree copies about limit bytes of this machine's files below dir: those whose
// paths come first in a fixed sample of /usr. It returns the number of bytes
// copied.
func CopyTree(ctx context.Context, dir string, limit int64) (int64, error) {
	files, total, err := realFiles("/usr")
	if err != nil {
		return 0, err
	}
	return copyReal(ctx, files, windowOf(0, 3*limit, total), strings.TrimSuffix(dir, "/"), limit)
}
