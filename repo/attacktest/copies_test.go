package attacktest

import (
	"bytes"
	"crypto/rand"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"xenkeep/chunkstore"
	"xenkeep/chunkstore/chunk"
	"xenkeep/chunkstore/index"
	"xenkeep/chunkstore/object"
	memstore "xenkeep/chunkstore/object/mem"
	"xenkeep/chunkstore/pack"
	"xenkeep/chunkstore/seal"
	"xenkeep/internal/disk/disktest"
	"xenkeep/repo"
	"xenkeep/repo/backup"
	"xenkeep/repo/check"
	"xenkeep/repo/repotest"
	"xenkeep/repo/restore"
)

// target is a blob of which the attacker knows the ID.
type target struct {
	kind   chunk.Kind
	id     chunk.ID
	length uint32
}

// targets returns all blobs in the packs of a storage, whose tables of contents every
// key of the repository opens.
func (w *world) targets(r *repo.Repository) (all []target) {
	w.t.Helper()
	for _, name := range repotest.Names(w.t, r.Objects(), "packs/") {
		id, _ := pack.ParseObjectName(name)
		info, err := r.Objects().Stat(w.t.Context(), name)
		if err != nil {
			w.t.Fatal(err)
		}
		d, err := r.Store().ReadDirectory(w.t.Context(), id, info.Size)
		if err != nil {
			continue // not a pack
		}
		for i := range d.Blobs {
			for _, p := range d.Blobs[i].Pieces {
				all = append(all, target{d.Blobs[i].Kind, p.ID, p.Length})
			}
		}
	}
	return all
}

// foreseen returns the blobs that a backup of m will store.
func (w *world) foreseen(m *disktest.Mem) []target {
	w.t.Helper()
	copied := memstore.New()
	for _, name := range repotest.Names(w.t, w.objects, "") {
		data, err := w.objects.Get(w.t.Context(), name, 0, -1)
		if err == nil {
			err = copied.Put(w.t.Context(), name, data)
		}
		if err != nil {
			w.t.Fatal(err)
		}
	}
	before := make(map[chunk.ID]bool)
	r := repotest.OpenWith(w.t, copied, repo.Options{Secret: repotest.Key(6)})
	for _, t := range w.targets(r) {
		before[t.id] = true
	}
	w.save(r, "foreseen", m)
	var fresh []target
	for _, t := range w.targets(r) {
		if !before[t.id] {
			fresh = append(fresh, t)
		}
	}
	return fresh
}

// smallest returns the smallest ID of the packs of others. It is looked up once: the
// attacker tries thousands of packs until one has a smaller ID.
func (a *attacker) smallest() pack.ID {
	least := pack.ID(bytes.Repeat([]byte{0xff}, len(pack.ID{})))
	for _, name := range a.list("packs/") {
		if other, ok := pack.ParseObjectName(name); ok && !a.changed[name] && bytes.Compare(other[:], least[:]) < 0 {
			least = other
		}
	}
	return least
}

// junkPack puts random bytes as a pack, with the smallest ID of all, and an index
// object that all blobs are in it.
func (a *attacker) junkPack(all []target) {
	a.t.Helper()
	data := make([]byte, 16*len(all)+16)
	least := a.smallest()
	for {
		_, _ = rand.Read(data)
		if id, _ := pack.ParseObjectName("packs/" + sum(data)[:2] + "/" + sum(data)); bytes.Compare(id[:], least[:]) < 0 {
			break
		}
	}
	id, _ := pack.ParseObjectName("packs/" + sum(data)[:2] + "/" + sum(data))
	p := index.PackEntries{Pack: id, Size: int64(len(data))}
	for i, t := range all {
		p.Entries = append(p.Entries, index.Entry{Prefix: index.PrefixOf(t.id), Offset: uint32(16 * i), Length: 16})
	}
	a.put(id.ObjectName(), data)
	a.index(p)
}

