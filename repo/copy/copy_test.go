package copy_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"xenkeep/chunkstore/chunk"
	"xenkeep/chunkstore/object"
	"xenkeep/chunkstore/object/mem"
	"xenkeep/chunkstore/object/objecttest"
	"xenkeep/chunkstore/seal"
	"xenkeep/chunkstore/slot"
	"xenkeep/internal/disk"
	"xenkeep/internal/disk/disktest"
	"xenkeep/repo"
	"xenkeep/repo/backup"
	"xenkeep/repo/check"
	"xenkeep/repo/copy"
	"xenkeep/repo/restore"
)

var (
	ours   = slot.Secret{KeyFile: bytes.Repeat([]byte{5}, 32)}
	theirs = slot.Secret{KeyFile: bytes.Repeat([]byte{6}, 32)}
)

func initRepo(t *testing.T, objects object.Store, secret slot.Secret, cut chunk.Params) {
	t.Helper()
	if _, err := repo.Init(t.Context(), objects, repo.Options{Secret: secret, Chunker: cut}); err != nil {
		t.Fatal(err)
	}
}

func open(ctx context.Context, objects object.Store, secret slot.Secret) (*repo.Repository, error) {
	r, err := repo.Open(ctx, objects, repo.Options{Secret: secret})
	if err == nil {
		err = r.LoadIndex(ctx)
	}
	return r, err
}

