package xapisim

import (
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
)

// newMAC returns a random, locally administered MAC address.
func newMAC() string {
	b := [6]byte{}
	for i := range b {
		b[i] = byte(rand.Uint32())
	}
	b[0] = b[0]&^1 | 2
	return fmt.Sprintf("%02x:%02x:%02x:%02x:%02x:%02x", b[0], b[1], b[2], b[3], b[4], b[5])
}

func newGenerationID() string {
	return fmt.Sprintf("%d:%d", rand.Int64(), rand.Int64())
}

// newVM adds a halted VM with its metrics.
func (p *Pool) newVM(f map[string]any) *object {
	oc, _ := f["other_config"].(map[string]any)
	if _, ok := oc["mac_seed"]; !ok {
		f["other_config"] = with(oc, "mac_seed", newUUID())
	}
	f["metrics"] = p.db.create("VM_metrics", map[string]any{
		"VCPUs_utilisation": map[string]any{"0": float64(0)}, "start_time": epoch, "install_time": epoch, "last_updated": epoch,
		"current_domain_type": "unspecified",
	}).ref
	f["domid"], f["memory_overhead"] = int64(-1), int64(12<<20)
	f["power_state"] = "Halted"
	if _, ok := f["secureboot_certificates_state"]; !ok {
		f["secureboot_certificates_state"] = "ok"
	}
	return p.db.create("VM", f)
}

// newVBD and newVIF add a device with its metrics.
func (p *Pool) newVBD(f map[string]any) *object {
	f["metrics"] = p.db.create("VBD_metrics", nil).ref
	return p.db.create("VBD", f)
}

func (p *Pool) newVIF(f map[string]any) *object {
	f["metrics"] = p.db.create("VIF_metrics", nil).ref
	return p.db.create("VIF", f)
}

// oldestFirst lists the objects of a relation in the order of their creation.
func (p *Pool) oldestFirst(cls string, set []any) []*object {
	objs := p.db.refs(cls, set)
	for i, j := 0, len(objs)-1; i < j; i, j = i+1, j-1 {
		objs[i], objs[j] = objs[j], objs[i]
	}
	return objs
}

// destroyVM removes a VM's record and those of its devices. Its disks remain,
// and so do its snapshots, whose snapshot_of then dangles.
func (p *Pool) destroyVM(vm *object) {
	for _, kid := range p.db.refs("VM", vm.set("children")) {
		p.db.put(kid, "parent", vm.str("parent"))
	}
	for _, o := range p.db.refs("VBD", vm.set("VBDs")) {
		p.destroyWith("VBD_metrics", o)
	}
	for _, o := range p.db.refs("VIF", vm.set("VIFs")) {
		p.destroyWith("VIF_metrics", o)
	}
	for _, o := range p.db.refs("VTPM", vm.set("VTPMs")) {
		p.db.destroy(o)
	}
	for _, o := range p.db.refs("VUSB", vm.set("VUSBs")) {
		p.db.destroy(o)
	}
	for _, o := range p.db.refs("console", vm.set("consoles")) {
		p.db.destroy(o)
	}
	if gm := p.db.find("VM_guest_metrics", vm.str("guest_metrics")); gm != nil {
		p.db.destroy(gm)
	}
	p.destroyWith("VM_metrics", vm)
}

func (p *Pool) destroyWith(metrics string, o *object) {
	if m := p.db.find(metrics, o.str("metrics")); m != nil {
		p.db.destroy(m)
	}
	p.db.destroy(o)
}

// vmCall finds the VM, makes the checks, waits, and marks the operation.
func (p *Pool) vmCall(op string, work func(*call, *object) (any, error)) handler {
	return func(c *call) (any, error) {
		vm, err := c.object(0)
		if err != nil {
			return nil, err
		}
		end, err := c.beginVM(vm, op)
		if err != nil {
			return nil, err
		}
		defer end()
		return work(c, vm)
	}
}

