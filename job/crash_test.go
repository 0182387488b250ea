package job_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"xenkeep/chunkstore/object/local"
	"xenkeep/chunkstore/object/objecttest"
	"xenkeep/job"
	"xenkeep/job/backup"
	"xenkeep/job/doctor"
	"xenkeep/job/jobtest"
	"xenkeep/job/restore"
	"xenkeep/job/vmplan"
	"xenkeep/repo"
	"xenkeep/xapi"
	"xenkeep/xapi/xapisim"
)

// The crash matrix: a child process makes a backup or a restore and is killed, by
// SIGKILL, after each of its calls and in the middle of transfers. By default a sample
// of the cases runs; XENKEEP_CRASH=200 selects more, XENKEEP_CRASH=all all of them.

const childEnv = "XENKEEP_CRASH_CHILD"

// childTask is the task of a child process.
type childTask struct {
	URL, User, Password string
	Repository, State   string
	Keep                backup.Keep
	Kinds               []vmplan.Kind
	UnplugUSB           bool
	RawOffline          bool
	Restore             string // snapshot; empty for a backup
	How                 string // the kind of restore: see restoreBy
	SR                  string
	SelfTest            string // SR of a self-test; empty for none
	Storage             int    // storage call before which it kills itself; -1 for none
}

func TestMain(m *testing.M) {
	if text := os.Getenv(childEnv); text != "" {
		calls, err := child(text)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		fmt.Println(calls)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func child(text string) (calls int, err error) {
	ctx := context.Background()
	var o childTask
	if err := json.Unmarshal([]byte(text), &o); err != nil {
		return 0, err
	}
	disk, err := local.Open(o.Repository)
	if err != nil {
		return 0, err
	}
	objects := objecttest.NewFaulty(disk)
	r, err := repo.Open(ctx, objects, repo.Options{Secret: jobtest.Secret})
	if err != nil {
		return 0, err
	}
	if err := r.LoadIndex(ctx); err != nil {
		return 0, err
	}
	if o.Storage >= 0 {
		objects.Inject(objecttest.Fault{N: o.Storage, Do: func() { _ = syscall.Kill(os.Getpid(), syscall.SIGKILL) }})
	}
	before := objects.Calls(objecttest.Any)
	pool, err := xapi.Dial(ctx, xapi.Config{
		URL: o.URL, User: o.User, Password: o.Password, Trust: xapi.Trust{Insecure: true}, Pace: 0.01, StallTimeout: 5 * time.Second, VerdictTimeout: 5 * time.Second,
	})
	if err != nil {
		return 0, err
	}
	if o.SelfTest != "" {
		_, err := doctor.SelfTest(ctx, pool, doctor.SelfTestOptions{SR: o.SelfTest, Size: 34 * jobtest.MiB})
		return objects.Calls(objecttest.Any) - before, err
	}
	if o.Restore != "" {
		all, _, err := r.Snapshots(ctx)
		if err != nil {
			return 0, err
		}
		s, err := repo.Resolve(all, o.Restore)
		if err != nil {
			return 0, err
		}
		_, err = restoreBy(ctx, r, pool, s, o.How, o.SR)
		return objects.Calls(objecttest.Any) - before, err
	}
	vm, err := pool.FindVM(ctx, "web")
	if err != nil {
		return 0, err
	}
	_, err = backup.Run(ctx, r, pool, backup.Options{
		Common: job.Common{StateDir: o.State, Job: "crash"}, Selected: []backup.VMRequest{{UUID: vm.UUID, Name: "web", Kinds: o.Kinds}}, Keep: o.Keep, UnplugUSB: o.UnplugUSB, RawOffline: o.RawOffline,
	})
	return objects.Calls(objecttest.Any) - before, err
}

// killProxy is a proxy to the pool that kills a process after a number of answers and
// MiB, before it passes the next one on.
type killProxy struct {
	t      *testing.T
	l      net.Listener
	target string

	mu     sync.Mutex
	at     int // event at which it kills; 0: never
	events int
	bytes  int
	victim *os.Process
	strike func(*os.Process) // called instead of killing

	mayFail bool   // the child may end with an error
	failed  string // error of the last child that failed
}

func newKiller(t *testing.T, to string) *killProxy {
	t.Helper()
	u, err := url.Parse(to)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	k := &killProxy{t: t, l: l, target: u.Host}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go k.serve(c)
		}
	}()
	return k
}

