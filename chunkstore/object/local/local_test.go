package local_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"xenkeep/chunkstore/object"
	"xenkeep/chunkstore/object/local"
	"xenkeep/chunkstore/object/objecttest"
)

func create(t *testing.T) (*local.Store, string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "repo")
	s, err := local.Create(dir)
	if err != nil {
		t.Fatal(err)
	}
	return s, dir
}

// exists reports whether path exists. It does not follow links.
func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

func TestContract(t *testing.T) {
	objecttest.Run(t, func(t *testing.T) object.Store {
		s, _ := create(t)
		return s
	})
}

func TestOpenWhatCreateMade(t *testing.T) {
	s, dir := create(t)
	if err := s.Put(t.Context(), "slots/a/k", []byte("x")); err != nil {
		t.Fatal(err)
	}
	s, err := local.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := s.Get(t.Context(), "slots/a/k", 0, -1); err != nil || string(got) != "x" {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := local.Create(dir); !errors.Is(err, object.ErrExists) {
		t.Errorf("create over a repository: %v", err)
	}
}

func TestCreateAgainAfterInterruption(t *testing.T) {
	_, dir := create(t)
	if err := os.RemoveAll(filepath.Join(dir, "slots")); err != nil {
		t.Fatal(err)
	}
	if _, err := local.Open(dir); !errors.Is(err, object.ErrNoRepository) {
		t.Errorf("open of a half-made repository: %v", err)
	}
	if _, err := local.Create(dir); err != nil {
		t.Error(err)
	}
}

func TestCreateRefuses(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "letter.txt"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := local.Create(dir); !errors.Is(err, object.ErrExists) {
		t.Errorf("folder with a file: %v", err)
	}
	if exists(filepath.Join(dir, "packs")) {
		t.Error("made folders beside a stranger's file")
	}
	if _, err := local.Create(filepath.Join(dir, "letter.txt")); err == nil {
		t.Error("created over a file")
	}
	if _, err := local.Create(filepath.Join(dir, "lost", "mount")); !errors.Is(err, object.ErrNoRepository) {
		t.Errorf("folder without parent: %v", err)
	}
	if exists(filepath.Join(dir, "lost")) {
		t.Error("made the parent")
	}
}

func TestOpenRefusesAndCreatesNothing(t *testing.T) {
	empty := t.TempDir() // like the mount point of a lost mount
	for _, dir := range []string{empty, filepath.Join(empty, "gone")} {
		if _, err := local.Open(dir); !errors.Is(err, object.ErrNoRepository) {
			t.Errorf("open: %v", err)
		}
	}
	left, err := os.ReadDir(empty)
	if err != nil || len(left) != 0 {
		t.Errorf("open made %v, %v", left, err)
	}
}

// TestMountLost removes the repository while a store is open: once as a missing
// path, and once as an empty folder, which an unmounted mount point looks like.
func TestMountLost(t *testing.T) {
	for _, empty := range []bool{false, true} {
		s, dir := create(t)
		ctx := t.Context()
		if err := s.Put(ctx, "packs/ab/x", []byte("x")); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(dir, dir+".away"); err != nil {
			t.Fatal(err)
		}
		if empty {
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
		}
		_, getErr := s.Get(ctx, "packs/ab/x", 0, -1)
		_, statErr := s.Stat(ctx, "packs/ab/x")
		for verb, err := range map[string]error{
			"put":        s.Put(ctx, "packs/ab/y", []byte("y")),
			"put config": s.Put(ctx, "config", []byte("y")),
			"put new":    s.Put(ctx, "new/deep/y", []byte("y")),
			"get":        getErr,
			"stat":       statErr,
			"delete":     s.Delete(ctx, "packs/ab/x"),
			"list":       s.List(ctx, "", func(object.Info) error { return nil }),
			"list packs": s.List(ctx, "packs/", func(object.Info) error { return nil }),
		} {
			if !errors.Is(err, object.ErrNoRepository) {
				t.Errorf("empty %v: %s: %v", empty, verb, err)
			}
		}
		if left, _ := os.ReadDir(dir); len(left) != 0 || exists(dir) != empty {
			t.Errorf("empty %v: created %v", empty, left)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(dir+".away", dir); err != nil {
			t.Fatal(err)
		}
		if got, err := s.Get(ctx, "packs/ab/x", 0, -1); err != nil || string(got) != "x" {
			t.Errorf("after it came back: %q, %v", got, err)
		}
	}
}

func TestLeftoversOfDeadWriters(t *testing.T) {
	s, dir := create(t)
	old, young := filepath.Join(dir, "packs/ab/.tmp-00"), filepath.Join(dir, "packs/ab/.tmp-01")
	for _, f := range []string{old, young} {
		if err := os.WriteFile(f, []byte("half"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	before := time.Now().Add(-25 * time.Hour)
	if err := os.Chtimes(old, before, before); err != nil {
		t.Fatal(err)
	}
	err := s.List(t.Context(), "", func(i object.Info) error {
		t.Errorf("listed %s", i.Name)
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	if exists(old) || !exists(young) {
		t.Errorf("old one there: %v; young one there: %v", exists(old), exists(young))
	}
}

func TestFailedPutLeavesNothing(t *testing.T) {
	s, dir := create(t)
	// A folder in the place of the object makes the rename fail.
	if err := os.Mkdir(filepath.Join(dir, "notes/aa"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := s.Put(t.Context(), "notes/aa", []byte("x")); err == nil {
		t.Error("put over a folder")
	}
	left, err := os.ReadDir(filepath.Join(dir, "notes"))
	if err != nil || len(left) != 1 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// TestFullDisk uses a file size limit because a full disk would require root.
// The kernel returns EFBIG, which is of the same class.
func TestFullDisk(t *testing.T) {
	var old syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &old); err != nil {
		t.Skip("SKIP: no file size limits here")
	}
	s, _ := create(t)
	limit := old
	limit.Cur = 1 << 20
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &limit); err != nil {
		t.Skip("SKIP: file size limit cannot be set")
	}
	err := s.Put(t.Context(), "packs/00/x", make([]byte, 2<<20))
	if e := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &old); e != nil {
		t.Fatal(e)
	}
	if !errors.Is(err, object.ErrNoSpace) {
		t.Errorf("put: %v", err)
	}
	if object.Retriable(err) {
		t.Error("a full disk is taken to be worth another try")
	}
	if err := s.List(t.Context(), "", func(i object.Info) error { return errors.New(i.Name) }); err != nil {
		t.Error("left:", err)
	}
}

func BenchmarkPutPack(b *testing.B) {
	s, err := local.Create(filepath.Join(b.TempDir(), "repo"))
	if err != nil {
		b.Fatal(err)
	}
	data := objecttest.Bytes(1, 32<<20)
	b.SetBytes(int64(len(data)))
	b.ReportAllocs()
	for b.Loop() {
		if err := s.Put(b.Context(), "packs/00/x", data); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkGetInto(b *testing.B) {
	s, err := local.Create(filepath.Join(b.TempDir(), "repo"))
	if err != nil {
		b.Fatal(err)
	}
	if err := s.Put(b.Context(), "packs/00/x", objecttest.Bytes(1, 32<<20)); err != nil {
		b.Fatal(err)
	}
	p := make([]byte, 4<<20)
	b.SetBytes(int64(len(p)))
	b.ReportAllocs()
	for b.Loop() {
		if err := s.GetInto(b.Context(), "packs/00/x", 8<<20, p); err != nil {
			b.Fatal(err)
		}
	}
}

// Row E2 of the fault list: a write that fails or is interrupted leaves no
// hidden file, which would keep its space for a day.
func TestInterruptedPutLeavesNothing(t *testing.T) {
	s, dir := create(t)
	halfway := errors.New("interrupted")
	data := make([]byte, 3*object.ThrottlePiece)
	written := 0
	throttled := object.WithThrottle(t.Context(), func(_ context.Context, n int) error {
		if written += n; written >= len(data) {
			return halfway
		}
		return nil
	})
	if err := s.Put(throttled, "packs/00/x", data); !errors.Is(err, halfway) {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	throttled = object.WithThrottle(ctx, func(ctx context.Context, _ int) error {
		cancel(halfway)
		return context.Cause(ctx)
	})
	if err := s.Put(throttled, "packs/00/x", data); !errors.Is(err, halfway) {
		t.Fatal(err)
	}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			t.Errorf("%s is left", path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// Row S10 of the fault list: only the user can read a repository in a folder,
// unless its folders are opened for a group; nobody else can in any case.
func TestPermissions(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0)) // the umask makes nothing private here
	dir := filepath.Join(t.TempDir(), "r")
	s, err := local.Create(dir)
	if err != nil {
		t.Fatal(err)
	}
	modes := func(want map[string]fs.FileMode) {
		t.Helper()
		for name, mode := range want {
			info, err := os.Stat(filepath.Join(dir, name))
			if err != nil || info.Mode().Perm() != mode {
				t.Errorf("%s: %v, %v, want %v", name, info.Mode().Perm(), err, mode)
			}
		}
	}
	put := func(names ...string) {
		t.Helper()
		for _, name := range names {
			if err := s.Put(t.Context(), name, []byte("x")); err != nil {
				t.Fatal(err)
			}
		}
	}
	put("config", "packs/ab/one", "condemned/one")
	modes(map[string]fs.FileMode{
		".": 0o700, "packs": 0o700, "packs/ab": 0o700, "slots/a": 0o700, "condemned": 0o700, "config": 0o600, "packs/ab/one": 0o600, "condemned/one": 0o600,
	})
	for folder, want := range map[fs.FileMode][2]fs.FileMode{0o750: {0o750, 0o640}, 0o770: {0o770, 0o660}, 0o755: {0o750, 0o640}, 0o777: {0o770, 0o660}, 0o705: {0o700, 0o600}} {
		if err := os.Chmod(filepath.Join(dir, "packs"), folder); err != nil {
			t.Fatal(err)
		}
		if s, err = local.Open(dir); err != nil {
			t.Fatal(err)
		}
		run := fmt.Sprintf("claims%o", folder)
		put("packs/ab/one", run+"/one")
		modes(map[string]fs.FileMode{run: want[0], run + "/one": want[1], "packs/ab/one": want[1]})
	}
}
