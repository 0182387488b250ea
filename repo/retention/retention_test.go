package retention

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"xenkeep/repo"
)

func zone(t testing.TB, name string) *time.Location {
	t.Helper()
	l, err := time.LoadLocation(name)
	if err != nil {
		t.Skipf("SKIP: no time zone data: %v", err)
	}
	return l
}

// snaps parses one snapshot per line: a time, then "incomplete" or "vm=…".
func snaps(t testing.TB, l *time.Location, text string) []*repo.Snapshot {
	t.Helper()
	var all []*repo.Snapshot
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) == 0 {
			continue
		}
		s := &repo.Snapshot{Origin: "pool", VM: repo.Named{UUID: "a"}, Complete: true, Job: "default"}
		at, err := time.Parse(time.RFC3339, f[0])
		if err != nil {
			at, err = time.ParseInLocation("2006-01-02T15:04", f[0], l)
		}
		if err != nil {
			t.Fatal(err)
		}
		s.DataTime = at
		for _, word := range f[1:] {
			switch k, v, _ := strings.Cut(word, "="); k {
			case "incomplete":
				s.Complete = false
			case "vm":
				s.VM.UUID = v
			case "job":
				s.Job = v
			default:
				t.Fatalf("word %q", word)
			}
		}
		all = append(all, s)
	}
	return all
}

// show formats decisions as the tests expect them: a time and reasons, or "-".
func show(l *time.Location, ds []Decision) string {
	var b strings.Builder
	for _, d := range ds {
		why := "-"
		if d.Keep {
			why = strings.Join(d.Reasons, ", ")
		}
		fmt.Fprintf(&b, "%s %s\n", d.Snapshot.DataTime.In(l).Format("2006-01-02T15:04"), why)
	}
	return b.String()
}

