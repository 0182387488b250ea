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

// RoleOf tells whose an object on the pool is by its other_config: the role
// that a backup or restore gave it ("snapshot", "base", "restore"), "" where
// none did.
func RoleOf(otherConfig map[string]string) string { return otherConfig[MarkRole] }

// MarkKeys are the keys of other_config by which runs know what they made.
func MarkKeys() []string { return append([]string(nil), markOrder...) }

// Marks in other_config of what xenkeep makes on a pool.
const (
	MarkRepository = "xenkeep:repository"
	MarkRun        = "xenkeep:run"
	MarkMachine    = "xenkeep:machine"
	MarkProcess    = "xenkeep:process" // see processName
	markJob        = "xenkeep:job"
	MarkRole       = "xenkeep:role"
	markAlive      = "xenkeep:alive" // RFC 3339, by the pool's clock: the run lived then
	MarkDone       = "xenkeep:done"  // the restore that made this is complete
	// Of a disk that is being restored: which it will be.
	MarkSnapshot = "xenkeep:snapshot"
	MarkDisk     = "xenkeep:disk"
)

// markOrder is the order in which marks are set; they are taken off in the
// reverse, so that what is half marked is still known by its repository.
var markOrder = []string{MarkRepository, MarkDone, MarkRun, MarkMachine, MarkProcess, markJob, MarkSnapshot, MarkDisk, markAlive, MarkRole}

// Values of markRole.
const (
	RoleSnapshot = "snapshot" // of a backup under way
	RoleBase     = "base"     // the VDI snapshot that the next backup builds on
	RoleRestore  = "restore"  // a disk or VM that is being restored
	RoleResume   = "resume"   // such a disk, to be gone on with by restore --resume
	RoleDrill    = "drill"    // a VM that is started only to see whether it does
	roleOver     = "over"     // in reports alone: a disk that is written over, or a VM that has one, see restoreguard.go
	roleOffline  = "offline"  // in reports alone: a VM that was shut down, see markOffline
	roleUSB      = "usb"      // in reports alone: a VM whose USB devices were detached, see markUSB
)

// deadAfter is how long after its last sign of life a run counts as dead.
const deadAfter = time.Hour

// renewEvery is the time between two renewals of a run's marks, unless its
// owner asks for another.
const renewEvery = 5 * time.Minute

// Owner identifies the run that objects on a pool belong to.
type Owner struct {
	Repository, Run, Job, Machine string
	RenewEvery                    time.Duration // 0: the default
}

// PoolTime is the pool's clock: that of its master.
func PoolTime(ctx context.Context, pool *xapi.Client) (time.Time, error) {
	rec, err := pool.Pool(ctx)
	if err != nil {
		return time.Time{}, err
	}
	t, err := pool.ServerTime(ctx, rec.Master)
	return t.Time, err
}

// Lease marks what a run makes on a pool, and renews the marks' time while the
// run is alive.
type Lease struct {
	pool  *xapi.Client
	Own   map[string]string // marks but for role and time
	every time.Duration     // between renewals

	mu      sync.Mutex // held while a mark is being renewed
	clock   time.Time  // the pool's, at read
	read    time.Time
	renewed map[xapi.Ref]string // class of what is renewed
}

func New(ctx context.Context, pool *xapi.Client, o Owner) (*Lease, error) {
	l := &Lease{pool: pool, every: cmp.Or(o.RenewEvery, renewEvery), renewed: make(map[xapi.Ref]string), Own: map[string]string{
		MarkRepository: o.Repository, MarkRun: o.Run, MarkMachine: o.Machine, MarkProcess: job.ProcessName(), markJob: o.Job,
	}}
	var err error
	l.clock, err = PoolTime(ctx, pool)
	l.read = time.Now()
	return l, err
}

func NewRunID() string {
	var id [16]byte
	_, _ = rand.Read(id[:])
	return hex.EncodeToString(id[:])
}

// Now is the pool's time; it goes on by this machine's clock in between.
func (l *Lease) Now() time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.clock.Add(time.Since(l.read))
}

