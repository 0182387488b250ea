package lease

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"xenkeep/internal/hints"
	"xenkeep/job"
	"xenkeep/xapi"
)

// A restore over the disks of a VM protects the VM itself, because the pool would
// start a VM while an import writes its disk. A backup that reads a disk without a VDI
// snapshot does the same, because the pool would start a VM while an export reads its
// disk. These marks are separate from those in
// lease.go, which permit cleanup to remove an object: they are on users' own VMs and
// disks, and nothing may ever be removed because of them.
const (
	// MarkWriter is set on a VM, or on a disk that is attached to no VM, during a
	// restore over its disks, and on a VM while its disks are read without a VDI
	// snapshot. Its value is a WriterMark.
	MarkWriter = "xenkeep:writer"
	// MarkHalf is set on a disk before its first byte is overwritten, and removed when
	// all disks of the restore are complete. Its value is a HalfMark.
	MarkHalf = "xenkeep:half"
)

// Guard is a reason for which a run blocks operations of a VM of the user.
type Guard int

const (
	// GuardOver protects a VM while a restore writes over its disks.
	GuardOver Guard = iota
	// GuardRead protects a halted VM while its disks are read without a VDI snapshot.
	GuardRead
	guards // their number
)

// Text returns the value of the operations that the guard blocks. The pool shows it to
// anyone who tries one of them, and xenkeep recognizes its own blocks by it.
func (g Guard) Text() string {
	if g == GuardRead {
		return "xenkeep is reading raw disks of this VM; if no backup runs, see xenkeep cleanup"
	}
	return "xenkeep is restoring disks of this VM; if no restore runs, run the same restore again, or see xenkeep cleanup"
}

// Operations returns the operations that would let a guest write to a disk that is
// being written or read or, for a disk that is being written, snapshot it half
// written. An operation that is blocked already is not changed.
func (g Guard) Operations() []string {
	ops := []string{"start", "start_on", "resume", "resume_on", "revert"}
	if g == GuardOver {
		ops = append(ops, "snapshot")
	}
	return ops
}

// Owns reports whether xenkeep has blocked an operation, by the reason that the VM has
// for it.
func Owns(why string) bool {
	for g := range guards {
		if why == g.Text() {
			return true
		}
	}
	return false
}

// Guarded reports whether xenkeep blocks a VM, and why.
func Guarded(vm *xapi.VM) (Guard, bool) {
	for g := range guards {
		for _, why := range vm.BlockedOperations {
			if why == g.Text() {
				return g, true
			}
		}
	}
	return 0, false
}

// WriterMark is the value of MarkWriter. Copies of the object have it too, and so it
// contains the UUID of the object for which it was set.
type WriterMark struct {
	UUID       string    `json:"uuid"`
	Repository string    `json:"repository"`
	Run        string    `json:"run"`
	Machine    string    `json:"machine"`
	Process    string    `json:"process"`
	Since      time.Time `json:"since"` // by the pool's clock
	// Reads is set for a run that reads disks without a VDI snapshot, and writes none.
	Reads bool `json:"reads,omitempty"`
}

// CheckFree returns an error if another run protects an object and may still be using
// it. m is the mark of that run, or nil, and other is the object's other_config.
func (l *Lease) CheckFree(what string, m *WriterMark, other map[string]string) error {
	if m == nil || m.Run == l.Own[MarkRun] || WriterGone(m, other, l.Own[MarkMachine], l.Now()) {
		return nil
	}
	doing := "is restoring over its disks"
	if m.Reads {
		doing = "is reading its raw disks"
	}
	return hints.With(fmt.Errorf("%s: run %s on %s %s, or was an hour ago: %w", what, ShortRun(m.Run), m.Machine, doing, job.ErrActive),
		"wait until it ends; xenkeep cleanup --dry-run shows whether it is alive, and cleanup removes what a dead run left")
}

// Owners returns the VMs to which a disk is attached.
func Owners(ctx context.Context, pool *xapi.Client, v *xapi.VDI) ([]xapi.VM, error) {
	var out []xapi.VM
	for _, ref := range v.VBDs {
		b, err := pool.VBD(ctx, ref)
		if xapi.IsCode(err, xapi.HandleInvalid) {
			continue
		}
		if err != nil {
			return nil, err
		}
		vm, err := pool.VM(ctx, b.VM)
		if err != nil {
			return nil, err
		}
		if vm.Real() {
			out = append(out, vm)
		}
	}
	return out, nil
}

