// Package nightly runs the jobs of a config: it selects VMs, calls backup, retention,
// prune and check when they are due, runs hooks, and reports. MakePlan predicts a run
// without changing anything; Coverage reports which VMs of a pool are protected.
package nightly

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"xenkeep/chunkstore/seal"
	"xenkeep/internal/limit"
	"xenkeep/job"
	"xenkeep/job/backup"
	"xenkeep/job/config"
	"xenkeep/job/notify"
	"xenkeep/job/report"
	"xenkeep/job/selection"
	"xenkeep/job/vmplan"
	"xenkeep/repo"
	"xenkeep/repo/check"
	"xenkeep/repo/forget"
	"xenkeep/repo/retention"
	"xenkeep/xapi"
)

// defaultRepack is the number of bytes that a prune may copy if the config does not
// limit it.
const defaultRepack = 10 << 30

// tellTime is the time limit for notifications about the end of a run, also after an
// interruption.
const tellTime = 5 * time.Minute

// Night holds the parameters of a run.
type Night struct {
	Job    *config.Job
	Notify config.Notify
	// Open opens the repository with its index, and Dial logs in to the pool. They are
	// called after the hook before the job. Their errors are reported like any other.
	Open func(ctx context.Context) (*repo.Repository, error)
	Dial func(ctx context.Context) (*xapi.Client, error)

	ConfigFile string // distinguishes jobs of the same name
	Location   string // of the repository, for the report
	PoolName   string // the pool's address, for the report
	StateDir   string // for locks and turns
	Machine    string
	Version    string
	LogFile    string   // the log, which the plan tries
	Secrets    []string // variables that contain secrets, which hooks must not receive
	Unsent     []string // what could not be written before the run began, for the report
	Progress   job.Progress
	Log        *slog.Logger
	Now        func() time.Time
	// Hint returns the next step after an error, or ""; nil is job.HintOf.
	Hint func(error) string
	// Finding returns the text of a finding of check, for the report; nil is
	// check.Finding.String.
	Finding func(check.Finding) string
}

func (n *Night) defaults() {
	if n.Hint == nil {
		n.Hint = job.HintOf
	}
	if n.Log == nil {
		n.Log = slog.New(slog.DiscardHandler)
	}
	if n.Now == nil {
		n.Now = time.Now
	}
	if n.Finding == nil {
		n.Finding = check.Finding.String
	}
}

// night is the state of one run.
type night struct {
	*Night
	rep  *report.Report
	good []report.Good // nil until it is known

	repo *repo.Repository
	pool *xapi.Client
	sel  *selection.Result
	errs []error // errors that make the run partial
	// unsound maps the snapshots that this run's check found damaged to the reasons.
	unsound map[string]string
}

// Run runs a job and returns its report, together with job.ErrFailed, job.ErrPartial
// and the errors that they join. If it returns job.ErrActive, nothing was done, and
// the notifications report that.
func Run(ctx context.Context, n Night) (*report.Report, error) {
	n.defaults()
	started := n.Now()
	x := &night{Night: &n, rep: &report.Report{
		Type: "report", State: report.OK, Job: n.Job.Name, Machine: n.Machine, Version: n.Version, Pool: n.PoolName,
		Repository: n.Location, Started: started.UTC(), VMs: []report.VM{}, Unsent: n.Unsent,
	}}
	scope, err := filepath.Abs(n.ConfigFile)
	if err != nil {
		scope = n.ConfigFile
	}
	release, err := job.Lock(n.StateDir, scope, n.Job.Name)
	send := notify.Sender{Config: n.Notify}
	if err != nil {
		return x.refused(ctx, &send, err)
	}
	defer release()
	x.unsent(send.Start(ctx, x.rep))
	err = x.run(ctx)
	if errors.Is(err, job.ErrActive) {
		return x.refused(ctx, &send, err)
	}
	x.judge(err)
	x.rep.Ended = n.Now().UTC()
	x.rep.Duration = x.rep.Ended.Sub(x.rep.Started).Seconds()
	if x.good == nil && n.Job.MetricsFile != "" {
		x.goodWithoutPool(ctx)
	}
	// The report is written and sent even if the run was interrupted.
	clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), tellTime)
	defer cancel()
	x.files()
	x.unsent(send.End(clean, x.rep))
	if len(x.rep.Unsent) > 0 && n.Job.ReportFile != "" { // again, with the new entries
		_ = x.rep.WriteFile(n.Job.ReportFile)
	}
	if err == nil && len(x.errs) > 0 {
		err = errors.Join(append([]error{job.ErrPartial}, x.errs...)...)
	}
	if x.rep.Damage != "" {
		err = errors.Join(job.ErrDamage, err)
	}
	return x.rep, err
}

