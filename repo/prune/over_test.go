package prune_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"xenkeep/chunkstore/object"
	"xenkeep/chunkstore/object/mem"
	"xenkeep/chunkstore/seal"
	"xenkeep/internal/disk/disktest"
	"xenkeep/repo"
	"xenkeep/repo/check"
	"xenkeep/repo/prune"
	"xenkeep/repo/repotest"
)

// endless is a storage whose readers see no run's end: all snapshots are valid, as
// if runs were never ended.
type endless struct{ object.Store }

func (e endless) List(ctx context.Context, prefix string, fn func(object.Info) error) error {
	return e.Store.List(ctx, prefix, func(i object.Info) error {
		if strings.HasPrefix(i.Name, "over/") {
			return nil
		}
		return fn(i)
	})
}

// withdrawn returns the snapshots that are not valid.
func withdrawn(ctx context.Context, objects object.Store) (ids []string, err error) {
	r, err := repotest.TryOpen(ctx, objects, repo.Options{})
	if err != nil {
		return nil, err
	}
	_, bad, err := r.Snapshots(ctx)
	for _, p := range bad {
		if errors.Is(p.Err, repo.ErrWithdrawn) {
			ids = append(ids, strings.TrimPrefix(p.Object, "snapshots/"))
		}
	}
	return ids, err
}

