package prune

import (
	"context"
	"slices"

	"xenkeep/chunkstore/seal"
	"xenkeep/repo"
)

// A run that was retired finds that out before it publishes and once more after
// that. Held up between the two, and killed then, it leaves a snapshot of which
// something may be gone. So what a retired run protects stays until the run was
// ended: by an object which names those of its snapshots that count. A pass
// puts it when every snapshot after which the run did not find itself retired is
// listed: one delay of listings after it was retired the run finds that out,
// and another delay later all is listed that it put before. What the run protected is given up by the passes that read it.

// known notes whose claim or reference list of a run there is.
func (s *survey) known(run string, writer seal.WriterID) {
	if s.runs[run] == nil {
		s.runs[run] = make(map[seal.WriterID]bool)
	}
	s.runs[run][writer] = true
}

// ended finds the runs that protect nothing any more.
func (s *survey) ended(ctx context.Context) error {
	s.over = make(map[string]bool)
	if len(s.runs) == 0 {
		return nil
	}
	overs, err := s.r.Overs(ctx, func(run string) bool { return s.runs[run] != nil })
	if err != nil {
		return err
	}
	for run, writers := range s.runs {
		s.over[run] = len(overs[run]) > 0 || s.endedItself(run, writers)
	}
	return nil
}

// endedItself tells whether all whose run it is have said that it does nothing
// any more.
func (s *survey) endedItself(run string, writers map[seal.WriterID]bool) bool {
	for w := range writers {
		if !slices.ContainsFunc(s.retired, func(t *repo.Retired) bool {
			return t.Run == run && t.Ended && t.Writer() == w && s.at.Sub(t.Time) >= s.wait()
		}) {
			return false
		}
	}
	return true
}

// ending finds the runs that can be ended, and which of these snapshots, all
// that are counted, are theirs.
func (s *survey) ending(snapshots []*repo.Snapshot) {
	s.end = nil
	of := make(map[string]*repo.Over)
	for run := range s.runs {
		waited := slices.ContainsFunc(s.retired, func(t *repo.Retired) bool {
			return t.Run == run && s.at.Sub(t.Time) >= s.wait()+s.r.Objects().Traits().ListDelay
		})
		if !s.over[run] && (waited || s.o.Exclusive) {
			of[run] = &repo.Over{Run: run}
			s.end = append(s.end, of[run])
		}
	}
	for _, snap := range snapshots {
		if o := of[snap.Run]; o != nil {
			o.Snapshots = append(o.Snapshots, snap.ID())
		}
	}
}

// canEnd tells whether the key in use may end runs.
func (s *survey) canEnd() bool { return s.r.NeedsFull("") == nil }

// putOver ends the runs that can be ended, as far as the key goes.
func (e *execution) putOver(ctx context.Context) error {
	if !e.s.canEnd() {
		return nil
	}
	for len(e.s.end) > 0 {
		o := e.s.end[0]
		o.Time = e.o.Now().UTC()
		if err := e.r.PutOver(ctx, o); err != nil {
			return err
		}
		e.s.end = e.s.end[1:]
		e.res.Ended++
	}
	return nil
}
