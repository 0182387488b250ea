package attacktest

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"xenkeep/chunkstore/seal"
	"xenkeep/repo"
	"xenkeep/repo/backup"
	"xenkeep/repo/check"
	"xenkeep/repo/prune"
	"xenkeep/repo/repair"
	"xenkeep/repo/repotest"
)

// folders are all folders of small objects.
var folders = []string{"snapshots/", "index/", "notes/", "condemned/", "damage/", "revoked/", "catalogue/", "claims/0a-", "references/0a-", "retired/0a-", "over/0a-"}

// junk puts objects of several kinds into every folder, under the names that their
// content has: five bytes, nothing, an object with a forged certificate, and sound
// objects of other folders and other runs.
func (a *attacker) junk() (names []string) {
	a.t.Helper()
	var genuine [][]byte
	for _, name := range a.list("") {
		if folder, _, _ := strings.Cut(name, "/"); folder != "packs" && folder != "slots" && folder != "config" {
			genuine = append(genuine, a.get(name))
		}
	}
	forged := bytes.Clone(genuine[0])
	forged[24] = byte(seal.Full) ^ forged[24] ^ byte(seal.WriteOnly) // the other role
	for _, folder := range folders {
		objects := append([][]byte{[]byte("junk!"), {}, forged}, genuine...)
		for _, p := range objects {
			name := folder + sum(p)
			if _, err := a.inner.Stat(a.t.Context(), name); err == nil {
				continue // a sound object in its own place
			}
			a.put(name, p)
			names = append(names, name)
		}
	}
	for _, p := range [][]byte{[]byte("junk!"), {}} {
		name := "packs/" + sum(p)[:2] + "/" + sum(p)
		a.put(name, p)
		names = append(names, name)
	}
	return names
}

