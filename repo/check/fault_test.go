package check_test

import (
	"fmt"
	"testing"

	"xenkeep/chunkstore/chunk"
	"xenkeep/chunkstore/object"
	"xenkeep/chunkstore/object/mem"
	"xenkeep/chunkstore/object/objecttest"
	"xenkeep/internal/disk"
	"xenkeep/internal/disk/disktest"
	"xenkeep/repo"
	"xenkeep/repo/backup"
	"xenkeep/repo/repotest"
)

// wherever are the kinds of faults of a storage call in a sweep.
var wherever = map[string]objecttest.Fault{
	"before its effect": {},
	"after its effect":  {After: true},
	"and all later":     {Stay: true},
	"after, and all later": {
		After: true, Stay: true,
	},
}

// Whatever storage call of a backup fails, the repository stays clean, published
// snapshots are complete, and a second attempt succeeds.
func TestEveryCallFails(t *testing.T) {
	day1 := disktest.NewMem(4<<20 + 512)
	disktest.Scribble(t, day1, 1, 8)
	day2 := day1.Clone()
	disktest.Scribble(t, day2, 2, 2)
	for how, fault := range wherever {
		if testing.Short() && fault.After {
			continue // the slow half
		}
		for _, incremental := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, incremental %v", how, incremental), func(t *testing.T) {
				t.Parallel()
				fault := fault
				struck := 0
				for n := 0; ; n++ {
					fault.N = n
					if !failCall(t, fault, incremental, day1, day2) {
						break
					}
					struck++
				}
				if struck < 12 {
					t.Errorf("only %d calls failed: the sweep does not reach what it should", struck)
				}
			})
		}
	}
}

// failCall makes one backup under a fault, and reports whether the fault occurred.
func failCall(t *testing.T, fault objecttest.Fault, incremental bool, day1, day2 *disktest.Mem) bool {
	t.Helper()
	inner := mem.New()
	r := repotest.Init(t, inner)
	now := day1
	source := func() disk.Source { return day1.Source() }
	o := backup.DiskOptions{Size: day1.Size()}
	ro := backup.Options{AdoptOrphans: true}
	known := make(map[repo.HexID]*disktest.Mem)
	if incremental {
		s, err := repotest.Save(t.Context(), r, "vm", day1.Source(), o, ro)
		if err != nil {
			t.Fatal(err)
		}
		known[s.Disks[0].Root] = day1
		o.Base, o.Delta = chunk.ID(s.Disks[0].Root), true
		ro.Roots = []chunk.ID{o.Base}
		now = day2
		source = func() disk.Source { return &deltaSource{m: day2, old: day1, split: true} }
	}
	faulty := objecttest.NewFaulty(inner)
	inject := faulty.Inject(fault)
	broken, err := repo.Open(t.Context(), faulty, repo.Options{Secret: repotest.Secret()})
	if err == nil {
		err = broken.LoadIndex(t.Context())
	}
	if err == nil {
		_, err = repotest.Save(t.Context(), broken, "vm", source(), o, ro)
	}
	fired := inject.Fired()
	if !fired && err != nil {
		t.Fatalf("call %d: %v without a fault", fault.N, err)
	}
	faulty.Heal()

	after := repotest.Open(t, inner)
	repotest.MustBeClean(t, after)
	s, err := repotest.Save(t.Context(), after, "vm", source(), o, ro)
	if err != nil {
		t.Fatalf("call %d: second try: %v", fault.N, err)
	}
	known[s.Disks[0].Root] = now
	last := repotest.Open(t, inner)
	repotest.MustBeClean(t, last)
	all, bad, err := last.Snapshots(t.Context())
	if err != nil || len(bad) > 0 {
		t.Fatalf("call %d: %v %v", fault.N, bad, err)
	}
	for _, s := range all {
		want := known[s.Disks[0].Root]
		if want == nil {
			t.Fatalf("call %d: a snapshot of another root was published", fault.N)
		}
		repotest.MustRestore(t, last, s.Disks[0].Root, want)
	}
	if t.Failed() {
		t.Fatalf("at call %d", fault.N)
	}
	return fired
}

// Whatever call of an init fails, a second one creates a repository that opens.
func TestEveryCallOfInitFails(t *testing.T) {
	for how, fault := range wherever {
		t.Run(how, func(t *testing.T) {
			for fired := true; fired; fault.N++ {
				inner := mem.New()
				faulty := objecttest.NewFaulty(inner)
				inject := faulty.Inject(fault)
				_, err := repo.Init(t.Context(), faulty, repo.Options{Secret: repotest.Secret()})
				if fired = inject.Fired(); !fired {
					break
				}
				faulty.Heal()
				if err == nil {
					continue // the fault hit a call that init does not depend on
				}
				if !fault.Stay {
					_ = inner.List(t.Context(), "", func(i object.Info) error {
						t.Errorf("call %d: %s is left behind", fault.N, i.Name)
						return nil
					})
				}
				repotest.Init(t, inner)
				repotest.Open(t, inner)
			}
		})
	}
}
