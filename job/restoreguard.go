package job

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strings"
	"time"

	"xenkeep/xapi"
)

// A restore over disks that are in use by a VM protects that VM itself: the pool
// lets a VM start while an import writes its disk. The marks of that are apart
// from those in lease.go, by which objects are removed: these are on the user's
// own VMs and disks, and nothing may ever be removed by them.
const (
	// markWriter is set on a VM, or on a disk that no VM has, for the time of a
	// restore over its disks. Its value is a writerMark.
	markWriter = "xenkeep:writer"
	// markHalf is set on a disk before the first byte is written over it, and
	// removed when all disks of the restore are whole. Its value is a halfMark.
	markHalf = "xenkeep:half"
)

// guardText is the value of the operations that a restore blocks. The pool shows
// it to whoever tries one of them, and xenkeep knows its own blocks by it.
const guardText = "xenkeep is restoring disks of this VM; if no restore runs, run the same restore again, or see xenkeep cleanup"

// guardedOperations are those that would let a guest write to a disk that is
// being written, or freeze it half written. An operation that is blocked already
// stays as it is.
func guardedOperations() []string {
	return []string{"start", "start_on", "resume", "resume_on", "revert", "snapshot"}
}

// guarded reports whether a restore over a VM's disks blocks it.
func guarded(vm *xapi.VM) bool {
	for _, why := range vm.BlockedOperations {
		if why == guardText {
			return true
		}
	}
	return false
}

// writerMark is the value of markWriter. Copies of the object bear it too, so it
// names the object that it is about.
type writerMark struct {
	UUID       string    `json:"uuid"`
	Repository string    `json:"repository"`
	Run        string    `json:"run"`
	Machine    string    `json:"machine"`
	Process    string    `json:"process"`
	Since      time.Time `json:"since"` // by the pool's clock
}

// halfMark is the value of markHalf.
type halfMark struct {
	UUID       string    `json:"uuid"` // of the disk: copies bear the mark too
	Repository string    `json:"repository"`
	Snapshot   string    `json:"snapshot"`
	Disk       string    `json:"disk"`
	Run        string    `json:"run"`
	Machine    string    `json:"machine"`
	Since      time.Time `json:"since"`
}

func writerOf(other map[string]string, uuid string) *writerMark {
	var m writerMark
	if json.Unmarshal([]byte(other[markWriter]), &m) != nil || m.UUID != uuid {
		return nil
	}
	return &m
}

func halfOf(v *xapi.VDI) *halfMark {
	var m halfMark
	if json.Unmarshal([]byte(v.OtherConfig[markHalf]), &m) != nil || m.UUID != v.UUID {
		return nil
	}
	return &m
}

// halfRestored says of a disk that a restore over it has not come to its end; ""
// for any other.
func halfRestored(v *xapi.VDI) string {
	m := halfOf(v)
	if m == nil {
		return ""
	}
	return fmt.Sprintf("it is half restored from snapshot %s", m.Snapshot[:min(8, len(m.Snapshot))])
}

// halfHint is the next step for a half-restored disk.
const halfHint = "do not start the VM; run the same restore again, which writes what is missing. xenkeep cleanup --unblock gives the VM free as it is"

// HalfRestoredError is a restore over disks that did not come to its end after it
// had begun to write.
type HalfRestoredError struct {
	VM    string   // name; "" where no VM has the disk
	Disks []string // devices, or the UUID of a disk that no VM has
	Old   []string // what the disks were: UUIDs of VDI snapshots
	Err   error
}

// Leaves describes what is left on the pool.
func (e *HalfRestoredError) Leaves() string {
	noun, verb := "disk ", "is"
	if len(e.Disks) > 1 {
		noun, verb = "disks ", "are"
	}
	text := noun + strings.Join(e.Disks, ", ")
	if e.VM != "" {
		text += " of VM " + e.VM
	}
	text += " " + verb + " half restored: do not start the VM; run the same command again"
	if len(e.Old) > 0 {
		text += "; what was there is kept as VDI snapshot " + strings.Join(e.Old, ", ")
	}
	return text
}

