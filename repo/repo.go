// Package repo implements a repository: config and keys, snapshots and their notes,
// claims, and the Merkle tree of disks. It depends on no hypervisor and no image
// format. The engines that store, restore and verify disks are the packages below
// it: backup, restore, check.
package repo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"xenkeep/chunkstore"
	"xenkeep/chunkstore/chunk"
	"xenkeep/chunkstore/index"
	"xenkeep/chunkstore/object"
	"xenkeep/chunkstore/seal"
	"xenkeep/chunkstore/slot"
	"xenkeep/internal/disk"
)

// Format is the repository format that this version writes.
const Format = 1

// ErrFeature is returned if a repository uses a feature that this version does not
// support and needs for the requested operation.
var ErrFeature = errors.New("the repository needs a newer version of xenkeep")

// Features lists the features that a version must support to read, to write and to
// prune a repository. A version refuses that use if it does not recognize a name.
type Features struct {
	Read  []string `json:"read"`
	Write []string `json:"write"`
	Prune []string `json:"prune"`
}

// Config is the signed description of a repository, readable without a key. A
// sealed copy is stored in every key slot.
type Config struct {
	Format        int          `json:"format"`
	Repository    string       `json:"repository"` // hex
	Created       time.Time    `json:"created"`
	BlockSize     int          `json:"block_size"` // bytes
	Chunker       chunk.Params `json:"chunker"`
	CertifyPublic []byte       `json:"certify_public"`
	Features      Features     `json:"features"`
	// LockDays is the number of days for which packs, index objects, snapshots and
	// keys are locked against deletion when they are put; 0 means not at all.
	LockDays int `json:"lock_days,omitempty"`
	// Mixed is set once the repository has had write-only keys. It makes machines that
	// see no other trace of them verify the writers of packs.
	Mixed bool `json:"write_only_keys,omitempty"`
	// Groups are sets of writers whose snapshots are counted together.
	Groups []WriterGroup `json:"groups,omitempty"`
}

func (c *Config) check() error {
	if c.Format > Format {
		return fmt.Errorf("repository format %d: %w", c.Format, ErrFeature)
	}
	if err := unsupported(c.Features.Read); err != nil {
		return err
	}
	if c.Format < 1 || c.BlockSize != disk.BlockSize {
		return fmt.Errorf("config: format %d, block size %d: %w", c.Format, c.BlockSize, seal.ErrCorrupt)
	}
	return c.Chunker.Validate()
}

// CanWrite returns an error if this version may not add to the repository.
func (c *Config) CanWrite() error { return unsupported(c.Features.Write) }

// CanPrune returns an error if this version may not delete from the repository.
func (c *Config) CanPrune() error { return unsupported(c.Features.Prune) }

// Repository is an open repository. Its methods are safe for concurrent use.
type Repository struct {
	objects  object.Store
	store    *chunkstore.Store
	keys     *seal.Keys
	config   Config
	rawJSON  json.RawMessage
	cacheDir string

	unsure  []Problem // revocations that are unreadable or missing
	without []Defence

	revokedAt time.Time // of the last revocation

	mu       sync.Mutex
	problems []Problem
	listed   *listing         // of snapshots
	junk     map[string]error // objects that are ignored, by name
}

// Problem is a fault that did not prevent the repository from opening.
type Problem struct {
	Object string // its name in storage
	Err    error
}

// Options configures Init and Open.
type Options struct {
	Secret slot.Secret
	Page   []byte // a printed key page, used instead of a secret and any slot
	// Slot names the slot to open: by its ID, a unique prefix of that of four
	// characters or more, or its label. If it is empty, the slot that this
	// machine opened last is tried first, then the others.
	Slot string
	// slotBudget replaces the constant of this name, in tests.
	slotBudget uint64
	// CacheDir contains a folder for each repository, with its index. If it is
	// empty, everything is kept in memory.
	CacheDir string
	Now      func() time.Time
	// Chunker is how a new repository cuts chunks; the zero value means
	// chunk.DefaultParams.
	Chunker chunk.Params
	// LockDays is the new repository's Config.LockDays.
	LockDays int
	// Features are the features that a new repository uses; nil means all that this
	// version supports. A list that is empty makes a repository that every version
	// can use.
	Features []Feature
	// Without switches defences off, so that the tests of attacks can show that an
	// attack works without them. Nothing else sets it.
	Without []Defence

	mixed bool // a key slot is not of a full key
}

