package prune_test

import (
	"context"
	"fmt"
	"testing"

	"xenkeep/chunkstore/object"
	"xenkeep/chunkstore/object/mem"
	"xenkeep/chunkstore/object/objecttest"
	"xenkeep/internal/disk/disktest"
	"xenkeep/repo"
	"xenkeep/repo/prune"
	"xenkeep/repo/repotest"
)

func clone(t *testing.T, from object.Store) object.Store {
	t.Helper()
	to := mem.New()
	for _, name := range repotest.Names(t, from, "") {
		data, err := from.Get(t.Context(), name, 0, -1)
		if err == nil {
			err = to.Put(t.Context(), name, data)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return to
}

// Whatever storage call of forget and prune fails, before its effect or after it,
// once or permanently: no data that a snapshot needs is lost, and the next attempt
// frees all unneeded space.
func TestEveryCallFails(t *testing.T) {
	c := repotest.NewClock()
	start := mem.New()
	repotest.Init(t, start)
	a := mustSave(t, start, c, disktest.Content(1, 2, 3, 4, 5, 6), "a")
	mustSave(t, start, c, disktest.Content(1, 2), "b")
	gone := mustSave(t, start, c, disktest.Content(7, 8), "c")
	forgetAndPrune := func(ctx context.Context, objects object.Store, o prune.Options) error {
		r, err := repo.Open(ctx, objects, repo.Options{Secret: repotest.Secret()})
		if err == nil {
			err = r.DeleteSnapshot(ctx, a)
		}
		if err == nil {
			_, _, err = pass(ctx, objects, o)
		}
		return err
	}
	for _, exclusive := range []bool{false, true} {
		for how, fault := range faults() {
			t.Run(fmt.Sprintf("exclusive %v, %s", exclusive, how), func(t *testing.T) {
				c := repotest.ClockAt(c.Now())
				o := prune.Options{Now: c.Now, Wait: c.Wait, MaxRepack: 1 << 30, Exclusive: exclusive}
				base := clone(t, start)
				repotest.Forget(t, base, gone)
				if !exclusive { // so that this pass deletes, repacks and condemns
					mustPass(t, base, prune.Options{Now: c.Now, Wait: c.Wait})
				}
				c.Add(2 * day)
				attempt := func(ctx context.Context, objects object.Store) error { return forgetAndPrune(ctx, objects, o) }
				everyCall(t, base, fault, 30, attempt, func(inner object.Store, n int) {
					if !exclusive {
						at := c.Now()
						c.Add(2 * day)
						if _, _, err := pass(t.Context(), inner, o); err != nil {
							t.Fatalf("call %d: third try: %v", n, err)
						}
						mustSound(t, inner, n)
						c = repotest.ClockAt(at)
						o.Now, o.Wait = c.Now, c.Wait
					}
					if n := len(repotest.Names(t, inner, "packs/")); n > 6 {
						t.Errorf("%d packs are left", n)
					}
				})
			})
		}
	}
}

// faults are the ways in which a storage call fails.
func faults() map[string]objecttest.Fault {
	return map[string]objecttest.Fault{
		"before": {}, "after": {After: true}, "for good": {Stay: true}, "after, for good": {After: true, Stay: true},
	}
}

// everyCall makes each storage call of attempt fail in turn, each time on a copy of
// start. After the failure nothing may be lost, and a second attempt must succeed; then
// finished is called. There must be at least least calls.
func everyCall(t *testing.T, start object.Store, fault objecttest.Fault, least int, attempt func(ctx context.Context, objects object.Store) error, finished func(inner object.Store, n int)) {
	t.Helper()
	for n := 0; ; n++ {
		inner := clone(t, start)
		store := objecttest.NewFaulty(inner)
		fault.N = n
		injected := store.Inject(fault)
		err := attempt(t.Context(), store)
		if !injected.Fired() {
			if err != nil {
				t.Fatal(err)
			}
			if n < least {
				t.Errorf("only %d calls failed: the sweep does not reach what it should", n)
			}
			return
		}
		mustSound(t, inner, n)
		if err := attempt(t.Context(), inner); err != nil {
			t.Fatalf("call %d: second try: %v", n, err)
		}
		mustSound(t, inner, n)
		finished(inner, n)
	}
}

// mustSound accepts the state that an interrupted pass may leave: packs that are in
// no index object, if they can be read.
func mustSound(t *testing.T, objects object.Store, n int) {
	t.Helper()
	if err := sound(t.Context(), objects); err != nil {
		t.Fatalf("call %d: %v", n, err)
	}
}
