package prune_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"xenkeep/chunkstore/chunk"
	"xenkeep/chunkstore/object"
	"xenkeep/chunkstore/object/mem"
	"xenkeep/chunkstore/slot"
	"xenkeep/internal/disk"
	"xenkeep/internal/disk/disktest"
	"xenkeep/repo"
	"xenkeep/repo/backup"
	"xenkeep/repo/check"
	"xenkeep/repo/prune"
)

var secret = slot.Secret{KeyFile: bytes.Repeat([]byte{5}, 32)}

// clock is a clock that tests move.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func newClock() *clock { return &clock{t: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)} }

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) Add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

func (c *clock) Wait(_ context.Context, d time.Duration) error { c.Add(d); return nil }

func initRepo(t testing.TB, objects object.Store) *repo.Repository {
	t.Helper()
	r, err := repo.Init(t.Context(), objects, repo.Options{Secret: secret})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func openRepo(ctx context.Context, objects object.Store) (*repo.Repository, error) {
	r, err := repo.Open(ctx, objects, repo.Options{Secret: secret})
	if err == nil {
		err = r.LoadIndex(ctx)
	}
	return r, err
}

// content is a disk whose blocks are random, each by a seed of its own.
func content(seeds ...uint64) *disktest.Mem {
	m := disktest.NewMem(int64(len(seeds)) * disk.BlockSize)
	for i, seed := range seeds {
		src := rand.New(rand.NewPCG(seed, 7))
		p := make([]byte, 100<<10)
		for j := range p {
			p[j] = byte(src.Uint32())
		}
		_ = m.WriteAt(context.Background(), p, int64(i)*disk.BlockSize)
	}
	return m
}

func save(ctx context.Context, r *repo.Repository, c *clock, m *disktest.Mem, vm string, roots ...chunk.ID) (*repo.Snapshot, error) {
	s := &repo.Snapshot{Origin: "image", VM: repo.Named{UUID: vm, Name: vm}, Data: c.Now(), Complete: true}
	err := backup.Do(ctx, r, backup.Options{Now: c.Now, Workers: 1, Uploads: 1, Roots: roots, AdoptOrphans: true}, func(ctx context.Context, run *backup.Run) error {
		return store(ctx, run, s, m, roots...)
	})
	return s, err
}

// store publishes a snapshot with one disk within a run.
func store(ctx context.Context, run *backup.Run, s *repo.Snapshot, m *disktest.Mem, roots ...chunk.ID) error {
	o := backup.DiskOptions{Size: m.Size()}
	if len(roots) > 0 {
		o.Base = roots[0]
	}
	d, err := run.Disk(ctx, m.Source(), o)
	if err != nil {
		return err
	}
	rec, err := run.Record(ctx, "vm", []byte(s.VM.UUID))
	if err != nil {
		return err
	}
	s.Records = []repo.Record{rec}
	s.Disks = []repo.Disk{{Device: "xvda", Size: o.Size, Root: repo.HexID(d.Root), Method: "full", Counts: d.Counts}}
	run.Add(s)
	return run.Flush(ctx)
}

func mustSave(t *testing.T, objects object.Store, c *clock, m *disktest.Mem, vm string) *repo.Snapshot {
	t.Helper()
	r, err := openRepo(t.Context(), objects)
	if err != nil {
		t.Fatal(err)
	}
	s, err := save(t.Context(), r, c, m, vm)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func forget(t *testing.T, objects object.Store, s *repo.Snapshot) {
	t.Helper()
	if err := objects.Delete(t.Context(), "snapshots/"+s.ID()); err != nil {
		t.Fatal(err)
	}
}

func pass(ctx context.Context, objects object.Store, o prune.Options) (*prune.Plan, *prune.Result, error) {
	r, err := repo.Open(ctx, objects, repo.Options{Secret: secret})
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
	r, err := openRepo(ctx, objects)
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

func names(t *testing.T, objects object.Store, prefix string) (all []string) {
	t.Helper()
	if err := objects.List(t.Context(), prefix, func(i object.Info) error {
		all = append(all, i.Name)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return all
}

const day = 24 * time.Hour

// What is forgotten is condemned, waits a day, goes, and leaves no trace.
func TestLife(t *testing.T) {
	store, c := mem.New(), newClock()
	initRepo(t, store)
	a := mustSave(t, store, c, content(1, 2, 3, 4, 5), "a")
	mustSave(t, store, c, content(6, 7), "b")
	o := prune.Options{Now: c.Now, Wait: c.Wait}
	if p, _ := mustPass(t, store, o); p.Dead.Packs != 0 || len(names(t, store, "condemned/")) != 0 {
		t.Fatalf("nothing is dead: %+v", p)
	}
	forget(t, store, a)
	before := len(names(t, store, "packs/"))
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
	if _, res := mustPass(t, store, o); res.Deleted.Packs != 2 || len(names(t, store, "packs/")) != before-2 {
		t.Fatalf("deleted: %+v", res)
	}
	mustClean(t, store)
	for range 4 {
		c.Add(day + time.Hour)
		mustPass(t, store, o)
	}
	if left := names(t, store, "condemned/"); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
	mustClean(t, store)
}

// A pack that is mostly dead is copied, sealed, by a key that opens no data.
func TestRepack(t *testing.T) {
	for _, exclusive := range []bool{false, true} {
		t.Run(fmt.Sprint("exclusive ", exclusive), func(t *testing.T) {
			store, c := mem.New(), newClock()
			r := initRepo(t, store)
			a := mustSave(t, store, c, content(1, 2, 3, 4, 5, 6, 7, 8), "a")
			mustSave(t, store, c, content(1, 2), "b")
			forget(t, store, a)
			keys, err := r.Keys().ForNewWriter(2)
			if err != nil {
				t.Fatal(err)
			}
			if keys.DataPrivate != nil {
				t.Fatal("the key opens data")
			}
			data, id, err := slot.Seal(keys, []byte(configOf(t, r)), slot.Secret{KeyFile: bytes.Repeat([]byte{6}, 32)}, "w", c.Now())
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(store.Put(t.Context(), "slots/a/"+id, data), store.Put(t.Context(), "slots/b/"+id, data)); err != nil {
				t.Fatal(err)
			}
			w, err := repo.Open(t.Context(), store, repo.Options{Secret: slot.Secret{KeyFile: bytes.Repeat([]byte{6}, 32)}})
			if err != nil {
				t.Fatal(err)
			}
			o := prune.Options{Now: c.Now, Wait: c.Wait, MaxRepack: 1 << 30, Exclusive: exclusive}
			p, err := prune.New(t.Context(), w, o)
			if err != nil {
				t.Fatal(err)
			}
			res, err := p.Execute(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if res.Repacked.Packs == 0 || res.Written == 0 {
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
			mustSave(t, store, c, content(2), "c")
			o.Exclusive = true
			mustPass(t, store, o)
			mustClean(t, store)
		})
	}
}

func configOf(t *testing.T, r *repo.Repository) string {
	t.Helper()
	data, err := r.Objects().Get(t.Context(), "config", 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	o, err := r.Keys().OpenObject(9, data)
	if err != nil {
		t.Fatal(err)
	}
	return string(o.Head)
}

// A pruner that cannot read something condemns nothing and deletes nothing.
func TestUnreadable(t *testing.T) {
	for _, what := range []string{"snapshots/", "packs/", "claims/", "condemned/", "notes/"} {
		t.Run(what, func(t *testing.T) {
			store, c := mem.New(), newClock()
			r := initRepo(t, store)
			a := mustSave(t, store, c, content(1, 2, 3), "a")
			mustSave(t, store, c, content(4, 5), "b")
			if err := r.PutClaim(t.Context(), &repo.Claim{Run: "00", Started: c.Now()}); err != nil {
				t.Fatal(err)
			}
			if err := r.PutNote(t.Context(), &repo.Note{Kind: "protect", Time: c.Now()}); err != nil {
				t.Fatal(err)
			}
			forget(t, store, a)
			o := prune.Options{Now: c.Now, Wait: c.Wait}
			mustPass(t, store, o)
			c.Add(2 * day)
			for _, name := range names(t, store, what) {
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
			before := len(names(t, store, ""))
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
				if after := len(names(t, store, "")); after != before {
					t.Errorf("exclusive %v: %d objects of %d left", exclusive, after, before)
				}
			}
		})
	}
}
