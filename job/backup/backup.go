package backup

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"xenkeep/chunkstore/chunk"
	"xenkeep/job"
	"xenkeep/job/lease"
	"xenkeep/job/vmplan"
	"xenkeep/repo"
	"xenkeep/repo/backup"
	"xenkeep/repo/forget"
	"xenkeep/xapi"
)

// Run backs up VMs of a pool: all their disks, each VM from one VM snapshot. If some
// VMs failed it returns ErrPartial, and if nothing was saved ErrFailed, each together
// with a summary.
func Run(ctx context.Context, r *repo.Repository, pool *xapi.Client, o Options) (*job.Summary, error) {
	withoutJob := o.Job == ""
	o.Defaults()
	if o.Keep == "" {
		o.Keep = KeepAuto
	}
	if o.Transport == "" {
		o.Transport = TransportAuto
	}
	if o.VMConcurrency <= 0 {
		o.VMConcurrency = 2
	}
	if o.DiskConcurrency <= 0 {
		o.DiskConcurrency = 2
	}
	b := &poolBackup{r: r, pool: pool, o: o, outcome: newOutcome(), locks: vmLocks{enabled: withoutJob}}
	if !withoutJob {
		release, err := job.LockJob(o.StateDir, r.ID(), o.Job)
		if err != nil {
			return nil, err
		}
		defer release()
	}
	defer b.locks.release()
	b.started = o.Now()
	b.sum = &job.Summary{Type: "summary", Status: "ok", Job: o.Job, Started: b.started.UTC(), Snapshots: []job.VMSummary{}}
	err := b.run(ctx)
	if ctx.Err() != nil {
		b.noteInterrupted()
	}
	b.sum.Requests = job.CountRequests(b.r)
	b.sum.Duration = o.Now().Sub(b.started).Seconds()
	switch {
	case err != nil:
		b.sum.Status = "failed"
		return b.sum, err
	case len(b.sum.Failed) == 0 && b.retention == nil && b.missedChange == nil && b.database == nil && len(b.sum.Skipped) == 0:
		return b.sum, nil
	case len(b.sum.Failed) == 0 && b.retention == nil && b.missedChange == nil && b.database == nil:
		b.sum.Status = "partial"
		if len(b.sum.Snapshots) == 0 {
			b.sum.Status = "skipped"
		}
		return b.sum, job.ErrMissed
	case len(b.sum.Snapshots) == 0:
		b.sum.Status = "failed"
		return b.sum, b.failure(job.ErrFailed)
	}
	b.sum.Status = "partial"
	if len(b.sum.Failed) == 0 && b.retention == nil && b.database == nil {
		return b.sum, b.missedChange
	}
	return b.sum, errors.Join(b.failure(job.ErrPartial), b.retention, b.missedChange, b.database)
}

// poolBackup is the state of one Run.
type poolBackup struct {
	r       *repo.Repository
	pool    *xapi.Client
	o       Options
	started time.Time
	all     []*repo.Snapshot
	targets []target

	tracking *tracking
	lease    *lease.Lease
	srLocks  srLocks
	limits   *limits
	locks    vmLocks
	outcome

	dump    *repo.Snapshot // of the pool's database; nil until it was dumped
	waiting []*vmBackup    // read completely, not published yet
	done    []*repo.Snapshot
}

// outcome collects the results of a run while its VMs are read.
type outcome struct {
	// retention and database are the errors that prevented retention, and the dump of
	// the pool's database, or nil.
	retention, database error

	mu           sync.Mutex // guards the fields below, in sum only failures and warnings
	sum          *job.Summary
	damaged      map[string]baseHealth // by the ID of the snapshot
	missedChange error                 // ErrCBTMissedChange for each disk concerned, joined; nil if there was none
	begun        []*vmBackup           // all attempts
}

func newOutcome() outcome { return outcome{damaged: make(map[string]baseHealth)} }

