package repair_test

import (
	"context"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"xenkeep/chunkstore/chunk"
	"xenkeep/chunkstore/object"
	"xenkeep/chunkstore/object/mem"
	"xenkeep/chunkstore/object/objecttest"
	"xenkeep/chunkstore/pack"
	"xenkeep/internal/disk"
	"xenkeep/internal/disk/disktest"
	"xenkeep/repo"
	"xenkeep/repo/backup"
	"xenkeep/repo/check"
	"xenkeep/repo/prune"
	"xenkeep/repo/repair"
	"xenkeep/repo/repotest"
	"xenkeep/repo/restore"
)

// house is a repository of one VM and the disk that is backed up into it.
type house struct {
	t     *testing.T
	store object.Store
	cache string
	now   time.Time
	m     *disktest.Mem
	last  *repo.Snapshot
}

const diskSize = 9<<20 + 4096

func newHouse(t *testing.T) *house {
	h := &house{t: t, store: mem.New(), cache: t.TempDir(), now: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), m: disktest.NewMem(diskSize)}
	repotest.Init(t, h.store)
	for i := range int64(4) { // one block each, and a hole
		p := make([]byte, 300<<10)
		_, _ = rand.NewChaCha8([32]byte{byte(i)}).Read(p)
		h.write(p, i*disk.BlockSize+8192)
	}
	h.backup(false)
	return h
}

func (h *house) write(p []byte, at int64) {
	h.t.Helper()
	if err := h.m.WriteAt(h.t.Context(), p, at); err != nil {
		h.t.Fatal(err)
	}
}

func (h *house) open(objects object.Store) *repo.Repository {
	h.t.Helper()
	r := repotest.OpenWith(h.t, objects, repo.Options{CacheDir: h.cache})
	h.t.Cleanup(func() { _ = r.Store().Index().Close() })
	return r
}

// backup reads the disk in full or, if incremental, only the ranges that the pool
// reports as changed.
func (h *house) backup(incremental bool, changed ...disk.Extent) *repo.Snapshot {
	h.t.Helper()
	s, err := h.tryBackup(incremental, changed...)
	if err != nil {
		h.t.Fatal(err)
	}
	return s
}

func (h *house) tryBackup(incremental bool, changed ...disk.Extent) (*repo.Snapshot, error) {
	h.t.Helper()
	h.now = h.now.Add(time.Hour)
	s := &repo.Snapshot{Origin: "pool", VM: repo.Named{UUID: "uuid", Name: "web"}, DataTime: h.now, Complete: true}
	o := backup.Options{Now: func() time.Time { return h.now }}
	var base chunk.ID
	if incremental {
		base = chunk.ID(h.last.Disks[0].Root)
		o.Roots = []chunk.ID{base}
	}
	err := backup.WithRun(h.t.Context(), h.open(h.store), o, func(ctx context.Context, run *backup.Run) (err error) {
		var d backup.DiskResult
		if incremental {
			d, err = run.BackupChanged(ctx, h.m.Reader(), backup.ChangedOptions{Size: diskSize, Base: base, Changed: changed})
		} else {
			d, err = run.BackupDisk(ctx, h.m.Source(), backup.DiskOptions{Size: diskSize})
		}
		if err != nil {
			return err
		}
		s.Disks = []repo.Disk{{Device: "xvda", VDI: "vdi", Size: diskSize, Root: repo.HexID(d.Root), Counts: d.Counts}}
		run.Add(s)
		return run.Flush(ctx)
	})
	if err == nil {
		h.last = s
	}
	return s, err
}

// clone returns another house with the same content and an empty cache.
func (h *house) clone() *house {
	h.t.Helper()
	c := *h
	c.store, c.cache = mem.New(), ""
	for _, name := range h.names("") {
		c.put(name, h.get(name))
	}
	return &c
}

func (h *house) names(prefix string) (all []string) {
	h.t.Helper()
	if err := h.store.List(h.t.Context(), prefix, func(i object.Info) error {
		all = append(all, i.Name)
		return nil
	}); err != nil {
		h.t.Fatal(err)
	}
	slices.Sort(all)
	return all
}

func (h *house) get(name string) []byte {
	h.t.Helper()
	p, err := h.store.Get(h.t.Context(), name, 0, -1)
	if err != nil {
		h.t.Fatal(err)
	}
	return p
}

