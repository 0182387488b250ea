package job

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"xenkeep/xapi"

	"github.com/dustin/go-humanize"
)

// Kind is a way of taking a VM snapshot.
type Kind string

const (
	KindRegular    Kind = "regular"    // crash-consistent
	KindQuiesced   Kind = "quiesced"   // the guest's applications take part (VSS)
	KindCheckpoint Kind = "checkpoint" // with memory
	KindOffline    Kind = "offline"    // shut down cleanly before, started after
)

// MemoryDevice is the device of the disk that holds a checkpoint's memory.
const MemoryDevice = "suspend"

// quiesceTries is how often a quiesced snapshot is tried whose guest did not
// freeze its disks within the 10 s that it has.
const quiesceTries = 3

// unable says why a VM snapshot of some kind cannot be had, so that another
// kind may be taken.
type unable struct {
	kind Kind
	why  string
	hint string
	err  error
}

func (u *unable) Error() string {
	if u.err == nil {
		return fmt.Sprintf("no %s snapshot: %s", u.kind, u.why)
	}
	return fmt.Sprintf("no %s snapshot: %s: %v", u.kind, u.why, u.err)
}

func (u *unable) Unwrap() error { return u.err }
func (u *unable) Hint() string  { return u.hint }

// Unable says, before anything is done, why a VM snapshot of some kind cannot
// be had; nil where nothing speaks against it.
func (p *vmPlan) unable(k Kind) error {
	state := strings.ToLower(p.vm.PowerState)
	if k != KindOffline {
		if err := usbUnable(k, p.vm.PowerState, p.usb); err != nil {
			return err
		}
	}
	switch k {
	case KindQuiesced:
		if state != "running" {
			return &unable{kind: k, why: "the VM is " + state + ", and only a running guest can take part", hint: "start the VM, or take a snapshot of another kind"}
		}
	case KindCheckpoint:
		if state != "running" && state != "suspended" {
			return &unable{kind: k, why: "the VM is " + state + " and has no memory to save", hint: "start the VM, or take a snapshot of another kind"}
		}
		if state == "running" {
			return p.memorySpace()
		}
	case KindOffline:
		if state == "paused" || state == "suspended" {
			return &unable{kind: k, why: "the VM is " + state + " and cannot be shut down cleanly", hint: "resume the VM, or take a snapshot of another kind"}
		}
	}
	return nil
}

// memoryNeed is what a checkpoint needs on the SR of suspend images: the memory
// and 4 MB for each disk, and a fifth more (XenServer's guide, VM snapshots).
func (p *vmPlan) memoryNeed() int64 {
	n := int64(p.vm.MemoryStaticMax) + 4_000_000*int64(len(p.disks)+len(p.left))
	return n + n/5
}

// memorySpace refuses a checkpoint that its SR has no room for.
func (p *vmPlan) memorySpace() error {
	if p.suspend.Ref.IsNull() || p.suspend.PhysicalSize <= 0 {
		return nil // not known: the pool will say
	}
	free := int64(p.suspend.PhysicalSize - p.suspend.PhysicalUtilisation)
	if need := p.memoryNeed(); free < need {
		return &unable{kind: KindCheckpoint, why: fmt.Sprintf("SR %s: the memory needs %s, %s are free", p.suspend.NameLabel,
			humanize.IBytes(uint64(need)), humanize.IBytes(uint64(max(free, 0)))), hint: fmt.Sprintf("free %s on SR %s (%s), or take a snapshot of another kind", humanize.IBytes(uint64(need-max(free, 0))), p.suspend.NameLabel, p.suspend.UUID), err: ErrSpace}
	}
	return nil
}

// noVSS are guests whose quiesced snapshots the vendor does not support
// (XenServer's guide, VM snapshots), by the name that their tools report with
// the marks of trade taken out: "Microsoft Windows Server 2003, Standard
// Edition".
var (
	noVSS      = regexp.MustCompile(`windows (server )?(8\.1|8|7|2000|xp|2003|vista)\b`)
	tradeMarks = strings.NewReplacer("(r)", "", "(tm)", "", "®", "", "™", "")
)

// kindWarnings are what the vendor says of a VM that is to be snapshotted in
// some way.
func (p *vmPlan) kindWarnings(k Kind) []string {
	var w []string
	if len(p.usb) > 0 {
		w = append(w, "for the VM snapshot it is without its "+usbNames(p.usb)+", detached before it and attached again after it")
	}
	if k != KindQuiesced {
		if k != KindCheckpoint && strings.EqualFold(p.vm.PowerState, "suspended") {
			w = append(w, "it is suspended, and its memory is not saved: a VM that is restored from this starts as after a power cut. A snapshot of kind checkpoint saves the memory too")
		}
		return w
	}
	if n := len(p.disks) + len(p.left); n > 2 {
		srs := make(map[xapi.Ref]bool)
		for _, d := range p.disks {
			srs[d.sr.Ref] = true
		}
		text := fmt.Sprintf("it has %d disks: quiesced snapshots of more than two may not be done within the 10 s that the guest has", n)
		if len(srs) == 1 {
			text += "; spread them over several SRs"
		}
		w = append(w, text)
	}
	os := p.guestOS()
	name := strings.Join(strings.Fields(tradeMarks.Replace(strings.ToLower(os))), " ")
	if noVSS.MatchString(name) {
		w = append(w, "quiesced snapshots of "+os+" are not supported")
	}
	if strings.Contains(name, "windows") {
		w = append(w, "dynamic disks of Windows cannot be quiesced; the pool does not tell whether there are such")
	}
	return w
}