// Block marks a VM as one that this run protects, and blocks the guard's operations.
func (l *Lease) Block(ctx context.Context, vm *xapi.VM, g Guard) error {
	err := l.MarkWriter(ctx, "VM", vm.Ref, vm.UUID, g)
	for _, op := range g.Operations() {
		if err != nil {
			break
		}
		if _, blocked := vm.BlockedOperations[op]; !blocked {
			err = l.pool.Call(ctx, "VM.add_to_blocked_operations", nil, vm.Ref, op, g.Text())
		}
		if xapi.IsCode(err, xapi.MapDuplicateKey) {
			err = nil // blocked a moment ago, which has the same effect
		}
	}
	return err
}

// MarkWriter marks a VM, or a disk that belongs to no VM, as protected by this run,
// and starts renewing the mark.
func (l *Lease) MarkWriter(ctx context.Context, class string, ref xapi.Ref, uuid string, g Guard) error {
	text, err := json.Marshal(WriterMark{
		UUID: uuid, Repository: l.Own[MarkRepository], Run: l.Own[MarkRun], Machine: l.Own[MarkMachine], Process: l.Own[MarkProcess],
		Since: l.Now().UTC().Truncate(time.Second), Reads: g == GuardRead,
	})
	if err != nil {
		return err
	}
	if err := l.pool.SetOtherConfig(ctx, class, ref, MarkWriter, string(text)); err != nil {
		return err
	}
	l.Renew(class, ref)
	return nil
}

// HalfMark is the value of MarkHalf.
type HalfMark struct {
	UUID       string    `json:"uuid"` // of the disk for which it was set, because copies have the mark too
	Repository string    `json:"repository"`
	Snapshot   string    `json:"snapshot"`
	Disk       string    `json:"disk"`
	Run        string    `json:"run"`
	Machine    string    `json:"machine"`
	Since      time.Time `json:"since"`
}

// WriterOf returns the mark of a restore over an object, according to the object's
// other_config; nil if it has none of its own.
func WriterOf(other map[string]string, uuid string) *WriterMark {
	var m WriterMark
	if json.Unmarshal([]byte(other[MarkWriter]), &m) != nil || m.UUID != uuid {
		return nil
	}
	return &m
}

// HalfOf returns the mark of a half-restored disk; nil if it has none of its own.
func HalfOf(v *xapi.VDI) *HalfMark {
	var m HalfMark
	if json.Unmarshal([]byte(v.OtherConfig[MarkHalf]), &m) != nil || m.UUID != v.UUID {
		return nil
	}
	return &m
}

// HalfRestored returns the description of a disk over which a restore was not
// completed; "" for any other disk.
func HalfRestored(v *xapi.VDI) string {
	m := HalfOf(v)
	if m == nil {
		return ""
	}
	return fmt.Sprintf("it is half restored from snapshot %s", m.Snapshot[:min(8, len(m.Snapshot))])
}

// HalfHint is the next step for a half-restored disk.
const HalfHint = "do not start the VM; run the same restore again, which writes what is missing. xenkeep cleanup --unblock removes the block of the VM without changing its disks"

// WriterGone reports whether the run of a WriterMark has ended.
func WriterGone(m *WriterMark, other map[string]string, machine string, now time.Time) bool {
	seen := m.Since
	if t, err := time.Parse(time.RFC3339, other[markAlive]); err == nil && t.After(seen) {
		seen = t
	}
	return job.ProcessGone(m.Machine, m.Process, machine) || now.Sub(seen) > deadAfter
}

// HalfDisks returns the devices of the half-restored disks of a VM.
func HalfDisks(ctx context.Context, pool *xapi.Client, vm *xapi.VM) ([]string, error) {
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
		if HalfOf(&v) != nil {
			out = append(out, b.DeviceName())
		}
	}
	return out, nil
}

// Unblock removes xenkeep's own blocks from a VM, and the mark of their run last, so
// that cleanup finds the remaining blocks if this is interrupted.
func Unblock(ctx context.Context, pool *xapi.Client, ref xapi.Ref) error {
	vm, err := pool.VM(ctx, ref)
	if xapi.IsCode(err, xapi.HandleInvalid) {
		return nil
	}
	if err != nil {
		return err
	}
	for op, why := range vm.BlockedOperations {
		if !Owns(why) {
			continue
		}
		if err := pool.Call(ctx, "VM.remove_from_blocked_operations", nil, ref, op); err != nil {
			return err
		}
	}
	return DropWriter(ctx, pool, "VM", ref)
}

