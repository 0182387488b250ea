package xapisim

import "strings"

// vmRule is the set of conditions of an operation on a VM (xen-api
// ocaml/xapi/xapi_vm_lifecycle.ml).
type vmRule struct {
	states             []string // allowed power states; empty: any
	template, snapshot bool     // allowed on templates, on snapshots
}

var (
	anyState = []string(nil)
	halted   = []string{"Halted"}
	running  = []string{"Running"}
	live     = []string{"Paused", "Suspended", "Running"}
	atRest   = []string{"Halted", "Suspended"}
)

var vmRules = map[string]vmRule{
	"snapshot":               {states: anyState},
	"checkpoint":             {states: live},
	"snapshot_with_quiesce":  {states: running},
	"clone":                  {states: halted, template: true, snapshot: true},
	"copy":                   {states: halted, template: true, snapshot: true},
	"revert":                 {states: anyState, snapshot: true},
	"provision":              {states: halted, template: true},
	"destroy":                {states: atRest, template: true, snapshot: true},
	"export":                 {states: atRest, template: true, snapshot: true},
	"metadata_export":        {states: anyState, template: true, snapshot: true},
	"start":                  {states: halted},
	"start_on":               {states: halted},
	"pause":                  {states: running},
	"unpause":                {states: []string{"Paused"}},
	"suspend":                {states: running},
	"resume":                 {states: []string{"Suspended"}},
	"resume_on":              {states: []string{"Suspended"}},
	"clean_shutdown":         {states: running},
	"clean_reboot":           {states: running},
	"hard_reboot":            {states: []string{"Paused", "Running"}},
	"hard_shutdown":          {states: live, snapshot: true},
	"make_into_template":     {states: halted},
	"pool_migrate":           {states: running},
	"migrate_send":           {states: halted, template: true},
	"changing_dynamic_range": {states: []string{"Halted", "Running"}, template: true},
	"changing_static_range":  {states: halted, template: true},
	"changing_shadow_memory": {states: halted, template: true},
	"changing_NVRAM":         {states: halted, template: true},
	"create_vtpm":            {states: halted},
}

// checkVM makes the checks in the server's order and returns the error of the
// first that fails. It omits the check for concurrent operations, which begin
// makes.
func (p *Pool) checkVM(vm *object, op string) error {
	if v, ok := vm.mapv("blocked_operations")[op]; ok {
		return fail("OPERATION_BLOCKED", vm.ref, v.(string))
	}
	rule := vmRules[op]
	state, snapshot := vm.str("power_state"), vm.bool("is_a_snapshot")
	states := rule.states
	if snapshot && (op == "clone" || op == "copy") {
		states = atRest
	}
	if states != nil && !contains(states, state) {
		return fail("VM_BAD_POWER_STATE", vm.ref, strings.ToLower(strings.Join(states, ", ")), strings.ToLower(state))
	}
	switch {
	case vm.bool("is_a_template") && !snapshot && !rule.template:
		if op == "revert" {
			return fail("REVERT_ONLY_ALLOWED_ON_SNAPSHOT")
		}
		return fail("VM_IS_TEMPLATE", vm.ref, op)
	case snapshot && !rule.snapshot:
		return fail("VM_IS_SNAPSHOT", vm.ref, op)
	case op == "revert" && !snapshot:
		return fail("REVERT_ONLY_ALLOWED_ON_SNAPSHOT")
	case op == "provision" && !vm.bool("is_a_template"):
		return fail("PROVISION_ONLY_ALLOWED_ON_TEMPLATE")
	case vm.bool("is_control_domain") && op != "metadata_export" && !strings.HasPrefix(op, "changing_"):
		return fail("OPERATION_NOT_ALLOWED", "This operation is not allowed on dom0")
	}
	if op == "checkpoint" && state == "Running" {
		if gm := p.db.find("VM_guest_metrics", vm.str("guest_metrics")); gm == nil || !gm.bool("PV_drivers_detected") {
			return fail("VM_LACKS_FEATURE", vm.ref)
		}
	}
	if op == "snapshot" || op == "checkpoint" || op == "snapshot_with_quiesce" {
		for _, vbd := range p.db.refs("VBD", vm.set("VBDs")) {
			if vdi := p.db.find("VDI", vbd.str("VDI")); vdi != nil && vdi.str("on_boot") == "reset" {
				return fail("VDI_ON_BOOT_MODE_INCOMPATIBLE_WITH_OPERATION")
			}
		}
		if len(vm.set("VUSBs")) > 0 {
			return fail("VM_HAS_VUSBS", vm.ref)
		}
		if op == "checkpoint" && len(vm.set("attached_PCIs")) > 0 {
			return fail("VM_HAS_PCI_ATTACHED", vm.ref)
		}
		if op == "checkpoint" && len(vm.set("VGPUs")) > 0 {
			return fail("VM_HAS_VGPU", vm.ref)
		}
	}
	if (op == "suspend" || op == "migrate_send" || op == "pool_migrate") && len(vm.set("VUSBs")) > 0 {
		return fail("VM_HAS_VUSBS", vm.ref)
	}
	return nil
}

// beginVM makes the checks, waits for other operations, checks again, and marks
// the operation.
func (c *call) beginVM(vm *object, op string) (end func(), err error) {
	if err := c.p.checkVM(vm, op); err != nil {
		return nil, err
	}
	end, err = c.begin(vm, op)
	if err != nil {
		return nil, err
	}
	if err := c.p.checkVM(vm, op); err != nil {
		end()
		return nil, err
	}
	return end, nil
}

// view returns an object's record with its computed allowed operations.
func (p *Pool) view(o *object) *record {
	r := o.record()
	allow := func(ops []any) { r.vals[o.class.byName["allowed_operations"].index] = ops }
	switch o.class.name {
	case "VM":
		ops := []any{}
		for _, op := range sortedKeys(vmRules) {
			if op == "snapshot_with_quiesce" && p.cfg.Version != Version80 {
				continue
			}
			if op == "destroy" && o.bool("is_default_template") {
				continue
			}
			if other, _ := p.conflict(o, op); other == "" && p.checkVM(o, op) == nil {
				ops = append(ops, op)
			}
		}
		allow(ops)
	case "VDI":
		ops := []any{}
		for _, op := range vdiOperations {
			if p.checkVDI(o, op) == nil {
				ops = append(ops, op)
			}
		}
		allow(ops)
	case "VBD":
		ops := []any{"attach"}
		if o.bool("currently_attached") {
			ops = []any{"unplug_force", "unplug"}
		}
		if o.str("type") == "CD" {
			if o.bool("empty") {
				ops = append(ops, "insert")
			} else {
				ops = append(ops, "eject")
			}
		}
		allow(ops)
	case "VIF":
		allow(strs("attach"))
		if o.bool("currently_attached") {
			allow(strs("unplug"))
		}
	case "VUSB":
		ops := []any{"attach"}
		if vm := p.db.find("VM", o.str("VM")); vm != nil && vm.str("power_state") == "Running" {
			if o.bool("currently_attached") {
				ops = append(ops, "unplug")
			} else {
				ops = append(ops, "plug")
			}
		}
		allow(ops)
	case "SR":
		r.vals[o.class.byName["allowed_operations"].index] = p.srOperations(o)
	}
	return r
}
