package restore

import (
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"

	"xenkeep/job"
	"xenkeep/job/records"
	"xenkeep/repo"
)

// Target says where disks go on a pool: all on one SR, or each on that of its
// device.
type Target struct {
	SR    string            // name or UUID, of disks that Disks does not name; "" is the pool's default
	Disks map[string]string // SR by device
}

// ParseTarget reads "SR" or "xvda=SR1,xvdb=SR2", where a part without a device
// stands for all other disks. An SR is a name or a UUID; a name with a "=", or
// with a comma beside others, stands in double quotes.
func ParseTarget(text string) (Target, error) {
	if !strings.ContainsAny(text, `="`) {
		return Target{SR: text}, nil
	}
	pairs, err := ParsePairs(text)
	if err != nil {
		return Target{}, fmt.Errorf("%s: %w: want SR, or DISK=SR for each disk; an SR's name with a comma or = stands in double quotes, and its UUID does as well", text, err)
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

// of is the SR of a disk; "" is the pool's default, and for memory the SR of the first
// disk.
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
		return "", fmt.Errorf("disk %s: no SR is given for it", d.Device)
	}
	return t.SR, nil
}

// check refuses a device that no disk has.
func (t Target) check(disks []*repo.Disk) error {
	for _, device := range slices.Sorted(maps.Keys(t.Disks)) {
		if !slices.ContainsFunc(disks, func(d *repo.Disk) bool {
			return d.Device == device || d.UserDevice == device || d.VDI == device
		}) {
			return fmt.Errorf("an SR is given for disk %s, which is not among those to be restored", device)
		}
	}
	return nil
}

// Options are common to restores.
type Options struct {
	Progress job.Progress
	Log      *slog.Logger
	// Force lets a file that exists be replaced, or a device be written.
	Force bool
	// Verify reads restored VDIs back and compares them with the snapshot.
	Verify bool
	// Resume goes on with VDIs that an earlier restore of the snapshot left
	// half written, and leaves them for the next where this one fails.
	Resume bool
	// Attach is a VM, by name or UUID, that restored disks are attached to.
	Attach string
}

// Defaults replaces zero values by their defaults.
func (o *Options) Defaults() {
	if o.Progress == nil {
		o.Progress = job.NoProgress{}
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
}

// VMOptions says how a VM comes back.
type VMOptions struct {
	Target
	Name     string // "" is the name it had, with the date where that is taken
	KeepMAC  bool
	KeepUUID bool
	KeepPCI  bool // devices of the host that were passed through
	Start    bool
	// Networks are networks of this pool, by name or UUID, by the name or UUID
	// of that which an interface was on. Others are found by UUID, then name.
	Networks map[string]string
}

// Restored is what a restore made; its JSON form is documented in
// docs/reference/json.md.
type Restored struct {
	Type     string         `json:"type"` // "restored"
	Snapshot string         `json:"snapshot"`
	VM       string         `json:"vm_uuid,omitempty"`
	VMName   string         `json:"vm_name,omitempty"`
	Power    string         `json:"power_state,omitempty"` // of the VM: "Halted", "Suspended" or "Running"
	Disks    []RestoredDisk `json:"disks"`
	Dropped  []string       `json:"dropped,omitempty"` // settings of the VM that the pool does not know
	Warnings []string       `json:"warnings,omitempty"`
	Steps    []string       `json:"steps,omitempty"` // of a pool's database: how it is used
	Duration float64        `json:"duration_s"`
}

// RestoredDisk is one disk of it.
type RestoredDisk struct {
	Device  string `json:"device"`
	VDI     string `json:"vdi,omitempty"`  // UUID of the disk
	File    string `json:"file,omitempty"` // where it was written
	Size    int64  `json:"size"`
	Written int64  `json:"bytes_written"`
	// Compared is how much of a VDI that was there was looked at.
	Compared int64  `json:"bytes_compared,omitempty"`
	Verified bool   `json:"verified,omitempty"`    // read back, and equal
	Old      string `json:"old,omitempty"`         // VDI snapshot of what was there
	VMDevice string `json:"attached_as,omitempty"` // its place in the VM it was attached to
}
