package xapisim

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

// TestQCOW2Disks shows that exports find only a device for qcow2 disks: full
// exports work, differences do not, and changed blocks and NBD do.
func TestQCOW2Disks(t *testing.T) {
	c := start(t, func(cfg *Config) {
		cfg.SRs = []SRConfig{{Name: "q", Type: "nfs", Shared: true, QCOW2: true}}
		cfg.CBT, cfg.NBD = true, NBDPlain
	})
	if sm := c.record("VDI", c.disk(0))["sm_config"].(map[string]any); sm["image-format"] != "qcow2" {
		t.Errorf("sm_config %v", sm)
	}
	base := c.snapshotDisk(0)
	c.guestWrites(5 * mib)
	next := c.snapshotDisk(0)
	if sm := c.record("VDI", next)["sm_config"].(map[string]any); sm["image-format"] != nil {
		t.Errorf("a snapshot says its format: %v", sm)
	}
	full, task := c.export(base, "format", "vhd")
	c.status(task, "success")
	if _, data := readVHD(t, full); !bytes.Equal(data, pattern(1, 8*mib)) {
		t.Error("the full export holds something else")
	}
	delta, task := c.export(next, "format", "vhd", "base", base)
	if data, page := embedded(delta); task["status"] != "failure" || len(data) != 0 || page == "" {
		t.Errorf("difference: %v, %d bytes", task["status"], len(data))
	}
	if got := c.changed(base, next); len(got) != 1 || got[0] != 80 {
		t.Errorf("changed: %v", got)
	}
	got := make([]byte, mib)
	if _, err := c.dialNBD(c.nbdInfo(base)[0]).ReadAt(t.Context(), got, mib); err != nil || !bytes.Equal(got, pattern(1, 8*mib)[mib:2*mib]) {
		t.Errorf("over NBD: %v", err)
	}
	big := c.newDisk(c.sr("nfs"), 4<<40, map[string]any{})
	_, task = c.export(big, "format", "vhd")
	c.status(task, "failure", "VDI_TOO_LARGE", big, "2190433320960")
}

func TestMigrationDuringExport(t *testing.T) {
	c := start(t, func(cfg *Config) { cfg.CBT = true })
	vm, member := c.vm(), c.p.hosts[1].ref
	snap := c.snapshotDisk(0)
	task := c.must("task.create", "export", "").(string)
	resp := c.get(c.url("/export_raw_vdi", "vdi", snap, "format", "raw", "task_id", task))
	head := make([]byte, 4096)
	if _, err := resp.Body.Read(head); err != nil {
		t.Fatal(err)
	}
	c.must("VM.pool_migrate", vm, member, map[string]any{})
	rest := new(bytes.Buffer)
	if _, err := rest.ReadFrom(resp.Body); err != nil {
		t.Fatal(err)
	}
	c.status(c.finished(task), "success")
	rec := c.record("VM", vm)
	if rec["resident_on"] != member || rec["power_state"] != "Running" || !c.cbt(c.disk(0)) {
		t.Errorf("after the migration: %v %v, tracking %v", rec["resident_on"], rec["power_state"], c.cbt(c.disk(0)))
	}
	local := start(t, func(cfg *Config) { cfg.VMs[0].SR = "Local storage" })
	local.refused([]string{"VM_REQUIRES_SR", local.vm(), local.sr("ext")}, "VM.pool_migrate", local.vm(), local.p.hosts[1].ref, map[string]any{})
}

// qemu reads whole disks exported as qcow2, both from VHDs and from qcow2
// disks.
func TestExportQCOW2(t *testing.T) {
	for name, conf := range map[string]func(*Config){
		"a VHD":   nil,
		"a qcow2": func(cfg *Config) { cfg.SRs = []SRConfig{{Name: "new", Type: "nfs", Shared: true, QCOW2: true}} },
	} {
		t.Run(name, func(t *testing.T) {
			c := start(t, conf)
			snap := c.snapshotDisk(0)
			data, task := c.export(snap, "format", "qcow2")
			if task["status"] != "success" {
				t.Fatalf("the task: %v", task)
			}
			dir := t.TempDir()
			image, raw := filepath.Join(dir, "disk.qcow2"), filepath.Join(dir, "disk.raw")
			if err := os.WriteFile(image, data, 0o600); err != nil {
				t.Fatal(err)
			}
			if out, err := foreign(t, "qemu-img", "check", image); err != nil {
				t.Errorf("%v: %s", err, out)
			}
			if out, err := foreign(t, "qemu-img", "convert", "-O", "raw", image, raw); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			got, err := os.ReadFile(raw)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, c.content(snap)) {
				t.Error("qemu reads another disk")
			}
			_, task = c.export(snap, "format", "qcow2", "base", snap)
			if task["status"] != "failure" {
				t.Errorf("with a base: %v", task["status"])
			}
		})
	}
}
