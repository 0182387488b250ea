package repo

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"xenkeep/chunkstore/object"
	"xenkeep/chunkstore/pack"
	"xenkeep/chunkstore/seal"

	"golang.org/x/sync/errgroup"
)

const revokedPrefix = "revoked/"

// Revoked revokes a writer: readers accept only those of its objects that are
// listed here because they existed when this was written. It is valid only if a
// full key signed it.
type Revoked struct {
	Writer  string    `json:"writer"` // hex
	Time    time.Time `json:"time"`
	Reason  string    `json:"reason,omitempty"`
	Objects []string  `json:"objects"` // SHA-256 of the small objects that are accepted, hex
	Packs   []string  `json:"packs"`   // packs that are accepted, whoever wrote them, hex
}

// ErrFullWriter is returned for a writer that cannot be revoked.
var ErrFullWriter = errors.New("the holder of a full key can create others, so that it cannot be shut out")

// readRevoked makes the keys reject objects that revoked writers wrote after their
// revocation.
func (r *Repository) readRevoked(ctx context.Context) error {
	all, bad, err := r.Revocations(ctx)
	if err != nil {
		return err
	}
	r.addProblems(bad...)
	for _, v := range all {
		var id seal.WriterID
		if err := id.Parse(v.Writer); err != nil {
			return fmt.Errorf("revoked writer: %w", err)
		}
		accepted := make(map[[32]byte]bool, len(v.Objects)+len(v.Packs))
		for _, text := range slices.Concat(v.Objects, v.Packs) {
			sum, err := hex.DecodeString(text)
			if err != nil || len(sum) != sha256.Size {
				return fmt.Errorf("revoked writer %s: name %q: %w", v.Writer, text, seal.ErrCorrupt)
			}
			accepted[[32]byte(sum)] = true
		}
		r.keys.Revoke(id, accepted)
	}
	return nil
}

// Revocations reads the revocations that full keys signed. Those that cannot be
// read are returned as problems.
func (r *Repository) Revocations(ctx context.Context) ([]*Revoked, []Problem, error) {
	full := make(map[*Revoked]bool)
	all, bad, err := readAll(ctx, r, revokedPrefix, seal.KindRevoked, func(v *Revoked, _ string, by *seal.Cert) {
		full[v] = by.Role() == seal.Full
	})
	return slices.DeleteFunc(all, func(v *Revoked) bool { return !full[v] }), bad, err
}

// Revoke revokes a writer and deletes its slot. The index must have been loaded.
func (r *Repository) Revoke(ctx context.Context, writer, reason string, now time.Time) (*Revoked, error) {
	if err := r.NeedsFull("revoke a key"); err != nil {
		return nil, err
	}
	if all, _, err := r.Revocations(ctx); err != nil {
		return nil, err
	} else if i := slices.IndexFunc(all, func(v *Revoked) bool { return v.Writer == writer }); i >= 0 {
		return all[i], r.dropSlot(ctx, writer) // an earlier attempt may have stopped before this
	}
	slots, err := r.Slots(ctx)
	if err != nil {
		return nil, err
	}
	known := false
	for _, s := range slots {
		if s.ID == writer {
			known = true
			if s.Role == seal.Full.String() {
				return nil, fmt.Errorf("revoke key %s: %w", writer, ErrFullWriter)
			}
		}
	}
	v := &Revoked{Writer: writer, Time: now.UTC(), Reason: reason, Objects: []string{}, Packs: []string{}}
	for _, folder := range []string{snapshotPrefix, "index/", notePrefix, claimPrefix, referencePrefix, condemnedPrefix, retiredPrefix, damagePrefix} {
		if err := r.writtenBy(ctx, folder, objectCert, func(name string, _ int64, cert *seal.Cert) error {
			if cert.Writer().String() != writer {
				return nil
			}
			if cert.Role() == seal.Full {
				return fmt.Errorf("revoke key %s: %w", writer, ErrFullWriter)
			}
			known = true
			v.Objects = append(v.Objects, name[len(name)-2*sha256.Size:])
			return nil
		}); err != nil {
			return nil, err
		}
	}
	if !known {
		return nil, fmt.Errorf("%q: %w", writer, ErrNoSlot)
	}
	for p := range r.store.Index().Packs() {
		v.Packs = append(v.Packs, pack.ID(p.ID).String())
	}
	slices.Sort(v.Objects)
	if _, _, err := r.putObject(ctx, revokedPrefix, seal.KindRevoked, v); err != nil {
		return nil, err
	}
	return v, r.dropSlot(ctx, writer)
}

