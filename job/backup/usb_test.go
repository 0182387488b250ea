package backup_test

import (
	"fmt"
	"strings"
	"testing"

	"xenkeep/job"
	"xenkeep/job/backup"
	"xenkeep/job/jobtest"
	"xenkeep/job/lease"
	"xenkeep/job/vmplan"
	"xenkeep/xapi"
	"xenkeep/xapi/xapisim"
)

// A VM with USB devices is backed up if the options permit to detach them: they are
// detached only during the VM snapshot and attached afterwards as before. If the pool
// cannot attach them, the VM fails with a reason and a next step.
func TestUnplugUSB(t *testing.T) {
	for _, c := range []struct {
		what     string
		state    string // "", or the call that brings the VM into the state
		attached bool
		off      bool // UnplugUSB is not set
		kinds    []vmplan.Kind
		faults   []xapisim.Fault
		want     string
		says     string
		hint     string
	}{
		{what: "not allowed", off: true, says: `it has the USB devices "dongle", "stick", and the pool refuses`, hint: "unplug-usb = true"},
		{what: "halted", state: "clean_shutdown", want: "regular"},
		{what: "running, no guest has them", want: "regular"},
		{what: "running", attached: true, says: `the guest has the USB devices "dongle", "stick", and the pool has no call`, hint: "kind offline"},
		{what: "running, offline as the last kind", attached: true, kinds: []vmplan.Kind{vmplan.KindRegular, vmplan.KindOffline}, want: "offline"},
		{what: "offline", attached: true, kinds: []vmplan.Kind{vmplan.KindOffline}, want: "offline"},
		{what: "halted, offline", state: "clean_shutdown", kinds: []vmplan.Kind{vmplan.KindOffline}, want: "offline"},
		{what: "the snapshot fails", attached: true, kinds: []vmplan.Kind{vmplan.KindOffline}, says: "SR_BACKEND_FAILURE_44",
			faults: []xapisim.Fault{{On: "VM.snapshot", Code: "SR_BACKEND_FAILURE_44", Params: []string{"", "", ""}, Times: -1}}},
		{what: "detaching is refused", attached: true, kinds: []vmplan.Kind{vmplan.KindOffline}, says: `the USB device "stick" cannot be detached`, hint: "pool-admin",
			faults: []xapisim.Fault{{On: "VUSB.destroy", Nth: 2, Code: "RBAC_PERMISSION_DENIED", Params: []string{"vusb.destroy", "no"}}}},
	} {
		t.Run(c.what, func(t *testing.T) {
			w := jobtest.NightPool(t, xapisim.Config{}, "web")
			w.AddUSB("dongle", false)
			w.AddUSB("stick", c.attached)
			if c.state != "" {
				w.Must(nil, "VM."+c.state, w.VM("web").Ref)
			}
			before := w.VM("web").PowerState
			o := w.Options()
			o.Keep, o.UnplugUSB, o.Selected = backup.KeepNone, !c.off, w.Requests("web")
			o.Selected[0].Kinds = c.kinds
			forecast, ferr := w.Preview(o)
			for _, f := range c.faults {
				w.Sim.Fault(f)
			}
			s, err := backup.Run(t.Context(), w.Repo, w.Pool, o)
			w.Sim.ClearFaults()
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
				t.Errorf("not reported: plan %q, report %q", forecast.Warnings, s.Warnings)
			}
			if now := w.VM("web").PowerState; now != before {
				t.Errorf("the VM is %s and was %s", now, before)
			}
			w.HasUSB(c.attached, "dongle", "stick")
			w.CheckRepository()
		})
	}
}

