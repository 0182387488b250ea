package xapisim

import "fmt"

// maxVUSBs is the maximum number of USB devices of a VM (xen-api
// ocaml/xapi/xapi_vusb.ml).
const maxVUSBs = 6

// AddUSB adds a USB device that may be passed through to a host, chosen by its
// number, and returns the reference of the group that the pool creates for it.
func (p *Pool) AddUSB(host int, name string) (group string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	g := p.db.create("USB_group", map[string]any{"name_label": name})
	p.db.create("PUSB", map[string]any{
		"USB_group": g.ref, "host": p.hosts[host].ref, "path": fmt.Sprintf("1-%d", len(p.db.all("PUSB"))+1), "vendor_id": "0781",
		"product_id": "5567", "version": "2.00", "description": name, "passthrough_enabled": true, "speed": 480.0,
	})
	return g.ref
}

// RemoveUSB unplugs the USB device of a group from its host: the pool then
// removes the device, its group, and the group's VUSBs.
func (p *Pool) RemoveUSB(group string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	g := p.db.find("USB_group", group)
	if g == nil {
		return
	}
	for _, o := range append(p.db.refs("VUSB", g.set("VUSBs")), p.db.refs("PUSB", g.set("PUSBs"))...) {
		p.db.destroy(o)
	}
	p.db.destroy(g)
}

// vusbCalls are the calls of VUSB. No call plugs a VUSB: one that is created
// while its VM runs reaches the guest when the VM starts the next time.
func (p *Pool) vusbCalls() map[string]handler {
	return map[string]handler{
		"VUSB.create":  p.createVUSB,
		"VUSB.unplug":  p.plug("VUSB", false),
		"VUSB.destroy": p.destroyVUSB,
	}
}

// createVUSB creates the record of a VUSB, after the checks of the real pool in
// their order.
func (p *Pool) createVUSB(c *call) (any, error) {
	if r, _ := p.db.all("pool")[0].mapv("restrictions")["restrict_usb_passthrough"].(string); r == "true" {
		return nil, fail("LICENCE_RESTRICTION", "USB_passthrough")
	}
	vm, err := c.object(0)
	if err != nil {
		return nil, err
	}
	if len(vm.set("VUSBs")) >= maxVUSBs {
		return nil, fail("TOO_MANY_VUSBS", fmt.Sprint(maxVUSBs))
	}
	g, err := c.object(1)
	if err != nil {
		return nil, err
	}
	if len(g.set("VUSBs")) > 0 {
		return nil, fail("USB_GROUP_CONFLICT", g.ref)
	}
	if vm.str("ha_restart_priority") == "restart" {
		return nil, fail("OPERATION_NOT_ALLOWED", fmt.Sprintf("VM %s ha_restart_priority has been set to 'restart', cannot create VUSB for it. ", vm.ref))
	}
	return p.db.create("VUSB", map[string]any{"VM": vm.ref, "USB_group": g.ref, "other_config": c.args[2]}).ref, nil
}

// destroyVUSB refuses a VUSB that is attached to a running guest.
func (p *Pool) destroyVUSB(c *call) (any, error) {
	vusb, err := c.object(0)
	if err != nil {
		return nil, err
	}
	if vusb.bool("currently_attached") {
		vm, err := p.lookup("VM", vusb.str("VM"))
		if err != nil {
			return nil, err
		}
		return nil, fail("OPERATION_NOT_ALLOWED", fmt.Sprintf("VUSB '%s' still attached to '%s'", vusb.uuid(), vm.uuid()))
	}
	p.db.destroy(vusb)
	return void, nil
}