// wrongPacks puts packs that are sound in form, with the smallest IDs of all, whose
// blobs have wrong content under the IDs, and an index object of them.
func (a *attacker) wrongPacks(all []target) (ids []pack.ID) {
	a.t.Helper()
	least := a.smallest()
	for _, kind := range []pack.Kind{pack.Data, pack.Tree} {
		for {
			b, err := pack.NewBuilder(a.keys, kind, make([]byte, 0, 1<<20))
			if err != nil {
				a.t.Fatal(err)
			}
			for _, t := range all {
				if pack.KindOf(t.kind) != kind {
					continue
				}
				body := bytes.Repeat([]byte{0xbb}, 20)
				slot, ok := b.Reserve(t.kind, seal.Plain, []pack.Entry{{ID: t.id, Length: uint32(len(body))}}, len(body), 32<<20)
				if !ok {
					a.t.Fatal("no room")
				}
				if err := b.Fill(slot, body); err != nil {
					a.t.Fatal(err)
				}
			}
			id, data, blobs, err := b.Finish()
			if err != nil {
				a.t.Fatal(err)
			}
			if len(blobs) == 0 {
				break
			}
			if bytes.Compare(id[:], least[:]) >= 0 {
				continue
			}
			a.put(id.ObjectName(), data)
			p := index.PackEntries{Pack: id, Size: int64(len(data))}
			for i := range blobs {
				for _, piece := range blobs[i].Pieces {
					p.Entries = append(p.Entries, index.Entry{Prefix: index.PrefixOf(piece.ID), Offset: blobs[i].Offset, Length: blobs[i].Stored})
				}
			}
			a.index(p)
			ids = append(ids, id)
			break
		}
	}
	return ids
}

// index puts an index object that the stolen key signs.
func (a *attacker) index(packs ...index.PackEntries) {
	a.t.Helper()
	data, name, err := chunkstore.SealIndexObject(a.keys, &chunkstore.IndexObject{Packs: packs})
	if err != nil {
		a.t.Fatal(err)
	}
	a.put(name, data)
}

// restores reports whether the disk of a snapshot can be restored as it was.
func (w *world) restores(s *repo.Snapshot, m *disktest.Mem) bool {
	w.t.Helper()
	im, err := restore.Open(w.t.Context(), w.admin(), chunk.ID(s.Disks[0].Root))
	if err != nil {
		return false
	}
	to := disktest.NewMem(im.Size())
	if _, err := im.Run(w.t.Context(), to, restore.Options{}); err != nil {
		return false
	}
	a, b := make([]byte, m.Size()), make([]byte, m.Size())
	_, _ = m.ReadAt(a, 0)
	_, _ = to.ReadAt(b, 0)
	return bytes.Equal(a, b)
}

// prunes runs passes with the full key, three days apart.
func (w *world) prunes(n int, o repo.Options, maxRepack int64) error {
	w.t.Helper()
	for range n {
		w.clock.Add(3 * 24 * time.Hour)
		if _, err := w.pruneWith(repotest.OpenWith(w.t, w.objects, o), maxRepack); err != nil {
			return err
		}
	}
	return nil
}

// packBytes returns the size of all packs in storage.
func (w *world) packBytes() (n int64) {
	w.t.Helper()
	if err := w.objects.List(w.t.Context(), "packs/", func(i object.Info) error {
		n += i.Size
		return nil
	}); err != nil {
		w.t.Fatal(err)
	}
	return n
}

// Row S1 of the fault list: a write-only key that may only PUT claims that all blobs
// are in its packs, which contain junk. Prunes with a full key must not give up the
// good copies, whatever wrote them: a full key, or the honest machine whose key the
// thief has.
func TestJunkCopiesDoNotWinInPrune(t *testing.T) {
	attacks := map[string]struct {
		play    func(a *attacker, all []target)
		without []repo.Defence
	}{
		"bytes that are no pack": {(*attacker).junkPack, []repo.Defence{repo.VerifiedIndex, repo.TrustedCopies}},
		"wrong content":          {func(a *attacker, all []target) { a.wrongPacks(all) }, []repo.Defence{repo.TrustedCopies}},
	}
	for name, c := range attacks {
		attack := func(t *testing.T, o repo.Options, maxRepack int64) (fullGood, weakGood bool, w *world) {
			w = newWorld(t)
			one, two := content(1, 2, 3), content(4, 5, 6)
			byFull, byWeak := w.save(w.full, "a", one), w.save(w.weak(), "b", two)
			all := w.targets(w.weak())
			if len(o.Without) > 0 {
				all = w.dataOf(all) // a pruner reads the trees, and stops where that fails
			}
			c.play(w.thief(mayPut), all)
			if err := w.prunes(3, o, maxRepack); err != nil {
				t.Fatal(err)
			}
			return w.restores(byFull, one), w.restores(byWeak, two), w
		}
		t.Run(name, func(t *testing.T) {
			for _, maxRepack := range []int64{0, 1 << 30} {
				full, weak, w := attack(t, repo.Options{}, maxRepack)
				if !full || !weak {
					t.Errorf("repack %d: the full key's data is lost: %v, the machine's: %v", maxRepack, !full, !weak)
				}
				if f := w.findings(); len(f) > 0 && maxRepack == 0 {
					t.Logf("check: %v", f)
				}
			}
		})
		t.Run(name+", control", func(t *testing.T) {
			if full, weak, _ := attack(t, repo.Options{Without: c.without}, 0); full && weak {
				t.Error("the attack does not succeed without the defence")
			}
		})
	}
}

