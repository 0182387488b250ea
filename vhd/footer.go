package vhd

import (
	"encoding/binary"
	"fmt"
	"time"
)

// Footer, 512 bytes, at the end of every VHD and, as a copy, at the start of a
// dynamic or differencing one (VHD specification 1.0, "Hard Disk Footer
// Format").
//
//	offset size field
//	     0    8 cookie               "conectix"; anything else: not a VHD
//	     8    4 features             bit 1 is always set
//	    12    4 format version       0x00010000; others are refused
//	    16    8 data offset          bytes; of the header; all ones in a fixed VHD
//	    24    4 timestamp            seconds since 2000-01-01 UTC
//	    28    4 creator application
//	    32    4 creator version
//	    36    4 creator host OS
//	    40    8 original size        bytes
//	    48    8 current size         bytes; the size of the disk
//	    56    4 geometry             cylinders (2), heads (1), sectors a track (1)
//	    60    4 disk type            2 fixed, 3 dynamic, 4 differencing; others are refused
//	    64    4 checksum             see checksum
//	    68   16 unique id
//	    84    1 saved state
//	    85  427 reserved             blktap keeps its hidden flag in the first byte
const (
	footerSize     = 512
	footerCookie   = "conectix"
	footerFeatures = 8
	footerVersion  = 12
	footerDataOff  = 16
	footerTime     = 24
	footerCreator  = 28
	footerCreVer   = 32
	footerCreOS    = 36
	footerOrigSize = 40
	footerCurSize  = 48
	footerGeometry = 56
	footerType     = 60
	footerChecksum = 64
	footerID       = 68
	footerSaved    = 84
	footerReserved = 85

	formatVersion  = 0x00010000
	noOffset       = 0xffffffffffffffff
	featureDefault = 0x00000002 // "reserved, must always be set"
)

// Disk types of a footer.
const (
	TypeFixed        = 2
	TypeDynamic      = 3
	TypeDifferencing = 4
)

// Footer is the decoded footer. Encode sets cookie and checksum.
type Footer struct {
	Features       uint32
	Version        uint32
	DataOffset     uint64
	Time           uint32 // seconds since 2000-01-01 UTC, see Time
	Creator        [4]byte
	CreatorVersion uint32
	CreatorOS      [4]byte
	OriginalSize   uint64 // bytes
	CurrentSize    uint64 // bytes
	Geometry       Geometry
	Type           uint32
	ID             UUID
	SavedState     byte
	Reserved       [427]byte
}

// Encode returns f as 512 bytes.
func (f Footer) Encode() []byte {
	b := make([]byte, footerSize)
	be := binary.BigEndian
	copy(b, footerCookie)
	be.PutUint32(b[footerFeatures:], f.Features)
	be.PutUint32(b[footerVersion:], f.Version)
	be.PutUint64(b[footerDataOff:], f.DataOffset)
	be.PutUint32(b[footerTime:], f.Time)
	copy(b[footerCreator:], f.Creator[:])
	be.PutUint32(b[footerCreVer:], f.CreatorVersion)
	copy(b[footerCreOS:], f.CreatorOS[:])
	be.PutUint64(b[footerOrigSize:], f.OriginalSize)
	be.PutUint64(b[footerCurSize:], f.CurrentSize)
	be.PutUint16(b[footerGeometry:], f.Geometry.Cylinders)
	b[footerGeometry+2] = f.Geometry.Heads
	b[footerGeometry+3] = f.Geometry.Sectors
	be.PutUint32(b[footerType:], f.Type)
	copy(b[footerID:], f.ID[:])
	b[footerSaved] = f.SavedState
	copy(b[footerReserved:], f.Reserved[:])
	be.PutUint32(b[footerChecksum:], checksum(b, footerChecksum))
	return b
}

