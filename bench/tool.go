package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"xenkeep/bench/measure"
	"xenkeep/bench/simpool"
)

// A cost is the cost of one operation of a tool.
type cost struct {
	measure.Usage
	pool time.Duration // CPU time of the simulated pool meanwhile
	note string
}

// A tool is a backup program with one repository and the disks of the VMs of a
// scenario, which it backs up.
type tool interface {
	name() string
	// begin creates an empty repository below dir, for VMs with the given disks.
	begin(ctx context.Context, dir string, disks map[string]string) error
	// replace replaces the content of the VM's disk by the image; it is not timed.
	replace(ctx context.Context, vm, image string) error
	backup(ctx context.Context, vm string) (cost, error)
	// restore writes the VM's latest backup to a raw file below dir.
	restore(ctx context.Context, vm, dir string) (file string, c cost, err error)
	// repository returns the folder whose files are counted.
	repository() string
	end() error
}

const password = "correct horse battery staple"

// versionOf returns the first line of a program's version output.
func versionOf(ctx context.Context, args ...string) (string, error) {
	out, _, err := measure.Run(ctx, measure.Command{Args: args})
	if err != nil {
		return "", err
	}
	line, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	return line, nil
}

// folderBytes returns the total size of the files below dir.
func folderBytes(dir string) (n int64, err error) {
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err == nil {
			n += info.Size()
		}
		return err
	})
	return n, err
}

// xenkeep backs up from a simulated pool over TLS.
type xenkeep struct {
	binary string
	level  string   // of compression; "" means the program's default
	sim    []string // further arguments of the simulated pool
	dir    string
	pool   *simpool.Pool
}

func (x *xenkeep) name() string       { return "xenkeep" }
func (x *xenkeep) repository() string { return filepath.Join(x.dir, "repo") }

func (x *xenkeep) begin(ctx context.Context, dir string, disks map[string]string) (err error) {
	x.dir = dir
	var vms []string
	for vm, disk := range disks {
		vms = append(vms, vm+"="+disk)
	}
	if x.pool, err = simpool.Start(ctx, x.binary, filepath.Join(dir, "pool"), x.sim, vms...); err != nil {
		return err
	}
	_, _, err = x.run(ctx, "init")
	return err
}

func (x *xenkeep) run(ctx context.Context, args ...string) ([]byte, cost, error) {
	var c cost
	before, err := x.pool.CPU()
	if err != nil {
		return nil, c, err
	}
	out, u, err := measure.Run(ctx, measure.Command{
		Args: append([]string{x.binary}, args...),
		Env: append(x.pool.Env(), "XENKEEP_REPOSITORY="+x.repository(), "XENKEEP_PASSWORD="+password,
			"XENKEEP_CACHE_DIR="+filepath.Join(x.dir, "cache")),
	})
	c.Usage = u
	if err != nil {
		return out, c, err
	}
	after, err := x.pool.CPU()
	c.pool = after - before
	return out, c, err
}

func (x *xenkeep) replace(ctx context.Context, vm, image string) error {
	disks := x.pool.Disks(vm)
	if len(disks) != 1 {
		return fmt.Errorf("the simulated pool has %d disks for %s", len(disks), vm)
	}
	_, err := x.pool.Write(ctx, disks[0].VDI, image)
	return err
}

// open measures the steps with which every operation begins: keys are derived, the
// repository is opened.
func (x *xenkeep) open(ctx context.Context) (cost, error) {
	_, c, err := x.run(ctx, "snapshots", "--json")
	return c, err
}

func (x *xenkeep) backup(ctx context.Context, vm string) (cost, error) {
	return x.backupWith(ctx, vm)
}

// backupWith is backup with further arguments.
func (x *xenkeep) backupWith(ctx context.Context, vm string, more ...string) (cost, error) {
	args := append([]string{"backup", "--json", vm}, more...)
	if x.level != "" {
		args = append(args, "--compression", x.level)
	}
	out, c, err := x.run(ctx, args...)
	if err != nil {
		return c, err
	}
	summary, err := lastSummary(out)
	if err != nil {
		return c, err
	}
	for _, s := range summary.Snapshots {
		for _, d := range s.Disks {
			c.note = fmt.Sprintf("%s, %d KiB read, %d KiB changed", d.Method, d.Read>>10, d.Changed>>10)
		}
	}
	if n := summary.Requests.Metadata; n > 0 {
		c.note += fmt.Sprintf(", %d metadata requests", n)
	}
	return c, nil
}

type backupSummary struct {
	Type      string `json:"type"`
	Status    string `json:"status"`
	Snapshots []struct {
		Disks []struct {
			Method  string `json:"method"`
			Read    int64  `json:"bytes_read"`
			Changed int64  `json:"bytes_changed"`
		} `json:"disks"`
	} `json:"snapshots"`
	Requests struct {
		Metadata int64 `json:"metadata"`
	} `json:"requests"`
}