// Row S1, in an installation whose only backups are of the write-only machine: a full
// key that prunes with leave to read opens the copies, keeps the sound one and
// deletes the wrong one.
func TestPruneOpensCopies(t *testing.T) {
	w := newWorld(t)
	disk := content(1, 2, 3)
	s := w.save(w.weak(), "a", disk)
	good := repotest.Names(t, w.objects, "packs/")
	wrong := w.thief(mayPut).wrongPacks(w.targets(w.weak()))
	cache := t.TempDir()
	var proved, refuted int
	for range 4 {
		w.clock.Add(3 * 24 * time.Hour)
		res, err := w.pruneWith(repotest.OpenWith(t, w.objects, repo.Options{CacheDir: cache}), 1<<30)
		if err != nil {
			t.Fatal(err)
		}
		proved, refuted = proved+res.Proved.Packs, refuted+res.Refuted.Packs
	}
	if proved != len(good) || refuted != len(wrong) {
		t.Errorf("%d of %d good packs were proved, %d of %d wrong ones refuted", proved, len(good), refuted, len(wrong))
	}
	for _, id := range wrong {
		if contains(w.packIDs(), id.String()) {
			t.Errorf("wrong pack %s is left", id.Short())
		}
	}
	w.mustRestore(s, disk)
	if f := repotest.Findings(t, w.admin()); len(f) > 0 {
		t.Errorf("check: %v", f)
	}
}

// Row S1b: before a backup of foreseeable content, a write-only key stores wrong
// content under its IDs. A backup with the full key on another machine stores the
// content all the same, and so does the honest machine with the stolen key, whose
// cache folder does not contain these packs.
func TestWrongCopiesDoNotDeduplicate(t *testing.T) {
	attack := func(o repo.Options) (fresh int64, good bool) {
		w := newWorld(t)
		w.save(w.full, "a", content(1))
		disk := content(7, 8, 9)
		w.thief(mayPut).wrongPacks(w.foreseen(disk))
		w.thief(mayPut).junkPack(w.foreseen(disk))
		r := repotest.OpenWith(t, w.objects, o)
		s := w.save(r, "b", disk)
		return s.Disks[0].Counts.New, w.restores(s, disk)
	}
	for who, secret := range map[string]byte{"full key": 5, "the same write-only key": 6} {
		o := repo.Options{Secret: repotest.Key(secret), CacheDir: t.TempDir()}
		if fresh, good := attack(o); fresh == 0 || !good {
			t.Errorf("%s: %d bytes are stored, the backup restores: %v", who, fresh, good)
		}
		o.Without = []repo.Defence{repo.TrustedCopies}
		o.CacheDir = ""
		if fresh, good := attack(o); fresh != 0 || good {
			t.Errorf("%s, control: %d bytes are stored, the backup restores: %v", who, fresh, good)
		}
	}
}

// A write-only key states wrong places for blobs of other keys' packs, next to a
// sound pack of its own that a prune deletes. The index object that replaces its own,
// with the full key's signature, must not contain these statements.
func TestPruneSignsNoForeignStatements(t *testing.T) {
	attack := func(o repo.Options) bool {
		w := newWorld(t)
		disk := content(1, 2, 3)
		s := w.save(w.full, "a", disk)
		var claims []index.PackEntries
		for _, name := range repotest.Names(t, w.objects, "packs/") {
			id, _ := pack.ParseObjectName(name)
			info, err := w.objects.Stat(t.Context(), name)
			if err != nil {
				t.Fatal(err)
			}
			p := index.PackEntries{Pack: id, Size: info.Size}
			for i, t := range w.targets(w.weak()) {
				p.Entries = append(p.Entries, index.Entry{Prefix: index.PrefixOf(t.id), Offset: uint32(i), Length: 1})
			}
			claims = append(claims, p)
		}
		dead := w.save(w.weak(), "b", content(4))
		before := w.packIDs()
		gone := w.save(w.weak(), "c", content(5))
		for _, id := range w.packIDs() {
			if name := "packs/" + id[:2] + "/" + id; !contains(before, id) {
				i, _ := pack.ParseObjectName(name)
				info, err := w.objects.Stat(t.Context(), name)
				if err != nil {
					t.Fatal(err)
				}
				claims = append(claims, index.PackEntries{Pack: i, Size: info.Size})
			}
		}
		_ = dead
		w.thief(mayPut).index(claims...)
		repotest.Forget(t, w.objects, gone)
		if err := w.prunes(3, o, 1<<30); err != nil {
			t.Logf("prune: %v", err)
			return false
		}
		for _, name := range repotest.Names(t, w.objects, "index/") {
			data, err := w.objects.Get(t.Context(), name, 0, -1)
			if err != nil {
				t.Fatal(err)
			}
			x, err := chunkstore.OpenIndexObject(w.full.Keys(), data)
			if cert := seal.ObjectCert(data); err != nil || cert.Role() != seal.Full {
				continue
			}
			for _, p := range x.Packs {
				for _, e := range p.Entries {
					if e.Length == 1 {
						return false
					}
				}
			}
		}
		return w.restores(s, disk)
	}
	if !attack(repo.Options{}) {
		t.Error("the full key signs places that a write-only key has claimed")
	}
	if attack(repo.Options{Without: []repo.Defence{repo.VerifiedIndex, repo.TrustedCopies}}) {
		t.Error("control: the attack does not succeed without the defence")
	}
}

