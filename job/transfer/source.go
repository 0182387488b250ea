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

// ExportSource is a disk on its way out of a pool: it ends only with the pool's
// own verdict that the export went well.
type ExportSource struct {
	disk.Source
	E *xapi.Export
}

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

// verdictWait is how long the pool is waited for to say why it ended an export early.
const verdictWait = 10 * time.Second

// ExplainEnd finds out why a stream ended before its end: the pool's reason, where it
// has one, in place of what the reader of the format makes of it.
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

// PoolError turns a failure that a host reported inside a stream into the
// pool's error it carries.
func PoolError(err error) error {
	var embedded *vhd.EmbeddedError
	if errors.As(err, &embedded) && embedded.Code != "" {
		return &xapi.Error{Code: xapi.Code(embedded.Code), Params: embedded.Params, Method: "export"}
	}
	return err
}

// RawStream reads a disk's bytes as they come, all of them.
type RawStream struct {
	R     io.Reader
	Bytes int64
	at    int64
	err   error
}

func (s *RawStream) Size() int64 { return s.Bytes }

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
			s.err = fmt.Errorf("stream goes on behind the disk's %d bytes: %w", s.Bytes, vhd.ErrCorrupt)
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

// ErrNoDisk is returned for files that cannot hold a disk: pipes, sockets,
// devices of characters, and devices without a medium.
var ErrNoDisk = errors.New("want an image file or a block device")

// OpenSource opens a file, folder or block device for reading. It refuses
// anything else without opening it, as the opening of a pipe waits for a writer.
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
	// Allocated is about how many bytes will be read.
	Allocated int64
}

func (i *imageFile) Close() error { return i.f.Close() }

// OpenImage opens a raw file, a block device, or a VHD. raw takes any file as a
// raw disk.
func OpenImage(name string, raw bool) (*imageFile, error) {
	f, err := OpenSource(name)
	if err != nil {
		return nil, err
	}
	i, err := newImage(f, raw)
	if err != nil {
		var said *ForeignError // it names the file
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
	size, err := f.Seek(0, io.SeekEnd) // a device's size too
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

// RawFile reads a raw image, passing over the holes that the file system knows.
type RawFile struct {
	F      *os.File
	Bytes  int64
	at     int64 // next block's offset
	data   int64 // end of the stretch of data that at lies in
	sparse bool
}

func (s *RawFile) Size() int64 { return s.Bytes }

func (s *RawFile) Next(ctx context.Context, buf []byte) (disk.Extent, error) {
	if err := ctx.Err(); err != nil {
		return disk.Extent{}, err
	}
	if s.sparse && s.at < s.Bytes && s.at >= s.data {
		start, err := unix.Seek(int(s.F.Fd()), s.at, unix.SEEK_DATA)
		switch {
		case errors.Is(err, unix.ENXIO): // a hole to the end
			s.at = s.Bytes
		case err != nil: // the file system does not tell
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

// wholeFile is a disk from a regular file, which ends only where the file still
// has the length that it had: behind its end there seems to be a hole.
type wholeFile struct {
	disk.Source
	f    *os.File
	size int64
}

// CheckLength guards a source that reads f. A device has no length that could change.
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
