package job_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"xenkeep/chunkstore/object"
	"xenkeep/chunkstore/object/mem"
	"xenkeep/job"
	"xenkeep/repo"
	"xenkeep/xapi"
	"xenkeep/xapi/xapisim"
)

// mark puts marks on an object; "alive" is how long ago.
func (w *world) mark(class string, ref xapi.Ref, repository, run, role, machine, process string, alive time.Duration) {
	w.t.Helper()
	rec, err := w.pool.Pool(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	now, err := w.pool.ServerTime(w.t.Context(), rec.Master)
	if err != nil {
		w.t.Fatal(err)
	}
	for k, v := range map[string]string{
		"repository": repository, "run": run, "role": role, "machine": machine, "process": process, "job": "j",
		"alive": now.Add(-alive).UTC().Format(time.RFC3339),
	} {
		if err := w.pool.SetOtherConfig(w.t.Context(), class, ref, "xenkeep:"+k, v); err != nil {
			w.t.Fatal(err)
		}
	}
}

func (w *world) vdi(name string, size int64) xapi.Ref {
	w.t.Helper()
	sr, err := w.pool.FindSR(w.t.Context(), w.sim.Ready().SRs[0].UUID)
	if err != nil {
		w.t.Fatal(err)
	}
	ref, err := w.pool.CreateVDI(w.t.Context(), xapi.VDIFields{Name: name, SR: sr.Ref, Size: size})
	if err != nil {
		w.t.Fatal(err)
	}
	return ref
}

func (w *world) cleanup(o job.CleanupOptions) map[string]job.Leftover {
	w.t.Helper()
	rep, err := job.Cleanup(w.t.Context(), w.repo, w.pool, o)
	if err != nil {
		w.t.Fatal(err)
	}
	if err := rep.Err(); err != nil {
		w.t.Error(err)
	}
	found := make(map[string]job.Leftover)
	for _, l := range rep.Found {
		found[l.Name] = l
	}
	return found
}

func (w *world) there(ref xapi.Ref) bool {
	w.t.Helper()
	_, err := w.pool.VDI(w.t.Context(), ref)
	if err != nil && !xapi.IsCode(err, xapi.HandleInvalid) {
		w.t.Fatal(err)
	}
	return err == nil
}

// Who is dead, and what goes.
func TestCleanupJudges(t *testing.T) {
	w := newWorld(t, xapisim.Config{})
	mine, other := w.repo.ID(), strings.Repeat("ab", 16)
	run := func(n int) string { return fmt.Sprintf("%032x", n) }
	cases := []struct {
		name, repository, role, machine string
		alive                           time.Duration
		foreign                         bool // removed with --foreign --older-than 24h
		state, action                   string
	}{
		{"fresh elsewhere", mine, "restore", "elsewhere", 0, false, job.StateLive, job.ActNone},
		{"paused elsewhere", mine, "restore", "elsewhere", 59 * time.Minute, false, job.StateLive, job.ActNone},
		{"silent elsewhere", mine, "restore", "elsewhere", 61 * time.Minute, false, job.StateDead, job.ActRemove},
		{"foreign and fresh", other, "restore", "elsewhere", 0, false, job.StateForeign, job.ActNone},
		{"foreign and silent", other, "restore", "elsewhere", 23 * time.Hour, false, job.StateForeign, job.ActNone},
		{"foreign and old", other, "restore", "elsewhere", 25 * time.Hour, true, job.StateForeign, job.ActNone},
		{"copied with marks", mine, "snapshot", "elsewhere", 48 * time.Hour, false, "", ""},
		{"base", mine, "base", "elsewhere", 48 * time.Hour, false, "", ""},
	}
	refs := make(map[string]xapi.Ref)
	for i, c := range cases {
		refs[c.name] = w.vdi(c.name, mib)
		w.mark("VDI", refs[c.name], c.repository, run(i), c.role, c.machine, "boot 1 2 pid:[3] id", c.alive)
	}
	unmarked := w.vdi("of another tool", mib)
	before := w.sim.Dump()
	check := func(found map[string]job.Leftover) {
		t.Helper()
		for _, c := range cases {
			l := found[c.name]
			if l.State != c.state || l.Action != c.action {
				t.Errorf("%s: %s, %s; want %s, %s", c.name, l.State, l.Action, c.state, c.action)
			}
		}
	}
	check(w.cleanup(job.CleanupOptions{DryRun: true}))
	samePool(t, before, w.sim.Dump())
	check(w.cleanup(job.CleanupOptions{}))
	for _, c := range cases {
		if w.there(refs[c.name]) == (c.action == job.ActRemove) {
			t.Errorf("%s: there: %v", c.name, w.there(refs[c.name]))
		}
	}
	w.cleanup(job.CleanupOptions{Foreign: true, OlderThan: 24 * time.Hour})
	for _, c := range cases {
		if w.there(refs[c.name]) == (c.action == job.ActRemove || c.foreign) {
			t.Errorf("with foreign, %s: there: %v", c.name, w.there(refs[c.name]))
		}
	}
	if !w.there(unmarked) {
		t.Error("a disk without marks is gone")
	}
}

// A VM snapshot that was not marked yet is known by its name, and its VDI
// snapshots by it: if no claim is alive, and in the right repository.
func TestCleanupByName(t *testing.T) {
	w := newWorld(t, xapisim.Config{})
	before := w.sim.Dump()
	ctx := t.Context()
	vm, err := w.pool.FindVM(ctx, "web")
	if err != nil {
		t.Fatal(err)
	}
	run := strings.Repeat("cd", 16)
	name := "xenkeep " + w.repo.ID()[:8] + " " + run[:16]
	if _, err := w.pool.SnapshotVM(ctx, vm.Ref, name); err != nil {
		t.Fatal(err)
	}
	claim := &repo.Claim{Run: run, Machine: "elsewhere", Started: time.Now()}
	if err := w.repo.PutClaim(ctx, claim); err != nil {
		t.Fatal(err)
	}
	if l := w.cleanup(job.CleanupOptions{})[name]; l.State != job.StateLive {
		t.Errorf("with a claim: %+v", l)
	}
	// Nor does another backup of the VM begin.
	if _, err := job.Backup(ctx, w.repo, w.pool, w.options("web")); !errors.Is(err, job.ErrBusy) {
		t.Errorf("a second backup of the VM: %v", err)
	}
	foreign, err := repo.Init(ctx, mem.New(), repo.Options{Secret: secret})
	if err != nil {
		t.Fatal(err)
	}
	rep, err := job.Cleanup(ctx, foreign, w.pool, job.CleanupOptions{Foreign: true, OlderThan: 24 * time.Hour})
	if err != nil || len(rep.Found) != 3 {
		t.Fatal(err, rep)
	}
	for _, l := range rep.Found {
		if l.State != job.StateForeign || l.Action != job.ActNone {
			t.Errorf("seen from another repository: %+v", l)
		}
	}
	if err := w.repo.DropClaim(ctx, claim); err != nil {
		t.Fatal(err)
	}
	if found := w.cleanup(job.CleanupOptions{}); found[name].State != job.StateDead {
		t.Errorf("without a claim: %+v", found)
	}
	w.sim.GC()
	samePool(t, before, w.sim.Dump())
}

// A run that is under way says so, by the pool's clock, on all it has made.
func TestLeaseIsRenewed(t *testing.T) {
	w := newWorld(t, xapisim.Config{})
	w.sim.Fault(xapisim.Fault{On: "/export_raw_vdi", Stall: true, Cut: true, CutAt: mib, Times: -1})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error)
	go func() {
		o := w.options("web")
		o.RenewEvery = 20 * time.Millisecond
		_, err := job.Backup(ctx, w.repo, w.pool, o)
		done <- err
	}()
	alive := func() map[xapi.Ref]string {
		m := make(map[xapi.Ref]string)
		vdis, err := w.pool.VDIs(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range vdis {
			if v.OtherConfig["xenkeep:role"] == "snapshot" && v.OtherConfig["xenkeep:alive"] != "" {
				m[v.Ref] = v.OtherConfig["xenkeep:alive"]
			}
		}
		return m
	}
	wait := func(what string, ok func() bool) {
		t.Helper()
		for end := time.Now().Add(4 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal(what)
			}
		}
	}
	var first map[xapi.Ref]string
	wait("two disks are never marked", func() bool { first = alive(); return len(first) == 2 })
	wait("the marks are not renewed", func() bool {
		now := alive()
		for ref, at := range first {
			if now[ref] <= at {
				return false
			}
		}
		return true
	})
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// Some VMs and disks at once: all right, each published once, and with one that
// hangs the others end.
func TestManyAtOnce(t *testing.T) {
	dir := t.TempDir()
	cfg := xapisim.Config{}
	sums := make(map[string][]string)
	for i := range 4 {
		c := xapisim.VMConfig{Name: fmt.Sprint("vm", i)}
		for j := range 3 {
			f := image(t, filepath.Join(dir, fmt.Sprintf("%d-%d.img", i, j)), 4*mib, uint64(10*i+j+1), 6)
			c.Disks = append(c.Disks, f)
			sums[c.Name] = append(sums[c.Name], fileSum(t, f))
		}
		cfg.VMs = append(cfg.VMs, c)
	}
	w := newWorld(t, cfg)
	before := w.sim.Dump()
	o := w.options()
	o.All, o.VMConcurrency, o.DiskConcurrency = true, 3, 2
	for range 2 {
		s := w.backup(o)
		if len(s.Snapshots) != 4 {
			t.Fatalf("%d snapshots", len(s.Snapshots))
		}
		for _, v := range s.Snapshots {
			for i, d := range w.snapshot(v.ID).Disks {
				if d.Device != fmt.Sprintf("xvd%c", 'a'+i) || w.restoredTo(w.snapshot(v.ID), d.Device) != sums[v.VMName][i] {
					t.Errorf("%s: disk %d (%s) comes back otherwise", v.VMName, i, d.Device)
				}
			}
		}
	}
	w.clean()
	w.sim.Fault(xapisim.Fault{On: "/export_raw_vdi", Stall: true, Cut: true, CutAt: 100})
	o.Keep = job.KeepNone
	s, err := job.Backup(t.Context(), w.repo, w.pool, o)
	if err != nil && (!errors.Is(err, job.ErrPartial) || len(s.Failed) != 1 || len(s.Snapshots) != 3) {
		t.Errorf("with a disk that hangs: %v, %+v", err, s)
	}
	w.backup(o)
	w.sim.GC()
	samePool(t, before, w.sim.Dump())
	w.clean()
}

// A run of many VMs publishes the first of them while it reads the others.
func TestPublishBesideReading(t *testing.T) {
	dir := t.TempDir()
	cfg := xapisim.Config{}
	sums := make(map[string]string)
	for i := range 6 {
		p := make([]byte, 26<<20) // more than may lie in open packs
		_, _ = rand.NewChaCha8([32]byte{byte(i), 77}).Read(p)
		f := filepath.Join(dir, fmt.Sprint(i, ".img"))
		if err := os.WriteFile(f, p, 0o600); err != nil {
			t.Fatal(err)
		}
		cfg.VMs = append(cfg.VMs, xapisim.VMConfig{Name: fmt.Sprint("vm", i), Disks: []string{f}})
		sums[fmt.Sprint("vm", i)] = fileSum(t, f)
	}
	w := newWorld(t, cfg)
	o := w.options()
	o.All, o.VMConcurrency = true, 3
	s := w.backup(o)
	if len(s.Snapshots) != len(sums) {
		t.Fatalf("%d snapshots", len(s.Snapshots))
	}
	indexes := 0
	if err := w.objects.List(t.Context(), "index/", func(object.Info) error { indexes++; return nil }); err != nil {
		t.Fatal(err)
	}
	if indexes < 2 {
		t.Errorf("all was published at once, at the end")
	}
	for _, v := range s.Snapshots {
		if w.restoredTo(w.snapshot(v.ID), "xvda") != sums[v.VMName] {
			t.Errorf("%s comes back otherwise", v.VMName)
		}
	}
	w.clean()
}

// Of two runs of one repository that begin with one VM at once, at most one
// has it, and the other says why not.
func TestTwoRunsOneVM(t *testing.T) {
	w := newWorld(t, xapisim.Config{})
	before := w.sim.Dump()
	type result struct {
		s   *job.Summary
		err error
	}
	done := make(chan result)
	for i := range 2 {
		r, err := repo.Open(t.Context(), w.objects, repo.Options{Secret: secret})
		if err != nil {
			t.Fatal(err)
		}
		if err := r.LoadIndex(t.Context()); err != nil {
			t.Fatal(err)
		}
		pool := w.dial()
		o := w.options("web")
		o.Job, o.Keep = fmt.Sprint("job", i), job.KeepNone
		go func() {
			s, err := job.Backup(t.Context(), r, pool, o)
			done <- result{s, err}
		}()
	}
	for range 2 {
		if r := <-done; r.err != nil && !errors.Is(r.err, job.ErrBusy) {
			t.Errorf("%v", r.err)
		} else if r.err != nil && strings.Contains(r.s.Failed[0].Error, "\n") {
			t.Errorf("more than a line: %q", r.s.Failed[0].Error)
		}
	}
	w.sim.GC()
	samePool(t, before, w.sim.Dump())
	w.clean()
}

// A run that died once its snapshot was published, and before it had settled
// the pool, leaves what the next backup builds on.
func TestCleanupKeepsBases(t *testing.T) {
	w := newWorld(t, xapisim.Config{})
	w.backup(w.options("web"))
	vdis, err := w.pool.VDIs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range vdis {
		if v.OtherConfig["xenkeep:role"] == "base" {
			if err := w.pool.SetOtherConfig(t.Context(), "VDI", v.Ref, "xenkeep:role", "snapshot"); err != nil {
				t.Fatal(err)
			}
		}
	}
	before := w.sim.Dump()
	found := w.cleanup(job.CleanupOptions{DryRun: true})
	if len(found) != 2 {
		t.Errorf("%+v", found)
	}
	for _, l := range found {
		if l.State != job.StateDead || l.Action != job.ActBase {
			t.Errorf("%+v", l)
		}
	}
	samePool(t, before, w.sim.Dump())
	for _, d := range w.backup(w.options("web")).Snapshots[0].Disks {
		if d.Method != "vhd-delta" {
			t.Errorf("%s: %s", d.Method, d.Reason)
		}
	}
	if n := len(w.bases()); n != 2 {
		t.Errorf("%d bases", n)
	}
}

// Row X7 of the fault list: a base whose disk is gone goes with it, whether its
// snapshot_of dangles or is null, and with or without data of its own. Another
// repository's base goes with --foreign alone, and the base of a disk that is
// there stays.
func TestCleanupOrphanedBases(t *testing.T) {
	for _, c := range []struct {
		what string
		keep job.Keep
		nbd  xapisim.NBDMode
		scan bool
	}{
		{"dangling, with data", job.KeepSnapshot, "", false},
		{"null, with data", job.KeepSnapshot, "", true},
		{"dangling, a list of changes", job.KeepCBT, xapisim.NBDTLS, false},
		{"null, a list of changes", job.KeepCBT, xapisim.NBDTLS, true},
	} {
		t.Run(c.what, func(t *testing.T) {
			w := newWorld(t, xapisim.Config{NBD: c.nbd})
			o := w.options("web")
			o.Keep = c.keep
			w.backup(o)
			ctx := t.Context()
			first := w.vdiOf(w.sim.Ready().VMs[0].Disks[0].VDI)
			for _, ref := range first.VBDs { // the disk of a VM that is halted goes
				w.halt("web")
				w.must(nil, "VBD.destroy", ref)
			}
			w.must(nil, "VDI.destroy", first.Ref)
			if c.scan {
				w.must(nil, "SR.scan", first.SR)
			}
			var base xapi.VDI
			vdis, err := w.pool.VDIs(ctx)
			if err != nil {
				t.Fatal(err)
			}
			for _, v := range vdis {
				if v.OtherConfig["xenkeep:role"] == "base" && v.OtherConfig["xenkeep:repository"] == w.repo.ID() && v.NameLabel == first.NameLabel {
					base = v
				}
			}
			if base.Ref.IsNull() || base.SnapshotOf.IsNull() != c.scan {
				t.Fatalf("base %s of %s", base.Ref, base.SnapshotOf)
			}
			found := w.cleanup(job.CleanupOptions{DryRun: true})
			if len(found) != 1 {
				t.Errorf("found %+v", found)
			}
			if l := found[base.NameLabel]; l.Role != "base" || l.State != job.StateDead || l.Action != job.ActRemove || l.UUID != base.UUID {
				t.Errorf("%+v", l)
			}
			if !w.there(base.Ref) {
				t.Fatal("a dry run removed it")
			}
			// Seen from another repository it is foreign, and young.
			foreign, err := repo.Init(ctx, mem.New(), repo.Options{Secret: secret})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := job.Cleanup(ctx, foreign, w.pool, job.CleanupOptions{Foreign: true, OlderThan: time.Hour}); err != nil || !w.there(base.Ref) {
				t.Fatalf("another repository's cleanup removed a young base: %v", err)
			}
			w.cleanup(job.CleanupOptions{})
			if w.there(base.Ref) {
				t.Error("it stays")
			}
			if n := w.bases(); len(n) != 1 {
				t.Errorf("bases: %v", n)
			}
		})
	}
}
