package check

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"xenkeep/chunkstore"
	"xenkeep/chunkstore/object"
	"xenkeep/chunkstore/pack"
	"xenkeep/chunkstore/seal"
	"xenkeep/repo"

	"golang.org/x/sync/errgroup"
)

// KeylessOptions configures a check without a key.
type KeylessOptions struct {
	Options
	CacheDir string // as in repo.Options
}

// Keyless verifies a repository without any key: that the content of every small
// object, and of the packs that Options select (all by default), matches its name,
// that a key which the config's public key certifies signed it, that the config is
// signed, that both copies of each key slot exist, and that no
// pack is missing that an index object names. It cannot detect whether the blobs
// that snapshots reference exist, nor whether index objects or snapshots were
// deleted.
func Keyless(ctx context.Context, objects object.Store, o KeylessOptions) (*Report, error) {
	o.defaults()
	c := &checker{o: o.Options, keyless: true, packs: make(map[pack.ID]stored), deleted: make(map[pack.ID]bool), bad: &damaged{packs: make(map[pack.ID]bool)}}
	keys, err := c.config(ctx, objects)
	if err != nil {
		return nil, err
	}
	id, dir := "", ""
	if keys != nil {
		id = keys.Repo.String()
	}
	if o.CacheDir != "" && id != "" {
		dir = filepath.Join(o.CacheDir, id)
	}
	c.proofs = openProofs(dir)
	k := &keyless{checker: c, objects: objects, keys: keys, repository: id, named: make(map[pack.ID]int64)}
	for _, step := range []func(context.Context) error{k.slots, k.small, k.listPacks, k.foreign, k.missing, k.data} {
		if err := step(ctx); err != nil {
			return nil, errors.Join(err, c.remember())
		}
	}
	if err := c.remember(); err != nil {
		return nil, err
	}
	c.rep.OldestProof, c.rep.NeverRead = c.proofs.oldest(c.packs)
	for _, f := range c.rep.Findings {
		if f.Kind == Junk {
			c.rep.Junk++
		}
	}
	slices.SortStableFunc(c.rep.Findings, func(a, b Finding) int { return strings.Compare(a.Object, b.Object) })
	return &c.rep, nil
}

// config verifies the config with the public key that the config itself contains:
// this detects damage, but not a forgery by someone who can write to the storage.
// It returns the repository's ID and public key, or nil if the config is lost.
func (c *checker) config(ctx context.Context, objects object.Store) (*seal.Keys, error) {
	data, err := objects.Get(ctx, "config", 0, -1)
	if err != nil && (ctx.Err() != nil || object.Retriable(err) || errors.Is(err, object.ErrNoRepository)) {
		return nil, err
	}
	var keys *seal.Keys
	var cfg repo.Config
	if err == nil {
		var head []byte
		if _, head, err = seal.ObjectHead(data); err == nil {
			err = json.Unmarshal(head, &cfg)
		}
		keys = &seal.Keys{CertifyPublic: cfg.CertifyPublic}
		if err == nil {
			err = keys.Repo.Parse(cfg.Repository)
		}
		if err == nil {
			_, err = keys.VerifyObject(seal.KindConfig, data)
		}
	}
	if err != nil {
		c.add(BadObject, "config", "", err)
		return nil, nil
	}
	return keys, nil
}

type keyless struct {
	*checker
	objects    object.Store
	keys       *seal.Keys // the repository's ID and public key, or nil
	repository string
	named      map[pack.ID]int64 // packs named by index objects, with their sizes
}

func (k *keyless) foreign(ctx context.Context) (err error) {
	k.rep.Foreign, err = foreign(ctx, k.objects)
	return err
}

func (k *keyless) slots(ctx context.Context) error {
	return checkSlots(ctx, k.objects, k.repository, k.add)
}

