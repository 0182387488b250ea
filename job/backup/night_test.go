package backup_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"xenkeep/chunkstore/object"
	"xenkeep/chunkstore/seal"
	"xenkeep/job"
	"xenkeep/job/backup"
	"xenkeep/job/jobtest"
	"xenkeep/job/lease"
	"xenkeep/job/records"
	"xenkeep/job/restore"
	"xenkeep/job/vmplan"
	"xenkeep/repo"
	"xenkeep/repo/retention"
	"xenkeep/xapi"
	"xenkeep/xapi/xapisim"
)

func TestKinds(t *testing.T) {
	for _, c := range []struct {
		what   string
		cfg    xapisim.Config
		state  string
		kinds  []vmplan.Kind
		want   string // kind, "" for a failure
		says   string
		faults []xapisim.Fault
	}{
		{what: "quiesced", cfg: xapisim.Config{Version: xapisim.Version80}, kinds: []vmplan.Kind{vmplan.KindQuiesced}, want: "quiesced"},
		{what: "quiesced on a new host", kinds: []vmplan.Kind{vmplan.KindQuiesced}, says: "they went with 8.1"},
		{what: "quiesced, else regular", kinds: []vmplan.Kind{vmplan.KindQuiesced, vmplan.KindRegular}, want: "regular", says: "no quiesced snapshot: the pool's version has none any more"},
		{what: "quiesced, timed out twice", cfg: xapisim.Config{Version: xapisim.Version80}, kinds: []vmplan.Kind{vmplan.KindQuiesced}, want: "quiesced",
			faults: []xapisim.Fault{{On: "VM.snapshot_with_quiesce", Code: "VM_SNAPSHOT_WITH_QUIESCE_TIMEOUT", Params: []string{"x"}, Times: 2}}},
		{what: "quiesced, timed out for good", cfg: xapisim.Config{Version: xapisim.Version80}, kinds: []vmplan.Kind{vmplan.KindQuiesced, vmplan.KindOffline}, want: "offline", says: "did not freeze its disks within the 10 s",
			faults: []xapisim.Fault{{On: "VM.snapshot_with_quiesce", Code: "VM_SNAPSHOT_WITH_QUIESCE_TIMEOUT", Params: []string{"x"}, Times: 3}}},
		{what: "quiesced, halted", cfg: xapisim.Config{Version: xapisim.Version80}, state: "clean_shutdown", kinds: []vmplan.Kind{vmplan.KindQuiesced}, says: "only a running guest can take part"},
		{what: "checkpoint", kinds: []vmplan.Kind{vmplan.KindCheckpoint}, want: "checkpoint"},
		{what: "checkpoint, halted", state: "clean_shutdown", kinds: []vmplan.Kind{vmplan.KindCheckpoint, vmplan.KindRegular}, want: "regular", says: "has no memory to save"},
		{what: "checkpoint, paused", state: "pause", kinds: []vmplan.Kind{vmplan.KindCheckpoint}, says: "is paused"},
		{what: "checkpoint without a licence", cfg: xapisim.Config{Unlicensed: true}, kinds: []vmplan.Kind{vmplan.KindCheckpoint, vmplan.KindRegular}, want: "regular", says: "LICENCE_RESTRICTION"},
		{what: "checkpoint without room", kinds: []vmplan.Kind{vmplan.KindCheckpoint}, says: "the memory needs 2.4 GiB, 2.1 GiB are free",
			cfg: xapisim.Config{SRs: []xapisim.SRConfig{{Name: "small", Type: "ext", Size: 2<<30 + 64<<20}}}},
		{what: "offline", kinds: []vmplan.Kind{vmplan.KindOffline}, want: "offline"},
		{what: "offline, halted", state: "clean_shutdown", kinds: []vmplan.Kind{vmplan.KindOffline}, want: "offline"},
		{what: "offline, suspended", state: "suspend", kinds: []vmplan.Kind{vmplan.KindOffline}, says: "cannot be shut down cleanly"},
		{what: "offline, and the snapshot fails", kinds: []vmplan.Kind{vmplan.KindOffline}, says: "SR_BACKEND_FAILURE_44",
			faults: []xapisim.Fault{{On: "VM.snapshot", Code: "SR_BACKEND_FAILURE_44", Params: []string{"", "", ""}, Times: -1}}},
	} {
		t.Run(c.what, func(t *testing.T) {
			w := jobtest.NightPool(t, c.cfg, "web")
			vm, err := w.Pool.FindVM(t.Context(), "web")
			if err != nil {
				t.Fatal(err)
			}
			if c.state != "" {
				var args []any
				if err := w.Pool.Call(t.Context(), "VM."+c.state, nil, append([]any{vm.Ref}, args...)...); err != nil {
					t.Fatal(err)
				}
			}
			if vm, err = w.Pool.VM(t.Context(), vm.Ref); err != nil {
				t.Fatal(err)
			}
			o := w.Options()
			o.Keep = backup.KeepNone
			o.Selected = w.Requests("web")
			o.Selected[0].Kinds = c.kinds
			before := w.Sim.Dump()
			for _, f := range c.faults {
				w.Sim.Fault(f)
			}
			s, err := backup.Run(t.Context(), w.Repo, w.Pool, o)
			w.Sim.ClearFaults()
			told := strings.Join(s.Warnings, "\n")
			if err != nil {
				told += err.Error()
			}
			if got := kindOf(s); got != c.want || !strings.Contains(told, c.says) || c.says == "" && told != "" {
				t.Errorf("kind %q, want %q; reported %q, want %q", got, c.want, told, c.says)
			}
			now, err := w.Pool.VM(t.Context(), vm.Ref)
			if err != nil {
				t.Fatal(err)
			}
			if now.PowerState != vm.PowerState || now.OtherConfig["xenkeep:offline"] != "" {
				t.Errorf("the VM is %s and was %s; %v", now.PowerState, vm.PowerState, now.OtherConfig)
			}
			if n := len(w.Sim.Dump()["VDI"]); n != len(before["VDI"]) && !vhdChain(before, w.Sim.Dump()) {
				t.Errorf("%d VDIs, before %d", n, len(before["VDI"]))
			}
			for _, v := range w.Sim.Dump()["VDI"] {
				if v["is_a_snapshot"] == true || v["type"] == "suspend" && vm.PowerState != "Suspended" {
					t.Errorf("%v stays", v["name_label"])
				}
			}
			w.CheckRepository()
		})
	}
}

