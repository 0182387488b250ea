package lease

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"strings"
	"sync"
	"time"

	"xenkeep/job"
	"xenkeep/xapi"
)

// RoleOf returns the role that a backup or a restore gave to an object on the pool,
// according to its other_config ("snapshot", "base", "restore"), or "" if it has none.
func RoleOf(otherConfig map[string]string) string { return otherConfig[MarkRole] }

// MarkKeys returns the keys of other_config that are marks.
func MarkKeys() []string { return append([]string(nil), markOrder...) }

// Keys of the marks in other_config of the objects that xenkeep creates on a pool.
const (
	MarkRepository = "xenkeep:repository"
	MarkRun        = "xenkeep:run"
	MarkMachine    = "xenkeep:machine"
	MarkProcess    = "xenkeep:process" // see job.ProcessName
	markJob        = "xenkeep:job"
	MarkRole       = "xenkeep:role"
	markAlive      = "xenkeep:alive" // RFC 3339, by the pool's clock: the run was alive then
	MarkDone       = "xenkeep:done"  // the restore of this object is complete
	// On a disk that is being restored: the snapshot and the disk in it.
	MarkSnapshot = "xenkeep:snapshot"
	MarkDisk     = "xenkeep:disk"
)

// markOrder is the order in which marks are set. They are removed in the opposite
// order, so that a partially marked object can still be attributed to its repository.
var markOrder = []string{MarkRepository, MarkDone, MarkRun, MarkMachine, MarkProcess, markJob, MarkSnapshot, MarkDisk, markAlive, MarkRole}

// Values of MarkRole.
const (
	RoleSnapshot = "snapshot" // of a backup in progress
	RoleBase     = "base"     // the VDI snapshot that is the base of the next backup
	RoleRestore  = "restore"  // a disk or VM that is being restored
	RoleResume   = "resume"   // such a disk after a failure, to be continued by restore --resume
	RoleDrill    = "drill"    // a VM that is started only for a boot drill
	roleOver     = "over"     // only in reports: a disk that is written over, or a VM with such a disk, see guard.go
	roleRead     = "read"     // only in reports: a halted VM whose disks are read without a VDI snapshot
	roleOffline  = "offline"  // only in reports: a VM that was shut down, see markOffline
	roleUSB      = "usb"      // only in reports: a VM whose USB devices were detached, see markUSB
)

// deadAfter is how long a run may give no sign of life before it counts as dead.
const deadAfter = time.Hour

// renewEvery is the default time between two renewals of a run's marks.
const renewEvery = 5 * time.Minute

// Owner identifies the run to which objects on a pool belong.
type Owner struct {
	Repository, Run, Job, Machine string
	RenewEvery                    time.Duration    // 0: the default
	Now                           func() time.Time // this machine's clock; nil: time.Now
}

// PoolTime returns the time of the pool's clock, which is that of its master.
func PoolTime(ctx context.Context, pool *xapi.Client) (time.Time, error) {
	rec, err := pool.Pool(ctx)
	if err != nil {
		return time.Time{}, err
	}
	t, err := pool.ServerTime(ctx, rec.Master)
	return t.Time, err
}

// Lease marks the objects that a run creates on a pool, and renews the time in the
// marks while the run is alive. It is safe for concurrent use.
type Lease struct {
	pool  *xapi.Client
	Own   map[string]string // all marks except role and time
	every time.Duration     // between renewals
	now   func() time.Time

	mu      sync.Mutex // guards the fields below; held while a mark is being renewed
	clock   time.Time  // the pool's clock when it was read
	read    time.Time
	renewed map[xapi.Ref]string // the class of each object whose marks are renewed
}

// New returns a Lease for a run. It reads the pool's clock.
func New(ctx context.Context, pool *xapi.Client, o Owner) (*Lease, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	l := &Lease{pool: pool, every: cmp.Or(o.RenewEvery, renewEvery), now: o.Now, renewed: make(map[xapi.Ref]string), Own: map[string]string{
		MarkRepository: o.Repository, MarkRun: o.Run, MarkMachine: o.Machine, MarkProcess: job.ProcessName(), markJob: o.Job,
	}}
	pool.NameTasks(taskOwner(o.Machine, l.Own[MarkProcess]))
	var err error
	l.clock, err = PoolTime(ctx, pool)
	l.read = l.now()
	return l, err
}

// NewRunID returns a random ID for a run without a claim.
func NewRunID() string {
	var id [16]byte
	_, _ = rand.Read(id[:])
	return hex.EncodeToString(id[:])
}

// Now returns the pool's time: the pool's clock when it was last read, advanced by
// this machine's clock.
func (l *Lease) Now() time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.clock.Add(l.now().Sub(l.read))
}

// Marks returns the marks of an object that is created with a role.
func (l *Lease) Marks(role string) map[string]string {
	m := maps.Clone(l.Own)
	m[MarkRole], m[markAlive] = role, l.Now().UTC().Format(time.RFC3339)
	return m
}

