// Package xva reads and writes XVA, the archive of a whole VM that XenServer
// sends from /export and accepts at /import. It is a codec: it uses no network
// and no clock.
//
// An XVA is a tar, possibly compressed as a whole with gzip or zstd:
//
//	ova.xml                   the records of the VM and of its related objects
//	Ref:12/00000000           a block of the disk whose VDI has the ID Ref:12
//	Ref:12/00000000.xxhash    its XXH64, or .checksum, its SHA-1
//	Ref:12/00000001 ...
//
// Disks are stored in the order of their IDs as strings: Ref:10 before Ref:9.
// The number of a block is a counter and not a position: a block begins where
// the previous one ended, plus the length of the archive's first block for each
// missing number. An empty block has a number and no position: servers send one
// to break a long silence. The first and the last block of a disk are always
// present; a disk ends where its virtual_size is reached.
//
// Sources: xen-api ocaml/xapi/export.ml, import.ml, stream_vdi.ml.
package xva

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"strconv"
	"strings"

	"github.com/klauspost/compress/zstd"

	"xenkeep/internal/disk"
)

var (
	// ErrNotXVA is returned for input that does not begin like an archive.
	ErrNotXVA = errors.New("not an XVA archive")
	// ErrCorrupt is returned for an inconsistent archive.
	ErrCorrupt = errors.New("corrupt XVA archive")
	// ErrTruncated is returned for an archive that ends too early.
	ErrTruncated = errors.New("truncated XVA archive")
)

const (
	blockSize = 1 << 20  // of written archives
	maxBlock  = 64 << 20 // limit for archives that are read
	maxOVA    = 64 << 20
)

// Reader reads an archive sequentially.
type Reader struct {
	t      *tar.Reader
	in     *tailReader
	ova    *OVA
	raw    []byte
	disks  []Disk
	close  func()
	first  int64 // length of the archive's first block; -1 before it was read
	ended  bool
	cursor *DiskReader
}

// NewReader reads the records of an archive. The Reader must be closed.
func NewReader(r io.Reader) (*Reader, error) {
	br := bufio.NewReaderSize(r, 1<<20)
	head, _ := br.Peek(512)
	x := &Reader{first: -1, close: func() {}}
	var in io.Reader = br
	switch {
	case bytes.HasPrefix(head, []byte("\x28\xb5\x2f\xfd")):
		z, err := zstd.NewReader(br, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(128<<20))
		if err != nil {
			return nil, fmt.Errorf("xva: %w", err)
		}
		in, x.close = z, z.Close
	case bytes.HasPrefix(head, []byte("\x1f\x8b")):
		z, err := gzip.NewReader(br)
		if err != nil {
			return nil, fmt.Errorf("xva: %v: %w", err, ErrNotXVA)
		}
		in = z
	}
	x.in = &tailReader{r: in}
	x.t = tar.NewReader(x.in)
	if err := x.readOVA(bytes.HasPrefix(head, []byte("ova.xml\x00"))); err != nil {
		x.close()
		return nil, err
	}
	return x, nil
}

// readOVA reads the records. begun means that the input has been recognized as
// an archive.
func (r *Reader) readOVA(begun bool) error {
	h, err := r.t.Next()
	if errors.Is(err, io.ErrUnexpectedEOF) && (begun || errors.Is(r.in.err, io.ErrUnexpectedEOF)) {
		return ended(err) // within the first header, or within the compressed data
	}
	if err != nil || h.Name != "ova.xml" {
		if err == nil {
			err = fmt.Errorf("begins with %.60q", h.Name)
		}
		return fmt.Errorf("xva: %v: %w", err, ErrNotXVA)
	}
	if h.Size > maxOVA {
		return fmt.Errorf("xva: ova.xml of %d bytes: %w", h.Size, ErrCorrupt)
	}
	if r.raw, err = io.ReadAll(r.t); err != nil {
		return ended(err)
	}
	if r.ova, err = ParseOVA(r.raw); err != nil {
		return err
	}
	r.disks, err = r.ova.Disks()
	return err
}

func ended(err error) error {
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("xva: %w", ErrTruncated)
	case errors.Is(err, tar.ErrHeader), errors.Is(err, gzip.ErrChecksum), errors.Is(err, gzip.ErrHeader),
		errors.Is(err, zstd.ErrCRCMismatch), errors.Is(err, zstd.ErrMagicMismatch):
		return fmt.Errorf("xva: %v: %w", err, ErrCorrupt)
	}
	return fmt.Errorf("xva: %w", err)
}

// OVA returns the archive's records.
func (r *Reader) OVA() *OVA { return r.ova }

// RawOVA returns the text of ova.xml.
func (r *Reader) RawOVA() []byte { return r.raw }

// Disks returns the disks that follow, in order.
func (r *Reader) Disks() []Disk { return r.disks }

// Next begins the next disk. After the last disk it verifies that the archive
// ends there, and returns io.EOF. The previous disk must have been read to its
// end.
func (r *Reader) Next() (*DiskReader, error) {
	if r.cursor != nil && r.cursor.err != io.EOF {
		return nil, errors.New("xva: the disk before was not read to its end")
	}
	if len(r.disks) == 0 {
		return nil, r.finish()
	}
	r.cursor = &DiskReader{r: r, d: r.disks[0], last: -1}
	r.disks = r.disks[1:]
	return r.cursor, nil
}

func (r *Reader) finish() error {
	if r.ended {
		return io.EOF
	}
	h, err := r.t.Next()
	switch {
	case err == io.EOF:
		if err := r.in.drain(); err != nil {
			return ended(err)
		}
		r.ended = true
		return io.EOF
	case err == nil:
		return fmt.Errorf("xva: %.60q after the last disk: %w", h.Name, ErrCorrupt)
	}
	return ended(err)
}