func contains(all []string, one string) bool {
	for _, s := range all {
		if s == one {
			return true
		}
	}
	return false
}

// The usual installation: machines with write-only keys, and a full key elsewhere. A
// machine deduplicates against what it has stored itself, according to its cache
// folder. It stores again what another has stored, until a full key has opened that;
// prune then removes the second copies. A machine that lost its cache folder stores
// again what is not proved.
func TestWriteOnlyMachines(t *testing.T) {
	w := newWorld(t)
	if _, err := w.full.AddSlot(t.Context(), repotest.Key(7), "second", seal.WriteOnly, w.clock.Now()); err != nil {
		t.Fatal(err)
	}
	one := repo.Options{Secret: repotest.Key(6), CacheDir: t.TempDir()}
	two := repo.Options{Secret: repotest.Key(7), CacheDir: t.TempDir()}
	disk := content(1, 2, 3, 4)
	fresh := func(o repo.Options, vm string) int64 {
		t.Helper()
		r := repotest.OpenWith(t, w.objects, o)
		defer r.Store().Index().Close()
		return w.save(r, vm, disk).Disks[0].Counts.New
	}
	if n := fresh(one, "a"); n == 0 {
		t.Fatal("nothing is stored")
	}
	if n := fresh(one, "a"); n != 0 {
		t.Errorf("the same machine stores %d bytes again", n)
	}
	if n := fresh(two, "b"); n == 0 {
		t.Error("another machine believes a pack that nobody has opened")
	}
	before, size := len(repotest.Names(t, w.objects, "packs/")), w.packBytes()
	rep, err := check.Run(t.Context(), w.admin(), check.Options{ReadData: true, Now: w.clock.Now})
	if err != nil || len(rep.Findings) > 0 || rep.Proved != before {
		t.Fatalf("%d of %d packs are proved; %v, %v", rep.Proved, before, rep.Findings, err)
	}
	lost := repo.Options{Secret: repotest.Key(7), CacheDir: t.TempDir()}
	if n := fresh(lost, "b"); n != 0 {
		t.Errorf("%d bytes are stored again although they are proved", n)
	}
	if err := w.prunes(3, repo.Options{}, 1<<30); err != nil {
		t.Fatal(err)
	}
	if left := w.packBytes(); left > size*5/8 {
		t.Errorf("%d bytes are left of %d: the second copies stay", left, size)
	}
	if n := fresh(one, "a"); n != 0 {
		t.Errorf("after the prune, %d bytes are stored again", n)
	}
	if f := repotest.Findings(t, w.admin()); len(f) > 0 {
		t.Errorf("check: %v", f)
	}
}

// A base that another writer published may be made of wrong copies: a delta on it is
// refused, or stores again what is not trusted.
func TestForgedBase(t *testing.T) {
	attack := func(o repo.Options) bool {
		w := newWorld(t)
		disk := content(1, 2, 3)
		w.thief(mayPut).wrongPacks(w.dataOf(w.foreseen(disk)))
		// The thief publishes a snapshot of the true content, whose data is wrong.
		thief := repotest.OpenWith(t, w.objects, repo.Options{Secret: repotest.Key(6), Without: []repo.Defence{repo.TrustedCopies}})
		base := w.save(thief, "a", disk)
		root := chunk.ID(base.Disks[0].Root)
		s, err := repotest.Save(t.Context(), repotest.OpenWith(t, w.objects, o), "a", disk.Source(),
			backup.DiskOptions{Size: disk.Size(), Base: root}, backup.Options{Now: w.clock.Now, Roots: []chunk.ID{root}})
		if err != nil {
			t.Fatal(err)
		}
		return w.restores(s, disk)
	}
	if !attack(repo.Options{}) {
		t.Error("a backup on a forged base is lost")
	}
	if attack(repo.Options{Without: []repo.Defence{repo.TrustedCopies}}) {
		t.Error("control: the attack does not succeed without the defence")
	}
}