func (p *Pool) vmCalls() map[string]handler {
	state := func(op, to string) handler {
		return p.vmCall(op, func(c *call, vm *object) (any, error) {
			p.db.put(vm, "power_state", to)
			return void, nil
		})
	}
	return map[string]handler{
		"VM.create":                p.vmCreate,
		"VM.destroy":               p.vmCall("destroy", p.vmDestroy),
		"VM.snapshot":              p.vmCall("snapshot", p.vmSnapshot),
		"VM.snapshot_with_quiesce": p.quiesceCall(),
		"VM.checkpoint":            p.vmCall("checkpoint", p.vmCheckpoint),
		"VM.revert":                p.revertCall,
		"VM.clone":                 p.vmCall("clone", p.vmClone),
		"VM.copy":                  p.vmCall("copy", p.vmCopy),
		"VM.provision":             p.vmCall("provision", p.vmProvision),
		"VM.start":                 p.vmCall("start", p.vmStart),
		"VM.start_on":              p.onHost("start_on", p.startVM),
		"VM.resume_on":             p.onHost("resume_on", p.resumeVM),
		"VM.pool_migrate":          p.vmPoolMigrate,
		"VM.pause":                 state("pause", "Paused"),
		"VM.unpause":               state("unpause", "Running"),
		"VM.clean_shutdown":        p.vmCall("clean_shutdown", func(c *call, vm *object) (any, error) { p.haltVM(vm); return void, nil }),
		"VM.hard_shutdown":         p.vmCall("hard_shutdown", p.vmHardShutdown),
		"VM.hard_reboot":           state("hard_reboot", "Running"),
		"VM.clean_reboot":          state("clean_reboot", "Running"),
		"VM.suspend":               p.vmCall("suspend", func(c *call, vm *object) (any, error) { return void, p.suspendVM(vm) }),
		"VM.resume":                p.vmCall("resume", p.vmResume),
		"VM.set_is_a_template":     p.vmSetIsATemplate,
		"VM.set_snapshot_schedule": p.setSnapshotSchedule,
		"VTPM.create":              p.vmCall("create_vtpm", p.vtpmCreate),
		"VTPM.destroy":             p.vtpmDestroy,
		"VBD.create":               p.createVBD,
		"VBD.destroy":              p.vbdDestroy,
		"VBD.plug":                 p.plug("VBD", true),
		"VBD.unplug":               p.plug("VBD", false),
		"VBD.unplug_force":         p.plug("VBD", false),
		"VBD.eject":                p.vbdEject,
		"VBD.insert":               p.vbdInsert,
		"VIF.create":               p.createVIF,
		"VIF.destroy":              p.vifDestroy,
		"VIF.plug":                 p.plug("VIF", true),
		"VIF.unplug":               p.plug("VIF", false),
		"VIF.unplug_force":         p.plug("VIF", false),
	}
}

// vmCreate implements VM.create.
func (p *Pool) vmCreate(c *call) (any, error) {
	f, err := c.construct(0)
	if err != nil {
		return nil, err
	}
	f["hardware_platform_version"] = int64(2)
	return p.newVM(f).ref, nil
}

// vmDestroy implements VM.destroy.
func (p *Pool) vmDestroy(c *call, vm *object) (any, error) {
	if vm.bool("is_default_template") {
		return nil, fail("VM_CANNOT_DELETE_DEFAULT_TEMPLATE")
	}
	p.destroyVM(vm)
	return void, nil
}

// vmSnapshot implements VM.snapshot.
func (p *Pool) vmSnapshot(c *call, vm *object) (any, error) {
	var ignore []any
	if len(c.args) > 2 {
		ignore = c.args[2].([]any)
	}
	return p.snapshotVM(c, vm, c.str(1), ignore, p.plainSnapshot(vm, "crash_consistent"))
}

// vmCheckpoint implements VM.checkpoint.
func (p *Pool) vmCheckpoint(c *call, vm *object) (any, error) {
	return p.checkpointVM(c, vm, c.str(1))
}

// vmClone implements VM.clone.
func (p *Pool) vmClone(c *call, vm *object) (any, error) {
	return p.cloneVM(c, vm, c.str(1), p.cloneVDI)
}

// vmCopy implements VM.copy.
func (p *Pool) vmCopy(c *call, vm *object) (any, error) {
	to := c.str(2)
	if s := p.db.find("SR", to); s != nil && s.str("content_type") == "iso" {
		return nil, fail("OPERATION_NOT_ALLOWED", "Cannot copy to an ISO SR")
	}
	return p.cloneVM(c, vm, c.str(1), func(c *call, vdi *object) (*object, error) {
		srRef := to
		if srRef == nullRef || srRef == "" {
			srRef = vdi.str("SR")
		}
		ref, err := p.copyVDI(c, vdi, srRef, nil)
		if err != nil {
			return nil, err
		}
		return p.db.find("VDI", ref.(string)), nil
	})
}

