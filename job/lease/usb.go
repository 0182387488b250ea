package lease

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

// markUSB on a VM holds the USB devices that a run detached for its VM snapshot and
// will attach again. Like markOffline it is not on an object that a run created:
// nothing may ever be removed because of it.
const markUSB = "xenkeep:usb"

// usbMark is the value of markUSB.
type usbMark struct {
	offlineMark
	Devices []USBDevice `json:"devices"`
}

// USBDevice is one VUSB, with the data that are needed to create it again.
type USBDevice struct {
	Group       xapi.Ref          `json:"group"`
	Name        string            `json:"name"`
	OtherConfig map[string]string `json:"other_config,omitempty"`

	Attached bool // a guest is using it
	Ref      xapi.Ref
}

// USBOf returns the mark of a VM; nil if it has none of its own.
func USBOf(vm *xapi.VM) *usbMark {
	var m usbMark
	if !vm.Real() || json.Unmarshal([]byte(vm.OtherConfig[markUSB]), &m) != nil || m.VM != vm.UUID {
		return nil
	}
	return &m
}

// USBDevices returns the USB devices of a VM, sorted by name.
func USBDevices(ctx context.Context, pool *xapi.Client, vm *xapi.VM) ([]USBDevice, error) {
	var out []USBDevice
	for _, ref := range vm.VUSBs {
		u, err := pool.VUSB(ctx, ref)
		if xapi.IsCode(err, xapi.HandleInvalid) {
			continue // unplugged a moment ago
		}
		if err != nil {
			return nil, err
		}
		g, err := pool.USBGroup(ctx, u.USBGroup)
		if err != nil && !xapi.IsCode(err, xapi.HandleInvalid) {
			return nil, err
		}
		out = append(out, USBDevice{Group: u.USBGroup, Name: g.NameLabel, OtherConfig: u.OtherConfig, Attached: u.CurrentlyAttached, Ref: ref})
	}
	slices.SortFunc(out, func(a, b USBDevice) int { return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Group, b.Group)) })
	return out, nil
}

// USBNames returns the names of devices as text for users.
func USBNames(devices []USBDevice) string {
	names := make([]string, len(devices))
	for i, d := range devices {
		names[i] = fmt.Sprintf("%q", d.Name)
	}
	if len(names) == 1 {
		return "USB device " + names[0]
	}
	return "USB devices " + strings.Join(names, ", ")
}

// MarkUSB records on a VM the USB devices that will be detached for its snapshot.
func (l *Lease) MarkUSB(ctx context.Context, vm *xapi.VM, devices []USBDevice) error {
	p, err := json.Marshal(usbMark{l.offline(vm), devices})
	if err != nil {
		return err
	}
	return l.pool.SetOtherConfig(ctx, "VM", vm.Ref, markUSB, string(p))
}

// AttachUSB attaches the USB devices of a VM that its mark lists, and removes the
// mark. It may be repeated. It returns the devices that the pool no longer has in
// lost.
func AttachUSB(ctx context.Context, pool *xapi.Client, ref xapi.Ref) (lost []USBDevice, err error) {
	err = pool.Retry(ctx, func(ctx context.Context) error {
		lost = nil
		vm, err := pool.VM(ctx, ref)
		if err != nil {
			return err
		}
		m := USBOf(&vm)
		if m == nil {
			return nil
		}
		there, err := USBDevices(ctx, pool, &vm)
		if err != nil {
			return err
		}
		var errs []error
		for _, d := range m.Devices {
			if slices.ContainsFunc(there, func(t USBDevice) bool { return t.Group == d.Group }) {
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

// findUSB adds the VMs whose USB devices runs of this repository have detached.
func (c *cleanup) findUSB(ctx context.Context) error {
	for i := range c.vms {
		vm := &c.vms[i]
		m := USBOf(vm)
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
			l.State, l.Action, l.Hint = StateDead, ActPlug, "cleanup attaches the "+USBNames(m.Devices)+" again"
			if vm.PowerState != "Halted" {
				l.Hint += "; the guest has it after the VM's next start"
			}
		}
		c.found = append(c.found, l)
	}
	return nil
}
