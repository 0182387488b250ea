package xapisim

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"strings"
)

// archived is one object of an archive's ova.xml.
type archived struct {
	cls, id string
	fields  map[string]any
}

// parseOVA reads an ova.xml.
func parseOVA(text []byte) (version map[string]any, objects []archived, err error) {
	d := xml.NewDecoder(bytes.NewReader(text))
	if err := expect(d, "value"); err != nil {
		return nil, nil, fmt.Errorf("ova.xml: %w", err)
	}
	v, err := xmlValue(d, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("ova.xml: %w", err)
	}
	top, _ := v.(map[string]any)
	version, ok := top["version"].(map[string]any)
	list, ok2 := top["objects"].([]any)
	if !ok || !ok2 {
		return nil, nil, fmt.Errorf("ova.xml: no version or no objects")
	}
	for _, e := range list {
		m, _ := e.(map[string]any)
		a := archived{}
		a.cls, _ = m["class"].(string)
		a.id, _ = m["id"].(string)
		a.fields, ok = m["snapshot"].(map[string]any)
		if a.cls == "" || a.id == "" || !ok {
			return nil, nil, fmt.Errorf("ova.xml: an object without class, id or snapshot")
		}
		objects = append(objects, a)
	}
	return version, objects, nil
}

// get returns a field in the type that its class defines; for a missing field
// or one of another type, it returns the class's default.
func (a archived) get(c *class, name string) any {
	f := c.byName[name]
	if f == nil {
		return nil
	}
	if raw, ok := a.fields[name]; ok {
		if v, err := f.typ.fromWire(raw); err == nil {
			return v
		}
	}
	return f.def
}

// importer creates the objects of an archive (xen-api ocaml/xapi/import.ml).
type importer struct {
	p       *Pool
	task    string
	sr      *object           // where the disks are created; nil: existing disks are looked up
	vdiMap  map[string]string // UUIDs in the archive and in the pool
	restore bool              // preserve the identity of VMs
	force   bool              // continue after errors if possible, and keep the objects created so far
	dry     bool              // only check whether the import would succeed

	objects []archived
	table   map[string]string // references by their names in the archive
	vms     []*object         // the VMs created so far
	cleanup []func()
}

func (im *importer) class(name string) *class { return im.p.db.sch.classes[name] }

func (im *importer) str(a archived, name string) string {
	switch v := a.get(im.class(a.cls), name).(type) {
	case string:
		return v
	case date:
		return string(v)
	}
	return ""
}

func (im *importer) bool(a archived, name string) bool {
	b, _ := a.get(im.class(a.cls), name).(bool)
	return b
}

func (im *importer) strMap(a archived, name string) map[string]any {
	m, _ := a.get(im.class(a.cls), name).(map[string]any)
	return m
}

func (im *importer) find(id string) (archived, bool) {
	for _, a := range im.objects {
		if a.id == id {
			return a, true
		}
	}
	return archived{}, false
}

// undo removes the created objects, unless they are to be kept.
func (im *importer) undo() {
	if im.force {
		return
	}
	for i := len(im.cleanup) - 1; i >= 0; i-- {
		im.cleanup[i]()
	}
}

// open reads ova.xml and refuses archives of newer servers.
func (im *importer) open(text []byte) error {
	version, objects, err := parseOVA(text)
	if err != nil {
		return err
	}
	software, _ := im.p.cfg.Version.software()
	var ours, theirs [2]int64
	fmt.Sscanf(software["xapi"].(string), "%d.%d", &ours[0], &ours[1])
	for i, k := range []string{"xapi_major", "xapi_minor"} {
		fmt.Sscan(fmt.Sprint(version[k]), &theirs[i])
	}
	if theirs[0] > ours[0] || theirs[0] == ours[0] && theirs[1] > ours[1] {
		return fail("IMPORT_INCOMPATIBLE_VERSION")
	}
	im.objects, im.table = objects, map[string]string{}
	return nil
}

