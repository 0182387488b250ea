package formattest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"flag"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"xenkeep/chunkstore/chunk"
	"xenkeep/chunkstore/object/local"
	"xenkeep/chunkstore/slot"
	"xenkeep/internal/disk/disktest"
	"xenkeep/repo"
	"xenkeep/repo/backup"
	"xenkeep/repo/check"
	"xenkeep/repo/restore"
)

var update = flag.String("update", "", "create the kept repository of this `name` again; only before the form that it has is released")

// kept are the repositories that every later version must read and add to, by
// their folders in repo/testdata.
func kept() map[string]repo.Options {
	return map[string]repo.Options{
		"format1": {Features: []repo.Feature{}},
		"rabin":   {Features: []repo.Feature{}, Chunker: chunk.RabinParams()},
	}
}

// facts are the expected properties of one of them.
type facts struct {
	Password string
	Sums     map[string]string // SHA-256 of disks and records, by VM and device
}

// seededDisk is a disk of random text, random bytes and holes.
func seededDisk(seed uint64, size int64) *disktest.Mem {
	m := disktest.NewMem(size)
	r := rand.New(rand.NewPCG(seed, 0))
	for i := range 8 {
		p := make([]byte, 100+r.IntN(24<<10))
		for j := range p {
			p[j] = byte(r.Uint32())
			if i%2 == 0 {
				p[j] = 'a' + p[j]%4
			}
		}
		_ = m.WriteAt(context.Background(), p, r.Int64N(size-int64(len(p))))
	}
	return m
}

func all(t testing.TB, m *disktest.Mem) []byte {
	t.Helper()
	p := make([]byte, m.Size())
	if _, err := m.ReadAt(p, 0); err != nil {
		t.Fatal(err)
	}
	return p
}

func sum(p []byte) string {
	s := sha256.Sum256(p)
	return hex.EncodeToString(s[:])
}

// fill backs up two disks, the second day of one of them and a record.
func fill(t testing.TB, r *repo.Repository, now time.Time) map[string][]byte {
	t.Helper()
	want := make(map[string][]byte)
	a, b := seededDisk(1, 9<<20+512), seededDisk(2, 1<<20)
	var base chunk.ID
	for _, name := range []string{"day one", "day two"} {
		s := &repo.Snapshot{Origin: "image", VM: repo.Named{UUID: "vm", Name: name}, DataTime: now, Complete: true}
		err := backup.WithRun(t.Context(), r, backup.Options{Job: "job", Machine: "machine", Roots: []chunk.ID{base}, Now: func() time.Time { return now }},
			func(ctx context.Context, run *backup.Run) error {
				for _, d := range []struct {
					device string
					m      *disktest.Mem
				}{{"xvda", a}, {"xvdb", b}} {
					o := backup.DiskOptions{Size: d.m.Size()}
					if d.device == "xvda" {
						o.Base = base
					}
					res, err := run.BackupDisk(ctx, d.m.Source(), o)
					if err != nil {
						return err
					}
					if d.device == "xvda" {
						base = res.Root
					}
					want[name+" "+d.device] = all(t, d.m)
					s.Disks = append(s.Disks, repo.Disk{Device: d.device, VDI: d.device, Size: o.Size, Root: repo.HexID(res.Root), Method: "full", Counts: res.Counts})
				}
				want[name+" vm"] = []byte(`{"name_label":"` + name + `"}`)
				rec, err := run.Record(ctx, "vm", want[name+" vm"])
				if err != nil {
					return err
				}
				s.Records = []repo.Record{rec}
				run.Add(s)
				return run.Flush(ctx)
			})
		if err != nil {
			t.Fatal(err)
		}
		if err := a.WriteAt(t.Context(), []byte("changed"), 5<<20); err != nil {
			t.Fatal(err)
		}
		now = now.Add(24 * time.Hour)
	}
	return want
}

func equal(t testing.TB, got, want map[string][]byte) {
	t.Helper()
	if len(got) != len(want) {
		t.Errorf("%d disks and records, want %d", len(got), len(want))
	}
	for name, p := range want {
		if !bytes.Equal(got[name], p) {
			t.Errorf("%s differs", name)
		}
	}
}

