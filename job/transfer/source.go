package transfer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"xenkeep/filekind"
	"xenkeep/internal/disk"
	"xenkeep/internal/hints"
	"xenkeep/vhd"
	"xenkeep/xapi"
)

// ExportSource is a disk that a pool exports. It returns io.EOF only after the pool
// reported that the export succeeded.
type ExportSource struct {
	disk.Source
	E *xapi.Export
}

// Next implements disk.Source.
func (x *ExportSource) Next(ctx context.Context, buf []byte) (disk.Extent, error) {
	e, err := x.Source.Next(ctx, buf)
	if err == io.EOF {
		if err := x.E.Finish(ctx); err != nil {
			return disk.Extent{}, err
		}
		return e, io.EOF
	}
	return e, x.ExplainEnd(ctx, PoolError(err))
}

// verdictWait is how long to wait for the pool's reason if an export ended early.
const verdictWait = 10 * time.Second

// ExplainEnd returns the reason why a stream ended before its end: the pool's reason
// if it has one, and otherwise err, the error of the format's reader.
func (x *ExportSource) ExplainEnd(ctx context.Context, err error) error {
	if !errors.Is(err, vhd.ErrTruncated) && !errors.Is(err, io.ErrUnexpectedEOF) || ctx.Err() != nil {
		return err
	}
	wait, cancel := context.WithTimeout(ctx, verdictWait)
	defer cancel()
	var pool *xapi.Error
	if why := x.E.Finish(wait); errors.As(why, &pool) {
		return why
	}
	return hints.With(
		fmt.Errorf("the pool ended the export after %d bytes without a reason, as a restart of its toolstack does: %w", x.E.Received(), io.ErrUnexpectedEOF),
		"run the same command again when the toolstack is up")

}

// PoolError returns the pool's error that a host reported inside a stream, or err
// itself.
func PoolError(err error) error {
	var embedded *vhd.EmbeddedError
	if errors.As(err, &embedded) && embedded.Code != "" {
		return &xapi.Error{Code: xapi.Code(embedded.Code), Params: embedded.Params, Method: "export"}
	}
	return err
}

// RawStream reads the bytes of a whole disk from R.
type RawStream struct {
	R     io.Reader
	Bytes int64
	at    int64
	err   error
}

// Size returns the size of the disk in bytes.
func (s *RawStream) Size() int64 { return s.Bytes }

// Next implements disk.Source.
func (s *RawStream) Next(ctx context.Context, buf []byte) (disk.Extent, error) {
	if s.err == nil {
		s.err = ctx.Err()
	}
	if s.err != nil {
		return disk.Extent{}, s.err
	}
	n := min(disk.BlockSize, s.Bytes-s.at)
	if n == 0 {
		var one [1]byte
		if k, err := io.ReadFull(s.R, one[:]); k > 0 {
			s.err = fmt.Errorf("stream continues after the disk's %d bytes: %w", s.Bytes, vhd.ErrCorrupt)
		} else {
			s.err = err
		}
		return disk.Extent{}, s.err
	}
	if k, err := io.ReadFull(s.R, buf[:n]); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			err = fmt.Errorf("stream ends after %d of %d bytes: %w", s.at+int64(k), s.Bytes, vhd.ErrTruncated)
		}
		s.err = err
		return disk.Extent{}, err
	}
	e := disk.Extent{Offset: s.at, Length: n}
	s.at += n
	return e, nil
}

// ErrNoDisk is returned for files that cannot contain a disk: pipes, sockets,
// character devices, and devices without a medium.
var ErrNoDisk = errors.New("want an image file or a block device")

// OpenSource opens a file, folder or block device for reading. It refuses any other
// file without opening it, because opening a pipe waits for a writer.
func OpenSource(name string) (*os.File, error) {
	st, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	kind := ""
	switch m := st.Mode(); {
	case m&os.ModeNamedPipe != 0:
		kind = "a pipe"
	case m&os.ModeSocket != 0:
		kind = "a socket"
	case m&os.ModeCharDevice != 0:
		kind = "a character device"
	default:
		return os.Open(name)
	}
	return nil, fmt.Errorf("%s: is %s: %w", name, kind, ErrNoDisk)
}

// imageFile is an image file or device open for reading.
type imageFile struct {
	disk.Source
	f    *os.File
	Kind filekind.Kind
	// Allocated is an estimate of the bytes that will be read.
	Allocated int64
}

func (i *imageFile) Close() error { return i.f.Close() }

// OpenImage opens a raw file, a block device, or a VHD. With raw, any file is read as
// a raw disk.
func OpenImage(name string, raw bool) (*imageFile, error) {
	f, err := OpenSource(name)
	if err != nil {
		return nil, err
	}
	i, err := newImage(f, raw)
	if err != nil {
		var said *ForeignError // the error names the file already
		if !errors.As(err, &said) {
			err = fmt.Errorf("%s: %w", name, err)
		}
		return nil, errors.Join(err, f.Close())
	}
	return i, nil
}