// guestOS is the system's name as the guest's tools report it.
func (p *vmPlan) guestOS() string {
	name, _, _ := strings.Cut(p.os["name"], "|")
	return cmp.Or(strings.TrimSpace(name), p.os["distro"])
}

// take makes the VM snapshot, by the first kind that can be had.
func (v *vmBackup) take(ctx context.Context) error {
	kinds := v.kinds
	if len(kinds) == 0 {
		kinds = []Kind{KindRegular}
	}
	var last error
	for _, k := range kinds {
		err := v.plan.unable(k)
		if err == nil {
			err = v.takeKind(ctx, k)
		}
		var no *unable
		switch {
		case err == nil:
			v.kind = k
			for _, w := range v.plan.kindWarnings(k) {
				v.b.warn("VM %s: %s", v.plan.vm.NameLabel, w)
			}
			if last != nil {
				v.b.warn("VM %s: %w; a snapshot of kind %s was taken", v.plan.vm.NameLabel, last, k)
			}
			return nil
		case ctx.Err() != nil || !errors.As(err, &no) || !v.record.IsNull():
			return err
		}
		if last != nil {
			err = fmt.Errorf("%w; %w", last, err)
		}
		last = err
	}
	return last
}

// takeKind makes a VM snapshot of one kind. What the pool refuses because of
// the kind is *unable.
func (v *vmBackup) takeKind(ctx context.Context, k Kind) (err error) {
	pool, vm := v.b.pool, v.plan.vm.Ref
	switch k {
	case KindQuiesced, KindCheckpoint:
		return v.withoutUSB(ctx, k, func() (err error) {
			v.record, err = Take(ctx, pool, vm, k, v.label(), func() {
				v.b.o.Log.Info("the guest did not freeze in time: trying again", "vm", v.plan.vm.NameLabel)
			})
			return err
		})
	case KindOffline:
		if v.plan.vm.PowerState != "Halted" {
			return v.takeOffline(ctx)
		}
	}
	return v.withoutUSB(ctx, k, func() error { return v.takeRegular(ctx) })
}

// takeRegular makes a crash-consistent VM snapshot. Hosts that cannot leave
// disks out of one snapshot them all; those not wanted go with it.
func (v *vmBackup) takeRegular(ctx context.Context) (err error) {
	var ignore []xapi.Ref
	avoidable := true
	for _, d := range v.plan.left {
		ignore = append(ignore, d.vbd.VDI)
		avoidable = avoidable && !d.never
	}
	v.record, err = v.b.pool.SnapshotVM(ctx, v.plan.vm.Ref, v.label(), ignore...)
	if avoidable && errors.Is(err, xapi.ErrIgnoreVDIs) {
		v.record, err = v.b.pool.SnapshotVM(ctx, v.plan.vm.Ref, v.label())
	}
	return err
}

// startTime is how long the start of a VM may take that was shut down for its
// snapshot, whatever became of the run.
const startTime = 5 * time.Minute

// takeOffline shuts the VM down, makes the snapshot, and starts the VM on every
// path. Between the two a mark on the VM says so, for the case that this process
// is killed.
func (v *vmBackup) takeOffline(ctx context.Context) (err error) {
	vm := v.plan.vm
	if err := v.b.lease.markOffline(ctx, &vm); err != nil {
		return err
	}
	defer func() {
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), startTime)
		defer cancel()
		if serr := restart(clean, v.b.pool, vm.Ref); serr != nil {
			v.b.warn("VM %s: it was shut down for its backup and does not start: %v", vm.NameLabel, serr)
			err = errors.Join(err, fmt.Errorf("start after the snapshot: %w", serr))
		}
	}()
	if err := v.b.pool.CleanShutdown(ctx, vm.Ref); err != nil {
		if ctx.Err() != nil {
			return err
		}
		return &unable{kind: KindOffline, why: "the guest does not shut down cleanly", hint: "install the guest tools, or take a snapshot of another kind", err: err}
	}
	return v.withoutUSB(ctx, KindOffline, func() error { return v.takeRegular(ctx) })
}

// restart starts a VM that was shut down for its backup, and takes the mark off.
func restart(ctx context.Context, pool *xapi.Client, ref xapi.Ref) error {
	vm, err := pool.VM(ctx, ref)
	if err != nil {
		return err
	}
	if vm.PowerState == "Halted" {
		err := pool.Retry(ctx, func(ctx context.Context) error { return pool.StartVM(ctx, ref) })
		if err != nil && !xapi.IsCode(err, xapi.VMBadPowerState) {
			return err
		}
	}
	return pool.RemoveOtherConfig(ctx, "VM", ref, markOffline)
}