func (l *Lease) Marks(role string) map[string]string {
	m := maps.Clone(l.Own)
	m[MarkRole], m[markAlive] = role, l.Now().UTC().Format(time.RFC3339)
	return m
}

// Mark marks an object, and keeps its mark fresh from now on.
func (l *Lease) Mark(ctx context.Context, class string, ref xapi.Ref, role string) error {
	m := l.Marks(role)
	for _, k := range markOrder {
		v, ok := m[k]
		if !ok {
			continue
		}
		err := l.pool.Call(ctx, class+".add_to_other_config", nil, ref, k, v)
		if xapi.IsCode(err, xapi.MapDuplicateKey) { // copied from what it is a snapshot of
			err = l.pool.SetOtherConfig(ctx, class, ref, k, v)
		}
		if err != nil {
			return fmt.Errorf("mark %s %s: %w", class, ref, err)
		}
	}
	l.Renew(class, ref)
	return nil
}

// Renew keeps the mark of an object fresh that was made with its marks.
func (l *Lease) Renew(class string, ref xapi.Ref) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.renewed[ref] = class
}

// StopRenewing ends that; no renewal is under way when it returns.
func (l *Lease) StopRenewing(refs ...xapi.Ref) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, ref := range refs {
		delete(l.renewed, ref)
	}
}

// Start renews all marks from time to time, until stop.
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
	l.clock, l.read = now, time.Now()
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

// Unmark takes all marks off an object.
func Unmark(ctx context.Context, pool *xapi.Client, class string, ref xapi.Ref) error {
	for i := len(markOrder) - 1; i >= 0; i-- {
		if err := pool.RemoveOtherConfig(ctx, class, ref, markOrder[i]); err != nil {
			return err
		}
	}
	return nil
}

// Marks is what the marks or the name of an object on a pool say.
type Marks struct {
	Repository, Run, Machine, Process, Job, Role string

	seen   time.Time // the last sign of life, by the pool's clock; zero if unknown
	done   bool
	byName bool // known by its name alone: it was not marked yet
}

// ReadMarks reads the marks of an object that was taken, if it is a snapshot,
// at some time.
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

// How a VM snapshot is named, so that it is known before it is marked, and even
// where the pool's answer was lost: "xenkeep REPOSITORY RUN", shortened.
const (
	namedRepository = 8
	namedRun        = 16
)

func SnapshotName(repository, run string) string {
	return "xenkeep " + repository[:namedRepository] + " " + run[:namedRun]
}

// ReadSnapshot reads what a VM snapshot says of its run.
func ReadSnapshot(vm *xapi.VM) (Marks, bool) {
	if !vm.IsASnapshot {
		return Marks{}, false
	}
	f := strings.Fields(vm.NameLabel)
	named := len(f) == 3 && f[0] == "xenkeep" && len(f[1]) == namedRepository && len(f[2]) == namedRun
	m, ok := ReadMarks(vm.OtherConfig, vm.SnapshotTime.Time)
	// Marks may be those of the VM that the snapshot is of, as where that is
	// being restored, until its own are set; role comes last.
	if ok && m.Role == RoleSnapshot && (!named || strings.HasPrefix(m.Run, f[2])) {
		return m, true
	}
	if named {
		return Marks{Repository: f[1], Run: f[2], Role: RoleSnapshot, seen: vm.SnapshotTime.Time, byName: true}, true
	}
	return Marks{}, false
}

// Of reports whether a run into a repository, or a self-test, made the object.
func (m *Marks) Of(repository string) bool {
	if m.Repository == SelfTestOwner {
		return true
	}
	if m.byName {
		return strings.HasPrefix(repository, m.Repository)
	}
	return m.Repository == repository
}

// InProgress tells whether a VM is being restored, or on trial: nobody's backup
// wants it.
func InProgress(vm *xapi.VM) bool {
	return vm.OtherConfig[MarkRole] == RoleRestore || vm.OtherConfig[MarkRole] == RoleDrill
}
