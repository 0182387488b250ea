package backup

import (
	"context"
	"time"

	"xenkeep/job"
	"xenkeep/job/records"
	"xenkeep/job/vmplan"
	"xenkeep/repo/retention"
)

// reason appends to text, the reason of a full read, that the file was stored as a raw
// disk if the user requested that.
func (o *ImageOptions) reason(text string) string {
	if o.Raw {
		text += records.StoredRaw
	}
	return text
}

// Keep selects the data of a VDI snapshot that stays on the pool as the base of the
// next run.
type Keep string

const (
	KeepAuto     Keep = "auto"     // its list of changes if it is tracked, otherwise its data on thin SRs
	KeepCBT      Keep = "cbt"      // its list of changes if it is tracked, otherwise nothing
	KeepSnapshot Keep = "snapshot" // its data, on any SR
	KeepNone     Keep = "none"     // nothing
)

// Options are the parameters of Run.
type Options struct {
	job.Common
	VMs  []string // names or UUIDs
	All  bool     // every VM of the pool that has disks
	Keep Keep
	// VMConcurrency is the number of VMs that are backed up concurrently, and
	// DiskConcurrency the number of disks of each; 0 is 2. Each SR receives one
	// snapshot operation at a time.
	VMConcurrency, DiskConcurrency int
	// HostConcurrency and SRConcurrency limit the disks that are read concurrently
	// from each host and each SR, over all VMs; 0 is 6 and 4.
	HostConcurrency, SRConcurrency int
	// Transport selects the protocol by which disks are read; "" is TransportAuto.
	Transport      Transport
	NBDConnections int // for each disk; 0 is 4
	// VerifyCBT reads one in a hundred of the blocks that are unchanged according to
	// changed-block tracking, different ones in each run, and compares them with the
	// base.
	VerifyCBT bool
	// SkipUnsupported leaves out disks that cannot be snapshotted; the snapshot lists
	// them as missing. Without it, such a disk fails its VM before the pool is
	// changed.
	SkipUnsupported bool
	// RawOffline reads raw disks, which cannot be snapshotted, directly while their VM
	// is halted: because it is, or for a snapshot of kind offline.
	RawOffline bool
	// UnplugUSB detaches the USB devices of a VM for the duration of its VM snapshot,
	// because the pool does not snapshot a running VM that has any, and attaches them
	// again afterwards.
	UnplugUSB bool
	// AllowShrink permits a disk to be smaller than in its last backup.
	AllowShrink job.Shrink
	// Retention, unless it is zero, is applied to the VMs that succeeded.
	Retention retention.Policy
	// Selected are VMs that a selection chose, in the order in which they are begun.
	// They replace VMs and All.
	Selected []VMRequest
	// Retries is the number of further attempts on a VM that failed, after all other
	// VMs.
	Retries int
	// StopAfter, unless it is zero, is the time after which no VM is begun.
	StopAfter time.Time
	// VMBefore and VMAfter, unless nil, are called around each attempt on a VM. If
	// VMBefore returns an error, the VM is not backed up; an error of VMAfter is a
	// warning. They are called concurrently for different VMs.
	VMBefore func(ctx context.Context, name, uuid string) error
	VMAfter  func(ctx context.Context, name, uuid string, failed error) error
	// Database also stores the pool's database, as a snapshot of its own.
	Database bool
}

// ImageOptions are the parameters of Image.
type ImageOptions struct {
	job.Common
	File      string // raw or VHD
	Raw       bool   // the file is a raw disk, even if its content looks like another format
	Name      string // name of the "VM"; "" is the file's name
	Retention retention.Policy
	// AllowShrink permits the image to be smaller than in its last backup.
	AllowShrink job.Shrink
}

func (o *Options) planOptions(leave map[string]string, kinds []vmplan.Kind) vmplan.PlanOptions {
	return vmplan.PlanOptions{Skip: o.SkipUnsupported, USB: o.UnplugUSB, Raw: o.RawOffline, Kinds: kinds, Leave: leave}
}
