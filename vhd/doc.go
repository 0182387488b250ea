// Package vhd reads and writes the VHD disk format: as XenServer sends it from
// /export_raw_vdi, as it takes it at /import_raw_vdi, and as files that people
// hand to qemu-img, Hyper-V or vhd-util. It is a codec: no network, no clock,
// no randomness of its own.
//
// A dynamic or differencing VHD, all integers big-endian:
//
//	footer copy | header | (locator data) | BAT | block | block | ... | footer
//
//	block = sector bitmap (1 bit a sector, padded to 512 bytes) | data
//
// The block allocation table (BAT) holds for each block of the disk the sector
// at which its bitmap lies, or [Absent]. A fixed VHD is the disk's bytes and
// behind them a footer.
//
// The nouns: a [Reader] is one forward pass over a disk (a disk.Source), made
// by [NewReader] from a stream or by [File.Reader] from a file; a [Layout] says
// where everything lies in a VHD about to be written; a [Writer] is a disk.Sink
// that streams it.
//
// Sources: "Virtual Hard Disk Image Format Specification" 1.0 (Microsoft,
// 2006); xen-api ocaml/libs/vhd/vhd_format/f.ml for what XenServer emits and
// accepts; blktap vhd/lib and qemu block/vpc.c for how others judge a file.
package vhd

import "errors"

var (
	// ErrNotVHD: the input does not begin (or end) with a VHD footer.
	ErrNotVHD = errors.New("not a VHD")
	// ErrCorrupt: the input is a VHD that contradicts itself or the disk it is
	// said to be.
	ErrCorrupt = errors.New("corrupt VHD")
	// ErrTruncated: the input ends before its own structure says so.
	ErrTruncated = errors.New("truncated VHD")
	// ErrOrder: a stream's blocks do not lie in ascending order, so that it
	// cannot be read front to back. As a file (OpenFile) it can be read.
	ErrOrder = errors.New("VHD blocks not in ascending order")
	// ErrTooLarge: the disk is larger than a VHD may be (MaxSize).
	ErrTooLarge = errors.New("too large for a VHD")
)

const (
	// BlockSize is the block size of every VHD that XenServer makes and of
	// every VHD written here.
	BlockSize = 2 << 20
	// SectorSize is the unit of sector numbers and of bitmap bits.
	SectorSize = 512
	// MaxSize is the largest disk XenServer and Hyper-V keep in a VHD.
	MaxSize = 2040 << 30

	// maxReadSize is what 32-bit sector numbers can address; some tools
	// fill it nearly, beyond MaxSize.
	maxReadSize = 1 << 41
)

// Sector is a position in a VHD, in units of 512 bytes.
type Sector uint32

// Absent is the BAT entry of a block that the VHD does not hold.
const Absent Sector = 0xffffffff
