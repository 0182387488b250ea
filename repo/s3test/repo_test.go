package s3test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"xenkeep/chunkstore/object/all"
	"xenkeep/chunkstore/object/objecttest/s3server"
	"xenkeep/chunkstore/object/retry"
	"xenkeep/chunkstore/object/s3"
	"xenkeep/repo"
	"xenkeep/repo/repotest"
)

// options returns the options of a client of the server that waits only briefly.
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
	ro.Secret = repotest.Secret()
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
	r, err := repo.Open(t.Context(), objects, repo.Options{Secret: repotest.Secret(), CacheDir: cache})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	if err := r.LoadIndex(t.Context()); err != nil {
		t.Fatal(err)
	}
	return r
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