// DecodeFooter decodes the 512 bytes of a footer. It returns ErrNotVHD if the
// cookie is missing, and ErrCorrupt for all other errors.
func DecodeFooter(b []byte) (Footer, error) {
	if len(b) != footerSize || string(b[:len(footerCookie)]) != footerCookie {
		return Footer{}, fmt.Errorf("vhd: footer: %w", ErrNotVHD)
	}
	be := binary.BigEndian
	if got, want := be.Uint32(b[footerChecksum:]), checksum(b, footerChecksum); got != want {
		return Footer{}, fmt.Errorf("vhd: footer: checksum %#08x, want %#08x: %w", got, want, ErrCorrupt)
	}
	f := Footer{
		Features:       be.Uint32(b[footerFeatures:]),
		Version:        be.Uint32(b[footerVersion:]),
		DataOffset:     be.Uint64(b[footerDataOff:]),
		Time:           be.Uint32(b[footerTime:]),
		Creator:        [4]byte(b[footerCreator:]),
		CreatorVersion: be.Uint32(b[footerCreVer:]),
		CreatorOS:      [4]byte(b[footerCreOS:]),
		OriginalSize:   be.Uint64(b[footerOrigSize:]),
		CurrentSize:    be.Uint64(b[footerCurSize:]),
		Geometry: Geometry{
			Cylinders: be.Uint16(b[footerGeometry:]),
			Heads:     b[footerGeometry+2],
			Sectors:   b[footerGeometry+3],
		},
		Type:       be.Uint32(b[footerType:]),
		ID:         UUID(b[footerID:]),
		SavedState: b[footerSaved],
		Reserved:   [427]byte(b[footerReserved:]),
	}
	if f.Version != formatVersion {
		return Footer{}, fmt.Errorf("vhd: footer: format version %#08x: %w", f.Version, ErrCorrupt)
	}
	if f.Type < TypeFixed || f.Type > TypeDifferencing {
		return Footer{}, fmt.Errorf("vhd: footer: disk type %d: %w", f.Type, ErrCorrupt)
	}
	return f, nil
}

// Geometry is a disk's size in the form that old PC firmware uses.
type Geometry struct {
	Cylinders uint16
	Heads     uint8
	Sectors   uint8 // per track
}

// Bytes returns the size that g describes.
func (g Geometry) Bytes() int64 {
	return int64(g.Cylinders) * int64(g.Heads) * int64(g.Sectors) * SectorSize
}

// GeometryOf returns the geometry of a disk of size bytes by the algorithm of
// the VHD specification 1.0, appendix "CHS Calculation". It never describes
// more than size bytes, as blktap's vhd-util requires, and at most 65535*16*255
// sectors.
func GeometryOf(size int64) Geometry {
	const most = 65535 * 16 * 255
	total := min(size/SectorSize, most)
	var sectors, heads, rest int64
	if total >= 65535*16*63 {
		sectors, heads = 255, 16
		rest = total / sectors
	} else {
		sectors = 17
		rest = total / sectors
		heads = max((rest+1023)/1024, 4)
		if rest >= heads*1024 || heads > 16 {
			sectors, heads = 31, 16
			rest = total / sectors
		}
		if rest >= heads*1024 {
			sectors, heads = 63, 16
			rest = total / sectors
		}
	}
	return Geometry{Cylinders: uint16(rest / heads), Heads: uint8(heads), Sectors: uint8(sectors)}
}

// Time converts t to seconds since 2000-01-01 UTC, the unit of footers. A time
// outside the range becomes the nearest time within it.
func Time(t time.Time) uint32 {
	epoch := time.Date(2000, time.January, 1, 0, 0, 0, 0, time.UTC).Unix()
	return uint32(min(max(t.Unix()-epoch, 0), 1<<32-1))
}

// checksum returns the one's complement of the sum of b's bytes, with the four
// bytes at offset field taken as zero.
func checksum(b []byte, field int) uint32 {
	var sum uint32
	for _, c := range b {
		sum += uint32(c)
	}
	for _, c := range b[field : field+4] {
		sum -= uint32(c)
	}
	return ^sum
}
