package lease_test

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
	"xenkeep/job/backup"
	"xenkeep/job/doctor"
	"xenkeep/job/jobtest"
	"xenkeep/job/lease"
	"xenkeep/repo"
	"xenkeep/xapi"
	"xenkeep/xapi/xapisim"
)

// Which runs are dead, and which of their objects are removed.
func TestCleanupClassifies(t *testing.T) {
	w := jobtest.New(t, xapisim.Config{})
	mine, other := w.Repo.ID(), strings.Repeat("ab", 16)
	run := func(n int) string { return fmt.Sprintf("%032x", n) }
	cases := []struct {
		name, repository, role, machine string
		alive                           time.Duration
		foreign                         bool // removed with --foreign --older-than 24h
		state, action                   string
	}{
		{"fresh elsewhere", mine, "restore", "elsewhere", 0, false, lease.StateLive, lease.ActNone},
		{"paused elsewhere", mine, "restore", "elsewhere", 59 * time.Minute, false, lease.StateLive, lease.ActNone},
		{"silent elsewhere", mine, "restore", "elsewhere", 61 * time.Minute, false, lease.StateDead, lease.ActRemove},
		{"foreign and fresh", other, "restore", "elsewhere", 0, false, lease.StateForeign, lease.ActNone},
		{"foreign and silent", other, "restore", "elsewhere", 23 * time.Hour, false, lease.StateForeign, lease.ActNone},
		{"foreign and old", other, "restore", "elsewhere", 25 * time.Hour, true, lease.StateForeign, lease.ActNone},
		{"copied with marks", mine, "snapshot", "elsewhere", 48 * time.Hour, false, "", ""},
		{"base", mine, "base", "elsewhere", 48 * time.Hour, false, "", ""},
	}
	refs := make(map[string]xapi.Ref)
	for i, c := range cases {
		refs[c.name] = w.VDI(c.name, jobtest.MiB)
		w.Mark("VDI", refs[c.name], c.repository, run(i), c.role, c.machine, "boot 1 2 pid:[3] id", c.alive)
	}
	unmarked := w.VDI("of another tool", jobtest.MiB)
	before := w.Sim.Dump()
	check := func(found map[string]lease.Leftover) {
		t.Helper()
		for _, c := range cases {
			l := found[c.name]
			if l.State != c.state || l.Action != c.action {
				t.Errorf("%s: %s, %s; want %s, %s", c.name, l.State, l.Action, c.state, c.action)
			}
		}
	}
	check(w.Cleanup(lease.CleanupOptions{DryRun: true}))
	jobtest.SamePool(t, before, w.Sim.Dump())
	check(w.Cleanup(lease.CleanupOptions{}))
	for _, c := range cases {
		if w.Exists(refs[c.name]) == (c.action == lease.ActRemove) {
			t.Errorf("%s: there: %v", c.name, w.Exists(refs[c.name]))
		}
	}
	w.Cleanup(lease.CleanupOptions{Foreign: true, OlderThan: 24 * time.Hour})
	for _, c := range cases {
		if w.Exists(refs[c.name]) == (c.action == lease.ActRemove || c.foreign) {
			t.Errorf("with foreign, %s: there: %v", c.name, w.Exists(refs[c.name]))
		}
	}
	if !w.Exists(unmarked) {
		t.Error("a disk without marks was removed")
	}
}

// A VM snapshot that is not marked yet is recognized by its name, and its VDI
// snapshots by the VM snapshot; it is removed if no claim is alive, and only by
// cleanup of its own repository.
func TestCleanupByName(t *testing.T) {
	w := jobtest.New(t, xapisim.Config{})
	before := w.Sim.Dump()
	ctx := t.Context()
	vm, err := w.Pool.FindVM(ctx, "web")
	if err != nil {
		t.Fatal(err)
	}
	run := strings.Repeat("cd", 16)
	name := "xenkeep " + w.Repo.ID()[:8] + " " + run[:16]
	if _, err := w.Pool.SnapshotVM(ctx, vm.Ref, name); err != nil {
		t.Fatal(err)
	}
	claim := &repo.Claim{Run: run, Machine: "elsewhere", Started: time.Now()}
	if err := w.Repo.PutClaim(ctx, claim); err != nil {
		t.Fatal(err)
	}
	if l := w.Cleanup(lease.CleanupOptions{})[name]; l.State != lease.StateLive {
		t.Errorf("with a claim: %+v", l)
	}
	// Another backup of the VM does not begin either.
	if _, err := backup.Run(ctx, w.Repo, w.Pool, w.Options("web")); !errors.Is(err, job.ErrBusy) {
		t.Errorf("a second backup of the VM: %v", err)
	}
	foreign, err := repo.Init(ctx, mem.New(), repo.Options{Secret: jobtest.Secret})
	if err != nil {
		t.Fatal(err)
	}
	rep, err := lease.Cleanup(ctx, foreign, w.Pool, lease.CleanupOptions{Foreign: true, OlderThan: 24 * time.Hour})
	if err != nil || len(rep.Found) != 3 {
		t.Fatal(err, rep)
	}
	for _, l := range rep.Found {
		if l.State != lease.StateForeign || l.Action != lease.ActNone {
			t.Errorf("seen from another repository: %+v", l)
		}
	}
	if err := w.Repo.DropClaim(ctx, claim); err != nil {
		t.Fatal(err)
	}
	if found := w.Cleanup(lease.CleanupOptions{}); found[name].State != lease.StateDead {
		t.Errorf("without a claim: %+v", found)
	}
	w.Sim.GC()
	jobtest.SamePool(t, before, w.Sim.Dump())
}

