package attacktest

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"xenkeep/chunkstore/pack"
	"xenkeep/chunkstore/seal"
	"xenkeep/repo"
	"xenkeep/repo/backup"
	"xenkeep/repo/check"
	"xenkeep/repo/prune"
	"xenkeep/repo/repotest"
)

// packIDs returns all packs in storage.
func (w *world) packIDs() (ids []string) {
	w.t.Helper()
	for _, name := range repotest.Names(w.t, w.objects, "packs/") {
		id, ok := pack.ParseObjectName(name)
		if !ok {
			w.t.Fatalf("%s", name)
		}
		ids = append(ids, id.String())
	}
	return ids
}

// condemnAll is a statement of the stolen key: all packs were condemned 60 days ago,
// and are being deleted.
func (w *world) condemnAll() {
	w.t.Helper()
	old := w.clock.Now().Add(-60 * 24 * time.Hour)
	for _, deleted := range []bool{false, true} {
		if err := w.weak().PutCondemned(w.t.Context(), &repo.Condemned{Time: old, Packs: w.packIDs(), Deleted: deleted}); err != nil {
			w.t.Fatal(err)
		}
	}
}

// Row S1, the list: a write-only key condemns all packs, with a date long ago. The
// next prune of a full key must delete nothing that it has not condemned itself a
// wait before: here, packs of a forgotten snapshot, which a run that is about to
// publish still uses. Backups go on, and store nothing again.
func TestForgedCondemnedList(t *testing.T) {
	attack := func(o repo.Options) (deleted int, fresh int64) {
		w := newWorld(t)
		disk := content(1, 2, 3)
		w.save(w.full, "a", disk)
		gone := w.save(w.full, "b", content(4, 5))
		repotest.Forget(t, w.objects, gone)
		w.condemnAll()
		r := repotest.OpenWith(t, w.objects, o)
		p, err := prune.New(t.Context(), r, prune.Options{Now: w.clock.Now, Wait: w.clock.Wait})
		if err != nil {
			t.Fatal(err)
		}
		res, err := p.Execute(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		w.condemnAll()
		s := w.save(repotest.OpenWith(t, w.objects, o), "a", disk)
		return res.Deleted.Packs, s.Disks[0].Counts.New
	}
	if deleted, fresh := attack(repo.Options{}); deleted != 0 || fresh != 0 {
		t.Errorf("%d packs were deleted, %d bytes are stored again", deleted, fresh)
	}
	if deleted, fresh := attack(repo.Options{Without: []repo.Defence{repo.FullStatements}}); deleted == 0 || fresh == 0 {
		t.Errorf("control: %d packs were deleted, %d bytes are stored again", deleted, fresh)
	}
}

// In a repository without the feature, an older version may prune with a write-only
// key: backups avoid the packs that it condemns, but a full key deletes nothing by
// its lists.
func TestCondemnedListInOldRepository(t *testing.T) {
	w := newWorldWith(t, repo.Options{Features: []repo.Feature{}})
	disk := content(1, 2, 3)
	w.save(w.full, "a", disk)
	gone := w.save(w.full, "b", content(4, 5))
	repotest.Forget(t, w.objects, gone)
	w.condemnAll()
	if res, err := w.prune(); err != nil || res.Deleted.Packs != 0 {
		t.Errorf("prune: %+v, %v", res, err)
	}
	if s := w.save(w.admin(), "a", disk); s.Disks[0].Counts.New == 0 {
		t.Error("a backup uses packs that an older version may be deleting")
	}
	if n := len(repotest.Names(t, w.objects, "condemned/")); n < 2 {
		t.Errorf("%d condemned lists are left", n)
	}
}

// Row S2, the notes: a write-only key removes no protection, and makes no other
// statement about the snapshots of another key. About its own it may. It is refused
// with a message when it tries by the command.
func TestForgedNotes(t *testing.T) {
	attack := func(o repo.Options) []string {
		w := newWorld(t)
		s := w.save(w.full, "a", content(1))
		own := w.save(w.weak(), "b", content(2))
		if err := w.full.PutNote(t.Context(), &repo.Note{Snapshot: s.ID(), Kind: "protect", Time: w.clock.Now()}); err != nil {
			t.Fatal(err)
		}
		a := w.thief(mayPut)
		for _, id := range []string{s.ID(), own.ID()} {
			for _, kind := range []string{"unprotect", "forget", "verified", "damaged", "drill", "tag", "untag", "protect"} {
				body := `{"snapshot":"` + id + `","kind":"` + kind + `","time":"2031-01-01T00:00:00Z","text":"x"}`
				a.signed("notes/", seal.KindNote, nil, []byte(body))
			}
		}
		notes, bad, err := repotest.OpenWith(t, w.objects, o).Notes(t.Context())
		if err != nil || len(bad) > 0 {
			t.Fatal(bad, err)
		}
		var kinds []string
		for _, n := range notes {
			kinds = append(kinds, map[string]string{s.ID(): "other's ", own.ID(): "own "}[n.Snapshot]+n.Kind)
		}
		slices.Sort(kinds)
		return kinds
	}
	want := []string{"other's protect", "other's protect", "own damaged", "own protect", "own tag", "own untag"}
	if got := attack(repo.Options{}); !slices.Equal(got, want) {
		t.Errorf("these notes count: %q", got)
	}
	if got := attack(repo.Options{Without: []repo.Defence{repo.FullStatements}}); !slices.Contains(got, "other's unprotect") {
		t.Errorf("control: these notes count: %q", got)
	}
	w := newWorld(t)
	s, own := w.save(w.full, "a", content(1)), w.save(w.weak(), "b", content(2))
	for _, c := range []struct {
		id, kind string
		refused  bool
	}{{own.ID(), "tag", false}, {s.ID(), "tag", true}, {own.ID(), "unprotect", true}, {s.ID(), "protect", false}, {s.ID(), "damaged", false}} {
		err := w.weak().PutNote(t.Context(), &repo.Note{Snapshot: c.id, Kind: c.kind, Text: "x", Time: w.clock.Now()})
		if refused := errors.Is(err, seal.ErrNoDataKey); refused != c.refused || refused && !strings.Contains(err.Error(), c.kind+" snapshot "+c.id[:8]) {
			t.Errorf("%s of %s: %v", c.kind, c.id[:8], err)
		}
	}
	// A machine believes itself that its base is damaged, and nobody else does.
	for who, r := range map[string]*repo.Repository{"itself": w.weak(), "others": w.admin()} {
		bad, err := check.Unsound(t.Context(), r)
		if err != nil || (bad[s.ID()] != "") != (who == "itself") {
			t.Errorf("%s: %v, %v", who, bad, err)
		}
	}
}

// A damage list of a write-only key neither makes others store everything again, nor
// marks the snapshots of others as damaged, nor stops prunes from freeing space.
func TestForgedDamageList(t *testing.T) {
	attack := func(o repo.Options) (bad int, fresh int64) {
		w := newWorld(t)
		disk := content(1, 2, 3)
		s := w.save(w.full, "a", disk)
		own := w.save(w.weak(), "b", content(4))
		list := &repo.Damage{Time: w.clock.Now(), Packs: w.packIDs()}
		for _, id := range []string{s.ID(), own.ID()} {
			list.Blocks = append(list.Blocks, repo.DamagedDisk{Snapshot: id, Device: "xvda", Ranges: [][2]int64{{0, 1}}})
		}
		if err := w.weak().PutDamage(t.Context(), list); err != nil {
			t.Fatal(err)
		}
		r := repotest.OpenWith(t, w.objects, o)
		unsound, err := check.Unsound(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		res, err := repotest.Save(t.Context(), r, "a", disk.Source(), backup.DiskOptions{Size: disk.Size()}, backup.Options{Now: w.clock.Now})
		if err != nil {
			t.Fatal(err)
		}
		return len(unsound), res.Disks[0].Counts.New
	}
	if bad, fresh := attack(repo.Options{}); bad != 1 || fresh != 0 {
		t.Errorf("%d snapshots are damaged, %d bytes are stored again", bad, fresh)
	}
	if bad, fresh := attack(repo.Options{Without: []repo.Defence{repo.FullStatements}}); bad != 2 || fresh == 0 {
		t.Errorf("control: %d snapshots are damaged, %d bytes are stored again", bad, fresh)
	}
}