// Defence is a rule against attacks that Options.Without can switch off.
type Defence string

const (
	// VerifiedWriters: the writer and role of an object are not believed before the
	// certificate in its header is verified.
	VerifiedWriters Defence = "verified writers"
	// KnownRevocations: backup, forget and prune are refused while a revocation is
	// unreadable or missing.
	KnownRevocations Defence = "known revocations"
	// FullKeysForget: only a full key moves snapshots into their grace period, after
	// which they are deleted.
	FullKeysForget Defence = "full keys forget"
	// IgnoredJunk: objects that no key of the repository wrote are ignored.
	IgnoredJunk Defence = "ignored junk"
	// FullStatements: condemned lists, damage lists and notes of a write-only key
	// count only about its own snapshots and packs.
	FullStatements Defence = "full statements"
	// VerifiedIndex: index objects of a write-only key are believed only about packs
	// that the same key signed.
	VerifiedIndex Defence = "verified index"
	// TrustedCopies: only copies in packs of full keys, of this machine, or that a
	// full key has opened take the place of others.
	TrustedCopies Defence = "trusted copies"
)

func (o *Options) defaults() {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Chunker == (chunk.Params{}) {
		o.Chunker = chunk.DefaultParams()
	}
	if o.Features == nil {
		o.Features = Supported()
	}
}

// Init creates a repository in an empty storage. The slots and the config are
// written last, so that a repository that opens is complete.
func Init(ctx context.Context, objects object.Store, o Options) (*Repository, error) {
	o.defaults()
	if err := o.Chunker.Validate(); err != nil {
		return nil, err
	}
	if err := startLocks(objects, o.LockDays); err != nil {
		return nil, err
	}
	keys, err := seal.NewKeys()
	if err != nil {
		return nil, err
	}
	if keys.Cut, err = o.Chunker.NewKey(); err != nil {
		return nil, err
	}
	cfg := Config{
		Format: Format, Repository: keys.Repo.String(), Created: o.Now().UTC().Truncate(time.Second),
		BlockSize: disk.BlockSize, Chunker: o.Chunker, CertifyPublic: keys.CertifyPublic,
		Features: features(o.Features),
		LockDays: o.LockDays,
	}
	raw, err := json.Marshal(cfg)
	if err != nil {
		return nil, err
	}
	data, id, err := slot.Seal(keys, raw, o.Secret, "first", o.Now())
	if err != nil {
		return nil, err
	}
	object, _, err := keys.SealObject(seal.KindConfig, raw, nil)
	if err != nil {
		return nil, err
	}
	for _, p := range []struct {
		name string
		data []byte
	}{{slotName("a", id), data}, {slotName("b", id), data}, {configName, object}} {
		if err := objects.Put(ctx, p.name, p.data); err != nil {
			// Nothing of an unfinished repository may stay: its slots would prevent
			// the next attempt.
			clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
			defer cancel()
			for _, name := range []string{configName, slotName("b", id), slotName("a", id)} {
				_ = objects.Delete(clean, name) // the first error is enough
			}
			return nil, err
		}
	}
	if err := provenLocked(ctx, objects, o.LockDays); err != nil {
		return nil, err
	}
	r := &Repository{objects: objects, keys: keys, rawJSON: raw, without: o.Without}
	if err := r.begin(o); err != nil {
		return nil, err
	}
	return r, nil
}

const configName = "config"

func slotName(copy, id string) string { return "slots/" + copy + "/" + id }

