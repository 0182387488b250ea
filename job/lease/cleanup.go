package lease

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"xenkeep/job"
	"xenkeep/repo"
	"xenkeep/xapi"
)

// CleanupOptions select which objects Cleanup removes. It always removes the leftovers
// of dead runs of the repository.
type CleanupOptions struct {
	Machine string // name of this machine; "" is the host's
	DryRun  bool   // find only, without changing anything
	// Foreign also removes the leftovers of other repositories' runs, if they have
	// shown no sign of life for OlderThan (at least an hour), by the pool's clock.
	Foreign   bool
	OlderThan time.Duration
	// Unfinished also removes the disks that failed restores left for --resume.
	Unfinished bool
	// Unblock removes the blocks of VMs whose disks are half restored, without
	// changing the disks.
	Unblock bool

	Keep func(*xapi.VDI) bool // half-restored disks that are still needed
}

// Values of Leftover.State.
const (
	StateDead    = "dead"    // its run has ended
	StateLive    = "live"    // its run may continue
	StateForeign = "foreign" // it belongs to another repository
)

// Values of Leftover.Action.
const (
	ActRemove  = "remove"
	ActBase    = "base"    // its snapshot is published: it becomes the base of the next backup
	ActFinish  = "finish"  // the restore was complete: the marks are removed
	ActStart   = "start"   // start a VM that was shut down for its backup
	ActPlug    = "plug"    // attach the USB devices that were detached from a VM for its backup
	ActUnblock = "unblock" // remove the block of a run that writes or reads a VM's disks, or its mark on a disk
	ActNone    = "none"
)

// Leftover is an object on a pool that a run of xenkeep created or marked only
// temporarily. Its JSON form is documented in docs/reference/json.md.
type Leftover struct {
	Class      string    `json:"class"` // "VM", "VDI", "VBD" or "task"
	UUID       string    `json:"uuid"`
	Name       string    `json:"name"`
	Role       string    `json:"role"` // "snapshot", "base", "restore", "over", "offline", ...
	Repository string    `json:"repository"`
	Run        string    `json:"run"`
	Machine    string    `json:"machine,omitempty"`
	Job        string    `json:"job,omitempty"`
	Seen       time.Time `json:"seen_time,omitzero"` // the last sign of life, by the pool's clock
	State      string    `json:"state"`
	Action     string    `json:"action"`
	Error      string    `json:"error,omitempty"` // why Action failed
	Hint       string    `json:"hint,omitempty"`  // the next step, if a user must take it

	ref        xapi.Ref
	snapshotOf xapi.Ref // the disk of a VDI snapshot
	orphan     bool     // a base whose disk does not exist any more
	marks      Marks
}

// Disk returns the disk of a VDI snapshot; null for any other object.
func (l *Leftover) Disk() xapi.Ref { return l.snapshotOf }

// CleanupReport is the result of Cleanup.
type CleanupReport struct {
	Found []Leftover
}

// Err joins the errors of all actions that failed, or returns nil.
func (c *CleanupReport) Err() error {
	var errs []error
	for i := range c.Found {
		switch l := &c.Found[i]; {
		case l.Error == "":
		case l.Action == ActUnblock:
			errs = append(errs, fmt.Errorf("%s %s (%s): the block or mark of run %s stays: %s", l.Class, l.UUID, l.Name, ShortRun(l.Run), l.Error))
		default:
			errs = append(errs, fmt.Errorf("%s %s (%s) of run %s remains on the pool: %s", l.Class, l.UUID, l.Name, ShortRun(l.Run), l.Error))
		}
	}
	return errors.Join(errs...)
}

// ShortRun returns the short form of a run's ID, for messages.
func ShortRun(run string) string { return run[:min(8, len(run))] }

