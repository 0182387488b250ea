package xapisim

import (
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// notImplementedDoc returns the list in docs/simulator.md of calls that are not
// implemented: each line has a class, a colon, and its calls.
func notImplementedDoc(t *testing.T) map[string]bool {
	t.Helper()
	b, err := os.ReadFile("../../docs/simulator.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(b), "## Calls that are not built\n")
	if !ok {
		t.Fatal("docs/simulator.md has no list of calls that are not built")
	}
	rest, _, _ = strings.Cut(rest, "\n## ")
	out := map[string]bool{}
	for l := range strings.Lines(rest) {
		l, isItem := strings.CutPrefix(strings.TrimSpace(l), "- ")
		cls, names, _ := strings.Cut(l, ": ")
		if !isItem {
			continue
		}
		for _, n := range strings.Split(names, ", ") {
			out[cls+"."+n] = true
		}
	}
	return out
}

// Row F4 of the fault list: each call that a real server lists is answered. It
// either works, or it returns NOT_IMPLEMENTED and is listed in
// docs/simulator.md.
func TestEveryListedCallIsAnswered(t *testing.T) {
	_, calls := readGolden(t)
	var listed struct{ Result []string }
	if err := json.Unmarshal(calls["016-system-listMethods"]["json2.response.json"], &listed); err != nil {
		t.Fatal(err)
	}
	if len(listed.Result) < 2000 {
		t.Fatalf("only %d calls are listed", len(listed.Result))
	}
	p, err := New(Config{NoTLS: true, LoginDelay: time.Nanosecond, Scale: 0.001})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	documented, missing := notImplementedDoc(t), map[string][]string{}
	for _, name := range listed.Result {
		code := p.answerTo(t, name)
		switch not := code == "NOT_IMPLEMENTED"; {
		case code == "MESSAGE_METHOD_UNKNOWN":
			t.Errorf("%s is not known", name)
		case not && !documented[name]:
			cls, call, _ := strings.Cut(name, ".")
			missing[cls] = append(missing[cls], call)
		case !not && documented[name]:
			t.Errorf("%s answers (%s), and docs/simulator.md says that it is not built", name, code)
		}
		delete(documented, name)
	}
	for _, cls := range sortedLists(missing) {
		t.Errorf("not built and not in docs/simulator.md:\n- %s: %s", cls, strings.Join(missing[cls], ", "))
	}
	for name := range documented {
		t.Errorf("docs/simulator.md lists %s, which no server has", name)
	}
}

func sortedLists(m map[string][]string) []string {
	var keys []string
	for k := range m {
		slices.Sort(m[k])
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// answerTo makes a call with meaningless parameters, and returns the code of
// its answer.
func (p *Pool) answerTo(t *testing.T, name string) string {
	t.Helper()
	host := p.hosts[0]
	req := &request{method: name, params: []any{}}
	m := p.db.sch.methods[name]
	if m != nil && !m.noSession {
		s, e := p.dispatch(t.Context(), host, &request{method: "session.login_with_password", params: []any{p.User(), p.Password()}})
		if e != nil {
			t.Fatal(e)
		}
		req.params = append(req.params, s)
	}
	if m != nil {
		for _, prm := range m.params {
			switch v := prm.typ.zero.(type) {
			case date:
				req.params = append(req.params, string(v))
			default:
				req.params = append(req.params, v)
			}
		}
	}
	_, e := p.dispatch(t.Context(), host, req)
	if e == nil {
		return ""
	}
	return e.Code
}

// Row F4: the setters of a VM that have code of their own change its record.
func TestVMSetters(t *testing.T) {
	c := start(t, nil)
	vm := c.vm()
	c.must("VM.hard_shutdown", vm)
	for field, value := range map[string]any{
		"actions_after_crash": "preserve", "order": 3.0, "start_delay": 7.0, "shutdown_delay": 9.0, "has_vendor_device": true,
		"memory_dynamic_max": 1610612736.0, "memory_static_max": 4294967296.0, "VCPUs_max": 4.0, "HVM_shadow_multiplier": 1.5,
		"domain_type": "pvh", "ha_restart_priority": "restart",
	} {
		if field == "memory_dynamic_max" { // the limits stay in order
			c.must("VM.set_memory_dynamic_range", vm, 1610612736, 1610612736)
			continue
		}
		c.must("VM.set_"+field, vm, value)
		if got := c.record("VM", vm)[field]; got != value {
			t.Errorf("%s is %v after it was set to %v", field, got, value)
		}
	}
	c.refused([]string{"INVALID_VALUE", "order must be non-negative", "-1"}, "VM.set_order", vm, -1)
	c.refused([]string{"INVALID_VALUE", "VCPU values must satisfy: 0 < VCPUs_at_startup ≤ VCPUs_max", "9"}, "VM.set_VCPUs_at_startup", vm, 9)
	c.refused([]string{"MEMORY_CONSTRAINT_VIOLATION", "Memory limits must satisfy: static_min <= dynamic_min <= dynamic_max <= static_max"},
		"VM.set_memory_dynamic_max", vm, 1<<40)
	c.refused([]string{"VM_BAD_POWER_STATE", vm, "suspended", "halted"}, "VM.set_suspend_VDI", vm, c.disk(0))
	c.must("VM.update_allowed_operations", vm)
	c.refused([]string{"VM_BAD_POWER_STATE", vm, "running", "halted"}, "VM.assert_operation_valid", vm, "suspend")
	c.must("VM.start", vm, false, false)
	c.refused([]string{"VM_BAD_POWER_STATE", vm, "halted", "running"}, "VM.set_VCPUs_max", vm, 2)
}

// Row X12 of the fault list: VM.create ignores BIOS strings. They can be set
// afterwards, once, except for those that the server sets itself.
func TestBIOSStrings(t *testing.T) {
	c := start(t, nil)
	rec := c.record("VM", c.vm())
	rec["bios_strings"], rec["name_label"] = map[string]any{"bios-vendor": "ACME"}, "new"
	vm := c.must("VM.create", rec).(string)
	if got := c.record("VM", vm)["bios_strings"].(map[string]any); len(got) != 0 {
		t.Errorf("VM.create set %v", got)
	}
	for _, k := range []string{"oem-1", "oem-2", "hp-rombios"} {
		c.refused([]string{"INVALID_VALUE", k, "Unknown key"}, "VM.set_bios_strings", vm, map[string]any{"bios-vendor": "ACME", k: "x"})
	}
	c.must("VM.set_bios_strings", vm, map[string]any{"bios-vendor": "ACME", "system-serial-number": "SN123"})
	got := c.record("VM", vm)["bios_strings"].(map[string]any)
	if got["bios-vendor"] != "ACME" || got["system-serial-number"] != "SN123" || got["oem-1"] != "Xen" || len(got) != 16 {
		t.Errorf("BIOS strings %v", got)
	}
	c.refused([]string{"VM_BIOS_STRINGS_ALREADY_SET"}, "VM.set_bios_strings", vm, map[string]any{"bios-vendor": "ACME"})
}
