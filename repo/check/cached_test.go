package check_test

import (
	"errors"
	"os"
	"strings"
	"testing"

	"xenkeep/chunkstore/object/mem"
	"xenkeep/chunkstore/seal"
	"xenkeep/internal/disk/disktest"
	"xenkeep/repo"
	"xenkeep/repo/check"
	"xenkeep/repo/repotest"
)

// A snapshot whose object a check finds destroyed is not listed any more as if it were
// whole, although this machine has a sound copy in its cache folder. The copy stays, and
// the check names it: put back, it makes the snapshot whole again.
func TestDestroyedSnapshotWithCachedCopy(t *testing.T) {
	ctx := t.Context()
	store, cache := mem.New(), t.TempDir()
	r := repotest.Init(t, store)
	m := disktest.NewMem(5 << 20)
	disktest.Scribble(t, m, 1, 10)
	saved := repotest.MustSave(t, r, "web", m)
	name := "snapshots/" + saved.ID()
	open := func() *repo.Repository { return repotest.OpenWith(t, store, repo.Options{CacheDir: cache}) }
	list := func() (all []*repo.Snapshot, bad []repo.Problem) {
		all, bad, err := open().Snapshots(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return all, bad
	}
	list() // caches it
	data := load(t, store, name)
	put := func(p []byte) {
		if err := errors.Join(store.Delete(ctx, name), store.Put(ctx, name, p)); err != nil {
			t.Fatal(err)
		}
	}
	put(append([]byte{}, data[:len(data)/2]...))
	for range 2 { // a second check finds the same
		rep, err := check.Run(ctx, open(), check.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if len(rep.Findings) != 1 || rep.Findings[0].Object != name || !strings.Contains(rep.Findings[0].Error, "a sound copy of the object: "+cache) {
			t.Fatalf("%+v", rep.Findings)
		}
		if all, bad := list(); len(all) != 0 || len(bad) != 1 || bad[0].Object != name || !errors.Is(bad[0].Err, seal.ErrCorrupt) {
			t.Errorf("listed: %v, bad: %v", all, bad)
		}
		_, file, _ := strings.Cut(rep.Findings[0].Error, "object: ")
		data, err = os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
	}
	put(data)
	if all, bad := list(); len(all) != 1 || len(bad) != 0 {
		t.Errorf("put back: %v, bad: %v", all, bad)
	}
}
