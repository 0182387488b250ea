package job_test

import (
	"fmt"
	"strings"
	"testing"

	"xenkeep/job"
	"xenkeep/xapi"
	"xenkeep/xapi/xapisim"
)

// addUSB gives the VM web a USB device; attached has its guest use it.
func (w *world) addUSB(name string, attached bool) (group string) {
	w.t.Helper()
	vm := w.vm("web")
	group = w.sim.AddUSB(0, name)
	w.must(nil, "VUSB.create", vm.Ref, group, map[string]string{"of": name})
	if attached {
		w.halt("web")
		w.must(nil, "VM.start", vm.Ref, false, false)
	}
	return group
}

// hasUSB checks that the VM web has these USB devices, as they were added, and no
// mark of a run.
func (w *world) hasUSB(attached bool, names ...string) {
	w.t.Helper()
	vm := w.vm("web")
	got := make(map[string]bool)
	for _, ref := range vm.VUSBs {
		u, err := w.pool.VUSB(w.t.Context(), ref)
		if err != nil {
			w.t.Fatal(err)
		}
		g, err := w.pool.USBGroup(w.t.Context(), u.USBGroup)
		if err != nil {
			w.t.Fatal(err)
		}
		if got[g.NameLabel] = true; u.OtherConfig["of"] != g.NameLabel || u.CurrentlyAttached != attached {
			w.t.Errorf("USB device %s: %+v, attached %v", g.NameLabel, u.OtherConfig, u.CurrentlyAttached)
		}
	}
	for _, n := range names {
		if !got[n] {
			w.t.Errorf("the USB device %s is not there", n)
		}
	}
	if len(got) != len(names) {
		w.t.Errorf("USB devices: %v, want %v", got, names)
	}
	for k := range vm.OtherConfig {
		if strings.HasPrefix(k, "xenkeep:") {
			w.t.Errorf("the mark %s stays", k)
		}
	}
}

// A VM with USB devices is backed up where the options allow them to be detached:
// they are off for the VM snapshot alone, as they were afterwards, and the VM
// fails with a reason and a next step where the pool could not give them back.
func TestUnplugUSB(t *testing.T) {
	for _, c := range []struct {
		what     string
		state    string // "", or a call that brings the VM there
		attached bool
		off      bool // not allowed
		kinds    []job.Kind
		faults   []xapisim.Fault
		want     string
		says     string
		hint     string
	}{
		{what: "not allowed", off: true, says: `it has the USB devices "dongle", "stick", and the pool refuses`, hint: "unplug-usb = true"},
		{what: "halted", state: "clean_shutdown", want: "regular"},
		{what: "running, no guest has them", want: "regular"},
		{what: "running", attached: true, says: `the guest has the USB devices "dongle", "stick", and the pool has no call`, hint: "kind offline"},
		{what: "running, offline as the last kind", attached: true, kinds: []job.Kind{job.KindRegular, job.KindOffline}, want: "offline"},
		{what: "offline", attached: true, kinds: []job.Kind{job.KindOffline}, want: "offline"},
		{what: "halted, offline", state: "clean_shutdown", kinds: []job.Kind{job.KindOffline}, want: "offline"},
		{what: "the snapshot fails", attached: true, kinds: []job.Kind{job.KindOffline}, says: "SR_BACKEND_FAILURE_44",
			faults: []xapisim.Fault{{On: "VM.snapshot", Code: "SR_BACKEND_FAILURE_44", Params: []string{"", "", ""}, Times: -1}}},
		{what: "detaching is refused", attached: true, kinds: []job.Kind{job.KindOffline}, says: `the USB device "stick" cannot be detached`, hint: "pool-admin",
			faults: []xapisim.Fault{{On: "VUSB.destroy", Nth: 2, Code: "RBAC_PERMISSION_DENIED", Params: []string{"vusb.destroy", "no"}}}},
	} {
		t.Run(c.what, func(t *testing.T) {
			w := nightPool(t, xapisim.Config{}, "web")
			w.addUSB("dongle", false)
			w.addUSB("stick", c.attached)
			if c.state != "" {
				w.must(nil, "VM."+c.state, w.vm("web").Ref)
			}
			before := w.vm("web").PowerState
			o := w.options()
			o.Keep, o.UnplugUSB, o.Chosen = job.KeepNone, !c.off, w.chosen("web")
			o.Chosen[0].Kinds = c.kinds
			forecast, ferr := w.foresee(o)
			for _, f := range c.faults {
				w.sim.Fault(f)
			}
			s, err := job.Backup(t.Context(), w.repo, w.pool, o)
			w.sim.ClearFaults()
			if got := kindOf(s); got != c.want {
				t.Errorf("kind %q, want %q: %v", got, c.want, err)
			}
			if c.says != "" && (err == nil || !strings.Contains(err.Error(), c.says) || !strings.Contains(job.HintOf(err), c.hint)) {
				t.Errorf("%v; hint %q; want %q and %q", err, job.HintOf(err), c.says, c.hint)
			}
			if planned := ferr == nil; planned != (c.want != "" || len(c.faults) > 0) {
				t.Errorf("the plan: %v", ferr)
			} else if told := `without its USB devices "dongle", "stick"`; planned && !strings.Contains(strings.Join(forecast.Warnings, "\n"), told) ||
				c.want != "" && !strings.Contains(strings.Join(s.Warnings, "\n"), told) {
				t.Errorf("not told: plan %q, report %q", forecast.Warnings, s.Warnings)
			}
			if now := w.vm("web").PowerState; now != before {
				t.Errorf("the VM is %s and was %s", now, before)
			}
			w.hasUSB(c.attached, "dongle", "stick")
			w.clean()
		})
	}
}

