package exchange

import (
	"bufio"
	"cmp"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"

	"xenkeep/chunkstore/chunk"
	"xenkeep/internal/disk"
	"xenkeep/job"
	"xenkeep/job/records"
	"xenkeep/job/transfer"
	"xenkeep/qcow2"
	"xenkeep/repo"
	"xenkeep/repo/diff"
	"xenkeep/repo/restore"
	"xenkeep/vhd"
)

// Format is a file format of disks or VMs.
type Format string

// The formats that Export writes.
const (
	FormatRaw   Format = "raw"   // sparse in a file
	FormatVHD   Format = "vhd"   // dynamic, or differencing
	FormatQCOW2 Format = "qcow2" // version 3
	FormatXVA   Format = "xva"   // the whole VM
)

// ErrFormat is returned if the format is ambiguous, or cannot represent the requested
// content.
var ErrFormat = errors.New("format")

// FormatOf returns the format that a file's name ends in: .raw and .img, .vhd, .qcow2,
// .xva.
func FormatOf(file string) (Format, bool) {
	switch strings.ToLower(filepath.Ext(file)) {
	case ".raw", ".img":
		return FormatRaw, true
	case ".vhd":
		return FormatVHD, true
	case ".qcow2":
		return FormatQCOW2, true
	case ".xva":
		return FormatXVA, true
	}
	return "", false
}

// ExportOptions are the options of Export.
type ExportOptions struct {
	Progress job.Progress // nil: none
	Force    bool         // replace an existing file
	Format   Format
	// Disk selects the disk: its device, VDI or name; "" for the only disk, or for all
	// disks of a VM.
	Disk string
	// Base makes a VHD a differencing one that contains the changes since this
	// snapshot; BaseFile is the name of the file with the snapshot Base.
	Base     *repo.Snapshot
	BaseFile string
	// Compress is "gzip" or "zstd" for an XVA.
	Compress string
	Now      func() time.Time // nil: time.Now
}

// Exported is the result of an export. Its JSON form is documented in
// docs/reference/json.md.
type Exported struct {
	Type     string         `json:"type"` // "exported"
	Snapshot string         `json:"snapshot"`
	Base     string         `json:"base,omitempty"`
	BaseFile string         `json:"base_file,omitempty"`
	File     string         `json:"file"` // "-" for the standard output
	Format   Format         `json:"format"`
	Bytes    int64          `json:"bytes"` // size of the file, including holes
	Disks    []ExportedDisk `json:"disks"`
	Warnings []string       `json:"warnings,omitempty"`
	Duration float64        `json:"duration_s"`
}

// ExportedDisk is one disk of an Exported.
type ExportedDisk struct {
	Device string `json:"device"`
	Size   int64  `json:"size"`
	Data   int64  `json:"bytes_data"` // of Size, the bytes that are not left out as zeros or unchanged
}

