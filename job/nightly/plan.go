package nightly

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"xenkeep/job"
	"xenkeep/job/backup"
	"xenkeep/job/config"
	"xenkeep/job/lease"
	"xenkeep/job/selection"
	"xenkeep/repo"
	"xenkeep/repo/check"
	"xenkeep/repo/forget"
	"xenkeep/repo/retention"
	"xenkeep/xapi"

	"github.com/dustin/go-humanize"
)

// Plan is a prediction of a run. Its JSON form is documented in
// docs/reference/json.md.
type Plan struct {
	Type     string      `json:"type"` // "plan"
	Job      string      `json:"job"`
	OK       bool        `json:"ok"` // the job would succeed
	Settings []Setting   `json:"settings"`
	VMs      []PlannedVM `json:"vms"`
	Findings []Finding   `json:"findings"`
}

// Setting is one setting of the job.
type Setting struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// PlannedVM is a VM in the order in which it would be begun.
type PlannedVM struct {
	Name     string        `json:"name"`
	UUID     string        `json:"uuid"`
	By       string        `json:"chosen_by"`
	Priority int           `json:"priority"`
	Kind     string        `json:"kind,omitempty"`
	Disks    []PlannedDisk `json:"disks"`
	Keeps    int           `json:"keeps"`   // snapshots that retention would keep, including the new one
	Forgets  int           `json:"forgets"` // snapshots that retention would delete
	Error    string        `json:"error,omitempty"`
	Hint     string        `json:"hint,omitempty"`
}

// PlannedDisk is one disk of a PlannedVM.
type PlannedDisk struct {
	Device string `json:"device"`
	VDI    string `json:"vdi"`
	SR     string `json:"sr"`
	Size   int64  `json:"size"`
	Method string `json:"method,omitempty"`
	Reason string `json:"reason,omitempty"`
	Bytes  int64  `json:"bytes"` // upper bound of the bytes to be read; -1: not known in advance
	CBT    bool   `json:"cbt"`   // its changes are tracked already
	Left   string `json:"left_out,omitempty"`
}

// Finding is an observation of a plan.
type Finding struct {
	Level string `json:"level"` // "note", "warn" or "error"
	What  string `json:"what"`
	Text  string `json:"text"`
	Hint  string `json:"hint,omitempty"`
}

// chainLimit is the maximum number of files in a VHD chain (sm drivers/vhdutil.py);
// chainWarn leaves a margin of some nights.
const (
	chainLimit = 30
	chainWarn  = 20
)

type planner struct {
	*Night
	plan *Plan
}

func (p *planner) find(level, what, hint, format string, args ...any) {
	p.plan.Findings = append(p.plan.Findings, Finding{Level: level, What: what, Hint: hint, Text: oneLine(fmt.Errorf(format, args...))})
	p.plan.OK = p.plan.OK && level != "error"
}

// MakePlan predicts a run. It logs in and opens the repository, and changes nothing.
func MakePlan(ctx context.Context, n Night) (*Plan, error) {
	n.defaults()
	p := &planner{Night: &n, plan: &Plan{Type: "plan", Job: n.Job.Name, OK: true, VMs: []PlannedVM{}, Findings: []Finding{}}}
	p.settings()
	p.outputs()
	o, err := n.options()
	if err != nil {
		return nil, err
	}
	r, err := n.Open(ctx)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	pool, err := n.Dial(ctx)
	if err != nil {
		return nil, err
	}
	defer pool.Close(ctx)
	inv, err := selection.Read(ctx, pool)
	if err != nil {
		return nil, err
	}
	known, _, err := r.Snapshots(ctx) // unreadable snapshots are reported with the VMs
	if err != nil {
		return nil, err
	}
	inv.Saved = saved(known, pool.PoolUUID())
	sel, err := selection.Choose(inv, n.Job)
	if err != nil {
		return nil, err
	}
	for _, f := range sel.Findings {
		p.find([]string{"note", "warn", "error"}[f.Severity], f.Subject, f.Hint, "%s", f.Text)
	}
	if v := n.Job.VmBackup; v != nil {
		for _, note := range v.Notes {
			p.find("note", v.File, "", "%s", note.Text)
		}
	}
	for _, l := range sel.Left {
		p.find("note", l.Record.NameLabel, "", "left out: %s", l.Reason)
	}
	if len(sel.VMs) == 0 {
		p.find("error", "selection", "choose VMs in the config", "no VM is backed up")
	}
	if err := p.database(ctx, pool); err != nil {
		return nil, err
	}
	if err := p.vms(ctx, r, pool, sel, &o); err != nil {
		return nil, err
	}
	p.srs(inv, sel)
	if err := p.leftovers(ctx, r, pool, sel); err != nil {
		return nil, err
	}
	p.repository(r)
	return p.plan, nil
}