// vmLocks are the locks of a run without a job: instead of its job, such a run locks
// each VM that it begins, until its own end. It is safe for concurrent use.
type vmLocks struct {
	enabled bool
	mu      sync.Mutex
	held    map[string]func() // releases the lock, by the VM's UUID
}

// acquire locks a VM by calling lock, unless this run holds its lock already.
func (l *vmLocks) acquire(uuid string, lock func() (release func(), err error)) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.enabled || l.held[uuid] != nil {
		return nil
	}
	release, err := lock()
	if err != nil {
		return err
	}
	if l.held == nil {
		l.held = make(map[string]func())
	}
	l.held[uuid] = release
	return nil
}

// release releases all locks.
func (l *vmLocks) release() {
	for _, release := range l.held {
		release()
	}
}

func (b *poolBackup) failure(class error) error {
	errs := []error{class}
	for i := range b.sum.Failed {
		errs = append(errs, b.sum.Failed[i].Cause)
	}
	return errors.Join(errs...)
}

func (b *poolBackup) fail(vm, uuid string, err error) {
	b.record(vm, uuid, fmt.Errorf("VM %s: %w", vm, b.pool.Explain(context.Background(), err)))
}

// record adds the failure of a VM to the summary; err names the VM.
func (b *poolBackup) record(vm, uuid string, err error) {
	b.o.Log.Error("VM failed", "vm", vm, "uuid", uuid, "error", job.OneLine(err), "hint", job.HintOf(err))
	b.mu.Lock()
	defer b.mu.Unlock()
	b.sum.Failed = append(b.sum.Failed, job.VMFailure{VM: vm, UUID: uuid, Error: job.OneLine(err), Hint: job.HintOf(err), Cause: err})
}

func (b *poolBackup) run(ctx context.Context) error {
	var err error
	if b.all, _, err = b.r.Snapshots(ctx); err != nil {
		return err
	}
	lists, _, err := b.r.ReadDamage(ctx)
	if err != nil {
		return err
	}
	for _, l := range lists {
		for _, d := range l.Blocks {
			b.damaged[d.Snapshot] = baseDamaged
		}
	}
	notes, _, err := b.r.Notes(ctx)
	if err != nil {
		return err
	}
	for _, n := range notes {
		if n.Kind == repo.NoteDamaged {
			b.damaged[n.Snapshot] = baseUntrusted
		}
	}
	b.cleanUpLeftovers(ctx)
	if b.tracking, err = newTracking(ctx, b.pool, b.o.Transport); err != nil {
		return err
	}
	b.targets, err = b.findTargets(ctx)
	if err != nil || len(b.targets) == 0 && !b.o.Database {
		return err
	}
	targets := b.targets
	b.expect(targets)
	var roots []chunk.ID
	for _, t := range targets {
		if last := b.lastSnapshot(t.uuid); last != nil {
			for _, d := range last.Disks {
				roots = append(roots, chunk.ID(d.Root))
			}
		}
	}
	if last := lastDatabase(b.all, b.pool.PoolUUID()); b.o.Database && last != nil {
		roots = append(roots, chunk.ID(last.Disks[0].Root))
	}
	err = job.WithRun(ctx, b.r, &b.o.Common, roots, func(ctx context.Context, run *backup.Run) error {
		return b.saveVMs(ctx, run, targets)
	})
	if err != nil && (ctx.Err() != nil || len(b.sum.Snapshots) == 0) {
		return err
	}
	if err != nil { // snapshots that were published are safe, and stay in the summary
		b.failRest(targets, err)
	}
	if b.sum.Forgotten, err = job.Forget(ctx, b.r, &b.o.Common, b.policy, b.done); err != nil {
		b.retention = fmt.Errorf("retention: %w", err)
		b.warn("%w", b.retention)
		if h := job.HintOf(err); h != "" && errors.Is(err, forget.ErrStopped) {
			b.warn("hint: %s", h)
		}
	}
	return nil
}

