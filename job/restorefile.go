package job

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"xenkeep/chunkstore/chunk"
	"xenkeep/repo"
	"xenkeep/repo/restore"
	"xenkeep/vhd"
)

// RestoreFile writes one disk to a file: a dynamic VHD where its name ends in
// .vhd, else raw and sparse. The file bears its name only once it is whole. A
// block device is written in place, zeros and all.
func RestoreFile(ctx context.Context, r *repo.Repository, s *repo.Snapshot, d *repo.Disk, file string, o RestoreOptions) (*Restored, error) {
	o.defaults()
	started := time.Now()
	st, err := os.Stat(file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, err
	case st.IsDir():
		return nil, fmt.Errorf("%s is a folder: name a file in it: %w", file, ErrExists)
	case !o.Force:
		return nil, fmt.Errorf("%s: %w: --force replaces it", file, ErrExists)
	}
	im, err := restore.Open(ctx, r, chunk.ID(d.Root))
	if err != nil {
		return nil, err
	}
	if im.Size() != d.Size {
		return nil, fmt.Errorf("disk %s: snapshot %s says %d bytes, its tree %d", d.Device, s.Short(), d.Size, im.Size())
	}
	m := o.Progress.Begin(d.Device, im.Size())
	defer m.Done()
	ro := restore.Options{Progress: metered(m)}
	var res restore.Result
	if st != nil && !st.Mode().IsRegular() {
		res, err = restoreDevice(ctx, im, file, ro)
	} else {
		res, err = restoreNew(ctx, im, file, ro)
	}
	if err != nil {
		return nil, err
	}
	out := &Restored{
		Type: "restored", Snapshot: s.ID(), Duration: time.Since(started).Seconds(),
		Disks: []RestoredDisk{{Device: d.Device, File: file, Size: im.Size(), Written: res.Written}},
	}
	if s.Origin == repo.OriginDatabase {
		out.Steps = DatabaseSteps(file)
	}
	return out, nil
}

// RestoreStream writes one disk to w, raw and with its zeros. What was written before
// an error is the beginning of the disk.
func RestoreStream(ctx context.Context, r *repo.Repository, s *repo.Snapshot, d *repo.Disk, w io.Writer, o RestoreOptions) (*Restored, error) {
	o.defaults()
	started := time.Now()
	im, err := restore.Open(ctx, r, chunk.ID(d.Root))
	if err != nil {
		return nil, err
	}
	m := o.Progress.Begin(d.Device, im.Size())
	defer m.Done()
	res, err := im.Run(ctx, streamSink{w: w}, restore.Options{Zeros: true, Progress: metered(m)})
	if err != nil {
		return nil, fmt.Errorf("disk %s: %w", d.Device, err)
	}
	return &Restored{
		Type: "restored", Snapshot: s.ID(), Duration: time.Since(started).Seconds(),
		Disks: []RestoredDisk{{Device: d.Device, File: "-", Size: im.Size(), Written: res.Written}},
	}, nil
}

func restoreNew(ctx context.Context, im *restore.Image, file string, o restore.Options) (res restore.Result, err error) {
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
		res, err = writeVHD(ctx, im, &behindFile{File: f}, o)
	} else if err = f.Truncate(im.Size()); err == nil {
		res, err = im.Run(ctx, &behindFile{File: f}, o)
	}
	if err != nil {
		return res, err
	}
	for _, step := range []func() error{f.Sync, func() error { return f.Chmod(0o600) }, f.Close, func() error { return os.Rename(f.Name(), file) }} {
		if err = step(); err != nil {
			return res, err
		}
	}
	return res, syncDir(filepath.Dir(file))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
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
	if res, err = im.Run(ctx, &behindFile{File: f}, o); err != nil {
		return res, err
	}
	return res, f.Sync()
}

func writeVHD(ctx context.Context, im *restore.Image, w io.Writer, o restore.Options) (restore.Result, error) {
	layout := vhd.Layout{Profile: vhd.ForFile, Size: im.Size(), Present: im.Present, Time: vhd.Time(time.Now())}
	layout.ID, _ = vhd.NewUUID(rand.Reader) // cannot fail
	return streamVHD(ctx, im, w, layout, o)
}

// streamVHD writes a disk as the VHD that layout describes.
func streamVHD(ctx context.Context, im *restore.Image, w io.Writer, layout vhd.Layout, o restore.Options) (restore.Result, error) {
	vw, err := vhd.NewWriter(w, layout)
	if err != nil {
		return restore.Result{}, err
	}
	res, err := im.Run(ctx, vw, o)
	if err != nil {
		return res, err
	}
	return res, vw.Close()
}
