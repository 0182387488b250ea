package sr

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"xenkeep/internal/disk"
	"xenkeep/vhd"
)

// image is a raw or VHD file that a layer reads and never writes.
type image struct {
	file *os.File
	size int64
	// have is the set of pages where the file holds data: 4 KiB pages around
	// the data extents of a raw file or fixed VHD, whole blocks of a dynamic
	// VHD's BAT.
	have presence
	// bat and the following fields are set for a dynamic VHD: bat holds for
	// each of its blocks the sector of its bitmap.
	bat        []uint32
	vhdBlock   int64
	bitmapSize int64
}

// absent marks a block that a VHD does not hold.
const absent = uint32(vhd.Absent)

// openImage opens a file and detects its format.
func openImage(path string) (_ *image, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	length, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, err
	}
	img := &image{file: f, size: length}
	foot, err := findFooter(f, length)
	if err != nil {
		return nil, err
	}
	if foot == nil {
		return img, img.findData()
	}
	img.size = int64(foot.CurrentSize)
	switch foot.Type {
	case vhd.TypeFixed:
		if img.size < 0 || img.size > length-disk.SectorSize {
			return nil, fmt.Errorf("%s: fixed VHD shorter than its disk", path)
		}
		return img, img.findData()
	case vhd.TypeDynamic:
		if err := img.readBAT(int64(foot.DataOffset), length); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		return img, nil
	default:
		return nil, fmt.Errorf("%s: a VHD with a parent cannot be the bottom of a chain", path)
	}
}

// findFooter returns a VHD's footer: the last 512 bytes or, if they are
// damaged, the copy at the beginning of a dynamic VHD. It returns nil for a
// file that is not a VHD.
func findFooter(f *os.File, length int64) (*vhd.Footer, error) {
	raw := make([]byte, disk.SectorSize)
	for _, off := range []int64{length - disk.SectorSize, 0} {
		if off < 0 {
			return nil, nil
		}
		if _, err := f.ReadAt(raw, off); err != nil {
			return nil, err
		}
		if foot, err := vhd.DecodeFooter(raw); err == nil {
			return &foot, nil
		}
	}
	return nil, nil
}

func (img *image) readBAT(header, length int64) error {
	head := make([]byte, 1024)
	if header < 0 || header > length-1024 {
		return errors.New("VHD header outside the file")
	}
	if _, err := img.file.ReadAt(head, header); err != nil {
		return err
	}
	h, err := vhd.DecodeHeader(head)
	if err != nil {
		return err
	}
	table, entries := int64(h.TableOffset), int64(h.Entries)
	img.vhdBlock = int64(h.BlockSize)
	if table < 0 || entries > (length-table)/4 || img.size < 0 || img.size > entries*img.vhdBlock {
		return errors.New("VHD BAT outside the file or too short for the disk")
	}
	img.bitmapSize = roundUp(img.vhdBlock/512/8, 512)
	raw := make([]byte, 4*entries)
	if _, err := img.file.ReadAt(raw, table); err != nil {
		return err
	}
	img.bat = make([]uint32, entries)
	for i := range img.bat {
		img.bat[i] = binary.BigEndian.Uint32(raw[4*i:])
		if img.bat[i] == absent || int64(i)*img.vhdBlock >= img.size {
			continue
		}
		if int64(img.bat[i])*512+img.bitmapSize > length {
			return fmt.Errorf("VHD block %d outside the file", i)
		}
		start := int64(i) * img.vhdBlock
		end := min(start+img.vhdBlock, img.size)
		// A block is either allocated as a whole or not at all.
		img.have.addRange(start/blockSize*blockSize, roundUp(end, blockSize))
	}
	return nil
}

// findData maps the extents that hold data.
func (img *image) findData() error {
	fd := int(img.file.Fd())
	for off := int64(0); off < img.size; {
		data, err := unix.Seek(fd, off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil
		}
		if err != nil {
			// The file system does not support holes.
			img.have.addRange(off, img.size)
			return nil
		}
		hole, err := unix.Seek(fd, data, unix.SEEK_HOLE)
		if err != nil {
			return fmt.Errorf("%s: find holes: %w", img.file.Name(), err)
		}
		img.have.addRange(min(data, img.size), min(hole, img.size))
		off = hole
	}
	return nil
}

// ReadAt reads the disk in the image; it returns zeros past the end of the
// image.
func (img *image) ReadAt(p []byte, off int64) (int, error) {
	want := len(p)
	if inside := max(img.size-off, 0); int64(len(p)) > inside {
		clear(p[inside:])
		p = p[:inside]
	}
	if img.bat == nil {
		n, err := img.file.ReadAt(p, off)
		if err == io.EOF {
			clear(p[n:])
			err = nil
		}
		if err != nil {
			return n, err
		}
		return want, nil
	}
	for len(p) > 0 {
		n := int(min(int64(len(p)), img.vhdBlock-off%img.vhdBlock))
		if err := img.readVHD(p[:n], off); err != nil {
			return 0, err
		}
		p, off = p[n:], off+int64(n)
	}
	return want, nil
}

// readVHD reads within one block of a dynamic VHD. Sectors whose bit in the
// block's bitmap is clear read as zeros.
func (img *image) readVHD(p []byte, off int64) error {
	entry := img.bat[off/img.vhdBlock]
	if entry == absent {
		clear(p)
		return nil
	}
	at := off % img.vhdBlock
	pos := int64(entry) * 512
	first, last := at/512, (at+int64(len(p))-1)/512
	bitmap := make([]byte, last/8-first/8+1)
	if _, err := img.file.ReadAt(bitmap, pos+first/8); err != nil {
		return fmt.Errorf("%s: bitmap at sector %d: %w", img.file.Name(), entry, err)
	}
	n, err := img.file.ReadAt(p, pos+img.bitmapSize+at)
	if err != nil && err != io.EOF {
		return err
	}
	clear(p[n:])
	for s := first; s <= last; s++ {
		if bitmap[s/8-first/8] == 0xFF && s%8 == 0 {
			s += 7
			continue
		}
		if bitmap[s/8-first/8]&(0x80>>(s%8)) == 0 {
			from, to := max(s*512-at, 0), min((s+1)*512-at, int64(len(p)))
			clear(p[from:to])
		}
	}
	return nil
}
