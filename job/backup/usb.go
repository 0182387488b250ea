package backup

import (
	"context"
	"errors"
	"fmt"

	"xenkeep/job"
	"xenkeep/job/lease"
	"xenkeep/job/vmplan"
	"xenkeep/xapi"
)

// usbPlugHint is the next step if USB devices could not be attached again.
const usbPlugHint = "xenkeep cleanup attaches the USB devices again, as soon as the pool lets it; a VM that runs has them after its next start"

// withoutUSB calls take, which takes a VM snapshot, while the USB devices of the VM
// are detached, and attaches them again on every path. In between, a mark on the VM
// names them, so that cleanup can attach them if this process is killed.
func (v *vmBackup) withoutUSB(ctx context.Context, k vmplan.Kind, take func() error) (err error) {
	if !v.b.o.UnplugUSB {
		return take()
	}
	pool := v.b.pool
	vm, err := pool.VM(ctx, v.plan.VM.Ref)
	if err != nil {
		return err
	}
	if m := lease.USBOf(&vm); m != nil { // its list must not be overwritten
		if m.Run != v.b.lease.Own[lease.MarkRun] {
			return &usbError{fmt.Errorf("run %s on %s has detached USB devices and not attached all of them again: %w", lease.ShortRun(m.Run), m.Machine, job.ErrBusy), usbPlugHint}
		}
		if err := v.attachUSB(ctx, m.Devices); err != nil {
			return err
		}
		if vm, err = pool.VM(ctx, vm.Ref); err != nil {
			return err
		}
	}
	devices, err := lease.USBDevices(ctx, pool, &vm)
	if err != nil {
		return err
	}
	if len(devices) == 0 {
		return take()
	}
	if err := vmplan.USBUnable(k, vm.PowerState, devices); err != nil {
		return err
	}
	if err := v.b.lease.MarkUSB(ctx, &vm, devices); err != nil {
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
		if err := pool.DestroyVUSB(ctx, d.Ref); err != nil {
			return &usbError{fmt.Errorf("the USB device %q cannot be detached: %w", d.Name, err), usbHint(err)}
		}
	}
	return take()
}

// attachUSB attaches the devices that were detached for the snapshot.
func (v *vmBackup) attachUSB(ctx context.Context, devices []lease.USBDevice) error {
	name := v.plan.VM.NameLabel
	lost, err := lease.AttachUSB(ctx, v.b.pool, v.plan.VM.Ref)
	if len(lost) > 0 {
		v.b.warn("VM %s: the pool no longer has its %s, detached for the backup and not attached again", name, lease.USBNames(lost))
	}
	if err == nil {
		return nil
	}
	v.b.warn("VM %s: its %s cannot be attached again after the backup: %w", name, lease.USBNames(devices), err)
	return &usbError{fmt.Errorf("the %s cannot be attached again: %w", lease.USBNames(devices), err), usbPlugHint}
}

// usbHint returns the next step if a USB device cannot be detached.
func usbHint(err error) string {
	if xapi.IsCode(err, "RBAC_PERMISSION_DENIED") {
		return "log in as root or with the role pool-admin, which detaching USB devices needs, or detach it by hand (vusb-destroy)"
	}
	return "detach it by hand (vusb-destroy), or look at the reason"
}

// usbError is an error about USB devices, with the next step.
type usbError struct {
	err  error
	hint string
}

func (e *usbError) Error() string { return e.err.Error() }

func (e *usbError) Unwrap() error { return e.err }

func (e *usbError) Hint() string { return e.hint }
