// Package copy copies snapshots from one repository into another, without the pool:
// for a second site, or to change chunk sizes or compression.
//
// New lists the snapshots to be copied, Plan.Execute copies them. Chunks are opened
// with the keys of the source, and chunked, hashed and sealed with those of the
// target, as a backup to it would have done: so copies and backups share equal
// chunks. If the last snapshot of a disk has been copied already, only the blocks
// that differ are read. The data that an interrupted copy uploaded is used when the
// copy is run again.
package copy

import (
	"context"
	"errors"
	"fmt"
	"time"

	"xenkeep/chunkstore"
	"xenkeep/chunkstore/chunk"
	"xenkeep/chunkstore/seal"
	"xenkeep/repo"
	"xenkeep/repo/backup"
)

// ErrSame is returned for copying a repository into itself.
var ErrSame = errors.New("both are one repository")

// Options configures a copy.
type Options struct {
	// Pick, if set, selects the snapshots; nil selects all.
	Pick    func(*repo.Snapshot) bool
	Level   seal.Level
	Machine string // the machine that copies; it is recorded in the claim of the run
	Process string // as in backup.Options
	Now     func() time.Time
	// Begin, if set, is called before each snapshot is copied, with the bytes of
	// its disks. add counts the bytes that are done, and done is called at the end.
	Begin func(s *repo.Snapshot, total int64) (add func(n int64), done func())
}

// Copied is the result for one snapshot.
type Copied struct {
	From   *repo.Snapshot
	As     *repo.Snapshot // in the other repository; nil if the copy failed
	Known  bool           // it had been copied before
	Read   int64          // bytes of blocks read
	New    int64          // bytes of chunks that the other repository did not have
	Stored int64          // size of these chunks and the trees as stored there
	Err    error
}

// Plan lists the work to do.
type Plan struct {
	Known []Copied         // copied before
	Todo  []*repo.Snapshot // oldest data first
	// Unreadable are snapshots of the source that cannot be opened.
	Unreadable []repo.Problem
	// Recut reports that the two repositories have different chunk sizes.
	Recut bool

	from, to *repo.Repository
	o        Options
	roots    map[chunk.ID]chunk.ID // root in the source -> root in the other repository
	latest   map[diskKey]pair      // last copied disks in the other repository
	origin   map[string]*repo.Snapshot
	claimed  []chunk.ID
}

// diskKey is one disk of one VM.
type diskKey struct{ pool, vm, device, vdi string }

func keyOf(s *repo.Snapshot, d *repo.Disk) diskKey {
	return diskKey{s.Pool.UUID, s.VM.UUID, d.Device, d.VDI}
}

// pair is one disk in both repositories.
type pair struct {
	from, to chunk.ID
	size     int64
}

// originOf identifies the backup that a snapshot is a copy of, or the snapshot
// itself if it is not a copy: snapshots with equal results are one backup, in
// whatever repository they are stored.
func originOf(r *repo.Repository, s *repo.Snapshot) string {
	if s.Original != nil {
		return s.Original.Repository + "/" + s.Original.Snapshot
	}
	return r.ID() + "/" + s.ID()
}

