package sr

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"unicode/utf16"

	"xenkeep/internal/disk"
	"xenkeep/vhd"
)

// ImportVHD applies a VHD stream to the volume as XenServer's import tool does
// (xen-api, ocaml/libs/vhd/vhd_format/f.ml, From_input.openstream). It reads
// only forward, in the order of the blocks in the stream, and writes the
// sectors whose bitmap bit is set to their virtual position, regardless of the
// sizes, parent or unique id in the VHD. Absent sectors stay unchanged. After
// the last block it looks for the footer at the end of the stream that
// contentLength implies; -1 stands for an unknown length: directly after the
// last block.
//
// Known weaknesses are preserved: of two blocks at one position only the later
// one in the BAT is written; below 2 MiB a block's bitmap is assumed to be
// shorter than it is, and wrong data are written; a VHD that is too large for
// the volume fails only when a write passes the end; and after any failure, the
// data written so far remain.
//
// Every error wraps ErrIO.
func (v *Volume) ImportVHD(r io.Reader, contentLength int64) error {
	if v.raw && v.sr.LVM() {
		return fmt.Errorf("import %s: VHD into a volume that does not start as zeros: %w", v.uuid, ErrIO)
	}
	if err := v.importVHD(&forward{r: r}, contentLength); err != nil {
		return fmt.Errorf("import %s: %w: %v", v.uuid, ErrIO, err)
	}
	return nil
}

func (v *Volume) importVHD(in *forward, contentLength int64) error {
	foot, err := in.footer()
	if err != nil {
		return err
	}
	if err := in.skipTo(int64(foot.DataOffset)); err != nil {
		return err
	}
	raw := make([]byte, 1024)
	if err := in.read(raw); err != nil {
		return err
	}
	head, err := vhd.DecodeHeader(raw)
	if err != nil {
		return err
	}
	if err := acceptable(head); err != nil {
		return err
	}
	if err := in.skipTo(int64(head.TableOffset)); err != nil {
		return err
	}
	bat := make([]byte, roundUp(4*int64(head.Entries), disk.SectorSize))
	if err := in.read(bat); err != nil {
		return err
	}
	virtual := make(map[uint32]int64) // by the sector at which a block is stored
	for i := range int64(head.Entries) {
		if sector := binary.BigEndian.Uint32(bat[4*i:]); sector != absent {
			virtual[sector] = i
		}
	}
	places := make([]uint32, 0, len(virtual))
	for sector := range virtual {
		places = append(places, sector)
	}
	slices.Sort(places)

	size := int64(head.BlockSize)
	bitmap := make([]byte, size/disk.SectorSize/8)
	data := make([]byte, size)
	for _, sector := range places {
		if err := in.skipTo(int64(sector) * disk.SectorSize); err != nil {
			return err
		}
		if err := in.read(bitmap); err != nil {
			return err
		}
		if err := v.importBlock(in, bitmap, data, virtual[sector]*size); err != nil {
			return err
		}
	}
	if contentLength >= 0 {
		if err := in.skipTo((contentLength - 1) &^ (disk.SectorSize - 1)); err != nil {
			return err
		}
	}
	_, err = in.footer()
	return err
}

// importBlock reads a block's data and writes the sectors in bitmap. If the
// stream breaks, the data before the break are written.
func (v *Volume) importBlock(in *forward, bitmap, data []byte, start int64) error {
	n, readErr := io.ReadFull(in.r, data)
	in.pos += int64(n)
	sectors := n / disk.SectorSize
	set := func(s int) bool { return bitmap[s/8]&(0x80>>(s%8)) != 0 }
	for s := 0; s < sectors; {
		if !set(s) {
			s++
			continue
		}
		end := s + 1
		for end < sectors && set(end) {
			if end%8 == 0 && end+8 <= sectors && bitmap[end/8] == 0xff {
				end += 8
			} else {
				end++
			}
		}
		if readErr != nil && end == sectors {
			break // a span is written after it was read to its end
		}
		at := int64(s) * disk.SectorSize
		if _, err := v.WriteAt(data[at:int64(end)*disk.SectorSize], start+at); err != nil {
			return err
		}
		s = end
	}
	return readErr
}