// If a device is unplugged while it is detached, the report warns and the VM succeeds.
// If another VM has it meanwhile, the VM fails, and the device stays in the mark until
// it can be attached again.
func TestUSBTakenMeanwhile(t *testing.T) {
	w := jobtest.NightPool(t, xapisim.Config{}, "web", "db")
	w.Halt("web")
	gone, taken := w.AddUSB("gone", false), w.AddUSB("taken", false)
	o := w.Options("web")
	o.Keep, o.UnplugUSB = backup.KeepNone, true
	w.Sim.Fault(xapisim.Fault{On: "VM.snapshot", Do: func() { w.Sim.RemoveUSB(gone) }})
	s, err := backup.Run(t.Context(), w.Repo, w.Pool, o)
	if err != nil || !strings.Contains(strings.Join(s.Warnings, "\n"), `the pool no longer has its USB device "gone"`) {
		t.Fatalf("%v %q", err, s.Warnings)
	}
	w.HasUSB(false, "taken")

	var other xapi.Ref
	db := w.VM("db").Ref
	done := make(chan struct{})
	w.Sim.Fault(xapisim.Fault{On: "VUSB.create", Code: "USB_GROUP_CONFLICT", Params: []string{taken}, Do: func() { close(done) }})
	s, err = backup.Run(t.Context(), w.Repo, w.Pool, o)
	<-done
	if err == nil || !strings.Contains(err.Error(), `the USB device "taken" cannot be attached again`) || !strings.Contains(job.HintOf(err), "xenkeep cleanup") {
		t.Fatalf("%v, hint %q, %+v", err, job.HintOf(err), s)
	}
	w.Must(&other, "VUSB.create", db, taken, map[string]string{})
	if rep, err := lease.Cleanup(t.Context(), w.Repo, w.Pool, lease.CleanupOptions{}); err != nil || rep.Err() == nil || !strings.Contains(rep.Err().Error(), "USB_GROUP_CONFLICT") {
		t.Fatalf("%+v %v", rep, err)
	}
	w.Must(nil, "VUSB.destroy", other)
	l := w.Cleanup(lease.CleanupOptions{})["web"]
	if l.Role != "usb" || l.Action != lease.ActPlug || !strings.Contains(l.Hint, "taken") {
		t.Errorf("%+v", l)
	}
	w.HasUSB(false, "taken")
}

// The next run or cleanup attaches USB devices that a killed run detached, before it
// starts their VM; those of clones, of live runs and of other repositories are not
// touched.
func TestCleanupAttachesUSB(t *testing.T) {
	w := jobtest.NightPool(t, xapisim.Config{}, "web")
	group := w.AddUSB("dongle", false)
	w.Halt("web")
	vm := w.VM("web")
	mark := func(of, repository, process string) {
		head := fmt.Sprintf(`"vm":%q,"repository":%q,"run":"00112233","machine":"elsewhere","process":%q`, of, repository, process)
		for k, v := range map[string]string{
			"xenkeep:offline": "{" + head + "}",
			"xenkeep:usb":     "{" + head + fmt.Sprintf(`,"devices":[{"group":%q,"name":"dongle","other_config":{"of":"dongle"}}]}`, group),
		} {
			if err := w.Pool.SetOtherConfig(t.Context(), "VM", vm.Ref, k, v); err != nil {
				t.Fatal(err)
			}
		}
	}
	w.Must(nil, "VUSB.destroy", vm.VUSBs[0])
	for _, c := range [][2]string{{"another", w.Repo.ID()}, {vm.UUID, "another"}} {
		mark(c[0], c[1], "gone")
		w.Cleanup(lease.CleanupOptions{})
		if now := w.VM("web"); len(now.VUSBs) > 0 || now.PowerState != "Halted" {
			t.Errorf("%v: %v %s", c, now.VUSBs, now.PowerState)
		}
	}
	mark(vm.UUID, w.Repo.ID(), "gone")
	rep, err := lease.Cleanup(t.Context(), w.Repo, w.Pool, lease.CleanupOptions{DryRun: true})
	if err != nil || len(rep.Found) != 2 || rep.Found[0].Action != lease.ActPlug || rep.Found[1].Action != lease.ActStart {
		t.Fatalf("%+v %v", rep, err)
	}
	w.Cleanup(lease.CleanupOptions{})
	w.HasUSB(true, "dongle")
}