// Open opens a repository. It returns slot.ErrWrongSecret if no slot opens and
// object.ErrNoRepository if there is no repository.
func Open(ctx context.Context, objects object.Store, o Options) (*Repository, error) {
	o.defaults()
	if o.Page != nil {
		keys, raw, err := slot.OpenPage(o.Page)
		if err != nil {
			return nil, err
		}
		slots, err := readSlots(ctx, objects)
		o.mixed = err != nil || hasWeak(slots)
		return open(ctx, objects, keys, raw, o)
	}
	slots, err := readSlots(ctx, objects)
	if err != nil {
		return nil, err
	}
	o.mixed = hasWeak(slots)
	older := false
	if len(slots) == 0 {
		// Older versions are tried only if no slot is left: a removed key must open
		// nothing as long as there are others.
		if slots, err = olderSlots(ctx, objects); err != nil {
			return nil, err
		}
		older = true
	}
	if len(slots) == 0 {
		if _, err := objects.Stat(ctx, configName); errors.Is(err, object.ErrNotFound) {
			return nil, fmt.Errorf("%s: %w", objects.Location(), object.ErrNoRepository)
		}
		return nil, fmt.Errorf("%s: all key slots are lost: open with a printed key page: %w", objects.Location(), seal.ErrCorrupt)
	}
	return openAny(ctx, objects, slots, older, o)
}

// hasWeak reports whether one of the slots is not of a full key. The heads of slots
// are not signed: a forged one only makes this machine verify more.
func hasWeak(slots []storedSlot) bool {
	return slices.ContainsFunc(slots, func(s storedSlot) bool { return s.head.Role != seal.Full.String() })
}

func open(ctx context.Context, objects object.Store, keys *seal.Keys, raw json.RawMessage, o Options) (*Repository, error) {
	r := &Repository{objects: objects, keys: keys, rawJSON: raw, without: o.Without}
	if stored, err := readConfig(ctx, objects, keys); err == nil {
		r.rawJSON = stored
	} else {
		if ctx.Err() != nil {
			return nil, err
		}
		// A config that is newer than the copy in the slot may name features which
		// this version must not ignore.
		if errors.Is(err, object.ErrNoRepository) || errors.Is(err, seal.ErrForeign) || errors.Is(err, seal.ErrNewer) || object.Retriable(err) {
			return nil, err
		}
		if head, oerr := olderConfig(ctx, objects, keys); oerr == nil {
			r.rawJSON = head
		}
		r.addProblems(Problem{Object: configName, Err: err})
	}
	if o.CacheDir != "" {
		r.cacheDir = filepath.Join(o.CacheDir, keys.Repo.String())
	}
	if err := r.readRevoked(ctx); err != nil {
		return nil, err
	}
	if id := keys.Cert.Writer(); keys.Revoked(id) {
		return nil, fmt.Errorf("key %s was revoked: %w", id, seal.ErrRevoked)
	}
	if err := r.begin(o); err != nil {
		return nil, err
	}
	return r, nil
}

// begin parses the config, and opens the index and the chunk store.
func (r *Repository) begin(o Options) error {
	if err := json.Unmarshal(r.rawJSON, &r.config); err != nil {
		return fmt.Errorf("config: %v: %w", err, seal.ErrCorrupt)
	}
	if err := r.config.check(); err != nil {
		return err
	}
	if k, ok := object.VersionedOf(r.objects); ok && r.config.LockDays > 0 {
		k.SetLockDays(r.config.LockDays)
	}
	dir, trees := "", ""
	if o.CacheDir != "" {
		r.cacheDir = filepath.Join(o.CacheDir, r.keys.Repo.String())
		dir, trees = filepath.Join(r.cacheDir, "index"), filepath.Join(r.cacheDir, "trees")
	}
	x, err := index.Open(dir)
	if err != nil {
		return err
	}
	r.store, err = chunkstore.New(chunkstore.Options{
		Objects: r.objects, Keys: r.keys, Params: r.config.Chunker, Index: x, TreeDir: trees, AuthorDir: r.cacheDir,
		FirstWriters: r.config.Uses(FeatureFirstWriter),
		TrustAll:     !r.defends(TrustedCopies), BelieveAll: !r.defends(VerifiedIndex),
	})
	if err != nil {
		return errors.Join(err, x.Close())
	}
	if o.mixed || r.config.Mixed {
		r.store.SetMixed()
	}
	return nil
}

func readConfig(ctx context.Context, objects object.Store, keys *seal.Keys) (json.RawMessage, error) {
	data, err := objects.Get(ctx, configName, 0, -1)
	if err != nil {
		return nil, err
	}
	return openConfig(keys, data)
}

func openConfig(keys *seal.Keys, data []byte) (json.RawMessage, error) {
	o, err := keys.OpenObject(seal.KindConfig, data)
	if err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	if o.Cert.Role() != seal.Full {
		return nil, fmt.Errorf("config: signed by a key that may only write: %w", seal.ErrCorrupt)
	}
	return o.Head, nil
}

