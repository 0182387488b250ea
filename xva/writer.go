package xva

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha1"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/cespare/xxhash/v2"
)

// Writer writes an archive: ova.xml, then each disk in the order of Disks, then
// Close. After an error, a Writer fails permanently.
type Writer struct {
	t     *tar.Writer
	disks []Disk
	old   bool // SHA-1, as for hosts before 8.1
	gaps  bool // blocks of zeros may be omitted
	err   error
}

// NewWriter writes the beginning of an archive. Its checksums are those that
// the server of o.Version writes and accepts: XXH64 since xapi 1.170, SHA-1
// before.
func NewWriter(w io.Writer, o *OVA) (*Writer, error) {
	disks, err := o.Disks()
	if err != nil {
		return nil, err
	}
	// A reader assumes that each missing block has the length of the archive's
	// first.
	x := &Writer{t: tar.NewWriter(w), disks: disks, old: beforeXXHash(o.Version), gaps: len(disks) == 0 || disks[0].Size >= blockSize}
	return x, x.entry("ova.xml", o.XML())
}

func beforeXXHash(version Value) bool {
	major, err1 := strconv.Atoi(version.Get("xapi_major").Text)
	minor, err2 := strconv.Atoi(version.Get("xapi_minor").Text)
	return err1 == nil && err2 == nil && (major < 1 || major == 1 && minor < 170)
}

func (w *Writer) entry(name string, data []byte) error {
	if w.err != nil {
		return w.err
	}
	w.err = w.t.WriteHeader(&tar.Header{Name: name, Mode: 0o400, Size: int64(len(data)), ModTime: time.Unix(0, 0), Format: tar.FormatUSTAR})
	if w.err == nil {
		_, w.err = w.t.Write(data)
	}
	return w.err
}

// Disk begins the next disk, which must be the next of OVA.Disks. The
// DiskWriter must be closed before the next one begins.
func (w *Writer) Disk(id string) (*DiskWriter, error) {
	if w.err != nil {
		return nil, w.err
	}
	if len(w.disks) == 0 || w.disks[0].ID != id {
		return nil, fmt.Errorf("xva: disk %s is not the next one", id)
	}
	d := &DiskWriter{w: w, d: w.disks[0], block: make([]byte, min(blockSize, w.disks[0].Size))}
	w.disks = w.disks[1:]
	return d, nil
}

// Close ends the archive.
func (w *Writer) Close() error {
	if w.err == nil && len(w.disks) > 0 {
		w.err = fmt.Errorf("xva: disk %s was not written", w.disks[0].ID)
	}
	if w.err == nil {
		w.err = w.t.Close()
	}
	return w.err
}

// DiskWriter writes one disk: a disk.Sink. Unwritten ranges are zero.
type DiskWriter struct {
	w     *Writer
	d     Disk
	at    int64  // position of block on the disk
	block []byte // being filled
	dirty bool   // it may contain other bytes than zeros
}

// WriteAt implements disk.Sink.
func (d *DiskWriter) WriteAt(ctx context.Context, p []byte, off int64) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if off < d.at || off+int64(len(p)) > d.d.Size {
		return fmt.Errorf("xva: write of %d bytes at offset %d of a disk of %d, which is at %d", len(p), off, d.d.Size, d.at)
	}
	for len(p) > 0 {
		if err := d.to(off); err != nil {
			return err
		}
		n := copy(d.block[off-d.at:], p)
		d.dirty = true
		p, off = p[n:], off+int64(n)
	}
	return nil
}

var zeroes [blockSize]byte

// to writes the blocks that precede the one that contains off.
func (d *DiskWriter) to(off int64) error {
	for off >= d.at+int64(len(d.block)) && len(d.block) > 0 {
		end := d.at + int64(len(d.block))
		edge := d.at == 0 || end == d.d.Size
		if edge || !d.w.gaps || d.dirty && !bytes.Equal(d.block, zeroes[:len(d.block)]) {
			if err := d.put(); err != nil {
				return err
			}
		}
		d.at, d.dirty = end, false
		d.block = d.block[:min(blockSize, d.d.Size-end)]
		clear(d.block)
	}
	return nil
}

func (d *DiskWriter) put() error {
	number := d.at / blockSize
	if number > 99_999_999 {
		return errors.New("xva: disk has more blocks than an archive can count")
	}
	name := fmt.Sprintf("%s/%08d", d.d.ID, number)
	if err := d.w.entry(name, d.block); err != nil {
		return err
	}
	if d.w.old {
		return d.w.entry(name+".checksum", []byte(sumSHA1(d.block)))
	}
	return d.w.entry(name+".xxhash", []byte(sumXX(d.block)))
}

func sumSHA1(p []byte) string {
	sum := sha1.Sum(p)
	return hex.EncodeToString(sum[:])
}

func sumXX(p []byte) string { return fmt.Sprintf("%016X", xxhash.Sum64(p)) }

// Close writes the remaining blocks of the disk.
func (d *DiskWriter) Close() error {
	return d.to(d.d.Size)
}
