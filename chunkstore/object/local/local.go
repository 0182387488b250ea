// Package local stores objects as files below one folder, which may be on a
// disk or on an NFS or SMB mount. It does not need hard links, locks or memory
// maps of the file system.
//
// An object is written to a temporary file in its own folder and synced. Then
// the file is renamed, and the folder is synced. Temporary files begin with a
// dot, which no object name does. A temporary file of a dead writer is never
// listed, and List removes it when it is a day old.
//
// Nothing is ever created in a location without a repository. If a folder lacks
// its packs and slots, for example because it is the empty mount point of a
// lost mount, every operation returns object.ErrNoRepository.
package local

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"xenkeep/chunkstore/object"
)

const (
	tempPrefix = ".tmp-"
	tempAge    = 24 * time.Hour // an older temporary file belongs to no live writer

	// writePiece is how many bytes are written between two checks of the
	// context.
	writePiece = 8 << 20

	// networkListDelay covers the attribute and directory caches of NFS (acdirmax,
	// 60 s in nfs(5)) and SMB clients on both sides.
	networkListDelay = 120 * time.Second
)

// Store is the folder of a repository.
type Store struct {
	root    string
	network bool // on a mount to whose server other machines may write
	modes   modes

	// If passing is set, the store serves to try out a folder: it is not a
	// repository, and Close removes it with its content.
	passing string // the folder that is tried out
}

var _ object.Store = (*Store)(nil)

// modes are the permissions of new folders and files, before the umask.
type modes struct{ folder, file fs.FileMode }

// private are the permissions in a new repository: the user's alone.
var private = modes{0o700, 0o600}

// modesLike returns the permissions that new folders and files get next to a
// folder: those of its group if the folder has them, so that a group can share a
// repository, and never those of all others.
func modesLike(folder fs.FileInfo) modes {
	group := folder.Mode().Perm() & 0o070
	return modes{private.folder | group, private.file | group&^0o010}
}

// Create creates the folders of a repository in dir and opens it. The last
// element of dir is created if necessary, its parent never is. Only the user can
// access what is created. If dir contains
// any file, or folders that are not a repository's, the error is
// object.ErrExists.
func Create(dir string) (*Store, error) {
	root, err := filepath.Abs(dir)
	if err != nil {
		return nil, &object.Error{Op: "create", Name: dir, Class: err}
	}
	s := &Store{root: root}
	if err := os.Mkdir(root, private.folder); errors.Is(err, fs.ErrNotExist) {
		return nil, &object.Error{Op: "create", Name: root, Class: object.ErrNoRepository,
			Cause: fmt.Errorf("folder %s does not exist", filepath.Dir(root))}
	} else if err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, s.fail("create", root, err)
	}
	if err := mustBeVacant(root); err != nil {
		return nil, s.fail("create", root, err)
	}
	// Open checks for "packs" and "slots". Slots is created last, so that Open
	// does not accept a partly created repository.
	folders := []string{"index", "snapshots", "notes", "claims", "packs"}
	for i := range 256 {
		folders = append(folders, fmt.Sprintf("packs/%02x", i))
	}
	folders = append(folders, "slots", "slots/a", "slots/b")
	for _, f := range folders {
		if err := os.Mkdir(filepath.Join(root, f), private.folder); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, s.fail("create", root, err)
		}
	}
	for _, f := range []string{"packs", "slots", ".", ".."} {
		if err := syncFolder(filepath.Join(root, f)); err != nil && f != ".." {
			return nil, s.fail("create", root, err)
		}
	}
	return Open(root)
}

// Open opens the repository in dir, which must contain a repository's folders.
// It does not check for a config, and creates nothing.
func Open(dir string) (*Store, error) {
	root, err := filepath.Abs(dir)
	if err != nil {
		return nil, &object.Error{Op: "open", Name: dir, Class: err}
	}
	s := &Store{root: root}
	if err := s.present(); err != nil {
		return nil, s.fail("open", root, err)
	}
	packs, err := os.Stat(filepath.Join(root, "packs"))
	if err == nil {
		s.modes = modesLike(packs)
		s.network, err = onNetwork(root)
	}
	if err != nil {
		return nil, s.fail("open", root, err)
	}
	return s, nil
}

// Connect returns an empty store in a new folder within dir, which may contain
// anything else. Close removes that folder. It is used to try out a file
// system.
func Connect(dir string) (*Store, error) {
	outer, err := filepath.Abs(dir)
	if err != nil {
		return nil, &object.Error{Op: "open", Name: dir, Class: err}
	}
	s := &Store{passing: outer, modes: private}
	if s.root, err = os.MkdirTemp(outer, ".xenkeep-probe-"); errors.Is(err, fs.ErrNotExist) {
		return nil, &object.Error{Op: "open", Name: outer, Class: object.ErrNoRepository, Cause: errors.New("no such folder")}
	} else if err != nil {
		return nil, s.fail("open", outer, err)
	}
	if s.network, err = onNetwork(s.root); err != nil {
		return nil, errors.Join(s.fail("open", outer, err), s.Close())
	}
	return s, nil
}

