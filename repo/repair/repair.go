// Package repair recovers as much as possible of a damaged repository: Index
// rebuilds index objects from packs, Packs copies the readable blobs of damaged
// packs, and Snapshots determines the lost ranges of disks and publishes them, so
// that the next backup stores them again. All three can run concurrently with
// backups, and can be interrupted and run again. None deletes a pack or a snapshot.
package repair

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"xenkeep/chunkstore"
	"xenkeep/chunkstore/object"
	"xenkeep/chunkstore/pack"
	"xenkeep/repo"
	"xenkeep/repo/check"
)

// Options are common to all repairs.
type Options struct {
	Now func() time.Time
	// Wait waits for d; nil means the real clock.
	Wait func(ctx context.Context, d time.Duration) error
	// Begin is called at the start of each part of the work, as in check.Options.
	Begin func(what string, total int64) (add func(n int64), done func())
}

func (o *Options) defaults() {
	if o.Now == nil {
		o.Now = time.Now
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
}

// settle waits until the storage lists all objects that were put.
func (o *Options) settle(ctx context.Context, r *repo.Repository) error {
	if d := r.Objects().Traits().ListDelay; d > 0 {
		return o.Wait(ctx, d)
	}
	return nil
}

// Lost is a part of a disk that cannot be read.
type Lost struct {
	Snapshot string    `json:"snapshot"` // ID
	Data     time.Time `json:"data_time"`
	VMUUID   string    `json:"vm_uuid"`
	VMName   string    `json:"vm_name"`
	Device   string    `json:"device"`
	VDI      string    `json:"vdi,omitempty"`
	From     int64     `json:"from"` // bytes of the disk
	To       int64     `json:"to"`   // the first byte after it
}

// SnapshotsOptions configures Snapshots.
type SnapshotsOptions struct {
	Options
	// ReadData reads all data. Otherwise only packs are read that may be damaged:
	// according to the last check on this machine, to damage lists, or because of
	// their size.
	ReadData bool
	DryRun   bool // publish nothing
}

// SnapshotsResult summarizes the loss.
type SnapshotsResult struct {
	Snapshots int    `json:"snapshots"` // checked
	Damaged   int    `json:"damaged"`   // of these, those that lost data
	Packs     int    `json:"packs"`     // missing, or without trusted content
	Chunks    int    `json:"chunks"`    // damaged in other packs
	List      string `json:"list,omitempty"`
	Removed   int    `json:"lists_removed"` // damage lists of earlier repairs that no longer apply
	DryRun    bool   `json:"dry_run"`

	Lost     []Lost          `json:"-"`
	Findings []check.Finding `json:"-"` // all findings of the check
}

// Snapshots looks for damage, and publishes a damage list that replaces the
// existing ones.
func Snapshots(ctx context.Context, r *repo.Repository, o SnapshotsOptions) (*SnapshotsResult, error) {
	o.defaults()
	before, bad, err := r.ReadDamage(ctx)
	if err != nil {
		return nil, err
	}
	rep, err := check.Run(ctx, r, check.Options{ReadData: o.ReadData, Suspects: true, Now: o.Now, Begin: o.Begin})
	if err != nil {
		return nil, err
	}
	d := rep.Damage()
	res := &SnapshotsResult{Snapshots: rep.Snapshots, DryRun: o.DryRun, Findings: rep.Findings}
	list := &repo.Damage{Time: o.Now().UTC()}
	packs := make(map[pack.ID]bool)
	for _, id := range d.Packs {
		packs[id] = true
	}
	for _, l := range before { // packs whose sound blobs were copied, and that are still damaged
		ids, err := l.BadPacks()
		if err != nil {
			return nil, err
		}
		for _, id := range ids {
			packs[id] = packs[id] || slices.Contains(d.Hurt, id)
		}
	}
	for id, is := range packs {
		if is {
			list.Packs = append(list.Packs, id.String())
		}
	}
	slices.Sort(list.Packs)
	for _, b := range d.Blobs {
		if !packs[b.Pack] {
			list.Chunks = append(list.Chunks, repo.BadChunk{ID: repo.HexID(b.ID), Pack: b.Pack.String()})
		}
	}
	slices.SortFunc(list.Chunks, func(a, b repo.BadChunk) int { return slices.Compare(a.ID[:], b.ID[:]) })
	res.Packs, res.Chunks = len(list.Packs), len(list.Chunks)
	list.Blocks, res.Lost, res.Damaged = blocks(d.Ranges)
	if o.DryRun {
		return res, nil
	}
	if len(list.Packs)+len(list.Chunks)+len(list.Blocks) > 0 {
		if len(before) == 1 && len(bad) == 0 && same(before[0], list) {
			res.List = before[0].Name()
			return res, nil
		}
		if err := r.PutDamage(ctx, list); err != nil {
			return nil, err
		}
		res.List = list.Name()
		if err := o.settle(ctx, r); err != nil {
			return res, err
		}
	}
	for _, l := range before {
		if err := r.Objects().Delete(ctx, l.Name()); err != nil {
			return res, err
		}
		res.Removed++
	}
	return res, nil
}

// same reports whether two lists have the same content.
func same(a, b *repo.Damage) bool {
	return slices.Equal(a.Packs, b.Packs) && slices.Equal(a.Chunks, b.Chunks) &&
		slices.EqualFunc(a.Blocks, b.Blocks, func(x, y repo.DamagedDisk) bool {
			return x.Snapshot == y.Snapshot && x.Device == y.Device && x.VDI == y.VDI && slices.Equal(x.Ranges, y.Ranges)
		})
}

// PacksOptions configures Packs.
type PacksOptions struct {
	Options
	Packs []pack.ID // packs to copy from; empty: those that may be damaged, as in SnapshotsOptions
}

// PacksResult counts the recovered data.
type PacksResult struct {
	Packs      int   `json:"packs"`      // damaged
	Unreadable int   `json:"unreadable"` // of these, those of which no blob can be read
	Saved      int   `json:"blobs_saved"`
	SavedBytes int64 `json:"bytes_saved"`
	Lost       int   `json:"blobs_lost"`
	Written    int   `json:"packs_written"`

	Findings []check.Finding `json:"-"`
}

// Packs copies the sound blobs of damaged packs into new packs, in sealed form, and
// publishes that no content of the damaged packs is to be trusted. The damaged
// packs stay: a prune deletes them once nothing in them is needed.
func Packs(ctx context.Context, r *repo.Repository, o PacksOptions) (*PacksResult, error) {
	o.defaults()
	r.Store().BypassCache()
	res := &PacksResult{}
	ids := o.Packs
	if len(ids) == 0 {
		rep, err := check.Run(ctx, r, check.Options{Suspects: true, Now: o.Now, Begin: o.Begin})
		if err != nil {
			return nil, err
		}
		ids = append(slices.Clone(rep.Damage().Hurt), rep.Damage().Packs...)
	} else if err := r.LoadIndex(ctx); err != nil {
		return nil, err
	}
	lists, _, err := r.ReadDamage(ctx)
	if err != nil {
		return nil, err
	}
	done := make(map[pack.ID]bool) // by an earlier repair
	for _, l := range lists {
		old, err := l.BadPacks()
		if err != nil {
			return nil, err
		}
		for _, id := range old {
			done[id] = true
		}
	}
	add, end := o.Begin("packs", int64(len(ids))*pack.TargetSize)
	defer end()
	slices.SortFunc(ids, func(a, b pack.ID) int { return slices.Compare(a[:], b[:]) })
	list := &repo.Damage{Time: o.Now().UTC()}
	var from []chunkstore.Keep
	for _, id := range slices.Compact(ids) {
		if done[id] {
			continue
		}
		keep, saved, lost, err := sound(ctx, r, id)
		add(pack.TargetSize)
		switch {
		case ctx.Err() != nil || object.Retriable(err):
			return nil, err
		case err != nil:
			res.Unreadable++
			res.Findings = append(res.Findings, check.Finding{Kind: check.LostPack, Object: id.ObjectName(), Error: err.Error()})
		case lost == 0:
			continue // not damaged
		default:
			from = append(from, keep)
			res.Saved += saved
			res.Lost += lost
		}
		res.Packs++
		list.Packs = append(list.Packs, id.String())
	}
	if len(list.Packs) == 0 {
		return res, nil
	}
	if len(from) > 0 {
		n, err := r.Store().Repack(ctx, newRun(), from, func(n int64) { res.SavedBytes += n })
		res.Written = n
		if err != nil {
			return res, err
		}
	}
	return res, r.PutDamage(ctx, list)
}

// sound returns the blobs of a pack that are as they were stored. Their hashes
// prove that without a key that opens them.
func sound(ctx context.Context, r *repo.Repository, id pack.ID) (keep chunkstore.Keep, saved, lost int, err error) {
	data, err := r.Objects().Get(ctx, id.ObjectName(), 0, -1)
	if err != nil {
		return keep, 0, 0, err
	}
	d, err := pack.Parse(r.Keys(), data)
	if err != nil {
		return keep, 0, 0, err
	}
	keep = chunkstore.Keep{Pack: id, Size: int64(len(data))}
	for i := range d.Blobs {
		b := &d.Blobs[i]
		if b.CheckStored(data[b.Offset:b.Offset+b.Stored]) == nil {
			keep.Add(b)
			saved++
		} else {
			lost++
		}
	}
	return keep, saved, lost, nil
}

// ParsePack parses a pack's name: its ID, or the name of its object.
func ParsePack(name string) (pack.ID, error) {
	if len(name) == 64 {
		name = "packs/" + name[:2] + "/" + name
	}
	id, ok := pack.ParseObjectName(name)
	if !ok {
		return id, fmt.Errorf("%q: %w", name, ErrPackName)
	}
	return id, nil
}

// ErrPackName is returned for text that is not a pack's name.
var ErrPackName = errors.New("not a pack's name: want packs/XX/ and 64 hexadecimal digits, or these alone")
