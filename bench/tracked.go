package main

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"time"

	"xenkeep/bench/measure"
	"xenkeep/bench/workload"
	"xenkeep/xapi"

	"golang.org/x/sys/unix"
)

const (
	opServed   = "pool serves a VHD, TLS"
	opKeys     = "open (keys)"
	opSparse   = "1 TiB sparse, 100 granules"
	opOneByOne = "4 disks one by one"
	opAtOnce   = "4 disks at once"
)

// granule is the unit of changed-block tracking.
const granule = 64 << 10

// tracked measures the savings of changed-block tracking and NBD: days of a large
// disk of which 3 % change, compared with restic, which reads the disk; a huge
// sparse disk; and several disks concurrently.
func (b *bench) tracked(ctx context.Context, images map[string]workload.Image, rounds int) error {
	for range min(rounds, 3) {
		if err := b.servedRate(ctx, images[workload.Full]); err != nil {
			return fmt.Errorf("served rate: %w", err)
		}
	}
	if err := b.trackedDays(ctx, images[workload.Full], rounds); err != nil {
		return fmt.Errorf("days: %w", err)
	}
	if err := b.trackedHuge(ctx, rounds); err != nil {
		return fmt.Errorf("huge disk: %w", err)
	}
	if err := b.manyDisks(ctx, images, rounds); err != nil {
		return fmt.Errorf("several disks: %w", err)
	}
	return nil
}