// refused ends a run that could not begin because of another run of the job, or of its
// lock. It sends the notifications. The files of the config are not written, because
// they belong to the active run.
func (x *night) refused(ctx context.Context, send *notify.Sender, err error) (*report.Report, error) {
	x.rep.State, x.rep.Error, x.rep.Hint = report.Skipped, oneLine(err), x.Hint(err)
	if !errors.Is(err, job.ErrActive) {
		x.rep.State = report.Failed
	}
	x.rep.Ended = x.Now().UTC()
	x.rep.Duration = x.rep.Ended.Sub(x.rep.Started).Seconds()
	clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), tellTime)
	defer cancel()
	x.unsent(send.End(clean, x.rep))
	return x.rep, err
}

// judge sets the state of the run.
func (x *night) judge(err error) {
	ok, bad := x.rep.Count(report.OK)+x.rep.Count(report.Partial), len(x.rep.VMs)-x.rep.Count(report.OK)
	switch {
	case err == nil && bad == 0 && len(x.errs) == 0:
		return
	case err != nil && !errors.Is(err, job.ErrPartial) && !errors.Is(err, job.ErrMissed) || ok == 0 && x.rep.Count(report.Failed) > 0:
		x.rep.State = report.Failed
	case ok == 0 && len(x.rep.VMs) > 0:
		x.rep.State = report.Skipped
	default:
		x.rep.State = report.Partial
	}
	if err != nil && !errors.Is(err, job.ErrPartial) && !errors.Is(err, job.ErrFailed) && !errors.Is(err, job.ErrMissed) {
		x.rep.Error, x.rep.Hint = oneLine(err), x.Hint(err)
	}
}

func oneLine(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }

func (x *night) warn(format string, args ...any) {
	w := oneLine(fmt.Errorf(format, args...))
	x.Log.Warn(w)
	x.rep.Warnings = append(x.rep.Warnings, w)
}

// partial records an error that makes the run partial.
func (x *night) partial(err error) {
	x.warn("%w", err)
	x.errs = append(x.errs, err)
}

// damaged records damage in the repository as a short sentence. The first hint is
// shown. A nil err was recorded already.
func (x *night) damaged(err error, sentence, hint string) {
	if x.rep.Damage != "" {
		x.rep.Damage += "; "
	}
	x.rep.Damage += sentence
	x.rep.DamageHint = cmp.Or(x.rep.DamageHint, hint)
	if err != nil {
		x.errs = append(x.errs, err)
	}
}

func (x *night) unsent(errs []error) {
	for _, err := range errs {
		x.Log.Warn("notification not sent", "error", err)
		x.rep.Unsent = append(x.rep.Unsent, oneLine(err))
	}
}

// files writes the files that the config requests.
func (x *night) files() {
	tell := func(what, name string, err error) {
		if err != nil {
			x.unsent([]error{fmt.Errorf("%s %s: %w", what, name, err)})
		}
	}
	if f := x.Job.StatusLog; f != "" {
		tell("status log", f, x.rep.AppendStatus(f))
	}
	if f := x.Job.MetricsFile; f != "" {
		tell("metrics", f, x.rep.WriteMetrics(f, x.good))
	}
	if f := x.Job.ReportFile; f != "" {
		tell("report", f, x.rep.WriteFile(f))
	}
}

func (x *night) env(more ...string) []string {
	return append([]string{"XENKEEP_JOB=" + x.Job.Name}, more...)
}

