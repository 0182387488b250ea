package restore

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"xenkeep/job"
	"xenkeep/job/lease"
	"xenkeep/job/records"
	"xenkeep/xapi"
)

// nameFor returns the name of the restored VM: the requested one, otherwise the
// original one, with the date appended if a VM on this pool has that name. Users, and
// jobs that select by name, would confuse two VMs of the same name.
func (m *vmRestore) nameFor(vms []xapi.VM) string {
	if m.v.Name != "" {
		return m.v.Name
	}
	taken := func(name string) bool {
		return slices.ContainsFunc(vms, func(vm xapi.VM) bool { return vm.Real() && vm.NameLabel == name })
	}
	was := m.stored.VM.NameLabel
	if !taken(was) {
		return was
	}
	dated := fmt.Sprintf("%s (restored %s)", was, m.started.Format(time.DateOnly))
	name := dated
	for n := 2; taken(name); n++ {
		name = fmt.Sprintf("%s %d", dated, n)
	}
	m.warn("a VM called %q is on this pool: the restored one is called %q", was, name)
	return name
}

// passedThrough returns the keys of other_config that attach devices of the host to a
// VM.
func passedThrough() []string { return []string{"pci", "vgpu_pci"} }

// dropHostDevices removes devices of the host from a VM's other_config, unless the
// options keep them: otherwise the original VM and the restored one would both claim
// them.
func (m *vmRestore) dropHostDevices(other map[string]string) {
	for _, k := range passedThrough() {
		text, ok := other[k]
		if !ok || m.v.KeepPCI {
			continue
		}
		delete(other, k)
		if !slices.Contains(m.warned, k) {
			m.warned = append(m.warned, k)
			m.warn("the VM is restored without the host's device %s (other_config:%s), which only one VM can use: --pci keep restores it", text, k)
		}
	}
}

// warnLostMemory warns about a VM that was suspended, and whose memory is not in the
// snapshot.
func (m *vmRestore) warnLostMemory() {
	if m.stored.VM.PowerState != "Suspended" || m.role == lease.RoleDrill {
		return
	}
	for i := range m.s.Disks {
		if m.s.Disks[i].Device == records.MemoryDevice {
			return
		}
	}
	m.warn("the VM was suspended when it was backed up, and its memory is not in the snapshot: it comes back halted, as after a power failure")
}

// warnSameMACs warns about VMs on this pool that have a MAC address which the restored
// VM keeps.
func (m *vmRestore) warnSameMACs(ctx context.Context, vms []xapi.VM) error {
	if !m.v.KeepMAC {
		return nil
	}
	here, err := m.pool.VIFs(ctx)
	if err != nil {
		return err
	}
	for i := range vms {
		var same []string
		for _, f := range m.vifs() {
			if m.nets[f.Network] != nil && vms[i].Real() && slices.ContainsFunc(here, func(x xapi.VIF) bool {
				return x.VM == vms[i].Ref && strings.EqualFold(x.MAC, f.MAC)
			}) {
				same = append(same, f.MAC)
			}
		}
		if len(same) > 0 {
			m.warn("VM %s (%s) has the MAC address %s too: do not let both run in one network", vms[i].NameLabel, vms[i].UUID, strings.Join(same, ", "))
		}
	}
	return nil
}

// settings sets the fields that VM.create and an import leave out.
func (m *vmRestore) settings(ctx context.Context) error {
	if m.role == lease.RoleDrill {
		return nil
	}
	vm, err := m.pool.VM(ctx, m.vm)
	if err != nil {
		return err
	}
	if err := m.biosStrings(ctx, &vm); err != nil {
		return err
	}
	sr := m.stored.VM.SuspendSR
	if sr.IsNull() || vm.SuspendSR == sr {
		return nil
	}
	if _, err := m.pool.SR(ctx, sr); err != nil {
		if xapi.IsCode(err, xapi.HandleInvalid) {
			return nil // another pool, or it was deleted: the pool's default applies
		}
		return err
	}
	if err := m.pool.SetVMField(ctx, m.vm, "suspend_SR", sr); err != nil {
		if ctx.Err() != nil {
			return err
		}
		m.warn("the SR for the VM's memory (suspend_SR) is not set: %s", job.OneLine(err))
	}
	return nil
}

// biosStrings sets the original BIOS strings. The pool accepts them once, and only
// some keys, each with a value; its error names one refused key at a time.
func (m *vmRestore) biosStrings(ctx context.Context, vm *xapi.VM) error {
	was := m.stored.VM.BIOSStrings
	if len(was) == 0 || len(vm.BIOSStrings) > 0 {
		return nil
	}
	give := maps.Clone(was)
	maps.DeleteFunc(give, func(k, v string) bool { return v == "" })
	for len(give) > 0 {
		err := m.pool.SetVMField(ctx, m.vm, "bios_strings", give)
		if err == nil {
			break
		}
		if ctx.Err() != nil {
			return err
		}
		key := xapi.RefusedValue(err)
		if _, ok := give[key]; !ok {
			m.warn("the VM's BIOS strings are not set: %s", job.OneLine(err))
			return nil
		}
		delete(give, key)
	}
	now, err := m.pool.VM(ctx, m.vm)
	if err != nil {
		return err
	}
	var lost []string
	for _, k := range slices.Sorted(maps.Keys(was)) {
		if was[k] != "" && now.BIOSStrings[k] != was[k] {
			lost = append(lost, k)
		}
	}
	if len(lost) > 0 {
		m.warn("the pool does not take these BIOS strings, which are lost: %s; a restore with --uuid keep has them", strings.Join(lost, ", "))
	}
	return nil
}