// trackedDays creates a disk of twice the full image's size, with the image in its
// first half, and changes 3 % of it for each round: half in single granules, half
// in stretches of 1 MiB. The tools continue in one repository.
func (b *bench) trackedDays(ctx context.Context, img workload.Image, rounds int) (err error) {
	dir, err := os.MkdirTemp(b.dir, "tracked-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	size := 2 * img.Size
	disk := filepath.Join(dir, "disk.raw")
	if err := workload.CopySparse(ctx, img.DayOne, disk); err != nil {
		return err
	}
	f, err := os.OpenFile(disk, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		return err
	}
	x := &xenkeep{binary: b.xenkeep, level: b.level, sim: []string{"--nbd", "tls", "--cbt"}}
	r := &restic{binary: "restic"}
	defer func() {
		if eerr := x.end(); err == nil {
			err = eerr
		}
	}()
	// The pool's disk starts with the same content, and receives the changes.
	start := filepath.Join(dir, "start.raw")
	if err := workload.CopySparse(ctx, disk, start); err != nil {
		return err
	}
	if err := x.begin(ctx, filepath.Join(dir, "xenkeep"), map[string]string{"vm": start}); err != nil {
		return err
	}
	if err := r.begin(ctx, filepath.Join(dir, "restic"), map[string]string{"vm": disk}); err != nil {
		return err
	}
	if _, err := x.backup(ctx, "vm"); err != nil {
		return err
	}
	if _, err := r.backup(ctx, "vm"); err != nil {
		return err
	}
	random := rand.New(rand.NewPCG(3, 1))
	for n := range rounds {
		changed, err := change(f, size, size*3/100, random)
		if err != nil {
			return err
		}
		if err := x.replace(ctx, "vm", disk); err != nil {
			return err
		}
		tools := []trackedTool{{x, []string{start, filepath.Join(dir, "xenkeep", "pool")}}, {r, []string{disk}}}
		for i := range tools {
			if err := b.trackedDay(ctx, tools[(i+n)%2], n, size); err != nil {
				return err
			}
		}
		b.note("tracked: %d MiB of %d changed", changed>>20, size>>20)
	}
	if err := os.RemoveAll(r.dir); err != nil { // space for the restored disk
		return err
	}
	return b.trackedRight(ctx, x, dir, disk)
}

// trackedTool is a tool, and the files and folders that its backup reads.
type trackedTool struct {
	tool interface {
		tool
		open(ctx context.Context) (cost, error)
	}
	reads []string
}

// trackedDay measures a backup of the changes of day n, and the opening of the
// repository alone.
func (b *bench) trackedDay(ctx context.Context, of trackedTool, n int, size int64) error {
	t := of.tool
	if err := warmTrees(of.reads); err != nil {
		return err
	}
	unix.Sync()
	load := measure.Load()
	c, err := t.backup(ctx, "vm")
	if err != nil {
		return err
	}
	if strings.HasPrefix(c.note, "full") {
		return fmt.Errorf("day %d was read in full", n+2)
	}
	if err := b.seen("tracked", step{op: opDayTwo, data: size}, t, c, load); err != nil {
		return err
	}
	if c, err = t.open(ctx); err != nil {
		return err
	}
	return b.seen("tracked", step{op: opKeys, data: size}, t, c, load)
}

// warmTrees reads files, and all files in folders, into the page cache.
func warmTrees(paths []string) error {
	for _, path := range paths {
		if err := filepath.WalkDir(path, func(path string, d os.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			_, err = measure.Warm(path)
			return err
		}); err != nil {
			return err
		}
	}
	return nil
}

// trackedRight compares the restored last day with the disk.
func (b *bench) trackedRight(ctx context.Context, x *xenkeep, dir, disk string) error {
	to := filepath.Join(dir, "restored")
	if err := os.Mkdir(to, 0o755); err != nil {
		return err
	}
	file, _, err := x.restore(ctx, "vm", to)
	if err != nil {
		return err
	}
	defer os.RemoveAll(to)
	return sameFiles(file, disk)
}

// seen adds a result and prints it.
func (b *bench) seen(scenario string, st step, t tool, c cost, load float64) error {
	size, err := folderBytes(t.repository())
	if err != nil {
		return err
	}
	b.results.add(scenario, st, t.name(), c, size, load)
	b.note("%-8s %-12s %-8s %7.2f s  CPU %6.2f s  anon %4d MiB  load %.1f  %s", scenario, st.op, t.name(), c.Wall.Seconds(), c.CPU.Seconds(),
		c.PeakAnon>>20, load, c.note)
	return nil
}

// change overwrites n bytes of a disk with data that compresses by half.
func change(f *os.File, size, n int64, random *rand.Rand) (changed int64, err error) {
	buf := make([]byte, 1<<20)
	for changed < n {
		length := int64(granule)
		if changed%2 == 0 && changed > n/2 {
			length = 1 << 20
		}
		at := random.Int64N((size-length)/granule) * granule
		for i := 0; i < int(length); i += 8 {
			v := random.Uint64()
			for k := range 4 {
				buf[i+k], buf[i+k+4] = byte(v>>(8*k)), 'a'
			}
		}
		if _, err := f.WriteAt(buf[:length], at); err != nil {
			return changed, err
		}
		changed += length
	}
	return changed, nil
}

// trackedHuge backs up a sparse disk of 1 TiB of which 100 granules changed.
func (b *bench) trackedHuge(ctx context.Context, rounds int) error {
	dir, err := os.MkdirTemp(b.dir, "huge-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	const size = 1 << 40
	image, start := filepath.Join(dir, "huge.raw"), filepath.Join(dir, "start.raw")
	for _, name := range []string{image, start} {
		f, err := os.Create(name)
		if err == nil {
			err = f.Truncate(size)
		}
		if err == nil {
			err = f.Close()
		}
		if err != nil {
			return err
		}
	}
	x := &xenkeep{binary: b.xenkeep, sim: []string{"--nbd", "tls", "--cbt"}}
	defer x.end()
	if err := x.begin(ctx, filepath.Join(dir, "xenkeep"), map[string]string{"vm": start}); err != nil {
		return err
	}
	if _, err := x.backup(ctx, "vm"); err != nil {
		return err
	}
	f, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	random := rand.New(rand.NewPCG(4, 1))
	for range rounds {
		if _, err := change(f, size, 100*granule, random); err != nil {
			return err
		}
		if err := x.replace(ctx, "vm", image); err != nil {
			return err
		}
		load := measure.Load()
		// Other scenarios compare blocks that are reported as unchanged: here, 1 %
		// of a TiB would dominate the result.
		c, err := x.backupWith(ctx, "vm", "--verify-cbt=false")
		if err != nil {
			return err
		}
		if err := b.seen("tracked", step{op: opSparse, data: 100 * granule}, x, c, load); err != nil {
			return err
		}
	}
	return x.end()
}

// manyDisks backs up four disks of one VM one after the other and concurrently,
// each time into a new repository.
func (b *bench) manyDisks(ctx context.Context, images map[string]workload.Image, rounds int) error {
	all := images[workload.Thin].DayOne + "," + images[workload.Other].DayOne + "," + images[workload.Old].DayOne + "," + images[workload.Thin].DayTwo
	data := images[workload.Thin].Data + images[workload.Other].Data + images[workload.Old].Data + images[workload.Thin].Data2
	for n := range min(rounds, 3) {
		ways := []struct{ op, concurrency string }{{opOneByOne, "1"}, {opAtOnce, "4"}}
		for i := range ways {
			way := ways[(i+n)%2]
			if err := func() (err error) {
				dir, err := os.MkdirTemp(b.dir, "disks-")
				if err != nil {
					return err
				}
				defer os.RemoveAll(dir)
				x := &xenkeep{binary: b.xenkeep, level: b.level}
				defer func() {
					if eerr := x.end(); err == nil {
						err = eerr
					}
				}()
				if err := x.begin(ctx, dir, map[string]string{"vm": all}); err != nil {
					return err
				}
				unix.Sync()
				load := measure.Load()
				c, err := x.backupWith(ctx, "vm", "--disk-concurrency", way.concurrency)
				if err != nil {
					return err
				}
				return b.seen("tracked", step{op: way.op, data: data}, x, c, load)
			}(); err != nil {
				return err
			}
		}
	}
	return nil
}

// servedRate measures how fast the simulated pool sends a disk over TLS to a client
// that discards the data, to show that the pool is not the bottleneck of the other
// measurements.
func (b *bench) servedRate(ctx context.Context, img workload.Image) error {
	dir, err := os.MkdirTemp(b.dir, "served-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	x := &xenkeep{binary: b.xenkeep}
	defer x.end()
	if err := x.begin(ctx, dir, map[string]string{"vm": img.DayOne}); err != nil {
		return err
	}
	if _, err := measure.Warm(img.DayOne); err != nil {
		return err
	}
	pool, err := xapi.Dial(ctx, xapi.Config{URL: x.pool.URL, User: x.pool.User, Password: x.pool.Password, Trust: xapi.Trust{Fingerprints: []string{x.pool.Fingerprint}}})
	if err != nil {
		return err
	}
	defer pool.Close(ctx)
	vdi, err := pool.VDIByUUID(ctx, x.pool.Disks("vm")[0].VDI)
	if err != nil {
		return err
	}
	snap, err := pool.SnapshotVDI(ctx, vdi)
	if err != nil {
		return err
	}
	before, err := x.pool.CPU()
	if err != nil {
		return err
	}
	began := time.Now()
	e, err := pool.ExportVDI(ctx, xapi.ExportOptions{VDI: snap, Format: xapi.FormatVHD})
	if err != nil {
		return err
	}
	n, err := io.Copy(io.Discard, e)
	if err == nil {
		err = e.Finish(ctx)
	}
	if err != nil {
		return err
	}
	wall := time.Since(began)
	after, err := x.pool.CPU()
	if err != nil {
		return err
	}
	b.results.add("tracked", step{op: opServed, data: n}, "pool", cost{Usage: measure.Usage{Wall: wall, CPU: after - before}}, 0, measure.Load())
	b.note("served: %d MiB over TLS in %s: %.2f GB/s, the pool's CPU %s", n>>20, seconds(wall), float64(n)/1e9/wall.Seconds(), seconds(after-before))
	return x.end()
}
