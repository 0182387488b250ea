package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"xenkeep/bench/measure"
	"xenkeep/bench/workload"
	"xenkeep/xapi"
)

// guest is the state of the VM's disks on one day: an ext4 file system that fills
// the first disk, and a second disk with data of its own.
type guest struct {
	disks [2]string
	sizes [2]int64
	sums  map[string]string // SHA-256 of the file system's files by path
}

func (g *guest) data() (n int64, err error) {
	for _, disk := range g.disks {
		m, err := workload.DataBytes(disk)
		if err != nil {
			return 0, err
		}
		n += m
	}
	return n, nil
}

// dayOne creates the disks; their sizes are multiples of 2 MiB, like those of VDIs.
// The second begins with a database; the rest is empty, except for some data at its
// very end.
func (d *demo) dayOne(ctx context.Context, real int64) (*guest, error) {
	staged := d.path("staged")
	if err := os.Mkdir(staged, 0o755); err != nil {
		return nil, err
	}
	defer os.RemoveAll(staged)
	if _, err := workload.CopyTree(ctx, staged, real); err != nil {
		return nil, err
	}
	g := &guest{disks: [2]string{d.path("root-1.raw"), d.path("data-1.raw")}, sizes: [2]int64{2*real + 128<<20, 514 << 20}}
	var err error
	if g.sums, err = sumTree(staged); err != nil {
		return nil, err
	}
	for i, disk := range g.disks {
		if err := truncated(disk, g.sizes[i]); err != nil {
			return nil, err
		}
	}
	if err := workload.MakeExt4(ctx, g.disks[0], 0, g.sizes[0], "5eed0000-0000-4000-8000-0000000000de", staged); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(g.disks[1], os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := workload.WriteDatabase(f, 1, 128<<20); err != nil {
		return nil, err
	}
	if err := workload.WriteNoise(io.NewOffsetWriter(f, g.sizes[1]-(1<<20)), 1, 1<<20); err != nil {
		return nil, err
	}
	return g, f.Close()
}

func truncated(name string, size int64) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(size), f.Close())
}

// dayTwo applies the guest's changes to its disks: files removed, changed and
// added; pages of the database written in place.
func (d *demo) dayTwo(ctx context.Context, old *guest) (*guest, error) {
	g := &guest{disks: [2]string{d.path("root-2.raw"), d.path("data-2.raw")}, sizes: old.sizes, sums: maps.Clone(old.sums)}
	for i := range g.disks {
		if err := system(ctx, "cp", "--sparse=always", old.disks[i], g.disks[i]); err != nil {
			return nil, err
		}
	}
	fresh := d.path("fresh")
	f, err := os.Create(fresh)
	if err != nil {
		return nil, err
	}
	defer os.Remove(fresh)
	if err := errors.Join(workload.WriteNoise(f, 2, 3<<20+77), f.Close()); err != nil {
		return nil, err
	}
	sum, err := sumFile(fresh)
	if err != nil {
		return nil, err
	}
	var script strings.Builder
	for i, name := range slices.Sorted(maps.Keys(g.sums)) {
		if i%100 != 0 || strings.ContainsAny(name, "\" \\") {
			continue
		}
		fmt.Fprintf(&script, "cd /%s\nrm %s\n", path.Dir(name), path.Base(name))
		delete(g.sums, name)
		if i%300 == 0 { // rewritten
			fmt.Fprintf(&script, "write %s %s\n", fresh, path.Base(name))
			g.sums[name] = sum
		}
	}
	fmt.Fprintf(&script, "cd /\nwrite %s new.bin\n", fresh)
	g.sums["new.bin"] = sum
	commands := d.path("commands")
	if err := os.WriteFile(commands, []byte(script.String()), 0o644); err != nil {
		return nil, err
	}
	if err := system(ctx, "debugfs", "-w", "-f", commands, g.disks[0]); err != nil {
		return nil, err
	}
	return g, workload.TouchDatabase(g.disks[1], 1, 128<<20)
}

// system runs a program of the system, wherever it is installed.
func system(ctx context.Context, name string, args ...string) error {
	_, _, err := measure.Run(ctx, measure.Command{Args: append([]string{workload.Program(name)}, args...), Env: []string{"LC_ALL=C"}})
	return err
}

// sumTree returns the SHA-256 of each regular file below dir, by its path there.
func sumTree(dir string) (map[string]string, error) {
	sums := make(map[string]string)
	err := filepath.WalkDir(dir, func(name string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		rel, err := filepath.Rel(dir, name)
		if err == nil {
			sums[rel], err = sumFile(name)
		}
		return err
	})
	return sums, err
}

func sumFile(name string) (string, error) {
	f, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

func compareFiles(a, b string) error {
	f, err := os.Open(a)
	if err != nil {
		return err
	}
	defer f.Close()
	return compare(f, a, b)
}

// compare reads r to its end and compares it with the content of the file.
func compare(r io.Reader, name, file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	p, q := make([]byte, 1<<20), make([]byte, 1<<20)
	for at := int64(0); ; {
		n, err := io.ReadFull(r, p)
		m, err2 := io.ReadFull(f, q)
		if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
			return fmt.Errorf("%s: %w", name, err)
		}
		if n != m || !bytes.Equal(p[:n], q[:m]) {
			return fmt.Errorf("%s differs from %s at or after byte %d", name, file, at)
		}
		if err != nil {
			if err2 != io.EOF && err2 != io.ErrUnexpectedEOF {
				return fmt.Errorf("%s: %w", file, err2)
			}
			return nil
		}
		at += int64(n)
	}
}

// compareVDI lets the pool export a VDI as raw bytes, a path that neither backup
// nor restore uses.
func (d *demo) compareVDI(ctx context.Context, uuid, file string) (err error) {
	c, err := xapi.Dial(ctx, xapi.Config{
		URL: d.pool.URL, User: d.pool.User, Password: d.pool.Password, UserAgent: "xenkeep-demo",
		Trust: xapi.Trust{Fingerprints: []string{d.pool.Fingerprint}},
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close(ctx)) }()
	vdi, err := c.VDIByUUID(ctx, uuid)
	if err != nil {
		return err
	}
	e, err := c.ExportVDI(ctx, xapi.ExportOptions{VDI: vdi, Format: xapi.FormatRaw})
	if err != nil {
		return err
	}
	defer e.Close(ctx)
	if err := compare(e, "VDI "+uuid, file); err != nil {
		return err
	}
	return e.Finish(ctx)
}
