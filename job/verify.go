package job

import (
	"context"
	"fmt"
	"strings"

	"xenkeep/chunkstore/chunk"
	"xenkeep/inspect"
	"xenkeep/repo"
	"xenkeep/repo/view"
)

// Verified is what a look into a snapshot's disks found.
type Verified struct {
	Snapshot string
	Findings []inspect.Finding
	Bad      int
}

// disksOf opens the disks of a snapshot, or one of them.
func disksOf(ctx context.Context, v *view.View, s *repo.Snapshot, name string) ([]inspect.Disk, error) {
	var out []inspect.Disk
	for i := range s.Disks {
		d := &s.Disks[i]
		if name != "" {
			var err error
			if d, err = s.Disk(name); err != nil {
				return nil, err
			}
		}
		r, err := v.Open(ctx, chunk.ID(d.Root))
		if err != nil {
			return nil, fmt.Errorf("disk %s: %w", d.Device, err)
		}
		out = append(out, inspect.Disk{Name: strings.ReplaceAll(d.Device, "/", "_"), Reader: r})
		if name != "" {
			break
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("snapshot %s holds no disk", s.Short())
	}
	return out, nil
}

// Verify looks at the partition tables, boot sectors, file systems and volume
// groups on the disks of a snapshot, or on one of them, in the repository
// itself: whether what was backed up could be used. It reads little of them.
func Verify(ctx context.Context, r *repo.Repository, s *repo.Snapshot, disk string) (*Verified, error) {
	v := view.New(r, view.Options{Ahead: -1})
	defer v.Close()
	disks, err := disksOf(ctx, v, s, disk)
	if err != nil {
		return nil, err
	}
	rep, err := inspect.Disks(ctx, disks)
	if err != nil {
		return nil, fmt.Errorf("snapshot %s: %w", s.Short(), err)
	}
	return &Verified{Snapshot: s.ID(), Findings: rep.Findings, Bad: rep.Bad()}, nil
}
