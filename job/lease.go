package job

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

	"xenkeep/xapi"
)

// Marks in other_config of what xenkeep makes on a pool.
const (
	markRepository = "xenkeep:repository"
	markRun        = "xenkeep:run"
	markMachine    = "xenkeep:machine"
	markProcess    = "xenkeep:process" // see processName
	markJob        = "xenkeep:job"
	markRole       = "xenkeep:role"
	markAlive      = "xenkeep:alive" // RFC 3339, by the pool's clock: the run lived then
	markDone       = "xenkeep:done"  // the restore that made this is complete
	// Of a disk that is being restored: which it will be.
	markSnapshot = "xenkeep:snapshot"
	markDisk     = "xenkeep:disk"
)

// markOrder is the order in which marks are set; they are taken off in the
// reverse, so that what is half marked is still known by its repository.
var markOrder = []string{markRepository, markDone, markRun, markMachine, markProcess, markJob, markSnapshot, markDisk, markAlive, markRole}

// Values of markRole.
const (
	roleSnapshot = "snapshot" // of a backup under way
	roleBase     = "base"     // the VDI snapshot that the next backup builds on
	roleRestore  = "restore"  // a disk or VM that is being restored
	roleResume   = "resume"   // such a disk, to be gone on with by restore --resume
	roleDrill    = "drill"    // a VM that is started only to see whether it does
	roleOver     = "over"     // in reports alone: a disk that is written over, or a VM that has one, see restoreguard.go
	roleOffline  = "offline"  // in reports alone: a VM that was shut down, see markOffline
	roleUSB      = "usb"      // in reports alone: a VM whose USB devices were detached, see markUSB
)

// deadAfter is how long after its last sign of life a run counts as dead.
const deadAfter = time.Hour

// renewEvery is the time between two renewals of a run's marks, unless its
// owner asks for another.
const renewEvery = 5 * time.Minute

// owner identifies the run that objects on a pool belong to.
type owner struct {
	repository, run, job, machine string
	renewEvery                    time.Duration // 0: the default
}

// poolTime is the pool's clock: that of its master.
func poolTime(ctx context.Context, pool *xapi.Client) (time.Time, error) {
	rec, err := pool.Pool(ctx)
	if err != nil {
		return time.Time{}, err
	}
	t, err := pool.ServerTime(ctx, rec.Master)
	return t.Time, err
}

// lease marks what a run makes on a pool, and renews the marks' time while the
// run is alive.
type lease struct {
	pool  *xapi.Client
	own   map[string]string // marks but for role and time
	every time.Duration     // between renewals

	mu     sync.Mutex // held while a mark is being renewed
	clock  time.Time  // the pool's, at read
	read   time.Time
	marked map[xapi.Ref]string // class of what is renewed
}

func newLease(ctx context.Context, pool *xapi.Client, o owner) (*lease, error) {
	l := &lease{pool: pool, every: cmp.Or(o.renewEvery, renewEvery), marked: make(map[xapi.Ref]string), own: map[string]string{
		markRepository: o.repository, markRun: o.run, markMachine: o.machine, markProcess: processName(), markJob: o.job,
	}}
	var err error
	l.clock, err = poolTime(ctx, pool)
	l.read = time.Now()
	return l, err
}

func newRunID() string {
	var id [16]byte
	_, _ = rand.Read(id[:])
	return hex.EncodeToString(id[:])
}

// now is the pool's time; it goes on by this machine's clock in between.
func (l *lease) now() time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.clock.Add(time.Since(l.read))
}

func (l *lease) marks(role string) map[string]string {
	m := maps.Clone(l.own)
	m[markRole], m[markAlive] = role, l.now().UTC().Format(time.RFC3339)
	return m
}

// mark marks an object, and keeps its mark fresh from now on.
func (l *lease) mark(ctx context.Context, class string, ref xapi.Ref, role string) error {
	m := l.marks(role)
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
	l.keep(class, ref)
	return nil
}

// keep keeps the mark of an object fresh that was made with its marks.
func (l *lease) keep(class string, ref xapi.Ref) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.marked[ref] = class
}