// run creates the objects, class by class. Pool.mu must be held. After an
// error, the caller must undo the objects created before it.
func (im *importer) run() error {
	if im.restore {
		if err := im.checkSeeds(); err != nil {
			return err
		}
	}
	for _, step := range []struct {
		cls  string
		work func(archived) error
	}{
		{"SR", im.storage}, {"VDI", im.disk}, {"VM", im.vm}, {"network", im.network}, {"VBD", im.vbd}, {"VIF", im.vif}, {"VTPM", im.vtpm},
	} {
		for _, a := range im.objects {
			if a.cls != step.cls {
				continue
			}
			if err := step.work(a); err != nil {
				return err
			}
		}
	}
	if !im.dry {
		im.links()
	}
	return nil
}

// owner returns the UUID of the VM that a record belongs to: its own, or that
// of the VM from which a snapshot was taken.
func (im *importer) owner(a archived) string {
	if !im.bool(a, "is_a_snapshot") {
		return im.str(a, "uuid")
	}
	of := im.str(a, "snapshot_of")
	if o, ok := im.find(of); ok {
		return im.str(o, "uuid")
	}
	if vm := im.p.db.find("VM", of); vm != nil {
		return vm.uuid()
	}
	return ""
}

// checkSeeds refuses VMs that would share a MAC seed with an unrelated one.
func (im *importer) checkSeeds() error {
	p := im.p
	for _, a := range im.objects {
		if a.cls != "VM" {
			continue
		}
		seed, ok := im.strMap(a, "other_config")["mac_seed"]
		if !ok {
			continue
		}
		for _, vm := range p.db.all("VM") {
			if vm.mapv("other_config")["mac_seed"] != seed {
				continue
			}
			owner := vm.uuid()
			if vm.bool("is_a_snapshot") {
				if owner = p.origin[vm.ref]; owner == "" {
					if of := p.db.find("VM", vm.str("snapshot_of")); of != nil {
						owner = of.uuid()
					}
				}
			}
			if o := im.owner(a); o == "" || o != owner {
				return fail("DUPLICATE_MAC_SEED", seed.(string))
			}
		}
	}
	return nil
}

func (im *importer) storage(a archived) error {
	if im.sr != nil {
		if im.str(a, "content_type") != "iso" {
			im.table[a.id] = im.sr.ref
		}
		return nil
	}
	if o := im.p.db.byUUID("SR", im.str(a, "uuid")); o != nil {
		im.table[a.id] = o.ref
	}
	return nil
}

// disk creates a disk, or finds it if only records are imported.
func (im *importer) disk(a archived) error {
	p := im.p
	srObj, ok := im.find(im.str(a, "SR"))
	if !ok {
		return fail("IMPORT_ERROR_FAILED_TO_FIND_OBJECT", im.str(a, "SR"))
	}
	location := im.str(a, "location")
	if im.str(srObj, "content_type") == "iso" {
		for _, vdi := range p.db.all("VDI") {
			if s := p.db.find("SR", vdi.str("SR")); vdi.str("location") == location && s != nil && s.str("content_type") == "iso" {
				im.table[a.id] = vdi.ref
				return nil
			}
		}
		return nil // the drive will be empty
	}
	if im.sr == nil {
		return im.findDisk(a, location)
	}
	if im.dry {
		im.table[a.id] = "OpaqueRef:" + newUUID()
		return nil
	}
	f := map[string]any{"SR": im.sr.ref}
	for _, k := range []string{"name_label", "name_description", "virtual_size", "type", "sharable", "read_only", "other_config", "xenstore_data", "tags"} {
		f[k] = a.get(im.class("VDI"), k)
	}
	f["sm_config"] = with(withoutKey(im.strMap(a, "sm_config"), "vhd-parent"), "import_task", im.task)
	vdi, err := p.createVDI(f)
	if err != nil {
		return err
	}
	im.table[a.id] = vdi.ref
	im.cleanup = append(im.cleanup, func() {
		if p.db.find("VDI", vdi.ref) != nil {
			p.destroyVDI(vdi)
		}
	})
	return nil
}

