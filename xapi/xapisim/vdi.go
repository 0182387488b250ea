package xapisim

import (
	"cmp"
	"errors"
	"strconv"
	"time"

	"xenkeep/xapi/xapisim/sr"
)

// storage is the SR of an SR record.
type storage struct {
	sr      *sr.SR
	qcow2   bool
	gcTimer *time.Timer
}

var vdiOperations = []string{"copy", "generate_config", "clone", "forget", "resize", "snapshot", "destroy"}

const cbtMetadata = "CBT metadata" // the server's name for such a disk in errors

// whileAttached lists the operations that are allowed on an attached disk.
var whileAttached = map[string]bool{
	"snapshot": true, "clone": true, "enable_cbt": true, "disable_cbt": true, "data_destroy": true, "mirror": true,
	"generate_config": true, "list_changed_blocks": true,
}

var needsFeature = map[string]string{
	"snapshot": "VDI_SNAPSHOT", "clone": "VDI_CLONE", "resize": "VDI_RESIZE", "destroy": "VDI_DELETE",
	"enable_cbt": "VDI_CONFIG_CBT", "disable_cbt": "VDI_CONFIG_CBT", "data_destroy": "VDI_CONFIG_CBT",
	"list_changed_blocks": "VDI_CONFIG_CBT", "set_on_boot": "VDI_RESET_ON_BOOT",
}

// checkVDI makes the server's checks in their order (xen-api
// ocaml/xapi/xapi_vdi.ml, check_operation_error).
func (p *Pool) checkVDI(vdi *object, op string) error {
	attached, readWrite := p.attachments(vdi)
	switch {
	case attached && op == "copy" && readWrite, attached && op != "copy" && !whileAttached[op]:
		return fail("VDI_IN_USE", vdi.ref, op)
	}
	srObj := p.db.find("SR", vdi.str("SR"))
	if srObj == nil {
		return fail("HANDLE_INVALID", "SR", vdi.str("SR"))
	}
	if f := needsFeature[op]; f != "" && !p.hasFeature(srObj, f) {
		return fail("SR_OPERATION_NOT_SUPPORTED", srObj.ref)
	}
	switch op {
	case "clone", "copy", "snapshot", "resize", "enable_cbt", "disable_cbt":
		if vdi.str("type") == "cbt_metadata" {
			return fail("VDI_INCOMPATIBLE_TYPE", vdi.ref, cbtMetadata)
		}
	}
	switch op {
	case "set_on_boot", "mirror":
		if vdi.bool("cbt_enabled") {
			return fail("VDI_CBT_ENABLED", vdi.ref)
		}
	case "enable_cbt", "disable_cbt":
		if vdi.bool("is_a_snapshot") {
			return fail("OPERATION_NOT_ALLOWED", "VDI is a snapshot: "+vdi.ref)
		}
		if t := vdi.str("type"); t != "user" && t != "system" {
			return fail("VDI_INCOMPATIBLE_TYPE", vdi.ref, t)
		}
		if vdi.str("on_boot") == "reset" {
			return fail("VDI_ON_BOOT_MODE_INCOMPATIBLE_WITH_OPERATION")
		}
	case "data_destroy":
		if !vdi.bool("is_a_snapshot") {
			return fail("OPERATION_NOT_ALLOWED", "VDI is not a snapshot: "+vdi.ref)
		}
		if !vdi.bool("cbt_enabled") {
			return fail("VDI_NO_CBT_METADATA", vdi.ref)
		}
	case "snapshot":
		if vdi.bool("sharable") {
			return fail("VDI_IS_SHARABLE", vdi.ref)
		}
		for _, v := range vdi.mapv("current_operations") {
			if v == "copy" {
				return fail("OPERATION_NOT_ALLOWED", "Snapshot operation not allowed during copy.")
			}
		}
	}
	if (op == "snapshot" || op == "copy") && vdi.str("on_boot") == "reset" {
		return fail("VDI_ON_BOOT_MODE_INCOMPATIBLE_WITH_OPERATION")
	}
	return nil
}

// attachments reports whether the disk is attached anywhere, and whether
// read-write.
func (p *Pool) attachments(vdi *object) (attached, readWrite bool) {
	for _, vbd := range p.db.refs("VBD", vdi.set("VBDs")) {
		if vbd.bool("currently_attached") {
			attached = true
			readWrite = readWrite || vbd.str("mode") == "RW"
		}
	}
	return attached, readWrite
}