// vmProvision implements VM.provision.
func (p *Pool) vmProvision(c *call, vm *object) (any, error) {
	if err := p.provisionDisks(vm); err != nil {
		return nil, err
	}
	p.db.put(vm, "is_a_template", false)
	p.db.put(vm, "is_default_template", false)
	return void, nil
}

// vmStart implements VM.start.
func (p *Pool) vmStart(c *call, vm *object) (any, error) {
	return void, p.startVM(vm, p.hosts[0], c.args[1].(bool))
}

// vmPoolMigrate implements VM.pool_migrate.
func (p *Pool) vmPoolMigrate(c *call) (any, error) {
	vm, err := c.object(0)
	if err != nil {
		return nil, err
	}
	to, err := c.object(1)
	if err != nil {
		return nil, err
	}
	end, err := c.beginVM(vm, "pool_migrate")
	if err != nil {
		return nil, err
	}
	defer end()
	return void, p.migrateVM(vm, to)
}

// vmHardShutdown implements VM.hard_shutdown.
func (p *Pool) vmHardShutdown(c *call, vm *object) (any, error) {
	p.haltVM(vm)
	p.dropSuspendImage(vm)
	return void, nil
}

// vmResume implements VM.resume.
func (p *Pool) vmResume(c *call, vm *object) (any, error) {
	return void, p.resumeVM(vm, p.hosts[0], c.args[1].(bool))
}

// vmSetIsATemplate implements VM.set_is_a_template.
func (p *Pool) vmSetIsATemplate(c *call) (any, error) {
	vm, err := c.object(0)
	if err != nil {
		return nil, err
	}
	if c.args[1].(bool) && !vm.bool("is_a_template") {
		if s := vm.str("snapshot_schedule"); p.db.find("VMSS", s) != nil {
			return nil, fail("VM_ASSIGNED_TO_SNAPSHOT_SCHEDULE", vm.ref, s)
		}
		if err := p.checkVM(vm, "make_into_template"); err != nil {
			return nil, err
		}
	}
	p.db.put(vm, "is_a_template", c.args[1])
	if !c.args[1].(bool) {
		p.db.put(vm, "is_default_template", false)
	}
	return void, nil
}

// vtpmCreate implements VTPM.create.
func (p *Pool) vtpmCreate(c *call, vm *object) (any, error) {
	if len(vm.set("VTPMs")) > 0 {
		return nil, fail("VTPM_MAX_AMOUNT_REACHED", "1")
	}
	return p.db.create("VTPM", map[string]any{"VM": vm.ref, "is_unique": c.args[1]}).ref, nil
}

// vtpmDestroy implements VTPM.destroy.
func (p *Pool) vtpmDestroy(c *call) (any, error) {
	vtpm, err := c.object(0)
	if err == nil {
		p.db.destroy(vtpm)
	}
	return void, err
}

// vbdDestroy implements VBD.destroy.
func (p *Pool) vbdDestroy(c *call) (any, error) {
	vbd, err := c.object(0)
	if err != nil {
		return nil, err
	}
	if vbd.bool("currently_attached") {
		vm, err := p.lookup("VM", vbd.str("VM"))
		if err != nil {
			return nil, err
		}
		return nil, fail("OPERATION_NOT_ALLOWED", fmt.Sprintf("VBD '%s' still attached to '%s'", vbd.uuid(), vm.uuid()))
	}
	p.destroyWith("VBD_metrics", vbd)
	return void, nil
}

// vbdEject implements VBD.eject.
func (p *Pool) vbdEject(c *call) (any, error) {
	vbd, err := c.object(0)
	if err != nil {
		return nil, err
	}
	if vbd.str("type") != "CD" {
		return nil, fail("VBD_NOT_REMOVABLE_MEDIA", vbd.ref)
	}
	if vbd.bool("empty") {
		return nil, fail("VBD_IS_EMPTY", vbd.ref)
	}
	p.db.put(vbd, "VDI", nullRef)
	p.db.put(vbd, "empty", true)
	return void, nil
}

