package prune

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"

	"xenkeep/chunkstore"
	"xenkeep/chunkstore/chunk"
	"xenkeep/chunkstore/index"
	"xenkeep/chunkstore/object"
	"xenkeep/chunkstore/pack"
	"xenkeep/repo"
	"xenkeep/repo/tree"
)

// gatherStep is how many gathered chunks are marked between two looks at the
// time.
const gatherStep = 1 << 14

// walk marks what roots lead to. Data chunks, which are nearly all there is, are
// gathered and marked in the end. Where one is nowhere, all is walked once more
// without that, so that what needs it can be named.
func (s *survey) walk(ctx context.Context, roots func() error) error {
	if s.everyCopy {
		return roots() // copies are chosen by whole IDs
	}
	walked, nodes := maps.Clone(s.walked), maps.Clone(s.nodes)
	lost, found, progress := false, 0, func() {}
	s.gathered = 0
	s.later = s.r.Store().Index().Gather(func(p index.Prefix, at []index.Location) error {
		if found++; found%gatherStep == 0 {
			progress()
			if err := ctx.Err(); err != nil {
				return err
			}
		}
		var id chunk.ID
		copy(id[:], p[:])
		copies, err := s.choose(ctx, chunk.Data, id, at)
		s.markAt(copies)
		if errors.Is(err, chunkstore.ErrMissing) {
			lost = true
			return nil
		}
		return err
	})
	defer s.later.Close()
	err := roots()
	g := s.later
	s.later = nil
	if err != nil {
		return err
	}
	if n := g.Len(); n > 0 {
		add, done := s.o.Begin("chunks", s.gathered)
		defer done()
		step := int64(float64(s.gathered) / float64(n) * gatherStep)
		progress = func() { add(step) }
	}
	if err := g.Flush(); err != nil || !lost {
		return err
	}
	s.walked, s.nodes, s.again = walked, nodes, make(map[[16]byte]struct{})
	defer func() { s.again = nil }()
	return roots()
}

// roots marks what snapshots and the claims of active runs lead to.
func (s *survey) roots(ctx context.Context, snapshots []*repo.Snapshot, active map[string]bool) error {
	var total int64
	for _, snap := range snapshots {
		total += snap.Size()
	}
	add, done := s.o.Begin("snapshots", total)
	defer done()
	for _, snap := range snapshots {
		add(snap.Size())
		if s.walked[snap.ID()] {
			continue
		}
		if err := s.snapshot(ctx, snap); err != nil {
			if ctx.Err() != nil || object.Retriable(err) {
				return err
			}
			if _, serr := s.r.Objects().Stat(ctx, "snapshots/"+snap.ID()); errors.Is(serr, object.ErrNotFound) {
				continue // forgotten meanwhile
			}
			if s.givenUp("snapshots/" + snap.ID()) {
				continue
			}
			return unreadable("snapshot "+snap.Short(), err)
		}
		s.walked[snap.ID()] = true
	}
	for _, c := range s.claims {
		if !active[c.Run] {
			continue
		}
		for _, root := range c.Roots {
			id := chunk.ID(root)
			if s.walked[id.String()] {
				continue
			}
			// What is not there protects nothing; the run will find that out.
			if err := s.tree(ctx, id, true); err != nil {
				if ctx.Err() != nil || object.Retriable(err) {
					return err
				}
				return unreadable("claim of run "+c.Run, err)
			}
			s.walked[id.String()] = true
		}
	}
	return nil
}

func (s *survey) snapshot(ctx context.Context, snap *repo.Snapshot) error {
	for _, rec := range snap.Records {
		if err := s.mark(ctx, chunk.Record, chunk.ID(rec.ID)); err != nil {
			return err
		}
	}
	for i := range snap.Disks {
		if err := s.tree(ctx, chunk.ID(snap.Disks[i].Root), false); err != nil {
			return fmt.Errorf("disk %s: %w", snap.Disks[i].Device, err)
		}
	}
	return nil
}

// absent tells whether err says that a blob is nowhere, and that is all right.
func absent(err error, lenient bool) bool { return lenient && errors.Is(err, chunkstore.ErrMissing) }

// tree marks all below a root that is not marked yet. A lenient walk passes
// over what is nowhere.
func (s *survey) tree(ctx context.Context, root chunk.ID, lenient bool) error {
	if err := s.mark(ctx, chunk.Root, root); err != nil {
		if absent(err, lenient) {
			return nil
		}
		return err
	}
	rn, err := tree.ReadRoot(ctx, s.r.Store(), root)
	if err != nil {
		return err
	}
	m := marker{s: s, lenient: lenient}
	return tree.Walk(ctx, s.r.Store(), rn, tree.Visitor{
		Enter: func(p tree.Part) (bool, error) { return m.enter(ctx, p) },
		List:  func(p tree.Part, pieces []tree.Piece) error { return m.list(ctx, p, pieces) },
		Leave: m.leave,
	})
}

// marker marks the nodes and lists of one tree, and what they name.
type marker struct {
	s       *survey
	lenient bool
	whole   bool // everything below the node that is being walked was there
}

