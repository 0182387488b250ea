package xapisim

import (
	"bytes"
	"reflect"
	"testing"
)

func TestCheckpoint(t *testing.T) {
	c := start(t, func(cfg *Config) { cfg.VMs[0].Drivers = true })
	vm := c.vm()
	home := c.record("VM", vm)["resident_on"]
	cp := c.must("VM.checkpoint", vm, "cp").(string)
	rec, now := c.record("VM", cp), c.record("VM", vm)
	if rec["power_state"] != "Suspended" || rec["is_a_snapshot"] != true || rec["snapshot_of"] != vm ||
		!reflect.DeepEqual(rec["snapshot_info"], map[string]any{"power-state-at-snapshot": "Running", "disk-snapshot-type": "crash_consistent"}) {
		t.Errorf("checkpoint: %v %v %v", rec["power_state"], rec["snapshot_of"], rec["snapshot_info"])
	}
	image := c.record("VDI", rec["suspend_VDI"])
	if image["type"] != "suspend" || image["is_a_snapshot"] != true {
		t.Errorf("suspend image: %v", image)
	}
	if now["power_state"] != "Running" || now["suspend_VDI"] != nullRef || now["resident_on"] != home || now["parent"] != cp {
		t.Errorf("the VM goes on: %v %v %v", now["power_state"], now["suspend_VDI"], now["resident_on"])
	}
	if c.record("VM_guest_metrics", now["guest_metrics"])["PV_drivers_detected"] != true {
		t.Error("the guest's metrics are gone")
	}
	c.guestWrites(0)
	c.must("VM.revert", cp)
	now = c.record("VM", vm)
	if now["power_state"] != "Suspended" || now["suspend_VDI"] == nullRef || now["suspend_VDI"] == rec["suspend_VDI"] {
		t.Errorf("after the revert: %v %v", now["power_state"], now["suspend_VDI"])
	}
	if !bytes.Equal(c.content(c.disks(vm)["0"]), pattern(1, 8*mib)) {
		t.Error("the disk is not the checkpoint's")
	}
	c.must("VM.resume", vm, false, false)
	if now = c.record("VM", vm); now["power_state"] != "Running" || now["suspend_VDI"] != nullRef {
		t.Errorf("after the resumption: %v %v", now["power_state"], now["suspend_VDI"])
	}
	c.must("VM.hard_shutdown", cp)
	if rec = c.record("VM", cp); rec["power_state"] != "Halted" || rec["suspend_VDI"] != nullRef {
		t.Errorf("a checkpoint shut down: %v %v", rec["power_state"], rec["suspend_VDI"])
	}
}

func TestCheckpointStates(t *testing.T) {
	c := start(t, nil)
	vm := c.vm()
	c.refused([]string{"VM_LACKS_FEATURE", vm}, "VM.checkpoint", vm, "cp")
	c.must("VM.pause", vm)
	if rec := c.record("VM", c.must("VM.checkpoint", vm, "paused")); rec["power_state"] != "Halted" || len(rec["snapshot_info"].(map[string]any)) != 0 {
		t.Errorf("of a paused VM: %v %v", rec["power_state"], rec["snapshot_info"])
	}
	c.must("VM.unpause", vm)
	c.must("VM.suspend", vm)
	if rec := c.record("VM", c.must("VM.checkpoint", vm, "suspended")); rec["power_state"] != "Suspended" || rec["suspend_VDI"] == nullRef ||
		rec["suspend_VDI"] == c.record("VM", vm)["suspend_VDI"] {
		t.Errorf("of a suspended VM: %v %v", rec["power_state"], rec["suspend_VDI"])
	}
	c.must("VM.hard_shutdown", vm)
	c.refused([]string{"VM_BAD_POWER_STATE", vm, "paused, suspended, running", "halted"}, "VM.checkpoint", vm, "cp")
}

func TestProvisionMakesDisks(t *testing.T) {
	c := start(t, nil)
	vm := c.vm()
	c.must("VM.hard_shutdown", vm)
	tpl := c.must("VM.clone", vm, "template")
	c.must("VM.set_is_a_template", tpl, true)
	disk := `<disk device="7" size="5000000" sr="" bootable="false" type="system"/>`
	c.must("VM.add_to_other_config", tpl, "disks", `<provision>`+disk+`<disk device="8" size="1" sr="none" bootable="false" type="user"/></provision>`)
	before := c.p.Dump()
	c.refused([]string{"DEFAULT_SR_NOT_FOUND", nullRef}, "VM.provision", tpl)
	c.p.GC()
	if !reflect.DeepEqual(before, c.p.Dump()) {
		t.Error("a failed provision left something behind")
	}
	c.must("VM.remove_from_other_config", tpl, "disks")
	c.must("VM.add_to_other_config", tpl, "disks", `<provision>`+disk+`</provision>`)
	c.must("VM.provision", tpl)
	rec := c.record("VM", tpl)
	vdi := c.record("VDI", c.disks(tpl.(string))["7"])
	if rec["is_a_template"] != false || rec["other_config"].(map[string]any)["disks"] != nil || vdi["virtual_size"] != 6.0*mib || vdi["type"] != "system" {
		t.Errorf("provisioned: %v %v", rec["other_config"], vdi)
	}
}