// A run renews the marks of all its objects, by the pool's clock.
func TestLeaseIsRenewed(t *testing.T) {
	w := jobtest.New(t, xapisim.Config{})
	w.Sim.Fault(xapisim.Fault{On: "/export_raw_vdi", Stall: true, Cut: true, CutAt: jobtest.MiB, Times: -1})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error)
	go func() {
		o := w.Options("web")
		o.RenewEvery = 20 * time.Millisecond
		_, err := backup.Run(ctx, w.Repo, w.Pool, o)
		done <- err
	}()
	alive := func() map[xapi.Ref]string {
		m := make(map[xapi.Ref]string)
		vdis, err := w.Pool.VDIs(t.Context())
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

// Several VMs and disks are backed up concurrently, each is published once, and if one
// hangs the others end nevertheless.
func TestManyConcurrently(t *testing.T) {
	dir := t.TempDir()
	cfg := xapisim.Config{}
	sums := make(map[string][]string)
	for i := range 4 {
		c := xapisim.VMConfig{Name: fmt.Sprint("vm", i)}
		for j := range 3 {
			f := jobtest.Image(t, filepath.Join(dir, fmt.Sprintf("%d-%d.img", i, j)), 4*jobtest.MiB, uint64(10*i+j+1), 6)
			c.Disks = append(c.Disks, f)
			sums[c.Name] = append(sums[c.Name], jobtest.FileSum(t, f))
		}
		cfg.VMs = append(cfg.VMs, c)
	}
	w := jobtest.New(t, cfg)
	before := w.Sim.Dump()
	o := w.Options()
	o.All, o.VMConcurrency, o.DiskConcurrency = true, 3, 2
	for range 2 {
		s := w.Backup(o)
		if len(s.Snapshots) != 4 {
			t.Fatalf("%d snapshots", len(s.Snapshots))
		}
		for _, v := range s.Snapshots {
			for i, d := range w.Snapshot(v.ID).Disks {
				if d.Device != fmt.Sprintf("xvd%c", 'a'+i) || w.RestoredTo(w.Snapshot(v.ID), d.Device) != sums[v.VMName][i] {
					t.Errorf("%s: disk %d (%s) comes back otherwise", v.VMName, i, d.Device)
				}
			}
		}
	}
	w.CheckRepository()
	w.Sim.Fault(xapisim.Fault{On: "/export_raw_vdi", Stall: true, Cut: true, CutAt: 100})
	o.Keep = backup.KeepNone
	s, err := backup.Run(t.Context(), w.Repo, w.Pool, o)
	if err != nil && (!errors.Is(err, job.ErrPartial) || len(s.Failed) != 1 || len(s.Snapshots) != 3) {
		t.Errorf("with a disk that hangs: %v, %+v", err, s)
	}
	w.Backup(o)
	w.Sim.GC()
	jobtest.SamePool(t, before, w.Sim.Dump())
	w.CheckRepository()
}

// A run of many VMs publishes the first snapshots while it reads other VMs.
func TestPublishWhileReading(t *testing.T) {
	dir := t.TempDir()
	cfg := xapisim.Config{}
	sums := make(map[string]string)
	for i := range 6 {
		p := make([]byte, 26<<20) // more than the open packs can hold
		_, _ = rand.NewChaCha8([32]byte{byte(i), 77}).Read(p)
		f := filepath.Join(dir, fmt.Sprint(i, ".img"))
		if err := os.WriteFile(f, p, 0o600); err != nil {
			t.Fatal(err)
		}
		cfg.VMs = append(cfg.VMs, xapisim.VMConfig{Name: fmt.Sprint("vm", i), Disks: []string{f}})
		sums[fmt.Sprint("vm", i)] = jobtest.FileSum(t, f)
	}
	w := jobtest.New(t, cfg)
	o := w.Options()
	o.All, o.VMConcurrency = true, 3
	s := w.Backup(o)
	if len(s.Snapshots) != len(sums) {
		t.Fatalf("%d snapshots", len(s.Snapshots))
	}
	indexes := 0
	if err := w.Objects.List(t.Context(), "index/", func(object.Info) error { indexes++; return nil }); err != nil {
		t.Fatal(err)
	}
	if indexes < 2 {
		t.Errorf("everything was published together, at the end")
	}
	for _, v := range s.Snapshots {
		if w.RestoredTo(w.Snapshot(v.ID), "xvda") != sums[v.VMName] {
			t.Errorf("%s comes back otherwise", v.VMName)
		}
	}
	w.CheckRepository()
}

// If two runs of one repository begin with the same VM concurrently, at most one of
// them backs it up, and the other returns the reason.
func TestTwoRunsOneVM(t *testing.T) {
	w := jobtest.New(t, xapisim.Config{})
	before := w.Sim.Dump()
	type result struct {
		s   *job.Summary
		err error
	}
	done := make(chan result)
	for i := range 2 {
		r, err := repo.Open(t.Context(), w.Objects, repo.Options{Secret: jobtest.Secret})
		if err != nil {
			t.Fatal(err)
		}
		if err := r.LoadIndex(t.Context()); err != nil {
			t.Fatal(err)
		}
		pool := w.Dial()
		o := w.Options("web")
		o.Job, o.Keep = fmt.Sprint("job", i), backup.KeepNone
		go func() {
			s, err := backup.Run(t.Context(), r, pool, o)
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
	w.Sim.GC()
	jobtest.SamePool(t, before, w.Sim.Dump())
	w.CheckRepository()
}

// If a run died after its snapshot was published and before it had cleaned up the
// pool, the base for the next backup is kept.
func TestCleanupKeepsBases(t *testing.T) {
	w := jobtest.New(t, xapisim.Config{})
	w.Backup(w.Options("web"))
	vdis, err := w.Pool.VDIs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range vdis {
		if v.OtherConfig["xenkeep:role"] == "base" {
			if err := w.Pool.SetOtherConfig(t.Context(), "VDI", v.Ref, "xenkeep:role", "snapshot"); err != nil {
				t.Fatal(err)
			}
		}
	}
	before := w.Sim.Dump()
	found := w.Cleanup(lease.CleanupOptions{DryRun: true})
	if len(found) != 2 {
		t.Errorf("%+v", found)
	}
	for _, l := range found {
		if l.State != lease.StateDead || l.Action != lease.ActBase {
			t.Errorf("%+v", l)
		}
	}
	jobtest.SamePool(t, before, w.Sim.Dump())
	for _, d := range w.Backup(w.Options("web")).Snapshots[0].Disks {
		if d.Method != "vhd-delta" {
			t.Errorf("%s: %s", d.Method, d.Reason)
		}
	}
	if n := len(w.Bases()); n != 2 {
		t.Errorf("%d bases", n)
	}
}

// Row X7 of the fault list: cleanup removes a base whose disk does not exist any more,
// whether its snapshot_of dangles or is null, with and without data of its own. The
// base of another repository is removed only with --foreign, and the base of an
// existing disk is kept.
func TestCleanupOrphanedBases(t *testing.T) {
	for _, c := range []struct {
		what string
		keep backup.Keep
		nbd  xapisim.NBDMode
		scan bool
	}{
		{"dangling, with data", backup.KeepSnapshot, "", false},
		{"null, with data", backup.KeepSnapshot, "", true},
		{"dangling, a list of changes", backup.KeepCBT, xapisim.NBDTLS, false},
		{"null, a list of changes", backup.KeepCBT, xapisim.NBDTLS, true},
	} {
		t.Run(c.what, func(t *testing.T) {
			w := jobtest.New(t, xapisim.Config{NBD: c.nbd})
			o := w.Options("web")
			o.Keep = c.keep
			w.Backup(o)
			ctx := t.Context()
			first := w.VDIOf(w.Sim.Ready().VMs[0].Disks[0].VDI)
			for _, ref := range first.VBDs { // delete the disk of a halted VM
				w.Halt("web")
				w.Must(nil, "VBD.destroy", ref)
			}
			w.Must(nil, "VDI.destroy", first.Ref)
			if c.scan {
				w.Must(nil, "SR.scan", first.SR)
			}
			var base xapi.VDI
			vdis, err := w.Pool.VDIs(ctx)
			if err != nil {
				t.Fatal(err)
			}
			for _, v := range vdis {
				if v.OtherConfig["xenkeep:role"] == "base" && v.OtherConfig["xenkeep:repository"] == w.Repo.ID() && v.NameLabel == first.NameLabel {
					base = v
				}
			}
			if base.Ref.IsNull() || base.SnapshotOf.IsNull() != c.scan {
				t.Fatalf("base %s of %s", base.Ref, base.SnapshotOf)
			}
			found := w.Cleanup(lease.CleanupOptions{DryRun: true})
			if len(found) != 1 {
				t.Errorf("found %+v", found)
			}
			if l := found[base.NameLabel]; l.Role != "base" || l.State != lease.StateDead || l.Action != lease.ActRemove || l.UUID != base.UUID {
				t.Errorf("%+v", l)
			}
			if !w.Exists(base.Ref) {
				t.Fatal("a dry run removed it")
			}
			// For another repository it is foreign, and recent.
			foreign, err := repo.Init(ctx, mem.New(), repo.Options{Secret: jobtest.Secret})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := lease.Cleanup(ctx, foreign, w.Pool, lease.CleanupOptions{Foreign: true, OlderThan: time.Hour}); err != nil || !w.Exists(base.Ref) {
				t.Fatalf("another repository's cleanup removed a young base: %v", err)
			}
			w.Cleanup(lease.CleanupOptions{})
			if w.Exists(base.Ref) {
				t.Error("it stays")
			}
			if n := w.Bases(); len(n) != 1 {
				t.Errorf("bases: %v", n)
			}
		})
	}
}

// Row X6 of the fault list: the blocks of a killed backup that read raw disks of a VM
// are removed before the VM is started that it had shut down; those of live runs and of
// other repositories stay. The doctor reports them.
func TestCleanupUnblocksBeforeStart(t *testing.T) {
	w := jobtest.NightPool(t, xapisim.Config{}, "web")
	w.Halt("web")
	vm := w.VM("web")
	mark := func(repository string, age time.Duration) {
		head := fmt.Sprintf(`"repository":%q,"run":"00112233","machine":"elsewhere","process":"gone"`, repository)
		for k, v := range map[string]string{
			"xenkeep:offline": fmt.Sprintf(`{"vm":%q,%s}`, vm.UUID, head),
			"xenkeep:writer":  fmt.Sprintf(`{"uuid":%q,%s,"since":%q,"reads":true}`, vm.UUID, head, time.Now().Add(-age).UTC().Format(time.RFC3339)),
		} {
			if err := w.Pool.SetOtherConfig(t.Context(), "VM", vm.Ref, k, v); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, op := range lease.GuardRead.Operations() {
		w.Must(nil, "VM.add_to_blocked_operations", vm.Ref, op, lease.GuardRead.Text())
	}
	mark("another", 0)
	w.Cleanup(lease.CleanupOptions{})
	mark("another", 2*time.Hour)
	w.Cleanup(lease.CleanupOptions{})
	if now := w.VM("web"); len(now.BlockedOperations) != len(lease.GuardRead.Operations()) || now.PowerState != "Halted" {
		t.Fatalf("%v, %s", now.BlockedOperations, now.PowerState)
	}
	f, err := doctor.Blocked(t.Context(), w.Pool)
	if err != nil || len(f) != 1 || f[0].Text != "start is blocked by a backup that has ended" || !strings.Contains(f[0].Hint, "which the backup went to") {
		t.Errorf("%+v %v", f, err)
	}
	mark(w.Repo.ID(), 0)
	rep, err := lease.Cleanup(t.Context(), w.Repo, w.Pool, lease.CleanupOptions{DryRun: true})
	if err != nil || len(rep.Found) != 2 || rep.Found[0].Action != lease.ActUnblock || rep.Found[0].Role != "read" || rep.Found[1].Action != lease.ActStart {
		t.Fatalf("%+v %v", rep, err)
	}
	w.Cleanup(lease.CleanupOptions{})
	now := w.VM("web")
	if now.PowerState != "Running" || len(now.BlockedOperations) > 0 || now.OtherConfig["xenkeep:writer"] != "" || now.OtherConfig["xenkeep:offline"] != "" {
		t.Errorf("%s, %v, %v", now.PowerState, now.BlockedOperations, now.OtherConfig)
	}
}
