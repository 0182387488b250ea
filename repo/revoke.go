package repo

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"xenkeep/chunkstore"
	"xenkeep/chunkstore/object"
	"xenkeep/chunkstore/pack"
	"xenkeep/chunkstore/seal"

	"github.com/google/renameio/v2"
	"golang.org/x/sync/errgroup"
)

const revokedPrefix = "revoked/"

// Revoked revokes a writer: readers accept only those of its objects that are
// listed here because they existed when this was written. It is valid only if a
// full key signed it. If there are several of one writer, an object must be listed
// in all of them.
type Revoked struct {
	Writer string    `json:"writer"` // hex
	Time   time.Time `json:"time"`
	// Since is set if objects that the storage received later than that were left
	// out of the lists, although they existed.
	Since   *time.Time `json:"since,omitempty"`
	Reason  string     `json:"reason,omitempty"`
	Objects []string   `json:"objects"` // SHA-256 of the small objects that are accepted, hex
	Packs   []string   `json:"packs"`   // packs that are accepted, whoever wrote them, hex

	name string
}

// Name returns the name of the revocation's object in storage.
func (v *Revoked) Name() string { return v.name }

var (
	// ErrFullWriter is returned for a writer that cannot be revoked.
	ErrFullWriter = errors.New("the holder of a full key can create others, so that it cannot be shut out")
	// ErrRevocation is returned by operations that build on the objects of all
	// writers, if a revocation is unreadable or missing: objects of a revoked
	// writer might be accepted.
	ErrRevocation = errors.New("it is not known which key this revocation shuts out")
	// ErrRevocationGone is the state of a revocation that this machine has seen and
	// that is not in the storage any more.
	ErrRevocationGone = errors.New("this revocation was in the storage before and is not there any more")
)

// readRevoked makes the keys reject objects that revoked writers wrote after their
// revocation. Revocations that are unreadable or missing are remembered for
// RevocationsKnown.
func (r *Repository) readRevoked(ctx context.Context) error {
	all, bad, err := r.Revocations(ctx)
	if err != nil {
		return err
	}
	r.addProblems(bad...)
	r.unsure = bad
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
		if v.Time.After(r.revokedAt) {
			r.revokedAt = v.Time
		}
	}
	return nil
}

// RevocationsKnown returns ErrRevocation if a revocation could not be read when the
// repository was opened, or is missing although this machine has seen it. Backup,
// forget and prune must not run then.
func (r *Repository) RevocationsKnown() error {
	if len(r.unsure) == 0 || !r.defends(KnownRevocations) {
		return nil
	}
	return fmt.Errorf("%w: %w", r.unsure[0].Err, ErrRevocation)
}

// CanWrite returns an error if this version may not add to the repository, or not
// now.
func (r *Repository) CanWrite() error {
	if err := r.config.CanWrite(); err != nil {
		return err
	}
	return r.RevocationsKnown()
}

// CanPrune returns an error if this version may not delete from the repository, or
// not now.
func (r *Repository) CanPrune() error {
	if err := r.config.CanPrune(); err != nil {
		return err
	}
	return r.RevocationsKnown()
}

// Revocations reads the revocations that full keys signed. Those that cannot be
// read, and those that this machine has seen and that are not in the storage any
// more, are returned as problems. The cache folder keeps a copy of each, which is
// used for the missing ones too. An object that was never a revocation, because no
// writer of this repository has signed the bytes that its name is the hash of, is
// ignored; check reports it.
func (r *Repository) Revocations(ctx context.Context) ([]*Revoked, []Problem, error) {
	return r.revocations(ctx, false)
}

// StoredRevocations is Revocations that reads the storage also where the cache
// folder has a copy.
func (r *Repository) StoredRevocations(ctx context.Context) ([]*Revoked, []Problem, error) {
	return r.revocations(ctx, true)
}

