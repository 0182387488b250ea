package nightly

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"xenkeep/chunkstore/object/all"
	"xenkeep/chunkstore/slot"
	"xenkeep/job"
	"xenkeep/job/config"
	"xenkeep/job/report"
	"xenkeep/repo"
	"xenkeep/repo/check"
	"xenkeep/xapi"
	"xenkeep/xapi/xapisim"
)

const mib = 1 << 20

// house is a simulated pool, a repository in a folder, and a clock.
type house struct {
	t    *testing.T
	dir  string
	sim  *xapisim.Pool
	now  time.Time
	size int64
	cfg  *config.Config
}

var key = slot.Secret{KeyFile: bytes.Repeat([]byte{3}, 32)}

// packs returns the files of all packs of the repository.
func (h *house) packs() []string {
	h.t.Helper()
	names, err := filepath.Glob(filepath.Join(h.dir, "repo", "packs", "*", "*"))
	if err != nil || len(names) == 0 {
		h.t.Fatalf("no packs: %v", err)
	}
	return names
}

// damage changes the content of files, which may be write-protected.
func (h *house) damage(files []string, change func(p []byte)) {
	h.t.Helper()
	for _, name := range files {
		p, err := os.ReadFile(name)
		if err != nil {
			h.t.Fatal(err)
		}
		change(p)
		_ = os.Chmod(name, 0o600)
		if err := os.WriteFile(name, p, 0o600); err != nil {
			h.t.Fatal(err)
		}
	}
}

func newHouse(t *testing.T, toml string, vms, disks int, size int64) *house {
	t.Helper()
	return newHouseOn(t, xapisim.Config{}, toml, vms, disks, size)
}

func newHouseOn(t *testing.T, cfg xapisim.Config, toml string, vms, disks int, size int64) *house {
	t.Helper()
	h := &house{t: t, dir: t.TempDir(), now: time.Now(), size: size}
	cfg.Scale, cfg.CancelDelay, cfg.LoginDelay = 0.001, time.Millisecond, time.Millisecond
	for v := range vms {
		vm := xapisim.VMConfig{Name: fmt.Sprintf("vm%d", v), Drivers: true}
		for d := range disks {
			vm.Disks = append(vm.Disks, h.image(v*disks+d, 0))
		}
		cfg.VMs = append(cfg.VMs, vm)
	}
	var err error
	if h.sim, err = xapisim.New(cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = h.sim.Close() })
	objects, err := all.Create(t.Context(), filepath.Join(h.dir, "repo"), all.Options{})
	if err != nil {
		t.Fatal(err)
	}
	r, err := repo.Init(t.Context(), objects, repo.Options{Secret: key})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if h.cfg, err = config.Parse("test", []byte("[repository]\nlocation='x'\n[pools.p]\nurl='x'\n"+toml)); err != nil {
		t.Fatal(err)
	}
	return h
}

// image writes the content of a disk on a night: a part of it is new each night.
func (h *house) image(disk, night int) string {
	h.t.Helper()
	p := make([]byte, h.size)
	fill := func(from, to int64, seed uint64) {
		src := rand.NewChaCha8([32]byte{byte(disk), byte(seed), byte(seed >> 8)})
		_, _ = src.Read(p[from:to])
	}
	fill(0, h.size/4, 1000)
	fill(h.size/4, h.size/2, uint64(night))
	name := filepath.Join(h.dir, fmt.Sprintf("disk%d", disk))
	if night > 0 { // the pool reads the first ones in place
		name = filepath.Join(h.dir, "written")
	}
	if err := os.WriteFile(name, p, 0o600); err != nil {
		h.t.Fatal(err)
	}
	return name
}

func (h *house) open(ctx context.Context) (*repo.Repository, error) {
	objects, err := all.Open(ctx, filepath.Join(h.dir, "repo"), all.Options{})
	if err != nil {
		return nil, err
	}
	r, err := repo.Open(ctx, objects, repo.Options{Secret: key, CacheDir: filepath.Join(h.dir, "cache")})
	if err != nil {
		return nil, errors.Join(err, objects.Close())
	}
	return r, r.LoadIndex(ctx)
}

