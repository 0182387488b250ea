package backup

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"xenkeep/job"
	"xenkeep/job/vmplan"
	"xenkeep/repo"
	"xenkeep/repo/backup"
	"xenkeep/repo/retention"
	"xenkeep/xapi"
)

// VMRequest is a VM that a selection chose, with its own settings.
type VMRequest struct {
	UUID, Name string
	// Leave holds the disks that are left out: the reason, by the UUID of the VDI.
	Leave map[string]string
	// Kinds are the kinds of VM snapshot, in the order in which they are tried; none
	// is KindRegular.
	Kinds []vmplan.Kind
	// Retention, unless nil, replaces the run's.
	Retention *retention.Policy
	// Size is the size of the disks that are backed up, in bytes; 0 if it is not
	// known. Only the progress display uses it.
	Size int64
}

// target is a VM to be backed up.
type target struct {
	name string // as the user named it
	uuid string
	size int64 // of its disks in bytes; 0 if not known

	leave     map[string]string
	kinds     []vmplan.Kind
	retention *retention.Policy
	err       error // of the last attempt
	began     time.Time
}

// readAll reads the targets in their order, up to VMConcurrency concurrently, and
// sends those that were read to read, which it closes at the end. VMs that failed are
// tried again after all others, up to Retries times. No VM is begun after StopAfter.
func (b *poolBackup) readAll(ctx context.Context, run *backup.Run, targets []target, read chan<- *vmBackup) {
	defer close(read)
	queue := make([]*target, len(targets))
	for i := range targets {
		queue[i] = &targets[i]
	}
	for attempt := 0; len(queue) > 0; attempt++ {
		var mu sync.Mutex
		var again []*target
		var g errgroup.Group
		g.SetLimit(b.o.VMConcurrency)
		for _, t := range queue {
			g.Go(func() error {
				if ctx.Err() != nil {
					return nil
				}
				if end := b.o.StopAfter; !end.IsZero() && !b.o.Now().Before(end) {
					b.afterWindow(t, end)
					return nil
				}
				v, err := b.readOne(ctx, run, t)
				switch {
				case err == nil:
					b.ended(t)
					read <- v
				case ctx.Err() != nil:
				case attempt < b.o.Retries && mayRetry(err):
					b.o.Log.Warn("VM failed: it is tried again at the end", "vm", t.name, "error", job.OneLine(err))
					mu.Lock()
					t.err = err
					again = append(again, t)
					mu.Unlock()
				default:
					b.ended(t)
					b.fail(t.name, t.uuid, err)
				}
				return nil
			})
		}
		_ = g.Wait()
		queue = again
	}
}

// afterWindow records a VM that was not begun before the end of the window.
func (b *poolBackup) afterWindow(t *target, end time.Time) {
	b.ended(t)
	if t.err != nil { // the first attempt was in time
		b.fail(t.name, t.uuid, t.err)
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.sum.Skipped = append(b.sum.Skipped, job.VMSkip{VM: t.name, UUID: t.uuid, Reason: "the window ended at " + end.Local().Format("15:04")})
}

// readOne reads one VM, between its hooks.
func (b *poolBackup) readOne(ctx context.Context, run *backup.Run, t *target) (_ *vmBackup, err error) {
	if t.began.IsZero() {
		t.began = b.o.Now()
	}
	if err := b.locks.acquire(t.uuid, func() (func(), error) {
		return job.LockThing(b.o.StateDir, b.r.ID(), "VM", b.pool.PoolUUID()+"/"+t.uuid, "")
	}); err != nil {
		return nil, err
	}
	if b.o.VMAfter != nil { // also if VMBefore fails
		defer func() { b.runAfterHook(ctx, t, err) }()
	}
	if b.o.VMBefore != nil {
		if err := b.o.VMBefore(ctx, t.name, t.uuid); err != nil {
			return nil, err
		}
	}
	v := &vmBackup{b: b, run: run, target: t, kinds: t.kinds}
	b.mu.Lock()
	b.begun = append(b.begun, v)
	b.mu.Unlock()
	return v, v.read(ctx, t.uuid)
}

// runAfterHook calls VMAfter, even if the run is being stopped.
func (b *poolBackup) runAfterHook(ctx context.Context, t *target, err error) {
	clean := context.WithoutCancel(ctx)
	if herr := b.o.VMAfter(clean, t.name, t.uuid, err); herr != nil {
		b.warn("VM %s: %w", t.name, herr)
	}
}

// mayRetry reports whether another attempt on a VM may succeed.
func mayRetry(err error) bool {
	for _, never := range []error{job.ErrUnsupported, job.ErrSpace, job.ErrShrunk, xapi.ErrNotFound, job.ErrHook} {
		if errors.Is(err, never) {
			return false
		}
	}
	return true
}

// policy returns the retention policy of a snapshot's VM.
func (b *poolBackup) policy(s *repo.Snapshot) retention.Policy {
	i := slices.IndexFunc(b.targets, func(t target) bool { return t.uuid == s.VM.UUID })
	if i >= 0 && b.targets[i].retention != nil {
		return *b.targets[i].retention
	}
	return b.o.Retention
}