// put replaces an object; with no bytes it deletes the object.
func (h *house) put(name string, p []byte) {
	h.t.Helper()
	err := h.store.Delete(h.t.Context(), name)
	if err == nil && p != nil {
		err = h.store.Put(h.t.Context(), name, p)
	}
	if err != nil {
		h.t.Fatal(err)
	}
}

// pack returns the name of the largest pack of a kind.
func (h *house) pack(kind pack.Kind) (name string) {
	h.t.Helper()
	size := 0
	for _, n := range h.names("packs/") {
		if p := h.get(n); pack.Kind(p[6]) == kind && len(p) > size {
			name, size = n, len(p)
		}
	}
	return name
}

func (h *house) check(o check.Options) *check.Report {
	h.t.Helper()
	rep, err := check.Run(h.t.Context(), h.open(h.store), o)
	if err != nil {
		h.t.Fatal(err)
	}
	return rep
}

// sound reports whether a snapshot can be restored, with the original content.
func (h *house) sound(s *repo.Snapshot) bool {
	h.t.Helper()
	rep := h.check(check.Options{ReadData: true, Snapshots: []*repo.Snapshot{s}})
	got := disktest.NewMem(diskSize)
	im, err := restore.Open(h.t.Context(), h.open(h.store), chunk.ID(s.Disks[0].Root))
	if err == nil {
		_, err = im.Run(h.t.Context(), got, restore.Options{})
	}
	if (err == nil) != (len(rep.Findings) == 0) {
		h.t.Fatalf("check finds %v, restore %v", rep.Findings, err)
	}
	if err != nil {
		return false
	}
	disktest.MustEqual(h.t, got, h.m)
	return true
}

func (h *house) snapshots(o repair.SnapshotsOptions) *repair.SnapshotsResult {
	h.t.Helper()
	res, err := repair.Snapshots(h.t.Context(), h.open(h.store), o)
	if err != nil {
		h.t.Fatal(err)
	}
	return res
}

func (h *house) prune(o prune.Options) (*prune.Result, error) {
	h.t.Helper()
	o.Now, o.MaxRepack = func() time.Time { return h.now }, 1<<30
	p, err := prune.New(h.t.Context(), h.open(h.store), o)
	if err != nil {
		return nil, err
	}
	return p.Execute(h.t.Context())
}

// hurts are ways in which a pack is damaged; some leave most of it readable.
var hurts = map[string]func(p []byte) []byte{
	"a bit": func(p []byte) []byte {
		p[len(p)/2] ^= 1
		return p
	},
	"the header":            func(p []byte) []byte { p[30] ^= 1; return p },
	"the table of contents": func(p []byte) []byte { p[len(p)-100] ^= 1; return p },
	"truncated":             func(p []byte) []byte { return p[:len(p)/2] },
	"missing":               func([]byte) []byte { return nil },
}

