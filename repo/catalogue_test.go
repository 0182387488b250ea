package repo_test

import (
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"xenkeep/chunkstore/object"
	"xenkeep/chunkstore/object/mem"
	"xenkeep/chunkstore/object/objecttest"
	"xenkeep/repo"
	"xenkeep/repo/repotest"
)

// many creates a repository with n empty snapshots.
func many(t *testing.T, objects object.Store, n int) *repo.Repository {
	t.Helper()
	r := repotest.Init(t, objects)
	for i := range n {
		put(t, r, i)
	}
	return r
}

func put(t *testing.T, r *repo.Repository, i int) *repo.Snapshot {
	t.Helper()
	s := &repo.Snapshot{Run: fmt.Sprintf("%032x", i), Origin: "pool", VM: repo.Named{UUID: fmt.Sprint(i % 7), Name: "vm"}, Complete: true, DataTime: time.Unix(int64(i), 0).UTC()}
	if err := r.PutSnapshot(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	return s
}

// read opens the repository on a machine with the cache folder cache and reads its
// snapshots. It also returns the number of requests.
func read(t *testing.T, objects *objecttest.Faulty, cache string) (all []*repo.Snapshot, gets int) {
	t.Helper()
	r, err := repo.Open(t.Context(), objects, repo.Options{Secret: repotest.Secret(), CacheDir: cache})
	if err != nil {
		t.Fatal(err)
	}
	before := objects.Calls(objecttest.Get)
	all, bad, err := r.Snapshots(t.Context())
	if err != nil || len(bad) > 0 {
		t.Fatal(err, bad)
	}
	for i := 1; i < len(all); i++ {
		if all[i].ID() == all[i-1].ID() || all[i].DataTime.Before(all[i-1].DataTime) {
			t.Fatalf("snapshot %d: twice, or out of order", i)
		}
	}
	return all, objects.Calls(objecttest.Get) - before
}

// A machine with an empty cache reads many snapshots in few requests; snapshots
// that are new, were forgotten, or are in a damaged catalogue are read correctly.
func TestCatalogue(t *testing.T) {
	objects := objecttest.NewFaulty(mem.New())
	r := many(t, objects, 1500)
	if all, gets := read(t, objects, ""); len(all) != 1500 || gets < 1500 {
		t.Fatalf("%d snapshots in %d requests without a catalogue", len(all), gets)
	}
	if err := r.MergeCatalogues(t.Context()); err != nil {
		t.Fatal(err)
	}
	if all, gets := read(t, objects, ""); len(all) != 1500 || gets > 3 {
		t.Errorf("%d snapshots in %d requests", len(all), gets)
	}
	cache := t.TempDir()
	read(t, objects, cache)
	if all, gets := read(t, objects, cache); len(all) != 1500 || gets != 0 {
		t.Errorf("%d snapshots in %d requests with a cache", len(all), gets)
	}

	// New and forgotten snapshots.
	for i := range 10 {
		put(t, r, 2000+i)
	}
	all, _ := read(t, objects, "")
	for _, s := range all[:900] {
		if err := r.DeleteSnapshot(t.Context(), s); err != nil {
			t.Fatal(err)
		}
	}
	if all, gets := read(t, objects, ""); len(all) != 610 || gets > 13 {
		t.Errorf("%d snapshots in %d requests", len(all), gets)
	}
	if err := r.MergeCatalogues(t.Context()); err != nil {
		t.Fatal(err)
	}
	if all, gets := read(t, objects, ""); len(all) != 610 || gets > 13 {
		t.Errorf("after a merge: %d snapshots in %d requests", len(all), gets)
	}

	// A damaged catalogue costs requests but loses no snapshot.
	var names []string
	if err := objects.List(t.Context(), "catalogue/", func(i object.Info) error {
		names = append(names, i.Name)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		p, err := objects.Get(t.Context(), name, 0, -1)
		if err != nil {
			t.Fatal(err)
		}
		p[len(p)/2] ^= 1
		if err := objects.Put(t.Context(), name, p); err != nil {
			t.Fatal(err)
		}
	}
	if all, gets := read(t, objects, ""); len(all) != 610 || gets < 610 {
		t.Errorf("with damaged catalogues: %d snapshots in %d requests", len(all), gets)
	}
}

// A snapshot in a catalogue does not exist unless its own object exists, and a
// snapshot under a false name is rejected.
func TestCatalogueForgotten(t *testing.T) {
	objects := objecttest.NewFaulty(mem.New())
	r := many(t, objects, 300)
	if err := r.MergeCatalogues(t.Context()); err != nil {
		t.Fatal(err)
	}
	all, _ := read(t, objects, "")
	gone := all[7]
	if err := r.DeleteSnapshot(t.Context(), gone); err != nil {
		t.Fatal(err)
	}
	all, _ = read(t, objects, "")
	for _, s := range all {
		if s.ID() == gone.ID() {
			t.Error("a forgotten snapshot is read from a catalogue")
		}
	}
	if len(all) != 299 || !strings.HasPrefix(gone.ID(), gone.Short()) {
		t.Errorf("%d snapshots", len(all))
	}
}

// Row S8 of the fault list: catalogues stay below the size that readers accept,
// however large the snapshots are.
func TestCatalogueOfLargeSnapshots(t *testing.T) {
	if testing.Short() {
		t.Skip("SKIP: it writes 26 MB")
	}
	objects := mem.New()
	r := repotest.Init(t, objects)
	noise := make([]byte, 100<<10)
	random := rand.NewChaCha8([32]byte{1})
	const n = 260
	for i := range n {
		_, _ = random.Read(noise)
		s := &repo.Snapshot{Run: fmt.Sprintf("%032x", i), Origin: "pool", Tags: []string{hex.EncodeToString(noise)}, Complete: true, DataTime: time.Unix(int64(i), 0).UTC()}
		if err := r.PutSnapshot(t.Context(), s); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.MergeCatalogues(t.Context()); err != nil {
		t.Fatal(err)
	}
	names := repotest.Names(t, objects, "catalogue/")
	if len(names) != 2 {
		t.Errorf("%d catalogues", len(names))
	}
	for _, name := range names {
		if i, err := objects.Stat(t.Context(), name); err != nil || i.Size > object.MaxSize(name)/2 {
			t.Errorf("a catalogue of %d bytes, %v", i.Size, err)
		}
	}
	counted := objecttest.NewFaulty(objects)
	if all, gets := read(t, counted, ""); len(all) != n || gets > 4 {
		t.Errorf("%d snapshots, %d requests", len(all), gets)
	}
}