func (m *marker) enter(ctx context.Context, p tree.Part) (bool, error) {
	if p.Kind == chunk.Node {
		if _, seen := m.s.nodes[p.Key()]; seen {
			return false, nil
		}
		m.whole = true
		err := m.s.mark(ctx, chunk.Node, p.ID)
		if absent(err, m.lenient) {
			return false, nil
		}
		return err == nil, err
	}
	// A list is marked when all below it is.
	copies, err := m.s.find(ctx, chunk.List, p.ID)
	if err != nil {
		if !absent(err, m.lenient) {
			return false, err
		}
		m.whole = false
		return false, nil
	}
	return !m.s.seen(p.ID, copies), nil
}

// list marks a block list and the chunks that it names.
func (m *marker) list(ctx context.Context, p tree.Part, pieces []tree.Piece) error {
	s, complete := m.s, true
	for i := range pieces {
		piece := &pieces[i]
		if piece.IsZero() {
			continue
		}
		var err error
		if s.later != nil {
			s.gathered += int64(piece.Length)
			err = s.later.Add(index.PrefixOf(piece.ID))
		} else {
			err = s.mark(ctx, chunk.Data, piece.ID)
		}
		if err != nil {
			if !absent(err, m.lenient) {
				return err
			}
			complete = false
		}
	}
	if err := s.mark(ctx, chunk.List, p.ID); err != nil {
		return err
	}
	if complete {
		delete(s.partial, index.PrefixOf(p.ID))
		if s.again != nil {
			s.again[index.PrefixOf(p.ID)] = struct{}{}
		}
	} else {
		s.partial[index.PrefixOf(p.ID)] = struct{}{}
	}
	m.whole = m.whole && complete
	return nil
}

func (m *marker) leave(node tree.Part) error {
	if m.whole {
		m.s.nodes[node.Key()] = struct{}{}
	}
	return nil
}

// seen tells whether a block list, which is to be marked at copies, and all
// below it are marked already.
func (s *survey) seen(list chunk.ID, copies []index.Location) bool {
	if s.again != nil {
		_, done := s.again[index.PrefixOf(list)]
		return done
	}
	if _, partial := s.partial[index.PrefixOf(list)]; partial || len(copies) == 0 {
		return false
	}
	for _, at := range copies {
		if !s.packs[at.Pack].marked(at) {
			return false
		}
	}
	return true
}

// mark says that a blob is needed.
func (s *survey) mark(ctx context.Context, kind chunk.Kind, id chunk.ID) error {
	copies, err := s.find(ctx, kind, id)
	s.markAt(copies)
	return err
}

func (s *survey) markAt(copies []index.Location) {
	for _, at := range copies {
		s.packs[at.Pack].mark(at)
	}
}

// find gives the copies of a blob that are to be marked.
func (s *survey) find(ctx context.Context, kind chunk.Kind, id chunk.ID) ([]index.Location, error) {
	s.places = s.r.Store().Index().Locate(index.PrefixOf(id), s.places[:0])
	return s.choose(ctx, kind, id, s.places)
}

// choose gives, of the places of a blob, those that are to be marked: that in the
// best of the packs that hold it. All pruners choose alike, so that two never
// give up each other's copy. None, where it lies in a pack that was put since the
// packs were listed, and that is kept. The result is good until the next call.
func (s *survey) choose(ctx context.Context, kind chunk.Kind, id chunk.ID, places []index.Location) ([]index.Location, error) {
	s.copies = s.copies[:0]
	best, rank := -1, 0
	for i, at := range places {
		p := s.packs[at.Pack]
		if p == nil || int64(at.Offset)+int64(at.Length) > p.size {
			continue
		}
		n := s.rank(at.Pack, id)
		if best < 0 || n < rank || n == rank && bytes.Compare(at.Pack[:], places[best].Pack[:]) < 0 {
			best, rank = i, n
		}
	}
	if s.everyCopy {
		for _, at := range places {
			p := s.packs[at.Pack]
			if p == nil || int64(at.Offset)+int64(at.Length) > p.size || rank == 0 && s.bad(at.Pack, id) {
				continue
			}
			s.copies = append(s.copies, at)
		}
	}
	if best < 0 || rank > 0 {
		// Perhaps in a pack that was put since the packs were listed.
		for _, at := range places {
			if s.packs[at.Pack] != nil {
				continue
			}
			info, err := s.r.Objects().Stat(ctx, pack.ID(at.Pack).ObjectName())
			if errors.Is(err, object.ErrNotFound) {
				continue
			}
			if err != nil {
				return s.copies, err
			}
			s.packs[at.Pack] = &state{size: info.Size, modified: info.Modified, keep: true, indexed: true}
			return s.copies, nil
		}
	}
	if best < 0 {
		return s.copies, &chunkstore.BlobError{Kind: kind, ID: id, Err: chunkstore.ErrMissing}
	}
	return append(s.copies, places[best]), nil
}

// rank orders copies of a blob: 0 in a pack that stays, 1 condemned, 2 about to
// be deleted, 3 damaged.
func (s *survey) rank(in pack.ID, id chunk.ID) int {
	if s.bad(in, id) {
		return 3
	}
	if s.deleted[in] {
		return 2
	}
	if _, ok := s.condemned[in]; ok {
		return 1
	}
	return 0
}

// bad tells whether a copy is known to be damaged.
func (s *survey) bad(in pack.ID, id chunk.ID) bool {
	return s.badPacks[in] || s.badBlobs[chunkstore.BadBlob{ID: id, Pack: in}] || s.badBlobs[chunkstore.BadBlob{ID: id}]
}