// illegalTransition is the storage layer's error for a disk that is attached
// read-only and is to be attached read-write. The layer does not support this
// transition (xen-api ocaml/xapi-idl/storage/vdi_automaton.ml).
const illegalTransition = "Storage_error ([S(Illegal_transition);[[S(Activated);S(RO)];[S(Activated);S(RW)]]])"

// activate applies the storage layer's rule for an attachment: while a disk is
// attached read-only, it cannot also be attached read-write. Any other
// combination is allowed, so the layer does not exclude two writers.
func (p *Pool) activate(vdi *object, mode string) error {
	if attached, readWrite := p.attachments(vdi); attached && !readWrite && mode == "RW" {
		return fail("INTERNAL_ERROR", illegalTransition)
	}
	return nil
}

// usedByGuests reports whether virtual machines other than control domains have
// the disk attached, and whether one of them has it read-write. Only these
// count when the server checks whether a disk is in use before it attaches it
// to a VM.
func (p *Pool) usedByGuests(vdi *object) (attached, readWrite bool) {
	for _, vbd := range p.db.refs("VBD", vdi.set("VBDs")) {
		vm := p.db.find("VM", vbd.str("VM"))
		if !vbd.bool("currently_attached") || vm == nil || vm.bool("is_control_domain") {
			continue
		}
		attached = true
		readWrite = readWrite || vbd.str("mode") == "RW"
	}
	return attached, readWrite
}

// managed refuses base copies.
func managed(vdi *object) error {
	if !vdi.bool("managed") {
		return fail("VDI_NOT_MANAGED", vdi.ref)
	}
	return nil
}

// store returns the storage of a record; without a plugged PBD, it returns an
// error.
func (p *Pool) store(srRef string) (*storage, error) {
	s := p.db.find("SR", srRef)
	if s == nil {
		return nil, fail("HANDLE_INVALID", "SR", srRef)
	}
	for _, pbd := range p.db.refs("PBD", s.set("PBDs")) {
		if pbd.bool("currently_attached") {
			return p.stores[srRef], nil
		}
	}
	return nil, fail("SR_HAS_NO_PBDS", srRef)
}

// volume returns the data of a VDI.
func (p *Pool) volume(vdi *object) (*sr.Volume, error) {
	st, err := p.store(vdi.str("SR"))
	if err != nil {
		return nil, err
	}
	if v := st.sr.Volume(vdi.str("location")); v != nil {
		return v, nil
	}
	return nil, fail("VDI_MISSING", vdi.str("SR"), vdi.ref)
}

// srError converts a storage fault to the API error (xen-api
// ocaml/xapi/sm_exec.ml).
func srError(err error, srRef string) error {
	var f *sr.Error
	switch {
	case errors.As(err, &f):
		switch f.Fault {
		case sr.FaultUnimplemented:
			return fail("UNIMPLEMENTED_IN_SM_BACKEND", srRef)
		case 39:
			return fail("SR_NOT_EMPTY")
		case 24:
			return fail("VDI_IN_USE")
		case 16:
			return fail("SR_DEVICE_IN_USE")
		}
		return fail("SR_BACKEND_FAILURE_"+strconv.Itoa(f.Fault), "", f.Text, "")
	case errors.Is(err, sr.ErrNotVHD):
		return failure(err.Error())
	}
	return fail("VDI_IO_ERROR", "Device I/O errors")
}

// syncVDI updates a disk's record from the storage.
func (p *Pool) syncVDI(vdi *object) {
	st := p.stores[vdi.str("SR")]
	if st == nil {
		return
	}
	v := st.sr.Volume(vdi.str("location"))
	if v == nil {
		return
	}
	put := func(name string, val any) {
		if vdi.get(name) != val {
			p.db.put(vdi, name, val)
		}
	}
	if n := v.Size(); n > 0 {
		put("virtual_size", n)
	}
	put("physical_utilisation", v.PhysicalUtilisation())
	put("cbt_enabled", v.CBTEnabled())
	parent, sm := "", vdi.mapv("sm_config")
	if b := v.Parent(); b != nil {
		parent = b.UUID()
	}
	if old, _ := sm["vhd-parent"].(string); old != parent && vdi.str("type") != "cbt_metadata" {
		if parent == "" {
			p.db.put(vdi, "sm_config", withoutKey(sm, "vhd-parent"))
		} else {
			p.db.put(vdi, "sm_config", with(sm, "vhd-parent", parent))
		}
	}
}