func (e *HalfRestoredError) Error() string { return e.Leaves() + ": " + e.Err.Error() }
func (e *HalfRestoredError) Unwrap() error { return e.Err }

// Hint is the next step.
func (e *HalfRestoredError) Hint() string {
	return "the same command compares the disks and writes what is missing; until then the pool refuses to start the VM. xenkeep cleanup --unblock gives it free as it is"
}

// guard protects the VMs whose disks a restore writes over.
type guard struct {
	p       *poolRestore
	targets []overTarget
	vms     []xapi.VM // that have one of the disks
	loose   []xapi.VDI
	began   map[xapi.Ref]bool // disks that bear markHalf
	old     []string          // VDI snapshots of what the disks were
	sent    map[xapi.Ref]bool // disks whose data may have been written to, by this run or one before
}

// newGuard finds the VMs, and refuses disks that another run is writing.
func (p *poolRestore) newGuard(ctx context.Context, targets []overTarget) (*guard, error) {
	g := &guard{p: p, targets: targets, began: make(map[xapi.Ref]bool), sent: make(map[xapi.Ref]bool)}
	seen := make(map[xapi.Ref]bool)
	for _, t := range targets {
		if halfOf(&t.vdi) != nil {
			g.began[t.vdi.Ref], g.sent[t.vdi.Ref] = true, true
		}
		owners, err := p.owners(ctx, &t.vdi)
		if err != nil {
			return nil, err
		}
		if len(owners) == 0 {
			g.loose = append(g.loose, t.vdi)
			if err := p.free("disk "+t.d.Device+": VDI "+t.vdi.UUID, writerOf(t.vdi.OtherConfig, t.vdi.UUID), t.vdi.OtherConfig); err != nil {
				return nil, err
			}
		}
		for i := range owners {
			vm := &owners[i]
			if seen[vm.Ref] {
				continue
			}
			seen[vm.Ref] = true
			g.vms = append(g.vms, *vm)
			if err := p.free("VM "+vm.NameLabel, writerOf(vm.OtherConfig, vm.UUID), vm.OtherConfig); err != nil {
				return nil, err
			}
		}
	}
	return g, nil
}

// owners are the VMs that have a disk.
func (p *poolRestore) owners(ctx context.Context, v *xapi.VDI) ([]xapi.VM, error) {
	var out []xapi.VM
	for _, ref := range v.VBDs {
		b, err := p.pool.VBD(ctx, ref)
		if xapi.IsCode(err, xapi.HandleInvalid) {
			continue
		}
		if err != nil {
			return nil, err
		}
		vm, err := p.pool.VM(ctx, b.VM)
		if err != nil {
			return nil, err
		}
		if vm.Real() {
			out = append(out, vm)
		}
	}
	return out, nil
}

// free refuses an object that another run is writing.
func (p *poolRestore) free(what string, m *writerMark, other map[string]string) error {
	if m == nil || m.Run == p.lease.own[markRun] || writerGone(m, other, p.lease.own[markMachine], p.lease.now()) {
		return nil
	}
	return fmt.Errorf("%s: run %s on %s is restoring over its disks, or was an hour ago: %w", what, shortRun(m.Run), m.Machine, ErrActive)
}

// writerGone reports whether the run of a mark has ended.
func writerGone(m *writerMark, other map[string]string, machine string, now time.Time) bool {
	seen := m.Since
	if t, err := time.Parse(time.RFC3339, other[markAlive]); err == nil && t.After(seen) {
		seen = t
	}
	return processGone(m.Machine, m.Process, machine) || now.Sub(seen) > deadAfter
}