// New plans a copy. The indexes of both repositories must have been loaded.
func New(ctx context.Context, from, to *repo.Repository, o Options) (*Plan, error) {
	if from.ID() == to.ID() {
		return nil, ErrSame
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Begin == nil {
		o.Begin = func(*repo.Snapshot, int64) (func(int64), func()) { return func(int64) {}, func() {} }
	}
	all, unreadable, err := from.Snapshots(ctx)
	if err != nil {
		return nil, err
	}
	there, bad, err := to.Snapshots(ctx)
	if err != nil {
		return nil, err
	}
	for _, p := range bad {
		if !errors.Is(p.Err, repo.ErrWithdrawn) {
			return nil, p.Err // it may be a copied snapshot
		}
	}
	p := &Plan{
		Unreadable: unreadable, Recut: from.Config().Chunker != to.Config().Chunker,
		from: from, to: to, o: o,
		roots: make(map[chunk.ID]chunk.ID), latest: make(map[diskKey]pair), origin: make(map[string]*repo.Snapshot),
	}
	for _, s := range there {
		p.origin[originOf(to, s)] = s
	}
	wanted := make(map[chunk.ID]bool)
	for _, s := range all {
		if as := p.origin[originOf(from, s)]; as == nil && (o.Pick == nil || o.Pick(s)) {
			p.Todo = append(p.Todo, s)
			for i := range s.Disks {
				wanted[chunk.ID(s.Disks[i].Root)] = true
			}
		}
	}
	for _, s := range all {
		as := p.origin[originOf(from, s)]
		if as == nil {
			continue
		}
		if o.Pick == nil || o.Pick(s) {
			p.Known = append(p.Known, Copied{From: s, As: as, Known: true})
		}
		p.learn(s, as)
	}
	claims := make(map[chunk.ID]bool)
	for a, b := range p.roots {
		if wanted[a] {
			claims[b] = true
		}
	}
	for _, l := range p.latest {
		claims[l.to] = true
	}
	for id := range claims {
		p.claimed = append(p.claimed, id)
	}
	return p, nil
}

// learn records which disks are equal in the two repositories.
func (p *Plan) learn(s, as *repo.Snapshot) {
	for i := range s.Disks {
		if i >= len(as.Disks) || as.Disks[i].Size != s.Disks[i].Size {
			return
		}
		a, b := chunk.ID(s.Disks[i].Root), chunk.ID(as.Disks[i].Root)
		p.roots[a] = b
		p.latest[keyOf(s, &s.Disks[i])] = pair{a, b, s.Disks[i].Size}
	}
}

// Result counts the actions of a copy.
type Result struct {
	Copied    []Copied // snapshots of Todo, including failed ones
	Failed    int
	Protected int // notes copied that protect snapshots
	Packs     int64
	Uploaded  int64 // bytes of these packs
	Levels    []chunkstore.LevelStats
}

// Execute copies the snapshots. A snapshot that cannot be read does not prevent
// others from being copied: it is in the result with its error. A plan can be
// executed only once.
func (p *Plan) Execute(ctx context.Context) (*Result, error) {
	res := new(Result)
	if len(p.Todo) > 0 {
		claims, _, err := p.to.Claims(ctx)
		if err != nil {
			return res, err
		}
		err = backup.WithRun(ctx, p.to, backup.Options{
			Job: "copy", Machine: p.o.Machine, Process: p.o.Process, Roots: p.claimed,
			AdoptOrphans: len(claims) > 0, Level: p.o.Level, Now: p.o.Now,
		}, func(ctx context.Context, run *backup.Run) error {
			c := &copier{p: p, run: run, res: res}
			err := c.all(ctx)
			st := run.Stats()
			res.Packs, res.Uploaded, res.Levels = st.Packs, st.Stored, st.Levels
			return err
		})
		if err != nil && !errors.Is(err, backup.ErrClaimLeft) {
			return res, err
		}
	}
	return res, p.protect(ctx, res)
}

// protect copies the protection of snapshots, once: a note about a copy in its own
// repository takes precedence.
func (p *Plan) protect(ctx context.Context, res *Result) error {
	notes, _, err := p.from.Notes(ctx)
	if err != nil {
		return err
	}
	protected := repo.Protected(notes)
	if len(protected) == 0 {
		return nil
	}
	if notes, _, err = p.to.Notes(ctx); err != nil {
		return err
	}
	spoken := make(map[string]bool)
	for _, n := range notes {
		if n.Kind == "protect" || n.Kind == "unprotect" {
			spoken[n.Snapshot] = true
		}
	}
	for _, list := range [][]Copied{p.Known, res.Copied} {
		for _, c := range list {
			if c.As == nil || !protected[c.From.ID()] || spoken[c.As.ID()] {
				continue
			}
			if err := p.to.PutNote(ctx, &repo.Note{
				Snapshot: c.As.ID(), Kind: "protect", Time: p.o.Now().UTC(), Text: "as the snapshot it is a copy of",
			}); err != nil {
				return err
			}
			res.Protected++
		}
	}
	return nil
}

type copier struct {
	p   *Plan
	run *backup.Run
	res *Result
	// fresh are roots that were stored since the last Flush; they cannot be used as
	// a base yet.
	fresh  map[chunk.ID]bool
	queued []Copied
}

func (c *copier) all(ctx context.Context) error {
	c.fresh = make(map[chunk.ID]bool)
	for _, s := range c.p.Todo {
		if err := c.one(ctx, s); err != nil {
			return err
		}
		if c.run.Due() {
			if err := c.flush(ctx); err != nil {
				return err
			}
		}
	}
	return c.flush(ctx)
}

// flush publishes the copied snapshots.
func (c *copier) flush(ctx context.Context) error {
	if err := c.run.Flush(ctx); err != nil {
		return err
	}
	c.res.Copied = append(c.res.Copied, c.queued...)
	c.queued = nil
	clear(c.fresh)
	return nil
}

// one copies a snapshot. An error ends the whole copy; errors that concern only the
// snapshot are recorded in the result.
func (c *copier) one(ctx context.Context, s *repo.Snapshot) error {
	out := Copied{From: s}
	var as *repo.Snapshot
	var err error
	for try := range 2 {
		out.Read, out.New, out.Stored = 0, 0, 0
		if as, err = c.snapshot(ctx, s, &out); err == nil || ctx.Err() != nil || !errors.Is(err, errSource) {
			break
		}
		// A pruner may have moved the data that was read.
		if try == 0 {
			if err := c.p.from.LoadIndex(ctx); err != nil {
				return err
			}
		}
	}
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.Is(err, errSource) && lasting(err):
		out.Err = err
		c.res.Failed++
		c.res.Copied = append(c.res.Copied, out)
		return nil
	case err != nil:
		return err
	}
	out.As = as
	c.run.Add(as)
	c.queued = append(c.queued, out)
	c.p.learn(s, as)
	return nil
}

