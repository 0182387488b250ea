package check_test

import (
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"xenkeep/chunkstore"
	"xenkeep/chunkstore/chunk"
	"xenkeep/chunkstore/object"
	"xenkeep/chunkstore/object/mem"
	"xenkeep/chunkstore/pack"
	"xenkeep/chunkstore/seal"
	"xenkeep/chunkstore/slot"
	"xenkeep/internal/disk"
	"xenkeep/internal/disk/disktest"
	"xenkeep/repo"
	"xenkeep/repo/backup"
	"xenkeep/repo/check"
	"xenkeep/repo/repotest"
	"xenkeep/repo/restore"
)

// damageClasses are the valid error classes of damage; any other error is a bug.
var damageClasses = []error{
	seal.ErrCorrupt, seal.ErrForeign, seal.ErrNewer, chunkstore.ErrMissing, object.ErrNotFound, object.ErrShort,
}

func isDamage(err error) bool {
	return slices.ContainsFunc(damageClasses, func(class error) bool { return errors.Is(err, class) })
}

// kindsOfDamage return the possible contents of an object after the damage, made
// from its own content and that of another object of its kind; nil means that it is
// deleted.
var kindsOfDamage = map[string]func(own, other []byte) [][]byte{
	"missing": func(_, _ []byte) [][]byte { return [][]byte{nil} },
	"truncated": func(own, _ []byte) (all [][]byte) {
		for _, n := range []int{0, 3, 20, 100, len(own) / 2, len(own) - 70, len(own) - 1} {
			if n < len(own) {
				all = append(all, own[:max(n, 0)])
			}
		}
		return all
	},
	"longer": func(own, _ []byte) [][]byte { return [][]byte{append(slices.Clone(own), 0)} },
	"flipped": func(own, _ []byte) (all [][]byte) {
		at := []int{0, 5, 6, 7, 9, 24, 30, 60, 121, 153, 155, 157, 158, 160}
		for i := 1; i < 12; i++ {
			at = append(at, len(own)*i/12, len(own)-1-i*7)
		}
		for _, i := range at {
			if i >= 0 && i < len(own) {
				p := slices.Clone(own)
				p[i] ^= 1 << (i % 8)
				all = append(all, p)
			}
		}
		return all
	},
	"swapped": func(_, other []byte) [][]byte { return [][]byte{other} },
}

// TestDamage damages each kind of object in each way: opening, restoring and
// checking then either work as without the damage or return an error of the right
// class.
func TestDamage(t *testing.T) {
	store := mem.New()
	r := repotest.Init(t, store)
	m := disktest.NewMem(3<<20 + 100)
	disktest.Scribble(t, m, 1, 10)
	o := backup.DiskOptions{Size: m.Size()}
	first, err := repotest.Save(t.Context(), r, "vm", m.Source(), o, backup.Options{})
	if err != nil {
		t.Fatal(err)
	}
	// Objects of another repository and of another backup are swapped in.
	foreign := mem.New()
	repotest.Init(t, foreign)
	own := names(t, store)
	n := disktest.NewMem(m.Size())
	disktest.Scribble(t, n, 2, 10)
	if _, err := repotest.Save(t.Context(), r, "vm", n.Source(), o, backup.Options{}); err != nil {
		t.Fatal(err)
	}
	other := func(kind string) []byte {
		if kind == "config" || kind == "slot" {
			for _, name := range names(t, foreign) {
				if strings.HasPrefix(name, kind) {
					return load(t, foreign, name)
				}
			}
		}
		for _, name := range names(t, store) {
			if !slices.Contains(own, name) && kindOf(t, store, name) == kind {
				return load(t, store, name)
			}
		}
		t.Fatalf("no other %s", kind)
		return nil
	}
	// Operations that must work in spite of the damage; other operations may fail.
	works := map[string]struct{ opens, restores bool }{
		"config": {}, "slot": {true, true}, "index": {true, true}, "tree pack": {true, false},
		"data pack": {true, false}, "snapshot": {true, true},
	}
	done := make(map[string]bool)
	for _, name := range own {
		kind := kindOf(t, store, name)
		if done[kind] { // one of each
			continue
		}
		done[kind] = true
		whole := load(t, store, name)
		for how, damage := range kindsOfDamage {
			t.Run(kind+" "+how, func(t *testing.T) {
				for i, p := range damage(whole, other(kind)) {
					hurt := clone(t, store)
					err := hurt.Delete(t.Context(), name)
					if err == nil && p != nil {
						err = hurt.Put(t.Context(), name, p)
					}
					if err != nil {
						t.Fatal(err)
					}
					w := works[kind]
					if kind == "config" && how == "missing" {
						w.opens, w.restores = true, true
					}
					live(t, hurt, chunk.ID(first.Disks[0].Root), m, i, w.opens, w.restores, kind == "snapshot" && p == nil)
				}
			})
		}
	}
	if len(done) != len(works) {
		t.Errorf("damaged %v", done)
	}
}