// raise blocks the VMs and makes sure that they are halted.
func (g *guard) raise(ctx context.Context) error {
	p := g.p
	for i := range g.loose {
		if err := g.markWriter(ctx, "VDI", g.loose[i].Ref, g.loose[i].UUID); err != nil {
			return fmt.Errorf("VDI %s: %w", g.loose[i].UUID, err)
		}
	}
	for i := range g.vms {
		vm := &g.vms[i]
		err := g.markWriter(ctx, "VM", vm.Ref, vm.UUID)
		for _, op := range guardedOperations() {
			if err != nil {
				break
			}
			if _, blocked := vm.BlockedOperations[op]; !blocked {
				err = p.pool.Call(ctx, "VM.add_to_blocked_operations", nil, vm.Ref, op, guardText)
			}
			if xapi.IsCode(err, xapi.MapDuplicateKey) {
				err = nil // blocked a moment ago, which is as well
			}
		}
		if err != nil {
			return fmt.Errorf("VM %s: its start cannot be blocked while its disks are written: %w", vm.NameLabel, err)
		}
	}
	// A VM that was started before the block stood is seen now.
	return g.halted(ctx)
}

func (g *guard) markWriter(ctx context.Context, class string, ref xapi.Ref, uuid string) error {
	own := g.p.lease.own
	text, err := json.Marshal(writerMark{
		UUID: uuid, Repository: own[markRepository], Run: own[markRun], Machine: own[markMachine], Process: own[markProcess],
		Since: g.p.lease.now().UTC().Truncate(time.Second),
	})
	if err != nil {
		return err
	}
	if err := g.p.pool.SetOtherConfig(ctx, class, ref, markWriter, string(text)); err != nil {
		return err
	}
	g.p.lease.keep(class, ref)
	return nil
}

// halted refuses VMs that are not halted.
func (g *guard) halted(ctx context.Context) error {
	for i := range g.vms {
		vm, err := g.p.pool.VM(ctx, g.vms[i].Ref)
		if xapi.IsCode(err, xapi.HandleInvalid) {
			continue
		}
		if err != nil {
			return err
		}
		if vm.PowerState != "Halted" {
			return fmt.Errorf("VM %s is %s: %w", vm.NameLabel, strings.ToLower(vm.PowerState), ErrNotHalted)
		}
	}
	return nil
}

// begin marks a disk as half restored, before anything is written to it. The mark of an
// earlier run is replaced, since it may name another snapshot.
func (g *guard) begin(ctx context.Context, t *overTarget) error {
	own := g.p.lease.own
	text, err := json.Marshal(halfMark{
		UUID: t.vdi.UUID, Repository: own[markRepository], Snapshot: g.p.s.ID(), Disk: t.d.Device, Run: own[markRun], Machine: own[markMachine],
		Since: g.p.lease.now().UTC().Truncate(time.Second),
	})
	if err != nil {
		return err
	}
	if g.began[t.vdi.Ref] {
		return g.renew(ctx, t.vdi.Ref, string(text))
	}
	g.began[t.vdi.Ref] = true // where the answer is lost it may be there
	return g.p.pool.SetOtherConfig(ctx, "VDI", t.vdi.Ref, markHalf, string(text))
}

// renew replaces the mark of a half-restored disk by one call: the disk must not be
// without a mark at any time, or a run that is killed meanwhile would leave it
// unprotected.
func (g *guard) renew(ctx context.Context, ref xapi.Ref, text string) error {
	v, err := g.p.pool.VDI(ctx, ref)
	if err != nil {
		return err
	}
	other := maps.Clone(v.OtherConfig)
	if other == nil {
		other = make(map[string]string)
	}
	other[markHalf] = text
	return g.p.pool.Call(ctx, "VDI.set_other_config", nil, ref, other)
}

// settle ends the protection where nothing is half restored, and keeps it
// otherwise. err is how the restore went.
func (g *guard) settle(ctx context.Context, err error) error {
	clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
	defer cancel()
	if err == nil {
		if err = g.halted(clean); errors.Is(err, ErrNotHalted) {
			err = fmt.Errorf("it ran while its disks were written, and what it wrote may be lost or spoil them: %w", err)
		}
	}
	whole := err == nil
	if whole {
		g.awaitRelease(ctx)
	}
	var half []string
	var errs []error
	for i := range g.targets {
		t := &g.targets[i]
		ref := t.vdi.Ref
		switch {
		case whole || g.began[ref] && !g.sent[ref]:
			errs = append(errs, g.p.unhalf(clean, ref, g.began[ref]))
		case g.sent[ref]:
			half = append(half, t.d.Device)
		}
	}
	errs = append(errs, g.lower(clean, whole))
	left := errors.Join(errs...)
	switch {
	case len(half) > 0:
		e := &HalfRestoredError{Disks: half, Old: g.old, Err: errors.Join(err, left)}
		if len(g.vms) > 0 {
			e.VM = g.vms[0].NameLabel
		}
		return e
	case err != nil && left != nil:
		return &leftError{err, left}
	case left != nil:
		g.p.warn("the disks are whole, but the marks and blocks of the restore could not be taken off (xenkeep cleanup tries again): %s", oneLine(left))
	}
	return err
}

