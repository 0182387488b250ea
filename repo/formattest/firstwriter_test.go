package formattest

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"

	"xenkeep/chunkstore/object/local"
	"xenkeep/chunkstore/pack"
	"xenkeep/chunkstore/seal"
	"xenkeep/chunkstore/slot"
	"xenkeep/internal/disk/disktest"
	"xenkeep/repo"
	"xenkeep/repo/backup"
	"xenkeep/repo/check"
	"xenkeep/repo/prune"
)

// keptFirst is a repository with the features writer-trust and first-writer, which
// every later version must read: it has a write-only key, proofs, and packs of copied
// blobs that name the writer which stored them first.
const keptFirst = "../testdata/first-writer"

// firstFacts are the expected properties of it.
type firstFacts struct {
	Password string
	Writer   string            // ID of the write-only key
	Sums     map[string]string // SHA-256 of disks and records, by VM and device
}

// machine saves two disks as one snapshot, or the second alone.
func machine(t *testing.T, r *repo.Repository, now time.Time, devices ...string) *repo.Snapshot {
	t.Helper()
	disks := map[string]*disktest.Mem{"xvda": seededDisk(11, 2<<20), "xvdb": seededDisk(12, 1<<20)}
	s := &repo.Snapshot{Origin: "image", VM: repo.Named{UUID: "vm", Name: "vm"}, DataTime: now, Complete: true}
	err := backup.WithRun(t.Context(), r, backup.Options{Job: "job", Machine: "machine", Now: func() time.Time { return now }}, func(ctx context.Context, run *backup.Run) error {
		for _, device := range devices {
			m := disks[device]
			res, err := run.BackupDisk(ctx, m.Source(), backup.DiskOptions{Size: m.Size()})
			if err != nil {
				return err
			}
			s.Disks = append(s.Disks, repo.Disk{Device: device, VDI: device, Size: m.Size(), Root: repo.HexID(res.Root), Method: "full", Counts: res.Counts})
		}
		run.Add(s)
		return run.Flush(ctx)
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// copied makes a repository in dir in which a prune has copied blobs of a write-only
// key.
func copied(t *testing.T, dir string, features []repo.Feature) (f firstFacts, r *repo.Repository) {
	t.Helper()
	store, err := local.Create(dir)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Date(2026, 12, 1, 0, 0, 0, 0, time.UTC)
	f = firstFacts{Password: "first writer", Sums: make(map[string]string)}
	if r, err = repo.Init(t.Context(), store, repo.Options{Secret: slot.Secret{Password: []byte(f.Password)}, Now: func() time.Time { return now }, Features: features}); err != nil {
		t.Fatal(err)
	}
	weak := slot.Secret{KeyFile: make([]byte, 32)}
	if f.Writer, err = r.AddSlot(t.Context(), weak, "machine", seal.WriteOnly, now); err != nil {
		t.Fatal(err)
	}
	w, err := repo.Open(t.Context(), store, repo.Options{Secret: weak, CacheDir: t.TempDir()})
	if err == nil {
		err = w.LoadIndex(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	both := machine(t, w, now, "xvda", "xvdb")
	machine(t, w, now.Add(time.Hour), "xvdb")
	m := seededDisk(12, 1<<20)
	f.Sums["vm xvdb"] = sum(all(t, m))
	if err := w.DeleteSnapshot(t.Context(), both); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		now = now.Add(72 * time.Hour)
		p, err := prune.New(t.Context(), r, prune.Options{MaxRepack: 1 << 30, Now: func() time.Time { return now }})
		if err == nil {
			_, err = p.Execute(t.Context())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return f, r
}

// firsts returns the packs that name first writers, and whether the given one is
// among these.
func firsts(t *testing.T, r *repo.Repository, writer string) (n int, named bool) {
	t.Helper()
	for p := range r.Store().Index().Packs() {
		head, err := r.Objects().Get(t.Context(), pack.ID(p.ID).ObjectName(), 0, 24)
		if err != nil {
			t.Fatal(err)
		}
		if !pack.NamesFirstWriters(head) {
			continue
		}
		n++
		d, err := r.Store().ReadDirectory(t.Context(), p.ID, p.Size)
		if err != nil {
			t.Fatal(err)
		}
		for _, w := range d.FirstWriters() {
			named = named || w.String() == writer
		}
	}
	return n, named
}

// A prune that copies blobs keeps the ID of the key that stored them first, and
// key packs finds them. Without the feature, packs are of the first version.
func TestFirstWriter(t *testing.T) {
	f, r := copied(t, t.TempDir()+"/r", nil)
	if n, named := firsts(t, r, f.Writer); n == 0 || !named {
		t.Errorf("%d packs name first writers, the right one: %v", n, named)
	}
	found := 0
	if err := r.PacksOf(t.Context(), f.Writer, func(string, int64) error { found++; return nil }); err != nil || found == 0 {
		t.Errorf("%d packs are found by the writer's ID, %v", found, err)
	}
	// Copying once more keeps the first writer too: the pack is now of the full key.
	old, r1 := copied(t, t.TempDir()+"/r", []repo.Feature{})
	if n, _ := firsts(t, r1, old.Writer); n != 0 {
		t.Errorf("without the feature, %d packs name first writers", n)
	}
	mustBeClean(t, r)
	mustBeClean(t, r1)
}

func mustBeClean(t *testing.T, r *repo.Repository) {
	t.Helper()
	rep, err := check.Run(t.Context(), r, check.Options{ReadData: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, finding := range rep.Findings {
		t.Errorf("check: %v", finding)
	}
}

// This version reads the kept repository, and so does the reader that was written
// from docs/format.md alone.
func TestFirstWriterForEver(t *testing.T) {
	if *update == "first-writer" {
		if err := os.RemoveAll(keptFirst); err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(keptFirst, 0o755); err != nil {
			t.Fatal(err)
		}
		f, _ := copied(t, keptFirst+"/repository", nil)
		p, err := json.MarshalIndent(f, "", "\t")
		if err == nil {
			err = os.WriteFile(keptFirst+"/facts.json", append(p, '\n'), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	var f firstFacts
	p, err := os.ReadFile(keptFirst + "/facts.json")
	if err == nil {
		err = json.Unmarshal(p, &f)
	}
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "r")
	if err := os.CopyFS(dir, os.DirFS(keptFirst+"/repository")); err != nil {
		t.Fatal(err)
	}
	got, err := readRepository(dir, []byte(f.Password), nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range f.Sums {
		if sum(got[name]) != want {
			t.Errorf("the reader of the page: %s differs", name)
		}
	}
	store, err := local.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	r, err := repo.Open(t.Context(), store, repo.Options{Secret: slot.Secret{Password: []byte(f.Password)}})
	if err == nil {
		err = r.LoadIndex(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	if n, named := firsts(t, r, f.Writer); n == 0 || !named {
		t.Errorf("%d packs name first writers, the right one: %v", n, named)
	}
	mustBeClean(t, r)
	fill(t, r, time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC))
	mustBeClean(t, r)
}
