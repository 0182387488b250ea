package xapisim

import "testing"

// A halted VM accepts one vTPM, in versions that support them; it is removed
// together with the VM.
func TestVTPM(t *testing.T) {
	c := start(t, func(cfg *Config) { cfg.VMs[0].Halted = true })
	vm := c.vm()
	vtpm := c.must("VTPM.create", vm, false).(string)
	if got := c.record("VM", vm)["VTPMs"].([]any); len(got) != 1 || got[0] != vtpm {
		t.Errorf("VTPMs: %v", got)
	}
	c.refused([]string{"VTPM_MAX_AMOUNT_REACHED", "1"}, "VTPM.create", vm, false)
	c.must("VM.destroy", vm)
	c.refused([]string{"HANDLE_INVALID", "VTPM", vtpm}, "VTPM.get_record", vtpm)

	running := start(t, nil)
	running.refused([]string{"VM_BAD_POWER_STATE", running.vm(), "halted", "running"}, "VTPM.create", running.vm(), false)
	old := start(t, func(cfg *Config) { cfg.VMs[0].Halted, cfg.Version = true, Version80 })
	old.refused([]string{"MESSAGE_METHOD_UNKNOWN", "VTPM.create"}, "VTPM.create", old.vm(), false)
}