// awaitRelease waits until no host holds the disks any more, so that their VM can be
// started as soon as the block is off it. The disks are whole: a hold that remains, or
// a wait that is cancelled, is no error.
func (g *guard) awaitRelease(ctx context.Context) {
	for i := range g.targets {
		t := &g.targets[i]
		free, err := g.p.pool.WaitReleased(ctx, t.vdi.Ref)
		if err == nil && !free {
			g.p.warn("disk %s: the disk is whole, but a control domain still holds VDI %s: its VM may not start until that ends", t.d.Device, t.vdi.UUID)
		}
	}
}

// unhalf takes the mark of a half-restored disk off.
func (p *poolRestore) unhalf(ctx context.Context, ref xapi.Ref, marked bool) error {
	if !marked {
		return nil
	}
	err := p.pool.RemoveOtherConfig(ctx, "VDI", ref, markHalf)
	if xapi.IsCode(err, xapi.HandleInvalid) {
		return nil
	}
	return err
}

// lower ends the run's hold on its VMs and disks; VMs that have a half-restored
// disk stay blocked.
func (g *guard) lower(ctx context.Context, whole bool) error {
	var errs []error
	for i := range g.vms {
		vm := &g.vms[i]
		g.p.lease.drop(vm.Ref)
		disks, err := halfDisks(ctx, g.p.pool, vm)
		if err == nil && len(disks) == 0 {
			err = unblock(ctx, g.p.pool, vm.Ref)
		} else if err == nil {
			err = dropWriter(ctx, g.p.pool, "VM", vm.Ref)
			if whole {
				g.p.warn("VM %s stays blocked: its disk %s is half restored by an earlier run", vm.NameLabel, strings.Join(disks, ", "))
			}
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("VM %s: %w", vm.NameLabel, err))
		}
	}
	for i := range g.loose {
		g.p.lease.drop(g.loose[i].Ref)
		if err := dropWriter(ctx, g.p.pool, "VDI", g.loose[i].Ref); err != nil {
			errs = append(errs, fmt.Errorf("VDI %s: %w", g.loose[i].UUID, err))
		}
	}
	return errors.Join(errs...)
}

// halfDisks are the half-restored disks of a VM, by their device.
func halfDisks(ctx context.Context, pool *xapi.Client, vm *xapi.VM) ([]string, error) {
	var out []string
	for _, ref := range vm.VBDs {
		b, err := pool.VBD(ctx, ref)
		if xapi.IsCode(err, xapi.HandleInvalid) || err == nil && (b.Type != "Disk" || b.VDI.IsNull()) {
			continue
		}
		if err != nil {
			return nil, err
		}
		v, err := pool.VDI(ctx, b.VDI)
		if xapi.IsCode(err, xapi.HandleInvalid) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if halfOf(&v) != nil {
			out = append(out, b.DeviceName())
		}
	}
	return out, nil
}

// unblock takes xenkeep's own blocks off a VM, and the mark of their run last:
// as long as one of them stands cleanup finds the others.
func unblock(ctx context.Context, pool *xapi.Client, ref xapi.Ref) error {
	vm, err := pool.VM(ctx, ref)
	if xapi.IsCode(err, xapi.HandleInvalid) {
		return nil
	}
	if err != nil {
		return err
	}
	for op, why := range vm.BlockedOperations {
		if why != guardText {
			continue
		}
		if err := pool.Call(ctx, "VM.remove_from_blocked_operations", nil, ref, op); err != nil {
			return err
		}
	}
	return dropWriter(ctx, pool, "VM", ref)
}

