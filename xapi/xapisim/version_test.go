package xapisim

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
)

func version(v Version) func(*Config) {
	return func(cfg *Config) { cfg.Version, cfg.VMs[0].Drivers = v, true }
}

func (c *client) methods() map[string]bool {
	out := map[string]bool{}
	for _, n := range c.must("system.listMethods").([]any) {
		out[n.(string)] = true
	}
	return out
}

// TestVersions shows the differences between the versions that can be
// simulated.
func TestVersions(t *testing.T) {
	for _, v := range []Version{Version80, Version82, VersionCurrent} {
		t.Run(string(v), func(t *testing.T) {
			c := start(t, version(v))
			vm := c.vm()
			host := c.record("host", c.must("host.get_all").([]any)[0])
			want := map[Version]string{Version80: "8.0.0", Version82: "8.2.1", VersionCurrent: "8.4.0"}[v]
			if got := host["software_version"].(map[string]any)["product_version"]; got != want {
				t.Errorf("product version %v", got)
			}
			if minor := map[Version]float64{Version80: 12, Version82: 15, VersionCurrent: 23}[v]; host["API_version_minor"] != minor {
				t.Errorf("API 2.%v", host["API_version_minor"])
			}
			// Disks excluded from a snapshot.
			if v == VersionCurrent {
				c.must("VM.snapshot", vm, "s", []string{})
			} else {
				c.refused([]string{"MESSAGE_PARAMETER_COUNT_MISMATCH", "VM.snapshot", "2", "3"}, "VM.snapshot", vm, "s", []string{})
				c.must("VM.snapshot", vm, "s")
			}
			// Quiesced snapshots.
			if v == Version80 {
				snap := c.must("VM.snapshot_with_quiesce", vm, "q")
				if got := c.record("VM", snap)["snapshot_info"].(map[string]any)["disk-snapshot-type"]; got != "quiesced" {
					t.Errorf("disk-snapshot-type %v", got)
				}
				c.must("VM.pause", vm)
				c.refused([]string{"VM_BAD_POWER_STATE", vm, "running", "paused"}, "VM.snapshot_with_quiesce", vm, "q")
				c.must("VM.unpause", vm)
			} else {
				c.refused([]string{"MESSAGE_REMOVED"}, "VM.snapshot_with_quiesce", vm, "q")
			}
			// Classes, fields and calls.
			have := c.methods()
			for name, since := range map[string]Version{
				"Certificate.get_all_records": Version82, "host.get_certificates": Version82, "task.set_progress": Version82,
				"Certificate.get_type": VersionCurrent, "task.set_error_info": VersionCurrent, "VDI.revert": VersionCurrent,
				"Observer.get_all": VersionCurrent, "VM.get_groups": VersionCurrent, "VM.snapshot": Version80, "VM.get_NVRAM": Version80,
			} {
				there := since == Version80 || since == Version82 && v != Version80 || v == VersionCurrent
				if have[name] != there {
					t.Errorf("%s listed: %v", name, have[name])
				}
				if _, err := c.call(name); !there && (err == nil || !strings.HasPrefix(err.Error(), "MESSAGE_METHOD_UNKNOWN")) {
					t.Errorf("%s: %v", name, err)
				}
			}
			for field, since := range map[string]Version{"certificates": Version82, "https_only": VersionCurrent, "address": Version80} {
				there := since == Version80 || since == Version82 && v != Version80 || v == VersionCurrent
				if _, ok := host[field]; ok != there {
					t.Errorf("host.%s there: %v", field, ok)
				}
			}
			classes := map[string]bool{}
			for _, e := range c.must("event.from", []string{"*"}, "", 0.1).(map[string]any)["events"].([]any) {
				classes[e.(map[string]any)["class"].(string)] = true
			}
			if classes["certificate"] != (v != Version80) || !classes["vm"] {
				t.Errorf("events of classes %v", classes)
			}
			// Formats of raw exports, and limits of request heads.
			resp := c.get(c.url("/export_raw_vdi", "vdi", c.disks(c.must("VM.snapshot", vm, "x").(string))["0"], "format", "qcow2"))
			if (resp.StatusCode == 404) != v.old() {
				t.Errorf("qcow2: %s", resp.Status)
			}
			req, _ := http.NewRequest("POST", c.base+"/jsonrpc", strings.NewReader(`{"jsonrpc":"2.0","id":1,"method":"system.listMethods","params":[]}`))
			req.Header.Set("X-Long", strings.Repeat("x", 2000))
			long, err := c.hc.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			io.Copy(io.Discard, long.Body)
			long.Body.Close()
			if (long.StatusCode == 431) == v.old() {
				t.Errorf("a head of 2000 bytes: %s", long.Status)
			}
			// All versions support the calls that backup tools need.
			c.must("VDI.enable_cbt", c.disk(0))
			c.must("VDI.get_nbd_info", c.disk(0))
			if cp := c.record("VM", c.must("VM.checkpoint", vm, "cp")); cp["power_state"] != "Suspended" {
				t.Errorf("checkpoint: %v", cp["power_state"])
			}
		})
	}
	if p, err := New(Config{Version: "7.6"}); err == nil {
		p.Close()
		t.Error("an unknown version is taken")
	}
}

func TestQuiesceNeedsTheGuest(t *testing.T) {
	c := start(t, func(cfg *Config) { cfg.Version = Version80 })
	c.refused([]string{"VM_SNAPSHOT_WITH_QUIESCE_NOT_SUPPORTED", c.vm()}, "VM.snapshot_with_quiesce", c.vm(), "q")
}

// TestSinceNamesWhatExists checks that since.txt names only parts of the data
// model.
func TestSinceNamesWhatExists(t *testing.T) {
	s, err := loadSchema()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range strings.Split(sinceText, "\n") {
		_, name, ok := strings.Cut(l, " ")
		if !ok || strings.HasPrefix(l, "#") {
			continue
		}
		cls, member, one := strings.Cut(name, ".")
		if c := s.classes[cls]; c == nil || one && c.byName[member] == nil && s.methods[name] == nil {
			t.Error(fmt.Sprint("no such thing: ", name))
		}
	}
}
