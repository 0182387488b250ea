package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"xenkeep/bench/measure"
	"xenkeep/bench/workload"

	"golang.org/x/sys/unix"
)

const (
	opCheck  = "check --read-data"
	opForget = "forget 40 of 50"
	opPrune  = "prune"
)

// The workload for measuring maintenance over years: disks of data that do not
// compress, of which one per day has some stretches overwritten.
const (
	keepDays  = 50
	keepLeft  = 10
	keepDisks = 13
)

// keep measures checking and pruning on a repository of 50 days, compared with
// restic's on the same bytes. Each round works on a copy of the repositories, whose
// files neither tool modifies in place.
func (b *bench) keep(ctx context.Context, rounds int) error {
	dir, err := os.MkdirTemp(b.dir, "keep-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	d := &keptDisks{dir: filepath.Join(dir, "disks"), size: 512 << 20, each: 80 << 20, random: rand.New(rand.NewPCG(5, 1))}
	if b.scale.Name != "full" {
		d.size, d.each = 16<<20, 2<<20
	}
	if err := d.create(); err != nil {
		return err
	}
	x := &keeper{program: b.xenkeep, home: filepath.Join(dir, "xenkeep")}
	r := &restic{binary: "restic", dir: filepath.Join(dir, "restic")}
	for _, home := range []string{x.home, r.dir} {
		if err := os.MkdirAll(home, 0o755); err != nil {
			return err
		}
	}
	if _, err := x.run(ctx, "init"); err != nil {
		return err
	}
	if _, err := r.run(ctx, "init", "--repository-version", "2"); err != nil {
		return err
	}
	for day := range keepDays {
		if err := d.keepDay(ctx, day, x, r); err != nil {
			return err
		}
	}
	sizes := make(map[string]int64)
	for _, t := range []string{x.repository(), r.repository()} {
		n, err := folderBytes(t)
		if err != nil {
			return err
		}
		sizes[t] = n
		b.note("keep: %s holds %d MiB", filepath.Base(filepath.Dir(t)), n>>20)
	}
	subjects := []keepSubject{
		{"xenkeep", x.repository(), x.run, [][]string{
			{"snapshots"}, {"check", "--read-data", "--quiet"}, {"forget", "--keep-last", fmt.Sprint(keepLeft)}, {"prune", "--exclusive", "--quiet"}}},
		{"restic", r.repository(), r.run, [][]string{
			{"cat", "config"}, {"check", "--read-data"}, {"forget", "--keep-last", fmt.Sprint(keepLeft)}, {"prune"}}},
	}
	for n := range min(rounds, 5) {
		if err := b.keepRound(ctx, n, subjects, sizes); err != nil {
			return err
		}
	}
	return nil
}

// keptDisks are the disks that are backed up each day.
type keptDisks struct {
	dir        string
	size, each int64 // of a disk, and of the data that changes in one
	random     *rand.Rand
}

func (d *keptDisks) name(i int) string { return filepath.Join(d.dir, fmt.Sprintf("disk%02d.raw", i)) }

// create writes the disks of the first day.
func (d *keptDisks) create() error {
	if err := os.MkdirAll(d.dir, 0o755); err != nil {
		return err
	}
	for i := range keepDisks {
		f, err := os.Create(d.name(i))
		if err == nil {
			err = workload.WriteNoise(f, uint64(100+i), d.size)
		}
		if err == nil {
			err = f.Close()
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// change overwrites some of a disk.
func (d *keptDisks) change(i int) error {
	f, err := os.OpenFile(d.name(i), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	buf := make([]byte, 1<<20)
	for range d.each >> 20 {
		for k := 0; k < len(buf); k += 8 {
			v := d.random.Uint64()
			for n := range 8 {
				buf[k+n] = byte(v >> (8 * n))
			}
		}
		if _, err := f.WriteAt(buf, d.random.Int64N(d.size>>20)<<20); err != nil {
			return err
		}
	}
	return f.Close()
}

// keepDay changes a disk, and takes one snapshot with each tool: restic's of the
// folder, xenkeep's of the disks that changed.
func (d *keptDisks) keepDay(ctx context.Context, day int, x *keeper, r *restic) error {
	changed := []int{day % keepDisks}
	if day == 0 {
		changed = nil
		for i := range keepDisks {
			changed = append(changed, i)
		}
	} else if err := d.change(changed[0]); err != nil {
		return err
	}
	for _, i := range changed {
		if _, err := x.run(ctx, "backup", "--image", d.name(i), "--name", "disk", "--quiet"); err != nil {
			return err
		}
	}
	_, err := r.run(ctx, "backup", d.dir)
	return err
}

// keepSubject is a tool with its repository and its commands.
type keepSubject struct {
	name string
	repo string
	run  func(ctx context.Context, args ...string) (cost, error)
	ops  [][]string // open, check, forget, prune
}

// keepRound measures all operations once, on copies of the repositories.
func (b *bench) keepRound(ctx context.Context, n int, subjects []keepSubject, sizes map[string]int64) error {
	for _, s := range subjects {
		if err := exec.CommandContext(ctx, "cp", "-al", s.repo, s.repo+".kept").Run(); err != nil {
			return err
		}
	}
	for at, op := range []string{opKeys, opCheck, opForget, opPrune} {
		for i := range subjects {
			s := subjects[(i+n)%2]
			if _, err := measure.Warm(filesBelow(s.repo)...); err != nil {
				return err
			}
			unix.Sync()
			load := measure.Load()
			c, err := s.run(ctx, s.ops[at]...)
			if err != nil {
				return fmt.Errorf("%s %s: %w", s.name, strings.Join(s.ops[at], " "), err)
			}
			left, err := folderBytes(s.repo)
			if err != nil {
				return err
			}
			b.results.add("keep", step{op: op, data: sizes[s.repo]}, s.name, c, left, load)
			b.note("%-8s %-18s %-8s %7.2f s  CPU %6.2f s  anon %4d MiB  repository %6d MiB  load %.1f", "keep", op, s.name, c.Wall.Seconds(), c.CPU.Seconds(),
				c.PeakAnon>>20, left>>20, load)
		}
	}
	for _, s := range subjects {
		if err := os.RemoveAll(s.repo); err != nil {
			return err
		}
		if err := os.Rename(s.repo+".kept", s.repo); err != nil {
			return err
		}
	}
	return nil
}

// keeper runs xenkeep without a pool.
type keeper struct{ program, home string }

func (k *keeper) repository() string { return filepath.Join(k.home, "repo") }

func (k *keeper) run(ctx context.Context, args ...string) (cost, error) {
	_, u, err := measure.Run(ctx, measure.Command{
		Args: append([]string{k.program}, args...),
		Env:  []string{"XENKEEP_REPOSITORY=" + k.repository(), "XENKEEP_PASSWORD=" + password, "XENKEEP_CACHE_DIR=" + filepath.Join(k.home, "cache")},
	})
	return cost{Usage: u}, err
}
