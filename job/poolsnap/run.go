package poolsnap

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/robfig/cron/v3"

	"xenkeep/job"
	"xenkeep/job/config"
	"xenkeep/job/selection"
	"xenkeep/job/vmplan"
	"xenkeep/repo"
	"xenkeep/repo/retention"
	"xenkeep/xapi"
)

// JobRun is the result of a run of a job of type pool-snapshot.
type JobRun struct {
	Type     string   `json:"type"` // "pool_snapshot_run"
	Job      string   `json:"job"`
	Status   string   `json:"status"` // ok, partial, failed, skipped
	VMs      []JobVM  `json:"vms"`
	Warnings []string `json:"warnings"`
	Errors   []string `json:"errors"` // for VMs that the job names and that do not exist
}

// JobVM is the result for one VM.
type JobVM struct {
	VM       string      `json:"vm"` // UUID
	Name     string      `json:"name"`
	Status   string      `json:"status"`   // ok, failed, skipped
	Snapshot string      `json:"snapshot"` // UUID
	Kind     vmplan.Kind `json:"kind"`
	Deleted  []string    `json:"deleted"` // UUIDs of its own snapshots that the policy does not keep any more
	Kept     int         `json:"kept"`    // number of its own snapshots, including the new one
	Error    string      `json:"error"`
}

// JobOptions are the options of RunJob.
type JobOptions struct {
	Job      *config.Job
	Due      bool // leave out VMs that are not due yet
	StateDir string
	Warn     Warn
}

// RunJob takes the snapshots of a job of xenkeep's config. Then it deletes, for each
// VM that succeeded, those of the job's own snapshots that its policy does not keep
// any more. The job's own snapshots have its mark; others are neither counted nor
// touched. The time is that of the pool's master.
func RunJob(ctx context.Context, c *xapi.Client, o JobOptions) (*JobRun, error) {
	release, err := job.Lock(o.StateDir, "pool-"+c.PoolUUID(), o.Job.Name)
	if err != nil {
		return nil, err
	}
	defer release()
	rec, err := c.Pool(ctx)
	if err != nil {
		return nil, err
	}
	now, err := c.ServerTime(ctx, rec.Master)
	if err != nil {
		return nil, err
	}
	w, err := look(ctx, c)
	if err != nil {
		return nil, err
	}
	sel, err := selection.Choose(w.Inventory, o.Job)
	if err != nil {
		return nil, err
	}
	r := &JobRun{Type: "pool_snapshot_run", Job: o.Job.Name, VMs: []JobVM{}, Warnings: []string{}, Errors: []string{}}
	for _, f := range sel.Findings {
		text := f.Subject + ": " + f.Text
		switch {
		case f.Missing || f.Severity == selection.Error:
			r.Errors = append(r.Errors, text)
		case f.Severity == selection.Warn:
			r.Warnings = append(r.Warnings, text)
		}
	}
	var when cron.Schedule
	if o.Due && o.Job.Schedule != "" {
		if when, err = cron.ParseStandard(o.Job.Schedule); err != nil {
			return nil, fmt.Errorf("schedule %q: %w: %w", o.Job.Schedule, err, ErrValue)
		}
	}
	warn := func(format string, args ...any) { r.Warnings = append(r.Warnings, fmt.Sprintf(format, args...)) }
	good, bad := 0, len(r.Errors)
	for i := range sel.VMs {
		v := &sel.VMs[i]
		x := JobVM{VM: v.Record.UUID, Name: v.Record.NameLabel, Deleted: []string{}}
		own := w.own(v.Record.Ref, o.Job.Name)
		if when != nil && len(own) > 0 && when.Next(own[0].SnapshotTime.Local()).After(now.Local()) {
			x.Status, x.Kept = "skipped", len(own)
			r.VMs = append(r.VMs, x)
			continue
		}
		if err := jobVM(ctx, c, o.Job, v, now.Time, &x, warn); err != nil {
			x.Status, x.Error = "failed", strings.Join(strings.Fields(err.Error()), " ")
			bad++
		} else {
			x.Status = "ok"
			good++
		}
		r.VMs = append(r.VMs, x)
		if ctx.Err() != nil {
			return r, context.Cause(ctx)
		}
	}
	switch {
	case bad > 0 && good > 0:
		r.Status = "partial"
		return r, job.ErrPartial
	case bad > 0:
		r.Status = "failed"
		return r, job.ErrFailed
	case good == 0:
		r.Status = "skipped"
	default:
		r.Status = "ok"
	}
	return r, nil
}

