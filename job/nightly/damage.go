package nightly

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"xenkeep/repo"
	"xenkeep/repo/check"
)

// mostNamed is the maximum number of VMs in a sentence.
const mostNamed = 3

// affected are the snapshots that the findings of a check are about.
type affected struct {
	snapshots map[string]*repo.Snapshot // by ID
	own       func(*repo.Snapshot) bool // of the job's own VMs
}

// affected finds the snapshots of the findings. Without them the report has the same
// findings in another order.
func (x *night) affected(ctx context.Context, rep *check.Report) affected {
	vms := make(map[string]bool)
	for i := range x.rep.VMs {
		vms[x.rep.VMs[i].UUID] = true
	}
	a := affected{snapshots: make(map[string]*repo.Snapshot), own: func(s *repo.Snapshot) bool { return s.Job == x.Job.Name || vms[s.VM.UUID] }}
	for _, r := range rep.Damage().Ranges {
		a.snapshots[r.Snapshot.ID()] = r.Snapshot
	}
	if len(rep.Findings) == 0 {
		return a
	}
	all, _, err := x.repo.Snapshots(ctx)
	if err != nil {
		x.warn("the VMs of the findings: %w", err)
		return a
	}
	unsound := rep.Unsound()
	for _, s := range all {
		if unsound[s.ID()] != "" {
			a.snapshots[s.ID()] = s
		}
	}
	return a
}

// rank orders VMs and findings: those of the job's own VMs first, and those that no
// snapshot is known of last.
func (a *affected) rank(s *repo.Snapshot) int {
	switch {
	case s == nil:
		return 2
	case a.own(s):
		return 0
	}
	return 1
}

// sorted returns the findings in the order of their importance: about the job's own
// VMs, about others, and about packs and other objects. The newest snapshot of a VM
// comes first.
func (a *affected) sorted(findings []check.Finding) []check.Finding {
	of := func(f check.Finding) *repo.Snapshot {
		id, _ := strings.CutPrefix(f.Object, "snapshots/")
		return a.snapshots[id]
	}
	out := slices.Clone(findings)
	slices.SortStableFunc(out, func(f, g check.Finding) int {
		s, t := of(f), of(g)
		if c := cmp.Compare(a.rank(s), a.rank(t)); c != 0 || s == nil {
			return c
		}
		return cmp.Or(cmp.Compare(nameOf(s), nameOf(t)), t.DataTime.Compare(s.DataTime))
	})
	return out
}

func nameOf(s *repo.Snapshot) string { return cmp.Or(s.VM.Name, s.VM.UUID) }

// sentence is a short description of the damage: the number of snapshots of each VM
// that cannot be read, the job's own VMs first, if that is known.
func (a *affected) sentence(rep *check.Report) string {
	lost := make(map[string]int) // snapshots, by their VM
	rank := make(map[string]int)
	for _, s := range a.snapshots {
		vm := nameOf(s)
		if lost[vm]++; lost[vm] == 1 || a.rank(s) < rank[vm] {
			rank[vm] = a.rank(s)
		}
	}
	if len(lost) == 0 {
		return "check found " + plural(rep.Damaged(), "damaged object")
	}
	vms := slices.SortedFunc(maps.Keys(lost), func(v, w string) int { return cmp.Or(cmp.Compare(rank[v], rank[w]), cmp.Compare(v, w)) })
	var parts []string
	for i, vm := range vms {
		if i == mostNamed {
			parts = append(parts, fmt.Sprintf("and of %d other VMs", len(lost)-i))
			break
		}
		parts = append(parts, plural(lost[vm], "snapshot")+" of "+vm)
	}
	return strings.Join(parts, ", ") + " cannot be read in full"
}
