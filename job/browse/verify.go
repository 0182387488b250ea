package browse

import (
	"context"
	"fmt"
	"strings"

	"xenkeep/chunkstore/chunk"
	"xenkeep/filekind"
	"xenkeep/inspect"
	"xenkeep/internal/disk"
	"xenkeep/job/records"
	"xenkeep/repo"
	"xenkeep/repo/view"
)

// Verified is the result of Verify.
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

// Verify examines the partition tables, boot sectors, file systems and volume groups
// on the disks of a snapshot, or on one of them, to find out whether the backup is
// usable. It reads only small parts of the disks, from the repository. A container
// that was stored as if it were a disk is damage.
func Verify(ctx context.Context, r *repo.Repository, s *repo.Snapshot, name string) (*Verified, error) {
	v := view.New(r, view.Options{Ahead: -1})
	defer v.Close()
	disks, err := disksOf(ctx, v, s, name)
	if err != nil {
		return nil, err
	}
	rep, err := inspect.Disks(ctx, disks)
	if err == nil {
		err = containers(ctx, rep, disks, s)
	}
	if err != nil {
		return nil, fmt.Errorf("snapshot %s: %w", s.Short(), err)
	}
	return &Verified{Snapshot: s.ID(), Findings: rep.Findings, Bad: rep.Bad()}, nil
}

// containers adds findings for disks that look like a container of a disk. A VM cannot
// use such a disk of an image file, unless the user declared it to be raw.
func containers(ctx context.Context, rep *inspect.Report, disks []inspect.Disk, s *repo.Snapshot) error {
	for i, d := range disks {
		k, err := filekind.Of(readerAt{ctx, d}, d.Size(), "")
		if err != nil {
			return fmt.Errorf("disk %s: %w", d.Name, err)
		}
		if k == filekind.Raw {
			continue
		}
		f := inspect.Finding{Where: d.Name, Level: inspect.Note, Text: "begins like " + k.Name()}
		if k.IsDisk() {
			f.Text = "holds " + k.Name()
		} else if s.Origin == "image" && !(len(disks) == len(s.Disks) && strings.HasSuffix(s.Disks[i].Reason, records.StoredRaw)) {
			f.Level, f.Text = inspect.Bad, "is "+k.Name()+", stored as if it were the disk: no VM can use it; restore it to a file, convert it, and import that"
		}
		rep.Findings = append(rep.Findings, f)
	}
	return nil
}

// readerAt is a disk as an io.ReaderAt of the disk's size.
type readerAt struct {
	ctx  context.Context
	disk disk.Reader
}

func (r readerAt) ReadAt(p []byte, off int64) (int, error) {
	if err := r.disk.ReadAt(r.ctx, p, off); err != nil {
		return 0, err
	}
	return len(p), nil
}
