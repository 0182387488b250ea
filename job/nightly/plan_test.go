package nightly

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"xenkeep/job/report"
	"xenkeep/xapi"
	"xenkeep/xapi/xapisim"
)

// findingOf returns the finding with a level and a part of its text.
func findingOf(p *Plan, level, text string) bool {
	for _, f := range p.Findings {
		if f.Level == level && strings.Contains(f.What+": "+f.Text, text) && (level != "error" || f.Hint != "") {
			return true
		}
	}
	return false
}

// A plan predicts the run: the run succeeds exactly if the plan predicts success.
func TestPlanPredictsRun(t *testing.T) {
	type world struct {
		*house
		pool *xapi.Client
		vm   xapi.VM
	}
	must := func(w *world, err error) {
		w.t.Helper()
		if err != nil {
			w.t.Fatal(err)
		}
	}
	// chain takes VM snapshots, with a write after each.
	chain := func(n int) func(*world) {
		return func(w *world) {
			for i := range n {
				_, err := w.pool.SnapshotVM(t.Context(), w.vm.Ref, fmt.Sprint("s", i))
				must(w, err)
				_, err = w.sim.GuestWrite(w.sim.Ready().VMs[0].Disks[0].VDI, w.image(0, i+1))
				must(w, err)
			}
		}
	}
	thick := func(size int64) xapisim.Config {
		return xapisim.Config{SRs: []xapisim.SRConfig{{Name: "thick", Type: "lvm", Size: size}}}
	}
	for _, c := range []struct {
		what    string
		cfg     xapisim.Config
		job     string
		prepare func(*world)
		level   string // of the finding
		text    string
		fails   bool
	}{
		{what: "nothing is wrong", level: "note", text: "repository: "},
		{what: "a name that means none", job: "select={names=['vm0', 'nosuch']}", level: "error", text: `nosuch: no VM is called "nosuch"`, fails: true},
		{what: "a name that means two", job: "select={names=['vm0']}", level: "error", text: `vm0: 2 VMs are called "vm0"`, fails: true,
			prepare: func(w *world) {
				other, err := w.pool.FindVM(t.Context(), "vm1")
				must(w, err)
				must(w, w.pool.Call(t.Context(), "VM.set_name_label", nil, other.Ref, "vm0"))
			}},
		{what: "a pattern that means none", job: "select={patterns=['web.*']}", level: "error", text: "matches no VM", fails: true},
		{what: "an exclusion that means none", job: "select={all=true}\nexclude={disks=['vm0:xvdz']}", level: "error", text: "no disk is", fails: true},
		{what: "no room on a thick SR", cfg: thick(64 * mib), level: "error", text: "SR thick: a snapshot needs", fails: true},
		{what: "room on a thick SR", cfg: thick(400 * mib), level: "note", text: "SR thick: "},
		{what: "a blocked VM", level: "error", text: "snapshots of it are blocked", fails: true, prepare: func(w *world) {
			must(w, w.pool.Call(t.Context(), "VM.set_blocked_operations", nil, w.vm.Ref, map[string]string{"snapshot": "by hand"}))
		}},
		{what: "a shared disk", job: "select={all=true}\nskip-unsupported=true", level: "error", text: "its VM would be partial", fails: true, prepare: func(w *world) {
			ref, err := w.pool.VDIByUUID(t.Context(), w.sim.Ready().VMs[0].Disks[1].VDI)
			must(w, err)
			must(w, w.pool.Call(t.Context(), "VDI.set_sharable", nil, ref, true))
		}},
		// Row B8 of the fault list: the plan reports an SR that no host reaches.
		{what: "an SR that is unplugged everywhere", level: "error", text: "no running host can reach the storage", fails: true, prepare: func(w *world) {
			vms, err := w.pool.VMs(t.Context())
			must(w, err)
			for i := range vms {
				if vms[i].Real() && vms[i].PowerState == "Running" {
					must(w, w.pool.HardShutdown(t.Context(), vms[i].Ref))
				}
			}
			vdi, err := w.pool.VDIByUUID(t.Context(), w.sim.Ready().VMs[0].Disks[0].VDI)
			must(w, err)
			v, err := w.pool.VDI(t.Context(), vdi)
			must(w, err)
			pbds, err := w.pool.PBDs(t.Context())
			must(w, err)
			for _, b := range pbds {
				if b.SR == v.SR {
					must(w, w.pool.Call(t.Context(), "PBD.unplug", nil, b.Ref))
				}
			}
		}},
		{what: "a long chain", prepare: chain(21), level: "warn", text: "vm0 xvda: its VHD chain has 2"},
		{what: "a full chain", prepare: chain(29), level: "error", text: "vm0 xvda: its VHD chain has 30 files", fails: true},
		{what: "a parent that waits", cfg: xapisim.Config{GCDelay: 1000 * time.Hour}, level: "note", text: " parents wait to be coalesced", prepare: func(w *world) {
			chain(1)(w)
			w.drop(w.pool, 1)
		}},
		{what: "a backlog", cfg: xapisim.Config{GCDelay: 1000 * time.Hour}, level: "warn", text: "parents wait to be coalesced", prepare: func(w *world) {
			chain(6)(w)
			w.drop(w.pool, 6)
		}},
		{what: "no quiesced snapshots", job: "select={all=true}\nsnapshot=['quiesced']", level: "error", text: "they went with 8.1", fails: true},
		{what: "quiesced, else regular", job: "select={all=true}\nsnapshot=['quiesced', 'regular']", level: "warn", text: "regular is taken"},
		{what: "snapmanager", level: "warn", text: "snapmanager=true", prepare: func(w *world) {
			must(w, w.pool.SetOtherConfig(t.Context(), "VM", w.vm.Ref, "snapmanager", "true"))
		}},
		{what: "a rolling upgrade", cfg: xapisim.Config{RollingUpgrade: true}, job: "select={all=true}\npool-metadata=true", level: "error", text: "rolling upgrade", fails: true,
			prepare: func(w *world) {
				rec, err := w.pool.Pool(t.Context())
				must(w, err)
				must(w, w.pool.SetOtherConfig(t.Context(), "pool", rec.Ref, "rolling_upgrade_in_progress", "true"))
			}},
		{what: "a leftover", level: "note", text: "VDI half a restore: left by a dead run", prepare: func(w *world) {
			ref, err := w.pool.CreateVDI(t.Context(), xapi.VDIFields{Name: "half a restore", SR: w.sr(w.pool), Size: mib})
			must(w, err)
			w.mark(w.pool, "VDI", ref, "restore")
		}},
		// Row X7 of the fault list: the plan lists bases whose disk does not exist any
		// more.
		{what: "a base whose disk was deleted", level: "note", text: "VDI gone: the base of a disk that is no longer on the pool", prepare: func(w *world) {
			disk, err := w.pool.CreateVDI(t.Context(), xapi.VDIFields{Name: "gone", SR: w.sr(w.pool), Size: mib})
			must(w, err)
			var snap xapi.Ref
			must(w, w.pool.Call(t.Context(), "VDI.snapshot", &snap, disk))
			w.mark(w.pool, "VDI", snap, "base")
			must(w, w.pool.DestroyVDI(t.Context(), disk))
		}},
		{what: "a run that lives", level: "error", text: "vm0: run 00112233 on elsewhere is backing it up", fails: true, prepare: func(w *world) {
			ref, err := w.pool.SnapshotVM(t.Context(), w.vm.Ref, "theirs")
			must(w, err)
			w.mark(w.pool, "VM", ref, "snapshot")
		}},
	} {
		t.Run(c.what, func(t *testing.T) {
			text := c.job
			if text == "" {
				text = "select={all=true}"
			}
			h := newHouseOn(t, c.cfg, "[jobs.n]\nretries=0\n"+text+"\n", 2, 2, 4*mib)
			n := h.night("n")
			pool, err := n.Dial(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = pool.Close(context.Background()) })
			w := &world{house: h, pool: pool}
			if w.vm, err = pool.FindVM(t.Context(), "vm0"); err != nil {
				t.Fatal(err)
			}
			if c.prepare != nil {
				c.prepare(w)
			}
			before := fmt.Sprint(h.sim.Dump())
			objects := h.objects()
			p, err := MakePlan(t.Context(), n)
			if err != nil {
				t.Fatal(err)
			}
			if !findingOf(p, c.level, c.text) || p.OK == c.fails {
				t.Errorf("want %s %q: ok %v, %+v", c.level, c.text, p.OK, p.Findings)
			}
			if after := fmt.Sprint(h.sim.Dump()); after != before || h.objects() != objects {
				t.Errorf("the plan changed something")
			}
			rep, err := Run(t.Context(), h.night("n"))
			if ok := err == nil && rep.State == report.OK; ok != p.OK {
				t.Errorf("the plan predicts %v, the run is %s: %v %+v", p.OK, rep.State, err, rep)
			}
		})
	}
}

