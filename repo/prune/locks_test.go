package prune_test

import (
	"errors"
	"testing"
	"time"

	"xenkeep/chunkstore/object"
	"xenkeep/chunkstore/object/mem"
	"xenkeep/chunkstore/object/versions"
	"xenkeep/internal/disk/disktest"
	"xenkeep/repo"
	"xenkeep/repo/prune"
	"xenkeep/repo/repotest"
)

const lockDays = 30

// locked returns k wrapped by package versions, which reads the sound version of
// each object.
func locked(t *testing.T, k *mem.Keeper) object.Versioned {
	t.Helper()
	return versions.New(k)
}

func days(n float64) time.Duration { return time.Duration(n * 24 * float64(time.Hour)) }

func until(t *testing.T, k object.Versioned, name string) time.Time {
	t.Helper()
	at, err := k.LockedUntil(t.Context(), name, "")
	if err != nil {
		t.Fatal(err)
	}
	return at
}

// Dead packs are deleted when their lock ends, and not before, and the plan
// contains the time; locks of live objects are extended when less than half of
// their time is left.
func TestLocks(t *testing.T) {
	c := repotest.NewClock()
	k := mem.NewKeeper(c.Now)
	if _, err := repo.Init(t.Context(), locked(t, k), repo.Options{Secret: repotest.Secret(), LockDays: lockDays, Now: c.Now}); err != nil {
		t.Fatal(err)
	}
	start := c.Now()
	goes := mustSave(t, locked(t, k), c, disktest.Content(1, 2, 3), "goes")
	stays := mustSave(t, locked(t, k), c, disktest.Content(4, 5, 6), "stays")
	o := prune.Options{Now: c.Now, Wait: c.Wait}

	// A snapshot cannot be forgotten while it is locked.
	s := locked(t, k)
	s.SetLockDays(lockDays)
	var refused *object.LockedError
	if err := s.Delete(t.Context(), "snapshots/"+goes.ID()); !errors.As(err, &refused) || !refused.Until.Equal(start.Add(days(lockDays))) {
		t.Fatalf("forgotten: %v", err)
	}
	// Young locks stay as they are.
	c.Add(days(14))
	if _, res := mustPass(t, locked(t, k), o); res.Extended != 0 || res.Deleted.Packs != 0 {
		t.Errorf("day 14: %+v", res)
	}
	// After half of their time the locks of live objects are extended, once.
	c.Add(days(2))
	_, res := mustPass(t, locked(t, k), o)
	if res.Extended == 0 {
		t.Errorf("day 16: nothing was locked for longer")
	}
	if got := until(t, k, "snapshots/"+stays.ID()); !got.Equal(c.Now().Add(days(lockDays))) {
		t.Errorf("locked until %v", got)
	}
	if _, res := mustPass(t, locked(t, k), o); res.Extended != 0 {
		t.Errorf("again: %+v", res)
	}
	// On day 46 and a bit all locks of day 16 end, if nobody prunes.
	c.Add(days(30.5))
	if err := s.Delete(t.Context(), "snapshots/"+goes.ID()); err != nil {
		t.Fatal(err)
	}
	p, res := mustPass(t, locked(t, k), o) // condemned now; live objects are locked again
	if res.Condemned.Packs == 0 || p.Until == nil {
		t.Fatalf("day 46: %+v %+v", p, res)
	}
	c.Add(days(2))
	p, res = mustPass(t, locked(t, k), o)
	if res.Deleted.Packs == 0 || p.Locked.Packs != 0 {
		t.Errorf("day 48: %+v %+v", p, res)
	}
	mustClean(t, locked(t, k))
	found := 0
	if err := k.ListVersions(t.Context(), "packs/", func(object.Version) error { found++; return nil }); err != nil {
		t.Fatal(err)
	}
	if found != p.All.Packs-res.Deleted.Packs {
		t.Errorf("%d versions of packs are left, of %d packs less %d", found, p.All.Packs, res.Deleted.Packs)
	}
}

// A condemned pack that has waited long enough stays until its lock ends, and the
// plan contains that time.
func TestLockedPacksWait(t *testing.T) {
	c := repotest.NewClock()
	k := mem.NewKeeper(c.Now)
	if _, err := repo.Init(t.Context(), locked(t, k), repo.Options{Secret: repotest.Secret(), LockDays: lockDays, Now: c.Now}); err != nil {
		t.Fatal(err)
	}
	s := mustSave(t, locked(t, k), c, disktest.Content(1, 2), "vm")
	ends := c.Now().Add(days(lockDays))
	// As a user who may bypass governance mode can do.
	k.SetLockDays(0)
	if err := removeAll(t, k, c, "snapshots/"+s.ID(), ends); err != nil {
		t.Fatal(err)
	}
	c.Add(-days(lockDays) - time.Second)
	for _, exclusive := range []bool{false, true} {
		o := prune.Options{Now: c.Now, Wait: c.Wait, Exclusive: exclusive, MaxRepack: 1 << 30}
		mustPass(t, locked(t, k), o)
		c.Add(days(2))
		p, res := mustPass(t, locked(t, k), o)
		if res.Deleted.Packs != 0 || p.Locked.Packs == 0 || p.Until == nil || p.Until.Before(ends) || p.Freed != 0 || p.Later == 0 {
			t.Errorf("exclusive %v: %+v %+v", exclusive, p, res)
		}
	}
	c.Add(days(lockDays))
	p, res := mustPass(t, locked(t, k), prune.Options{Now: c.Now, Wait: c.Wait, Exclusive: true})
	if res.Deleted.Packs == 0 || p.Locked.Packs != 0 {
		t.Errorf("when the locks have ended: %+v %+v", p, res)
	}
}

// removeAll deletes a snapshot at a time when its lock has ended.
func removeAll(t *testing.T, k *mem.Keeper, c *repotest.Clock, name string, ends time.Time) error {
	t.Helper()
	c.Add(ends.Sub(c.Now()) + time.Second)
	var ids []string
	if err := k.ListVersions(t.Context(), name, func(v object.Version) error { ids = append(ids, v.ID); return nil }); err != nil {
		return err
	}
	for _, id := range ids {
		if err := k.RemoveVersion(name, id); err != nil {
			return err
		}
	}
	return nil
}

// A pack that a list condemns although a snapshot needs it stays, also in an
// exclusive pass.
func TestExclusiveKeepsWhatIsNeeded(t *testing.T) {
	c := repotest.NewClock()
	objects := mem.New()
	repotest.Init(t, objects)
	mustSave(t, objects, c, disktest.Content(1, 2, 3), "vm")
	r, err := repotest.TryOpen(t.Context(), objects, repo.Options{})
	if err != nil {
		t.Fatal(err)
	}
	list := &repo.Condemned{Time: c.Now()}
	for _, name := range repotest.Names(t, objects, "packs/") {
		list.Packs = append(list.Packs, name[len("packs/ab/"):])
	}
	if err := r.PutCondemned(t.Context(), list); err != nil {
		t.Fatal(err)
	}
	c.Add(days(2))
	_, res := mustPass(t, objects, prune.Options{Now: c.Now, Wait: c.Wait, Exclusive: true})
	if res.Deleted.Packs != 0 {
		t.Errorf("%d packs that a snapshot needs were deleted", res.Deleted.Packs)
	}
	mustClean(t, objects)
}
