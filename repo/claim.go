package repo

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"

	"xenkeep/chunkstore"
	"xenkeep/chunkstore/chunk"
	"xenkeep/chunkstore/object"
	"xenkeep/chunkstore/pack"
	"xenkeep/chunkstore/seal"

	"golang.org/x/sync/errgroup"
)

// Pruning never blocks a backup and there are no locks. A live run protects the
// data that it needs by its claim (the roots it builds on) and its reference list
// (the packs that it uses and did not write), both written before it publishes; a
// pruner announces the packs that it intends to delete in condemned lists.
// docs/format.md describes the protocol.

const (
	claimPrefix     = "claims/"
	referencePrefix = "references/"
	condemnedPrefix = "condemned/"
	damagePrefix    = "damage/"
	notePrefix      = "notes/"
)

// Claim is published by a live run when it starts, under claims/RUN-SHA256.
type Claim struct {
	Run     string    `json:"run"` // hex
	Job     string    `json:"job,omitempty"`
	Machine string    `json:"machine"`
	Process string    `json:"process,omitempty"` // boot ID, PID and start time: identifies a process for ever
	Started time.Time `json:"started"`
	Roots   []HexID   `json:"roots"` // roots of the snapshots that it builds on

	name   string
	writer seal.WriterID
}

// Reference is the list of packs that a run uses and did not write.
type Reference struct {
	Run   string   `json:"run"`
	Packs []string `json:"packs"` // hex

	writer seal.WriterID
}

// Condemned is a list of packs that a pruner intends to delete in a later pass or,
// with Deleted, that it is deleting now: such a list stays until every run in Waits
// has ended.
type Condemned struct {
	Time    time.Time `json:"time"`
	Packs   []string  `json:"packs"` // hex
	Deleted bool      `json:"deleted,omitempty"`
	Waits   []string  `json:"waits,omitempty"` // runs, hex, that had claims at Time
	Lists   []string  `json:"lists,omitempty"` // condemned lists, by object name, that this one supersedes

	name string
}

// Damage is a published list of known damage: every backup treats these chunks as
// absent and reads these blocks again.
type Damage struct {
	Time   time.Time     `json:"time"`
	Chunks []BadChunk    `json:"chunks,omitempty"`
	Packs  []string      `json:"packs,omitempty"` // hex
	Blocks []DamagedDisk `json:"blocks,omitempty"`

	name   string
	writer seal.WriterID
	full   bool
}

// Name returns the name of the list's object in storage.
func (d *Damage) Name() string { return d.name }

// Full reports whether the list was published with a full key.
func (d *Damage) Full() bool { return d.full }

// BadChunk is a chunk that is damaged in one pack; a copy that a later backup
// stored in another pack is sound. Without a pack, every copy is bad.
type BadChunk struct {
	ID   HexID  `json:"id"`
	Pack string `json:"pack,omitempty"` // hex
}

// PackIDs returns all packs that the list names: the bad packs, and the packs of
// bad chunks.
func (d *Damage) PackIDs() ([]pack.ID, error) {
	names := slices.Clone(d.Packs)
	for _, c := range d.Chunks {
		if c.Pack != "" {
			names = append(names, c.Pack)
		}
	}
	slices.Sort(names)
	return parsePacks(slices.Compact(names))
}

// BadPacks returns the packs of which no content is trusted.
func (d *Damage) BadPacks() ([]pack.ID, error) { return parsePacks(d.Packs) }

// BadBlobs returns the damaged chunks.
func (d *Damage) BadBlobs() ([]chunkstore.BadBlob, error) {
	blobs := make([]chunkstore.BadBlob, len(d.Chunks))
	for i, c := range d.Chunks {
		blobs[i].ID = chunk.ID(c.ID)
		if c.Pack == "" {
			continue
		}
		in, err := parsePacks([]string{c.Pack})
		if err != nil {
			return nil, err
		}
		blobs[i].Pack = in[0]
	}
	return blobs, nil
}