// leftovers reports what other runs have on the pool, and what the run would
// clean up.
func (p *planner) leftovers(ctx context.Context, r *repo.Repository, pool *xapi.Client, sel *selection.Result) error {
	rep, err := lease.Cleanup(ctx, r, pool, lease.CleanupOptions{Machine: p.Machine, DryRun: true})
	if err != nil {
		return err
	}
	for i := range rep.Found {
		l := &rep.Found[i]
		if l.Hint != "" { // the plan of its VM has the error already
			p.find("warn", l.Class+" "+l.Name, l.Hint, "a restore over its disks has not come to its end")
			continue
		}
		switch l.State {
		case lease.StateDead:
			if l.Role == "base" {
				p.find("note", l.Class+" "+l.Name, "", "the base of a disk that is no longer on the pool (%s); the run removes it", l.UUID)
				continue
			}
			p.find("note", l.Class+" "+l.Name, "", "left by a dead run; the run cleans it up (%s)", l.Action)
		case lease.StateLive:
			if vm := sel.Owner(l.Disk()); vm != "" {
				p.find("error", vm, "wait for that run to end", "run %.8s on %s is backing it up", l.Run, l.Machine)
				continue
			}
			p.find("warn", l.Class+" "+l.Name, "wait for that run to end", "in use by run %.8s on %s", l.Run, l.Machine)
		}
	}
	return nil
}

// outputs tries the files that the run would write.
func (p *planner) outputs() {
	list := p.Job.Outputs()
	if p.LogFile != "" {
		list = append(list, config.Output{Key: "log.file", File: p.LogFile})
	}
	for _, o := range list {
		if err := o.Try(); err != nil {
			p.find("error", o.Key, "create the folder, or set another file in the config", "%w", err)
		}
	}
}

func (p *planner) settings() {
	j := p.Job
	add := func(name, format string, args ...any) {
		p.plan.Settings = append(p.plan.Settings, Setting{name, fmt.Sprintf(format, args...)})
	}
	add("pool", "%s", p.PoolName)
	add("repository", "%s", p.Location)
	kinds := make([]string, len(j.Snapshot))
	for i, k := range j.Snapshot {
		kinds[i] = string(k)
	}
	if len(kinds) == 0 {
		kinds = []string{string(config.Regular)}
	}
	add("snapshot", "%s", strings.Join(kinds, ", else "))
	transport := j.Transport
	if transport == "" {
		transport = "auto"
	}
	add("transport", "%s", transport)
	k := j.Keep.Policy()
	keep := ""
	for _, x := range []struct {
		name string
		n    int
	}{{"last", k.Last}, {"hourly", k.Hourly}, {"daily", k.Daily}, {"weekly", k.Weekly}, {"monthly", k.Monthly}, {"yearly", k.Yearly}} {
		if x.n < 0 {
			keep += x.name + " all, "
		} else if x.n > 0 {
			keep += x.name + " " + strconv.Itoa(x.n) + ", "
		}
	}
	if w := k.Within.String(); w != "" {
		keep += "within " + w
	}
	if keep == "" {
		keep = "everything"
	}
	add("keep", "%s", strings.TrimSuffix(keep, ", "))
	if j.Prune != "" {
		add("prune", "%s", j.Prune)
	}
	if j.Check.Every != "" || j.Check.Budget > 0 {
		add("check", "%s, reading %s", j.Check.Every, humanize.IBytes(uint64(j.Check.Budget)))
	}
	add("pool-metadata", "%t", j.PoolMetadata)
	if w := j.Window.StopAfter.String(); w != "" {
		add("stop-after", "%s", w)
	}
	if j.StatusLog != "" {
		add("status-log", "%s", j.StatusLog)
	}
	if v := j.VmBackup; v != nil {
		count := map[string]int{}
		for _, l := range append(slices.Clone(v.Exclude), v.Export...) {
			count[l.Key]++
		}
		add("max_backups", "%d", v.MaxBackups)
		add("exclude", "%d lines", count["exclude"])
		add("vdi-export", "%d lines", count["vdi-export"])
		add("vm-export", "%d lines", count["vm-export"])
	}
}

