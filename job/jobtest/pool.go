package jobtest

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"xenkeep/job/doctor"
	"xenkeep/xapi"
	"xenkeep/xapi/xapisim"
)

// Mark sets marks on an object. alive is the time since its last sign of life.
func (w *World) Mark(class string, ref xapi.Ref, repository, run, role, machine, process string, alive time.Duration) {
	w.T.Helper()
	rec, err := w.Pool.Pool(w.T.Context())
	if err != nil {
		w.T.Fatal(err)
	}
	now, err := w.Pool.ServerTime(w.T.Context(), rec.Master)
	if err != nil {
		w.T.Fatal(err)
	}
	for k, v := range map[string]string{
		"repository": repository, "run": run, "role": role, "machine": machine, "process": process, "job": "j",
		"alive": now.Add(-alive).UTC().Format(time.RFC3339),
	} {
		if err := w.Pool.SetOtherConfig(w.T.Context(), class, ref, "xenkeep:"+k, v); err != nil {
			w.T.Fatal(err)
		}
	}
}

// VDI creates a VDI on the first SR.
func (w *World) VDI(name string, size int64) xapi.Ref {
	w.T.Helper()
	sr, err := w.Pool.FindSR(w.T.Context(), w.Sim.Ready().SRs[0].UUID)
	if err != nil {
		w.T.Fatal(err)
	}
	ref, err := w.Pool.CreateVDI(w.T.Context(), xapi.VDIFields{Name: name, SR: sr.Ref, Size: size})
	if err != nil {
		w.T.Fatal(err)
	}
	return ref
}

// Exists reports whether a VDI exists.
func (w *World) Exists(ref xapi.Ref) bool {
	w.T.Helper()
	_, err := w.Pool.VDI(w.T.Context(), ref)
	if err != nil && !xapi.IsCode(err, xapi.HandleInvalid) {
		w.T.Fatal(err)
	}
	return err == nil
}

// Halt powers off a VM.
func (w *World) Halt(name string) {
	w.T.Helper()
	if err := w.Pool.HardShutdown(w.T.Context(), w.VM(name).Ref); err != nil {
		w.T.Fatal(err)
	}
}

// VDIOf returns the VDI with a UUID.
func (w *World) VDIOf(uuid string) xapi.VDI {
	w.T.Helper()
	v, err := w.Pool.FindVDI(w.T.Context(), uuid)
	if err != nil {
		w.T.Fatal(err)
	}
	return v
}

// DiskAt returns the VDI that a VM has at a userdevice.
func (w *World) DiskAt(name, userdevice string) xapi.VDI {
	w.T.Helper()
	for _, ref := range w.VM(name).VBDs {
		if b, err := w.Pool.VBD(w.T.Context(), ref); err == nil && b.UserDevice == userdevice {
			v, err := w.Pool.VDI(w.T.Context(), b.VDI)
			if err != nil {
				w.T.Fatal(err)
			}
			return v
		}
	}
	w.T.Fatalf("VM %s has no disk %s", name, userdevice)
	return xapi.VDI{}
}

// RestoreSRs are SRs of the types to which restores are tested.
var RestoreSRs = []xapisim.SRConfig{
	{Name: "one", Type: "nfs", Shared: true}, {Name: "two", Type: "lvm", Shared: true}, {Name: "qcow2", Type: "ext", Shared: true, QCOW2: true},
	{Name: "images", Type: "iso", Shared: true},
}

// Must calls a method of the pool, which must succeed.
func (w *World) Must(out any, method string, args ...any) {
	w.T.Helper()
	if err := w.Pool.Call(w.T.Context(), method, out, args...); err != nil {
		w.T.Fatal(err)
	}
}

// VM returns the VM with a name.
func (w *World) VM(name string) xapi.VM {
	w.T.Helper()
	vm, err := w.Pool.FindVM(w.T.Context(), name)
	if err != nil {
		w.T.Fatal(err)
	}
	return vm
}

// SR returns the SR with a name.
func (w *World) SR(name string) xapi.SR {
	w.T.Helper()
	sr, err := w.Pool.FindSR(w.T.Context(), name)
	if err != nil {
		w.T.Fatal(err)
	}
	return sr
}

// Network creates a network.
func (w *World) Network(name string) xapi.Ref {
	w.T.Helper()
	var ref xapi.Ref
	w.Must(&ref, "network.create", map[string]any{"name_label": name, "name_description": "", "MTU": 1500, "other_config": map[string]string{}, "tags": []string{}})
	return ref
}