func mustOpen(t *testing.T, objects object.Store, secret slot.Secret) *repo.Repository {
	t.Helper()
	r, err := open(t.Context(), objects, secret)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func mustClean(t *testing.T, r *repo.Repository) {
	t.Helper()
	rep, err := check.Run(t.Context(), r, check.Options{ReadData: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range rep.Findings {
		t.Errorf("check: %v", f)
	}
}

// scribble writes n stretches of random bytes.
func scribble(t *testing.T, m *disktest.Mem, seed uint64, n int) {
	t.Helper()
	random := rand.New(rand.NewPCG(seed, 1))
	for range n {
		p := objecttest.Bytes(random.Uint64(), 1+random.IntN(200_000))
		off := random.Int64N(m.Size())
		p = p[:min(int64(len(p)), m.Size()-off)]
		if err := m.WriteAt(t.Context(), p, off); err != nil {
			t.Fatal(err)
		}
	}
}

// later is a disk of size bytes that begins as m, with changes.
func later(t *testing.T, m *disktest.Mem, size int64, seed uint64, n int) *disktest.Mem {
	t.Helper()
	d := disktest.NewMem(size)
	buf := make([]byte, disk.BlockSize)
	src := m.Source()
	for {
		e, err := src.Next(t.Context(), buf)
		if err == io.EOF {
			break
		}
		if err == nil {
			err = d.WriteAt(t.Context(), buf[:e.Length], e.Offset)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	scribble(t, d, seed, n)
	return d
}

type vm struct {
	name  string
	data  time.Time
	disks []*disktest.Mem
	tags  []string
}

func backUp(ctx context.Context, r *repo.Repository, v vm) (*repo.Snapshot, error) {
	s := &repo.Snapshot{
		Origin: "pool", Pool: repo.Named{UUID: "pool-uuid", Name: "pool"}, VM: repo.Named{UUID: v.name + "-uuid", Name: v.name},
		Kind: "regular", Tags: v.tags, Data: v.data, Complete: v.tags == nil, Generation: "77:5",
	}
	err := backup.Do(ctx, r, backup.Options{Job: "nightly", Machine: "here"}, func(ctx context.Context, run *backup.Run) error {
		for i, m := range v.disks {
			d, err := run.Disk(ctx, m.Source(), backup.DiskOptions{Size: m.Size()})
			if err != nil {
				return err
			}
			s.Disks = append(s.Disks, repo.Disk{
				Device: fmt.Sprintf("xvd%c", 'a'+i), VDI: fmt.Sprintf("%s-vdi-%d", v.name, i), Size: m.Size(), Root: repo.HexID(d.Root),
				Method: "full", Reason: "first", Counts: d.Counts,
			})
		}
		rec, err := run.Record(ctx, "vm", []byte(`{"name":"`+v.name+`"}`))
		if err != nil {
			return err
		}
		s.Records = []repo.Record{rec}
		run.Add(s)
		return run.Flush(ctx)
	})
	return s, err
}

func same(t *testing.T, r *repo.Repository, d repo.Disk, want *disktest.Mem) {
	t.Helper()
	im, err := restore.Open(t.Context(), r, chunk.ID(d.Root))
	if err != nil {
		t.Fatal(err)
	}
	got := disktest.NewMem(d.Size)
	if _, err := im.Run(t.Context(), got, restore.Options{}); err != nil {
		t.Fatal(err)
	}
	a, b := make([]byte, disk.BlockSize), make([]byte, disk.BlockSize)
	for i := range disk.Blocks(want.Size()) {
		n := repo.BlockLength(want.Size(), i)
		_, _ = got.ReadAt(a[:n], i*disk.BlockSize)
		_, _ = want.ReadAt(b[:n], i*disk.BlockSize)
		if !bytes.Equal(a[:n], b[:n]) {
			t.Fatalf("disk %s: block %d differs", d.Device, i)
		}
	}
}

func run(t *testing.T, from, to *repo.Repository, o copy.Options) (*copy.Plan, *copy.Result) {
	t.Helper()
	p, err := copy.New(t.Context(), from, to, o)
	if err != nil {
		t.Fatal(err)
	}
	res, err := p.Execute(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range res.Copied {
		if c.Err != nil {
			t.Errorf("%s: %v", c.From.VM.Name, c.Err)
		}
	}
	return p, res
}

func TestCopy(t *testing.T) {
	a, b := mem.New(), mem.New()
	initRepo(t, a, ours, chunk.Params{})
	other := chunk.Params{Algorithm: chunk.FastCDC, Min: 32 << 10, Normal: 64 << 10, Max: 128 << 10}
	initRepo(t, b, theirs, other)
	from, to := mustOpen(t, a, ours), mustOpen(t, b, theirs)

	start := time.Date(2026, 3, 1, 2, 0, 0, 0, time.UTC)
	d1 := disktest.NewMem(21<<20 + 512)
	scribble(t, d1, 1, 60)
	d2 := disktest.NewMem(3 << 20)
	scribble(t, d2, 2, 5)
	grown := later(t, d1, 25<<20, 3, 2)
	if err := grown.WriteAt(t.Context(), make([]byte, 4<<20), 6<<20); err != nil { // zeros come
		t.Fatal(err)
	}
	vms := []vm{
		{"web", start, []*disktest.Mem{d1, d2}, nil},
		{"db", start.Add(time.Minute), []*disktest.Mem{later(t, d1, d1.Size(), 9, 1)}, []string{"weekly", "off-site"}},
		{"web", start.Add(24 * time.Hour), []*disktest.Mem{grown, d2}, nil},
	}
	var made []*repo.Snapshot
	for _, v := range vms {
		s, err := backUp(t.Context(), from, v)
		if err != nil {
			t.Fatal(err)
		}
		made = append(made, s)
	}
	if err := from.PutNote(t.Context(), &repo.Note{Snapshot: made[1].ID(), Kind: "protect", Time: start}); err != nil {
		t.Fatal(err)
	}
	from = mustOpen(t, a, ours)

	// One first, as a user names it, then the rest.
	_, res := run(t, from, to, copy.Options{Pick: func(s *repo.Snapshot) bool { return s.ID() == made[0].ID() }})
	if len(res.Copied) != 1 || res.Uploaded == 0 {
		t.Fatalf("%+v", res)
	}
	p, res := run(t, from, to, copy.Options{Level: seal.LevelBest})
	if len(p.Known) != 1 || len(res.Copied) != 2 || !p.Recut {
		t.Fatalf("known %d, copied %d, cut again %v", len(p.Known), len(res.Copied), p.Recut)
	}
	// Of web's second day only what differs was read: six blocks, and those
	// that grew or became zero.
	if day2 := res.Copied[1]; day2.From.VM.Name != "web" || day2.Read > 16<<20 {
		t.Errorf("day two of %s: %d bytes read", day2.From.VM.Name, day2.Read)
	}
	// The disk that did not change was not read at all, and is one.
	if first, err := to.ReadRoot(t.Context(), chunk.ID(res.Copied[1].As.Disks[1].Root)); err != nil || first.Size != d2.Size() {
		t.Errorf("second disk: %v", err)
	}
	to = mustOpen(t, b, theirs)
	mustClean(t, to)
	all, _, err := to.Snapshots(t.Context())
	if err != nil || len(all) != 3 {
		t.Fatalf("%d snapshots, %v", len(all), err)
	}
	for i, s := range all {
		v, o := vms[i], made[i]
		if s.VM != o.VM || s.Pool != o.Pool || !s.Data.Equal(v.data) || s.Job != "nightly" || s.Machine != "here" ||
			fmt.Sprint(s.Tags) != fmt.Sprint(v.tags) || s.Complete != o.Complete || s.Generation != o.Generation ||
			s.Original == nil || s.Original.Snapshot != o.ID() || s.Original.Repository != from.ID() {
			t.Errorf("snapshot of %s: %+v", v.name, s)
		}
		for k, d := range s.Disks {
			same(t, to, d, v.disks[k])
			if d.Root == o.Disks[k].Root {
				t.Error("two repositories name a disk alike")
			}
		}
		rec, err := to.ReadRecord(t.Context(), s, "vm")
		if err != nil || !strings.Contains(string(rec), v.name) {
			t.Errorf("record %q, %v", rec, err)
		}
	}
	notes, _, err := to.Notes(t.Context())
	if err != nil || len(notes) != 1 || !repo.Protected(notes)[all[1].ID()] {
		t.Errorf("notes %+v, %v", notes, err)
	}

	// A backup into the other repository stores nothing of it again: the tree
	// is the one that a full read makes.
	s, err := backUp(t.Context(), to, vms[2])
	if err != nil {
		t.Fatal(err)
	}
	for k := range s.Disks {
		if s.Disks[k].Root != all[2].Disks[k].Root || s.Disks[k].Counts.New != 0 {
			t.Errorf("disk %d: the root of a backup differs from that of a copy, %d bytes new", k, s.Disks[k].Counts.New)
		}
	}
	// Again, and back: nothing but that last one, which is no copy.
	p, res = run(t, from, mustOpen(t, b, theirs), copy.Options{})
	if len(p.Todo) != 0 || len(p.Known) != 3 || res.Uploaded != 0 || res.Protected != 0 {
		t.Errorf("again: %d to do, %+v", len(p.Todo), res)
	}
	p, res = run(t, mustOpen(t, b, theirs), mustOpen(t, a, ours), copy.Options{})
	if len(p.Todo) != 1 || len(res.Copied) != 1 || res.Copied[0].From.ID() != s.ID() || res.Copied[0].Read != 0 {
		t.Errorf("back: %d to do, %+v", len(p.Todo), res)
	}
	mustClean(t, mustOpen(t, a, ours))
	// What is unprotected there stays so.
	if err := to.PutNote(t.Context(), &repo.Note{Snapshot: all[1].ID(), Kind: "unprotect", Time: time.Now()}); err != nil {
		t.Fatal(err)
	}
	if _, res = run(t, from, to, copy.Options{}); res.Protected != 0 {
		t.Error("protected against its own repository's word")
	}
	if _, err := copy.New(t.Context(), from, mustOpen(t, a, ours), copy.Options{}); !errors.Is(err, copy.ErrSame) {
		t.Errorf("into itself: %v", err)
	}
}

// A snapshot that has lost something is named, and keeps no other from being
// copied.
func TestDamagedSource(t *testing.T) {
	a, b := mem.New(), mem.New()
	initRepo(t, a, ours, chunk.Params{})
	initRepo(t, b, theirs, chunk.Params{})
	from := mustOpen(t, a, ours)
	before := make(map[string]bool)
	var lost string
	for i := range 2 {
		m := disktest.NewMem(4 << 20)
		scribble(t, m, uint64(i+1), 20)
		if _, err := backUp(t.Context(), from, vm{fmt.Sprint("vm", i), time.Unix(int64(i), 0), []*disktest.Mem{m}, nil}); err != nil {
			t.Fatal(err)
		}
		var big int64
		_ = a.List(t.Context(), "packs/", func(o object.Info) error {
			if i == 0 && o.Size > big {
				lost, big = o.Name, o.Size
			}
			before[o.Name] = true
			return nil
		})
	}
	if err := a.Delete(t.Context(), lost); err != nil {
		t.Fatal(err)
	}
	p, err := copy.New(t.Context(), mustOpen(t, a, ours), mustOpen(t, b, theirs), copy.Options{})
	if err != nil {
		t.Fatal(err)
	}
	res, err := p.Execute(t.Context())
	if err != nil || res.Failed != 1 || len(res.Copied) != 2 {
		t.Fatalf("%+v, %v", res, err)
	}
	for _, c := range res.Copied {
		if (c.From.VM.Name == "vm0") != (c.Err != nil) {
			t.Errorf("%s: %v", c.From.VM.Name, c.Err)
		}
	}
	mustClean(t, mustOpen(t, b, theirs))
}

// killed copies until the n-th pack is up.
func TestInterrupted(t *testing.T) {
	a, b := mem.New(), mem.New()
	initRepo(t, a, ours, chunk.Params{})
	initRepo(t, b, theirs, chunk.Params{})
	m := disktest.NewMem(64 << 20)
	for off := int64(0); off < m.Size(); off += 8 << 20 {
		if err := m.WriteAt(t.Context(), objecttest.Bytes(uint64(off), 8<<20), off); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := backUp(t.Context(), mustOpen(t, a, ours), vm{"big", time.Unix(1, 0), []*disktest.Mem{m}, nil}); err != nil {
		t.Fatal(err)
	}
	faulty := objecttest.NewFaulty(b)
	half := faulty.Inject(objecttest.Fault{Verb: objecttest.Put, Prefix: "packs/", N: 8, Stay: true})
	p, err := copy.New(t.Context(), mustOpen(t, a, ours), mustOpen(t, faulty, theirs), copy.Options{})
	if err == nil {
		_, err = p.Execute(t.Context())
	}
	if err == nil || !half.Fired() {
		t.Fatalf("not interrupted: %v", err)
	}
	faulty.Heal()
	mustClean(t, mustOpen(t, b, theirs))
	_, res := run(t, mustOpen(t, a, ours), mustOpen(t, b, theirs), copy.Options{})
	if res.Uploaded > 40<<20 {
		t.Errorf("the second try uploads %d bytes of 64 MiB", res.Uploaded)
	}
	mustClean(t, mustOpen(t, b, theirs))
}

// Whatever storage call of either side fails, both stay clean, what was
// published is whole, and a second try succeeds.
func TestEveryCallFails(t *testing.T) {
	m1 := disktest.NewMem(4<<20 + 512)
	scribble(t, m1, 1, 6)
	m2 := later(t, m1, 5<<20, 2, 2)
	src := mem.New()
	initRepo(t, src, ours, chunk.Params{})
	for i, m := range []*disktest.Mem{m1, m2} {
		if _, err := backUp(t.Context(), mustOpen(t, src, ours), vm{"vm", time.Unix(int64(i), 0), []*disktest.Mem{m}, nil}); err != nil {
			t.Fatal(err)
		}
	}
	for name, fault := range map[string]objecttest.Fault{"once": {}, "after its effect": {After: true}, "and all later": {Stay: true}} {
		for _, side := range []string{"source", "target"} {
			t.Run(name+" "+side, func(t *testing.T) {
				t.Parallel()
				fault, struck := fault, 0
				for ; ; fault.N++ {
					a, b := src.Clone(), mem.New()
					initRepo(t, b, theirs, chunk.Params{})
					fa, fb := objecttest.NewFaulty(a), objecttest.NewFaulty(b)
					faulty := map[string]*objecttest.Faulty{"source": fa, "target": fb}[side]
					inject := faulty.Inject(fault)
					err := attempt(t.Context(), fa, fb)
					if !inject.Fired() {
						if err != nil {
							t.Fatalf("call %d: %v without a fault", fault.N, err)
						}
						break
					}
					struck++
					faulty.Heal()
					mustClean(t, mustOpen(t, b, theirs))
					_, _ = run(t, mustOpen(t, a, ours), mustOpen(t, b, theirs), copy.Options{})
					to := mustOpen(t, b, theirs)
					mustClean(t, to)
					all, _, err := to.Snapshots(t.Context())
					if err != nil || len(all) != 2 {
						t.Fatalf("call %d: %d snapshots, %v", fault.N, len(all), err)
					}
					same(t, to, all[0].Disks[0], m1)
					same(t, to, all[1].Disks[0], m2)
					if t.Failed() {
						t.Fatalf("at call %d", fault.N)
					}
				}
				if struck < 10 {
					t.Errorf("only %d calls failed", struck)
				}
			})
		}
	}
}

func attempt(ctx context.Context, a, b object.Store) error {
	from, err := open(ctx, a, ours)
	if err != nil {
		return err
	}
	to, err := open(ctx, b, theirs)
	if err != nil {
		return err
	}
	p, err := copy.New(ctx, from, to, copy.Options{})
	if err != nil {
		return err
	}
	res, err := p.Execute(ctx)
	if err == nil {
		for _, c := range res.Copied {
			err = errors.Join(err, c.Err)
		}
	}
	return err
}
