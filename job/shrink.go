package job

import (
	"errors"
	"fmt"

	"github.com/dustin/go-humanize"

	"xenkeep/repo"
	"xenkeep/repo/backup"
)

// ErrShrunk is returned for a disk or an image that is empty, or much smaller than in
// its last backup. It is not saved, so that retention does not delete good snapshots
// in favor of an empty one.
var ErrShrunk = errors.New("the source is much smaller than in its last backup")

// Shrink is the permitted reduction of a disk since its last backup, in percent of its
// earlier size. The zero value is DefaultShrink, and ShrinkNone permits nothing.
// ShrinkAny also permits a disk that has become empty.
type Shrink int

// Limits of Shrink.
const (
	ShrinkNone    Shrink = -1
	DefaultShrink Shrink = 20
	ShrinkAny     Shrink = 100
)

// ShrinkPercent returns the Shrink of a percentage; 0 permits nothing.
func ShrinkPercent(n int) Shrink {
	if n <= 0 {
		return ShrinkNone
	}
	return Shrink(min(n, int(ShrinkAny)))
}

func (s Shrink) percent() int64 {
	switch {
	case s == 0:
		return int64(DefaultShrink)
	case s < 0:
		return 0
	}
	return int64(s)
}

// shrunk is an ErrShrunk with its reason.
type shrunk struct{ why string }

func (s *shrunk) Error() string { return s.why }

func (s *shrunk) Unwrap() error { return ErrShrunk }

func (s *shrunk) Hint() string {
	return "make sure that it is the right disk and that its storage is whole; if its new size and content are right, back it up once with --allow-shrink (in a config: allow-shrink = 100)"
}

// CheckSize returns ErrShrunk if a disk of now bytes is much smaller than in its last
// snapshot, where it had before bytes.
func (s Shrink) CheckSize(last *repo.Snapshot, before, now int64) error {
	if now >= before || s >= ShrinkAny {
		return nil
	}
	then := fmt.Sprintf("it had %s in snapshot %s", humanize.IBytes(uint64(before)), last.Short())
	if now == 0 {
		return &shrunk{why: "it is empty (0 bytes); " + then}
	}
	// In floating point, because the product of a size and 100 may overflow.
	if float64(before-now) <= float64(before)*float64(s.percent())/100 {
		return nil
	}
	return &shrunk{why: fmt.Sprintf("it has shrunk to %s, and at most %d %% less than before is allowed; %s",
		humanize.IBytes(uint64(now)), s.percent(), then)}
}

// CheckDisk returns ErrShrunk if a disk of a VM is much smaller than in the VM's last
// snapshot. last may be nil or lack the disk.
func (s Shrink) CheckDisk(last *repo.Snapshot, vdi string, now int64) error {
	if last == nil {
		return nil
	}
	for i := range last.Disks {
		if last.Disks[i].VDI == vdi {
			return s.CheckSize(last, last.Disks[i].Size, now)
		}
	}
	return nil
}

// CheckContent returns ErrShrunk if a disk contains only zeros now and contained data
// in its last snapshot.
func (s Shrink) CheckContent(last *repo.Snapshot, res *backup.DiskResult) error {
	if !res.Emptied || s >= ShrinkAny {
		return nil
	}
	return &shrunk{why: fmt.Sprintf("it holds nothing but zeros; it held data in snapshot %s", last.Short())}
}
