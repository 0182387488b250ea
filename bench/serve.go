package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"xenkeep/bench/measure"
	"xenkeep/bench/workload"

	"golang.org/x/sys/unix"
)

const (
	opFirstByte = "mount, first byte of 1 TiB"
	opMounted   = "read a mounted disk"
	opOverNBD   = "read a disk over NBD"
)

// serving measures a snapshot as a file and as a block device: the first byte of a
// huge disk, and reading a whole one, compared with programs that serve the raw
// image itself: bindfs, a pass-through FUSE file system, and nbdkit's file plugin.
func (b *bench) serving(ctx context.Context, img workload.Image, rounds int) error {
	for _, p := range []string{"bindfs", "nbdkit", "nbdcopy", "fusermount3"} {
		if _, err := exec.LookPath(p); err != nil {
			return fmt.Errorf("%s is not installed: on Debian: apt install bindfs nbdkit libnbd-bin fuse3", p)
		}
	}
	dir, err := os.MkdirTemp(b.dir, "serve-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	k := &keeper{program: b.xenkeep, home: filepath.Join(dir, "xenkeep")}
	if err := os.MkdirAll(k.home, 0o755); err != nil {
		return err
	}
	huge := filepath.Join(dir, "huge.raw")
	f, err := os.Create(huge)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(1 << 40); err != nil {
		return err
	}
	for at := int64(0); at < 1<<40; at += 1 << 30 {
		if _, err := f.WriteAt([]byte("xenkeep"), at); err != nil {
			return err
		}
	}
	for _, args := range [][]string{{"init"}, {"backup", "--image", img.DayOne, "--name", "disk", "--quiet"}, {"backup", "--image", huge, "--name", "huge", "--quiet"}} {
		if _, err := k.run(ctx, args...); err != nil {
			return err
		}
	}
	for n := range rounds {
		for i := range 5 {
			var op, tool string
			var c cost
			var err error
			load := measure.Load()
			switch (i + n) % 5 {
			case 0:
				op, tool = opFirstByte, "xenkeep"
				c, err = k.mounted(ctx, filepath.Join(dir, "m"), func(m string) (cost, error) { return read(ctx, filepath.Join(m, "huge/latest/huge.raw"), 4096) })
			case 1:
				op, tool = opMounted, "xenkeep"
				c, err = k.mounted(ctx, filepath.Join(dir, "m"), func(m string) (cost, error) {
					return read(ctx, filepath.Join(m, "disk/latest/disk.raw"), img.Size)
				})
			case 2:
				op, tool = opMounted, "bindfs"
				if _, err = measure.Warm(img.DayOne); err == nil {
					c, err = bound(ctx, img.DayOne, filepath.Join(dir, "b"), img.Size)
				}
			case 3:
				op, tool = opOverNBD, "xenkeep"
				socket := filepath.Join(dir, "x.sock")
				c, err = overNBD(ctx, socket, "disk", k.command("serve", "nbd", "latest:disk", "--socket", socket))
			case 4:
				op, tool = opOverNBD, "nbdkit"
				socket := filepath.Join(dir, "n.sock")
				if _, err = measure.Warm(img.DayOne); err == nil {
					c, err = overNBD(ctx, socket, "", exec.Command("nbdkit", "--foreground", "--readonly", "--unix", socket, "file", img.DayOne))
				}
			}
			if err != nil {
				return fmt.Errorf("%s, %s: %w", op, tool, err)
			}
			data := img.Size
			if op == opFirstByte {
				data = 4096
			}
			b.results.add("serve", step{op: op, data: data}, tool, c, 0, load)
			b.note("serve    %-28s %-8s %7.3f s  CPU %6.2f s of the server  load %.1f", op, tool, c.Wall.Seconds(), c.CPU.Seconds(), load)
		}
	}
	return nil
}

func (k *keeper) command(args ...string) *exec.Cmd {
	cmd := exec.Command(k.program, args...)
	cmd.Env = append(os.Environ(), "XENKEEP_REPOSITORY="+k.repository(), "XENKEEP_PASSWORD="+password, "XENKEEP_CACHE_DIR="+filepath.Join(k.home, "cache"))
	return cmd
}

// server runs a program while fn runs, and adds its CPU time to the cost of fn.
func server(cmd *exec.Cmd, ready func() bool, fn func() (cost, error)) (c cost, err error) {
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return c, err
	}
	over := make(chan error, 1)
	go func() { over <- cmd.Wait() }()
	defer func() {
		_ = cmd.Process.Signal(syscall.SIGINT)
		select {
		case <-over:
		case <-time.After(20 * time.Second):
			_ = cmd.Process.Kill()
			<-over
			err = errors.Join(err, fmt.Errorf("%s did not stop when requested", cmd.Path))
		}
		if cmd.ProcessState != nil {
			c.CPU = cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
		}
	}()
	for began := time.Now(); !ready(); time.Sleep(5 * time.Millisecond) {
		select {
		case err := <-over:
			over <- err
			return c, fmt.Errorf("%s ended early: %v", cmd.Path, err)
		default:
		}
		if time.Since(began) > time.Minute {
			return c, fmt.Errorf("%s does not come up", cmd.Path)
		}
	}
	return fn()
}

// isMount reports whether dir is on another file system than its parent folder.
func isMount(dir string) bool {
	var a, b unix.Stat_t
	return unix.Stat(dir, &a) == nil && unix.Stat(filepath.Dir(dir), &b) == nil && a.Dev != b.Dev
}

func (k *keeper) mounted(ctx context.Context, dir string, fn func(dir string) (cost, error)) (cost, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return cost{}, err
	}
	return server(k.command("mount", dir), func() bool { return isMount(dir) }, func() (cost, error) { return fn(dir) })
}

// bound reads an image through bindfs.
func bound(ctx context.Context, image, dir string, n int64) (cost, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return cost{}, err
	}
	cmd := exec.Command("bindfs", "-f", "-o", "ro", filepath.Dir(image), dir)
	return server(cmd, func() bool { return isMount(dir) }, func() (cost, error) { return read(ctx, filepath.Join(dir, filepath.Base(image)), n) })
}

// read reads the first n bytes of a file; the time includes opening it.
func read(_ context.Context, file string, n int64) (c cost, err error) {
	began := time.Now()
	f, err := os.Open(file)
	if err != nil {
		return c, err
	}
	defer f.Close()
	buf := make([]byte, min(n, 1<<20))
	for left := n; left > 0; {
		k, err := f.Read(buf[:min(int64(len(buf)), left)])
		if err != nil {
			return c, err
		}
		left -= int64(k)
	}
	c.Wall = time.Since(began)
	return c, nil
}

// overNBD reads a whole export and discards the data.
func overNBD(ctx context.Context, socket, export string, cmd *exec.Cmd) (cost, error) {
	defer os.Remove(socket)
	return server(cmd, func() bool { _, err := os.Stat(socket); return err == nil }, func() (c cost, err error) {
		began := time.Now()
		out, err := exec.CommandContext(ctx, "nbdcopy", "nbd+unix:///"+export+"?socket="+socket, "null:").CombinedOutput()
		if err != nil {
			return c, fmt.Errorf("nbdcopy: %w: %s", err, out)
		}
		c.Wall = time.Since(began)
		return c, nil
	})
}
