package index

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/zeebo/blake3"
	"golang.org/x/sys/unix"
)

// The cache folder contains
//
//	manifest   the segments in use, and which of their sources are dropped
//	lock       held (flock) while the manifest is read and changed
//	seg-*      segments
//	tmp-*      segments being written
//
// The manifest is replaced by a rename. It names a segment only once the
// segment is complete and synced, and a segment is removed only once the
// manifest no longer names it. A process that still has a removed segment
// mapped keeps its map.
const (
	manifestName  = "manifest"
	lockName      = "lock"
	segmentPrefix = "seg-"
	tempPrefix    = "tmp-"
	tempAge       = 24 * time.Hour // older than this, its writer is dead

	manifestHead = "xenkeep index 1 " // followed by the BLAKE3 hash of the rest in hex, and a newline
)

// manifest is the JSON that follows the first line of the manifest file.
type manifest struct {
	Segments []manifestSegment `json:"segments"`
}

type manifestSegment struct {
	Name    string   `json:"name"`
	Size    int64    `json:"size"`
	Dropped []string `json:"dropped,omitempty"`
}

// folder is the cache folder. The zero value keeps segments in memory.
type folder struct{ path string }

func (f folder) memory() bool { return f.path == "" }

// FolderError reports a failure of the cache folder, for example that it is
// full.
type FolderError struct {
	Dir string
	Err error
}

func (e *FolderError) Error() string { return fmt.Sprintf("cache folder %s: %v", e.Dir, e.Err) }

// Unwrap returns the error of the file system.
func (e *FolderError) Unwrap() error { return e.Err }

// Hint returns the next step for the user.
func (e *FolderError) Hint() string {
	return "make room there, or name another folder with --cache-dir or XENKEEP_CACHE_DIR; the folder contains only copies, and is rebuilt from the repository"
}

// fail wraps an error of the file system so that it names the folder.
func (f folder) fail(err error) error {
	var named *FolderError
	if err == nil || errors.Is(err, errSegment) || errors.As(err, &named) {
		return err
	}
	return &FolderError{Dir: f.path, Err: err}
}