// own returns a job's snapshots of a VM, newest first.
func (w *world) own(vm xapi.Ref, name string) []*xapi.VM {
	var list []*xapi.VM
	for i := range w.VMs {
		if v := &w.VMs[i]; v.IsASnapshot && v.SnapshotOf == vm && v.OtherConfig[jobKey] == name {
			list = append(list, v)
		}
	}
	slices.SortStableFunc(list, func(a, b *xapi.VM) int { return b.SnapshotTime.Compare(a.SnapshotTime.Time) })
	return list
}

// jobVM snapshots one VM, by the first kind that is possible, and applies the policy.
func jobVM(ctx context.Context, c *xapi.Client, j *config.Job, v *selection.VM, now time.Time, x *JobVM, warn Warn) error {
	kinds := v.Snapshot
	if len(kinds) == 0 {
		kinds = []config.Kind{config.Regular}
	}
	var last error
	for _, k := range kinds {
		made, err := Create(ctx, c, CreateOptions{
			VMs: []string{v.Record.UUID}, Kind: vmplan.Kind(k), Name: j.Name + " " + v.Record.NameLabel + " " + now.Local().Format("2006-01-02 15:04:05"),
			Text: "taken by xenkeep, job " + j.Name, Tags: j.Tags, Job: j.Name, Now: now, Warn: warn,
		})
		if len(made) > 0 {
			x.Snapshot, x.Kind = made[0].UUID, made[0].Kind
		}
		if err == nil || x.Snapshot != "" || !vmplan.IsUnable(err) || ctx.Err() != nil {
			if err == nil && last != nil {
				warn("VM %s: %v; a snapshot of kind %s was taken", v.Record.NameLabel, last, k)
			}
			last = err
			break
		}
		last = errors.Join(last, err)
	}
	if x.Snapshot == "" {
		return last
	}
	return errors.Join(last, rotate(ctx, c, j.Name, v, now, x))
}

// rotate deletes those of the job's own snapshots that the policy does not keep any
// more.
func rotate(ctx context.Context, c *xapi.Client, name string, v *selection.VM, now time.Time, x *JobVM) error {
	w, err := look(ctx, c)
	if err != nil {
		return err
	}
	own := w.own(v.Record.Ref, name)
	judged := make([]*repo.Snapshot, len(own))
	for i, s := range own {
		judged[i] = &repo.Snapshot{Job: name, VM: repo.Named{UUID: v.Record.UUID, Name: v.Record.NameLabel}, DataTime: s.SnapshotTime.Time, WrittenTime: s.SnapshotTime.Time, Complete: true}
	}
	var policy retention.Policy = v.Keep
	var plan []Doomed
	for i, d := range policy.Apply(judged, now) {
		if d.Keep || own[i].UUID == x.Snapshot {
			x.Kept++
			continue
		}
		plan = append(plan, w.doomed(own[i], false))
	}
	slices.SortFunc(plan, func(a, b Doomed) int { return cmp.Compare(a.Name, b.Name) })
	err = destroyAll(ctx, c, plan, func(o Object) {
		if o.Class == "VM" {
			x.Deleted = append(x.Deleted, o.UUID)
		}
	})
	if err != nil {
		return fmt.Errorf("snapshot taken, but old ones are left: %w", err)
	}
	return nil
}
