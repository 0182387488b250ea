package xapisim

import (
	"fmt"
	"io"
	"reflect"
	"testing"
	"time"
)

func TestTaskResultIsXMLValue(t *testing.T) {
	c := start(t, nil)
	rec := c.finished(c.must("Async.VM.snapshot", c.vm(), "s").(string))
	ref := c.must("VM.get_by_name_label", "s").([]any)[0]
	if rec["status"] != "success" || rec["result"] != fmt.Sprintf("<value>%s</value>", ref) || rec["progress"] != 1.0 {
		t.Errorf("task: %v %v %v", rec["status"], rec["result"], rec["progress"])
	}
	rec = c.finished(c.must("Async.VM.destroy", ref).(string))
	if rec["status"] != "success" || rec["result"] != "<value></value>" {
		t.Errorf("task of a void call: %v %q", rec["status"], rec["result"])
	}
	rec = c.finished(c.must("Async.VM.destroy", "OpaqueRef:x").(string))
	c.status(rec, "failure", "HANDLE_INVALID", "VM", "OpaqueRef:x")
}

func TestAsyncRules(t *testing.T) {
	c := start(t, nil)
	c.refused([]string{"MESSAGE_PARAMETER_COUNT_MISMATCH", "VM.snapshot", "2", "0"}, "Async.VM.snapshot")
	c.refused([]string{"Fault", "No async mode for this operation (rpc: VM.get_record)"}, "Async.VM.get_record", c.vm())
	c.refused([]string{"Fault", "No async mode for this operation (rpc: VDI.get_nbd_info)"}, "Async.VDI.get_nbd_info", c.disk(0))
}

func TestTasksExpire(t *testing.T) {
	c := start(t, nil)
	done := c.must("Async.VM.snapshot", c.vm(), "s").(string)
	c.finished(done)
	open := c.must("task.create", "open", "").(string)
	c.p.ExpireTasks(false)
	c.refused([]string{"HANDLE_INVALID", "task", done}, "task.get_record", done)
	c.status(open, "pending")

	c.must("task.set_status", open, "success")
	c.p.mu.Lock()
	c.p.expireOld(time.Now()) // a task without an end time does not count as ended
	c.p.mu.Unlock()
	c.status(open, "success")
	old := c.must("Async.VM.snapshot", c.vm(), "s2").(string)
	c.finished(old)
	pending := c.must("task.create", "pending", "").(string)
	c.p.mu.Lock()
	c.p.expireOld(time.Now().Add(66 * time.Minute))
	c.p.mu.Unlock()
	c.refused([]string{"HANDLE_INVALID", "task", old}, "task.get_status", old)
	c.status(pending, "pending")
	c.p.mu.Lock()
	c.p.expireOld(time.Now().Add(25 * time.Hour))
	c.p.mu.Unlock()
	c.refused([]string{"HANDLE_INVALID", "task", pending}, "task.get_status", pending)
}

func TestOldestTasksGoFirst(t *testing.T) {
	c := start(t, nil)
	first := c.must("Async.VM.snapshot", c.vm(), "s").(string)
	c.finished(first)
	var pending string
	for range 205 {
		pending = c.must("task.create", "t", "").(string)
	}
	c.p.mu.Lock()
	c.p.expireOld(time.Now())
	n := len(c.p.db.all("task"))
	c.p.mu.Unlock()
	c.refused([]string{"HANDLE_INVALID", "task", first}, "task.get_status", first)
	c.status(pending, "pending")
	if n != 205 {
		t.Errorf("%d tasks left, want the 205 pending ones", n)
	}
}

func TestEndedTaskIsLeftAlone(t *testing.T) {
	c := start(t, nil)
	task := c.must("task.create", "t", "").(string)
	c.must("task.set_status", task, "failure")
	io.Copy(io.Discard, c.get(c.url("/export_raw_vdi", "vdi", c.snapshotDisk(0), "task_id", task)).Body)
	rec := c.record("task", task)
	if rec["status"] != "failure" || rec["finished"] != "19700101T00:00:00Z" {
		t.Errorf("task became %v at %v", rec["status"], rec["finished"])
	}
}