// Furnished gives the VM web a value in every field that a VM can have.
func (w *World) Furnished() {
	w.T.Helper()
	ctx := w.T.Context()
	vm := w.VM("web")
	iso, err := w.Pool.FindVDI(ctx, "install.iso")
	if err != nil {
		w.T.Fatal(err)
	}
	for _, ref := range vm.VBDs {
		if b, err := w.Pool.VBD(ctx, ref); err == nil && b.Type == "CD" {
			w.Must(nil, "VBD.insert", ref, iso.Ref)
		}
	}
	if _, err := w.Pool.CreateVBD(ctx, xapi.VBD{VM: vm.Ref, UserDevice: "4", Type: "CD", Mode: "RO", Empty: true}); err != nil {
		w.T.Fatal(err)
	}
	for i, name := range []string{"LAN", "DMZ"} {
		if _, err := w.Pool.CreateVIF(ctx, xapi.VIF{
			VM: vm.Ref, Network: w.Network(name), Device: []string{"1", "2"}[i], MAC: "02:00:00:00:00:0" + []string{"1", "2"}[i], MTU: 1400,
			OtherConfig: map[string]string{"ethtool-gso": "off"}, LockingMode: "locked", IPv4Allowed: []string{"192.0.2.7"},
		}); err != nil {
			w.T.Fatal(err)
		}
	}
	if err := w.Pool.HardShutdown(ctx, vm.Ref); err != nil {
		w.T.Fatal(err)
	}
	w.Must(nil, "VM.set_NVRAM", vm.Ref, map[string]string{"EFI-variables": "AAAA//8="})
	w.Must(nil, "VM.set_tags", vm.Ref, []string{"prod", "eu"})
	w.Must(nil, "VM.set_platform", vm.Ref, map[string]string{"viridian": "true", "secureboot": "true"})
	w.Must(nil, "VM.set_HVM_boot_params", vm.Ref, map[string]string{"firmware": "uefi", "order": "dc"})
	w.Must(nil, "VM.set_blocked_operations", vm.Ref, map[string]string{"destroy": "precious"})
	w.Must(nil, "VM.add_to_other_config", vm.Ref, "folder", "/web")
}

// DisksOf returns the VDIs of a VM by their userdevice, after comparing each with its
// file.
func (w *World) DisksOf(vm xapi.VM, files map[string]string) map[string]xapi.VDI {
	w.T.Helper()
	out := make(map[string]xapi.VDI)
	for _, ref := range vm.VBDs {
		b, err := w.Pool.VBD(w.T.Context(), ref)
		if err != nil {
			w.T.Fatal(err)
		}
		if b.Type != "Disk" {
			continue
		}
		v, err := w.Pool.VDI(w.T.Context(), b.VDI)
		if err != nil {
			w.T.Fatal(err)
		}
		if w.VolumeSum(v.UUID, int64(v.VirtualSize)) != FileSum(w.T, files[b.UserDevice]) {
			w.T.Errorf("disk %s differs", b.UserDevice)
		}
		if len(v.OtherConfig) > 0 {
			w.T.Errorf("disk %s has the marks %v", b.UserDevice, v.OtherConfig)
		}
		out[b.UserDevice] = v
	}
	if len(out) != len(files) {
		w.T.Errorf("%d disks of %d", len(out), len(files))
	}
	return out
}

// Files returns the image files of the disks of the VM web, by userdevice.
func (w *World) Files() map[string]string {
	return map[string]string{"0": filepath.Join(w.Dir, "web0.img"), "1": filepath.Join(w.Dir, "web1.img")}
}

// VIFsOf returns the VIFs of a VM, by device.
func (w *World) VIFsOf(vm xapi.VM) map[string]xapi.VIF {
	w.T.Helper()
	out := make(map[string]xapi.VIF)
	for _, ref := range vm.VIFs {
		f, err := w.Pool.VIF(w.T.Context(), ref)
		if err != nil {
			w.T.Fatal(err)
		}
		out[f.Device] = f
	}
	return out
}

// Remove deletes the VM and its disks.
func (w *World) Remove(vm xapi.VM) {
	w.T.Helper()
	ctx := w.T.Context()
	w.Must(nil, "VM.set_blocked_operations", vm.Ref, map[string]string{})
	if err := w.Pool.HardShutdown(ctx, vm.Ref); err != nil {
		w.T.Fatal(err)
	}
	var disks []xapi.Ref
	for _, ref := range vm.VBDs {
		if b, err := w.Pool.VBD(ctx, ref); err == nil && b.Type == "Disk" {
			disks = append(disks, b.VDI)
		}
	}
	err := w.Pool.DestroyVM(ctx, vm.Ref)
	for _, d := range disks {
		err = errors.Join(err, w.Pool.DestroyVDI(ctx, d))
	}
	if err != nil {
		w.T.Fatal(err)
	}
}

