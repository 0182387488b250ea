package xapisim

import (
	"bytes"
	"encoding/base64"
	"reflect"
	"testing"
)

// changed returns the changed granules between two disks.
func (c *client) changed(from, to string) []int {
	c.t.Helper()
	b, err := base64.StdEncoding.DecodeString(c.must("VDI.list_changed_blocks", from, to).(string))
	if err != nil {
		c.t.Fatal(err)
	}
	out := []int{}
	for g := range 8 * len(b) {
		if b[g/8]&(0x80>>(g%8)) != 0 {
			out = append(out, g)
		}
	}
	return out
}

// message reports whether there is a message with that name about a disk.
func (c *client) message(name, vdi string) bool {
	c.t.Helper()
	for _, m := range c.must("message.get_all_records").(map[string]any) {
		if rec := m.(map[string]any); rec["name"] == name && rec["cls"] == "VDI" && rec["obj_uuid"] == c.uuid("VDI", vdi) {
			return true
		}
	}
	return false
}

func (c *client) cbt(vdi string) bool {
	c.t.Helper()
	return c.record("VDI", vdi)["cbt_enabled"].(bool)
}

func TestCBTConfig(t *testing.T) {
	c := start(t, func(cfg *Config) { cfg.CBT = true })
	if !c.cbt(c.disk(0)) || !c.cbt(c.disk(1)) {
		t.Error("tracking is off")
	}
}

func TestCrashLosesCBT(t *testing.T) {
	c := start(t, func(cfg *Config) { cfg.CBT = true })
	first := c.snapshotDisk(0)
	// A clean stop and start does not change the log.
	c.must("VM.hard_shutdown", c.vm())
	c.must("VM.start", c.vm(), false, false)
	if !c.cbt(c.disk(0)) {
		t.Fatal("a clean restart of the VM lost the log")
	}
	c.guestWrites(0)
	task := c.must("task.create", "t", "")
	c.p.CrashHost(0)
	if _, err := c.call("VM.get_all"); err == nil {
		t.Error("the session survived the master's crash")
	}
	c.session = c.must("session.login_with_password", c.p.User(), c.p.Password(), "1.0", "test").(string)
	c.refused([]string{"HANDLE_INVALID", "task", task.(string)}, "task.get_record", task)
	if got := c.record("VM", c.vm())["power_state"]; got != "Halted" {
		t.Errorf("the VM is %v", got)
	}
	if !c.cbt(c.disk(0)) || c.message("VDI_CBT_METADATA_INCONSISTENT", c.disk(0)) {
		t.Error("the loss is noticed before the next attachment")
	}
	c.must("VM.start", c.vm(), false, false)
	if c.cbt(c.disk(0)) || !c.message("VDI_CBT_METADATA_INCONSISTENT", c.disk(0)) || !c.cbt(first) {
		t.Error("the start did not switch tracking off, with a message, for the live disk alone")
	}
	c.must("VDI.enable_cbt", c.disk(0))
	next := c.snapshotDisk(0)
	c.refused([]string{"SR_BACKEND_FAILURE_460", "", "Failed to calculate changed blocks for given VDIs. [opterr=Source and target VDI are unrelated]", ""},
		"VDI.list_changed_blocks", first, next)
}

func TestMemberCrash(t *testing.T) {
	c := start(t, func(cfg *Config) { cfg.CBT = true })
	c.must("VM.hard_shutdown", c.vm())
	member := c.p.hosts[1].ref
	c.must("VM.start_on", c.vm(), member, false, false)
	c.p.CrashHost(1)
	if got := c.record("VM", c.vm())["power_state"]; got != "Halted" { // the session remains valid
		t.Errorf("the VM is %v", got)
	}
	c.must("VM.start", c.vm(), false, false)
	if c.cbt(c.disk(0)) {
		t.Error("the log was not lost")
	}
}

func TestCBTFailsAtSnapshot(t *testing.T) {
	c := start(t, func(cfg *Config) { cfg.CBT = true })
	first := c.snapshotDisk(0)
	c.guestWrites(5 * mib)
	c.p.Fault(Fault{On: "sm.cbt_snapshot"})
	snap := c.snapshotDisk(0)
	if c.cbt(c.disk(0)) || !c.message("VDI_CBT_SNAPSHOT_FAILED", c.disk(0)) {
		t.Error("the live disk is still tracked, or no message says that it is not")
	}
	if got := c.changed(first, snap); !reflect.DeepEqual(got, []int{80}) { // the snapshot has the old log
		t.Errorf("changed: %v", got)
	}
}

func TestNoSpaceForCBTLog(t *testing.T) {
	c := start(t, func(cfg *Config) {
		// Enough space for the live disk and its snapshot, but not for a log.
		cfg.SRs = []SRConfig{{Name: "tight", Type: "lvm", Size: 40 * mib}}
		cfg.VMs[0].Disks, cfg.VMs[0].Halted, cfg.CBT = cfg.VMs[0].Disks[:1], true, true
	})
	for range 8 {
		snap, err := c.call("VDI.snapshot", c.disk(0))
		if err != nil {
			t.Fatalf("the SR is full before the log failed: %v", err)
		}
		if !c.cbt(c.disk(0)) {
			if !c.cbt(snap.(string)) || !c.message("VDI_CBT_SNAPSHOT_FAILED", c.disk(0)) {
				t.Error("the snapshot lost its log, or there is no message")
			}
			return
		}
	}
	t.Error("logs need no room")
}