// Export writes a disk of a snapshot, or all disks as an XVA, to a file, or to out if
// file is "-". A file gets its name only when it is complete.
func Export(ctx context.Context, r *repo.Repository, s *repo.Snapshot, file string, out io.Writer, o ExportOptions) (*Exported, error) {
	if o.Progress == nil {
		o.Progress = job.NoProgress{}
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	started := o.Now()
	x := &exporter{r: r, s: s, o: o, res: &Exported{
		Type: "exported", Snapshot: s.ID(), File: file, Format: o.Format, Disks: []ExportedDisk{},
	}}
	write, err := x.prepare(ctx, file)
	if err != nil {
		return nil, err
	}
	if file == "-" {
		c := &countingWriter{w: out}
		err = write(ctx, c, nil)
		x.res.Bytes = c.n
	} else {
		err = createFile(file, o.Force, func(f *os.File) error {
			err := write(ctx, f, f)
			if st, serr := f.Stat(); serr == nil {
				x.res.Bytes = st.Size()
			}
			return err
		})
	}
	if err != nil {
		return nil, err
	}
	x.res.Duration = o.Now().Sub(started).Seconds()
	return x.res, nil
}

// exporter is the state of one export.
type exporter struct {
	r   *repo.Repository
	s   *repo.Snapshot
	o   ExportOptions
	res *Exported
}

// writer writes the whole file to w. f is not nil if w is a file, which can be written
// at any offset.
type writer func(ctx context.Context, w io.Writer, f *os.File) error

// prepare checks that the export is possible, before a file is created.
func (x *exporter) prepare(ctx context.Context, file string) (writer, error) {
	if x.o.Compress != "" && x.o.Format != FormatXVA {
		return nil, fmt.Errorf("%w %s is not compressed; an xva can be", ErrFormat, x.o.Format)
	}
	if x.o.Base != nil && x.o.Format != FormatVHD {
		return nil, fmt.Errorf("%w %s holds no differences; vhd does", ErrFormat, x.o.Format)
	}
	if x.o.Format == FormatXVA {
		return x.prepareXVA(ctx)
	}
	d, err := records.FindDisk(x.s, x.o.Disk)
	if err != nil {
		return nil, err
	}
	im, err := x.open(ctx, d)
	if err != nil {
		return nil, err
	}
	switch x.o.Format {
	case FormatRaw:
		return func(ctx context.Context, w io.Writer, f *os.File) error {
			if f == nil {
				return x.writeDisk(ctx, im, d, transfer.StreamSink{W: w}, restore.Options{Zeros: true})
			}
			if err := f.Truncate(im.Size()); err != nil {
				return err
			}
			return x.writeDisk(ctx, im, d, &transfer.WriteBehindFile{File: f}, restore.Options{})
		}, nil
	case FormatVHD:
		return x.prepareVHD(ctx, im, d, file)
	case FormatQCOW2:
		if im.Size() > qcow2.MaxSize {
			return nil, fmt.Errorf("disk %s: %w", d.Device, qcow2.ErrTooLarge)
		}
		return func(ctx context.Context, w io.Writer, _ *os.File) error {
			return buffered(w, func(w io.Writer) error {
				qw, err := qcow2.NewWriter(w, qcow2.Layout{Size: im.Size(), Present: im.Present})
				if err != nil {
					return err
				}
				if err := x.writeDisk(ctx, im, d, qw, restore.Options{}); err != nil {
					return err
				}
				return qw.Close()
			})
		}, nil
	}
	return nil, fmt.Errorf("%w %q is none of raw, vhd, qcow2, xva", ErrFormat, x.o.Format)
}

func (x *exporter) open(ctx context.Context, d *repo.Disk) (*restore.Image, error) {
	im, err := restore.Open(ctx, x.r, chunk.ID(d.Root))
	if err != nil {
		return nil, fmt.Errorf("disk %s: %w", d.Device, err)
	}
	if im.Size() != d.Size {
		return nil, fmt.Errorf("disk %s: it has %d bytes according to snapshot %s, and %d according to its tree", d.Device, d.Size, x.s.Short(), im.Size())
	}
	return im, nil
}

// writeDisk writes one disk to a sink.
func (x *exporter) writeDisk(ctx context.Context, im *restore.Image, d *repo.Disk, sink disk.Sink, o restore.Options) error {
	m := x.o.Progress.Begin(d.Device, im.Size())
	defer m.Done()
	o.Progress = job.CountingCallback(m)
	res, err := im.Run(ctx, sink, o)
	if err != nil {
		return fmt.Errorf("disk %s: %w", d.Device, err)
	}
	x.res.Disks = append(x.res.Disks, ExportedDisk{Device: d.Device, Size: im.Size(), Data: res.Written})
	return nil
}

// vhdID returns the unique ID of a VHD of a disk. It is the same in each export, so
// that a differencing VHD can name a parent that another export wrote.
func vhdID(root repo.HexID) vhd.UUID { return vhd.HashUUID(root) }

// vhdTime returns the time for a VHD's footer: never in the future, nor before 2000.
func (x *exporter) vhdTime(t time.Time) uint32 {
	if now := x.o.Now(); t.After(now) {
		t = now
	}
	return vhd.Time(t)
}

func (x *exporter) prepareVHD(ctx context.Context, im *restore.Image, d *repo.Disk, file string) (writer, error) {
	layout := vhd.Layout{Profile: vhd.ForFile, Size: im.Size(), Present: im.Present, ID: vhdID(d.Root), Time: x.vhdTime(x.s.DataTime)}
	o := restore.Options{}
	if x.o.Base != nil {
		b, err := records.SameDisk(x.o.Base, d)
		if err != nil {
			return nil, err
		}
		if b.Size != d.Size {
			return nil, fmt.Errorf("disk %s: %d bytes in snapshot %s, %d in %s: a %w vhd of differences needs equal sizes: export it whole",
				d.Device, b.Size, x.o.Base.Short(), d.Size, x.s.Short(), ErrFormat)
		}
		bits, err := diff.Blocks(ctx, x.r, chunk.ID(b.Root), chunk.ID(d.Root))
		if err != nil {
			return nil, err
		}
		changed := func(b int64) bool { return bits[b/64]&(1<<(b%64)) != 0 }
		name := cmp.Or(x.o.BaseFile, fmt.Sprintf("%s-%s.vhd", x.o.Base.Short(), path.Base(b.Device)))
		x.res.Base, x.res.BaseFile = x.o.Base.ID(), name
		layout.Present = changed
		layout.Parent = &vhd.Parent{ID: vhdID(b.Root), Time: x.vhdTime(x.o.Base.DataTime), Path: filepath.ToSlash(name)}
		if b.Root == d.Root {
			// With its parent's ID, the VHD would be its own parent.
			layout.ID[15] ^= 1
		}
		o = restore.Options{Zeros: true, Only: changed}
	}
	if err := layout.Check(); err != nil {
		return nil, fmt.Errorf("disk %s: %w", d.Device, err)
	}
	return func(ctx context.Context, w io.Writer, _ *os.File) error {
		return buffered(w, func(w io.Writer) error {
			vw, err := vhd.NewWriter(w, layout)
			if err != nil {
				return err
			}
			if err := x.writeDisk(ctx, im, d, vw, o); err != nil {
				return err
			}
			return vw.Close()
		})
	}, nil
}

// buffered calls fn with a writer that buffers small writes.
func buffered(w io.Writer, fn func(io.Writer) error) error {
	b := bufio.NewWriterSize(w, 1<<20)
	if err := fn(b); err != nil {
		return err
	}
	return b.Flush()
}

// compressed calls fn with a writer that compresses.
func compressed(w io.Writer, how string, fn func(io.Writer) error) error {
	var z io.WriteCloser
	var err error
	switch how {
	case "":
		return fn(w)
	case "gzip":
		z, err = gzip.NewWriterLevel(w, gzip.BestSpeed)
	case "zstd":
		z, err = zstd.NewWriter(w)
	default:
		err = fmt.Errorf("compression %q is none of gzip, zstd: %w", how, ErrFormat)
	}
	if err != nil {
		return err
	}
	if err := fn(z); err != nil {
		return err
	}
	return z.Close()
}

// countingWriter counts the written bytes.
type countingWriter struct {
	w io.Writer
	n int64
}

func (c *countingWriter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}

// createFile creates a file that fn writes. The file gets its name only when it is
// complete.
func createFile(name string, force bool, fn func(f *os.File) error) (err error) {
	switch st, err := os.Stat(name); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return err
	case st.IsDir():
		return fmt.Errorf("%s is a folder: name a file in it: %w", name, job.ErrExists)
	case !st.Mode().IsRegular():
		return fmt.Errorf("%s is no file; xenkeep restore --to writes devices: %w", name, job.ErrExists)
	case !force:
		return fmt.Errorf("%s: %w: --force replaces it", name, job.ErrExists)
	}
	f, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+".*.part")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = f.Close()
			_ = os.Remove(f.Name())
		}
	}()
	for _, step := range []func() error{
		func() error { return fn(f) }, f.Sync, func() error { return f.Chmod(0o600) }, f.Close,
		func() error { return os.Rename(f.Name(), name) },
	} {
		if err = step(); err != nil {
			return err
		}
	}
	return transfer.SyncDir(filepath.Dir(name))
}