func (x *night) run(ctx context.Context) (err error) {
	h := x.Job.Hooks
	limit := h.TimeOut.Or(defaultHookTime)
	if h.After != "" {
		defer func() {
			x.judge(err)
			status := x.rep.State
			x.rep.State = report.OK
			if herr := hook(context.WithoutCancel(ctx), "after", h.After, limit, x.Secrets, x.env("XENKEEP_STATUS="+string(status))...); herr != nil {
				x.warn("%w", herr)
			}
		}()
	}
	if h.Before != "" {
		if err := hook(ctx, "before", h.Before, limit, x.Secrets, x.env()...); err != nil {
			return err
		}
	}
	if x.repo, err = x.Open(ctx); err != nil {
		return err
	}
	defer x.repo.Close()
	defer func() {
		if x.good == nil && x.Job.MetricsFile != "" {
			x.goodWithoutPool(ctx)
		}
	}()
	x.rep.Repository = x.repo.Objects().Location()
	if x.pool, err = x.Dial(ctx); err != nil {
		return err
	}
	defer x.pool.Close(ctx)
	p, err := x.pool.Pool(ctx)
	if err != nil {
		return err
	}
	x.rep.Pool, x.rep.PoolUUID = cmp.Or(p.NameLabel, x.PoolName), p.UUID
	inv, err := selection.Read(ctx, x.pool)
	if err != nil {
		return err
	}
	known, _, err := x.repo.Snapshots(ctx)
	if err != nil {
		return err
	}
	inv.Saved = saved(known, p.UUID)
	if x.sel, err = selection.Choose(inv, x.Job); err != nil {
		return err
	}
	err = x.backup(ctx, inv)
	defer x.lastGood(ctx, inv) // after the check, which may find that a snapshot is not good
	if errors.Is(err, job.ErrCBTMissedChange) {
		x.damaged(err, "changed-block tracking missed a change, and older snapshots may be wrong", job.HintOf(job.ErrCBTMissedChange))
		if !errors.Is(err, job.ErrPartial) {
			err = nil // every VM was saved, and correctly
		}
	}
	if err != nil && !errors.Is(err, job.ErrPartial) && !errors.Is(err, job.ErrMissed) && !errors.Is(err, job.ErrFailed) {
		return err
	}
	if ctx.Err() == nil {
		x.maintain(ctx)
	}
	return err
}

// options returns the options of the backup, according to the job.
func (n *Night) options() (backup.Options, error) {
	j := n.Job
	level, err := seal.ParseLevel(j.Compression)
	if err != nil {
		return backup.Options{}, err
	}
	o := backup.Options{
		Common: job.Common{Job: j.Name, Machine: n.Machine, StateDir: n.StateDir, Tags: j.Tags, Level: level, Progress: n.Progress, Log: n.Log, Now: n.Now},
		Keep:   backup.Keep(j.KeepBase), Transport: backup.Transport(j.Transport), NBDConnections: j.NBDConnections, VerifyCBT: j.VerifyCBT == nil || *j.VerifyCBT,
		SkipUnsupported: j.SkipUnsupported, RawOffline: j.RawOffline, UnplugUSB: j.UnplugUSB, AllowShrink: job.DefaultShrink, Retention: j.Keep.Policy(), VMConcurrency: j.Concurrency.VMs, DiskConcurrency: j.Concurrency.Disks,
		HostConcurrency: j.Concurrency.PerHost, SRConcurrency: j.Concurrency.PerSR,
		Retries: 1, Database: j.PoolMetadata, StopAfter: j.Window.StopAfter.After(n.Now()),
	}
	if j.Grace != nil {
		g := retention.Period(*j.Grace)
		o.Grace = &g
	}
	if j.AllowShrink != nil {
		o.AllowShrink = job.ShrinkPercent(*j.AllowShrink)
	}
	if j.Retries != nil {
		o.Retries = *j.Retries
	}
	for _, l := range []struct {
		text string
		to   **limit.Limiter
	}{{j.Limits.Read, &o.ReadLimit}, {j.Limits.Write, &o.WriteLimit}} {
		if l.text == "" {
			continue
		}
		s, err := limit.Parse(l.text)
		if err != nil {
			return o, err
		}
		*l.to = limit.New(s, n.Now)
	}
	return o, nil
}