func (h *house) night(name string) Night {
	j, err := h.cfg.Job(name)
	if err != nil {
		h.t.Fatal(err)
	}
	return Night{
		Job: j, Notify: h.cfg.Notifications(j), Open: h.open, StateDir: filepath.Join(h.dir, "state"), Machine: "m", ConfigFile: "c",
		Now: func() time.Time { return h.now },
		Dial: func(ctx context.Context) (*xapi.Client, error) {
			return xapi.Dial(ctx, xapi.Config{URL: h.sim.URL(), User: h.sim.User(), Password: h.sim.Password(), Trust: xapi.Trust{Fingerprints: h.sim.Fingerprints()}, Pace: 0.01})
		},
	}
}

// standing returns the objects of a pool that a night must not change.
func (h *house) standing() map[string]bool {
	h.sim.GC()
	set := make(map[string]bool)
	for class, objects := range h.sim.Dump() {
		for ref, o := range objects {
			switch class {
			case "VM", "VBD", "VIF", "task":
				set[class+" "+ref] = true
			case "VDI":
				if o["managed"] == true && o["is_a_snapshot"] != true {
					set[class+" "+ref] = true
				}
			}
		}
	}
	return set
}

// bases counts VDI snapshots; each must be a base.
func (h *house) bases() int {
	n := 0
	for _, o := range h.sim.Dump()["VDI"] {
		if o["is_a_snapshot"] != true {
			continue
		}
		n++
		if o["other_config"].(map[string]any)["xenkeep:role"] != "base" {
			h.t.Errorf("VDI snapshot %v stays", o["uuid"])
		}
	}
	return n
}

