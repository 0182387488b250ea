package forget_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"xenkeep/chunkstore/object/mem"
	"xenkeep/chunkstore/seal"
	"xenkeep/repo"
	"xenkeep/repo/forget"
	"xenkeep/repo/repotest"
	"xenkeep/repo/retention"
)

// days returns snapshots of a VM, one a day.
func days(vm string, n int) (all []*repo.Snapshot) {
	at := time.Date(2026, 3, 1, 2, 0, 0, 0, time.UTC)
	for i := range n {
		all = append(all, &repo.Snapshot{VM: repo.Named{UUID: vm, Name: vm}, DataTime: at.AddDate(0, 0, i), Complete: true, Run: fmt.Sprint(vm, i)})
	}
	return all
}

// A policy forgets nothing of a VM if more than three and more than a third of its
// snapshots would go, unless that is confirmed; other VMs are not affected.
func TestBrake(t *testing.T) {
	now := time.Date(2026, 6, 1, 0, 0, 0, 0, time.UTC)
	for name, c := range map[string]struct {
		n, keep    int
		yes        bool
		gone, stop int
	}{
		"an ordinary night":            {8, 7, false, 1, 0},
		"three of four":                {4, 1, false, 3, 0},
		"four of five":                 {5, 1, false, 0, 1},
		"four of twelve, a third":      {12, 8, false, 4, 0},
		"four of eleven":               {11, 7, false, 0, 1},
		"first policy, 60 points":      {60, 7, false, 0, 1},
		"first policy, 60, confirmed":  {60, 7, true, 53, 0},
		"20 of 60":                     {60, 40, false, 20, 0},
		"21 of 60":                     {60, 39, false, 0, 1},
		"nothing goes":                 {5, 9, false, 0, 0},
		"one point":                    {1, 1, false, 0, 0},
		"five nights without the rule": {12, 7, false, 0, 1},
	} {
		other := days("other", 3)
		all := append(days("vm", c.n), other...)
		plan := forget.Decide(retention.NewJudge(all, now), retention.Policy{Last: c.keep}, all, all, nil, c.yes)
		gone := 0
		for _, s := range plan.Gone() {
			if s.VM.UUID == "vm" {
				gone++
			}
		}
		if gone != c.gone || len(plan.Stops) != c.stop {
			t.Errorf("%s: %d of %d go, %d stops", name, gone, c.n, len(plan.Stops))
		}
		for _, s := range plan.Stops {
			if s.VM.Name != "vm" || s.Of != c.n || s.Forget != c.n-c.keep || !errors.Is(s, forget.ErrStopped) || s.Hint() == "" {
				t.Errorf("%s: %+v", name, s)
			}
		}
		if c.keep < 3 && len(plan.Gone()) < 3-c.keep {
			t.Errorf("%s: the brake stops another VM", name)
		}
	}
}

// Protected snapshots do not count as going, and a filter does not make the brake
// count fewer snapshots than the VM has.
func TestBrakeCountsTheWholeVM(t *testing.T) {
	now := time.Date(2026, 6, 1, 0, 0, 0, 0, time.UTC)
	all := days("vm", 30)
	some := all[:6]
	plan := forget.Decide(retention.NewJudge(all, now), retention.Policy{Last: 1}, all, some, nil, false)
	if len(plan.Gone()) != 5 || len(plan.Stops) != 0 {
		t.Errorf("5 of 30: %d go, %d stops", len(plan.Gone()), len(plan.Stops))
	}
}

// A grace period needs the feature and a full key; without one of them the default
// is none, for a write-only key only where the caller allows it.
func TestGracePeriods(t *testing.T) {
	week, none := retention.Period{Days: 7}, retention.Period{}
	for name, c := range map[string]struct {
		features bool
		full     bool
		o        forget.Options
		grace    time.Duration
		deletes  bool
		fails    bool
	}{
		"default":                        {true, true, forget.Options{}, 7 * 24 * time.Hour, false, false},
		"given":                          {true, true, forget.Options{Grace: &retention.Period{Hours: 36}}, 36 * time.Hour, false, false},
		"none":                           {true, true, forget.Options{Grace: &none}, 0, true, false},
		"old repository":                 {false, true, forget.Options{}, 0, true, false},
		"old repository, given":          {false, true, forget.Options{Grace: &week}, 0, false, true},
		"write-only":                     {true, false, forget.Options{}, 0, false, true},
		"write-only, none":               {true, false, forget.Options{Grace: &none}, 0, true, false},
		"write-only, of a job":           {true, false, forget.Options{Weak: true}, 0, true, false},
		"write-only, of a job, given":    {true, false, forget.Options{Weak: true, Grace: &week}, 0, false, true},
		"old repository, write-only job": {false, false, forget.Options{Weak: true}, 0, true, false},
	} {
		store := mem.New()
		o := repo.Options{Secret: repotest.Secret()}
		if !c.features {
			o.Features = []repo.Feature{}
		}
		r := repotest.InitWith(t, store, o)
		s := &repo.Snapshot{Origin: "image", VM: repo.Named{UUID: "vm"}, DataTime: time.Now(), Complete: true}
		if err := r.PutSnapshot(t.Context(), s); err != nil {
			t.Fatal(err)
		}
		if !c.full {
			if _, err := r.AddSlot(t.Context(), repotest.Key(9), "", seal.WriteOnly, time.Now()); err != nil {
				t.Fatal(err)
			}
			r = repotest.OpenWith(t, store, repo.Options{Secret: repotest.Key(9)})
		}
		c.o.Now = time.Date(2026, 6, 1, 0, 0, 0, 0, time.UTC)
		dry := c.o
		dry.DryRun = true
		if _, err := forget.Execute(t.Context(), r, []*repo.Snapshot{s}, dry); (err != nil) != c.fails || len(repotest.Names(t, store, "snapshots/")) != 1 || len(repotest.Names(t, store, "forgotten/")) != 0 {
			t.Errorf("%s: dry run: %v", name, err)
		}
		done, err := forget.Execute(t.Context(), r, []*repo.Snapshot{s}, c.o)
		if (err != nil) != c.fails {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if gone := len(repotest.Names(t, store, "snapshots/")) == 0; gone != c.deletes {
			t.Errorf("%s: deleted %v", name, gone)
		}
		if c.grace > 0 && (done.Until == nil || !done.Until.Equal(c.o.Now.Add(c.grace))) || c.grace == 0 && done.Until != nil {
			t.Errorf("%s: until %v", name, done.Until)
		}
	}
}
