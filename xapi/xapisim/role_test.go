package xapisim

import (
	"strings"
	"testing"
)

func TestRoles(t *testing.T) {
	c := start(t, func(cfg *Config) {
		for _, r := range Roles {
			cfg.Users = append(cfg.Users, User{Name: r, Password: "secret", Role: r})
		}
	})
	root, vm, disk := c.session, c.vm(), c.disk(0)
	denied := func(permission string, roles int) []string {
		return []string{"RBAC_PERMISSION_DENIED", permission,
			"No permission in user session. (Roles with this permission: " + strings.Join(Roles[:roles], ", ") + ")"}
	}
	for i, role := range Roles {
		c.session = c.must("session.login_with_password", role, "secret", "1.0", "test").(string)
		c.must("VM.get_record", vm) // every role may read
		try := func(need int, permission, method string, args ...any) {
			t.Helper()
			if i < need {
				c.must(method, args...)
			} else {
				c.refused(denied(permission, need), method, args...)
			}
		}
		try(3, "vm.snapshot", "VM.snapshot", vm, "s")
		try(4, "vdi.enable_cbt", "VDI.enable_cbt", disk)
		try(2, "vmss.create", "VMSS.create", map[string]any{"name_label": "x", "type": "snapshot", "frequency": "hourly", "schedule": map[string]any{}})
		if i >= 3 {
			c.refused(denied("vm.snapshot", 3), "Async.VM.snapshot", vm, "s")
		}
		// Transfers check the role, too, and fail their task.
		task := c.must("task.create", "t", "").(string)
		for path, need := range map[string]int{"/export_raw_vdi": 4, "/export": 4, "/export_metadata": 4, "/pool/xmldbdump": 1} {
			resp := c.get(c.url(path, "vdi", disk, "ref", vm, "task_id", task))
			if (resp.StatusCode == 403) != (i >= need) {
				t.Errorf("%s as %s: %s", path, role, resp.Status)
			}
			resp.Body.Close()
		}
		if i >= 4 {
			c.session = root
			rec := c.finished(task)
			if info := stringsOf(rec["error_info"].([]any)); info[0] != "RBAC_PERMISSION_DENIED" || !strings.HasPrefix(info[1], "http/") {
				t.Errorf("task: %v", info)
			}
		}
	}
	if p, err := New(Config{Users: []User{{Name: "x", Role: "king"}}}); err == nil {
		p.Close()
		t.Error("an unknown role is taken")
	}
}
