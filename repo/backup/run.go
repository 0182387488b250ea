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

// flushBytes is how much may lie in open packs before Due asks for a Flush, so
// that small VMs share packs and large ones are published soon.
const flushBytes = 24 << 20

// spareWorkers is how many workers there are beyond the cores: where one waits,
// for a lock, for room in a pack or for a thread to come back from C, another
// has work.
const spareWorkers = 2

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
	Workers      int // blocks worked on at once; 0 is two more than cores
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
	roots   map[chunk.ID]bool // of disks stored in this run
	queued  []*repo.Snapshot
	flushed int64 // stored bytes at the last Flush
	used    map[pack.ID]bool
	ref     int // packs in the last reference list

	claim     *repo.Claim
	keepClaim bool // snapshots of the run could neither be proved nor withdrawn
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
		o.Workers = runtime.GOMAXPROCS(0) + spareWorkers
	}
	var runID chunkstore.RunID
	_, _ = rand.Read(runID[:])
	run := &Run{r: r, opts: o, id: hex.EncodeToString(runID[:]), used: make(map[pack.ID]bool), roots: make(map[chunk.ID]bool)}
	run.blocks = make(chan []byte, 4*o.Workers+8) // a disk holds two at least
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
	if run.keepClaim {
		return err
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
	s.Run = run.id
	if s.Original == nil {
		s.Job, s.Machine = run.opts.Job, run.opts.Machine
	}
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
	if err := run.mayPublish(ctx, queued); err != nil {
		return err
	}
	for i, s := range queued {
		s.Written = run.opts.Now().UTC().Truncate(time.Millisecond) // tells apart what has the same data time
		if err := run.r.PutSnapshot(ctx, s); err != nil {
			// It may be there all the same.
			if look := run.mayPublish(ctx, queued[:i+1]); look != nil {
				return run.withdraw(ctx, queued[:i+1], errors.Join(err, look))
			}
			return err
		}
	}
	// A second look, before the claim ends: whoever was held up between the
	// first one and here may have been given up meanwhile.
	if err := run.mayPublish(ctx, queued); err != nil {
		return run.withdraw(ctx, queued, err)
	}
	return nil
}

// withdraw takes snapshots back that may have lost what they refer to. Where
// that fails the claim stays, and protects what is still there.
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

// mayPublish tells whether all that snapshots refer to will stay: the run was
// not declared dead, what it leans on is in a reference list, and what was
// condemned since it began holds nothing that lies there alone. Else it is
// ErrRetired, and the next run stores again what is gone.
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
			if !run.r.Store().AvoidsPack(id) {
				fresh[id] = true
			}
		}
		if len(fresh) == 0 {
			return nil
		}
		// A pruner came by. What it copied elsewhere is found there.
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

// moved finds everything a snapshot refers to outside the condemned packs, and
// adds where it is to what the run uses.
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
			if !condemned[in] && !run.r.Store().AvoidsPack(in) {
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
		return fmt.Errorf("chunk %s lies in a condemned pack: %w", lost.String()[:8], ErrRetired)
	}
	return nil
}

// holds tells whether a root stays as long as the run lives: it is claimed, or
// was stored by the run.
func (run *Run) holds(root chunk.ID) bool {
	run.mu.Lock()
	defer run.mu.Unlock()
	return run.roots[root] || slices.Contains(run.opts.Roots, root)
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