func (h *house) sr(pool *xapi.Client) xapi.Ref {
	h.t.Helper()
	sr, err := pool.FindSR(h.t.Context(), h.sim.Ready().SRs[0].UUID)
	if err != nil {
		h.t.Fatal(err)
	}
	return sr.Ref
}

// mark sets the marks of a run on another machine on an object, with an old sign of
// life.
func (h *house) mark(pool *xapi.Client, class string, ref xapi.Ref, role string) {
	h.t.Helper()
	r, err := h.open(h.t.Context())
	if err != nil {
		h.t.Fatal(err)
	}
	defer r.Close()
	for k, v := range map[string]string{
		"repository": r.ID(), "run": "00112233445566778899aabbccddeeff", "role": role, "machine": "elsewhere", "process": "boot 1 2 pid:[3] id", "alive": "2026-01-01T00:00:00Z",
	} {
		if err := pool.SetOtherConfig(h.t.Context(), class, ref, "xenkeep:"+k, v); err != nil {
			h.t.Fatal(err)
		}
	}
}

// drop deletes the first n snapshots of the first VM with their disks.
func (h *house) drop(pool *xapi.Client, n int) {
	h.t.Helper()
	all, err := pool.VMs(h.t.Context())
	if err != nil {
		h.t.Fatal(err)
	}
	for i := range all {
		if !all[i].IsASnapshot || n == 0 {
			continue
		}
		n--
		for _, ref := range all[i].VBDs {
			vbd, err := pool.VBD(h.t.Context(), ref)
			if err == nil && vbd.Type == "Disk" {
				err = pool.DestroyVDI(h.t.Context(), vbd.VDI)
			}
			if err != nil {
				h.t.Fatal(err)
			}
		}
		if err := pool.DestroyVM(h.t.Context(), all[i].Ref); err != nil {
			h.t.Fatal(err)
		}
	}
}