// Cleanup finds the leftovers of xenkeep on a pool, and removes those of dead runs of
// this repository and its bases whose disk does not exist any more. It does not touch
// other bases, objects of other tools, and objects that live runs use. An action that
// fails is only recorded in the report; see CleanupReport.Err.
func Cleanup(ctx context.Context, r *repo.Repository, pool *xapi.Client, o CleanupOptions) (*CleanupReport, error) {
	if o.Machine == "" {
		o.Machine = job.Hostname()
	}
	c := &cleanup{r: r, pool: pool, o: o}
	if err := c.find(ctx); err != nil {
		return nil, err
	}
	if len(c.found) > 0 {
		if err := c.classify(ctx); err != nil {
			return nil, err
		}
	}
	if err := c.findUSB(ctx); err != nil { // before a VM is started, which must have them
		return nil, err
	}
	if err := c.findGuarded(ctx); err != nil { // before a VM is started that is blocked
		return nil, err
	}
	if err := c.findOffline(ctx); err != nil { // listed separately: these VMs belong to users and must not be removed
		return nil, err
	}
	if err := c.findEnded(ctx); err != nil {
		return nil, err
	}
	order := map[string]int{"task": 0, "VBD": 1, "VM": 2, "VDI": 3}
	slices.SortStableFunc(c.found, func(a, b Leftover) int {
		return cmp.Or(cmp.Compare(actionOrder(a.Action), actionOrder(b.Action)), cmp.Compare(order[a.Class], order[b.Class]))
	})
	for i := range c.found {
		l := &c.found[i]
		if o.DryRun || l.Action == ActNone {
			continue
		}
		if err := c.apply(ctx, l); err != nil {
			if ctx.Err() != nil {
				return nil, context.Cause(ctx)
			}
			l.Error = job.OneLine(err)
		}
	}
	return &CleanupReport{Found: c.found}, nil
}

// actionOrder returns the position of an action: kept objects are changed after others
// are removed, for example a VDI snapshot becomes a base after the record of its VM
// snapshot was removed.
func actionOrder(action string) int {
	if action == ActBase || action == ActFinish || action == ActStart || action == ActPlug || action == ActUnblock {
		return 1
	}
	return 0
}

type cleanup struct {
	r     *repo.Repository
	pool  *xapi.Client
	o     CleanupOptions
	tasks []xapi.Task
	vms   []xapi.VM
	vdis  map[xapi.Ref]*xapi.VDI
	found []Leftover
}

// find lists the objects that have marks. Tasks are read first and claims last (in
// classify): then a run that ends meanwhile has no objects left that could be
// misjudged.
func (c *cleanup) find(ctx context.Context) error {
	var err error
	if c.tasks, err = c.pool.Tasks(ctx); err != nil {
		return err
	}
	if c.vms, err = c.pool.VMs(ctx); err != nil {
		return err
	}
	vdis, err := c.pool.VDIs(ctx)
	if err != nil {
		return err
	}
	c.vdis = make(map[xapi.Ref]*xapi.VDI, len(vdis))
	for i := range vdis {
		c.vdis[vdis[i].Ref] = &vdis[i]
	}
	seen := make(map[xapi.Ref]bool)
	for i := range c.vms {
		vm := &c.vms[i]
		m, ok := ReadSnapshot(vm)
		if !ok && !vm.IsASnapshot {
			if m, ok = ReadMarks(vm.OtherConfig, time.Time{}); m.Role == RoleSnapshot || m.Role == RoleBase {
				ok = false // copied from a VM snapshot, for example by a revert
			}
		}
		if !ok {
			continue
		}
		c.found = append(c.found, leftover("VM", vm.Ref, vm.UUID, vm.NameLabel, m))
		if !vm.IsASnapshot {
			continue
		}
		if v := c.vdis[vm.SuspendVDI]; v != nil {
			l := leftover("VDI", v.Ref, v.UUID, v.NameLabel, m)
			l.snapshotOf = v.SnapshotOf
			c.found = append(c.found, l)
			seen[v.Ref] = true
		}
		// Some of its VDI snapshots may not have marks yet.
		for _, ref := range vm.VBDs {
			b, err := c.pool.VBD(ctx, ref)
			if xapi.IsCode(err, xapi.HandleInvalid) {
				continue
			}
			if err != nil {
				return err
			}
			if v := c.vdis[b.VDI]; b.Type == "Disk" && v != nil && v.IsASnapshot && v.OtherConfig[MarkRole] != RoleBase {
				l := leftover("VDI", v.Ref, v.UUID, v.NameLabel, m)
				l.snapshotOf = v.SnapshotOf
				c.found = append(c.found, l)
				seen[v.Ref] = true
			}
		}
	}
	for i := range vdis {
		v := &vdis[i]
		m, ok := ReadMarks(v.OtherConfig, v.SnapshotTime.Time)
		switch {
		case ok && m.Role == RoleBase && c.isOrphan(v):
			l := leftover("VDI", v.Ref, v.UUID, v.NameLabel, m)
			l.orphan = true
			c.found = append(c.found, l)
		case !ok || seen[v.Ref] || m.Role == RoleBase || !v.Managed && v.Type != "cbt_metadata":
		case v.IsASnapshot != (m.Role == RoleSnapshot) && m.Role != "" && m.Role != RoleSelfTest:
			// a copy that somebody made, with the marks
		default:
			l := leftover("VDI", v.Ref, v.UUID, v.NameLabel, m)
			l.snapshotOf = v.SnapshotOf
			c.found = append(c.found, l)
		}
	}
	return nil
}