func kindOf(s *job.Summary) string {
	if len(s.Snapshots) == 0 {
		return ""
	}
	return s.Snapshots[0].Kind
}

// vhdChain reports whether after has only hidden parents in addition to before.
func vhdChain(before, after map[string]map[string]map[string]any) bool {
	for ref, v := range after["VDI"] {
		if _, was := before["VDI"][ref]; !was && v["managed"] == true {
			return false
		}
	}
	return true
}

// The report warns of a quiesced VM snapshot of many disks, before and after it was
// made; on hosts that have no quiesced snapshots, preview and run agree.
func TestQuiesceManyDisks(t *testing.T) {
	for _, version := range []xapisim.Version{xapisim.Version80, xapisim.Version82} {
		dir := t.TempDir()
		vm := xapisim.VMConfig{Name: "web", Drivers: true}
		for i := range 3 {
			vm.Disks = append(vm.Disks, jobtest.Image(t, filepath.Join(dir, fmt.Sprint(i)), 4*jobtest.MiB, uint64(i), 2))
		}
		w := jobtest.New(t, xapisim.Config{Version: version, VMs: []xapisim.VMConfig{vm}})
		o := w.Options()
		o.Selected = w.Requests("web")
		o.Selected[0].Kinds = []vmplan.Kind{vmplan.KindQuiesced}
		f, err := backup.NewPreview(t.Context(), w.Repo, w.Pool, o)
		if err != nil {
			t.Fatal(err)
		}
		fc, ferr := f.VM(t.Context(), o.Selected[0])
		s, err := backup.Run(t.Context(), w.Repo, w.Pool, o)
		if version == xapisim.Version80 {
			const want = "it has 3 disks: quiesced snapshots of more than two may not be done within the 10 s that the guest has; spread them over several SRs"
			if ferr != nil || fc.Kind != vmplan.KindQuiesced || len(fc.Warnings) != 1 || fc.Warnings[0] != want {
				t.Errorf("foreseen: %+v %v", fc, ferr)
			}
			if err != nil || kindOf(s) != "quiesced" || len(s.Warnings) != 1 || s.Warnings[0] != "VM web: "+want {
				t.Errorf("%+v %v", s, err)
			}
			continue
		}
		for what, err := range map[string]error{"foreseen": ferr, "run": err} {
			if err == nil || !strings.Contains(err.Error(), "no quiesced snapshot: the pool's version has none any more (they went with 8.1)") || job.HintOf(err) == "" {
				t.Errorf("%s: %v, hint %q", what, err, job.HintOf(err))
			}
		}
		w.CheckRepository()
	}
}