// dataOf returns the chunks and records among blobs.
func (w *world) dataOf(all []target) (data []target) {
	for _, t := range all {
		if !t.kind.Tree() {
			data = append(data, t)
		}
	}
	return data
}

// A write-only key names packs that do not exist. A check must not report them as
// lost, which would end the prunes of a nightly job, and repair index must not
// publish them as damaged.
func TestClaimedPacksAreNotMissing(t *testing.T) {
	attack := func(o repo.Options) int {
		w := newWorld(t)
		s := w.save(w.weak(), "a", content(1))
		id, _ := pack.ParseObjectName("packs/" + wrongSum()[:2] + "/" + wrongSum())
		w.thief(mayPut).index(index.PackEntries{Pack: id, Size: 1000, Entries: []index.Entry{{Prefix: index.Prefix{1}, Offset: 100, Length: 20}}})
		r := repotest.OpenWith(t, w.objects, o)
		rep, err := check.Run(t.Context(), r, check.Options{ReadData: true, Now: w.clock.Now})
		if err != nil {
			t.Fatal(err)
		}
		w.mustRestore(s, content(1))
		return rep.Damaged()
	}
	if n := attack(repo.Options{}); n != 0 {
		t.Errorf("%d findings", n)
	}
	if n := attack(repo.Options{Without: []repo.Defence{repo.VerifiedIndex}}); n == 0 {
		t.Error("control: nothing is reported without the defence")
	}
}

// A machine that cannot see that the repository has write-only keys, because their
// slots were removed, and their index objects replaced by a prune, learns it from the
// config.
func TestMixedIsRemembered(t *testing.T) {
	w := newWorld(t)
	w.save(w.weak(), "a", content(1))
	if err := w.full.RemoveSlot(t.Context(), w.machine); err != nil {
		t.Fatal(err)
	}
	r := w.admin()
	for _, name := range repotest.Names(t, w.objects, "index/") {
		if err := w.objects.Delete(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
	fresh := w.admin()
	if _, err := fresh.Store().LoadOrphans(t.Context()); err != nil || !fresh.Store().Mixed() || fresh.Store().Unproved() == 0 {
		t.Errorf("after the loss of the index: mixed %v, %d packs are not trusted, %v", fresh.Store().Mixed(), fresh.Store().Unproved(), err)
	}
	if !r.Config().Mixed || !fresh.Config().Mixed {
		t.Error("the config does not record it")
	}
}

// A machine with a write-only key whose cache folder an older version has filled,
// which recorded no writers, does not store everything again. One whose record is cut
// off or changed loses at most the records that are damaged.
func TestUpdateKeepsTrust(t *testing.T) {
	w := newWorld(t)
	o := repo.Options{Secret: repotest.Key(6), CacheDir: t.TempDir()}
	disk := content(1, 2, 3)
	fresh := func() int64 {
		t.Helper()
		r := repotest.OpenWith(t, w.objects, o)
		defer r.Store().Index().Close()
		return w.save(r, "a", disk).Disks[0].Counts.New
	}
	if fresh() == 0 {
		t.Fatal("nothing is stored")
	}
	authors := filepath.Join(o.CacheDir, w.full.ID(), "authors")
	if err := errors.Join(os.Remove(authors), os.Remove(filepath.Join(o.CacheDir, w.full.ID(), "mixed"))); err != nil {
		t.Fatal(err)
	}
	if n := fresh(); n != 0 {
		t.Errorf("after an update, %d bytes are stored again", n)
	}
	record, err := os.ReadFile(authors)
	if err != nil || len(record) == 0 {
		t.Fatal(len(record), err)
	}
	if err := os.WriteFile(authors, append(record, record[:20]...), 0o600); err != nil {
		t.Fatal(err)
	}
	if n := fresh(); n != 0 {
		t.Errorf("after a torn record, %d bytes are stored again", n)
	}
	for i := range record {
		record[i] ^= 0x10
	}
	if err := os.WriteFile(authors, record, 0o600); err != nil {
		t.Fatal(err)
	}
	if n := fresh(); n == 0 {
		t.Error("a record that was changed is believed")
	}
	w.mustRestore(w.save(w.admin(), "a", disk), disk)
}
