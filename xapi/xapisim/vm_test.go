package xapisim

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

// disks lists the disks of a VM by position.
func (c *client) disks(vm string) map[string]string {
	c.t.Helper()
	out := map[string]string{}
	for _, vbd := range c.record("VM", vm)["VBDs"].([]any) {
		if rec := c.record("VBD", vbd); rec["type"] == "Disk" {
			out[rec["userdevice"].(string)] = rec["VDI"].(string)
		}
	}
	return out
}

func TestSnapshotBookkeeping(t *testing.T) {
	c := start(t, nil)
	vm := c.vm()
	before := c.record("VM", vm)
	first := c.must("VM.snapshot", vm, "first").(string)
	second := c.must("VM.snapshot", vm, "second").(string)
	rec := c.record("VM", second)
	for k, want := range map[string]any{
		"name_label": "second", "is_a_snapshot": true, "is_a_template": true, "is_default_template": false, "snapshot_of": vm,
		"power_state": "Halted", "suspend_VDI": nullRef, "parent": first, "ha_always_run": false, "domid": -1.0,
		"resident_on": nullRef, "snapshot_schedule": nullRef, "is_vmss_snapshot": false,
		"snapshot_info":      map[string]any{"power-state-at-snapshot": "Running", "disk-snapshot-type": "crash_consistent"},
		"blocked_operations": map[string]any{}, "other_config": before["other_config"], "memory_static_max": before["memory_static_max"],
	} {
		if !reflect.DeepEqual(rec[k], want) {
			t.Errorf("%s is %v, want %v", k, rec[k], want)
		}
	}
	if rec["uuid"] == before["uuid"] || rec["generation_id"] == before["generation_id"] || !strings.Contains(rec["snapshot_metadata"].(string), before["uuid"].(string)) {
		t.Error("uuid, generation id or metadata are not the snapshot's own")
	}
	now := c.record("VM", vm)
	if now["parent"] != second || !reflect.DeepEqual(now["snapshots"], []any{second, first}) {
		t.Errorf("the VM: parent %v, snapshots %v", now["parent"], now["snapshots"])
	}
	if kids := c.record("VM", first)["children"]; !reflect.DeepEqual(kids, []any{second}) {
		t.Errorf("children of the first: %v", kids)
	}
	// Devices: both disks with owner keys, the drive, the VIF with its MAC.
	cds := 0
	for _, ref := range rec["VBDs"].([]any) {
		vbd := c.record("VBD", ref)
		_, owner := vbd["other_config"].(map[string]any)["owner"]
		if vbd["type"] == "CD" {
			cds++
			if owner || vbd["empty"] != true {
				t.Errorf("the drive: %v", vbd)
			}
			continue
		}
		vdi := c.record("VDI", vbd["VDI"])
		if !owner || vdi["is_a_snapshot"] != true || vdi["snapshot_of"] == nullRef || vdi["managed"] != true {
			t.Errorf("a disk: %v %v", vbd, vdi)
		}
	}
	if cds != 1 || len(c.disks(second)) != 2 {
		t.Errorf("%d drives, %d disks", cds, len(c.disks(second)))
	}
	if a, b := c.record("VIF", rec["VIFs"].([]any)[0]), c.record("VIF", now["VIFs"].([]any)[0]); a["MAC"] != b["MAC"] {
		t.Errorf("MAC %v, want %v", a["MAC"], b["MAC"])
	}
	found := false
	for _, m := range c.must("message.get_all_records").(map[string]any) {
		found = found || m.(map[string]any)["name"] == "VM_SNAPSHOTTED" && m.(map[string]any)["obj_uuid"] == before["uuid"]
	}
	if !found {
		t.Error("no message VM_SNAPSHOTTED")
	}
	// Destroying the middle one makes its child a child of its parent.
	c.must("VM.destroy", second)
	if p := c.record("VM", vm)["parent"]; p != first {
		t.Errorf("after the destruction of the second, the VM's parent is %v", p)
	}
}