// The memory of a checkpoint is restored exactly.
func TestCheckpointMemory(t *testing.T) {
	w := jobtest.NightPool(t, xapisim.Config{}, "web")
	o := w.Options()
	o.Selected = w.Requests("web")
	o.Selected[0].Kinds = []vmplan.Kind{vmplan.KindCheckpoint}
	for range 2 {
		s := w.Snapshot(w.Backup(o).Snapshots[0].ID)
		d, err := s.Disk(records.MemoryDevice)
		if err != nil || s.Kind != "checkpoint" || len(s.Disks) != 2 || d.Size != 2<<30 || d.Counts.Read == 0 {
			t.Fatalf("%+v %v", s, err)
		}
		file := filepath.Join(t.TempDir(), "memory")
		if _, err := restore.File(t.Context(), w.Repo, s, d, file, restore.Options{}); err != nil {
			t.Fatal(err)
		}
		f, err := os.Open(file)
		if err != nil {
			t.Fatal(err)
		}
		head := make([]byte, 15)
		if _, err := io.ReadFull(f, head); err != nil || string(head) != "XenSavedDomv2-\n" {
			t.Errorf("memory begins %q %v", head, err)
		}
		_ = f.Close()
	}
	sr := w.Sim.Ready().SRs[0].UUID
	res, err := restore.VM(t.Context(), w.Repo, w.Pool, w.Snapshot("latest"), restore.VMOptions{Target: restore.Target{SR: sr}, Name: "back"}, restore.Options{})
	if err != nil || len(res.Disks) < 1 {
		t.Errorf("restore: %+v %v", res, err)
	}
	w.CheckRepository()
}

// The next run starts a VM that a killed run shut down; it does not touch clones of
// it, and VMs of live runs.
func TestCleanupStarts(t *testing.T) {
	w := jobtest.NightPool(t, xapisim.Config{}, "web", "clone")
	mark := func(name, of, machine, process string) xapi.Ref {
		vm, err := w.Pool.FindVM(t.Context(), name)
		if err == nil {
			err = w.Pool.CleanShutdown(t.Context(), vm.Ref)
		}
		if of == "" {
			of = vm.UUID
		}
		if err == nil {
			err = w.Pool.SetOtherConfig(t.Context(), "VM", vm.Ref, "xenkeep:offline",
				fmt.Sprintf(`{"vm":%q,"repository":%q,"run":"00112233","machine":%q,"process":%q}`, of, w.Repo.ID(), machine, process))
		}
		if err != nil {
			t.Fatal(err)
		}
		return vm.Ref
	}
	web := mark("web", "", "elsewhere", "gone")
	clone := mark("clone", "another", "elsewhere", "gone")
	if l := w.Cleanup(lease.CleanupOptions{DryRun: true})["web"]; l.Role != "offline" || l.Action != lease.ActStart {
		t.Errorf("%+v", l)
	}
	w.Cleanup(lease.CleanupOptions{})
	for ref, want := range map[xapi.Ref]string{web: "Running", clone: "Halted"} {
		vm, err := w.Pool.VM(t.Context(), ref)
		if err != nil || vm.PowerState != want {
			t.Errorf("%s is %s, want %s (%v)", vm.NameLabel, vm.PowerState, want, err)
		}
	}
	// A mark of a run that still has its claim.
	web = mark("web", "", "elsewhere", "alive")
	claim := &repo.Claim{Run: "00112233", Machine: "elsewhere", Process: "x", Started: time.Now()}
	if err := w.Repo.PutClaim(t.Context(), claim); err != nil {
		t.Fatal(err)
	}
	w.Cleanup(lease.CleanupOptions{})
	if vm, err := w.Pool.VM(t.Context(), web); err != nil || vm.PowerState != "Halted" {
		t.Errorf("of a live run: %s %v", vm.PowerState, err)
	}
}