// isOrphan reports whether a VDI snapshot's disk does not exist any more. The pool
// keeps such a snapshot, with a dangling snapshot_of. It is useless as a base, because
// a disk that is restored is a new disk.
func (c *cleanup) isOrphan(v *xapi.VDI) bool {
	return v.IsASnapshot && c.vdis[v.SnapshotOf] == nil
}

func leftover(class string, ref xapi.Ref, uuid, name string, m Marks) Leftover {
	return Leftover{
		Class: class, UUID: uuid, Name: name, Role: m.Role, Repository: m.Repository, Run: m.Run, Machine: m.Machine, Job: m.Job,
		Seen: m.seen, ref: ref, marks: m,
	}
}

// classify decides for each leftover whether its run is dead, and which action is
// taken.
func (c *cleanup) classify(ctx context.Context) error {
	now, err := PoolTime(ctx, c.pool)
	if err != nil {
		return err
	}
	j := &Liveness{R: c.r, Machine: c.o.Machine, Now: now}
	// A run is as recent as the newest sign of life on any of its objects.
	type runName struct{ repository, run string }
	last := make(map[runName]time.Time)
	done := make(map[runName]bool)
	for i := range c.found {
		n := runName{c.found[i].Repository, c.found[i].Run}
		if c.found[i].Seen.After(last[n]) {
			last[n] = c.found[i].Seen
		}
		done[n] = done[n] || c.found[i].marks.done
	}
	// A run is dead if that follows from the marks of one of its objects: other
	// objects may lack some marks while they are being set or removed.
	dead := make(map[runName]bool)
	for i := range c.found {
		l := &c.found[i]
		n := runName{l.Repository, l.Run}
		l.Seen, l.marks.seen = last[n], last[n]
		if dead[n] || !l.marks.Of(c.r.ID()) {
			continue
		}
		if dead[n], err = j.Dead(ctx, &l.marks); err != nil {
			return err
		}
	}
	published, err := c.neededBases(ctx)
	if err != nil {
		return err
	}
	gone := make(map[xapi.Ref]*Leftover)
	for i := range c.found {
		l := &c.found[i]
		n := runName{l.Repository, l.Run}
		l.Action = ActNone
		if !l.marks.Of(c.r.ID()) {
			l.State = StateForeign
			old := !l.Seen.IsZero() && now.Sub(l.Seen) > max(c.o.OlderThan, deadAfter)
			if c.o.Foreign && old && !done[n] && l.Role != "" {
				l.Action = ActRemove
				gone[l.ref] = l
			}
			continue
		}
		if l.orphan { // no run uses it as a base, whether its own run is alive or not
			l.State, l.Action = StateDead, ActRemove
			gone[l.ref] = l
			continue
		}
		l.State = StateLive
		left := l.Role == RoleResume && l.marks.Process == "" // by a restore that failed, and removed the mark
		if bare := l.Role == "" && l.marks.Process == "" && (l.marks.done || l.Run == ""); !dead[n] && !bare && !left {
			continue
		}
		l.State = StateDead
		isSnapshot := l.Class == "VDI" && c.vdis[l.ref].IsASnapshot
		switch {
		case isSnapshot && published[l.UUID]:
			l.Action = ActBase
		case done[n] || l.Role == "" && !isSnapshot:
			l.Action = ActFinish
		case l.Class == "VDI" && c.o.Keep != nil && c.o.Keep(c.vdis[l.ref]):
		case l.Role == RoleResume && !c.o.Unfinished:
			// The data that were written are worth keeping.
		default:
			l.Action = ActRemove
			gone[l.ref] = l
		}
	}
	return c.addAttached(ctx, gone)
}

