// Package retention decides which snapshots a policy keeps. It is a pure
// function of snapshots, policy and time; it deletes nothing.
package retention

import (
	"time"

	"xenkeep/repo"
)

// Policy says how many snapshots are kept. Its zero value keeps everything.
type Policy struct {
	Last, Hourly, Daily, Weekly, Monthly, Yearly int
	Within                                       time.Duration
	Location                                     *time.Location // whose days and weeks; nil is local
}

// IsZero tells whether the policy says nothing.
func (p Policy) IsZero() bool { p.Location = nil; return p == Policy{} }

// Decision is what happens to one snapshot, and why.
type Decision struct {
	Snapshot *repo.Snapshot
	Keep     bool
	Reasons  []string // rules that keep it: "last 1", "daily 2026-11-22" ...
}
