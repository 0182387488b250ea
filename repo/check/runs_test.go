package check_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"xenkeep/chunkstore/chunk"
	"xenkeep/chunkstore/object"
	"xenkeep/chunkstore/object/local"
	"xenkeep/chunkstore/object/mem"
	"xenkeep/chunkstore/object/objecttest"
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
	"xenkeep/repo/tree"
)

// noise is a disk whose every step-th block contains random bytes; the others are
// holes.
type noise struct {
	size, step, next int64
	part             int // number of bytes of a block that are not zero; 0 means all
}

func (s *noise) Size() int64 { return s.size }

func (s *noise) Next(_ context.Context, buf []byte) (disk.Extent, error) {
	if s.next >= disk.Blocks(s.size) {
		return disk.Extent{}, io.EOF
	}
	e := disk.Extent{Offset: s.next * disk.BlockSize, Length: int64(disk.BlockLength(s.size, s.next))}
	src := rand.NewChaCha8([32]byte{byte(s.next), byte(s.next >> 8), byte(s.next >> 16), byte(s.next >> 24)})
	n := int(e.Length)
	if s.part > 0 {
		clear(buf[:n])
		n = min(n, s.part)
	}
	_, _ = src.Read(buf[:n])
	s.next += max(s.step, 1)
	return e, nil
}

// doomed kills the process once half of the bytes were put.
type doomed struct {
	object.Store
	half int64
	put  atomic.Int64
	die  func()
}

func (d *doomed) Put(ctx context.Context, name string, data []byte) error {
	err := d.Store.Put(ctx, name, data)
	if err == nil && d.put.Add(int64(len(data))) >= d.half {
		d.die()
	}
	return err
}

const childDir, childSize = "XENKEEP_TEST_KILLED", "XENKEEP_TEST_KILLED_SIZE"

