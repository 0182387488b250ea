package repo

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

// made creates snapshots from lines "TIME POOL UUID NAME [incomplete]", oldest
// first; their IDs count from 00000001.
func made(t *testing.T, text string) []*Snapshot {
	t.Helper()
	var all []*Snapshot
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) == 0 {
			continue
		}
		at, err := time.ParseInLocation("2006-01-02T15:04", f[0], time.UTC)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, &Snapshot{
			id: fmt.Sprintf("%08x", len(all)+1), Origin: "pool", DataTime: at, Complete: len(f) < 5,
			Pool: Named{UUID: "uuid-of-" + f[1], Name: f[1]}, VM: Named{UUID: f[2], Name: f[3]},
		})
	}
	return all
}

// chosen returns the result for a reference: an ID with its note, or an error.
func chosen(all []*Snapshot, spec string, now time.Time) string {
	c, err := Choose(all, spec, now)
	switch {
	case err != nil:
		return err.Error()
	case c.Note != "":
		return c.Snapshot.ID() + " " + c.Note
	}
	return c.Snapshot.ID()
}

func TestChooseVM(t *testing.T) {
	now := time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		name, snapshots string
		want            map[string]string // a part of the result
	}{
		// Row X4 of the fault list: after a recovery to a new pool that keeps
		// the UUID, the VM is the same VM.
		{"moved", `
			2026-11-01T03:00 a u1 web
			2026-11-02T03:00 a u1 web
			2026-11-20T03:00 b u1 web`,
			map[string]string{"latest:web": "00000003", "latest:u1": "00000003", "latest:U1": "00000003", "latest:a/web": "00000002", "latest:uuid-of-a/u1": "00000002", "latest:b/web": "00000003", "web@2026-11-10": "00000002 "}},
		// Two VMs with one UUID that exist on two pools.
		{"alive on both", `
			2026-11-01T03:00 a u1 web
			2026-11-02T03:00 b u1 web
			2026-11-03T03:00 a u1 web`,
			map[string]string{
				"latest:web": `"latest:web": more than one is meant: pool a (uuid-of-a) has it, newest snapshot 2026-11-0`,
				"latest:u1":  "more than one is meant", "latest:a/web": "00000003", "latest:b/u1": "00000002", "b/web@2026-11-02": "00000002", "web@2026-11-29": "more than one",
			}},
		// Row "a VM renamed" of the fault list: its old name selects the VM.
		{"renamed", `
			2026-11-01T03:00 a u1 old
			2026-11-02T03:00 a u1 new`,
			map[string]string{"latest:old": `00000002 VM "old" is called "new" now`, "latest:new": "00000002", "old@2026-11-01": "00000001"}},
		{"the name went to another VM", `
			2026-11-01T03:00 a u1 web
			2026-11-02T03:00 a u1 web-old
			2026-11-03T03:00 a u2 web`,
			map[string]string{"latest:web": "00000003", "latest:web-old": "00000002"}},
		{"two of a name", `
			2026-11-01T03:00 a u1 web
			2026-11-02T03:00 a u2 web`,
			map[string]string{"latest:web": `"web": more than one is meant: VM u2 of pool a (newest snapshot 2026-11-0`, "latest:u1": "00000001"}},
		{"slashes in names", `
			2026-11-01T03:00 a u1 shop/web
			2026-11-02T03:00 shop u2 web`,
			map[string]string{"latest:shop/web": "00000001", "latest:a/shop/web": "00000001", "latest:web": "00000002"}},
		{"incomplete ones", `
			2026-11-01T03:00 a u1 web
			2026-11-02T03:00 a u1 web incomplete
			2026-11-03T03:00 a u2 db incomplete`,
			map[string]string{"latest:web": "00000001", "latest": "00000001", "latest:db": "no complete snapshot: no such snapshot", "latest:": "no such snapshot", "latest:nosuch": "no such snapshot"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			all := made(t, c.snapshots)
			for spec, want := range c.want {
				got := chosen(all, spec, now)
				if !strings.Contains(got, want) || len(want) == 8 && got != want {
					t.Errorf("%s: %s, want %s", spec, got, want)
				}
			}
		})
	}
}

