package xapi

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
)

// SnapshotVM takes a crash-consistent snapshot of a VM's disks and returns the
// snapshot's VM record. The disks in ignore are excluded; hosts before 21.4.0
// cannot do this, and SnapshotVM then returns ErrIgnoreVDIs. If it returns both
// a reference and an error, the snapshot was taken although ctx had ended, and
// the caller must remove it.
func (c *Client) SnapshotVM(ctx context.Context, vm Ref, name string, ignore ...Ref) (Ref, error) {
	if len(ignore) > 0 {
		ref, err := c.asyncRef(ctx, "VM.snapshot", vm, name, ignore)
		if IsCode(err, ParameterCountMismatch) {
			return "", errors.Join(ErrIgnoreVDIs, err)
		}
		return ref, err
	}
	ref, err := c.asyncRef(ctx, "VM.snapshot", vm, name)
	if IsCode(err, ParameterCountMismatch) {
		return c.asyncRef(ctx, "VM.snapshot", vm, name, []Ref{})
	}
	return ref, err
}

// CreateVM creates a VM from a record; see VMFields for the fields that it
// takes from a stored record.
func (c *Client) CreateVM(ctx context.Context, fields map[string]any) (Ref, error) {
	return c.asyncRef(ctx, "VM.create", fields)
}

// CloneVM makes a fast copy of a halted VM, a snapshot or a template.
func (c *Client) CloneVM(ctx context.Context, vm Ref, name string) (Ref, error) {
	return c.asyncRef(ctx, "VM.clone", vm, name)
}

// DestroyVM removes the record of a VM or a VM snapshot. Its disks remain. It
// succeeds if the record no longer exists.
func (c *Client) DestroyVM(ctx context.Context, vm Ref) error {
	return gone(c.Retry(ctx, func(ctx context.Context) error {
		_, err := c.Async(ctx, "VM.destroy", vm)
		return err
	}))
}

// vmCreateFields are the fields that VM.create accepts (those that can be set
// at creation in xen-api ocaml/idl/datamodel_vm.ml), as far as all versions
// from 7.x on have them.
var vmCreateFields = []string{
	"name_label", "name_description", "user_version", "is_a_template", "affinity",
	"memory_target", "memory_static_max", "memory_dynamic_max", "memory_dynamic_min", "memory_static_min",
	"VCPUs_params", "VCPUs_max", "VCPUs_at_startup",
	"actions_after_softreboot", "actions_after_shutdown", "actions_after_reboot", "actions_after_crash",
	"PV_bootloader", "PV_kernel", "PV_ramdisk", "PV_args", "PV_bootloader_args", "PV_legacy_args",
	"HVM_boot_policy", "HVM_boot_params", "HVM_shadow_multiplier", "platform", "PCI_bus", "other_config",
	"recommendations", "xenstore_data", "ha_always_run", "ha_restart_priority", "tags", "blocked_operations",
	"start_delay", "shutdown_delay", "order", "version", "generation_id", "hardware_platform_version",
	"has_vendor_device", "domain_type", "NVRAM", "bios_strings",
}

// VMSettings returns the names of the fields that VM.create accepts.
func VMSettings() []string { return slices.Clone(vmCreateFields) }

// VMFields returns the fields of a VM's record that VM.create accepts. It omits
// references, because they are not valid on another pool or at a later time.
func VMFields(vm *VM) (map[string]any, error) {
	var all map[string]json.RawMessage
	if err := json.Unmarshal(vm.Raw, &all); err != nil {
		return nil, err
	}
	fields := make(map[string]any)
	for _, name := range vmCreateFields {
		if raw, ok := all[name]; ok {
			fields[name] = raw
		}
	}
	fields["affinity"] = NullRef
	fields["is_a_template"] = false
	return fields, nil
}

