package prune_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"xenkeep/chunkstore/object"
	"xenkeep/chunkstore/object/mem"
	"xenkeep/chunkstore/seal"
	"xenkeep/internal/disk/disktest"
	"xenkeep/repo"
	"xenkeep/repo/prune"
	"xenkeep/repo/repotest"
)

// forgetFor moves a snapshot into a grace period, unless it is gone.
func forgetFor(ctx context.Context, objects object.Store, s *repo.Snapshot, c *repotest.Clock, grace time.Duration) error {
	r, err := repo.Open(ctx, objects, repo.Options{Secret: repotest.Secret()})
	if err != nil {
		return err
	}
	all, _, err := r.Snapshots(ctx)
	if err != nil || !slices.ContainsFunc(all, func(o *repo.Snapshot) bool { return o.ID() == s.ID() }) {
		return err
	}
	return r.Forget(ctx, []string{s.ID()}, c.Now().Add(grace), "", c.Now())
}

// A forgotten snapshot keeps its data during its grace period, although it is not
// listed; the first pass after that deletes it, and the next ones its data.
func TestGrace(t *testing.T) {
	store, c := mem.New(), repotest.NewClock()
	repotest.Init(t, store)
	a := mustSave(t, store, c, disktest.Content(1, 2, 3), "a")
	b := mustSave(t, store, c, disktest.Content(4), "b")
	if err := forgetFor(t.Context(), store, a, c, 7*day); err != nil {
		t.Fatal(err)
	}
	packs := len(repotest.Names(t, store, "packs/"))
	for range 3 {
		c.Add(2 * day)
		p, res := mustPass(t, store, prune.Options{Now: c.Now, Wait: c.Wait})
		if p.Snapshots != 1 || p.InGrace != 1 || p.GraceEnd == nil || res.Expired != 0 || res.Condemned.Packs != 0 {
			t.Fatalf("in the grace period: %+v %+v", p.Report, res)
		}
	}
	if all, _, err := repotest.Open(t, store).Snapshots(t.Context()); err != nil || len(all) != 1 || all[0].ID() != b.ID() {
		t.Errorf("snapshots %v: %v", all, err)
	}
	repotest.MustRestore(t, repotest.Open(t, store), a.Disks[0].Root, disktest.Content(1, 2, 3))
	c.Add(2 * day)
	p, res := mustPass(t, store, prune.Options{Now: c.Now, Wait: c.Wait})
	if p.InGrace != 0 || p.Expired != 1 || res.Expired != 1 || res.Condemned.Packs == 0 {
		t.Errorf("after the grace period: %+v %+v", p.Report, res)
	}
	c.Add(2 * day)
	if _, res := mustPass(t, store, prune.Options{Now: c.Now, Wait: c.Wait}); res.Deleted.Packs == 0 || len(repotest.Names(t, store, "packs/")) >= packs {
		t.Errorf("its data stays: %+v", res)
	}
	if left := repotest.Names(t, store, "forgotten/"); len(left) != 0 {
		t.Errorf("%v is left", left)
	}
	mustClean(t, store)
}

// A snapshot that is recovered while a pass is about to delete it stays, with its
// data; and one about which a statement cannot be read is not deleted, since the
// statement may bring it back.
func TestRecoveredBesidePrune(t *testing.T) {
	for _, exclusive := range []bool{false, true} {
		store, c := mem.New(), repotest.NewClock()
		repotest.Init(t, store)
		a := mustSave(t, store, c, disktest.Content(1, 2, 3), "a")
		mustSave(t, store, c, disktest.Content(4), "b")
		if err := forgetFor(t.Context(), store, a, c, day); err != nil {
			t.Fatal(err)
		}
		c.Add(3 * day)
		o := prune.Options{Now: c.Now, Wait: c.Wait, Exclusive: exclusive}
		p, err := prune.New(t.Context(), repotest.Open(t, store), o)
		if err != nil {
			t.Fatal(err)
		}
		if err := repotest.Open(t, store).Recover(t.Context(), []string{a.ID()}, c.Now()); err != nil {
			t.Fatal(err)
		}
		if _, err := p.Execute(t.Context()); !errors.Is(err, prune.ErrRecovered) {
			t.Errorf("exclusive %v: %v", exclusive, err)
		}
		mustPass(t, store, o)
		repotest.MustRestore(t, repotest.Open(t, store), a.Disks[0].Root, disktest.Content(1, 2, 3))
		mustClean(t, store)

		if err := forgetFor(t.Context(), store, a, c, day); err != nil {
			t.Fatal(err)
		}
		c.Add(3 * day)
		name := "forgotten/" + seal.Name([]byte("another"))
		if err := store.Put(t.Context(), name, []byte("damaged")); err != nil {
			t.Fatal(err)
		}
		if _, res := mustPass(t, store, o); res.Expired != 0 {
			t.Errorf("exclusive %v: deleted beside a statement that cannot be read", exclusive)
		}
		if err := store.Delete(t.Context(), name); err != nil {
			t.Fatal(err)
		}
		if _, res := mustPass(t, store, o); res.Expired != 1 {
			t.Errorf("exclusive %v: not deleted after it: %+v", exclusive, res)
		}
	}
}

// Whatever storage call of a forget with a grace period, and of the prune after it,
// fails, before its effect or after it, once or permanently: the snapshot exists with
// all of its data, or it is gone as a whole, and the next attempt ends the work.
func TestEveryCallFailsWithGrace(t *testing.T) {
	start, c := mem.New(), repotest.NewClock()
	repotest.Init(t, start)
	a := mustSave(t, start, c, disktest.Content(1, 2, 3), "a")
	b := mustSave(t, start, c, disktest.Content(1, 2), "b")
	run := func(ctx context.Context, objects object.Store, exclusive bool) error {
		c := repotest.ClockAt(c.Now())
		if err := forgetFor(ctx, objects, a, c, time.Hour); err != nil {
			return err
		}
		c.Add(day)
		_, _, err := pass(ctx, objects, prune.Options{Now: c.Now, Wait: c.Wait, Exclusive: exclusive})
		return err
	}
	for _, exclusive := range []bool{false, true} {
		for how, fault := range faults() {
			t.Run(fmt.Sprintf("exclusive %v, %s", exclusive, how), func(t *testing.T) {
				attempt := func(ctx context.Context, objects object.Store) error { return run(ctx, objects, exclusive) }
				everyCall(t, start, fault, 20, attempt, func(inner object.Store, n int) {
					left := repotest.Names(t, inner, "snapshots/")
					if !slices.Equal(left, []string{"snapshots/" + b.ID()}) || len(repotest.Names(t, inner, "forgotten/")) != 0 {
						t.Fatalf("call %d: after the second try: %v", n, left)
					}
				})
			})
		}
	}
}
