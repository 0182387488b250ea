// Package prune frees the space of data that no snapshot references. It runs
// concurrently with backups and takes no locks; docs/format.md, section 11,
// describes the protocol.
//
// A pass reads everything (New returns a Plan), then acts (Plan.Execute): it
// deletes the packs that an earlier pass condemned and that nothing references
// since, copies live data out of packs that are mostly dead, and condemns dead
// packs for a later pass. Time only decides how long condemned packs wait and when
// a claim looks dead. A pass may be interrupted anywhere: the next one continues
// from the state of the storage.
//
// Memory: 8 to 24 bytes for each live blob (a blob is up to 1 MiB of chunks that
// were new together), about 40 for each distinct block list (2 MiB of a disk) and
// 200 for each pack.
package prune

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"xenkeep/chunkstore/object"
	"xenkeep/chunkstore/pack"
	"xenkeep/repo"
)

var (
	// ErrUnreadable is returned if a snapshot, claim, list or node cannot be read:
	// the data that it needs is not known, so nothing is condemned.
	ErrUnreadable = errors.New("what it needs is not known")
	// ErrNotDamaged is returned if an object that is to be abandoned can be read.
	ErrNotDamaged = errors.New("is not damaged, or does not exist")
	// ErrRecovered is returned if a snapshot was recovered, or its grace period was
	// prolonged, while a pass that was about to delete it was running.
	ErrRecovered = errors.New("a forgotten snapshot was recovered meanwhile: run this prune again")
	// ErrStale is returned by a pass that was delayed for so long that the state it
	// has read may be out of date.
	ErrStale = errors.New("this prune was delayed for too long: run it again")
)

const (
	// grace is how long condemned packs wait in addition to the storage's delay of
	// listings. It allows for clocks that differ and for a pass that is delayed.
	grace = 24 * time.Hour
	// freshness is the maximum age of the state that a pass has read when it
	// deletes.
	freshness = grace / 2
	// DeadAfter is the age from which a claim's run is regarded as dead.
	DeadAfter = 14 * 24 * time.Hour
	// forgetAfter is the age at which a retirement is deleted. A run that continues
	// even later publishes no snapshot, because its claim was deleted, but it could
	// put an index object of packs that were deleted.
	forgetAfter = 90 * 24 * time.Hour
	// repackBatch is the maximum number of live bytes that an exclusive pass copies
	// before it deletes the packs that they came from.
	repackBatch = 256 << 20
)

// Options configures a pass.
type Options struct {
	// MaxRepack limits the bytes copied out of packs that are mostly dead; 0 copies
	// nothing.
	MaxRepack int64
	// Exclusive means that the user guarantees that nothing else uses the
	// repository: claims are retired, and dead packs are deleted immediately.
	Exclusive bool
	// ForgetDamaged lists snapshots that are abandoned because a part of them cannot
	// be read, by their IDs or unique prefixes of four characters or more.
	// Otherwise such a snapshot ends a prune before it has done anything. With
	// Exclusive it may list other objects too, by their names in storage: claims,
	// reference lists, retirements and condemned lists.
	ForgetDamaged []string
	Now           func() time.Time
	// Wait waits for d; nil means the real clock.
	Wait func(ctx context.Context, d time.Duration) error
	// Waiting, if set, is called before each wait with its length and reason.
	Waiting func(d time.Duration, why string)
	// Progress is called with the number of bytes copied and deleted.
	Progress func(n int64)
	// Begin is called when reading begins, with the number of bytes of disks. add
	// counts the bytes read and done is called at the end.
	Begin func(what string, total int64) (add func(n int64), done func())
}

func (o *Options) defaults() {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Progress == nil {
		o.Progress = func(int64) {}
	}
	if o.Begin == nil {
		o.Begin = func(string, int64) (func(int64), func()) { return func(int64) {}, func() {} }
	}
	if o.Wait == nil {
		o.Wait = func(ctx context.Context, d time.Duration) error {
			t := time.NewTimer(d)
			defer t.Stop()
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-t.C:
				return nil
			}
		}
	}
	if o.Waiting == nil {
		o.Waiting = func(time.Duration, string) {}
	}
}

// waitListing waits until the storage lists all objects that were put before, if
// its listings are delayed.
func (o *Options) waitListing(ctx context.Context, objects object.Store) error {
	d := objects.Traits().ListDelay
	if d <= 0 {
		return nil
	}
	o.Waiting(d, "the storage, which a network file system may be, shows new files to all machines only after that time")
	return o.Wait(ctx, d)
}