func (p *Pool) syncSR(srObj *object) {
	st := p.stores[srObj.ref]
	if st == nil {
		return
	}
	stat := st.sr.Stat()
	for k, v := range map[string]int64{"physical_size": stat.PhysicalSize, "physical_utilisation": stat.Utilisation, "virtual_allocation": stat.VirtualAllocation} {
		if srObj.int(k) != v {
			p.db.put(srObj, k, v)
		}
	}
}

func smConfig(v any) map[string]string {
	out := map[string]string{}
	m, _ := v.(map[string]any)
	for k, e := range m {
		out[k], _ = e.(string)
	}
	return out
}

// createVDI creates a volume and its record.
func (p *Pool) createVDI(f map[string]any) (*object, error) {
	srRef := f["SR"].(string)
	st, err := p.store(srRef)
	if err != nil {
		return nil, err
	}
	uuid := newUUID()
	if _, err := st.sr.Create(uuid, f["virtual_size"].(int64), smConfig(f["sm_config"])); err != nil {
		return nil, srError(err, srRef)
	}
	f["uuid"], f["location"], f["managed"] = uuid, uuid, true
	if sm := f["sm_config"].(map[string]any); st.qcow2 && sm["type"] != "raw" {
		f["sm_config"] = with(sm, "image-format", "qcow2")
	}
	f["snapshot_time"] = epoch
	vdi := p.db.create("VDI", f)
	p.syncVDI(vdi)
	p.syncSR(p.db.find("SR", srRef))
	return vdi, nil
}

// snapshotVDI creates a disk snapshot, and the record of the base copy below
// it.
func (p *Pool) snapshotVDI(c *call, vdi *object) (*object, error) { return p.fork(c, vdi, true) }

// cloneVDI creates a writable clone.
func (p *Pool) cloneVDI(c *call, vdi *object) (*object, error) { return p.fork(c, vdi, false) }

func (p *Pool) fork(c *call, vdi *object, snapshot bool) (*object, error) {
	op := "clone"
	if snapshot {
		op = "snapshot"
	}
	if err := managed(vdi); err != nil {
		return nil, err
	}
	if err := p.checkVDI(vdi, op); err != nil {
		return nil, err
	}
	end, err := c.begin(vdi, op)
	if err != nil {
		return nil, err
	}
	defer end()
	v, err := p.volume(vdi)
	if err != nil {
		return nil, err
	}
	uuid, baseUUID, tracked := newUUID(), newUUID(), v.CBTEnabled()
	do := v.Clone
	if snapshot {
		do = v.Snapshot
	} else if f := p.takeFault("sm.vdi_clone"); f != nil {
		return nil, fail(cmp.Or(f.Code, "SR_BACKEND_FAILURE_81"), f.Params...)
	}
	_, base, err := do(uuid, baseUUID)
	if err != nil {
		return nil, srError(err, vdi.str("SR"))
	}
	if base != nil {
		p.baseCopy(vdi, baseUUID)
	}
	if snapshot && tracked && p.takeSM("cbt_snapshot") {
		v.DisableCBT()
	}
	if tracked && !v.CBTEnabled() {
		p.lostCBT(vdi, "VDI_CBT_SNAPSHOT_FAILED", "Creating CBT metadata log for disk %s failed.")
	}
	now := dateOf(p.now())
	f := map[string]any{
		"uuid": uuid, "location": uuid, "managed": true, "snapshot_time": now, "SR": vdi.str("SR"),
		"is_a_snapshot": snapshot, "sm_config": withoutKey(withoutKey(vdi.mapv("sm_config"), "vhd-parent"), "image-format"),
	}
	if snapshot {
		f["snapshot_of"] = vdi.ref
	}
	for _, k := range []string{"name_label", "name_description", "type", "sharable", "other_config", "xenstore_data", "on_boot", "allow_caching", "tags"} {
		f[k] = vdi.get(k)
	}
	out := p.db.create("VDI", f)
	p.syncVDI(out)
	p.syncVDI(vdi)
	p.syncSR(p.db.find("SR", vdi.str("SR")))
	return out, nil
}

// baseCopy creates the record of the file that a disk and its snapshot share.
func (p *Pool) baseCopy(vdi *object, uuid string) {
	p.syncVDI(p.db.create("VDI", map[string]any{
		"uuid": uuid, "name_label": "base copy", "SR": vdi.str("SR"), "type": vdi.str("type"),
		"managed": false, "location": uuid, "snapshot_time": dateOf(p.now()), "sm_config": vdi.mapv("sm_config"),
	}))
}

