package xapi_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"xenkeep/xapi"
	"xenkeep/xapi/xapisim"
)

const mib = 1 << 20

// pool starts a simulated pool with one halted VM that has one 16 MiB disk.
func pool(t *testing.T, change func(*xapisim.Config)) (*xapisim.Pool, []byte) {
	t.Helper()
	disk := make([]byte, 16*mib)
	copy(disk[3*mib:], noise(2*mib))
	copy(disk[11*mib:], noise(mib/2))
	image := filepath.Join(t.TempDir(), "disk.raw")
	if err := os.WriteFile(image, disk, 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := xapisim.Config{
		Scale: 0.01, GCDelay: time.Second, LoginDelay: time.Millisecond, CancelDelay: 50 * time.Millisecond,
		VMs: []xapisim.VMConfig{{Name: "web", Disks: []string{image}, Halted: true}},
	}
	if change != nil {
		change(&cfg)
	}
	p, err := xapisim.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Errorf("close the simulator: %v", err)
		}
	})
	return p, disk
}

func simConfig(p *xapisim.Pool) xapi.Config {
	return xapi.Config{
		URL: p.URL(), User: p.User(), Password: p.Password(), Pace: 0.01,
		Trust:        xapi.Trust{Fingerprints: []string{p.Fingerprint()}, Insecure: strings.HasPrefix(p.URL(), "http:")},
		StallTimeout: 5 * time.Second, VerdictTimeout: 5 * time.Second,
	}
}

func dialSim(t *testing.T, p *xapisim.Pool) *xapi.Client {
	t.Helper()
	c, err := xapi.Dial(t.Context(), simConfig(p))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close(context.Background()) })
	return c
}

// snapshot takes a VM snapshot, destroys its record, and returns the VDI
// snapshot of its only disk, which remains.
func snapshot(t *testing.T, c *xapi.Client) xapi.VDI {
	t.Helper()
	vm, err := c.FindVM(t.Context(), "web")
	if err != nil {
		t.Fatal(err)
	}
	ref, err := c.SnapshotVM(t.Context(), vm.Ref, "web")
	if err != nil {
		t.Fatal(err)
	}
	snap, err := c.VM(t.Context(), ref)
	if err != nil || !snap.IsASnapshot || !snap.IsATemplate || snap.SnapshotOf != vm.Ref || snap.SnapshotTime.IsZero() {
		t.Fatalf("snapshot record: %v, %.400s", err, snap.Raw)
	}
	var disk xapi.Ref
	for _, ref := range snap.VBDs {
		vbd, err := c.VBD(t.Context(), ref)
		if err != nil {
			t.Fatal(err)
		}
		if vbd.Type == "Disk" {
			disk = vbd.VDI
		}
	}
	vdi, err := c.VDI(t.Context(), disk)
	if err != nil || !vdi.IsASnapshot {
		t.Fatalf("VDI snapshot: %v, %s", err, vdi.Raw)
	}
	if err := c.DestroyVM(t.Context(), ref); err != nil {
		t.Fatal(err)
	}
	return vdi
}

func exportSim(t *testing.T, c *xapi.Client, opts xapi.ExportOptions) ([]byte, error) {
	t.Helper()
	e, err := c.ExportVDI(t.Context(), opts)
	if err != nil {
		return nil, err
	}
	defer e.Close(t.Context())
	data, _ := io.ReadAll(e)
	return data, e.Finish(t.Context())
}

// noTasks checks that the pool has none of our tasks.
func noTasks(t *testing.T, c *xapi.Client) {
	t.Helper()
	tasks, err := c.Tasks(context.WithoutCancel(t.Context()))
	if err != nil {
		t.Error(err)
	}
	for _, task := range tasks {
		t.Errorf("task %q (%s) is left behind", task.NameLabel, task.Status)
	}
}

// blocks lists the blocks that a VHD stream contains.
func blocks(t *testing.T, vhd []byte) []int {
	t.Helper()
	if len(vhd) < 4096 || string(vhd[:8]) != "conectix" || string(vhd[512:520]) != "cxsparse" || !bytes.Equal(vhd[:512], vhd[len(vhd)-512:]) {
		t.Fatalf("not a VHD stream of %d bytes", len(vhd))
	}
	var list []int
	for i := range int(binary.BigEndian.Uint32(vhd[512+28:])) {
		if binary.BigEndian.Uint32(vhd[2048+4*i:]) != 1<<32-1 {
			list = append(list, i)
		}
	}
	return list
}

