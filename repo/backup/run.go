// Package backup puts disks into a repository. A run (Do) claims what it builds
// on, takes any number of disks (Run.Disk) and metadata (Run.Record), and
// publishes snapshots of them (Run.Add, Run.Flush), which share packs. It
// knows disks as disk.Source alone.
package backup

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"time"

	"xenkeep/chunkstore"
	"xenkeep/chunkstore/chunk"
	"xenkeep/chunkstore/pack"
	"xenkeep/chunkstore/seal"
	"xenkeep/internal/disk"
	"xenkeep/repo"
)

// flushBytes is how much may lie in open packs before Due asks for a Flush, so
// that small VMs share packs and large ones are published soon.
const flushBytes = 24 << 20

// ErrRetired is returned when a run finds that its claim was declared dead:
// what it leaned on may be gone.
var ErrRetired = errors.New("this run was declared dead by a pruner: run it again")

// Options describe a run.
type Options struct {
	Job     string
	Machine string
	// Process names this process for ever, so that a later run can tell that
	// it is dead.
	Process string
	// Roots are those of the snapshots this run builds on; pruning keeps them.
	Roots []chunk.ID
	// AdoptOrphans looks for packs that a killed run left without an index.
	// It lists all packs.
	AdoptOrphans bool
	Level        seal.Level
	Workers      int // blocks worked on at once; 0 is one for each core
	Uploads      int // packs on their way at once; 0 is the storage's choice
	Now          func() time.Time
}

// Run is one run of backups under way. Disk and Record may be called at once;
// Add and Flush by one goroutine.
type Run struct {
	r      *repo.Repository
	w      *chunkstore.Writer
	opts   Options
	id     string
	blocks chan []byte // buffers of one block, for all disks of the run
	// disks admits as many disks as can hold two buffers each: one that has
	// one and waits for the other must not wait for ever.
	disks chan struct{}

	mu      sync.Mutex
	queued  []*repo.Snapshot
	flushed int64 // stored bytes at the last Flush
	ref     int   // packs in the last reference list
}

