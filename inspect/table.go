package inspect

import (
	"fmt"
	"hash/crc32"
	"unicode/utf16"
)

const (
	sector = 512
	// largeSector is the sector size of disks whose addresses count sectors of
	// 4096 bytes.
	largeSector = 4096
)

// partition is an entry of a partition table.
type partition struct {
	number         int
	offset, length int64
	kind           string
}

const (
	typeBIOSBoot = "BIOS boot"
	typeReserved = "Microsoft reserved"
)

// mbrTypes are the names of common partition types.
var mbrTypes = map[byte]string{
	0x01: "FAT12", 0x04: "FAT16", 0x05: "extended", 0x06: "FAT16", 0x07: "NTFS", 0x0b: "FAT32", 0x0c: "FAT32", 0x0e: "FAT16", 0x0f: "extended",
	0x82: "Linux swap", 0x83: "Linux filesystem", 0x85: "extended", 0x8e: "Linux LVM", 0xee: "GPT", 0xef: "EFI system", 0xfd: "Linux RAID",
	0x27: "Windows recovery",
}

var gptTypes = map[string]string{
	"c12a7328-f81f-11d2-ba4b-00a0c93ec93b": "EFI system", "21686148-6449-6e6f-744e-656564454649": typeBIOSBoot,
	"0fc63daf-8483-4772-8e79-3d69d8477de4": "Linux filesystem", "0657fd6d-a4ab-43c4-84e5-0933c84b4f4f": "Linux swap",
	"e6d6d379-f507-44c2-a23c-238f2a3df928": "Linux LVM", "a19d880f-05fc-4d3b-a006-743f0f84911e": "Linux RAID",
	"4f68bce3-e8cd-4db1-96e7-fbcaf984b709": "Linux root", "933ac7e1-2eb4-4f13-b844-0e14e2aef915": "Linux home",
	"e3c9e316-0b5c-4db8-817d-f92df00215ae": typeReserved, "ebd0a0a2-b9e5-4433-87c0-68b6b72699c7": "Microsoft basic data",
	"de94bba4-06d1-4d40-a16a-bfd50179d6ac": "Windows recovery",
}

func kindOfMBR(t byte) string {
	if n := mbrTypes[t]; n != "" {
		return n
	}
	return fmt.Sprintf("type %02x", t)
}

// entry is a slot of an MBR or EBR.
type entry struct {
	status, kind byte
	start, count int64 // sectors
}

func mbrEntries(s []byte) (out [4]entry) {
	for i := range out {
		e := s[446+16*i:]
		out[i] = entry{e[0], e[4], int64(le.Uint32(e[8:])), int64(le.Uint32(e[12:]))}
	}
	return out
}

// partitions finds a disk's partition table; table is "" if there is none.
func (l *look) partitions(d Disk) (table string, parts []partition, err error) {
	s := make([]byte, sector)
	if err := d.ReadAt(l.ctx, s, 0); err != nil {
		return "", nil, err
	}
	entries := mbrEntries(s)
	signed := s[510] == 0x55 && s[511] == 0xaa
	protective := false
	for _, e := range entries {
		protective = protective || e.kind == 0xee
	}
	gpt, err := l.gpt(d, signed && protective)
	if err != nil {
		return "", nil, err
	}
	switch {
	case gpt != nil:
		if !signed {
			l.find(d.Name, Bad, "sector 0: no boot signature 55 aa before the GPT")
		} else if !protective {
			l.find(d.Name, Note, "sector 0: no protective MBR before the GPT")
		}
		return "gpt", gpt, nil
	case protective && signed:
		return "gpt", nil, nil // gpt has reported it
	case isBoot(s):
		return "", nil, nil // a file system's boot sector
	case !signed:
		if n := plausible(entries, d.Size()); n > 0 {
			l.find(d.Name, Bad, "sector 0: no boot signature 55 aa, but %d partitions are entered", n)
			return "mbr", l.mbr(d, entries, l.mbrSector(d, entries), true), nil
		}
		return "", nil, nil
	case plausible(entries, d.Size()) == 0 && entries == [4]entry{}:
		l.find(d.Name, Note, "an MBR without partitions")
		return "", nil, nil
	}
	valid := true
	for _, e := range entries {
		valid = valid && (e.status == 0 || e.status == 0x80)
	}
	if !valid {
		if plausible(entries, d.Size()) == 0 {
			return "", nil, nil // boot code of something else
		}
		l.find(d.Name, Bad, "MBR: an entry's status is neither 00 nor 80")
	}
	return "mbr", l.mbr(d, entries, l.mbrSector(d, entries), false), nil
}

