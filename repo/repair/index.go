package repair

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"slices"
	"strings"
	"time"

	"xenkeep/chunkstore"
	"xenkeep/chunkstore/index"
	"xenkeep/chunkstore/object"
	"xenkeep/chunkstore/pack"
	"xenkeep/chunkstore/seal"
	"xenkeep/repo"
	"xenkeep/repo/check"
)

// IndexOptions configures Index.
type IndexOptions struct {
	Options
	// All rebuilds everything. Otherwise index objects are made only to replace
	// those that cannot be opened, and for packs that no index object covers.
	All bool
}

// IndexResult counts the actions of Index.
type IndexResult struct {
	Packs    int             `json:"packs"`              // packs whose tables of contents were read
	Written  int             `json:"index_objects"`      // index objects that were put
	Removed  int             `json:"index_objects_gone"` // index objects that were replaced
	Missing  int             `json:"packs_missing"`      // packs that the index named; they are published as damaged
	Left     int             `json:"packs_left"`         // packs that running backups may have put and will cover themselves
	Unread   int             `json:"packs_unreadable"`
	Findings []check.Finding `json:"-"`
}

func newRun() (run chunkstore.RunID) {
	_, _ = rand.Read(run[:])
	return run
}

// indexer rebuilds an index.
type indexer struct {
	r *repo.Repository
	o *IndexOptions
	// packs contains the packs in storage.
	packs  map[pack.ID]object.Info
	groups map[chunkstore.RunID]map[pack.ID]int64 // packs to be covered, by run; an index object keeps its run
	old    []string                               // index objects to be deleted
	res    IndexResult
}

// Index rebuilds index objects from the packs' own tables of contents. A new object
// keeps the run of the one that it replaces, so that a pruner still recognizes the
// packs of a live run.
func Index(ctx context.Context, r *repo.Repository, o IndexOptions) (*IndexResult, error) {
	o.defaults()
	x := &indexer{r: r, o: &o, packs: make(map[pack.ID]object.Info), groups: make(map[chunkstore.RunID]map[pack.ID]int64)}
	if err := r.LoadIndex(ctx); err != nil {
		return nil, err
	}
	heads, err := r.Store().IndexHeads(ctx)
	if err != nil {
		return nil, err
	}
	if err := r.Objects().List(ctx, "packs/", func(i object.Info) error {
		if id, ok := pack.ParseObjectName(i.Name); ok {
			x.packs[id] = i
		}
		return nil
	}); err != nil {
		return nil, err
	}
	for _, step := range []func(context.Context, []chunkstore.IndexHead) error{x.damaged, x.covered, x.orphans} {
		if err := step(ctx, heads); err != nil {
			return &x.res, err
		}
	}
	if err := x.write(ctx); err != nil {
		return &x.res, err
	}
	if len(x.old) > 0 {
		if err := o.settle(ctx, r); err != nil {
			return &x.res, err
		}
	}
	for _, name := range x.old {
		if err := r.Objects().Delete(ctx, name); err != nil {
			return &x.res, err
		}
		x.res.Removed++
	}
	return &x.res, r.LoadIndex(ctx)
}

func (x *indexer) cover(run chunkstore.RunID, id pack.ID) {
	i, ok := x.packs[id]
	if !ok {
		return
	}
	if x.groups[run] == nil {
		x.groups[run] = make(map[pack.ID]int64)
	}
	x.groups[run][id] = i.Size
}

// damaged covers the packs in the plain heads of index objects that cannot be
// opened, and replaces those objects.
func (x *indexer) damaged(ctx context.Context, _ []chunkstore.IndexHead) error {
	for _, p := range x.r.Problems() {
		if !strings.HasPrefix(p.Object, "index/") || errors.Is(p.Err, seal.ErrNewer) || errors.Is(p.Err, seal.ErrRevoked) || errors.Is(p.Err, seal.ErrForeign) {
			continue
		}
		head, err := chunkstore.ReadPlainHead(ctx, x.r.Objects(), p.Object)
		if errors.Is(err, object.ErrNotFound) {
			continue
		}
		if err != nil && (ctx.Err() != nil || object.Retriable(err)) {
			return err
		}
		x.old = append(x.old, p.Object)
		x.res.Findings = append(x.res.Findings, check.Finding{Kind: check.Remade, Object: p.Object, Error: p.Err.Error()})
		if err == nil {
			if h, err := chunkstore.ReadIndexHead(head); err == nil {
				for i := range h.Packs {
					x.cover(h.Run, h.Packs[i].Pack)
				}
			}
		}
	}
	return nil
}