// saved returns the VMs of a pool that each job has backed up.
func saved(all []*repo.Snapshot, pool string) map[string][]string {
	out := make(map[string][]string)
	for _, s := range all {
		if s.Pool.UUID == pool && !slices.Contains(out[s.Job], s.VM.UUID) {
			out[s.Job] = append(out[s.Job], s.VM.UUID)
		}
	}
	return out
}

// queue sorts the selected VMs: by priority, then those first whose last good backup
// is oldest.
func queue(sel *selection.Result, all []*repo.Snapshot, pool string, unsound map[string]string) []backup.VMRequest {
	vms := slices.Clone(sel.VMs)
	last := func(v *selection.VM) time.Time {
		if s := backup.LatestComplete(all, pool, v.Record.UUID, unsound); s != nil {
			return s.DataTime
		}
		return time.Time{}
	}
	slices.SortStableFunc(vms, func(a, b selection.VM) int {
		return cmp.Or(cmp.Compare(b.Priority, a.Priority), last(&a).Compare(last(&b)))
	})
	var list []backup.VMRequest
	for i := range vms {
		v := &vms[i]
		c := backup.VMRequest{UUID: v.Record.UUID, Name: v.Record.NameLabel, Leave: map[string]string{}, Retention: &v.Keep}
		for _, k := range v.Snapshot {
			c.Kinds = append(c.Kinds, vmplan.Kind(k))
		}
		for _, d := range v.Disks {
			if d.Left != "" {
				c.Leave[d.VDI.UUID] = d.Left
				continue
			}
			c.Size += int64(d.VDI.VirtualSize)
		}
		list = append(list, c)
	}
	return list
}

func (x *night) backup(ctx context.Context, inv *selection.Inventory) error {
	o, err := x.options()
	if err != nil {
		return err
	}
	all, bad, err := x.repo.Snapshots(ctx)
	if err != nil {
		return err
	}
	x.unreadable(bad)
	for _, p := range x.repo.Missed() {
		x.warn("%w", p.Err)
	}
	unsound, err := check.Unsound(ctx, x.repo)
	if err != nil {
		return err
	}
	o.Selected = queue(x.sel, all, x.rep.PoolUUID, unsound)
	for _, f := range x.sel.Findings {
		switch {
		case f.Missing:
			x.rep.VMs = append(x.rep.VMs, report.VM{Name: f.Subject, State: report.Failed, Error: f.Text, Hint: f.Hint, Missing: true})
			x.errs = append(x.errs, fmt.Errorf("VM %s: %s", f.Subject, f.Text))
		case f.Severity == selection.Error:
			x.partial(fmt.Errorf("%s", f.Text))
		case f.Severity == selection.Warn:
			x.warn("%s: %s", f.Subject, f.Text)
		}
	}
	if x.Job.VmBackup != nil {
		for _, note := range x.Job.VmBackup.Notes {
			x.warn("%s", note.Text)
		}
	}
	for _, l := range x.sel.Left {
		x.rep.Excluded = append(x.rep.Excluded, report.Left{Name: l.Record.NameLabel, UUID: l.Record.UUID, Reason: l.Reason})
	}
	if x.Job.ForgetFirst {
		gone, err := backup.ForgetVMs(ctx, x.repo, o.Common, x.rep.PoolUUID, o.Selected, o.Retention)
		if err != nil {
			x.partial(fmt.Errorf("retention before the backup: %w", err))
		}
		if err == nil || errors.Is(err, forget.ErrStopped) {
			x.rep.Forgotten = gone
			x.checkDue(ctx)
			x.prune(ctx)
			if err := x.repo.LoadIndex(ctx); err != nil {
				return err
			}
		}
	}
	if len(o.Selected) == 0 && !o.Database {
		if len(x.rep.VMs) > 0 {
			return job.ErrFailed
		}
		return errors.New("the job's selection means no VM")
	}
	limit := x.Job.Hooks.TimeOut.Or(defaultHookTime)
	if h := x.Job.Hooks.VMBefore; h != "" {
		o.VMBefore = func(ctx context.Context, name, uuid string) error {
			return hook(ctx, "vm-before", h, limit, x.Secrets, x.env("XENKEEP_VM_NAME="+name, "XENKEEP_VM_UUID="+uuid)...)
		}
	}
	if h := x.Job.Hooks.VMAfter; h != "" {
		o.VMAfter = func(ctx context.Context, name, uuid string, failed error) error {
			status := report.OK
			if failed != nil {
				status = report.Failed
			}
			return hook(ctx, "vm-after", h, limit, x.Secrets, x.env("XENKEEP_VM_NAME="+name, "XENKEEP_VM_UUID="+uuid, "XENKEEP_STATUS="+string(status))...)
		}
	}
	sum, err := backup.Run(ctx, x.repo, x.pool, o)
	if sum != nil {
		x.gather(sum, o.Selected)
	}
	return err
}

