package xapisim

import "testing"

func TestRefusalsOfDevices(t *testing.T) {
	c := start(t, nil)
	vm := c.vm()
	vbd := c.record("VDI", c.disk(0))["VBDs"].([]any)[0].(string)
	c.refused([]string{"OPERATION_NOT_ALLOWED", "VBD '" + c.uuid("VBD", vbd) + "' still attached to '" + c.uuid("VM", vm) + "'"}, "VBD.destroy", vbd)
	vif := c.record("VM", vm)["VIFs"].([]any)[0]
	c.refused([]string{"OPERATION_NOT_ALLOWED", "VIF currently attached to a running VM"}, "VIF.destroy", vif)
	pbd := c.record("SR", c.sr("ext"))["PBDs"].([]any)[0]
	c.refused([]string{"OPERATION_NOT_ALLOWED", "PBD is currently attached"}, "PBD.destroy", pbd)
	c.refused([]string{"SR_HAS_PBD", c.sr("ext")}, "SR.destroy", c.sr("ext"))
	used := c.record("SR", c.sr("nfs"))["PBDs"].([]any)
	plugged := 0
	for _, ref := range used { // the guest runs on one of the hosts
		if _, err := c.call("PBD.unplug", ref); err != nil {
			plugged++
		}
	}
	if plugged != 1 {
		t.Errorf("%d of %d PBDs refuse to go while a guest uses one", plugged, len(used))
	}
	ro := c.newDisk(c.sr("lvmoiscsi"), 2*mib, map[string]any{})
	c.must("VDI.set_read_only", ro, true)
	_, task := c.importTask(ro, "", make([]byte, 512))
	c.status(task, "failure", "VDI_READONLY", ro)
}
