// Package job contains what all operations on a pool and a repository share: the
// options and the summary of a run, its progress, the errors that the command line
// recognizes, and the locks between concurrent runs. The operations themselves are in
// the packages below it (backup, restore, exchange, browse, doctor); each command of
// cmd/xenkeep is one call of one of them.
package job

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"xenkeep/chunkstore"
	"xenkeep/chunkstore/object/count"
	"xenkeep/chunkstore/seal"
	"xenkeep/internal/limit"
	"xenkeep/repo"
	"xenkeep/repo/retention"
)

// CleanupTime is the time limit for cleaning up after a run was interrupted.
const CleanupTime = time.Minute

// ClockSkew is the difference between two clocks above which a warning is printed.
const ClockSkew = 5 * time.Minute

var (
	// ErrActive is returned if another run of the same job is active on this machine.
	ErrActive = errors.New("another run of this job is active")
	// ErrBusy is returned for a VM that another run into the same repository is
	// backing up.
	ErrBusy = errors.New("another run is backing it up")
	// ErrPartial is returned together with a summary if some VMs or disks failed and
	// others are safe.
	ErrPartial = errors.New("some VMs or disks failed")
	// ErrFailed is returned together with a summary if nothing was saved.
	ErrFailed = errors.New("nothing was saved")
	// ErrCBTMissedChange is returned together with a summary if the pool's
	// changed-block tracking reported a changed block as unchanged: the new snapshots
	// are right, older ones may not be.
	ErrCBTMissedChange = errors.New("changed-block tracking missed a change")
	// ErrDamage is returned together with a report if a run found damage in the
	// repository.
	ErrDamage = errors.New("damage found")
	// ErrHook is returned if a command before a VM or a job failed.
	ErrHook = errors.New("hook failed")
	// ErrMissed is returned together with a summary if some VMs were not begun before
	// the end of the window, and nothing failed.
	ErrMissed = errors.New("some VMs were not begun in time")
	// ErrExists is returned if a restore would overwrite something.
	ErrExists = errors.New("there is something already")
	// ErrKeptUUID is returned if a VM must have a UUID that another VM has.
	ErrKeptUUID = fmt.Errorf("a VM with this UUID: %w", ErrExists)
	// ErrNotHalted is returned for disks of a VM that is not halted.
	ErrNotHalted = errors.New("shut it down first")
	// ErrUnstarted is returned together with a VM that was restored, but that the pool
	// did not start.
	ErrUnstarted = errors.New("the VM is restored and could not be started")
	// ErrUnsupported is returned for a disk or VM that cannot be snapshotted.
	ErrUnsupported = errors.New("cannot be snapshotted")
	// ErrSpace is returned if an SR has too little space for a snapshot.
	ErrSpace = errors.New("not enough free space on the SR")
)

// Progress receives the progress of transfers. Its methods must be safe for concurrent
// use.
type Progress interface {
	// Begin reports the begin of a transfer of total bytes (0: unknown). The returned
	// meter receives its progress and its end.
	Begin(label string, total int64) Meter
}

// Overview is a Progress that also receives the progress of a backup of several VMs as
// a whole. VMs are identified by their UUIDs. Its methods must be safe for concurrent
// use.
type Overview interface {
	Progress
	// Expect reports the VMs of the run, each with the size of its disks in bytes; 0
	// if it is not known yet.
	Expect(sizes map[string]int64)
	// BeginVM reports that a VM was begun, possibly after a failed attempt, and the
	// size in bytes of its disks that are saved.
	BeginVM(vm string, size int64)
	// BeginDisk is Begin for the transfer of total bytes of a VM's disk, which has
	// size bytes.
	BeginDisk(vm, label string, size, total int64) Meter
	// EndVM reports that no more data of a VM are read, whether it was saved or not.
	EndVM(vm string)
}

// Meter receives the progress of one transfer. Add is called concurrently.
type Meter interface {
	Add(n int64)
	Done()
}

// NoProgress is a Progress and a Meter that ignores all calls.
type NoProgress struct{}

// Begin implements Progress.
func (NoProgress) Begin(string, int64) Meter { return NoProgress{} }

// Add implements Meter.
func (NoProgress) Add(int64) {}

// Done implements Meter.
func (NoProgress) Done() {}

