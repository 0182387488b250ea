package job

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"xenkeep/xapi"
)

// markUSB on a VM holds the USB devices that a run has taken off it for its VM
// snapshot, and will put back. Like markOffline it marks nothing that a run made:
// nothing may ever be removed by it.
const markUSB = "xenkeep:usb"

// usbMark is the value of markUSB.
type usbMark struct {
	offlineMark
	Devices []usbDevice `json:"devices"`
}

// usbDevice is one VUSB, as it is made again.
type usbDevice struct {
	Group       xapi.Ref          `json:"group"`
	Name        string            `json:"name"`
	OtherConfig map[string]string `json:"other_config,omitempty"`

	attached bool // a guest has it now
	ref      xapi.Ref
}

// usbPlugHint is the next step for USB devices that are not put back.
const usbPlugHint = "xenkeep cleanup attaches the USB devices again, as soon as the pool lets it; a VM that runs has them after its next start"

// usbRunning is why a device of a running VM is not detached.
const usbRunning = "the pool has no call that attaches one while the VM runs"

// usbOf returns the mark of a VM; nil where it has none of its own.
func usbOf(vm *xapi.VM) *usbMark {
	var m usbMark
	if !vm.Real() || json.Unmarshal([]byte(vm.OtherConfig[markUSB]), &m) != nil || m.VM != vm.UUID {
		return nil
	}
	return &m
}

// usbDevices reads the USB devices of a VM, by their names.
func usbDevices(ctx context.Context, pool *xapi.Client, vm *xapi.VM) ([]usbDevice, error) {
	var out []usbDevice
	for _, ref := range vm.VUSBs {
		u, err := pool.VUSB(ctx, ref)
		if xapi.IsCode(err, xapi.HandleInvalid) {
			continue // pulled out a moment ago
		}
		if err != nil {
			return nil, err
		}
		g, err := pool.USBGroup(ctx, u.USBGroup)
		if err != nil && !xapi.IsCode(err, xapi.HandleInvalid) {
			return nil, err
		}
		out = append(out, usbDevice{Group: u.USBGroup, Name: g.NameLabel, OtherConfig: u.OtherConfig, attached: u.CurrentlyAttached, ref: ref})
	}
	slices.SortFunc(out, func(a, b usbDevice) int { return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Group, b.Group)) })
	return out, nil
}

// usbNames lists devices for people.
func usbNames(devices []usbDevice) string {
	names := make([]string, len(devices))
	for i, d := range devices {
		names[i] = fmt.Sprintf("%q", d.Name)
	}
	if len(names) == 1 {
		return "USB device " + names[0]
	}
	return "USB devices " + strings.Join(names, ", ")
}

// readUSB reads the USB devices of a VM that is to be snapshotted, and refuses
// them where they may not be taken off, or could not be put back.
func (p *vmPlan) readUSB(ctx context.Context, pool *xapi.Client, allowed bool) (err error) {
	if len(p.vm.VUSBs) == 0 {
		return nil
	}
	if p.usb, err = usbDevices(ctx, pool, &p.vm); err != nil || len(p.usb) == 0 {
		return err
	}
	if !allowed {
		return &unsupported{why: "it has the " + usbNames(p.usb) + ", and the pool refuses to snapshot such a VM",
			hint: "detach them (vusb-destroy), or let the backup detach them and attach them again: unplug-usb = true in the job, or --unplug-usb"}
	}
	rec, err := pool.Pool(ctx)
	switch {
	case err != nil:
		return err
	case rec.Restrictions["restrict_usb_passthrough"] == "true":
		return &unsupported{why: "the pool's licence does not allow USB devices to be attached, so the " + usbNames(p.usb) + " could not be put back", hint: "detach it (vusb-destroy)"}
	case p.vm.HARestartPriority == "restart":
		return &unsupported{why: "its ha-restart-priority is restart, with which the " + usbNames(p.usb) + " could not be put back", hint: "set its ha-restart-priority to best-effort, or detach it (vusb-destroy)"}
	}
	return nil
}

// usbUnable refuses a VM snapshot for which a device would be taken from a guest
// that could not get it back.
func usbUnable(k Kind, state string, devices []usbDevice) error {
	held := slices.DeleteFunc(slices.Clone(devices), func(d usbDevice) bool { return !d.attached })
	if len(held) == 0 || state == "Halted" {
		return nil
	}
	return &unable{kind: k, why: fmt.Sprintf("the guest has the %s, and %s", usbNames(held), usbRunning),
		hint: `take a snapshot of kind offline (snapshot = ["offline"] in the job, or as its last kind), or shut the VM down before the backup`}
}

