package xapisim

import (
	"bytes"
	"fmt"
	"net/url"
	"strings"
	"testing"
)

// holdNBD opens a disk over NBD and closes it again; dom0 keeps it attached
// until release is called.
func (c *client) holdNBD(vdi string) (release func()) {
	c.t.Helper()
	release = c.p.HoldNBD()
	c.dialNBD(c.nbdInfo(vdi)[0]).Close()
	eventually(c.t, "the connection has ended", func() bool {
		c.p.mu.Lock()
		defer c.p.mu.Unlock()
		return len(c.p.nbdHeld) == 1
	})
	return release
}

// Row X12 of the fault list: while the control domain still holds a disk
// read-only, as it does for a while after an NBD connection, the disk cannot be
// imported to: the storage layer refuses with Illegal_transition, in the page
// inside the body and on the task. The error is not VDI_IN_USE.
func TestImportBesideReadOnlyAttachment(t *testing.T) {
	c := start(t, nbdMode(NBDPlain))
	disk := c.newDisk(c.sr("nfs"), 8*mib, map[string]any{})
	release := c.holdNBD(disk)
	said, task := c.importTask(disk, "", make([]byte, 512))
	head, rest, _ := strings.Cut(said, "\r\n\r\n")
	if !strings.HasPrefix(head, "HTTP/1.1 200 OK\r\n") {
		t.Errorf("head %q", head)
	}
	if !strings.HasPrefix(rest, "HTTP/1.1 400 Bad Request\r\n") || !strings.Contains(rest, "\r\n\r\nHTTP/1.1 500 Internal Error\r\n") ||
		!strings.Contains(rest, "INTERNAL_ERROR: [ "+illegalTransition+" ]") {
		t.Errorf("after the head: %q", rest)
	}
	c.status(task, "failure", "INTERNAL_ERROR", illegalTransition)
	if body, task := c.export(disk); len(body) != 8*mib { // a concurrent reader is allowed
		t.Errorf("export of %d bytes: %v", len(body), task)
	}
	release()
	if n := c.dom0VBDs(); n != 0 {
		t.Fatalf("%d attachments after the release", n)
	}
	_, task = c.importTask(disk, "", make([]byte, 512))
	c.status(task, "success")
	release() // a second call has no effect
}

// Row X12: neither a VM's start nor VBD.plug can attach a disk read-write while
// dom0 holds it read-only.
func TestStartBesideReadOnlyAttachment(t *testing.T) {
	c := start(t, nbdMode(NBDPlain))
	c.must("VM.hard_shutdown", c.vm())
	release := c.holdNBD(c.disk(0))
	c.refused([]string{"INTERNAL_ERROR", illegalTransition}, "VM.start", c.vm(), false, false)
	if vm := c.record("VM", c.vm()); vm["power_state"] != "Halted" {
		t.Errorf("the VM is %v after a start that failed", vm["power_state"])
	}
	dom0 := ""
	for ref, v := range c.must("VM.get_all_records").(map[string]any) {
		if v.(map[string]any)["is_control_domain"] == true {
			dom0 = ref
		}
	}
	vbd := c.must("VBD.create", map[string]any{
		"VM": dom0, "VDI": c.disk(0), "userdevice": "autodetect", "bootable": false, "mode": "RW", "type": "Disk", "empty": false,
		"other_config": map[string]any{}, "qos_algorithm_type": "", "qos_algorithm_params": map[string]any{},
	})
	c.refused([]string{"INTERNAL_ERROR", illegalTransition}, "VBD.plug", vbd)
	c.must("VBD.destroy", vbd)
	release()
	c.must("VM.start", c.vm(), false, false)
}