// DamagedDisk lists damaged blocks of one disk of one snapshot.
type DamagedDisk struct {
	Snapshot string     `json:"snapshot"`
	Device   string     `json:"device"`
	VDI      string     `json:"vdi,omitempty"`
	Ranges   [][2]int64 `json:"ranges"` // first block, number of blocks
}

// PutClaim publishes a claim and records its name in c for DropClaim.
func (r *Repository) PutClaim(ctx context.Context, c *Claim) error {
	name, _, err := r.putObject(ctx, claimPrefix+c.Run+"-", seal.KindClaim, c)
	c.name = name // set after an error too, because the object may exist
	return err
}

// DropClaim removes a claim and the reference lists of its run. The run must not do
// anything after that.
func (r *Repository) DropClaim(ctx context.Context, c *Claim) error {
	var names []string
	err := object.ListOwn(ctx, r.objects, referencePrefix+c.Run+"-", func(i object.Info) error {
		names = append(names, i.Name)
		return nil
	})
	for _, name := range append(names, c.name) {
		if name == "" {
			continue
		}
		derr := r.objects.Delete(ctx, name)
		if errors.Is(derr, object.ErrPermission) {
			// A writer that may only add records that the run has ended; a pruner,
			// which may delete, removes the objects later.
			return errors.Join(err, r.PutRetired(ctx, &Retired{Run: c.Run, Time: time.Now().UTC(), Reason: "over", Ended: true}))
		}
		err = errors.Join(err, derr)
	}
	return err
}

// Claims reads the claims of all runs, live or dead. Claims that cannot be read are
// returned as problems.
func (r *Repository) Claims(ctx context.Context) ([]*Claim, []Problem, error) {
	claims, bad, err := readAll(ctx, r, claimPrefix, seal.KindClaim, func(c *Claim, name string, by *seal.Cert) { c.name, c.writer = name, by.Writer() })
	return claims, bad, err
}

// PutReference publishes the list of packs that a run uses and did not write.
func (r *Repository) PutReference(ctx context.Context, run string, packs []pack.ID) error {
	ref := Reference{Run: run, Packs: make([]string, 0, len(packs))}
	for _, id := range packs {
		ref.Packs = append(ref.Packs, id.String())
	}
	slices.Sort(ref.Packs)
	_, _, err := r.putObject(ctx, referencePrefix+run+"-", seal.KindReference, ref)
	return err
}

// CondemnedPacks returns the packs that a writer must avoid. A list that cannot be
// read is an error, because the packs that it names are not known. Without
// FeatureWriterTrust a version that prunes with a write-only key may be at work, so
// that its lists count here too: they only make a writer store data again.
func (r *Repository) CondemnedPacks(ctx context.Context) ([]pack.ID, error) {
	may := func(_ string, by *seal.Cert) bool { return r.mayState(by) || !r.config.Uses(FeatureWriterTrust) }
	lists, bad, err := readSome(ctx, r, condemnedPrefix, seal.KindCondemned, may, func(*Condemned, string, *seal.Cert) {})
	if err == nil && len(bad) > 0 {
		err = bad[0].Err
	}
	if err != nil {
		return nil, err
	}
	var packs []pack.ID
	for _, l := range lists {
		ids, err := parsePacks(l.Packs)
		if err != nil {
			return nil, err
		}
		packs = append(packs, ids...)
	}
	return packs, nil
}

// PutDamage publishes a damage list.
func (r *Repository) PutDamage(ctx context.Context, d *Damage) error {
	var err error
	d.name, _, err = r.putObject(ctx, damagePrefix, seal.KindDamage, d)
	return err
}

