package prune

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"slices"

	"xenkeep/chunkstore/object"
	"xenkeep/chunkstore/pack"
	"xenkeep/chunkstore/seal"
)

// A pack of a write-only key may contain wrong data under the IDs of good data. Two
// steps of a pass depend on that: copying blobs into a pack of the full key, which
// everyone trusts, and choosing one of several copies. Before either, the pack is
// opened.

// provable opens the packs of a list that are not trusted, and returns the list
// without those that contain wrong data.
func (e *execution) provable(ctx context.Context, ids []pack.ID) ([]pack.ID, error) {
	var good, proved []pack.ID
	for _, id := range ids {
		if e.s.untrusted[id] {
			ok, err := e.prove(ctx, id)
			if err != nil {
				return nil, err
			}
			if !ok {
				continue
			}
			proved = append(proved, id)
		}
		good = append(good, id)
	}
	if len(proved) == 0 {
		return good, nil
	}
	return good, e.r.PutProof(ctx, proved, e.o.Now())
}

// proveDoubtful opens the packs that stay only because no copy of some blob is
// trusted, as far as the limit of bytes to be copied permits. A later pass chooses
// among the copies.
func (e *execution) proveDoubtful(ctx context.Context) error {
	ids := slices.SortedFunc(maps.Keys(e.s.doubtful), func(a, b pack.ID) int { return bytes.Compare(a[:], b[:]) })
	var proved []pack.ID
	left := e.o.MaxRepack
	for _, id := range ids {
		p := e.s.packs[id]
		if p == nil || e.s.refuted[id] || e.r.Store().Proved(id) || e.r.Store().Refuted(id) || p.size > left {
			continue
		}
		left -= p.size
		ok, err := e.prove(ctx, id)
		if err != nil {
			return errors.Join(err, e.r.PutProof(context.WithoutCancel(ctx), proved, e.o.Now()))
		}
		if ok {
			proved = append(proved, id)
		}
	}
	if len(proved) > 0 {
		if err := e.r.PutProof(ctx, proved, e.o.Now()); err != nil {
			return err
		}
	}
	return e.r.MergeProofs(ctx, func(id pack.ID) bool { return e.s.packs[id] != nil }, e.o.Now())
}

// prove opens a pack, and reports whether every blob in it is what its ID stands for.
func (e *execution) prove(ctx context.Context, id pack.ID) (bool, error) {
	err := e.r.Store().Prove(ctx, id)
	n := int64(0)
	if p := e.s.packs[id]; p != nil {
		n = p.size
	}
	switch {
	case err == nil:
		e.res.Proved.Packs++
		e.res.Proved.Bytes += n
		return true, nil
	case ctx.Err() != nil || object.Retriable(err):
		return false, err
	case errors.Is(err, object.ErrNotFound):
		return false, nil
	case !errors.Is(err, seal.ErrCorrupt):
		return false, err
	}
	e.r.Store().Refute(id)
	e.res.Refuted.Packs++
	e.res.Refuted.Bytes += n
	return false, nil
}