// Row X12: a disk that is attached read-write, to a running VM or to a control
// domain, can be exported, also as a difference and over NBD, and imported to:
// the pool does not protect it.
func TestTransfersOfDiskAttachedReadWrite(t *testing.T) {
	c := start(t, nbdMode(NBDPlain))
	snap := c.snapshotDisk(0)
	live := c.disk(0)
	body, task := c.export(live)
	c.status(task, "success")
	if !bytes.Equal(body, pattern(1, 8*mib)) {
		t.Errorf("export of a live disk: %d bytes", len(body))
	}
	_, task = c.export(live, "format", "vhd", "base", snap)
	c.status(task, "success")
	_, task = c.importTask(live, "", []byte(strings.Repeat("x", 512)))
	c.status(task, "success")
	conn := c.dialNBD(c.nbdInfo(live)[0])
	got := make([]byte, 512)
	if _, err := conn.ReadAt(t.Context(), got, 0); err != nil || string(got) != strings.Repeat("x", 512) {
		t.Errorf("over NBD: %q, %v", got, err)
	}
	conn.Close()
	_, task = c.importTask(snap, "", make([]byte, 512)) // a snapshot's disk can be written too
	c.status(task, "success")
}

// Row X12: only blocked_operations keeps a VM from starting while an import
// writes its disk.
func TestStartDuringImport(t *testing.T) {
	c := start(t, nil)
	vm := c.vm()
	c.must("VM.hard_shutdown", vm)
	task := c.must("task.create", "x", "").(string)
	u, err := url.Parse(c.url("/import_raw_vdi", "vdi", c.disk(0), "task_id", task))
	if err != nil {
		t.Fatal(err)
	}
	conn := c.dial(u.Host)
	defer conn.Close()
	path := u.RequestURI()
	fmt.Fprintf(conn, "PUT %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n", path, 8*mib)
	eventually(t, "the import has the disk", func() bool { return c.dom0VBDs() == 1 })
	for _, op := range []string{"start", "start_on"} {
		c.must("VM.set_blocked_operations", vm, map[string]any{op: "being restored"})
		args := []any{vm, false, false}
		if op == "start_on" {
			args = []any{vm, c.must("host.get_all").([]any)[0], false, false}
		}
		c.refused([]string{"OPERATION_BLOCKED", vm, "being restored"}, "VM."+op, args...)
	}
	c.must("VM.set_blocked_operations", vm, map[string]any{})
	c.must("VM.start", vm, false, false)
	c.status(task, "pending")
	if _, err := conn.Write(make([]byte, 8*mib)); err != nil {
		t.Fatal(err)
	}
	c.status(c.finished(task), "success")
}

// Row X12: an administrator, or a client that writes a disk, can block each of
// the operations that would use the disk.
func TestBlockedOperations(t *testing.T) {
	c := start(t, nil)
	vm := c.vm()
	host := c.must("host.get_all").([]any)[0]
	snap := c.must("VM.snapshot", vm, "s").(string)
	block := func(ref string, ops ...string) {
		m := map[string]any{}
		for _, op := range ops {
			m[op] = "no"
		}
		c.must("VM.set_blocked_operations", ref, m)
	}
	blocked := []string{"OPERATION_BLOCKED", vm, "no"}
	block(vm, "snapshot", "reverting")
	c.refused(blocked, "VM.snapshot", vm, "x")
	c.refused(blocked, "VM.revert", snap)
	block(vm, "revert") // VM.revert checks the operation reverting of the VM, and the operation revert of the snapshot
	block(snap, "revert")
	c.refused([]string{"OPERATION_BLOCKED", snap, "no"}, "VM.revert", snap)
	block(vm)
	c.must("VM.suspend", vm)
	block(vm, "resume", "resume_on")
	c.refused(blocked, "VM.resume", vm, false, false)
	c.refused(blocked, "VM.resume_on", vm, host, false, false)
	block(vm)
	c.must("VM.resume_on", vm, host, false, false)
	if got := c.record("VM", vm)["resident_on"]; got != host {
		t.Errorf("resumed on %v, want %v", got, host)
	}
}