// objects returns the names of all objects in the repository.
func (h *house) objects() string {
	var list []string
	err := filepath.WalkDir(filepath.Join(h.dir, "repo"), func(name string, d os.DirEntry, err error) error {
		list = append(list, name)
		return err
	})
	if err != nil {
		h.t.Fatal(err)
	}
	return strings.Join(list, "\n")
}

// The finding about the repository's space depends on the free space, and on the bytes
// that may be read.
func TestPlanRoom(t *testing.T) {
	for _, c := range []struct {
		free, total, most uint64
		level, text       string
	}{
		{500 << 30, 1 << 40, 100 << 30, "note", "500 GiB free of 1.0 TiB"},
		{100 << 30, 1 << 40, 200 << 30, "warn", "100 GiB free of 1.0 TiB, and up to 200 GiB are read in full"},
		{20 << 30, 1 << 40, 0, "warn", "20 GiB free of 1.0 TiB"},
		{63 << 20, 1 << 40, 0, "error", "63 MiB free of 1.0 TiB"},
		{0, 0, 0, "error", "0 B free of 0 B"},
	} {
		p := &planner{plan: &Plan{OK: true}}
		p.room(c.free, c.total, c.most)
		if f := p.plan.Findings[0]; f.Level != c.level || f.Text != c.text || p.plan.OK != (c.level != "error") || (f.Hint == "") != (c.level == "note") {
			t.Errorf("%+v: %+v", c, f)
		}
	}
}
