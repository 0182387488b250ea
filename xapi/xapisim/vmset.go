package xapisim

import (
	"fmt"
	"maps"
	"strconv"
	"strings"
)

// genericBIOS are the BIOS strings of a VM without strings of its own; they are
// set when it first starts (xen-api ocaml/xapi-consts/constants.ml).
var genericBIOS = map[string]any{
	"bios-vendor": "Xen", "bios-version": "", "system-manufacturer": "Xen", "system-product-name": "HVM domU", "system-version": "",
	"system-serial-number": "", "baseboard-manufacturer": "", "baseboard-product-name": "", "baseboard-version": "",
	"baseboard-serial-number": "", "baseboard-asset-tag": "", "baseboard-location-in-chassis": "", "enclosure-asset-tag": "",
	"hp-rombios": "", "oem-1": "Xen", "oem-2": "MS_VM_CERT/SHA1/bdbeb6e0a816d43fa6d3fe8aaef04c2bad9d3e3d",
}

// maxBIOSString is the longest BIOS string in bytes.
const maxBIOSString = 512

// setBIOSStrings sets the BIOS strings of a VM that has none, once; the server
// itself sets oem-1, oem-2 and hp-rombios.
func (p *Pool) setBIOSStrings(c *call, vm *object) error {
	if len(vm.mapv("bios_strings")) > 0 {
		return fail("VM_BIOS_STRINGS_ALREADY_SET")
	}
	out := maps.Clone(genericBIOS)
	given := c.args[1].(map[string]any)
	for _, k := range sortedKeys(given) {
		v, _ := given[k].(string)
		_, known := genericBIOS[k]
		switch {
		case !known || k == "oem-1" || k == "oem-2" || k == "hp-rombios":
			return fail("INVALID_VALUE", k, "Unknown key")
		case v == "":
			return fail("INVALID_VALUE", k, "Value provided is empty")
		case len(v) > maxBIOSString:
			return fail("INVALID_VALUE", k, fmt.Sprintf("%s has length more than %d characters", v, maxBIOSString))
		case strings.ContainsFunc(v, func(r rune) bool { return r < 32 || r >= 127 }):
			return fail("INVALID_VALUE", k, v+" has non-printable ASCII characters")
		}
		out[k] = v
	}
	p.db.put(vm, "bios_strings", out)
	return nil
}

// mustBe returns an error for a VM in another power state.
func mustBe(vm *object, state string) error {
	if vm.str("power_state") != state {
		return fail("VM_BAD_POWER_STATE", vm.ref, strings.ToLower(state), strings.ToLower(vm.str("power_state")))
	}
	return nil
}

// setMemory changes limits of a VM's memory, if they stay in order.
func (p *Pool) setMemory(vm *object, change map[string]int64) error {
	limit := func(name string) int64 {
		if v, ok := change[name]; ok {
			return v
		}
		return vm.int("memory_" + name)
	}
	if _, ok := change["static_max"]; ok || len(change) > 2 {
		if err := mustBe(vm, "Halted"); err != nil {
			return err
		}
	}
	if limit("static_min") > limit("dynamic_min") || limit("dynamic_min") > limit("dynamic_max") || limit("dynamic_max") > limit("static_max") {
		return fail("MEMORY_CONSTRAINT_VIOLATION", "Memory limits must satisfy: static_min <= dynamic_min <= dynamic_max <= static_max")
	}
	for k, v := range change {
		p.db.put(vm, "memory_"+k, v)
	}
	p.db.put(vm, "memory_target", limit("dynamic_min"))
	return nil
}

// onVM returns the handler of a call that applies change to the VM that its
// first parameter names.
func (p *Pool) onVM(change func(c *call, vm *object) error) handler {
	return func(c *call) (any, error) {
		vm, err := c.object(0)
		if err != nil {
			return nil, err
		}
		return void, change(c, vm)
	}
}

