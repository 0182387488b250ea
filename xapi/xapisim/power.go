package xapisim

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"maps"
	"math/rand/v2"
)

func (p *Pool) startVM(vm *object, h *host, paused bool) error {
	var done []*object
	for _, vbd := range p.oldestFirst("VBD", vm.set("VBDs")) {
		if vbd.bool("empty") {
			continue
		}
		if err := p.attachVBD(vbd); err != nil {
			for _, d := range done {
				p.detachVBD(d)
			}
			return err
		}
		done = append(done, vbd)
	}
	for _, vif := range p.db.refs("VIF", vm.set("VIFs")) {
		p.db.put(vif, "currently_attached", true)
	}
	for _, vusb := range p.db.refs("VUSB", vm.set("VUSBs")) {
		p.db.put(vusb, "currently_attached", true)
	}
	if len(vm.mapv("bios_strings")) == 0 {
		p.db.put(vm, "bios_strings", maps.Clone(genericBIOS))
	}
	p.domid++
	p.db.put(vm, "domid", p.domid)
	p.db.put(vm, "resident_on", h.ref)
	p.db.put(vm, "platform", with(vm.mapv("platform"), "device-model", "qemu-upstream-compat"))
	if p.db.find("VM_guest_metrics", vm.str("guest_metrics")) == nil {
		p.db.put(vm, "guest_metrics", p.db.create("VM_guest_metrics", map[string]any{"last_updated": epoch}).ref)
	}
	state := "Running"
	if paused {
		state = "Paused"
	}
	p.db.put(vm, "power_state", state)
	if vm.str("generation_id") == "0:0" {
		p.db.put(vm, "generation_id", newGenerationID())
	}
	if vm.str("suspend_VDI") == nullRef {
		p.boot(vm)
	}
	return nil
}

// migrateVM moves a running VM to another host, which must be able to reach its
// storage. The disks are detached properly at the first host and attached at
// the other.
func (p *Pool) migrateVM(vm, to *object) error {
	var home *host
	for _, h := range p.hosts {
		if h.ref == to.ref {
			home = h
		}
	}
	if home == nil {
		return fail("HOST_OFFLINE", to.ref)
	}
	for _, vbd := range p.oldestFirst("VBD", vm.set("VBDs")) {
		if vdi := p.db.find("VDI", vbd.str("VDI")); vdi != nil && !p.sees(home, vdi.str("SR")) {
			return fail("VM_REQUIRES_SR", vm.ref, vdi.str("SR"))
		}
	}
	for _, vbd := range p.oldestFirst("VBD", vm.set("VBDs")) {
		if vbd.bool("currently_attached") {
			p.detachVBD(vbd)
			if err := p.attachVBD(vbd); err != nil {
				return err
			}
		}
	}
	p.domid++
	p.db.put(vm, "domid", p.domid)
	p.db.put(vm, "resident_on", to.ref)
	return nil
}

// suspendVM writes the memory image to a disk on the VM's suspend_SR or, if
// that does not exist, on the SR of the VM's first disk.
func (p *Pool) suspendVM(vm *object) error {
	srRef := vm.str("suspend_SR")
	for _, vbd := range p.oldestFirst("VBD", vm.set("VBDs")) {
		if vdi := p.db.find("VDI", vbd.str("VDI")); vdi != nil && p.db.find("SR", srRef) == nil {
			srRef = vdi.str("SR")
		}
	}
	if p.db.find("SR", srRef) == nil {
		return fail("VM_NO_SUSPEND_SR", vm.ref)
	}
	image, err := p.createVDI(map[string]any{
		"name_label": "Suspend image", "SR": srRef, "virtual_size": vm.int("memory_static_max"), "type": "suspend",
		"sm_config": map[string]any{}, "other_config": map[string]any{},
	})
	if err != nil {
		return err
	}
	if err := p.saveMemory(vm, image); err != nil {
		return err
	}
	metrics := vm.str("guest_metrics") // they outlive the domain
	p.db.put(vm, "guest_metrics", nullRef)
	p.haltVM(vm)
	p.db.put(vm, "guest_metrics", metrics)
	p.db.put(vm, "suspend_VDI", image.ref)
	p.db.put(vm, "power_state", "Suspended")
	return nil
}

// saveMemory writes an image that begins like those of xenopsd
// (ocaml/xenopsd/lib, suspend_image.ml) and is different for each domain.
func (p *Pool) saveMemory(vm, image *object) error {
	v, err := p.volume(image)
	if err != nil {
		return err
	}
	b := make([]byte, 1<<20)
	copy(b, "XenSavedDomv2-\n")
	seed := sha256.Sum256(fmt.Appendf(nil, "%s %d", vm.uuid(), vm.int("domid")))
	_, _ = rand.NewChaCha8(seed).Read(b[len(b)/2:])
	if err := v.ImportRaw(bytes.NewReader(b), int64(len(b))); err != nil {
		return err
	}
	p.syncVDI(image)
	return nil
}

func (p *Pool) resumeVM(vm *object, h *host, paused bool) error {
	if err := p.startVM(vm, h, paused); err != nil {
		return err
	}
	p.dropSuspendImage(vm)
	return nil
}

func (p *Pool) dropSuspendImage(vm *object) {
	if image := p.db.find("VDI", vm.str("suspend_VDI")); image != nil {
		p.destroyVDI(image)
	}
	p.db.put(vm, "suspend_VDI", nullRef)
}

func (p *Pool) haltVM(vm *object) {
	for _, vbd := range p.db.refs("VBD", vm.set("VBDs")) {
		if vbd.bool("currently_attached") {
			p.detachVBD(vbd)
		}
	}
	for _, vif := range p.db.refs("VIF", vm.set("VIFs")) {
		p.db.put(vif, "currently_attached", false)
	}
	for _, vusb := range p.db.refs("VUSB", vm.set("VUSBs")) {
		p.db.put(vusb, "currently_attached", false)
	}
	if gm := p.db.find("VM_guest_metrics", vm.str("guest_metrics")); gm != nil {
		p.db.destroy(gm)
		p.db.put(vm, "guest_metrics", nullRef)
	}
	p.db.put(vm, "power_state", "Halted")
	p.db.put(vm, "domid", int64(-1))
	p.db.put(vm, "resident_on", nullRef)
}
