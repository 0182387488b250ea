package jobtest

import (
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"testing"

	"xenkeep/chunkstore/object/mem"
	"xenkeep/job"
	"xenkeep/job/backup"
	"xenkeep/repo"
)

// MiB is 2^20 bytes.
const MiB = 1 << 20

// Image creates a raw disk image with random data at n places.
func Image(t *testing.T, name string, size int64, seed uint64, n int) string {
	t.Helper()
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	Scribble(t, f, size, seed, n)
	return name
}

// Scribble writes random data at n random places of a file of size bytes.
func Scribble(t *testing.T, f *os.File, size int64, seed uint64, n int) {
	t.Helper()
	r := rand.New(rand.NewPCG(seed, 0))
	src := rand.NewChaCha8([32]byte{byte(seed)})
	for range n {
		p := make([]byte, 4096*(1+r.IntN(64)))
		_, _ = src.Read(p)
		off := r.Int64N(size/4096) * 4096
		if _, err := f.WriteAt(p[:min(int64(len(p)), size-off)], off); err != nil {
			t.Fatal(err)
		}
	}
}

// CopyFile copies a file.
func CopyFile(t *testing.T, to, from string) {
	t.Helper()
	p, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, p, 0o600); err != nil {
		t.Fatal(err)
	}
}

// FileSum returns the SHA-256 of a file's content.
func FileSum(t *testing.T, name string) string {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", h.Sum(nil))
}

// NewRepository creates a repository in memory.
func NewRepository(t *testing.T) *repo.Repository {
	t.Helper()
	r, err := repo.Init(t.Context(), mem.New(), repo.Options{Secret: Secret})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// ImageBackup backs up an image file and returns the snapshot.
func ImageBackup(t *testing.T, r *repo.Repository, file string) *repo.Snapshot {
	t.Helper()
	s, err := backup.Image(t.Context(), r, backup.ImageOptions{Common: job.Common{StateDir: t.TempDir()}, File: file, Name: "image"})
	if err != nil {
		t.Fatal(err)
	}
	all, _, err := r.Snapshots(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	snap, err := repo.Resolve(all, s.Snapshots[0].ID)
	if err != nil {
		t.Fatal(err)
	}
	return snap
}

// Sparse creates an image of any size with a little data at odd places.
func Sparse(t *testing.T, name string, size int64) {
	t.Helper()
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	for _, off := range []int64{0, 511, 4095, 70_000, 2*MiB - 3, 2*MiB + 100, 1<<30 - 5, 1 << 30, 1<<40 + 9, size - 1} {
		if off >= 0 && off < size {
			if _, err := f.WriteAt([]byte(fmt.Sprint(off))[:1], off); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// RunTool runs a program, which must succeed.
func RunTool(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
}