// Disks are left out, also if the host cannot leave them out of a snapshot.
func TestLeaveOut(t *testing.T) {
	for _, c := range []struct {
		version xapisim.Version
		kind    vmplan.Kind
	}{{xapisim.VersionCurrent, vmplan.KindRegular}, {xapisim.Version80, vmplan.KindRegular}, {xapisim.VersionCurrent, vmplan.KindCheckpoint}} {
		w := jobtest.New(t, xapisim.Config{Version: c.version, VMs: []xapisim.VMConfig{{Name: "web", Drivers: true, Disks: []string{
			jobtest.Image(t, filepath.Join(t.TempDir(), "a"), 4*jobtest.MiB, 1, 4), jobtest.Image(t, filepath.Join(t.TempDir(), "b"), 4*jobtest.MiB, 2, 4),
		}}}})
		o := w.Options()
		o.Keep = backup.KeepNone
		o.Selected = w.Requests("web")
		o.Selected[0].Kinds = []vmplan.Kind{c.kind}
		o.Selected[0].Leave = map[string]string{w.Sim.Ready().VMs[0].Disks[1].VDI: "its name contains [NOBAK]"}
		for range 2 {
			s := w.Snapshot(w.Backup(o).Snapshots[0].ID)
			if s.Disks[0].Device != "xvda" || len(s.Missing) != 1 || s.Missing[0].Reason != "its name contains [NOBAK]" || !s.Complete {
				t.Errorf("%s: %+v", c.version, s)
			}
			for _, d := range s.Disks {
				if d.Device == "xvdb" {
					t.Errorf("%s: xvdb was saved", c.version)
				}
			}
		}
		for _, v := range w.Sim.Dump()["VDI"] {
			if v["is_a_snapshot"] == true {
				t.Errorf("%s: %v stays", c.version, v["name_label"])
			}
		}
	}
}

func TestDatabase(t *testing.T) {
	names := make([]string, 60)
	for i := range names {
		names[i] = fmt.Sprint("vm", i)
	}
	w := jobtest.NightPool(t, xapisim.Config{}, names...)
	o := w.Options("vm1")
	o.Database, o.Retention = true, retention.Policy{Last: 2}
	var last int64
	for i := range 3 {
		s := w.Backup(o)
		snap := w.Snapshot(s.Database)
		if snap.Origin != repo.OriginDatabase || snap.Disks[0].Size == 0 || w.Snapshot("latest").Origin != "pool" {
			t.Fatalf("%+v", snap)
		}
		if i > 0 && snap.Disks[0].Counts.New >= last {
			t.Errorf("dump %d: %d new bytes of %d", i, snap.Disks[0].Counts.New, snap.Disks[0].Size)
		}
		last = snap.Disks[0].Size
	}
	all, _, err := w.Repo.Snapshots(t.Context())
	if err != nil || len(all) != 4 {
		t.Errorf("%d snapshots remain, %v", len(all), err)
	}
	s := w.Snapshot("latest:database:" + all[0].Pool.UUID)
	file := filepath.Join(t.TempDir(), "db.xml")
	res, err := restore.File(t.Context(), w.Repo, s, &s.Disks[0], file, restore.Options{})
	if err != nil || len(res.Steps) < 3 || !strings.Contains(strings.Join(res.Steps, " "), "xe pool-restore-database file-name="+file) {
		t.Fatalf("%+v %v", res, err)
	}
	p, err := os.ReadFile(file)
	if err != nil || !strings.HasPrefix(string(p), "<?xml") && !strings.HasPrefix(string(p), "<database") || !strings.HasSuffix(strings.TrimSpace(string(p)), "</database>") {
		t.Errorf("dump %.40q %v", p, err)
	}
	w.CheckRepository()

	w = jobtest.NightPool(t, xapisim.Config{RollingUpgrade: true}, "web")
	o = w.Options("web")
	o.Database = true
	sum, err := backup.Run(t.Context(), w.Repo, w.Pool, o)
	if err == nil || !strings.Contains(err.Error(), "rolling upgrade") || sum.Database != "" || len(sum.Snapshots) != 1 || sum.Status != "partial" {
		t.Errorf("%+v %v", sum, err)
	}
}

