package nightly

import (
	"errors"
	"strings"
	"testing"
	"time"

	"xenkeep/job"
)

// The findings of a night's check, and the sentence for its subject, name the job's own
// VMs first, then other VMs of the repository, and packs last.
func TestDamageNamesOwnVMsFirst(t *testing.T) {
	h := newHouse(t, "[jobs.all]\nselect={all=true}\n[jobs.one]\nselect={names=['vm4']}\ncheck={every='always', budget='1G'}\n", 5, 1, 4*mib)
	if _, err := Run(t.Context(), h.night("all")); err != nil {
		t.Fatal(err)
	}
	h.damage(h.packs(), func(p []byte) {
		for i := 1; i < 16; i++ { // in every VM's data
			p[len(p)*i/16] ^= 1
		}
	})
	h.now = h.now.Add(24 * time.Hour)
	rep, err := Run(t.Context(), h.night("one"))
	if !errors.Is(err, job.ErrDamage) || len(rep.Findings) < 3 {
		t.Fatalf("%v %q", err, rep.Findings)
	}
	if !strings.HasPrefix(rep.Damage, "1 snapshot of vm4, 1 snapshot of vm0, ") && !strings.HasPrefix(rep.Damage, "2 snapshots of vm4, 1 snapshot of vm0, ") {
		t.Errorf("%q", rep.Damage)
	}
	last := 0
	for i, f := range rep.Findings {
		rank := 2
		switch {
		case strings.Contains(f, "vm4"):
			rank = 0
		case strings.HasPrefix(f, "snapshots/"):
			rank = 1
		}
		if rank < last || i == 0 && rank != 0 {
			t.Errorf("finding %d: %s", i, f)
		}
		last = rank
	}
	if last != 2 {
		t.Errorf("no finding is about a pack: %q", rep.Findings)
	}
}