// neededBases returns the UUIDs of the VDI snapshots that the next backup of each VM
// uses as bases, according to its newest snapshot.
func (c *cleanup) neededBases(ctx context.Context) (map[string]bool, error) {
	all, _, err := c.r.Snapshots(ctx)
	if err != nil {
		return nil, err
	}
	named := make(map[string]bool)
	seen := make(map[string]bool)
	for _, s := range all {
		if s.Origin != "pool" || s.Pool.UUID != c.pool.PoolUUID() || seen[s.VM.UUID] {
			continue
		}
		seen[s.VM.UUID] = true
		last := repo.Latest(all, func(x *repo.Snapshot) bool { return job.SameVM(x, s) })
		if last == nil {
			continue
		}
		for i := range last.Disks {
			if v := last.Disks[i].VDISnapshot; v != "" {
				named[v] = true
			}
		}
	}
	return named, nil
}

// addAttached adds the objects that use the disks to be removed: VBDs of control
// domains, and tasks of transfers.
func (c *cleanup) addAttached(ctx context.Context, gone map[xapi.Ref]*Leftover) error {
	domains := make(map[xapi.Ref]bool)
	busy := make(map[xapi.Ref]bool) // VMs of which a live run has a snapshot
	dead := make(map[xapi.Ref]*Leftover)
	for i := range c.vms {
		vm := &c.vms[i]
		if vm.IsControlDomain {
			domains[vm.Ref] = true
		}
		if _, ok := ReadSnapshot(vm); ok && gone[vm.Ref] == nil {
			busy[vm.SnapshotOf] = true
		} else if ok {
			dead[vm.SnapshotOf] = gone[vm.Ref]
		}
	}
	var more []Leftover
	add := func(class string, ref xapi.Ref, uuid, name string, by *Leftover) {
		l := leftover(class, ref, uuid, name, by.marks)
		l.State, l.Action = by.State, ActRemove
		more = append(more, l)
	}
	for ref, by := range gone {
		if by.Class != "VDI" {
			continue
		}
		for _, b := range c.vdis[ref].VBDs {
			vbd, err := c.pool.VBD(ctx, b)
			if xapi.IsCode(err, xapi.HandleInvalid) {
				continue
			}
			if err != nil {
				return err
			}
			if domains[vbd.VM] {
				add("VBD", b, vbd.UUID, by.Name+" in a control domain", by)
			}
		}
	}
	for i := range c.tasks {
		t := &c.tasks[i]
		ref, kind := TransferOf(t)
		switch by := gone[ref]; {
		case by != nil:
			add("task", t.Ref, t.UUID, t.NameLabel, by)
		case kind == "metadata" && dead[ref] != nil && !busy[ref]:
			add("task", t.Ref, t.UUID, t.NameLabel, dead[ref])
		}
	}
	c.found = append(c.found, more...)
	return nil
}

func (c *cleanup) apply(ctx context.Context, l *Leftover) error {
	switch {
	case l.Action == ActFinish:
		return Unmark(ctx, c.pool, l.Class, l.ref)
	case l.Action == ActBase:
		return c.keepAsBase(ctx, l)
	case l.Action == ActUnblock:
		return c.removeBlock(ctx, l)
	case l.Action == ActPlug:
		_, err := AttachUSB(ctx, c.pool, l.ref)
		if xapi.IsCode(err, xapi.HandleInvalid) {
			return nil // the VM was deleted
		}
		return err
	case l.Action == ActStart:
		return Restart(ctx, c.pool, l.ref)
	case l.Class == "task":
		_ = c.pool.CancelTask(ctx, l.ref) // it may have ended
		return c.pool.DestroyTask(ctx, l.ref)
	case l.Class == "VBD":
		// The host may be removing it at the moment. If it remains, the removal of the
		// disk fails and reports that.
		_ = c.pool.UnplugVBD(ctx, l.ref)
		_ = c.pool.DestroyVBD(ctx, l.ref)
		return nil
	case l.Class == "VM":
		return c.removeVM(ctx, l)
	}
	v, err := c.pool.VDI(ctx, l.ref)
	if xapi.IsCode(err, xapi.HandleInvalid) {
		return nil
	}
	if err != nil {
		return err
	}
	if l.orphan {
		if _, err := c.pool.VDI(ctx, v.SnapshotOf); !v.SnapshotOf.IsNull() && !xapi.IsCode(err, xapi.HandleInvalid) {
			return err // its disk exists nevertheless
		}
		return c.pool.DestroyVDI(ctx, l.ref)
	}
	if IsBase(&v, v.OtherConfig[MarkRepository]) {
		return nil // its run was alive nevertheless, and has published it
	}
	return c.pool.DestroyVDI(ctx, l.ref)
}