// errSource marks errors of the repository that is read.
var errSource = errors.New("read")

// lasting reports whether an error of the source is damage; any other error would
// affect every snapshot.
func lasting(err error) bool {
	return errors.Is(err, seal.ErrCorrupt) || errors.Is(err, chunkstore.ErrMissing) || isGone(err)
}

func (c *copier) snapshot(ctx context.Context, s *repo.Snapshot, out *Copied) (*repo.Snapshot, error) {
	as := repo.CopyOf(c.p.from, s)
	var total int64
	for i := range s.Disks {
		total += s.Disks[i].Size
	}
	add, done := c.p.o.Begin(s, total)
	defer done()
	for _, rec := range s.Records {
		data, err := c.p.from.Store().Load(ctx, chunk.Record, chunk.ID(rec.ID))
		if err != nil {
			return nil, fmt.Errorf("record %s: %w: %w", rec.Name, errSource, err)
		}
		r, err := c.run.Record(ctx, rec.Name, data)
		if err != nil {
			return nil, err
		}
		as.Records = append(as.Records, r)
	}
	for i := range s.Disks {
		d := s.Disks[i]
		res, read, err := c.disk(ctx, s, &d, add)
		if err != nil {
			return nil, fmt.Errorf("disk %s: %w", d.Device, err)
		}
		d.Root = repo.HexID(res.Root)
		d.Counts.New, d.Counts.Stored = res.Counts.New, res.Counts.Stored
		out.Read += read
		out.New += res.Counts.New
		out.Stored += res.Counts.Stored
		as.Disks = append(as.Disks, d)
	}
	return as, nil
}

// disk copies a disk: no data if its root is known, otherwise the blocks that
// differ from the last copy, otherwise all data.
func (c *copier) disk(ctx context.Context, s *repo.Snapshot, d *repo.Disk, add func(int64)) (backup.DiskResult, int64, error) {
	root := chunk.ID(d.Root)
	if to, ok := c.p.roots[root]; ok && (c.fresh[to] || c.run.CheckBase(ctx, to) == nil) {
		add(d.Size)
		return backup.DiskResult{Root: to}, 0, nil
	}
	base, ok := c.p.latest[keyOf(s, d)]
	if ok && c.fresh[base.to] {
		if err := c.flush(ctx); err != nil {
			return backup.DiskResult{}, 0, err
		}
	}
	// If the base is missing in the source, everything is read, and the base in the
	// other repository helps to find known chunks.
	delta := ok && base.size <= d.Size && c.run.CheckBase(ctx, base.to) == nil
	o := backup.DiskOptions{Size: d.Size}
	if ok {
		o.Base = base.to
	}
	src, err := openSource(ctx, c.p.from, root, d.Size)
	if err != nil {
		return backup.DiskResult{}, 0, err
	}
	blocks := src.all
	if delta {
		if differ, err := src.differing(ctx, base.from); err == nil {
			blocks, o.Delta = differ, true
		} else if ctx.Err() != nil {
			return backup.DiskResult{}, 0, err
		}
	}
	passed := int64(0)
	src.begin(ctx, blocks, o.Delta, func(upTo int64) {
		add(upTo - passed)
		passed = upTo
	})
	defer src.close()
	res, err := c.run.BackupDisk(ctx, src, o)
	if err != nil {
		return res, src.read, err
	}
	add(d.Size - passed)
	c.fresh[res.Root] = true
	return res, src.read, nil
}