func (p *planner) vms(ctx context.Context, r *repo.Repository, pool *xapi.Client, sel *selection.Result, o *backup.Options) error {
	all, bad, err := r.Snapshots(ctx)
	if err != nil {
		return err
	}
	for _, b := range bad {
		if errors.Is(b.Err, repo.ErrWithdrawn) {
			p.find("note", b.Object, "xenkeep forget takes it away", "%w", b.Err)
			continue
		}
		p.find("error", b.Object, "run xenkeep check, then xenkeep repair", "%w", b.Err)
	}
	unsound, err := check.Unsound(ctx, r)
	if err != nil {
		return err
	}
	f, err := backup.NewPreview(ctx, r, pool, *o)
	if err != nil {
		return err
	}
	if f.Untracked != "" {
		p.find("note", "NBD", "xe network-param-add uuid=NETWORK param-name=purpose param-key=nbd",
			"%s: changed-block tracking is not used", f.Untracked)
	}
	by := make(map[string]*selection.VM)
	for i := range sel.VMs {
		by[sel.VMs[i].Record.UUID] = &sel.VMs[i]
	}
	for _, c := range queue(sel, all, pool.PoolUUID(), unsound) {
		v := by[c.UUID]
		out := PlannedVM{Name: c.Name, UUID: c.UUID, By: v.By, Priority: v.Priority, Disks: []PlannedDisk{}}
		fc, err := f.VM(ctx, c)
		if err != nil && ctx.Err() != nil {
			return err
		}
		if err != nil {
			out.Error, out.Hint = oneLine(err), job.HintOf(err)
			p.find("error", c.Name, out.Hint, "%w", err)
		}
		if fc != nil {
			p.forecast(c.Name, fc, f, &out)
		}
		var stops []*forget.Stop
		out.Keeps, out.Forgets, stops = p.retention(r, all, pool.PoolUUID(), &c, o)
		for _, s := range stops {
			p.find("warn", c.Name, s.Hint(), "%w", s)
		}
		p.plan.VMs = append(p.plan.VMs, out)
	}
	return nil
}

func (p *planner) forecast(name string, fc *backup.VMPreview, f *backup.Preview, out *PlannedVM) {
	out.Kind = string(fc.Kind)
	for _, x := range fc.Fallback {
		if fc.Kind != "" {
			p.find("warn", name, "", "%s; %s is taken", x, fc.Kind)
		}
	}
	for _, x := range fc.Warnings {
		p.find("warn", name, "", "%s", x)
	}
	if fc.Space != nil {
		p.find("error", name, job.HintOf(fc.Space), "%w", fc.Space)
	}
	untracked := 0
	for _, d := range fc.Disks {
		out.Disks = append(out.Disks, PlannedDisk{
			Device: d.Device, VDI: d.VDI, SR: d.SR, Size: d.Size, Method: d.Method, Reason: d.Reason, Bytes: d.Bytes, CBT: d.Tracked, Left: d.Left,
		})
		if d.Left == "" && !d.Tracked {
			untracked++
		}
		if d.Left != "" && !d.Asked {
			p.find("error", name, "exclude the disk, and the VM is whole without it", "disk %s cannot be saved, and its VM would be partial: %s", d.Device, d.Left)
		}
	}
	if untracked > 0 && f.Untracked == "" {
		p.find("note", name, "", "changes of %d disks are not tracked yet: the run switches that on where the licence allows", untracked)
	}
}

// retention returns how many of a VM's snapshots would stay and go after a success,
// and why none would go although the policy does not keep them.
func (p *planner) retention(r *repo.Repository, all []*repo.Snapshot, pool string, c *backup.VMRequest, o *backup.Options) (keeps, forgets int, stops []*forget.Stop) {
	policy := o.Retention
	if c.Retention != nil {
		policy = *c.Retention
	}
	now := p.Now()
	next := r.AsOwn(&repo.Snapshot{Origin: "pool", Pool: repo.Named{UUID: pool}, VM: repo.Named{UUID: c.UUID, Name: c.Name}, Job: o.Job, Complete: true, DataTime: now, WrittenTime: now})
	all = append(slices.Clip(all), next)
	judge := retention.NewJudge(all, now)
	var mine []*repo.Snapshot
	for _, s := range all {
		if judge.Group(s) == judge.Group(next) {
			mine = append(mine, s)
		}
	}
	plan := forget.Decide(judge, policy, all, mine, nil, false)
	forgets = len(plan.Gone())
	return len(mine) - forgets, forgets, plan.Stops
}

