package prune

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"xenkeep/chunkstore"
	"xenkeep/chunkstore/index"
	"xenkeep/chunkstore/object"
	"xenkeep/chunkstore/pack"
	"xenkeep/chunkstore/seal"
	"xenkeep/repo"
	"xenkeep/repo/tree"
)

// state is what is known of one pack in storage.
type state struct {
	size     int64
	modified time.Time
	live     liveSet
	keep     bool // named by a reference list, made by a live run, or unclear
	indexed  bool
}

func (s *state) mark(at index.Location) {
	if to := uint64(at.Offset) + uint64(at.Length); to <= math.MaxUint32 {
		s.live.add(at.Offset, uint32(to))
		return
	}
	s.keep = true // no pack of ours is as large
}

func (s *state) marked(at index.Location) bool {
	to := uint64(at.Offset) + uint64(at.Length)
	return to <= math.MaxUint32 && s.live.has(at.Offset, uint32(to))
}

func (s *state) dead() bool { return s.live.empty() && !s.keep }

// survey is what one pass has read of the repository. What it marks stays
// marked: a second look adds to it.
type survey struct {
	r  *repo.Repository
	o  *Options
	at time.Time // when reading began
	storage
	running
	marking
	forget []string // objects that cannot be read and are to be given up
}

// storage is what the storage holds.
type storage struct {
	packs     map[pack.ID]*state
	condemned map[pack.ID]time.Time // since when
	deleted   map[pack.ID]bool      // another pass has begun to delete them
	lists     []*repo.Condemned
	heads     []chunkstore.IndexHead
	everyCopy bool // something is known to be damaged: no copy is given up, but for those that are damaged
	badPacks  map[pack.ID]bool
	badBlobs  map[chunkstore.BadBlob]bool
	damage    []*repo.Damage
}

// running is who uses the repository, or did when it was last heard of.
type running struct {
	claims  []*repo.Claim
	retired []*repo.Retired
	runs    map[string]map[seal.WriterID]bool // all that have a claim or reference list, and whose they are
	over    map[string]bool                   // those of them that protect nothing any more
	end     []*repo.Over                      // those of them that can be ended
}

// marking is how far the trees of snapshots and claims were walked, to mark what
// they need in storage.packs.
type marking struct {
	walked    map[string]bool // snapshots and claimed roots
	nodes     map[tree.Key]struct{}
	partial   map[[16]byte]struct{} // block lists that are marked, and not all below them was there
	again     map[[16]byte]struct{} // while all is walked once more: block lists that are done
	later     *index.Gather         // of data chunks that are to be marked, while there is one
	gathered  int64                 // bytes of them
	places    []index.Location
	copies    []index.Location
	snapshots int
}

// take reads everything, in an order that leaves no gap: a run that ends while
// we read is met either by its claim or by its snapshot.
func take(ctx context.Context, r *repo.Repository, o *Options) (*survey, error) {
	s := &survey{
		r: r, o: o, at: o.Now(),
		storage: storage{
			packs: make(map[pack.ID]*state), condemned: make(map[pack.ID]time.Time), deleted: make(map[pack.ID]bool),
			badPacks: make(map[pack.ID]bool), badBlobs: make(map[chunkstore.BadBlob]bool),
		},
		marking: marking{walked: make(map[string]bool), nodes: make(map[tree.Key]struct{}), partial: make(map[[16]byte]struct{})},
	}
	var err error
	if s.lists, err = s.condemnations(ctx); err != nil {
		return nil, err
	}
	for _, l := range s.lists {
		ids, err := l.PackIDs()
		if err != nil {
			return nil, err
		}
		for _, id := range ids {
			s.deleted[id] = s.deleted[id] || l.Deleted
			if since, ok := s.condemned[id]; !ok || l.Time.Before(since) {
				s.condemned[id] = l.Time
			}
		}
	}
	damage, bad, err := r.ReadDamage(ctx)
	if err != nil {
		return nil, err
	}
	s.everyCopy = len(damage)+len(bad) > 0
	s.damage = damage
	for _, d := range damage {
		if !d.Full() {
			continue // of a key that may only write: it steers nothing
		}
		ids, err := d.BadPacks()
		if err != nil {
			return nil, err
		}
		for _, id := range ids {
			s.badPacks[id] = true
		}
		blobs, err := d.BadBlobs()
		if err != nil {
			return nil, err
		}
		for _, b := range blobs {
			s.badBlobs[b] = true
		}
	}
	if err := r.Objects().List(ctx, "packs/", func(i object.Info) error {
		if id, ok := pack.ParseObjectName(i.Name); ok {
			s.packs[id] = &state{size: i.Size, modified: i.Modified}
		}
		return nil
	}); err != nil {
		return nil, err
	}
	return s, s.look(ctx)
}

