package index

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"maps"
	"slices"
)

// view is the state that lookups use: the segments, and which of their packs
// are in use. It is immutable; each change makes a new view.
type view struct {
	segments []*part // largest first
	stamp    [sumSize]byte
	sources  map[string]struct{}
	stats    Stats
}

// part is a segment in a view.
type part struct {
	*segment
	dropped map[string]struct{} // sources of it that were removed from the index

	live    bitmap // packs that at least one source of the view covers
	visible bitmap // live packs that are not hidden
	dead    int    // entries in packs that are not live
}

type bitmap []uint64

func newBitmap(n int) bitmap { return make(bitmap, (n+63)/64) }

func (b bitmap) set(i uint32) { b[i/64] |= 1 << (i % 64) }

// has returns false for numbers beyond the end, such as the pack number of a
// damaged entry.
func (b bitmap) has(i uint32) bool {
	return int(i/64) < len(b) && b[i/64]&(1<<(i%64)) != 0
}

// newView determines which packs are live and which are visible. In parts, only
// the fields segment and dropped must be set.
func newView(parts []*part, hidden map[[32]byte]struct{}, stamp [sumSize]byte) *view {
	v := &view{segments: parts, stamp: stamp, sources: make(map[string]struct{})}
	slices.SortStableFunc(parts, func(a, b *part) int { return cmp.Compare(b.n, a.n) })
	covered := make([]bitmap, len(parts))
	for i, s := range parts {
		covered[i] = newBitmap(s.packCount())
		s.live, s.visible, s.dead = newBitmap(s.packCount()), newBitmap(s.packCount()), 0
		for _, src := range s.sources {
			if _, gone := s.dropped[src.name]; gone {
				continue
			}
			v.sources[src.name] = struct{}{}
			for at := 0; at < len(src.packs); at += 4 {
				covered[i].set(binary.LittleEndian.Uint32(src.packs[at:]))
			}
		}
		v.stats.Bytes += s.size
	}
	eachPack(parts, func(id []byte, where []numbered) bool {
		live := slices.ContainsFunc(where, func(w numbered) bool { return covered[w.part].has(w.pack) })
		_, hide := hidden[[32]byte(id)]
		for _, w := range where {
			s := parts[w.part]
			_, n := s.packInfo(int(w.pack))
			if !live {
				s.dead += int(n)
				continue
			}
			s.live.set(w.pack)
			if !hide {
				s.visible.set(w.pack)
			}
			v.stats.Entries += int64(n)
		}
		if live {
			v.stats.Packs++
		}
		return true
	})
	v.stats.Segments, v.stats.Sources = len(parts), len(v.sources)
	return v
}

// numbered is a pack, by its number in a part.
type numbered struct {
	part int
	pack uint32
}

// eachPack calls fn once for each pack of all parts, in ascending order of ID,
// until fn returns false. Where is valid only during the call.
func eachPack(parts []*part, fn func(id []byte, where []numbered) bool) {
	next := make([]int, len(parts))
	var where []numbered
	for {
		var least []byte
		where = where[:0]
		for i, s := range parts {
			if next[i] == s.packCount() {
				continue
			}
			id := s.packID(next[i])
			order := -1
			if least != nil {
				order = bytes.Compare(id, least)
			}
			if order < 0 {
				least, where = id, where[:0]
			}
			if order <= 0 {
				where = append(where, numbered{i, uint32(next[i])})
			}
		}
		if least == nil {
			return
		}
		for _, w := range where {
			next[w.part]++
		}
		if !fn(least, where) {
			return
		}
	}
}

// lookup returns the first visible location of a prefix.
func (v *view) lookup(hi, lo uint64) (Location, bool) {
	for _, s := range v.segments {
		for i := s.find(hi, lo); i >= 0; i = s.next(i) {
			pack, offset, length := s.place(i)
			if s.visible.has(pack) {
				return s.location(pack, offset, length), true
			}
		}
	}
	return Location{}, false
}

// locate appends the locations of a prefix: those in visible packs, or, if
// hidden is true, those in hidden packs.
func (v *view) locate(hi, lo uint64, hidden bool, dst []Location) []Location {
	for _, s := range v.segments {
		for i := s.find(hi, lo); i >= 0; i = s.next(i) {
			pack, offset, length := s.place(i)
			if s.live.has(pack) && s.visible.has(pack) != hidden {
				dst = append(dst, s.location(pack, offset, length))
			}
		}
	}
	return dst
}

// gather appends all locations of a prefix. It skips the filter: when many
// prefixes are looked up in the order of the index, the filter would be the
// only memory that is accessed at random.
func (v *view) gather(hi, lo uint64, dst []Location) []Location {
	for _, s := range v.segments {
		for i := s.seek(hi, lo); i >= 0; i = s.next(i) {
			pack, offset, length := s.place(i)
			if s.live.has(pack) {
				dst = append(dst, s.location(pack, offset, length))
			}
		}
	}
	return dst
}

// copyParts returns copies of the parts for the next view.
func (v *view) copyParts() []*part {
	parts := make([]*part, len(v.segments))
	for i, s := range v.segments {
		parts[i] = &part{segment: s.segment, dropped: maps.Clone(s.dropped)}
	}
	return parts
}

// manifestOf returns the manifest of these parts for the cache folder.
func manifestOf(parts []*part) manifest {
	m := manifest{Segments: []manifestSegment{}}
	for _, s := range parts {
		m.Segments = append(m.Segments, manifestSegment{
			Name: s.name, Size: s.size, Dropped: slices.Sorted(maps.Keys(s.dropped)),
		})
	}
	return m
}