// findDisk finds a disk by the caller's map, or by SR and location.
func (im *importer) findDisk(a archived, location string) error {
	p := im.p
	if to, ok := im.vdiMap[im.str(a, "uuid")]; ok {
		if vdi := p.db.byUUID("VDI", to); vdi != nil {
			im.table[a.id] = vdi.ref
			return nil
		}
	}
	srRef, known := im.table[im.str(a, "SR")]
	if known {
		for _, vdi := range p.db.all("VDI") {
			if vdi.str("SR") == srRef && vdi.str("location") == location {
				im.table[a.id] = vdi.ref
				return nil
			}
		}
	}
	switch {
	case im.force:
		return nil
	case known:
		return fail("VDI_LOCATION_MISSING", srRef, location)
	}
	return fail("VDI_CONTENT_ID_MISSING")
}

// notImported are fields of a VM that an import ignores.
var notImported = map[string]bool{
	"uuid": true, "allowed_operations": true, "current_operations": true, "power_state": true, "suspend_VDI": true, "resident_on": true,
	"scheduled_to_be_resident_on": true, "affinity": true, "consoles": true, "VIFs": true, "VBDs": true, "VUSBs": true, "crash_dumps": true,
	"VTPMs": true, "VGPUs": true, "attached_PCIs": true, "domid": true, "metrics": true, "guest_metrics": true, "is_control_domain": true,
	"snapshot_of": true, "snapshots": true, "parent": true, "children": true, "protection_policy": true, "snapshot_schedule": true,
	"appliance": true, "suspend_SR": true, "groups": true, "blobs": true, "is_snapshot_from_vmpp": true,
}

func (im *importer) vm(a archived) error {
	p, cls := im.p, im.class("VM")
	uuid := im.str(a, "uuid")
	if im.restore {
		if old := p.db.byUUID("VM", uuid); old != nil {
			version, _ := a.get(cls, "version").(int64)
			switch {
			case old.str("power_state") != "Halted" && im.force:
				return nil
			case old.str("power_state") != "Halted":
				return fail("VM_BAD_POWER_STATE", old.ref, "halted", strings.ToLower(old.str("power_state")))
			case old.int("version") >= version && !im.force:
				return fail("VM_TO_IMPORT_IS_NOT_NEWER_VERSION", old.ref, fmt.Sprint(old.int("version")), fmt.Sprint(version))
			case !im.dry:
				p.destroyVM(old)
			}
		}
	}
	if im.dry {
		im.table[a.id] = "OpaqueRef:" + newUUID()
		return nil
	}
	f := map[string]any{}
	for _, fd := range cls.fields {
		if !notImported[fd.name] && !fd.hidden {
			f[fd.name] = a.get(cls, fd.name)
		}
	}
	oc := im.strMap(a, "other_config")
	f["version"] = int64(0)
	if im.restore {
		n, _ := a.get(cls, "version").(int64)
		f["version"] = n + 1
	} else {
		oc = with(oc, "mac_seed", newUUID())
	}
	f["other_config"] = with(oc, "import_task", im.task)
	if !im.bool(a, "is_a_template") {
		f["generation_id"] = newGenerationID()
	}
	vm := p.newVM(f)
	if im.restore {
		p.db.put(vm, "uuid", uuid)
	}
	if image := p.db.find("VDI", im.table[im.str(a, "suspend_VDI")]); image != nil && im.str(a, "power_state") == "Suspended" {
		p.db.put(vm, "suspend_VDI", image.ref)
		p.db.put(vm, "power_state", "Suspended")
	} else if im.str(a, "power_state") == "Suspended" && !im.force {
		im.cleanup = append(im.cleanup, func() { p.destroyVM(vm) })
		return fail("IMPORT_ERROR_FAILED_TO_FIND_OBJECT", im.str(a, "suspend_VDI"))
	}
	if !im.force {
		p.db.put(vm, "current_operations", map[string]any{im.task: "import"})
	}
	im.table[a.id] = vm.ref
	im.vms = append(im.vms, vm)
	im.cleanup = append(im.cleanup, func() {
		if p.db.find("VM", vm.ref) != nil {
			p.destroyVM(vm)
		}
	})
	return nil
}

// network uses an existing network with the same name or bridge, or creates
// one.
func (im *importer) network(a archived) error {
	p := im.p
	for _, k := range []string{"name_label", "bridge"} {
		for _, n := range p.db.all("network") {
			if n.str(k) == im.str(a, k) {
				im.table[a.id] = n.ref
				return nil
			}
		}
	}
	if im.dry {
		im.table[a.id] = "OpaqueRef:" + newUUID()
		return nil
	}
	f := map[string]any{}
	for _, k := range []string{"name_label", "name_description", "MTU", "other_config", "bridge", "managed", "tags"} {
		f[k] = a.get(im.class("network"), k)
	}
	n := p.db.create("network", f)
	im.table[a.id] = n.ref
	im.cleanup = append(im.cleanup, func() { p.db.destroy(n) })
	return nil
}

