package repo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"xenkeep/chunkstore/object"
	"xenkeep/chunkstore/seal"
)

// NoteDamaged is the kind of a note that marks a snapshot as possibly wrong: no
// backup uses it as its base.
const NoteDamaged = "damaged"

// Note is a statement about a snapshot that is made after it was written. Notes are
// only ever added.
type Note struct {
	Snapshot string    `json:"snapshot"` // its full ID
	Kind     string    `json:"kind"`     // "protect", "unprotect", "verified", "drill", "damaged", "forget", "tag", "untag"
	Time     time.Time `json:"time"`
	Text     string    `json:"text,omitempty"`

	writer seal.WriterID
	full   bool
}

// ownNote reports whether a kind of note counts from a write-only key about its own
// snapshots. A protection counts from everyone, because it only keeps data.
func ownNote(kind string) bool {
	return kind == NoteDamaged || kind == NoteTag || kind == NoteUntag
}

// PutNote adds a note. With a write-only key it refuses notes that would not count.
func (r *Repository) PutNote(ctx context.Context, n *Note) error {
	if n.Kind != "protect" && r.NeedsFull("") != nil {
		counts, err := r.countsAbout(ctx, n.Snapshot, r.keys.Cert.Writer())
		if err != nil {
			return err
		}
		// A backup must not use a base that it found damaged, whoever wrote it.
		if n.Kind != NoteDamaged && (!counts || !ownNote(n.Kind)) {
			what := fmt.Sprintf("%s snapshot %s", n.Kind, n.Snapshot[:min(8, len(n.Snapshot))])
			if ownNote(n.Kind) {
				what += ", which another key wrote"
			}
			return r.NeedsFull(what)
		}
	}
	_, _, err := r.putObject(ctx, notePrefix, seal.KindNote, n)
	return err
}

// Notes reads the notes that count, oldest first. Notes that cannot be read are
// returned as problems. A note of a write-only key counts if it protects; or if it
// marks a snapshot as damaged, or tags it, and the same key wrote that snapshot. The
// key in use believes itself that a snapshot is damaged.
func (r *Repository) Notes(ctx context.Context) ([]*Note, []Problem, error) {
	all, bad, err := readAll(ctx, r, notePrefix, seal.KindNote, func(n *Note, _ string, by *seal.Cert) {
		n.writer, n.full = by.Writer(), r.mayState(by)
	})
	if err != nil {
		return nil, nil, err
	}
	notes := all[:0]
	for _, n := range all {
		counts := n.full || n.Kind == "protect" || n.Kind == NoteDamaged && n.writer == r.keys.Cert.Writer()
		if !counts && ownNote(n.Kind) {
			if counts, err = r.countsAbout(ctx, n.Snapshot, n.writer); err != nil {
				return nil, nil, err
			}
		}
		if counts {
			notes = append(notes, n)
		}
	}
	slices.SortStableFunc(notes, func(a, b *Note) int { return a.Time.Compare(b.Time) })
	return notes, bad, nil
}

// RecordMixed records in the config, once, that the repository has write-only keys.
// Storage that does not permit that is no error: their slots and objects show it too.
func (r *Repository) RecordMixed(ctx context.Context) error {
	r.store.SetMixed()
	if r.config.Mixed || r.NeedsFull("") != nil {
		return nil
	}
	err := r.changeConfig(ctx, func(fields map[string]json.RawMessage) error {
		fields["write_only_keys"] = json.RawMessage("true")
		return nil
	})
	if errors.Is(err, object.ErrPermission) || errors.Is(err, object.ErrLocked) {
		return nil
	}
	return err
}

// mayState reports whether a writer may make statements about the data of others.
func (r *Repository) mayState(by *seal.Cert) bool {
	return by.Role() == seal.Full || !r.defends(FullStatements)
}

// countsAbout reports whether a writer wrote a snapshot, so that its statements about
// the snapshot count.
func (r *Repository) countsAbout(ctx context.Context, snapshot string, writer seal.WriterID) (bool, error) {
	name := snapshotPrefix + snapshot
	if !object.Own(name) {
		return false, nil
	}
	data, err := r.cachedObject(ctx, seal.KindSnapshot, name)
	if ctx.Err() != nil || object.Retriable(err) {
		return false, err
	}
	var o *seal.Object
	if err == nil {
		o, err = r.keys.VerifyNamed(seal.KindSnapshot, name, data)
	}
	if err != nil && !errors.Is(err, seal.ErrRevoked) || o == nil {
		return false, nil // it does not exist, or cannot be read, so that nothing can be stated about it
	}
	return o.Cert.Writer() == writer, nil
}