// withoutUSB takes a VM snapshot by take while the VM has no USB device, and puts
// the devices back on every path. Between the two a mark on the VM names them, for
// the case that this process is killed.
func (v *vmBackup) withoutUSB(ctx context.Context, k Kind, take func() error) (err error) {
	if !v.b.o.UnplugUSB {
		return take()
	}
	pool := v.b.pool
	vm, err := pool.VM(ctx, v.plan.vm.Ref)
	if err != nil {
		return err
	}
	if m := usbOf(&vm); m != nil { // its list must not be lost
		if m.Run != v.b.lease.own[markRun] {
			return &usbError{fmt.Errorf("run %s on %s has detached USB devices and not attached all of them again: %w", shortRun(m.Run), m.Machine, ErrBusy), usbPlugHint}
		}
		if err := v.attachUSB(ctx, m.Devices); err != nil {
			return err
		}
		if vm, err = pool.VM(ctx, vm.Ref); err != nil {
			return err
		}
	}
	devices, err := usbDevices(ctx, pool, &vm)
	if err != nil {
		return err
	}
	if len(devices) == 0 {
		return take()
	}
	if err := usbUnable(k, vm.PowerState, devices); err != nil {
		return err
	}
	if err := v.b.lease.markUSB(ctx, &vm, devices); err != nil {
		return err
	}
	defer func() {
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), startTime)
		defer cancel()
		if aerr := v.attachUSB(clean, devices); aerr != nil {
			err = errors.Join(err, aerr)
		}
	}()
	for _, d := range devices {
		if err := pool.DestroyVUSB(ctx, d.ref); err != nil {
			return &usbError{fmt.Errorf("the USB device %q cannot be detached: %w", d.Name, err), usbHint(err)}
		}
	}
	return take()
}

// attachUSB gives the VM the devices back that were detached for its snapshot.
func (v *vmBackup) attachUSB(ctx context.Context, devices []usbDevice) error {
	name := v.plan.vm.NameLabel
	lost, err := putUSB(ctx, v.b.pool, v.plan.vm.Ref)
	if len(lost) > 0 {
		v.b.warn("VM %s: the pool no longer has its %s, detached for the backup and not attached again", name, usbNames(lost))
	}
	if err == nil {
		return nil
	}
	v.b.warn("VM %s: its %s cannot be attached again after the backup: %w", name, usbNames(devices), err)
	return &usbError{fmt.Errorf("the %s cannot be attached again: %w", usbNames(devices), err), usbPlugHint}
}

// usbHint is the next step where a USB device cannot be detached.
func usbHint(err error) string {
	if xapi.IsCode(err, "RBAC_PERMISSION_DENIED") {
		return "log in as root or with the role pool-admin, which detaching USB devices needs, or detach it by hand (vusb-destroy)"
	}
	return "detach it by hand (vusb-destroy), or look at the reason"
}

// usbError is a failure about USB devices, with the next step.
type usbError struct {
	err  error
	hint string
}

func (e *usbError) Error() string { return e.err.Error() }
func (e *usbError) Unwrap() error { return e.err }
func (e *usbError) Hint() string  { return e.hint }

func (l *lease) markUSB(ctx context.Context, vm *xapi.VM, devices []usbDevice) error {
	p, err := json.Marshal(usbMark{l.offline(vm), devices})
	if err != nil {
		return err
	}
	return l.pool.SetOtherConfig(ctx, "VM", vm.Ref, markUSB, string(p))
}

// putUSB gives a VM the USB devices back that its mark names, and takes the mark
// off. It may be repeated. lost are devices that the pool no longer has.
func putUSB(ctx context.Context, pool *xapi.Client, ref xapi.Ref) (lost []usbDevice, err error) {
	err = pool.Retry(ctx, func(ctx context.Context) error {
		lost = nil
		vm, err := pool.VM(ctx, ref)
		if err != nil {
			return err
		}
		m := usbOf(&vm)
		if m == nil {
			return nil
		}
		there, err := usbDevices(ctx, pool, &vm)
		if err != nil {
			return err
		}
		var errs []error
		for _, d := range m.Devices {
			if slices.ContainsFunc(there, func(t usbDevice) bool { return t.Group == d.Group }) {
				continue
			}
			_, err := pool.CreateVUSB(ctx, xapi.VUSB{VM: ref, USBGroup: d.Group, OtherConfig: d.OtherConfig})
			switch {
			case xapi.IsCode(err, xapi.HandleInvalid):
				lost = append(lost, d)
			case err != nil:
				errs = append(errs, fmt.Errorf("USB device %q: %w", d.Name, err))
			}
		}
		if len(errs) > 0 {
			return errors.Join(errs...)
		}
		return pool.RemoveOtherConfig(ctx, "VM", ref, markUSB)
	})
	return lost, err
}

// findUSB adds the VMs whose USB devices runs of this repository have taken off.
func (c *cleanup) findUSB(ctx context.Context) error {
	for i := range c.vms {
		vm := &c.vms[i]
		m := usbOf(vm)
		if m == nil || m.Repository != c.r.ID() {
			continue
		}
		l := Leftover{Class: "VM", UUID: vm.UUID, Name: vm.NameLabel, Role: roleUSB, Repository: m.Repository, Run: m.Run, Machine: m.Machine,
			State: StateLive, Action: ActNone, ref: vm.Ref}
		gone, err := c.runGone(ctx, &m.offlineMark)
		if err != nil {
			return err
		}
		if gone {
			l.State, l.Action, l.Hint = StateDead, ActPlug, "cleanup attaches the "+usbNames(m.Devices)+" again"
			if vm.PowerState != "Halted" {
				l.Hint += "; the guest has it after the VM's next start"
			}
		}
		c.found = append(c.found, l)
	}
	return nil
}
