// Package job holds what all operations on a pool and a repository share: the
// options and the summary of a run, its progress, the errors that the command line
// recognizes, and the locks that keep two runs apart. The operations themselves are
// in the packages below it (backup, restore, exchange, browse, doctor); each command
// of cmd/xenkeep is one call of one of them.
package job

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"xenkeep/chunkstore/object/count"
	"xenkeep/chunkstore/seal"
	"xenkeep/internal/limit"
	"xenkeep/repo"
)

// CleanupTime is how long tidying up may take after a run was interrupted.
const CleanupTime = time.Minute

// ClockSkew is how far two clocks may differ before that is worth a warning.
const ClockSkew = 5 * time.Minute

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
	// ErrCBTMissedChange is returned beside a summary where the pool's changed-block
	// tracking was found to have called something unchanged that was not: what
	// was saved is right, what was saved before may not be.
	ErrCBTMissedChange = errors.New("changed-block tracking missed a change")
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

type NoProgress struct{}

func (NoProgress) Begin(string, int64) Meter { return NoProgress{} }

func (NoProgress) Add(int64) {}

func (NoProgress) Done() {}

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

func (c *Common) Defaults() {
	if c.Job == "" {
		c.Job = "default"
	}
	if c.Machine == "" {
		c.Machine = Hostname()
	}
	if c.Progress == nil {
		c.Progress = NoProgress{}
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
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

// CountRequests are those since the storage was opened.
func CountRequests(r *repo.Repository) Requests {
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
	Waits    Timing        `json:"waits"`
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

	Cause error
}

// Err is the failure itself.
func (f *VMFailure) Err() error { return f.Cause }

// HintOf finds what a user can do about an error, or "".
func HintOf(err error) string {
	var c interface{ Hint() string }
	if errors.As(err, &c) {
		return c.Hint()
	}
	switch {
	case errors.Is(err, ErrSpace):
		return "free space on the SR, or move disks off it"
	case errors.Is(err, ErrActive), errors.Is(err, ErrBusy):
		return "wait for it to end"
	case errors.Is(err, ErrCBTMissedChange):
		return "this backup is right; to be sure of older ones compare them: xenkeep restore, xenkeep backup --transport vhd. Look at the storage, and for who reverts disks there"
	}
	return ""
}

func OneLine(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }

// VMSkip is a VM that a run did not begin. Its JSON form is documented in
// docs/reference/json.md.
type VMSkip struct {
	VM     string `json:"vm"`
	UUID   string `json:"vm_uuid,omitempty"`
	Reason string `json:"reason"`
}

// Timing are shares of a VM's wall time, by what was waited for. They make one.
type Timing struct {
	Pool    float64 `json:"pool"`    // calls, snapshots, beginnings and ends of transfers
	Network float64 `json:"network"` // the data of disks
	CPU     float64 `json:"cpu"`     // cutting, compressing, sealing
	Storage float64 `json:"storage"` // uploads
}

// Bottleneck is what most of the time was spent on waiting for.
func (w Timing) Bottleneck() string {
	name, most := "", 0.0
	for _, x := range []struct {
		name  string
		share float64
	}{{"pool", w.Pool}, {"network", w.Network}, {"cpu", w.CPU}, {"storage", w.Storage}} {
		if x.share > most {
			name, most = x.name, x.share
		}
	}
	return name
}