// CreateVBD connects a disk to a VM. It uses only the following fields of v:
// VM, VDI, UserDevice, Bootable, Mode, Type, Empty, Unpluggable, OtherConfig
// and the quality of service.
func (c *Client) CreateVBD(ctx context.Context, v VBD) (Ref, error) {
	return c.asyncRef(ctx, "VBD.create", map[string]any{
		"VM": v.VM, "VDI": orNull(v.VDI), "userdevice": v.UserDevice, "bootable": v.Bootable,
		"mode": v.Mode, "type": v.Type, "empty": v.Empty, "unpluggable": v.Unpluggable,
		"other_config":       notNil(v.OtherConfig),
		"qos_algorithm_type": v.QoSAlgorithmType, "qos_algorithm_params": notNil(v.QoSParams),
	})
}

// PlugVBD attaches a disk to a running VM.
func (c *Client) PlugVBD(ctx context.Context, vbd Ref) error {
	_, err := c.Async(ctx, "VBD.plug", vbd)
	return err
}

// CreateVTPM adds an empty virtual TPM to a halted VM. Hosts before xapi 22.26
// do not have this call: MessageMethodUnknown.
func (c *Client) CreateVTPM(ctx context.Context, vm Ref) (Ref, error) {
	return c.asyncRef(ctx, "VTPM.create", vm, false)
}

// SetVMField sets a field of a VM's record.
func (c *Client) SetVMField(ctx context.Context, vm Ref, field string, value any) error {
	return c.Call(ctx, "VM.set_"+field, nil, vm, value)
}

// UnplugVBD detaches a disk from a running VM.
func (c *Client) UnplugVBD(ctx context.Context, vbd Ref) error {
	err := c.Call(ctx, "VBD.unplug", nil, vbd)
	if IsCode(err, "DEVICE_ALREADY_DETACHED") {
		return nil
	}
	return gone(err)
}

// DestroyVBD removes the connection between a disk and a VM, not the disk.
func (c *Client) DestroyVBD(ctx context.Context, vbd Ref) error {
	return gone(c.Call(ctx, "VBD.destroy", nil, vbd))
}

// CreateVIF connects a VM to a network; with an empty MAC, the pool chooses
// one.
func (c *Client) CreateVIF(ctx context.Context, v VIF) (Ref, error) {
	mtu := v.MTU
	if mtu == 0 {
		mtu = 1500
	}
	fields := map[string]any{
		"device": v.Device, "network": v.Network, "VM": v.VM, "MAC": v.MAC, "MTU": mtu,
		"other_config":       notNil(v.OtherConfig),
		"qos_algorithm_type": v.QoSAlgorithmType, "qos_algorithm_params": notNil(v.QoSParams),
	}
	if v.LockingMode != "" {
		fields["locking_mode"] = v.LockingMode
		fields["ipv4_allowed"], fields["ipv6_allowed"] = noNils(v.IPv4Allowed), noNils(v.IPv6Allowed)
	}
	return c.asyncRef(ctx, "VIF.create", fields)
}

// SetOtherConfig sets one key of an object's other_config; class is "VM",
// "VDI", "task" and so on.
func (c *Client) SetOtherConfig(ctx context.Context, class string, ref Ref, key, value string) error {
	// Adding a key that exists is an error; removing one that does not exist is
	// not.
	if err := c.RemoveOtherConfig(ctx, class, ref, key); err != nil {
		return err
	}
	err := c.Call(ctx, class+".add_to_other_config", nil, ref, key, value)
	if IsCode(err, MapDuplicateKey) { // another client was faster
		if err = c.RemoveOtherConfig(ctx, class, ref, key); err == nil {
			err = c.Call(ctx, class+".add_to_other_config", nil, ref, key, value)
		}
	}
	return err
}

// RemoveOtherConfig removes one key of an object's other_config.
func (c *Client) RemoveOtherConfig(ctx context.Context, class string, ref Ref, key string) error {
	return c.Call(ctx, class+".remove_from_other_config", nil, ref, key)
}

func orNull(r Ref) Ref {
	if r == "" {
		return NullRef
	}
	return r
}

// Hosts refuse null where they expect a map or a set.
func notNil(m map[string]string) map[string]string {
	if m == nil {
		return map[string]string{}
	}
	return m
}

func noNils(s []string) []string {
	if s == nil {
		return []string{}
	}
	return s
}