func TestApply(t *testing.T) {
	for _, c := range []struct {
		name   string
		zone   string // UTC if empty
		now    string
		policy Policy
		in     string
		want   string
	}{
		{
			name: "no policy keeps all", now: "2026-03-10T00:00",
			in:   "2026-03-01T01:00\n2026-03-01T02:00 incomplete\n",
			want: "2026-03-01T01:00 no policy\n2026-03-01T02:00 no policy\n",
		},
		{
			name: "last", now: "2026-03-10T00:00", policy: Policy{Last: 2},
			in:   "2026-03-01T01:00\n2026-03-01T02:00\n2026-03-01T03:00\n",
			want: "2026-03-01T01:00 -\n2026-03-01T02:00 last 2\n2026-03-01T03:00 last 1\n",
		},
		{
			name: "the newest of each day, and days without snapshots do not count",
			now:  "2026-03-10T00:00", policy: Policy{Daily: 3},
			in: "2026-03-01T23:00\n2026-03-05T01:00\n2026-03-05T23:59\n2026-03-08T00:00\n2026-03-09T03:00\n2026-03-09T09:00\n",
			want: "2026-03-01T23:00 -\n2026-03-05T01:00 -\n2026-03-05T23:59 daily 2026-03-05\n2026-03-08T00:00 daily 2026-03-08\n" +
				"2026-03-09T03:00 -\n2026-03-09T09:00 daily 2026-03-09\n",
		},
		{
			name: "rules add up", now: "2026-03-10T00:00", policy: Policy{Last: 1, Daily: 2, Weekly: 2, Monthly: 2, Yearly: 2},
			in: "2025-12-31T12:00\n2026-02-27T12:00\n2026-03-01T12:00\n2026-03-02T12:00\n2026-03-09T12:00\n",
			want: "2025-12-31T12:00 yearly 2025\n2026-02-27T12:00 monthly 2026-02\n2026-03-01T12:00 -\n" +
				"2026-03-02T12:00 daily 2026-03-02, weekly 2026-W10\n" +
				"2026-03-09T12:00 last 1, daily 2026-03-09, weekly 2026-W11, monthly 2026-03, yearly 2026\n",
		},
		{
			name: "weeks are those of ISO 8601: 1 January 2027 lies in the last week of 2026",
			now:  "2027-01-10T00:00", policy: Policy{Weekly: 2},
			in:   "2026-12-27T12:00\n2026-12-28T12:00\n2027-01-01T12:00\n2027-01-04T12:00\n",
			want: "2026-12-27T12:00 -\n2026-12-28T12:00 -\n2027-01-01T12:00 weekly 2026-W53\n2027-01-04T12:00 weekly 2027-W01\n",
		},
		{
			name: "days are those of the zone", zone: "Asia/Tokyo",
			now: "2026-03-10T00:00", policy: Policy{Daily: 2},
			in:   "2026-03-01T14:00:00Z\n2026-03-01T14:59:00Z\n2026-03-01T15:00:00Z\n",
			want: "2026-03-01T23:00 -\n2026-03-01T23:59 daily 2026-03-01\n2026-03-02T00:00 daily 2026-03-02\n",
		},
		{
			name: "the same in another zone is one day", zone: "UTC",
			now: "2026-03-10T00:00", policy: Policy{Daily: 2},
			in:   "2026-03-01T14:00:00Z\n2026-03-01T14:59:00Z\n2026-03-01T15:00:00Z\n",
			want: "2026-03-01T14:00 -\n2026-03-01T14:59 -\n2026-03-01T15:00 daily 2026-03-01\n",
		},
		{
			name: "in autumn an hour comes twice", zone: "Europe/Berlin",
			now: "2026-10-26T00:00", policy: Policy{Hourly: 3},
			in: "2026-10-24T23:30:00Z\n2026-10-25T00:30:00Z\n2026-10-25T01:30:00Z\n2026-10-25T02:30:00Z\n",
			want: "2026-10-25T01:30 -\n2026-10-25T02:30 hourly 2026-10-25 02h +0200\n2026-10-25T02:30 hourly 2026-10-25 02h +0100\n" +
				"2026-10-25T03:30 hourly 2026-10-25 03h +0100\n",
		},
		{
			name: "in spring a day has 23 hours", zone: "Europe/Berlin",
			now: "2026-03-30T12:00", policy: Policy{Within: Period{Days: 1}},
			in:   "2026-03-28T11:59\n2026-03-28T12:00\n2026-03-29T01:00\n2026-03-29T12:00\n",
			want: "2026-03-28T11:59 -\n2026-03-28T12:00 within 1d\n2026-03-29T01:00 within 1d\n2026-03-29T12:00 within 1d\n",
		},
		{
			name: "but hours are hours", zone: "Europe/Berlin",
			now: "2026-03-30T12:00", policy: Policy{Within: Period{Hours: 24}},
			in:   "2026-03-28T10:59\n2026-03-28T11:00\n2026-03-29T12:00\n",
			want: "2026-03-28T10:59 -\n2026-03-28T11:00 within 24h\n2026-03-29T12:00 within 24h\n",
		},
		{
			name: "within is reckoned from the newest snapshot, not from today",
			now:  "2030-01-01T00:00", policy: Policy{Within: Period{Months: 1}},
			in:   "2026-02-27T12:00\n2026-02-28T12:00\n2026-03-31T12:00\n",
			want: "2026-02-27T12:00 -\n2026-02-28T12:00 within 1m\n2026-03-31T12:00 within 1m\n",
		},
		{
			name: "incomplete ones take no place; the newest stay until a complete one comes",
			now:  "2026-03-10T00:00", policy: Policy{Last: 1, Daily: 2},
			in: "2026-03-06T01:00\n2026-03-07T01:00\n2026-03-07T02:00 incomplete\n2026-03-08T01:00\n2026-03-08T02:00 incomplete\n2026-03-09T01:00 incomplete\n",
			want: "2026-03-06T01:00 -\n2026-03-07T01:00 daily 2026-03-07\n2026-03-07T02:00 -\n2026-03-08T01:00 last 1, daily 2026-03-08\n" +
				"2026-03-08T02:00 incomplete, none complete since\n2026-03-09T01:00 incomplete, none complete since\n",
		},
		{
			name: "incomplete ones alone all stay", now: "2026-03-10T00:00", policy: Policy{Last: 1},
			in:   "2026-03-08T02:00 incomplete\n2026-03-09T01:00 incomplete\n",
			want: "2026-03-08T02:00 incomplete, none complete since\n2026-03-09T01:00 incomplete, none complete since\n",
		},
		{
			name: "what comes from the future stays and pushes nothing out",
			now:  "2026-03-10T00:00", policy: Policy{Last: 1, Within: Period{Days: 1}},
			in: "2026-03-08T01:00\n2026-03-09T00:30\n2026-03-10T00:10\n2037-01-01T00:00\n2037-01-02T00:00 incomplete\n",
			want: "2026-03-08T01:00 -\n2026-03-09T00:30 within 1d\n2026-03-10T00:10 last 1, within 1d\n2037-01-01T00:00 from the future\n" +
				"2037-01-02T00:00 from the future\n",
		},
		{
			name: "all", now: "2026-03-10T00:00", policy: Policy{Monthly: All},
			in:   "2025-01-01T00:00\n2025-01-02T00:00\n2026-01-02T00:00\n",
			want: "2025-01-01T00:00 -\n2025-01-02T00:00 monthly 2025-01\n2026-01-02T00:00 monthly 2026-01\n",
		},
		{
			name: "each VM and job for itself", now: "2026-03-10T00:00", policy: Policy{Last: 1},
			in: "2026-03-01T01:00 vm=a\n2026-03-01T02:00 vm=b\n2026-03-01T03:00 vm=a job=x\n2026-03-01T04:00 vm=a\n",
			want: "2026-03-01T01:00 -\n2026-03-01T02:00 last 1\n2026-03-01T03:00 last 1\n" +
				"2026-03-01T04:00 last 1\n",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := zone(t, c.zone)
			now, err := time.ParseInLocation("2006-01-02T15:04", c.now, l)
			if err != nil {
				t.Fatal(err)
			}
			c.policy.Location = l
			if got := show(l, c.policy.Apply(snaps(t, l, c.in), now)); got != c.want {
				t.Errorf("got:\n%swant:\n%s", got, c.want)
			}
		})
	}
}