// heap returns the bytes in use: the buffers that a pool of buffers releases are freed
// at the second collection.
func heap() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// Many nights: after each, the pool is unchanged, memory does not grow, and retention
// and prune follow the config. XENKEEP_SOAK=full is ten VMs of two disks and twenty
// nights.
func TestSoak(t *testing.T) {
	vms, nights, keep, size := 2, 8, 2, int64(4*mib)
	if os.Getenv("XENKEEP_SOAK") == "full" {
		vms, nights, keep, size = 10, 20, 4, 16*mib
	} else if testing.Short() {
		t.Skip("SKIP: many nights")
	}
	h := newHouse(t, fmt.Sprintf("[jobs.n]\nselect={all=true}\nkeep={last=%d}\ngrace='0'\nprune='daily'\ncheck={every='weekly', budget='1G'}\npool-metadata=true\n", keep), vms, 2, size)
	before := h.standing()
	var first, freed, largest int64
	checks, goroutines := 0, 0
	for n := 1; n <= nights; n++ {
		rep, err := Run(t.Context(), h.night("n"))
		if err != nil || rep.State != report.OK || len(rep.VMs) != vms || rep.Count(report.OK) != vms || len(rep.Warnings) > 0 {
			t.Fatalf("night %d: %v %+v", n, err, rep)
		}
		after := h.standing()
		for what := range after {
			if !before[what] {
				t.Errorf("night %d: %s is new", n, what)
			}
		}
		for what := range before {
			if !after[what] {
				t.Errorf("night %d: %s was deleted", n, what)
			}
		}
		if got := h.bases(); got != 2*vms {
			t.Errorf("night %d: %d bases", n, got)
		}
		freed += rep.Freed
		if rep.Pruned != "done" {
			t.Errorf("night %d: prune %s", n, rep.Pruned)
		}
		if rep.Checked == "clean" {
			checks++
		}
		r, err := h.open(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		all, bad, err := r.Snapshots(t.Context())
		if err != nil || len(bad) > 0 || len(all) != (vms+1)*min(n, keep) {
			t.Errorf("night %d: %d snapshots, %v %v", n, len(all), bad, err)
		}
		_ = r.Close()
		now, running := heap(), runtime.NumGoroutine()
		largest = max(largest, now)
		t.Logf("night %d: %d KiB freed, %d forgotten, heap %d KiB, %d goroutines", n, rep.Freed>>10, len(rep.Forgotten), now>>10, running)
		if n == keep+3 { // by now prune deletes and copies, too
			first, goroutines = now, running
		} else if n > keep+3 && (now-first > 4*mib || running > goroutines+20) {
			t.Errorf("night %d: the heap grew from %d to %d KiB, goroutines from %d to %d", n, first>>10, now>>10, goroutines, running)
		}
		h.now = h.now.Add(24*time.Hour + 3*time.Minute)
		for i, vm := range h.sim.Ready().VMs {
			for d, disk := range vm.Disks {
				if _, err := h.sim.GuestWrite(disk.VDI, h.image(2*i+d, n)); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	r, err := h.open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	rep, err := check.Run(t.Context(), r, check.Options{ReadData: true})
	if err != nil || len(rep.Findings) > 0 || rep.Claims > 0 {
		t.Errorf("check: %v %+v", err, rep)
	}
	// Each night brings a quarter of each disk. Stored are the quarters of the nights
	// that are kept and of those that wait for deletion, and the quarter that does not
	// change.
	quarter := int64(2*vms) * size / 4
	if want := int64(nights-keep-3) * quarter; freed < want || rep.PackBytes > int64(keep+4)*quarter+8*mib {
		t.Errorf("%d MiB freed, at least %d wanted; %d MiB stored", freed/mib, want/mib, rep.PackBytes/mib)
	}
	if want := (nights + 6) / 7; checks != want {
		t.Errorf("%d checks, want %d", checks, want)
	}
	t.Logf("%d nights, %d VMs: %d MiB freed, %d MiB stored, heap at most %d KiB", nights, vms, freed/mib, rep.PackBytes/mib, largest>>10)
}

func TestFailures(t *testing.T) {
	h := newHouse(t, "[jobs.n]\nselect={all=true}\n[jobs.none]\nselect={names=['x']}\n[jobs.files]\nselect={all=true}\nreport-file='/nowhere/r.json'\nmetrics-file='/nowhere/m'\nstatus-log='/nowhere/s'\n"+
		"[jobs.hooks]\nselect={all=true}\nhooks={before='sleep 60', time-out='100ms', after='echo $XENKEEP_STATUS >&2; exit 1'}\n", 1, 1, 4*mib)
	n := h.night("n")
	n.Open = func(context.Context) (*repo.Repository, error) { return nil, errors.New("mount lost") }
	if rep, err := Run(t.Context(), n); err == nil || rep.State != report.Failed || rep.Error != "mount lost" {
		t.Errorf("%+v %v", rep, err)
	}
	n = h.night("n")
	n.Dial = func(context.Context) (*xapi.Client, error) { return nil, errors.New("no route") }
	if rep, err := Run(t.Context(), n); err == nil || rep.State != report.Failed || rep.Error != "no route" {
		t.Errorf("%+v %v", rep, err)
	}
	if rep, err := Run(t.Context(), h.night("none")); !errors.Is(err, job.ErrFailed) || rep.State != report.Failed || len(rep.VMs) != 1 || !rep.VMs[0].Missing {
		t.Errorf("%+v %v", rep, err)
	}
	// Files that cannot be written are reported, and do not fail the run.
	if rep, err := Run(t.Context(), h.night("files")); err != nil || rep.State != report.OK || len(rep.Unsent) != 3 {
		t.Errorf("%+v %v", rep, err)
	}
	began := time.Now()
	rep, err := Run(t.Context(), h.night("hooks"))
	if !errors.Is(err, job.ErrHook) || !strings.Contains(rep.Error, "longer than 100ms") || len(rep.Warnings) != 1 || !strings.Contains(rep.Warnings[0], "failed") || time.Since(began) > 30*time.Second {
		t.Errorf("%+v %v", rep, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	n = h.night("n")
	dial := n.Dial
	n.Dial = func(ctx context.Context) (*xapi.Client, error) { c, err := dial(ctx); cancel(); return c, err }
	if rep, err := Run(ctx, n); !errors.Is(err, context.Canceled) || rep.State != report.Failed {
		t.Errorf("%+v %v", rep, err)
	}
}

// Row N4 of the fault list: the alert in docs/operations.md fires while the pool is
// down, and does not fire while backups succeed.
func TestAlertWhilePoolIsDown(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "x.prom")
	h := newHouse(t, "[jobs.n]\nselect={all=true}\nmetrics-file='"+file+"'\n[jobs.m]\nselect={all=true}\nmetrics-file='"+file+"2'\n[jobs.hook]\nselect={all=true}\nhooks={before='exit 1'}\nmetrics-file='"+file+"'\n", 2, 1, 4*mib)
	start := h.now
	last := func(file string) map[string]float64 {
		t.Helper()
		good, err := report.ReadGood(file)
		if err != nil {
			t.Fatal(err)
		}
		at := make(map[string]float64)
		for _, g := range good {
			if at[g.Name] = 0; !g.Data.IsZero() {
				at[g.Name] = g.Data.Sub(start).Seconds()
			}
		}
		return at
	}
	run := func(n Night) {
		t.Helper()
		if _, err := Run(t.Context(), n); err == nil {
			t.Fatal("no error")
		}
	}
	if _, err := Run(t.Context(), h.night("n")); err != nil {
		t.Fatal(err)
	}
	first := last(file)
	if len(first) != 2 || first["vm0"] < -60 {
		t.Fatalf("%v", first)
	}
	down := h.night("n")
	down.Dial = func(context.Context) (*xapi.Client, error) { return nil, errors.New("no route to host") }
	closed := down
	closed.Open = func(context.Context) (*repo.Repository, error) { return nil, errors.New("mount lost") }
	for _, n := range []Night{down, closed, h.night("hook"), down} {
		h.now = h.now.Add(14 * time.Hour)
		run(n)
		if got := last(file); fmt.Sprint(got) != fmt.Sprint(first) {
			t.Errorf("the newest good snapshots are %v, want %v", got, first)
		}
	}
	// Without an earlier file they come from the repository.
	down = h.night("m")
	down.Dial = func(context.Context) (*xapi.Client, error) { return nil, errors.New("no route to host") }
	run(down)
	if got := last(file + "2"); len(got) != 0 {
		t.Errorf("another job's VMs: %v", got)
	}
	down.Job.Name = "n"
	if err := os.Remove(file + "2"); err != nil {
		t.Fatal(err)
	}
	run(down)
	if got := last(file + "2"); fmt.Sprint(got) != fmt.Sprint(first) {
		t.Errorf("from the repository: %v, want %v", got, first)
	}
	alert(t, first, 1)  // during the outage
	alert(t, first, 28) // and after a day of it
}

// alert evaluates the documented alert with Prometheus after some hours.
func alert(t *testing.T, last map[string]float64, hours int) {
	t.Helper()
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		t.Log("no promtool to ask (Debian package prometheus)")
		return
	}
	page, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	rule := regexp.MustCompile("`(time\\(\\) - xenkeep_[^`]+)`").FindSubmatch(page)
	if rule == nil {
		t.Fatal("docs/operations.md names no alert")
	}
	dir := t.TempDir()
	rules := "groups:\n- name: x\n  rules:\n  - alert: old\n    expr: " + string(rule[1]) + "\n"
	test := "rule_files: [rules.yml]\nevaluation_interval: 1h\ntests:\n- interval: 1h\n  input_series:\n"
	want := "[]"
	if hours > 26 {
		want = ""
	}
	for _, name := range slices.Sorted(maps.Keys(last)) {
		test += fmt.Sprintf("  - {series: 'xenkeep_vm_last_good_timestamp_seconds{vm=\"%s\"}', values: '%v+0x48'}\n", name, max(last[name], 1))
		if hours > 26 {
			want += fmt.Sprintf("\n    - exp_labels: {vm: %s}", name)
		}
	}
	test += fmt.Sprintf("  alert_rule_test:\n  - eval_time: %dh\n    alertname: old\n    exp_alerts: %s\n", hours, want)
	for name, text := range map[string]string{"rules.yml": rules, "test.yml": test} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := exec.Command(promtool, "test", "rules", filepath.Join(dir, "test.yml")).CombinedOutput(); err != nil {
		t.Errorf("after %d hours: %v\n%s\n%s", hours, err, out, test)
	}
}

// Retention of a job moves snapshots into the grace period that the config sets, by the
// clock of the run; a prune after it deletes them. Retention that would forget far more
// than usual forgets nothing, and the night is partial with the reason.
func TestGraceOfJob(t *testing.T) {
	h := newHouse(t, "[jobs.n]\nselect={all=true}\nkeep={last=1}\ngrace='3d'\nprune='always'\n[jobs.plain]\nselect={all=true}\n", 1, 1, mib)
	counts := func() (present, forgotten int) {
		r, err := h.open(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		all, err := r.ForgottenSnapshots(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range all {
			if got := s.Grace().Until.Sub(s.Grace().Since); got != 72*time.Hour {
				t.Errorf("the grace period is %v", got)
			}
		}
		here, _, err := r.Snapshots(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return len(here), len(all)
	}
	for night, want := range []int{0, 1, 2, 2, 2} {
		h.now = h.now.Add(36 * time.Hour)
		rep, err := Run(t.Context(), h.night("n"))
		if err != nil {
			t.Fatal(err)
		}
		if present, forgotten := counts(); present != 1 || forgotten != want || len(rep.Forgotten) != min(night, 1) {
			t.Errorf("night %d: %d snapshots, %d forgotten, want %d; the report has %v", night, present, forgotten, want, rep.Forgotten)
		}
	}
	h.cfg.Jobs["n"].Keep.Last = 9
	for range 5 {
		h.now = h.now.Add(24 * time.Hour)
		if _, err := Run(t.Context(), h.night("n")); err != nil {
			t.Fatal(err)
		}
	}
	h.cfg.Jobs["n"].Keep.Last = 1
	h.now = h.now.Add(24 * time.Hour)
	plan, err := MakePlan(t.Context(), h.night("n"))
	if err != nil || !slices.ContainsFunc(plan.Findings, func(f Finding) bool { return strings.Contains(f.Text, "the policy would forget 6 of its 7 snapshots") }) {
		t.Errorf("the plan does not show it: %v %+v", err, plan)
	}
	rep, err := Run(t.Context(), h.night("n"))
	if !errors.Is(err, job.ErrPartial) || len(rep.Forgotten) != 0 || rep.Count(report.OK) != 1 ||
		!slices.ContainsFunc(rep.Warnings, func(w string) bool {
			return strings.Contains(w, "VM vm0: the policy would forget 6 of its 7 snapshots")
		}) {
		t.Errorf("a policy that forgets nearly all: %v %+v", err, rep)
	}
	if present, _ := counts(); present != 7 {
		t.Errorf("%d snapshots are left of 7", present)
	}
}

// A check that is due runs before the prune of that night, and a prune deletes or
// condemns nothing after a check that found damage, also if the job forgets first.
func TestCheckBeforePrune(t *testing.T) {
	for _, first := range []bool{false, true} {
		h := newHouse(t, fmt.Sprintf("[jobs.n]\nselect={all=true}\nkeep={last=1}\nforget-first=%v\nprune='always'\ncheck={every='always', budget='1G'}\n", first), 1, 1, 4*mib)
		run := func() *report.Report {
			h.now = h.now.Add(36 * time.Hour)
			rep, err := Run(t.Context(), h.night("n"))
			if err != nil && !errors.Is(err, job.ErrDamage) {
				t.Fatal(err)
			}
			return rep
		}
		if rep := run(); rep.Pruned != "done" || rep.Checked != "clean" {
			t.Fatalf("forget-first %v: the first night is %s, %s", first, rep.Checked, rep.Pruned)
		}
		packs := h.packs()
		flip := func() { h.damage(packs[:1], func(p []byte) { p[len(p)/2] ^= 1 }) }
		flip()
		rep := run()
		condemned, err := filepath.Glob(filepath.Join(h.dir, "repo", "condemned", "*"))
		if err != nil || len(condemned) != 0 || rep.Freed != 0 || rep.Pruned != "held back" || rep.Checked != "damage found" {
			t.Errorf("forget-first %v: with damage, the night is %s, %s: %v %v", first, rep.Checked, rep.Pruned, condemned, err)
		}
		if !slices.ContainsFunc(rep.Warnings, func(w string) bool { return strings.Contains(w, "nothing is pruned tonight") }) {
			t.Errorf("forget-first %v: the report does not contain it: %q", first, rep.Warnings)
		}
		flip()
		if rep := run(); rep.Pruned != "done" {
			t.Errorf("forget-first %v: after the damage was repaired, the night is %s, %s", first, rep.Checked, rep.Pruned)
		}
	}
}

// Row N5 of the fault list: a night with damage is not only partial. The report, the
// error and the subject contain it, and all VMs are saved nevertheless.
func TestDamage(t *testing.T) {
	h := newHouse(t, "[jobs.n]\nselect={all=true}\nprune='always'\ncheck={every='always', budget='1G'}\n[jobs.plain]\nselect={all=true}\n", 2, 1, 4*mib)
	if _, err := Run(t.Context(), h.night("n")); err != nil {
		t.Fatal(err)
	}
	h.damage(h.packs(), func(p []byte) {
		p[len(p)/2] ^= 1
	})
	h.now = h.now.Add(24 * time.Hour)
	rep, err := Run(t.Context(), h.night("n"))
	if !errors.Is(err, job.ErrDamage) || rep.DamageHint == "" || !strings.Contains(rep.Damage, "snapshots of vm") || !strings.HasSuffix(rep.Damage, "cannot be read in full") ||
		!strings.HasPrefix(rep.Subject(), "xenkeep DAMAGE: n on m, ") {
		t.Errorf("%v\n%s\n%+v", err, rep.Subject(), rep)
	}
	// A snapshot that cannot be read is damage in a job without a check, too.
	snapshots, err := filepath.Glob(filepath.Join(h.dir, "repo", "snapshots", "*"))
	if err != nil || len(snapshots) == 0 {
		t.Fatal(err)
	}
	_ = os.Chmod(snapshots[0], 0o600)
	if err := os.WriteFile(snapshots[0], []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(h.dir, "cache")); err != nil { // it contains a copy
		t.Fatal(err)
	}
	rep, err = Run(t.Context(), h.night("plain"))
	if !errors.Is(err, job.ErrDamage) || rep.Count(report.OK) != 2 || rep.Damage != "1 snapshot cannot be read" {
		t.Errorf("%v\n%s\n%+v", err, rep.Subject(), rep)
	}
}

// A snapshot that the run's own check found damaged is not a good one: not in the
// report, the metrics or the coverage, and not in a later run either.
func TestDamagedIsNotGood(t *testing.T) {
	h := newHouse(t, "[jobs.n]\nselect={all=true}\ncheck={every='always', budget='1G'}\n", 2, 1, 4*mib)
	metrics := filepath.Join(h.dir, "x.prom")
	night := func() Night {
		n := h.night("n")
		n.Job.MetricsFile = metrics
		return n
	}
	if rep, err := Run(t.Context(), night()); err != nil || rep.VMs[0].LastGood.IsZero() {
		t.Fatal(err, rep)
	}
	h.damage(h.packs(), func(p []byte) {
		for i := len(p) / 10; i < len(p)*9/10; i += 1000 {
			p[i] ^= 1
		}
	})
	h.now = h.now.Add(24 * time.Hour)
	rep, err := Run(t.Context(), night())
	if !errors.Is(err, job.ErrDamage) || rep.State != report.Partial || rep.Count(report.Partial) != 2 {
		t.Errorf("%v\n%+v", err, rep)
	}
	for _, v := range rep.VMs {
		if !v.LastGood.IsZero() || v.LastGoodID != "" || !strings.Contains(v.Error, "cannot be read in full: ") || v.Hint == "" {
			t.Errorf("%+v", v)
		}
	}
	good, err := report.ReadGood(metrics)
	if err != nil || len(good) != 2 {
		t.Fatal(good, err)
	}
	for _, g := range good {
		if !g.Data.IsZero() {
			t.Errorf("the metrics call %s of %v good", g.Name, g.Data)
		}
	}
	pool, err := night().Dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close(t.Context())
	r, err := h.open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	list, err := Coverage(t.Context(), r, pool, nil, 26*time.Hour, h.now)
	if err != nil || len(list) != 2 {
		t.Fatal(list, err)
	}
	for _, c := range list {
		if !c.TooOld || c.Snapshot != "" || !strings.Contains(c.Damaged, "corrupt") {
			t.Errorf("%+v", c)
		}
	}
}

// Row N12 of the fault list: the notifications report a run that was refused, in words
// that name the job, the process and the time.
func TestRefusedRunIsReported(t *testing.T) {
	told := make(chan report.Report, 2)
	hook := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		var rep report.Report
		if err := json.NewDecoder(r.Body).Decode(&rep); err != nil {
			t.Error(err)
		}
		told <- rep
	}))
	defer hook.Close()
	h := newHouse(t, "[jobs.n]\nselect={all=true}\n[notify.webhook]\nurl='"+hook.URL+"'\nwhen='always'\n", 1, 1, 4*mib)
	n := h.night("n")
	inside, release := make(chan struct{}), make(chan struct{})
	n.Open = func(ctx context.Context) (*repo.Repository, error) {
		close(inside)
		<-release
		return h.open(ctx)
	}
	done := make(chan error)
	go func() {
		_, err := Run(t.Context(), n)
		done <- err
	}()
	<-inside
	rep, err := Run(t.Context(), h.night("n"))
	want := fmt.Sprintf(" (process %d)", os.Getpid())
	if !errors.Is(err, job.ErrActive) || rep.State != report.Skipped || !strings.HasPrefix(rep.Error, "job n: a run has been active since ") ||
		!strings.HasSuffix(rep.Error, want) || rep.Hint == "" || len(rep.Unsent) > 0 {
		t.Errorf("%+v: %v", rep, err)
	}
	if got := <-told; got.State != report.Skipped || got.Error != rep.Error {
		t.Errorf("told: %+v", got)
	}
	close(release)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if got := <-told; got.State != report.OK {
		t.Errorf("told: %+v", got)
	}
}
