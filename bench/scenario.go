package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"xenkeep/bench/measure"
	"xenkeep/bench/workload"

	"golang.org/x/sys/unix"
)

// The operations of a scenario, in their order.
const (
	opFull    = "full backup"
	opDayTwo  = "day two"
	opRestore = "restore"
	opOther   = "second VM"
	opOld     = "sector 63"
)

// A step is one operation on one VM.
type step struct {
	op    string
	vm    string
	image string // name of the VM's disk image
	data  int64  // bytes of the image that are not holes
}

// A scenario is a number of steps that share a repository.
type scenario struct {
	name  string
	disks map[string]string // for each VM on day one
	steps []step
}

func twoDays(name string, img workload.Image) scenario {
	return scenario{
		name: name, disks: map[string]string{img.Name: img.DayOne},
		steps: []step{
			{opFull, img.Name, img.DayOne, img.Data},
			{opDayTwo, img.Name, img.DayTwo, img.Data2},
		},
	}
}

// imagesOf lists the images that a scenario needs.
var imagesOf = map[string][]string{
	"thin":    {workload.Thin, workload.Other, workload.Old},
	"full":    {workload.Full},
	"archive": {workload.Archive},
	"dump":    {workload.Dump},
	"memory":  nil,
	"keep":    nil,
	"serve":   {workload.Thin},
	"tracked": {workload.Full, workload.Thin, workload.Other, workload.Old},
}

func newScenario(name string, images map[string]workload.Image) scenario {
	img := images[imagesOf[name][0]]
	s := twoDays(name, img)
	if name == "archive" || name == "dump" {
		return s
	}
	s.steps = append(s.steps, step{opRestore, img.Name, img.DayTwo, img.Data2})
	if name == "thin" {
		other, old := images[workload.Other], images[workload.Old]
		s.disks[other.Name], s.disks[old.Name] = other.DayOne, old.DayOne
		s.steps = append(s.steps, step{opOther, other.Name, other.DayOne, other.Data}, step{opOld, old.Name, old.DayOne, old.Data})
	}
	return s
}

// round runs a scenario once with all tools, each step with one tool after the
// other, in an order that rotates with the round's number, and adds the
// measurements to the results.
func (b *bench) round(ctx context.Context, s scenario, n int) (err error) {
	dir, err := os.MkdirTemp(b.dir, "round-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	tools := b.tools()
	defer func() {
		for _, t := range tools {
			if eerr := t.end(); err == nil {
				err = eerr
			}
		}
	}()
	for _, t := range tools {
		home := filepath.Join(dir, t.name())
		if err := os.MkdirAll(home, 0o755); err != nil {
			return err
		}
		if err := t.begin(ctx, home, s.disks); err != nil {
			return fmt.Errorf("%s: %w", t.name(), err)
		}
	}
	for _, st := range s.steps {
		for i := range tools {
			t := tools[(i+n)%len(tools)]
			if err := b.step(ctx, s, st, t, dir, n); err != nil {
				return fmt.Errorf("%s, %s, %s: %w", s.name, st.op, t.name(), err)
			}
		}
	}
	return nil
}

func (b *bench) step(ctx context.Context, s scenario, st step, t tool, dir string, n int) error {
	if st.op == opDayTwo {
		if err := t.replace(ctx, st.vm, st.image); err != nil {
			return err
		}
	}
	warm := []string{st.image}
	if st.op == opRestore {
		warm = filesBelow(t.repository())
	}
	if _, err := measure.Warm(warm...); err != nil {
		return err
	}
	// Data that the step before wrote must not be counted in this step.
	unix.Sync()
	load := measure.Load()
	var c cost
	var err error
	if st.op == opRestore {
		to := filepath.Join(dir, "restored-"+t.name())
		if err := os.Mkdir(to, 0o755); err != nil {
			return err
		}
		defer os.RemoveAll(to)
		var file string
		if file, c, err = t.restore(ctx, st.vm, to); err != nil {
			return err
		}
		if n == 0 {
			if err := sameFiles(file, st.image); err != nil {
				return err
			}
		}
	} else if c, err = t.backup(ctx, st.vm); err != nil {
		return err
	}
	size, err := folderBytes(t.repository())
	if err != nil {
		return err
	}
	b.results.add(s.name, st, t.name(), c, size, load)
	b.note("%-8s %-12s %-8s %7.2f s  CPU %6.2f s  anon %4d MiB  repository %6d MiB  load %.1f  %s",
		s.name, st.op, t.name(), c.Wall.Seconds(), c.CPU.Seconds(), c.PeakAnon>>20, size>>20, load, c.note)
	return nil
}

func filesBelow(dir string) (files []string) {
	_ = filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			files = append(files, path)
		}
		return nil
	})
	return files
}

// sameFiles compares two files byte for byte.
func sameFiles(a, b string) error {
	f, err := os.Open(a)
	if err != nil {
		return err
	}
	defer f.Close()
	g, err := os.Open(b)
	if err != nil {
		return err
	}
	defer g.Close()
	p, q := make([]byte, 1<<20), make([]byte, 1<<20)
	for at := int64(0); ; {
		n, err := io.ReadFull(f, p)
		m, err2 := io.ReadFull(g, q)
		if n != m || !bytes.Equal(p[:n], q[:m]) {
			return fmt.Errorf("%s and %s differ at or after byte %d", a, b, at)
		}
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			return nil
		}
		if err != nil || err2 != nil {
			return fmt.Errorf("compare %s and %s: %v, %v", a, b, err, err2)
		}
		at += int64(n)
	}
}
