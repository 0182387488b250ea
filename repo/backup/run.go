// Package backup stores disks in a repository. A run (Do) claims the roots that it
// builds on, stores any number of disks (Run.Disk) and metadata (Run.Record), and
// publishes snapshots of them (Run.Add, Run.Flush), which share packs. It reads
// disks only through disk.Source and disk.Reader.
package backup

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"sync"
	"time"

	"xenkeep/chunkstore"
	"xenkeep/chunkstore/chunk"
	"xenkeep/chunkstore/index"
	"xenkeep/chunkstore/pack"
	"xenkeep/chunkstore/seal"
	"xenkeep/internal/disk"
	"xenkeep/repo"
	"xenkeep/repo/tree"
)

// flushBytes is the number of bytes in open packs from which Due requests a Flush,
// so that small VMs share packs and large ones are published soon.
const flushBytes = 24 << 20

// spareWorkers is the number of workers beyond the number of cores: while one waits
// for a lock, for space in a pack or for a thread to return from C, another has
// work.
const spareWorkers = 2

// ErrRetired is returned if a run finds that its claim was declared dead: data that
// it references may have been deleted.
var ErrRetired = errors.New("this run was declared dead by a pruner: run it again")

// Options configures a run.
type Options struct {
	Job     string
	Machine string
	// Process identifies this process for ever, so that a later run can detect that
	// it has ended.
	Process string
	// Roots are the roots of the snapshots that this run builds on; prune keeps
	// them.
	Roots []chunk.ID
	// IndexOrphans makes the run look for packs that a killed run left without an
	// index. It lists all packs.
	AdoptOrphans bool
	Level        seal.Level
	Workers      int // blocks processed concurrently; 0 means the number of cores plus two
	Uploads      int // packs uploaded concurrently; 0 means the storage's default
	Now          func() time.Time
}

// Run is a run of backups in progress. Disk and Record are safe for concurrent use;
// Add and Flush must be called from one goroutine.
type Run struct {
	r      *repo.Repository
	w      *chunkstore.Writer
	opts   Options
	id     string
	blocks chan []byte // buffers of one block each, for all disks of the run
	// disks limits the number of concurrent disks so that each can hold two
	// buffers: otherwise disks that hold one buffer and wait for another could wait
	// for ever.
	disks chan struct{}

	mu      sync.Mutex
	roots   map[chunk.ID]bool // of disks stored in this run
	queued  []*repo.Snapshot
	flushed int64 // stored bytes at the last Flush
	used    map[pack.ID]bool
	ref     int // number of packs in the last reference list

	claim     *repo.Claim
	keepClaim bool // snapshots of the run could neither be verified nor withdrawn
}

// WithRun calls fn within a run: it publishes a claim, and removes it when fn has
// returned, with or without an error. The index must have been loaded. Snapshots
// that were added and not flushed are not published.
func WithRun(ctx context.Context, r *repo.Repository, o Options, fn func(ctx context.Context, run *Run) error) error {
	if err := r.CanWrite(); err != nil {
		return err
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Workers <= 0 {
		o.Workers = runtime.GOMAXPROCS(0) + spareWorkers
	}
	var runID chunkstore.RunID
	_, _ = rand.Read(runID[:])
	run := &Run{r: r, opts: o, id: hex.EncodeToString(runID[:]), used: make(map[pack.ID]bool), roots: make(map[chunk.ID]bool)}
	run.blocks = make(chan []byte, 4*o.Workers+8) // each disk holds at least two
	for range cap(run.blocks) {
		run.blocks <- nil
	}
	run.disks = make(chan struct{}, cap(run.blocks)/2)
	claim := &repo.Claim{Run: run.id, Job: o.Job, Machine: o.Machine, Process: o.Process, Started: o.Now().UTC()}
	for _, root := range o.Roots {
		claim.Roots = append(claim.Roots, repo.HexID(root))
	}
	run.claim = claim
	err := r.PutClaim(ctx, claim)
	if err == nil {
		err = r.AvoidBad(ctx)
	}
	if err == nil {
		// The index is loaded again, after the condemned lists: packs that were
		// deleted before the claim existed must not be referenced.
		err = r.LoadIndex(ctx)
	}
	if err == nil {
		err = r.Vouch(ctx, o.Roots)
	}
	if err == nil {
		err = r.Store().Write(ctx, chunkstore.WriterOptions{Run: runID, Level: o.Level, Uploads: o.Uploads, Now: o.Now},
			func(ctx context.Context, w *chunkstore.Writer) error {
				run.w = w
				if o.AdoptOrphans {
					if _, err := w.IndexOrphans(ctx); err != nil {
						return err
					}
				}
				ferr := fn(ctx, run)
				if ferr != nil && ctx.Err() == nil {
					// The next run must be able to use the data uploaded so far.
					ferr = errors.Join(ferr, w.Flush(ctx))
				}
				return ferr
			})
	}
	clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	if err != nil && run.w != nil {
		if serr := run.w.IndexUploaded(clean); serr != nil {
			// The uploaded packs have no index yet: the claim stays, as after a
			// killed run, so that the next run looks for them.
			return err
		}
	}
	if run.keepClaim {
		return err
	}
	if derr := r.DropClaim(clean, claim); derr != nil && err == nil {
		// The snapshots are published; a claim that is left only delays pruning.
		return fmt.Errorf("%w: %w", ErrClaimLeft, derr)
	}
	return err
}

// ErrClaimLeft is returned if a run did all its work and could not remove its
// claim: the next run removes it.
var ErrClaimLeft = errors.New("claim left behind")

// ID returns the run's ID, in hex.
func (run *Run) ID() string { return run.id }

// Stats returns the run's counts so far.
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
	s.Run = run.id
	if s.Original == nil {
		s.Job, s.Machine = run.opts.Job, run.opts.Machine
	}
	run.mu.Lock()
	defer run.mu.Unlock()
	run.queued = append(run.queued, s)
}