// small compares all small objects with their names.
func (k *keyless) small(ctx context.Context) error {
	type small struct{ folder, name string }
	var all []small
	for folder := range kinds {
		if err := object.ListOwn(ctx, k.objects, folder+"/", func(i object.Info) error {
			all = append(all, small{folder, i.Name})
			return nil
		}); err != nil {
			return err
		}
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(max(2, k.objects.Traits().Parallel))
	for _, s := range all {
		g.Go(func() error {
			err := k.object(ctx, s.folder, s.name)
			switch {
			case err == nil || errors.Is(err, object.ErrNotFound): // deleted meanwhile
			case ctx.Err() != nil || object.Retriable(err):
				return err
			default:
				k.add(kindOf(err), s.name, "", err)
			}
			return nil
		})
	}
	return g.Wait()
}

// head reads and verifies an object, as far as that is possible, and returns its
// kind and plain head. full is false if a write-only key signed it.
func (k *keyless) head(ctx context.Context, folder, name string) (kind seal.ObjectKind, head []byte, full bool, err error) {
	if k.keys == nil {
		kind, head, err = chunkstore.ReadSmallHead(ctx, k.objects, name)
		return kind, head, true, err
	}
	data, err := chunkstore.ReadSmall(ctx, k.objects, k.keys, kinds[folder], name)
	if err != nil {
		return 0, nil, false, err
	}
	o, err := k.keys.VerifyNamed(kinds[folder], name, data)
	if err != nil {
		return 0, nil, false, err
	}
	return o.Kind, o.Head, o.Cert.Role() == seal.Full, nil
}

// object verifies an object and records the information in its plain head.
func (k *keyless) object(ctx context.Context, folder, name string) error {
	kind, head, full, err := k.head(ctx, folder, name)
	if err != nil {
		return err
	}
	if kind != kinds[folder] {
		return fmt.Errorf("object of kind %d instead of %d: %w", kind, kinds[folder], seal.ErrCorrupt)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	switch folder {
	case "snapshots":
		k.rep.Snapshots++
	case "claims":
		k.rep.Claims++
	case "damage":
		k.rep.DamageLists++
	case "condemned":
		for _, id := range repo.DeletedPacks(head) {
			k.deleted[id] = k.deleted[id] || full // others must not hide that packs are missing
		}
	case "index":
		x, err := chunkstore.ReadIndexHead(head)
		if err != nil {
			return err
		}
		for _, p := range x.Packs {
			k.named[p.Pack] = p.Size
		}
	}
	return nil
}

func (k *keyless) listPacks(ctx context.Context) error {
	return object.ListOwn(ctx, k.objects, "packs/", func(i object.Info) error {
		if id, ok := pack.ParseObjectName(i.Name); ok {
			k.packs[id] = stored{size: i.Size, modified: i.Modified}
			k.rep.Packs++
			k.rep.PackBytes += i.Size
			if _, named := k.named[id]; !named {
				k.rep.Orphans++
			}
		} else {
			k.add(BadData, i.Name, "", errors.New("not a pack's name"))
		}
		return nil
	})
}

// missing reports the packs that index objects name and that do not exist. If there
// are any, the index objects are read again first, because a pruner may have
// replaced them and deleted the packs meanwhile.
func (k *keyless) missing(ctx context.Context) error {
	wrong := func() (ids []pack.ID) {
		for id, size := range k.named {
			if p, ok := k.packs[id]; !k.deleted[id] && (!ok || p.size != size) {
				ids = append(ids, id)
			}
		}
		return ids
	}
	if len(wrong()) == 0 {
		return nil
	}
	before := k.rep
	k.rep.Findings = nil
	clear(k.named)
	if err := k.small(ctx); err != nil {
		return err
	}
	k.rep = before
	for _, id := range wrong() {
		p, ok := k.packs[id]
		if !ok {
			i, err := k.objects.Stat(ctx, id.ObjectName())
			if err == nil { // the listing did not contain it yet
				p, ok = stored{size: i.Size, modified: i.Modified}, true
				k.packs[id] = p
			} else if !errors.Is(err, object.ErrNotFound) {
				return err
			}
		}
		switch {
		case !ok:
			k.add(MissingPack, id.ObjectName(), "", errors.New("pack is missing"))
		case p.size != k.named[id]:
			k.add(PackSize, id.ObjectName(), "", fmt.Errorf("pack has %d bytes instead of %d", p.size, k.named[id]))
		}
	}
	return nil
}

// data compares packs with their names.
func (k *keyless) data(ctx context.Context) error {
	ids := k.o.choose(k.packs, k.proofs)
	var total int64
	for _, id := range ids {
		total += k.packs[id].size
	}
	add, done := k.o.Begin("packs", total)
	defer done()
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(3) // packs of 32 MiB each in memory concurrently
	for _, id := range ids {
		g.Go(func() error {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			data, err := k.objects.Get(ctx, id.ObjectName(), 0, -1)
			switch {
			case errors.Is(err, object.ErrNotFound):
				return nil // a pruner has deleted it; otherwise the next check reports it as missing
			case err != nil && (ctx.Err() != nil || object.Retriable(err)):
				return err
			case err == nil:
				err = seal.CheckName(id.String(), data)
			}
			if err != nil {
				k.add(ChangedPack, id.ObjectName(), "", err)
			}
			k.proofs.add(id, k.o.Now(), err != nil)
			k.mu.Lock()
			k.rep.Read += int64(len(data))
			k.rep.PacksRead++
			k.mu.Unlock()
			add(int64(len(data)))
			return nil
		})
	}
	return g.Wait()
}
