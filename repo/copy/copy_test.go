package copy_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"xenkeep/chunkstore/chunk"
	"xenkeep/chunkstore/object"
	"xenkeep/chunkstore/object/mem"
	"xenkeep/chunkstore/object/objecttest"
	"xenkeep/chunkstore/seal"
	"xenkeep/internal/disk/disktest"
	"xenkeep/repo"
	"xenkeep/repo/backup"
	"xenkeep/repo/copy"
	"xenkeep/repo/repotest"
	"xenkeep/repo/tree"
)

// The two repositories have different keys.
var (
	ours   = repo.Options{Secret: repotest.Key(5)}
	theirs = repo.Options{Secret: repotest.Key(6)}
)

// later returns a disk of size bytes that begins like m, with changes.
func later(t *testing.T, m *disktest.Mem, size int64, seed uint64, n int) *disktest.Mem {
	t.Helper()
	d := m.Resized(size)
	disktest.Scribble(t, d, seed, n)
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
		Kind: "regular", Tags: v.tags, DataTime: v.data, Complete: v.tags == nil, GenerationID: "77:5",
	}
	err := backup.WithRun(ctx, r, backup.Options{Job: "nightly", Machine: "here"}, func(ctx context.Context, run *backup.Run) error {
		for i, m := range v.disks {
			d, err := run.BackupDisk(ctx, m.Source(), backup.DiskOptions{Size: m.Size()})
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

// A copy cuts chunks as the other repository does, with other sizes or another
// algorithm, in both directions.
func TestCopy(t *testing.T) {
	larger := chunk.Params{Algorithm: chunk.FastCDC, Min: 32 << 10, Normal: 64 << 10, Max: 128 << 10}
	t.Run("larger", func(t *testing.T) { testCopy(t, larger) })
	t.Run("rabin", func(t *testing.T) { testCopy(t, chunk.RabinParams()) })
}

func testCopy(t *testing.T, other chunk.Params) {
	a, b := mem.New(), mem.New()
	repotest.InitWith(t, a, ours)
	repotest.InitWith(t, b, repo.Options{Secret: theirs.Secret, Chunker: other})
	from, to := repotest.OpenWith(t, a, ours), repotest.OpenWith(t, b, theirs)

	start := time.Date(2026, 3, 1, 2, 0, 0, 0, time.UTC)
	d1 := disktest.NewMem(21<<20 + 512)
	disktest.Scribble(t, d1, 1, 60)
	d2 := disktest.NewMem(3 << 20)
	disktest.Scribble(t, d2, 2, 5)
	grown := later(t, d1, 25<<20, 3, 2)
	if err := grown.WriteAt(t.Context(), make([]byte, 4<<20), 6<<20); err != nil { // some data becomes zero
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
	from = repotest.OpenWith(t, a, ours)

	// First one snapshot that the user names, then the rest.
	_, res := run(t, from, to, copy.Options{Pick: func(s *repo.Snapshot) bool { return s.ID() == made[0].ID() }})
	if len(res.Copied) != 1 || res.Uploaded == 0 {
		t.Fatalf("%+v", res)
	}
	p, res := run(t, from, to, copy.Options{Level: seal.LevelBest})
	if len(p.Known) != 1 || len(res.Copied) != 2 || !p.Recut {
		t.Fatalf("known %d, copied %d, cut again %v", len(p.Known), len(res.Copied), p.Recut)
	}
	// Of the second day of web, only the differences were read: six blocks, and
	// those that were added or became zero.
	if day2 := res.Copied[1]; day2.From.VM.Name != "web" || day2.Read > 16<<20 {
		t.Errorf("day two of %s: %d bytes read", day2.From.VM.Name, day2.Read)
	}
	// The disk without changes was not read at all, and has the same root.
	if first, err := tree.ReadRoot(t.Context(), to.Store(), chunk.ID(res.Copied[1].As.Disks[1].Root)); err != nil || first.Size != d2.Size() {
		t.Errorf("second disk: %v", err)
	}
	to = repotest.OpenWith(t, b, theirs)
	repotest.MustBeClean(t, to)
	all, _, err := to.Snapshots(t.Context())
	if err != nil || len(all) != 3 {
		t.Fatalf("%d snapshots, %v", len(all), err)
	}
	for i, s := range all {
		v, o := vms[i], made[i]
		if s.VM != o.VM || s.Pool != o.Pool || !s.DataTime.Equal(v.data) || s.Job != "nightly" || s.Machine != "here" ||
			fmt.Sprint(s.Tags) != fmt.Sprint(v.tags) || s.Complete != o.Complete || s.GenerationID != o.GenerationID ||
			s.Original == nil || s.Original.Snapshot != o.ID() || s.Original.Repository != from.ID() {
			t.Errorf("snapshot of %s: %+v", v.name, s)
		}
		for k, d := range s.Disks {
			repotest.MustRestore(t, to, d.Root, v.disks[k])
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

	// A backup into the other repository stores none of the data again: the tree is
	// the same as after a full read.
	s, err := backUp(t.Context(), to, vms[2])
	if err != nil {
		t.Fatal(err)
	}
	for k := range s.Disks {
		if s.Disks[k].Root != all[2].Disks[k].Root || s.Disks[k].Counts.New != 0 {
			t.Errorf("disk %d: the root of a backup differs from that of a copy, %d bytes new", k, s.Disks[k].Counts.New)
		}
	}
	// Copy again, and back: only the last backup is copied, which is not a copy.
	p, res = run(t, from, repotest.OpenWith(t, b, theirs), copy.Options{})
	if len(p.Todo) != 0 || len(p.Known) != 3 || res.Uploaded != 0 || res.Protected != 0 {
		t.Errorf("again: %d to do, %+v", len(p.Todo), res)
	}
	p, res = run(t, repotest.OpenWith(t, b, theirs), repotest.OpenWith(t, a, ours), copy.Options{})
	if len(p.Todo) != 1 || len(res.Copied) != 1 || res.Copied[0].From.ID() != s.ID() || res.Copied[0].Read != 0 {
		t.Errorf("back: %d to do, %+v", len(p.Todo), res)
	}
	repotest.MustBeClean(t, repotest.OpenWith(t, a, ours))
	// A copy that is unprotected there stays so.
	if err := to.PutNote(t.Context(), &repo.Note{Snapshot: all[1].ID(), Kind: "unprotect", Time: time.Now()}); err != nil {
		t.Fatal(err)
	}
	if _, res = run(t, from, to, copy.Options{}); res.Protected != 0 {
		t.Error("protected against its own repository's word")
	}
	if _, err := copy.New(t.Context(), from, repotest.OpenWith(t, a, ours), copy.Options{}); !errors.Is(err, copy.ErrSame) {
		t.Errorf("into itself: %v", err)
	}
}

// A snapshot that has lost data is reported, and does not prevent others from being
// copied.
func TestDamagedSource(t *testing.T) {
	a, b := mem.New(), mem.New()
	repotest.InitWith(t, a, ours)
	repotest.InitWith(t, b, theirs)
	from := repotest.OpenWith(t, a, ours)
	before := make(map[string]bool)
	var lost string
	for i := range 2 {
		m := disktest.NewMem(4 << 20)
		disktest.Scribble(t, m, uint64(i+1), 20)
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
	p, err := copy.New(t.Context(), repotest.OpenWith(t, a, ours), repotest.OpenWith(t, b, theirs), copy.Options{})
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
	repotest.MustBeClean(t, repotest.OpenWith(t, b, theirs))
}

// killed copies until the n-th pack is uploaded.
func TestInterrupted(t *testing.T) {
	a, b := mem.New(), mem.New()
	repotest.InitWith(t, a, ours)
	repotest.InitWith(t, b, theirs)
	m := disktest.NewMem(64 << 20)
	for off := int64(0); off < m.Size(); off += 8 << 20 {
		if err := m.WriteAt(t.Context(), objecttest.Bytes(uint64(off), 8<<20), off); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := backUp(t.Context(), repotest.OpenWith(t, a, ours), vm{"big", time.Unix(1, 0), []*disktest.Mem{m}, nil}); err != nil {
		t.Fatal(err)
	}
	faulty := objecttest.NewFaulty(b)
	half := faulty.Inject(objecttest.Fault{Verb: objecttest.Put, Prefix: "packs/", N: 8, Stay: true})
	p, err := copy.New(t.Context(), repotest.OpenWith(t, a, ours), repotest.OpenWith(t, faulty, theirs), copy.Options{})
	if err == nil {
		_, err = p.Execute(t.Context())
	}
	if err == nil || !half.Fired() {
		t.Fatalf("not interrupted: %v", err)
	}
	faulty.Heal()
	repotest.MustBeClean(t, repotest.OpenWith(t, b, theirs))
	_, res := run(t, repotest.OpenWith(t, a, ours), repotest.OpenWith(t, b, theirs), copy.Options{})
	if res.Uploaded > 40<<20 {
		t.Errorf("the second try uploads %d bytes of 64 MiB", res.Uploaded)
	}
	repotest.MustBeClean(t, repotest.OpenWith(t, b, theirs))
}

// Whatever storage call of either side fails, both stay clean, published snapshots
// are complete, and a second attempt succeeds.
func TestEveryCallFails(t *testing.T) {
	m1 := disktest.NewMem(4<<20 + 512)
	disktest.Scribble(t, m1, 1, 6)
	m2 := later(t, m1, 5<<20, 2, 2)
	src := mem.New()
	repotest.InitWith(t, src, ours)
	for i, m := range []*disktest.Mem{m1, m2} {
		if _, err := backUp(t.Context(), repotest.OpenWith(t, src, ours), vm{"vm", time.Unix(int64(i), 0), []*disktest.Mem{m}, nil}); err != nil {
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
					repotest.InitWith(t, b, theirs)
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
					repotest.MustBeClean(t, repotest.OpenWith(t, b, theirs))
					_, _ = run(t, repotest.OpenWith(t, a, ours), repotest.OpenWith(t, b, theirs), copy.Options{})
					to := repotest.OpenWith(t, b, theirs)
					repotest.MustBeClean(t, to)
					all, _, err := to.Snapshots(t.Context())
					if err != nil || len(all) != 2 {
						t.Fatalf("call %d: %d snapshots, %v", fault.N, len(all), err)
					}
					repotest.MustRestore(t, to, all[0].Disks[0].Root, m1)
					repotest.MustRestore(t, to, all[1].Disks[0].Root, m2)
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
	from, err := repotest.TryOpen(ctx, a, ours)
	if err != nil {
		return err
	}
	to, err := repotest.TryOpen(ctx, b, theirs)
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