func TestBaseCopies(t *testing.T) {
	c := start(t, nil)
	snap := c.snapshotDisk(0)
	parent := c.record("VDI", snap)["sm_config"].(map[string]any)["vhd-parent"].(string)
	base := c.must("VDI.get_by_uuid", parent).(string)
	rec := c.record("VDI", base)
	if rec["name_label"] != "base copy" || rec["managed"] != false || rec["is_a_snapshot"] != false {
		t.Errorf("base copy: %v", rec)
	}
	if live := c.record("VDI", c.disk(0)); live["sm_config"].(map[string]any)["vhd-parent"] != parent {
		t.Errorf("the live disk's parent: %v", live["sm_config"])
	}
	for _, m := range []string{"VDI.snapshot", "VDI.clone", "VDI.destroy"} {
		c.refused([]string{"VDI_NOT_MANAGED", base}, m, base)
	}
	c.must("VDI.set_name_label", base, "base copy")
	c.must("VDI.destroy", snap)
	c.must("SR.scan", c.sr("nfs"))
	c.refused([]string{"UUID_INVALID", "VDI", parent}, "VDI.get_by_uuid", parent)
	if !bytes.Equal(c.content(c.disk(0)), pattern(1, 8*mib)) {
		t.Error("the collection changed the live disk")
	}
}

func TestSnapshotLeavesDisksOut(t *testing.T) {
	c := start(t, nil)
	snap := c.must("VM.snapshot", c.vm(), "s", []string{c.disk(0)}).(string)
	if d := c.disks(snap); len(d) != 1 || d["1"] == "" {
		t.Errorf("disks: %v", d)
	}
	if n := len(c.record("VDI", c.disk(0))["snapshots"].([]any)); n != 0 {
		t.Errorf("%d snapshots of the disk left out", n)
	}
	c.must("VM.snapshot", c.vm(), "s", []string{}, "surplus")
}

func TestFailedSnapshotLeavesNothing(t *testing.T) {
	c := start(t, nil)
	before := c.p.Dump()
	second := c.disk(1)
	c.p.mu.Lock()
	c.p.db.put(c.p.db.find("VDI", second), "sharable", true)
	c.p.mu.Unlock()
	c.refused([]string{"VDI_IS_SHARABLE", second}, "VM.snapshot", c.vm(), "s")
	c.p.mu.Lock()
	c.p.db.put(c.p.db.find("VDI", second), "sharable", false)
	c.p.mu.Unlock()
	c.p.GC()
	if !reflect.DeepEqual(before, c.p.Dump()) {
		t.Error("the pool is not as it was")
	}
}

func TestDisksThatCannotBeSnapshotted(t *testing.T) {
	c := start(t, nil)
	raw := c.newDisk(c.sr("lvmoiscsi"), 4*mib, map[string]any{"type": "raw"})
	c.refused([]string{"UNIMPLEMENTED_IN_SM_BACKEND", c.sr("lvmoiscsi")}, "VDI.snapshot", raw)
	reset := c.newDisk(c.sr("nfs"), 4*mib, map[string]any{})
	c.must("VDI.set_on_boot", reset, "reset")
	c.refused([]string{"VDI_ON_BOOT_MODE_INCOMPATIBLE_WITH_OPERATION"}, "VDI.snapshot", reset)
}