// SelfTest runs a self-test on an SR and returns the states of its steps.
func (w *World) SelfTest(sr string, step func(doctor.SelfTestStep)) (*doctor.SelfTestReport, string, error) {
	w.T.Helper()
	rep, err := doctor.SelfTest(w.T.Context(), w.Pool, doctor.SelfTestOptions{SR: sr, Size: 34 * MiB, Step: step})
	if rep == nil {
		w.T.Fatal(err)
	}
	var b strings.Builder
	for _, s := range rep.Steps {
		fmt.Fprintf(&b, "%s %s: %s\n", s.State, s.Name, s.Text)
	}
	return rep, b.String(), err
}

// Call calls a method of the pool as another client.
func (w *World) Call(method string, args ...any) string {
	w.T.Helper()
	var out string
	if err := w.Pool.Call(w.T.Context(), method, &out, args...); err != nil {
		w.T.Fatal(err)
	}
	return out
}

// SnapshotByOthers takes a VM snapshot as another client.
func (w *World) SnapshotByOthers() (vm xapi.VM, snapshot xapi.Ref) {
	w.T.Helper()
	vm, err := w.Pool.FindVM(w.T.Context(), "web")
	if err == nil {
		snapshot, err = w.Pool.SnapshotVM(w.T.Context(), vm.Ref, "old")
	}
	if err != nil {
		w.T.Fatal(err)
	}
	return vm, snapshot
}

// RevertDisk reverts a disk to its VDI snapshot in a VM snapshot without the pool's
// knowledge: the generation ID of the VM does not change.
func (w *World) RevertDisk(vmSnapshot xapi.Ref) {
	w.T.Helper()
	rec, err := w.Pool.VM(w.T.Context(), vmSnapshot)
	if err != nil {
		w.T.Fatal(err)
	}
	for _, ref := range rec.VBDs {
		vbd, err := w.Pool.VBD(w.T.Context(), ref)
		if err != nil {
			w.T.Fatal(err)
		}
		if vbd.UserDevice == "0" {
			w.Call("VDI.revert", vbd.VDI)
		}
	}
}

// AddRaw gives a halted VM a raw disk with the content of an image, at place 5.
func (w *World) AddRaw(name, sr, image string, size int64) (vdi xapi.VDI) {
	w.T.Helper()
	ref, err := w.Pool.CreateVDI(w.T.Context(), xapi.VDIFields{Name: "raw", SR: w.SR(sr).Ref, Size: size, SMConfig: map[string]string{"type": "raw"}})
	if err == nil {
		_, err = w.Pool.CreateVBD(w.T.Context(), xapi.VBD{VM: w.VM(name).Ref, VDI: ref, UserDevice: "5", Mode: "RW", Type: "Disk"})
	}
	if err == nil {
		vdi, err = w.Pool.VDI(w.T.Context(), ref)
	}
	if err == nil {
		_, err = w.Sim.GuestWrite(vdi.UUID, image)
	}
	if err != nil {
		w.T.Fatal(err)
	}
	return vdi
}

// AddUSB adds a USB device to the VM web. With attached, its guest uses it.
func (w *World) AddUSB(name string, attached bool) (group string) {
	w.T.Helper()
	vm := w.VM("web")
	group = w.Sim.AddUSB(0, name)
	w.Must(nil, "VUSB.create", vm.Ref, group, map[string]string{"of": name})
	if attached {
		w.Halt("web")
		w.Must(nil, "VM.start", vm.Ref, false, false)
	}
	return group
}

// HasUSB checks that the VM web has exactly these USB devices, as they were added, and
// no mark of a run.
func (w *World) HasUSB(attached bool, names ...string) {
	w.T.Helper()
	vm := w.VM("web")
	got := make(map[string]bool)
	for _, ref := range vm.VUSBs {
		u, err := w.Pool.VUSB(w.T.Context(), ref)
		if err != nil {
			w.T.Fatal(err)
		}
		g, err := w.Pool.USBGroup(w.T.Context(), u.USBGroup)
		if err != nil {
			w.T.Fatal(err)
		}
		if got[g.NameLabel] = true; u.OtherConfig["of"] != g.NameLabel || u.CurrentlyAttached != attached {
			w.T.Errorf("USB device %s: %+v, attached %v", g.NameLabel, u.OtherConfig, u.CurrentlyAttached)
		}
	}
	for _, n := range names {
		if !got[n] {
			w.T.Errorf("the USB device %s is not there", n)
		}
	}
	if len(got) != len(names) {
		w.T.Errorf("USB devices: %v, want %v", got, names)
	}
	for k := range vm.OtherConfig {
		if strings.HasPrefix(k, "xenkeep:") {
			w.T.Errorf("the mark %s stays", k)
		}
	}
}
