package xapisim

import (
	"strings"
	"testing"
	"time"
)

// TestSchedulesRun simulates ten days: snapshots at their hours, deletion of
// the oldest beyond the number to keep together with their disks, messages of
// success and failure.
func TestSchedulesRun(t *testing.T) {
	c := start(t, nil)
	vm := c.vm()
	s := c.must("VMSS.create", map[string]any{
		"name_label": "nightly", "type": "snapshot", "frequency": "weekly", "retained_snapshots": 2,
		"schedule": map[string]any{"min": "30", "hour": "2", "days": "Monday,Thursday"},
	}).(string)
	c.must("VM.set_snapshot_schedule", vm, s)
	plain := c.must("VM.snapshot", vm, "by hand")
	before := len(c.must("VDI.get_all").([]any))
	c.p.Fault(Fault{On: "VM.snapshot", Nth: 3, Code: "SR_BACKEND_FAILURE_44", Params: []string{"", "full", ""}})
	c.p.Advance(14 * 24 * time.Hour) // two Mondays and two Thursdays
	var own []map[string]any
	for _, ref := range c.record("VM", vm)["snapshots"].([]any) {
		if rec := c.record("VM", ref); rec["is_vmss_snapshot"] == true {
			own = append(own, rec)
		}
	}
	if len(own) != 2 {
		t.Fatalf("%d scheduled snapshots are kept", len(own))
	}
	for _, rec := range own {
		at, err := time.Parse(dateForm, rec["snapshot_time"].(string))
		if err != nil || at.Hour() != 2 || at.Minute() != 30 || at.Weekday() != time.Monday && at.Weekday() != time.Thursday {
			t.Errorf("snapshot at %v, %v", rec["snapshot_time"], err)
		}
	}
	if rec := c.record("VM", plain); rec["is_vmss_snapshot"] != false {
		t.Error("the one by hand is no schedule's")
	}
	if n := len(c.must("VDI.get_all").([]any)); n > before+4*len(c.disks(vm)) {
		t.Errorf("%d disks, %d before: those of deleted snapshots stay", n, before)
	}
	ok, failed := 0, 0
	for _, m := range c.must("message.get_all_records").(map[string]any) {
		switch rec := m.(map[string]any); rec["name"] {
		case "VMSS_SNAPSHOT_SUCCEEDED":
			ok++
		case "VMSS_SNAPSHOT_FAILED":
			failed++
			if !strings.Contains(rec["body"].(string), "SR_BACKEND_FAILURE_44") {
				t.Errorf("failure: %v", rec["body"])
			}
		}
	}
	if ok != 3 || failed != 1 {
		t.Errorf("messages: %d of success, %d of failure", ok, failed)
	}
	if last := c.record("VMSS", s)["last_run_time"].(string); last == "19700101T00:00:00Z" {
		t.Error("it never ran")
	}

	// Not while it is disabled; immediately if called by hand.
	c.must("VMSS.set_enabled", s, false)
	c.p.Advance(14 * 24 * time.Hour)
	c.must("VMSS.snapshot_now", s)
	again := 0
	for _, m := range c.must("message.get_all_records").(map[string]any) {
		if m.(map[string]any)["name"] == "VMSS_SNAPSHOT_SUCCEEDED" {
			again++
		}
	}
	if again != ok+1 {
		t.Errorf("%d snapshots after two weeks off and one by order, %d before", again, ok)
	}
}
