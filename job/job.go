// Package job is what one run of xenkeep does: it puts vhd on top of what xapi
// exports and hands disks to repo, and the other way round. It decides (which
// disks, which base, which transport), cleans up behind itself, and reports.
// Each command of cmd/xenkeep is one call of this package.
package job

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"xenkeep/chunkstore/object/count"
	"xenkeep/chunkstore/seal"
	"xenkeep/internal/limit"
	"xenkeep/repo"
	"xenkeep/repo/retention"
)

var (
	// ErrActive is returned where another run of the same job is under way on
	// this machine.
	ErrActive = errors.New("another run of this job is active")
	// ErrBusy is returned for a VM that another run into the same repository is
	// backing up.
	ErrBusy = errors.New("another run is backing it up")
	// ErrPartial is returned beside a summary where some VMs or disks failed
	// and others are safe.
	ErrPartial = errors.New("some VMs or disks failed")
	// ErrFailed is returned beside a summary where nothing was saved.
	ErrFailed = errors.New("nothing was saved")
	// ErrUntrue is returned beside a summary where the pool's changed-block
	// tracking was found to have called something unchanged that was not: what
	// was saved is right, what was saved before may not be.
	ErrUntrue = errors.New("changed-block tracking missed a change")
	// ErrDamage is returned beside a report of a run that met damage in the
	// repository.
	ErrDamage = errors.New("damage found")
	// ErrHook is returned where a command before a VM or a job failed.
	ErrHook = errors.New("hook failed")
	// ErrMissed is returned beside a summary where the window left no time for
	// some VMs, and nothing failed.
	ErrMissed = errors.New("some VMs were not begun in time")
	// ErrExists is returned where a restore would overwrite something.
	ErrExists = errors.New("there is something already")
	// ErrKeptUUID is returned where a VM is to have a UUID that another has.
	ErrKeptUUID = fmt.Errorf("a VM with this UUID: %w", ErrExists)
	// ErrNotHalted is returned for disks of a VM that is not halted.
	ErrNotHalted = errors.New("shut it down first")
	// ErrUnstarted is returned beside a VM that is restored, and that the pool
	// would not start.
	ErrUnstarted = errors.New("the VM is restored and could not be started")
	// ErrUnsupported is returned for a disk or VM that cannot be snapshotted.
	ErrUnsupported = errors.New("cannot be snapshotted")
	// ErrSpace is returned where an SR has not the room a snapshot needs.
	ErrSpace = errors.New("not enough free space on the SR")
)

// Progress is told of transfers as they go. Its methods may be called at once.
type Progress interface {
	// Begin announces a transfer of total bytes (0: unknown); the returned
	// meter is told of bytes and of the end.
	Begin(label string, total int64) Meter
}

// Overview is a Progress that follows a backup of several VMs as a whole, too.
// VMs are named by their UUIDs. Its methods are safe for concurrent use.
type Overview interface {
	Progress
	// Expect announces the VMs of the run, each with the size of its disks; 0
	// where that is not known yet.
	Expect(sizes map[string]int64)
	// BeginVM reports that a VM is begun, maybe again after an attempt that
	// failed, and the size of the disks that are saved of it.
	BeginVM(vm string, size int64)
	// BeginDisk is Begin for the transfer of total bytes of a VM's disk of some
	// size.
	BeginDisk(vm, label string, size, total int64) Meter
	// EndVM reports that nothing more is read of a VM, whether it was saved or
	// not.
	EndVM(vm string)
}

// Meter follows one transfer.
type Meter interface {
	Add(n int64)
	Done()
}

type noProgress struct{}

func (noProgress) Begin(string, int64) Meter { return noProgress{} }
func (noProgress) Add(int64)                 {}
func (noProgress) Done()                     {}

// Keep says what of a VDI snapshot stays on the pool as the next run's base.
type Keep string

const (
	KeepAuto     Keep = "auto"     // its list of changes where tracked, else its data on thin SRs
	KeepCBT      Keep = "cbt"      // its list of changes where tracked, else nothing
	KeepSnapshot Keep = "snapshot" // its data, on every SR
	KeepNone     Keep = "none"
)

