package vhd

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"path"
	"unicode/utf16"
)

// Profile defines the consumer for which a VHD is written.
type Profile int

const (
	// ForXenServer is a stream for XenServer's /import_raw_vdi.
	ForXenServer Profile = iota
	// ForFile is a file for users: qemu-img, vhdiinfo, Hyper-V and XenServer's
	// vhd-util accept it.
	ForFile
	// ForXAPI is a stream like those that XenServer itself sends from
	// /export_raw_vdi, byte for byte (xen-api ocaml/libs/vhd/vhd_format/f.ml).
	ForXAPI
)

// Layout describes a dynamic VHD to be written, or with a Parent a differencing
// one, in blocks of BlockSize. It is a pure function of its fields: the VHD is
// Head, then for each present block in ascending order BlockHead and BlockSize
// bytes of data, then Tail; Length bytes in total. Fixed selects the older
// plain format.
//
// Check must have returned nil before any other method is called.
type Layout struct {
	Profile Profile
	// Size is the disk's size in bytes; the current size in the VHD is Size
	// rounded up to a sector.
	Size int64
	// Present reports whether the VHD holds a block; nil: it holds all of them.
	// It must always return the same result for the same block.
	Present func(block int64) bool
	// ID is the VHD's unique id.
	ID UUID
	// Time is the footer's timestamp (see the function Time), which must not be
	// in the future. With ForXAPI, 0 is written instead.
	Time uint32
	// Parent makes the VHD a differencing one.
	Parent *Parent
	// Fixed makes the VHD a fixed one: no Head, no BlockHead, every block
	// present, the last one possibly short.
	Fixed bool
}

// Parent describes the parent in a differencing VHD.
type Parent struct {
	ID   UUID   // of the parent's footer
	Time uint32 // when the parent was last modified, see the function Time
	Path string // depends on the profile: absolute ForXAPI, relative to the VHD ForFile
}

const (
	// Streams leave one sector free after the header, like those of XenServer:
	// it is reserved for the parent locator's data and is never filled.
	locatorOffset = footerSize + headerSize
	blockBytes    = SectorSize + BlockSize // bitmap and data
	blockSectors  = BlockSize / SectorSize
)

var (
	ones = bytes.Repeat([]byte{0xff}, SectorSize)

	creatorXAPI = [4]byte([]byte("caml"))
	creatorOurs = [4]byte([]byte("xnkp"))
	// qemu (block/vpc.c, vpc_open) derives the disk's size from the geometry,
	// which is too small, unless it recognizes the creator as one that uses the
	// current size. "win " is Hyper-V and has no other effect in other
	// programs; "tap" would make blktap look for a batmap.
	creatorFile = [4]byte([]byte("win "))
	osWindows   = [4]byte([]byte("Wi2k"))
)

// Check returns nil if the VHD can be written, or else ErrTooLarge or an error
// that names the field.
func (l Layout) Check() error {
	switch {
	case l.Profile < ForXenServer || l.Profile > ForXAPI:
		return fmt.Errorf("vhd: layout: profile %d unknown", l.Profile)
	case l.Size < 0:
		return fmt.Errorf("vhd: layout: size %d", l.Size)
	case l.Size > MaxSize:
		return fmt.Errorf("vhd: layout: %d bytes, the most is %d: %w", l.Size, int64(MaxSize), ErrTooLarge)
	}
	if l.Fixed && l.Parent != nil {
		return errors.New("vhd: layout: a fixed disk has no parent")
	}
	if l.Parent != nil {
		if l.Parent.Path == "" {
			return errors.New("vhd: layout: parent without a path")
		}
		if _, err := encodeName(l.parentName()); err != nil {
			return err
		}
	}
	return nil
}

// Blocks returns the number of blocks of the disk, present or not.
func (l Layout) Blocks() int64 { return (l.Size + BlockSize - 1) / BlockSize }

// Length returns the whole VHD's length in bytes.
func (l Layout) Length() int64 {
	if l.Fixed {
		return roundUp(l.Size) + footerSize
	}
	n := l.Blocks()
	present := n
	if l.Present != nil {
		present = 0
		for b := range n {
			if l.Present(b) {
				present++
			}
		}
	}
	return l.headSize() + present*blockBytes + footerSize
}

// Head returns everything before the first block.
func (l Layout) Head() []byte {
	if l.Fixed {
		return nil
	}
	b := make([]byte, l.headSize())
	copy(b, l.footer().Encode())
	h, locators := l.header()
	copy(b[footerSize:], h.Encode())
	copy(b[locatorOffset:], locators)
	bat := b[h.TableOffset:]
	next := uint32(l.headSize() / SectorSize)
	for i := range int64(len(bat) / 4) {
		entry := uint32(Absent)
		if i < l.Blocks() && l.present(i) {
			entry = next
			next += blockBytes / SectorSize
		}
		binary.BigEndian.PutUint32(bat[4*i:], entry)
	}
	return b
}

