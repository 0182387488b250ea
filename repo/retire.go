package repo

import (
	"context"
	"errors"
	"slices"
	"time"

	"xenkeep/chunkstore/object"
	"xenkeep/chunkstore/pack"
	"xenkeep/chunkstore/seal"
)

const retiredPrefix = "retired/"

// Retired declares a run dead: what its claim and reference lists protect goes
// once it has been there for long enough and the run was ended (Over). It
// outlives the claim.
type Retired struct {
	Run    string    `json:"run"` // hex
	Time   time.Time `json:"time"`
	Reason string    `json:"reason,omitempty"`
	// Ended tells that the run does nothing any more, for sure: it says so
	// itself, or the machine on which its process has ended. It needs no Over
	// then. It counts from the writer of the run's claim.
	Ended bool `json:"ended,omitempty"`

	name   string
	writer seal.WriterID
}

// Writer is who declared it.
func (t *Retired) Writer() seal.WriterID { return t.writer }

// Writer is whose run it is.
func (c *Claim) Writer() seal.WriterID { return c.writer }

// Writer is whose run it is.
func (f *Reference) Writer() seal.WriterID { return f.writer }

// Name is the claim's object in storage.
func (c *Claim) Name() string { return c.name }

// Name is the list's object in storage.
func (c *Condemned) Name() string { return c.name }

// PackIDs are the packs of a list.
func (c *Condemned) PackIDs() ([]pack.ID, error) { return parsePacks(c.Packs) }

// Name is the retirement's object in storage.
func (t *Retired) Name() string { return t.name }

// PackIDs are the packs of a list.
func (f *Reference) PackIDs() ([]pack.ID, error) { return parsePacks(f.Packs) }

// PutRetired declares a run dead.
func (r *Repository) PutRetired(ctx context.Context, t *Retired) error {
	var err error
	t.name, _, err = r.putObject(ctx, retiredPrefix+t.Run+"-", seal.KindRetired, t)
	return err
}

// Retirements reads what was declared dead; those that cannot be read are
// problems.
func (r *Repository) Retirements(ctx context.Context) ([]*Retired, []Problem, error) {
	return readAll(ctx, r, retiredPrefix, seal.KindRetired, func(t *Retired, name string, by *seal.Cert) { t.name, t.writer = name, by.Writer() })
}

// IsRetired tells whether the run of this claim, which is the caller's own, was
// declared dead: by an object that says so, or by its claim being gone.
func (r *Repository) IsRetired(ctx context.Context, c *Claim) (bool, error) {
	if _, err := r.objects.Stat(ctx, c.name); errors.Is(err, object.ErrNotFound) {
		return true, nil
	} else if err != nil {
		return false, err
	}
	found := false
	err := object.ListOwn(ctx, r.objects, retiredPrefix+c.Run+"-", func(object.Info) error {
		found = true
		return nil
	})
	return found, err
}

// References reads the reference lists of all runs; those that cannot be read
// are problems.
func (r *Repository) References(ctx context.Context) ([]*Reference, []Problem, error) {
	return readAll(ctx, r, referencePrefix, seal.KindReference, func(f *Reference, _ string, by *seal.Cert) { f.writer = by.Writer() })
}

// DropRun takes away what a dead run published to protect itself.
func (r *Repository) DropRun(ctx context.Context, run string) error {
	for _, prefix := range []string{referencePrefix, claimPrefix} {
		var names []string
		if err := object.ListOwn(ctx, r.objects, prefix+run+"-", func(i object.Info) error {
			names = append(names, i.Name)
			return nil
		}); err != nil {
			return err
		}
		for _, name := range names {
			if err := r.objects.Delete(ctx, name); err != nil {
				return err
			}
		}
	}
	return nil
}

// PutCondemned publishes a list of packs that are to be deleted. One that says
// so of packs that are going now names them in its plain head too, so that
// without a key they are not taken for lost: see DeletedPacks.
func (r *Repository) PutCondemned(ctx context.Context, c *Condemned) error {
	slices.Sort(c.Packs)
	var head []byte
	if c.Deleted {
		ids, err := c.PackIDs()
		if err != nil {
			return err
		}
		for _, id := range ids {
			head = append(head, id[:]...)
		}
	}
	var err error
	c.name, _, err = r.putHeaded(ctx, condemnedPrefix, seal.KindCondemned, head, c)
	return err
}

// ReadCondemned reads the condemned lists; those that cannot be read are
// problems.
func (r *Repository) ReadCondemned(ctx context.Context) ([]*Condemned, []Problem, error) {
	return readAll(ctx, r, condemnedPrefix, seal.KindCondemned, func(c *Condemned, name string, _ *seal.Cert) { c.name = name })
}

// Condemnations is ReadCondemned for those who must know all that is named: a
// list that cannot be read is an error.
func (r *Repository) Condemnations(ctx context.Context) ([]*Condemned, error) {
	lists, bad, err := r.ReadCondemned(ctx)
	if err == nil && len(bad) > 0 {
		err = bad[0].Err
	}
	return lists, err
}

// Protected gives the IDs of the snapshots whose last word among the notes,
// which Notes gives oldest first, is to protect them.
func Protected(notes []*Note) map[string]bool {
	protected := make(map[string]bool)
	for _, n := range notes {
		switch n.Kind {
		case "protect":
			protected[n.Snapshot] = true
		case "unprotect":
			delete(protected, n.Snapshot)
		}
	}
	return protected
}

// DeletedPacks reads the plain head of a condemned list: the packs that it says
// are being deleted.
func DeletedPacks(head []byte) []pack.ID {
	var ids []pack.ID
	for ; len(head) >= len(pack.ID{}); head = head[len(pack.ID{}):] {
		ids = append(ids, pack.ID(head[:len(pack.ID{})]))
	}
	return ids
}
