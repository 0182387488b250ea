package prune

import (
	"context"
	"errors"
	"maps"
	"slices"

	"xenkeep/chunkstore"
	"xenkeep/chunkstore/object"
	"xenkeep/chunkstore/pack"
	"xenkeep/repo"
)

// exclusive executes a pass while nothing else runs. The storage may be full, so
// operations that need no space come first.
func (e *execution) exclusive(ctx context.Context) error {
	if err := e.fresh(); err != nil {
		return err
	}
	for _, c := range e.p.retire {
		t := &repo.Retired{Run: c.Run, Time: e.o.Now().UTC(), Reason: "prune --exclusive"}
		// If there is no space for it, the missing claim has the same effect.
		if err := e.r.PutRetired(ctx, t); err != nil && !errors.Is(err, object.ErrNoSpace) {
			return err
		}
		e.res.Retired++
	}
	// This invalidates snapshots that such a run publishes, should it live in spite
	// of the user's guarantee.
	if err := e.putOver(ctx); err != nil && !errors.Is(err, object.ErrNoSpace) {
		return err
	}
	gone := make(map[pack.ID]bool)
	end := &repo.Condemned{Time: e.o.Now().UTC(), Deleted: true}
	var err error
	if e.p.repack, err = e.provable(ctx, e.p.repack); err != nil && !errors.Is(err, object.ErrNoSpace) {
		return err
	}
	for _, id := range append(slices.Clone(e.p.remove), e.p.repack...) {
		end.Packs = append(end.Packs, id.String())
	}
	for _, id := range e.p.remove {
		gone[id] = true
	}
	// Runs that were declared dead may continue.
	told := len(e.waits()) == 0
	tell := func() error {
		end.Waits = slices.Sorted(maps.Keys(e.waits()))
		err := e.r.PutCondemned(ctx, end)
		told = err == nil
		return err
	}
	if !told {
		if err := tell(); err != nil && !errors.Is(err, object.ErrNoSpace) {
			return err
		}
	}
	for id := range e.s.deleted {
		if e.s.packs[id] == nil {
			gone[id] = true
		}
	}
	if err := e.dropInPlace(ctx, gone); err != nil {
		return err
	}
	if err := e.repackInPlace(ctx); err != nil {
		return err
	}
	if !told {
		if err := tell(); err != nil {
			return err
		}
	}
	if err := e.putOver(ctx); err != nil {
		return err
	}
	for run := range e.s.runs {
		if err := e.r.DropRun(ctx, run); err != nil {
			return err
		}
	}
	for _, l := range e.s.lists {
		if l.Deleted && len(l.Waits) > 0 {
			continue // a later pass deletes it
		}
		if err := e.r.Objects().Delete(ctx, l.Name()); err != nil {
			return err
		}
	}
	return nil
}

// repackInPlace copies the live data of packs in batches, and deletes each batch
// before it starts the next. In a full storage only the freed space is available:
// so the first batch is the pack with the smallest live share, and no batch needs
// more space than all batches before it have left.
func (e *execution) repackInPlace(ctx context.Context) error {
	copied := int64(0)
	for len(e.p.repack) > 0 {
		room := min(e.res.Deleted.Bytes-copied, repackBatch)
		batch := make(map[pack.ID]bool)
		needs := int64(0)
		for _, id := range e.p.repack {
			live := e.s.packs[id].live.bytes()
			live += live / 32 // for the tables, and the index
			if len(batch) > 0 && needs+live > room {
				break
			}
			batch[id] = true
			needs += live
		}
		ids := e.p.repack[:len(batch)]
		e.p.repack = e.p.repack[len(batch):]
		if err := e.repack(ctx, ids); err != nil {
			return err
		}
		copied += needs
		if err := e.reread(ctx); err != nil {
			return err
		}
		if err := e.dropInPlace(ctx, batch); err != nil {
			return err
		}
	}
	return nil
}

// reread reads the heads of the index objects again, including those put meanwhile.
func (e *execution) reread(ctx context.Context) error {
	if err := e.o.waitListing(ctx, e.r.Objects()); err != nil {
		return err
	}
	err := e.r.LoadIndex(ctx)
	if err == nil {
		e.s.heads, err = e.r.Store().IndexHeads(ctx)
	}
	return err
}

// dropInPlace is drop for an exclusive pass: it needs no more space than it has
// freed. Index objects of which no pack stays are deleted first, with their packs.
// If there is no space for the successor of another index object, that object is
// deleted before the successor is put: after an interruption between the two, its
// packs are found by listing the packs.
func (e *execution) dropInPlace(ctx context.Context, gone map[pack.ID]bool) error {
	heads := e.affected(gone)
	mixed := func(h chunkstore.IndexHead) bool {
		return slices.ContainsFunc(h.Packs, func(id pack.ID) bool { return !gone[id] })
	}
	elsewhere := make(map[pack.ID]bool) // in index objects that are mixed
	for _, h := range heads {
		if mixed(h) {
			for _, id := range h.Packs {
				elsewhere[id] = true
			}
		}
	}
	first := make(map[pack.ID]bool)
	for id, goes := range gone {
		first[id] = goes && !elsewhere[id]
	}
	var whole []string
	for _, h := range heads {
		if !mixed(h) {
			whole = append(whole, h.Name)
		}
	}
	if err := e.deleteAll(ctx, whole, first); err != nil {
		return err
	}
	for i, h := range heads {
		if !mixed(h) {
			continue
		}
		only := make(map[pack.ID]bool)
		for _, id := range h.Packs {
			only[id] = gone[id] && !slices.ContainsFunc(heads[i+1:], func(later chunkstore.IndexHead) bool {
				return mixed(later) && slices.Contains(later.Packs, id)
			})
		}
		var data []byte
		var as string
		var err error
		if !e.superseded(h, gone) {
			if data, as, err = e.r.Store().IndexWithout(ctx, h.Name, func(id pack.ID) bool { return gone[id] }); err != nil {
				return err
			}
			err = e.r.Objects().Put(ctx, as, data)
		}
		full := errors.Is(err, object.ErrNoSpace)
		if err != nil && !full {
			return err
		}
		if err := e.deleteAll(ctx, []string{h.Name}, only); err != nil {
			return err
		}
		if full {
			if err := e.r.Objects().Put(ctx, as, data); err != nil {
				return err
			}
		}
	}
	return nil
}