// live opens, restores, checks and backs up in a damaged repository.
func live(t *testing.T, store object.Store, root chunk.ID, want *disktest.Mem, i int, opens, restores, unseen bool) {
	t.Helper()
	r, err := repo.Open(t.Context(), store, repo.Options{Secret: repotest.Secret()})
	if err != nil {
		if opens || (!isDamage(err) && !errors.Is(err, slot.ErrWrongSecret)) {
			t.Errorf("%d: open: %v", i, err)
		}
		return
	}
	if err := r.LoadIndex(t.Context()); err != nil {
		t.Errorf("%d: index: %v", i, err)
		return
	}
	got := disktest.NewMem(want.Size())
	im, err := restore.Open(t.Context(), r, root)
	if err == nil {
		_, err = im.Run(t.Context(), got, restore.Options{})
	}
	switch {
	case err == nil:
		disktest.MustEqual(t, got, want)
	case restores || !isDamage(err):
		t.Errorf("%d: restore: %v", i, err)
	}
	rep, err := check.Run(t.Context(), repotest.Open(t, store), check.Options{ReadData: true})
	switch {
	case err != nil:
		t.Errorf("%d: check: %v", i, err)
	case len(rep.Findings) == 0 && !unseen:
		t.Errorf("%d: check finds nothing", i)
	}
	s, err := repotest.Save(t.Context(), repotest.Open(t, store), "vm", want.Source(), backup.DiskOptions{Size: want.Size(), Base: root}, backup.Options{Roots: []chunk.ID{root}, AdoptOrphans: true})
	if err != nil {
		t.Errorf("%d: a full read: %v", i, err)
	} else if chunk.ID(s.Disks[0].Root) != root {
		t.Errorf("%d: a full read gives another root", i)
	}
}

