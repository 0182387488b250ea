package prune_test

import (
	"errors"
	"strings"
	"testing"

	"xenkeep/chunkstore/object/mem"
	"xenkeep/internal/disk/disktest"
	"xenkeep/repo"
	"xenkeep/repo/prune"
	"xenkeep/repo/repotest"
)

// If a data pack is lost, each snapshot that needs it is named in turn, and nothing
// is done until all of them are abandoned.
func TestLostChunks(t *testing.T) {
	store, c := mem.New(), repotest.NewClock()
	repotest.Init(t, store)
	before := make(map[string]bool)
	for _, name := range repotest.Names(t, store, "packs/") {
		before[name] = true
	}
	a := mustSave(t, store, c, disktest.Content(1, 2, 3), "a")
	var data string
	for _, name := range repotest.Names(t, store, "packs/") {
		if d, err := store.Get(t.Context(), name, 0, -1); err == nil && !before[name] && len(d) > 200<<10 {
			data = name
		}
	}
	b := mustSave(t, store, c, disktest.Content(1, 2, 3), "b") // all shared
	mixed := mustSave(t, store, c, disktest.Content(9, 2), "c")
	sound := mustSave(t, store, c, disktest.Content(11, 12), "d")
	if data == "" {
		t.Fatal("no pack of data")
	}
	if err := store.Delete(t.Context(), data); err != nil {
		t.Fatal(err)
	}
	o := prune.Options{Now: c.Now, Wait: c.Wait}
	lost := map[string]*repo.Snapshot{a.ID(): a, b.ID(): b, mixed.ID(): mixed}
	for len(lost) > 0 {
		objects := len(repotest.Names(t, store, ""))
		_, _, err := pass(t.Context(), store, o)
		if !errors.Is(err, prune.ErrUnreadable) {
			t.Fatalf("%d snapshots lack chunks: %v", len(lost), err)
		}
		if n := len(repotest.Names(t, store, "")); n != objects {
			t.Fatalf("%d objects of %d left", n, objects)
		}
		named := ""
		for id, s := range lost {
			if strings.Contains(err.Error(), "snapshot "+s.Short()) {
				named = id
			}
		}
		if named == "" {
			t.Fatalf("names none of those that lack something: %v", err)
		}
		delete(lost, named)
		o.ForgetDamaged = append(o.ForgetDamaged, named)
	}
	p, _ := mustPass(t, store, o)
	if p.Forget != 3 {
		t.Errorf("%d given up", p.Forget)
	}
	if err := findings(t.Context(), store); err != nil && strings.Contains(err.Error(), "snapshots/") {
		t.Error(err) // the missing pack is the only problem
	}
	if left := repotest.Names(t, store, "snapshots/"); len(left) != 1 || left[0] != "snapshots/"+sound.ID() {
		t.Errorf("snapshots left: %v", left)
	}
}