// unreadable records snapshots that cannot be read.
func (x *night) unreadable(bad []repo.Problem) {
	n := 0
	for _, p := range bad {
		if errors.Is(p.Err, repo.ErrWithdrawn) {
			x.warn("%v", p.Err)
			continue
		}
		n++
		x.partial(fmt.Errorf("snapshot %s: %w", p.Object, p.Err))
	}
	if n > 0 {
		x.damaged(nil, plural(n, "snapshot")+" cannot be read",
			"run xenkeep check: it reports what is wrong with them; xenkeep repair snapshots finds out which parts of them can be saved")
	}
}

func plural(n int, one string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %ss", n, one)
}

// gather converts the backup's summary to the report's VMs.
func (x *night) gather(sum *job.Summary, chosen []backup.VMRequest) {
	r := x.rep
	r.Uploaded, r.Packs, r.Compression, r.Database = sum.Stored, sum.Packs, sum.Compression, sum.Database
	r.Forgotten = append(r.Forgotten, sum.Forgotten...)
	r.Warnings = append(r.Warnings, sum.Warnings...)
	vms := make(map[string]report.VM)
	for _, s := range sum.Snapshots {
		v := report.VM{
			Name: s.VMName, UUID: s.VMUUID, State: report.OK, Snapshot: s.ID, Kind: s.Kind, Disks: s.Disks,
			Started: s.Started, Duration: s.Duration, Waits: s.Waits, Bottleneck: s.Slowest,
		}
		i := slices.IndexFunc(chosen, func(c backup.VMRequest) bool { return c.UUID == s.VMUUID })
		for _, g := range s.Missing {
			v.Left = append(v.Left, "disk "+g.Device+" is left out: "+g.Reason)
			if i < 0 || chosen[i].Leave[g.VDI] == "" {
				v.State = report.Partial
				x.errs = append(x.errs, fmt.Errorf("VM %s: disk %s: %s", s.VMName, g.Device, g.Reason))
			}
			v.FirstDisk = v.FirstDisk || i >= 0 && chosen[i].Leave[g.VDI] == selection.FirstOnly
		}
		for _, d := range s.Disks {
			v.Size += d.Size
			v.Read += d.Read
			v.New += d.New
			v.Stored += d.Stored
		}
		vms[s.VMUUID] = v
	}
	for _, f := range sum.Failed {
		v := report.VM{Name: f.VM, UUID: f.UUID, State: report.Failed, Error: strings.TrimPrefix(f.Error, "VM "+f.VM+": "), Hint: f.Hint}
		if v.Hint == "" && f.Err() != nil {
			v.Hint = x.Hint(f.Err())
		}
		vms[cmp.Or(f.UUID, f.VM)] = v
	}
	for _, s := range sum.Skipped {
		vms[cmp.Or(s.UUID, s.VM)] = report.VM{Name: s.VM, UUID: s.UUID, State: report.Skipped, Error: s.Reason}
	}
	for i := range sum.Interrupted {
		v := &sum.Interrupted[i]
		vms[v.UUID] = report.VM{Name: v.VM, UUID: v.UUID, State: report.Failed, Error: "interrupted " + v.Reason(), Interrupted: true}
	}
	for _, c := range chosen {
		if _, told := vms[c.UUID]; !told {
			vms[c.UUID] = report.VM{Name: c.Name, UUID: c.UUID, State: report.Skipped, Error: "the run ended before it was begun"}
		}
	}
	list := slices.Collect(maps.Values(vms))
	slices.SortFunc(list, func(a, b report.VM) int { return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.UUID, b.UUID)) })
	r.VMs = append(r.VMs, list...)
}

