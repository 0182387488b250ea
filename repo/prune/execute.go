package prune

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"xenkeep/chunkstore"
	"xenkeep/chunkstore/object"
	"xenkeep/chunkstore/pack"
	"xenkeep/chunkstore/seal"
	"xenkeep/repo"
)

// Result counts the actions of a pass.
type Result struct {
	Deleted   Count `json:"deleted"`
	Condemned Count `json:"condemned"`
	Repacked  Count `json:"repacked"`
	Written   int   `json:"packs_written"`
	TakenBack int   `json:"packs_taken_back"` // referenced after all, according to the second look
	Retired   int   `json:"claims_retired"`
	Ended     int   `json:"runs_ended"`
	Extended  int   `json:"locks_extended"`
	Forgotten int   `json:"given_up"`
	Proved    Count `json:"proved"`  // packs of write-only keys that were opened, and are what they claim
	Refuted   Count `json:"refuted"` // packs of write-only keys that were opened, and contain wrong data
	Expired   int   `json:"expired"` // forgotten snapshots that were deleted
}

// errUsed is returned if a plan is executed again: the state it is based on has
// changed.
var errUsed = errors.New("a plan can be executed once")

// Execute executes the plan. A plan can be executed only once.
func (p *Plan) Execute(ctx context.Context) (*Result, error) {
	if p.used {
		return &Result{}, errUsed
	}
	p.used = true
	e := &execution{p: p, s: p.s, r: p.s.r, o: p.s.o}
	if e.r.Store().Mixed() {
		// Index objects of write-only keys are replaced by ones of the full key.
		if err := e.r.RecordMixed(ctx); err != nil && !errors.Is(err, object.ErrNoSpace) {
			return &e.res, err
		}
	}
	for _, name := range e.s.forget {
		if err := e.fresh(); err != nil {
			return &e.res, err
		}
		if err := e.r.Objects().Delete(ctx, name); err != nil {
			return &e.res, err
		}
		e.res.Forgotten++
	}
	err := e.deleteExpired(ctx)
	if err != nil {
		return &e.res, err
	}
	if p.s.o.Exclusive {
		err = e.exclusive(ctx)
	} else {
		err = e.beside(ctx)
	}
	if err != nil {
		return &e.res, err
	}
	if err := e.coverLive(ctx); err != nil {
		return &e.res, err
	}
	if err := e.tidyDamage(ctx); err != nil {
		return &e.res, err
	}
	if err := e.tidyUseless(ctx); err != nil {
		return &e.res, err
	}
	if err := e.proveDoubtful(ctx); err != nil {
		return &e.res, err
	}
	if err := e.r.MergeCatalogues(ctx); err != nil {
		return &e.res, err
	}
	if err := e.extendLocks(ctx); err != nil {
		return &e.res, err
	}
	return &e.res, e.r.LoadIndex(ctx)
}

// deleteExpired deletes the forgotten snapshots whose grace period is over, before
// anything that only they need is condemned.
func (e *execution) deleteExpired(ctx context.Context) error {
	if len(e.s.expired) == 0 {
		return e.r.TidyForgotten(ctx)
	}
	forgotten, err := e.r.ForgottenSnapshots(ctx)
	if err != nil {
		return err
	}
	over := make(map[string]bool)
	for _, snap := range forgotten {
		over[snap.ID()] = snap.Grace().Over(e.s.at)
	}
	for _, snap := range e.s.expired {
		if still, there := over[snap.ID()]; there && !still {
			return fmt.Errorf("snapshot %s: %w", snap.Short(), ErrRecovered)
		} else if !there {
			if _, err := e.r.Objects().Stat(ctx, "snapshots/"+snap.ID()); err == nil {
				return fmt.Errorf("snapshot %s: %w", snap.Short(), ErrRecovered)
			} else if !errors.Is(err, object.ErrNotFound) {
				return err
			}
		}
	}
	for _, snap := range e.s.expired {
		if err := e.fresh(); err != nil {
			return err
		}
		if err := e.r.DeleteSnapshot(ctx, snap); err != nil {
			return err
		}
		e.res.Expired++
	}
	return e.r.TidyForgotten(ctx)
}

type execution struct {
	p   *Plan
	s   *scan
	r   *repo.Repository
	o   *Options
	res Result
}

