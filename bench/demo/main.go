// Demo demonstrates xenkeep's main task on one machine: it starts a simulated pool
// with a VM of two disks full of real content, backs it up, lets the guest write,
// backs it up again, restores both points to new VDIs, to files and as a VM, and
// compares everything with the original: byte for byte, with e2fsck, and by the
// checksums of all files. It needs e2fsprogs but not root, and exits with 1 at the
// first difference.
//
//	go run ./bench/demo -xenkeep bin/xenkeep
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"xenkeep/bench/simpool"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		if !errors.Is(err, flag.ErrHelp) {
			fmt.Fprintln(os.Stderr, "demo:", err)
		}
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) (err error) {
	f := flag.NewFlagSet("demo", flag.ContinueOnError)
	binary := f.String("xenkeep", "bin/xenkeep", "the xenkeep `program`")
	real := f.Int64("files", 200, "how many `MiB` of this machine's files the first disk holds")
	base := f.String("dir", os.TempDir(), "`folder` below which all is kept, and removed at the end")
	if err := f.Parse(args); err != nil {
		return err
	}
	d := &demo{started: time.Now()}
	if d.xenkeep, err = filepath.Abs(*binary); err != nil {
		return err
	}
	if _, err := exec.LookPath(d.xenkeep); err != nil {
		return fmt.Errorf("%w: build it first, with make build", err)
	}
	if d.dir, err = os.MkdirTemp(*base, "xenkeep-demo-"); err != nil {
		return err
	}
	defer os.RemoveAll(d.dir)
	if d.dir, err = filepath.Abs(d.dir); err != nil {
		return err
	}
	return d.show(ctx, *real<<20)
}

type demo struct {
	xenkeep string
	dir     string
	pool    *simpool.Pool
	started time.Time
}

func (d *demo) path(name ...string) string {
	return filepath.Join(append([]string{d.dir}, name...)...)
}

const vmName = "demo"

func (d *demo) show(ctx context.Context, real int64) (err error) {
	var one, two *guest
	if err := d.step("make two disks: an ext4 of this machine's files, and one with a database", func() (string, error) {
		if one, err = d.dayOne(ctx, real); err != nil {
			return "", err
		}
		if two, err = d.dayTwo(ctx, one); err != nil {
			return "", err
		}
		data, err := one.data()
		return fmt.Sprintf("%s and %s, %s of it data, %d files", size(one.sizes[0]), size(one.sizes[1]), size(data), len(one.sums)), err
	}); err != nil {
		return err
	}
	if err := d.step("start a simulated pool with the VM, over TLS", func() (string, error) {
		d.pool, err = simpool.Start(ctx, d.xenkeep, d.path("pool"), nil, vmName+"="+one.disks[0]+","+one.disks[1])
		if err != nil {
			return "", err
		}
		if n := len(d.pool.Disks(vmName)); n != 2 {
			err = fmt.Errorf("the pool's VM has %d disks", n)
		}
		return d.pool.URL, err
	}); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.pool.Stop()) }()
	if err := d.step("xenkeep init", func() (string, error) {
		_, err := d.run(ctx, nil, "init")
		return "", err
	}); err != nil {
		return err
	}
	first, err := d.backup(ctx, "full")
	if err != nil {
		return err
	}
	if err := d.step("the guest writes", func() (string, error) {
		var n int64
		for i, disk := range d.pool.Disks(vmName) {
			m, err := d.pool.Write(ctx, disk.VDI, two.disks[i])
			if err != nil {
				return "", err
			}
			n += m
		}
		return size(n) + " in pages of 4 KiB", nil
	}); err != nil {
		return err
	}
	second, err := d.backup(ctx, "vhd-delta")
	if err != nil {
		return err
	}
	if err := d.restores(ctx, first, one, second, two); err != nil {
		return err
	}
	if err := d.step("xenkeep check --read-data", func() (string, error) {
		_, err := d.run(ctx, nil, "check", "--read-data", "--quiet")
		return "", err
	}); err != nil {
		return err
	}
	fmt.Printf("all that was restored is what was backed up; %.0f s in all\n", time.Since(d.started).Seconds())
	return nil
}

// restores restores both points in every way and compares the results.
func (d *demo) restores(ctx context.Context, first string, one *guest, second string, two *guest) error {
	sr := d.pool.SR("ext")
	if sr == "" {
		return errors.New("the pool has no SR of type ext")
	}
	for _, p := range []struct {
		name string
		id   string
		want *guest
	}{{"day one", first, one}, {"day two", second, two}} {
		if err := d.restorePool(ctx, p.name+" to new VDIs", p.want, "restore", p.id, "--to-sr", sr); err != nil {
			return err
		}
		if err := d.restoreFiles(ctx, p.name, p.id, p.want); err != nil {
			return err
		}
	}
	return d.restorePool(ctx, "the VM", two, "restore", "latest:"+vmName, "--vm", "--to-sr", sr, "--name", "demo, restored")
}

// step executes one step, and prints its duration and its result.
func (d *demo) step(title string, do func() (string, error)) error {
	start := time.Now()
	told, err := do()
	if err != nil {
		return fmt.Errorf("%s: %w", title, err)
	}
	fmt.Printf("%-76s %6.2f s  %s\n", title, time.Since(start).Seconds(), told)
	return nil
}

func size(n int64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }

// rate formats n bytes since a time as bytes per second.
func rate(n int64, since time.Time) string {
	return fmt.Sprintf("%.0f MB/s", float64(n)/1e6/max(time.Since(since).Seconds(), 1e-3))
}