func TestChecksOfVMOperations(t *testing.T) {
	c := start(t, nil)
	vm := c.vm()
	c.must("VM.set_blocked_operations", vm, map[string]string{"snapshot": "by hand"})
	c.refused([]string{"OPERATION_BLOCKED", vm, "by hand"}, "VM.snapshot", vm, "s")
	c.must("VM.set_blocked_operations", vm, map[string]string{})
	c.refused([]string{"VM_BAD_POWER_STATE", vm, "halted, suspended", "running"}, "VM.destroy", vm)
	c.refused([]string{"VM_LACKS_FEATURE", vm}, "VM.checkpoint", vm, "cp")
	c.refused([]string{"VM_REVERT_FAILED", vm, nullRef}, "VM.revert", vm)
	c.refused([]string{"MESSAGE_REMOVED"}, "VM.snapshot_with_quiesce", vm, "q")
	snap := c.must("VM.snapshot", vm, "s").(string)
	c.refused([]string{"VM_IS_SNAPSHOT", snap, "start"}, "VM.start", snap, false, false)
	c.must("VM.hard_shutdown", vm)
	c.refused([]string{"PROVISION_ONLY_ALLOWED_ON_TEMPLATE"}, "VM.provision", vm)
	tpl := c.must("VM.clone", snap, "t").(string) // a clone of a snapshot is a template
	c.refused([]string{"VM_IS_TEMPLATE", tpl, "snapshot"}, "VM.snapshot", tpl, "s")
	c.must("VM.provision", tpl)
	c.must("VM.start", tpl, false, false)
}

func TestRevertChangesDisks(t *testing.T) {
	c := start(t, nil)
	vm := c.vm()
	old := c.disk(0)
	snap := c.must("VM.snapshot", vm, "s").(string)
	c.guestWrites(mib)
	gen := c.record("VM", vm)["generation_id"]
	snapDisk := c.disks(snap)["0"]
	c.must("VM.revert", snap)
	now := c.disks(vm)["0"]
	if now == old || now == snapDisk {
		t.Error("the VM has its old disk")
	}
	c.refused([]string{"HANDLE_INVALID", "VDI", old}, "VDI.get_record", old)
	if !bytes.Equal(c.content(now), pattern(1, 8*mib)) {
		t.Error("the disk is not as it was at the snapshot")
	}
	if of := c.record("VDI", snapDisk)["snapshot_of"]; of != now {
		t.Errorf("the disk snapshot is of %v, want the new disk", of)
	}
	rec := c.record("VM", vm)
	if rec["parent"] != snap || rec["power_state"] != "Halted" || rec["generation_id"] == gen {
		t.Errorf("VM: parent %v, %v", rec["parent"], rec["power_state"])
	}
}

func TestRevertRecreatesVM(t *testing.T) {
	c := start(t, nil)
	vm := c.vm()
	uuid := c.uuid("VM", vm)
	snap := c.must("VM.snapshot", vm, "s").(string)
	c.must("VM.hard_shutdown", vm)
	c.must("VM.destroy", vm)
	if of := c.record("VM", snap)["snapshot_of"]; of != vm {
		t.Errorf("snapshot_of must dangle, is %v", of)
	}
	c.must("VM.revert", snap)
	again := c.must("VM.get_by_uuid", uuid).(string)
	if !bytes.Equal(c.content(c.disks(again)["1"]), pattern(2, 8*mib)) {
		t.Error("the second disk is not what it was")
	}
}

func TestDestroyLeavesDisks(t *testing.T) {
	c := start(t, nil)
	snap := c.must("VM.snapshot", c.vm(), "s").(string)
	d := c.disks(snap)["0"]
	c.must("VM.destroy", snap)
	if vbds := c.record("VDI", d)["VBDs"].([]any); len(vbds) != 0 {
		t.Errorf("VBDs %v", vbds)
	}
	c.must("VDI.destroy", d)
	c.refused([]string{"VDI_IN_USE", c.disk(0), "destroy"}, "VDI.destroy", c.disk(0))
}