// srs examines the SRs with disks of the job: free space, long chains, and parents
// that wait to be coalesced.
func (p *planner) srs(inv *selection.Inventory, sel *selection.Result) {
	byUUID := make(map[string]*xapi.VDI)
	children := make(map[string]int)
	for _, v := range inv.VDIs {
		byUUID[v.UUID] = &v
		if up := v.SMConfig["vhd-parent"]; up != "" {
			children[up]++
		}
	}
	used := make(map[xapi.Ref]int) // disks of the job
	for i := range sel.VMs {
		for _, d := range sel.VMs[i].Disks {
			used[d.SR.Ref]++
			depth := 1
			for v := &d.VDI; v != nil && depth <= chainLimit && v.SMConfig["vhd-parent"] != ""; depth++ {
				v = byUUID[v.SMConfig["vhd-parent"]]
			}
			what := sel.VMs[i].Record.NameLabel + " " + d.Device()
			switch {
			case depth >= chainLimit:
				p.find("error", what, "wait until the SR has coalesced: xe sr-scan uuid="+d.SR.UUID, "its VHD chain has %d files, and no snapshot can be taken beyond %d", depth, chainLimit)
			case depth >= chainWarn:
				p.find("warn", what, "see why the SR does not coalesce: xe sr-scan uuid="+d.SR.UUID+", then /var/log/SMlog", "its VHD chain has %d of %d files", depth, chainLimit)
			}
		}
	}
	for ref := range used {
		sr := inv.SRs[ref]
		backlog := 0
		for _, v := range inv.VDIs {
			if v.SR == ref && !v.Managed && children[v.UUID] == 1 {
				backlog++
			}
		}
		switch {
		case backlog > used[ref]: // more than one night causes
			p.find("warn", "SR "+sr.NameLabel, "see why the SR does not coalesce: xe sr-scan uuid="+sr.UUID+", then /var/log/SMlog", "%d parents wait to be coalesced", backlog)
		case backlog > 0:
			p.find("note", "SR "+sr.NameLabel, "", "%d parents wait to be coalesced", backlog)
		}
		if sr.PhysicalSize > 0 {
			p.find("note", "SR "+sr.NameLabel, "", "%s free of %s", humanize.IBytes(uint64(max(sr.PhysicalSize-sr.PhysicalUtilisation, 0))), humanize.IBytes(uint64(sr.PhysicalSize)))
		}
	}
}

// database checks whether the pool would send its database.
func (p *planner) database(ctx context.Context, pool *xapi.Client) error {
	if !p.Job.PoolMetadata {
		return nil
	}
	rec, err := pool.Pool(ctx)
	// The key exists from the upgrade of the first host to that of the last (xen-api
	// ocaml/xapi/xapi_globs.ml).
	if _, upgrading := rec.OtherConfig["rolling_upgrade_in_progress"]; err == nil && upgrading {
		p.find("error", "pool-metadata", "finish the upgrade of all hosts, or leave pool-metadata out until then", "the pool is in the middle of a rolling upgrade and sends a database without content")
	}
	return err
}

// repository examines the free space of a repository in a folder.
func (p *planner) repository(r *repo.Repository) {
	for _, x := range r.Problems() {
		p.find("error", x.Object, "run xenkeep check", "%w", x.Err)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(r.Objects().Location(), &st); err != nil {
		if !errors.Is(err, unix.ENOENT) {
			p.find("warn", "repository", "", "free space: %w", err)
		}
		return
	}
	most := uint64(0)
	for i := range p.plan.VMs {
		for _, d := range p.plan.VMs[i].Disks {
			if d.Left == "" {
				most += uint64(max(d.Bytes, 0))
			}
		}
	}
	p.room(st.Bavail*uint64(st.Bsize), st.Blocks*uint64(st.Bsize), most)
}

// room compares the free space of a repository with the upper bound of the bytes to be
// read, as far as it is known.
func (p *planner) room(free, total, most uint64) {
	level, hint, beside := "note", "", ""
	switch {
	case free < 64<<20:
		level, hint = "error", "make room, or run xenkeep prune --exclusive"
	case free < most:
		level, hint = "warn", "make room, unless much of it is compressible or stored already"
		beside = ", and up to " + humanize.IBytes(most) + " are read in full"
	case free < total/20:
		level, hint = "warn", "make room, keep fewer snapshots, or run xenkeep prune"
	}
	p.find(level, "repository", hint, "%s free of %s%s", humanize.IBytes(free), humanize.IBytes(total), beside)
}