// complete returns all snapshots, and those of them that are known to be damaged, with
// the reasons.
func (x *night) complete(ctx context.Context) ([]*repo.Snapshot, map[string]string, error) {
	all, _, err := x.repo.Snapshots(ctx)
	if err != nil {
		return nil, nil, err
	}
	unsound, err := check.Unsound(ctx, x.repo)
	if err != nil {
		return nil, nil, err
	}
	maps.Copy(unsound, x.unsound) // without a cache folder they are recorded only here
	return all, unsound, nil
}

// lastGood finds the newest good snapshot of every VM of the pool. A VM whose new
// snapshot is damaged is not saved well.
func (x *night) lastGood(ctx context.Context, inv *selection.Inventory) {
	for i := range x.rep.VMs {
		v := &x.rep.VMs[i]
		if why := x.unsound[v.Snapshot]; v.Snapshot != "" && why != "" {
			v.State, v.Hint = report.Partial, x.rep.DamageHint
			v.Error = "its new snapshot cannot be read in full: " + oneLine(errors.New(why))
			x.errs = append(x.errs, fmt.Errorf("VM %s: %s", v.Name, v.Error))
		}
	}
	all, unsound, err := x.complete(context.WithoutCancel(ctx))
	if err != nil {
		x.warn("the newest good snapshots: %w", err)
		return
	}
	newest := make(map[string]*repo.Snapshot)
	x.good = []report.Good{}
	for i := range inv.VMs {
		vm := &inv.VMs[i]
		if !vm.Real() {
			continue
		}
		g := report.Good{Name: vm.NameLabel, UUID: vm.UUID}
		if s := backup.LatestComplete(all, x.rep.PoolUUID, vm.UUID, unsound); s != nil {
			newest[vm.UUID], g.Data = s, backup.DataTime(s)
		}
		x.good = append(x.good, g)
	}
	var ahead time.Duration
	for i := range x.rep.VMs {
		v := &x.rep.VMs[i]
		s := newest[v.UUID]
		if s == nil {
			continue
		}
		v.LastGood, v.LastGoodID = backup.DataTime(s), s.ID()
		if v.Snapshot == s.ID() {
			ahead = max(ahead, s.DataTime.Sub(s.WrittenTime))
		}
	}
	if ahead > job.ClockSkew {
		x.warn("the pool's clock is %v ahead of that of this machine: its snapshots have wrong dates, and retention counts from them; set up NTP", ahead.Round(time.Minute))
	}
}

// goodWithoutPool finds the newest good snapshots if the pool did not list its VMs:
// those of the last metrics file, updated from the repository. Without that file it
// uses those of the job in the repository. An alert on their age is most important
// when nothing else works.
func (x *night) goodWithoutPool(ctx context.Context) {
	old, err := report.ReadGood(x.Job.MetricsFile)
	if err != nil {
		x.Log.Warn("the last metrics file cannot be read", "file", x.Job.MetricsFile, "error", err)
	}
	x.good = old
	if x.repo == nil {
		return
	}
	all, unsound, err := x.complete(context.WithoutCancel(ctx))
	if err != nil {
		x.warn("the newest good snapshots: %w", err)
		return
	}
	at := make(map[string]int)
	for i, g := range x.good {
		at[g.UUID] = i
	}
	for _, s := range all {
		if s.Origin != "pool" || !s.Complete || unsound[s.ID()] != "" {
			continue
		}
		i, known := at[s.VM.UUID]
		if !known && (len(old) > 0 || s.Job != x.Job.Name) {
			continue
		}
		if !known {
			i = len(x.good)
			at[s.VM.UUID] = i
			x.good = append(x.good, report.Good{UUID: s.VM.UUID})
		}
		if g := &x.good[i]; backup.DataTime(s).After(g.Data) {
			g.Name, g.Data = cmp.Or(s.VM.Name, g.Name), backup.DataTime(s)
		}
	}
}