func TestCopiesAreWhole(t *testing.T) {
	c := start(t, nil)
	vm := c.vm()
	c.must("VM.hard_shutdown", vm)
	for name, copied := range map[string]string{
		"clone": c.must("VM.clone", vm, "clone").(string),
		"copy":  c.must("VM.copy", vm, "copy", c.sr("ext")).(string),
	} {
		d := c.disks(copied)
		if !bytes.Equal(c.content(d["0"]), pattern(1, 8*mib)) || !bytes.Equal(c.content(d["1"]), pattern(2, 8*mib)) {
			t.Errorf("%s: content differs", name)
		}
		rec := c.record("VM", copied)
		if rec["is_a_template"] != false || rec["parent"] != nullRef {
			t.Errorf("%s: template %v, parent %v", name, rec["is_a_template"], rec["parent"])
		}
		if a, b := c.record("VIF", rec["VIFs"].([]any)[0]), c.record("VIF", c.record("VM", vm)["VIFs"].([]any)[0]); a["MAC"] == b["MAC"] {
			t.Errorf("%s: same MAC", name)
		}
	}
}

func TestPowerStates(t *testing.T) {
	c := start(t, nil)
	vm := c.vm()
	states := func(want string, attached bool) {
		t.Helper()
		rec := c.record("VM", vm)
		vbd := c.record("VBD", c.record("VDI", c.disk(0))["VBDs"].([]any)[0])
		if rec["power_state"] != want || vbd["currently_attached"] != attached {
			t.Errorf("%v, attached %v; want %s, %v", rec["power_state"], vbd["currently_attached"], want, attached)
		}
	}
	states("Running", true)
	c.must("VM.suspend", vm)
	states("Suspended", false)
	c.must("VM.resume", vm, false, false)
	states("Running", true)
	c.must("VM.clean_shutdown", vm)
	states("Halted", false)
	if s := c.record("VM", vm)["suspend_VDI"]; s != nullRef {
		t.Errorf("suspend image left: %v", s)
	}
	c.must("VM.start", vm, true, false)
	states("Paused", true)
	c.must("VM.unpause", vm)
	vbd := c.record("VDI", c.disk(1))["VBDs"].([]any)[0]
	c.must("VBD.unplug", vbd)
	c.refused([]string{"DEVICE_ALREADY_DETACHED", vbd.(string)}, "VBD.unplug", vbd)
	c.must("VBD.plug", vbd)
	c.must("VM.hard_shutdown", vm)
	c.refused([]string{"VM_BAD_POWER_STATE", vm, "running", "halted"}, "VBD.plug", vbd)
}

func TestSizesAreRounded(t *testing.T) {
	c := start(t, nil)
	for _, tc := range []struct {
		sr         string
		sm         map[string]any
		size, want float64
	}{
		{"nfs", map[string]any{}, 1, 2 * mib}, {"nfs", map[string]any{}, 2*mib + 1, 4 * mib}, {"ext", map[string]any{}, 4 * mib, 4 * mib},
		{"lvmoiscsi", map[string]any{}, 2*mib + 1, 4 * mib}, {"lvmoiscsi", map[string]any{"type": "raw"}, 5 * mib, 8 * mib},
		{"nfs", map[string]any{}, 2040 << 30, 2040 << 30},
	} {
		vdi := c.newDisk(c.sr(tc.sr), int64(tc.size), tc.sm)
		if got := c.record("VDI", vdi)["virtual_size"]; got != tc.want {
			t.Errorf("%s %v %v: %v, want %v", tc.sr, tc.sm, tc.size, got, tc.want)
		}
	}
	_, err := c.call("VDI.create", map[string]any{
		"name_label": "x", "SR": c.sr("nfs"), "virtual_size": 2040<<30 + 1, "type": "user", "sharable": false, "read_only": false,
		"other_config": map[string]any{},
	})
	if e, ok := err.(*apiError); !ok || e.Message != "SR_BACKEND_FAILURE_79" {
		t.Errorf("over the maximum: %v", err)
	}
	vdi := c.newDisk(c.sr("nfs"), 4*mib, map[string]any{})
	c.must("VDI.resize", vdi, 5*mib)
	if got := c.record("VDI", vdi)["virtual_size"]; got != 6.0*mib {
		t.Errorf("resized to %v", got)
	}
	if _, err := c.call("VDI.resize", vdi, 2*mib); err == nil || !strings.HasPrefix(err.Error(), "SR_BACKEND_FAILURE_79") {
		t.Errorf("shrunk: %v", err)
	}
	c.refused([]string{"VDI_IN_USE", c.disk(0), "resize"}, "VDI.resize", c.disk(0), 16*mib)
}