// The order of VMs, the second attempts at the end, and the window.
func TestQueue(t *testing.T) {
	w := jobtest.NightPool(t, xapisim.Config{}, "a", "b", "c", "d")
	o := w.Options()
	o.Selected, o.VMConcurrency, o.Retries = w.Requests("c", "a", "d", "b"), 1, 1
	var order []string
	fails := map[string]int{"c": 1, "a": 5}
	o.VMBefore = func(_ context.Context, name, uuid string) error {
		order = append(order, name)
		return nil
	}
	o.VMAfter = func(_ context.Context, name, uuid string, err error) error {
		if (err != nil) != (fails[name] >= 0 && fails[name] > 0) {
			t.Errorf("after %s: %v", name, err)
		}
		fails[name]--
		if name == "d" {
			return errors.New("thaw: no such file")
		}
		return nil
	}
	w.Sim.Fault(xapisim.Fault{On: "VM.snapshot", Code: "SR_BACKEND_FAILURE_44", Params: []string{"", "", ""}, Times: 2})
	w.Sim.Fault(xapisim.Fault{On: "VM.snapshot", Nth: 6, Code: "SR_BACKEND_FAILURE_44", Params: []string{"", "", ""}})
	s, err := backup.Run(t.Context(), w.Repo, w.Pool, o)
	w.Sim.ClearFaults()
	if got := strings.Join(order, ""); got != "cadbca" {
		t.Errorf("order %s", got)
	}
	if !errors.Is(err, job.ErrPartial) || len(s.Failed) != 1 || s.Failed[0].VM != "a" || s.Failed[0].UUID == "" || len(s.Snapshots) != 3 {
		t.Errorf("%+v %v", s, err)
	}
	if len(s.Warnings) != 1 || !strings.Contains(s.Warnings[0], "VM d: thaw") {
		t.Errorf("warnings %q", s.Warnings)
	}

	// A hook that fails is not tried again.
	order, o.VMAfter = nil, nil
	o.VMBefore = func(_ context.Context, name, _ string) error {
		order = append(order, name)
		if name == "a" {
			return fmt.Errorf("freeze: %w", job.ErrHook)
		}
		return nil
	}
	if s, err = backup.Run(t.Context(), w.Repo, w.Pool, o); !errors.Is(err, job.ErrHook) || len(s.Snapshots) != 3 || len(order) != 4 {
		t.Errorf("%v %v %+v", err, order, s)
	}

	// The clock passes the window's end while the second VM is read.
	var hours atomic.Int64
	start := time.Now()
	o.Now = func() time.Time { return start.Add(time.Duration(hours.Load()) * time.Hour) }
	o.StopAfter = start.Add(3 * time.Hour)
	o.VMBefore = func(context.Context, string, string) error { hours.Add(2); return nil }
	s, err = backup.Run(t.Context(), w.Repo, w.Pool, o)
	if !errors.Is(err, job.ErrMissed) || s.Status != "partial" || len(s.Snapshots) != 2 || len(s.Skipped) != 2 || s.Skipped[0].VM != "d" || !strings.Contains(s.Skipped[0].Reason, "window ended at") {
		t.Errorf("%v %+v", err, s)
	}
	o.StopAfter = start
	if s, err = backup.Run(t.Context(), w.Repo, w.Pool, o); !errors.Is(err, job.ErrMissed) || s.Status != "skipped" || len(s.Skipped) != 4 {
		t.Errorf("%v %+v", err, s)
	}
	w.CheckRepository()
}

