package check_test

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"xenkeep/chunkstore/chunk"
	"xenkeep/chunkstore/object"
	"xenkeep/chunkstore/object/mem"
	"xenkeep/internal/disk"
	"xenkeep/internal/disk/disktest"
	"xenkeep/repo"
	"xenkeep/repo/backup"
	"xenkeep/repo/repotest"
)

// granules returns the 64 KiB ranges in which two disks differ, as changed-block
// tracking reports them, and some more that were written with the same content.
func granules(old, now *disktest.Mem, r *rand.Rand) []disk.Extent {
	const size = 64 << 10
	a, b := make([]byte, size), make([]byte, size)
	var out []disk.Extent
	for off := int64(0); off < now.Size(); off += size {
		n := min(size, now.Size()-off)
		_, _ = now.ReadAt(a[:n], off)
		clear(b)
		_, _ = old.ReadAt(b[:n], off)
		if bytes.Equal(a[:n], b[:n]) && r.IntN(50) != 0 {
			continue
		}
		if k := len(out); k > 0 && out[k-1].End() == off {
			out[k-1].Length += n
		} else {
			out = append(out, disk.Extent{Offset: off, Length: n})
		}
	}
	return out
}

func changedBackup(t *testing.T, r *repo.Repository, m *disktest.Mem, o backup.ChangedOptions) (*repo.Snapshot, error) {
	t.Helper()
	s := &repo.Snapshot{Origin: "image", VM: repo.Named{UUID: "vm", Name: "vm"}, DataTime: time.Now(), Complete: true}
	err := backup.WithRun(t.Context(), r, backup.Options{Roots: []chunk.ID{o.Base}}, func(ctx context.Context, run *backup.Run) error {
		d, err := run.BackupChanged(ctx, m.Reader(), o)
		if err != nil {
			return err
		}
		s.Disks = []repo.Disk{{Device: "xvda", VDI: "vdi", Size: o.Size, Root: repo.HexID(d.Root), Method: "cbt", Counts: d.Counts}}
		run.Add(s)
		return run.Flush(ctx)
	})
	return s, err
}

