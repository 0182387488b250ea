package index

import (
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/zeebo/blake3"
)

const (
	// maxSegments bounds the number of segments that the lookup of an absent
	// chunk has to query.
	maxSegments = 8
	// maxDropped is how many dropped sources a segment may still contain.
	maxDropped = 256
)

// weight estimates the cost of rewriting a segment.
func (s *part) weight() int { return s.n + 8*s.packCount() + 1024 }

// choose returns the parts that should be merged into one, or nil if there are
// none. Segments of similar size are merged with each other, so that each entry
// is rewritten only a few times, however many sources are added. A single
// segment is rewritten when a quarter of it is garbage.
func (v *view) choose() []*part {
	for _, s := range v.segments {
		if 4*s.dead > s.n || len(s.dropped) > maxDropped || len(s.dropped) == len(s.sources) && s.n == s.dead {
			return []*part{s}
		}
	}
	sum, from := 0, len(v.segments)
	for i := len(v.segments) - 1; i >= 0; i-- {
		if w := v.segments[i].weight(); w <= 2*sum || i >= maxSegments-1 && len(v.segments) > maxSegments {
			from = i
		}
		sum += v.segments[i].weight()
	}
	if from == len(v.segments) {
		return nil
	}
	return v.segments[from:]
}

// merge writes the live entries, packs and sources of some parts of v as one
// segment. It streams. Because it reads each entry section completely, it also
// verifies their checksums, and returns errSegment if one is damaged. It also
// returns the IDs of the packs that it left out.
func (v *view) merge(f folder, parts []*part) (merged *segment, gone [][32]byte, err error) {
	// The numbers of the packs in the new segment; packs that are left out have
	// none.
	const none = ^uint32(0)
	renumber := make([][]uint32, len(parts))
	entries, packs := 0, uint32(0)
	for i, s := range parts {
		renumber[i] = slices.Repeat([]uint32{none}, s.packCount())
		entries += s.n - s.dead
	}
	eachPack(parts, func(id []byte, where []numbered) bool {
		if w := where[0]; !parts[w.part].live.has(w.pack) {
			gone = append(gone, [32]byte(id))
			return true
		}
		for _, w := range where {
			renumber[w.part][w.pack] = packs
		}
		packs++
		return true
	})

	budget := int64(filterMemory)
	for _, s := range v.segments {
		if !slices.Contains(parts, s) {
			budget -= int64(len(s.filter))
		}
	}
	t, err := f.create()
	if err != nil {
		return nil, nil, err
	}
	defer t.discard()
	b, err := newBuilder(t, uint64(entries), int(packs), budget)
	if err != nil {
		return nil, nil, err
	}
	cursors := make([]*cursor, len(parts))
	for i, s := range parts {
		cursors[i] = &cursor{segment: s.segment, renumber: renumber[i], hash: blake3.New()}
		cursors[i].next()
	}
	var last row
	for {
		var least *cursor
		for _, c := range cursors {
			if !c.ended && (least == nil || c.row.compare(&least.row) < 0) {
				least = c
			}
		}
		if least == nil {
			break
		}
		r := least.row
		if b.h.entries == 0 || r != last {
			if b.h.entries == uint64(entries) {
				return nil, nil, errSegment // more entries than possible: a part is damaged
			}
			if err := b.entry(r.hi, r.lo, r.pack, r.offset, r.length); err != nil {
				return nil, nil, err
			}
			last = r
		}
		least.next()
	}
	for _, c := range cursors {
		if c.damaged || [sumSize]byte(c.hash.Sum(nil)) != c.entrySum {
			return nil, nil, fmt.Errorf("%s: %w", c.name, errSegment)
		}
	}
	if err := mergeTail(b, parts, renumber); err != nil {
		return nil, nil, err
	}
	size, err := b.finish()
	if err != nil {
		return nil, nil, err
	}
	merged, err = t.segment(size)
	return merged, gone, err
}

// mergeTail writes the packs and sources that are kept.
func mergeTail(b *builder, parts []*part, renumber [][]uint32) (err error) {
	eachPack(parts, func(id []byte, where []numbered) bool {
		if w := where[0]; parts[w.part].live.has(w.pack) {
			size, _ := parts[w.part].packInfo(int(w.pack))
			err = b.pack(id, size)
		}
		return err == nil
	})
	if err != nil {
		return err
	}
	var numbers []uint32
	for i, s := range parts {
		for _, src := range s.sources {
			if _, dropped := s.dropped[src.name]; dropped {
				continue
			}
			numbers = numbers[:0]
			for at := 0; at < len(src.packs); at += 4 {
				numbers = append(numbers, renumber[i][binary.LittleEndian.Uint32(src.packs[at:])])
			}
			if err := b.source(src.name, numbers); err != nil {
				return err
			}
		}
	}
	return nil
}

// row is a decoded entry.
type row struct {
	hi, lo               uint64
	pack, offset, length uint32
}

func (r *row) compare(o *row) int {
	switch {
	case r.hi != o.hi:
		return order(r.hi < o.hi)
	case r.lo != o.lo:
		return order(r.lo < o.lo)
	case r.pack != o.pack:
		return order(r.pack < o.pack)
	case r.offset != o.offset:
		return order(r.offset < o.offset)
	case r.length != o.length:
		return order(r.length < o.length)
	}
	return 0
}

func order(less bool) int {
	if less {
		return -1
	}
	return 1
}

// hashedAtOnce is the number of entries that a cursor hashes in one call.
const hashedAtOnce = 4096

// cursor reads the entries of a segment that are kept.
type cursor struct {
	*segment
	renumber []uint32
	hash     *blake3.Hasher
	at       int
	row      row
	ended    bool
	damaged  bool
}

func (c *cursor) next() {
	before := c.row
	for ; c.at < c.n; c.at++ {
		if c.at%hashedAtOnce == 0 {
			_, _ = c.hash.Write(c.entries[c.at*entrySize : min(c.at+hashedAtOnce, c.n)*entrySize])
		}
		hi, lo := c.key(c.at)
		pack, offset, length := c.place(c.at)
		if int(pack) >= len(c.renumber) {
			c.damaged = true
			continue
		}
		if pack = c.renumber[pack]; pack == ^uint32(0) {
			continue
		}
		r := row{hi, lo, pack, offset, length}
		if r.compare(&before) < 0 {
			c.damaged = true
			continue
		}
		c.row = r
		c.at++
		return
	}
	c.ended = true
}
