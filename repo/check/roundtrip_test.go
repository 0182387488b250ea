package check_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"

	"xenkeep/chunkstore/chunk"
	"xenkeep/chunkstore/object/mem"
	"xenkeep/internal/disk"
	"xenkeep/internal/disk/disktest"
	"xenkeep/repo/backup"
	"xenkeep/repo/repotest"
)

func TestSizes(t *testing.T) {
	for _, size := range []int64{0, 1, 511, 512, 4095, 4097, 2<<20 - 1, 2 << 20, 2<<20 + 512, 1<<30 + 4096, 3 << 40} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			r := repotest.Init(t, mem.New())
			m := disktest.NewMem(size)
			disktest.Scribble(t, m, uint64(size), 20)
			if size > 0 { // the very last byte
				if err := m.WriteAt(t.Context(), []byte{9}, size-1); err != nil {
					t.Fatal(err)
				}
			}
			s, err := repotest.Save(t.Context(), r, "vm", m.Source(), backup.DiskOptions{Size: size}, backup.Options{})
			if err != nil {
				t.Fatal(err)
			}
			repotest.MustBeClean(t, r)
			repotest.MustRestore(t, r, s.Disks[0].Root, m)
			if size < 1<<30 {
				disktest.MustEqual(t, repotest.Restored(t, r, chunk.ID(s.Disks[0].Root), true), m)
			}
			again, err := repotest.Save(t.Context(), repotest.Open(t, r.Objects()), "vm", m.Source(), backup.DiskOptions{Size: size}, backup.Options{})
			if err != nil {
				t.Fatal(err)
			}
			if again.Disks[0].Root != s.Disks[0].Root || again.Disks[0].Counts.Stored != 0 {
				t.Fatalf("the same disk again: %+v after %+v", again.Disks[0], s.Disks[0])
			}
		})
	}
}

// deltaSource delivers only the blocks that differ from old, or were added.
type deltaSource struct {
	m, old *disktest.Mem
	next   int64
	split  bool // deliver halves of blocks
}

func (d *deltaSource) Size() int64 { return d.m.Size() }

func (d *deltaSource) Next(_ context.Context, buf []byte) (disk.Extent, error) {
	for ; d.next < disk.Blocks(d.m.Size()); d.next++ {
		n := disk.BlockLength(d.m.Size(), d.next)
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

// The root of an incremental backup equals that of a full read, whatever was
// written, also if the disk grew, and if only parts of blocks are delivered.
func TestDelta(t *testing.T) {
	for seed := range uint64(40) {
		rnd := rand.New(rand.NewPCG(seed, 2))
		size := 1 + rnd.Int64N(9<<20)
		old := disktest.NewMem(size)
		disktest.Scribble(t, old, seed, 12)
		r := repotest.Init(t, mem.New())
		base, err := repotest.Save(t.Context(), r, "vm", old.Source(), backup.DiskOptions{Size: size}, backup.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if rnd.IntN(2) == 0 {
			size += rnd.Int64N(5 << 20)
		}
		m := old.Resized(size)
		disktest.Scribble(t, m, seed+1000, rnd.IntN(4))
		split := rnd.IntN(2) == 0
		s, err := repotest.Save(t.Context(), r, "vm", &deltaSource{m: m, old: old, split: split},
			backup.DiskOptions{Size: size, Base: chunk.ID(base.Disks[0].Root), Delta: true}, backup.Options{Roots: []chunk.ID{chunk.ID(base.Disks[0].Root)}})
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		full, err := repotest.Save(t.Context(), r, "vm", m.Source(), backup.DiskOptions{Size: size}, backup.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if s.Disks[0].Root != full.Disks[0].Root {
			t.Fatalf("seed %d (split %v, %d to %d bytes): the delta's root is not that of a full read", seed, split, old.Size(), size)
		}
		repotest.MustRestore(t, r, s.Disks[0].Root, m)
		repotest.MustBeClean(t, r)
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

// A disk whose read fails at any block publishes nothing, harms neither the run nor
// the repository, and its data is not uploaded again.
func TestBrokenSource(t *testing.T) {
	m := disktest.NewMem(40 << 20)
	disktest.Scribble(t, m, 7, 100)
	r := repotest.Init(t, mem.New())
	for n := range 21 {
		err := backup.WithRun(t.Context(), r, backup.Options{}, func(ctx context.Context, run *backup.Run) error {
			if _, err := run.BackupDisk(ctx, &brokenSource{m.Source(), n}, backup.DiskOptions{Size: m.Size()}); !errors.Is(err, errBroken) && n < 20 {
				return fmt.Errorf("broken at %d: %w", n, err)
			}
			_, err := run.BackupDisk(ctx, m.Source(), backup.DiskOptions{Size: m.Size()})
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
	repotest.MustBeClean(t, repotest.Open(t, r.Objects()))
}