// DropWriter removes the mark of a restore from an object.
func DropWriter(ctx context.Context, pool *xapi.Client, class string, ref xapi.Ref) error {
	for _, k := range []string{markAlive, MarkWriter} {
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

// DropCopied removes the marks of a restore from a VDI snapshot, which inherited them
// from its disk.
func DropCopied(ctx context.Context, pool *xapi.Client, v *xapi.VDI) error {
	for _, k := range []string{markAlive, MarkWriter, MarkHalf} {
		if _, ok := v.OtherConfig[k]; !ok {
			continue
		}
		if err := pool.RemoveOtherConfig(ctx, "VDI", v.Ref, k); err != nil {
			return err
		}
	}
	return nil
}

// findGuarded adds the VMs that are blocked by runs, and the disks that restores left
// half written.
func (c *cleanup) findGuarded(ctx context.Context) error {
	var now time.Time
	// about sets the run of an object; m and h are its marks, or nil.
	about := func(l *Leftover, other map[string]string, m *WriterMark, h *HalfMark) (err error) {
		if h != nil {
			l.Repository, l.Run, l.Machine, l.Seen = h.Repository, h.Run, h.Machine, h.Since
		}
		if m == nil {
			return nil
		}
		if now.IsZero() {
			if now, err = PoolTime(ctx, c.pool); err != nil {
				return err
			}
		}
		l.Repository, l.Run, l.Machine, l.Seen = m.Repository, m.Run, m.Machine, m.Since
		if !WriterGone(m, other, c.o.Machine, now) {
			l.State = StateLive
		}
		return nil
	}
	live := make(map[xapi.Ref]bool) // half-restored disks that a live run is writing
	for i := range c.vms {
		vm := &c.vms[i]
		m := WriterOf(vm.OtherConfig, vm.UUID)
		g, guarded := Guarded(vm)
		if !vm.Real() || m == nil && !guarded {
			continue
		}
		l := Leftover{Class: "VM", UUID: vm.UUID, Name: vm.NameLabel, Role: roleOver, State: StateDead, Action: ActUnblock, ref: vm.Ref}
		half := c.halfDisksOf(vm)
		var h *HalfMark
		if len(half) > 0 {
			h = HalfOf(half[0])
		}
		if err := about(&l, vm.OtherConfig, m, h); err != nil {
			return err
		}
		if m != nil && m.Reads || m == nil && g == GuardRead {
			l.Role = roleRead
			if err := c.readerGone(ctx, &l, m); err != nil {
				return err
			}
		}
		c.classifyGuarded(&l, len(half) > 0)
		for _, v := range half {
			live[v.Ref] = l.State == StateLive
		}
		c.found = append(c.found, l)
	}
	for _, v := range c.vdis {
		m, h := WriterOf(v.OtherConfig, v.UUID), HalfOf(v)
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
		c.classifyGuarded(&l, h != nil)
		c.found = append(c.found, l)
	}
	return nil
}

// readerGone declares a run of this repository dead that reads disks of a halted VM,
// by the same signs as for a VM that it has shut down, which is started as soon as it
// is unblocked.
func (c *cleanup) readerGone(ctx context.Context, l *Leftover, m *WriterMark) error {
	if m == nil || l.State != StateLive || m.Repository != c.r.ID() {
		return nil
	}
	gone, err := c.runGone(ctx, &offlineMark{Run: m.Run, Machine: m.Machine, Process: m.Process})
	if gone {
		l.State = StateDead
	}
	return err
}

// classifyGuarded chooses the action for a block or a mark. The protection of a
// half-restored disk is removed only if the options request it.
func (c *cleanup) classifyGuarded(l *Leftover, half bool) {
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
		l.Hint = HalfHint
	}
}

func (c *cleanup) halfDisksOf(vm *xapi.VM) []*xapi.VDI {
	var out []*xapi.VDI
	for _, v := range c.vdis {
		if HalfOf(v) == nil {
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

// removeBlock removes a block, or the mark of a half-restored disk.
func (c *cleanup) removeBlock(ctx context.Context, l *Leftover) error {
	if l.Class == "VM" {
		return Unblock(ctx, c.pool, l.ref)
	}
	err := c.pool.RemoveOtherConfig(ctx, "VDI", l.ref, MarkHalf)
	if err == nil {
		return DropWriter(ctx, c.pool, "VDI", l.ref)
	}
	if xapi.IsCode(err, xapi.HandleInvalid) {
		return nil
	}
	return err
}

// UnblockHint returns the command that removes the block of a dead run from a VM. If m
// is not nil, the run may belong to another repository.
func UnblockHint(m *WriterMark) string {
	const hint = "xenkeep cleanup takes the block off"
	if m == nil || m.Repository == "" {
		return hint
	}
	of := "which the restore was from"
	if m.Reads {
		of = "which the backup went to"
	}
	return fmt.Sprintf("%s: with repository %.8s, %s, or else with --foreign", hint, m.Repository, of)
}
