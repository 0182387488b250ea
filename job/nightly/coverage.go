package nightly

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"xenkeep/job"
	"xenkeep/job/backup"
	"xenkeep/job/config"
	"xenkeep/job/selection"
	"xenkeep/repo"
	"xenkeep/repo/check"
	"xenkeep/repo/retention"
	"xenkeep/xapi"
)

// Covered describes the protection of a VM of a pool. Its JSON form is documented in
// docs/reference/json.md.
type Covered struct {
	Type     string    `json:"type"` // "vm"
	Pool     string    `json:"pool"`
	Name     string    `json:"name"`
	UUID     string    `json:"uuid"`
	Snapshot string    `json:"snapshot,omitempty"` // its newest good snapshot
	Data     time.Time `json:"data_time,omitzero"`
	Age      float64   `json:"age_s,omitempty"`
	Jobs     []string  `json:"jobs"` // of the config that select it
	// Damaged is the reason why a newer snapshot is not counted: it is known to be
	// damaged.
	Damaged string `json:"damaged,omitempty"`
	// Left is the reason why the jobs leave it out, if one does.
	Left string `json:"left_out,omitempty"`
	// FromFuture is set if the snapshot is dated more than a day in the future.
	FromFuture bool `json:"from_future,omitempty"`
	// TooOld is set if a VM that should be protected has no good snapshot, or if its
	// newest one is older than the maximum age.
	TooOld bool `json:"too_old"`
}

// Coverage returns every VM of a pool that has disks. jobs are those of the config for
// this pool. Without jobs every VM should be protected, otherwise those that at least
// one job does not leave out.
func Coverage(ctx context.Context, r *repo.Repository, pool *xapi.Client, jobs []*config.Job, maxAge time.Duration, now time.Time) ([]Covered, error) {
	all, bad, err := r.Snapshots(ctx)
	if err != nil {
		return nil, err
	}
	_ = bad // these are not good snapshots
	unsound, err := check.Unsound(ctx, r)
	if err != nil {
		return nil, err
	}
	p, err := pool.Pool(ctx)
	if err != nil {
		return nil, err
	}
	inv, err := selection.Read(ctx, pool)
	if err != nil {
		return nil, err
	}
	inv.Saved = saved(all, p.UUID)
	chosen := make(map[string][]string)
	left := make(map[string]string)
	for _, j := range jobs {
		sel, err := selection.Choose(inv, j)
		if err != nil {
			return nil, err
		}
		for i := range sel.VMs {
			chosen[sel.VMs[i].Record.UUID] = append(chosen[sel.VMs[i].Record.UUID], j.Name)
		}
		for _, l := range sel.Left {
			left[l.Record.UUID] = l.Reason
		}
	}
	var list []Covered
	for i := range inv.VMs {
		vm := &inv.VMs[i]
		disks := slices.ContainsFunc(vm.VBDs, func(ref xapi.Ref) bool { return inv.VBDs[ref].Type == "Disk" && !inv.VBDs[ref].VDI.IsNull() })
		if !vm.Real() || !disks {
			continue
		}
		c := Covered{Type: "vm", Pool: cmp.Or(p.NameLabel, p.UUID), Name: vm.NameLabel, UUID: vm.UUID, Jobs: chosen[vm.UUID]}
		if c.Jobs == nil {
			c.Jobs = []string{}
			c.Left = left[vm.UUID]
		}
		wanted := len(jobs) == 0 || len(c.Jobs) > 0 || c.Left == ""
		c.TooOld = wanted
		s := backup.LatestComplete(all, p.UUID, vm.UUID, unsound)
		if newest := backup.LatestComplete(all, p.UUID, vm.UUID, nil); newest != s {
			c.Damaged = "snapshot " + newest.Short() + ": " + oneLine(errors.New(unsound[newest.ID()]))
		}
		if s != nil {
			age := now.Sub(backup.DataTime(s))
			c.Snapshot, c.Data, c.Age, c.FromFuture = s.ID(), s.DataTime, age.Seconds(), retention.FromFuture(s, now)
			// An impossible age does not count as protection.
			c.TooOld = wanted && (age > maxAge || age < -job.ClockSkew)
		}
		list = append(list, c)
	}
	return list, nil
}
