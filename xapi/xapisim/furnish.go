package xapisim

import (
	"fmt"
	"path/filepath"
	"strconv"
)

// furnish fills the database with the configured objects.
func (p *Pool) furnish() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	purpose, err := p.cfg.NBD.purpose()
	if err != nil {
		return err
	}
	p.ready.NBD = []ReadyNBD{}
	p.addDrivers()
	mgmt := p.db.create("network", map[string]any{
		"name_label": "Pool-wide network associated with eth0", "bridge": "xenbr0", "MTU": int64(1500), "managed": true,
	})
	p.db.create("network", map[string]any{
		"name_label": "Host internal management network", "bridge": "xenapi", "MTU": int64(1500), "managed": true,
		"other_config": map[string]any{"is_guest_installer_network": "true", "is_host_internal_management_network": "true"},
	})
	for _, h := range p.hosts {
		p.addHost(h, mgmt)
		if purpose != "" {
			p.ready.NBD = append(p.ready.NBD, ReadyNBD{h.address, h.nbdPort()})
		}
	}
	p.db.create("pool", map[string]any{
		"master": p.hosts[0].ref, "default_SR": nullRef, "ha_enabled": p.cfg.HA,
		"other_config": map[string]any{"memory-ratio-hvm": "0.25", "memory-ratio-pv": "0.25"},
	})
	if p.cfg.Unlicensed {
		p.db.put(p.db.all("pool")[0], "restrictions", map[string]any{"restrict_checkpoint": "true", "restrict_usb_passthrough": "true"})
	}
	p.db.create("secret", map[string]any{"value": newUUID()})
	p.db.create("user", map[string]any{"short_name": p.cfg.User, "fullname": "superuser"})
	if purpose != "" {
		p.db.put(mgmt, "purpose", strs(purpose))
	}
	for i, s := range p.cfg.SRs {
		if err := p.addConfiguredSR(i, s); err != nil {
			return err
		}
	}
	for _, v := range p.cfg.VMs {
		if err := p.addConfiguredVM(v, mgmt); err != nil {
			return fmt.Errorf("vm %s: %w", v.Name, err)
		}
	}
	p.ready.URL, p.ready.User, p.ready.Password, p.ready.Fingerprint = p.URL(), p.cfg.User, p.cfg.Password, p.Fingerprint()
	return nil
}

func (p *Pool) addConfiguredSR(i int, s SRConfig) error {
	if s.Size == 0 {
		s.Size = defaultSRSize
	}
	content := "user"
	if s.Type == "iso" {
		content = "iso"
	}
	if p.driverOf(s.Type) == nil {
		return fmt.Errorf("sr %s: unknown type %q", s.Name, s.Type)
	}
	o, err := p.addSR(map[string]any{"name_label": s.Name, "type": s.Type, "content_type": content, "shared": s.Shared}, s.Size, s.QCOW2)
	if err != nil {
		return err
	}
	config := map[string]any{"device": "/dev/sim" + strconv.Itoa(i)}
	if s.QCOW2 {
		config["preferred-image-formats"] = "qcow2"
	}
	for j, h := range p.hosts {
		if s.Shared || j == min(s.Host, len(p.hosts)-1) {
			p.addPBD(p.db.find("host", h.ref), o, config, true)
		}
	}
	if pool := p.db.all("pool")[0]; pool.str("default_SR") == nullRef && content == "user" {
		p.db.put(pool, "default_SR", o.ref)
	}
	for _, path := range s.Images {
		uuid := newUUID()
		vol, err := p.stores[o.ref].sr.AddImage(uuid, path, nil)
		if err != nil {
			return err
		}
		name := filepath.Base(path)
		p.db.create("VDI", map[string]any{
			"uuid": uuid, "location": name, "managed": true, "name_label": name, "SR": o.ref, "type": "user", "read_only": true,
			"virtual_size": vol.Size(), "sm_config": map[string]any{}, "snapshot_time": epoch,
		})
	}
	p.ready.SRs = append(p.ready.SRs, ReadySR{o.uuid(), s.Name, s.Type})
	return nil
}