// LoadIndex reads new index objects and so brings the index of packs up to date. It
// must be called before blobs are read or written, and may be called again. Index
// objects that cannot be used are added to Problems.
func (r *Repository) LoadIndex(ctx context.Context) error {
	problems, err := r.store.LoadIndex(ctx)
	for _, p := range problems {
		if errors.Is(p.Err, seal.ErrJunk) {
			r.addJunk(p.Object, p.Err)
			continue
		}
		r.addProblems(Problem(p))
	}
	if err == nil {
		err = r.loadProofs(ctx)
	}
	return err
}

// Problems returns the faults that were found and worked around so far.
func (r *Repository) Problems() []Problem {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.problems)
}

// addProblems records problems, one for each object.
func (r *Repository) addProblems(problems ...Problem) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range problems {
		if !slices.ContainsFunc(r.problems, func(q Problem) bool { return q.Object == p.Object }) {
			r.problems = append(r.problems, p)
		}
	}
}

// defends reports whether a defence is in force: always, except in tests of attacks.
func (r *Repository) defends(d Defence) bool { return !slices.Contains(r.without, d) }

// ID returns the repository's random identity.
func (r *Repository) ID() string { return r.config.Repository }

// Config returns the repository's config.
func (r *Repository) Config() Config { return r.config }

// Store returns the repository's blob store.
func (r *Repository) Store() *chunkstore.Store { return r.store }

// Objects returns the underlying storage.
func (r *Repository) Objects() object.Store { return r.objects }

// CacheDir returns the folder for cached data of this repository on this machine,
// or "" if nothing is cached.
func (r *Repository) CacheDir() string { return r.cacheDir }

// Keys returns the keys in use.
func (r *Repository) Keys() *seal.Keys { return r.keys }

// KeyPage returns the keys in use and the config as a page to be printed.
func (r *Repository) KeyPage() ([]byte, error) { return slot.Page(r.keys, r.rawJSON) }

// Close releases the repository's local resources and closes the storage.
func (r *Repository) Close() error {
	return errors.Join(r.store.Index().Close(), r.objects.Close())
}

// putObject seals a small object, names it by its hash and stores it under prefix.
func (r *Repository) putObject(ctx context.Context, prefix string, kind seal.ObjectKind, v any) (name string, size int, err error) {
	return r.putHeaded(ctx, prefix, kind, nil, v)
}

// putHeaded is putObject with a head that is readable without a key.
func (r *Repository) putHeaded(ctx context.Context, prefix string, kind seal.ObjectKind, head []byte, v any) (name string, size int, err error) {
	body, err := json.Marshal(v)
	if err != nil {
		return "", 0, err
	}
	data, name, err := r.keys.SealObject(kind, head, body)
	if err != nil {
		return "", 0, err
	}
	name = prefix + name
	return name, len(data), r.objects.Put(ctx, name, data)
}

// readObject reads a small object whose name contains its hash, verifies it, and
// decodes its JSON into v.
func (r *Repository) readObject(ctx context.Context, name string, kind seal.ObjectKind, v any) (*seal.Object, error) {
	data, err := chunkstore.ReadSmall(ctx, r.objects, r.keys, kind, name)
	if err != nil {
		return nil, err
	}
	return r.openObject(name, data, kind, v)
}

func (r *Repository) openObject(name string, data []byte, kind seal.ObjectKind, v any) (*seal.Object, error) {
	o, err := r.keys.OpenNamed(kind, name, data)
	if errors.Is(err, seal.ErrJunk) && !r.defends(IgnoredJunk) {
		err = fmt.Errorf("%v: %w", err, seal.ErrCorrupt)
	}
	if err != nil && o != nil && !errors.Is(err, seal.ErrRevoked) {
		err = fmt.Errorf("written by key %s: %w", o.Cert.Writer(), err)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if err := json.Unmarshal(o.Body, v); err != nil {
		return nil, fmt.Errorf("%s: written by key %s: %v: %w", name, o.Cert.Writer(), err, seal.ErrCorrupt)
	}
	return o, checkRun(name, v)
}
