package restore_test

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"xenkeep/job/jobtest"
	"xenkeep/job/restore"
	"xenkeep/xapi/xapisim"
)

// A drill distinguishes a guest that starts from one that does not, for each way in
// which a guest can fail; it stores a note, and leaves nothing on the pool.
func TestDrill(t *testing.T) {
	w := jobtest.New(t, xapisim.Config{SRs: jobtest.RestoreSRs})
	w.Must(nil, "VM.set_tags", w.VM("web").Ref, []string{"nightly"})
	w.Must(nil, "VM.set_ha_restart_priority", w.VM("web").Ref, "restart")
	w.Must(nil, "VM.add_to_other_config", w.VM("web").Ref, "auto_poweron", "true")
	s := jobtest.BackupOf(w, "web")
	before := w.Sim.Dump()
	right := []string{w.Files()["0"], w.Files()["1"]}
	wrong := []string{w.Files()["0"], jobtest.Image(t, filepath.Join(w.Dir, "other.img"), 16*jobtest.MiB, 99, 3)}
	const short = 300 * time.Millisecond
	for _, c := range []struct {
		what    string
		guest   xapisim.GuestScript
		key     string
		says    string // text that the guest writes under key
		passed  bool
		because string
	}{
		{what: "good", guest: xapisim.GuestScript{Disks: right, Delay: time.Millisecond}, passed: true, because: "the guest's tools report"},
		{what: "never", guest: xapisim.GuestScript{Behaviour: xapisim.GuestNever}, because: "no report of the guest's tools after 300ms"},
		{what: "late", guest: xapisim.GuestScript{Disks: right, Delay: time.Hour}, because: "no report of the guest's tools after 300ms"},
		{what: "crash", guest: xapisim.GuestScript{Disks: right, Behaviour: xapisim.GuestCrashes, Delay: time.Millisecond}, because: "the VM went Halted by itself"},
		{what: "wrong disk", guest: xapisim.GuestScript{Disks: wrong, Delay: time.Millisecond}, because: "no report of the guest's tools after 300ms"},
		{what: "says ok", key: "vm-data/drill", says: "ok", passed: true, because: "the guest says ok in vm-data/drill"},
		{what: "says no", key: "vm-data/drill", says: "database is corrupt", because: `the guest says "database is corrupt" in vm-data/drill`},
		{what: "says nothing", key: "vm-data/drill", because: "nothing in vm-data/drill after 300ms"},
	} {
		t.Run(c.what, func(t *testing.T) {
			c.guest.Name = "xenkeep drill*"
			if err := w.Sim.Guest(c.guest); err != nil {
				t.Fatal(err)
			}
			started := make(chan struct{}, 1)
			w.Sim.Watch(func(method string) {
				if method == "VM.start" {
					started <- struct{}{}
				}
			})
			defer w.Sim.Watch(nil)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			seen := make(chan error, 1)
			go func() {
				select {
				case <-started:
				case <-ctx.Done():
					seen <- nil
					return
				}
				seen <- func() error {
					vms, err := w.Pool.VMs(ctx)
					if err != nil {
						return err
					}
					for _, vm := range vms {
						if !strings.HasPrefix(vm.NameLabel, "xenkeep drill") {
							continue
						}
						if len(vm.VIFs) != 0 || len(vm.Tags) != 0 || vm.HARestartPriority != "" || vm.HAAlwaysRun || vm.OtherConfig["auto_poweron"] != "" ||
							vm.OtherConfig["mac_seed"] == w.VM("web").OtherConfig["mac_seed"] || !vm.SnapshotSchedule.IsNull() {
							return errors.New("the VM of the drill has settings that it must not have")
						}
						if c.says != "" {
							return w.Pool.Call(ctx, "VM.add_to_xenstore_data", nil, vm.Ref, c.key, c.says)
						}
					}
					return nil
				}()
			}()
			timeout := short
			if c.passed || c.because == "the VM went Halted by itself" || c.says != "" {
				timeout = time.Minute
			}
			out, err := restore.BootDrill(t.Context(), w.Repo, w.Pool, s, restore.DrillOptions{Target: restore.Target{SR: "one"}, Timeout: timeout, Key: c.key, Poll: 2 * time.Millisecond}, restore.Options{})
			if c.passed && err != nil || !c.passed && !errors.Is(err, restore.ErrDrill) {
				t.Fatal(err)
			}
			if out.Verdict.Passed != c.passed || out.Verdict.Reason != c.because {
				t.Errorf("%+v, want %q", out.Verdict, c.because)
			}
			if err := <-seen; err != nil {
				t.Error(err)
			}
			drills, err := restore.Drills(t.Context(), w.Repo, s)
			if err != nil || len(drills) == 0 || drills[len(drills)-1].DrillVerdict != out.Verdict {
				t.Errorf("noted: %+v: %v", drills, err)
			}
			w.Sim.GC()
			jobtest.SamePool(t, before, w.Sim.Dump())
		})
	}
}

