package xapisim

import "encoding/xml"

// provisionDisks creates the disks that a template's other_config defines, in
// the form <provision><disk device="0" size="8589934592" sr="UUID"
// bootable="true" type="system"/></provision>; they are on the pool's default
// SR if the entry names none (xen-api ocaml/xapi/xapi_templates.ml). After a
// failure it removes the disks created so far.
func (p *Pool) provisionDisks(vm *object) (err error) {
	text, ok := vm.mapv("other_config")["disks"].(string)
	if !ok {
		return nil
	}
	var want struct {
		Disks []struct {
			Device   string `xml:"device,attr"`
			Size     int64  `xml:"size,attr"`
			SR       string `xml:"sr,attr"`
			Bootable bool   `xml:"bootable,attr"`
			Type     string `xml:"type,attr"`
		} `xml:"disk"`
	}
	if err := xml.Unmarshal([]byte(text), &want); err != nil {
		return failure(err.Error())
	}
	var made []*object
	defer func() {
		if err != nil {
			for _, vdi := range made {
				p.destroyVDI(vdi)
			}
		}
	}()
	for _, d := range want.Disks {
		srRef := p.db.all("pool")[0].str("default_SR")
		if d.SR != "" {
			srRef = nullRef
			if s := p.db.byUUID("SR", d.SR); s != nil {
				srRef = s.ref
			}
		}
		if p.db.find("SR", srRef) == nil {
			return fail("DEFAULT_SR_NOT_FOUND", srRef)
		}
		kind := "user"
		if d.Type == "system" || d.Type == "ephemeral" {
			kind = d.Type
		}
		vdi, err := p.createVDI(map[string]any{
			"name_label": vm.str("name_label") + " " + d.Device, "name_description": "Created by template provisioner", "SR": srRef,
			"virtual_size": d.Size, "type": kind, "sm_config": map[string]any{}, "other_config": map[string]any{},
		})
		if err != nil {
			return err
		}
		made = append(made, vdi)
		p.newVBD(map[string]any{
			"VM": vm.ref, "VDI": vdi.ref, "userdevice": d.Device, "bootable": d.Bootable, "mode": "RW", "type": "Disk",
			"unpluggable": true, "empty": false, "other_config": map[string]any{"owner": ""},
		})
	}
	p.db.put(vm, "other_config", withoutKey(vm.mapv("other_config"), "disks"))
	return nil
}
