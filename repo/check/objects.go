package check

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"

	"xenkeep/chunkstore/object"
	"xenkeep/chunkstore/pack"
	"xenkeep/chunkstore/seal"
	"xenkeep/chunkstore/slot"
	"xenkeep/repo"

	"golang.org/x/sync/errgroup"
)

// listSnapshots lists the snapshots, and those in their grace period, which can be
// recovered and must be sound too. Those that a prune may delete are left out.
func (c *checker) listSnapshots(ctx context.Context) (err error) {
	c.all, c.badSnaps, err = c.r.AllSnapshots(ctx)
	now := c.o.Now()
	c.all = slices.DeleteFunc(c.all, func(s *repo.Snapshot) bool { return s.Grace() != nil && s.Grace().Over(now) })
	return err
}

// problems reports the faults that did not prevent the repository from opening.
func (c *checker) problems(context.Context) error {
	for _, p := range c.r.Problems() {
		c.add(kindOf(p.Err), p.Object, "", p.Err)
	}
	return nil
}

// slots reads both copies of each key slot.
func (c *checker) slots(ctx context.Context) error {
	return checkSlots(ctx, c.r.Objects(), c.r.ID(), c.add)
}

// checkSlots compares the copies of key slots, which needs no key. If repository is
// empty, it accepts slots of any repository.
func checkSlots(ctx context.Context, objects object.Store, repository string, add func(kind Kind, object, where string, err error)) error {
	copies := make(map[string]int)
	content := make(map[string][32]byte)
	var names []string
	if err := object.ListOwn(ctx, objects, "slots/", func(i object.Info) error {
		names = append(names, i.Name)
		return nil
	}); err != nil {
		return err
	}
	for _, name := range names {
		data, err := objects.Get(ctx, name, 0, -1)
		if err == nil {
			var h slot.Head
			if h, err = slot.ReadHead(data); err == nil && ((repository != "" && h.Repository != repository) || !strings.HasSuffix(name, "/"+h.ID)) {
				err = fmt.Errorf("slot of another name: %w", seal.ErrCorrupt)
			}
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if object.Retriable(err) {
			return err
		}
		id := name[strings.LastIndexByte(name, '/')+1:]
		if err != nil {
			add(BadData, name, "", err)
			copies[id] += 0
			continue
		}
		copies[id]++
		sum := sha256.Sum256(data)
		if other, known := content[id]; known && other != sum {
			add(SlotsDiffer, "slots/a/"+id, "", fmt.Errorf("the two copies of this key slot differ: %w", seal.ErrCorrupt))
		}
		content[id] = sum
	}
	for id, n := range copies {
		if n < 2 {
			add(SlotDamaged, "slots/a/"+id, "", fmt.Errorf("%d of 2 copies of this key slot are sound", n))
		}
	}
	if len(copies) == 0 {
		add(NoSlot, "slots/", "", errors.New("no key slot is left"))
	}
	return nil
}

// foreign records files that others put into the repository's folder or prefix,
// which is not damage.
func (c *checker) foreign(ctx context.Context) (err error) {
	c.rep.Foreign, err = foreign(ctx, c.r.Objects())
	return err
}

// foreign lists files that others put into a repository's folder or prefix.
func foreign(ctx context.Context, objects object.Store) (names []string, err error) {
	if f, ok := object.ForeignListerOf(objects); ok {
		err = f.ListForeign(ctx, func(name string) error {
			names = append(names, name)
			return nil
		})
		return names, err
	}
	// Other storages list only names that an object may have.
	err = objects.List(ctx, "", func(i object.Info) error {
		if !object.Own(i.Name) {
			names = append(names, i.Name)
		}
		return nil
	})
	slices.Sort(names)
	return names, err
}

func (c *checker) listPacks(ctx context.Context) error {
	return object.ListOwn(ctx, c.r.Objects(), "packs/", func(i object.Info) error {
		if id, ok := pack.ParseObjectName(i.Name); ok {
			c.packs[id] = stored{size: i.Size, modified: i.Modified}
			c.rep.Packs++
			c.rep.PackBytes += i.Size
		} else {
			c.add(BadData, i.Name, "", errors.New("not a pack's name"))
		}
		return nil
	})
}

// there returns the size of a pack in storage. It queries a pack that was not
// listed, because it was put later or the listing did not contain it yet.
func (c *checker) there(ctx context.Context, id pack.ID) (int64, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p, known := c.packs[id]
	if !known {
		p.size = -1
		if i, err := c.r.Objects().Stat(ctx, id.ObjectName()); err == nil {
			p = stored{size: i.Size, modified: i.Modified}
		} else if !errors.Is(err, object.ErrNotFound) {
			return 0, false // not recorded, because the pack may exist
		}
		c.packs[id] = p
	}
	return p.size, p.size >= 0
}

// index compares the index with the packs in storage. A missing pack is reported
// even if only the index names it and no snapshot needs it, unless a pruner has
// announced that it deletes it.
func (c *checker) index(ctx context.Context) error {
	for again := true; ; again = false {
		known := make(map[pack.ID]bool)
		var missing []pack.ID
		for p := range c.r.Store().Index().Packs() {
			id := pack.ID(p.ID)
			known[id] = true
			switch size, ok := c.there(ctx, id); {
			case ctx.Err() != nil:
				return ctx.Err()
			case !ok && !c.deleted[id]:
				missing = append(missing, id)
			case ok && size != p.Size && !again:
				c.add(PackSize, id.ObjectName(), "", fmt.Errorf("pack has %d bytes instead of %d", size, p.Size))
				c.suspects[id] = true
			}
		}
		if again { // an index object that was replaced meanwhile may name deleted packs
			if err := c.r.LoadIndex(ctx); err != nil {
				return err
			}
			continue
		}
		for _, id := range missing {
			c.add(MissingPack, id.ObjectName(), "", errors.New("pack is missing"))
			c.rep.damage.Packs = append(c.rep.damage.Packs, id)
		}
		for id, p := range c.packs {
			if p.size >= 0 && (!known[id] || c.r.Store().Adopted(id)) {
				c.rep.Orphans++
			}
		}
		break
	}
	if c.rep.Orphans == 0 {
		return nil
	}
	// A killed run's packs do no harm. Those of a lost index object do: the packs
	// among them that snapshots need are reported.
	_, err := c.r.Store().LoadOrphans(ctx)
	return err
}

// stored reads the snapshots and, with ReadData, the index objects from the
// storage: the earlier steps may have read them from the cache.
func (c *checker) stored(ctx context.Context) error {
	prefixes := []string{"snapshots/", "catalogue/", "references/", "retired/", "revoked/", "over/", "proofs/", "forgotten/"}
	if c.o.ReadData {
		prefixes = append(prefixes, "index/")
	}
	var names []string
	for _, prefix := range prefixes {
		if err := object.ListOwn(ctx, c.r.Objects(), prefix, func(i object.Info) error {
			names = append(names, i.Name)
			return nil
		}); err != nil {
			return err
		}
	}
	known := make(map[string]bool)
	for _, p := range c.r.Problems() {
		known[p.Object] = true
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(max(2, c.r.Objects().Traits().Parallel))
	for _, name := range names {
		g.Go(func() error {
			err := c.r.Verify(ctx, name)
			switch {
			case err == nil || known[name] || errors.Is(err, object.ErrNotFound): // deleted meanwhile
			case ctx.Err() != nil || object.Retriable(err):
				return err
			default:
				if kindOf(err) == BadObject {
					if file := c.r.SetAsideSnapshot(name); file != "" {
						err = fmt.Errorf("%w; this machine has a sound copy of the object: %s", err, file)
					}
				}
				c.add(kindOf(err), name, "", unnamed(name, err))
			}
			return nil
		})
	}
	return g.Wait()
}

// unnamed returns the error without the object's name, which the finding has.
func unnamed(name string, err error) error {
	return errors.New(strings.TrimPrefix(err.Error(), name+": "))
}

// disbelieved reports index objects that a write-only key signed about the packs of
// others.
func (c *checker) disbelieved(ctx context.Context) error {
	found, err := c.r.Store().Disbelieved(ctx)
	for _, p := range found {
		c.add(Disbelieved, p.Object, "", p.Err)
	}
	return err
}

// junk reports the objects that were ignored because no key of the repository wrote
// them, unless an earlier step has reported them.
func (c *checker) junk() {
	for _, p := range c.r.Junk() {
		if !slices.ContainsFunc(c.rep.Findings, func(f Finding) bool { return f.Object == p.Object }) {
			c.add(Junk, p.Object, "", unnamed(p.Object, p.Err))
		}
	}
	for _, f := range c.rep.Findings {
		if f.Kind == Junk {
			c.rep.Junk++
		}
	}
}

// kinds maps the folders of small objects to their kinds.
var kinds = map[string]seal.ObjectKind{
	"snapshots": seal.KindSnapshot, "index": seal.KindIndex, "notes": seal.KindNote, "claims": seal.KindClaim,
	"references": seal.KindReference, "condemned": seal.KindCondemned, "retired": seal.KindRetired, "damage": seal.KindDamage,
	"revoked": seal.KindRevoked, "catalogue": seal.KindCatalogue, "over": seal.KindOver,
	"proofs": seal.KindProof, "forgotten": seal.KindForgotten,
}

// small opens claims, notes, and damage and condemned lists.
func (c *checker) small(ctx context.Context) error {
	claims, bad, err := c.r.Claims(ctx)
	if err != nil {
		return err
	}
	c.rep.Claims = len(claims)
	_, more, err := c.r.Notes(ctx)
	if err != nil {
		return err
	}
	bad = append(bad, more...)
	damage, more, err := c.r.ReadDamage(ctx)
	if err != nil {
		return err
	}
	for _, p := range append(bad, more...) {
		c.add(BadData, p.Object, "", p.Err)
	}
	c.rep.DamageLists = len(damage)
	for _, d := range damage {
		ids, err := d.PackIDs()
		if err != nil {
			c.add(BadData, "damage/", "", err)
		}
		for _, id := range ids {
			c.suspects[id] = true
		}
	}
	lists, err := c.r.Condemnations(ctx)
	if err != nil {
		if ctx.Err() != nil || object.Retriable(err) {
			return err
		}
		c.add(BadCondemned, "condemned/", "", err)
	}
	for _, l := range lists {
		if ids, err := l.PackIDs(); err == nil && l.Deleted {
			for _, id := range ids {
				c.deleted[id] = true
			}
		}
	}
	return nil
}
