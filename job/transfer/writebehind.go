package transfer

import (
	"context"
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

const (
	behindSpan  = 4 << 20 // bytes of the file that are sent to the disk together
	behindSpans = 8       // on their way to the disk
)

// WriteBehindFile writes a large file without filling the page cache: each span is
// sent to the disk as soon as it is written, and dropped from the cache when it is on
// the disk. A virtual machine often spends more time on a new page of cache than on
// the data in it, and other content of the cache is more useful. On a file system
// without sync_file_range it writes normally.
type WriteBehindFile struct {
	*os.File
	at       int64 // of the next Write
	from, to int64 // written in between, and not on its way to the disk
	written  int64 // bytes in between; the rest are holes
	under    []fileSpan
}

type fileSpan struct{ from, n int64 }

// WriteAt implements disk.Sink, whose offsets ascend.
func (b *WriteBehindFile) WriteAt(_ context.Context, p []byte, off int64) error {
	n, err := b.File.WriteAt(p, off)
	if err != nil {
		return err
	}
	return b.wrote(off, int64(n))
}

// Write implements io.Writer.
func (b *WriteBehindFile) Write(p []byte) (int, error) {
	n, err := b.File.Write(p)
	if err != nil {
		return n, err
	}
	b.at += int64(n)
	return n, b.wrote(b.at-int64(n), int64(n))
}

func (b *WriteBehindFile) wrote(off, n int64) error {
	if b.written == 0 {
		b.from = off
	}
	b.to, b.written = off+n, b.written+n
	if b.written < behindSpan {
		return nil
	}
	s := fileSpan{b.from, b.to - b.from}
	b.written = 0
	if err := b.sync(s, unix.SYNC_FILE_RANGE_WRITE); err != nil {
		return err
	}
	if b.under = append(b.under, s); len(b.under) <= behindSpans {
		return nil
	}
	s, b.under = b.under[0], b.under[1:]
	if err := b.sync(s, unix.SYNC_FILE_RANGE_WAIT_BEFORE|unix.SYNC_FILE_RANGE_WRITE|unix.SYNC_FILE_RANGE_WAIT_AFTER); err != nil {
		return err
	}
	_ = unix.Fadvise(int(b.Fd()), s.from, s.n, unix.FADV_DONTNEED)
	return nil
}

// sync calls sync_file_range(2). An I/O error that it reports is not reported by a
// later fsync, and so it must be returned.
func (b *WriteBehindFile) sync(s fileSpan, flags int) error {
	err := unix.SyncFileRange(int(b.Fd()), s.from, s.n, flags)
	switch {
	case err == nil, errors.Is(err, unix.EINTR), errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOSYS), errors.Is(err, unix.ESPIPE), errors.Is(err, unix.EOPNOTSUPP):
		return nil
	}
	return &os.PathError{Op: "write", Path: b.Name(), Err: err}
}

// SyncDir flushes a folder to the disk, so that files that were created or renamed in
// it survive a crash.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