// destroyVDI removes the data and the record of a disk.
func (p *Pool) destroyVDI(vdi *object) error {
	srRef := vdi.str("SR")
	v, err := p.volume(vdi)
	if err != nil {
		return err
	}
	if err := v.Destroy(); err != nil {
		return srError(err, srRef)
	}
	for _, vbd := range p.db.refs("VBD", vdi.set("VBDs")) { // of VMs that are not running
		if vbd.str("type") == "CD" {
			p.db.put(vbd, "VDI", nullRef)
			p.db.put(vbd, "empty", true)
			continue
		}
		p.destroyWith("VBD_metrics", vbd)
	}
	p.db.destroy(vdi)
	p.syncSR(p.db.find("SR", srRef))
	p.gcLater(srRef)
	return nil
}

func (p *Pool) vdiCalls() map[string]handler {
	// on finds the disk, calls managed and checkVDI, and marks the operation.
	on := func(op string, work func(*call, *object, *sr.Volume) (any, error)) handler {
		return func(c *call) (any, error) {
			vdi, err := c.object(0)
			if err != nil {
				return nil, err
			}
			if err := managed(vdi); err != nil {
				return nil, err
			}
			if err := p.checkVDI(vdi, op); err != nil {
				return nil, err
			}
			v, err := p.volume(vdi)
			if err != nil {
				return nil, err
			}
			end, err := c.begin(vdi, op)
			if err != nil {
				return nil, err
			}
			defer end()
			if err := p.checkVDI(vdi, op); err != nil {
				return nil, err
			}
			return work(c, vdi, v)
		}
	}
	forkCall := func(do func(*call, *object) (*object, error)) handler {
		return func(c *call) (any, error) {
			vdi, err := c.object(0)
			if err != nil {
				return nil, err
			}
			o, err := do(c, vdi)
			if err != nil {
				return nil, err
			}
			return o.ref, nil
		}
	}
	return map[string]handler{
		"VDI.create":         p.vdiCreate,
		"VDI.snapshot":       forkCall(p.snapshotVDI),
		"VDI.clone":          forkCall(p.cloneVDI),
		"VDI.destroy":        on("destroy", p.vdiDestroy),
		"VDI.resize":         on("resize", p.vdiResize),
		"VDI.revert":         p.vdiRevert,
		"VDI.copy":           p.copyCall,
		"VDI.introduce":      p.introduceVDI,
		"VDI.forget":         p.vdiForget,
		"VDI.update":         p.vdiUpdate,
		"VDI.set_on_boot":    on("set_on_boot", p.vdiSetOnBoot),
		"VDI.set_name_label": p.setter("name_label"), "VDI.set_name_description": p.setter("name_description"),
		"VDI.set_read_only": p.setter("read_only"), "VDI.set_sharable": p.setter("sharable"), "VDI.set_allow_caching": p.setter("allow_caching"),
		"VDI.pool_migrate":        on("mirror", p.vdiPoolMigrate),
		"VDI.enable_cbt":          on("enable_cbt", p.enableCBT),
		"VDI.disable_cbt":         on("disable_cbt", p.disableCBT),
		"VDI.data_destroy":        p.dataDestroy,
		"VDI.list_changed_blocks": p.listChangedBlocks,
		"VDI.get_nbd_info":        p.nbdInfo,
	}
}

// vdiCreate implements VDI.create.
func (p *Pool) vdiCreate(c *call) (any, error) {
	f, err := c.construct(0)
	if err != nil {
		return nil, err
	}
	if f["type"] == "cbt_metadata" {
		return nil, fail("VDI_INCOMPATIBLE_TYPE", "", cbtMetadata)
	}
	vdi, err := p.createVDI(f)
	if err != nil {
		return nil, err
	}
	return vdi.ref, nil
}

// vdiDestroy implements VDI.destroy.
func (p *Pool) vdiDestroy(c *call, vdi *object, _ *sr.Volume) (any, error) {
	return void, p.destroyVDI(vdi)
}

// vdiResize implements VDI.resize.
func (p *Pool) vdiResize(c *call, vdi *object, v *sr.Volume) (any, error) {
	if err := v.Resize(c.args[1].(int64)); err != nil {
		return nil, srError(err, vdi.str("SR"))
	}
	if v.CBTEnabled() && p.takeSM("cbt_resize") {
		v.DisableCBT()
		p.lostCBT(vdi, "VDI_CBT_RESIZE_FAILED", "Resizing CBT metadata for disk %s failed.")
	}
	p.syncVDI(vdi)
	return void, nil
}