// TestKilledChild is the process that TestInterrupted kills.
func TestKilledChild(t *testing.T) {
	dir := os.Getenv(childDir)
	if dir == "" {
		return // not a test of its own: TestInterrupted runs it as a child
	}
	size, err := strconv.ParseInt(os.Getenv(childSize), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	store, err := local.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	r := repotest.Open(t, &doomed{Store: store, half: size / 2, die: func() { _ = syscall.Kill(os.Getpid(), syscall.SIGKILL) }})
	_, err = repotest.Save(t.Context(), r, "vm", &noise{size: size}, backup.DiskOptions{Size: size}, backup.Options{})
	t.Fatalf("not killed: %v", err)
}

// A backup that is killed or cancelled after half of the upload loses nothing that
// was uploaded.
func TestInterrupted(t *testing.T) {
	if testing.Short() {
		t.Skip("SKIP: moves hundreds of megabytes")
	}
	size := int64(300 << 20)
	if s, err := strconv.ParseInt(os.Getenv("XENKEEP_TEST_INTERRUPTED_MB"), 10, 64); err == nil {
		size = s << 20
	}
	again := func(t *testing.T, store object.Store) {
		t.Helper()
		counted := objecttest.NewFaulty(store)
		r := repotest.Open(t, counted)
		counted.ResetCounts()
		s, err := repotest.Save(t.Context(), r, "vm", &noise{size: size}, backup.DiskOptions{Size: size}, backup.Options{AdoptOrphans: true})
		if err != nil {
			t.Fatal(err)
		}
		share := float64(counted.Bytes(objecttest.Put)) / float64(size)
		t.Logf("the second run uploads %.1f %%", 100*share)
		if share > 0.55 {
			t.Errorf("the second run uploads %.1f %% of the disk", 100*share)
		}
		if claims, _, err := r.Claims(t.Context()); err != nil || len(claims) > 1 {
			t.Errorf("%d claims: %v", len(claims), err)
		}
		im, err := restore.Open(t.Context(), r, chunk.ID(s.Disks[0].Root))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := im.Run(t.Context(), &noiseSink{t: t, size: size}, restore.Options{}); err != nil {
			t.Fatal(err)
		}
	}
	t.Run("killed", func(t *testing.T) {
		dir := t.TempDir() + "/r"
		store, err := local.Create(dir)
		if err != nil {
			t.Fatal(err)
		}
		repotest.Init(t, store)
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestKilledChild$")
		cmd.Env = append(os.Environ(), childDir+"="+dir, childSize+"="+fmt.Sprint(size))
		out, err := cmd.CombinedOutput()
		if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || status.Signal() != syscall.SIGKILL {
			t.Fatalf("child ended with %v: %s", err, out)
		}
		again(t, store)
	})
	t.Run("cancelled", func(t *testing.T) {
		store := mem.New()
		repotest.Init(t, store)
		ctx, cancel := context.WithCancel(t.Context())
		r := repotest.Open(t, &doomed{Store: store, half: size / 2, die: cancel})
		_, err := repotest.Save(ctx, r, "vm", &noise{size: size}, backup.DiskOptions{Size: size}, backup.Options{})
		if !errors.Is(err, context.Canceled) {
			t.Fatalf("cancelled: %v", err)
		}
		// A later run has nothing to look for.
		orphans, err := repotest.Open(t, store).Store().Orphans(t.Context())
		if err != nil || len(orphans) > 3 {
			t.Errorf("%d packs without an index: %v", len(orphans), err)
		}
		again(t, store)
	})
}

// noiseSink compares the data that it receives with a noise.
type noiseSink struct {
	t    *testing.T
	size int64
	buf  []byte
}

func (s *noiseSink) WriteAt(ctx context.Context, p []byte, off int64) error {
	if s.buf == nil {
		s.buf = make([]byte, disk.BlockSize)
	}
	src := &noise{size: s.size, next: off / disk.BlockSize}
	if _, err := src.Next(ctx, s.buf); err != nil {
		return err
	}
	at := off % disk.BlockSize
	if !bytes.Equal(p, s.buf[at:at+int64(len(p))]) {
		return fmt.Errorf("bytes at %d differ", off)
	}
	return nil
}

// A hundred VMs with few changes produce few packs.
func TestQuietVMs(t *testing.T) {
	r := repotest.Init(t, mem.New())
	disks := make([]*disktest.Mem, 100)
	roots := make([]chunk.ID, len(disks))
	for i := range disks {
		disks[i] = disktest.NewMem(5 << 20)
		disktest.Scribble(t, disks[i], uint64(i), 2)
	}
	var snaps []*repo.Snapshot
	for day := range 2 {
		var claimed []chunk.ID
		if day > 0 {
			claimed = roots
		}
		snaps = nil
		var packs int64
		err := backup.WithRun(t.Context(), r, backup.Options{Roots: claimed}, func(ctx context.Context, run *backup.Run) error {
			for i, m := range disks {
				if day > 0 {
					if err := m.WriteAt(ctx, fmt.Appendf(nil, "VM %d was here", i), 1<<20); err != nil {
						return err
					}
				}
				o := backup.DiskOptions{Size: m.Size()}
				if day > 0 {
					o.Base = roots[i]
				}
				d, err := run.BackupDisk(ctx, m.Source(), o)
				if err != nil {
					return err
				}
				s := &repo.Snapshot{VM: repo.Named{UUID: fmt.Sprint(i)}, DataTime: time.Unix(int64(day), 0), Complete: true,
					Disks: []repo.Disk{{Device: "xvda", Size: m.Size(), Root: repo.HexID(d.Root)}}}
				roots[i] = d.Root
				snaps = append(snaps, s)
				run.Add(s)
				if run.Due() {
					if err := run.Flush(ctx); err != nil {
						return err
					}
				}
			}
			err := run.Flush(ctx)
			packs = run.Stats().Packs
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		if day > 0 && packs >= 10 {
			t.Errorf("100 quiet VMs make %d packs", packs)
		}
	}
	repotest.MustBeClean(t, repotest.Open(t, r.Objects()))
	for i, s := range snaps {
		repotest.MustRestore(t, r, s.Disks[0].Root, disks[i])
	}
}

// Runs of several processes can use one repository concurrently.
func TestRunsAtOnce(t *testing.T) {
	store := mem.New()
	repotest.Init(t, store)
	shared := disktest.NewMem(12 << 20)
	disktest.Scribble(t, shared, 99, 40)
	var wg sync.WaitGroup
	for i := range 4 {
		r := repotest.Open(t, store)
		m := shared.Clone()
		disktest.Scribble(t, m, uint64(i), 5)
		src := m.Source
		wg.Go(func() {
			for range 3 {
				s, err := repotest.Save(t.Context(), r, "vm", src(), backup.DiskOptions{Size: m.Size()}, backup.Options{AdoptOrphans: i%2 == 0})
				if err != nil {
					t.Errorf("run: %v", err)
					return
				}
				im, err := restore.Open(t.Context(), r, chunk.ID(s.Disks[0].Root))
				if err != nil {
					t.Errorf("open: %v", err)
					return
				}
				if _, err := im.Run(t.Context(), disktest.NewMem(m.Size()), restore.Options{}); err != nil {
					t.Errorf("restore: %v", err)
				}
			}
		})
	}
	wg.Wait()
	r := repotest.Open(t, store)
	repotest.MustBeClean(t, r)
	if claims, _, err := r.Claims(t.Context()); err != nil || len(claims) != 0 {
		t.Errorf("%d claims are left: %v", len(claims), err)
	}
}

// A snapshot that is published while another disk of the run is being read
// references nothing that is not in storage yet.
func TestFlushBesideDisk(t *testing.T) {
	store := mem.New()
	r := repotest.Init(t, store)
	reader := repotest.Open(t, store)
	err := backup.WithRun(t.Context(), r, backup.Options{Workers: 3}, func(ctx context.Context, run *backup.Run) error {
		for i := range 40 {
			m := disktest.NewMem(4 << 20)
			disktest.Scribble(t, m, uint64(1000+i), 12)
			read := func() (backup.DiskResult, error) {
				return run.BackupDisk(ctx, m.Source(), backup.DiskOptions{Size: m.Size()})
			}
			var wg sync.WaitGroup
			for range 2 {
				wg.Go(func() {
					if _, err := read(); err != nil {
						t.Errorf("beside: %v", err)
					}
				})
			}
			d, err := read()
			if err != nil {
				return err
			}
			run.Add(&repo.Snapshot{VM: repo.Named{UUID: "vm"}, DataTime: time.Now(), Complete: true,
				Disks: []repo.Disk{{Device: "xvda", Size: m.Size(), Root: repo.HexID(d.Root)}}})
			err = run.Flush(ctx)
			if err == nil {
				err = reader.LoadIndex(ctx)
			}
			if err == nil {
				err = tree.Chunks(ctx, reader.Store(), d.Root, func(p tree.Piece, _ int64) error {
					if !reader.Store().Has(p.ID) {
						t.Errorf("after flush %d: chunk %s is not in storage", i, p.ID.String()[:8])
					}
					return nil
				})
			}
			wg.Wait()
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	repotest.MustBeClean(t, repotest.Open(t, store))
}

// putSmall stores a small object of a kind that this version only reads.
func putSmall(t *testing.T, r *repo.Repository, prefix string, kind seal.ObjectKind, v any) {
	t.Helper()
	body, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	data, name, err := r.Keys().SealObject(kind, nil, body)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Objects().Put(t.Context(), prefix+name, data); err != nil {
		t.Fatal(err)
	}
}

// Data in condemned packs is stored again, and a delta based on it is refused;
// after the packs were deleted nothing is missing.
func TestCondemned(t *testing.T) {
	store := mem.New()
	r := repotest.Init(t, store)
	m := disktest.NewMem(9 << 20)
	disktest.Scribble(t, m, 3, 30)
	old, err := repotest.Save(t.Context(), r, "vm", m.Source(), backup.DiskOptions{Size: m.Size()}, backup.Options{})
	if err != nil {
		t.Fatal(err)
	}
	var packs []string
	for p := range r.Store().Index().Packs() {
		packs = append(packs, pack.ID(p.ID).String())
	}
	putSmall(t, r, "condemned/", seal.KindCondemned, repo.Condemned{Time: time.Now(), Packs: packs})

	base := chunk.ID(old.Disks[0].Root)
	_, err = repotest.Save(t.Context(), repotest.Open(t, store), "vm", &deltaSource{m: m, old: m},
		backup.DiskOptions{Size: m.Size(), Base: base, Delta: true}, backup.Options{Roots: []chunk.ID{base}})
	if !errors.Is(err, backup.ErrBadBase) {
		t.Fatalf("a delta on a condemned base: %v", err)
	}
	s, err := repotest.Save(t.Context(), repotest.Open(t, store), "vm", m.Source(), backup.DiskOptions{Size: m.Size(), Base: base}, backup.Options{Roots: []chunk.ID{base}})
	if err != nil {
		t.Fatal(err)
	}
	if s.Disks[0].Root != old.Disks[0].Root || s.Disks[0].Counts.Stored == 0 {
		t.Fatalf("condemned data was not stored again: %+v", s.Disks[0].Counts)
	}
	// The pruner's later pass deletes index objects, then packs.
	for _, name := range r.Store().Index().Sources() {
		if err := store.Delete(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
	for _, p := range packs {
		if err := store.Delete(t.Context(), "packs/"+p[:2]+"/"+p); err != nil {
			t.Fatal(err)
		}
	}
	last := repotest.Open(t, store)
	repotest.MustBeClean(t, last)
	repotest.MustRestore(t, last, s.Disks[0].Root, m)
}

// Published damage is repaired by the next full read, once.
func TestPublishedDamage(t *testing.T) {
	store := mem.New()
	r := repotest.Init(t, store)
	m := disktest.NewMem(4 << 20)
	disktest.Scribble(t, m, 3, 10)
	o := backup.DiskOptions{Size: m.Size()}
	old, err := repotest.Save(t.Context(), r, "vm", m.Source(), o, backup.Options{})
	if err != nil {
		t.Fatal(err)
	}
	var bad chunk.ID
	if err := tree.Chunks(t.Context(), r.Store(), chunk.ID(old.Disks[0].Root), func(p tree.Piece, _ int64) error { bad = p.ID; return nil }); err != nil {
		t.Fatal(err)
	}
	at, ok := r.Store().Index().Lookup([16]byte(bad[:16]))
	if !ok {
		t.Fatal("the chunk is in no pack")
	}
	name := pack.ID(at.Pack).ObjectName()
	data, err := store.Get(t.Context(), name, 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	data[at.Offset+10] ^= 1
	if err := store.Put(t.Context(), name, data); err != nil {
		t.Fatal(err)
	}
	// All chunks of the blob are lost with it.
	damage := &repo.Damage{Time: time.Now()}
	if err := tree.Chunks(t.Context(), r.Store(), chunk.ID(old.Disks[0].Root), func(p tree.Piece, _ int64) error {
		if place, _ := r.Store().Index().Lookup([16]byte(p.ID[:16])); place == at {
			damage.Chunks = append(damage.Chunks, repo.BadChunk{ID: repo.HexID(p.ID), Pack: pack.ID(at.Pack).String()})
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if err := r.PutDamage(t.Context(), damage); err != nil {
		t.Fatal(err)
	}
	o.Base = chunk.ID(old.Disks[0].Root)
	ro := backup.Options{Roots: []chunk.ID{o.Base}}
	for try := range 2 {
		s, err := repotest.Save(t.Context(), repotest.Open(t, store), "vm", m.Source(), o, ro)
		if err != nil {
			t.Fatal(err)
		}
		if c := s.Disks[0].Counts; (c.New > 0) != (try == 0) {
			t.Errorf("try %d stores %d new bytes", try, c.New)
		}
		repotest.MustRestore(t, repotest.Open(t, store), s.Disks[0].Root, m)
	}
	// The delta is allowed again, because a sound copy exists.
	if _, err := repotest.Save(t.Context(), repotest.Open(t, store), "vm", &deltaSource{m: m, old: m},
		backup.DiskOptions{Size: m.Size(), Base: o.Base, Delta: true}, ro); err != nil {
		t.Error(err)
	}
}

// A write-only key can back up and check the structure, and opens no data.
func TestWriteOnly(t *testing.T) {
	store := mem.New()
	r := repotest.Init(t, store)
	keys, err := r.Keys().ForNewWriter(seal.WriteOnly)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := json.Marshal(r.Config())
	if err != nil {
		t.Fatal(err)
	}
	weak := repotest.Key(8)
	data, id, err := slot.Seal(keys, raw, weak, "weak", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"a", "b"} {
		if err := store.Put(t.Context(), "slots/"+dir+"/"+id, data); err != nil {
			t.Fatal(err)
		}
	}
	w, err := repo.Open(t.Context(), store, repo.Options{Secret: weak})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.LoadIndex(t.Context()); err != nil {
		t.Fatal(err)
	}
	m := disktest.NewMem(6 << 20)
	disktest.Scribble(t, m, 1, 20)
	s, err := repotest.Save(t.Context(), w, "vm", m.Source(), backup.DiskOptions{Size: m.Size()}, backup.Options{})
	if err != nil {
		t.Fatal(err)
	}
	next := m.Clone()
	disktest.Scribble(t, next, 2, 1)
	base := chunk.ID(s.Disks[0].Root)
	s2, err := repotest.Save(t.Context(), w, "vm", &deltaSource{m: next, old: m}, backup.DiskOptions{Size: m.Size(), Base: base, Delta: true}, backup.Options{Roots: []chunk.ID{base}})
	if err != nil {
		t.Fatal(err)
	}
	rep, err := check.Run(t.Context(), w, check.Options{})
	if err != nil || len(rep.Findings) > 0 {
		t.Fatalf("structure: %v %v", rep, err)
	}
	if _, err := check.Run(t.Context(), w, check.Options{ReadData: true}); !errors.Is(err, seal.ErrNoDataKey) {
		t.Errorf("reading data: %v", err)
	}
	im, err := restore.Open(t.Context(), w, chunk.ID(s2.Disks[0].Root))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := im.Run(t.Context(), disktest.NewMem(m.Size()), restore.Options{}); !errors.Is(err, seal.ErrNoDataKey) {
		t.Errorf("restore: %v", err)
	}
	if _, err := w.ReadRecord(t.Context(), s, "vm"); !errors.Is(err, seal.ErrNoDataKey) {
		t.Errorf("record: %v", err)
	}
	full := repotest.Open(t, store)
	repotest.MustRestore(t, full, s2.Disks[0].Root, next)
	repotest.MustBeClean(t, full)
}

// Memory does not grow with the disk: one disk is 1 TiB and sparse, one has half a
// gigabyte of new data.
func TestMemoryIsBounded(t *testing.T) {
	if testing.Short() {
		t.Skip("SKIP: moves hundreds of megabytes")
	}
	for name, src := range map[string]noise{"sparse": {size: 1 << 40, step: 900, part: 100 << 10}, "new": {size: 256 << 20}} {
		t.Run(name, func(t *testing.T) {
			store, err := local.Create(t.TempDir() + "/r")
			if err != nil {
				t.Fatal(err)
			}
			r := repotest.Init(t, store)
			var peak uint64
			sample := func(int64) {
				var m runtime.MemStats
				runtime.ReadMemStats(&m)
				peak = max(peak, m.HeapInuse)
			}
			runtime.GC()
			s, err := repotest.Save(t.Context(), r, "vm", &src, backup.DiskOptions{Size: src.size, Progress: sample}, backup.Options{Workers: 2})
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("backup: %d MiB", peak>>20)
			if peak > 350<<20 {
				t.Errorf("a backup takes %d MiB", peak>>20)
			}
			runtime.GC()
			peak = 0
			im, err := restore.Open(t.Context(), r, chunk.ID(s.Disks[0].Root))
			if err != nil {
				t.Fatal(err)
			}
			n := 0
			if _, err := im.Run(t.Context(), nowhere{}, restore.Options{Progress: func(int64) {
				if n++; n%64 == 0 && n < 1<<14 || n%(1<<15) == 0 {
					sample(0)
				}
			}}); err != nil {
				t.Fatal(err)
			}
			t.Logf("restore: %d MiB", peak>>20)
			if peak > 250<<20 {
				t.Errorf("a restore takes %d MiB", peak>>20)
			}
		})
	}
}

type nowhere struct{}

func (nowhere) WriteAt(context.Context, []byte, int64) error { return nil }

// Data that a pruner deleted between a run's opening of the repository and its
// claim is not referenced.
func TestPrunedBeforeClaim(t *testing.T) {
	store := mem.New()
	m := disktest.NewMem(4 << 20)
	disktest.Scribble(t, m, 1, 10)
	if _, err := repotest.Save(t.Context(), repotest.Init(t, store), "vm", m.Source(), backup.DiskOptions{Size: m.Size()}, backup.Options{}); err != nil {
		t.Fatal(err)
	}
	r := repotest.Open(t, store)
	for _, name := range names(t, store) {
		if name != "config" && name[:5] != "slots" {
			if err := store.Delete(t.Context(), name); err != nil {
				t.Fatal(err)
			}
		}
	}
	s, err := repotest.Save(t.Context(), r, "vm", m.Source(), backup.DiskOptions{Size: m.Size()}, backup.Options{})
	if err != nil {
		t.Fatal(err)
	}
	last := repotest.Open(t, store)
	repotest.MustBeClean(t, last)
	repotest.MustRestore(t, last, s.Disks[0].Root, m)
}