func names(t *testing.T, store object.Store) (all []string) {
	t.Helper()
	if err := store.List(t.Context(), "", func(i object.Info) error {
		all = append(all, i.Name)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	slices.Sort(all)
	return all
}

func load(t *testing.T, store object.Store, name string) []byte {
	t.Helper()
	p, err := store.Get(t.Context(), name, 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func clone(t *testing.T, store object.Store) object.Store {
	t.Helper()
	c := mem.New()
	for _, name := range names(t, store) {
		if err := c.Put(t.Context(), name, load(t, store, name)); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

func kindOf(t *testing.T, store object.Store, name string) string {
	t.Helper()
	switch {
	case strings.HasPrefix(name, "slots/"):
		return "slot"
	case strings.HasPrefix(name, "index/"):
		return "index"
	case strings.HasPrefix(name, "snapshots/"):
		return "snapshot"
	case strings.HasPrefix(name, "packs/"):
		if pack.Kind(load(t, store, name)[6]) == pack.Tree {
			return "tree pack"
		}
		return "data pack"
	}
	return name
}

// A lost index object is replaced by reading the packs, reported by check, and
// repaired by the next backup.
func TestLostIndex(t *testing.T) {
	for _, adopt := range []bool{false, true} {
		store := mem.New()
		r := repotest.Init(t, store)
		m := disktest.NewMem(5 << 20)
		disktest.Scribble(t, m, 1, 10)
		s, err := repotest.Save(t.Context(), r, "vm", m.Source(), backup.DiskOptions{Size: m.Size()}, backup.Options{})
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names(t, store) {
			if strings.HasPrefix(name, "index/") {
				if err := store.Delete(t.Context(), name); err != nil {
					t.Fatal(err)
				}
			}
		}
		root := chunk.ID(s.Disks[0].Root)
		repotest.MustRestore(t, repotest.Open(t, store), repo.HexID(root), m)
		rep, err := check.Run(t.Context(), repotest.Open(t, store), check.Options{})
		if err != nil || len(rep.Findings) != 1 || rep.Findings[0].Object != "index/" {
			t.Errorf("check: %+v %v", rep, err)
		}
		again, err := repotest.Save(t.Context(), repotest.Open(t, store), "vm", m.Source(),
			backup.DiskOptions{Size: m.Size(), Base: root}, backup.Options{Roots: []chunk.ID{root}, AdoptOrphans: adopt})
		if err != nil {
			t.Fatal(err)
		}
		if c := again.Disks[0].Counts; c.New != 0 {
			t.Errorf("%d bytes are stored again", c.New)
		}
		repotest.MustBeClean(t, repotest.Open(t, store))
	}
}

// Check reports the ranges of the disks that a damaged pack affects, in few lines,
// and a sound copy elsewhere resolves the damage.
func TestDamagedRanges(t *testing.T) {
	store := mem.New()
	r := repotest.Init(t, store)
	m := disktest.NewMem(8 << 20)
	if err := m.WriteAt(t.Context(), func() []byte {
		b := make([]byte, 8<<20)
		for i := int64(0); i < 4; i++ {
			_, _ = (&noise{size: 8 << 20, next: i}).Next(t.Context(), b[i*disk.BlockSize:])
		}
		return b
	}(), 0); err != nil {
		t.Fatal(err)
	}
	if _, err := repotest.Save(t.Context(), r, "vm", m.Source(), backup.DiskOptions{Size: m.Size()}, backup.Options{}); err != nil {
		t.Fatal(err)
	}
	for _, name := range names(t, store) {
		if kindOf(t, store, name) == "data pack" {
			p := load(t, store, name)
			p[len(p)-1] ^= 1 // the directory does not open
			if err := store.Put(t.Context(), name, p); err != nil {
				t.Fatal(err)
			}
		}
	}
	rep, err := check.Run(t.Context(), repotest.Open(t, store), check.Options{ReadData: true})
	if err != nil {
		t.Fatal(err)
	}
	ranges := 0
	for _, f := range rep.Findings {
		if strings.HasPrefix(f.Object, "snapshots/") && strings.Contains(f.Where, "xvda, bytes ") {
			ranges++
		}
	}
	if ranges == 0 || ranges > 8 {
		t.Errorf("%d ranges: %v", ranges, rep.Findings)
	}
}

// For every snapshot that needs chunks of a lost pack, check reports all lost
// ranges, and no others; also if block lists are shared.
func TestLostRanges(t *testing.T) {
	store := mem.New()
	r := repotest.Init(t, store)
	m := disktest.NewMem(8 << 20)
	write := func(seed byte, block int64) {
		p := make([]byte, disk.BlockSize)
		_, _ = rand.NewChaCha8([32]byte{seed}).Read(p)
		if err := m.WriteAt(t.Context(), p, block*disk.BlockSize); err != nil {
			t.Fatal(err)
		}
	}
	save := func() *repo.Snapshot {
		s, err := repotest.Save(t.Context(), r, "vm", m.Source(), backup.DiskOptions{Size: m.Size()}, backup.Options{})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	for i := range 3 {
		write(byte(i), int64(i))
	}
	first := save()
	old := make(map[string]bool)
	for _, name := range names(t, store) {
		old[name] = kindOf(t, store, name) == "data pack"
	}
	write(9, 1)
	second := save()
	again := save()
	for name, data := range old {
		if data {
			if err := store.Delete(t.Context(), name); err != nil {
				t.Fatal(err)
			}
		}
	}
	rep, err := check.Run(t.Context(), repotest.Open(t, store), check.Options{})
	if err != nil {
		t.Fatal(err)
	}
	lost := make(map[string][4]int64) // bytes of each block
	for _, l := range rep.Damage().Ranges {
		of := lost[l.Snapshot.ID()]
		for at := l.From; at < l.To; at++ {
			of[at/disk.BlockSize]++
		}
		lost[l.Snapshot.ID()] = of
	}
	const all = disk.BlockSize
	for id, want := range map[string][4]int64{first.ID(): {all, all, all}, second.ID(): {all, 0, all}, again.ID(): {all, 0, all}} {
		if lost[id] != want {
			t.Errorf("snapshot %s lost %v, want %v", id[:8], lost[id], want)
		}
	}
}