func TestVDICopy(t *testing.T) {
	c := start(t, nil)
	snap := c.snapshotDisk(0)
	got := c.must("VDI.copy", snap, c.sr("lvmoiscsi"), nullRef, nullRef).(string)
	if !bytes.Equal(c.content(got), pattern(1, 8*mib)) {
		t.Error("content differs")
	}
	small := c.newDisk(c.sr("nfs"), 2*mib, map[string]any{})
	c.refused([]string{"VDI_TOO_SMALL", small, fmt.Sprint(8 * mib)}, "VDI.copy", snap, nullRef, nullRef, small)
	c.must("VDI.set_read_only", small, true)
	c.refused([]string{"VDI_READONLY", small}, "VDI.copy", snap, nullRef, nullRef, small)
	c.refused([]string{"HANDLE_INVALID", "SR", nullRef}, "VDI.copy", snap, nullRef, nullRef, nullRef)
}

func TestForgetAndIntroduce(t *testing.T) {
	c := start(t, nil)
	vdi := c.newDisk(c.sr("nfs"), 4*mib, map[string]any{})
	uuid := c.uuid("VDI", vdi)
	c.importTask(vdi, "", pattern(4, 4*mib))
	c.must("VDI.forget", vdi)
	again := c.must("VDI.introduce", uuid, "back", "", c.sr("nfs"), "user", false, false, map[string]string{}, uuid,
		map[string]string{}, map[string]string{}, true, 4*mib, 0, nullRef, false, "19700101T00:00:00Z", nullRef).(string)
	if !bytes.Equal(c.content(again), pattern(4, 4*mib)) || c.uuid("VDI", again) != uuid {
		t.Error("it is another disk")
	}
}

func TestStorageFull(t *testing.T) {
	c := start(t, func(cfg *Config) {
		cfg.SRs = append(DefaultSRs(), SRConfig{Name: "small", Type: "lvmohba", Shared: true, Size: 64 * mib})
	})
	vdi := c.newDisk(c.sr("lvmohba"), 16*mib, map[string]any{})
	var err error
	for range 10 {
		if _, err = c.call("VDI.create", map[string]any{
			"name_label": "x", "SR": c.sr("lvmohba"), "virtual_size": 16 * mib, "type": "user", "sharable": false, "read_only": false,
			"other_config": map[string]any{}, "sm_config": map[string]any{"type": "raw"},
		}); err != nil {
			break
		}
	}
	if e, ok := err.(*apiError); !ok || e.Message != "SR_BACKEND_FAILURE_44" {
		t.Errorf("got %v", err)
	}
	c.must("VDI.destroy", vdi)
}

func TestNoPluggedPBD(t *testing.T) {
	c := start(t, nil)
	srRef := c.sr("ext")
	vdi := c.newDisk(srRef, 2*mib, map[string]any{})
	c.must("PBD.unplug", c.record("SR", srRef)["PBDs"].([]any)[0])
	c.refused([]string{"SR_HAS_NO_PBDS", srRef}, "VDI.snapshot", vdi)
	c.refused([]string{"SR_HAS_NO_PBDS", srRef}, "VDI.resize", vdi, 4*mib)
}

