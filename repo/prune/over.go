package prune

import (
	"context"
	"slices"
	"strings"

	"xenkeep/chunkstore/seal"
	"xenkeep/repo"
)

// A retired run detects its retirement before it publishes and once more after
// that. If it is delayed between the two and then killed, it leaves a snapshot that
// may lack data. So the data that a retired run protects stays until the run was
// ended, by an object that names those of its snapshots that are valid. A pass puts
// this object when every snapshot that the run published without detecting its
// retirement is certain to be listed: one listing delay after it was retired the
// run detects that, and another delay later everything that it put before is
// listed. Only passes that have read the object ignore the run's claim and reference
// lists.

// known records that a claim or reference list of a run exists, and its writer.
func (s *scan) known(run string, writer seal.WriterID) {
	if s.runs[run] == nil {
		s.runs[run] = make(map[seal.WriterID]bool)
	}
	s.runs[run][writer] = true
}

// retire sets the retirements that are valid: those of a full key, and those of the
// run's own writer. A retirement that is damaged retires nothing, so that the data of
// its run stays protected, but lists of deleted packs wait for its run as well.
func (s *scan) retire(retired []*repo.Retired, bad []repo.Problem) {
	s.retired = slices.DeleteFunc(retired, func(t *repo.Retired) bool {
		return !t.Full() && s.runs[t.Run] != nil && !s.runs[t.Run][t.Writer()]
	})
	s.unclear = make(map[string]bool)
	for _, p := range bad {
		if s.givenUp(p.Object) {
			continue
		}
		run, _, _ := strings.Cut(strings.TrimPrefix(p.Object, "retired/"), "-")
		s.unclear[run] = true
	}
}

// ended determines the runs that no longer protect anything.
func (s *scan) ended(ctx context.Context) error {
	s.over = make(map[string]bool)
	if len(s.runs) == 0 {
		return nil
	}
	overs, err := s.r.RunEnds(ctx, func(run string) bool { return s.runs[run] != nil })
	if err != nil {
		return err
	}
	for run, writers := range s.runs {
		s.over[run] = len(overs[run]) > 0 || s.endedItself(run, writers)
	}
	return nil
}

// endedItself reports whether all writers of a run have declared that it has ended.
func (s *scan) endedItself(run string, writers map[seal.WriterID]bool) bool {
	for w := range writers {
		if !slices.ContainsFunc(s.retired, func(t *repo.Retired) bool {
			return t.Run == run && t.Ended && t.Writer() == w && s.at.Sub(t.Time) >= s.wait()
		}) {
			return false
		}
	}
	return true
}

// ending determines the runs that can be ended, and which of the snapshots are
// theirs. snapshots are all that are valid.
func (s *scan) ending(snapshots []*repo.Snapshot) {
	s.end = nil
	of := make(map[string]*repo.RunEnd)
	for run := range s.runs {
		waited := slices.ContainsFunc(s.retired, func(t *repo.Retired) bool {
			return t.Run == run && s.at.Sub(t.Time) >= s.wait()+s.r.Objects().Traits().ListDelay
		})
		if !s.over[run] && (waited || s.o.Exclusive) {
			of[run] = &repo.RunEnd{Run: run}
			s.end = append(s.end, of[run])
		}
	}
	for _, snap := range snapshots {
		if o := of[snap.Run]; o != nil {
			o.Snapshots = append(o.Snapshots, snap.ID())
		}
	}
}

// canEnd reports whether the key in use may end runs.
func (s *scan) canEnd() bool { return s.r.NeedsFull("") == nil }

// putOver ends the runs that can be ended, if the key may do so.
func (e *execution) putOver(ctx context.Context) error {
	if !e.s.canEnd() {
		return nil
	}
	for len(e.s.end) > 0 {
		o := e.s.end[0]
		o.Time = e.o.Now().UTC()
		if err := e.r.PutRunEnd(ctx, o); err != nil {
			return err
		}
		e.s.end = e.s.end[1:]
		e.res.Ended++
	}
	return nil
}