// fresh returns ErrStale if the state was read too long ago.
func (e *execution) fresh() error {
	if age := e.o.Now().Sub(e.s.at); age > freshness || age < -freshness {
		return ErrStale
	}
	return nil
}

// beside executes a pass while backups may run.
func (e *execution) beside(ctx context.Context) error {
	if err := e.retire(ctx); err != nil {
		return err
	}
	if err := e.deleteDue(ctx); err != nil {
		return err
	}
	if err := e.tidyLists(ctx); err != nil {
		return err
	}
	var err error
	if e.p.repack, err = e.provable(ctx, e.p.repack); err != nil {
		return err
	}
	if err := e.repack(ctx, e.p.repack); err != nil {
		return err
	}
	return e.condemn(ctx, append(slices.Clone(e.p.condemn), e.p.repack...))
}

// retire declares dead runs dead, ends those that were declared dead long enough
// ago, and removes the claims and lists of the runs that an earlier pass has ended.
// The retirement itself stays for a long time, and with it the lists of packs that
// were deleted since.
func (e *execution) retire(ctx context.Context) error {
	if err := e.fresh(); err != nil {
		return err
	}
	for _, c := range e.p.retire {
		t := &repo.Retired{Run: c.Run, Time: e.o.Now().UTC(), Reason: "its claim is " + e.s.at.Sub(c.Started).Round(time.Hour).String() + " old"}
		if err := e.r.PutRetired(ctx, t); err != nil {
			return err
		}
		e.res.Retired++
	}
	if err := e.putOver(ctx); err != nil {
		return err
	}
	for _, run := range slices.Sorted(maps.Keys(e.s.runs)) {
		if e.s.over[run] {
			if err := e.r.DropRun(ctx, run); err != nil {
				return err
			}
		}
	}
	for _, t := range e.s.retired {
		if e.s.at.Sub(t.Time) >= forgetAfter && e.s.runs[t.Run] == nil {
			if err := e.r.Objects().Delete(ctx, t.Name()); err != nil {
				return err
			}
		}
	}
	return nil
}

// deleteDue deletes condemned packs that have waited long enough and that nothing
// references. First it puts a list of the packs being deleted, which stays until
// all runs that exist now are over.
func (e *execution) deleteDue(ctx context.Context) error {
	settled := make(map[string]bool)
	for _, l := range e.s.lists {
		for _, name := range l.Lists {
			settled[name] = true
		}
	}
	end := &repo.Condemned{Time: e.o.Now().UTC(), Deleted: true}
	for _, l := range e.s.lists {
		waits := slices.ContainsFunc(l.Packs, func(id string) bool { return e.p.stay[id] })
		if !l.Deleted && !settled[l.Name()] && !waits && e.s.at.Sub(l.Time) >= e.s.wait() {
			end.Lists = append(end.Lists, l.Name())
		}
	}
	for _, id := range e.p.remove {
		if !e.s.deleted[id] {
			end.Packs = append(end.Packs, id.String())
		}
	}
	if len(end.Lists)+len(end.Packs) > 0 {
		end.Waits = slices.Sorted(maps.Keys(e.waits()))
		if err := e.r.PutCondemned(ctx, end); err != nil {
			return err
		}
	}
	gone := make(map[pack.ID]bool)
	for _, id := range e.p.remove {
		gone[id] = true
	}
	// Deleted packs that an index object still names: another pass wrote that
	// object from the state that it had read before.
	for id := range e.s.deleted {
		if e.s.packs[id] == nil {
			gone[id] = true
		}
	}
	return e.drop(ctx, gone)
}

// waits returns the runs that a list of deleted packs waits for: a run that was
// declared dead may continue, and put an index object of packs that were deleted;
// other runs must go on avoiding these packs.
func (e *execution) waits() map[string]bool {
	waits := make(map[string]bool)
	for run := range e.s.runs {
		waits[run] = true
	}
	for _, t := range e.s.retired {
		waits[t.Run] = true
	}
	maps.Copy(waits, e.s.unclear)
	return waits
}

