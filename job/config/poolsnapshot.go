package config

import (
	"reflect"
	"slices"

	"github.com/robfig/cron/v3"

	"xenkeep/repo/retention"
)

// ofPoolSnapshots are the keys that are valid in a job of type PoolSnapshot.
var ofPoolSnapshots = []string{"type", "schedule", "pool", "select", "exclude", "rules", "snapshot", "tags", "keep"}

// checkPoolSnapshot refuses keys without effect, and jobs that would fill an SR.
func (j *Job) checkPoolSnapshot(bad *Problems, key string) {
	v := reflect.ValueOf(*j)
	for i := range v.NumField() {
		name := v.Type().Field(i).Tag.Get("toml")
		if name != "" && name != "-" && !slices.Contains(ofPoolSnapshots, name) && !v.Field(i).IsZero() {
			bad.add(0, "%s.%s: it has no effect in a job of type %q", key, name, PoolSnapshot)
		}
	}
	if len(j.Exclude.Disks)+len(j.Exclude.DiskPatterns) > 0 {
		bad.add(0, "%s.exclude: snapshots on the pool are of all disks", key)
	}
	if slices.Contains(j.Snapshot, Offline) {
		bad.add(0, "%s.snapshot: %q is for backups", key, Offline)
	}
	keeps := func(at string, k Keep) {
		if (k.Policy() == retention.Policy{}) {
			bad.add(0, "%s: how many are kept? without that the SR fills up, and a disk has 30 snapshots at most", at)
		}
	}
	keeps(key+".keep", j.Keep)
	for _, r := range j.Rules {
		if r.Keep != nil {
			keeps(key+".rules.keep", *r.Keep)
		}
		if r.Disks != "" || slices.Contains(r.Snapshot, Offline) {
			bad.add(0, "%s.rules: disks and %q are for backups", key, Offline)
		}
	}
	if j.Schedule != "" {
		if _, err := cron.ParseStandard(j.Schedule); err != nil {
			bad.add(0, "%s.schedule: %q: %v; want minute, hour, day, month and weekday as cron has them, or @hourly, @daily ...", key, j.Schedule, err)
		}
	}
}