// Row S6, S3 of the fault list: who may only put objects and has no key stops neither
// backups, nor forget, prune and check, nor the revocation of a key; check reports
// the objects, and repair junk deletes them and nothing else.
func TestJunkBlocksNobody(t *testing.T) {
	w := newWorld(t)
	disk := content(1, 2, 3)
	first := w.save(w.full, "a", disk)
	gone := w.save(w.full, "b", content(4, 5))
	for _, n := range []*repo.Note{{Snapshot: first.ID(), Kind: "protect", Time: w.clock.Now()}} {
		if err := w.full.PutNote(t.Context(), n); err != nil {
			t.Fatal(err)
		}
	}
	before := w.outsider(mayPut).list("")
	names := w.outsider(mayPut).junk()

	if second := w.save(w.admin(), "a", content(1, 2, 6)); second.Disks[0].Counts.New == 0 {
		t.Error("nothing was stored")
	}
	r := w.admin()
	all, bad, err := r.Snapshots(t.Context())
	if err != nil || len(bad) > 0 || len(all) != 3 {
		t.Fatalf("%d snapshots, %v, %v", len(all), bad, err)
	}
	notes, bad, err := r.Notes(t.Context())
	if err != nil || len(bad) > 0 || len(notes) != 1 {
		t.Fatalf("%d notes, %v, %v", len(notes), bad, err)
	}
	if err := r.DeleteSnapshot(t.Context(), gone); err != nil {
		t.Fatal(err)
	}
	w.mustPruneTwice()
	if n := len(w.outsider(mayPut).list("packs/")); n > 8 {
		t.Errorf("%d packs are left: junk holds up pruning", n)
	}

	rep, err := check.Run(t.Context(), w.admin(), check.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range rep.Findings {
		if f.Kind != check.Junk || !slices.Contains(names, f.Object) {
			t.Errorf("%+v", f)
		}
	}
	if rep.Junk < len(names)/2 {
		t.Errorf("%d of %d junk objects are reported", rep.Junk, len(names))
	}

	if _, _, err := w.admin().Revoke(t.Context(), w.machine, "stolen", nil, w.clock.Now()); err != nil {
		t.Errorf("the revocation: %v", err)
	}
	res, err := repair.Junk(t.Context(), w.admin(), repair.JunkOptions{})
	if err != nil || res.Damaged > 0 {
		t.Fatalf("%+v, %v", res, err)
	}
	for _, name := range w.outsider(mayPut).list("") {
		if slices.Contains(names, name) {
			t.Errorf("%s is left", name)
		}
	}
	for _, name := range before {
		if folder, _, _ := strings.Cut(name, "/"); folder == "snapshots" || folder == "notes" || folder == "slots" || name == "config" {
			if _, err := w.objects.Stat(t.Context(), name); err != nil && name != "snapshots/"+gone.ID() && !strings.HasSuffix(name, w.machine) {
				t.Errorf("%s was deleted: %v", name, err)
			}
		}
	}
	if f := w.findings(); len(f) > 0 {
		t.Errorf("after the repair: %v", f)
	}
	w.mustRestore(first, disk)
}

// Row S6: nobody without a key ends a live run: with an empty object, with a damaged
// one, or with the genuine retirement of another run under the live run's name. A
// write-only key ends only runs of its own.
func TestLiveRunIsNotKilled(t *testing.T) {
	w := newWorld(t)
	if err := w.full.PutRetired(t.Context(), &repo.Retired{Run: "0b", Time: w.clock.Now(), Ended: true}); err != nil {
		t.Fatal(err)
	}
	err := w.during(content(1, 2), func(run string) {
		a := w.outsider(mayPut)
		a.put("retired/"+run+"-"+sum(nil), nil)
		a.put("retired/"+run+"-"+wrongSum(), nil)
		for _, name := range a.list("retired/0b-") {
			a.put(strings.Replace(name, "0b", run, 1), a.get(name))
		}
		old := w.clock.Now().Add(-60 * 24 * time.Hour)
		if err := w.weak().PutRetired(t.Context(), &repo.Retired{Run: run, Time: old, Ended: true}); err != nil {
			t.Fatal(err)
		}
		if err := w.weak().PutClaim(t.Context(), &repo.Claim{Run: "0c", Started: w.clock.Now()}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.prune(); err != nil {
			t.Errorf("prune: %v", err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if all, bad, err := w.admin().Snapshots(t.Context()); err != nil || len(bad) > 0 || len(all) != 1 {
		t.Errorf("%d snapshots, %v, %v", len(all), bad, err)
	}
	// The control: a retirement by a full key ends the run.
	err = w.during(content(3), func(run string) {
		if err := w.full.PutRetired(t.Context(), &repo.Retired{Run: run, Time: w.clock.Now()}); err != nil {
			t.Fatal(err)
		}
	})
	if err == nil {
		t.Error("a retired run publishes")
	}
}

// An object that does not match its name may have been a genuine one, so that it
// stops who needs all of them, by name, until the user decides.
func TestDamageIsNotJunk(t *testing.T) {
	for _, folder := range []string{"snapshots/", "claims/0a-", "references/0a-", "condemned/"} {
		w := newWorld(t)
		w.save(w.full, "a", content(1))
		name := folder + wrongSum()
		w.outsider(mayPut).put(name, []byte("junk!"))
		_, err := w.prune()
		if !errors.Is(err, prune.ErrUnreadable) || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: prune: %v", name, err)
		}
		res, err := repair.Junk(t.Context(), w.admin(), repair.JunkOptions{})
		if err != nil || res.Deleted != 0 || res.Damaged != 1 {
			t.Errorf("%s: %+v, %v", name, res, err)
		}
		if res, err = repair.Junk(t.Context(), w.admin(), repair.JunkOptions{Objects: []string{name}}); err != nil || res.Deleted != 1 {
			t.Errorf("%s: named: %+v, %v", name, res, err)
		}
		if _, err := w.prune(); err != nil {
			t.Errorf("%s: afterwards: %v", name, err)
		}
		sound := w.outsider(mayPut).list("snapshots/")[0]
		if _, err := repair.Junk(t.Context(), w.admin(), repair.JunkOptions{Objects: []string{sound}}); !errors.Is(err, repair.ErrSound) {
			t.Errorf("a sound object is deleted: %v", err)
		}
	}
}

// The control of the tests above: without the rule, one object of five bytes stops
// every prune and every backup, and an empty one ends a live run.
func TestJunkControl(t *testing.T) {
	without := repo.Options{Without: []repo.Defence{repo.IgnoredJunk}}
	w := newWorld(t)
	a := w.outsider(mayPut)
	a.put("condemned/"+sum([]byte("junk!")), []byte("junk!"))
	r := repotest.OpenWith(t, w.objects, without)
	if _, err := prune.New(t.Context(), r, prune.Options{Now: w.clock.Now}); !errors.Is(err, prune.ErrUnreadable) {
		t.Errorf("prune: %v", err)
	}
	live := func(context.Context, *backup.Run) error { return nil }
	if err := backup.WithRun(t.Context(), r, backup.Options{}, live); err == nil {
		t.Error("a backup goes on")
	}
	claim := &repo.Claim{Run: "0e", Started: w.clock.Now()}
	if err := r.PutClaim(t.Context(), claim); err != nil {
		t.Fatal(err)
	}
	a.put("retired/0e-"+sum(nil), nil)
	if dead, err := r.IsRetired(t.Context(), claim); err != nil || !dead {
		t.Errorf("retired: %v, %v", dead, err)
	}
	if dead, err := w.admin().IsRetired(t.Context(), claim); err != nil || dead {
		t.Errorf("with the defence: retired: %v, %v", dead, err)
	}
}