// vdiRevert implements VDI.revert.
func (p *Pool) vdiRevert(c *call) (any, error) {
	vdi, err := c.object(0)
	if err != nil {
		return nil, err
	}
	return void, p.revertVDI(c, vdi)
}

// vdiForget implements VDI.forget.
func (p *Pool) vdiForget(c *call) (any, error) {
	vdi, err := c.object(0)
	if err != nil {
		return nil, err
	}
	if err := p.checkVDI(vdi, "forget"); err != nil {
		return nil, err
	}
	p.db.destroy(vdi)
	return void, nil
}

// vdiUpdate implements VDI.update.
func (p *Pool) vdiUpdate(c *call) (any, error) {
	vdi, err := c.object(0)
	if err == nil {
		p.syncVDI(vdi)
	}
	return void, err
}

// vdiSetOnBoot implements VDI.set_on_boot.
func (p *Pool) vdiSetOnBoot(c *call, vdi *object, _ *sr.Volume) (any, error) {
	p.db.put(vdi, "on_boot", c.args[1])
	return void, nil
}

// vdiPoolMigrate implements VDI.pool_migrate.
func (p *Pool) vdiPoolMigrate(*call, *object, *sr.Volume) (any, error) {
	return nil, fail("NOT_IMPLEMENTED", "VDI.pool_migrate")
}

// introduceVDI creates a record for a volume that has none.
func (p *Pool) introduceVDI(c *call) (any, error) {
	f := map[string]any{}
	for i, prm := range c.method.params {
		f[prm.name] = c.args[i]
	}
	st, err := p.store(f["SR"].(string))
	if err != nil {
		return nil, err
	}
	location := f["location"].(string)
	v := st.sr.Volume(location)
	if v == nil {
		return nil, fail("SR_BACKEND_FAILURE_46", "", "The VDI is not available [opterr=VDI not found]", "")
	}
	for _, vdi := range p.db.all("VDI") {
		if vdi.str("SR") == f["SR"] && vdi.str("location") == location {
			return nil, fail("LOCATION_NOT_UNIQUE", f["SR"].(string), location)
		}
	}
	if f["uuid"] == "" {
		f["uuid"] = location
	}
	vdi := p.db.create("VDI", f)
	p.syncVDI(vdi)
	return vdi.ref, nil
}

// copyCall is VDI.copy.
func (p *Pool) copyCall(c *call) (any, error) {
	vdi, err := c.object(0)
	if err != nil {
		return nil, err
	}
	into := c.str(3)
	if into == nullRef || into == "" {
		if _, err := c.object(1); err != nil {
			return nil, err
		}
	}
	if err := managed(vdi); err != nil {
		return nil, err
	}
	if err := p.checkVDI(vdi, "copy"); err != nil {
		return nil, err
	}
	var dst *object
	if into != nullRef && into != "" {
		if dst, err = c.object(3); err != nil {
			return nil, err
		}
		switch {
		case dst.bool("read_only"):
			return nil, fail("VDI_READONLY", dst.ref)
		case dst.int("virtual_size") < vdi.int("virtual_size"):
			return nil, fail("VDI_TOO_SMALL", dst.ref, strconv.FormatInt(vdi.int("virtual_size"), 10))
		}
	}
	return p.copyVDI(c, vdi, c.str(1), dst)
}

// copyVDI copies all data of a disk to dst, or to a new disk on the SR.
func (p *Pool) copyVDI(c *call, vdi *object, srRef string, dst *object) (any, error) {
	end, err := c.begin(vdi, "copy")
	if err != nil {
		return nil, err
	}
	defer end()
	src, err := p.volume(vdi)
	if err != nil {
		return nil, err
	}
	fresh := dst == nil
	if fresh {
		f := map[string]any{"SR": srRef, "virtual_size": vdi.int("virtual_size"), "sm_config": map[string]any{}}
		for _, k := range []string{"name_label", "name_description", "type", "sharable", "read_only", "other_config", "xenstore_data", "tags"} {
			f[k] = vdi.get(k)
		}
		if dst, err = p.createVDI(f); err != nil {
			return nil, err
		}
	}
	to, err := p.volume(dst)
	if err != nil {
		return nil, err
	}
	err = c.unlocked(func() error { return to.CopyFrom(src) })
	if err != nil {
		if fresh && p.db.find("VDI", dst.ref) != nil {
			p.destroyVDI(dst)
		}
		return nil, srError(err, dst.str("SR"))
	}
	p.syncVDI(dst)
	return dst.ref, nil
}