// Mark marks an object and starts renewing its marks. class is the object's class in
// XAPI, for example "VDI".
func (l *Lease) Mark(ctx context.Context, class string, ref xapi.Ref, role string) error {
	m := l.Marks(role)
	for _, k := range markOrder {
		v, ok := m[k]
		if !ok {
			continue
		}
		err := l.pool.Call(ctx, class+".add_to_other_config", nil, ref, k, v)
		if xapi.IsCode(err, xapi.MapDuplicateKey) { // the snapshot inherited the mark from its disk or VM
			err = l.pool.SetOtherConfig(ctx, class, ref, k, v)
		}
		if err != nil {
			return fmt.Errorf("mark %s %s: %w", class, ref, err)
		}
	}
	l.Renew(class, ref)
	return nil
}

// Renew starts renewing the marks of an object that was created with marks.
func (l *Lease) Renew(class string, ref xapi.Ref) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.renewed[ref] = class
}

// StopRenewing stops renewing the marks of refs. When it returns, no renewal of them
// is in progress.
func (l *Lease) StopRenewing(refs ...xapi.Ref) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, ref := range refs {
		delete(l.renewed, ref)
	}
}

// Start renews all marks at intervals until stop is called. It calls failed with each
// error.
func (l *Lease) Start(ctx context.Context, failed func(error)) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		t := time.NewTicker(l.every)
		defer t.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-t.C:
			}
			if err := l.renewAll(ctx); err != nil && ctx.Err() == nil {
				failed(err)
			}
		}
	})
	return func() {
		cancel()
		wg.Wait()
	}
}

func (l *Lease) renewAll(ctx context.Context) error {
	l.mu.Lock()
	all := maps.Clone(l.renewed)
	l.mu.Unlock()
	if len(all) == 0 {
		return nil
	}
	now, err := PoolTime(ctx, l.pool)
	if err != nil {
		return err
	}
	l.mu.Lock()
	l.clock, l.read = now, l.now()
	l.mu.Unlock()
	var errs []error
	for ref, class := range all {
		l.mu.Lock()
		if _, still := l.renewed[ref]; still {
			if err := l.pool.SetOtherConfig(ctx, class, ref, markAlive, now.UTC().Format(time.RFC3339)); !xapi.IsCode(err, xapi.HandleInvalid) {
				errs = append(errs, err)
			}
		}
		l.mu.Unlock()
	}
	return errors.Join(errs...)
}

// Unmark removes all marks from an object.
func Unmark(ctx context.Context, pool *xapi.Client, class string, ref xapi.Ref) error {
	for i := len(markOrder) - 1; i >= 0; i-- {
		if err := pool.RemoveOtherConfig(ctx, class, ref, markOrder[i]); err != nil {
			return err
		}
	}
	return nil
}

// Marks describes the run of an object on a pool, according to the object's marks or
// its name.
type Marks struct {
	Repository, Run, Machine, Process, Job, Role string

	seen   time.Time // the last sign of life, by the pool's clock; zero if unknown
	done   bool
	byName bool // recognized only by its name: it is not marked yet
}

// ReadMarks reads the marks of an object from its other_config. taken is the snapshot
// time of a snapshot, and otherwise zero. It reports whether there are marks.
func ReadMarks(other map[string]string, taken time.Time) (Marks, bool) {
	m := Marks{
		Repository: other[MarkRepository], Run: other[MarkRun], Machine: other[MarkMachine], Process: other[MarkProcess],
		Job: other[markJob], Role: other[MarkRole], done: other[MarkDone] != "", seen: taken,
	}
	if t, err := time.Parse(time.RFC3339, other[markAlive]); err == nil && t.After(m.seen) {
		m.seen = t
	}
	return m, m.Repository != ""
}

// A VM snapshot is named so that it can be recognized before it is marked, and even if
// the pool's answer was lost: "xenkeep REPOSITORY RUN", with so many digits of each.
const (
	namedRepository = 8
	namedRun        = 16
)

// SnapshotName returns the name of the VM snapshots of a run into a repository.
func SnapshotName(repository, run string) string {
	return "xenkeep " + repository[:namedRepository] + " " + run[:namedRun]
}

// ReadSnapshot reads the run of a VM snapshot from its marks or its name. It reports
// whether a run created it.
func ReadSnapshot(vm *xapi.VM) (Marks, bool) {
	if !vm.IsASnapshot {
		return Marks{}, false
	}
	f := strings.Fields(vm.NameLabel)
	named := len(f) == 3 && f[0] == "xenkeep" && len(f[1]) == namedRepository && len(f[2]) == namedRun
	m, ok := ReadMarks(vm.OtherConfig, vm.SnapshotTime.Time)
	// Until our own marks are set, the marks may be those of the VM, for example if it
	// is being restored. Our role is set last.
	if ok && m.Role == RoleSnapshot && (!named || strings.HasPrefix(m.Run, f[2])) {
		return m, true
	}
	if named {
		return Marks{Repository: f[1], Run: f[2], Role: RoleSnapshot, seen: vm.SnapshotTime.Time, byName: true}, true
	}
	return Marks{}, false
}

// Of reports whether the object was created by a run into a repository, or by a
// self-test.
func (m *Marks) Of(repository string) bool {
	if m.Repository == SelfTestOwner {
		return true
	}
	if m.byName {
		return strings.HasPrefix(repository, m.Repository)
	}
	return m.Repository == repository
}

// InProgress reports whether a VM is being restored or is in a boot drill. Such a VM
// is not backed up.
func InProgress(vm *xapi.VM) bool {
	return vm.OtherConfig[MarkRole] == RoleRestore || vm.OtherConfig[MarkRole] == RoleDrill
}
