// Package forget applies retention policies to snapshots and forgets them: it moves
// them into their grace period, or deletes them. A policy that would forget far more
// of a VM than usual forgets nothing of it, until the user confirms it.
package forget

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"xenkeep/chunkstore/object"
	"xenkeep/repo"
	"xenkeep/repo/retention"
)

// DefaultGrace returns the grace period of forgotten snapshots if none is set.
func DefaultGrace() retention.Period { return retention.Period{Days: 7} }

// ErrStopped is returned if nothing of a VM was forgotten because a policy would have
// forgotten too much of it.
var ErrStopped = errors.New("nothing of it is forgotten until that is confirmed")

// Stop is a group of snapshots of which nothing is forgotten, because a policy would
// forget far more of them than after an ordinary backup.
type Stop struct {
	VM      repo.Named
	Job     string
	Writers string // group of writers
	Forget  int    // how many the policy would forget
	Of      int    // how many there are
}

// Error returns the sentence that names the VM.
func (s *Stop) Error() string {
	job := ""
	if s.Job != "" {
		job = " of job " + s.Job
	}
	return fmt.Sprintf("VM %s: the policy would forget %d of its %d snapshots%s, more than a third: %v", cmp.Or(s.VM.Name, s.VM.UUID), s.Forget, s.Of, job, ErrStopped)
}

// Unwrap makes the error match ErrStopped.
func (s *Stop) Unwrap() error { return ErrStopped }

// Hint returns the next step.
func (s *Stop) Hint() string {
	vm := cmp.Or(s.VM.UUID, s.VM.Name)
	return fmt.Sprintf("xenkeep forget --vm %s --keep-... --dry-run lists them; if it is right, the same with --yes instead forgets them once", vm)
}

// brakeAbove is the number of snapshots of a VM that a policy may always forget in
// one run; above that, it may forget a third of them.
const brakeAbove = 3

// Plan contains the decisions about snapshots.
type Plan struct {
	Decisions []retention.Decision
	Stops     []*Stop
}

// Decide applies a policy to some of all snapshots. Protected snapshots stay. Unless
// yes is set, a policy that would forget more than three and more than a third of the
// snapshots of a VM, job and group of writers forgets none of them.
func Decide(judge *retention.Judge, policy retention.Policy, all, some []*repo.Snapshot, protected map[string]bool, yes bool) *Plan {
	p := &Plan{Decisions: judge.Apply(policy, some)}
	retention.Protect(p.Decisions, protected)
	if yes {
		return p
	}
	of := make(map[retention.Group]int)
	for _, s := range all {
		of[judge.Group(s)]++
	}
	gone := make(map[retention.Group]int)
	for i := range p.Decisions {
		if d := &p.Decisions[i]; !d.Keep {
			gone[judge.Group(d.Snapshot)]++
		}
	}
	stops := make(map[retention.Group]*Stop)
	for i := range p.Decisions {
		d := &p.Decisions[i]
		g := judge.Group(d.Snapshot)
		if n := gone[g]; d.Keep || n <= brakeAbove || 3*n <= of[g] {
			continue
		}
		if stops[g] == nil {
			stops[g] = &Stop{VM: d.Snapshot.VM, Job: d.Snapshot.Job, Writers: g.Writers, Forget: gone[g], Of: of[g]}
			p.Stops = append(p.Stops, stops[g])
		}
		stops[g].VM = d.Snapshot.VM // its newest name, where the snapshots are oldest first
		d.Keep, d.Reasons = true, []string{fmt.Sprintf("no rule keeps it, but %d of %d would go: --yes", gone[g], of[g])}
	}
	return p
}

// Gone returns the snapshots that are to be forgotten.
func (p *Plan) Gone() (gone []*repo.Snapshot) {
	for _, d := range p.Decisions {
		if !d.Keep {
			gone = append(gone, d.Snapshot)
		}
	}
	return gone
}

// Options configures Execute.
type Options struct {
	// Grace is the length of the grace period; nil means the default. The zero
	// period deletes the snapshots now.
	Grace *retention.Period
	// Weak deletes the snapshots if the repository gives a grace period but the key
	// in use, a write-only key, cannot; otherwise that is an error, unless Grace is
	// the zero period.
	Weak   bool
	DryRun bool
	Now    time.Time
	Reason string
}

// Done is the result of Execute.
type Done struct {
	Forgotten []*repo.Snapshot
	Until     *time.Time           // end of their grace period; nil if they were deleted
	Locked    map[string]time.Time // end of the locks of snapshots that could not be forgotten, by ID
}

// Execute forgets snapshots. Locked ones stay.
func Execute(ctx context.Context, r *repo.Repository, snapshots []*repo.Snapshot, o Options) (*Done, error) {
	done := &Done{Locked: make(map[string]time.Time)}
	if len(snapshots) == 0 {
		return done, nil
	}
	grace, err := o.grace(r)
	if err != nil {
		return done, err
	}
	var free []*repo.Snapshot
	for _, s := range snapshots {
		until, err := r.LockedUntil(ctx, s)
		if err != nil {
			return done, err
		}
		if until.IsZero() {
			free = append(free, s)
		} else {
			done.Locked[s.ID()] = until
		}
	}
	if grace == (retention.Period{}) {
		return done, o.delete(ctx, r, free, done)
	}
	until := grace.After(o.Now)
	done.Until = &until
	var ids []string
	for _, s := range free {
		ids = append(ids, s.ID())
	}
	if len(ids) > 0 && !o.DryRun {
		if err := r.Forget(ctx, ids, until, o.Reason, o.Now); err != nil {
			return done, err
		}
	}
	done.Forgotten = free
	return done, nil
}

// grace returns the length of the grace period that applies.
func (o *Options) grace(r *repo.Repository) (retention.Period, error) {
	cfg := r.Config()
	uses := cfg.Uses(repo.FeatureGrace)
	switch {
	case o.Grace != nil && *o.Grace == (retention.Period{}):
		return *o.Grace, nil
	case o.Grace == nil && (!uses || o.Weak && !r.HasGrace()):
		return retention.Period{}, nil
	case !uses:
		return retention.Period{}, fmt.Errorf("grace period %v: the repository does not use the feature %q: xenkeep repo upgrade adds it", *o.Grace, repo.FeatureGrace)
	}
	if err := r.NeedsFull("forget with a grace period"); err != nil {
		return retention.Period{}, &weakError{err}
	}
	if o.Grace != nil {
		return *o.Grace, nil
	}
	return DefaultGrace(), nil
}

type weakError struct{ error }

func (e *weakError) Unwrap() error { return e.error }
func (e *weakError) Hint() string {
	return "forget with a full key, or delete the snapshots now with --grace 0, without a way back"
}

func (o *Options) delete(ctx context.Context, r *repo.Repository, free []*repo.Snapshot, done *Done) error {
	for _, s := range free {
		if !o.DryRun {
			err := r.DeleteSnapshot(ctx, s)
			if locked := new(object.LockedError); errors.As(err, &locked) {
				done.Locked[s.ID()] = locked.Until
				continue
			}
			if err != nil {
				return err
			}
		}
		done.Forgotten = append(done.Forgotten, s)
	}
	return nil
}
