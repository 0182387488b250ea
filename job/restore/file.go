package restore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"xenkeep/chunkstore/chunk"
	"xenkeep/job"
	"xenkeep/job/transfer"
	"xenkeep/repo"
	"xenkeep/repo/restore"
)

// File writes one disk to a file: a dynamic VHD if its name ends in .vhd, otherwise
// raw and sparse. The file gets its name only when it is complete. A block device is
// written in place, including zeros.
func File(ctx context.Context, r *repo.Repository, s *repo.Snapshot, d *repo.Disk, file string, o Options) (*Restored, error) {
	o.Defaults()
	started := o.Now()
	st, err := os.Stat(file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, err
	case st.IsDir():
		return nil, fmt.Errorf("%s is a folder: name a file in it: %w", file, job.ErrExists)
	case !o.Force:
		return nil, fmt.Errorf("%s: %w: --force replaces it", file, job.ErrExists)
	}
	im, err := restore.Open(ctx, r, chunk.ID(d.Root))
	if err != nil {
		return nil, err
	}
	if im.Size() != d.Size {
		return nil, fmt.Errorf("disk %s: it has %d bytes according to snapshot %s, and %d according to its tree", d.Device, d.Size, s.Short(), im.Size())
	}
	m := o.Progress.Begin(d.Device, im.Size())
	defer m.Done()
	ro := restore.Options{Progress: job.CountingCallback(m)}
	var res restore.Result
	if st != nil && !st.Mode().IsRegular() {
		res, err = restoreDevice(ctx, im, file, ro)
	} else {
		res, err = restoreNew(ctx, im, file, started, ro)
	}
	if err != nil {
		return nil, err
	}
	out := &Restored{
		Type: "restored", Snapshot: s.ID(), Duration: o.Now().Sub(started).Seconds(),
		Disks: []RestoredDisk{{Device: d.Device, File: file, Size: im.Size(), Written: res.Written}},
	}
	if s.Origin == repo.OriginDatabase {
		out.Steps = DatabaseSteps(file)
	}
	return out, nil
}

// Stream writes one disk to w, raw and including zeros. After an error, w has received
// the beginning of the disk.
func Stream(ctx context.Context, r *repo.Repository, s *repo.Snapshot, d *repo.Disk, w io.Writer, o Options) (*Restored, error) {
	o.Defaults()
	started := o.Now()
	im, err := restore.Open(ctx, r, chunk.ID(d.Root))
	if err != nil {
		return nil, err
	}
	m := o.Progress.Begin(d.Device, im.Size())
	defer m.Done()
	res, err := im.Run(ctx, transfer.StreamSink{W: w}, restore.Options{Zeros: true, Progress: job.CountingCallback(m)})
	if err != nil {
		return nil, fmt.Errorf("disk %s: %w", d.Device, err)
	}
	return &Restored{
		Type: "restored", Snapshot: s.ID(), Duration: o.Now().Sub(started).Seconds(),
		Disks: []RestoredDisk{{Device: d.Device, File: "-", Size: im.Size(), Written: res.Written}},
	}, nil
}

func restoreNew(ctx context.Context, im *restore.Image, file string, now time.Time, o restore.Options) (res restore.Result, err error) {
	f, err := os.CreateTemp(filepath.Dir(file), "."+filepath.Base(file)+".*.part")
	if err != nil {
		return res, err
	}
	defer func() {
		if err != nil {
			_ = f.Close()
			_ = os.Remove(f.Name())
		}
	}()
	if strings.EqualFold(filepath.Ext(file), ".vhd") {
		res, err = transfer.WriteVHD(ctx, im, &transfer.WriteBehindFile{File: f}, now, o)
	} else if err = f.Truncate(im.Size()); err == nil {
		res, err = im.Run(ctx, &transfer.WriteBehindFile{File: f}, o)
	}
	if err != nil {
		return res, err
	}
	for _, step := range []func() error{f.Sync, func() error { return f.Chmod(0o600) }, f.Close, func() error { return os.Rename(f.Name(), file) }} {
		if err = step(); err != nil {
			return res, err
		}
	}
	return res, transfer.SyncDir(filepath.Dir(file))
}

func restoreDevice(ctx context.Context, im *restore.Image, file string, o restore.Options) (res restore.Result, err error) {
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		return res, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if size, err := f.Seek(0, io.SeekEnd); err != nil {
		return res, err
	} else if size < im.Size() {
		return res, fmt.Errorf("%s has %d bytes, the disk %d", file, size, im.Size())
	}
	o.Zeros = true
	if res, err = im.Run(ctx, &transfer.WriteBehindFile{File: f}, o); err != nil {
		return res, err
	}
	return res, f.Sync()
}