// The data lost with a damaged pack is reported, published, and stored again by the
// next incremental backup, although nothing has changed there: that backup reads
// little more than the lost data.
func TestDamageHeals(t *testing.T) {
	for _, kind := range []pack.Kind{pack.Data, pack.Tree} {
		for how, hurt := range hurts {
			t.Run(kind.String()+" "+how, func(t *testing.T) {
				h := newHouse(t)
				old := h.last
				name := h.pack(kind)
				h.put(name, hurt(slices.Clone(h.get(name))))
				if rep := h.check(check.Options{ReadData: true}); len(rep.Findings) == 0 {
					t.Fatal("check finds nothing")
				}
				before := h.names("")
				res := h.snapshots(repair.SnapshotsOptions{}) // the check remembers which pack it was
				if res.Damaged != 1 || len(res.Lost) == 0 || res.List == "" || res.Packs+res.Chunks == 0 {
					t.Fatalf("%+v", res)
				}
				for _, l := range res.Lost {
					if l.VMName != "web" || l.Device != "xvda" || l.From < 0 || l.To <= l.From || l.To > diskSize {
						t.Errorf("%+v", l)
					}
				}
				for _, name := range before {
					if !slices.Contains(h.names(""), name) {
						t.Errorf("%s is deleted", name)
					}
				}
				if again := h.snapshots(repair.SnapshotsOptions{}); again.List != res.List || again.Removed != 0 {
					t.Errorf("the same damage is published again: %+v", again)
				}
				rootLost := kind == pack.Tree && how != "a bit"
				s, err := h.tryBackup(true, disk.Extent{Offset: 0, Length: 65536})
				switch {
				case rootLost && err == nil:
					t.Fatal("a delta is built on a root that is lost")
				case rootLost:
					s = h.backup(false) // as a job does in this case
				case err != nil:
					t.Fatal(err)
				case how == "a bit" && s.Disks[0].Counts.Read > 3*disk.BlockSize:
					t.Errorf("%d bytes are read", s.Disks[0].Counts.Read)
				}
				if !h.sound(s) {
					t.Error("the newest snapshot is not sound")
				}
				// The same holds for the backup after it.
				if s = h.backup(true, disk.Extent{Offset: 0, Length: 65536}); !h.sound(s) {
					t.Error("the snapshot after is not sound")
				}
				if s.Disks[0].Counts.Read > 3*disk.BlockSize {
					t.Errorf("%d bytes are read again", s.Disks[0].Counts.Read)
				}
				// Prune keeps the sound copies, and in the end the damage list is
				// deleted with the damaged objects. The full read produced the old
				// root: the old snapshot is healed too.
				if !h.sound(old) {
					t.Error("the old snapshot has the same content and is not healed")
				}
				for range 3 {
					h.now = h.now.Add(48 * time.Hour)
					if _, err := h.prune(prune.Options{}); err != nil {
						t.Fatal(err)
					}
				}
				if !h.sound(h.last) {
					t.Error("a prune lost the sound copy")
				}
			})
		}
	}
}

// Sound blobs of a damaged pack are copied; the pack is deleted when nothing in it
// is needed.
func TestPacks(t *testing.T) {
	h := newHouse(t)
	name := h.pack(pack.Data)
	p := h.get(name)
	p[len(p)/2] ^= 1
	h.put(name, p)
	h.check(check.Options{ReadData: true})
	res, err := repair.Packs(t.Context(), h.open(h.store), repair.PacksOptions{})
	if err != nil || res.Packs != 1 || res.Lost != 1 || res.Saved < 2 || res.Written != 1 {
		t.Fatalf("%+v %v", res, err)
	}
	if again, err := repair.Packs(t.Context(), h.open(h.store), repair.PacksOptions{}); err != nil || again.Packs != 0 {
		t.Errorf("again: %+v %v", again, err)
	}
	if !slices.Contains(h.names("packs/"), name) {
		t.Fatal("the damaged pack is deleted")
	}
	if lost := h.snapshots(repair.SnapshotsOptions{}); len(lost.Lost) == 0 || lost.Packs != 1 {
		t.Errorf("%+v", lost)
	}
	// While something needs the lost blob, the pack stays.
	prunes := func() {
		t.Helper()
		for range 3 {
			h.now = h.now.Add(48 * time.Hour)
			if _, err := h.prune(prune.Options{}); err != nil {
				t.Fatal(err)
			}
		}
	}
	prunes()
	if !slices.Contains(h.names("packs/"), name) {
		t.Fatal("the damaged pack is deleted though a snapshot needs it")
	}
	if s := h.backup(true); !h.sound(s) {
		t.Error("the newest snapshot is not sound")
	}
	prunes()
	if slices.Contains(h.names("packs/"), name) {
		t.Error("the damaged pack stays though all it held is elsewhere")
	}
	if !h.sound(h.last) {
		t.Error("what was saved is not sound")
	}
	if rep := h.check(check.Options{ReadData: true}); len(rep.Findings) > 0 {
		t.Errorf("check: %v", rep.Findings)
	}
	h.snapshots(repair.SnapshotsOptions{})
	if left := h.names("damage/"); len(left) > 0 {
		t.Errorf("the damage is healed and %v is still there", left)
	}
}

