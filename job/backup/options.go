package backup

import (
	"context"
	"time"

	"xenkeep/job"
	"xenkeep/job/records"
	"xenkeep/job/vmplan"
	"xenkeep/repo/retention"
)

// reason is why the disk was read in full.
func (o *ImageOptions) reason(text string) string {
	if o.Raw {
		text += records.StoredRaw
	}
	return text
}

// Keep says what of a VDI snapshot stays on the pool as the next run's base.
type Keep string

const (
	KeepAuto     Keep = "auto"     // its list of changes where tracked, else its data on thin SRs
	KeepCBT      Keep = "cbt"      // its list of changes where tracked, else nothing
	KeepSnapshot Keep = "snapshot" // its data, on every SR
	KeepNone     Keep = "none"
)

// Options say what Backup saves.
type Options struct {
	job.Common
	VMs  []string // names or UUIDs
	All  bool     // every VM of the pool that has disks
	Keep Keep
	// So many VMs, and disks of each, are worked on at once; 0 is 2. An SR is
	// given one snapshot operation at a time.
	VMConcurrency, DiskConcurrency int
	// So many disks are read at once from each host and each SR, over all VMs;
	// 0 is 6 and 4.
	HostConcurrency, SRConcurrency int
	// Transport says how disks are read; "" is TransportAuto.
	Transport      Transport
	NBDConnections int // for each disk; 0 is 4
	// VerifyCBT reads one in a hundred of the blocks that changed-block
	// tracking calls unchanged, others each run, and compares them.
	VerifyCBT bool
	// SkipUnsupported leaves out disks that cannot be snapshotted, instead of
	// failing their VM before anything is done; the snapshot says so.
	SkipUnsupported bool
	// UnplugUSB detaches the USB devices of a VM for its VM snapshot, which the
	// pool refuses otherwise, and attaches them again.
	UnplugUSB bool
	// AllowShrink is how much smaller than in its last backup a disk may be.
	AllowShrink job.Shrink
	// Retention, where it keeps anything, is applied to the VMs that
	// succeeded.
	Retention retention.Policy
	// Selected are VMs that a selection chose, in the order in which they are
	// begun, in place of VMs and All.
	Selected []VMRequest
	// Retries is how often a VM that failed is tried again, behind all others.
	Retries int
	// StopAfter, where it is not zero, is when no VM is begun any more.
	StopAfter time.Time
	// VMBefore and VMAfter, where set, are called around each attempt on a VM;
	// an error of the first keeps it from being backed up, one of the second is
	// a warning. Several may run at once.
	VMBefore func(ctx context.Context, name, uuid string) error
	VMAfter  func(ctx context.Context, name, uuid string, failed error) error
	// Database stores the pool's database too, as a snapshot of its own.
	Database bool
}

// ImageOptions say what BackupImage saves.
type ImageOptions struct {
	job.Common
	File      string // raw or VHD
	Raw       bool   // the file is a raw disk, whatever it looks like
	Name      string // "" is the file's name
	Retention retention.Policy
	// AllowShrink is how much smaller than in its last backup the image may be.
	AllowShrink job.Shrink
}

func (o *Options) planOptions(leave map[string]string) vmplan.PlanOptions {
	return vmplan.PlanOptions{Skip: o.SkipUnsupported, USB: o.UnplugUSB, Leave: leave}
}
