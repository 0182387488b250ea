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

// Retired declares a run dead: the data that its claim and reference lists protect
// may be deleted once this object is old enough and the run was ended (Over). It
// outlives the claim.
type Retired struct {
	Run    string    `json:"run"` // hex
	Time   time.Time `json:"time"`
	Reason string    `json:"reason,omitempty"`
	// Ended means that the run certainly does nothing any more: it was declared by
	// the run itself, or by the machine on which its process has ended. No Over is
	// needed then. It is valid only if the writer of the run's claim signed it.
	Ended bool `json:"ended,omitempty"`

	name   string
	writer seal.WriterID
	full   bool
}

// Full reports whether a full key declared the run dead. Otherwise the object is
// valid only if the writer of the run signed it.
func (t *Retired) Full() bool { return t.full }

// Writer returns the writer that declared the run dead.
func (t *Retired) Writer() seal.WriterID { return t.writer }

// Writer returns the writer of the run.
func (c *Claim) Writer() seal.WriterID { return c.writer }

// Writer returns the writer of the run.
func (f *Reference) Writer() seal.WriterID { return f.writer }

// Name returns the name of the claim's object in storage.
func (c *Claim) Name() string { return c.name }

// Name returns the name of the list's object in storage.
func (c *Condemned) Name() string { return c.name }

// PackIDs returns the packs of the list.
func (c *Condemned) PackIDs() ([]pack.ID, error) { return parsePacks(c.Packs) }

// Name returns the name of the object in storage.
func (t *Retired) Name() string { return t.name }

// PackIDs returns the packs of the list.
func (f *Reference) PackIDs() ([]pack.ID, error) { return parsePacks(f.Packs) }

// PutRetired declares a run dead.
func (r *Repository) PutRetired(ctx context.Context, t *Retired) error {
	var err error
	t.name, _, err = r.putObject(ctx, retiredPrefix+t.Run+"-", seal.KindRetired, t)
	return err
}

// Retirements reads all declarations of dead runs. Those that cannot be read are
// returned as problems.
func (r *Repository) Retirements(ctx context.Context) ([]*Retired, []Problem, error) {
	return readAll(ctx, r, retiredPrefix, seal.KindRetired, func(t *Retired, name string, by *seal.Cert) {
		t.name, t.writer, t.full = name, by.Writer(), by.Role() == seal.Full
	})
}

// IsRetired reports whether the run of this claim, which must be the caller's own,
// was declared dead: either an object under retired/ declares it, or its claim was
// deleted. An object that is damaged declares nothing: if the run was declared dead
// by it and ended, its snapshots are invalid all the same (Over).
func (r *Repository) IsRetired(ctx context.Context, c *Claim) (bool, error) {
	if _, err := r.objects.Stat(ctx, c.name); errors.Is(err, object.ErrNotFound) {
		return true, nil
	} else if err != nil {
		return false, err
	}
	found, bad, err := readAll(ctx, r, retiredPrefix+c.Run+"-", seal.KindRetired, func(t *Retired, _ string, by *seal.Cert) {
		t.writer, t.full = by.Writer(), by.Role() == seal.Full
	})
	r.addProblems(bad...)
	if len(bad) > 0 && !r.defends(IgnoredJunk) {
		return true, nil
	}
	own := r.keys.Cert.Writer()
	return slices.ContainsFunc(found, func(t *Retired) bool { return t.full || t.writer == own }), err
}

// References reads the reference lists of all runs. Lists that cannot be read are
// returned as problems.
func (r *Repository) References(ctx context.Context) ([]*Reference, []Problem, error) {
	return readAll(ctx, r, referencePrefix, seal.KindReference, func(f *Reference, _ string, by *seal.Cert) { f.writer = by.Writer() })
}

// DropRun deletes the claim and reference lists of a dead run.
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

// PutCondemned publishes a list of packs that are to be deleted. If the packs are
// being deleted now, the list names them in its plain head too, so that a check
// without a key does not report them as lost: see DeletedPacks.
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

// ReadCondemned reads the condemned lists of full keys: a pruner must not delete a
// pack because a write-only key has condemned it. Lists that cannot be read are
// returned as problems. useless are the names of the lists of write-only keys if they
// have no effect, which is so in a repository with FeatureWriterTrust.
func (r *Repository) ReadCondemned(ctx context.Context) (lists []*Condemned, useless []string, bad []Problem, err error) {
	may := func(name string, by *seal.Cert) bool {
		ok := r.mayState(by)
		if !ok && r.config.Uses(FeatureWriterTrust) {
			useless = append(useless, name)
		}
		return ok
	}
	lists, bad, err = readSome(ctx, r, condemnedPrefix, seal.KindCondemned, may, func(c *Condemned, name string, _ *seal.Cert) { c.name = name })
	return lists, useless, bad, err
}

// Condemnations is ReadCondemned for callers that need the complete lists: a list
// that cannot be read is an error.
func (r *Repository) Condemnations(ctx context.Context) ([]*Condemned, error) {
	lists, _, bad, err := r.ReadCondemned(ctx)
	if err == nil && len(bad) > 0 {
		err = bad[0].Err
	}
	return lists, err
}

// Protected returns the IDs of the protected snapshots: those whose last protect or
// unprotect note is protect. notes must be oldest first, as Notes returns them.
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

// DeletedPacks parses the plain head of a condemned list: the packs that are being
// deleted.
func DeletedPacks(head []byte) []pack.ID {
	var ids []pack.ID
	for ; len(head) >= len(pack.ID{}); head = head[len(pack.ID{}):] {
		ids = append(ids, pack.ID(head[:len(pack.ID{})]))
	}
	return ids
}
