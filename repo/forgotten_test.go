package repo

import (
	"errors"
	"slices"
	"testing"
	"time"

	"xenkeep/chunkstore/object"
	"xenkeep/chunkstore/object/mem"
	"xenkeep/chunkstore/seal"
)

// For each snapshot the latest statement counts, whatever the order of the objects;
// of two of one time, the one that brings it back.
func TestStatements(t *testing.T) {
	at := func(h int) time.Time { return time.Date(2026, 1, 1, h, 0, 0, 0, time.UTC) }
	forget := func(h int, ids ...string) *Forgotten {
		return &Forgotten{Time: at(h), Until: at(h + 9), Snapshots: ids}
	}
	back := func(h int, ids ...string) *Forgotten { return &Forgotten{Time: at(h), Recovered: ids} }
	for name, c := range map[string]struct {
		all  []*Forgotten
		want map[string]time.Time
	}{
		"none":           {nil, nil},
		"forgotten":      {[]*Forgotten{forget(1, "a", "b")}, map[string]time.Time{"a": at(10), "b": at(10)}},
		"brought back":   {[]*Forgotten{forget(1, "a", "b"), back(2, "a")}, map[string]time.Time{"b": at(10)}},
		"forgotten anew": {[]*Forgotten{forget(1, "a"), back(2, "a"), forget(3, "a")}, map[string]time.Time{"a": at(12)}},
		"prolonged":      {[]*Forgotten{forget(1, "a"), forget(4, "a")}, map[string]time.Time{"a": at(13)}},
		"of one time":    {[]*Forgotten{forget(1, "a"), back(1, "a")}, nil},
	} {
		for range 2 {
			got, _ := statements(slices.Clone(c.all))
			if len(got) != len(c.want) {
				t.Errorf("%s: %v", name, got)
			}
			for id, until := range c.want {
				if got[id] == nil || !got[id].Until.Equal(until) {
					t.Errorf("%s: %s is %v, want until %v", name, id, got[id], until)
				}
			}
			slices.Reverse(c.all)
		}
	}
}

// A statement is later than all that exist about its snapshots, even if the clock of
// another machine was ahead; it needs a full key and the feature.
func TestForgetAndRecover(t *testing.T) {
	ctx, store, now := t.Context(), mem.New(), time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	r, err := Init(ctx, store, Options{Secret: right})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.AddSlot(ctx, wrong, "machine", seal.WriteOnly, now); err != nil {
		t.Fatal(err)
	}
	var ids []string
	for _, vm := range []string{"a", "b"} {
		s := &Snapshot{Origin: "image", VM: Named{UUID: vm, Name: vm}, DataTime: now, Complete: true}
		if err := r.PutSnapshot(ctx, s); err != nil {
			t.Fatal(err)
		}
		ids = append(ids, s.ID())
	}
	counts := func() (present, forgotten int) {
		t.Helper()
		all, bad, err := r.Snapshots(ctx)
		gone, gerr := r.ForgottenSnapshots(ctx)
		if err != nil || gerr != nil || len(bad) != 0 {
			t.Fatal(err, gerr, bad)
		}
		return len(all), len(gone)
	}
	want := func(what string, present, forgotten int) {
		t.Helper()
		if p, f := counts(); p != present || f != forgotten {
			t.Errorf("%s: %d snapshots and %d forgotten", what, p, f)
		}
	}
	ahead := now.Add(30 * 24 * time.Hour)
	if err := r.Forget(ctx, ids, ahead, "test", ahead); err != nil {
		t.Fatal(err)
	}
	want("forgotten by a clock that is ahead", 0, 2)
	if err := r.Recover(ctx, ids[:1], now); err != nil {
		t.Fatal(err)
	}
	want("one recovered", 1, 1)
	if err := r.Forget(ctx, ids[:1], ahead, "", now); err != nil {
		t.Fatal(err)
	}
	want("and forgotten again", 0, 2)
	if err := r.Recover(ctx, ids, now); err != nil {
		t.Fatal(err)
	}
	want("all recovered", 2, 0)
	if err := r.TidyForgotten(ctx); err != nil {
		t.Fatal(err)
	}
	want("statements about snapshots that exist stay", 2, 0)

	weak, err := Open(ctx, store, Options{Secret: wrong})
	if err != nil {
		t.Fatal(err)
	}
	if err := weak.Forget(ctx, ids, now, "", now); !errors.Is(err, seal.ErrNoDataKey) || weak.HasGrace() {
		t.Errorf("a write-only key forgets: %v", err)
	}
	if err := r.Forget(ctx, ids[:1], now, "", now); err != nil {
		t.Fatal(err)
	}
	if err := store.Delete(ctx, snapshotPrefix+ids[0]); err != nil {
		t.Fatal(err)
	}
	if err := r.Recover(ctx, ids[:1], now); !errors.Is(err, object.ErrNotFound) {
		t.Errorf("a deleted snapshot is recovered: %v", err)
	}
	old, err := Init(ctx, mem.New(), Options{Secret: right, Features: []Feature{}})
	if err != nil {
		t.Fatal(err)
	}
	if err := old.Forget(ctx, ids, now, "", now); err == nil || old.HasGrace() {
		t.Error("a repository without the feature gives a grace period")
	}
}
