package job_test

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"xenkeep/job"
	"xenkeep/repo"
	"xenkeep/xapi"
	"xenkeep/xapi/xapisim"
)

var restoreSRs = []xapisim.SRConfig{
	{Name: "one", Type: "nfs", Shared: true}, {Name: "two", Type: "lvm", Shared: true}, {Name: "qcow2", Type: "ext", Shared: true, QCOW2: true},
	{Name: "images", Type: "iso", Shared: true},
}

// withISO is restoreSRs with an image in the library.
func withISO(t *testing.T, v xapisim.Version) []xapisim.SRConfig {
	t.Helper()
	srs := noQCOW2(v)
	srs[len(srs)-1].Images = []string{image(t, filepath.Join(t.TempDir(), "install.iso"), mib, 9, 3)}
	return srs
}

func (w *world) must(out any, method string, args ...any) {
	w.t.Helper()
	if err := w.pool.Call(w.t.Context(), method, out, args...); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) vm(name string) xapi.VM {
	w.t.Helper()
	vm, err := w.pool.FindVM(w.t.Context(), name)
	if err != nil {
		w.t.Fatal(err)
	}
	return vm
}

func (w *world) sr(name string) xapi.SR {
	w.t.Helper()
	sr, err := w.pool.FindSR(w.t.Context(), name)
	if err != nil {
		w.t.Fatal(err)
	}
	return sr
}

func (w *world) network(name string) xapi.Ref {
	w.t.Helper()
	var ref xapi.Ref
	w.must(&ref, "network.create", map[string]any{"name_label": name, "name_description": "", "MTU": 1500, "other_config": map[string]string{}, "tags": []string{}})
	return ref
}

// furnished gives web all that a VM can have.
func (w *world) furnished() {
	w.t.Helper()
	ctx := w.t.Context()
	vm := w.vm("web")
	iso, err := w.pool.FindVDI(ctx, "install.iso")
	if err != nil {
		w.t.Fatal(err)
	}
	for _, ref := range vm.VBDs {
		if b, err := w.pool.VBD(ctx, ref); err == nil && b.Type == "CD" {
			w.must(nil, "VBD.insert", ref, iso.Ref)
		}
	}
	if _, err := w.pool.CreateVBD(ctx, xapi.VBD{VM: vm.Ref, UserDevice: "4", Type: "CD", Mode: "RO", Empty: true}); err != nil {
		w.t.Fatal(err)
	}
	for i, name := range []string{"LAN", "DMZ"} {
		if _, err := w.pool.CreateVIF(ctx, xapi.VIF{
			VM: vm.Ref, Network: w.network(name), Device: []string{"1", "2"}[i], MAC: "02:00:00:00:00:0" + []string{"1", "2"}[i], MTU: 1400,
			OtherConfig: map[string]string{"ethtool-gso": "off"}, LockingMode: "locked", IPv4Allowed: []string{"192.0.2.7"},
		}); err != nil {
			w.t.Fatal(err)
		}
	}
	if err := w.pool.HardShutdown(ctx, vm.Ref); err != nil {
		w.t.Fatal(err)
	}
	w.must(nil, "VM.set_NVRAM", vm.Ref, map[string]string{"EFI-variables": "AAAA//8="})
	w.must(nil, "VM.set_tags", vm.Ref, []string{"prod", "eu"})
	w.must(nil, "VM.set_platform", vm.Ref, map[string]string{"viridian": "true", "secureboot": "true"})
	w.must(nil, "VM.set_HVM_boot_params", vm.Ref, map[string]string{"firmware": "uefi", "order": "dc"})
	w.must(nil, "VM.set_blocked_operations", vm.Ref, map[string]string{"destroy": "precious"})
	w.must(nil, "VM.add_to_other_config", vm.Ref, "folder", "/web")
}

