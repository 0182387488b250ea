package prune_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"xenkeep/chunkstore/chunk"
	"xenkeep/chunkstore/object"
	"xenkeep/chunkstore/object/mem"
	"xenkeep/internal/disk/disktest"
	"xenkeep/repo"
	"xenkeep/repo/backup"
	"xenkeep/repo/check"
	"xenkeep/repo/prune"
	"xenkeep/repo/repotest"
)

// save backs up m as the only disk of a VM. Its chunks are looked up in roots
// first.
func save(ctx context.Context, r *repo.Repository, c *repotest.Clock, m *disktest.Mem, vm string, roots ...chunk.ID) (*repo.Snapshot, error) {
	return repotest.Save(ctx, r, vm, m.Source(), diskOptions(m, roots), backup.Options{Now: c.Now, Workers: 1, Uploads: 1, Roots: roots, AdoptOrphans: true})
}

func diskOptions(m *disktest.Mem, roots []chunk.ID) backup.DiskOptions {
	o := backup.DiskOptions{Size: m.Size()}
	if len(roots) > 0 {
		o.Base = roots[0]
	}
	return o
}

func mustSave(t *testing.T, objects object.Store, c *repotest.Clock, m *disktest.Mem, vm string) *repo.Snapshot {
	t.Helper()
	s, err := save(t.Context(), repotest.Open(t, objects), c, m, vm)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func pass(ctx context.Context, objects object.Store, o prune.Options) (*prune.Plan, *prune.Result, error) {
	r, err := repo.Open(ctx, objects, repo.Options{Secret: repotest.Secret()})
	if err != nil {
		return nil, nil, err
	}
	p, err := prune.New(ctx, r, o)
	if err != nil {
		return nil, nil, err
	}
	res, err := p.Execute(ctx)
	return p, res, err
}

func mustPass(t *testing.T, objects object.Store, o prune.Options) (*prune.Plan, *prune.Result) {
	t.Helper()
	p, res, err := pass(t.Context(), objects, o)
	if err != nil {
		t.Fatal(err)
	}
	return p, res
}

func findings(ctx context.Context, objects object.Store) error {
	r, err := repotest.TryOpen(ctx, objects, repo.Options{})
	if err != nil {
		return err
	}
	rep, err := check.Run(ctx, r, check.Options{ReadData: true})
	if err != nil {
		return err
	}
	if len(rep.Findings) > 0 {
		return fmt.Errorf("%d snapshots: %v", rep.Snapshots, rep.Findings)
	}
	return nil
}

func mustClean(t *testing.T, objects object.Store) {
	t.Helper()
	if err := findings(t.Context(), objects); err != nil {
		t.Fatalf("check: %v", err)
	}
}

const day = 24 * time.Hour

// A forgotten snapshot's packs are condemned, wait a day, are deleted, and leave no
// trace.
func TestLife(t *testing.T) {
	store, c := mem.New(), repotest.NewClock()
	repotest.Init(t, store)
	a := mustSave(t, store, c, disktest.Content(1, 2, 3, 4, 5), "a")
	mustSave(t, store, c, disktest.Content(6, 7), "b")
	o := prune.Options{Now: c.Now, Wait: c.Wait}
	if p, _ := mustPass(t, store, o); p.Dead.Packs != 0 || len(repotest.Names(t, store, "condemned/")) != 0 {
		t.Fatalf("nothing is dead: %+v", p)
	}
	repotest.Forget(t, store, a)
	before := len(repotest.Names(t, store, "packs/"))
	p, res := mustPass(t, store, o)
	if p.Condemn.Packs != 2 || res.Condemned.Packs != 2 || res.Deleted.Packs != 0 || p.Until == nil {
		t.Fatalf("condemned: %+v %+v", p, res)
	}
	mustClean(t, store)
	c.Add(day / 2)
	if p, res := mustPass(t, store, o); p.Waiting.Packs != 2 || res.Deleted.Packs != 0 {
		t.Fatalf("waiting: %+v %+v", p, res)
	}
	c.Add(day)
	if _, res := mustPass(t, store, o); res.Deleted.Packs != 2 || len(repotest.Names(t, store, "packs/")) != before-2 {
		t.Fatalf("deleted: %+v", res)
	}
	mustClean(t, store)
	for range 4 {
		c.Add(day + time.Hour)
		mustPass(t, store, o)
	}
	if left := repotest.Names(t, store, "condemned/"); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
	mustClean(t, store)
}

// A pack that is mostly dead is copied, in sealed form; without write-only keys,
// nothing is opened for that.
func TestRepack(t *testing.T) {
	for _, exclusive := range []bool{false, true} {
		t.Run(fmt.Sprint("exclusive ", exclusive), func(t *testing.T) {
			store, c := mem.New(), repotest.NewClock()
			r := repotest.Init(t, store)
			a := mustSave(t, store, c, disktest.Content(1, 2, 3, 4, 5, 6, 7, 8), "a")
			mustSave(t, store, c, disktest.Content(1, 2), "b")
			repotest.Forget(t, store, a)
			o := prune.Options{Now: c.Now, Wait: c.Wait, MaxRepack: 1 << 30, Exclusive: exclusive}
			p, err := prune.New(t.Context(), r, o)
			if err != nil {
				t.Fatal(err)
			}
			res, err := p.Execute(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if res.Repacked.Packs == 0 || res.Written == 0 || res.Proved.Packs != 0 {
				t.Fatalf("nothing repacked: %+v %+v", p, res)
			}
			mustClean(t, store)
			if !exclusive {
				c.Add(2 * day)
				_, res = mustPass(t, store, o)
			}
			if res.Deleted.Bytes < 500<<10 {
				t.Errorf("freed %d bytes", res.Deleted.Bytes)
			}
			mustClean(t, store)
			// Merged packs can be merged again.
			mustSave(t, store, c, disktest.Content(2), "c")
			o.Exclusive = true
			mustPass(t, store, o)
			mustClean(t, store)
		})
	}
}

// A pruner that cannot read something condemns nothing and deletes nothing.
func TestUnreadable(t *testing.T) {
	for _, what := range []string{"snapshots/", "packs/", "claims/", "condemned/", "notes/"} {
		t.Run(what, func(t *testing.T) {
			store, c := mem.New(), repotest.NewClock()
			r := repotest.Init(t, store)
			a := mustSave(t, store, c, disktest.Content(1, 2, 3), "a")
			mustSave(t, store, c, disktest.Content(4, 5), "b")
			if err := r.PutClaim(t.Context(), &repo.Claim{Run: "00", Started: c.Now()}); err != nil {
				t.Fatal(err)
			}
			if err := r.PutNote(t.Context(), &repo.Note{Kind: "protect", Time: c.Now()}); err != nil {
				t.Fatal(err)
			}
			repotest.Forget(t, store, a)
			o := prune.Options{Now: c.Now, Wait: c.Wait}
			mustPass(t, store, o)
			c.Add(2 * day)
			for _, name := range repotest.Names(t, store, what) {
				data, err := store.Get(t.Context(), name, 0, -1)
				if err != nil {
					t.Fatal(err)
				}
				for i := range data {
					data[i] ^= 0x55
				}
				if err := store.Put(t.Context(), name, data); err != nil {
					t.Fatal(err)
				}
			}
			before := len(repotest.Names(t, store, ""))
			for _, exclusive := range []bool{false, true} {
				o.Exclusive = exclusive
				_, _, err := pass(t.Context(), store, o)
				if what == "notes/" {
					if err != nil {
						t.Errorf("notes do not matter to prune: %v", err)
					}
					return
				}
				if err == nil {
					t.Errorf("exclusive %v: no error", exclusive)
				}
				if after := len(repotest.Names(t, store, "")); after != before {
					t.Errorf("exclusive %v: %d objects of %d left", exclusive, after, before)
				}
			}
		})
	}
}