// drop ends that; no renewal is under way when it returns.
func (l *lease) drop(refs ...xapi.Ref) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, ref := range refs {
		delete(l.marked, ref)
	}
}

// start renews all marks from time to time, until stop.
func (l *lease) start(ctx context.Context, failed func(error)) (stop func()) {
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
			if err := l.renew(ctx); err != nil && ctx.Err() == nil {
				failed(err)
			}
		}
	})
	return func() {
		cancel()
		wg.Wait()
	}
}

func (l *lease) renew(ctx context.Context) error {
	l.mu.Lock()
	all := maps.Clone(l.marked)
	l.mu.Unlock()
	if len(all) == 0 {
		return nil
	}
	now, err := poolTime(ctx, l.pool)
	if err != nil {
		return err
	}
	l.mu.Lock()
	l.clock, l.read = now, time.Now()
	l.mu.Unlock()
	var errs []error
	for ref, class := range all {
		l.mu.Lock()
		if _, still := l.marked[ref]; still {
			if err := l.pool.SetOtherConfig(ctx, class, ref, markAlive, now.UTC().Format(time.RFC3339)); !xapi.IsCode(err, xapi.HandleInvalid) {
				errs = append(errs, err)
			}
		}
		l.mu.Unlock()
	}
	return errors.Join(errs...)
}

// unmark takes all marks off an object.
func unmark(ctx context.Context, pool *xapi.Client, class string, ref xapi.Ref) error {
	for i := len(markOrder) - 1; i >= 0; i-- {
		if err := pool.RemoveOtherConfig(ctx, class, ref, markOrder[i]); err != nil {
			return err
		}
	}
	return nil
}

// marked is what the marks or the name of an object on a pool say.
type marked struct {
	repository, run, machine, process, job, role string

	seen  time.Time // the last sign of life, by the pool's clock; zero if unknown
	done  bool
	named bool // known by its name alone: it was not marked yet
}

// readMarks reads the marks of an object that was taken, if it is a snapshot,
// at some time.
func readMarks(other map[string]string, taken time.Time) (marked, bool) {
	m := marked{
		repository: other[markRepository], run: other[markRun], machine: other[markMachine], process: other[markProcess],
		job: other[markJob], role: other[markRole], done: other[markDone] != "", seen: taken,
	}
	if t, err := time.Parse(time.RFC3339, other[markAlive]); err == nil && t.After(m.seen) {
		m.seen = t
	}
	return m, m.repository != ""
}

// How a VM snapshot is named, so that it is known before it is marked, and even
// where the pool's answer was lost: "xenkeep REPOSITORY RUN", shortened.
const (
	namedRepository = 8
	namedRun        = 16
)

func snapshotName(repository, run string) string {
	return "xenkeep " + repository[:namedRepository] + " " + run[:namedRun]
}

// readSnapshot reads what a VM snapshot says of its run.
func readSnapshot(vm *xapi.VM) (marked, bool) {
	if !vm.IsASnapshot {
		return marked{}, false
	}
	f := strings.Fields(vm.NameLabel)
	named := len(f) == 3 && f[0] == "xenkeep" && len(f[1]) == namedRepository && len(f[2]) == namedRun
	m, ok := readMarks(vm.OtherConfig, vm.SnapshotTime.Time)
	// Marks may be those of the VM that the snapshot is of, as where that is
	// being restored, until its own are set; role comes last.
	if ok && m.role == roleSnapshot && (!named || strings.HasPrefix(m.run, f[2])) {
		return m, true
	}
	if named {
		return marked{repository: f[1], run: f[2], role: roleSnapshot, seen: vm.SnapshotTime.Time, named: true}, true
	}
	return marked{}, false
}

// of reports whether a run into a repository, or a self-test, made the object.
func (m *marked) of(repository string) bool {
	if m.repository == selfTestOwner {
		return true
	}
	if m.named {
		return strings.HasPrefix(repository, m.repository)
	}
	return m.repository == repository
}

// underWay tells whether a VM is being restored, or on trial: nobody's backup
// wants it.
func underWay(vm *xapi.VM) bool {
	return vm.OtherConfig[markRole] == roleRestore || vm.OtherConfig[markRole] == roleDrill
}
