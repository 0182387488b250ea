package main

import (
	"errors"
	"strings"
	"testing"
	"time"

	"xenkeep/repo"
)

func snapshot(day int, uuid, name, job string) *repo.Snapshot {
	return &repo.Snapshot{
		Origin: "pool", Pool: repo.Named{UUID: "p", Name: "pool"}, VM: repo.Named{UUID: uuid, Name: name}, Job: job, Complete: true,
		DataTime: time.Date(2026, 11, day, 3, 0, 0, 0, time.UTC), Tags: []string{job + "-tag"},
	}
}

// Rows A4 to A6 of the fault list: a filter that names nothing, or two VMs, is
// refused; it never means all, both or none.
func TestFilter(t *testing.T) {
	all := []*repo.Snapshot{
		snapshot(1, "u1", "web", "nightly"), snapshot(2, "u2", "web", "nightly"), snapshot(3, "u3", "old", "weekly"), snapshot(4, "u3", "new", "weekly"),
	}
	for _, c := range []struct {
		filter filter
		count  int
		err    error
		text   string
		code   int
	}{
		{filter{}, 4, nil, "", 0},
		{filter{vm: "u1"}, 1, nil, "", 0},
		{filter{vm: "new"}, 2, nil, "", 0},
		{filter{vm: "pool/new", job: "weekly", tags: []string{"weekly-tag"}}, 2, nil, "", 0},
		{filter{vm: "web"}, 0, repo.ErrAmbiguous, "VM u2 of pool pool", exitFailed},
		{filter{vm: "old"}, 0, repo.ErrRenamed, `"old": the VM has another name now: "new" (u3)`, exitFailed},
		{filter{vm: "nosuch"}, 0, repo.ErrNoSnapshot, `VM "nosuch": no such snapshot`, exitFailed},
		{filter{job: "nosuch"}, 0, repo.ErrNoSnapshot, `job "nosuch": no such snapshot`, exitFailed},
		{filter{tags: []string{"nosuch"}}, 0, repo.ErrNoSnapshot, `tag nosuch: no such snapshot`, exitFailed},
		{filter{vm: "u1", job: "weekly"}, 0, repo.ErrNoSnapshot, `job "weekly": no such snapshot`, exitFailed},
	} {
		some, err := c.filter.apply(all)
		if len(some) != c.count || !errors.Is(err, c.err) || err != nil && !strings.Contains(err.Error(), c.text) || exitCode(err) != c.code {
			t.Errorf("%+v: %d snapshots, %v, exit code %d", c.filter, len(some), err, exitCode(err))
		}
		if err != nil && hint(err) == "" {
			t.Errorf("%+v: %v has no hint", c.filter, err)
		}
	}
}

// Row N7 of the fault list: commands that delete or overwrite refuse a
// snapshot that may not be the one that the user means.
func TestChooseToDestroy(t *testing.T) {
	all := []*repo.Snapshot{snapshot(1, "u1", "old", "nightly"), snapshot(2, "u1", "web", "nightly")}
	for spec, refused := range map[string]bool{
		"latest": true, "latest:old": true, "latest:web": false, "web@2026-11-02": false, "old@2026-11-01": false, "web@2026-11-20": true,
	} {
		s, err := chooseToDestroy(all, spec)
		if refused != (err != nil) || refused && (exitCode(err) != exitUsage || hint(err) == "") {
			t.Errorf("%s: %v, %v, hint %q", spec, s, err, hint(err))
		}
	}
}