func TestCBTFailsAtResize(t *testing.T) {
	c := start(t, nil)
	for i, fails := range []bool{false, true} {
		vdi := c.newDisk(c.sr("nfs"), 4*mib, map[string]any{})
		c.must("VDI.enable_cbt", vdi)
		if fails {
			c.p.Fault(Fault{On: "sm.cbt_resize"})
		}
		base := c.must("VDI.snapshot", vdi).(string)
		c.must("VDI.resize", vdi, 16*mib)
		if c.cbt(vdi) == fails || c.message("VDI_CBT_RESIZE_FAILED", vdi) != fails || c.record("VDI", vdi)["virtual_size"] != 16.0*mib {
			t.Errorf("disk %d: tracking %v, size %v", i, c.cbt(vdi), c.record("VDI", vdi)["virtual_size"])
		}
		if !fails {
			b, _ := base64.StdEncoding.DecodeString(c.must("VDI.list_changed_blocks", base, vdi).(string))
			if !bytes.Equal(b, make([]byte, 32)) {
				t.Errorf("after growth: %x", b)
			}
		}
	}
}

func TestCBTSwitchFails(t *testing.T) {
	c := start(t, nil)
	c.p.Fault(Fault{On: "sm.cbt_enable"})
	c.refused([]string{"SR_BACKEND_FAILURE_457", "", "Failed to enable changed block tracking", ""}, "VDI.enable_cbt", c.disk(0))
	c.must("VDI.enable_cbt", c.disk(0))
	c.p.Fault(Fault{On: "sm.cbt_disable"})
	c.refused([]string{"SR_BACKEND_FAILURE_458", "", "Failed to disable changed block tracking", ""}, "VDI.disable_cbt", c.disk(0))
	if !c.cbt(c.disk(0)) {
		t.Error("tracking is off")
	}
	raw := c.newDisk(c.sr("lvmoiscsi"), 4*mib, map[string]any{"type": "raw"})
	c.refused([]string{"SR_BACKEND_FAILURE_66", "", "VDI type does not support operation", ""}, "VDI.enable_cbt", raw)
}

func TestCBTLogsOfOtherLength(t *testing.T) {
	c := start(t, func(cfg *Config) { cfg.CBT = true })
	a, b, d := c.snapshotDisk(0), c.snapshotDisk(0), c.snapshotDisk(0)
	v, err := c.p.Volume(c.uuid("VDI", d))
	if err != nil {
		t.Fatal(err)
	}
	v.DamageLog(2 * mib)
	c.refused([]string{"SR_BACKEND_FAILURE_459", "", "Size of bitmap is not consistent", ""}, "VDI.list_changed_blocks", a, d)
	if got := c.changed(a, b); len(got) != 0 {
		t.Errorf("changed: %v", got)
	}
}

func TestStorageRevert(t *testing.T) {
	c := start(t, func(cfg *Config) { cfg.CBT, cfg.StorageRevert = true, true })
	old := c.must("VM.snapshot", c.vm(), "old").(string)
	c.guestWrites(5 * mib)
	last := c.disks(c.must("VM.snapshot", c.vm(), "last").(string))["0"]
	before := c.disks(c.vm())
	c.must("VM.revert", old)
	if got := c.disks(c.vm()); !reflect.DeepEqual(got, before) {
		t.Errorf("disks %v, were %v", got, before)
	}
	live := before["0"]
	if !bytes.Equal(c.content(live), pattern(1, 8*mib)) {
		t.Error("the disk's content is not the old one")
	}
	// The log shows no change since the last snapshot, although the guest's
	// write has been reverted.
	if got := c.changed(last, live); len(got) != 0 || !c.cbt(live) {
		t.Errorf("changed: %v", got)
	}
	if rec := c.record("VM", c.vm()); rec["power_state"] != "Halted" || rec["parent"] != old {
		t.Errorf("the VM: %v, parent %v", rec["power_state"], rec["parent"])
	}
	// The call itself, and the fallback if the storage does not support it.
	c.guestWrites(6 * mib)
	c.must("VDI.revert", c.disks(old)["0"])
	if !bytes.Equal(c.content(live), pattern(1, 8*mib)) {
		t.Error("VDI.revert did not")
	}
	c.refused([]string{"OPERATION_NOT_ALLOWED", "VDI is not a snapshot: " + live}, "VDI.revert", live)
	c.p.GC()
	if !bytes.Equal(c.content(live), pattern(1, 8*mib)) {
		t.Error("the collection changed the disk")
	}
	c2 := start(t, nil)
	snap := c2.snapshotDisk(0)
	c2.refused([]string{"UNIMPLEMENTED_IN_SM_BACKEND", c2.sr("nfs")}, "VDI.revert", snap)
}