// vbdInsert implements VBD.insert.
func (p *Pool) vbdInsert(c *call) (any, error) {
	vbd, err := c.object(0)
	if err != nil {
		return nil, err
	}
	vdi, err := c.object(1)
	if err != nil {
		return nil, err
	}
	if vbd.str("type") != "CD" {
		return nil, fail("VBD_NOT_REMOVABLE_MEDIA", vbd.ref)
	}
	if !vbd.bool("empty") {
		return nil, fail("VBD_NOT_EMPTY", vbd.ref)
	}
	p.db.put(vbd, "VDI", vdi.ref)
	p.db.put(vbd, "empty", false)
	return void, nil
}

// vifDestroy implements VIF.destroy.
func (p *Pool) vifDestroy(c *call) (any, error) {
	vif, err := c.object(0)
	if err != nil {
		return nil, err
	}
	if vm := p.db.find("VM", vif.str("VM")); vm != nil && vm.str("power_state") == "Running" && vif.bool("currently_attached") {
		return nil, fail("OPERATION_NOT_ALLOWED", "VIF currently attached to a running VM")
	}
	p.destroyWith("VIF_metrics", vif)
	return void, nil
}

// onHost starts or resumes a VM on the host that the call names.
func (p *Pool) onHost(op string, run func(vm *object, h *host, paused bool) error) handler {
	return func(c *call) (any, error) {
		vm, err := c.object(0)
		if err != nil {
			return nil, err
		}
		to, err := c.object(1)
		if err != nil {
			return nil, err
		}
		end, err := c.beginVM(vm, op)
		if err != nil {
			return nil, err
		}
		defer end()
		for _, h := range p.hosts {
			if h.ref != to.ref {
				continue
			}
			return void, run(vm, h, c.args[2].(bool))
		}
		return nil, fail("HOST_OFFLINE", to.ref)
	}
}

// plug attaches a device to a running VM, or detaches it.
func (p *Pool) plug(cls string, attach bool) handler {
	return func(c *call) (any, error) {
		o, err := c.object(0)
		if err != nil {
			return nil, err
		}
		vm, err := p.lookup("VM", o.str("VM"))
		if err != nil {
			return nil, err
		}
		switch {
		case vm.str("power_state") != "Running":
			return nil, fail("VM_BAD_POWER_STATE", vm.ref, "running", strings.ToLower(vm.str("power_state")))
		case attach && o.bool("currently_attached"):
			return nil, fail("DEVICE_ALREADY_ATTACHED", o.ref)
		case !attach && !o.bool("currently_attached"):
			return nil, fail("DEVICE_ALREADY_DETACHED", o.ref)
		}
		if cls == "VBD" {
			if attach {
				return void, p.attachVBD(o)
			}
			p.detachVBD(o)
			return void, nil
		}
		p.db.put(o, "currently_attached", attach)
		return void, nil
	}
}

// attachVBD attaches a disk, unless another attachment forbids it.
func (p *Pool) attachVBD(vbd *object) error {
	if vdi := p.db.find("VDI", vbd.str("VDI")); vdi != nil {
		if vdi.str("type") == "cbt_metadata" {
			return fail("VDI_INCOMPATIBLE_TYPE", vdi.ref, cbtMetadata)
		}
		vm := p.db.find("VM", vbd.str("VM"))
		attached, rw := p.usedByGuests(vdi)
		if attached && !vdi.bool("sharable") && (rw || vbd.str("mode") == "RW") && (vm == nil || !vm.bool("is_control_domain")) {
			return fail("VDI_IN_USE", vdi.ref)
		}
		if vbd.str("mode") == "RW" && vdi.bool("read_only") {
			return fail("VDI_READONLY", vdi.ref)
		}
		if err := p.activate(vdi, vbd.str("mode")); err != nil {
			return err
		}
		v, err := p.volume(vdi)
		if err != nil {
			return err
		}
		if vbd.str("mode") == "RW" {
			tracked := v.CBTEnabled()
			if err := v.SetAttached(true); err != nil {
				return srError(err, vdi.str("SR"))
			}
			if tracked && !v.CBTEnabled() {
				p.lostCBT(vdi, "VDI_CBT_METADATA_INCONSISTENT", "Changed Block Tracking metadata is inconsistent for disk %s.")
			}
			p.syncVDI(vdi)
		}
	}
	p.db.put(vbd, "currently_attached", true)
	if vbd.str("device") == "" {
		p.db.put(vbd, "device", deviceName(vbd.str("userdevice")))
	}
	return nil
}

