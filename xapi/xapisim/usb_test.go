package xapisim

import "testing"

// A VUSB keeps its VM from being snapshotted and moved, can be destroyed only
// where no guest has it, and reaches a guest when its VM starts: the pool has no
// call that plugs one.
func TestVUSB(t *testing.T) {
	c := start(t, nil)
	vm, group := c.vm(), c.p.AddUSB(0, "dongle")
	usb := c.must("VUSB.create", vm, group, map[string]any{"a": "b"}).(string)
	if r := c.record("VUSB", usb); r["VM"] != vm || r["USB_group"] != group || r["currently_attached"] != false || r["other_config"].(map[string]any)["a"] != "b" {
		t.Errorf("%v", r)
	}
	c.refused([]string{"USB_GROUP_CONFLICT", group}, "VUSB.create", vm, group, map[string]any{})
	c.refused([]string{"HANDLE_INVALID", "USB_group", "OpaqueRef:none"}, "VUSB.create", vm, "OpaqueRef:none", map[string]any{})
	c.refused([]string{"DEVICE_ALREADY_DETACHED", usb}, "VUSB.unplug", usb)
	c.refused([]string{"VM_HAS_VUSBS", vm}, "VM.snapshot", vm, "s")
	c.refused([]string{"VM_HAS_VUSBS", vm}, "VM.suspend", vm)
	c.refused([]string{"MESSAGE_METHOD_UNKNOWN", "VUSB.plug"}, "VUSB.plug", usb)

	c.must("VM.clean_shutdown", vm)
	c.refused([]string{"VM_HAS_VUSBS", vm}, "VM.snapshot", vm, "s")
	c.must("VM.start", vm, false, false)
	rec := c.record("VUSB", usb)
	if rec["currently_attached"] != true {
		t.Errorf("the start of the VM does not attach it: %v", rec)
	}
	c.refused([]string{"OPERATION_NOT_ALLOWED", "VUSB '" + rec["uuid"].(string) + "' still attached to '" + c.record("VM", vm)["uuid"].(string) + "'"}, "VUSB.destroy", usb)
	c.must("VUSB.unplug", usb)
	c.must("VUSB.destroy", usb)
	c.must("VM.snapshot", vm, "s")

	for i := range maxVUSBs {
		c.must("VUSB.create", vm, c.p.AddUSB(0, "stick"+string(rune('a'+i))), map[string]any{})
	}
	c.refused([]string{"TOO_MANY_VUSBS", "6"}, "VUSB.create", vm, c.p.AddUSB(0, "one more"), map[string]any{})
	c.p.RemoveUSB(group)
	c.refused([]string{"HANDLE_INVALID", "USB_group", group}, "USB_group.get_record", group)

	free := start(t, func(cfg *Config) { cfg.Unlicensed = true })
	free.refused([]string{"LICENCE_RESTRICTION", "USB_passthrough"}, "VUSB.create", free.vm(), free.p.AddUSB(0, "dongle"), map[string]any{})
}
