package repo

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"xenkeep/chunkstore/object"
	"xenkeep/chunkstore/seal"
	"xenkeep/chunkstore/slot"
)

var (
	// ErrNoSlot is returned if no key slot or writer matches a name.
	ErrNoSlot = errors.New("no such key")
	// ErrLastSlot is returned for an operation that would leave no full key slot.
	ErrLastSlot = errors.New("the last full key must stay")
)

// KeySlot describes a key slot, as anyone who can read the storage sees it.
type KeySlot struct {
	ID      string // ID of its writer, hex
	Role    string // "full" or "write-only"
	Label   string
	Secret  string // "argon2id" for a password, or "keyfile"
	Created time.Time
	Copies  int  // number of copies, of two, that are readable and identical
	Current bool // the slot in use
}

// Slots lists the key slots, oldest first.
func (r *Repository) Slots(ctx context.Context) ([]KeySlot, error) {
	var names []string
	if err := object.ListOwn(ctx, r.objects, "slots/", func(i object.Info) error {
		names = append(names, i.Name)
		return nil
	}); err != nil {
		return nil, err
	}
	slices.Sort(names)
	found := make(map[string]*KeySlot)
	content := make(map[string][32]byte)
	for _, name := range names {
		data, err := r.objects.Get(ctx, name, 0, -1)
		if errors.Is(err, object.ErrNotFound) {
			continue
		}
		if err != nil && !errors.Is(err, object.ErrTooLarge) {
			return nil, err
		}
		id := name[strings.LastIndexByte(name, '/')+1:]
		h, err := slot.ReadHead(data)
		if err != nil || h.ID != id || h.Repository != r.ID() {
			if found[id] == nil {
				found[id] = &KeySlot{ID: id}
			}
			continue
		}
		s := found[id]
		if s == nil || s.Role == "" {
			s = &KeySlot{ID: id, Role: h.Role, Label: h.Label, Secret: h.KDF.Name, Created: h.Created, Current: id == r.keys.Cert.Writer().String()}
			found[id] = s
		}
		sum := sha256.Sum256(data)
		if other, known := content[id]; !known || other == sum {
			s.Copies++
		}
		content[id] = sum
	}
	all := make([]KeySlot, 0, len(found))
	for _, s := range found {
		all = append(all, *s)
	}
	slices.SortFunc(all, func(a, b KeySlot) int {
		return cmp.Or(a.Created.Compare(b.Created), strings.Compare(a.ID, b.ID))
	})
	return all, nil
}

// FindSlot returns the slot for a name: a unique prefix of its ID of four
// characters or more, or its label.
func (r *Repository) FindSlot(ctx context.Context, name string) (*KeySlot, error) {
	all, err := r.Slots(ctx)
	if err != nil {
		return nil, err
	}
	var found []*KeySlot
	for i := range all {
		if s := &all[i]; s.ID == name {
			return s, nil
		} else if name != "" && s.Label == name || len(name) >= 4 && strings.HasPrefix(s.ID, name) {
			found = append(found, s)
		}
	}
	switch len(found) {
	case 0:
		return nil, fmt.Errorf("%q: %w", name, ErrNoSlot)
	case 1:
		return found[0], nil
	}
	return nil, fmt.Errorf("key %q: %w", name, ErrAmbiguous)
}

// NeedsFull returns an error that starts with the name of the operation, unless the
// key in use is a full key.
func (r *Repository) NeedsFull(what string) error {
	if r.keys.CertifyPrivate == nil {
		return fmt.Errorf("%s: %w", what, seal.ErrNoDataKey)
	}
	return nil
}

// AddSlot creates a key slot with a writer of its own and returns its ID.
func (r *Repository) AddSlot(ctx context.Context, secret slot.Secret, label string, role seal.Role, now time.Time) (string, error) {
	if err := r.NeedsFull("add a key"); err != nil {
		return "", err
	}
	keys, err := r.keys.ForNewWriter(role)
	if err != nil {
		return "", err
	}
	if role != seal.Full {
		if err := r.RecordMixed(ctx); err != nil {
			return "", err
		}
	}
	return r.putSlot(ctx, keys, secret, label, now)
}

// ChangeSecret writes the slot of the key in use again, under another password or
// key file; a slot that was lost is created again. Between its two writes both
// secrets open the repository.
func (r *Repository) ChangeSecret(ctx context.Context, secret slot.Secret, now time.Time) error {
	all, err := r.Slots(ctx)
	if err != nil {
		return err
	}
	label := ""
	for _, s := range all {
		if s.Current {
			label, now = s.Label, cmp.Or(s.Created, now)
		}
	}
	_, err = r.putSlot(ctx, r.keys, secret, label, now)
	return err
}

func (r *Repository) putSlot(ctx context.Context, keys *seal.Keys, secret slot.Secret, label string, now time.Time) (string, error) {
	data, id, err := slot.Seal(keys, r.rawJSON, secret, label, now)
	if err != nil {
		return "", err
	}
	for _, copy := range []string{"b", "a"} {
		if err := r.objects.Put(ctx, slotName(copy, id), data); err != nil {
			return id, err
		}
	}
	return id, nil
}

// RemoveSlot deletes a slot: its password or key file no longer opens the
// repository. A person who opened it before may have kept the keys.
func (r *Repository) RemoveSlot(ctx context.Context, id string) error {
	if err := r.NeedsFull("remove a key"); err != nil {
		return err
	}
	all, err := r.Slots(ctx)
	if err != nil {
		return err
	}
	full, there := 0, false
	for _, s := range all {
		if s.ID == id {
			there = true
		} else if s.Role == seal.Full.String() && s.Copies > 0 {
			full++
		}
	}
	if !there {
		return fmt.Errorf("%q: %w", id, ErrNoSlot)
	}
	if full == 0 {
		return fmt.Errorf("remove key %s: %w", id[:min(8, len(id))], ErrLastSlot)
	}
	for _, copy := range []string{"a", "b"} {
		if err := r.objects.Delete(ctx, slotName(copy, id)); err != nil {
			return err
		}
	}
	return nil
}
