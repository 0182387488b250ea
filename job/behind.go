package job

import (
	"context"
	"os"

	"golang.org/x/sys/unix"
)

const (
	behindSpan  = 4 << 20 // bytes of the file that are sent to the disk at once
	behindSpans = 8       // on their way to the disk
)

// behindFile writes a large file without filling the page cache with it: each
// span is sent to the disk as soon as it is written, and dropped when it is
// there. A virtual machine often pays more for a new page of cache than for what
// is written into it, and what else the cache holds is of more use. All of this
// is advice: a file system that takes none works as ever.
type behindFile struct {
	*os.File
	at       int64 // of the next Write
	from, to int64 // written, and not on its way
	under    []fileSpan
}

type fileSpan struct{ from, n int64 }

// WriteAt implements disk.Sink, whose offsets ascend.
func (b *behindFile) WriteAt(_ context.Context, p []byte, off int64) error {
	n, err := b.File.WriteAt(p, off)
	b.wrote(off, int64(n))
	return err
}

// Write implements io.Writer.
func (b *behindFile) Write(p []byte) (int, error) {
	n, err := b.File.Write(p)
	b.wrote(b.at, int64(n))
	b.at += int64(n)
	return n, err
}

func (b *behindFile) wrote(off, n int64) {
	if b.from == b.to {
		b.from = off
	}
	b.to = off + n
	if b.to-b.from < behindSpan {
		return
	}
	fd, s := int(b.Fd()), fileSpan{b.from, b.to - b.from}
	b.from = b.to
	_ = unix.SyncFileRange(fd, s.from, s.n, unix.SYNC_FILE_RANGE_WRITE)
	if b.under = append(b.under, s); len(b.under) <= behindSpans {
		return
	}
	s, b.under = b.under[0], b.under[1:]
	_ = unix.SyncFileRange(fd, s.from, s.n, unix.SYNC_FILE_RANGE_WAIT_BEFORE|unix.SYNC_FILE_RANGE_WRITE|unix.SYNC_FILE_RANGE_WAIT_AFTER)
	_ = unix.Fadvise(fd, s.from, s.n, unix.FADV_DONTNEED)
}