func (p *Pool) addConfiguredVM(v VMConfig, net *object) error {
	var srObj *object
	for _, s := range p.db.all("SR") { // newest first, so the first one wins
		if v.SR == "" || s.str("name_label") == v.SR {
			srObj = s
		}
	}
	if srObj == nil {
		return fmt.Errorf("no SR named %q", v.SR)
	}
	mem := int64(2 << 30)
	vm := p.newVM(map[string]any{
		"name_label": v.Name, "user_version": int64(1), "memory_static_max": mem, "memory_dynamic_max": mem,
		"memory_dynamic_min": mem, "memory_static_min": mem / 2, "memory_target": mem, "VCPUs_max": int64(2),
		"VCPUs_at_startup": int64(2), "actions_after_shutdown": "destroy", "actions_after_reboot": "restart",
		"actions_after_crash": "restart", "HVM_boot_policy": "BIOS order", "HVM_boot_params": map[string]any{"order": "cdn"},
		"platform":    map[string]any{"nx": "true", "acpi": "1", "apic": "true", "pae": "true", "viridian": "true", "timeoffset": "0"},
		"domain_type": "hvm", "hardware_platform_version": int64(2), "generation_id": newGenerationID(),
	})
	info := ReadyVM{UUID: vm.uuid(), Name: v.Name, Disks: []ReadyDisk{}}
	for i, path := range v.Disks {
		uuid, sm := newUUID(), map[string]any{}
		if v.RawDisks {
			sm["type"] = "raw"
		} else if p.stores[srObj.ref].qcow2 {
			sm["image-format"] = "qcow2"
		}
		vol, err := p.stores[srObj.ref].sr.AddImage(uuid, path, smConfig(sm))
		if err != nil {
			return err
		}
		vdi := p.db.create("VDI", map[string]any{
			"uuid": uuid, "location": uuid, "managed": true, "name_label": fmt.Sprintf("%s disk %d", v.Name, i),
			"name_description": filepath.Base(path), "SR": srObj.ref, "type": "user", "virtual_size": vol.Size(), "sm_config": sm,
			"snapshot_time": epoch,
		})
		if p.cfg.CBT {
			if err := vol.EnableCBT(); err != nil {
				return err
			}
		}
		p.syncVDI(vdi)
		pos := i
		if i >= 3 { // position 3 belongs to the CD drive
			pos++
		}
		dev := strconv.Itoa(pos)
		p.newVBD(map[string]any{
			"VM": vm.ref, "VDI": vdi.ref, "userdevice": dev, "device": deviceName(dev), "bootable": i == 0, "mode": "RW",
			"type": "Disk", "unpluggable": true, "empty": false, "other_config": map[string]any{"owner": ""},
		})
		info.Disks = append(info.Disks, ReadyDisk{uuid, deviceName(dev), vol.Size()})
	}
	p.newVBD(map[string]any{
		"VM": vm.ref, "VDI": nullRef, "userdevice": "3", "mode": "RO", "type": "CD", "unpluggable": true, "empty": true,
	})
	p.newVIF(map[string]any{
		"VM": vm.ref, "network": net.ref, "device": "0", "MAC": newMAC(), "MAC_autogenerated": true, "MTU": int64(1500),
	})
	p.syncSR(srObj)
	if !v.Halted {
		if err := p.startVM(vm, p.hostForVM(srObj.ref), false); err != nil {
			return err
		}
	}
	p.ready.VMs = append(p.ready.VMs, info)
	return nil
}

// hostForVM prefers the master.
func (p *Pool) hostForVM(srRef string) *host {
	for _, h := range p.hosts {
		if p.sees(h, srRef) {
			return h
		}
	}
	return p.hosts[0]
}