// slowPuts is a store that writes packs slowly.
type slowPuts struct {
	object.Store
	wait time.Duration
}

func (s *slowPuts) Put(ctx context.Context, name string, data []byte) error {
	if strings.HasPrefix(name, "packs/") || strings.HasPrefix(name, "data/") || len(data) > 1<<20 {
		time.Sleep(s.wait)
	}
	return s.Store.Put(ctx, name, data)
}

// trickle is a proxy to the pool that passes rate bytes per millisecond.
func trickle(t *testing.T, to string, rate int) string {
	u, err := url.Parse(to)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", u.Hostname()+":0")
	if err != nil {
		t.Fatal(err)
	}
	var over sync.WaitGroup
	target := u.Host
	t.Cleanup(func() { _ = l.Close(); over.Wait() })
	over.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			over.Go(func() {
				defer in.Close()
				out, err := net.Dial("tcp", target)
				if err != nil {
					return
				}
				defer out.Close()
				over.Go(func() { _, _ = io.Copy(out, in); _ = out.Close() })
				p := make([]byte, rate*10)
				for {
					n, err := out.Read(p)
					if _, werr := in.Write(p[:n]); err != nil || werr != nil {
						return
					}
					if n > 4096 {
						time.Sleep(time.Duration(n/rate) * time.Millisecond)
					}
				}
			})
		}
	})
	u.Host = l.Addr().String()
	return u.String()
}

// Each of the four resources is slowed in turn, and is reported as the bottleneck.
func TestBottleneck(t *testing.T) {
	if testing.Short() {
		t.Skip("SKIP: it waits on purpose")
	}
	for _, slow := range []string{"pool", "network", "cpu", "storage"} {
		t.Run(slow, func(t *testing.T) {
			dir := t.TempDir()
			w := jobtest.New(t, xapisim.Config{Hosts: 1, NoTLS: true, VMs: []xapisim.VMConfig{{Name: "web", Disks: []string{jobtest.Image(t, filepath.Join(dir, "d"), 32*jobtest.MiB, 7, 150)}}}})
			o := w.Options("web")
			pool := w.Pool
			switch slow {
			case "pool":
				w.Sim.Fault(xapisim.Fault{On: "VM.snapshot", Delay: 2 * time.Second})
			case "network":
				c, err := xapi.Dial(t.Context(), xapi.Config{URL: trickle(t, w.Sim.URL(), 16<<10), User: w.Sim.User(), Password: w.Sim.Password(), Trust: xapi.Trust{Insecure: true}, Pace: 0.01})
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = c.Close(context.Background()) })
				pool = c
			case "cpu":
				o.Level = seal.LevelBest
				p := make([]byte, 32*jobtest.MiB)
				_, _ = rand.NewChaCha8([32]byte{9}).Read(p)
				for i := range p {
					p[i] &= 0x17
				}
				file := filepath.Join(dir, "text")
				if err := os.WriteFile(file, p, 0o600); err != nil {
					t.Fatal(err)
				}
				if _, err := w.Sim.GuestWrite(w.Sim.Ready().VMs[0].Disks[0].VDI, file); err != nil {
					t.Fatal(err)
				}
			case "storage":
				w.OnStore(&slowPuts{w.Objects, 700 * time.Millisecond})
			}
			s, err := backup.Run(t.Context(), w.Repo, pool, o)
			if err != nil {
				t.Fatal(err)
			}
			v := s.Snapshots[0]
			if total := v.Waits.Pool + v.Waits.Network + v.Waits.CPU + v.Waits.Storage; v.Slowest != slow || total < 0.98 || total > 1.02 {
				t.Errorf("%s: %+v of %.2f s", v.Slowest, v.Waits, v.Duration)
			}
		})
	}
}

