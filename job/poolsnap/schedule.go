package poolsnap

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"xenkeep/job"
	"xenkeep/job/vmplan"
	"xenkeep/xapi"
)

// When is the time of a schedule of the pool, in the pool's own time zone (xen-api
// ocaml/xapi/xapi_vmss.ml).
type When struct {
	Frequency string   // hourly, daily, weekly
	Hour      int      // 0 to 23; for daily and weekly
	Minute    int      // 0, 15, 30 or 45
	Days      []string // for weekly: Monday ... Sunday
}

var weekdays = []string{"Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"}

func minute(text string) (int, error) {
	n, err := strconv.Atoi(text)
	if err != nil || n != 0 && n != 15 && n != 30 && n != 45 {
		return 0, fmt.Errorf("minute %q: the pool runs schedules at minutes 0, 15, 30 and 45: %w", text, ErrValue)
	}
	return n, nil
}

// Hourly returns the When for each hour at a minute.
func Hourly(text string) (When, error) {
	m, err := minute(text)
	return When{Frequency: "hourly", Minute: m}, err
}

// Daily returns the When for each day at HH:MM.
func Daily(text string) (When, error) {
	h, m, ok := strings.Cut(text, ":")
	n, err := strconv.Atoi(h)
	if !ok || err != nil || n < 0 || n > 23 {
		return When{}, fmt.Errorf("time %q: want HH:MM, from 00:00 to 23:45: %w", text, ErrValue)
	}
	w := When{Frequency: "daily", Hour: n}
	w.Minute, err = minute(m)
	return w, err
}

// Weekly returns the When for some days at HH:MM: for example "Monday,Thursday 02:30".
// English names may be abbreviated to three letters or more.
func Weekly(text string) (When, error) {
	days, at, ok := strings.Cut(strings.TrimSpace(text), " ")
	if !ok {
		return When{}, fmt.Errorf("weekly %q: want DAYS HH:MM, such as \"Monday,Thursday 02:30\": %w", text, ErrValue)
	}
	w, err := Daily(strings.TrimSpace(at))
	if err != nil {
		return w, err
	}
	w.Frequency = "weekly"
	for d := range strings.SplitSeq(days, ",") {
		i := slices.IndexFunc(weekdays, func(x string) bool {
			return len(d) >= 3 && len(d) <= len(x) && strings.EqualFold(x[:len(d)], d)
		})
		if i < 0 {
			return w, fmt.Errorf("day %q: want English names of days, separated by commas: %w", d, ErrValue)
		}
		if !slices.Contains(w.Days, weekdays[i]) {
			w.Days = append(w.Days, weekdays[i])
		}
	}
	slices.SortFunc(w.Days, func(a, b string) int { return cmp.Compare(slices.Index(weekdays, a), slices.Index(weekdays, b)) })
	return w, nil
}

// keys returns the schedule as the pool stores it.
func (w When) keys() map[string]string {
	k := map[string]string{"min": strconv.Itoa(w.Minute)}
	if w.Frequency != "hourly" {
		k["hour"] = strconv.Itoa(w.Hour)
	}
	if w.Frequency == "weekly" {
		k["days"] = strings.Join(w.Days, ",")
	}
	return k
}

// whenText formats a schedule of the pool for users.
func whenText(s *xapi.VMSS) string {
	at := func(k string) string { return fmt.Sprintf("%02s", s.Schedule[k]) }
	switch s.Frequency {
	case "hourly":
		return "hourly at minute " + at("min")
	case "daily":
		return "daily at " + at("hour") + ":" + at("min")
	}
	return s.Frequency + " on " + s.Schedule["days"] + " at " + at("hour") + ":" + at("min")
}

// types maps the kinds to the pool's names.
var types = map[vmplan.Kind]string{vmplan.KindRegular: "snapshot", vmplan.KindCheckpoint: "checkpoint", vmplan.KindQuiesced: "snapshot_with_quiesce"}

func kindOfType(t string) vmplan.Kind {
	for k, name := range types {
		if name == t {
			return k
		}
	}
	return vmplan.Kind(t)
}

// Schedule is a snapshot schedule of the pool (VMSS).
type Schedule struct {
	Type        string      `json:"type"` // "schedule"
	UUID        string      `json:"uuid"`
	Name        string      `json:"name"`
	Description string      `json:"description"`
	Enabled     bool        `json:"enabled"`
	When        string      `json:"when"`
	Frequency   string      `json:"frequency"`
	Kind        vmplan.Kind `json:"kind"`
	Keep        int         `json:"keep"`
	LastRun     time.Time   `json:"last_run"` // zero: never
	VMs         []Member    `json:"vms"`
	Runs        []Run       `json:"runs,omitempty"` // only from ShowSchedule, newest first
}

