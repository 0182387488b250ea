// Package retention decides which snapshots a policy keeps. It is a pure function
// of snapshots, policy and time; it deletes nothing.
//
// The rules are the same as in restic: "daily 7" keeps the newest snapshot of each
// of the last seven days that have one, and so on; a snapshot stays if any rule
// keeps it. In addition, whatever the policy is:
//
//   - Snapshots are judged by VM, job and group of writers (repo.WriterGroup); those
//     of one never displace those of another.
//   - A snapshot that the storage received more than a day after its data time, by
//     the storage's own clock, displaces none that was received in time: someone with
//     a stolen key may have dated it back.
//   - An incomplete snapshot fills no place of a rule. It stays while no complete
//     one is newer, because it may contain the only copy of its disks' latest data,
//     and is removed after that.
//   - The newest complete snapshot of a VM and job always stays.
//   - A snapshot from the future (a pool's clock was wrong) fills no place either and
//     stays: if it were counted, it would displace every correct one until its date.
//     The program that applies a policy must report it (FromFuture), because it stays
//     until the user forgets it by its ID.
//   - A VM that moved to another pool with its UUID is one VM: see Judge.Group. The
//     newest complete snapshot from each pool stays.
package retention

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"xenkeep/repo"
)

// All, used instead of a number, keeps every hour, day and so on.
const All = -1

// Policy defines how many snapshots are kept. Its zero value keeps everything.
type Policy struct {
	Last, Hourly, Daily, Weekly, Monthly, Yearly int
	// Within keeps snapshots that are no older than this period before the newest
	// snapshot of the VM and job: the snapshots of a VM that is no longer backed up
	// do not expire one by one.
	Within   Period
	Location *time.Location // determines days and weeks; nil means local time
}

// IsZero reports whether the policy has no rule.
func (p Policy) IsZero() bool { p.Location = nil; return p == Policy{} }

// Validate returns an error for numbers without a meaning.
func (p Policy) Validate() error {
	for _, r := range p.rules() {
		if r.count < All {
			return fmt.Errorf("keep %s %d: want a number of 0 or more", r.name, r.count)
		}
	}
	return nil
}

// Decision is the result for one snapshot, with the reasons.
type Decision struct {
	Snapshot *repo.Snapshot
	Keep     bool
	Reasons  []string // rules that keep it: "last 1", "daily 2026-11-22" ...
}

// clockSkew is how far a pool's clock may be ahead of ours before a snapshot counts
// as one from the future.
const clockSkew = 24 * time.Hour

// FromFuture reports whether a snapshot's date is so far ahead that policies do not
// count it: the clock of its pool, or the date of its file, was wrong.
func FromFuture(s *repo.Snapshot, now time.Time) bool { return s.DataTime.After(now.Add(clockSkew)) }

type rule struct {
	name   string
	count  int
	bucket func(t time.Time, n int) string // n is the number of places filled so far
}

func layout(l string) func(time.Time, int) string {
	return func(t time.Time, _ int) string { return t.Format(l) }
}

// last keeps the snapshots of the newest runs: several snapshots of one run fill one
// place.
func (p Policy) last(count []*Decision, keep func(d *Decision, format string, args ...any)) {
	n, run := 0, ""
	for _, d := range count {
		if d.Snapshot.Run == "" || d.Snapshot.Run != run {
			n++
		}
		run = d.Snapshot.Run
		if p.Last != All && n > p.Last {
			return
		}
		keep(d, "last %d", n)
	}
}

func (p Policy) rules() []rule {
	return []rule{
		{"last", p.Last, nil},
		// With the offset, because clocks show an hour twice in autumn.
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
		p.inTime(g, j.now)
	}
	return decisions
}

// Late reports whether the storage received a snapshot so long after its data time
// that it displaces none that was received in time.
func Late(s *repo.Snapshot) bool {
	return !s.Received().IsZero() && s.Received().Sub(s.DataTime) > clockSkew
}

// inTime keeps what the policy would keep if the late snapshots of a group did not
// exist.
func (p Policy) inTime(ds []*Decision, now time.Time) {
	var alone []Decision
	for _, d := range ds {
		if !Late(d.Snapshot) {
			alone = append(alone, Decision{Snapshot: d.Snapshot})
		}
	}
	if len(alone) == 0 || len(alone) == len(ds) {
		return
	}
	pointers := make([]*Decision, len(alone))
	for i := range alone {
		pointers[i] = &alone[i]
	}
	p.group(pointers, now)
	kept := make(map[*repo.Snapshot][]string)
	for _, d := range alone {
		if d.Keep {
			kept[d.Snapshot] = d.Reasons
		}
	}
	for _, d := range ds {
		if why, ok := kept[d.Snapshot]; ok && !d.Keep {
			d.Keep, d.Reasons = true, append(slices.Clone(why), "not displaced by one that was received late")
		}
	}
}