// stopAt is a Progress that cancels a run after a number of bytes.
type stopAt struct {
	bytes  int64
	cancel context.CancelFunc
	read   *atomic.Int64
}

func (s stopAt) Begin(string, int64) job.Meter { return s }

func (s stopAt) Done() {}

func (s stopAt) Add(n int64) {
	if s.read.Add(n) >= s.bytes {
		s.cancel()
	}
}

// Row N9 of the fault list: an interrupted run reports for each VM that it had begun
// how much was read, how it will be used, and that the pool is clean, or that the pool
// did not permit the cleanup.
func TestInterruptedVMIsReported(t *testing.T) {
	for _, dirty := range []bool{false, true} {
		w := jobtest.New(t, xapisim.Config{})
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		w.Sim.Fault(xapisim.Fault{On: "/export_raw_vdi", Cut: true, CutAt: 6 * jobtest.MiB, Stall: true, Times: -1})
		if dirty {
			w.Sim.Fault(xapisim.Fault{On: "Async.VM.destroy", Code: "OPERATION_NOT_ALLOWED", Params: []string{"x"}, Times: -1})
			w.Sim.Fault(xapisim.Fault{On: "VM.destroy", Code: "OPERATION_NOT_ALLOWED", Params: []string{"x"}, Times: -1})
		}
		o := w.Options("web")
		o.DiskConcurrency = 1
		o.Progress = stopAt{bytes: 2 * jobtest.MiB, cancel: cancel, read: new(atomic.Int64)}
		sum, err := backup.Run(ctx, w.Repo, w.Pool, o)
		if !errors.Is(err, context.Canceled) || len(sum.Interrupted) != 1 || len(sum.Failed) > 0 || sum.Status != "failed" {
			t.Fatalf("%v: %+v", err, sum)
		}
		i := sum.Interrupted[0]
		if i.VM != "web" || i.UUID != w.VM("web").UUID || i.Read < 2*jobtest.MiB || i.Read >= i.Total || i.Clean == dirty {
			t.Errorf("%+v", i)
		}
		end := "the pool is clean$"
		if dirty {
			end = "its VM snapshot is still on the pool, and the next run or xenkeep cleanup removes it$"
		}
		if want := regexp.MustCompile("^after [0-9]+ of [0-9]+ MiB; the next run uses the uploaded data; " + end); !want.MatchString(i.Reason()) {
			t.Errorf("%q", i.Reason())
		}
	}
}

// A backup that does not save the memory of a suspended VM reports that, and so does
// its preview.
func TestSuspendedMemoryIsReported(t *testing.T) {
	w := jobtest.New(t, xapisim.Config{})
	if _, err := w.Pool.Async(t.Context(), "VM.suspend", w.VM("web").Ref); err != nil {
		t.Fatal(err)
	}
	const says = "its memory is not saved"
	f, err := backup.NewPreview(t.Context(), w.Repo, w.Pool, w.Options("web"))
	if err != nil {
		t.Fatal(err)
	}
	fc, err := f.VM(t.Context(), backup.VMRequest{UUID: w.VM("web").UUID, Name: "web"})
	if err != nil || len(fc.Warnings) != 1 || !strings.Contains(fc.Warnings[0], says) {
		t.Errorf("%v: %+v", err, fc)
	}
	sum, err := backup.Run(t.Context(), w.Repo, w.Pool, w.Options("web"))
	if err != nil || len(sum.Warnings) != 1 || !strings.HasPrefix(sum.Warnings[0], "VM web: ") || !strings.Contains(sum.Warnings[0], says) {
		t.Errorf("%v: %+v", err, sum)
	}
	o := w.Options()
	o.Selected = []backup.VMRequest{{UUID: w.VM("web").UUID, Name: "web", Kinds: []vmplan.Kind{vmplan.KindCheckpoint}}}
	w.Backup(o)
}
