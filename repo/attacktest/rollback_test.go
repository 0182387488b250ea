package attacktest

import (
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"xenkeep/chunkstore/object/local"
	"xenkeep/internal/disk/disktest"
	"xenkeep/repo"
	"xenkeep/repo/forget"
	"xenkeep/repo/repotest"
	"xenkeep/repo/retention"
)

// missed lists the snapshots on a machine with this cache, and returns the warnings.
func (w *robbed) missed(t *testing.T, cache string) (texts []string) {
	t.Helper()
	r := repotest.OpenWith(t, w.store, repo.Options{CacheDir: cache})
	if _, _, err := r.Snapshots(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, p := range r.Missed() {
		if !errors.Is(p.Err, repo.ErrRolledBack) {
			t.Errorf("%v", p.Err)
		}
		texts = append(texts, p.Object)
	}
	return texts
}

// A storage thief puts the storage back to an earlier state: the newest snapshot of a
// VM is gone. A machine that has seen it reports that, once. A machine without a cache
// cannot; and what was forgotten or displaced in a regular way is not reported.
func TestRollbackIsReported(t *testing.T) {
	w, cache := rob(t), t.TempDir()
	admin := repotest.OpenWith(t, w.store, repo.Options{CacheDir: cache})
	before := w.store.Clone()
	m := disktest.NewMem(1 << 20)
	disktest.Scribble(t, m, 3, 5)
	newest := w.save(t, admin, m)
	if got := w.missed(t, cache); len(got) != 0 {
		t.Fatalf("nothing is gone: %v", got)
	}
	now := w.store
	w.store = before
	if got := w.missed(t, cache); len(got) != 1 || got[0] != "snapshots/"+newest.ID() {
		t.Errorf("the newest snapshot is gone: %v", got)
	}
	if got := w.missed(t, cache); len(got) != 0 {
		t.Errorf("reported again: %v", got)
	}
	if got := w.missed(t, t.TempDir()); len(got) != 0 {
		t.Errorf("control: a machine that has seen nothing reports %v", got)
	}
	w.store = now
	w.missed(t, cache)
	// Forgotten, with a grace period and without one, or followed by a newer one.
	for _, grace := range []retention.Period{{Days: 7}, {}} {
		r := repotest.OpenWith(t, w.store, repo.Options{CacheDir: cache})
		w.clock.Add(time.Hour)
		s := w.save(t, r, m)
		if got := w.missed(t, cache); len(got) != 0 {
			t.Errorf("a newer one: %v", got)
		}
		r = repotest.OpenWith(t, w.store, repo.Options{CacheDir: cache})
		if _, err := forget.Execute(t.Context(), r, []*repo.Snapshot{s}, forget.Options{Grace: &grace, Now: w.clock.Now()}); err != nil {
			t.Fatal(err)
		}
		if got := w.missed(t, cache); len(got) != 0 {
			t.Errorf("forgotten with %v: %v", grace, got)
		}
	}
}

// Another repository is put at the same place, which the same password opens: a
// machine that has used the first one refuses it, until the user accepts it.
func TestReplacedRepository(t *testing.T) {
	place, cache := t.TempDir(), t.TempDir()
	open := func(name string, create bool) *repo.Repository {
		t.Helper()
		objects, err := local.Open(place + "/" + name)
		if create {
			objects, err = local.Create(place + "/" + name)
		}
		if err != nil {
			t.Fatal(err)
		}
		if create {
			return repotest.Init(t, objects)
		}
		return repotest.OpenWith(t, objects, repo.Options{CacheDir: cache})
	}
	open("r", true)
	for range 2 {
		if err := open("r", false).CheckLocation(cache); err != nil {
			t.Fatal(err)
		}
	}
	rename(t, place+"/r", place+"/kept")
	open("r", true)
	evil := open("r", false)
	if err := evil.CheckLocation(cache); !errors.Is(err, repo.ErrReplaced) || !strings.Contains(err.Error(), evil.ID()[:8]) {
		t.Errorf("another repository: %v", err)
	}
	if err := evil.CheckLocation(t.TempDir()); err != nil {
		t.Errorf("control: a machine that has used none refuses it: %v", err)
	}
	if err := evil.AcceptLocation(cache); err != nil {
		t.Fatal(err)
	}
	if err := open("r", false).CheckLocation(cache); err != nil {
		t.Errorf("after it was accepted: %v", err)
	}
	rename(t, place+"/r", place+"/second")
	rename(t, place+"/kept", place+"/r")
	if err := open("r", false).CheckLocation(cache); err != nil {
		t.Errorf("the first one, again: %v", err)
	}
}

func rename(t *testing.T, from, to string) {
	t.Helper()
	if err := os.Rename(from, to); err != nil {
		t.Fatal(err)
	}
}