// mustBeVacant checks that a repository can be created in root. Root may
// contain the empty folders of an interrupted Create, and files that operating
// systems create in any folder.
func mustBeVacant(root string) error {
	errFound := &object.Error{Op: "create", Name: root, Class: object.ErrExists}
	top, err := os.ReadDir(root)
	if err != nil {
		return err
	}
	for _, e := range top {
		if isLitter(e.Name()) {
			continue
		}
		switch e.Name() {
		case "index", "snapshots", "notes", "claims", "packs", "slots":
		default:
			return errFound
		}
		err := filepath.WalkDir(filepath.Join(root, e.Name()), func(_ string, d fs.DirEntry, err error) error {
			if err == nil && !d.IsDir() && !isLitter(d.Name()) {
				return errFound
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// present returns nil if root contains a repository.
func (s *Store) present() error {
	if s.passing != "" {
		return nil
	}
	for _, folder := range []string{"packs", "slots"} {
		info, err := os.Stat(filepath.Join(s.root, folder))
		switch {
		case err == nil && info.IsDir():
		case err == nil, errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR):
			return object.ErrNoRepository
		default:
			return err
		}
	}
	return nil
}

// Put implements object.Store.
func (s *Store) Put(ctx context.Context, name string, data []byte) error {
	if err := check(ctx, "put", name); err != nil {
		return err
	}
	if !strings.Contains(name, "/") {
		// The root itself exists even if its mount is lost.
		if err := s.present(); err != nil {
			return s.fail("put", name, err)
		}
	}
	final := s.path(name)
	temp, err := s.writeTemp(ctx, name, data)
	if err != nil {
		return s.fail("put", name, err)
	}
	if err := os.Rename(temp, final); err != nil {
		os.Remove(temp)
		return s.fail("put", name, err)
	}
	if err := syncFolder(filepath.Dir(final)); err != nil {
		return s.fail("put", name, err)
	}
	return nil
}

// writeTemp writes data to a new file in the folder of name, syncs it and
// returns its path. On failure it leaves no file.
func (s *Store) writeTemp(ctx context.Context, name string, data []byte) (_ string, err error) {
	var random [12]byte
	rand.Read(random[:])
	temp := filepath.Join(filepath.Dir(s.path(name)), tempPrefix+hex.EncodeToString(random[:]))
	const flags = os.O_WRONLY | os.O_CREATE | os.O_EXCL
	f, err := os.OpenFile(temp, flags, s.modes.file)
	if errors.Is(err, fs.ErrNotExist) {
		if err := s.makeFolders(name); err != nil {
			return "", err
		}
		f, err = os.OpenFile(temp, flags, s.modes.file)
	}
	if err != nil {
		return "", err
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(temp)
		}
	}()
	wait, most := object.Throttle(ctx), writePiece
	if wait != nil {
		most = object.ThrottlePiece
	}
	for len(data) > 0 {
		piece := data[:min(len(data), most)]
		if wait != nil {
			err = wait(ctx, len(piece))
		} else {
			err = ctx.Err()
		}
		if err != nil {
			return "", err
		}
		n, err := f.Write(piece)
		if err != nil {
			return "", err
		}
		data = data[n:]
	}
	if err := f.Sync(); err != nil {
		return "", err
	}
	// A network file system may report a full quota only here.
	return temp, f.Close()
}

// makeFolders creates the folders of name, below a root that exists.
func (s *Store) makeFolders(name string) error {
	if err := s.present(); err != nil {
		return err
	}
	for i := range len(name) {
		if name[i] != '/' {
			continue
		}
		folder := s.path(name[:i])
		if err := os.Mkdir(folder, s.modes.folder); errors.Is(err, fs.ErrExist) {
			continue
		} else if err != nil {
			return err
		}
		if err := syncFolder(filepath.Dir(folder)); err != nil {
			return err
		}
	}
	return nil
}

// Get implements object.Store.
func (s *Store) Get(ctx context.Context, name string, offset, length int64) ([]byte, error) {
	if err := object.CheckRange("get", name, offset, length); err != nil {
		return nil, err
	}
	f, size, err := s.open(ctx, name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	from, n, err := object.Span("get", name, size, offset, length)
	if err != nil {
		return nil, err
	}
	p := make([]byte, n)
	return p, s.readAt(f, name, from, p)
}

// GetInto implements object.Store.
func (s *Store) GetInto(ctx context.Context, name string, offset int64, p []byte) error {
	if err := object.CheckRange("get", name, offset, int64(len(p))); err != nil {
		return err
	}
	f, size, err := s.open(ctx, name)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, _, err := object.Span("get", name, size, offset, int64(len(p))); err != nil {
		return err
	}
	return s.readAt(f, name, offset, p)
}

func (s *Store) open(ctx context.Context, name string) (*os.File, int64, error) {
	if err := check(ctx, "get", name); err != nil {
		return nil, 0, err
	}
	f, err := os.Open(s.path(name))
	if err != nil {
		return nil, 0, s.fail("get", name, err)
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fs.ErrNotExist
	}
	if err != nil {
		f.Close()
		return nil, 0, s.fail("get", name, err)
	}
	return f, info.Size(), nil
}

func (s *Store) readAt(f *os.File, name string, offset int64, p []byte) error {
	if len(p) == 0 {
		return nil
	}
	if _, err := f.ReadAt(p, offset); err != nil {
		if errors.Is(err, io.EOF) { // truncated after it was opened
			return &object.Error{Op: "get", Name: name, Class: object.ErrShort}
		}
		return s.fail("get", name, err)
	}
	return nil
}

// Stat implements object.Store.
func (s *Store) Stat(ctx context.Context, name string) (object.Info, error) {
	if err := check(ctx, "stat", name); err != nil {
		return object.Info{}, err
	}
	info, err := os.Stat(s.path(name))
	if err == nil && !info.Mode().IsRegular() {
		err = fs.ErrNotExist
	}
	if err != nil {
		return object.Info{}, s.fail("stat", name, err)
	}
	return object.Info{Name: name, Size: info.Size(), Modified: info.ModTime()}, nil
}

// Delete implements object.Store. It syncs the folder, so that a power loss
// cannot undo this deletion and keep a later one.
func (s *Store) Delete(ctx context.Context, name string) error {
	if err := check(ctx, "delete", name); err != nil {
		return err
	}
	err := os.Remove(s.path(name))
	if err == nil {
		err = syncFolder(filepath.Dir(s.path(name)))
	}
	if err != nil {
		err = s.fail("delete", name, err)
		if errors.Is(err, object.ErrNotFound) {
			return nil
		}
	}
	return err
}

// Traits implements object.Store.
func (s *Store) Traits() object.Traits {
	if s.network {
		return object.Traits{ListDelay: networkListDelay, Parallel: 4}
	}
	return object.Traits{Parallel: 2}
}

// Location implements object.Store.
func (s *Store) Location() string {
	if s.passing != "" {
		return s.passing
	}
	return s.root
}

// Close implements object.Store.
func (s *Store) Close() error {
	if s.passing != "" {
		return os.RemoveAll(s.root)
	}
	return nil
}

func (s *Store) path(name string) string {
	return s.root + string(filepath.Separator) + filepath.FromSlash(name)
}

func check(ctx context.Context, op, name string) error {
	if err := ctx.Err(); err != nil {
		return &object.Error{Op: op, Name: name, Class: err}
	}
	return object.CheckName(op, name)
}

// fail returns err with its class. If an object is not found, fail also checks
// whether the whole repository is missing.
func (s *Store) fail(op, name string, err error) error {
	var ours *object.Error
	if errors.As(err, &ours) {
		return err
	}
	e := &object.Error{Op: op, Name: name, Cause: cause(err)}
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded),
		errors.Is(err, object.ErrNoRepository):
		e.Class, e.Cause = err, nil
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR):
		e.Class, e.Cause = object.ErrNotFound, nil
		switch gone := s.present(); {
		case errors.Is(gone, object.ErrNoRepository):
			e.Class, e.Cause = gone, fmt.Errorf("folder %s does not contain one", s.root)
		case gone != nil:
			return s.fail(op, name, gone)
		}
	default:
		e.Class = classOf(err, s.network)
		if e.Class == nil {
			e.Class, e.Cause = e.Cause, nil
		}
	}
	return e
}

// cause removes the path that the os package adds to an error, because the
// Error already names the object.
func cause(err error) error {
	var path *fs.PathError
	var link *os.LinkError
	switch {
	case errors.As(err, &path):
		return path.Err
	case errors.As(err, &link):
		return link.Err
	}
	return err
}

// classOf returns the sentinel for a system call's error, or nil.
func classOf(err error, network bool) error {
	var no syscall.Errno
	if !errors.As(err, &no) {
		return nil
	}
	switch no {
	case syscall.ENOSPC, syscall.EDQUOT, syscall.EFBIG:
		return object.ErrNoSpace
	case syscall.EACCES, syscall.EPERM, syscall.EROFS:
		return object.ErrPermission
	case syscall.ESTALE, syscall.ETIMEDOUT, syscall.EAGAIN, syscall.EINTR, syscall.EBUSY,
		syscall.EHOSTDOWN, syscall.EHOSTUNREACH, syscall.ENETUNREACH, syscall.ENETDOWN,
		syscall.ECONNRESET, syscall.ECONNREFUSED, syscall.ECONNABORTED, syscall.ENOTCONN,
		syscall.EMFILE, syscall.ENFILE:
		return object.ErrUnavailable
	case syscall.EIO:
		// A bad sector of a disk stays bad; the server of a mount may return.
		if network {
			return object.ErrUnavailable
		}
	}
	return nil
}

// syncFolder makes a rename or removal in a folder durable. File systems that
// cannot sync a folder (some FUSE and SMB ones) return EINVAL or a similar
// error. They are assumed to order such changes themselves.
func syncFolder(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	err = d.Sync()
	d.Close()
	if errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.ENOTSUP) || errors.Is(err, syscall.ENOSYS) {
		return nil
	}
	return err
}

func isTemp(name string) bool { return strings.HasPrefix(name, tempPrefix) }