// vmSetters are the VM.set_* calls and others that change a VM's record with
// code of their own (xen-api ocaml/xapi/xapi_vm.ml).
func (p *Pool) vmSetters() map[string]handler {
	plain := func(field string) handler {
		return p.onVM(func(c *call, vm *object) error { p.db.put(vm, field, c.args[1]); return nil })
	}
	atLeastZero := func(field string) handler {
		return p.onVM(func(c *call, vm *object) error {
			if n := c.args[1].(int64); n < 0 {
				return fail("INVALID_VALUE", field+" must be non-negative", strconv.FormatInt(n, 10))
			}
			p.db.put(vm, field, c.args[1])
			return nil
		})
	}
	return map[string]handler{
		"VM.set_actions_after_crash": plain("actions_after_crash"),
		"VM.set_ha_always_run":       plain("ha_always_run"), "VM.set_ha_restart_priority": plain("ha_restart_priority"),
		"VM.set_order": atLeastZero("order"), "VM.set_start_delay": atLeastZero("start_delay"), "VM.set_shutdown_delay": atLeastZero("shutdown_delay"),
		"VM.set_bios_strings":          p.onVM(p.setBIOSStrings),
		"VM.copy_bios_strings":         p.onVM(p.copyBIOSStrings),
		"VM.set_has_vendor_device":     p.onVM(p.vmSetHasVendorDevice),
		"VM.set_domain_type":           p.onVM(p.vmSetDomainType),
		"VM.set_HVM_boot_policy":       p.onVM(p.vmSetHVMBootPolicy),
		"VM.set_appliance":             p.onVM(p.vmSetAppliance),
		"VM.set_suspend_VDI":           p.onVM(p.vmSetSuspendVDI),
		"VM.set_protection_policy":     func(*call) (any, error) { return nil, fail("MESSAGE_REMOVED") },
		"VM.update_allowed_operations": p.onVM(p.vmUpdateAllowedOperations),
		"VM.assert_operation_valid":    p.onVM(func(c *call, vm *object) error { return p.checkVM(vm, c.str(1)) }),
		"VM.get_boot_record":           p.vmGetBootRecord,
		"VM.power_state_reset":         p.onVM(p.vmPowerStateReset),
		"VM.shutdown":                  p.vmCall("clean_shutdown", func(_ *call, vm *object) (any, error) { p.haltVM(vm); return void, nil }),
		"VM.compute_memory_overhead":   p.vmComputeMemoryOverhead,
		"VM.get_allowed_VBD_devices":   p.freeDevices("VBD", "VBDs", "userdevice"),
		"VM.get_allowed_VIF_devices":   p.freeDevices("VIF", "VIFs", "device"),
	}
}

// vmSetHasVendorDevice implements VM.set_has_vendor_device.
func (p *Pool) vmSetHasVendorDevice(c *call, vm *object) error {
	if err := mustBe(vm, "Halted"); err != nil {
		return err
	}
	p.db.put(vm, "has_vendor_device", c.args[1])
	return nil
}

// vmSetDomainType implements VM.set_domain_type.
func (p *Pool) vmSetDomainType(c *call, vm *object) error {
	kind := c.str(1)
	if kind == "unspecified" {
		return fail("INVALID_VALUE", "domain_type", kind)
	}
	p.db.put(vm, "domain_type", kind)
	p.db.put(vm, "HVM_boot_policy", map[bool]string{true: "BIOS order"}[kind == "hvm"])
	return nil
}

// vmSetHVMBootPolicy implements VM.set_HVM_boot_policy.
func (p *Pool) vmSetHVMBootPolicy(c *call, vm *object) error {
	p.db.put(vm, "HVM_boot_policy", c.args[1])
	p.db.put(vm, "domain_type", map[bool]string{true: "pv", false: "hvm"}[c.str(1) == ""])
	return nil
}

// vmSetAppliance implements VM.set_appliance.
func (p *Pool) vmSetAppliance(c *call, vm *object) error {
	if vm.bool("is_control_domain") || vm.bool("is_a_template") || vm.bool("is_a_snapshot") {
		return fail("OPERATION_NOT_ALLOWED", "Control domains, templates and snapshots cannot be assigned to appliances.")
	}
	p.db.put(vm, "appliance", c.args[1])
	return nil
}

// vmSetSuspendVDI implements VM.set_suspend_VDI.
func (p *Pool) vmSetSuspendVDI(c *call, vm *object) error {
	if err := mustBe(vm, "Suspended"); err != nil {
		return err
	}
	vdi, err := c.object(1)
	if err != nil {
		return err
	}
	if vdi.str("type") == "cbt_metadata" {
		return fail("VDI_INCOMPATIBLE_TYPE", vm.ref, cbtMetadata)
	}
	p.db.put(vm, "suspend_VDI", vdi.ref)
	return nil
}

// vmUpdateAllowedOperations implements VM.update_allowed_operations.
func (p *Pool) vmUpdateAllowedOperations(*call, *object) error {
	return nil // they are computed whenever a record is read
}

// vmGetBootRecord implements VM.get_boot_record.
func (p *Pool) vmGetBootRecord(c *call) (any, error) {
	vm, err := c.object(0)
	if err != nil {
		return nil, err
	}
	return p.view(vm), nil
}

// vmPowerStateReset implements VM.power_state_reset.
func (p *Pool) vmPowerStateReset(_ *call, vm *object) error {
	p.haltVM(vm)
	p.dropSuspendImage(vm)
	return nil
}

// vmComputeMemoryOverhead implements VM.compute_memory_overhead.
func (p *Pool) vmComputeMemoryOverhead(c *call) (any, error) {
	vm, err := c.object(0)
	if err != nil {
		return nil, err
	}
	return vm.int("memory_overhead"), nil
}