// Common holds the options that all runs that write to a repository have.
type Common struct {
	// Job is the name of the run's job. A run without a job is stored as of the job
	// "default"; it excludes other runs only from the same VMs or image, not from the
	// job.
	Job      string
	Machine  string // "" is the host name
	StateDir string // the folder of the job's lock file; "" is a folder for temporary files
	Tags     []string
	Level    seal.Level
	// ReadLimit limits the rate of reading from the pool or the image, WriteLimit that
	// of writing to the storage; nil is no limit.
	ReadLimit, WriteLimit *limit.Limiter
	Progress              Progress
	Log                   *slog.Logger
	Now                   func() time.Time
	// Grace is the grace period of forgotten snapshots; nil is the default.
	Grace *retention.Period
	// RenewEvery is the time between two renewals of the run's marks on the pool; 0:
	// five minutes.
	RenewEvery time.Duration
}

// Defaults replaces zero values by their defaults.
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
	Type     string    `json:"type"`   // "summary"
	Status   string    `json:"status"` // "ok", "partial", "failed" or "skipped"
	Job      string    `json:"job"`
	Started  time.Time `json:"started"`
	Duration float64   `json:"duration_s"`
	Packs    int64     `json:"packs"`          // written
	Stored   int64     `json:"bytes_uploaded"` // bytes in these packs
	// Compression contains the levels at which new data was compressed.
	Compression []chunkstore.LevelStats `json:"compression,omitempty"`
	Requests    Requests                `json:"requests"` // to the repository's storage
	Snapshots   []VMSummary             `json:"snapshots"`
	Failed      []VMFailure             `json:"failed,omitempty"`
	Skipped     []VMSkip                `json:"skipped,omitempty"`     // not begun before the end of the window
	Interrupted []VMInterrupt           `json:"interrupted,omitempty"` // begun, but the run was interrupted
	Database    string                  `json:"database,omitempty"`    // snapshot of the pool's database
	Forgotten   []string                `json:"forgotten,omitempty"`   // snapshot ids
	Warnings    []string                `json:"warnings,omitempty"`
}

// Requests counts the requests of a run to the repository's storage.
type Requests struct {
	count.Requests
	Metadata int64 `json:"metadata"` // requests that transfer no packs
}

// CountRequests returns the requests since the storage was opened.
func CountRequests(r *repo.Repository) Requests {
	n := count.Of(r.Objects())
	return Requests{Requests: n, Metadata: n.Metadata()}
}

// VMSummary is one snapshot that a run published.
type VMSummary struct {
	ID       string             `json:"id"`
	VMUUID   string             `json:"vm_uuid"`
	VMName   string             `json:"vm_name"`
	Complete bool               `json:"complete"`
	Kind     string             `json:"kind,omitempty"` // of the VM snapshot
	Started  time.Time          `json:"started,omitzero"`
	Duration float64            `json:"duration_s,omitempty"`
	Waits    Timing             `json:"waits"`
	Slowest  string             `json:"bottleneck,omitempty"` // "pool", "network", "cpu" or "storage"
	Disks    []DiskSummary      `json:"disks"`
	Missing  []repo.MissingDisk `json:"missing,omitempty"`
}

// DiskSummary is one disk of a VMSummary.
type DiskSummary struct {
	VDI    string `json:"vdi"`
	Device string `json:"device"`
	Size   int64  `json:"size"`
	Method string `json:"method"` // "full", "vhd-delta" or "cbt"
	Reason string `json:"reason"`
	// Transport is the format or protocol by which its data were read: "vhd", "raw" or
	// "nbd".
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

// Err returns the error of the VM.
func (f *VMFailure) Err() error { return f.Cause }

// HintOf returns the next step for a user after an error, or "".
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

// OneLine returns the text of an error on one line.
func OneLine(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }

// VMSkip is a VM that a run did not begin. Its JSON form is documented in
// docs/reference/json.md.
type VMSkip struct {
	VM     string `json:"vm"`
	UUID   string `json:"vm_uuid,omitempty"`
	Reason string `json:"reason"`
}

// Timing holds the shares of a VM's wall time by the resource that it waited for.
// Their sum is one.
type Timing struct {
	Pool    float64 `json:"pool"`    // calls, snapshots, beginnings and ends of transfers
	Network float64 `json:"network"` // the data of disks
	CPU     float64 `json:"cpu"`     // cutting, compressing, sealing
	Storage float64 `json:"storage"` // uploads
}

// Bottleneck returns the resource with the largest share.
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
