package xapisim

import (
	"fmt"
	"strings"
)

// before performs the steps that happened between the recorded calls: the
// recording created objects by calls that it does not contain. It returns an
// event token that replaces the recorded one.
func (r *replay) before(name, form string) (tok string) {
	p := r.p
	once := form == "json2" || form == "raw"
	sim := func(id string) string { return r.toSim["OpaqueRef:"+id] }
	vm1 := sim("7826c5ec-1b11-b3ab-575c-2e839bbb868d")
	now := func() string {
		p.mu.Lock()
		defer p.mu.Unlock()
		return token(p.db.gen)
	}
	diskOf := func(vm string) string {
		p.mu.Lock()
		defer p.mu.Unlock()
		for _, vbd := range p.db.refs("VBD", p.db.find("VM", vm).set("VBDs")) {
			if vbd.str("type") == "Disk" {
				return vbd.str("VDI")
			}
		}
		r.t.Fatalf("%s: VM %s has no disk", name, vm)
		return ""
	}
	if strings.HasPrefix(name, "232-") {
		return now()
	}
	switch {
	case strings.HasPrefix(name, "233-"):
		tok = now()
		r.do("VM.set_name_description", vm1, "n"+form)
		return tok
	case strings.HasPrefix(name, "234-"):
		// The recorded task was created before the token and destroyed, while
		// pending, after it.
		task := r.do("task.create", "short", "")
		tok = now()
		r.do("task.destroy", task)
		return tok
	case strings.HasPrefix(name, "326-"):
		s := r.do("VMSS.create", map[string]any{"name_label": "x", "type": "snapshot", "frequency": "hourly", "schedule": map[string]any{}})
		tok = now()
		r.do("VMSS.destroy", s)
		return tok
	case strings.HasPrefix(name, "327-"):
		tok = now()
		s := r.do("VMSS.create", map[string]any{"name_label": "x", "type": "snapshot", "frequency": "hourly", "schedule": map[string]any{}})
		r.do("VMSS.destroy", s)
		return tok
	case !once:
		return ""
	}
	switch name[:3] {
	case "060":
		tpl := r.do("VM.clone", vm1, "tpl1").(string)
		r.do("VM.set_is_a_template", tpl, true)
		r.bind("d44eae76-ed86-ae46-750a-6d2e216c4cb0", tpl)
	case "077", "079": // the tasks end by themselves
		waitTasks(r)
	case "090":
		p.mu.Lock()
		for _, vdi := range p.db.all("VDI") {
			if !vdi.bool("managed") {
				r.bind("b18d76c7-3f8e-c1c4-4c13-3f9542582b02", vdi.ref)
			}
		}
		p.mu.Unlock()
		r.bind("da305430-9751-f096-398d-68eab869181e", diskOf(sim("5ec8e42e-2771-c2f2-5cc3-7a5fc71c498a")))
	case "096":
		r.bind("0ab0b136-9910-ebf6-c009-c50275d1f15d", diskOf(r.do("VM.snapshot", vm1, "cbt1").(string)))
		r.bind("e48797c5-14e8-9e60-30c1-61f30b27c304", diskOf(r.do("VM.snapshot", vm1, "cbt2").(string)))
	case "132":
		r.do("VM.set_name_label", vm1, "vm1")
	case "267":
		p.mu.Lock()
		r.bind("3b27e4d1-75d3-2159-6270-8a442d56f8bf", p.db.all("PBD")[0].ref)
		p.mu.Unlock()
	case "306":
		r.open("cdbfd2c3-6820-48c8-6121-f4564a2ae0b3")
	case "308":
		r.open("ef47d8ce-ae0e-e715-a94b-592bc9093bda")
		r.secondVM(diskOf)
	case "333":
		r.bind("1c7ddf4f-0c91-7ffa-3bc8-15012ace7383", r.do("task.create", "t", "").(string))
	}
	return ""
}

func waitTasks(r *replay) {
	for range 200 {
		r.p.mu.Lock()
		pending, changed := false, r.p.db.changed
		for _, t := range r.p.db.all("task") {
			pending = pending || t.str("status") == "pending" && strings.HasPrefix(t.str("name_label"), "Async")
		}
		r.p.mu.Unlock()
		if !pending {
			return
		}
		<-changed
	}
	r.t.Fatal("tasks do not end")
}

// secondVM creates the VM of the recording's second part: one disk with CBT,
// and the VM snapshots a and b.
func (r *replay) secondVM(diskOf func(string) string) {
	vm := r.do("VM.create", machineRecord("vm2")).(string)
	vdi := r.do("VDI.create", map[string]any{
		"name_label": "dd", "name_description": "n", "SR": r.toSim["OpaqueRef:814e7dbe-e6ab-b353-0bfc-185b3b95832d"],
		"virtual_size": int64(20 << 20), "type": "user", "sharable": false, "read_only": false, "other_config": map[string]any{"o": "1"},
	}).(string)
	r.do("VBD.create", map[string]any{
		"VM": vm, "VDI": vdi, "userdevice": "0", "bootable": true, "mode": "RW", "type": "Disk", "empty": false,
		"unpluggable": true, "other_config": map[string]any{}, "qos_algorithm_type": "", "qos_algorithm_params": map[string]any{},
	})
	r.do("VDI.enable_cbt", vdi)
	a := r.do("VM.snapshot", vm, "a").(string)
	b := r.do("VM.snapshot", vm, "b").(string)
	r.bind("cdefbd8f-7da2-39c2-d773-965913193a68", vm)
	r.bind("c7920be8-e865-64d8-e45b-b6ac7194d864", vdi)
	r.bind("edf3f4e6-3335-5b92-a1e2-2e444f41c74d", a)
	r.bind("35ecad52-eae9-13e7-823c-c5e6fd268832", b)
	r.bind("4a27d47d-4778-c8e5-c0f0-c63334247cef", diskOf(a))
	r.bind("8fa1491c-1620-2a2f-2ff4-1b2374453013", diskOf(b))
	r.p.mu.Lock()
	defer r.p.mu.Unlock()
	r.bind("fa2096db-2466-ce91-5e37-388960a7ca72", fmt.Sprint(r.p.db.find("VM", a).set("VBDs")[0]))
}

// machineRecord returns a record that VM.create accepts.
func machineRecord(name string) map[string]any {
	rec := map[string]any{"name_label": name, "name_description": ""}
	for _, k := range []string{"PV_bootloader", "PV_kernel", "PV_ramdisk", "PV_args", "PV_bootloader_args", "PV_legacy_args", "PCI_bus", "recommendations"} {
		rec[k] = ""
	}
	for k, v := range map[string]any{
		"user_version": int64(1), "is_a_template": false, "affinity": nullRef, "memory_target": int64(0), "VCPUs_params": map[string]any{},
		"VCPUs_max": int64(1), "VCPUs_at_startup": int64(1), "actions_after_shutdown": "destroy", "actions_after_reboot": "restart",
		"actions_after_crash": "restart", "HVM_boot_policy": "BIOS order", "HVM_boot_params": map[string]any{"order": "c"},
		"platform": map[string]any{}, "other_config": map[string]any{}, "domain_type": "hvm",
	} {
		rec[k] = v
	}
	for _, k := range []string{"memory_static_max", "memory_dynamic_max", "memory_dynamic_min", "memory_static_min"} {
		rec[k] = int64(1 << 30)
	}
	return rec
}