func TestSimInventory(t *testing.T) {
	p, _ := pool(t, nil)
	c := dialSim(t, p)
	ctx := t.Context()
	snap := snapshot(t, c)
	vms, err := c.VMs(ctx)
	if err != nil {
		t.Fatal(err)
	}
	real := 0
	for _, vm := range vms {
		if vm.Real() {
			real++
		}
	}
	if real != 1 {
		t.Errorf("%d real VMs among %d records", real, len(vms))
	}
	sr, err := c.SR(ctx, snap.SR)
	if err != nil {
		t.Fatal(err)
	}
	if found, err := c.FindSR(ctx, sr.NameLabel); err != nil || found.UUID != sr.UUID {
		t.Errorf("find SR by name: %v", err)
	}
	hosts, err := c.HostsFor(ctx, sr.Ref)
	if err != nil || len(hosts) != 2 {
		t.Errorf("%d hosts reach a shared SR: %v", len(hosts), err)
	}
	if ref, err := c.VDIByUUID(ctx, snap.UUID); err != nil || ref != snap.Ref {
		t.Errorf("VDI by UUID: %s, %v", ref, err)
	}
	if _, err := c.VDIByUUID(ctx, "11111111-2222-3333-4444-555555555555"); !errors.Is(err, xapi.ErrNotFound) {
		t.Errorf("unknown UUID: %v", err)
	}
	if err := c.SetOtherConfig(ctx, "VDI", snap.Ref, "xenkeep:role", "base"); err != nil {
		t.Error(err)
	}
	if vdi, err := c.VDI(ctx, snap.Ref); err != nil || vdi.OtherConfig["xenkeep:role"] != "base" {
		t.Errorf("mark: %v, %v", vdi.OtherConfig, err)
	}
	for class, read := range map[string]func() (int, error){
		"VDI":          func() (int, error) { l, err := c.VDIs(ctx); return len(l), err },
		"VBD":          func() (int, error) { l, err := c.VBDs(ctx); return len(l), err },
		"PBD":          func() (int, error) { l, err := c.PBDs(ctx); return len(l), err },
		"network":      func() (int, error) { l, err := c.Networks(ctx); return len(l), err },
		"PIF":          func() (int, error) { l, err := c.PIFs(ctx); return len(l), err },
		"host":         func() (int, error) { l, err := c.Hosts(ctx); return len(l), err },
		"host_metrics": func() (int, error) { l, err := c.HostMetrics(ctx); return len(l), err },
		"SM":           func() (int, error) { l, err := c.SMs(ctx); return len(l), err },
	} {
		if n, err := read(); err != nil || n == 0 {
			t.Errorf("%s: %d records, %v", class, n, err)
		}
	}
	rec, err := c.Pool(ctx)
	if err != nil || rec.UUID != c.PoolUUID() {
		t.Errorf("pool: %v", err)
	}
	if now, err := c.ServerTime(ctx, rec.Master); err != nil || time.Since(now.Time).Abs() > time.Hour {
		t.Errorf("server time %v, %v", now, err)
	}
	noTasks(t, c)
}

func TestSimLogin(t *testing.T) {
	p, _ := pool(t, nil)
	cfg := simConfig(p)
	cfg.Password = "wrong"
	if _, err := xapi.Dial(t.Context(), cfg); !errors.Is(err, xapi.SessionAuthenticationFailed) {
		t.Errorf("wrong password: %v", err)
	}
	cfg = simConfig(p)
	cfg.URL = p.HostURL(1)
	cfg.Trust.Fingerprints = p.Fingerprints()
	c, err := xapi.Dial(t.Context(), cfg)
	if err != nil {
		t.Fatalf("by way of the member: %v", err)
	}
	defer c.Close(context.Background())
	p.DropSessions()
	if _, err := c.VMs(t.Context()); err != nil {
		t.Errorf("after a lost session: %v", err)
	}
	p.Restart()
	if _, err := c.VMs(t.Context()); err != nil {
		t.Errorf("after a restart: %v", err)
	}
}