// Common are the options of every run that writes to the repository.
type Common struct {
	// Job is the job that the run is of. A run without one is of "default", and
	// keeps others from the same VMs or image alone, not from the job.
	Job      string
	Machine  string // "" is the host's name
	StateDir string // where the job's lock file lies; "" is the cache folder's place
	Tags     []string
	Level    seal.Level
	// ReadLimit holds back what is read from the pool or the image, WriteLimit
	// what is sent to the storage; nil is no limit.
	ReadLimit, WriteLimit *limit.Limiter
	Progress              Progress
	Log                   *slog.Logger
	Now                   func() time.Time
	// RenewEvery is the time between two renewals of the marks of a run on the
	// pool; 0: five minutes.
	RenewEvery time.Duration
}

func (c *Common) defaults() {
	if c.Job == "" {
		c.Job = "default"
	}
	if c.Machine == "" {
		c.Machine = hostname()
	}
	if c.Progress == nil {
		c.Progress = noProgress{}
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
}

// BackupOptions say what Backup saves.
type BackupOptions struct {
	Common
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
	AllowShrink Shrink
	// Retention, where it keeps anything, is applied to the VMs that
	// succeeded.
	Retention retention.Policy
	// Chosen are VMs that a selection chose, in the order in which they are
	// begun, in place of VMs and All.
	Chosen []Chosen
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
	Common
	File      string // raw or VHD
	Raw       bool   // the file is a raw disk, whatever it looks like
	Name      string // "" is the file's name
	Retention retention.Policy
	// AllowShrink is how much smaller than in its last backup the image may be.
	AllowShrink Shrink
}

// Summary is the outcome of a run; its JSON form is documented in
// docs/reference/json.md.
type Summary struct {
	Type        string        `json:"type"`   // "summary"
	Status      string        `json:"status"` // "ok", "partial", "failed" or "skipped"
	Job         string        `json:"job"`
	Started     time.Time     `json:"started"`
	Duration    float64       `json:"duration_s"`
	Packs       int64         `json:"packs"`          // written
	Stored      int64         `json:"bytes_uploaded"` // in these packs
	Requests    Requests      `json:"requests"`       // to the repository's storage
	Snapshots   []VMSummary   `json:"snapshots"`
	Failed      []VMFailure   `json:"failed,omitempty"`
	Skipped     []VMSkip      `json:"skipped,omitempty"`     // not begun, as the window ended
	Interrupted []VMInterrupt `json:"interrupted,omitempty"` // begun, as the run was interrupted
	Database    string        `json:"database,omitempty"`    // snapshot of the pool's database
	Forgotten   []string      `json:"forgotten,omitempty"`   // snapshot ids
	Warnings    []string      `json:"warnings,omitempty"`
}

// Requests are what a run asked of the repository's storage.
type Requests struct {
	count.Requests
	Metadata int64 `json:"metadata"` // those that carry no packs
}

// requests are those since the storage was opened.
func requests(r *repo.Repository) Requests {
	n := count.Of(r.Objects())
	return Requests{Requests: n, Metadata: n.Metadata()}
}

// VMSummary is one snapshot that a run published.
type VMSummary struct {
	ID       string        `json:"id"`
	VMUUID   string        `json:"vm_uuid"`
	VMName   string        `json:"vm_name"`
	Complete bool          `json:"complete"`
	Kind     string        `json:"kind,omitempty"` // of the VM snapshot
	Started  time.Time     `json:"started,omitzero"`
	Duration float64       `json:"duration_s,omitempty"`
	Waits    Waits         `json:"waits"`
	Slowest  string        `json:"bottleneck,omitempty"` // "pool", "network", "cpu" or "storage"
	Disks    []DiskSummary `json:"disks"`
	Missing  []repo.Gap    `json:"missing,omitempty"`
}

// DiskSummary is one disk of it.
type DiskSummary struct {
	VDI    string `json:"vdi"`
	Device string `json:"device"`
	Size   int64  `json:"size"`
	Method string `json:"method"` // "full", "vhd-delta" or "cbt"
	Reason string `json:"reason"`
	// Transport is how its bytes came: "vhd", "raw" or "nbd".
	Transport string `json:"transport,omitempty"`
	repo.DiskRead
}

// VMFailure is a VM that could not be saved.
type VMFailure struct {
	VM    string `json:"vm"`
	UUID  string `json:"vm_uuid,omitempty"`
	Error string `json:"error"`
	Hint  string `json:"hint,omitempty"`

	err error
}

// Err is the failure itself.
func (f *VMFailure) Err() error { return f.err }