// BlockHead returns the sector bitmap that precedes a present block's data. The
// bytes are shared and must not be modified. Bits after the disk's end are
// cleared except with ForXAPI: XenServer sets them, yet it writes each set
// sector that it receives, also after the end.
func (l Layout) BlockHead(block int64) []byte {
	if l.Fixed {
		return nil
	}
	left := (l.Size - block*BlockSize + SectorSize - 1) / SectorSize
	if left >= blockSectors || l.Profile == ForXAPI {
		return ones
	}
	b := make([]byte, SectorSize)
	copy(b[:left/8], ones)
	if left%8 != 0 {
		b[left/8] = 0xff << (8 - left%8)
	}
	return b
}

// Tail returns the part after the last block: the footer.
func (l Layout) Tail() []byte { return l.footer().Encode() }

// parentName returns the parent's name for the header: vhd-util check requires
// the bare file name there, XenServer sends the path.
func (l Layout) parentName() string {
	if l.Profile == ForFile {
		return path.Base(l.Parent.Path)
	}
	return l.Parent.Path
}

func (l Layout) present(block int64) bool {
	return l.Fixed || l.Present == nil || l.Present(block)
}

// dataLength returns the number of bytes that follow a present block's
// BlockHead.
func (l Layout) dataLength(block int64) int64 {
	if l.Fixed {
		return min(BlockSize, roundUp(l.Size)-block*BlockSize)
	}
	return BlockSize
}

func (l Layout) footer() Footer {
	size := roundUp(l.Size)
	f := Footer{
		Features:       featureDefault,
		Version:        formatVersion,
		DataOffset:     footerSize,
		Time:           l.Time,
		Creator:        creatorOurs,
		CreatorVersion: 0x00000001,
		OriginalSize:   uint64(size),
		CurrentSize:    uint64(size),
		Geometry:       GeometryOf(size),
		Type:           TypeDynamic,
		ID:             l.ID,
	}
	switch {
	case l.Fixed:
		f.Type, f.DataOffset = TypeFixed, noOffset
	case l.Parent != nil:
		f.Type = TypeDifferencing
	}
	switch l.Profile {
	case ForXAPI:
		f.Creator, f.Time = creatorXAPI, 0
	case ForFile:
		f.Creator, f.CreatorVersion, f.CreatorOS = creatorFile, 0x000a0000, osWindows
	}
	return f
}

// header returns the header and the locators' data, which begin at
// locatorOffset and end where the BAT begins.
func (l Layout) header() (Header, []byte) {
	h := Header{
		DataOffset: noOffset,
		Version:    formatVersion,
		Entries:    uint32(l.Blocks()),
		BlockSize:  BlockSize,
	}
	var locators []byte
	if l.Profile != ForFile {
		locators = make([]byte, SectorSize)
	}
	if p := l.Parent; p != nil {
		h.ParentID, h.ParentTime = p.ID, p.Time
		h.Name, _ = encodeName(l.parentName()) // Check has verified its length
		if l.Profile == ForFile {
			locators = fileLocators(&h, p.Path)
		} else {
			h.Locators[0] = Locator{
				Code:   [4]byte([]byte("MacX")),
				Space:  1,
				Length: uint32(len("file://" + p.Path)),
				Offset: locatorOffset,
			}
		}
	}
	h.TableOffset = uint64(locatorOffset + len(locators))
	return h, locators
}

// fileLocators adds the parent's path to h in the three forms that blktap
// writes (vhd/lib/libvhd.c, vhd_parent_locator_write_at), and returns their
// data.
func fileLocators(h *Header, name string) []byte {
	if name[0] != '/' && name[0] != '.' {
		name = "./" + name
	}
	var wide []byte
	for _, c := range utf16.Encode([]rune(name)) {
		if c == '/' {
			c = '\\'
		}
		wide = binary.LittleEndian.AppendUint16(wide, c)
	}
	var out []byte
	for i, x := range []struct {
		code string
		data []byte
	}{
		{"MacX", []byte("file://" + name)},
		{"W2ku", wide},
		{"W2ru", wide},
	} {
		space := roundUp(int64(len(x.data)))
		h.Locators[i] = Locator{
			Code:   [4]byte([]byte(x.code)),
			Space:  uint32(space),
			Length: uint32(len(x.data)),
			Offset: uint64(locatorOffset + len(out)),
		}
		out = append(out, x.data...)
		out = append(out, make([]byte, space-int64(len(x.data)))...)
	}
	return out
}

func (l Layout) headSize() int64 {
	h, _ := l.header()
	return int64(h.TableOffset) + roundUp(4*l.Blocks())
}

// roundUp rounds n up to whole sectors.
func roundUp(n int64) int64 { return (n + SectorSize - 1) &^ (SectorSize - 1) }
