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

// state is the known state of one pack in storage.
type state struct {
	size     int64
	modified time.Time
	live     liveSet
	keep     bool // in a reference list, written by a live run, or of unclear use
	indexed  bool
}

func (s *state) mark(at index.Location) {
	if to := uint64(at.Offset) + uint64(at.Length); to <= math.MaxUint32 {
		s.live.add(at.Offset, uint32(to))
		return
	}
	s.keep = true // our packs are never that large
}

func (s *state) marked(at index.Location) bool {
	to := uint64(at.Offset) + uint64(at.Length)
	return to <= math.MaxUint32 && s.live.has(at.Offset, uint32(to))
}

func (s *state) dead() bool { return s.live.empty() && !s.keep }

// scan is the state of the repository as one pass has read it. Marks are never
// removed: look only adds to them.
type scan struct {
	r  *repo.Repository
	o  *Options
	at time.Time // when reading began
	storage
	running
	marking
	forget []string // objects that cannot be read and are to be abandoned
}

// storage is the content of the storage.
type storage struct {
	packs         map[pack.ID]*state
	condemned     map[pack.ID]time.Time // the time when they were condemned
	deleted       map[pack.ID]bool      // another pass has begun to delete them
	lists         []*repo.Condemned
	useless       []string // names of condemned lists that have no effect
	heads         []chunkstore.IndexHead
	keepAllCopies bool // some damage is known: all copies of a blob are kept, except damaged ones
	badPacks      map[pack.ID]bool
	untrusted     map[pack.ID]bool // packs whose content nobody has opened who may be believed
	refuted       map[pack.ID]bool // packs that this machine has opened, with wrong content
	badBlobs      map[chunkstore.BadBlob]bool
	damage        []*repo.Damage
}

// running records who uses the repository, or did so according to the objects read.
type running struct {
	claims  []*repo.Claim
	retired []*repo.Retired
	runs    map[string]map[seal.WriterID]bool // writers of each run that has a claim or reference list
	unclear map[string]bool                   // runs of which a retirement cannot be read
	over    map[string]bool                   // those runs that no longer protect anything
	end     []*repo.RunEnd                    // those runs that can be ended
}

// marking is the progress of walking the trees of snapshots and claims, which marks
// the data that they need in storage.packs.
type marking struct {
	walked    map[string]bool // snapshots and claimed roots
	nodes     map[tree.Key]struct{}
	partial   map[[16]byte]struct{} // marked block lists below which some chunks were missing
	again     map[[16]byte]struct{} // during the second walk: finished block lists
	later     *index.BulkLookup     // collects data chunks to be marked; nil if they are marked directly
	gathered  int64                 // total bytes of these chunks
	places    []index.Location
	copies    []index.Location
	snapshots int
	doubtful  map[pack.ID]bool // untrusted packs that stay because no copy of a blob is trusted
	inGrace   int              // forgotten snapshots whose grace period is not over
	graceEnd  time.Time        // when the first of these periods ends
	expired   []*repo.Snapshot // forgotten snapshots whose grace period was over at the first look
	forgotten map[string]bool  // names of all forgotten snapshots
	looked    bool
}

