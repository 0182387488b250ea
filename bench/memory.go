package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"xenkeep/bench/measure"
	"xenkeep/chunkstore/object"
	"xenkeep/chunkstore/object/mem"
	"xenkeep/chunkstore/object/objecttest"
	"xenkeep/chunkstore/slot"
	"xenkeep/internal/disk"
	"xenkeep/repo"
	"xenkeep/repo/backup"
)

// slowRate is the rate of a storage that keeps every queue full, in bytes per
// second.
const slowRate = 20_000_000

// memory measures the peak of memory in the cases where it is largest: with a huge
// disk, and with data that is read faster than the storage can store it. restic and
// borg are not measured.
func (b *bench) memory(ctx context.Context) error {
	if err := b.huge(ctx); err != nil {
		return fmt.Errorf("huge disk: %w", err)
	}
	if err := b.slow(ctx); err != nil {
		return fmt.Errorf("slow storage: %w", err)
	}
	return nil
}

// huge backs up and restores a sparse disk of 1 TiB through the pool: 64 KiB of
// data in each GiB.
func (b *bench) huge(ctx context.Context) error {
	dir, err := os.MkdirTemp(b.dir, "huge-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	const size, every, length = 1 << 40, 1 << 30, 64 << 10
	image := filepath.Join(dir, "huge.raw")
	f, err := os.Create(image)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		return err
	}
	p, r := make([]byte, length), rand.NewChaCha8([32]byte{1})
	for at := int64(0); at < size; at += every {
		r.Read(p)
		if _, err := f.WriteAt(p, at+at>>10&^4095); err != nil {
			return err
		}
	}
	x := &xenkeep{binary: b.xenkeep}
	defer x.end()
	if err := x.begin(ctx, dir, map[string]string{"huge": image}); err != nil {
		return err
	}
	data := int64(size / every * length)
	add := func(op string, c cost) {
		n, _ := folderBytes(x.repository())
		b.results.add("memory", step{op: op, data: data}, "xenkeep", c, n, measure.Load())
		b.note("%-8s %-12s %-8s %7.2f s  CPU %6.2f s  anon %4d MiB", "memory", op, "xenkeep", c.Wall.Seconds(), c.CPU.Seconds(), c.PeakAnon>>20)
	}
	c, err := x.backup(ctx, "huge")
	if err != nil {
		return err
	}
	add("1 TiB sparse disk, full", c)
	if _, c, err = x.restore(ctx, "huge", dir); err != nil {
		return err
	}
	add("1 TiB sparse disk, restore", c)
	return x.end()
}

// slow runs this program again as a child that backs up incompressible data to a
// slow storage, so that only the engine's memory is measured.
func (b *bench) slow(ctx context.Context) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	size := int64(8 << 30)
	if b.scale.Name != "full" {
		size = 256 << 20
	}
	dir, err := os.MkdirTemp(b.dir, "slow-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	load := measure.Load()
	out, u, err := measure.Run(ctx, measure.Command{Args: []string{self}, Dir: dir, Env: []string{slowChild + "=" + strconv.FormatInt(size, 10)}})
	if err != nil {
		return err
	}
	var s slowOutcome
	if err := json.Unmarshal(out, &s); err != nil {
		return fmt.Errorf("child printed %q: %w", out, err)
	}
	if s.Stored < size {
		return fmt.Errorf("only %d bytes of %d that do not compress were stored", s.Stored, size)
	}
	op := fmt.Sprintf("%d MiB incompressible to storage at %d MB/s", size>>20, slowRate/1_000_000)
	b.results.add("memory", step{op: op, data: size}, "xenkeep", cost{Usage: u}, s.Stored, load)
	b.note("%-8s %s: %s, peak anonymous %d MiB", "memory", op, seconds(u.Wall), u.PeakAnon>>20)
	return nil
}

// slowChild is the environment variable that makes this program the child.
const slowChild = "XENKEEP_BENCH_SLOW_BYTES"

type slowOutcome struct {
	Stored int64 `json:"stored"`
}

func runSlowChild(ctx context.Context, text string, w io.Writer) error {
	size, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return err
	}
	sink := &forgetful{Store: mem.New()}
	slow := objecttest.NewFaulty(sink)
	r, err := repo.Init(ctx, slow, repo.Options{Secret: slot.Secret{Password: []byte(password)}, CacheDir: "."})
	if err != nil {
		return err
	}
	defer r.Close()
	if err := r.LoadIndex(ctx); err != nil {
		return err
	}
	slow.Slow(slowRate, 0)
	err = backup.WithRun(ctx, r, backup.Options{Job: "bench", Machine: "bench", Process: "bench"}, func(ctx context.Context, run *backup.Run) error {
		d, err := run.BackupDisk(ctx, &noiseDisk{size: size, r: rand.NewChaCha8([32]byte{2})}, backup.DiskOptions{Size: size})
		if err != nil {
			return err
		}
		if d.Counts.Stored < size {
			return fmt.Errorf("%d of %d bytes stored", d.Counts.Stored, size)
		}
		return run.Flush(ctx)
	})
	if err != nil {
		return err
	}
	return json.NewEncoder(w).Encode(slowOutcome{Stored: slow.Bytes(objecttest.Put)})
}

// forgetful is a storage that stores everything except packs, which nobody reads
// again.
type forgetful struct{ object.Store }

func (f *forgetful) Put(ctx context.Context, name string, data []byte) error {
	if strings.HasPrefix(name, "packs/") {
		return ctx.Err()
	}
	return f.Store.Put(ctx, name, data)
}

// noiseDisk is a disk of data that neither compresses nor repeats.
type noiseDisk struct {
	size, at int64
	r        *rand.ChaCha8
}

func (d *noiseDisk) Size() int64 { return d.size }

func (d *noiseDisk) Next(ctx context.Context, buf []byte) (disk.Extent, error) {
	if d.at == d.size {
		return disk.Extent{}, io.EOF
	}
	e := disk.Extent{Offset: d.at, Length: min(disk.BlockSize, d.size-d.at)}
	d.r.Read(buf[:e.Length])
	d.at = e.End()
	return e, ctx.Err()
}
