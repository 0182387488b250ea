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

// gatherStep is the number of gathered chunks that are marked between two checks of
// the context.
const gatherStep = 1 << 14

// walk marks everything that is reachable from the roots. Data chunks, which are
// nearly all of it, are gathered and marked at the end. If one of them is in no
// pack, everything is walked again without gathering, so that the error can name
// the snapshot that needs it.
func (s *scan) walk(ctx context.Context, roots func() error) error {
	if s.keepAllCopies {
		return roots() // copies are chosen by full IDs
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

// roots marks everything that is reachable from the snapshots and from the claims
// of active runs.
func (s *scan) roots(ctx context.Context, snapshots []*repo.Snapshot, active map[string]bool) error {
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
			// A missing blob protects nothing; the run itself will notice it.
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

func (s *scan) snapshot(ctx context.Context, snap *repo.Snapshot) error {
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

// absent reports whether err means that a blob is in no pack, which a lenient walk
// accepts.
func absent(err error, lenient bool) bool { return lenient && errors.Is(err, chunkstore.ErrMissing) }

// tree marks everything below a root that is not marked yet. A lenient walk skips
// blobs that are in no pack.
func (s *scan) tree(ctx context.Context, root chunk.ID, lenient bool) error {
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

// marker marks the nodes and lists of one tree, and the blobs that they reference.
type marker struct {
	s       *scan
	lenient bool
	whole   bool // no blob below the current node was missing
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
	// A list is marked after everything below it.
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

// list marks a block list and the chunks that it references.
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

// seen reports whether a block list, which is to be marked at copies, and
// everything below it are marked already.
func (s *scan) seen(list chunk.ID, copies []index.Location) bool {
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

// mark marks a blob as needed.
func (s *scan) mark(ctx context.Context, kind chunk.Kind, id chunk.ID) error {
	copies, err := s.find(ctx, kind, id)
	s.markAt(copies)
	return err
}

func (s *scan) markAt(copies []index.Location) {
	for _, at := range copies {
		s.packs[at.Pack].mark(at)
	}
}

// find returns the copies of a blob that are to be marked.
func (s *scan) find(ctx context.Context, kind chunk.Kind, id chunk.ID) ([]index.Location, error) {
	s.places = s.r.Store().Index().Locate(index.PrefixOf(id), s.places[:0])
	return s.choose(ctx, kind, id, s.places)
}

// choose returns, of the locations of a blob, those that are to be marked: the one
// in the best of the packs that contain it. All pruners choose in the same way, so
// that two never delete each other's copy. It returns none if the blob is in a pack
// that was put after the packs were listed; that pack is kept. The result is valid
// until the next call.
func (s *scan) choose(ctx context.Context, kind chunk.Kind, id chunk.ID, places []index.Location) ([]index.Location, error) {
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
	// While none of the copies is trusted, each may be the only good one.
	unsure := best >= 0 && s.untrusted[places[best].Pack] && len(places) > 1
	if s.keepAllCopies || unsure {
		for _, at := range places {
			p := s.packs[at.Pack]
			if p == nil || int64(at.Offset)+int64(at.Length) > p.size || rank == 0 && s.bad(at.Pack, id) {
				continue
			}
			s.copies = append(s.copies, at)
			if unsure {
				s.doubtful[at.Pack] = true
			}
		}
	}
	if best < 0 || rank > 0 {
		// The blob may be in a pack that was put after the packs were listed.
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

// The parts of a rank.
const (
	rankCondemned = 1 << iota
	rankUntrusted
	rankDeleted // about to be deleted
	rankBad     // damaged
)

// rank orders the copies of a blob: 0 is trusted and in a pack that stays.
func (s *scan) rank(in pack.ID, id chunk.ID) (rank int) {
	if _, ok := s.condemned[in]; ok {
		rank |= rankCondemned
	}
	if s.untrusted[in] {
		rank |= rankUntrusted
	}
	if s.deleted[in] {
		rank |= rankDeleted
	}
	if s.bad(in, id) {
		rank |= rankBad
	}
	return rank
}

// bad reports whether a copy is known to be damaged.
func (s *scan) bad(in pack.ID, id chunk.ID) bool {
	return s.badPacks[in] || s.refuted[in] || s.badBlobs[chunkstore.BadBlob{ID: id, Pack: in}] || s.badBlobs[chunkstore.BadBlob{ID: id}]
}
