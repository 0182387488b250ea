package job

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"net"
	"strconv"
	"time"

	"xenkeep/chunkstore/seal"
	"xenkeep/internal/disk"
	"xenkeep/nbd"
	"xenkeep/repo/restore"
	"xenkeep/vhd"
	"xenkeep/xapi"
)

// fill sends a disk's data to a VDI that was just made: as a VHD of what is not
// zero where the target is one, else in pieces with their offsets, with its
// zeros where the target may read as something else.
func (p *poolRestore) fill(ctx context.Context, im *restore.Image, vdi xapi.VDI, sr xapi.SR, progress func(int64)) (restore.Result, error) {
	var res restore.Result
	if !sr.StoresVHD(vdi) || im.Size() > vhd.MaxSize {
		zeros := !sr.ReadsAsZero(vdi)
		res, _, err := p.pieces(ctx, im, vdi, restore.Options{Zeros: zeros, Progress: progress}, zeros)
		return res, err
	}
	layout := vhd.Layout{Profile: vhd.ForXenServer, Size: im.Size(), Present: im.Present, Time: vhd.Time(time.Now())}
	layout.ID, _ = vhd.NewUUID(rand.Reader) // cannot fail
	err := p.pool.ImportVDI(ctx, xapi.ImportOptions{VDI: vdi.Ref, Format: xapi.FormatVHD, ContentLength: layout.Length()},
		func(w io.Writer) (err error) {
			res, err = streamVHD(ctx, im, w, layout, restore.Options{Progress: progress})
			return err
		})
	return res, err
}

// pieces writes a disk, or some blocks of it, as pieces with their offsets.
// What lies behind the disk's end is overwritten with zeros where tail is set. It
// reports whether anything was sent, also beside an error.
func (p *poolRestore) pieces(ctx context.Context, im *restore.Image, vdi xapi.VDI, o restore.Options, tail bool) (res restore.Result, sent bool, err error) {
	err = p.pool.ImportVDI(ctx, xapi.ImportOptions{VDI: vdi.Ref, Format: xapi.FormatRaw, Chunked: true, ContentLength: -1},
		func(w io.Writer) (err error) {
			sink := &pieceSink{w: w}
			defer func() { sent = sink.sent }()
			if res, err = im.Run(ctx, sink, o); err != nil {
				return err
			}
			var zeros [64 << 10]byte
			for at := im.Size(); tail && at < int64(vdi.VirtualSize); {
				n := min(int64(vdi.VirtualSize)-at, int64(len(zeros)))
				if err := sink.WriteAt(ctx, zeros[:n], at); err != nil {
					return err
				}
				at += n
			}
			return sink.end()
		})
	return res, sent, err
}

// pieceSink frames pieces: byte offset (64 bits) and length (32 bits), little
// endian, then the bytes; offset and length zero are the end (xen-api
// ocaml/vhd-tool/src/chunked.ml).
type pieceSink struct {
	w    io.Writer
	sent bool // a piece was begun
}

func (s *pieceSink) head(off int64, n int) error {
	var h [12]byte
	binary.LittleEndian.PutUint64(h[:], uint64(off))
	binary.LittleEndian.PutUint32(h[8:], uint32(n))
	_, err := s.w.Write(h[:])
	return err
}

func (s *pieceSink) WriteAt(_ context.Context, p []byte, off int64) error {
	if len(p) == 0 {
		return nil // would be the end
	}
	s.sent = true
	if err := s.head(off, len(p)); err != nil {
		return err
	}
	_, err := s.w.Write(p)
	return err
}

func (s *pieceSink) end() error { return s.head(0, 0) }

// compare reads a VDI and tells in which blocks it differs from the image. It
// must not be written to meanwhile. For a moment after it a host may hold the disk
// still, so that it can neither be written to nor its VM be started.
func (p *poolRestore) compare(ctx context.Context, im *restore.Image, vdi xapi.VDI, label string) (differs []uint64, err error) {
	m := p.o.Progress.Begin(label, im.Size())
	defer m.Done()
	src, end, err := p.readVDI(ctx, vdi)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, end()) }()
	return im.Compare(ctx, src, metered(m))
}

