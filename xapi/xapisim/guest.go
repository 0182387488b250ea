package xapisim

import (
	"cmp"
	"fmt"
	"path"
	"slices"
	"strconv"
	"time"
)

// GuestBehaviour is how a guest behaves after its disks have passed the
// comparison.
type GuestBehaviour string

const (
	GuestBoots   GuestBehaviour = "boots" // also the empty string
	GuestNever   GuestBehaviour = "never" // hangs forever
	GuestCrashes GuestBehaviour = "crash" // its VM halts after the delay
)

// GuestScript is a guest of the VMs whose name matches Name, a pattern of
// path.Match. It boots only if each disk equals its image: byte for byte, with
// zeros after the image's end. Then, after Delay, guest metrics with drivers
// appear, or the VM crashes.
type GuestScript struct {
	Name string
	// Disks are raw or VHD files in the order of the VM's disks; an empty name
	// matches any content. A VM with fewer disks than this list does not boot.
	Disks     []string
	Behaviour GuestBehaviour
	Delay     time.Duration // unscaled
}

func (g GuestScript) check() error {
	if _, err := path.Match(g.Name, ""); err != nil {
		return fmt.Errorf("guest %q: %w", g.Name, err)
	}
	switch g.Behaviour {
	case "", GuestBoots, GuestNever, GuestCrashes:
		return nil
	}
	return fmt.Errorf("guest %q: unknown behaviour %q", g.Name, g.Behaviour)
}

// Guest adds a script; if several match a VM, the newest applies. VMs that are
// already running are not affected.
func (p *Pool) Guest(g GuestScript) error {
	if err := g.check(); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.guests = append(p.guests, g)
	return nil
}

// boot starts the guest of a VM that has just been started. Pool.mu must be
// held.
func (p *Pool) boot(vm *object) {
	for _, g := range slices.Backward(p.guests) {
		if ok, _ := path.Match(g.Name, vm.str("name_label")); !ok {
			continue
		}
		if len(g.Disks) == 0 && g.Delay == 0 && (g.Behaviour == "" || g.Behaviour == GuestBoots) {
			p.guestMetrics(vm)
			return
		}
		domid := vm.int("domid")
		p.work.Add(1)
		go func() {
			defer p.work.Done()
			p.runGuest(vm.ref, domid, g)
		}()
		return
	}
}

// runGuest runs one guest from its start to its end.
func (p *Pool) runGuest(ref string, domid int64, g GuestScript) {
	if g.Behaviour == GuestNever || !p.disksAre(ref, g.Disks) {
		return
	}
	sleep(p.ctx, g.Delay)
	p.mu.Lock()
	defer p.mu.Unlock()
	vm := p.db.find("VM", ref)
	if p.ctx.Err() != nil || vm == nil || vm.int("domid") != domid {
		return // the domain has ended, or the VM was started again
	}
	if g.Behaviour == GuestCrashes {
		p.haltVM(vm)
		return
	}
	p.guestMetrics(vm)
}

// disksAre compares the disks of a VM with images.
func (p *Pool) disksAre(ref string, images []string) bool {
	if len(images) == 0 {
		return true
	}
	p.mu.Lock()
	vm := p.db.find("VM", ref)
	if vm == nil {
		p.mu.Unlock()
		return false
	}
	var disks []*object
	for _, vbd := range p.db.refs("VBD", vm.set("VBDs")) {
		if vbd.str("type") == "Disk" {
			disks = append(disks, vbd)
		}
	}
	p.mu.Unlock()
	slices.SortFunc(disks, func(a, b *object) int {
		x, _ := strconv.Atoi(a.str("userdevice"))
		y, _ := strconv.Atoi(b.str("userdevice"))
		return cmp.Compare(x, y)
	})
	if len(disks) < len(images) {
		return false
	}
	for i, image := range images {
		if image == "" {
			continue
		}
		p.mu.Lock()
		vdi := p.db.find("VDI", disks[i].str("VDI"))
		if vdi == nil {
			p.mu.Unlock()
			return false
		}
		v, err := p.volume(vdi)
		p.mu.Unlock()
		if err != nil {
			return false
		}
		if same, err := v.EqualImage(image); err != nil || !same {
			return false
		}
	}
	return true
}

// guestMetrics sets the metrics that a guest with drivers reports.
func (p *Pool) guestMetrics(vm *object) {
	gm := p.db.find("VM_guest_metrics", vm.str("guest_metrics"))
	if gm == nil {
		return
	}
	now := dateOf(p.now())
	for k, v := range map[string]any{
		"os_version":         map[string]any{"name": "Simulated Linux 1", "distro": "simulated", "major": "1", "minor": "0", "uname": "6.1.0"},
		"PV_drivers_version": map[string]any{"major": "8", "minor": "4", "micro": "0", "build": "1"}, "PV_drivers_up_to_date": true,
		"networks":            map[string]any{"0/ip": "192.0.2.10", "0/ipv4/0": "192.0.2.10"},
		"other":               map[string]any{"feature-suspend": "1", "feature-shutdown": "1", "platform-feature-multiprocessor-suspend": "1", "feature-quiesce": "1"},
		"PV_drivers_detected": true, "live": true, "can_use_hotplug_vbd": "yes", "can_use_hotplug_vif": "yes", "last_updated": now,
	} {
		p.db.put(gm, k, v)
	}
}