// device finds the VM of a device.
func (im *importer) device(a archived) (string, error) {
	if vm, ok := im.table[im.str(a, "VM")]; ok {
		return vm, nil
	}
	return "", fail("IMPORT_ERROR_FAILED_TO_FIND_OBJECT", im.str(a, "VM"))
}

func (im *importer) vbd(a archived) error {
	vm, err := im.device(a)
	if err != nil {
		if im.force {
			return nil
		}
		return err
	}
	vdi, found := im.table[im.str(a, "VDI")]
	cd := im.str(a, "type") == "CD"
	if im.bool(a, "currently_attached") && !found && !cd {
		return fail("IMPORT_ERROR_ATTACHED_DISKS_NOT_FOUND")
	}
	if im.dry || !found && !cd {
		return nil // there are no empty disks
	}
	f := map[string]any{}
	for _, k := range []string{"userdevice", "device", "bootable", "mode", "type", "unpluggable", "empty", "other_config", "qos_algorithm_type", "qos_algorithm_params"} {
		f[k] = a.get(im.class("VBD"), k)
	}
	f["VM"], f["VDI"] = vm, nullRef
	if found {
		f["VDI"] = vdi
	} else {
		f["empty"] = true
	}
	im.p.newVBD(f)
	return nil
}

func (im *importer) vif(a archived) error {
	vm, err := im.device(a)
	if err != nil {
		if im.force {
			return nil
		}
		return err
	}
	network, ok := im.table[im.str(a, "network")]
	if !ok {
		return fail("IMPORT_ERROR_FAILED_TO_FIND_OBJECT", im.str(a, "network"))
	}
	if im.dry {
		return nil
	}
	f := map[string]any{}
	for _, k := range []string{"device", "MAC", "MAC_autogenerated", "MTU", "other_config", "qos_algorithm_type", "qos_algorithm_params", "locking_mode", "ipv4_allowed", "ipv6_allowed"} {
		f[k] = a.get(im.class("VIF"), k)
	}
	f["VM"], f["network"] = vm, network
	if !im.restore {
		f["MAC"], f["MAC_autogenerated"] = newMAC(), true
	}
	im.p.newVIF(f)
	return nil
}

// vtpm creates a virtual TPM if this server's version supports it.
func (im *importer) vtpm(a archived) error {
	vm, err := im.device(a)
	if err != nil && im.force || im.class("VTPM").hidden {
		return nil
	}
	if err != nil || im.dry {
		return err
	}
	im.p.db.create("VTPM", map[string]any{"VM": vm, "is_unique": im.bool(a, "is_unique")})
	return nil
}

// links connects imported snapshots to their VMs and parents.
func (im *importer) links() {
	for _, a := range im.objects {
		vm := im.p.db.find("VM", im.table[a.id])
		if a.cls != "VM" || vm == nil {
			continue
		}
		of := im.str(a, "snapshot_of")
		if ref, ok := im.table[of]; ok {
			of = ref
		}
		if vm.bool("is_a_snapshot") {
			im.p.db.put(vm, "snapshot_of", of)
			im.p.origin[vm.ref] = im.owner(a)
		}
		if parent, ok := im.table[im.str(a, "parent")]; ok {
			im.p.db.put(vm, "parent", parent)
		}
	}
}

// complete finishes the import and returns the VMs: those that are not
// snapshots, if there are any.
func (im *importer) complete() []any {
	var vms, snapshots []any
	for _, vm := range im.vms {
		im.p.db.put(vm, "current_operations", withoutKey(vm.mapv("current_operations"), im.task))
		if vm.bool("is_a_snapshot") {
			snapshots = append(snapshots, vm.ref)
		} else {
			vms = append(vms, vm.ref)
		}
	}
	if len(vms) == 0 {
		return append([]any{}, snapshots...)
	}
	return vms
}