// sameVM compares what a VM is with what it was; but for the fields named.
func (w *world) sameVM(was, is xapi.VM, but ...string) {
	w.t.Helper()
	for what, pair := range map[string][2]any{
		"NVRAM": {was.NVRAM, is.NVRAM}, "platform": {was.Platform, is.Platform}, "HVM_boot_params": {was.HVMBootParams, is.HVMBootParams},
		"tags": {slices.Sorted(slices.Values(was.Tags)), slices.Sorted(slices.Values(is.Tags))}, "blocked_operations": {was.BlockedOperations, is.BlockedOperations},
		"memory": {[]xapi.Int{was.MemoryStaticMax, was.MemoryStaticMin, was.MemoryDynamicMax, was.MemoryDynamicMin}, []xapi.Int{is.MemoryStaticMax, is.MemoryStaticMin, is.MemoryDynamicMax, is.MemoryDynamicMin}},
		"VCPUs":  {was.VCPUsMax, is.VCPUsMax}, "folder": {was.OtherConfig["folder"], is.OtherConfig["folder"]}, "vTPMs": {len(was.VTPMs), len(is.VTPMs)},
		"is_a_template": {false, is.IsATemplate}, "description": {was.NameDescription, is.NameDescription},
	} {
		if !slices.Contains(but, what) && !equalJSON(pair[0], pair[1]) {
			w.t.Errorf("%s: %v, was %v", what, pair[1], pair[0])
		}
	}
	if is.GenerationID == was.GenerationID && was.GenerationID != "" {
		w.t.Error("generation_id is as it was")
	}
	for k := range is.OtherConfig {
		if strings.HasPrefix(k, "xenkeep:") {
			w.t.Errorf("the VM bears the mark %s", k)
		}
	}
}

// disksOf are the VDIs of a VM by their userdevice, each compared with its file.
func (w *world) disksOf(vm xapi.VM, files map[string]string) map[string]xapi.VDI {
	w.t.Helper()
	out := make(map[string]xapi.VDI)
	for _, ref := range vm.VBDs {
		b, err := w.pool.VBD(w.t.Context(), ref)
		if err != nil {
			w.t.Fatal(err)
		}
		if b.Type != "Disk" {
			continue
		}
		v, err := w.pool.VDI(w.t.Context(), b.VDI)
		if err != nil {
			w.t.Fatal(err)
		}
		if w.volumeSum(v.UUID, int64(v.VirtualSize)) != fileSum(w.t, files[b.UserDevice]) {
			w.t.Errorf("disk %s differs", b.UserDevice)
		}
		if len(v.OtherConfig) > 0 {
			w.t.Errorf("disk %s bears %v", b.UserDevice, v.OtherConfig)
		}
		out[b.UserDevice] = v
	}
	if len(out) != len(files) {
		w.t.Errorf("%d disks of %d", len(out), len(files))
	}
	return out
}

func (w *world) files() map[string]string {
	return map[string]string{"0": filepath.Join(w.dir, "web0.img"), "1": filepath.Join(w.dir, "web1.img")}
}

func (w *world) vifsOf(vm xapi.VM) map[string]xapi.VIF {
	w.t.Helper()
	out := make(map[string]xapi.VIF)
	for _, ref := range vm.VIFs {
		f, err := w.pool.VIF(w.t.Context(), ref)
		if err != nil {
			w.t.Fatal(err)
		}
		out[f.Device] = f
	}
	return out
}

