package check_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
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
	"xenkeep/repo/restore"
)

var secret = slot.Secret{KeyFile: bytes.Repeat([]byte{5}, 32)}

func initRepo(t testing.TB, objects object.Store) *repo.Repository {
	t.Helper()
	r, err := repo.Init(t.Context(), objects, repo.Options{Secret: secret})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func openRepo(t testing.TB, objects object.Store) *repo.Repository {
	t.Helper()
	r, err := repo.Open(t.Context(), objects, repo.Options{Secret: secret})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.LoadIndex(t.Context()); err != nil {
		t.Fatal(err)
	}
	return r
}

// diskBackup backs one disk up as a snapshot of its own.
func diskBackup(ctx context.Context, r *repo.Repository, src disk.Source, o backup.DiskOptions, ro backup.Options) (*repo.Snapshot, error) {
	s := &repo.Snapshot{Origin: "image", VM: repo.Named{UUID: "vm", Name: "vm"}, Data: time.Now(), Complete: true}
	err := backup.Do(ctx, r, ro, func(ctx context.Context, run *backup.Run) error {
		d, err := run.Disk(ctx, src, o)
		if err != nil {
			return err
		}
		rec, err := run.Record(ctx, "vm", []byte(`{"name":"vm"}`))
		if err != nil {
			return err
		}
		s.Records = []repo.Record{rec}
		s.Disks = []repo.Disk{{Device: "xvda", VDI: "vdi", Size: o.Size, Root: repo.HexID(d.Root), Method: "full", Counts: d.Counts}}
		run.Add(s)
		return run.Flush(ctx)
	})
	return s, err
}

func mustClean(t testing.TB, r *repo.Repository) {
	t.Helper()
	rep, err := check.Run(t.Context(), r, check.Options{ReadData: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range rep.Findings {
		t.Errorf("check: %v", f)
	}
}

// compare restores a root and compares it with want, which is read by ReadAt.
func compare(t testing.TB, r *repo.Repository, root chunk.ID, want *disktest.Mem, zeros bool) {
	t.Helper()
	im, err := restore.Open(t.Context(), r, root)
	if err != nil {
		t.Fatal(err)
	}
	if im.Size() != want.Size() {
		t.Fatalf("restored size %d, want %d", im.Size(), want.Size())
	}
	got := disktest.NewMem(want.Size())
	if zeros { // a target full of garbage must come out equal too
		if err := got.WriteAt(t.Context(), bytes.Repeat([]byte{0xee}, int(want.Size())), 0); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := im.Run(t.Context(), got, restore.Options{Zeros: zeros}); err != nil {
		t.Fatal(err)
	}
	same(t, got, want)
}

func same(t testing.TB, got, want *disktest.Mem) {
	t.Helper()
	a, b := make([]byte, disk.BlockSize), make([]byte, disk.BlockSize)
	for i := range disk.Blocks(want.Size()) {
		if !got.Holds(i) && !want.Holds(i) {
			continue
		}
		n := repo.BlockLength(want.Size(), i)
		if _, err := got.ReadAt(a[:n], i*disk.BlockSize); err != nil && err != io.EOF {
			t.Fatal(err)
		}
		if _, err := want.ReadAt(b[:n], i*disk.BlockSize); err != nil && err != io.EOF {
			t.Fatal(err)
		}
		if !bytes.Equal(a[:n], b[:n]) {
			t.Fatalf("block %d differs", i)
		}
	}
}

func scribble(t testing.TB, m *disktest.Mem, seed uint64, n int) {
	t.Helper()
	r := rand.New(rand.NewPCG(seed, 1))
	for range n {
		if m.Size() == 0 {
			return
		}
		p := make([]byte, 1+r.IntN(300<<10))
		for i := range p {
			p[i] = byte(r.Uint32())
		}
		if r.IntN(3) == 0 {
			clear(p[:len(p)/2])
		}
		off := r.Int64N(m.Size())
		if r.IntN(2) == 0 {
			off -= off % 4096
		}
		p = p[:min(int64(len(p)), m.Size()-off)]
		if err := m.WriteAt(t.Context(), p, off); err != nil {
			t.Fatal(err)
		}
	}
}

func TestSizes(t *testing.T) {
	for _, size := range []int64{0, 1, 511, 512, 4095, 4097, 2<<20 - 1, 2 << 20, 2<<20 + 512, 1<<30 + 4096, 3 << 40} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			r := initRepo(t, mem.New())
			m := disktest.NewMem(size)
			scribble(t, m, uint64(size), 20)
			if size > 0 { // the very last byte
				if err := m.WriteAt(t.Context(), []byte{9}, size-1); err != nil {
					t.Fatal(err)
				}
			}
			s, err := diskBackup(t.Context(), r, m.Source(), backup.DiskOptions{Size: size}, backup.Options{})
			if err != nil {
				t.Fatal(err)
			}
			mustClean(t, r)
			compare(t, r, chunk.ID(s.Disks[0].Root), m, false)
			if size < 1<<30 {
				compare(t, r, chunk.ID(s.Disks[0].Root), m, true)
			}
			again, err := diskBackup(t.Context(), openRepo(t, r.Objects()), m.Source(), backup.DiskOptions{Size: size}, backup.Options{})
			if err != nil {
				t.Fatal(err)
			}
			if again.Disks[0].Root != s.Disks[0].Root || again.Disks[0].Counts.Stored != 0 {
				t.Fatalf("the same disk again: %+v after %+v", again.Disks[0], s.Disks[0])
			}
		})
	}
}

// deltaSource gives only the blocks that differ from old, or were grown.
type deltaSource struct {
	m, old *disktest.Mem
	next   int64
	split  bool // give halves of blocks
}

func (d *deltaSource) Size() int64 { return d.m.Size() }

func (d *deltaSource) Next(_ context.Context, buf []byte) (disk.Extent, error) {
	for ; d.next < disk.Blocks(d.m.Size()); d.next++ {
		n := repo.BlockLength(d.m.Size(), d.next)
		b := make([]byte, n)
		_, _ = d.m.ReadAt(buf[:n], d.next*disk.BlockSize)
		k, _ := d.old.ReadAt(b, d.next*disk.BlockSize)
		if bytes.Equal(b[:k], buf[:k]) && len(bytes.Trim(buf[k:n], "\x00")) == 0 {
			continue
		}
		e := disk.Extent{Offset: d.next * disk.BlockSize, Length: int64(n)}
		if d.split {
			for i := range n {
				if i >= k || b[i] != buf[i] {
					e = disk.Extent{Offset: e.Offset + int64(i), Length: int64(n - i)}
					copy(buf, buf[i:n])
					break
				}
			}
		}
		d.next++
		return e, nil
	}
	return disk.Extent{}, io.EOF
}

// An incremental's root equals that of a full read, whatever was written,
// where the disk grew, and where only parts of blocks are given.
func TestDelta(t *testing.T) {
	for seed := range uint64(40) {
		rnd := rand.New(rand.NewPCG(seed, 2))
		size := 1 + rnd.Int64N(9<<20)
		old := disktest.NewMem(size)
		scribble(t, old, seed, 12)
		r := initRepo(t, mem.New())
		base, err := diskBackup(t.Context(), r, old.Source(), backup.DiskOptions{Size: size}, backup.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if rnd.IntN(2) == 0 {
			size += rnd.Int64N(5 << 20)
		}
		m := disktest.NewMem(size)
		if err := copyDisk(t.Context(), m, old); err != nil {
			t.Fatal(err)
		}
		scribble(t, m, seed+1000, rnd.IntN(4))
		split := rnd.IntN(2) == 0
		s, err := diskBackup(t.Context(), r, &deltaSource{m: m, old: old, split: split},
			backup.DiskOptions{Size: size, Base: chunk.ID(base.Disks[0].Root), Delta: true}, backup.Options{Roots: []chunk.ID{chunk.ID(base.Disks[0].Root)}})
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		full, err := diskBackup(t.Context(), r, m.Source(), backup.DiskOptions{Size: size}, backup.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if s.Disks[0].Root != full.Disks[0].Root {
			t.Fatalf("seed %d (split %v, %d to %d bytes): the delta's root is not that of a full read", seed, split, old.Size(), size)
		}
		compare(t, r, chunk.ID(s.Disks[0].Root), m, false)
		mustClean(t, r)
	}
}

func copyDisk(ctx context.Context, to, from *disktest.Mem) error {
	src := from.Source()
	buf := make([]byte, disk.BlockSize)
	for {
		e, err := src.Next(ctx, buf)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if err := to.WriteAt(ctx, buf[:e.Length], e.Offset); err != nil {
			return err
		}
	}
}

var errBroken = errors.New("the transport broke")

type brokenSource struct {
	disk.Source
	left int
}

func (b *brokenSource) Next(ctx context.Context, buf []byte) (disk.Extent, error) {
	if b.left--; b.left < 0 {
		return disk.Extent{}, errBroken
	}
	return b.Source.Next(ctx, buf)
}

// A disk that breaks at any block publishes nothing, harms neither the run nor
// the repository, and its data is not uploaded again.
func TestBrokenSource(t *testing.T) {
	m := disktest.NewMem(40 << 20)
	scribble(t, m, 7, 100)
	r := initRepo(t, mem.New())
	for n := range 21 {
		err := backup.Do(t.Context(), r, backup.Options{}, func(ctx context.Context, run *backup.Run) error {
			if _, err := run.Disk(ctx, &brokenSource{m.Source(), n}, backup.DiskOptions{Size: m.Size()}); !errors.Is(err, errBroken) && n < 20 {
				return fmt.Errorf("broken at %d: %w", n, err)
			}
			_, err := run.Disk(ctx, m.Source(), backup.DiskOptions{Size: m.Size()})
			if err != nil {
				return err
			}
			return run.Flush(ctx)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	all, bad, err := r.Snapshots(t.Context())
	if err != nil || len(all)+len(bad) != 0 {
		t.Fatalf("%d snapshots, %d bad: %v", len(all), len(bad), err)
	}
	mustClean(t, openRepo(t, r.Objects()))
}