// Count is a number of packs and their bytes.
type Count struct {
	Packs int   `json:"packs"`
	Bytes int64 `json:"bytes"`
}

// Plan contains the decisions of a pass. Its Report summarizes them in numbers.
type Plan struct {
	Report

	s                       *scan
	remove, condemn, repack []pack.ID
	retire                  []*repo.Claim
	stay                    map[string]bool // condemned packs that have waited long enough but are still locked
	used                    bool
}

// Report summarizes the state that a pass found and its decisions, in numbers.
type Report struct {
	Snapshots int `json:"snapshots"`
	// InGrace counts forgotten snapshots that keep their data, because their grace
	// period is not over; GraceEnd is when the first of these periods ends.
	InGrace   int        `json:"in_grace"`
	GraceEnd  *time.Time `json:"grace_end,omitempty"`
	Expired   int        `json:"expired"`  // forgotten snapshots that this pass deletes
	Forget    int        `json:"given_up"` // damaged snapshots and objects that are abandoned
	All       Count      `json:"all"`
	Live      Count      `json:"live"`        // packs that are needed as a whole
	Partly    Count      `json:"partly_dead"` // packs of which a part is needed
	PartlyBy  int64      `json:"partly_live_bytes"`
	Held      Count      `json:"held"` // not needed by a snapshot, but a run may reference them
	Dead      Count      `json:"dead"` // needed by nothing
	Unindexed Count      `json:"unindexed"`

	Delete  Count      `json:"delete"`            // of the dead packs, those deleted now
	Condemn Count      `json:"condemn"`           // of the dead packs, those condemned now
	Waiting Count      `json:"waiting"`           // of the dead packs, those condemned earlier that must still wait
	Locked  Count      `json:"locked"`            // of the dead packs, those that only wait for the end of their locks
	Until   *time.Time `json:"until,omitempty"`   // when all condemned packs may be deleted
	Repack  Count      `json:"repack"`            // of the partly dead packs, those that are copied
	Copy    int64      `json:"bytes_copied"`      // live bytes in them
	Retire  int        `json:"claims_retired"`    // claims whose runs are regarded as dead
	End     int        `json:"runs_ended"`        // retired runs that protect nothing from the next pass on
	NeedEnd int        `json:"runs_to_end"`       // retired runs that only a full key can end
	Freed   int64      `json:"bytes_freed"`       // by this pass
	Later   int64      `json:"bytes_freed_later"` // by a pass after Until
}

// New reads the repository and plans a pass. The index need not have been loaded.
// With Exclusive it first waits until the storage lists all existing objects.
func New(ctx context.Context, r *repo.Repository, o Options) (*Plan, error) {
	o.defaults()
	if err := r.CanPrune(); err != nil {
		return nil, err
	}
	// Statements about the data of others count only from full keys.
	if err := r.NeedsFull("prune"); err != nil {
		return nil, err
	}
	if o.Exclusive {
		if err := o.waitListing(ctx, r.Objects()); err != nil {
			return nil, err
		}
	}
	if err := checkForget(ctx, r, &o); err != nil {
		return nil, err
	}
	s, err := take(ctx, r, &o)
	if err != nil {
		return nil, err
	}
	for _, name := range o.ForgetDamaged {
		if !slices.Contains(s.forget, name) && !slices.Contains(s.forget, "snapshots/"+name) {
			return nil, fmt.Errorf("%s: %w", name, ErrNotDamaged)
		}
	}
	p := &Plan{Report: Report{Snapshots: s.snapshots, InGrace: s.inGrace, Expired: len(s.expired), Forget: len(s.forget)}, s: s}
	if s.inGrace > 0 {
		p.GraceEnd = &s.graceEnd
	}
	p.sort()
	if err := p.locked(ctx); err != nil {
		return nil, err
	}
	known := make(map[string]bool)
	for _, t := range s.retired {
		known[t.Run] = true
	}
	for _, c := range s.claims {
		if !known[c.Run] && (o.Exclusive || s.at.Sub(c.Started) >= DeadAfter) {
			p.retire = append(p.retire, c)
		}
	}
	p.Retire = len(p.retire)
	if s.canEnd() {
		p.End = len(s.end)
	} else if !o.Exclusive {
		p.NeedEnd = len(s.end)
	}
	return p, nil
}

