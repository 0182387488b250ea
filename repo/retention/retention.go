// Package retention decides which snapshots a policy keeps. It is a pure
// function of snapshots, policy and time; it deletes nothing.
//
// The rules are those that users of restic know: "daily 7" keeps the newest
// snapshot of each of the last seven days that have one, and so on; a snapshot
// stays when any rule keeps it. Beyond them, whatever the policy says:
//
//   - Snapshots are judged by VM and job; those of one never push out those of
//     another.
//   - An incomplete snapshot fills no place of a rule. It stays while no
//     complete one is newer, since it may be all there is of its disks' latest
//     data, and goes after that.
//   - The newest complete snapshot of a VM and job always stays.
//   - A snapshot from the future (a pool's clock was wrong) fills no place
//     either and stays: counted, it would push out every true one until then.
package retention

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"xenkeep/repo"
)

// All, in place of a number, keeps every hour, day and so on that there is.
const All = -1

// Policy says how many snapshots are kept. Its zero value keeps everything.
type Policy struct {
	Last, Hourly, Daily, Weekly, Monthly, Yearly int
	// Within keeps what is no older than this, reckoned back from the newest
	// snapshot of the VM and job: a VM that is no longer backed up does not
	// fade away.
	Within   Period
	Location *time.Location // whose days and weeks; nil is local
}

// IsZero tells whether the policy says nothing.
func (p Policy) IsZero() bool { p.Location = nil; return p == Policy{} }

// Validate refuses numbers that mean nothing.
func (p Policy) Validate() error {
	for _, r := range p.rules() {
		if r.count < All {
			return fmt.Errorf("keep %s %d: want a number of 0 or more", r.name, r.count)
		}
	}
	return nil
}

// Decision is what happens to one snapshot, and why.
type Decision struct {
	Snapshot *repo.Snapshot
	Keep     bool
	Reasons  []string // rules that keep it: "last 1", "daily 2026-11-22" ...
}

// clockSkew is how far a pool's clock may be ahead of ours before a snapshot
// counts as one from the future.
const clockSkew = 24 * time.Hour

type rule struct {
	name   string
	count  int
	bucket func(t time.Time, n int) string // n counts the places filled
}

func layout(l string) func(time.Time, int) string {
	return func(t time.Time, _ int) string { return t.Format(l) }
}

func (p Policy) rules() []rule {
	return []rule{
		{"last", p.Last, func(_ time.Time, n int) string { return fmt.Sprint(n + 1) }},
		// With the offset, because clocks pass an hour twice in autumn.
		{"hourly", p.Hourly, layout("2006-01-02 15h -0700")},
		{"daily", p.Daily, layout("2006-01-02")},
		{"weekly", p.Weekly, func(t time.Time, _ int) string {
			year, week := t.ISOWeek()
			return fmt.Sprintf("%04d-W%02d", year, week)
		}},
		{"monthly", p.Monthly, layout("2006-01")},
		{"yearly", p.Yearly, layout("2006")},
	}
}

// Apply decides on each of all, and returns the decisions in the same order.
func (p Policy) Apply(all []*repo.Snapshot, now time.Time) []Decision {
	decisions := make([]Decision, len(all))
	groups := make(map[Group][]*Decision)
	for i, s := range all {
		decisions[i].Snapshot = s
		g := GroupOf(s)
		groups[g] = append(groups[g], &decisions[i])
	}
	for _, g := range groups {
		p.group(g, now)
	}
	return decisions
}

// Protect makes snapshots stay whose IDs are in protected, whatever was decided.
func Protect(decisions []Decision, protected map[string]bool) {
	for i := range decisions {
		if d := &decisions[i]; protected[d.Snapshot.ID()] {
			d.Keep = true
			d.Reasons = append(d.Reasons, "protected")
		}
	}
}

// Group is what a policy counts for itself.
type Group struct{ Origin, Pool, VM, Job string }

// GroupOf tells which group a snapshot belongs to. An image has no UUID and
// goes by its name.
func GroupOf(s *repo.Snapshot) Group {
	return Group{Origin: s.Origin, Pool: s.Pool.UUID, VM: cmp.Or(s.VM.UUID, s.VM.Name), Job: s.Job}
}

// group decides on the snapshots of one VM and job.
func (p Policy) group(ds []*Decision, now time.Time) {
	keep := func(d *Decision, format string, args ...any) {
		d.Keep = true
		d.Reasons = append(d.Reasons, fmt.Sprintf(format, args...))
	}
	if p.IsZero() {
		for _, d := range ds {
			keep(d, "no policy")
		}
		return
	}
	slices.SortStableFunc(ds, func(a, b *Decision) int { // newest first
		return cmp.Or(b.Snapshot.Data.Compare(a.Snapshot.Data), b.Snapshot.Written.Compare(a.Snapshot.Written),
			cmp.Compare(b.Snapshot.ID(), a.Snapshot.ID()))
	})
	var count []*Decision // those that rules count
	for _, d := range ds {
		switch {
		case d.Snapshot.Data.After(now.Add(clockSkew)):
			keep(d, "from the future")
		case d.Snapshot.Complete:
			count = append(count, d)
		case len(count) == 0:
			keep(d, "incomplete, none complete since")
		}
	}
	if len(count) == 0 {
		return
	}
	where := cmp.Or(p.Location, time.Local)
	for _, r := range p.rules() {
		last, n := "", 0
		for _, d := range count {
			if r.count != All && n >= r.count {
				break
			}
			if b := r.bucket(d.Snapshot.Data.In(where), n); b != last {
				keep(d, "%s %s", r.name, b)
				last, n = b, n+1
			}
		}
	}
	if p.Within != (Period{}) {
		since := p.Within.Before(count[0].Snapshot.Data.In(where))
		for _, d := range count {
			if !d.Snapshot.Data.Before(since) {
				keep(d, "within %v", p.Within)
			}
		}
	}
	if !count[0].Keep {
		keep(count[0], "newest complete")
	}
}
