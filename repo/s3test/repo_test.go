package s3test

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"xenkeep/chunkstore/chunk"
	"xenkeep/chunkstore/object"
	"xenkeep/chunkstore/object/all"
	"xenkeep/chunkstore/object/objecttest"
	"xenkeep/chunkstore/object/objecttest/s3server"
	"xenkeep/chunkstore/object/retry"
	"xenkeep/chunkstore/object/s3"
	"xenkeep/chunkstore/slot"
	"xenkeep/internal/disk"
	"xenkeep/internal/disk/disktest"
	"xenkeep/repo"
	"xenkeep/repo/backup"
	"xenkeep/repo/check"
	"xenkeep/repo/restore"
)

var secret = slot.Secret{KeyFile: bytes.Repeat([]byte{5}, 32)}

// options are those of a client of the server that waits little.
func options(server *s3server.Server) all.Options {
	return all.Options{
		Retry: retry.Policy{First: time.Millisecond, Longest: 20 * time.Millisecond},
		S3:    s3.Config{AccessKey: server.AccessKey, SecretKey: server.SecretKey, Region: server.Region},
	}
}

func create(t *testing.T, location string, o all.Options, ro repo.Options) {
	t.Helper()
	objects, err := all.Create(t.Context(), location, o)
	if err != nil {
		t.Fatal(err)
	}
	ro.Secret = secret
	r, err := repo.Init(t.Context(), objects, ro)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
}

func open(t *testing.T, location string, o all.Options, cache string) *repo.Repository {
	t.Helper()
	objects, err := all.Open(t.Context(), location, o)
	if err != nil {
		t.Fatal(err)
	}
	r, err := repo.Open(t.Context(), objects, repo.Options{Secret: secret, CacheDir: cache})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	if err := r.LoadIndex(t.Context()); err != nil {
		t.Fatal(err)
	}
	return r
}

func scribble(t *testing.T, m *disktest.Mem, seed uint64, n int) {
	t.Helper()
	random := rand.New(rand.NewPCG(seed, 1))
	for range n {
		p := objecttest.Bytes(random.Uint64(), 1+random.IntN(300_000))
		off := random.Int64N(m.Size())
		p = p[:min(int64(len(p)), m.Size()-off)]
		if err := m.WriteAt(t.Context(), p, off); err != nil {
			t.Fatal(err)
		}
	}
}

// backUp saves a disk as a snapshot of its own, as a run of a job does.
func backUp(ctx context.Context, r *repo.Repository, m *disktest.Mem) (*repo.Snapshot, error) {
	s := &repo.Snapshot{Origin: "image", VM: repo.Named{UUID: "vm", Name: "vm"}, Data: time.Now(), Complete: true}
	err := backup.Do(ctx, r, backup.Options{Job: "nightly", Machine: "here"}, func(ctx context.Context, run *backup.Run) error {
		d, err := run.Disk(ctx, m.Source(), backup.DiskOptions{Size: m.Size()})
		if err != nil {
			return err
		}
		rec, err := run.Record(ctx, "vm", []byte(`{"name":"vm"}`))
		if err != nil {
			return err
		}
		s.Records = []repo.Record{rec}
		s.Disks = []repo.Disk{{Device: "xvda", VDI: "vdi", Size: m.Size(), Root: repo.HexID(d.Root), Method: "full", Counts: d.Counts}}
		run.Add(s)
		return run.Flush(ctx)
	})
	return s, err
}

func mustBackUp(t *testing.T, r *repo.Repository, m *disktest.Mem) *repo.Snapshot {
	t.Helper()
	s, err := backUp(t.Context(), r, m)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// same restores a disk and compares it.
func same(t *testing.T, r *repo.Repository, root repo.HexID, want *disktest.Mem) {
	t.Helper()
	im, err := restore.Open(t.Context(), r, chunk.ID(root))
	if err != nil {
		t.Fatal(err)
	}
	got := disktest.NewMem(want.Size())
	if _, err := im.Run(t.Context(), got, restore.Options{}); err != nil {
		t.Fatal(err)
	}
	a, b := make([]byte, disk.BlockSize), make([]byte, disk.BlockSize)
	for i := range disk.Blocks(want.Size()) {
		n := repo.BlockLength(want.Size(), i)
		_, _ = got.ReadAt(a[:n], i*disk.BlockSize)
		if _, err := want.ReadAt(b[:n], i*disk.BlockSize); err != nil && err != io.EOF {
			t.Fatal(err)
		}
		if !bytes.Equal(a[:n], b[:n]) {
			t.Fatalf("block %d differs", i)
		}
	}
}

func findings(t *testing.T, r *repo.Repository) []check.Finding {
	t.Helper()
	rep, err := check.Run(t.Context(), r, check.Options{ReadData: true})
	if err != nil {
		t.Fatal(err)
	}
	return rep.Findings
}

func mustClean(t *testing.T, r *repo.Repository) {
	t.Helper()
	for _, f := range findings(t, r) {
		t.Errorf("check: %v", f)
	}
}

func names(t *testing.T, s object.Store, prefix string) (all []string) {
	t.Helper()
	if err := s.List(t.Context(), prefix, func(i object.Info) error {
		all = append(all, i.Name)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return all
}

// spoil damages the tree packs that are kept in a cache folder.
func spoil(t *testing.T, cache string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(cache, "*", "trees", "*"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no tree packs are kept: %v", err)
	}
	for _, name := range files {
		p, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; i < len(p); i += 1000 {
			p[i] ^= 1
		}
		if err := os.WriteFile(name, p, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
