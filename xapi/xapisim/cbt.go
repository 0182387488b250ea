package xapisim

import (
	"encoding/base64"
	"fmt"
	"time"

	"xenkeep/xapi/xapisim/sr"
)

// enableCBT and disableCBT run after their checks.
func (p *Pool) enableCBT(c *call, vdi *object, v *sr.Volume) (any, error) {
	if !p.licensed {
		return nil, fail("LICENCE_RESTRICTION", "CBT")
	}
	if !v.CBTEnabled() && p.takeSM("cbt_enable") {
		return nil, fail("SR_BACKEND_FAILURE_457", "", "Failed to enable changed block tracking", "")
	}
	if err := v.EnableCBT(); err != nil {
		return nil, srError(err, vdi.str("SR"))
	}
	p.syncVDI(vdi)
	return void, nil
}

func (p *Pool) disableCBT(c *call, vdi *object, v *sr.Volume) (any, error) {
	if v.CBTEnabled() && p.takeSM("cbt_disable") {
		return nil, fail("SR_BACKEND_FAILURE_458", "", "Failed to disable changed block tracking", "")
	}
	v.DisableCBT()
	p.syncVDI(vdi)
	return void, nil
}

// lostCBT reports that the storage manager had to drop a disk's log (sm,
// VDI.py, _disable_cbt_on_error).
func (p *Pool) lostCBT(vdi *object, name, text string) {
	p.db.create("message", map[string]any{
		"name": name, "priority": int64(3), "cls": "VDI", "obj_uuid": vdi.uuid(), "timestamp": dateOf(p.now()),
		"body": fmt.Sprintf(text, vdi.uuid()),
	})
	p.syncVDI(vdi)
}

// CrashHost makes a host die and come back: its connections end, its VMs stop
// without closing their disks, and if it is the master, sessions and tasks are
// lost. The changed-block logs of its VMs' disks stay open, and the next start
// finds them so.
func (p *Pool) CrashHost(i int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	h := p.hosts[i]
	for _, vm := range p.db.all("VM") {
		if vm.str("resident_on") != h.ref || vm.bool("is_control_domain") {
			continue
		}
		for _, vbd := range p.db.refs("VBD", vm.set("VBDs")) {
			if !vbd.bool("currently_attached") {
				continue
			}
			p.db.put(vbd, "currently_attached", false)
			if vdi := p.db.find("VDI", vbd.str("VDI")); vdi != nil && vbd.str("mode") == "RW" {
				if v, err := p.volume(vdi); err == nil {
					v.Crash()
				}
			}
		}
		p.haltVM(vm)
	}
	if h.master {
		p.restart()
		return
	}
	p.cutHost(h)
}

// revertVDI is VDI.revert, which only newer storage supports.
func (p *Pool) revertVDI(c *call, snap *object) error {
	if !p.cfg.StorageRevert {
		return fail("UNIMPLEMENTED_IN_SM_BACKEND", snap.str("SR"))
	}
	if err := managed(snap); err != nil {
		return err
	}
	vdi := p.db.find("VDI", snap.str("snapshot_of"))
	if !snap.bool("is_a_snapshot") || vdi == nil {
		return fail("OPERATION_NOT_ALLOWED", "VDI is not a snapshot: "+snap.ref)
	}
	if snap.str("type") == "cbt_metadata" {
		return fail("VDI_INCOMPATIBLE_TYPE", snap.ref, cbtMetadata)
	}
	if attached, _ := p.attachments(vdi); attached {
		return fail("VDI_IN_USE", vdi.ref, "revert")
	}
	end, err := c.begin(snap, "snapshot")
	if err != nil {
		return err
	}
	defer end()
	from, err := p.volume(snap)
	if err != nil {
		return err
	}
	to, err := p.volume(vdi)
	if err != nil {
		return err
	}
	baseUUID := newUUID()
	base, err := to.Revert(from, newUUID(), baseUUID)
	if err != nil {
		return srError(err, snap.str("SR"))
	}
	if base != nil {
		p.baseCopy(snap, baseUUID)
	}
	p.syncVDI(vdi)
	p.syncVDI(snap)
	p.gcLater(snap.str("SR"))
	return nil
}

// dataDestroy removes the data of a disk snapshot and keeps its log.
func (p *Pool) dataDestroy(c *call) (any, error) {
	vdi, err := c.object(0)
	if err != nil {
		return nil, err
	}
	if vdi.str("type") == "cbt_metadata" {
		return void, nil
	}
	if err := p.checkVDI(vdi, "data_destroy"); err != nil {
		return nil, err
	}
	for deadline := time.Now().Add(p.scaled(4 * time.Second)); len(p.db.refs("VBD", vdi.set("VBDs"))) > 0; {
		if time.Now().After(deadline) {
			return nil, fail("VDI_IN_USE", vdi.ref, "data_destroy")
		}
		c.wait(p.scaled(time.Second/4) + time.Millisecond)
		if p.db.find("VDI", vdi.ref) == nil {
			return nil, fail("HANDLE_INVALID", "VDI", vdi.ref)
		}
	}
	v, err := p.volume(vdi)
	if err != nil {
		return nil, err
	}
	if err := v.DataDestroy(); err != nil {
		return nil, srError(err, vdi.str("SR"))
	}
	p.db.put(vdi, "type", "cbt_metadata")
	p.db.put(vdi, "other_config", with(vdi.mapv("other_config"), "content_id", "/No content: this is a cbt_metadata VDI/"))
	p.db.put(vdi, "physical_utilisation", v.PhysicalUtilisation())
	p.gcLater(vdi.str("SR"))
	return void, nil
}

// listChangedBlocks returns the bitmap of the blocks that were written between
// two disks.
func (p *Pool) listChangedBlocks(c *call) (any, error) {
	from, err := c.object(0)
	if err != nil {
		return nil, err
	}
	to, err := c.object(1)
	if err != nil {
		return nil, err
	}
	for _, vbd := range p.db.refs("VBD", to.set("VBDs")) {
		vm := p.db.find("VM", vbd.str("VM"))
		if vbd.bool("currently_attached") && (vm == nil || !vm.bool("is_a_snapshot")) {
			return nil, fail("VDI_IN_USE", to.ref, "list_changed_blocks")
		}
	}
	if err := p.checkVDI(to, "list_changed_blocks"); err != nil {
		return nil, err
	}
	vf, err := p.volume(from)
	if err != nil {
		return nil, err
	}
	vt, err := p.volume(to)
	if err != nil {
		return nil, err
	}
	bitmap, err := p.stores[to.str("SR")].sr.ChangedBlocks(vf, vt)
	if err != nil {
		return nil, srError(err, to.str("SR"))
	}
	return base64.StdEncoding.EncodeToString(bitmap), nil
}
