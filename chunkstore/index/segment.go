package index

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"sort"

	"github.com/zeebo/blake3"
)

// A segment is an immutable file that contains entries, the packs to which they
// refer, and the sources that cover those packs. All numbers are little-endian.
//
//	| offset       | size            | field                                     |
//	|       0      | 4096            | header, see below                         |
//	|    4096      | 4*(2^fanBits+1) | fan: where entries of each bucket begin   |
//	| then         | 64*blocks       | filter, see filter.go                     |
//	| then         | 28*entries      | entries, sorted by prefix, pack, offset   |
//	| then         | 48*packs        | packs, sorted by ID                       |
//	| then         | to the end      | sources                                   |
//
// An entry is prefix[16], the pack's number in this segment u32, offset u32,
// length u32. A bucket contains all entries whose prefixes have the same first
// fanBits bits. A pack is ID[32], size u64, the number of its entries in this
// segment u32, zero u32. A source is the length of its name u16, the number of
// its packs u32, the name, and each pack's number in this segment u32.
//
// The header contains checksums (BLAKE3). The checksum of the entries, which
// may take many GiB, is verified when the segment is read completely for a
// merge; all others are verified when the segment is opened.
const (
	segmentMagic   = "XKINDEX\x00"
	segmentVersion = 1

	headerSize = 4096
	entrySize  = 28
	packSize   = 48
	sourceHead = 6
	sumSize    = 32

	headerFields = 8 + 4 + 4 + 4 + 4 + 5*8 // before the checksums
	headerUsed   = headerFields + 5*sumSize
)

var errSegment = errors.New("damaged or foreign index segment")

// header is the first page of a segment. Its fields are in the order of the
// file.
type header struct {
	fanBits  uint32
	hashes   uint32 // bits set in the filter for each entry
	entries  uint64
	blocks   uint64 // of the filter
	packs    uint64
	sources  uint64
	fileSize uint64

	fanSum, filterSum, entrySum, tailSum [sumSize]byte // tail: packs and sources
}

func (h *header) encode() []byte {
	p := make([]byte, headerSize)
	copy(p, segmentMagic)
	le := binary.LittleEndian
	le.PutUint32(p[8:], segmentVersion)
	le.PutUint32(p[12:], h.fanBits)
	le.PutUint32(p[16:], h.hashes)
	for i, v := range []uint64{h.entries, h.blocks, h.packs, h.sources, h.fileSize} {
		le.PutUint64(p[24+8*i:], v)
	}
	at := headerFields
	for _, sum := range [][sumSize]byte{h.fanSum, h.filterSum, h.entrySum, h.tailSum} {
		at += copy(p[at:], sum[:])
	}
	sum := blake3.Sum256(p[:at])
	copy(p[at:], sum[:])
	return p
}

func decodeHeader(p []byte) (h header, err error) {
	if len(p) < headerSize || string(p[:8]) != segmentMagic {
		return h, errSegment
	}
	le := binary.LittleEndian
	if v := le.Uint32(p[8:]); v != segmentVersion {
		return h, fmt.Errorf("%w: version %d", errSegment, v)
	}
	if blake3.Sum256(p[:headerUsed-sumSize]) != [sumSize]byte(p[headerUsed-sumSize:headerUsed]) {
		return h, errSegment
	}
	h.fanBits, h.hashes = le.Uint32(p[12:]), le.Uint32(p[16:])
	for i, v := range []*uint64{&h.entries, &h.blocks, &h.packs, &h.sources, &h.fileSize} {
		*v = le.Uint64(p[24+8*i:])
	}
	at := headerFields
	for _, sum := range []*[sumSize]byte{&h.fanSum, &h.filterSum, &h.entrySum, &h.tailSum} {
		at += copy(sum[:], p[at:])
	}
	return h, nil
}

// segment is an open segment. Its slices refer to a memory map, or to memory.
type segment struct {
	name    string
	size    int64
	fanBits uint32
	hashes  uint32
	n       int // entries

	fan, filter, entries, packs []byte
	sources                     []segmentSource
	entrySum                    [sumSize]byte
}

// segmentSource is a source and the numbers of its packs, u32 each.
type segmentSource struct {
	name  string
	packs []byte
}

// parseSegment opens the segment that data contains.
func parseSegment(name string, data []byte) (*segment, error) {
	h, err := decodeHeader(data)
	if err != nil {
		return nil, err
	}
	s := &segment{name: name, size: int64(len(data)), fanBits: h.fanBits, hashes: h.hashes, entrySum: h.entrySum}
	if h.fanBits > maxFanBits || h.hashes > maxHashes || h.fileSize != uint64(len(data)) {
		return nil, errSegment
	}
	rest := data[headerSize:]
	cut := func(count, size uint64) []byte {
		over, n := bits.Mul64(count, size)
		if over != 0 || n > uint64(len(rest)) {
			err = errSegment
			return nil
		}
		part := rest[:n:n]
		rest = rest[n:]
		return part
	}
	s.fan = cut(1<<h.fanBits+1, 4)
	s.filter = cut(h.blocks, blockSize)
	s.entries = cut(h.entries, entrySize)
	tail := rest
	s.packs = cut(h.packs, packSize)
	if err != nil {
		return nil, err
	}
	s.n = int(h.entries)
	if blake3.Sum256(s.fan) != h.fanSum || blake3.Sum256(s.filter) != h.filterSum || blake3.Sum256(tail) != h.tailSum {
		return nil, errSegment
	}
	before := uint32(0)
	for at := 0; at < len(s.fan); at += 4 {
		v := binary.LittleEndian.Uint32(s.fan[at:])
		if v < before || uint64(v) > h.entries {
			return nil, errSegment
		}
		before = v
	}
	if s.sources, err = parseSources(rest, h.sources, h.packs); err != nil {
		return nil, err
	}
	return s, nil
}