// acceptable makes those checks of the tool that go beyond a valid header.
func acceptable(h vhd.Header) error {
	if h.DataOffset != 1<<64-1 {
		return errors.New("header: unexpected data offset")
	}
	var name []uint16
	for i := 0; i < len(h.Name); i += 2 {
		c := binary.BigEndian.Uint16(h.Name[i:])
		if c == 0 {
			break
		}
		name = append(name, c)
	}
	for i := 0; i < len(name); i++ {
		if utf16.IsSurrogate(rune(name[i])) {
			if i+1 == len(name) || utf16.DecodeRune(rune(name[i]), rune(name[i+1])) == 0xfffd {
				return errors.New("header: parent name is not UTF-16")
			}
			i++
		}
	}
	for _, l := range h.Locators {
		switch string(l.Code[:]) {
		case "\x00\x00\x00\x00", "Wi2r", "Wi2k", "W2ru", "W2ku", "Mac ", "MacX":
		default:
			return fmt.Errorf("header: unknown locator code %q", l.Code[:])
		}
	}
	return nil
}

// forward is a stream that cannot seek back.
type forward struct {
	r   io.Reader
	pos int64
}

func (f *forward) read(p []byte) error {
	n, err := io.ReadFull(f.r, p)
	f.pos += int64(n)
	return err
}

func (f *forward) skipTo(pos int64) error {
	if pos < f.pos {
		return fmt.Errorf("cannot go back from byte %d to %d", f.pos, pos)
	}
	n, err := io.CopyN(io.Discard, f.r, pos-f.pos)
	f.pos += n
	return err
}

func (f *forward) footer() (vhd.Footer, error) {
	raw := make([]byte, disk.SectorSize)
	if err := f.read(raw); err != nil {
		return vhd.Footer{}, err
	}
	return vhd.DecodeFooter(raw)
}

// ImportRaw writes exactly length bytes from r to the volume's beginning; -1
// stands for the volume's size. The rest of the volume stays unchanged. Every
// error wraps ErrIO; the data that were read before it are written.
func (v *Volume) ImportRaw(r io.Reader, length int64) error {
	if length < 0 {
		length = v.Size()
	}
	if err := v.copyIn(r, 0, length, make([]byte, blockSize)); err != nil {
		return fmt.Errorf("import %s: %w: %v", v.uuid, ErrIO, err)
	}
	return nil
}

// ImportChunked writes records of a 12-byte little-endian header (u64 byte
// offset, u32 length) and that many bytes, up to a header of zeros (xen-api,
// ocaml/vhd-tool/src/chunked.ml). Thus an empty record at offset 0 ends the
// stream. Every error wraps ErrIO.
func (v *Volume) ImportChunked(r io.Reader) error {
	buf := make([]byte, blockSize)
	for {
		var head [12]byte
		_, err := io.ReadFull(r, head[:])
		off := int64(binary.LittleEndian.Uint64(head[:]))
		n := int64(binary.LittleEndian.Uint32(head[8:]))
		if err == nil && off == 0 && n == 0 {
			return nil
		}
		if err == nil {
			err = v.copyIn(r, off, n, buf)
		}
		if err != nil {
			return fmt.Errorf("import %s: %w: %v", v.uuid, ErrIO, err)
		}
	}
}

// copyIn writes n bytes from r at off, in pieces that end at multiples of the
// length of buf.
func (v *Volume) copyIn(r io.Reader, off, n int64, buf []byte) error {
	for n > 0 {
		part := buf[:min(n, int64(len(buf))-off&int64(len(buf)-1))]
		got, readErr := io.ReadFull(r, part)
		if _, err := v.WriteAt(part[:got], off); err != nil {
			return err
		}
		if readErr != nil {
			return readErr
		}
		off, n = off+int64(got), n-int64(got)
	}
	return nil
}