// A reader that was written from docs/format.md alone reads every disk, with a
// password and with a key file.
func TestPageSuffices(t *testing.T) {
	keyFile := bytes.Repeat([]byte{7}, 32)
	for name, secret := range map[string]slot.Secret{"password": {Password: []byte("correct horse")}, "key file": {KeyFile: keyFile}} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "r")
			store, err := local.Create(dir)
			if err != nil {
				t.Fatal(err)
			}
			r, err := repo.Init(t.Context(), store, repo.Options{Secret: secret})
			if err != nil {
				t.Fatal(err)
			}
			want := fill(t, r, time.Unix(1e9, 0))
			got, err := readRepository(dir, secret.Password, secret.KeyFile)
			if err != nil {
				t.Fatal(err)
			}
			equal(t, got, want)
			if _, err := readRepository(dir, []byte("wrong"), make([]byte, 32)); err == nil {
				t.Fatal("a wrong secret opens the repository")
			}
		})
	}
}

// generate creates a kept repository.
func generate(t *testing.T, folder string, o repo.Options) {
	if err := os.RemoveAll(folder); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	store, err := local.Create(folder + "/repository")
	if err != nil {
		t.Fatal(err)
	}
	f := facts{Password: "format one", Sums: make(map[string]string)}
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	o.Secret, o.Now = slot.Secret{Password: []byte(f.Password)}, func() time.Time { return now }
	r, err := repo.Init(t.Context(), store, o)
	if err != nil {
		t.Fatal(err)
	}
	for name, p := range fill(t, r, now) {
		f.Sums[name] = sum(p)
	}
	p, err := json.MarshalIndent(f, "", "\t")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(folder+"/facts.json", append(p, '\n'), 0o644); err != nil {
		t.Fatal(err)
	}
}

// This version reads the kept repositories in the same way as the versions that
// wrote them, and can add a further backup.
func TestFormat1ForEver(t *testing.T) {
	for name, o := range kept() {
		t.Run(name, func(t *testing.T) {
			folder := "../testdata/" + name
			if *update == name {
				generate(t, folder, o)
			}
			keptForEver(t, folder)
		})
	}
}

func keptForEver(t *testing.T, kept string) {
	var f facts
	p, err := os.ReadFile(kept + "/facts.json")
	if err == nil {
		err = json.Unmarshal(p, &f)
	}
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "r")
	if err := os.CopyFS(dir, os.DirFS(kept+"/repository")); err != nil {
		t.Fatal(err)
	}
	var size int64
	_ = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if i, ierr := d.Info(); err == nil && ierr == nil && !d.IsDir() {
			size += i.Size()
		}
		return err
	})
	if size > 300<<10 {
		t.Errorf("the kept repository has %d bytes", size)
	}

	store, err := local.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	r, err := repo.Open(t.Context(), store, repo.Options{Secret: slot.Secret{Password: []byte(f.Password)}})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.LoadIndex(t.Context()); err != nil {
		t.Fatal(err)
	}
	got := make(map[string]string)
	read := func() (n int) {
		snapshots, bad, err := r.Snapshots(t.Context())
		if err != nil || len(bad) > 0 {
			t.Fatalf("%d bad snapshots: %v", len(bad), err)
		}
		for _, s := range snapshots {
			for _, d := range s.Disks {
				im, err := restore.Open(t.Context(), r, chunk.ID(d.Root))
				if err != nil {
					t.Fatal(err)
				}
				m := disktest.NewMem(im.Size())
				if _, err := im.Run(t.Context(), m, restore.Options{}); err != nil {
					t.Fatal(err)
				}
				got[s.VM.Name+" "+d.Device] = sum(all(t, m))
			}
			for _, rec := range s.Records {
				p, err := r.ReadRecord(t.Context(), s, rec.Name)
				if err != nil {
					t.Fatal(err)
				}
				got[s.VM.Name+" "+rec.Name] = sum(p)
			}
		}
		return len(snapshots)
	}
	clean := func() {
		t.Helper()
		rep, err := check.Run(t.Context(), r, check.Options{ReadData: true})
		if err != nil {
			t.Fatal(err)
		}
		for _, finding := range rep.Findings {
			t.Errorf("check: %v", finding)
		}
	}
	n := read()
	for name, want := range f.Sums {
		if got[name] != want {
			t.Errorf("%s: sum %s, want %s", name, got[name], want)
		}
	}
	clean()
	before := r.Store().Index().Stats().Packs
	fill(t, r, time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC))
	if read() != n+2 {
		t.Error("the new snapshots are not there")
	}
	for name, want := range f.Sums {
		if got[name] != want {
			t.Errorf("after a further backup: %s: sum %s, want %s", name, got[name], want)
		}
	}
	clean()
	if after := r.Store().Index().Stats().Packs; after != before {
		t.Errorf("the same disks again made %d packs: cuts or IDs have changed", after-before)
	}
}
