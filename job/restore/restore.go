package restore

import (
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	"xenkeep/job"
	"xenkeep/job/records"
	"xenkeep/repo"
)

// Target selects the SRs for restored disks: one SR for all disks, or one for each
// device.
type Target struct {
	SR    string            // name or UUID, for disks that are not in Disks; "" is the pool's default
	Disks map[string]string // SR by device
}

// ParseTarget parses "SR" or "xvda=SR1,xvdb=SR2". A part without a device applies to
// all other disks. An SR is a name or a UUID; a name that contains a "=", or a comma
// in a list, must be in double quotes: for example xvda="A, B".
func ParseTarget(text string) (Target, error) {
	if !strings.ContainsAny(text, `="`) {
		return Target{SR: text}, nil
	}
	pairs, err := ParsePairs(text)
	if err != nil {
		return Target{}, fmt.Errorf("%s: %w: want SR, or DISK=SR for each disk; an SR's name with a comma or = must be in double quotes; its UUID can be used instead", text, err)
	}
	if len(pairs) == 1 && pairs[0].Key == "" {
		return Target{SR: pairs[0].Value}, nil
	}
	t := Target{Disks: make(map[string]string)}
	for _, p := range pairs {
		switch {
		case p.Key == "" && t.SR == "":
			t.SR = p.Value
		case p.Key == "":
			return t, fmt.Errorf("%s: two SRs are for all other disks, %q and %q: want SR, or DISK=SR for each disk", text, t.SR, p.Value)
		case t.Disks[p.Key] != "":
			return t, fmt.Errorf("%q names disk %s twice", text, p.Key)
		default:
			t.Disks[p.Key] = p.Value
		}
	}
	return t, nil
}

// of returns the SR of a disk; "" is the pool's default, and for memory the SR of the
// first disk.
func (t Target) of(d *repo.Disk) (string, error) {
	for _, name := range []string{d.Device, d.UserDevice, d.VDI} {
		if sr := t.Disks[name]; sr != "" && name != "" {
			return sr, nil
		}
	}
	if t.SR == "" {
		if d.Device == records.MemoryDevice || len(t.Disks) == 0 {
			return "", nil
		}
		return "", fmt.Errorf("disk %s: no SR is specified for it", d.Device)
	}
	return t.SR, nil
}

// check returns an error for a device that no disk has.
func (t Target) check(disks []*repo.Disk) error {
	for _, device := range slices.Sorted(maps.Keys(t.Disks)) {
		if !slices.ContainsFunc(disks, func(d *repo.Disk) bool {
			return d.Device == device || d.UserDevice == device || d.VDI == device
		}) {
			return fmt.Errorf("an SR is specified for disk %s, which is not restored", device)
		}
	}
	return nil
}

// Options are the options of all restores.
type Options struct {
	Progress job.Progress
	Log      *slog.Logger
	// Force permits to replace an existing file, or to write a device.
	Force bool
	// Verify reads restored VDIs back and compares them with the snapshot.
	Verify bool
	// Resume continues with VDIs that an earlier restore of the snapshot left half
	// written. If this restore fails, too, it leaves them for the next.
	Resume bool
	// Attach is a VM, by name or UUID, to which restored disks are attached.
	Attach string
	Now    func() time.Time // nil: time.Now
}

// Defaults replaces zero values by their defaults.
func (o *Options) Defaults() {
	if o.Progress == nil {
		o.Progress = job.NoProgress{}
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
}

// VMOptions are the options for restoring a VM.
type VMOptions struct {
	Target
	Name     string // "" is the original name, with the date if the name is in use
	KeepMAC  bool
	KeepUUID bool
	KeepPCI  bool // keep devices of the host that were passed through
	Start    bool
	// Networks maps the original network of an interface to a network of this pool,
	// both by name or UUID. Other networks are found by their UUID, then by their
	// name.
	Networks map[string]string
}

// Restored is the result of a restore. Its JSON form is documented in
// docs/reference/json.md.
type Restored struct {
	Type     string         `json:"type"` // "restored"
	Snapshot string         `json:"snapshot"`
	VM       string         `json:"vm_uuid,omitempty"`
	VMName   string         `json:"vm_name,omitempty"`
	Power    string         `json:"power_state,omitempty"` // of the VM: "Halted", "Suspended" or "Running"
	Disks    []RestoredDisk `json:"disks"`
	Dropped  []string       `json:"dropped,omitempty"` // settings of the VM that the pool does not support
	Warnings []string       `json:"warnings,omitempty"`
	Steps    []string       `json:"steps,omitempty"` // for a pool's database: how to use the file
	Duration float64        `json:"duration_s"`
}

// RestoredDisk is one disk of a Restored.
type RestoredDisk struct {
	Device  string `json:"device"`
	VDI     string `json:"vdi,omitempty"`  // UUID of the disk
	File    string `json:"file,omitempty"` // the file or device that was written
	Size    int64  `json:"size"`
	Written int64  `json:"bytes_written"`
	// Compared is the number of bytes of an existing VDI that were compared.
	Compared int64  `json:"bytes_compared,omitempty"`
	Verified bool   `json:"verified,omitempty"`    // read back, and equal
	Old      string `json:"old,omitempty"`         // VDI snapshot of the old content
	VMDevice string `json:"attached_as,omitempty"` // its device in the VM to which it was attached
}
