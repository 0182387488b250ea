package xapisim

import (
	"encoding/base64"
	"time"

	"xenkeep/xapi/xapisim/sr"
)

// enableCBT and disableCBT run with their checks done.
func (p *Pool) enableCBT(c *call, vdi *object, v *sr.Volume) (any, error) {
	if !p.licensed {
		return nil, fail("LICENCE_RESTRICTION", "CBT")
	}
	if err := v.EnableCBT(); err != nil {
		return nil, srError(err, vdi.str("SR"))
	}
	p.syncVDI(vdi)
	return void, nil
}

func (p *Pool) disableCBT(c *call, vdi *object, v *sr.Volume) (any, error) {
	v.DisableCBT()
	p.syncVDI(vdi)
	return void, nil
}

// dataDestroy removes a disk snapshot's data and keeps its log.
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

// listChangedBlocks gives the bitmap of what was written between two disks.
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