func TestChangedBlocks(t *testing.T) {
	c := start(t, nil)
	live := c.disk(0)
	early := c.snapshotDisk(0)
	c.must("VDI.enable_cbt", live)
	c.must("VDI.enable_cbt", live) // idempotent
	base := c.snapshotDisk(0)
	c.guestWrites(5 * mib) // granule 80
	next := c.snapshotDisk(0)
	want := make([]byte, 16)
	want[10] = 0x80 // most significant bit first
	got, err := base64.StdEncoding.DecodeString(c.must("VDI.list_changed_blocks", base, next).(string))
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%x, %v; want %x", got, err, want)
	}
	unrelated := []string{"SR_BACKEND_FAILURE_460", "", "Failed to calculate changed blocks for given VDIs. [opterr=Source and target VDI are unrelated]", ""}
	c.refused(unrelated, "VDI.list_changed_blocks", next, base)
	c.refused(unrelated, "VDI.list_changed_blocks", early, next)
	c.refused([]string{"VDI_IN_USE", live, "list_changed_blocks"}, "VDI.list_changed_blocks", base, live)
	c.refused([]string{"OPERATION_NOT_ALLOWED", "VDI is a snapshot: " + base}, "VDI.enable_cbt", base)

	// The bitmap of a deleted disk in the middle is added to that of the next
	// one.
	c.guestWrites(7 * mib)
	last := c.snapshotDisk(0)
	c.must("VDI.destroy", next)
	want[14] = 0x80
	got, _ = base64.StdEncoding.DecodeString(c.must("VDI.list_changed_blocks", base, last).(string))
	if !bytes.Equal(got, want) {
		t.Errorf("across a gap: %x, want %x", got, want)
	}

	before := c.record("VDI", base)
	c.must("VDI.data_destroy", base)
	rec := c.record("VDI", base)
	for _, k := range []string{"uuid", "snapshot_of", "cbt_enabled", "is_a_snapshot", "name_label"} {
		if !reflect.DeepEqual(rec[k], before[k]) {
			t.Errorf("data_destroy changed %s to %v", k, rec[k])
		}
	}
	if rec["type"] != "cbt_metadata" || len(rec["VBDs"].([]any)) != 0 || rec["other_config"].(map[string]any)["content_id"] == nil {
		t.Errorf("after data_destroy: %v", rec)
	}
	got, _ = base64.StdEncoding.DecodeString(c.must("VDI.list_changed_blocks", base, last).(string))
	if !bytes.Equal(got, want) {
		t.Errorf("from metadata: %x", got)
	}
	for _, m := range []string{"VDI.snapshot", "VDI.clone"} {
		c.refused([]string{"VDI_INCOMPATIBLE_TYPE", base, "CBT metadata"}, m, base)
	}
	_, task := c.export(base, "format", "vhd")
	c.status(task, "failure", "VDI_INCOMPATIBLE_TYPE", base, "CBT metadata")

	c.must("VDI.disable_cbt", live)
	c.must("VDI.disable_cbt", live)
	if rec := c.record("VDI", last); rec["cbt_enabled"] != true {
		t.Error("a snapshot lost its log")
	}
	c.must("VDI.enable_cbt", live)
	c.refused(unrelated, "VDI.list_changed_blocks", last, c.snapshotDisk(0))
}

func TestIdenticalRewritesCount(t *testing.T) {
	c := start(t, nil)
	c.must("VDI.enable_cbt", c.disk(0))
	base := c.snapshotDisk(0)
	v, err := c.p.Volume(c.uuid("VDI", c.disk(0)))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := v.WriteAt(pattern(1, 4096), 0); err != nil { // content that is already there
		t.Fatal(err)
	}
	got, err := base64.StdEncoding.DecodeString(c.must("VDI.list_changed_blocks", base, c.snapshotDisk(0)).(string))
	if err != nil || got[0] != 0x80 || !bytes.Equal(got[1:], make([]byte, 15)) {
		t.Errorf("%x, %v", got, err)
	}
}