// Due reports whether enough data has accumulated to make the packs of a Flush
// worthwhile.
func (run *Run) Due() bool {
	stored := run.w.Stats().Stored
	run.mu.Lock()
	defer run.mu.Unlock()
	return stored-run.flushed+run.w.Unflushed() >= flushBytes
}

// Flush writes everything that is open and publishes the queued snapshots: packs,
// index, reference list, snapshots, in this order.
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
	if err := run.mayPublish(ctx, queued); err != nil {
		return err
	}
	for i, s := range queued {
		s.WrittenTime = run.opts.Now().UTC().Truncate(time.Millisecond) // distinguishes snapshots with the same data time
		if err := run.r.PutSnapshot(ctx, s); err != nil {
			// The snapshot may exist in spite of the error.
			if look := run.mayPublish(ctx, queued[:i+1]); look != nil {
				return run.withdraw(ctx, queued[:i+1], errors.Join(err, look))
			}
			return err
		}
	}
	// Check again before the claim ends: a run that was delayed between the first
	// check and here may have been declared dead meanwhile.
	if err := run.mayPublish(ctx, queued); err != nil {
		return run.withdraw(ctx, queued, err)
	}
	return nil
}

// withdraw deletes published snapshots that may have lost data that they reference.
// If that fails the claim stays, and protects the data that still exists.
func (run *Run) withdraw(ctx context.Context, published []*repo.Snapshot, cause error) error {
	clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	for _, s := range published {
		if s.ID() == "" {
			continue
		}
		if err := run.r.DeleteSnapshot(clean, s); err != nil {
			run.keepClaim = true
			return errors.Join(cause, err)
		}
	}
	return cause
}

// mayPublish returns nil if all data that the snapshots reference will stay: the
// run was not declared dead, the packs that it uses are in a reference list, and no
// pack that was condemned since the run began contains the only copy of something
// the snapshots need. Otherwise it returns ErrRetired, and the next run stores the
// lost data again.
func (run *Run) mayPublish(ctx context.Context, snapshots []*repo.Snapshot) error {
	for _, id := range run.w.Used() {
		run.used[id] = true
	}
	for range 4 {
		if len(run.used) != run.ref {
			if err := run.r.PutReference(ctx, run.id, slices.Collect(maps.Keys(run.used))); err != nil {
				return err
			}
			run.ref = len(run.used)
		}
		if retired, err := run.r.IsRetired(ctx, run.claim); err != nil {
			return err
		} else if retired {
			return ErrRetired
		}
		condemned, err := run.r.CondemnedPacks(ctx)
		if err != nil {
			return err
		}
		fresh := make(map[pack.ID]bool)
		for _, id := range condemned {
			if !run.r.Store().ExcludesPack(id) {
				fresh[id] = true
			}
		}
		if len(fresh) == 0 {
			return nil
		}
		// A pruner has run meanwhile. The index locates the copies that it made.
		before := len(run.used)
		if err := run.r.LoadIndex(ctx); err != nil {
			return err
		}
		for _, s := range snapshots {
			if err := run.moved(ctx, s, fresh); err != nil {
				return err
			}
		}
		if len(run.used) == before {
			return nil
		}
	}
	return fmt.Errorf("packs were condemned again and again: %w", ErrRetired)
}

// moved locates everything that a snapshot references outside the condemned packs,
// and adds the packs found to those that the run uses.
func (run *Run) moved(ctx context.Context, s *repo.Snapshot, condemned map[pack.ID]bool) error {
	x := run.r.Store().Index()
	made := make(map[pack.ID]bool)
	for _, id := range run.w.Made() {
		made[id] = true
	}
	var places []index.Location
	var lost *chunk.ID
	find := func(id chunk.ID) {
		places = x.Locate(index.PrefixOf(id), places[:0])
		for _, at := range places {
			in := pack.ID(at.Pack)
			if !condemned[in] && !run.r.Store().ExcludesPack(in) {
				if !made[in] {
					run.used[in] = true
				}
				return
			}
		}
		lost = &id
	}
	for _, rec := range s.Records {
		find(chunk.ID(rec.ID))
	}
	for i := range s.Disks {
		if err := tree.IDs(ctx, run.r.Store(), chunk.ID(s.Disks[i].Root), find); err != nil {
			return err
		}
	}
	if lost != nil {
		return fmt.Errorf("chunk %s is only in condemned or damaged packs: %w", lost.String()[:8], ErrRetired)
	}
	return nil
}

// holds reports whether a root stays as long as the run lives: it is claimed, or
// was stored by the run.
func (run *Run) holds(root chunk.ID) bool {
	run.mu.Lock()
	defer run.mu.Unlock()
	return run.roots[root] || slices.Contains(run.opts.Roots, root)
}

// buffer takes a block buffer, waiting while all are in use. The caller must return
// it with giveBack.
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