// lock waits until no other process and no other Index is changing the
// manifest.
func (f folder) lock() (unlock func(), err error) {
	if f.memory() {
		return func() {}, nil
	}
	if err := os.MkdirAll(f.path, 0o700); err != nil {
		return nil, f.fail(err)
	}
	l, err := os.OpenFile(filepath.Join(f.path, lockName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, f.fail(err)
	}
	for {
		err := unix.Flock(int(l.Fd()), unix.LOCK_EX)
		if err == nil {
			return func() { l.Close() }, nil
		}
		if err != unix.EINTR {
			l.Close()
			return nil, fmt.Errorf("lock %s: %w", l.Name(), err)
		}
	}
}

// readManifest returns the manifest and its checksum. A missing manifest is an
// empty one; for a damaged one the error is errSegment.
func (f folder) readManifest() (m manifest, stamp [sumSize]byte, err error) {
	p, err := os.ReadFile(filepath.Join(f.path, manifestName))
	if errors.Is(err, fs.ErrNotExist) {
		return m, stamp, nil
	}
	if err != nil {
		return m, stamp, err
	}
	head, body, _ := strings.Cut(string(p), "\n")
	stamp = blake3.Sum256([]byte(body))
	if head != manifestHead+hex.EncodeToString(stamp[:]) || json.Unmarshal([]byte(body), &m) != nil {
		return manifest{}, stamp, fmt.Errorf("manifest: %w", errSegment)
	}
	for _, s := range m.Segments {
		if filepath.Base(s.Name) != s.Name || !strings.HasPrefix(s.Name, segmentPrefix) {
			return manifest{}, stamp, fmt.Errorf("manifest: %w", errSegment)
		}
	}
	return m, stamp, nil
}

// writeManifest replaces the manifest. The lock must be held.
func (f folder) writeManifest(m manifest) (stamp [sumSize]byte, err error) {
	body, err := json.Marshal(m)
	if err != nil {
		return stamp, err
	}
	stamp = blake3.Sum256(body)
	if f.memory() {
		return stamp, nil
	}
	t, err := f.create()
	if err != nil {
		return stamp, err
	}
	defer t.discard()
	head := manifestHead + hex.EncodeToString(stamp[:]) + "\n"
	if _, err := t.file.Write(append([]byte(head), body...)); err != nil {
		return stamp, f.fail(err)
	}
	if err := t.file.Sync(); err != nil {
		return stamp, f.fail(err)
	}
	if err := os.Rename(t.file.Name(), filepath.Join(f.path, manifestName)); err != nil {
		return stamp, f.fail(err)
	}
	t.kept = true
	return stamp, f.sync()
}

// open opens a segment that the manifest names. If it is missing, or its size
// differs from the manifest's, the error is errSegment; so no memory map is
// larger than its file.
func (f folder) open(name string, size int64) (*segment, error) {
	file, err := os.Open(filepath.Join(f.path, name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", name, errSegment)
	}
	if err != nil {
		return nil, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	if info.Size() != size || size < headerSize || int64(int(size)) != size {
		return nil, fmt.Errorf("%s: %w", name, errSegment)
	}
	data, err := unix.Mmap(int(file.Fd()), 0, int(size), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map %s: %w", name, err)
	}
	s, err := parseSegment(name, data)
	if err != nil {
		_ = unix.Munmap(data)
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	// Lookups take no lock, so only the garbage collector can determine when
	// the last one has ended.
	runtime.AddCleanup(s, func(data []byte) { _ = unix.Munmap(data) }, data)
	return s, nil
}

// clean removes segments that the manifest does not name, and temporary files
// of dead writers. The lock must be held. Files that it cannot remove do no
// harm.
func (f folder) clean(m manifest) {
	counts := make(map[string]bool)
	for _, s := range m.Segments {
		counts[s.Name] = true
	}
	entries, _ := os.ReadDir(f.path)
	for _, e := range entries {
		stale := strings.HasPrefix(e.Name(), segmentPrefix) && !counts[e.Name()]
		if strings.HasPrefix(e.Name(), tempPrefix) {
			info, err := e.Info()
			stale = err == nil && time.Since(info.ModTime()) > tempAge
		}
		if stale {
			os.Remove(filepath.Join(f.path, e.Name()))
		}
	}
}

// target is a file being written, or its equivalent in memory.
type target struct {
	folder folder
	file   *os.File
	bytes  []byte
	kept   bool
}

func (f folder) create() (*target, error) {
	if f.memory() {
		return &target{}, nil
	}
	file, err := os.OpenFile(filepath.Join(f.path, tempPrefix+random()), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, f.fail(err)
	}
	return &target{folder: f, file: file}, nil
}

func random() string {
	var p [12]byte
	rand.Read(p[:])
	return hex.EncodeToString(p[:])
}

// WriteAt implements io.WriterAt.
func (t *target) WriteAt(p []byte, off int64) (int, error) {
	if t.file != nil {
		n, err := t.file.WriteAt(p, off)
		return n, t.folder.fail(err)
	}
	if end := int(off) + len(p); end > len(t.bytes) {
		if end > cap(t.bytes) {
			grown := make([]byte, end, max(end, 2*cap(t.bytes)))
			copy(grown, t.bytes)
			t.bytes = grown
		}
		t.bytes = t.bytes[:end]
	}
	return copy(t.bytes[off:], p), nil
}

// segment syncs the written file and opens it as a segment. Its name is still a
// temporary one, until adopt renames it.
func (t *target) segment(size int64) (*segment, error) {
	if t.folder.memory() {
		return parseSegment(segmentPrefix+random(), t.bytes[:size:size])
	}
	if err := t.file.Sync(); err != nil {
		return nil, t.folder.fail(err)
	}
	s, err := t.folder.open(filepath.Base(t.file.Name()), size)
	if err == nil {
		t.kept = true
	}
	return s, err
}

// adopt renames a new segment to its final name. The lock must be held until
// the manifest names the segment, because every process treats a segment that
// the manifest does not name as garbage.
func (f folder) adopt(s *segment) error {
	if !strings.HasPrefix(s.name, tempPrefix) {
		return nil
	}
	name := segmentPrefix + random()
	if err := os.Rename(filepath.Join(f.path, s.name), filepath.Join(f.path, name)); err != nil {
		return f.fail(err)
	}
	s.name = name
	return nil
}

// sync makes renames in the folder durable.
func (f folder) sync() error {
	d, err := os.Open(f.path)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// discard closes the file, and removes it unless it is kept.
func (t *target) discard() {
	if t.file == nil {
		return
	}
	t.file.Close()
	if !t.kept {
		os.Remove(t.file.Name())
	}
}

// remove removes a new segment that is not used after all.
func (f folder) remove(s *segment) {
	if !f.memory() {
		os.Remove(filepath.Join(f.path, s.name))
	}
}

var _ io.WriterAt = (*target)(nil)