// Do runs fn within a run: claims, and ends the claim when fn has returned,
// whatever became of it. The index must have been loaded. Snapshots that were
// added and not flushed are not published.
func Do(ctx context.Context, r *repo.Repository, o Options, fn func(ctx context.Context, run *Run) error) error {
	cfg := r.Config()
	if err := cfg.CanWrite(); err != nil {
		return err
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Workers <= 0 {
		o.Workers = runtime.GOMAXPROCS(0)
	}
	var runID chunkstore.RunID
	_, _ = rand.Read(runID[:])
	run := &Run{r: r, opts: o, id: hex.EncodeToString(runID[:])}
	run.blocks = make(chan []byte, 4*o.Workers+8) // a disk holds two at least
	for range cap(run.blocks) {
		run.blocks <- nil
	}
	run.disks = make(chan struct{}, cap(run.blocks)/2)
	claim := &repo.Claim{Run: run.id, Job: o.Job, Machine: o.Machine, Process: o.Process, Started: o.Now().UTC()}
	for _, root := range o.Roots {
		claim.Roots = append(claim.Roots, repo.HexID(root))
	}
	err := r.PutClaim(ctx, claim)
	if err == nil {
		err = r.AvoidBad(ctx)
	}
	if err == nil {
		// Again, and after the condemned lists: packs that were deleted
		// before the claim was there must not be leant on.
		err = r.LoadIndex(ctx)
	}
	if err == nil {
		err = r.Store().Write(ctx, chunkstore.WriterOptions{Run: runID, Level: o.Level, Uploads: o.Uploads, Now: o.Now},
			func(ctx context.Context, w *chunkstore.Writer) error {
				run.w = w
				if o.AdoptOrphans {
					if _, err := w.AdoptOrphans(ctx); err != nil {
						return err
					}
				}
				ferr := fn(ctx, run)
				if ferr != nil && ctx.Err() == nil {
					// What was uploaded so far shall count next time.
					ferr = errors.Join(ferr, w.Flush(ctx))
				}
				return ferr
			})
	}
	clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	if err != nil && run.w != nil {
		if serr := run.w.Salvage(clean); serr != nil {
			// What was uploaded has no index yet: the claim stays, as that of
			// a killed run, and tells the next run to look for it.
			return err
		}
	}
	if derr := r.DropClaim(clean, claim); derr != nil && err == nil {
		// The snapshots are published; a claim left behind only delays pruning.
		return fmt.Errorf("%w: %w", ErrClaimLeft, derr)
	}
	return err
}

// ErrClaimLeft is returned where a run did all its work and could not take its
// claim away: the next one does.
var ErrClaimLeft = errors.New("claim left behind")

// ID names the run, in hex.
func (run *Run) ID() string { return run.id }

// Stats are the run's counts so far.
func (run *Run) Stats() chunkstore.WriteStats { return run.w.Stats() }

// Record stores a piece of metadata as a data blob.
func (run *Run) Record(ctx context.Context, name string, p []byte) (repo.Record, error) {
	k, err := run.w.NewWorker()
	if err != nil {
		return repo.Record{}, err
	}
	defer k.Done()
	id := k.Sum(chunk.Record, p)
	if _, err := k.Put(chunk.Record, id, p); err != nil {
		return repo.Record{}, fmt.Errorf("record %s: %w", name, err)
	}
	return repo.Record{Name: name, Size: int64(len(p)), ID: repo.HexID(id)}, nil
}

// Add queues a snapshot; Flush publishes it. Its disks and records must have
// been stored within this run or be known to the repository.
func (run *Run) Add(s *repo.Snapshot) {
	s.Run, s.Job, s.Machine = run.id, run.opts.Job, run.opts.Machine
	run.mu.Lock()
	defer run.mu.Unlock()
	run.queued = append(run.queued, s)
}

// Due tells whether enough has gathered for a Flush to be worth its packs.
func (run *Run) Due() bool {
	stored := run.w.Stats().Stored
	run.mu.Lock()
	defer run.mu.Unlock()
	return stored-run.flushed+run.w.Unflushed() >= flushBytes
}

// Flush puts all that is open and publishes the queued snapshots: packs, index,
// reference list, snapshots, in this order.
func (run *Run) Flush(ctx context.Context) error {
	if err := run.w.Flush(ctx); err != nil {
		return err
	}
	run.mu.Lock()
	queued := run.queued
	run.queued = nil
	run.flushed = run.w.Stats().Stored
	run.mu.Unlock()
	if len(queued) == 0 {
		return nil
	}
	used := run.w.Used()
	if len(used) != run.ref {
		if err := run.r.PutReference(ctx, run.id, used); err != nil {
			return err
		}
		run.ref = len(used)
	}
	if err := run.stillThere(ctx, used); err != nil {
		return err
	}
	for _, s := range queued {
		s.Written = run.opts.Now().UTC().Truncate(time.Millisecond) // tells apart what has the same data time
		if err := run.r.PutSnapshot(ctx, s); err != nil {
			return err
		}
	}
	return nil
}

// stillThere refuses to publish what leans on a pack that was condemned since
// the run began: the next run stores those chunks again.
func (run *Run) stillThere(ctx context.Context, used []pack.ID) error {
	condemned, err := run.r.CondemnedPacks(ctx)
	if err != nil {
		return err
	}
	if len(condemned) == 0 {
		return nil
	}
	uses := make(map[pack.ID]bool, len(used))
	for _, id := range used {
		uses[id] = true
	}
	for _, id := range condemned {
		if uses[id] {
			return fmt.Errorf("pack %s was condemned: %w", id.Short(), ErrRetired)
		}
	}
	return nil
}

// buffer takes a block buffer, waiting while all are in use.
func (run *Run) buffer(ctx context.Context) ([]byte, error) {
	select {
	case b := <-run.blocks:
		if b == nil {
			b = make([]byte, disk.BlockSize)
		}
		return b, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

func (run *Run) giveBack(b []byte) { run.blocks <- b[:disk.BlockSize] }