// lastSummary returns the summary from the lines of JSON that backup printed.
func lastSummary(out []byte) (s backupSummary, err error) {
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &s); err != nil {
		return s, fmt.Errorf("backup printed %q: %w", lines[len(lines)-1], err)
	}
	if s.Type != "summary" || s.Status != "ok" {
		return s, fmt.Errorf("backup ended with %q, status %q", s.Type, s.Status)
	}
	return s, nil
}

func (x *xenkeep) restore(ctx context.Context, vm, dir string) (string, cost, error) {
	file := filepath.Join(dir, "restored.raw")
	_, c, err := x.run(ctx, "restore", "latest:"+vm, "--to", file, "--quiet")
	return file, c, err
}

func (x *xenkeep) end() error {
	if x.pool == nil {
		return nil
	}
	err := x.pool.Stop()
	x.pool = nil
	return err
}

// links are the images of a scenario under names of their own, which a tool for
// files backs up; an image replaces another one by rename.
type links struct{ dir string }

func (l links) path(vm string) string { return filepath.Join(l.dir, "disks", vm+".raw") }

func (l links) set(vm, image string) error {
	to := l.path(vm)
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	if err := os.Remove(to); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.Link(image, to)
}

func (l links) setAll(disks map[string]string) error {
	for vm, image := range disks {
		if err := l.set(vm, image); err != nil {
			return err
		}
	}
	return nil
}

// restic backs up the raw image as a file.
type restic struct {
	binary string
	dir    string
}

func (r *restic) name() string       { return "restic" }
func (r *restic) repository() string { return filepath.Join(r.dir, "repo") }
func (r *restic) end() error         { return nil }

func (r *restic) run(ctx context.Context, args ...string) (cost, error) {
	_, u, err := measure.Run(ctx, measure.Command{
		Args: append([]string{r.binary, "--repo", r.repository(), "--cache-dir", filepath.Join(r.dir, "cache"), "--quiet"}, args...),
		Dir:  r.dir, Env: []string{"RESTIC_PASSWORD=" + password},
	})
	return cost{Usage: u}, err
}

func (r *restic) begin(ctx context.Context, dir string, disks map[string]string) error {
	r.dir = dir
	if err := (links{dir}).setAll(disks); err != nil {
		return err
	}
	// Format 2 compresses; older versions create format 1 by default.
	_, err := r.run(ctx, "init", "--repository-version", "2")
	return err
}

func (r *restic) replace(_ context.Context, vm, image string) error {
	return links{r.dir}.set(vm, image)
}

func (r *restic) open(ctx context.Context) (cost, error) { return r.run(ctx, "cat", "config") }

func (r *restic) backup(ctx context.Context, vm string) (cost, error) {
	return r.run(ctx, "backup", "--tag", vm, links{r.dir}.path(vm))
}

func (r *restic) restore(ctx context.Context, vm, dir string) (string, cost, error) {
	c, err := r.run(ctx, "restore", "latest", "--tag", vm, "--target", dir)
	return filepath.Join(dir, links{r.dir}.path(vm)), c, err
}

// borg backs up the raw image as a file.
type borg struct {
	binary string
	dir    string
	days   map[string]int
}

func (b *borg) name() string       { return "borg" }
func (b *borg) repository() string { return filepath.Join(b.dir, "repo") }
func (b *borg) end() error         { return nil }

func (b *borg) run(ctx context.Context, dir string, args ...string) (cost, error) {
	_, u, err := measure.Run(ctx, measure.Command{
		Args: append([]string{b.binary}, args...), Dir: dir,
		Env: []string{"BORG_PASSPHRASE=" + password, "BORG_BASE_DIR=" + filepath.Join(b.dir, "base"), "BORG_REPO=" + b.repository()},
	})
	return cost{Usage: u}, err
}

func (b *borg) begin(ctx context.Context, dir string, disks map[string]string) error {
	b.dir, b.days = dir, make(map[string]int)
	if err := (links{dir}).setAll(disks); err != nil {
		return err
	}
	_, err := b.run(ctx, dir, "init", "--encryption", "repokey-blake2")
	return err
}

func (b *borg) replace(_ context.Context, vm, image string) error {
	return links{b.dir}.set(vm, image)
}

func (b *borg) archive(vm string) string { return fmt.Sprintf("::%s-%d", vm, b.days[vm]) }

func (b *borg) backup(ctx context.Context, vm string) (cost, error) {
	b.days[vm]++
	return b.run(ctx, filepath.Dir(links{b.dir}.path(vm)), "create", b.archive(vm), vm+".raw")
}

func (b *borg) restore(ctx context.Context, vm, dir string) (string, cost, error) {
	c, err := b.run(ctx, dir, "extract", "--sparse", b.archive(vm))
	return filepath.Join(dir, vm+".raw"), c, err
}
