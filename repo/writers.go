package repo

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"sync"
	"time"

	"xenkeep/chunkstore"
	"xenkeep/chunkstore/object"
	"xenkeep/chunkstore/pack"
	"xenkeep/chunkstore/seal"

	"golang.org/x/sync/errgroup"
)

// certAt and certEnd are the offsets of the certificate in packs and in small
// objects.
const certAt, certEnd = 24, 24 + len(seal.Cert{})

func objectCert(p []byte) bool { return string(p[:4]) == "XKOB" }
func packCert(p []byte) bool   { return string(p[:4]) == "XKPK" }

// writerFolders returns the folders of the small objects that a write-only key may
// sign.
func writerFolders() iter.Seq[string] {
	return slices.Values([]string{snapshotPrefix, "index/", notePrefix, claimPrefix, referencePrefix, condemnedPrefix, retiredPrefix, damagePrefix, cataloguePrefix})
}

// writtenBy calls fn for each object under prefix with the certificate in its
// header, from one goroutine at a time. The certificate is genuine, because the
// repository has signed it; the rest of the object is not verified, so another may
// have copied the certificate. Objects without a genuine certificate are skipped;
// check reports them.
func (r *Repository) writtenBy(ctx context.Context, prefix string, is func([]byte) bool, fn func(i object.Info, cert *seal.Cert) error) error {
	return r.writtenAfter(ctx, prefix, time.Time{}, is, fn)
}

// writtenAfter is writtenBy for the objects that the storage received after a time.
func (r *Repository) writtenAfter(ctx context.Context, prefix string, after time.Time, is func([]byte) bool, fn func(i object.Info, cert *seal.Cert) error) error {
	return r.headers(ctx, prefix, after, is, func(i object.Info, cert *seal.Cert, _ []byte) error { return fn(i, cert) })
}

// headers is writtenAfter that also passes the beginning of the object, up to the end
// of the certificate.
func (r *Repository) headers(ctx context.Context, prefix string, after time.Time, is func([]byte) bool, fn func(i object.Info, cert *seal.Cert, head []byte) error) error {
	var infos []object.Info
	if err := object.ListOwn(ctx, r.objects, prefix, func(i object.Info) error {
		if after.IsZero() || i.Modified.After(after) {
			infos = append(infos, i)
		}
		return nil
	}); err != nil {
		return err
	}
	var mu sync.Mutex
	genuine := make(map[seal.Cert]bool)
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
			cert := seal.Cert(p[certAt:])
			mu.Lock()
			defer mu.Unlock()
			ok, seen := genuine[cert]
			if !seen {
				ok = r.keys.CheckCert(&cert) == nil || !r.defends(VerifiedWriters)
				genuine[cert] = ok
			}
			if !ok {
				return nil
			}
			return fn(i, &cert, p)
		})
	}
	return g.Wait()
}

// packsBy calls fn for each pack that a writer wrote, or of which it stored blobs
// first, from one goroutine at a time. It reads the headers of all packs, and the
// directories of those that name first writers.
func (r *Repository) packsBy(ctx context.Context, writer string, fn func(i object.Info, cert *seal.Cert) error) error {
	var copied []object.Info
	if err := r.headers(ctx, "packs/", time.Time{}, packCert, func(i object.Info, cert *seal.Cert, head []byte) error {
		if cert.Writer().String() == writer {
			return fn(i, cert)
		}
		if pack.NamesFirstWriters(head) {
			copied = append(copied, i)
		}
		return nil
	}); err != nil {
		return err
	}
	for _, i := range copied {
		id, ok := pack.ParseObjectName(i.Name)
		if !ok {
			continue
		}
		d, err := r.store.ReadDirectory(ctx, id, i.Size)
		if ctx.Err() != nil || object.Retriable(err) {
			return err
		}
		if err != nil {
			continue // damaged, which check reports
		}
		if slices.ContainsFunc(d.FirstWriters(), func(w seal.WriterID) bool { return w.String() == writer }) {
			if err := fn(i, &d.Cert); err != nil {
				return err
			}
		}
	}
	return nil
}

// PacksOf calls fn for each pack that a writer wrote, or of which it stored blobs
// first, from one goroutine at a time. It reads the headers of all packs.
func (r *Repository) PacksOf(ctx context.Context, writer string, fn func(name string, size int64) error) error {
	return r.packsBy(ctx, writer, func(i object.Info, _ *seal.Cert) error { return fn(i.Name, i.Size) })
}

// Written is an object that a writer wrote.
type Written struct {
	Name     string
	Size     int64
	Received time.Time // when the storage received it, by its own clock
	// State is "ok"; "rejected" if the writer was revoked and the object does not
	// count; or "junk" if it has the writer's certificate without its signature, so
	// that another wrote it.
	State string
}

// ObjectsOf calls fn for everything that a writer wrote, from one goroutine at a
// time: its small objects by folder, then its packs. Small objects are verified; of
// packs, the header is read.
func (r *Repository) ObjectsOf(ctx context.Context, writer string, fn func(Written) error) error {
	for folder := range writerFolders() {
		kind := folderKinds()[strings.TrimSuffix(folder, "/")]
		if err := r.writtenBy(ctx, folder, objectCert, func(i object.Info, cert *seal.Cert) error {
			if cert.Writer().String() != writer {
				return nil
			}
			w := Written{i.Name, i.Size, i.Modified, "ok"}
			data, err := chunkstore.ReadSmall(ctx, r.objects, r.keys, kind, i.Name)
			if errors.Is(err, object.ErrNotFound) {
				return nil
			}
			if err != nil && (ctx.Err() != nil || object.Retriable(err)) {
				return err
			}
			if err == nil {
				_, err = r.keys.VerifyNamed(kind, i.Name, data)
			}
			switch {
			case errors.Is(err, seal.ErrRevoked):
				w.State = "rejected"
			case err != nil:
				w.State = "junk"
			}
			return fn(w)
		}); err != nil {
			return err
		}
	}
	return r.packsBy(ctx, writer, func(i object.Info, cert *seal.Cert) error {
		w := Written{i.Name, i.Size, i.Modified, "ok"}
		if sum, err := parsePacks([]string{i.Name[strings.LastIndexByte(i.Name, '/')+1:]}); err == nil && r.keys.Refuses(cert.Writer(), sum[0]) {
			w.State = "rejected"
		}
		return fn(w)
	})
}

func folderKinds() map[string]seal.ObjectKind {
	return map[string]seal.ObjectKind{
		"snapshots": seal.KindSnapshot, "index": seal.KindIndex, "notes": seal.KindNote, "claims": seal.KindClaim, "references": seal.KindReference,
		"condemned": seal.KindCondemned, "retired": seal.KindRetired, "damage": seal.KindDamage, "catalogue": seal.KindCatalogue,
		"revoked": seal.KindRevoked, "over": seal.KindOver, "proofs": seal.KindProof, "forgotten": seal.KindForgotten,
	}
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
	if werr := r.writtenBy(ctx, snapshotPrefix, objectCert, func(_ object.Info, cert *seal.Cert) error {
		note(cert.Writer().String())
		return nil
	}); werr != nil {
		return "", werr
	}
	if id, whole := strings.ToLower(name), (seal.WriterID{}); len(found) == 0 && whole.Parse(id) == nil {
		return id, nil // it may have written other objects than snapshots
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
	err := r.writtenBy(ctx, snapshotPrefix, objectCert, func(_ object.Info, cert *seal.Cert) error {
		id := cert.Writer().String()
		counts[id] = WriterCount{Role: cert.Role().String(), Snapshots: counts[id].Snapshots + 1}
		return nil
	})
	return counts, err
}
