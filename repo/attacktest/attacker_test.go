package attacktest

import (
	"context"
	"encoding/hex"
	"errors"
	"strings"
	"testing"
	"time"

	"xenkeep/chunkstore/object"
	"xenkeep/chunkstore/object/local"
	"xenkeep/chunkstore/seal"
	"xenkeep/internal/disk/disktest"
	"xenkeep/repo"
	"xenkeep/repo/backup"
	"xenkeep/repo/check"
	"xenkeep/repo/prune"
	"xenkeep/repo/repotest"
)

// rights are the operations that the storage permits an attacker, in addition to
// reading and listing.
type rights int

const (
	mayPut       rights = iota // put new objects
	mayOverwrite               // put objects, existing ones too
	mayDelete                  // overwrite and delete
)

var errRefused = errors.New("the storage refuses that to the attacker")

// attacker has the rights of one row of the threat table, and nothing else: storage
// through which all of its operations pass, and the keys of a write-only slot, or
// none.
type attacker struct {
	t       testing.TB
	inner   object.Store
	can     rights
	keys    *seal.Keys // nil without a key
	changed map[string]bool
}

func (a *attacker) put(name string, data []byte) {
	a.t.Helper()
	if _, err := a.inner.Stat(a.t.Context(), name); err == nil && a.can < mayOverwrite && !a.changed[name] {
		a.t.Fatalf("put %s: %v", name, errRefused)
	}
	if err := a.inner.Put(a.t.Context(), name, data); err != nil {
		a.t.Fatal(err)
	}
	if a.changed == nil {
		a.changed = make(map[string]bool)
	}
	a.changed[name] = true
}

func (a *attacker) get(name string) []byte {
	a.t.Helper()
	data, err := a.inner.Get(a.t.Context(), name, 0, -1)
	if err != nil {
		a.t.Fatal(err)
	}
	return data
}

func (a *attacker) list(prefix string) []string {
	a.t.Helper()
	return repotest.Names(a.t, a.inner, prefix)
}

// signed puts an object that the stolen key signs.
func (a *attacker) signed(prefix string, kind seal.ObjectKind, head, body []byte) string {
	a.t.Helper()
	data, name, err := a.keys.SealObject(kind, head, body)
	if err != nil {
		a.t.Fatal(err)
	}
	a.put(prefix+name, data)
	return prefix + name
}

// world is a repository with a full key, and a second machine with a write-only key.
type world struct {
	t       testing.TB
	objects object.Store
	clock   *repotest.Clock
	full    *repo.Repository // of the administrator's machine
	machine string           // ID of the write-only key
	stolen  *seal.Keys       // the write-only key
}

func newWorld(t testing.TB) *world {
	t.Helper()
	return newWorldWith(t, repo.Options{})
}

func newWorldWith(t testing.TB, o repo.Options) *world {
	t.Helper()
	objects, err := local.Create(t.TempDir() + "/r")
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, objects: objects, clock: repotest.NewClock()}
	w.full = repotest.InitWith(t, objects, o)
	if w.machine, err = w.full.AddSlot(t.Context(), repotest.Key(6), "machine", seal.WriteOnly, w.clock.Now()); err != nil {
		t.Fatal(err)
	}
	w.stolen = w.weak().Keys()
	return w
}

// admin opens the repository with the full key on a machine without a cache.
func (w *world) admin() *repo.Repository {
	w.t.Helper()
	return repotest.Open(w.t, w.objects)
}

// weak opens the repository with the write-only key on a machine without a cache.
func (w *world) weak() *repo.Repository {
	w.t.Helper()
	return repotest.OpenWith(w.t, w.objects, repo.Options{Secret: repotest.Key(6)})
}

// thief is an attacker with the write-only key.
func (w *world) thief(can rights) *attacker {
	return &attacker{t: w.t, inner: w.objects, can: can, keys: w.stolen}
}

// outsider is an attacker without a key.
func (w *world) outsider(can rights) *attacker {
	return &attacker{t: w.t, inner: w.objects, can: can}
}

func (w *world) save(r *repo.Repository, vm string, m *disktest.Mem) *repo.Snapshot {
	w.t.Helper()
	w.clock.Add(time.Hour)
	s, err := repotest.Save(w.t.Context(), r, vm, m.Source(), backup.DiskOptions{Size: m.Size()}, backup.Options{Now: w.clock.Now})
	if err != nil {
		w.t.Fatal(err)
	}
	return s
}

// prune runs a pass with the full key.
func (w *world) prune() (*prune.Result, error) {
	return w.pruneWith(w.admin(), 1<<30)
}

func (w *world) pruneWith(r *repo.Repository, maxRepack int64) (*prune.Result, error) {
	p, err := prune.New(w.t.Context(), r, prune.Options{Now: w.clock.Now, Wait: w.clock.Wait, MaxRepack: maxRepack})
	if err != nil {
		return nil, err
	}
	return p.Execute(w.t.Context())
}

// mustPruneTwice runs two passes, far enough from each other that the second one
// deletes the packs that the first one condemned.
func (w *world) mustPruneTwice() {
	w.t.Helper()
	for range 2 {
		w.clock.Add(3 * 24 * time.Hour)
		if _, err := w.prune(); err != nil {
			w.t.Fatal(err)
		}
	}
}

// findings checks the repository with the full key, without reading data.
func (w *world) findings() []check.Finding {
	w.t.Helper()
	rep, err := check.Run(w.t.Context(), w.admin(), check.Options{Now: w.clock.Now})
	if err != nil {
		w.t.Fatal(err)
	}
	return rep.Findings
}

// mustRestore fails the test unless a snapshot's disk restores as m.
func (w *world) mustRestore(s *repo.Snapshot, m *disktest.Mem) {
	w.t.Helper()
	repotest.MustRestore(w.t, w.admin(), s.Disks[0].Root, m)
}

func content(seeds ...uint64) *disktest.Mem { return disktest.Content(seeds...) }

// sum is the name of an object of this content.
func sum(data []byte) string { return seal.Name(data) }

// wrongSum is a well-formed name that belongs to no content.
func wrongSum() string { return strings.Repeat(hex.EncodeToString([]byte{0xd0}), 32) }

// during runs fn while a backup with the full key is active: after it has published
// its claim and before it publishes its snapshot.
func (w *world) during(m *disktest.Mem, fn func(run string)) error {
	return backup.WithRun(w.t.Context(), w.admin(), backup.Options{Now: w.clock.Now}, func(ctx context.Context, run *backup.Run) error {
		fn(run.ID())
		s := &repo.Snapshot{Origin: "image", VM: repo.Named{UUID: "live", Name: "live"}, DataTime: w.clock.Now(), Complete: true}
		return repotest.SaveIn(ctx, run, s, m.Source(), backup.DiskOptions{Size: m.Size()})
	})
}
