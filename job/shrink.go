package job

import (
	"errors"
	"fmt"

	"github.com/dustin/go-humanize"

	"xenkeep/repo"
	"xenkeep/repo/backup"
)

// ErrShrunk is returned for a disk or an image that is empty, or much smaller
// than in its last backup. Nothing is saved of it, so that retention forgets no
// good snapshot in favor of an empty one.
var ErrShrunk = errors.New("the source is much smaller than in its last backup")

// Shrink is how much smaller than in its last backup a disk may be, in percent
// of its size then. The zero value is DefaultShrink, and ShrinkNone allows
// nothing. ShrinkAny also allows a disk that has become empty.
type Shrink int

// Limits of Shrink.
const (
	ShrinkNone    Shrink = -1
	DefaultShrink Shrink = 20
	ShrinkAny     Shrink = 100
)

// ShrinkPercent is the Shrink of a percentage, for which 0 allows nothing.
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

// shrunk is a disk that ErrShrunk is about.
type shrunk struct{ why string }

func (s *shrunk) Error() string { return s.why }

func (s *shrunk) Unwrap() error { return ErrShrunk }

func (s *shrunk) Hint() string {
	return "make sure that it is the right disk and that its storage is whole; if its new size and content are right, back it up once with --allow-shrink (in a config: allow-shrink = 100)"
}

// CheckSize refuses a disk that is much smaller now than in its last snapshot,
// which is of before bytes.
func (s Shrink) CheckSize(last *repo.Snapshot, before, now int64) error {
	if now >= before || s >= ShrinkAny {
		return nil
	}
	then := fmt.Sprintf("it had %s in snapshot %s", humanize.IBytes(uint64(before)), last.Short())
	if now == 0 {
		return &shrunk{why: "it is empty (0 bytes); " + then}
	}
	// In floating point, as the product of a size and 100 may not fit.
	if float64(before-now) <= float64(before)*float64(s.percent())/100 {
		return nil
	}
	return &shrunk{why: fmt.Sprintf("it has shrunk to %s, and at most %d %% less than before is allowed; %s",
		humanize.IBytes(uint64(now)), s.percent(), then)}
}

// CheckDisk refuses a disk of a VM that is much smaller now than in the VM's
// last snapshot, which may be nil or lack the disk.
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

// CheckContent refuses a disk that holds nothing but zeros now and held data in
// its last snapshot.
func (s Shrink) CheckContent(last *repo.Snapshot, res *backup.DiskResult) error {
	if !res.Emptied || s >= ShrinkAny {
		return nil
	}
	return &shrunk{why: fmt.Sprintf("it holds nothing but zeros; it held data in snapshot %s", last.Short())}
}