// vmSizes are the calls that change a VM's memory, processors and NVRAM.
func (p *Pool) vmSizes() map[string]handler {
	memory := func(limits ...string) handler {
		return p.onVM(func(c *call, vm *object) error {
			change := map[string]int64{}
			for i, l := range limits {
				change[l] = c.args[i+1].(int64)
			}
			return p.setMemory(vm, change)
		})
	}
	processors := func(state, field string) handler {
		return p.onVM(func(c *call, vm *object) error {
			n, startup, limit := c.args[1].(int64), vm.int("VCPUs_at_startup"), vm.int("VCPUs_max")
			if state != "" {
				if err := mustBe(vm, state); err != nil {
					return err
				}
			}
			if field == "VCPUs_max" {
				limit = n
			} else {
				startup = n
			}
			if startup < 1 || startup > limit {
				return fail("INVALID_VALUE", "VCPU values must satisfy: 0 < VCPUs_at_startup ≤ VCPUs_max", strconv.FormatInt(n, 10))
			}
			p.db.put(vm, field, n)
			return nil
		})
	}
	shadow := func(state string) handler {
		return p.onVM(func(c *call, vm *object) error {
			if err := mustBe(vm, state); err != nil {
				return err
			}
			if f := c.args[1].(float64); f < 1 {
				return fail("INVALID_VALUE", "HVM_shadow_multiplier", fmt.Sprint(f))
			}
			p.db.put(vm, "HVM_shadow_multiplier", c.args[1])
			return nil
		})
	}
	return map[string]handler{
		"VM.set_memory_limits":         memory("static_min", "static_max", "dynamic_min", "dynamic_max"),
		"VM.set_memory_static_range":   memory("static_min", "static_max"),
		"VM.set_memory_static_min":     memory("static_min"),
		"VM.set_memory_static_max":     memory("static_max"),
		"VM.set_memory_dynamic_range":  memory("dynamic_min", "dynamic_max"),
		"VM.set_memory_dynamic_min":    memory("dynamic_min"),
		"VM.set_memory_dynamic_max":    memory("dynamic_max"),
		"VM.set_VCPUs_max":             processors("Halted", "VCPUs_max"),
		"VM.set_VCPUs_at_startup":      processors("", "VCPUs_at_startup"),
		"VM.set_VCPUs_number_live":     processors("Running", "VCPUs_at_startup"),
		"VM.set_HVM_shadow_multiplier": shadow("Halted"), "VM.set_shadow_multiplier_live": shadow("Running"),
		"VM.set_memory":             p.onVM(p.vmSetMemory),
		"VM.set_memory_target_live": p.onVM(p.vmSetMemoryTargetLive),
		"VM.set_NVRAM":              p.vmCall("changing_NVRAM", p.vmSetNVRAM),
		"VM.add_to_NVRAM":           p.vmCall("changing_NVRAM", p.vmAddToNVRAM),
		"VM.remove_from_NVRAM":      p.vmCall("changing_NVRAM", p.vmRemoveFromNVRAM),
	}
}

// vmSetMemory implements VM.set_memory.
func (p *Pool) vmSetMemory(c *call, vm *object) error {
	n := c.args[1].(int64)
	return p.setMemory(vm, map[string]int64{"static_max": n, "dynamic_min": n, "dynamic_max": n})
}

// vmSetMemoryTargetLive implements VM.set_memory_target_live.
func (p *Pool) vmSetMemoryTargetLive(c *call, vm *object) error {
	if err := mustBe(vm, "Running"); err != nil {
		return err
	}
	p.db.put(vm, "memory_target", c.args[1])
	return nil
}

// vmSetNVRAM implements VM.set_NVRAM.
func (p *Pool) vmSetNVRAM(c *call, vm *object) (any, error) {
	p.db.put(vm, "NVRAM", c.args[1])
	return void, nil
}

// vmAddToNVRAM implements VM.add_to_NVRAM.
func (p *Pool) vmAddToNVRAM(c *call, vm *object) (any, error) {
	if _, ok := vm.mapv("NVRAM")[c.str(1)]; ok {
		return nil, fail("MAP_DUPLICATE_KEY", "VM", "NVRAM", vm.ref, c.str(1))
	}
	p.db.put(vm, "NVRAM", with(vm.mapv("NVRAM"), c.str(1), c.args[2]))
	return void, nil
}

// vmRemoveFromNVRAM implements VM.remove_from_NVRAM.
func (p *Pool) vmRemoveFromNVRAM(c *call, vm *object) (any, error) {
	p.db.put(vm, "NVRAM", withoutKey(vm.mapv("NVRAM"), c.str(1)))
	return void, nil
}

// copyBIOSStrings copies a host's strings to a VM that has none.
func (p *Pool) copyBIOSStrings(c *call, vm *object) error {
	host, err := c.object(1)
	if err != nil {
		return err
	}
	if len(vm.mapv("bios_strings")) > 0 {
		return fail("VM_BIOS_STRINGS_ALREADY_SET")
	}
	p.db.put(vm, "bios_strings", host.mapv("bios_strings"))
	p.db.put(vm, "affinity", host.ref)
	return nil
}

// freeDevices lists the positions at which a VM has no device of a class.
func (p *Pool) freeDevices(cls, relation, field string) handler {
	return func(c *call) (any, error) {
		vm, err := c.object(0)
		if err != nil {
			return nil, err
		}
		taken := map[string]bool{}
		for _, o := range p.db.refs(cls, vm.set(relation)) {
			taken[o.str(field)] = true
		}
		most := 255
		if cls == "VIF" {
			most = 7
		}
		out := []any{}
		for n := range most {
			if dev := strconv.Itoa(n); !taken[dev] {
				out = append(out, dev)
			}
		}
		return out, nil
	}
}
