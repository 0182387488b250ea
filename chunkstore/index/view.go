package index

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"maps"
	"slices"
)

// view is what lookups see: segments and what of them counts. It never changes;
// a change makes a new one.
type view struct {
	segments []*part // largest first
	stamp    [sumSize]byte
	sources  map[string]struct{}
	stats    Stats
}

// part is a segment in a view.
type part struct {
	*segment
	dropped map[string]struct{} // sources of it that are forgotten

	live    bitmap // packs that some source of the view covers
	visible bitmap // of those, the ones not hidden
	dead    int    // entries in packs that are not live
}

type bitmap []uint64

func newBitmap(n int) bitmap { return make(bitmap, (n+63)/64) }

func (b bitmap) set(i uint32) { b[i/64] |= 1 << (i % 64) }

// has is false for what lies beyond, such as a damaged entry's pack.
func (b bitmap) has(i uint32) bool {
	return int(i/64) < len(b) && b[i/64]&(1<<(i%64)) != 0
}

// newView works out which packs count. The parts need only their segments and
// what is dropped.
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

// numbered is a pack of a part.
type numbered struct {
	part int
	pack uint32
}

// eachPack goes through the packs of all parts in ascending order, each once,
// until fn returns false. Where is valid during the call alone.
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

// lookup finds the first visible place of a prefix.
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

// locate appends the places of a prefix, visible or hidden.
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

// gather appends all places of a prefix. Where many are asked for in the order
// of the index, the filter would be all that lies anywhere.
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

// copyParts gives the parts for a next view.
func (v *view) copyParts() []*part {
	parts := make([]*part, len(v.segments))
	for i, s := range v.segments {
		parts[i] = &part{segment: s.segment, dropped: maps.Clone(s.dropped)}
	}
	return parts
}

// manifest is what the cache folder shall say of these parts.
func manifestOf(parts []*part) manifest {
	m := manifest{Segments: []manifestSegment{}}
	for _, s := range parts {
		m.Segments = append(m.Segments, manifestSegment{
			Name: s.name, Size: s.size, Dropped: slices.Sorted(maps.Keys(s.dropped)),
		})
	}
	return m
}