// tailReader counts the zero bytes at the end of the data read so far.
type tailReader struct {
	r     io.Reader
	zeros int64
	err   error // the last error
}

func (t *tailReader) Read(p []byte) (int, error) {
	n, err := t.r.Read(p)
	if rest := bytes.TrimRight(p[:n], "\x00"); len(rest) > 0 {
		t.zeros = int64(n - len(rest))
	} else {
		t.zeros += int64(n)
	}
	t.err = err
	return n, err
}

// drain reads to the end of the tar, which must also be the end of the
// compressed data: a tar ends with zeros, at least 1024 bytes of them.
func (t *tailReader) drain() error {
	buf := make([]byte, 32<<10)
	before := t.zeros
	for {
		n, err := t.Read(buf)
		before += int64(n)
		switch {
		case t.zeros < before:
			return fmt.Errorf("data after the end of the archive: %w", ErrCorrupt)
		case err == io.EOF && t.zeros < 1024:
			return io.ErrUnexpectedEOF
		case err == io.EOF:
			return nil
		case err != nil:
			return err
		}
	}
}

// Close releases the resources of the Reader. The underlying reader stays open.
func (r *Reader) Close() { r.close() }

// DiskReader reads one complete disk: a disk.Source. Ranges that it does not
// return are zero.
type DiskReader struct {
	r    *Reader
	d    Disk
	last int64 // number of the last block; -1 before the first
	at   int64 // position of the next byte of block, or of the next block
	buf  []byte
	left []byte // part of buf that has not been returned yet
	err  error
}

// Disk returns the description of the disk.
func (d *DiskReader) Disk() Disk { return d.d }

// Size returns the disk's size in bytes.
func (d *DiskReader) Size() int64 { return d.d.Size }

// Next implements disk.Source. A block of the archive that crosses a block of
// the disk is returned in parts.
func (d *DiskReader) Next(ctx context.Context, buf []byte) (disk.Extent, error) {
	for d.err == nil && len(d.left) == 0 {
		if d.err = ctx.Err(); d.err != nil {
			break
		}
		if d.at == d.d.Size {
			d.err = io.EOF
			break
		}
		d.err = d.block()
	}
	if d.err != nil {
		return disk.Extent{}, d.err
	}
	// Adjacent blocks of 1 MiB are joined to one block of the disk.
	e := disk.Extent{Offset: d.at}
	end := (d.at/disk.BlockSize + 1) * disk.BlockSize
	for {
		n := copy(buf[e.Length:end-e.Offset], d.left)
		d.left, d.at, e.Length = d.left[n:], d.at+int64(n), e.Length+int64(n)
		if d.at == end || d.at == d.d.Size {
			return e, nil
		}
		if d.err = d.block(); d.err != nil {
			return disk.Extent{}, d.err
		}
		if d.at != e.End() {
			return e, nil
		}
	}
}

// block reads the next block and its checksum, and sets left and at for it.
func (d *DiskReader) block() error {
	h, data, err := d.r.entry(&d.buf)
	if err != nil {
		return d.fail(err)
	}
	if d.r.first < 0 {
		d.r.first = int64(len(data))
	}
	text, ok := strings.CutPrefix(h.Name, d.d.ID+"/")
	number, err := strconv.ParseInt(text, 10, 32)
	if !ok || err != nil || number <= d.last {
		return d.fail(fmt.Errorf("entry %.60q where a block after %d is expected: %w", h.Name, d.last, ErrCorrupt))
	}
	off := d.at + (number-d.last-1)*d.r.first
	d.last = number
	if off < d.at || off+int64(len(data)) > d.d.Size {
		return d.fail(fmt.Errorf("block %d: %d bytes at %d of a disk of %d: %w", number, len(data), off, d.d.Size, ErrCorrupt))
	}
	var sumBuf []byte
	s, said, err := d.r.entry(&sumBuf)
	if err != nil {
		return d.fail(err)
	}
	var sum string
	switch ext := path.Ext(s.Name); {
	case strings.TrimSuffix(s.Name, ext) != h.Name:
		return d.fail(fmt.Errorf("block %d: followed by %.60q, not by its checksum: %w", number, s.Name, ErrCorrupt))
	case ext == ".xxhash":
		sum = sumXX(data)
	case ext == ".checksum":
		sum = sumSHA1(data)
	default:
		return d.fail(fmt.Errorf("block %d: checksum of the unknown kind %.20q: %w", number, ext, ErrCorrupt))
	}
	if sum != string(said) {
		return d.fail(fmt.Errorf("block %d: checksum %s, the archive contains %.40q: %w", number, sum, said, ErrCorrupt))
	}
	d.at, d.left = off, data
	return nil
}

func (d *DiskReader) fail(err error) error { return fmt.Errorf("xva: disk %s: %w", d.d.ID, err) }

// entry reads an entry of the tar into *buf.
func (r *Reader) entry(buf *[]byte) (*tar.Header, []byte, error) {
	h, err := r.t.Next()
	if err != nil {
		return nil, nil, ended(err)
	}
	if h.Size > maxBlock {
		return nil, nil, fmt.Errorf("entry %.60q of %d bytes: %w", h.Name, h.Size, ErrCorrupt)
	}
	if int64(cap(*buf)) < h.Size {
		*buf = make([]byte, h.Size)
	}
	p := (*buf)[:h.Size]
	if _, err := io.ReadFull(r.t, p); err != nil {
		return nil, nil, ended(err)
	}
	return h, p, nil
}