// failRest records err for each VM that has no result yet.
func (b *poolBackup) failRest(targets []target, err error) {
	for _, t := range targets {
		saved := slices.ContainsFunc(b.sum.Snapshots, func(s job.VMSummary) bool { return s.VMUUID == t.uuid })
		reported := slices.ContainsFunc(b.sum.Failed, func(f job.VMFailure) bool { return f.VM == t.name }) ||
			slices.ContainsFunc(b.sum.Skipped, func(s job.VMSkip) bool { return s.VM == t.name })
		if !saved && !reported {
			b.fail(t.name, t.uuid, err)
		}
	}
}

// cleanUpLeftovers removes the leftovers of dead runs from the pool. Its errors are
// warnings: they do not prevent the backup.
func (b *poolBackup) cleanUpLeftovers(ctx context.Context) {
	rep, err := lease.Cleanup(ctx, b.r, b.pool, lease.CleanupOptions{Machine: b.o.Machine})
	if err == nil {
		err = rep.Err()
	}
	if err != nil && ctx.Err() == nil {
		b.warn("leftovers of earlier runs on the pool: %w", err)
	}
}

// findTargets returns the VMs to back up, each once.
func (b *poolBackup) findTargets(ctx context.Context) ([]target, error) {
	var list []target
	for _, c := range b.o.Selected {
		list = append(list, target{name: c.Name, uuid: c.UUID, size: c.Size, leave: c.Leave, kinds: c.Kinds, retention: c.Retention})
	}
	seen := make(map[string]bool)
	add := func(asked, uuid string) {
		if !seen[uuid] {
			seen[uuid] = true
			list = append(list, target{name: asked, uuid: uuid})
		}
	}
	for _, name := range b.o.VMs {
		vm, err := vmplan.FindVM(ctx, b.pool, name)
		if err == nil {
			add(name, vm.UUID)
			continue
		}
		if ctx.Err() != nil {
			return nil, err
		}
		var several *xapi.AmbiguousError
		if errors.Is(err, xapi.ErrNotFound) || errors.As(err, &several) {
			b.record(name, "", err) // names the VM
			continue
		}
		b.fail(name, "", err)
	}
	if !b.o.All {
		return list, nil
	}
	vms, err := b.pool.VMs(ctx)
	if err != nil {
		return nil, err
	}
	vbds, err := b.pool.VBDs(ctx)
	if err != nil {
		return nil, err
	}
	disks := make(map[xapi.Ref]bool)
	for _, v := range vbds {
		disks[v.VM] = disks[v.VM] || v.Type == "Disk" && !v.VDI.IsNull()
	}
	slices.SortFunc(vms, func(a, b xapi.VM) int {
		return cmp.Or(cmp.Compare(a.NameLabel, b.NameLabel), cmp.Compare(a.UUID, b.UUID))
	})
	for i := range vms {
		if vm := &vms[i]; vm.Real() && disks[vm.Ref] && !lease.InProgress(vm) {
			add(vm.NameLabel, vm.UUID)
		}
	}
	return list, nil
}

// saveVMs reads the VMs, several concurrently, and publishes their snapshots.
//
// Pipeline: readAll starts up to VMConcurrency VMs and sends each VM that was read
// completely to the channel read. This goroutine receives them, and it alone publishes
// and changes b.waiting. readAll closes the channel when the last VM has ended;
// nothing is buffered, so that a VM that was read waits in its slot until it is
// received. After an error the channel is drained, so that no reader is left when
// saveVMs returns.
func (b *poolBackup) saveVMs(ctx context.Context, run *backup.Run, targets []target) (err error) {
	if b.lease, err = lease.New(ctx, b.pool, lease.Owner{Repository: b.r.ID(), Run: run.ID(), Job: b.o.Job, Machine: b.o.Machine, RenewEvery: b.o.RenewEvery, Now: b.o.Now}); err != nil {
		return err
	}
	stop := b.lease.Start(ctx, func(err error) { b.warn("marks on the pool were not renewed: %w", err) })
	defer stop()
	b.srLocks = newSRLocks()
	b.limits = newLimits(b.o.HostConcurrency, b.o.SRConcurrency)
	defer func() { // on every path
		b.sum.AddWritten(run.Stats())
		b.undoUnpublished(ctx)
	}()
	work, cancel := context.WithCancel(ctx)
	defer cancel()
	read := make(chan *vmBackup)
	if b.o.Database {
		if b.database = b.saveDatabase(ctx, run); b.database != nil {
			b.warn("%w", b.database)
		}
	}
	go b.readAll(work, run, targets, read)
	for v := range read { // until it is closed, so that no reader goes on after the return
		b.waiting = append(b.waiting, v)
		if err != nil {
			continue
		}
		run.Add(v.snap)
		if run.Due() {
			if err = b.publish(ctx, run); err != nil {
				cancel()
			}
		}
	}
	if err == nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		return err
	}
	return b.publish(ctx, run)
}