func (k *killProxy) serve(client net.Conn) {
	defer client.Close()
	server, err := net.Dial("tcp", k.target)
	if err != nil {
		return
	}
	defer server.Close()
	var asked struct {
		sync.Mutex
		open bool
	}
	go func() {
		defer server.Close()
		buf := make([]byte, 64<<10)
		for {
			n, err := client.Read(buf)
			p := buf[:n]
			if bytes.HasPrefix(p, []byte("POST /")) || bytes.HasPrefix(p, []byte("GET /")) || bytes.HasPrefix(p, []byte("PUT /")) {
				asked.Lock()
				asked.open = true
				asked.Unlock()
			}
			k.passed(n, false)
			if n > 0 {
				if _, err := server.Write(p); err != nil {
					return
				}
			}
			if err != nil {
				return
			}
		}
	}()
	buf := make([]byte, 64<<10)
	for {
		n, err := server.Read(buf)
		if n > 0 {
			asked.Lock()
			answer := asked.open
			asked.open = false
			asked.Unlock()
			k.passed(n, answer)
			if _, err := client.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

func (k *killProxy) passed(n int, answer bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.bytes += n; k.bytes >= jobtest.MiB {
		k.bytes = 0
		k.events++
	} else if !answer {
		return
	}
	if answer {
		k.events++
	}
	if k.at > 0 && k.events >= k.at && k.victim != nil {
		if k.strike != nil {
			k.strike(k.victim)
		} else {
			_ = k.victim.Kill()
		}
		k.victim = nil
	}
}

// run runs a child until its end, or until event at, and returns the number of events
// and storage calls.
func (k *killProxy) run(o childTask, at int) (events, calls int, killed bool) {
	k.t.Helper()
	o.URL = "http://" + k.l.Addr().String()
	text, err := json.Marshal(o)
	if err != nil {
		k.t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+string(text))
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	k.mu.Lock()
	if err := cmd.Start(); err != nil {
		k.mu.Unlock()
		k.t.Fatal(err)
	}
	k.at, k.events, k.bytes, k.victim, k.failed = at, 0, 0, cmd.Process, ""
	k.mu.Unlock()
	err = cmd.Wait()
	k.mu.Lock()
	defer k.mu.Unlock()
	k.victim = nil
	var exit *exec.ExitError
	switch {
	case err == nil:
		_, _ = fmt.Sscan(out.String(), &calls)
	case errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL:
		killed = true
	case k.mayFail:
		k.failed = strings.TrimSpace(stderr.String())
	default:
		k.t.Fatalf("the child failed: %v %s", err, stderr.String())
	}
	return k.events, calls, killed
}

// sampled returns about n of the numbers from 1 to total; XENKEEP_CRASH may select
// another number, or all.
func sampled(total, n int) []int {
	switch text := os.Getenv("XENKEEP_CRASH"); text {
	case "":
	case "all":
		n = total
	default:
		if k, err := strconv.Atoi(text); err == nil && k > 0 {
			n = k
		}
	}
	step := max(total/n, 1)
	var at []int
	for i := 1 + step/2; i <= total; i += step {
		at = append(at, i)
	}
	return at
}

type crashWorld struct {
	*jobtest.World
	k    *killProxy
	file string
	day  int

	kinds []vmplan.Kind
	usb   bool // detach USB devices
	raw   bool // read raw disks while the VM is halted
}

func newCrashWorld(t *testing.T, nbd xapisim.NBDMode) *crashWorld {
	t.Helper()
	file := jobtest.Image(t, filepath.Join(t.TempDir(), "a.img"), 6*jobtest.MiB, 1, 10)
	w := &crashWorld{file: file, World: jobtest.New(t, xapisim.Config{NoTLS: true, Hosts: 1, NBD: nbd, VMs: []xapisim.VMConfig{{Name: "web", Disks: []string{file}}}})}
	w.k = newKiller(t, w.Sim.URL())
	w.newRepository()
	return w
}

func (w *crashWorld) newRepository() {
	w.T.Helper()
	w.day++
	objects, err := local.Create(filepath.Join(w.Dir, fmt.Sprint("repo", w.day)))
	if err != nil {
		w.T.Fatal(err)
	}
	w.OnStore(objects)
}

func (w *crashWorld) order(keep backup.Keep) childTask {
	return childTask{
		User: w.Sim.User(), Password: w.Sim.Password(), Repository: filepath.Join(w.Dir, fmt.Sprint("repo", w.day)), State: w.Dir,
		Keep: keep, Storage: -1, Kinds: w.kinds, UnplugUSB: w.usb, RawOffline: w.raw,
	}
}

// waitIdle waits until the pool has completed the operations of the killed process.
func (w *crashWorld) waitIdle() {
	w.T.Helper()
	for range 500 {
		tasks, err := w.Pool.Tasks(w.T.Context())
		if err != nil {
			w.T.Fatal(err)
		}
		busy := false
		for _, t := range tasks {
			busy = busy || t.Status == "pending" && !strings.HasPrefix(t.NameLabel, "xenkeep")
		}
		if !busy {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	w.T.Fatal("the pool does not come to rest")
}

// backupAgain runs a backup in this process, which must succeed, and checks its
// snapshot.
func (w *crashWorld) backupAgain(keep backup.Keep) *job.Summary {
	w.T.Helper()
	w.waitIdle()
	w.Reopen()
	o := w.Options()
	o.Selected = w.Requests("web")
	o.Selected[0].Kinds = w.kinds
	o.Job, o.Keep, o.UnplugUSB, o.RawOffline = "crash", keep, w.usb, w.raw
	s, err := backup.Run(w.T.Context(), w.Repo, w.Pool, o)
	if err != nil {
		w.T.Fatal(err)
	}
	for _, text := range s.Warnings {
		if !w.usb || !strings.Contains(text, "USB device") {
			w.T.Errorf("warning: %q", text)
		}
	}
	if s.Status != "ok" {
		w.T.Fatalf("%+v", s)
	}
	if got := w.RestoredTo(w.Snapshot(s.Snapshots[0].ID), "xvda"); got != jobtest.FileSum(w.T, w.file) {
		w.T.Error("the disk comes back otherwise")
	}
	w.CheckRepository()
	w.noTasks()
	return s
}

func (w *crashWorld) noTasks() {
	w.T.Helper()
	tasks, err := w.Pool.Tasks(w.T.Context())
	if err != nil {
		w.T.Fatal(err)
	}
	for _, t := range tasks {
		if strings.HasPrefix(t.NameLabel, "xenkeep") {
			w.T.Errorf("the task %q (%s, %s) stays", t.NameLabel, t.NameDescription, t.Status)
		}
	}
}

// sweep kills a child at events of the pool, then at storage calls, and checks the
// invariants after each.
func (op operation) sweep(n int) {
	w := op.w
	w.T.Helper()
	events, calls, _ := w.k.run(op.prepare(), 0)
	op.after()
	if w.T.Failed() {
		w.T.Fatal("without a crash")
	}
	w.T.Logf("%d events of the pool, %d storage calls", events, calls)
	for _, at := range sampled(events, n) {
		_, _, killed := w.k.run(op.prepare(), at)
		op.after()
		if w.T.Failed() {
			w.T.Fatalf("killed at event %d of %d: %v", at, events, killed)
		}
	}
	for _, at := range sampled(calls, n/2) {
		o := op.prepare()
		o.Storage = at - 1
		_, _, killed := w.k.run(o, 0)
		op.after()
		if w.T.Failed() {
			w.T.Fatalf("killed before storage call %d of %d: %v", at, calls, killed)
		}
	}
}

// operation is the operation of a child in the matrices, and the invariants that must
// hold afterwards.
type operation struct {
	w       *crashWorld
	prepare func() childTask
	after   func()
	crash   bool // the pool may differ from before: its host may crash
}

func fullBackup(t *testing.T) operation {
	w := newCrashWorld(t, xapisim.NBDOff)
	before := w.Sim.Dump()
	return operation{w: w, prepare: func() childTask {
		w.newRepository()
		return w.order(backup.KeepAuto)
	}, after: func() {
		w.backupAgain(backup.KeepNone)
		w.Sim.GC()
		jobtest.SamePool(t, before, w.Sim.Dump())
	}}
}

func incremental(t *testing.T, nbd xapisim.NBDMode, methods ...string) operation {
	w := newCrashWorld(t, nbd)
	w.backupAgain(backup.KeepAuto)
	first := w.file
	day := 0
	return operation{w: w, crash: true, prepare: func() childTask {
		day++
		w.file = w.Write(fmt.Sprintf("day%d.img", day), first, uint64(1000+day), 2)
		return w.order(backup.KeepAuto)
	}, after: func() {
		s := w.backupAgain(backup.KeepAuto)
		if d := s.Snapshots[0].Disks[0]; !slices.Contains(methods, d.Method) {
			t.Errorf("the next backup is %s: %s", d.Method, d.Reason)
		}
		for ref, n := range w.Bases() {
			if n != 1 {
				t.Errorf("%d bases of %s", n, ref)
			}
		}
		if left := w.snapshots(); len(left) > 0 {
			t.Errorf("VM snapshots stay: %q", left)
		}
	}}
}

func restoreVM(t *testing.T) operation {
	w := newCrashWorld(t, xapisim.NBDOff)
	id := w.backupAgain(backup.KeepNone).Snapshots[0].ID
	w.Sim.GC()
	before := w.Sim.Dump()
	sr := w.Sim.Ready().SRs[0].UUID
	return operation{w: w, prepare: func() childTask {
		o := w.order("")
		o.Restore, o.SR = id, sr
		return o
	}, after: func() {
		w.waitIdle()
		w.Reopen()
		out, err := restore.VM(t.Context(), w.Repo, w.Pool, w.Snapshot(id), restore.VMOptions{Target: restore.Target{SR: sr}, Name: "back"}, restore.Options{})
		if err != nil || len(out.Warnings) > 0 {
			t.Fatal(err, out.Warnings)
		}
		w.noTasks()
		w.dropRestored(jobtest.FileSum(t, w.file))
		w.Sim.GC()
		jobtest.SamePool(t, before, w.Sim.Dump())
		w.CheckRepository()
	}}
}

func TestCrashFull(t *testing.T) { fullBackup(t).sweep(12) }

func TestCrashIncremental(t *testing.T) { incremental(t, xapisim.NBDOff, "vhd-delta").sweep(12) }

func TestCrashTracked(t *testing.T) { incremental(t, xapisim.NBDTLS, "cbt").sweep(12) }

func TestCrashRestore(t *testing.T) { restoreVM(t).sweep(12) }

// dropRestored removes the VMs called "back". There must be one or two, each complete.
func (w *crashWorld) dropRestored(sum string) {
	w.T.Helper()
	ctx := w.T.Context()
	vms, err := w.Pool.VMs(ctx)
	if err != nil {
		w.T.Fatal(err)
	}
	n := 0
	for _, vm := range vms {
		if vm.NameLabel != "back" {
			continue
		}
		n++
		for k := range vm.OtherConfig {
			if strings.HasPrefix(k, "xenkeep:") {
				w.T.Errorf("the VM has the mark %s", k)
			}
		}
		var vdis []xapi.VDI
		for _, ref := range vm.VBDs {
			b, err := w.Pool.VBD(ctx, ref)
			if err != nil {
				w.T.Fatal(err)
			}
			if b.Type != "Disk" {
				continue
			}
			v, err := w.Pool.VDI(ctx, b.VDI)
			if err != nil {
				w.T.Fatal(err)
			}
			if len(v.OtherConfig) > 0 {
				w.T.Errorf("the disk has the marks %v", v.OtherConfig)
			}
			if w.VolumeSum(v.UUID, int64(v.VirtualSize)) != sum {
				w.T.Error("the restored disk differs")
			}
			vdis = append(vdis, v)
		}
		if len(vdis) != 1 {
			w.T.Errorf("the restored VM has %d disks", len(vdis))
		}
		err := w.Pool.DestroyVM(ctx, vm.Ref)
		for _, v := range vdis {
			err = errors.Join(err, w.Pool.DestroyVDI(ctx, v.Ref))
		}
		if err != nil {
			w.T.Fatal(err)
		}
	}
	if n != 1 && n != 2 {
		w.T.Errorf("%d VMs came back", n)
	}
}

// Two processes back up one VM into two repositories; one is killed, one stopped. The
// next run into the first repository removes the leftovers of the first process and
// nothing of the second, which continues and ends normally.
func TestTwoRepositories(t *testing.T) {
	w := newCrashWorld(t, xapisim.NBDOff)
	before := w.Sim.Dump()
	second := w.order(backup.KeepNone)
	second.State = t.TempDir()
	k := newKiller(t, w.Sim.URL())
	stopped := make(chan *os.Process, 1)
	k.strike = func(p *os.Process) {
		_ = p.Signal(syscall.SIGSTOP)
		stopped <- p
	}
	ended := make(chan bool, 1)
	go func() {
		_, _, killed := k.run(second, 60) // in the middle of the transfer
		ended <- killed
	}()
	var p *os.Process
	select {
	case p = <-stopped:
	case <-ended:
		t.Fatal("the second run ended before it was stopped")
	}
	theirs := w.snapshots()
	if len(theirs) != 1 {
		t.Fatalf("%d VM snapshots of the run that is stopped", len(theirs))
	}
	w.newRepository()
	if _, _, killed := w.k.run(w.order(backup.KeepAuto), 60); !killed || len(w.snapshots()) != 2 {
		t.Fatalf("killed: %v, %d VM snapshots", killed, len(w.snapshots()))
	}
	w.Reopen()
	o := w.Options("web")
	o.Job, o.Keep = "crash", backup.KeepNone
	w.Backup(o)
	w.CheckRepository()
	if now := w.snapshots(); len(now) != 1 || now[0] != theirs[0] {
		t.Errorf("VM snapshots %v, want %v", now, theirs)
	}
	if err := p.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if <-ended {
		t.Fatal("the second run was killed")
	}
	w.Sim.GC()
	jobtest.SamePool(t, before, w.Sim.Dump())
	objects, err := local.Open(second.Repository)
	if err != nil {
		t.Fatal(err)
	}
	w.Objects = objects
	w.Reopen()
	w.CheckRepository()
	if got := w.RestoredTo(w.Snapshot("latest"), "xvda"); got != jobtest.FileSum(t, w.file) {
		t.Error("the disk comes back otherwise")
	}
}

// snapshots returns the names of all VM snapshots.
func (w *crashWorld) snapshots() []string {
	w.T.Helper()
	vms, err := w.Pool.VMs(w.T.Context())
	if err != nil {
		w.T.Fatal(err)
	}
	var names []string
	for _, vm := range vms {
		if vm.IsASnapshot {
			names = append(names, vm.NameLabel)
		}
	}
	return names
}