func parseSources(p []byte, count, packs uint64) ([]segmentSource, error) {
	if count > uint64(len(p)/sourceHead) {
		return nil, errSegment
	}
	sources := make([]segmentSource, 0, count)
	le := binary.LittleEndian
	for range count {
		if len(p) < sourceHead {
			return nil, errSegment
		}
		name, numbers := int(le.Uint16(p)), 4*uint64(le.Uint32(p[2:]))
		p = p[sourceHead:]
		if uint64(name)+numbers > uint64(len(p)) {
			return nil, errSegment
		}
		src := segmentSource{name: string(p[:name]), packs: p[name : uint64(name)+numbers]}
		for at := 0; at < len(src.packs); at += 4 {
			if uint64(le.Uint32(src.packs[at:])) >= packs {
				return nil, errSegment
			}
		}
		sources = append(sources, src)
		p = p[uint64(name)+numbers:]
	}
	if len(p) != 0 {
		return nil, errSegment
	}
	return sources, nil
}

// split returns a prefix as two numbers, which compare faster than bytes.
func split(p Prefix) (hi, lo uint64) {
	return binary.BigEndian.Uint64(p[:8]), binary.BigEndian.Uint64(p[8:])
}

func (s *segment) key(i int) (hi, lo uint64) {
	e := s.entries[i*entrySize : i*entrySize+16]
	return binary.BigEndian.Uint64(e), binary.BigEndian.Uint64(e[8:])
}

// place returns an entry's pack number, offset and length.
func (s *segment) place(i int) (pack, offset, length uint32) {
	e := s.entries[i*entrySize+16 : i*entrySize+entrySize]
	le := binary.LittleEndian
	return le.Uint32(e), le.Uint32(e[4:]), le.Uint32(e[8:])
}

// linearSearch is the largest size of a bucket that is searched by
// interpolation and single steps. With random IDs a bucket has 16 to 32
// entries; far larger buckets occur only if keys are not random.
const linearSearch = 128

// find returns the number of the first entry with a prefix, or -1.
func (s *segment) find(hi, lo uint64) int {
	if s.n == 0 || !s.mayHold(hi, lo) {
		return -1
	}
	return s.seek(hi, lo)
}

// seek is find without the filter.
func (s *segment) seek(hi, lo uint64) int {
	if s.n == 0 {
		return -1
	}
	bucket := int(hi >> (64 - s.fanBits)) // a shift by 64 yields 0
	start := int(binary.LittleEndian.Uint32(s.fan[4*bucket:]))
	end := int(binary.LittleEndian.Uint32(s.fan[4*bucket+4:]))
	i := start
	if end-start > linearSearch {
		i += sort.Search(end-start, func(k int) bool {
			h, l := s.key(start + k)
			return h > hi || (h == hi && l >= lo)
		})
	} else if end > start {
		// Keys are evenly distributed within a bucket too: interpolate, then
		// step.
		guess, _ := bits.Mul64(hi<<s.fanBits, uint64(end-start))
		i += int(guess)
		for i > start {
			h, l := s.key(i - 1)
			if h < hi || (h == hi && l < lo) {
				break
			}
			i--
		}
		for i < end {
			h, l := s.key(i)
			if h > hi || (h == hi && l >= lo) {
				break
			}
			i++
		}
	}
	if i < end {
		if h, l := s.key(i); h == hi && l == lo {
			return i
		}
	}
	return -1
}

// next returns the number of the entry after i if it has the same prefix,
// otherwise -1.
func (s *segment) next(i int) int {
	if i+1 == s.n || [16]byte(s.entries[i*entrySize:]) != [16]byte(s.entries[(i+1)*entrySize:]) {
		return -1
	}
	return i + 1
}

// location returns a Location, with the pack's ID in place of its number.
func (s *segment) location(pack, offset, length uint32) Location {
	return Location{Pack: [32]byte(s.packID(int(pack))), Offset: offset, Length: length}
}

// holds reports whether the segment contains exactly this entry.
func (s *segment) holds(hi, lo uint64, pack, offset, length uint32) bool {
	for i := s.find(hi, lo); i >= 0; i = s.next(i) {
		if p, o, n := s.place(i); p == pack && o == offset && n == length {
			return true
		}
	}
	return false
}

func (s *segment) packCount() int { return len(s.packs) / packSize }

func (s *segment) packID(i int) []byte { return s.packs[i*packSize : i*packSize+32] }

// packInfo returns a pack's size and the number of its entries in this segment.
func (s *segment) packInfo(i int) (size int64, entries uint32) {
	p := s.packs[i*packSize+32 : (i+1)*packSize]
	return int64(binary.LittleEndian.Uint64(p)), binary.LittleEndian.Uint32(p[8:])
}

// packNumber returns the number of a pack in this segment.
func (s *segment) packNumber(id *[32]byte) (uint32, bool) {
	n := s.packCount()
	i := sort.Search(n, func(k int) bool { return bytes.Compare(s.packID(k), id[:]) >= 0 })
	return uint32(i), i < n && [32]byte(s.packID(i)) == *id
}