func (r *Repository) revocations(ctx context.Context, stored bool) ([]*Revoked, []Problem, error) {
	names, err := r.revocationNames(ctx)
	if err != nil {
		return nil, nil, err
	}
	type result struct {
		v   *Revoked
		err error
	}
	results := make([]result, len(names))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(max(2, r.objects.Traits().Parallel))
	for i, n := range names {
		g.Go(func() error {
			v, err := r.readRevocation(gctx, n.name)
			if v != nil && (stored || !n.stored) { // listings may be late
				if err = r.soundlyStored(gctx, n.name); errors.Is(err, object.ErrNotFound) {
					err = fmt.Errorf("%s: of key %s: %w", n.name, v.Writer, ErrRevocationGone)
				}
			}
			if gctx.Err() != nil {
				return gctx.Err()
			}
			if object.Retriable(err) {
				return err
			}
			results[i] = result{v, err}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, nil, err
	}
	var all []*Revoked
	var bad []Problem
	for i, res := range results {
		if res.v != nil {
			all = append(all, res.v)
		}
		if res.err != nil && !errors.Is(res.err, object.ErrNotFound) {
			bad = append(bad, Problem{Object: names[i].name, Err: res.err})
		}
	}
	return all, bad, nil
}

type revocationName struct {
	name   string
	stored bool // false: only in the cache
}

// revocationNames lists the revocations in storage and in the cache folder.
func (r *Repository) revocationNames(ctx context.Context) ([]revocationName, error) {
	stored := make(map[string]bool)
	if err := object.ListOwn(ctx, r.objects, revokedPrefix, func(i object.Info) error {
		stored[i.Name] = true
		return nil
	}); err != nil {
		return nil, err
	}
	if r.cacheDir != "" {
		files, _ := os.ReadDir(filepath.Join(r.cacheDir, "revoked")) // it is a cache, and need not exist
		for _, f := range files {
			if name := revokedPrefix + f.Name(); object.Own(name) && !stored[name] {
				stored[name] = false
			}
		}
	}
	var names []revocationName
	for name, there := range stored {
		names = append(names, revocationName{name, there})
	}
	slices.SortFunc(names, func(a, b revocationName) int { return strings.Compare(a.name, b.name) })
	return names, nil
}

// readRevocation reads a revocation from the cache folder or the storage. It
// returns nil for an object that is not valid as a revocation without being
// damaged.
func (r *Repository) readRevocation(ctx context.Context, name string) (*Revoked, error) {
	data, cached := r.cachedRevocation(name), true
	if data == nil {
		cached = false
		var err error
		data, err = chunkstore.ReadSmall(ctx, r.objects, r.keys, seal.KindRevoked, name)
		if errors.Is(err, seal.ErrJunk) {
			r.addJunk(name, err)
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
	}
	if o, err := r.keys.VerifyNamed(seal.KindRevoked, name, data); err == nil && o.Cert.Role() != seal.Full {
		return nil, nil // only a full key revokes
	}
	v := &Revoked{name: name}
	_, err := r.openObject(name, data, seal.KindRevoked, v)
	if errors.Is(err, seal.ErrJunk) {
		r.addJunk(name, err)
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if !cached {
		r.keepRevocation(name, data)
	}
	return v, nil
}

// soundlyStored returns an error unless the storage has the object that the name is
// the hash of.
func (r *Repository) soundlyStored(ctx context.Context, name string) error {
	data, err := chunkstore.ReadSmall(ctx, r.objects, r.keys, seal.KindRevoked, name)
	if err == nil {
		err = seal.CheckName(name, data)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

func (r *Repository) revocationFile(name string) string {
	return filepath.Join(r.cacheDir, "revoked", strings.TrimPrefix(name, revokedPrefix))
}

// cachedRevocation returns the bytes of a revocation from the cache folder, or nil.
func (r *Repository) cachedRevocation(name string) []byte {
	if r.cacheDir == "" {
		return nil
	}
	data, err := os.ReadFile(r.revocationFile(name))
	if err != nil || seal.CheckName(name, data) != nil {
		return nil
	}
	return data
}

// keepRevocation copies a revocation into the cache folder. A failed write is
// ignored: it is a cache.
func (r *Repository) keepRevocation(name string, data []byte) {
	if file := r.revocationFile(name); r.cacheDir != "" && os.MkdirAll(filepath.Dir(file), 0o700) == nil {
		_ = renameio.WriteFile(file, data, 0o600)
	}
}

// PutRevocationBack writes a revocation that is missing or damaged in the storage
// again, from the copy in the cache folder. It reports whether there is a copy.
func (r *Repository) PutRevocationBack(ctx context.Context, name string) (bool, error) {
	data := r.cachedRevocation(name)
	if data == nil {
		return false, nil
	}
	return true, r.objects.Put(ctx, name, data)
}

// GiveUpRevocation accepts that a revocation is lost: it deletes the object, if it
// is still there, and the copy in the cache folder. The writer that it revoked is
// accepted again, unless another revocation is of that writer. It needs a full key.
func (r *Repository) GiveUpRevocation(ctx context.Context, name string) error {
	if err := r.NeedsFull("give up a revocation"); err != nil {
		return err
	}
	if !object.Own(name) || !strings.HasPrefix(name, revokedPrefix) {
		return fmt.Errorf("%s: not the name of a revocation: %w", name, object.ErrNotFound)
	}
	if err := r.objects.Delete(ctx, name); err != nil {
		return err
	}
	if r.cacheDir != "" {
		if err := os.Remove(r.revocationFile(name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

// Rejected counts the existing objects of a writer that a revocation rejects.
type Rejected struct {
	Objects map[string]int // by folder
	Packs   int
}

// Revoke revokes a writer and deletes its slot. The index must have been loaded.
// The objects that the writer has written so far stay accepted; if since is set,
// only those that the storage received until then, by its own clock.
func (r *Repository) Revoke(ctx context.Context, writer, reason string, since *time.Time, now time.Time) (*Revoked, *Rejected, error) {
	if err := r.NeedsFull("revoke a key"); err != nil {
		return nil, nil, err
	}
	rejected := &Rejected{Objects: make(map[string]int)}
	all, _, err := r.Revocations(ctx)
	if err != nil {
		return nil, nil, err
	}
	if i := slices.IndexFunc(all, func(v *Revoked) bool { return v.Writer == writer && v.covers(since) }); i >= 0 {
		return all[i], rejected, r.dropSlot(ctx, writer) // an earlier attempt may have stopped before this
	}
	v := &Revoked{Writer: writer, Time: now.UTC(), Since: since, Reason: reason, Objects: []string{}, Packs: []string{}}
	known := slices.ContainsFunc(all, func(v *Revoked) bool { return v.Writer == writer })
	certified := false
	for folder := range writerFolders() {
		if err := r.writtenBy(ctx, folder, objectCert, func(i object.Info, cert *seal.Cert) error {
			if cert.Writer().String() != writer {
				return nil
			}
			if cert.Role() == seal.Full {
				return fmt.Errorf("revoke key %s: %w", writer, ErrFullWriter)
			}
			known, certified = true, true
			if since != nil && i.Modified.After(*since) {
				rejected.Objects[strings.TrimSuffix(folder, "/")]++
				return nil
			}
			v.Objects = append(v.Objects, i.Name[len(i.Name)-2*sha256.Size:])
			return nil
		}); err != nil {
			return nil, nil, err
		}
	}
	late, err := r.latePacks(ctx, writer, since)
	if err != nil {
		return nil, nil, err
	}
	rejected.Packs = len(late)
	if err := r.revocable(ctx, writer, known, certified); err != nil {
		return nil, nil, err
	}
	for p := range r.store.Index().Packs() {
		if id := pack.ID(p.ID).String(); !late[id] {
			v.Packs = append(v.Packs, id)
		}
	}
	slices.Sort(v.Objects)
	if v.name, _, err = r.putObject(ctx, revokedPrefix, seal.KindRevoked, v); err != nil {
		return nil, nil, err
	}
	return v, rejected, r.dropSlot(ctx, writer)
}

// covers reports whether v rejects everything that a revocation with this time
// would reject.
func (v *Revoked) covers(since *time.Time) bool {
	return since == nil || v.Since != nil && !v.Since.After(*since)
}

// revocable returns an error for a writer that does not exist, or has a full key.
// The head of a slot is not signed: it is not believed if a certificate of the
// writer was found.
func (r *Repository) revocable(ctx context.Context, writer string, known, certified bool) error {
	if writer == r.keys.Cert.Writer().String() {
		return fmt.Errorf("revoke key %s: %w", writer, ErrFullWriter)
	}
	slots, err := r.Slots(ctx)
	if err != nil {
		return err
	}
	for _, s := range slots {
		if s.ID != writer {
			continue
		}
		known = true
		if s.Role == seal.Full.String() && !certified {
			return fmt.Errorf("revoke key %s: %w", writer, ErrFullWriter)
		}
	}
	if !known {
		return fmt.Errorf("%q: %w", writer, ErrNoSlot)
	}
	return nil
}

// latePacks returns the packs of a writer that the storage received after since.
func (r *Repository) latePacks(ctx context.Context, writer string, since *time.Time) (map[string]bool, error) {
	late := make(map[string]bool)
	if since == nil {
		return late, nil
	}
	err := r.writtenAfter(ctx, "packs/", *since, packCert, func(i object.Info, cert *seal.Cert) error {
		if cert.Writer().String() == writer {
			late[i.Name[len(i.Name)-2*sha256.Size:]] = true
		}
		return nil
	})
	return late, err
}

func (r *Repository) dropSlot(ctx context.Context, id string) error {
	return errors.Join(r.objects.Delete(ctx, slotName("a", id)), r.objects.Delete(ctx, slotName("b", id)))
}