func TestDataDestroyWaitsForVBDs(t *testing.T) {
	c := start(t, nil)
	c.must("VDI.enable_cbt", c.disk(0))
	snap := c.must("VM.snapshot", c.vm(), "s").(string)
	vdi := c.disks(snap)["0"]
	c.refused([]string{"VDI_IN_USE", vdi, "data_destroy"}, "VDI.data_destroy", vdi)
	c.must("VM.destroy", snap)
	c.must("VDI.data_destroy", vdi)
	c.refused([]string{"OPERATION_NOT_ALLOWED", "VDI is not a snapshot: " + c.disk(0)}, "VDI.data_destroy", c.disk(0))
	c.must("VDI.disable_cbt", c.disk(0))
	plain := c.snapshotDisk(0)
	c.refused([]string{"VDI_NO_CBT_METADATA", plain}, "VDI.data_destroy", plain)
}

func TestWhatTurnsCBTOff(t *testing.T) {
	c := start(t, nil)
	c.must("VDI.enable_cbt", c.disk(0))
	snap := c.must("VM.snapshot", c.vm(), "s").(string)
	if got := c.record("VDI", c.must("VDI.copy", c.disks(snap)["0"], c.sr("ext"), nullRef, nullRef))["cbt_enabled"]; got != false {
		t.Error("a copy has CBT")
	}
	c.refused([]string{"VDI_CBT_ENABLED", c.disk(0)}, "VDI.pool_migrate", c.disk(0), c.sr("ext"), map[string]string{})
	c.must("VM.hard_shutdown", c.vm()) // so that CBT is the only obstacle
	c.refused([]string{"VDI_CBT_ENABLED", c.disk(0)}, "VDI.set_on_boot", c.disk(0), "reset")
	c.must("VM.revert", snap)
	if got := c.record("VDI", c.disks(c.vm())["0"])["cbt_enabled"]; got != false {
		t.Error("CBT survives a revert")
	}
}

func TestLicence(t *testing.T) {
	c := start(t, func(cfg *Config) { cfg.Unlicensed = true })
	c.refused([]string{"LICENCE_RESTRICTION", "CBT"}, "VDI.enable_cbt", c.disk(0))
	sched := map[string]any{"name_label": "s", "type": "snapshot", "frequency": "weekly", "schedule": map[string]any{"days": "monday"}}
	c.refused([]string{"LICENCE_RESTRICTION", "VMSS"}, "VMSS.create", sched)
	c.must("host.apply_edition", c.must("host.get_all").([]any)[0], "enterprise-per-socket", false)
	if got := c.record("VMSS", c.must("VMSS.create", sched))["schedule"]; !reflect.DeepEqual(got, map[string]any{"days": "Monday", "hour": "0", "min": "0"}) {
		t.Errorf("schedule: %v", got)
	}
}

func TestThickLVMGarbage(t *testing.T) {
	c := start(t, nil)
	raw := c.newDisk(c.sr("lvmoiscsi"), 4*mib, map[string]any{"type": "raw"})
	if bytes.Equal(c.content(raw), make([]byte, 4*mib)) {
		t.Error("a new raw volume reads as zeros")
	}
	if !bytes.Equal(c.content(c.newDisk(c.sr("lvmoiscsi"), 4*mib, map[string]any{})), make([]byte, 4*mib)) {
		t.Error("a new VHD volume does not read as zeros")
	}
}

func TestBadConfig(t *testing.T) {
	for name, cfg := range map[string]Config{
		"no such file": {VMs: []VMConfig{{Name: "x", Disks: []string{filepath.Join(t.TempDir(), "none")}}}},
		"no such SR":   {VMs: []VMConfig{{Name: "x", SR: "none"}}},
		"no such type": {SRs: []SRConfig{{Name: "x", Type: "none"}}},
		"bad address":  {Listen: "nonsense"},
	} {
		if p, err := New(cfg); err == nil {
			p.Close()
			t.Errorf("%s: no error", name)
		}
	}
}