// tidyLists deletes condemned lists that are no longer needed.
func (e *execution) tidyLists(ctx context.Context) error {
	if err := e.fresh(); err != nil {
		return err
	}
	there := make(map[string]bool)
	for _, l := range e.s.lists {
		there[l.Name()] = true
	}
	waits := e.waits()
	indexed := make(map[pack.ID]bool)
	for _, h := range e.s.heads {
		for _, id := range h.Packs {
			indexed[id] = true
		}
	}
	for _, l := range e.s.lists {
		if !l.Deleted || e.s.at.Sub(l.Time) < e.s.wait() {
			continue
		}
		for _, name := range l.Lists {
			if there[name] {
				if err := e.r.Objects().Delete(ctx, name); err != nil {
					return err
				}
			}
		}
		ids, err := l.PackIDs()
		if err != nil {
			return err
		}
		served := !slices.ContainsFunc(l.Lists, func(name string) bool { return there[name] }) &&
			!slices.ContainsFunc(l.Waits, func(run string) bool { return waits[run] }) &&
			!slices.ContainsFunc(ids, func(id pack.ID) bool { return e.s.packs[id] != nil || indexed[id] })
		if served {
			if err := e.r.Objects().Delete(ctx, l.Name()); err != nil {
				return err
			}
		}
	}
	return nil
}

// repack copies the live data of packs into new packs.
func (e *execution) repack(ctx context.Context, ids []pack.ID) error {
	if len(ids) == 0 {
		return nil
	}
	if err := e.fresh(); err != nil {
		return err
	}
	var from []chunkstore.Keep
	for _, id := range ids {
		st := e.s.packs[id]
		k := chunkstore.Keep{Pack: id, Size: st.size, Live: st.live.stretches()}
		from = append(from, k)
	}
	var run chunkstore.RunID
	_, _ = rand.Read(run[:])
	n, err := e.r.Store().Repack(ctx, run, from, e.o.Progress)
	e.res.Written += n
	if errors.Is(err, seal.ErrCorrupt) || errors.Is(err, seal.ErrForeign) {
		return unreadable("repack", err)
	}
	if err != nil {
		return err
	}
	for _, id := range ids {
		e.res.Repacked.Packs++
		e.res.Repacked.Bytes += e.s.packs[id].size
		e.s.packs[id].live = liveSet{} // it is stored elsewhere now
	}
	return nil
}

// condemn publishes the packs that are to be deleted, then looks again: packs that
// a run has begun to reference meanwhile are taken back.
func (e *execution) condemn(ctx context.Context, ids []pack.ID) error {
	if len(ids) == 0 {
		return nil
	}
	if err := e.fresh(); err != nil {
		return err
	}
	list := &repo.Condemned{Time: e.o.Now().UTC()}
	for _, id := range ids {
		list.Packs = append(list.Packs, id.String())
		e.s.condemned[id] = list.Time
	}
	if err := e.r.PutCondemned(ctx, list); err != nil {
		return err
	}
	if err := e.s.refresh(ctx); err != nil {
		// A later pass reads everything again before anything is deleted.
		return err
	}
	var still []pack.ID
	for _, id := range ids {
		if e.s.packs[id].dead() {
			still = append(still, id)
		}
	}
	if e.res.TakenBack = len(ids) - len(still); e.res.TakenBack > 0 {
		less := &repo.Condemned{Time: e.o.Now().UTC()}
		for _, id := range still {
			less.Packs = append(less.Packs, id.String())
		}
		if len(still) > 0 {
			if err := e.r.PutCondemned(ctx, less); err != nil {
				return err
			}
		}
		if err := e.r.Objects().Delete(ctx, list.Name()); err != nil {
			return err
		}
	}
	e.res.Condemned = e.s.count(still)
	return nil
}

// drop deletes packs, first from the index. New index objects are in storage, and
// listed to all machines, before those that they replace are deleted.
func (e *execution) drop(ctx context.Context, gone map[pack.ID]bool) error {
	if len(gone) == 0 {
		return nil
	}
	var old []string
	put := false
	for _, h := range e.affected(gone) {
		if !e.superseded(h, gone) {
			data, as, err := e.r.Store().IndexWithout(ctx, h.Name, func(id pack.ID) bool { return gone[id] })
			if errors.Is(err, object.ErrNotFound) {
				continue // another pass has deleted it
			}
			if err != nil {
				return err
			}
			if err := e.fresh(); err != nil {
				return err
			}
			if data != nil {
				if err := e.r.Objects().Put(ctx, as, data); err != nil {
					return err
				}
				put = true
			}
		}
		old = append(old, h.Name)
	}
	if put {
		if err := e.o.waitListing(ctx, e.r.Objects()); err != nil {
			return err
		}
	}
	return e.deleteAll(ctx, old, gone)
}