func (r *Repository) dropSlot(ctx context.Context, id string) error {
	return errors.Join(r.objects.Delete(ctx, slotName("a", id)), r.objects.Delete(ctx, slotName("b", id)))
}

// certAt and certEnd are the offsets of the certificate in packs and in small
// objects.
const certAt, certEnd = 24, 24 + len(seal.Cert{})

func objectCert(p []byte) bool { return string(p[:4]) == "XKOB" }
func packCert(p []byte) bool   { return string(p[:4]) == "XKPK" }

// writtenBy calls fn for each object under prefix with the certificate in its
// header, which is not verified. Objects whose header is damaged are skipped; check
// reports them.
func (r *Repository) writtenBy(ctx context.Context, prefix string, is func([]byte) bool, fn func(name string, size int64, cert *seal.Cert) error) error {
	var infos []object.Info
	if err := object.ListOwn(ctx, r.objects, prefix, func(i object.Info) error {
		infos = append(infos, i)
		return nil
	}); err != nil {
		return err
	}
	var mu sync.Mutex
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(max(2, r.objects.Traits().Parallel))
	for _, i := range infos {
		g.Go(func() error {
			p := make([]byte, certEnd)
			err := r.objects.GetInto(ctx, i.Name, 0, p)
			if errors.Is(err, object.ErrNotFound) || errors.Is(err, object.ErrShort) {
				return nil
			}
			if err != nil {
				return err
			}
			if !is(p) {
				return nil
			}
			mu.Lock()
			defer mu.Unlock()
			return fn(i.Name, i.Size, (*seal.Cert)(p[certAt:]))
		})
	}
	return g.Wait()
}

// PacksOf calls fn for each pack that a writer wrote, from one goroutine at a time.
// It reads the headers of all packs.
func (r *Repository) PacksOf(ctx context.Context, writer string, fn func(name string, size int64) error) error {
	return r.writtenBy(ctx, "packs/", packCert, func(name string, size int64, cert *seal.Cert) error {
		if cert.Writer().String() != writer {
			return nil
		}
		return fn(name, size)
	})
}

// FindWriter returns the ID of the writer for a name: a unique prefix of its ID of
// four characters or more, or the label of its slot. It searches slots, revoked
// writers and the writers of snapshots.
func (r *Repository) FindWriter(ctx context.Context, name string) (string, error) {
	s, err := r.FindSlot(ctx, name)
	if err == nil {
		return s.ID, nil
	}
	if !errors.Is(err, ErrNoSlot) {
		return "", err
	}
	found := make(map[string]bool)
	note := func(id string) {
		if len(name) >= 4 && strings.HasPrefix(id, name) {
			found[id] = true
		}
	}
	revoked, _, rerr := r.Revocations(ctx)
	if rerr != nil {
		return "", rerr
	}
	for _, v := range revoked {
		note(v.Writer)
	}
	if werr := r.writtenBy(ctx, snapshotPrefix, objectCert, func(_ string, _ int64, cert *seal.Cert) error {
		note(cert.Writer().String())
		return nil
	}); werr != nil {
		return "", werr
	}
	switch len(found) {
	case 0:
		return "", err
	case 1:
		for id := range found {
			return id, nil
		}
	}
	return "", fmt.Errorf("writer %q: %w", name, ErrAmbiguous)
}

// WriterCount counts the snapshots that a writer published.
type WriterCount struct {
	Role      string
	Snapshots int
}

// Writers counts the snapshots of each writer, by its ID.
func (r *Repository) Writers(ctx context.Context) (map[string]WriterCount, error) {
	counts := make(map[string]WriterCount)
	err := r.writtenBy(ctx, snapshotPrefix, objectCert, func(_ string, _ int64, cert *seal.Cert) error {
		id := cert.Writer().String()
		counts[id] = WriterCount{Role: cert.Role().String(), Snapshots: counts[id].Snapshots + 1}
		return nil
	})
	return counts, err
}