// Reading only the changes produces the root of a full read, for disks of odd sizes
// that grow, and for blocks that become zero or stop being zero.
func TestChanged(t *testing.T) {
	n := 60
	if testing.Short() {
		n = 10
	}
	for seed := range uint64(n) {
		rnd := rand.New(rand.NewPCG(seed, 4))
		size := 1 + rnd.Int64N(9<<20)
		old := disktest.NewMem(size)
		disktest.Scribble(t, old, seed, 10)
		r := repotest.Init(t, mem.New())
		base, err := repotest.Save(t.Context(), r, "vm", old.Source(), backup.DiskOptions{Size: size}, backup.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if rnd.IntN(3) == 0 {
			size += rnd.Int64N(5 << 20)
		}
		m := old.Resized(size)
		disktest.Scribble(t, m, seed+1000, rnd.IntN(4))
		if rnd.IntN(3) == 0 && size > 3<<20 {
			if err := m.WriteAt(t.Context(), make([]byte, 2<<20), 512*rnd.Int64N((size-2<<20)/512)); err != nil {
				t.Fatal(err)
			}
		}
		o := backup.ChangedOptions{Size: size, Base: chunk.ID(base.Disks[0].Root), Changed: granules(old, m, rnd)}
		if rnd.IntN(2) == 0 {
			o.Verify = backup.Sample(2, int64(seed))
		}
		s, err := changedBackup(t, r, m, o)
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		full, err := repotest.Save(t.Context(), r, "vm", m.Source(), backup.DiskOptions{Size: size}, backup.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if s.Disks[0].Root != full.Disks[0].Root {
			t.Fatalf("seed %d: the root is not that of a full read", seed)
		}
		if full.Disks[0].Counts.New != 0 {
			t.Fatalf("seed %d: the full read stores %d bytes more", seed, full.Disks[0].Counts.New)
		}
		repotest.MustRestore(t, r, s.Disks[0].Root, m)
		repotest.MustBeClean(t, r)
	}
}

// slowReader takes some time for each read, and slowStore for each put.
type slowReader struct {
	disk.Reader
	after time.Duration
}

func (r slowReader) ReadAt(ctx context.Context, p []byte, off int64) error {
	time.Sleep(r.after)
	return r.Reader.ReadAt(ctx, p, off)
}

type slowStore struct {
	object.Store
	after time.Duration
}

func (s *slowStore) Put(ctx context.Context, name string, data []byte) error {
	if strings.HasPrefix(name, "packs/") {
		time.Sleep(s.after)
	}
	return s.Store.Put(ctx, name, data)
}

// A backup of changed blocks reports whether it waited for the disk or for the
// storage. It has one worker, because the time of a synctest bubble does not
// advance while a goroutine waits for a mutex.
func TestChangedWaited(t *testing.T) {
	old := disktest.NewMem(128 << 20)
	disktest.Scribble(t, old, 1, 20)
	store := &slowStore{Store: mem.New()}
	r := repotest.Init(t, store)
	base, err := repotest.Save(t.Context(), r, "vm", old.Source(), backup.DiskOptions{Size: old.Size()}, backup.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for i, c := range []struct {
		source, storage time.Duration
		blames          func(w backup.Timing) time.Duration
	}{
		{time.Second, 0, func(w backup.Timing) time.Duration { return w.Source }},
		{0, 20 * time.Second, func(w backup.Timing) time.Duration { return w.Storage }},
	} {
		m := disktest.NewMem(old.Size())
		noise := make([]byte, old.Size())
		_, _ = rand.NewChaCha8([32]byte{byte(i)}).Read(noise)
		if err := m.WriteAt(t.Context(), noise, 0); err != nil {
			t.Fatal(err)
		}
		store.after = c.storage
		synctest.Test(t, func(t *testing.T) {
			var d backup.DiskResult
			began := time.Now()
			err := backup.WithRun(t.Context(), r, backup.Options{Roots: []chunk.ID{chunk.ID(base.Disks[0].Root)}, Workers: 1, Uploads: 1}, func(ctx context.Context, run *backup.Run) (err error) {
				d, err = run.BackupChanged(ctx, slowReader{m.Reader(), c.source}, backup.ChangedOptions{
					Size: m.Size(), Base: chunk.ID(base.Disks[0].Root), Changed: []disk.Extent{{Length: m.Size()}},
				})
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			w, wall := d.Waited, time.Since(began)
			if all := w.Source + w.CPU + w.Storage; c.blames(w) < all*9/10 || all > wall || wall < 5*time.Second {
				t.Errorf("case %d: %+v of %v", i, w, wall)
			}
		})
	}
}

// A change that was not reported is detected if the sample contains its block, and
// it is never stored as a valid backup.
func TestUnsaidChange(t *testing.T) {
	old := disktest.NewMem(8 << 20)
	disktest.Scribble(t, old, 1, 20)
	r := repotest.Init(t, mem.New())
	base, err := repotest.Save(t.Context(), r, "vm", old.Source(), backup.DiskOptions{Size: old.Size()}, backup.Options{})
	if err != nil {
		t.Fatal(err)
	}
	m := old.Clone()
	if err := m.WriteAt(t.Context(), []byte("changed"), 5<<20); err != nil {
		t.Fatal(err)
	}
	o := backup.ChangedOptions{Size: m.Size(), Base: chunk.ID(base.Disks[0].Root), Verify: backup.Sample(1, 0)}
	if _, err := changedBackup(t, r, m, o); !errors.Is(err, backup.ErrMissedChange) {
		t.Fatalf("an unsaid change: %v", err)
	}
	all, _, err := r.Snapshots(t.Context())
	if err != nil || len(all) != 1 {
		t.Fatal(len(all), err)
	}
}

// Of a large disk only the changes are read, and a sample costs its share.
func TestChangedReadsLittle(t *testing.T) {
	m := disktest.NewMem(1 << 40)
	for i := range int64(100) {
		if err := m.WriteAt(t.Context(), bytes.Repeat([]byte{byte(i + 1)}, 100_000), i*9_999_999_999); err != nil {
			t.Fatal(err)
		}
	}
	r := repotest.Init(t, mem.New())
	base, err := repotest.Save(t.Context(), r, "vm", m.Source(), backup.DiskOptions{Size: m.Size()}, backup.Options{})
	if err != nil {
		t.Fatal(err)
	}
	changed := []disk.Extent{{Offset: 9_999_999_999 / 65536 * 65536, Length: 65536}, {Offset: 1 << 39, Length: 65536}}
	for _, e := range changed {
		if err := m.WriteAt(t.Context(), []byte("new"), e.Offset+60_000); err != nil {
			t.Fatal(err)
		}
	}
	o := backup.ChangedOptions{Size: m.Size(), Base: chunk.ID(base.Disks[0].Root), Changed: changed}
	// Blocks of many GiB are compared concurrently.
	o.Verify = func(block int64) bool { return m.Holds(block) }
	verified, err := changedBackup(t, r, m, o)
	if err != nil {
		t.Fatal(err)
	}
	o.Verify = nil
	s, err := changedBackup(t, r, m, o)
	if err != nil {
		t.Fatal(err)
	}
	if s.Disks[0].Root != verified.Disks[0].Root {
		t.Error("comparing changes the root")
	}
	if a, b := s.Disks[0].Counts.Changed, verified.Disks[0].Counts.Changed; a != b {
		t.Errorf("%d bytes changed, %d where others are compared", a, b)
	}
	if got := s.Disks[0].Counts.Read; got > 4*2*65536 {
		t.Errorf("%d bytes are read for two granules", got)
	}
	full, err := repotest.Save(t.Context(), r, "vm", m.Source(), backup.DiskOptions{Size: m.Size()}, backup.Options{})
	if err != nil || full.Disks[0].Root != s.Disks[0].Root {
		t.Fatalf("the root is not that of a full read: %v", err)
	}
}
