package xapisim

import (
	"fmt"
	"strings"
)

var weekdays = []string{"Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"}

// scheduleKeys are the keys of a schedule and their defaults, by frequency
// (xen-api ocaml/xapi/xapi_vmss.ml).
var scheduleKeys = map[string]map[string]any{
	"hourly": {"min": "0"},
	"daily":  {"min": "0", "hour": "0"},
	"weekly": {"min": "0", "hour": "0", "days": "Monday"},
}

// checkSchedule returns the schedule with its defaults and in normalized
// spelling.
func checkSchedule(frequency string, in map[string]any) (map[string]any, error) {
	out := map[string]any{}
	for k, v := range scheduleKeys[frequency] {
		out[k] = v
	}
	for _, k := range sortedKeys(in) {
		v := in[k].(string)
		bad := fail("INVALID_VALUE", "schedule:"+k, v)
		if _, ok := out[k]; !ok {
			return nil, bad
		}
		switch k {
		case "min":
			if v != "0" && v != "15" && v != "30" && v != "45" {
				return nil, bad
			}
		case "hour":
			var n int
			if _, err := fmt.Sscanf(v, "%d", &n); err != nil || n < 0 || n > 23 || fmt.Sprint(n) != v {
				return nil, bad
			}
		case "days":
			days := strings.Split(v, ",")
			for i, d := range days {
				ok := false
				for _, w := range weekdays {
					if strings.EqualFold(w, strings.TrimSpace(d)) {
						days[i], ok = w, true
					}
				}
				if !ok {
					return nil, bad
				}
			}
			v = strings.Join(days, ",")
		}
		out[k] = v
	}
	return out, nil
}

func checkRetained(n int64) error {
	if n < 1 || n > 10 {
		return fail("INVALID_VALUE", "retained_snapshots", fmt.Sprint(n))
	}
	return nil
}

func (p *Pool) vmssCalls() map[string]handler {
	on := func(work func(c *call, s *object) error) handler {
		return func(c *call) (any, error) {
			if !p.licensed {
				return nil, fail("LICENCE_RESTRICTION", "VMSS")
			}
			s, err := c.object(0)
			if err != nil {
				return nil, err
			}
			return void, work(c, s)
		}
	}
	return map[string]handler{
		"VMSS.create":                 p.vmssCreate,
		"VMSS.destroy":                on(p.vmssDestroy),
		"VMSS.set_retained_snapshots": on(p.vmssSetRetainedSnapshots),
		"VMSS.set_frequency":          on(p.vmssSetFrequency),
		"VMSS.set_schedule":           on(p.vmssSetSchedule),
		"VMSS.add_to_schedule":        on(p.vmssAddToSchedule),
		"VMSS.remove_from_schedule":   on(p.vmssRemoveFromSchedule),
		"VMSS.snapshot_now":           p.vmssSnapshotNow,
		"VMSS.set_type":               on(func(c *call, s *object) error { p.db.put(s, "type", c.args[1]); return nil }),
		"VMSS.set_last_run_time":      on(p.vmssSetLastRunTime),
	}
}

// vmssCreate implements VMSS.create.
func (p *Pool) vmssCreate(c *call) (any, error) {
	if !p.licensed {
		return nil, fail("LICENCE_RESTRICTION", "VMSS")
	}
	f, err := c.construct(0)
	if err != nil {
		return nil, err
	}
	if err := checkRetained(f["retained_snapshots"].(int64)); err != nil {
		return nil, err
	}
	if f["schedule"], err = checkSchedule(f["frequency"].(string), f["schedule"].(map[string]any)); err != nil {
		return nil, err
	}
	return p.db.create("VMSS", f).ref, nil
}

// vmssDestroy implements VMSS.destroy.
func (p *Pool) vmssDestroy(c *call, s *object) error {
	if len(s.set("VMs")) > 0 {
		return fail("VMSS_HAS_VM")
	}
	p.db.destroy(s)
	return nil
}

// vmssSetRetainedSnapshots implements VMSS.set_retained_snapshots.
func (p *Pool) vmssSetRetainedSnapshots(c *call, s *object) error {
	if err := checkRetained(c.args[1].(int64)); err != nil {
		return err
	}
	p.db.put(s, "retained_snapshots", c.args[1])
	return nil
}

// vmssSetFrequency implements VMSS.set_frequency.
func (p *Pool) vmssSetFrequency(c *call, s *object) error {
	p.db.put(s, "frequency", c.args[1])
	keep := map[string]any{}
	for k := range scheduleKeys[c.str(1)] {
		if v, ok := s.mapv("schedule")[k]; ok {
			keep[k] = v
		}
	}
	sched, err := checkSchedule(c.str(1), keep)
	if err == nil {
		p.db.put(s, "schedule", sched)
	}
	return err
}

// vmssSetSchedule implements VMSS.set_schedule.
func (p *Pool) vmssSetSchedule(c *call, s *object) error {
	sched, err := checkSchedule(s.str("frequency"), c.args[1].(map[string]any))
	if err == nil {
		p.db.put(s, "schedule", sched)
	}
	return err
}

// vmssAddToSchedule implements VMSS.add_to_schedule.
func (p *Pool) vmssAddToSchedule(c *call, s *object) error {
	if _, err := checkSchedule(s.str("frequency"), map[string]any{c.str(1): c.args[2]}); err != nil {
		return fail("INTERNAL_ERROR", "Not_found")
	}
	if _, ok := s.mapv("schedule")[c.str(1)]; ok {
		return fail("MAP_DUPLICATE_KEY", "VMSS", "schedule", s.ref, c.str(1))
	}
	p.db.put(s, "schedule", with(s.mapv("schedule"), c.str(1), c.args[2]))
	return nil
}

// vmssRemoveFromSchedule implements VMSS.remove_from_schedule.
func (p *Pool) vmssRemoveFromSchedule(c *call, s *object) error {
	p.db.put(s, "schedule", withoutKey(s.mapv("schedule"), c.str(1)))
	return nil
}

// vmssSnapshotNow implements VMSS.snapshot_now.
func (p *Pool) vmssSnapshotNow(c *call) (any, error) {
	if !p.licensed {
		return nil, fail("LICENCE_RESTRICTION", "VMSS")
	}
	s, err := c.object(0)
	if err != nil {
		return nil, err
	}
	p.runSchedule(s)
	return "", nil
}

// vmssSetLastRunTime implements VMSS.set_last_run_time.
func (p *Pool) vmssSetLastRunTime(c *call, s *object) error {
	p.db.put(s, "last_run_time", c.args[1])
	return nil
}

func (p *Pool) setSnapshotSchedule(c *call) (any, error) {
	vm, err := c.object(0)
	if err != nil {
		return nil, err
	}
	ref := c.str(1)
	switch {
	case vm.bool("is_control_domain"):
		return nil, fail("INVALID_VALUE", ref)
	case vm.bool("is_a_template"):
		return nil, fail("VM_IS_TEMPLATE", vm.ref)
	case ref != nullRef && p.db.find("VMSS", ref) == nil:
		return nil, fail("INVALID_VALUE", ref)
	}
	p.db.put(vm, "snapshot_schedule", ref)
	return void, nil
}