// Member is a VM of a schedule.
type Member struct {
	UUID string `json:"uuid"`
	Name string `json:"name"`
	// Snapshots is the number of its snapshots that schedules made.
	Snapshots int `json:"snapshots"`
}

// Run is a report of the pool about a run of a schedule.
type Run struct {
	Time time.Time `json:"time"`
	OK   bool      `json:"ok"`
	What string    `json:"what"` // the message's name
	Text string    `json:"text"`
}

// ScheduleOptions are the fields of a schedule to set; nil leaves a field unchanged.
type ScheduleOptions struct {
	Name        *string
	Description *string
	When        *When
	Kind        *vmplan.Kind
	Keep        *int
}

func (o *ScheduleOptions) check() error {
	if o.Name != nil && strings.TrimSpace(*o.Name) == "" {
		return fmt.Errorf("a schedule needs a name: %w", ErrValue)
	}
	if o.Keep != nil && (*o.Keep < 1 || *o.Keep > 10) {
		return advise(`xenkeep's own jobs keep more (type = "pool-snapshot")`, "keep %d: the pool keeps 1 to 10 snapshots of each VM: %w", *o.Keep, ErrValue)
	}
	if o.Kind != nil && types[*o.Kind] == "" {
		return fmt.Errorf("kind %q: want snapshot, checkpoint or quiesced: %w", *o.Kind, ErrValue)
	}
	return nil
}

// explain adds the meaning to an error of the pool about schedules.
func explain(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, xapi.ErrNoSchedules):
		return advise(`take the snapshots by a job of xenkeep's config, type = "pool-snapshot"`, "%w", err)
	case xapi.IsCode(err, "LICENCE_RESTRICTION", "LICENSE_RESTRICTION", "FEATURE_RESTRICTED"):
		return advise(`license the pool, or take the snapshots by a job of xenkeep's config, type = "pool-snapshot"`, "snapshot schedules: %w", err)
	}
	return err
}

type schedules struct {
	*world
	list []xapi.VMSS
}

func lookSchedules(ctx context.Context, c *xapi.Client) (*schedules, error) {
	list, err := c.VMSSs(ctx)
	if err != nil {
		return nil, explain(err)
	}
	slices.SortFunc(list, func(a, b xapi.VMSS) int {
		return cmp.Or(cmp.Compare(a.NameLabel, b.NameLabel), cmp.Compare(a.UUID, b.UUID))
	})
	w, err := look(ctx, c)
	return &schedules{w, list}, err
}

func (s *schedules) named(name string) (*xapi.VMSS, error) {
	var found []*xapi.VMSS
	for i := range s.list {
		v := &s.list[i]
		if strings.EqualFold(v.UUID, name) {
			return v, nil
		}
		if v.NameLabel == name {
			found = append(found, v)
		}
	}
	switch len(found) {
	case 0:
		return nil, advise("xenkeep pool schedule list shows them", "schedule %q: %w", name, xapi.ErrNotFound)
	case 1:
		return found[0], nil
	}
	e := &xapi.AmbiguousError{Class: "schedule", Name: name}
	for _, v := range found {
		e.UUIDs = append(e.UUIDs, v.UUID)
	}
	return nil, e
}

func (s *schedules) row(v *xapi.VMSS) Schedule {
	r := Schedule{
		Type: "schedule", UUID: v.UUID, Name: v.NameLabel, Description: v.NameDescription, Enabled: v.Enabled, When: whenText(v), Frequency: v.Frequency,
		Kind: kindOfType(v.Type), Keep: int(v.RetainedSnapshots), VMs: []Member{},
	}
	if v.LastRunTime.Unix() > 0 {
		r.LastRun = v.LastRunTime.Time
	}
	for _, ref := range v.VMs {
		vm := s.byRef[ref]
		if vm == nil {
			continue
		}
		m := Member{UUID: vm.UUID, Name: vm.NameLabel}
		for _, sn := range vm.Snapshots {
			if x := s.byRef[sn]; x != nil && x.IsVMSSSnapshot {
				m.Snapshots++
			}
		}
		r.VMs = append(r.VMs, m)
	}
	slices.SortFunc(r.VMs, func(a, b Member) int { return cmp.Compare(a.Name, b.Name) })
	return r
}

// Schedules lists the snapshot schedules of the pool, by name.
func Schedules(ctx context.Context, c *xapi.Client) ([]Schedule, error) {
	s, err := lookSchedules(ctx, c)
	if err != nil {
		return nil, err
	}
	rows := []Schedule{}
	for i := range s.list {
		rows = append(rows, s.row(&s.list[i]))
	}
	return rows, nil
}

// shownRuns is the number of a schedule's messages that are shown.
const shownRuns = 20