// affected returns the index objects that cover packs in gone.
func (e *execution) affected(gone map[pack.ID]bool) []chunkstore.IndexHead {
	var out []chunkstore.IndexHead
	for _, h := range e.s.heads {
		if slices.ContainsFunc(h.Packs, func(id pack.ID) bool { return gone[id] }) {
			out = append(out, h)
		}
	}
	return out
}

// superseded reports whether another index object has already been put in place of
// this one, by a pass that was interrupted afterwards.
func (e *execution) superseded(h chunkstore.IndexHead, gone map[pack.ID]bool) bool {
	covered := make(map[pack.ID]bool)
	found := false
	for _, o := range e.s.heads {
		if slices.Contains(o.Replaces, h.Name) {
			found = true
			for _, id := range o.Believed {
				covered[id] = true
			}
		}
	}
	return found && !slices.ContainsFunc(h.Packs, func(id pack.ID) bool { return !gone[id] && !covered[id] })
}

// deleteAll deletes index objects, then packs.
func (e *execution) deleteAll(ctx context.Context, indexes []string, packs map[pack.ID]bool) error {
	for _, name := range indexes {
		if err := e.fresh(); err != nil {
			return err
		}
		err := e.r.Objects().Delete(ctx, name)
		if errors.Is(err, object.ErrLocked) {
			continue // of packs that were deleted before; their list stays as long
		}
		if err != nil {
			return err
		}
	}
	for _, id := range e.s.sorted(func(id pack.ID, _ *state) bool { return packs[id] }) {
		if err := e.fresh(); err != nil {
			return err
		}
		if err := e.r.Objects().Delete(ctx, id.ObjectName()); err != nil {
			return err
		}
		n := e.s.packs[id].size
		delete(e.s.packs, id)
		e.res.Deleted.Packs++
		e.res.Deleted.Bytes += n
		e.o.Progress(n)
	}
	e.s.heads = slices.DeleteFunc(e.s.heads, func(h chunkstore.IndexHead) bool { return slices.Contains(indexes, h.Name) })
	return nil
}

// coverLive adds packs to the index that snapshots need and no index object covers:
// an index object was lost, or a pass was interrupted.
func (e *execution) coverLive(ctx context.Context) error {
	orphans := make(map[pack.ID]int64)
	for id, st := range e.s.packs {
		if _, condemned := e.s.condemned[id]; !st.indexed && !st.keep && !condemned && !st.live.empty() {
			orphans[id] = st.size
		}
	}
	if len(orphans) == 0 {
		return nil
	}
	taken, _, err := e.r.Store().Adopt(ctx, orphans)
	if err != nil || len(taken) == 0 {
		return err
	}
	var run chunkstore.RunID
	_, _ = rand.Read(run[:])
	return e.r.Store().PutIndex(ctx, run, taken)
}

// tidyUseless deletes condemned lists that have no effect.
func (e *execution) tidyUseless(ctx context.Context) error {
	for _, name := range e.s.useless {
		if err := e.r.Objects().Delete(ctx, name); err != nil {
			return err
		}
	}
	return nil
}

// tidyDamage deletes damage lists that no longer apply: neither their packs nor
// their snapshots exist.
func (e *execution) tidyDamage(ctx context.Context) error {
	for _, d := range e.s.damage {
		ids, err := d.PackIDs()
		if err != nil {
			return err
		}
		inIndex := func(id pack.ID) bool {
			return slices.ContainsFunc(e.s.heads, func(h chunkstore.IndexHead) bool { return slices.Contains(h.Packs, id) })
		}
		if slices.ContainsFunc(ids, func(id pack.ID) bool { return e.s.packs[id] != nil || inIndex(id) }) ||
			slices.ContainsFunc(d.Blocks, func(b repo.DamagedDisk) bool { return e.s.walked[b.Snapshot] }) ||
			slices.ContainsFunc(d.Chunks, func(c repo.BadChunk) bool { return c.Pack == "" }) {
			continue
		}
		if err := e.fresh(); err != nil {
			return err
		}
		if err := e.r.Objects().Delete(ctx, d.Name()); err != nil {
			return err
		}
	}
	return nil
}