// removeVM removes the record of a VM snapshot or of a half-restored VM. VDI snapshots
// that can be recognized only by that record are marked first, because this process
// may be killed, too.
func (c *cleanup) removeVM(ctx context.Context, l *Leftover) error {
	vm, err := c.pool.VM(ctx, l.ref)
	if xapi.IsCode(err, xapi.HandleInvalid) {
		return nil
	}
	if err != nil {
		return err
	}
	if l.Role == RoleRestore && vm.OtherConfig[MarkRole] != RoleRestore {
		return nil // it was completed meanwhile
	}
	if l.Role == RoleDrill {
		if err := c.pool.HardShutdown(ctx, l.ref); err != nil {
			return err
		}
	}
	for i := range c.found {
		d := &c.found[i]
		if d.Class != "VDI" || d.Run != l.Run || d.Action != ActRemove || d.Role != RoleSnapshot || c.vdis[d.ref].OtherConfig[MarkRole] == RoleSnapshot {
			continue
		}
		for _, m := range [][2]string{
			{MarkRepository, c.owner(l)}, {MarkRun, l.Run}, {MarkMachine, c.o.Machine}, {MarkProcess, job.ProcessName()}, {MarkRole, RoleSnapshot},
		} {
			if err := c.pool.SetOtherConfig(ctx, "VDI", d.ref, m[0], m[1]); err != nil && !xapi.IsCode(err, xapi.HandleInvalid) {
				return err
			}
		}
	}
	return c.pool.DestroyVM(ctx, l.ref)
}

// owner returns the ID of the repository that a leftover belongs to, complete if it is
// ours.
func (c *cleanup) owner(l *Leftover) string {
	if l.marks.Of(c.r.ID()) {
		return c.r.ID()
	}
	return l.Repository
}

// keepAsBase completes the run that published a VDI snapshot: it turns it into a base,
// and removes older ones.
func (c *cleanup) keepAsBase(ctx context.Context, l *Leftover) error {
	if err := c.pool.SetOtherConfig(ctx, "VDI", l.ref, MarkRole, RoleBase); err != nil {
		if xapi.IsCode(err, xapi.HandleInvalid) {
			return nil
		}
		return err
	}
	return dropOldBases(ctx, c.pool, c.r.ID(), l.snapshotOf, l.ref)
}

// Liveness decides whether runs of a repository are dead. It reads the claims once.
type Liveness struct {
	R       *repo.Repository
	Machine string
	Now     time.Time // by the pool's clock
	claims  []*repo.Claim
	read    bool
}

// claim returns the claim of the run whose ID begins with run, or nil. A backup has
// its claim before it touches the pool, and until it has removed its objects there.
func (j *Liveness) claim(ctx context.Context, run string) (*repo.Claim, error) {
	if !j.read {
		claims, _, err := j.R.Claims(ctx)
		if err != nil {
			return nil, err
		}
		j.claims, j.read = claims, true
	}
	for _, c := range j.claims {
		if strings.HasPrefix(c.Run, run) {
			return c, nil
		}
	}
	return nil, nil
}

// Dead reports whether the run of an object is dead. A run is dead if its last sign of
// life is older than an hour, if its process has ended, or if its claim does not exist
// any more.
func (j *Liveness) Dead(ctx context.Context, m *Marks) (bool, error) {
	if !m.seen.IsZero() && j.Now.Sub(m.seen) > deadAfter {
		return true, nil
	}
	if job.ProcessGone(m.Machine, m.Process, j.Machine) {
		return true, nil
	}
	if m.Role == RoleSnapshot && (m.byName || m.Process == job.ProcessName()) {
		// The process is unknown, or it is this process, which may have had many runs:
		// the claim decides.
		c, err := j.claim(ctx, m.Run)
		return err == nil && (c == nil || job.ClaimDead(c, j.Machine)), err
	}
	return false, nil
}
