package vhd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"unicode/utf16"
)

// Header, 1024 bytes, of a dynamic or differencing VHD (VHD specification 1.0,
// "Dynamic Disk Header Format").
//
//	offset size field
//	     0    8 cookie               "cxsparse"; anything else is refused
//	     8    8 data offset          all ones, ignored
//	    16    8 table offset         bytes; of the BAT
//	    24    4 header version       0x00010000; others are refused
//	    28    4 max table entries    at least as many as the disk has blocks
//	    32    4 block size           bytes; a power of two
//	    36    4 checksum             see checksum
//	    40   16 parent unique id     zero where there is no parent
//	    56    4 parent timestamp     seconds since 2000-01-01 UTC
//	    60    4 reserved
//	    64  512 parent unicode name  UTF-16, big-endian
//	   576  192 parent locators      8 entries of 24 bytes
//	   768  256 reserved
const (
	headerSize     = 1024
	headerCookie   = "cxsparse"
	headerDataOff  = 8
	headerTable    = 16
	headerVersion  = 24
	headerEntries  = 28
	headerBlock    = 32
	headerChecksum = 36
	headerParent   = 40
	headerParTime  = 56
	headerReserved = 60
	headerName     = 64
	headerLocators = 576
	headerTail     = 768

	// Block sizes outside this range are refused: with smaller ones the BAT
	// would grow without limit; no tool is known to use larger ones.
	minBlockSize = 64 << 10
	maxBlockSize = 64 << 20
	// maxEntries bounds the BAT: 32 MiB, enough for 2 TiB in blocks of 256 KiB.
	maxEntries = 8 << 20
)

// Header is the decoded header. Encode sets cookie and checksum.
type Header struct {
	DataOffset  uint64
	TableOffset uint64 // bytes
	Version     uint32
	Entries     uint32 // of the BAT
	BlockSize   uint32 // bytes
	ParentID    UUID
	ParentTime  uint32
	Reserved    uint32
	Name        [512]byte // see ParentName
	Locators    [8]Locator
	Tail        [256]byte // reserved
}

// Locator is one parent locator: the position in the VHD of a path of the
// parent.
//
//	offset size field
//	     0    4 platform code   "W2ru", "W2ku" (UTF-16LE paths), "MacX" (URL), or zero: unused
//	     4    4 data space      bytes (by the specification sectors; nobody does so)
//	     8    4 data length     bytes
//	    12    4 reserved
//	    16    8 data offset     bytes
type Locator struct {
	Code     [4]byte
	Space    uint32
	Length   uint32
	Reserved uint32
	Offset   uint64
}

const locatorSize = 24

// Encode returns h as 1024 bytes.
func (h Header) Encode() []byte {
	b := make([]byte, headerSize)
	be := binary.BigEndian
	copy(b, headerCookie)
	be.PutUint64(b[headerDataOff:], h.DataOffset)
	be.PutUint64(b[headerTable:], h.TableOffset)
	be.PutUint32(b[headerVersion:], h.Version)
	be.PutUint32(b[headerEntries:], h.Entries)
	be.PutUint32(b[headerBlock:], h.BlockSize)
	copy(b[headerParent:], h.ParentID[:])
	be.PutUint32(b[headerParTime:], h.ParentTime)
	be.PutUint32(b[headerReserved:], h.Reserved)
	copy(b[headerName:], h.Name[:])
	for i, l := range h.Locators {
		p := b[headerLocators+i*locatorSize:]
		copy(p, l.Code[:])
		be.PutUint32(p[4:], l.Space)
		be.PutUint32(p[8:], l.Length)
		be.PutUint32(p[12:], l.Reserved)
		be.PutUint64(p[16:], l.Offset)
	}
	copy(b[headerTail:], h.Tail[:])
	be.PutUint32(b[headerChecksum:], checksum(b, headerChecksum))
	return b
}

// DecodeHeader decodes the 1024 bytes of a header. Every error is ErrCorrupt.
func DecodeHeader(b []byte) (Header, error) {
	if len(b) != headerSize || string(b[:len(headerCookie)]) != headerCookie {
		return Header{}, fmt.Errorf("vhd: header: cookie missing: %w", ErrCorrupt)
	}
	be := binary.BigEndian
	if got, want := be.Uint32(b[headerChecksum:]), checksum(b, headerChecksum); got != want {
		return Header{}, fmt.Errorf("vhd: header: checksum %#08x, want %#08x: %w", got, want, ErrCorrupt)
	}
	h := Header{
		DataOffset:  be.Uint64(b[headerDataOff:]),
		TableOffset: be.Uint64(b[headerTable:]),
		Version:     be.Uint32(b[headerVersion:]),
		Entries:     be.Uint32(b[headerEntries:]),
		BlockSize:   be.Uint32(b[headerBlock:]),
		ParentID:    UUID(b[headerParent:]),
		ParentTime:  be.Uint32(b[headerParTime:]),
		Reserved:    be.Uint32(b[headerReserved:]),
		Name:        [512]byte(b[headerName:]),
		Tail:        [256]byte(b[headerTail:]),
	}
	for i := range h.Locators {
		p := b[headerLocators+i*locatorSize:]
		h.Locators[i] = Locator{
			Code:     [4]byte(p),
			Space:    be.Uint32(p[4:]),
			Length:   be.Uint32(p[8:]),
			Reserved: be.Uint32(p[12:]),
			Offset:   be.Uint64(p[16:]),
		}
	}
	if h.Version != formatVersion {
		return Header{}, fmt.Errorf("vhd: header: version %#08x: %w", h.Version, ErrCorrupt)
	}
	if h.BlockSize < minBlockSize || h.BlockSize > maxBlockSize || h.BlockSize&(h.BlockSize-1) != 0 {
		return Header{}, fmt.Errorf("vhd: header: block size %d: %w", h.BlockSize, ErrCorrupt)
	}
	if h.Entries > maxEntries {
		return Header{}, fmt.Errorf("vhd: header: %d blocks: %w", h.Entries, ErrCorrupt)
	}
	if h.TableOffset > maxReadSize {
		return Header{}, fmt.Errorf("vhd: header: BAT at byte %d: %w", h.TableOffset, ErrCorrupt)
	}
	return h, nil
}

// ParentName returns the parent's path as stored in the header.
func (h Header) ParentName() string {
	var u []uint16
	for i := 0; i < len(h.Name); i += 2 {
		c := binary.BigEndian.Uint16(h.Name[i:])
		if c == 0 {
			break
		}
		u = append(u, c)
	}
	return string(utf16.Decode(u))
}

// encodeName is the inverse of ParentName.
func encodeName(name string) ([512]byte, error) {
	var b [512]byte
	u := utf16.Encode([]rune(name))
	if len(u)*2 > len(b) {
		return b, errors.New("vhd: parent name too long")
	}
	for i, c := range u {
		binary.BigEndian.PutUint16(b[2*i:], c)
	}
	return b, nil
}