// Row N15 of the fault list: a snapshot is selected by its VM and a time.
func TestChooseTime(t *testing.T) {
	all := made(t, `
		2026-11-20T03:00 a u1 web
		2026-11-24T03:00 a u1 web
		2026-11-24T21:30 a u1 web
		2026-11-25T03:00 a u1 web
		2026-11-27T03:00 a u1 web incomplete`)
	now := time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC) // a Sunday
	for spec, want := range map[string]string{
		"web@2026-11-24":           "00000003",
		"u1@2026-11-24":            "00000003",
		"a/web@2026-11-24":         "00000003",
		"web@2026-11-24 03:00":     "00000002",
		"web@2026-11-24T03:00":     "00000002",
		"web@2026-11-24T03:00:00Z": "00000002",
		"web@2026-11-24 02:59":     `00000001 "web@2026-11-24 02:59": the newest snapshot before the end of that time is of 2026-11-20 03:00; the nearest are 00000002 of 2026-11-24 03:00, 00000003 of 2026-11-24 21:30, 00000004 of 2026-11-25 03:00`,
		"web@2026-11-23":           `00000001 "web@2026-11-23": the newest snapshot before the end of that time is of 2026-11-20 03:00; the nearest are`,
		"web@tuesday":              "00000003",
		"web@Wed":                  "00000004",
		"web@tuesday 04:00":        `00000002 "web@tuesday 04:00": the newest snapshot before`,
		"web@today":                `00000004 "web@today": the newest snapshot before`,
		"web@2026-11-19":           `"web@2026-11-19": no complete snapshot so early; the nearest are 00000001 of 2026-11-20 03:00, 00000002 of 2026-11-24 03:00, 00000003 of 2026-11-24 21:30: no such snapshot`,
		"web@teusday":              `"teusday": no such time: want a day such as`,
		"web@2026-11-24 25:00":     `no such time: want a time of day`,
		"web@":                     `no such time`,
		"nosuch@2026-11-24":        `VM "nosuch": no such snapshot`,
	} {
		if got := chosen(all, spec, now); !strings.HasPrefix(got, want) && !strings.HasSuffix(want, "of day") && !strings.Contains(got, want) || len(want) == 8 && got != want {
			t.Errorf("%s: %s, want %s", spec, got, want)
		}
	}
	if _, err := Choose(all, "web@2026-11-19", now); !errors.Is(err, ErrNoSnapshot) {
		t.Errorf("too early: %v", err)
	}
	if _, err := Choose(all, "web@someday", now); !errors.Is(err, ErrTime) {
		t.Errorf("no time: %v", err)
	}
}

// Days and minutes are those of local time, also on a day with 25 hours.
func TestParseWhen(t *testing.T) {
	zone, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Skipf("SKIP: no time zone data: %v", err)
	}
	now := time.Date(2026, 11, 1, 0, 30, 0, 0, zone) // a Sunday
	for text, want := range map[string][2]string{
		"2026-10-25":                {"2026-10-24T22:00:00Z", "2026-10-25T23:00:00Z"},
		"sunday":                    {"2026-10-31T23:00:00Z", "2026-11-01T23:00:00Z"},
		"monday":                    {"2026-10-25T23:00:00Z", "2026-10-26T23:00:00Z"},
		"Tomorrow":                  {},
		"Today":                     {"2026-10-31T23:00:00Z", "2026-11-01T23:00:00Z"},
		"yesterday 23:59":           {"2026-10-31T22:59:00Z", "2026-10-31T23:00:00Z"},
		"2026-10-25 12:00:07":       {"2026-10-25T11:00:07Z", "2026-10-25T11:00:08Z"},
		"2026-10-25T12:00:07+05:00": {"2026-10-25T07:00:07Z", "2026-10-25T07:00:08Z"},
		"2026-10-25 12:00:07Z":      {"2026-10-25T12:00:07Z", "2026-10-25T12:00:08Z"},
		"2026-10-25 12:00+01:00":    {"2026-10-25T11:00:00Z", "2026-10-25T11:01:00Z"},
		"2026-10-25T12:00 +01:00":   {"2026-10-25T11:00:00Z", "2026-10-25T11:01:00Z"},
		"2026-10-25T12:00Z":         {"2026-10-25T12:00:00Z", "2026-10-25T12:01:00Z"},
		"2026-10-25 01:59":          {"2026-10-24T23:59:00Z", "2026-10-25T00:00:00Z"},
		"2026-10-25 02:30":          {}, // twice
		"2026-10-25 02:30+02:00":    {"2026-10-25T00:30:00Z", "2026-10-25T00:31:00Z"},
		"2026-10-25 02:30+01:00":    {"2026-10-25T01:30:00Z", "2026-10-25T01:31:00Z"},
		"2026-10-25 03:00":          {"2026-10-25T02:00:00Z", "2026-10-25T02:01:00Z"},
		"2026-03-29 02:30":          {}, // never
		"2026-03-29 03:00":          {"2026-03-29T01:00:00Z", "2026-03-29T01:01:00Z"},
		"2026-02-30":                {},
		"03:00":                     {},
		"":                          {},
	} {
		w, err := ParseWhen(text, now)
		got := [2]string{}
		if err == nil {
			got = [2]string{w.Begin.UTC().Format(time.RFC3339), w.End.UTC().Format(time.RFC3339)}
		}
		if got != want {
			t.Errorf("%q: %v, %v, want %v", text, got, err, want)
		}
	}
}
