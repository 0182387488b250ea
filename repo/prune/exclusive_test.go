package prune_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"xenkeep/chunkstore/object"
	"xenkeep/chunkstore/object/mem"
	"xenkeep/chunkstore/object/objecttest"
	"xenkeep/chunkstore/pack"
	"xenkeep/internal/disk/disktest"
	"xenkeep/repo"
	"xenkeep/repo/backup"
	"xenkeep/repo/prune"
	"xenkeep/repo/repotest"
)

// A prune rescues a repository whose storage is full.
func TestFull(t *testing.T) {
	store, c := objecttest.NewFaulty(mem.New()), repotest.NewClock()
	repotest.Init(t, store)
	// One run, one index object for both.
	r, err := repotest.TryOpen(t.Context(), store, repo.Options{})
	if err != nil {
		t.Fatal(err)
	}
	var first *repo.Snapshot
	err = backup.WithRun(t.Context(), r, backup.Options{Now: c.Now}, func(ctx context.Context, run *backup.Run) error {
		for i := range 2 {
			m := disktest.Content(uint64(10*i), uint64(10*i+1), uint64(10*i+2))
			d, err := run.BackupDisk(ctx, m.Source(), backup.DiskOptions{Size: m.Size()})
			if err != nil {
				return err
			}
			s := &repo.Snapshot{VM: repo.Named{UUID: fmt.Sprint(i)}, DataTime: c.Now(), Complete: true, Disks: []repo.Disk{{Device: "xvda", Size: m.Size(), Root: repo.HexID(d.Root)}}}
			run.Add(s)
			if i == 0 {
				first = s
			}
			if err := run.Flush(ctx); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	// Both runs' packs are in one index object, so that it must be written again.
	merge(t, store)
	if err := r.PutClaim(t.Context(), &repo.Claim{Run: "0123", Started: c.Now()}); err != nil {
		t.Fatal(err)
	}
	repotest.Forget(t, store, first)
	store.LimitSpace(0)
	o := prune.Options{Now: c.Now, Wait: c.Wait, MaxRepack: 1 << 30}
	if _, _, err := pass(t.Context(), store, o); !errors.Is(err, object.ErrNoSpace) {
		t.Fatalf("beside: %v", err)
	}
	// Deleting frees space, as on a disk.
	store.Heal()
	full := &fullStore{Store: store}
	o.Exclusive = true
	_, res := mustPass(t, full, o)
	if res.Deleted.Packs < 2 || !full.refused {
		t.Fatalf("%+v, refused %v", res, full.refused)
	}
	mustClean(t, store)
	if n := len(repotest.Names(t, store, "claims/")); n != 0 {
		t.Errorf("%d claims left", n)
	}
	mustSave(t, full, c, disktest.Content(30), "c")
	mustClean(t, store)
}

// A full repository can be rescued even if no pack is dead as a whole: the space
// for the live data of one pack is enough.
func TestFullOfMostlyDead(t *testing.T) {
	store, c := mem.New(), repotest.NewClock()
	repotest.Init(t, store)
	const vms, blocks = 12, 6
	var all [vms]*repo.Snapshot
	for i := range uint64(vms) {
		var seeds []uint64
		for k := range uint64(blocks) {
			seeds = append(seeds, 100*i+k)
		}
		all[i] = mustSave(t, store, c, disktest.Content(seeds...), fmt.Sprint(i))
		mustSave(t, store, c, disktest.Content(seeds[:1+i%2]...), fmt.Sprint(i))
	}
	for _, s := range all {
		repotest.Forget(t, store, s)
	}
	o := prune.Options{Now: c.Now, Wait: c.Wait, MaxRepack: 1 << 30, Exclusive: true}
	full := &fullStore{Store: store, room: 120 << 10}
	plan, res := mustPass(t, full, o)
	if res.Repacked.Packs < vms || plan.Copy < 10*(120<<10) {
		t.Fatalf("%+v of %+v", res, plan)
	}
	mustClean(t, store)
	// It also does not use more space than it has freed.
	if full.room < plan.Freed*9/10 {
		t.Errorf("%d bytes of room where %d were freed", full.room, plan.Freed)
	}
}

// A prune that waits for a storage with delayed listings reports the time and the
// reason.
func TestWaitIsTold(t *testing.T) {
	store, c := objecttest.NewFaulty(mem.New()), repotest.NewClock()
	repotest.Init(t, store)
	store.DelayLists(2*time.Minute, 0, c.Now)
	mustSave(t, store, c, disktest.Content(1, 2), "a")
	var told []time.Duration
	var waited []time.Duration
	o := prune.Options{Now: c.Now, Exclusive: true,
		Waiting: func(d time.Duration, why string) {
			if !strings.Contains(why, "network file system") {
				t.Errorf("the reason is %q", why)
			}
			told = append(told, d)
		},
		Wait: func(ctx context.Context, d time.Duration) error {
			waited = append(waited, d)
			return c.Wait(ctx, d)
		},
	}
	mustPass(t, store, o)
	if len(told) == 0 || told[0] != 2*time.Minute || !slices.Equal(told, waited) {
		t.Errorf("told %v, waited %v", told, waited)
	}
}

// fullStore has no space except the space that is freed.
type fullStore struct {
	object.Store
	room    int64
	refused bool
}

func (f *fullStore) Put(ctx context.Context, name string, data []byte) error {
	if int64(len(data)) > f.room {
		f.refused = true
		return &object.Error{Op: "put", Name: name, Class: object.ErrNoSpace}
	}
	f.room -= int64(len(data))
	return f.Store.Put(ctx, name, data)
}

func (f *fullStore) Delete(ctx context.Context, name string) error {
	if i, err := f.Stat(ctx, name); err == nil && pack0(name) {
		f.room += i.Size
	}
	return f.Store.Delete(ctx, name)
}

func pack0(name string) bool { _, ok := pack.ParseObjectName(name); return ok }

// merge replaces all index objects by one.
func merge(t *testing.T, objects object.Store) {
	t.Helper()
	old := repotest.Names(t, objects, "index/")
	for _, name := range old {
		if err := objects.Delete(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
	r, err := repotest.TryOpen(t.Context(), objects, repo.Options{})
	if err != nil {
		t.Fatal(err)
	}
	orphans, err := r.Store().Orphans(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	taken, _, err := r.Store().Adopt(t.Context(), orphans)
	if err == nil {
		err = r.Store().PutIndex(t.Context(), [16]byte{1}, taken)
	}
	if err != nil {
		t.Fatal(err)
	}
}