// ShowSchedule returns one schedule, with its last runs.
func ShowSchedule(ctx context.Context, c *xapi.Client, name string) (*Schedule, error) {
	s, err := lookSchedules(ctx, c)
	if err != nil {
		return nil, err
	}
	v, err := s.named(name)
	if err != nil {
		return nil, err
	}
	r := s.row(v)
	messages, err := c.Messages(ctx)
	if err != nil {
		return nil, err
	}
	for _, m := range messages {
		if m.ObjUUID == v.UUID && strings.HasPrefix(m.Name, "VMSS_") {
			r.Runs = append(r.Runs, Run{m.Timestamp.Time, m.Name == "VMSS_SNAPSHOT_SUCCEEDED", m.Name, m.Body})
		}
	}
	slices.SortStableFunc(r.Runs, func(a, b Run) int { return b.Time.Compare(a.Time) })
	r.Runs = r.Runs[:min(len(r.Runs), shownRuns)]
	return &r, nil
}

// CreateSchedule creates a snapshot schedule, enabled, without VMs.
func CreateSchedule(ctx context.Context, c *xapi.Client, o ScheduleOptions) (*Schedule, error) {
	if o.Name == nil || o.When == nil || o.Kind == nil || o.Keep == nil {
		return nil, fmt.Errorf("a schedule needs a name, a time, a kind and a number to keep: %w", ErrValue)
	}
	if err := o.check(); err != nil {
		return nil, err
	}
	s, err := lookSchedules(ctx, c)
	if err != nil {
		return nil, err
	}
	for _, v := range s.list {
		if v.NameLabel == *o.Name {
			return nil, advise("take another name, or edit that one", "schedule %q: %w (%s)", *o.Name, job.ErrExists, v.UUID)
		}
	}
	n := xapi.VMSS{NameLabel: *o.Name, Enabled: true, Type: types[*o.Kind], RetainedSnapshots: xapi.Int(*o.Keep), Frequency: o.When.Frequency, Schedule: o.When.keys()}
	if o.Description != nil {
		n.NameDescription = *o.Description
	}
	ref, err := c.CreateVMSS(ctx, n)
	if err != nil {
		return nil, explain(err)
	}
	return reread(ctx, c, ref)
}

func reread(ctx context.Context, c *xapi.Client, ref xapi.Ref) (*Schedule, error) {
	v, err := c.VMSS(ctx, ref)
	if err != nil {
		return nil, err
	}
	return ShowSchedule(ctx, c, v.UUID)
}

// EditSchedule changes a schedule.
func EditSchedule(ctx context.Context, c *xapi.Client, name string, o ScheduleOptions) (*Schedule, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	s, err := lookSchedules(ctx, c)
	if err != nil {
		return nil, err
	}
	v, err := s.named(name)
	if err != nil {
		return nil, err
	}
	type change struct {
		field string
		value any
	}
	var changes []change
	if o.Name != nil {
		changes = append(changes, change{"name_label", *o.Name})
	}
	if o.Description != nil {
		changes = append(changes, change{"name_description", *o.Description})
	}
	if o.Kind != nil {
		changes = append(changes, change{"type", types[*o.Kind]})
	}
	if o.Keep != nil {
		changes = append(changes, change{"retained_snapshots", *o.Keep})
	}
	if o.When != nil {
		// A new frequency replaces the keys, and so it is set first.
		if o.When.Frequency != v.Frequency {
			changes = append(changes, change{"frequency", o.When.Frequency})
		}
		changes = append(changes, change{"schedule", o.When.keys()})
	}
	for _, x := range changes {
		if err := c.SetVMSS(ctx, v.Ref, x.field, x.value); err != nil {
			return nil, fmt.Errorf("schedule %q: %s: %w", name, x.field, explain(err))
		}
	}
	return ShowSchedule(ctx, c, v.UUID)
}

// EnableSchedule enables or disables a schedule.
func EnableSchedule(ctx context.Context, c *xapi.Client, name string, on bool) (*Schedule, error) {
	s, err := lookSchedules(ctx, c)
	if err != nil {
		return nil, err
	}
	v, err := s.named(name)
	if err != nil {
		return nil, err
	}
	if err := c.SetVMSS(ctx, v.Ref, "enabled", on); err != nil {
		return nil, explain(err)
	}
	return ShowSchedule(ctx, c, v.UUID)
}