func newImage(f *os.File, raw bool) (*imageFile, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if st.IsDir() {
		return nil, errors.New("is a folder, not a disk image")
	}
	size, err := f.Seek(0, io.SeekEnd) // works for devices, too
	if err != nil {
		return nil, err
	}
	if size == 0 && !st.Mode().IsRegular() {
		return nil, fmt.Errorf("is a device without a disk (0 bytes): %w", ErrNoDisk)
	}
	k, err := sniffImage(f, raw)
	if err != nil {
		return nil, err
	}
	switch {
	case k.IsDisk():
	case k == filekind.VHD:
		file, err := vhd.OpenFile(f, size, vhd.Options{})
		if err != nil {
			return nil, err
		}
		if file.IsDelta() {
			return nil, &ForeignError{
				File: f.Name(), Why: fmt.Sprintf("a differencing VHD, which is only whole together with its parent %q", file.Header().ParentName()),
				Advice: "import the chain, the parent first: xenkeep import PARENT " + QuoteFile(f.Name()),
			}
		}
		return &imageFile{Source: file.Reader(), f: f, Kind: k, Allocated: file.Allocated()}, nil
	case k == filekind.QCOW2, k == filekind.XVA, k == filekind.Gzip, k == filekind.Zstd:
		return nil, importFirst(f.Name(), k)
	default:
		return nil, Foreign(f.Name(), k)
	}
	s := &RawFile{F: f, Bytes: size, sparse: st.Mode().IsRegular()}
	allocated := size
	var sys unix.Stat_t
	if s.sparse && unix.Fstat(int(f.Fd()), &sys) == nil {
		allocated = min(size, sys.Blocks*512)
	}
	return &imageFile{Source: CheckLength(s, f), f: f, Kind: k, Allocated: allocated}, nil
}

// RawFile reads a raw image, without the holes that the file system reports.
type RawFile struct {
	F      *os.File
	Bytes  int64
	at     int64 // offset of the next block
	data   int64 // end of the extent of data that contains at
	sparse bool
}

// Size returns the size of the disk in bytes.
func (s *RawFile) Size() int64 { return s.Bytes }

// Next implements disk.Source.
func (s *RawFile) Next(ctx context.Context, buf []byte) (disk.Extent, error) {
	if err := ctx.Err(); err != nil {
		return disk.Extent{}, err
	}
	if s.sparse && s.at < s.Bytes && s.at >= s.data {
		start, err := unix.Seek(int(s.F.Fd()), s.at, unix.SEEK_DATA)
		switch {
		case errors.Is(err, unix.ENXIO): // no data until the end
			s.at = s.Bytes
		case err != nil: // the file system does not report holes
			s.sparse = false
		default:
			s.at = max(s.at, start-start%disk.BlockSize)
			if s.data, err = unix.Seek(int(s.F.Fd()), start, unix.SEEK_HOLE); err != nil {
				s.sparse = false
			}
		}
	}
	n := min(disk.BlockSize, s.Bytes-s.at)
	if n <= 0 {
		return disk.Extent{}, io.EOF
	}
	if _, err := s.F.ReadAt(buf[:n], s.at); err != nil {
		if err == io.EOF {
			err = fmt.Errorf("%s shrank while it was read: %w", s.F.Name(), io.ErrUnexpectedEOF)
		}
		return disk.Extent{}, err
	}
	e := disk.Extent{Offset: s.at, Length: n}
	s.at += n
	return e, nil
}

// wholeFile is a disk from a regular file. It ends only if the file still has its
// original length: after a truncation, the rest would look like a hole.
type wholeFile struct {
	disk.Source
	f    *os.File
	size int64
}

// CheckLength returns src, which reads f, with a check at its end that f was not
// truncated. It returns src itself for a device, whose length cannot change.
func CheckLength(src disk.Source, f *os.File) disk.Source {
	st, err := f.Stat()
	if err != nil || !st.Mode().IsRegular() {
		return src
	}
	return &wholeFile{src, f, st.Size()}
}

func (w *wholeFile) Next(ctx context.Context, buf []byte) (disk.Extent, error) {
	e, err := w.Source.Next(ctx, buf)
	if err == io.EOF {
		st, serr := w.f.Stat()
		if serr != nil {
			return disk.Extent{}, serr
		}
		if st.Size() < w.size {
			return disk.Extent{}, fmt.Errorf("%s shrank from %d to %d bytes while it was read: %w", w.f.Name(), w.size, st.Size(), io.ErrUnexpectedEOF)
		}
	}
	return e, err
}