// covered replaces index objects that name packs which do not exist and, with All,
// every index object.
func (x *indexer) covered(ctx context.Context, heads []chunkstore.IndexHead) error {
	deleted := make(map[pack.ID]bool)
	lists, err := x.r.Condemnations(ctx)
	if err != nil {
		return err
	}
	for _, l := range lists {
		ids, err := l.PackIDs()
		if err != nil {
			return err
		}
		for _, id := range ids {
			deleted[id] = deleted[id] || l.Deleted
		}
	}
	lost := &repo.Damage{Time: x.o.Now().UTC()}
	missing := make(map[pack.ID]bool)
	for _, h := range heads {
		for _, id := range h.Believed {
			if _, there := x.packs[id]; there || missing[id] || deleted[id] {
				continue
			}
			i, err := x.r.Objects().Stat(ctx, id.ObjectName())
			switch {
			case err == nil: // put meanwhile, or not listed yet
				x.packs[id] = i
			case errors.Is(err, object.ErrNotFound):
				missing[id] = true
				lost.Packs = append(lost.Packs, id.String())
				x.res.Findings = append(x.res.Findings, check.Finding{Kind: check.MissingPack, Object: id.ObjectName(), Error: "pack is missing"})
			default:
				return err
			}
		}
	}
	x.res.Missing = len(missing)
	if len(missing) > 0 {
		// The damage list comes first, so that no backup inherits lost data
		// unnoticed.
		slices.Sort(lost.Packs)
		if err := x.r.PutDamage(ctx, lost); err != nil {
			return err
		}
	}
	for _, h := range heads {
		if x.o.All || slices.ContainsFunc(h.Believed, func(id pack.ID) bool { return missing[id] }) {
			x.old = append(x.old, h.Name)
			for _, id := range h.Believed {
				x.cover(h.Run, id)
			}
		}
	}
	return nil
}

// orphans covers packs that no index object names, except those that a running
// backup may have put.
func (x *indexer) orphans(ctx context.Context, heads []chunkstore.IndexHead) error {
	named := make(map[pack.ID]bool)
	for _, h := range heads {
		for _, id := range h.Believed {
			named[id] = true
		}
	}
	for _, g := range x.groups {
		for id := range g {
			named[id] = true
		}
	}
	// Both times are from the storage's clock.
	var oldest time.Time
	if err := object.ListOwn(ctx, x.r.Objects(), "claims/", func(i object.Info) error {
		if oldest.IsZero() || i.Modified.Before(oldest) {
			oldest = i.Modified
		}
		return nil
	}); err != nil {
		return err
	}
	hide, err := x.r.CondemnedPacks(ctx)
	if err != nil {
		return err
	}
	run := newRun()
	for id, i := range x.packs {
		switch {
		case named[id] || slices.Contains(hide, id):
		case !oldest.IsZero() && !i.Modified.Before(oldest):
			x.res.Left++
		default:
			x.cover(run, id)
		}
	}
	return nil
}

// write reads tables of contents and puts index objects of at most batch packs
// each: about a million entries.
func (x *indexer) write(ctx context.Context) error {
	const batch = 1024
	var total int64
	for _, g := range x.groups {
		for _, size := range g {
			total += size
		}
	}
	add, done := x.o.Begin("packs", total)
	defer done()
	lost := &repo.Damage{Time: x.o.Now().UTC()}
	for run, g := range x.groups {
		ids := make([]pack.ID, 0, len(g))
		for id := range g {
			ids = append(ids, id)
		}
		slices.SortFunc(ids, func(a, b pack.ID) int { return bytes.Compare(a[:], b[:]) })
		for part := range slices.Chunk(ids, batch) {
			some := make(map[pack.ID]int64, len(part))
			for _, id := range part {
				some[id] = g[id]
			}
			taken, unread, err := x.r.Store().Adopt(ctx, some)
			if err != nil {
				return err
			}
			for id, err := range unread {
				if object.Retriable(err) {
					return err
				}
				if errors.Is(err, seal.ErrRevoked) {
					continue // ignored
				}
				x.res.Unread++
				lost.Packs = append(lost.Packs, id.String())
				x.res.Findings = append(x.res.Findings, check.Finding{Kind: check.UnreadPack, Object: id.ObjectName(), Error: err.Error()})
			}
			if len(taken) > 0 {
				slices.SortFunc(taken, func(a, b index.PackEntries) int { return bytes.Compare(a.Pack[:], b.Pack[:]) })
				name, err := x.put(ctx, run, taken)
				if err != nil {
					return err
				}
				// The object is unchanged, for example with All and no damage.
				x.old = slices.DeleteFunc(x.old, func(old string) bool { return old == name })
				x.res.Written++
				x.res.Packs += len(taken)
			}
			for _, size := range some {
				add(size)
			}
		}
	}
	if len(lost.Packs) == 0 {
		return nil
	}
	slices.Sort(lost.Packs)
	return x.r.PutDamage(ctx, lost)
}

// put stores an index object that names those it replaces.
func (x *indexer) put(ctx context.Context, run chunkstore.RunID, packs []index.PackEntries) (string, error) {
	o := &chunkstore.IndexObject{Run: run, Packs: packs}
	for _, name := range x.old {
		if sum, err := hex.DecodeString(strings.TrimPrefix(name, "index/")); err == nil && len(sum) == 32 {
			o.Replaces = append(o.Replaces, [32]byte(sum))
		}
	}
	data, name, err := chunkstore.SealIndexObject(x.r.Keys(), o)
	if err == nil {
		err = x.r.Objects().Put(ctx, name, data)
	}
	return name, err
}
