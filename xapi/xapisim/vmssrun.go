package xapisim

import (
	"fmt"
	"sort"
	"strconv"
	"strings"
	"time"
)

// now returns the pool's clock.
func (p *Pool) now() time.Time { return time.Now().Add(p.ahead).UTC() }

// quarter is the interval at which the hosts look for due schedules, which
// begin at quarters of an hour.
const quarter = 15 * time.Minute

// Advance moves the pool's clock forward and runs the schedules that are due in
// that time, each at its time. The pool's time zone is UTC. It returns the new
// time.
func (p *Pool) Advance(d time.Duration) time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	end := p.now().Add(d)
	for {
		next := p.looked.Truncate(quarter).Add(quarter)
		if next.After(end) {
			break
		}
		if wait := next.Sub(p.now()); wait > 0 {
			p.ahead += wait
		}
		p.runSchedules()
	}
	if wait := end.Sub(p.now()); wait > 0 {
		p.ahead += wait
	}
	return p.now()
}

// runSchedules takes the snapshots that have become due since its last call.
func (p *Pool) runSchedules() {
	for {
		next := p.looked.Truncate(quarter).Add(quarter)
		if next.After(p.now()) {
			return
		}
		p.looked = next
		for _, s := range p.oldestFirst("VMSS", refsOf(p.db.all("VMSS"))) {
			if s.bool("enabled") && due(s, next) {
				p.runSchedule(s)
			}
		}
	}
}

// due reports whether a schedule applies to this quarter of an hour.
func due(s *object, t time.Time) bool {
	is := func(key string, n int) bool {
		v, err := strconv.Atoi(s.mapv("schedule")[key].(string))
		return err == nil && v == n
	}
	if !is("min", t.Minute()) {
		return false
	}
	switch s.str("frequency") {
	case "hourly":
		return true
	case "daily":
		return is("hour", t.Hour())
	}
	return is("hour", t.Hour()) && contains(strings.Split(s.mapv("schedule")["days"].(string), ","), t.Weekday().String())
}

// runSchedule does the work of the hosts' plugin (xen-api
// doc/content/design/schedule-snapshot.md): it takes a snapshot of each VM of
// the schedule, reports a failure and continues, and deletes the oldest of its
// own snapshots that exceed the limit. The plugin's code is not public: the
// snapshots' names and the messages' texts are chosen by this simulator.
func (p *Pool) runSchedule(s *object) {
	tell := func(name, body string) {
		p.db.create("message", map[string]any{
			"name": name, "priority": int64(4), "cls": "VMSS", "obj_uuid": s.uuid(), "timestamp": dateOf(p.now()), "body": body,
		})
	}
	if !p.licensed {
		tell("VMSS_LICENSE_ERROR", "Snapshot schedules need a licence")
		return
	}
	p.db.put(s, "last_run_time", dateOf(p.now()))
	for _, vm := range p.oldestFirst("VM", s.set("VMs")) {
		ref, err := p.scheduledSnapshot(s, vm)
		if err != nil {
			tell("VMSS_SNAPSHOT_FAILED", fmt.Sprintf("VM %s (%s): %s", vm.str("name_label"), vm.uuid(), asError(err).Error()))
			continue
		}
		snap := p.db.find("VM", ref)
		tell("VMSS_SNAPSHOT_SUCCEEDED", fmt.Sprintf("VM %s (%s): snapshot %s", vm.str("name_label"), vm.uuid(), snap.uuid()))
		p.rotate(vm, int(s.int("retained_snapshots")))
	}
}

// scheduledSnapshot makes the call for the schedule's type.
func (p *Pool) scheduledSnapshot(s, vm *object) (string, error) {
	name := map[string]string{"snapshot": "VM.snapshot", "checkpoint": "VM.checkpoint", "snapshot_with_quiesce": "VM.snapshot_with_quiesce"}[s.str("type")]
	m := p.db.sch.methods[name]
	if m == nil {
		return "", fail("MESSAGE_METHOD_UNKNOWN", name)
	}
	label := fmt.Sprintf("%s-%s-%s", s.str("name_label"), vm.str("name_label"), p.now().Format("20060102T150405Z"))
	args := []any{vm.ref, label, []any{}}
	res, err := p.run(&call{ctx: p.ctx, p: p, host: p.hosts[0], method: m, args: args[:len(m.params)], task: "OpaqueRef:" + newUUID()})
	if err != nil {
		return "", err
	}
	ref := res.(string)
	p.db.put(p.db.find("VM", ref), "is_vmss_snapshot", true)
	return ref, nil
}

// rotate deletes the oldest scheduled snapshots of a VM beyond the number to
// keep, with their disks.
func (p *Pool) rotate(vm *object, keep int) {
	var own []*object
	for _, o := range p.db.refs("VM", vm.set("snapshots")) {
		if o.bool("is_vmss_snapshot") {
			own = append(own, o)
		}
	}
	sort.SliceStable(own, func(i, j int) bool { return own[i].str("snapshot_time") > own[j].str("snapshot_time") })
	for _, o := range own[min(keep, len(own)):] {
		var disks []*object
		for _, vbd := range p.db.refs("VBD", o.set("VBDs")) {
			if vdi := p.db.find("VDI", vbd.str("VDI")); vdi != nil && vbd.str("type") == "Disk" {
				disks = append(disks, vdi)
			}
		}
		if image := p.db.find("VDI", o.str("suspend_VDI")); image != nil {
			disks = append(disks, image)
		}
		p.destroyVM(o)
		for _, vdi := range disks {
			_ = p.destroyVDI(vdi) // disks that are in use stay
		}
	}
}