// mbrSector returns the size of the sectors in which an MBR counts; the MBR
// itself does not contain it. It is 512 bytes, or 4096 if all partitions then
// fit on the disk, and known content is found at the beginning of a partition
// that is not found with 512 bytes.
func (l *look) mbrSector(d Disk, entries [4]entry) int64 {
	found := func(unit int64) (fits, known bool) {
		for _, e := range entries {
			if e.kind == 0 {
				continue
			}
			if e.start < 1 || e.count < 1 || (e.start+e.count)*unit > d.Size() {
				return false, known
			}
			known = known || l.known(d, e, unit)
		}
		return true, known
	}
	if _, known := found(sector); known {
		return sector
	}
	if fits, known := found(largeSector); fits && known {
		return largeSector
	}
	return sector
}

// known reports whether the signature of a file system or of a physical volume,
// or the table of an extended partition, is at the start of an entry.
func (l *look) known(d Disk, e entry, unit int64) bool {
	at := e.start * unit
	if isExtended(e.kind) {
		s := make([]byte, sector)
		return d.ReadAt(l.ctx, s, at) == nil && s[510] == 0x55 && s[511] == 0xaa && plausible(mbrEntries(s), d.Size()) > 0
	}
	p := make([]byte, min(e.count*unit, 65536+72))
	if d.ReadAt(l.ctx, p, at) != nil {
		return false
	}
	for _, m := range []struct {
		at   int
		mark string
	}{
		{0, "XFSB"}, {1080, "\x53\xef"}, {65600, "_BHRfS_M"}, {0, "LUKS\xba\xbe"}, {3, "NTFS    "}, {54, "FAT"}, {82, "FAT32"},
		{0, "LABELONE"}, {512, "LABELONE"}, {1024, "LABELONE"}, {1536, "LABELONE"}, {4086, "SWAPSPACE2"}, {4096, "\xfc\x4e\x2b\xa9"},
	} {
		if m.at+len(m.mark) <= len(p) && string(p[m.at:m.at+len(m.mark)]) == m.mark {
			return true
		}
	}
	return false
}

func isExtended(kind byte) bool { return kind == 0x05 || kind == 0x0f || kind == 0x85 }

// isBoot reports whether a sector is a boot sector of FAT or NTFS, which also
// ends in 55 aa, and not an MBR.
func isBoot(s []byte) bool {
	if string(s[3:11]) == "NTFS    " || string(s[3:11]) == "-FVE-FS-" {
		return true
	}
	return (s[0] == 0xeb && s[2] == 0x90 || s[0] == 0xe9) && (string(s[54:57]) == "FAT" || string(s[82:85]) == "FAT")
}

// plausible counts the entries that could be partitions of the disk.
func plausible(all [4]entry, size int64) int {
	n := 0
	for _, e := range all {
		if e.kind == 0 && e.count == 0 && e.start == 0 {
			continue
		}
		if e.kind == 0 || e.status&0x7f != 0 || e.start == 0 || e.count == 0 || e.start*sector >= size {
			return 0
		}
		n++
	}
	return n
}