// look reads claims, reference lists and snapshots, and marks what they lead to.
func (s *survey) look(ctx context.Context) error {
	claims, bad, err := s.r.Claims(ctx)
	if err != nil {
		return err
	}
	refs, more, err := s.r.References(ctx)
	if err != nil {
		return err
	}
	bad = append(bad, more...)
	if s.retired, more, err = s.r.Retirements(ctx); err != nil {
		return err
	}
	bad = append(bad, more...)
	for _, p := range bad {
		if !s.givenUp(p.Object) {
			return unreadable(p.Object, p.Err)
		}
	}
	s.claims, s.runs = claims, make(map[string]map[seal.WriterID]bool)
	for _, c := range claims {
		s.known(c.Run, c.Writer())
	}
	for _, f := range refs {
		s.known(f.Run, f.Writer())
	}
	if err := s.ended(ctx); err != nil {
		return err
	}
	active := make(map[string]bool)
	for _, c := range claims {
		active[c.Run] = !s.over[c.Run] && !s.o.Exclusive
	}
	for _, f := range refs {
		if s.over[f.Run] || s.o.Exclusive {
			continue
		}
		active[f.Run] = true
		ids, err := f.PackIDs()
		if err != nil {
			return unreadable("reference list of run "+f.Run, err)
		}
		for _, id := range ids {
			if p := s.packs[id]; p != nil {
				p.keep = true
			}
		}
	}
	snapshots, bad, err := s.r.Snapshots(ctx)
	if err != nil {
		return err
	}
	for _, p := range bad {
		if !errors.Is(p.Err, seal.ErrRevoked) && !errors.Is(p.Err, repo.ErrWithdrawn) && !s.givenUp(p.Object) {
			return unreadable(p.Object, p.Err)
		}
	}
	s.snapshots = len(snapshots)
	s.ending(snapshots)
	// After the snapshots, so that all they need is in it.
	if err := s.readIndex(ctx, active); err != nil {
		return err
	}
	return s.walk(ctx, func() error { return s.roots(ctx, snapshots, active) })
}

// readIndex brings the index up to date and learns which packs live runs made.
// A pack that no index object covers may be one that a run has just put.
func (s *survey) readIndex(ctx context.Context, active map[string]bool) error {
	if err := s.r.LoadIndex(ctx); err != nil {
		return err
	}
	var err error
	if s.heads, err = s.r.Store().IndexHeads(ctx); err != nil {
		return err
	}
	for _, p := range s.packs {
		p.indexed = false
	}
	for _, h := range s.heads {
		made := active[fmt.Sprintf("%x", h.Run)]
		for _, id := range h.Packs {
			if p := s.packs[id]; p != nil {
				p.indexed = true
				p.keep = p.keep || made
			}
		}
	}
	busy := false
	for _, a := range active {
		busy = busy || a
	}
	orphans := false
	for _, p := range s.packs {
		if !p.indexed {
			p.keep = p.keep || busy
			orphans = true
		}
	}
	if !orphans {
		return nil
	}
	if _, err := s.r.Store().AdoptForReading(ctx); err != nil {
		return err
	}
	for id, p := range s.packs {
		// One that does not open is damage, and no reason to delete it. One
		// that a revoked writer wrote since is needed by nobody.
		if !p.indexed && !s.r.Store().Adopted(id) && !errors.Is(s.r.Store().Unusable(id), seal.ErrRevoked) {
			p.keep = true
		}
	}
	return nil
}

// wait is how long a condemned pack waits, and a retired run still counts.
func (s *survey) wait() time.Duration { return s.r.Objects().Traits().ListDelay + grace }

// due tells whether a pack's time is up.
func (s *survey) due(id pack.ID) bool {
	since, ok := s.condemned[id]
	return ok && s.at.Sub(since) >= s.wait()
}

// sorted gives packs that fn picks, in the order of their names.
func (s *survey) sorted(fn func(id pack.ID, p *state) bool) []pack.ID {
	var ids []pack.ID
	for id, p := range s.packs {
		if fn(id, p) {
			ids = append(ids, id)
		}
	}
	slices.SortFunc(ids, func(a, b pack.ID) int { return bytes.Compare(a[:], b[:]) })
	return ids
}

func (s *survey) count(ids []pack.ID) Count {
	c := Count{Packs: len(ids)}
	for _, id := range ids {
		if p := s.packs[id]; p != nil {
			c.Bytes += p.size
		}
	}
	return c
}

func unreadable(what string, err error) error {
	if !strings.HasPrefix(err.Error(), what) {
		err = fmt.Errorf("%s: %w", what, err)
	}
	return fmt.Errorf("%w; nothing was condemned: %w", err, ErrUnreadable)
}

// givenUp tells whether the user gives up an object that cannot be read, or a
// snapshot of which something cannot be read.
func (s *survey) givenUp(object string) bool {
	for _, name := range s.o.ForgetDamaged {
		if name != object && "snapshots/"+name != object {
			continue
		}
		if !slices.Contains(s.forget, object) {
			s.forget = append(s.forget, object)
		}
		return true
	}
	return false
}

// condemnations reads the condemned lists. What one that cannot be read names is
// not known, so that only where nothing else runs it can be given up.
func (s *survey) condemnations(ctx context.Context) ([]*repo.Condemned, error) {
	lists, bad, err := s.r.ReadCondemned(ctx)
	for _, p := range bad {
		if !s.givenUp(p.Object) {
			return nil, unreadable(p.Object, p.Err)
		}
	}
	return lists, err
}