// readVDI reads a whole disk over NBD where the pool serves it, else by an
// export.
func (p *poolRestore) readVDI(ctx context.Context, vdi xapi.VDI) (disk.Source, func() error, error) {
	if d, err := openVDI(ctx, p.pool, vdi, nbd.DiskOptions{}); err == nil {
		src, serr := d.Source([]disk.Extent{{Offset: 0, Length: int64(vdi.VirtualSize)}}, 0)
		if serr != nil {
			return nil, nil, errors.Join(serr, d.Close())
		}
		return src, func() error { return errors.Join(src.Close(), d.Close()) }, nil
	} else if ctx.Err() != nil {
		return nil, nil, err
	}
	sr, err := p.pool.SR(ctx, vdi.SR)
	if err != nil {
		return nil, nil, err
	}
	format := xapi.FormatVHD
	size := int64(vdi.VirtualSize)
	if !sr.StoresVHD(vdi) || size > vhd.MaxSize || size%disk.BlockSize != 0 {
		format = xapi.FormatRaw
	}
	e, err := p.pool.ExportVDI(ctx, xapi.ExportOptions{VDI: vdi.Ref, Format: format})
	if err != nil {
		return nil, nil, err
	}
	var src disk.Source = &rawStream{r: e, size: size}
	if format == xapi.FormatVHD {
		reader, err := vhd.NewReader(e, vhd.Options{})
		if err != nil {
			x := &exported{e: e}
			return nil, nil, errors.Join(x.cutShort(ctx, poolError(err)), e.Close(ctx))
		}
		src = reader
	}
	return &exported{Source: src, e: e}, func() error { return e.Close(ctx) }, nil
}

// openVDI connects to a VDI over NBD; o says but for where.
func openVDI(ctx context.Context, pool *xapi.Client, vdi xapi.VDI, o nbd.DiskOptions) (*nbd.Disk, error) {
	endpoints := func(ctx context.Context) ([]nbd.Endpoint, error) {
		infos, err := pool.NBDInfo(ctx, vdi.Ref)
		if err != nil {
			return nil, err
		}
		if len(infos) == 0 {
			return nil, errors.New("no host serves it over NBD")
		}
		var out []nbd.Endpoint
		for _, i := range infos {
			e := nbd.Endpoint{
				Address:    net.JoinHostPort(i.Address, strconv.FormatInt(int64(i.Port), 10)),
				ExportName: i.ExportName, ServerName: i.Subject, Host: i.Cert,
			}
			if i.Cert != "" {
				e.PinnedCertPEM = []byte(i.Cert)
			}
			out = append(out, e)
		}
		return out, nil
	}
	var err error
	if o.Endpoints, err = endpoints(ctx); err != nil {
		return nil, err
	}
	o.Renew = endpoints
	d, err := nbd.Open(ctx, o)
	if err != nil {
		return nil, err
	}
	if d.Size() < int64(vdi.VirtualSize) {
		return nil, errors.Join(fmt.Errorf("NBD serves %d bytes of a disk of %d", d.Size(), vdi.VirtualSize), d.Close())
	}
	return d, nil
}

// verify reads a restored VDI back and compares it with the snapshot.
func (p *poolRestore) verify(ctx context.Context, im *restore.Image, vdi xapi.VDI, label string) error {
	differs, err := p.compare(ctx, im, vdi, label+" (verify)")
	if err != nil {
		return fmt.Errorf("read VDI %s back: %w", vdi.UUID, err)
	}
	for i, w := range differs {
		if w != 0 {
			first := (int64(i)*64 + int64(bits.TrailingZeros64(w))) * disk.BlockSize
			return fmt.Errorf("VDI %s read back differs from the snapshot in %d blocks of 2 MiB, the first at byte %d: %w",
				vdi.UUID, restore.Differing(differs), first, seal.ErrCorrupt)
		}
	}
	_, err = p.pool.WaitReleased(ctx, vdi.Ref) // so that its VM can be started
	return err
}