// checkForget returns an error for objects that must not be abandoned, and expands
// ID prefixes.
func checkForget(ctx context.Context, r *repo.Repository, o *Options) error {
	if len(o.ForgetDamaged) == 0 {
		return nil
	}
	notes, bad, err := r.Notes(ctx)
	if err == nil && len(bad) > 0 {
		err = fmt.Errorf("a note that may protect a snapshot cannot be read: %w", bad[0].Err)
	}
	if err != nil {
		return err
	}
	for i, name := range o.ForgetDamaged {
		if o.ForgetDamaged[i], err = wholeID(ctx, r, name); err != nil {
			return err
		}
	}
	protected := repo.Protected(notes)
	for _, name := range o.ForgetDamaged {
		if protected[strings.TrimPrefix(name, "snapshots/")] {
			return fmt.Errorf("snapshot %s is protected: xenkeep snapshots unprotect lets it go", name)
		}
		if folder, _, object := strings.Cut(name, "/"); object && folder != "snapshots" && !o.Exclusive {
			return fmt.Errorf("%s: can be given up where nothing else runs: with --exclusive", name)
		}
	}
	return nil
}

// wholeID returns the full ID of the snapshot whose ID begins with name, or name if
// there is none.
func wholeID(ctx context.Context, r *repo.Repository, name string) (string, error) {
	if len(name) < 4 || len(name) >= 64 || strings.Contains(name, "/") {
		return name, nil
	}
	var found []string
	if err := r.Objects().List(ctx, "snapshots/"+name, func(i object.Info) error {
		found = append(found, strings.TrimPrefix(i.Name, "snapshots/"))
		return nil
	}); err != nil {
		return "", err
	}
	switch len(found) {
	case 0:
		return name, nil
	case 1:
		return found[0], nil
	}
	return "", fmt.Errorf("%q: %w", name, repo.ErrAmbiguous)
}

// sort decides for each pack whether it stays, is copied, condemned or deleted.
func (p *Plan) sort() {
	s := p.s
	var waiting []pack.ID
	until := s.at.Add(s.wait())
	share := make(map[pack.ID]float64)
	lives := make(map[pack.ID]int64)
	for _, id := range s.sorted(func(pack.ID, *state) bool { return true }) {
		st := s.packs[id]
		one := func(c *Count) { c.Packs++; c.Bytes += st.size }
		one(&p.All)
		if !st.indexed {
			one(&p.Unindexed)
		}
		_, condemned := s.condemned[id]
		live := st.live.bytes()
		switch {
		case st.dead():
			one(&p.Dead)
			switch {
			case s.o.Exclusive || s.due(id):
				p.remove = append(p.remove, id)
			case condemned:
				waiting = append(waiting, id)
			default:
				p.condemn = append(p.condemn, id)
			}
		case live == 0:
			one(&p.Held)
		case live < st.size-st.size/16: // the rest is header and table, or too little to report
			one(&p.Partly)
			p.PartlyBy += live
			if live < st.size/2 && st.indexed && !st.keep && !s.keepAllCopies && (!condemned || s.o.Exclusive) {
				p.repack = append(p.repack, id)
				share[id] = float64(live) / float64(st.size)
				lives[id] = live
			}
		default:
			one(&p.Live)
		}
	}
	slices.SortStableFunc(p.repack, func(a, b pack.ID) int { return cmp.Compare(share[a], share[b]) })
	n := 0
	for _, id := range p.repack {
		if p.Copy+lives[id] > s.o.MaxRepack {
			break
		}
		p.Copy += lives[id]
		n++
	}
	p.repack = p.repack[:n]
	p.Delete, p.Condemn, p.Waiting, p.Repack = s.count(p.remove), s.count(p.condemn), s.count(waiting), s.count(p.repack)
	p.Freed, p.Later = p.Delete.Bytes, p.Condemn.Bytes+p.Waiting.Bytes
	if gain := p.Repack.Bytes - p.Copy; s.o.Exclusive {
		p.Freed += gain
	} else {
		p.Later += gain
	}
	switch {
	case p.Later == 0:
	case len(p.condemn)+len(p.repack) > 0:
		p.Until = &until
	default:
		last := s.condemned[waiting[0]]
		for _, id := range waiting {
			if t := s.condemned[id]; t.After(last) {
				last = t
			}
		}
		last = last.Add(s.wait())
		p.Until = &last
	}
}
