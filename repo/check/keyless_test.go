package check_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"xenkeep/chunkstore/object/mem"
	"xenkeep/internal/disk/disktest"
	"xenkeep/repo"
	"xenkeep/repo/backup"
	"xenkeep/repo/check"
	"xenkeep/repo/repotest"
)

func mustKeyless(t *testing.T, o check.KeylessOptions, store *mem.Store) *check.Report {
	t.Helper()
	rep, err := check.Keyless(t.Context(), store, o)
	if err != nil {
		t.Fatal(err)
	}
	return rep
}

// Without any key, damage of each object and each missing pack is found; packs that
// a pruner has announced as deleted are not reported as missing.
func TestKeyless(t *testing.T) {
	store := mem.New()
	r := repotest.Init(t, store)
	m := disktest.NewMem(3 << 20)
	disktest.Scribble(t, m, 1, 10)
	if _, err := repotest.Save(t.Context(), r, "vm", m.Source(), backup.DiskOptions{Size: m.Size()}, backup.Options{}); err != nil {
		t.Fatal(err)
	}
	if err := r.PutNote(t.Context(), &repo.Note{Kind: "protect", Time: time.Now()}); err != nil {
		t.Fatal(err)
	}
	rep := mustKeyless(t, check.KeylessOptions{}, store)
	if len(rep.Findings) > 0 || rep.Snapshots != 1 || rep.PacksRead != rep.Packs || rep.Packs == 0 || rep.Read != rep.PackBytes {
		t.Fatalf("a sound repository: %+v", rep)
	}
	for _, name := range names(t, store) {
		whole := load(t, store, name)
		for _, i := range []int{0, len(whole) / 2, len(whole) - 1} {
			p := slices.Clone(whole)
			p[i] ^= 4
			put(t, store, name, p)
			if rep := mustKeyless(t, check.KeylessOptions{}, store); len(rep.Findings) == 0 {
				t.Errorf("%s: a bit flipped in byte %d of %d is not found", name, i, len(p))
			}
		}
		put(t, store, name, whole)
	}
	var gone string
	for _, name := range names(t, store) {
		if strings.HasPrefix(name, "packs/") {
			gone = name
		}
	}
	if err := store.Delete(t.Context(), gone); err != nil {
		t.Fatal(err)
	}
	rep = mustKeyless(t, check.KeylessOptions{}, store)
	if len(rep.Findings) != 1 || rep.Findings[0].Object != gone {
		t.Errorf("a missing pack: %v", rep.Findings)
	}
	list := &repo.Condemned{Time: time.Now(), Packs: []string{gone[len(gone)-64:]}, Deleted: true}
	if err := r.PutCondemned(t.Context(), list); err != nil {
		t.Fatal(err)
	}
	if rep = mustKeyless(t, check.KeylessOptions{}, store); len(rep.Findings) != 0 {
		t.Errorf("a pack that a pruner deleted: %v", rep.Findings)
	}
	// With a key, the pack itself is not reported, but the data that snapshots need
	// of it is.
	full, err := check.Run(t.Context(), repotest.Open(t, store), check.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range full.Findings {
		if !strings.HasPrefix(f.Object, "snapshots/") {
			t.Errorf("a pack that a pruner deleted: %v", f)
		}
	}
	if len(full.Findings) == 0 {
		t.Error("what a snapshot lost is not found")
	}
}

func put(t *testing.T, store *mem.Store, name string, p []byte) {
	t.Helper()
	err := store.Delete(t.Context(), name)
	if err == nil {
		err = store.Put(t.Context(), name, p)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// With a budget, checks rotate through the packs: those read longest ago come
// first, also if packs are added meanwhile, and a damaged proof file does no harm.
func TestBudget(t *testing.T) {
	store := mem.New()
	repotest.Init(t, store)
	save := func(seed uint64) {
		m := disktest.NewMem(2 << 20)
		disktest.Scribble(t, m, seed, 10)
		if _, err := repotest.Save(t.Context(), repotest.Open(t, store), "vm", m.Source(), backup.DiskOptions{Size: m.Size()}, backup.Options{}); err != nil {
			t.Fatal(err)
		}
	}
	for seed := range uint64(4) {
		save(seed)
	}
	dir := t.TempDir()
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	one := func(o check.Options) *check.Report {
		t.Helper()
		r, err := repo.Open(t.Context(), store, repo.Options{Secret: repotest.Secret(), CacheDir: dir})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = r.Store().Index().Close() }()
		o.ReadData, o.Now = true, func() time.Time { return now }
		rep, err := check.Run(t.Context(), r, o)
		if err != nil || len(rep.Findings) > 0 {
			t.Fatal(rep, err)
		}
		return rep
	}
	all := 8 // four data packs, four tree packs
	for i := range all {
		rep := one(check.Options{Budget: 1})
		if rep.PacksRead != 1 || rep.NeverRead != all-1-i {
			t.Fatalf("round %d: %d read, %d never read of %d", i, rep.PacksRead, rep.NeverRead, rep.Packs)
		}
		if !rep.OldestProof.Equal(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)) {
			t.Errorf("round %d: oldest proof of %v", i, rep.OldestProof)
		}
		now = now.Add(time.Hour)
	}
	// In each rotation, the oldest proof is no older than the rotation.
	for range 3 {
		if rep := one(check.Options{Budget: 1}); now.Sub(*rep.OldestProof) != time.Duration(all-1)*time.Hour {
			t.Errorf("at %v the oldest proof is of %v", now, rep.OldestProof)
		}
		now = now.Add(time.Hour)
	}
	save(9)
	if rep := one(check.Options{Budget: 1}); rep.NeverRead != 1 {
		t.Errorf("what is new is not read first: %d never read", rep.NeverRead)
	}
	read := 0
	for i := range 3 {
		read += one(check.Options{Subset: check.Subset{Part: i + 1, Of: 3}}).PacksRead
	}
	if read != all+2 {
		t.Errorf("three thirds are %d packs of %d", read, all+2)
	}
	if rep := one(check.Options{Subset: check.Subset{Percent: 30}}); rep.Read == 0 || rep.Read > rep.PackBytes*30/100 {
		t.Errorf("30 %% are %d bytes of %d", rep.Read, rep.PackBytes)
	}
	if rep := one(check.Options{}); rep.NeverRead != 0 || !rep.OldestProof.Equal(now) {
		t.Errorf("all read: %d never, since %v", rep.NeverRead, rep.OldestProof)
	}
}

func TestParseSubset(t *testing.T) {
	size := func(string) (int64, error) { return 10, nil }
	for text, want := range map[string]check.Subset{
		"5%": {Percent: 5}, "0.5%": {Percent: 0.5}, "3/7": {Part: 3, Of: 7}, "10G": {Bytes: 10},
	} {
		if got, err := check.ParseSubset(text, size); err != nil || got != want {
			t.Errorf("%s: %+v, %v", text, got, err)
		}
	}
	for _, text := range []string{"0%", "101%", "NaN%", "x%", "0/7", "8/7", "a/b", "-1/7"} {
		if got, err := check.ParseSubset(text, size); err == nil {
			t.Errorf("%s: %+v", text, got)
		}
	}
}

// A check while a backup ends, and a check of single snapshots.
func TestCheckSnapshot(t *testing.T) {
	store := mem.New()
	r := repotest.Init(t, store)
	var snaps []*repo.Snapshot
	for seed := range uint64(2) {
		m := disktest.NewMem(2 << 20)
		disktest.Scribble(t, m, seed, 10)
		s, err := repotest.Save(t.Context(), r, "vm", m.Source(), backup.DiskOptions{Size: m.Size()}, backup.Options{})
		if err != nil {
			t.Fatal(err)
		}
		snaps = append(snaps, s)
	}
	before := names(t, store)
	m := disktest.NewMem(2 << 20)
	disktest.Scribble(t, m, 5, 10)
	hurt, err := repotest.Save(t.Context(), r, "vm", m.Source(), backup.DiskOptions{Size: m.Size()}, backup.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names(t, store) {
		if !slices.Contains(before, name) && kindOf(t, store, name) == "data pack" {
			p := load(t, store, name)
			p[len(p)/2] ^= 1
			put(t, store, name, p)
		}
	}
	for i, s := range append(snaps, hurt) {
		rep, err := check.Run(t.Context(), repotest.Open(t, store), check.Options{ReadData: true, Snapshots: []*repo.Snapshot{s}})
		if err != nil {
			t.Fatal(err)
		}
		if sound := len(rep.Findings) == 0; sound != (i < 2) || rep.Snapshots != 1 {
			t.Errorf("snapshot %d: %v", i, rep.Findings)
		}
	}
}