// ReadDamage reads all damage lists. Lists that cannot be read are returned as
// problems. A list of a write-only key counts only about snapshots of the same key:
// Blocks contains no others.
func (r *Repository) ReadDamage(ctx context.Context) ([]*Damage, []Problem, error) {
	lists, bad, err := readAll(ctx, r, damagePrefix, seal.KindDamage, func(d *Damage, name string, by *seal.Cert) {
		d.name, d.writer, d.full = name, by.Writer(), r.mayState(by)
	})
	if err != nil {
		return nil, nil, err
	}
	for _, d := range lists {
		if d.full || d.writer == r.keys.Cert.Writer() {
			continue
		}
		var blocks []DamagedDisk
		for _, b := range d.Blocks {
			counts, err := r.countsAbout(ctx, b.Snapshot, d.writer)
			if err != nil {
				return nil, nil, err
			}
			if counts {
				blocks = append(blocks, b)
			}
		}
		d.Blocks = blocks
	}
	return lists, bad, nil
}

// AvoidBad excludes data that a backup must not reference: packs that are condemned
// or damaged, and damaged chunks. Every backup calls it before its first lookup.
func (r *Repository) AvoidBad(ctx context.Context) error {
	hide, err := r.CondemnedPacks(ctx)
	if err != nil {
		return err
	}
	lists, bad, err := r.ReadDamage(ctx)
	if err != nil {
		return err
	}
	r.addProblems(bad...)
	var blobs []chunkstore.BadBlob
	distrust := len(bad) > 0
	for _, d := range lists {
		if !d.full && d.writer != r.keys.Cert.Writer() {
			continue // the thief of a write-only key must not make others store everything again
		}
		distrust = true
		packs, err := d.BadPacks()
		if err != nil {
			return err
		}
		bad, err := d.BadBlobs()
		if err != nil {
			return err
		}
		hide = append(hide, packs...)
		blobs = append(blobs, bad...)
	}
	r.store.Exclude(hide, blobs, distrust)
	return nil
}

func parsePacks(names []string) ([]pack.ID, error) {
	ids := make([]pack.ID, len(names))
	for i, s := range names {
		id, err := hex.DecodeString(s)
		if err != nil || len(id) != len(ids[i]) {
			return nil, fmt.Errorf("pack name %q: %w", s, seal.ErrCorrupt)
		}
		ids[i] = pack.ID(id)
	}
	return ids, nil
}

// readAll reads every small object under prefix. Objects that cannot be read are
// returned as problems.
func readAll[T any](ctx context.Context, r *Repository, prefix string, kind seal.ObjectKind, each func(*T, string, *seal.Cert)) ([]*T, []Problem, error) {
	return readSome(ctx, r, prefix, kind, func(string, *seal.Cert) bool { return true }, each)
}

// readSome is readAll for the objects whose writers may make the statement.
func readSome[T any](ctx context.Context, r *Repository, prefix string, kind seal.ObjectKind, may func(name string, by *seal.Cert) bool, each func(*T, string, *seal.Cert)) ([]*T, []Problem, error) {
	var names []string
	if err := object.ListOwn(ctx, r.objects, prefix, func(i object.Info) error {
		names = append(names, i.Name)
		return nil
	}); err != nil {
		return nil, nil, err
	}
	slices.Sort(names)
	type result struct {
		v   *T
		by  *seal.Cert
		err error
	}
	results := make([]result, len(names))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(max(2, r.objects.Traits().Parallel))
	for i, name := range names {
		g.Go(func() error {
			res := &results[i]
			res.v = new(T)
			o, err := r.readObject(gctx, name, kind, res.v)
			if res.err = err; o != nil {
				res.by = &o.Cert
			}
			if gctx.Err() != nil {
				return gctx.Err()
			}
			if object.Retriable(err) {
				return err
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, nil, err
	}
	var out []*T
	var bad []Problem
	for i, name := range names {
		res := &results[i]
		switch {
		case errors.Is(res.err, object.ErrNotFound): // deleted meanwhile
		case errors.Is(res.err, seal.ErrRevoked): // ignored here; check reports it
		case errors.Is(res.err, seal.ErrJunk):
			r.addJunk(name, res.err)
		case res.by != nil && !may(name, res.by):
		case res.err != nil:
			bad = append(bad, Problem{Object: name, Err: res.err})
		default:
			each(res.v, name, res.by)
			out = append(out, res.v)
		}
	}
	return out, bad, nil
}