// For every policy, order of the input and set of snapshots: the newest complete
// one stays, each kept one has a reason, and a policy that was applied removes
// nothing more when it is applied again.
func TestProperties(t *testing.T) {
	now := time.Date(2026, 3, 10, 0, 0, 0, 0, time.UTC)
	for seed := range uint64(500) {
		r := rand.New(rand.NewPCG(seed, 3))
		var all []*repo.Snapshot
		for range r.IntN(60) {
			all = append(all, &repo.Snapshot{
				VM:       repo.Named{UUID: fmt.Sprint(r.IntN(3))},
				Complete: r.IntN(4) > 0, DataTime: now.Add(-time.Duration(r.IntN(400*24)) * time.Hour),
			})
		}
		p := Policy{Location: time.UTC}
		for _, n := range []*int{&p.Last, &p.Hourly, &p.Daily, &p.Weekly, &p.Monthly, &p.Yearly, &p.Within.Days} {
			if r.IntN(2) == 0 {
				*n = r.IntN(8)
			}
		}
		newest := make(map[Group]*repo.Snapshot)
		for _, s := range all {
			if o := newest[GroupOf(s)]; s.Complete && (o == nil || s.DataTime.After(o.DataTime)) {
				newest[GroupOf(s)] = s
			}
		}
		var left []*repo.Snapshot
		for i, d := range p.Apply(all, now) {
			if d.Snapshot != all[i] {
				t.Fatalf("seed %d: decisions are in another order", seed)
			}
			if d.Keep != (len(d.Reasons) > 0) {
				t.Fatalf("seed %d: keep %v for reasons %v", seed, d.Keep, d.Reasons)
			}
			if n := newest[GroupOf(d.Snapshot)]; n != nil && d.Snapshot.Complete && d.Snapshot.DataTime.Equal(n.DataTime) && !d.Keep {
				// Of several at the same time one must stay.
				if !slices.ContainsFunc(p.Apply(all, now), func(o Decision) bool {
					return o.Keep && o.Snapshot.Complete && GroupOf(o.Snapshot) == GroupOf(n) && o.Snapshot.DataTime.Equal(n.DataTime)
				}) {
					t.Fatalf("seed %d: the newest of a VM goes", seed)
				}
			}
			if d.Keep {
				left = append(left, d.Snapshot)
			}
		}
		for _, d := range p.Apply(left, now) {
			if !d.Keep {
				t.Fatalf("seed %d: a second pass removes %v", seed, d.Snapshot.DataTime)
			}
		}
	}
}

func TestValidate(t *testing.T) {
	if err := (Policy{Daily: All, Last: 3}).Validate(); err != nil {
		t.Error(err)
	}
	if err := (Policy{Weekly: -2}).Validate(); err == nil {
		t.Error("weekly -2 is taken")
	}
}

func TestPeriod(t *testing.T) {
	for _, c := range []struct{ in, out string }{
		{"1y6m", "1y6m"}, {"2w", "14d"}, {"1w3d", "10d"}, {"36h", "36h"}, {"1y2m3d4h", "1y2m3d4h"},
	} {
		p, err := ParsePeriod(c.in)
		if err != nil || p.String() != c.out {
			t.Errorf("%q: %q, %v", c.in, p, err)
		}
	}
	for _, in := range []string{"", "0d", "d", "5", "1d2y", "-1d", "1.5d", "1h1h", "99999999999999999999d", "4000000000d", "1x"} {
		if p, err := ParsePeriod(in); !errors.Is(err, ErrPeriod) {
			t.Errorf("%q: %v, %v", in, p, err)
		}
	}
	utc := func(y int, m time.Month, d int) time.Time { return time.Date(y, m, d, 5, 0, 0, 0, time.UTC) }
	for _, c := range []struct {
		p          Period
		from, want time.Time
	}{
		{Period{Months: 1}, utc(2026, 3, 31), utc(2026, 2, 28)},
		{Period{Years: 1}, utc(2024, 2, 29), utc(2023, 2, 28)},
		{Period{Months: 14}, utc(2026, 1, 15), utc(2024, 11, 15)},
		{Period{Days: 1}, utc(2026, 1, 1), utc(2025, 12, 31)},
		{Period{Months: 1, Days: 3}, utc(2026, 3, 31), utc(2026, 2, 25)},
	} {
		if got := c.p.Before(c.from); !got.Equal(c.want) {
			t.Errorf("%v before %v: %v, want %v", c.p, c.from, got, c.want)
		}
	}
}