func (w *world) foresee(o job.BackupOptions) (*job.Forecast, error) {
	w.t.Helper()
	f, err := job.Foresee(w.t.Context(), w.repo, w.pool, o)
	if err != nil {
		w.t.Fatal(err)
	}
	return f.VM(w.t.Context(), o.Chosen[0])
}

// A device that is pulled out while it is detached is told of and fails nothing;
// one that another VM has meanwhile fails the VM, and stays in the mark until it
// can be attached again.
func TestUSBTakenMeanwhile(t *testing.T) {
	w := nightPool(t, xapisim.Config{}, "web", "db")
	w.halt("web")
	gone, taken := w.addUSB("gone", false), w.addUSB("taken", false)
	o := w.options("web")
	o.Keep, o.UnplugUSB = job.KeepNone, true
	w.sim.Fault(xapisim.Fault{On: "VM.snapshot", Do: func() { w.sim.RemoveUSB(gone) }})
	s, err := job.Backup(t.Context(), w.repo, w.pool, o)
	if err != nil || !strings.Contains(strings.Join(s.Warnings, "\n"), `the pool no longer has its USB device "gone"`) {
		t.Fatalf("%v %q", err, s.Warnings)
	}
	w.hasUSB(false, "taken")

	var other xapi.Ref
	db := w.vm("db").Ref
	done := make(chan struct{})
	w.sim.Fault(xapisim.Fault{On: "VUSB.create", Code: "USB_GROUP_CONFLICT", Params: []string{taken}, Do: func() { close(done) }})
	s, err = job.Backup(t.Context(), w.repo, w.pool, o)
	<-done
	if err == nil || !strings.Contains(err.Error(), `the USB device "taken" cannot be attached again`) || !strings.Contains(job.HintOf(err), "xenkeep cleanup") {
		t.Fatalf("%v, hint %q, %+v", err, job.HintOf(err), s)
	}
	w.must(&other, "VUSB.create", db, taken, map[string]string{})
	if rep, err := job.Cleanup(t.Context(), w.repo, w.pool, job.CleanupOptions{}); err != nil || rep.Err() == nil || !strings.Contains(rep.Err().Error(), "USB_GROUP_CONFLICT") {
		t.Fatalf("%+v %v", rep, err)
	}
	w.must(nil, "VUSB.destroy", other)
	l := w.cleanup(job.CleanupOptions{})["web"]
	if l.Role != "usb" || l.Action != job.ActPlug || !strings.Contains(l.Hint, "taken") {
		t.Errorf("%+v", l)
	}
	w.hasUSB(false, "taken")
}

// USB devices that a killed run detached are attached again by the next run or by
// cleanup, before their VM is started; those of clones, of live runs and of other
// repositories are left alone.
func TestCleanupAttachesUSB(t *testing.T) {
	w := nightPool(t, xapisim.Config{}, "web")
	group := w.addUSB("dongle", false)
	w.halt("web")
	vm := w.vm("web")
	mark := func(of, repository, process string) {
		head := fmt.Sprintf(`"vm":%q,"repository":%q,"run":"00112233","machine":"elsewhere","process":%q`, of, repository, process)
		for k, v := range map[string]string{
			"xenkeep:offline": "{" + head + "}",
			"xenkeep:usb":     "{" + head + fmt.Sprintf(`,"devices":[{"group":%q,"name":"dongle","other_config":{"of":"dongle"}}]}`, group),
		} {
			if err := w.pool.SetOtherConfig(t.Context(), "VM", vm.Ref, k, v); err != nil {
				t.Fatal(err)
			}
		}
	}
	w.must(nil, "VUSB.destroy", vm.VUSBs[0])
	for _, c := range [][2]string{{"another", w.repo.ID()}, {vm.UUID, "another"}} {
		mark(c[0], c[1], "gone")
		w.cleanup(job.CleanupOptions{})
		if now := w.vm("web"); len(now.VUSBs) > 0 || now.PowerState != "Halted" {
			t.Errorf("%v: %v %s", c, now.VUSBs, now.PowerState)
		}
	}
	mark(vm.UUID, w.repo.ID(), "gone")
	rep, err := job.Cleanup(t.Context(), w.repo, w.pool, job.CleanupOptions{DryRun: true})
	if err != nil || len(rep.Found) != 2 || rep.Found[0].Action != job.ActPlug || rep.Found[1].Action != job.ActStart {
		t.Fatalf("%+v %v", rep, err)
	}
	w.cleanup(job.CleanupOptions{})
	w.hasUSB(true, "dongle")
}

// unplugged is a backup that shuts a VM down, detaches its USB device, and puts
// everything back.
func unplugged(t *testing.T) operation {
	w := newCrashWorld(t, xapisim.NBDOff)
	w.addUSB("dongle", true)
	w.usb, w.kinds = true, []job.Kind{job.KindOffline}
	return operation{w: w, prepare: func() order {
		w.newRepository()
		return w.order(job.KeepNone)
	}, after: func() {
		w.idle()
		w.reopen()
		if _, err := job.Cleanup(t.Context(), w.repo, w.pool, job.CleanupOptions{}); err != nil {
			t.Fatal(err)
		}
		if vm := w.vm("web"); vm.PowerState != "Running" || len(vm.VUSBs) != 1 {
			t.Errorf("after cleanup the VM is %s and has %d USB devices", vm.PowerState, len(vm.VUSBs))
		}
		w.again(job.KeepNone)
		w.hasUSB(true, "dongle")
		w.sim.GC()
		if left := w.snapshots(); len(left) > 0 {
			t.Errorf("VM snapshots stay: %q", left)
		}
	}}
}

func TestCrashUSB(t *testing.T)  { unplugged(t).sweep(12) }
func TestErrorsUSB(t *testing.T) { unplugged(t).errors(12) }