// A drill that cannot be completed has no verdict, and leaves nothing on the pool
// either.
func TestDrillNotHeld(t *testing.T) {
	w := jobtest.New(t, xapisim.Config{SRs: jobtest.RestoreSRs})
	s := jobtest.BackupOf(w, "web")
	before := w.Sim.Dump()
	if err := w.Sim.Guest(xapisim.GuestScript{Name: "xenkeep drill*", Behaviour: xapisim.GuestNever}); err != nil {
		t.Fatal(err)
	}
	cancelled, cancel := context.WithCancel(t.Context())
	for what, f := range map[string]xapisim.Fault{
		"start refused": {On: "VM.start", Code: "HOST_NOT_ENOUGH_FREE_MEMORY", Params: []string{"1", "0"}},
		"no disk":       {On: "VDI.create", Code: "SR_BACKEND_FAILURE_44", Params: []string{"", "no space", ""}},
		"interrupted":   {On: "VM.start", Do: func() { time.AfterFunc(20*time.Millisecond, cancel) }},
	} {
		ctx := t.Context()
		if what == "interrupted" {
			ctx = cancelled
		}
		w.Sim.Fault(f)
		_, err := restore.BootDrill(ctx, w.Repo, w.Pool, s, restore.DrillOptions{Target: restore.Target{SR: "one"}, Poll: 2 * time.Millisecond}, restore.Options{})
		w.Sim.ClearFaults()
		if err == nil || errors.Is(err, restore.ErrDrill) {
			t.Errorf("%s: %v", what, err)
		}
		w.Sim.GC()
		jobtest.SamePool(t, before, w.Sim.Dump())
	}
	// A drill that could not remove its VM reports that; the next run removes it.
	w.Sim.Fault(xapisim.Fault{On: "VM.hard_shutdown", Code: "INTERNAL_ERROR", Params: []string{"x"}})
	_, err := restore.BootDrill(t.Context(), w.Repo, w.Pool, s, restore.DrillOptions{Target: restore.Target{SR: "one"}, Timeout: 5 * time.Millisecond, Poll: time.Millisecond}, restore.Options{})
	if !errors.Is(err, restore.ErrDrill) || !strings.Contains(err.Error(), "could not be removed") {
		t.Errorf("%v", err)
	}
	drills, derr := restore.Drills(t.Context(), w.Repo, s)
	if derr != nil || len(drills) != 1 {
		t.Errorf("%d drills noted: %v", len(drills), derr)
	}
}

// No drill is made while high availability is enabled.
func TestDrillWithHA(t *testing.T) {
	w := jobtest.New(t, xapisim.Config{SRs: jobtest.RestoreSRs, HA: true})
	s := jobtest.BackupOf(w, "web")
	before := w.Sim.Dump()
	_, err := restore.BootDrill(t.Context(), w.Repo, w.Pool, s, restore.DrillOptions{Target: restore.Target{SR: "one"}}, restore.Options{})
	if err == nil || !strings.Contains(err.Error(), "high availability") {
		t.Errorf("%v", err)
	}
	w.Sim.GC()
	jobtest.SamePool(t, before, w.Sim.Dump())
}
