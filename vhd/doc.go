// Package vhd reads and writes the VHD disk format: the streams that XenServer
// sends from /export_raw_vdi and accepts at /import_raw_vdi, and the files that
// users exchange with qemu-img, Hyper-V or vhd-util. It is a codec: it uses no
// network, no clock, and no random source of its own.
//
// The structure of a dynamic or differencing VHD, with all integers big-endian:
//
//	footer copy | header | (locator data) | BAT | block | block | ... | footer
//	block = sector bitmap (1 bit a sector, padded to 512 bytes) | data
//
// The block allocation table (BAT) contains for each block of the disk the
// sector of its bitmap, or [Absent]. A fixed VHD consists of the disk's bytes,
// followed by a footer.
//
// The types: a [Reader] is one forward pass over a disk (a disk.Source), made
// by [NewReader] from a stream or by [File.Reader] from a file; a [Layout]
// defines the position of every part of a VHD to be written; a [Writer] is a
// disk.Sink that streams it.
//
// Sources: "Virtual Hard Disk Image Format Specification" 1.0 (Microsoft,
// 2006); xen-api ocaml/libs/vhd/vhd_format/f.ml for the VHDs that XenServer
// sends and accepts; blktap vhd/lib and qemu block/vpc.c for the checks of
// other programs.
package vhd

import "errors"

var (
	// ErrNotVHD: the input does not begin (or end) with a VHD footer.
	ErrNotVHD = errors.New("not a VHD")
	// ErrCorrupt: the input is a VHD that is inconsistent in itself or with the
	// disk that it should hold.
	ErrCorrupt = errors.New("corrupt VHD")
	// ErrTruncated: the input ends before the end that its structure defines.
	ErrTruncated = errors.New("truncated VHD")
	// ErrOrder: a stream's blocks are not in ascending order, so that it cannot
	// be read sequentially. It can be read as a file (OpenFile).
	ErrOrder = errors.New("VHD blocks not in ascending order")
	// ErrTooLarge: the disk is larger than the limit for a VHD (MaxSize).
	ErrTooLarge = errors.New("too large for a VHD")
)

const (
	// BlockSize is the block size of every VHD that XenServer creates and of
	// every VHD that this package writes.
	BlockSize = 2 << 20
	// SectorSize is the unit of sector numbers and of bitmap bits.
	SectorSize = 512
	// MaxSize is the largest disk that XenServer and Hyper-V store in a VHD.
	MaxSize = 2040 << 30

	// maxReadSize is the limit of 32-bit sector numbers; some tools nearly
	// reach it, beyond MaxSize.
	maxReadSize = 1 << 41
)

// Sector is a position in a VHD, in units of 512 bytes.
type Sector uint32

// Absent is the BAT entry of a block that is not present in the VHD.
const Absent Sector = 0xffffffff
