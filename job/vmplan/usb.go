package vmplan

import (
	"context"
	"fmt"
	"slices"

	"xenkeep/job/lease"
	"xenkeep/xapi"
)

// usbRunning is the reason why a device of a running VM is not detached.
const usbRunning = "the pool has no call that attaches one while the VM runs"

// readUSB reads the USB devices of a VM, and returns an error if they must not be
// detached, or could not be attached again.
func (p *Plan) readUSB(ctx context.Context, pool *xapi.Client, allowed bool) (err error) {
	if len(p.VM.VUSBs) == 0 {
		return nil
	}
	if p.usb, err = lease.USBDevices(ctx, pool, &p.VM); err != nil || len(p.usb) == 0 {
		return err
	}
	if !allowed {
		return &unsupported{why: "it has the " + lease.USBNames(p.usb) + ", and the pool refuses to snapshot such a VM",
			hint: "detach them (vusb-destroy), or let the backup detach them and attach them again: unplug-usb = true in the job, or --unplug-usb"}
	}
	rec, err := pool.Pool(ctx)
	switch {
	case err != nil:
		return err
	case rec.Restrictions["restrict_usb_passthrough"] == "true":
		return &unsupported{why: "the pool's licence does not allow USB devices to be attached, so the " + lease.USBNames(p.usb) + " could not be put back", hint: "detach it (vusb-destroy)"}
	case p.VM.HARestartPriority == "restart":
		return &unsupported{why: "its ha-restart-priority is restart, with which the " + lease.USBNames(p.usb) + " could not be put back", hint: "set its ha-restart-priority to best-effort, or detach it (vusb-destroy)"}
	}
	return nil
}

// USBUnable returns an error if a VM snapshot of kind k needs a device to be detached
// from a guest to which it could not be attached again.
func USBUnable(k Kind, state string, devices []lease.USBDevice) error {
	held := slices.DeleteFunc(slices.Clone(devices), func(d lease.USBDevice) bool { return !d.Attached })
	if len(held) == 0 || state == "Halted" {
		return nil
	}
	return &Unable{Kind: k, Why: fmt.Sprintf("the guest has the %s, and %s", lease.USBNames(held), usbRunning),
		Advice: offlineHint}
}
