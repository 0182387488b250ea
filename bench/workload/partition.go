package workload

import (
	"encoding/binary"
	"hash/crc32"
	"os"
	"unicode/utf16"
)

const sector = 512

// Where a partition begins, in sectors: at 1 MiB, as in all tools since 2009, or
// after the first track, as in older guests, where no page of the file system is
// aligned with a page of the disk.
const (
	alignedStart = 2048
	oldStart     = 63
)

// writeMBR writes a master boot record (the classic DOS table at 446) with one
// partition from start to the disk's end.
func writeMBR(f *os.File, kind byte, start, size int64) error {
	var b [sector]byte
	e := b[446:462]
	copy(e[1:4], []byte{0xfe, 0xff, 0xff})
	e[4] = kind
	copy(e[5:8], []byte{0xfe, 0xff, 0xff})
	binary.LittleEndian.PutUint32(e[8:], uint32(start))
	binary.LittleEndian.PutUint32(e[12:], uint32(size/sector-start))
	binary.LittleEndian.PutUint32(b[440:], 0x58454e4b)
	b[510], b[511] = 0x55, 0xaa
	_, err := f.WriteAt(b[:], 0)
	return err
}

// gptTail is the number of sectors of a GUID partition table at a disk's end: 128
// entries of 128 bytes and the second header.
const gptTail = 33

// writeGPT writes a GUID partition table (UEFI specification 2.10, section 5.3)
// with one Linux partition, and the protective MBR.
func writeGPT(f *os.File, start, size int64) error {
	if err := writeMBR(f, 0xee, 1, size); err != nil {
		return err
	}
	last := size/sector - 1
	entries := make([]byte, 128*128)
	copy(entries, []byte{0xaf, 0x3d, 0xc6, 0x0f, 0x83, 0x84, 0x72, 0x47, 0x8e, 0x79, 0x3d, 0x69, 0xd8, 0x47, 0x7d, 0xe4}) // Linux data
	copy(entries[16:], "xenkeep bench 01")
	binary.LittleEndian.PutUint64(entries[32:], uint64(start))
	binary.LittleEndian.PutUint64(entries[40:], uint64(last-gptTail))
	for i, c := range utf16.Encode([]rune("root")) {
		binary.LittleEndian.PutUint16(entries[56+2*i:], c)
	}
	head := func(self, other, table int64) []byte {
		h := make([]byte, sector)
		copy(h, "EFI PART\x00\x00\x01\x00\x5c\x00\x00\x00")
		binary.LittleEndian.PutUint64(h[24:], uint64(self))
		binary.LittleEndian.PutUint64(h[32:], uint64(other))
		binary.LittleEndian.PutUint64(h[40:], 34)
		binary.LittleEndian.PutUint64(h[48:], uint64(last-gptTail))
		copy(h[56:], "xenkeep bench dk")
		binary.LittleEndian.PutUint64(h[72:], uint64(table))
		binary.LittleEndian.PutUint32(h[80:], 128)
		binary.LittleEndian.PutUint32(h[84:], 128)
		binary.LittleEndian.PutUint32(h[88:], crc32.ChecksumIEEE(entries))
		binary.LittleEndian.PutUint32(h[16:], crc32.ChecksumIEEE(h[:92]))
		return h
	}
	for _, part := range []struct {
		at   int64
		data []byte
	}{{1, head(1, last, 2)}, {2, entries}, {last - gptTail + 1, entries}, {last, head(last, 1, last-gptTail+1)}} {
		if _, err := f.WriteAt(part.data, part.at*sector); err != nil {
			return err
		}
	}
	return nil
}