func FuzzPeriod(f *testing.F) {
	f.Add("1y2m3w4d5h")
	f.Fuzz(func(t *testing.T, text string) {
		p, err := ParsePeriod(text)
		if err != nil {
			return
		}
		again, err := ParsePeriod(p.String())
		if err != nil || again != p {
			t.Fatalf("%q: %v, again %v: %v", text, p, again, err)
		}
	})
}

// onPools parses one snapshot per line: a time, a pool, and the job.
func onPools(t *testing.T, text string) []*repo.Snapshot {
	t.Helper()
	var all []*repo.Snapshot
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) == 0 {
			continue
		}
		at, err := time.Parse("2006-01-02", f[0])
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, &repo.Snapshot{Origin: "pool", Pool: repo.Named{UUID: f[1], Name: f[1]}, VM: repo.Named{UUID: "u"}, Complete: true, Job: f[2], DataTime: at})
	}
	return all
}

// Row X4 of the fault list: a VM that moved to another pool with its UUID is one
// VM, for retention too; but two VMs with one UUID that are active on two pools
// never displace each other's snapshots.
func TestApplyOverPools(t *testing.T) {
	now := time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)
	for _, c := range []struct{ name, in, want string }{
		{"moved long ago", `
			2026-08-01 a x
			2026-08-02 a x
			2026-08-03 a x
			2026-11-27 b x
			2026-11-28 b x`, `
			- - newest,complete,of,pool,a last,2 last,1`},
		{"moved long ago, and new there", `
			2026-08-01 a x
			2026-08-02 a x
			2026-11-28 b x`, `
			- last,2 last,1`},
		{"moved a moment ago: it may be a copy", `
			2026-11-25 a x
			2026-11-26 a x
			2026-11-27 b x
			2026-11-28 b x`, `
			last,2 last,1 last,2 last,1`},
		{"alive on both", `
			2026-08-01 a x
			2026-08-02 b x
			2026-08-03 a x
			2026-08-04 b x`, `
			last,2 last,2 last,1 last,1`},
		{"two copies, both gone long ago", `
			2026-07-01 a x
			2026-07-02 b x
			2026-07-03 a x
			2026-07-04 b x
			2026-11-28 c x`, `
			last,2 last,2 last,1 last,1 last,1`},
		{"one job for each pool", `
			2026-08-01 a x
			2026-08-02 a x
			2026-11-27 b y
			2026-11-28 b y`, `
			last,2 last,1 last,2 last,1`},
		{"over three pools", `
			2026-06-01 a x
			2026-06-02 a x
			2026-08-01 b x
			2026-11-27 c x
			2026-11-28 c x`, `
			- newest,complete,of,pool,a newest,complete,of,pool,b last,2 last,1`},
	} {
		t.Run(c.name, func(t *testing.T) {
			all := onPools(t, c.in)
			var got []string
			for _, d := range (Policy{Last: 2, Location: time.UTC}).Apply(all, now) {
				why := "-"
				if d.Keep {
					why = strings.ReplaceAll(strings.Join(d.Reasons, "+"), " ", ",")
				}
				got = append(got, why)
			}
			if want := strings.Fields(c.want); !slices.Equal(got, want) {
				t.Errorf("%v, want %v", got, want)
			}
		})
	}
	// Whether a pool is silent depends on all snapshots, not only on those to which
	// the policy is applied.
	all := onPools(t, "2026-08-01 a x\n2026-08-02 a x\n2026-08-03 a x\n2026-11-20 a other\n2026-11-27 b x\n2026-11-28 b x\n")
	some := slices.DeleteFunc(slices.Clone(all), func(s *repo.Snapshot) bool { return s.Job != "x" })
	kept := 0
	for _, d := range NewJudge(all, now).Apply(Policy{Last: 2}, some) {
		if d.Keep {
			kept++
		}
	}
	if kept != 4 {
		t.Errorf("a VM that another job saved nine days ago counts as gone: %d kept, want 4", kept)
	}
}

// Row F5 of the fault list: a snapshot from the future is recognized as one, so
// that it does not stay for ever without a report.
func TestFromFuture(t *testing.T) {
	now := time.Date(2026, 3, 10, 0, 0, 0, 0, time.UTC)
	for hours, want := range map[int]bool{-1: false, 0: false, 23: false, 24: false, 25: true, 260000: true} {
		if got := FromFuture(&repo.Snapshot{DataTime: now.Add(time.Duration(hours) * time.Hour)}, now); got != want {
			t.Errorf("%d hours ahead: %v", hours, got)
		}
	}
}
