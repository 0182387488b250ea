package repo

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"xenkeep/chunkstore/object"
	"xenkeep/chunkstore/seal"

	"golang.org/x/sync/errgroup"
)

const overPrefix = "over/"

// ErrWithdrawn is returned for a snapshot that was published after its run had been
// declared dead, so that data it needs may have been deleted. The run removes such
// a snapshot itself, unless it is killed right after the put.
var ErrWithdrawn = errors.New("published by a run that was given up before, so that something of it may be gone: it does not count")

// RunEnd ends a run that was declared dead. Of the run's snapshots, only those that
// the pruner saw when it wrote this object are valid; any other is invalid, however
// late it is published. The request that puts a snapshot may be delayed for any
// length of time, so this object is never deleted. It is valid only if a full key
// signed it: otherwise the thief of a write-only key could invalidate backups with
// it.
type RunEnd struct {
	Run       string    `json:"run"` // hex
	Time      time.Time `json:"time"`
	Snapshots []string  `json:"snapshots"` // full IDs

	full bool
}

// PutRunEnd ends a run. The data that the run's claim and reference lists protect may
// be deleted once this object can be read, and not before.
func (r *Repository) PutRunEnd(ctx context.Context, o *RunEnd) error {
	if err := r.NeedsFull("end a dead run"); err != nil {
		return err
	}
	if o.Snapshots == nil {
		o.Snapshots = []string{}
	}
	slices.Sort(o.Snapshots)
	_, _, err := r.putObject(ctx, overPrefix+o.Run+"-", seal.KindOver, o)
	return err
}

// RunEnds reads the run ends of the runs for which of returns true, by run.
// Objects that cannot be read end nothing: the snapshots that they would have
// invalidated stay valid, and the data that their runs protect is kept. They are
// added to Problems.
func (r *Repository) RunEnds(ctx context.Context, of func(run string) bool) (map[string][]*RunEnd, error) {
	var names []string
	if err := object.ListOwn(ctx, r.objects, overPrefix, func(i object.Info) error {
		if of(nameRun(i.Name)) {
			names = append(names, i.Name)
		}
		return nil
	}); err != nil {
		return nil, err
	}
	all := make([]*RunEnd, len(names))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(max(2, r.objects.Traits().Parallel))
	for i, name := range names {
		g.Go(func() error {
			v := new(RunEnd)
			o, err := r.readObject(gctx, name, seal.KindOver, v)
			switch {
			case gctx.Err() != nil:
				return gctx.Err()
			case object.Retriable(err):
				return err
			case err == nil:
				v.full = o.Cert.Role() == seal.Full
				all[i] = v
			case errors.Is(err, seal.ErrJunk):
				r.addJunk(name, err)
			case !errors.Is(err, object.ErrNotFound) && !errors.Is(err, seal.ErrRevoked):
				r.addProblems(Problem{Object: name, Err: err})
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	overs := make(map[string][]*RunEnd)
	for _, o := range all {
		if o != nil && o.full {
			overs[o.Run] = append(overs[o.Run], o)
		}
	}
	return overs, nil
}

// counted removes the snapshots that were published after their run was ended, and
// returns them as problems. If a run was ended twice, both objects must list a
// snapshot: pruners may have acted upon either.
func (r *Repository) counted(ctx context.Context, all []*Snapshot) ([]*Snapshot, []Problem, error) {
	if len(all) == 0 {
		return all, nil, nil
	}
	runs := make(map[string]bool)
	for _, s := range all {
		runs[s.Run] = true
	}
	overs, err := r.RunEnds(ctx, func(run string) bool { return runs[run] })
	if err != nil {
		return nil, nil, err
	}
	var withdrawn []Problem
	all = slices.DeleteFunc(all, func(s *Snapshot) bool {
		for _, o := range overs[s.Run] {
			if !slices.Contains(o.Snapshots, s.id) {
				name := snapshotPrefix + s.id
				withdrawn = append(withdrawn, Problem{Object: name, Err: fmt.Errorf("%s: %w", name, ErrWithdrawn)})
				return true
			}
		}
		return false
	})
	return all, withdrawn, nil
}