func TestSimExport(t *testing.T) {
	for _, useTLS := range []bool{true, false} {
		p, disk := pool(t, func(cfg *xapisim.Config) { cfg.NoTLS = !useTLS })
		c := dialSim(t, p)
		first := snapshot(t, c)
		raw, err := exportSim(t, c, xapi.ExportOptions{VDI: first.Ref, Format: xapi.FormatRaw})
		if err != nil || !bytes.Equal(raw, disk) {
			t.Fatalf("raw export: %d of %d bytes, %v", len(raw), len(disk), err)
		}
		full, err := exportSim(t, c, xapi.ExportOptions{VDI: first.Ref})
		if err != nil {
			t.Fatal(err)
		}
		if got := blocks(t, full); len(got) < 3 {
			t.Errorf("full export of blocks %v", got)
		}

		disk[7*mib] = 1 // the guest writes
		image := filepath.Join(t.TempDir(), "later.raw")
		if err := os.WriteFile(image, disk, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := p.GuestWrite(p.Ready().VMs[0].Disks[0].VDI, image); err != nil {
			t.Fatal(err)
		}
		second := snapshot(t, c)
		delta, err := exportSim(t, c, xapi.ExportOptions{VDI: second.Ref, Base: first.Ref})
		if err != nil {
			t.Fatal(err)
		}
		if got := blocks(t, delta); len(got) != 1 || got[0] != 3 {
			t.Errorf("delta of blocks %v, want [3]", got)
		}

		// To a new disk: first the full image, then the delta.
		target, err := c.CreateVDI(t.Context(), xapi.VDIFields{Name: "restored", SR: first.SR, Size: 16 * mib})
		if err != nil {
			t.Fatal(err)
		}
		for _, stream := range [][]byte{full, delta} {
			err := c.ImportVDI(t.Context(), xapi.ImportOptions{VDI: target, ContentLength: int64(len(stream))}, func(w io.Writer) error {
				_, err := w.Write(stream)
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		got, err := exportSim(t, c, xapi.ExportOptions{VDI: target, Format: xapi.FormatRaw})
		if err != nil || !bytes.Equal(got, disk) {
			t.Errorf("restored disk: equal %v, %v", bytes.Equal(got, disk), err)
		}
		for _, vdi := range []xapi.Ref{target, second.Ref, first.Ref} {
			if err := c.DestroyVDI(t.Context(), vdi); err != nil {
				t.Errorf("destroy: %v", err)
			}
		}
		noTasks(t, c)
	}
}

// A disk on the member's local storage is reached through a redirect.
func TestSimRedirect(t *testing.T) {
	p, _ := pool(t, nil)
	c := dialSim(t, p)
	sr, err := c.FindSR(t.Context(), "Local storage on member")
	if err != nil {
		t.Fatal(err)
	}
	vdi, err := c.CreateVDI(t.Context(), xapi.VDIFields{Name: "x", SR: sr.Ref, Size: 4 * mib})
	if err != nil {
		t.Fatal(err)
	}
	hosts, err := c.HostsFor(t.Context(), sr.Ref)
	if err != nil || len(hosts) != 1 {
		t.Fatalf("%d hosts, %v", len(hosts), err)
	}
	data := noise(4 * mib)
	for _, host := range []string{"", c.Master()} {
		err := c.ImportVDI(t.Context(), xapi.ImportOptions{VDI: vdi, Format: xapi.FormatRaw, ContentLength: int64(len(data)), Host: host}, func(w io.Writer) error {
			_, err := w.Write(data)
			return err
		})
		if err != nil {
			t.Errorf("import by way of %q: %v", host, err)
		}
		e, err := c.ExportVDI(t.Context(), xapi.ExportOptions{VDI: vdi, Format: xapi.FormatRaw, Host: host})
		if err != nil {
			t.Errorf("export by way of %q: %v", host, err)
			continue
		}
		got, _ := io.ReadAll(e)
		if err := e.Finish(t.Context()); err != nil || !bytes.Equal(got, data) || e.Host() == c.Master() {
			t.Errorf("export by way of %q: %d bytes from %s, %v", host, len(got), e.Host(), err)
		}
	}
	noTasks(t, c)
}

func TestSimTransferFailures(t *testing.T) {
	p, _ := pool(t, nil)
	cfg := simConfig(p)
	cfg.VerdictTimeout = 300 * time.Millisecond
	c, err := xapi.Dial(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close(context.Background())
	vdi := snapshot(t, c)
	for name, test := range map[string]struct {
		fault xapisim.Fault
		want  error
	}{
		"at byte 0":     {xapisim.Fault{On: "/export_raw_vdi", Code: "VDI_IN_USE", Params: []string{"x", "export"}}, xapi.VDIInUse},
		"in the middle": {xapisim.Fault{On: "/export_raw_vdi", Code: "VDI_IO_ERROR", Params: []string{"Device I/O errors"}, Cut: true, CutAt: 3 * mib, Embedded: true}, xapi.VDIIOError},
		"refused":       {xapisim.Fault{On: "/export_raw_vdi", Status: 500}, nil},
		"reset":         {xapisim.Fault{On: "/export_raw_vdi", Cut: true, CutAt: mib, Reset: true}, nil},
		"cut":           {xapisim.Fault{On: "/export_raw_vdi", Cut: true, CutAt: 2*mib + 1}, nil},
		"stalled":       {xapisim.Fault{On: "/export_raw_vdi", Cut: true, CutAt: mib, Stall: true}, xapi.ErrStalled},
	} {
		p.Fault(test.fault)
		_, err := exportSim(t, c, xapi.ExportOptions{VDI: vdi.Ref, StallTimeout: 300 * time.Millisecond})
		if err == nil || test.want != nil && !errors.Is(err, test.want) {
			t.Errorf("%s: got %v, want %v", name, err, test.want)
		}
		p.ClearFaults()
		noTasks(t, c)
	}
	p.DropSessions()
	if _, err := exportSim(t, c, xapi.ExportOptions{VDI: vdi.Ref}); err != nil {
		t.Errorf("with a lost session: %v", err)
	}

	// Failing imports: the disk is in use, the stream is no VHD, the stream is
	// cut.
	target, err := c.CreateVDI(t.Context(), xapi.VDIFields{Name: "x", SR: vdi.SR, Size: 16 * mib})
	if err != nil {
		t.Fatal(err)
	}
	send := func(n int64) error {
		return c.ImportVDI(t.Context(), xapi.ImportOptions{VDI: target, ContentLength: n, StallTimeout: time.Second}, func(w io.Writer) error {
			_, err := io.CopyN(w, zeros{}, n)
			return err
		})
	}
	if err := send(8 * mib); !errors.Is(err, xapi.VDIIOError) {
		t.Errorf("no VHD: %v", err)
	}
	p.Fault(xapisim.Fault{On: "/import_raw_vdi", Code: "VDI_IN_USE", Params: []string{"x"}})
	if err := send(64 * mib); !errors.Is(err, xapi.VDIInUse) {
		t.Errorf("in use: %v", err)
	}
	noTasks(t, c)
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestSimCancel(t *testing.T) {
	p, _ := pool(t, nil)
	c := dialSim(t, p)
	vdi := snapshot(t, c)
	ctx, cancel := context.WithCancel(t.Context())
	e, err := c.ExportVDI(ctx, xapi.ExportOptions{VDI: vdi.Ref, Format: xapi.FormatRaw})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(e, make([]byte, mib)); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	cancel()
	if _, err := io.Copy(io.Discard, e); !errors.Is(err, context.Canceled) {
		t.Errorf("read: %v", err)
	}
	_ = e.Close(ctx)
	if took := time.Since(start); took > 8*time.Second {
		t.Errorf("cancelling took %v", took)
	}
	noTasks(t, c)

	// The disk is no longer in use.
	if err := c.DestroyVDI(t.Context(), vdi.Ref); err != nil {
		t.Errorf("destroy: %v", err)
	}
}

func TestSimMetadata(t *testing.T) {
	p, _ := pool(t, nil)
	c := dialSim(t, p)
	vm, err := c.FindVM(t.Context(), "web")
	if err != nil {
		t.Fatal(err)
	}
	var tar bytes.Buffer
	if err := c.ExportMetadata(t.Context(), vm.Ref, &tar); err != nil || !bytes.HasPrefix(tar.Bytes(), []byte("ova.xml")) || !bytes.Contains(tar.Bytes(), []byte(vm.UUID)) {
		t.Errorf("%d bytes, %v", tar.Len(), err)
	}
	noTasks(t, c)
}

// A VM created from a stored record has the settings of the old one.
func TestSimCreateVM(t *testing.T) {
	p, _ := pool(t, nil)
	c := dialSim(t, p)
	ctx := t.Context()
	old, err := c.FindVM(ctx, "web")
	if err != nil {
		t.Fatal(err)
	}
	fields, err := xapi.VMFields(&old)
	if err != nil {
		t.Fatal(err)
	}
	fields["name_label"] = "copy"
	ref, err := c.CreateVM(ctx, fields)
	if err != nil {
		t.Fatal(err)
	}
	vdi, err := c.CreateVDI(ctx, xapi.VDIFields{Name: "x", SR: snapshot(t, c).SR, Size: 3*mib + 1})
	if err != nil {
		t.Fatal(err)
	}
	if rec, err := c.VDI(ctx, vdi); err != nil || rec.VirtualSize != 4*mib {
		t.Errorf("size %d, %v", rec.VirtualSize, err)
	}
	vbd, err := c.CreateVBD(ctx, xapi.VBD{VM: ref, VDI: vdi, UserDevice: "0", Mode: "RW", Type: "Disk", Bootable: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.CreateVBD(ctx, xapi.VBD{VM: ref, UserDevice: "3", Mode: "RO", Type: "CD", Empty: true}); err != nil {
		t.Errorf("CD drive: %v", err)
	}
	nets, err := c.Networks(ctx)
	if err != nil || len(nets) == 0 {
		t.Fatal("no networks: ", err)
	}
	if _, err := c.CreateVIF(ctx, xapi.VIF{VM: ref, Network: nets[0].Ref, Device: "0"}); err != nil {
		t.Errorf("VIF: %v", err)
	}
	vm, err := c.FindVM(ctx, "copy")
	if err != nil || vm.UUID == old.UUID || vm.MemoryStaticMax != old.MemoryStaticMax || len(vm.VBDs) != 2 || len(vm.VIFs) != 1 {
		t.Errorf("copy: %v, %.400s", err, vm.Raw)
	}
	if err := c.DestroyVBD(ctx, vbd); err != nil {
		t.Error(err)
	}
	if err := c.DestroyVM(ctx, ref); err != nil {
		t.Error(err)
	}
	if err := c.DestroyVDI(ctx, vdi); err != nil {
		t.Error(err)
	}
	noTasks(t, c)
}

// Row X3 of the fault list: a schedule is run by a synchronous call, because
// the pool offers no other.
func TestRunSchedule(t *testing.T) {
	p, _ := pool(t, nil)
	c := dialSim(t, p)
	vm, err := c.FindVM(t.Context(), "web")
	if err != nil {
		t.Fatal(err)
	}
	ref, err := c.CreateVMSS(t.Context(), xapi.VMSS{NameLabel: "s", Enabled: true, Type: "snapshot", Frequency: "hourly", RetainedSnapshots: 3})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.AssignVMSS(t.Context(), vm.Ref, ref); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Async(t.Context(), "VMSS.snapshot_now", ref); !xapi.IsCode(err, "Fault") {
		t.Fatalf("the pool has a task for it: %v", err)
	}
	if _, err := c.RunVMSS(t.Context(), ref); err != nil {
		t.Fatal(err)
	}
	if vm, err = c.VM(t.Context(), vm.Ref); err != nil || len(vm.Snapshots) != 1 {
		t.Errorf("%d snapshots, %v", len(vm.Snapshots), err)
	}
}

// A task is removed even if its state cannot be read.
func TestDestroyTaskUnread(t *testing.T) {
	p, _ := pool(t, nil)
	c := dialSim(t, p)
	task, err := c.CreateTask(t.Context(), "xenkeep: test", "a test")
	if err != nil {
		t.Fatal(err)
	}
	p.Fault(xapisim.Fault{On: "task.get_record", Code: "INTERNAL_ERROR", Params: []string{"one"}})
	if err := c.DestroyTask(t.Context(), task); err != nil {
		t.Error(err)
	}
	p.ClearFaults()
	noTasks(t, c)
}
