package vmplan

import (
	"cmp"
	"fmt"
	"regexp"
	"strings"

	"github.com/dustin/go-humanize"

	"xenkeep/job"
	"xenkeep/job/lease"
	"xenkeep/xapi"
)

// Kind is a way of taking a VM snapshot.
type Kind string

const (
	KindRegular    Kind = "regular"    // crash-consistent
	KindQuiesced   Kind = "quiesced"   // with the participation of the guest's applications (VSS)
	KindCheckpoint Kind = "checkpoint" // with memory
	KindOffline    Kind = "offline"    // after a clean shutdown; the VM is started afterwards
)

// quiesceTries is the number of attempts at a quiesced snapshot. The guest must freeze
// its disks within 10 s.
const quiesceTries = 3

// Unable is the error for a kind of VM snapshot that is impossible; another kind may
// be possible.
type Unable struct {
	Kind   Kind
	Why    string
	Advice string
	Err    error
}

func (u *Unable) Error() string {
	if u.Err == nil {
		return fmt.Sprintf("no %s snapshot: %s", u.Kind, u.Why)
	}
	return fmt.Sprintf("no %s snapshot: %s: %v", u.Kind, u.Why, u.Err)
}

func (u *Unable) Unwrap() error { return u.Err }

// offlineHint is the next step where a VM has to be halted for its backup.
const offlineHint = `take a snapshot of kind offline (snapshot = ["offline"] in the job, or as its last kind), or shut the VM down before the backup`

func (u *Unable) Hint() string { return u.Advice }

// Unable returns why a VM snapshot of kind k is impossible, or nil if it can be tried.
// It changes nothing.
func (p *Plan) Unable(k Kind) error {
	state := strings.ToLower(p.VM.PowerState)
	if k != KindOffline {
		if err := USBUnable(k, p.VM.PowerState, p.usb); err != nil {
			return err
		}
		if raw := p.DirectDisks(); len(raw) > 0 && state != "halted" {
			return &Unable{Kind: k, Why: fmt.Sprintf("its raw disk %s can only be read while the VM is halted", raw[0].Device()), Advice: offlineHint}
		}
	}
	switch k {
	case KindQuiesced:
		if state != "running" {
			return &Unable{Kind: k, Why: "the VM is " + state + ", and only a running guest can take part", Advice: "start the VM, or take a snapshot of another kind"}
		}
	case KindCheckpoint:
		if state != "running" && state != "suspended" {
			return &Unable{Kind: k, Why: "the VM is " + state + " and has no memory to save", Advice: "start the VM, or take a snapshot of another kind"}
		}
		if state == "running" {
			return p.memorySpace()
		}
	case KindOffline:
		if state == "paused" || state == "suspended" {
			return &Unable{Kind: k, Why: "the VM is " + state + " and cannot be shut down cleanly", Advice: "resume the VM, or take a snapshot of another kind"}
		}
	}
	return nil
}

// memoryNeed returns the bytes that a checkpoint needs on the SR of suspend images:
// the memory and 4 MB for each disk, plus a fifth (XenServer's guide, VM snapshots).
func (p *Plan) memoryNeed() int64 {
	n := int64(p.VM.MemoryStaticMax) + 4_000_000*int64(len(p.Disks)+len(p.Left))
	return n + n/5
}

// memorySpace returns an error if that SR has too little space for a checkpoint.
func (p *Plan) memorySpace() error {
	if p.suspend.Ref.IsNull() || p.suspend.PhysicalSize <= 0 {
		return nil // the SR is not known: the pool will report it
	}
	free := int64(p.suspend.PhysicalSize - p.suspend.PhysicalUtilisation)
	if need := p.memoryNeed(); free < need {
		return &Unable{Kind: KindCheckpoint, Why: fmt.Sprintf("SR %s: the memory needs %s, %s are free", p.suspend.NameLabel,
			humanize.IBytes(uint64(need)), humanize.IBytes(uint64(max(free, 0)))), Advice: fmt.Sprintf("free %s on SR %s (%s), or take a snapshot of another kind", humanize.IBytes(uint64(need-max(free, 0))), p.suspend.NameLabel, p.suspend.UUID), Err: job.ErrSpace}
	}
	return nil
}

// noVSS matches guests whose quiesced snapshots the vendor does not support
// (XenServer's guide, VM snapshots), by the name that their tools report without
// trademark signs: for example "Microsoft Windows Server 2003, Standard Edition".
var (
	noVSS      = regexp.MustCompile(`windows (server )?(8\.1|8|7|2000|xp|2003|vista)\b`)
	tradeMarks = strings.NewReplacer("(r)", "", "(tm)", "", "®", "", "™", "")
)

// KindWarnings returns the vendor's advice against a snapshot of kind k.
func (p *Plan) KindWarnings(k Kind) []string {
	var w []string
	if len(p.usb) > 0 {
		w = append(w, "for the VM snapshot it is without its "+lease.USBNames(p.usb)+", detached before it and attached again after it")
	}
	if k != KindQuiesced {
		if k != KindCheckpoint && strings.EqualFold(p.VM.PowerState, "suspended") {
			w = append(w, "it is suspended, and its memory is not saved: a VM that is restored from this starts as after a power cut. A snapshot of kind checkpoint saves the memory too")
		}
		return w
	}
	if n := len(p.Disks) + len(p.Left); n > 2 {
		srs := make(map[xapi.Ref]bool)
		for _, d := range p.Disks {
			srs[d.SR.Ref] = true
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
		w = append(w, "dynamic disks of Windows cannot be quiesced; the pool does not report whether there are any")
	}
	return w
}

// guestOS returns the name of the operating system that the guest's tools report.
func (p *Plan) guestOS() string {
	name, _, _ := strings.Cut(p.os["name"], "|")
	return cmp.Or(strings.TrimSpace(name), p.os["distro"])
}
