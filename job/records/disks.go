package records

import (
	"fmt"
	"strings"

	"xenkeep/repo"
)

// FindDisk returns the disk with a name or UUID, or the only disk if name is empty.
func FindDisk(s *repo.Snapshot, name string) (*repo.Disk, error) {
	if name != "" {
		return s.Disk(name)
	}
	switch len(s.Disks) {
	case 0:
		return nil, fmt.Errorf("snapshot %s holds no disk", s.Short())
	case 1:
		return &s.Disks[0], nil
	}
	var names []string
	for _, d := range s.Disks {
		names = append(names, d.Device)
	}
	return nil, fmt.Errorf("snapshot %s has the disks %s: %w: name one with --disk", s.Short(), strings.Join(names, ", "), repo.ErrAmbiguous)
}

// SameDisk returns the disk of snapshot s that is the same disk as d, which is of
// another snapshot.
func SameDisk(s *repo.Snapshot, d *repo.Disk) (*repo.Disk, error) {
	for i := range s.Disks {
		if s.Disks[i].VDI != "" && s.Disks[i].VDI == d.VDI {
			return &s.Disks[i], nil
		}
	}
	for i := range s.Disks {
		if s.Disks[i].Device == d.Device || len(s.Disks) == 1 && d.VDI == "" {
			return &s.Disks[i], nil
		}
	}
	return nil, fmt.Errorf("snapshot %s has no disk %s: %w", s.Short(), d.Device, repo.ErrNoDisk)
}

// StoredRaw is appended to the reason of a disk that the user declared to be raw.
const StoredRaw = ", --format raw"