// DeleteSchedule deletes a schedule. If VMs belong to it, it is refused, unless
// unassign removes them from it. The snapshots that it made remain.
func DeleteSchedule(ctx context.Context, c *xapi.Client, name string, unassign bool) (*Schedule, error) {
	s, err := lookSchedules(ctx, c)
	if err != nil {
		return nil, err
	}
	v, err := s.named(name)
	if err != nil {
		return nil, err
	}
	row := s.row(v)
	if len(row.VMs) > 0 && !unassign {
		var names []string
		for _, m := range row.VMs {
			names = append(names, m.Name)
		}
		return nil, advise("remove them with xenkeep pool schedule unassign, or use --unassign", "schedule %q: %w: %s", row.Name, &xapi.Error{Code: "VMSS_HAS_VM"}, strings.Join(names, ", "))
	}
	for _, ref := range v.VMs {
		if err := c.AssignVMSS(ctx, ref, xapi.NullRef); err != nil {
			return nil, explain(err)
		}
	}
	return &row, explain(c.DestroyVMSS(ctx, v.Ref))
}

// Assigned is a VM that was assigned to a schedule, or removed from one.
type Assigned struct {
	Type   string `json:"type"` // "assigned"
	VM     string `json:"vm"`
	VMName string `json:"vm_name"`
	From   string `json:"from"` // name of its previous schedule; "" for none
	To     string `json:"to"`   // "" for none
}

// Assign assigns VMs to a schedule. A VM belongs to at most one: the result contains
// its previous one. All VMs are looked up before one is changed.
func Assign(ctx context.Context, c *xapi.Client, schedule string, vms []string) ([]Assigned, error) {
	s, err := lookSchedules(ctx, c)
	if err != nil {
		return nil, err
	}
	to, err := s.named(schedule)
	if err != nil {
		return nil, err
	}
	return s.move(ctx, c, vms, to)
}

// Unassign removes VMs from their schedules.
func Unassign(ctx context.Context, c *xapi.Client, vms []string) ([]Assigned, error) {
	s, err := lookSchedules(ctx, c)
	if err != nil {
		return nil, err
	}
	return s.move(ctx, c, vms, nil)
}

func (s *schedules) move(ctx context.Context, c *xapi.Client, vms []string, to *xapi.VMSS) ([]Assigned, error) {
	var list []*xapi.VM
	for _, name := range vms {
		v, err := s.vm(name)
		if err != nil {
			return nil, err
		}
		list = append(list, v)
	}
	done := []Assigned{}
	for _, v := range list {
		a := Assigned{Type: "assigned", VM: v.UUID, VMName: v.NameLabel}
		for i := range s.list {
			if s.list[i].Ref == v.SnapshotSchedule {
				a.From = s.list[i].NameLabel
			}
		}
		ref := xapi.NullRef
		if to != nil {
			a.To, ref = to.NameLabel, to.Ref
		}
		if err := c.AssignVMSS(ctx, v.Ref, ref); err != nil {
			return done, fmt.Errorf("VM %s: %w", v.NameLabel, explain(err))
		}
		done = append(done, a)
	}
	return done, nil
}

// RunSchedule takes the snapshots of a schedule now, and returns the pool's reports of
// the run.
func RunSchedule(ctx context.Context, c *xapi.Client, name string) (*Schedule, error) {
	before, err := ShowSchedule(ctx, c, name)
	if err != nil {
		return nil, err
	}
	if len(before.VMs) == 0 {
		return nil, advise("xenkeep pool schedule assign adds VMs to it", "schedule %q: no VM belongs to it: %w", before.Name, ErrNone)
	}
	messages, err := c.Messages(ctx)
	if err != nil {
		return nil, err
	}
	old := make(map[xapi.Ref]bool)
	for _, m := range messages {
		old[m.Ref] = true
	}
	ref, err := refOf(ctx, c, before.UUID)
	if err != nil {
		return nil, err
	}
	if _, err := c.RunVMSS(ctx, ref); err != nil {
		return nil, explain(err)
	}
	after, err := ShowSchedule(ctx, c, before.UUID)
	if err != nil {
		return nil, err
	}
	if messages, err = c.Messages(ctx); err != nil {
		return nil, err
	}
	after.Runs = nil
	bad := 0
	for _, m := range messages {
		if m.ObjUUID == before.UUID && strings.HasPrefix(m.Name, "VMSS_") && !old[m.Ref] {
			r := Run{m.Timestamp.Time, m.Name == "VMSS_SNAPSHOT_SUCCEEDED", m.Name, m.Body}
			after.Runs = append(after.Runs, r)
			if !r.OK {
				bad++
			}
		}
	}
	slices.SortFunc(after.Runs, func(a, b Run) int { return cmp.Compare(a.Text, b.Text) })
	if bad > 0 {
		return after, advise("the pool's messages contain the reason: xenkeep pool schedule show", "schedule %q: %d of %d snapshots failed: %w", after.Name, bad, len(after.Runs), job.ErrPartial)
	}
	return after, nil
}

func refOf(ctx context.Context, c *xapi.Client, uuid string) (xapi.Ref, error) {
	var ref xapi.Ref
	err := c.Call(ctx, "VMSS.get_by_uuid", &ref, uuid)
	return ref, explain(err)
}
