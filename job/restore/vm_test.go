package restore_test

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"xenkeep/job"
	"xenkeep/job/backup"
	"xenkeep/job/jobtest"
	"xenkeep/job/records"
	"xenkeep/job/restore"
	"xenkeep/job/vmplan"
	"xenkeep/xapi"
	"xenkeep/xapi/xapisim"
)

// withISO returns RestoreSRs with an image in the library.
func withISO(t *testing.T, v xapisim.Version) []xapisim.SRConfig {
	t.Helper()
	srs := noQCOW2(v)
	srs[len(srs)-1].Images = []string{jobtest.Image(t, filepath.Join(t.TempDir(), "install.iso"), jobtest.MiB, 9, 3)}
	return srs
}

// A VM is restored with its disks on the selected SRs, its drives, interfaces,
// settings and firmware, created by single calls or by an import of its records.
func TestRestoreVMWhole(t *testing.T) {
	for _, version := range []xapisim.Version{xapisim.Version80, xapisim.Version82, xapisim.VersionCurrent} {
		for _, uuid := range []bool{false, true} {
			t.Run(string(version)+map[bool]string{true: " same UUID", false: " new UUID"}[uuid], func(t *testing.T) {
				w := jobtest.New(t, xapisim.Config{Version: version, SRs: withISO(t, version)})
				w.Furnished()
				lab := w.Network("Lab")
				if version == xapisim.VersionCurrent {
					if _, err := w.Pool.CreateVTPM(t.Context(), w.VM("web").Ref); err != nil {
						t.Fatal(err)
					}
				}
				was := w.VM("web")
				vifs := w.VIFsOf(was)
				o := w.Options("web")
				o.Keep = backup.KeepNone
				s := w.Snapshot(w.Backup(o).Snapshots[0].ID)
				v := restore.VMOptions{
					Target: restore.Target{SR: "one", Disks: map[string]string{"xvdb": "two"}}, KeepMAC: true, KeepUUID: uuid,
					Networks: map[string]string{"DMZ": "Lab"},
				}
				if uuid {
					if _, err := restore.VM(t.Context(), w.Repo, w.Pool, s, v, restore.Options{}); !errors.Is(err, job.ErrKeptUUID) {
						t.Fatalf("while the original VM exists: %v", err)
					}
					w.Remove(was)
				} else {
					v.Name = "back"
				}
				out, err := restore.VM(t.Context(), w.Repo, w.Pool, s, v, restore.Options{Verify: true})
				if err != nil {
					t.Fatal(err)
				}
				want := len(was.VTPMs)
				if !uuid {
					want++ // with the original's MAC addresses, too
				}
				if n := len(out.Warnings); n > want {
					t.Errorf("warnings: %q", out.Warnings)
				}
				is := w.VM(out.VM)
				if (is.UUID == was.UUID) != uuid || is.PowerState != "Halted" || out.Power != "Halted" {
					t.Errorf("UUID %s, was %s; %s", is.UUID, was.UUID, is.PowerState)
				}
				w.SameVM(was, is)
				disks := w.DisksOf(is, w.Files())
				if disks["0"].SR != w.SR("one").Ref || disks["1"].SR != w.SR("two").Ref {
					t.Error("disks are on the wrong SRs")
				}
				for device, f := range w.VIFsOf(is) {
					old := vifs[device]
					want := old.Network
					if device == "2" {
						want = lab
					}
					if f.MAC != old.MAC || f.MTU != old.MTU || f.Network != want || f.LockingMode != old.LockingMode || !jobtest.EqualJSON(f.OtherConfig, old.OtherConfig) {
						t.Errorf("interface %s: %+v, was %+v", device, f, old)
					}
				}
				if len(is.VIFs) != len(was.VIFs) {
					t.Errorf("%d interfaces", len(is.VIFs))
				}
				var drives []string
				for _, ref := range is.VBDs {
					b, err := w.Pool.VBD(t.Context(), ref)
					if err != nil {
						t.Fatal(err)
					}
					if b.Type == "CD" {
						name := "empty"
						if !b.Empty {
							iso, err := w.Pool.VDI(t.Context(), b.VDI)
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
		return slices.Clone(jobtest.RestoreSRs)
	}
	return slices.DeleteFunc(slices.Clone(jobtest.RestoreSRs), func(s xapisim.SRConfig) bool { return s.QCOW2 })
}

// New MAC addresses are really new, in whichever way the VM is created.
func TestRestoreVMNewMACs(t *testing.T) {
	w := jobtest.New(t, xapisim.Config{SRs: jobtest.RestoreSRs})
	was := w.VM("web")
	o := w.Options("web")
	o.Keep = backup.KeepNone
	s := w.Snapshot(w.Backup(o).Snapshots[0].ID)
	w.Remove(was)
	macs := map[string]bool{}
	seeds := map[string]bool{was.OtherConfig["mac_seed"]: true}
	for i, uuid := range []bool{false, true} {
		out, err := restore.VM(t.Context(), w.Repo, w.Pool, s, restore.VMOptions{Target: restore.Target{SR: "one"}, KeepUUID: uuid}, restore.Options{})
		if err != nil {
			t.Fatal(err)
		}
		is := w.VM(out.VM)
		for _, f := range w.VIFsOf(is) {
			macs[f.MAC] = true
		}
		seeds[is.OtherConfig["mac_seed"]] = true
		if len(macs) != i+1 || len(seeds) != i+2 {
			t.Errorf("MACs %v, seeds %v", macs, seeds)
		}
	}
}

// Fields that a pool of another version does not support are dropped, and named.
func TestRestoreVMAcrossVersions(t *testing.T) {
	from := jobtest.New(t, xapisim.Config{SRs: jobtest.RestoreSRs})
	vm := from.VM("web")
	from.Must(nil, "VM.set_actions_after_softreboot", vm.Ref, "destroy")
	if err := from.Pool.HardShutdown(t.Context(), vm.Ref); err != nil {
		t.Fatal(err)
	}
	if _, err := from.Pool.CreateVTPM(t.Context(), vm.Ref); err != nil {
		t.Fatal(err)
	}
	o := from.Options("web")
	o.Keep = backup.KeepNone
	s := from.Snapshot(from.Backup(o).Snapshots[0].ID)
	for _, version := range []xapisim.Version{xapisim.Version80, xapisim.Version82, xapisim.VersionCurrent} {
		for _, uuid := range []bool{false, true} {
			w := jobtest.New(t, xapisim.Config{Version: version, SRs: noQCOW2(version), VMs: []xapisim.VMConfig{}})
			out, err := restore.VM(t.Context(), from.Repo, w.Pool, s, restore.VMOptions{Target: restore.Target{SR: "one"}, KeepUUID: uuid}, restore.Options{})
			if err != nil {
				t.Fatalf("%s: %v", version, err)
			}
			if dropped := slices.Contains(out.Dropped, "actions_after_softreboot"); dropped != (version != xapisim.VersionCurrent) {
				t.Errorf("%s: dropped: %q", version, out.Dropped)
			}
			is := w.VM(out.VM)
			w.SameVM(from.VM("web"), is, "vTPMs")
			if version == xapisim.VersionCurrent && len(is.VTPMs) != 1 {
				t.Errorf("%d vTPMs", len(is.VTPMs))
			}
			w.DisksOf(is, from.Files())
			w.Must(nil, "VM.start", is.Ref, false, false)
		}
	}
}

// A VM that was backed up with memory is restored as suspended, and resumes.
func TestRestoreSuspended(t *testing.T) {
	for _, uuid := range []bool{false, true} {
		dir := t.TempDir()
		w := jobtest.New(t, xapisim.Config{SRs: jobtest.RestoreSRs, VMs: []xapisim.VMConfig{{Name: "web", Drivers: true, Disks: []string{
			jobtest.Image(t, filepath.Join(dir, "web0.img"), 6*jobtest.MiB, 1, 4), jobtest.Image(t, filepath.Join(dir, "web1.img"), 4*jobtest.MiB, 2, 4),
		}}}})
		was := w.VM("web")
		o := w.Options()
		o.Keep = backup.KeepNone
		o.Selected = []backup.VMRequest{{UUID: was.UUID, Name: "web", Kinds: []vmplan.Kind{vmplan.KindCheckpoint}}}
		s := w.Snapshot(w.Backup(o).Snapshots[0].ID)
		image, err := s.Disk(records.MemoryDevice)
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(dir, "memory.raw")
		if _, err := restore.File(t.Context(), w.Repo, s, image, file, restore.Options{}); err != nil {
			t.Fatal(err)
		}
		equal, err := os.Open(file)
		if err != nil {
			t.Fatal(err)
		}
		defer equal.Close()
		vifs := w.VIFsOf(was)
		if uuid {
			w.Remove(was)
		}
		before := w.Sim.Dump()
		v := restore.VMOptions{Target: restore.Target{SR: "one", Disks: map[string]string{"suspend": "two"}}, KeepMAC: true, KeepUUID: uuid, Name: "back"}
		if !uuid {
			v.KeepMAC = false
		}
		// After a failure nothing remains, whether the VM was already created or not.
		for _, f := range []xapisim.Fault{{On: "/import_metadata", Code: "INTERNAL_ERROR"}, {On: "/import_metadata", Cut: true, CutAt: 1000, Embedded: true}, {On: "VM.get_record", Nth: 2, Times: 1, Code: "INTERNAL_ERROR"}} {
			w.Sim.Fault(f)
			if _, err := restore.VM(t.Context(), w.Repo, w.Pool, s, v, restore.Options{}); err == nil {
				t.Fatalf("%+v: no error", f)
			}
			w.Sim.ClearFaults()
			w.Sim.GC()
			jobtest.SamePool(t, before, w.Sim.Dump())
		}
		out, err := restore.VM(t.Context(), w.Repo, w.Pool, s, v, restore.Options{Verify: true})
		if err != nil || len(out.Warnings) > 0 {
			t.Fatal(err, out.Warnings)
		}
		is := w.VM("back")
		if is.PowerState != "Suspended" || out.Power != "Suspended" || (is.UUID == was.UUID) != uuid {
			t.Fatalf("%s, UUID %s, was %s", is.PowerState, is.UUID, was.UUID)
		}
		memory, err := w.Pool.VDI(t.Context(), is.SuspendVDI)
		if err != nil {
			t.Fatal(err)
		}
		if memory.SR != w.SR("two").Ref || memory.Type != "suspend" || w.VolumeSum(memory.UUID, 4*jobtest.MiB) != sumOf(t, io.LimitReader(equal, 4*jobtest.MiB)) {
			t.Errorf("the memory image is another: %s on %s", memory.Type, memory.SR)
		}
		for device, f := range w.VIFsOf(is) {
			if (f.MAC == vifs[device].MAC) != v.KeepMAC {
				t.Errorf("interface %s has the MAC %s, had %s", device, f.MAC, vifs[device].MAC)
			}
		}
		if len(is.VIFs) != len(was.VIFs) || len(is.VBDs) != len(was.VBDs) {
			t.Errorf("%d interfaces, %d drives", len(is.VIFs), len(is.VBDs))
		}
		if err := w.Pool.ResumeVM(t.Context(), is.Ref); err != nil {
			t.Fatal(err)
		}
		if is = w.VM("back"); is.PowerState != "Running" || !is.SuspendVDI.IsNull() {
			t.Errorf("resumed: %s", is.PowerState)
		}
		// Again, on a pool without the original VM, and resume it.
		v.KeepUUID, v.Name, v.Start = false, "again", true
		if out, err = restore.VM(t.Context(), w.Repo, w.Pool, s, v, restore.Options{}); err != nil && !xapi.IsCode(err, "DUPLICATE_MAC_SEED") {
			t.Fatal(err)
		}
		if err == nil && (out.Power != "Running" || w.VM("again").PowerState != "Running") {
			t.Errorf("%s", out.Power)
		}
	}
}

// A VM that cannot be started is restored nevertheless.
func TestRestoreUnstarted(t *testing.T) {
	w := jobtest.New(t, xapisim.Config{SRs: jobtest.RestoreSRs})
	o := w.Options("web")
	o.Keep = backup.KeepNone
	s := w.Snapshot(w.Backup(o).Snapshots[0].ID)
	w.Sim.Fault(xapisim.Fault{On: "VM.start", Code: "HOST_NOT_ENOUGH_FREE_MEMORY", Params: []string{"1", "0"}})
	v := restore.VMOptions{Target: restore.Target{SR: "one"}, Name: "back", Start: true}
	out, err := restore.VM(t.Context(), w.Repo, w.Pool, s, v, restore.Options{})
	if !errors.Is(err, job.ErrUnstarted) || !strings.Contains(err.Error(), "HOST_NOT_ENOUGH_FREE_MEMORY") || out.Power != "Halted" {
		t.Fatal(err)
	}
	w.DisksOf(w.VM("back"), w.Files())
	v.Name = "second"
	if out, err = restore.VM(t.Context(), w.Repo, w.Pool, s, v, restore.Options{}); err != nil || out.Power != "Running" {
		t.Fatal(err)
	}
}

// Impossible requests are refused before anything is created.
func TestRestoreVMRefusals(t *testing.T) {
	w := jobtest.New(t, xapisim.Config{SRs: []xapisim.SRConfig{{Name: "one", Type: "nfs", Shared: true}, {Name: "images", Type: "iso", Shared: true}, {Name: "full", Type: "lvm", Shared: true, Size: 16 * jobtest.MiB}}})
	o := w.Options("web")
	o.Keep = backup.KeepNone
	o.VMs = nil
	s := jobtest.BackupOf(w, "web")
	before := w.Sim.Dump()
	for what, c := range map[string]struct {
		v    restore.VMOptions
		says string
	}{
		"no such SR":      {restore.VMOptions{Target: restore.Target{SR: "nosuch"}}, "nosuch"},
		"no SR for one":   {restore.VMOptions{Target: restore.Target{Disks: map[string]string{"xvda": "one"}}}, "disk xvdb: no SR is specified"},
		"no such disk":    {restore.VMOptions{Target: restore.Target{SR: "one", Disks: map[string]string{"xvdz": "one"}}}, "disk xvdz"},
		"an ISO library":  {restore.VMOptions{Target: restore.Target{SR: "images"}}, "library of ISO images"},
		"no room":         {restore.VMOptions{Target: restore.Target{SR: "full"}}, "not enough free space"},
		"no such network": {restore.VMOptions{Target: restore.Target{SR: "one"}, Networks: map[string]string{"nosuch": "Lab"}}, `network "nosuch": no interface`},
	} {
		if _, err := restore.VM(t.Context(), w.Repo, w.Pool, s, c.v, restore.Options{}); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", what, err)
		}
	}
	jobtest.SamePool(t, before, w.Sim.Dump())
	for text, ok := range map[string]bool{"one": true, "a,b": true, "xvda=one,xvdb=two": true, "xvda=one,two": true, "xvda=": false, "=one": false, "xvda=one,xvda=two": false, "xvda=one,": false} {
		if _, err := restore.ParseTarget(text); (err == nil) != ok {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func sumOf(t *testing.T, r io.Reader) string {
	t.Helper()
	h := sha256.New()
	if _, err := io.Copy(h, r); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", h.Sum(nil))
}
