package restore

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"math/bits"

	"xenkeep/chunkstore/seal"
	"xenkeep/internal/disk"
	"xenkeep/job"
	"xenkeep/job/transfer"
	"xenkeep/nbd"
	"xenkeep/repo/restore"
	"xenkeep/vhd"
	"xenkeep/xapi"
)

// fill writes a disk's data to a VDI that was just created: as a VHD of its nonzero
// blocks if the VDI is a VHD, otherwise in pieces with their offsets, including zeros
// if the VDI may not read as zeros.
func (p *poolRestore) fill(ctx context.Context, im *restore.Image, vdi xapi.VDI, sr xapi.SR, progress func(int64)) (restore.Result, error) {
	var res restore.Result
	p.o.Log.Debug("importing", "vdi", vdi.UUID, "as VHD", sr.StoresVHD(vdi) && im.Size() <= vhd.MaxSize)
	if !sr.StoresVHD(vdi) || im.Size() > vhd.MaxSize {
		zeros := !sr.ReadsAsZero(vdi)
		res, _, err := p.pieces(ctx, im, vdi, restore.Options{Zeros: zeros, Progress: progress}, zeros)
		return res, err
	}
	layout := vhd.Layout{Profile: vhd.ForXenServer, Size: im.Size(), Present: im.Present, Time: vhd.Time(p.o.Now())}
	layout.ID, _ = vhd.NewUUID(rand.Reader) // does not fail
	err := p.pool.ImportVDI(ctx, xapi.ImportOptions{VDI: vdi.Ref, Format: xapi.FormatVHD, ContentLength: layout.Length()},
		func(w io.Writer) (err error) {
			res, err = transfer.StreamVHD(ctx, im, w, layout, restore.Options{Progress: progress})
			return err
		})
	return res, err
}

// pieces writes a disk, or some blocks of it, as pieces with their offsets. With tail,
// the area after the disk's end is overwritten with zeros. It reports whether any data
// were sent, even if it returns an error.
func (p *poolRestore) pieces(ctx context.Context, im *restore.Image, vdi xapi.VDI, o restore.Options, tail bool) (res restore.Result, sent bool, err error) {
	err = p.pool.ImportVDI(ctx, xapi.ImportOptions{VDI: vdi.Ref, Format: xapi.FormatRaw, Chunked: true, ContentLength: -1},
		func(w io.Writer) (err error) {
			sink := &transfer.PieceSink{W: w}
			defer func() { sent = sink.Sent }()
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
			return sink.End()
		})
	return res, sent, err
}

// compare reads a VDI and returns a bitmap of the blocks in which it differs from the
// image. The VDI must not be written meanwhile. Shortly afterwards a host may still
// hold the disk: then it cannot be written, and its VM cannot be started.
func (p *poolRestore) compare(ctx context.Context, im *restore.Image, vdi xapi.VDI, label string) (differs []uint64, err error) {
	m := p.o.Progress.Begin(label, im.Size())
	defer m.Done()
	src, end, err := p.readVDI(ctx, vdi)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, end()) }()
	return im.Compare(ctx, src, job.CountingCallback(m))
}

// readVDI reads a whole disk over NBD if the pool serves it, otherwise by an export.
// The returned function closes the source.
func (p *poolRestore) readVDI(ctx context.Context, vdi xapi.VDI) (disk.Source, func() error, error) {
	if d, err := transfer.OpenVDI(ctx, p.pool, vdi, nbd.DiskOptions{}); err == nil {
		src, serr := d.Source([]disk.Extent{{Offset: 0, Length: int64(vdi.VirtualSize)}}, 0)
		if serr != nil {
			return nil, nil, errors.Join(serr, d.Close())
		}
		return src, func() error { return errors.Join(src.Close(), d.Close()) }, nil
	} else if ctx.Err() != nil {
		return nil, nil, err
	} else {
		p.o.Log.Debug("reading a VDI by an export", "vdi", vdi.UUID, "because", err)
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
	var src disk.Source = &transfer.RawStream{R: e, Bytes: size}
	if format == xapi.FormatVHD {
		reader, err := vhd.NewReader(e, vhd.Options{})
		if err != nil {
			x := &transfer.ExportSource{E: e}
			return nil, nil, errors.Join(x.ExplainEnd(ctx, transfer.PoolError(err)), e.Close(ctx))
		}
		src = reader
	}
	return &transfer.ExportSource{Source: src, E: e}, func() error { return e.Close(ctx) }, nil
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