func TestCancelledClientTaskStaysPending(t *testing.T) {
	c := start(t, nil)
	task := c.must("task.create", "t", "").(string)
	c.must("task.cancel", task)
	rec := c.record("task", task)
	want := map[string]any{"DummyRef:|" + rec["uuid"].(string) + "|task.cancel": "cancel"}
	if rec["status"] != "pending" || !reflect.DeepEqual(rec["current_operations"], want) {
		t.Errorf("task: %v %v", rec["status"], rec["current_operations"])
	}
	other := c.must("task.create", "t", "").(string)
	c.must("task.destroy", other)
	if rec := c.record("task", other); !reflect.DeepEqual(rec["current_operations"], map[string]any{"task": "destroy"}) {
		t.Errorf("destroyed pending task: %v", rec["current_operations"])
	}
}

func TestRestartLosesTasksAndSessions(t *testing.T) {
	c := start(t, nil)
	task := c.must("task.create", "t", "").(string)
	old := c.session
	c.p.Restart()
	c.hc.CloseIdleConnections()
	c.refused([]string{"SESSION_INVALID", old}, "VM.get_all")
	c.session = c.must("session.login_with_password", c.p.User(), c.p.Password()).(string)
	c.refused([]string{"HANDLE_INVALID", "task", task}, "task.get_record", task)
	if c.vm() == "" {
		t.Error("the VM is gone")
	}
}

func TestServerWaits(t *testing.T) {
	c := start(t, func(cfg *Config) { cfg.Scale = 1e-5 }) // two hours are 72 ms
	vm := c.vm()
	c.p.Fault(Fault{On: "VM.snapshot", Delay: 5 * time.Second})
	task := c.must("Async.VM.snapshot", vm, "slow").(string)
	eventually(t, "the slow snapshot begins", func() bool { return len(c.record("VM", vm)["current_operations"].(map[string]any)) > 0 })
	c.must("VM.snapshot", vm, "second") // two snapshots may run concurrently
	c.refused([]string{"OTHER_OPERATION_IN_PROGRESS", "VM", vm, "snapshot", task}, "VM.hard_shutdown", vm)
}

func TestRestartCutsTransfers(t *testing.T) {
	c := start(t, nil)
	snap := c.snapshotDisk(0)
	c.p.Fault(Fault{On: "/export_raw_vdi", Cut: true, CutAt: mib, Stall: true})
	resp := c.get(c.url("/export_raw_vdi", "vdi", snap))
	if _, err := io.ReadFull(resp.Body, make([]byte, mib)); err != nil {
		t.Fatal(err)
	}
	c.p.Restart()
	if b, _ := io.ReadAll(resp.Body); len(b) >= 7*mib { // Go's TLS accepts a connection that ends between two records without close_notify
		t.Errorf("the transfer went on for %d bytes", len(b))
	}
	c.hc.CloseIdleConnections()
	c.session = c.must("session.login_with_password", c.p.User(), c.p.Password()).(string)
	c.must("VDI.destroy", snap)
}

func TestServerWaitsThenGoesOn(t *testing.T) {
	c := start(t, nil) // two hours are 72 s
	vdi := c.disk(0)
	c.p.Fault(Fault{On: "VDI.snapshot", Delay: 100 * time.Millisecond})
	task := c.must("Async.VDI.snapshot", vdi).(string)
	c.must("VDI.clone", vdi)
	c.status(task, "success")
}

func TestWaitingIsCancellable(t *testing.T) {
	c := start(t, nil)
	vdi := c.disk(0)
	c.p.Fault(Fault{On: "VDI.snapshot", Delay: time.Second})
	slow := c.must("Async.VDI.snapshot", vdi).(string)
	waiting := c.must("Async.VDI.clone", vdi).(string)
	c.must("task.cancel", waiting)
	c.status(c.finished(waiting), "cancelled", "TASK_CANCELLED", waiting)
	c.status(c.finished(slow), "success")
}

func TestTooManyPending(t *testing.T) {
	c := start(t, nil)
	vdi := c.disk(0)
	c.p.Fault(Fault{On: "VDI.snapshot", Delay: 500 * time.Millisecond})
	c.must("Async.VDI.snapshot", vdi)
	eventually(t, "a snapshot under way", func() bool { return len(c.record("VDI", vdi)["current_operations"].(map[string]any)) == 1 })
	c.p.mu.Lock()
	c.p.waiting = 100
	c.p.mu.Unlock()
	c.refused([]string{"TOO_MANY_PENDING_TASKS"}, "VDI.clone", vdi)
	c.p.mu.Lock()
	c.p.waiting = 0
	c.p.mu.Unlock()
}