// take reads everything, in an order that leaves no gap: of a run that ends
// meanwhile we see its claim or its snapshot, never neither.
func take(ctx context.Context, r *repo.Repository, o *Options) (*scan, error) {
	s := &scan{
		r: r, o: o, at: o.Now(),
		storage: storage{
			packs: make(map[pack.ID]*state), condemned: make(map[pack.ID]time.Time), deleted: make(map[pack.ID]bool),
			badPacks: make(map[pack.ID]bool), badBlobs: make(map[chunkstore.BadBlob]bool),
		},
		marking: marking{walked: make(map[string]bool), nodes: make(map[tree.Key]struct{}), partial: make(map[[16]byte]struct{}), doubtful: make(map[pack.ID]bool)},
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
	s.keepAllCopies = len(bad) > 0 || slices.ContainsFunc(damage, (*repo.Damage).Full)
	s.damage = damage
	for _, d := range damage {
		if !d.Full() {
			continue // signed with a write-only key: it must not influence decisions
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
	return s, s.refresh(ctx)
}

// refresh reads claims, reference lists and snapshots, and marks the data that they
// reference.
func (s *scan) refresh(ctx context.Context) error {
	claims, bad, err := s.r.Claims(ctx)
	if err != nil {
		return err
	}
	refs, more, err := s.r.References(ctx)
	if err != nil {
		return err
	}
	bad = append(bad, more...)
	retired, badRetired, err := s.r.Retirements(ctx)
	if err != nil {
		return err
	}
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
	s.retire(retired, badRetired)
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
	all, bad, err := s.r.AllSnapshots(ctx)
	if err != nil {
		return err
	}
	for _, p := range bad {
		if !errors.Is(p.Err, seal.ErrRevoked) && !errors.Is(p.Err, repo.ErrWithdrawn) && !s.givenUp(p.Object) {
			return unreadable(p.Object, p.Err)
		}
	}
	s.ending(all)
	snapshots, err := s.graces(ctx, all)
	if err != nil {
		return err
	}
	// The index is read after the snapshots, so that it contains everything they
	// reference.
	if err := s.readIndex(ctx, active); err != nil {
		return err
	}
	s.judge()
	return s.walk(ctx, func() error { return s.roots(ctx, snapshots, active) })
}

// judge determines which packs are not trusted.
func (s *scan) judge() {
	store := s.r.Store()
	s.untrusted, s.refuted = make(map[pack.ID]bool), make(map[pack.ID]bool)
	if !store.Mixed() {
		return
	}
	for id := range s.packs {
		if !store.TrustsPack(id) {
			s.untrusted[id] = true
			s.refuted[id] = store.Refuted(id)
		}
	}
}

// graces returns the snapshots whose data is needed: all except those whose grace
// period and lock are over. The first look determines those that this pass deletes.
func (s *scan) graces(ctx context.Context, all []*repo.Snapshot) (needed []*repo.Snapshot, err error) {
	var expired []*repo.Snapshot
	s.snapshots, s.graceEnd, s.forgotten = 0, time.Time{}, make(map[string]bool)
	for _, snap := range all {
		g := snap.Grace()
		if g == nil {
			s.snapshots++
			needed = append(needed, snap)
			continue
		}
		s.forgotten["snapshots/"+snap.ID()] = true
		until := g.Until
		if g.Over(s.at) {
			if until, err = s.r.LockedUntil(ctx, snap); err != nil {
				return nil, err
			}
			if until.IsZero() {
				expired = append(expired, snap)
				continue
			}
		}
		needed = append(needed, snap)
		if s.graceEnd.IsZero() || until.Before(s.graceEnd) {
			s.graceEnd = until
		}
	}
	if !s.looked {
		s.looked, s.expired, s.inGrace = true, expired, len(s.forgotten)-len(expired)
	}
	return needed, nil
}

// readIndex brings the index up to date and determines which packs were written by
// live runs. A pack in no index object may be one that a run has just put.
func (s *scan) readIndex(ctx context.Context, active map[string]bool) error {
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
		for _, id := range h.Believed {
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
	if _, err := s.r.Store().LoadOrphans(ctx); err != nil {
		return err
	}
	for id, p := range s.packs {
		// A pack that cannot be opened is damaged, which is no reason to delete it.
		// A pack that a revoked writer wrote after its revocation is needed by
		// nothing.
		if !p.indexed && !s.r.Store().Adopted(id) && !errors.Is(s.r.Store().Unusable(id), seal.ErrRevoked) {
			p.keep = true
		}
	}
	return nil
}

// wait returns how long a condemned pack waits, and a retired run is still regarded
// as live.
func (s *scan) wait() time.Duration { return s.r.Objects().Traits().ListDelay + grace }

// due reports whether a condemned pack has waited long enough.
func (s *scan) due(id pack.ID) bool {
	since, ok := s.condemned[id]
	return ok && s.at.Sub(since) >= s.wait()
}

// sorted returns the packs for which fn returns true, in the order of their names.
func (s *scan) sorted(fn func(id pack.ID, p *state) bool) []pack.ID {
	var ids []pack.ID
	for id, p := range s.packs {
		if fn(id, p) {
			ids = append(ids, id)
		}
	}
	slices.SortFunc(ids, func(a, b pack.ID) int { return bytes.Compare(a[:], b[:]) })
	return ids
}

func (s *scan) count(ids []pack.ID) Count {
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

// givenUp reports whether the user abandons an object that cannot be read, or a
// snapshot of which a part cannot be read. It adds the object to s.forget.
func (s *scan) givenUp(object string) bool {
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

// condemnations reads the condemned lists. The packs in a list that cannot be read
// are not known, so such a list can be abandoned only in an exclusive pass.
func (s *scan) condemnations(ctx context.Context) ([]*repo.Condemned, error) {
	lists, useless, bad, err := s.r.ReadCondemned(ctx)
	s.useless = useless
	for _, p := range bad {
		if !s.givenUp(p.Object) {
			return nil, unreadable(p.Object, p.Err)
		}
	}
	return lists, err
}
