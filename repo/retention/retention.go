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
//     either and stays: counted, it would push out every true one until then. Whoever
//     applies a policy says so (FromFuture), because it stays until it is
//     forgotten by its ID.
//   - A VM that moved to another pool with its UUID is one VM: see Judge.Group.
//     The newest complete snapshot from each pool stays.
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

// FromFuture reports whether a snapshot's date lies so far ahead that policies do
// not count it: the clock of its pool, or the date of its file, was wrong.
func FromFuture(s *repo.Snapshot, now time.Time) bool { return s.Data.After(now.Add(clockSkew)) }

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
	return NewJudge(all, now).Apply(p, all)
}

// Apply decides on some of the judge's snapshots, and returns the decisions in
// the same order.
func (j *Judge) Apply(p Policy, some []*repo.Snapshot) []Decision {
	decisions := make([]Decision, len(some))
	groups := make(map[Group][]*Decision)
	for i, s := range some {
		decisions[i].Snapshot = s
		g := j.Group(s)
		groups[g] = append(groups[g], &decisions[i])
	}
	for _, g := range groups {
		p.group(g, j.now)
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

// GroupOf returns the group of a snapshot for itself; Judge.Group also knows
// VMs that moved. What has no UUID goes by its name.
func GroupOf(s *repo.Snapshot) Group {
	return Group{Origin: s.Origin, Pool: s.Pool.UUID, VM: cmp.Or(s.VM.UUID, s.VM.Name), Job: s.Job}
}

// silence is how long a pool must have been without a new snapshot of a VM
// before its snapshots count with those of the pool that the VM is on now.
const silence = 30 * 24 * time.Hour

// Judge knows all snapshots of a repository, of which a policy judges some.
type Judge struct {
	now   time.Time
	moved map[vmOnPool]string // UUID of the pool with whose snapshots they count
}

type vmOnPool struct{ vm, pool string }

// NewJudge looks at all snapshots, also at those that are not to be judged:
// whether a VM is alive on a pool does not depend on job or tag.
func NewJudge(all []*repo.Snapshot, now time.Time) *Judge {
	j := &Judge{now: now, moved: make(map[vmOnPool]string)}
	spans := make(map[string]map[string]*span) // by VM and pool
	for _, s := range all {
		if s.Origin != "pool" || s.VM.UUID == "" || s.Data.After(now.Add(clockSkew)) {
			continue
		}
		pools := spans[s.VM.UUID]
		if pools == nil {
			pools = make(map[string]*span)
			spans[s.VM.UUID] = pools
		}
		p := pools[s.Pool.UUID]
		if p == nil {
			p = &span{first: s.Data, last: s.Data}
			pools[s.Pool.UUID] = p
		}
		if s.Data.Before(p.first) {
			p.first = s.Data
		}
		if s.Data.After(p.last) {
			p.last = s.Data
		}
	}
	for vm, pools := range spans {
		j.follow(vm, pools)
	}
	return j
}

// span is the time between the first and the last snapshot of a VM on a pool.
type span struct{ first, last time.Time }

// follow finds the pools that a VM left.
func (j *Judge) follow(vm string, pools map[string]*span) {
	head := ""
	for pool, p := range pools {
		if h := pools[head]; h == nil || p.last.After(h.last) {
			head = pool
		}
	}
	for pool, p := range pools {
		left := pool != head && !p.last.Add(silence).After(j.now)
		for other, o := range pools {
			// Two spans that overlap are two VMs with one UUID.
			if other != pool && !p.last.Before(o.first) && !o.last.Before(p.first) {
				left = false
			}
		}
		if left {
			j.moved[vmOnPool{vm, pool}] = head
		}
	}
}

// Group returns the group that a snapshot belongs to. Snapshots of one VM on
// two pools are one group where the VM moved: all snapshots from one pool are
// older than all from the other, and that pool has given none for 30 days.
// Otherwise they are two groups, because a copy of a VM may be alive on both
// pools with the same UUID, and the snapshots of one must not push out those
// of the other.
func (j *Judge) Group(s *repo.Snapshot) Group {
	g := GroupOf(s)
	if s.Origin == "pool" {
		if to, ok := j.moved[vmOnPool{s.VM.UUID, s.Pool.UUID}]; ok {
			g.Pool = to
		}
	}
	return g
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
		case FromFuture(d.Snapshot, now):
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
	seen := map[string]bool{count[0].Snapshot.Pool.UUID: true}
	for _, d := range count[1:] { // of the pools that the VM left
		if pool := d.Snapshot.Pool; !seen[pool.UUID] {
			seen[pool.UUID] = true
			if !d.Keep {
				keep(d, "newest complete of pool %s", cmp.Or(pool.Name, pool.UUID))
			}
		}
	}
}