func dropWriter(ctx context.Context, pool *xapi.Client, class string, ref xapi.Ref) error {
	for _, k := range []string{markAlive, markWriter} {
		err := pool.RemoveOtherConfig(ctx, class, ref, k)
		if xapi.IsCode(err, xapi.HandleInvalid) {
			return nil
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// dropCopied takes the marks of a restore off a VDI snapshot, which has them of
// its disk.
func dropCopied(ctx context.Context, pool *xapi.Client, v *xapi.VDI) error {
	for _, k := range []string{markAlive, markWriter, markHalf} {
		if _, ok := v.OtherConfig[k]; !ok {
			continue
		}
		if err := pool.RemoveOtherConfig(ctx, "VDI", v.Ref, k); err != nil {
			return err
		}
	}
	return nil
}

// findGuarded adds the VMs that restores over their disks have blocked, and the
// disks that such restores have left half written.
func (c *cleanup) findGuarded(ctx context.Context) error {
	var now time.Time
	// about fills in which run an object is of; m and h are its marks, if any.
	about := func(l *Leftover, other map[string]string, m *writerMark, h *halfMark) (err error) {
		if h != nil {
			l.Repository, l.Run, l.Machine, l.Seen = h.Repository, h.Run, h.Machine, h.Since
		}
		if m == nil {
			return nil
		}
		if now.IsZero() {
			if now, err = poolTime(ctx, c.pool); err != nil {
				return err
			}
		}
		l.Repository, l.Run, l.Machine, l.Seen = m.Repository, m.Run, m.Machine, m.Since
		if !writerGone(m, other, c.o.Machine, now) {
			l.State = StateLive
		}
		return nil
	}
	live := make(map[xapi.Ref]bool) // half-restored disks of VMs that a live run writes
	for i := range c.vms {
		vm := &c.vms[i]
		m := writerOf(vm.OtherConfig, vm.UUID)
		if !vm.Real() || m == nil && !guarded(vm) {
			continue
		}
		l := Leftover{Class: "VM", UUID: vm.UUID, Name: vm.NameLabel, Role: roleOver, State: StateDead, Action: ActUnblock, ref: vm.Ref}
		half := c.halfDisksOf(vm)
		var h *halfMark
		if len(half) > 0 {
			h = halfOf(half[0])
		}
		if err := about(&l, vm.OtherConfig, m, h); err != nil {
			return err
		}
		c.settleGuard(&l, len(half) > 0)
		for _, v := range half {
			live[v.Ref] = l.State == StateLive
		}
		c.found = append(c.found, l)
	}
	for _, v := range c.vdis {
		m, h := writerOf(v.OtherConfig, v.UUID), halfOf(v)
		if m == nil && h == nil {
			continue
		}
		l := Leftover{Class: "VDI", UUID: v.UUID, Name: v.NameLabel, Role: roleOver, State: StateDead, Action: ActUnblock, ref: v.Ref}
		if err := about(&l, v.OtherConfig, m, h); err != nil {
			return err
		}
		if live[v.Ref] {
			l.State = StateLive
		}
		c.settleGuard(&l, h != nil)
		c.found = append(c.found, l)
	}
	return nil
}

// settleGuard decides what becomes of a block or a mark. What protects a
// half-restored disk is taken off only when that is asked for.
func (c *cleanup) settleGuard(l *Leftover, half bool) {
	switch {
	case l.State == StateLive:
		l.Action = ActNone
	case l.Repository != "" && l.Repository != c.r.ID():
		l.State = StateForeign
		if !c.o.Foreign || half && !c.o.Unblock {
			l.Action = ActNone
		}
	case half && !c.o.Unblock:
		l.Action = ActNone
	}
	if half {
		l.Hint = halfHint
	}
}

func (c *cleanup) halfDisksOf(vm *xapi.VM) []*xapi.VDI {
	var out []*xapi.VDI
	for _, v := range c.vdis {
		if halfOf(v) == nil {
			continue
		}
		for _, ref := range v.VBDs {
			for _, own := range vm.VBDs {
				if ref == own {
					out = append(out, v)
				}
			}
		}
	}
	return out
}

// giveFree takes a block, or the mark of a half-restored disk, off.
func (c *cleanup) giveFree(ctx context.Context, l *Leftover) error {
	if l.Class == "VM" {
		return unblock(ctx, c.pool, l.ref)
	}
	err := c.pool.RemoveOtherConfig(ctx, "VDI", l.ref, markHalf)
	if err == nil {
		return dropWriter(ctx, c.pool, "VDI", l.ref)
	}
	if xapi.IsCode(err, xapi.HandleInvalid) {
		return nil
	}
	return err
}

// guardedVM returns why a VM that a restore over its disks has blocked cannot be backed
// up; nil for any other VM, and for one whose block a foreseen run takes off first.
func guardedVM(ctx context.Context, pool *xapi.Client, vm *xapi.VM, o planOptions) error {
	if !guarded(vm) {
		return nil
	}
	disks, err := halfDisks(ctx, pool, vm)
	if err != nil {
		return err
	}
	if len(disks) > 0 {
		return &unsupported{why: "its disk " + strings.Join(disks, ", ") + " is half restored", hint: halfHint}
	}
	m := writerOf(vm.OtherConfig, vm.UUID)
	foreign := m != nil && m.Repository != "" && m.Repository != o.repository
	if o.machine != "" && !foreign {
		now, err := poolTime(ctx, pool)
		if err != nil {
			return err
		}
		if m == nil || writerGone(m, vm.OtherConfig, o.machine, now) {
			return nil
		}
	}
	if !foreign {
		m = nil
	}
	return &unsupported{why: "a restore is writing over its disks", hint: "wait for the restore to end; if none runs, " + unblockHint(m)}
}

// unblockHint names the command that takes the block of a dead restore off a VM. Where
// m is not nil, the restore may be that of another repository.
func unblockHint(m *writerMark) string {
	const hint = "xenkeep cleanup takes the block off"
	if m == nil || m.Repository == "" {
		return hint
	}
	return fmt.Sprintf("%s: with repository %.8s, which the restore was from, or else with --foreign", hint, m.Repository)
}

// Blocked lists the VMs of a pool that a restore which has ended still blocks, although
// none of their disks is half restored, as findings.
func Blocked(ctx context.Context, pool *xapi.Client) ([]Finding, error) {
	vms, err := pool.VMs(ctx)
	if err != nil {
		return nil, err
	}
	var out []Finding
	var now time.Time
	for i := range vms {
		vm := &vms[i]
		if !vm.Real() || !guarded(vm) {
			continue
		}
		if now.IsZero() {
			if now, err = poolTime(ctx, pool); err != nil {
				return nil, err
			}
		}
		m := writerOf(vm.OtherConfig, vm.UUID)
		if m != nil && !writerGone(m, vm.OtherConfig, hostname(), now) {
			continue
		}
		disks, err := halfDisks(ctx, pool, vm)
		if err != nil {
			return nil, err
		}
		if len(disks) == 0 {
			out = append(out, Finding{Level: Warn, What: "VM " + vm.NameLabel, Text: "start is blocked by a restore that has ended", Hint: unblockHint(m)})
		}
	}
	return out, nil
}

// HalfRestored lists the half-restored disks of a pool, as findings.
func HalfRestored(ctx context.Context, pool *xapi.Client) ([]Finding, error) {
	vdis, err := pool.VDIs(ctx)
	if err != nil {
		return nil, err
	}
	var out []Finding
	for i := range vdis {
		v := &vdis[i]
		why := halfRestored(v)
		if why == "" {
			continue
		}
		what := "VDI " + v.UUID
		for _, ref := range v.VBDs {
			b, err := pool.VBD(ctx, ref)
			if err != nil {
				continue // gone meanwhile
			}
			if vm, err := pool.VM(ctx, b.VM); err == nil && vm.Real() {
				what = fmt.Sprintf("disk %s of VM %s", b.DeviceName(), vm.NameLabel)
			}
		}
		out = append(out, Finding{Level: Fail, What: what, Text: why, Hint: halfHint})
	}
	return out, nil
}