// heldUp executes a run that is paused before call hold until it was retired and
// ended and the packs that it references were deleted, and that is killed more
// calls later. It returns the errors among the valid snapshots, and among those
// that would be valid if runs were not ended. over is set if the run had ended
// before it was paused.
func heldUp(t *testing.T, hold, more int) (over bool, counted, all error) {
	t.Helper()
	w, err := newWorld(t.Context(), 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer w.stop()
	w.backup("a", []uint64{1, 2, 3}, false)
	w.step(w.clients[0], toEnd)
	w.start("backup of b", func(ctx context.Context, objects object.Store) error {
		r, err := repotest.TryOpen(ctx, objects, repo.Options{})
		if err == nil {
			_, err = save(ctx, r, w.c, disktest.Content(1, 2, 4), "b")
		}
		return err
	})
	if hold > 0 {
		w.step(w.clients[0], hold)
	}
	if len(w.clients) == 0 {
		return true, nil, nil
	}
	held := w.clients[0]
	if err := w.forget(0); err != nil {
		t.Fatal(err)
	}
	for _, d := range []int{15, 2, 2, 2, 2} { // retires, ends, condemns, deletes, once more
		w.c.Add(day * 1)
		for range d - 1 {
			w.c.Add(day)
		}
		w.prune(prune.Options{})
		w.step(w.clients[1], toEnd)
	}
	w.step(held, more)
	if len(w.clients) > 0 {
		w.kill(held)
	}
	// The leftovers disturb no later run, and a check finds nothing wrong.
	w.backup("c", []uint64{2, 3, 5}, false)
	w.step(w.clients[0], toEnd)
	if counted = sound(w.ctx, w.inner); counted != nil {
		counted = fmt.Errorf("%w\n%s", counted, strings.Join(w.log, "\n"))
	}
	return false, counted, sound(w.ctx, endless{w.inner})
}

// A run that is paused within the request that puts its snapshot until it was
// retired, and is killed before its second look, leaves a snapshot that lacks data.
// It is not valid; if runs were not ended, it would be.
func TestHeldWithinPut(t *testing.T) {
	holes, played := 0, 0
	for hold := 0; ; hold++ {
		if !thorough() && hold < 12 {
			continue // before it stores anything
		}
		ended := false
		for more := 1; more < 30; more++ {
			if !thorough() && more > 2 {
				break
			}
			over, counted, all := heldUp(t, hold, more)
			if ended = over; over {
				break
			}
			played++
			if counted != nil {
				t.Errorf("held up before call %d, killed %d calls later: %v", hold, more, counted)
			}
			if all != nil {
				holes++
			}
		}
		if ended {
			break
		}
	}
	t.Logf("%d held up, %d of them with a hole that does not count", played, holes)
	if holes == 0 {
		t.Error("no run left a snapshot with a hole: the search does not reach what it is for")
	}
}

// Only a full key prunes. A write-only key ends no run except its own: the data that
// others protect stays.
func TestPruneNeedsFullKey(t *testing.T) {
	store, c := mem.New(), repotest.NewClock()
	full := repotest.Init(t, store)
	if _, err := full.AddSlot(t.Context(), repotest.Key(6), "machine", seal.WriteOnly, c.Now()); err != nil {
		t.Fatal(err)
	}
	s := mustSave(t, store, c, disktest.Content(1, 2, 3), "a")
	mustSave(t, store, c, disktest.Content(4), "b")
	repotest.Forget(t, store, s)
	weak := repotest.OpenWith(t, store, repo.Options{Secret: repotest.Key(6)})
	if _, err := prune.New(t.Context(), weak, prune.Options{Now: c.Now, Wait: c.Wait}); !errors.Is(err, seal.ErrNoDataKey) {
		t.Errorf("with a write-only key: %v", err)
	}
	for run, by := range map[string]*repo.Repository{"0c": full, "0d": weak} {
		if err := by.PutClaim(t.Context(), &repo.Claim{Run: run, Started: c.Now(), Roots: []repo.HexID{s.Disks[0].Root}}); err != nil {
			t.Fatal(err)
		}
		if err := weak.PutRetired(t.Context(), &repo.Retired{Run: run, Time: c.Now(), Ended: true}); err != nil {
			t.Fatal(err)
		}
	}
	for range 3 {
		c.Add(3 * day)
		if _, _, err := pass(t.Context(), store, prune.Options{Now: c.Now, Wait: c.Wait}); err != nil {
			t.Fatal(err)
		}
	}
	if left := repotest.Names(t, store, "claims/"); len(left) != 1 || !strings.HasPrefix(left[0], "claims/0c-") {
		t.Errorf("claims %v are left", left)
	}
	c.Add(14 * day)
	for range 3 { // retires the run, ends it, deletes its claim
		if _, _, err := pass(t.Context(), store, prune.Options{Now: c.Now, Wait: c.Wait}); err != nil {
			t.Fatal(err)
		}
		c.Add(3 * day)
	}
	if left := repotest.Names(t, store, "claims/"); len(left) != 0 {
		t.Errorf("claims %v are left", left)
	}
}

// After an exclusive prune, a snapshot that a run publishes in spite of it is not
// valid once the run has lost its claim.
func TestExclusiveEnds(t *testing.T) {
	store, c := mem.New(), repotest.NewClock()
	r := repotest.Init(t, store)
	before := mustSave(t, store, c, disktest.Content(1), "a")
	s := &repo.Snapshot{Run: "0c", VM: repo.Named{UUID: "b"}, Disks: before.Disks}
	if err := errors.Join(r.PutClaim(t.Context(), &repo.Claim{Run: "0c", Started: c.Now()}), r.PutSnapshot(t.Context(), s)); err != nil {
		t.Fatal(err)
	}
	if _, res := mustPass(t, store, prune.Options{Now: c.Now, Wait: c.Wait, Exclusive: true}); res.Ended != 1 {
		t.Errorf("%+v", res)
	}
	late := &repo.Snapshot{Run: "0c", VM: repo.Named{UUID: "c"}, Disks: before.Disks}
	if err := r.PutSnapshot(t.Context(), late); err != nil {
		t.Fatal(err)
	}
	ids, err := withdrawn(t.Context(), store)
	if err != nil || len(ids) != 1 || ids[0] != late.ID() {
		t.Errorf("withdrawn: %v, %v; want %s", ids, err, late.ID())
	}
	rep, err := check.Run(t.Context(), r, check.Options{})
	if err != nil || rep.Snapshots != 2 || len(rep.Findings) != 1 || rep.Findings[0].Object != "snapshots/"+late.ID() || rep.Findings[0].Kind != check.Withdrawn {
		t.Errorf("check: %+v, %v", rep, err)
	}
}