// mbr returns the partitions of an MBR that counts in sectors of unit bytes,
// and those of the chain in its extended partition.
func (l *look) mbr(d Disk, entries [4]entry, unit int64, quiet bool) (parts []partition) {
	level := Bad
	if quiet {
		level = Note
	}
	add := func(number int, start, count int64, kind byte) {
		p := partition{number, start * unit, count * unit, kindOfMBR(kind)}
		name := partitionName(d.Name, number)
		switch {
		case p.offset >= d.Size():
			l.find(name, level, "partition begins at byte %d, behind the disk's end at %d", p.offset, d.Size())
			return
		case p.offset+p.length > d.Size():
			l.find(name, level, "partition ends at byte %d, behind the disk's end at %d", p.offset+p.length, d.Size())
			p.length = d.Size() - p.offset
		}
		for _, o := range parts {
			if p.offset < o.offset+o.length && o.offset < p.offset+p.length {
				l.find(name, level, "partition overlaps partition %d", o.number)
			}
		}
		parts = append(parts, p)
	}
	next := 5
	for i, e := range entries {
		switch e.kind {
		case 0:
		case 0x05, 0x0f, 0x85: // see isExtended
			base, at := e.start, e.start
			for range 128 {
				s := make([]byte, sector)
				if at*unit+sector > d.Size() {
					l.find(d.Name, level, "extended partition: its table at sector %d is behind the disk's end", at)
					break
				}
				if d.ReadAt(l.ctx, s, at*unit) != nil || s[510] != 0x55 || s[511] != 0xaa {
					l.find(d.Name, level, "extended partition: no table at sector %d", at)
					break
				}
				x := mbrEntries(s)
				if x[0].kind != 0 {
					add(next, at+x[0].start, x[0].count, x[0].kind)
					next++
				}
				if x[1].kind == 0 || x[1].start == 0 {
					break
				}
				at = base + x[1].start
			}
		default:
			add(i+1, e.start, e.count, e.kind)
		}
	}
	if !quiet {
		large := ""
		if unit != sector {
			large = fmt.Sprintf(", sectors of %d bytes", unit)
		}
		l.find(d.Name, OK, "MBR with %s%s", count(len(parts), "partition"), large)
	}
	return parts
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// gptHeader is a valid header with its entries.
type gptHeader struct {
	at, other   int64 // sectors
	first, last int64
	guid        string
	entries     []byte
	entrySize   int
	number      int
	crc         uint32
}

// gptTable holds the parts of a GPT found on a disk, read with one sector size.
type gptTable struct {
	sector        int64
	first, second *gptHeader // nil if it cannot be used
	why1, why2    string     // the reason; "" if it does not exist
	at2           int64      // where the second one is searched
	end           int64      // the disk's last sector
}

// sound returns the number of usable headers.
func (g *gptTable) sound() int {
	n := 0
	for _, h := range []*gptHeader{g.first, g.second} {
		if h != nil {
			n++
		}
	}
	return n
}

// readGPT reads the header at a sector; why is the reason if it is invalid, or
// "" if there is none.
func (l *look) readGPT(d Disk, at, sector int64) (h *gptHeader, why string, err error) {
	if at < 1 || at >= d.Size()/sector {
		return nil, "it would be behind the disk's end", nil
	}
	s := make([]byte, sector)
	if err := d.ReadAt(l.ctx, s, at*sector); err != nil {
		return nil, "", err
	}
	if string(s[:8]) != "EFI PART" {
		return nil, "", nil
	}
	size := le.Uint32(s[12:])
	if size < 92 || int64(size) > sector {
		return nil, fmt.Sprintf("its length is %d", size), nil
	}
	said := le.Uint32(s[16:])
	clear(s[16:20])
	if crc32.ChecksumIEEE(s[:size]) != said {
		return nil, "its checksum is wrong", nil
	}
	h = &gptHeader{
		at: int64(le.Uint64(s[24:])), other: int64(le.Uint64(s[32:])), first: int64(le.Uint64(s[40:])), last: int64(le.Uint64(s[48:])),
		guid: guidText(s[56:]), number: int(le.Uint32(s[80:])), entrySize: int(le.Uint32(s[84:])), crc: le.Uint32(s[88:]),
	}
	table := int64(le.Uint64(s[72:]))
	n := int64(h.number) * int64(h.entrySize)
	switch {
	case h.at != at:
		return nil, fmt.Sprintf("it says to be at sector %d", h.at), nil
	case h.entrySize < 128 || h.number < 1 || h.entrySize > 1<<20 || h.number > 1<<20 || n > 1<<20 || table < 1 || table > d.Size()/sector || table*sector+n > d.Size():
		return nil, "its table of partitions has no place on the disk", nil
	}
	h.entries = make([]byte, n)
	if err := d.ReadAt(l.ctx, h.entries, table*sector); err != nil {
		return nil, "", err
	}
	if crc32.ChecksumIEEE(h.entries) != h.crc {
		return nil, "the checksum of its table of partitions is wrong", nil
	}
	return h, "", nil
}

// findGPT looks for a GPT of 512-byte sectors, and for one of 4096-byte
// sectors: nothing else on the disk shows the size of its sectors. If both
// exist, the one with more valid headers is used, because a disk may contain
// remains of the other.
func (l *look) findGPT(d Disk) (*gptTable, error) {
	var best *gptTable
	for _, size := range []int64{sector, largeSector} {
		g := &gptTable{sector: size, end: d.Size()/size - 1}
		var err error
		if g.first, g.why1, err = l.readGPT(d, 1, size); err != nil {
			return nil, err
		}
		g.at2 = g.end
		if g.first != nil {
			g.at2 = g.first.other
		}
		if g.second, g.why2, err = l.readGPT(d, g.at2, size); err != nil {
			return nil, err
		}
		if best == nil || g.sound() > best.sound() || g.sound() == 0 && best.sound() == 0 && best.why1+best.why2 == "" && g.why1 != "" {
			best = g
		}
	}
	return best, nil
}

// gpt reads a GPT, from its backup if necessary; expected means that the MBR
// announces one. It returns nil if there is none.
func (l *look) gpt(d Disk, expected bool) ([]partition, error) {
	g, err := l.findGPT(d)
	if err != nil {
		return nil, err
	}
	missing := func(why string) string {
		if why == "" {
			return "it is not there"
		}
		return why
	}
	first, second := g.first, g.second
	switch {
	case first == nil && second == nil:
		if expected || g.why1 != "" {
			l.find(d.Name, Bad, "GPT: neither header can be used: at sector 1 %s; at the end %s", missing(g.why1), missing(g.why2))
			if !expected {
				return []partition{}, nil
			}
		}
		return nil, nil
	case first == nil:
		l.find(d.Name, Bad, "GPT: header at sector 1: %s; its backup at sector %d is sound", missing(g.why1), g.at2)
	case second == nil:
		l.find(d.Name, Bad, "GPT: backup header at sector %d: %s; that at sector 1 is sound", g.at2, missing(g.why2))
	case first.crc != second.crc || first.guid != second.guid:
		l.find(d.Name, Bad, "GPT: the two tables of partitions differ")
	case g.at2 != g.end:
		l.find(d.Name, Note, "GPT ends at sector %d, the disk at %d: it has grown", g.at2, g.end)
	}
	h := first
	if h == nil {
		h = second
	}
	parts := l.gptPartitions(d, h, g)
	if first != nil && second != nil {
		large := ""
		if g.sector != sector {
			large = fmt.Sprintf(", sectors of %d bytes", g.sector)
		}
		l.find(d.Name, OK, "GPT with %s%s, both headers sound", count(len(parts), "partition"), large)
	}
	return parts, nil
}

// gptPartitions returns the partitions of a table.
func (l *look) gptPartitions(d Disk, h *gptHeader, g *gptTable) []partition {
	parts := []partition{}
	sector, end := g.sector, g.end
	for i := range h.number {
		e := h.entries[i*h.entrySize : (i+1)*h.entrySize]
		if allZero(e[:16]) {
			continue
		}
		from, to := int64(le.Uint64(e[32:])), int64(le.Uint64(e[40:]))
		kind := guidText(e)
		if n := gptTypes[kind]; n != "" {
			kind = n
		}
		name := partitionName(d.Name, i+1)
		if from < h.first || to > h.last || from > to || to > end {
			l.find(name, Bad, "partition from sector %d to %d: the table allows %d to %d, the disk ends at %d", from, to, h.first, h.last, end)
			if from < 1 || from > end || to < from {
				continue
			}
			to = min(to, end)
		}
		for _, o := range parts {
			if from*sector < o.offset+o.length && o.offset < (to+1)*sector {
				l.find(name, Bad, "partition overlaps partition %d", o.number)
			}
		}
		parts = append(parts, partition{i + 1, from * sector, (to - from + 1) * sector, kind})
	}
	return parts
}

// guidText returns a GUID in the usual form, from the byte order of Windows and
// GPT.
func guidText(p []byte) string {
	return fmt.Sprintf("%08x-%04x-%04x-%x-%x", le.Uint32(p), le.Uint16(p[4:]), le.Uint16(p[6:]), p[8:10], p[10:16])
}

func utf16Text(p []byte) string {
	var u []uint16
	for ; len(p) >= 2; p = p[2:] {
		u = append(u, le.Uint16(p))
	}
	return string(utf16.Decode(u))
}