// Protect keeps the snapshots whose IDs are in protected, whatever was decided.
func Protect(decisions []Decision, protected map[string]bool) {
	for i := range decisions {
		if d := &decisions[i]; protected[d.Snapshot.ID()] {
			d.Keep = true
			d.Reasons = append(d.Reasons, "protected")
		}
	}
}

// Group identifies a set of snapshots to which a policy is applied separately.
type Group struct {
	Origin, Pool, VM, Job string
	Writers               string // repo.Snapshot.Group
}

// GroupOf returns the group of a single snapshot; Judge.Group also handles VMs that
// moved. A snapshot without a VM UUID is identified by its name.
func GroupOf(s *repo.Snapshot) Group {
	return Group{Origin: s.Origin, Pool: s.Pool.UUID, VM: cmp.Or(s.VM.UUID, s.VM.Name), Job: s.Job, Writers: s.Group()}
}

// silence is how long a pool must have been without a new snapshot of a VM before
// its snapshots count together with those of the pool that the VM is on now.
const silence = 30 * 24 * time.Hour

// Judge is built from all snapshots of a repository; a policy is applied to some of
// them.
type Judge struct {
	now   time.Time
	moved map[vmOnPool]string // UUID of the pool with whose snapshots they are counted
}

type vmOnPool struct{ vm, writers, pool string }

// NewJudge evaluates all snapshots, including those to which no policy is applied:
// whether a VM is active on a pool does not depend on job or tag.
func NewJudge(all []*repo.Snapshot, now time.Time) *Judge {
	j := &Judge{now: now, moved: make(map[vmOnPool]string)}
	type seen struct{ vm, writers string }
	spans := make(map[seen]map[string]*span) // by pool
	for _, s := range all {
		if s.Origin != "pool" || s.VM.UUID == "" || s.DataTime.After(now.Add(clockSkew)) {
			continue
		}
		who := seen{s.VM.UUID, s.Group()}
		pools := spans[who]
		if pools == nil {
			pools = make(map[string]*span)
			spans[who] = pools
		}
		p := pools[s.Pool.UUID]
		if p == nil {
			p = &span{first: s.DataTime, last: s.DataTime}
			pools[s.Pool.UUID] = p
		}
		if s.DataTime.Before(p.first) {
			p.first = s.DataTime
		}
		if s.DataTime.After(p.last) {
			p.last = s.DataTime
		}
	}
	for who, pools := range spans {
		j.follow(who.vm, who.writers, pools)
	}
	return j
}

// span is the time between the first and the last snapshot of a VM on a pool.
type span struct{ first, last time.Time }

// follow determines the pools that a VM has left.
func (j *Judge) follow(vm, writers string, pools map[string]*span) {
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
			j.moved[vmOnPool{vm, writers, pool}] = head
		}
	}
}

// Group returns the group that a snapshot belongs to. Snapshots of one VM on two
// pools are one group if the VM moved: all snapshots from one pool are older than
// all from the other, and that pool has had no new one for 30 days. Otherwise they
// are two groups, because a copy of a VM with the same UUID may be active on both
// pools, and the snapshots of one must not displace those of the other.
func (j *Judge) Group(s *repo.Snapshot) Group {
	g := GroupOf(s)
	if s.Origin == "pool" {
		if to, ok := j.moved[vmOnPool{s.VM.UUID, s.Group(), s.Pool.UUID}]; ok {
			g.Pool = to
		}
	}
	return g
}

// group decides about the snapshots of one VM and job.
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
		return cmp.Or(b.Snapshot.DataTime.Compare(a.Snapshot.DataTime), b.Snapshot.WrittenTime.Compare(a.Snapshot.WrittenTime),
			cmp.Compare(b.Snapshot.ID(), a.Snapshot.ID()))
	})
	var count []*Decision // snapshots that rules count
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
		if r.bucket == nil {
			p.last(count, keep)
			continue
		}
		last, n := "", 0
		for _, d := range count {
			if r.count != All && n >= r.count {
				break
			}
			if b := r.bucket(d.Snapshot.DataTime.In(where), n); b != last {
				keep(d, "%s %s", r.name, b)
				last, n = b, n+1
			}
		}
	}
	if p.Within != (Period{}) {
		since := p.Within.Before(count[0].Snapshot.DataTime.In(where))
		for _, d := range count {
			if !d.Snapshot.DataTime.Before(since) {
				keep(d, "within %v", p.Within)
			}
		}
	}
	if !count[0].Keep {
		keep(count[0], "newest complete")
	}
	seen := map[string]bool{count[0].Snapshot.Pool.UUID: true}
	for _, d := range count[1:] { // for the pools that the VM has left
		if pool := d.Snapshot.Pool; !seen[pool.UUID] {
			seen[pool.UUID] = true
			if !d.Keep {
				keep(d, "newest complete of pool %s", cmp.Or(pool.Name, pool.UUID))
			}
		}
	}
}