// remove takes the VM away, disks too.
func (w *world) remove(vm xapi.VM) {
	w.t.Helper()
	ctx := w.t.Context()
	w.must(nil, "VM.set_blocked_operations", vm.Ref, map[string]string{})
	if err := w.pool.HardShutdown(ctx, vm.Ref); err != nil {
		w.t.Fatal(err)
	}
	var disks []xapi.Ref
	for _, ref := range vm.VBDs {
		if b, err := w.pool.VBD(ctx, ref); err == nil && b.Type == "Disk" {
			disks = append(disks, b.VDI)
		}
	}
	err := w.pool.DestroyVM(ctx, vm.Ref)
	for _, d := range disks {
		err = errors.Join(err, w.pool.DestroyVDI(ctx, d))
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

// A VM comes back with its disks where they are wanted, its drives, interfaces,
// settings and firmware, made call by call or of its records.
func TestRestoreVMWhole(t *testing.T) {
	for _, version := range []xapisim.Version{xapisim.Version80, xapisim.Version82, xapisim.VersionCurrent} {
		for _, uuid := range []bool{false, true} {
			t.Run(string(version)+map[bool]string{true: " same UUID", false: " new UUID"}[uuid], func(t *testing.T) {
				w := newWorld(t, xapisim.Config{Version: version, SRs: withISO(t, version)})
				w.furnished()
				lab := w.network("Lab")
				if version == xapisim.VersionCurrent {
					if _, err := w.pool.CreateVTPM(t.Context(), w.vm("web").Ref); err != nil {
						t.Fatal(err)
					}
				}
				was := w.vm("web")
				vifs := w.vifsOf(was)
				o := w.options("web")
				o.Keep = job.KeepNone
				s := w.snapshot(w.backup(o).Snapshots[0].ID)
				v := job.VMRestore{
					Target: job.Target{SR: "one", Disks: map[string]string{"xvdb": "two"}}, KeepMAC: true, KeepUUID: uuid,
					Networks: map[string]string{"DMZ": "Lab"},
				}
				if uuid {
					if _, err := job.RestoreVM(t.Context(), w.repo, w.pool, s, v, job.RestoreOptions{}); !errors.Is(err, job.ErrKeptUUID) {
						t.Fatalf("beside the VM itself: %v", err)
					}
					w.remove(was)
				} else {
					v.Name = "back"
				}
				out, err := job.RestoreVM(t.Context(), w.repo, w.pool, s, v, job.RestoreOptions{Verify: true})
				if err != nil {
					t.Fatal(err)
				}
				want := len(was.VTPMs)
				if !uuid {
					want++ // the MAC addresses are the original's too
				}
				if n := len(out.Warnings); n > want {
					t.Errorf("warnings: %q", out.Warnings)
				}
				is := w.vm(out.VM)
				if (is.UUID == was.UUID) != uuid || is.PowerState != "Halted" || out.Power != "Halted" {
					t.Errorf("UUID %s, was %s; %s", is.UUID, was.UUID, is.PowerState)
				}
				w.sameVM(was, is)
				disks := w.disksOf(is, w.files())
				if disks["0"].SR != w.sr("one").Ref || disks["1"].SR != w.sr("two").Ref {
					t.Error("disks are on other SRs than said")
				}
				for device, f := range w.vifsOf(is) {
					old := vifs[device]
					want := old.Network
					if device == "2" {
						want = lab
					}
					if f.MAC != old.MAC || f.MTU != old.MTU || f.Network != want || f.LockingMode != old.LockingMode || !equalJSON(f.OtherConfig, old.OtherConfig) {
						t.Errorf("interface %s: %+v, was %+v", device, f, old)
					}
				}
				if len(is.VIFs) != len(was.VIFs) {
					t.Errorf("%d interfaces", len(is.VIFs))
				}
				var drives []string
				for _, ref := range is.VBDs {
					b, err := w.pool.VBD(t.Context(), ref)
					if err != nil {
						t.Fatal(err)
					}
					if b.Type == "CD" {
						name := "empty"
						if !b.Empty {
							iso, err := w.pool.VDI(t.Context(), b.VDI)
							if err != nil {
								t.Fatal(err)
							}
							name = iso.NameLabel
						}
						drives = append(drives, b.UserDevice+" "+name)
					}
				}
				slices.Sort(drives)
				if !slices.Equal(drives, []string{"3 install.iso", "4 empty"}) {
					t.Errorf("drives: %q", drives)
				}
			})
		}
	}
}

func noQCOW2(v xapisim.Version) []xapisim.SRConfig {
	if v == xapisim.VersionCurrent {
		return slices.Clone(restoreSRs)
	}
	return slices.DeleteFunc(slices.Clone(restoreSRs), func(s xapisim.SRConfig) bool { return s.QCOW2 })
}

// New MAC addresses are new, whichever way the VM is made.
func TestRestoreVMNewMACs(t *testing.T) {
	w := newWorld(t, xapisim.Config{SRs: restoreSRs})
	was := w.vm("web")
	o := w.options("web")
	o.Keep = job.KeepNone
	s := w.snapshot(w.backup(o).Snapshots[0].ID)
	w.remove(was)
	macs := map[string]bool{}
	seeds := map[string]bool{was.OtherConfig["mac_seed"]: true}
	for i, uuid := range []bool{false, true} {
		out, err := job.RestoreVM(t.Context(), w.repo, w.pool, s, job.VMRestore{Target: job.Target{SR: "one"}, KeepUUID: uuid}, job.RestoreOptions{})
		if err != nil {
			t.Fatal(err)
		}
		is := w.vm(out.VM)
		for _, f := range w.vifsOf(is) {
			macs[f.MAC] = true
		}
		seeds[is.OtherConfig["mac_seed"]] = true
		if len(macs) != i+1 || len(seeds) != i+2 {
			t.Errorf("MACs %v, seeds %v", macs, seeds)
		}
	}
}

// What a pool of another version does not know is dropped, and named.
func TestRestoreVMAcrossVersions(t *testing.T) {
	from := newWorld(t, xapisim.Config{SRs: restoreSRs})
	vm := from.vm("web")
	from.must(nil, "VM.set_actions_after_softreboot", vm.Ref, "destroy")
	if err := from.pool.HardShutdown(t.Context(), vm.Ref); err != nil {
		t.Fatal(err)
	}
	if _, err := from.pool.CreateVTPM(t.Context(), vm.Ref); err != nil {
		t.Fatal(err)
	}
	o := from.options("web")
	o.Keep = job.KeepNone
	s := from.snapshot(from.backup(o).Snapshots[0].ID)
	for _, version := range []xapisim.Version{xapisim.Version80, xapisim.Version82, xapisim.VersionCurrent} {
		for _, uuid := range []bool{false, true} {
			w := newWorld(t, xapisim.Config{Version: version, SRs: noQCOW2(version), VMs: []xapisim.VMConfig{}})
			out, err := job.RestoreVM(t.Context(), from.repo, w.pool, s, job.VMRestore{Target: job.Target{SR: "one"}, KeepUUID: uuid}, job.RestoreOptions{})
			if err != nil {
				t.Fatalf("%s: %v", version, err)
			}
			if dropped := slices.Contains(out.Dropped, "actions_after_softreboot"); dropped != (version != xapisim.VersionCurrent) {
				t.Errorf("%s: dropped: %q", version, out.Dropped)
			}
			is := w.vm(out.VM)
			w.sameVM(from.vm("web"), is, "vTPMs")
			if version == xapisim.VersionCurrent && len(is.VTPMs) != 1 {
				t.Errorf("%d vTPMs", len(is.VTPMs))
			}
			w.disksOf(is, from.files())
			w.must(nil, "VM.start", is.Ref, false, false)
		}
	}
}

// A VM that was backed up with memory comes back suspended, and goes on.
func TestRestoreSuspended(t *testing.T) {
	for _, uuid := range []bool{false, true} {
		dir := t.TempDir()
		w := newWorld(t, xapisim.Config{SRs: restoreSRs, VMs: []xapisim.VMConfig{{Name: "web", Drivers: true, Disks: []string{
			image(t, filepath.Join(dir, "web0.img"), 6*mib, 1, 4), image(t, filepath.Join(dir, "web1.img"), 4*mib, 2, 4),
		}}}})
		was := w.vm("web")
		o := w.options()
		o.Keep = job.KeepNone
		o.Chosen = []job.Chosen{{UUID: was.UUID, Name: "web", Kinds: []job.Kind{job.KindCheckpoint}}}
		s := w.snapshot(w.backup(o).Snapshots[0].ID)
		image, err := s.Disk(job.MemoryDevice)
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(dir, "memory.raw")
		if _, err := job.RestoreFile(t.Context(), w.repo, s, image, file, job.RestoreOptions{}); err != nil {
			t.Fatal(err)
		}
		equal, err := os.Open(file)
		if err != nil {
			t.Fatal(err)
		}
		defer equal.Close()
		vifs := w.vifsOf(was)
		if uuid {
			w.remove(was)
		}
		before := w.sim.Dump()
		v := job.VMRestore{Target: job.Target{SR: "one", Disks: map[string]string{"suspend": "two"}}, KeepMAC: true, KeepUUID: uuid, Name: "back"}
		if !uuid {
			v.KeepMAC = false
		}
		// A failure leaves nothing, neither before nor after the VM is made.
		for _, f := range []xapisim.Fault{{On: "/import_metadata", Code: "INTERNAL_ERROR"}, {On: "/import_metadata", Cut: true, CutAt: 1000, Embedded: true}, {On: "VM.get_record", Nth: 2, Times: 1, Code: "INTERNAL_ERROR"}} {
			w.sim.Fault(f)
			if _, err := job.RestoreVM(t.Context(), w.repo, w.pool, s, v, job.RestoreOptions{}); err == nil {
				t.Fatalf("%+v: no error", f)
			}
			w.sim.ClearFaults()
			w.sim.GC()
			samePool(t, before, w.sim.Dump())
		}
		out, err := job.RestoreVM(t.Context(), w.repo, w.pool, s, v, job.RestoreOptions{Verify: true})
		if err != nil || len(out.Warnings) > 0 {
			t.Fatal(err, out.Warnings)
		}
		is := w.vm("back")
		if is.PowerState != "Suspended" || out.Power != "Suspended" || (is.UUID == was.UUID) != uuid {
			t.Fatalf("%s, UUID %s, was %s", is.PowerState, is.UUID, was.UUID)
		}
		memory, err := w.pool.VDI(t.Context(), is.SuspendVDI)
		if err != nil {
			t.Fatal(err)
		}
		if memory.SR != w.sr("two").Ref || memory.Type != "suspend" || w.volumeSum(memory.UUID, 4*mib) != sumOf(t, io.LimitReader(equal, 4*mib)) {
			t.Errorf("the memory image is another: %s on %s", memory.Type, memory.SR)
		}
		for device, f := range w.vifsOf(is) {
			if (f.MAC == vifs[device].MAC) != v.KeepMAC {
				t.Errorf("interface %s has the MAC %s, had %s", device, f.MAC, vifs[device].MAC)
			}
		}
		if len(is.VIFs) != len(was.VIFs) || len(is.VBDs) != len(was.VBDs) {
			t.Errorf("%d interfaces, %d drives", len(is.VIFs), len(is.VBDs))
		}
		if err := w.pool.ResumeVM(t.Context(), is.Ref); err != nil {
			t.Fatal(err)
		}
		if is = w.vm("back"); is.PowerState != "Running" || !is.SuspendVDI.IsNull() {
			t.Errorf("resumed: %s", is.PowerState)
		}
		// Once more, on a pool whose own VM it is not, and let it go on.
		v.KeepUUID, v.Name, v.Start = false, "again", true
		if out, err = job.RestoreVM(t.Context(), w.repo, w.pool, s, v, job.RestoreOptions{}); err != nil && !xapi.IsCode(err, "DUPLICATE_MAC_SEED") {
			t.Fatal(err)
		}
		if err == nil && (out.Power != "Running" || w.vm("again").PowerState != "Running") {
			t.Errorf("%s", out.Power)
		}
	}
}

// A VM that cannot be started is there all the same.
func TestRestoreUnstarted(t *testing.T) {
	w := newWorld(t, xapisim.Config{SRs: restoreSRs})
	o := w.options("web")
	o.Keep = job.KeepNone
	s := w.snapshot(w.backup(o).Snapshots[0].ID)
	w.sim.Fault(xapisim.Fault{On: "VM.start", Code: "HOST_NOT_ENOUGH_FREE_MEMORY", Params: []string{"1", "0"}})
	v := job.VMRestore{Target: job.Target{SR: "one"}, Name: "back", Start: true}
	out, err := job.RestoreVM(t.Context(), w.repo, w.pool, s, v, job.RestoreOptions{})
	if !errors.Is(err, job.ErrUnstarted) || !strings.Contains(err.Error(), "HOST_NOT_ENOUGH_FREE_MEMORY") || out.Power != "Halted" {
		t.Fatal(err)
	}
	w.disksOf(w.vm("back"), w.files())
	v.Name = "second"
	if out, err = job.RestoreVM(t.Context(), w.repo, w.pool, s, v, job.RestoreOptions{}); err != nil || out.Power != "Running" {
		t.Fatal(err)
	}
}

// What cannot be is refused before anything is made.
func TestRestoreVMRefusals(t *testing.T) {
	w := newWorld(t, xapisim.Config{SRs: []xapisim.SRConfig{{Name: "one", Type: "nfs", Shared: true}, {Name: "images", Type: "iso", Shared: true}, {Name: "full", Type: "lvm", Shared: true, Size: 16 * mib}}})
	o := w.options("web")
	o.Keep = job.KeepNone
	o.VMs = nil
	s := backupOf(w, "web")
	before := w.sim.Dump()
	for what, c := range map[string]struct {
		v    job.VMRestore
		says string
	}{
		"no such SR":      {job.VMRestore{Target: job.Target{SR: "nosuch"}}, "nosuch"},
		"no SR for one":   {job.VMRestore{Target: job.Target{Disks: map[string]string{"xvda": "one"}}}, "disk xvdb: no SR is given"},
		"no such disk":    {job.VMRestore{Target: job.Target{SR: "one", Disks: map[string]string{"xvdz": "one"}}}, "disk xvdz"},
		"an ISO library":  {job.VMRestore{Target: job.Target{SR: "images"}}, "library of ISO images"},
		"no room":         {job.VMRestore{Target: job.Target{SR: "full"}}, "not enough free space"},
		"no such network": {job.VMRestore{Target: job.Target{SR: "one"}, Networks: map[string]string{"nosuch": "Lab"}}, `network "nosuch": no interface`},
	} {
		if _, err := job.RestoreVM(t.Context(), w.repo, w.pool, s, c.v, job.RestoreOptions{}); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", what, err)
		}
	}
	samePool(t, before, w.sim.Dump())
	for text, ok := range map[string]bool{"one": true, "a,b": true, "xvda=one,xvdb=two": true, "xvda=one,two": true, "xvda=": false, "=one": false, "xvda=one,xvda=two": false, "xvda=one,": false} {
		if _, err := job.ParseTarget(text); (err == nil) != ok {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// backupOf backs a VM up and keeps nothing of it on the pool.
func backupOf(w *world, vm string) *repo.Snapshot {
	w.t.Helper()
	o := w.options(vm)
	o.Keep = job.KeepNone
	s := w.snapshot(w.backup(o).Snapshots[0].ID)
	w.sim.GC()
	return s
}

func sumOf(t *testing.T, r io.Reader) string {
	t.Helper()
	h := sha256.New()
	if _, err := io.Copy(h, r); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", h.Sum(nil))
}

// equalJSON compares values as texts: nil and empty are one.
func equalJSON(a, b any) bool {
	text := func(v any) string {
		p, _ := json.Marshal(v)
		if s := string(p); s != "null" && s != "{}" && s != "[]" {
			return s
		}
		return ""
	}
	return text(a) == text(b)
}