// lastSnapshot returns the VM's latest complete snapshot, or nil.
func (b *poolBackup) lastSnapshot(vm string) *repo.Snapshot {
	return repo.Latest(b.all, func(s *repo.Snapshot) bool {
		return s.Origin == "pool" && s.Pool.UUID == b.pool.PoolUUID() && s.VM.UUID == vm
	})
}

// publish completes the open packs, publishes the snapshots of the waiting VMs, and
// then removes the VM snapshots that are no longer needed.
func (b *poolBackup) publish(ctx context.Context, run *backup.Run) error {
	if len(b.waiting) == 0 && (b.dump == nil || b.dump.ID() != "") {
		return nil
	}
	began := b.o.Now()
	if err := run.Flush(ctx); err != nil {
		return err
	}
	took := b.o.Now().Sub(began)
	if b.dump != nil && b.dump.ID() != "" && b.sum.Database == "" {
		b.sum.Database = b.dump.ID()
		b.done = append(b.done, b.dump)
	}
	clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), job.CleanupTime)
	defer cancel()
	for _, v := range b.waiting {
		v.timer.published = took
		b.sum.Snapshots = append(b.sum.Snapshots, v.summary())
		b.done = append(b.done, v.snap)
		if err := v.finish(clean); err != nil {
			b.warn("VM %s: %v", v.plan.VM.NameLabel, err)
		}
	}
	b.waiting = nil
	return nil
}

// undoUnpublished removes the objects of unpublished backups from the pool.
func (b *poolBackup) undoUnpublished(ctx context.Context) {
	clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), job.CleanupTime)
	defer cancel()
	for _, v := range b.waiting {
		v.undo(clean)
	}
	b.waiting = nil
}

// markCBTBroken records that changed-block tracking missed a change of a disk since
// snapshot last. It marks last as damaged, so that no later backup uses it as a base.
func (b *poolBackup) markCBTBroken(ctx context.Context, last *repo.Snapshot, vm, device string, cause error) {
	err := fmt.Errorf("VM %s: disk %s: %w: %w; the disk is read in full, and backups of it since tracking began may be wrong there", vm, device, job.ErrCBTMissedChange, cause)
	b.warn("%w", err)
	note := &repo.Note{Snapshot: last.ID(), Kind: repo.NoteDamaged, Time: b.o.Now().UTC(),
		Text: fmt.Sprintf("changed-block tracking of disk %s missed a change since: %v", device, cause)}
	if perr := b.r.PutNote(ctx, note); perr != nil {
		b.warn("snapshot %s could not be marked as damaged: %w", last.Short(), perr)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.damaged[last.ID()] = baseUntrusted
	b.missedChange = errors.Join(b.missedChange, err)
}

// healthOf returns the known condition of a snapshot. A nil snapshot is sound.
func (b *poolBackup) healthOf(s *repo.Snapshot) baseHealth {
	b.mu.Lock()
	defer b.mu.Unlock()
	if s == nil {
		return baseSound
	}
	return b.damaged[s.ID()]
}

func (b *poolBackup) warn(format string, args ...any) {
	w := job.OneLine(fmt.Errorf(format, args...))
	b.o.Log.Warn(w)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.sum.Warnings = append(b.sum.Warnings, w)
}