// Whatever happened to index objects, they are rebuilt from the packs.
func TestIndex(t *testing.T) {
	index := func(h *house, all bool) *repair.IndexResult {
		t.Helper()
		res, err := repair.Index(t.Context(), h.open(h.store), repair.IndexOptions{All: all})
		if err != nil {
			t.Fatal(err)
		}
		return res
	}
	for how, hurt := range hurts {
		h := newHouse(t)
		h.write([]byte("more"), 1<<20)
		h.backup(true, disk.Extent{Offset: 1 << 20, Length: 65536})
		for _, name := range h.names("index/") {
			h.put(name, hurt(slices.Clone(h.get(name))))
		}
		h.cache = t.TempDir()
		if rep := h.check(check.Options{}); len(rep.Findings) == 0 {
			t.Errorf("%s: check finds nothing", how)
		}
		res := index(h, false)
		if res.Packs != 4 || res.Left != 0 || res.Written == 0 {
			t.Errorf("%s: %+v", how, res)
		}
		h.cache = t.TempDir()
		if rep := h.check(check.Options{ReadData: true}); len(rep.Findings) > 0 || rep.Orphans > 0 {
			t.Errorf("%s: %v", how, rep.Findings)
		}
		if res := index(h, false); res.Written+res.Removed != 0 {
			t.Errorf("%s: a sound index is written again: %+v", how, res)
		}
		if res := index(h, true); res.Packs != 4 {
			t.Errorf("%s: all: %+v", how, res)
		}
		if rep := h.check(check.Options{ReadData: true}); len(rep.Findings) > 0 || rep.Orphans > 0 {
			t.Errorf("%s: after all: %v", how, rep.Findings)
		}
	}
	// The chunks of a missing pack no longer count as known.
	h := newHouse(t)
	h.put(h.pack(pack.Data), nil)
	if res := index(h, false); res.Missing != 1 {
		t.Errorf("a missing pack: %+v", res)
	}
	if s := h.backup(true); !h.sound(s) {
		t.Error("what lay in the missing pack is not stored again")
	}
	// A running backup covers the packs that it has put.
	h = newHouse(t)
	r := h.open(h.store)
	claim := &repo.Claim{Run: strings.Repeat("ab", 16), Started: h.now}
	if err := r.PutClaim(t.Context(), claim); err != nil {
		t.Fatal(err)
	}
	for _, name := range h.names("index/") {
		h.put(name, nil)
	}
	for _, name := range h.names("packs/") {
		h.put(name, h.get(name)) // since the claim
	}
	if res := index(h, false); res.Left != 2 || res.Written != 0 {
		t.Errorf("beside a backup: %+v", res)
	}
}

// Whatever storage call of a repair fails, nothing gets worse, and the next attempt
// succeeds.
func TestEveryCallFails(t *testing.T) {
	repairs := func(h *house, objects object.Store) error {
		r, err := repo.Open(t.Context(), objects, repo.Options{Secret: repotest.Secret(), CacheDir: h.cache})
		if err == nil {
			defer func() { _ = r.Store().Index().Close() }()
			_, err = repair.Index(t.Context(), r, repair.IndexOptions{})
		}
		if err == nil {
			_, err = repair.Snapshots(t.Context(), r, repair.SnapshotsOptions{ReadData: true})
		}
		if err == nil {
			_, err = repair.Packs(t.Context(), r, repair.PacksOptions{})
		}
		return err
	}
	for how, fault := range map[string]objecttest.Fault{"before": {}, "after": {After: true}, "for good": {Stay: true}} {
		struck := 0
		start := newHouse(t)
		name := start.pack(pack.Data)
		p := start.get(name)
		p[len(p)/2] ^= 1
		start.put(name, p)
		start.put(start.names("index/")[0], nil)
		before := append(start.names("packs/"), start.names("snapshots/")...)
		for n := 0; ; n++ {
			h := start.clone()
			faulty := objecttest.NewFaulty(h.store)
			fault.N = n
			injected := faulty.Inject(fault)
			err := repairs(h, faulty)
			if !injected.Fired() {
				if err != nil {
					t.Fatal(err)
				}
				break
			}
			struck++
			if err := repairs(h, h.store); err != nil {
				t.Fatalf("%s, call %d: second try: %v", how, n, err)
			}
			for _, name := range before {
				if !slices.Contains(h.names(""), name) {
					t.Fatalf("%s, call %d: %s is gone", how, n, name)
				}
			}
			if s := h.backup(true); !h.sound(s) {
				t.Fatalf("%s, call %d: the next backup is not sound", how, n)
			}
		}
		if struck < 20 {
			t.Errorf("%s: only %d calls failed", how, struck)
		}
	}
}