func (p *Pool) detachVBD(vbd *object) {
	p.db.put(vbd, "currently_attached", false)
	if vdi := p.db.find("VDI", vbd.str("VDI")); vdi != nil && vbd.str("mode") == "RW" {
		if v, err := p.volume(vdi); err == nil {
			v.SetAttached(false)
			p.syncVDI(vdi)
		}
	}
}

// deviceName returns a guest's name for the disk at a position.
func deviceName(userdevice string) string {
	n, err := strconv.Atoi(userdevice)
	if err != nil || n < 0 || n > 255 {
		return userdevice
	}
	name := "xvd"
	if n >= 26 {
		name += string(rune('a' + n/26 - 1))
	}
	return name + string(rune('a'+n%26))
}

func (p *Pool) createVBD(c *call) (any, error) {
	f, err := c.construct(0)
	if err != nil {
		return nil, err
	}
	vm, err := p.lookup("VM", f["VM"].(string))
	if err != nil {
		return nil, err
	}
	if f["empty"].(bool) {
		if f["type"] != "CD" {
			return nil, fail("OPERATION_NOT_ALLOWED", "Only CD VBDs can be empty")
		}
		f["VDI"] = nullRef
	} else {
		vdi, err := p.lookup("VDI", f["VDI"].(string))
		if err != nil {
			return nil, err
		}
		if vdi.str("type") == "cbt_metadata" {
			return nil, fail("VDI_INCOMPATIBLE_TYPE", vdi.ref, cbtMetadata)
		}
		if vdi.bool("read_only") && f["mode"] == "RW" {
			return nil, fail("VDI_READONLY", vdi.ref)
		}
	}
	taken := map[string]bool{}
	for _, vbd := range p.db.refs("VBD", vm.set("VBDs")) {
		taken[vbd.str("userdevice")] = true
	}
	dev := f["userdevice"].(string)
	if dev == "autodetect" {
		for n := 0; dev == "autodetect" || taken[dev]; n++ {
			dev = strconv.Itoa(n)
		}
		f["userdevice"] = dev
	}
	if n, err := strconv.Atoi(dev); (err != nil || n < 0 || n > 254) && !strings.HasPrefix(dev, "xvd") && !strings.HasPrefix(dev, "hd") {
		return nil, fail("INVALID_DEVICE", dev)
	}
	if taken[dev] {
		return nil, fail("DEVICE_ALREADY_EXISTS", dev)
	}
	f["currently_attached"] = false
	return p.newVBD(f).ref, nil
}

func (p *Pool) createVIF(c *call) (any, error) {
	f, err := c.construct(0)
	if err != nil {
		return nil, err
	}
	vm, err := p.lookup("VM", f["VM"].(string))
	if err != nil {
		return nil, err
	}
	if _, err := p.lookup("network", f["network"].(string)); err != nil {
		return nil, err
	}
	for _, vif := range p.db.refs("VIF", vm.set("VIFs")) {
		if vif.str("device") == f["device"] {
			return nil, fail("DEVICE_ALREADY_EXISTS", f["device"].(string))
		}
	}
	if n, err := strconv.Atoi(f["device"].(string)); err != nil || n < 0 {
		return nil, fail("INVALID_DEVICE", f["device"].(string))
	}
	mac := f["MAC"].(string)
	if mac == "" {
		mac = newMAC()
		f["MAC_autogenerated"] = true
	} else if !validMAC(mac) {
		return nil, fail("MAC_INVALID", mac)
	}
	f["MAC"] = strings.ToLower(mac)
	f["currently_attached"] = false
	return p.newVIF(f).ref, nil
}

func validMAC(s string) bool {
	parts := strings.Split(s, ":")
	if len(parts) != 6 {
		return false
	}
	for i, b := range parts {
		n, err := strconv.ParseUint(b, 16, 8)
		if err != nil || len(b) != 2 || i == 0 && n&1 != 0 {
			return false
		}
	}
	return true
}
