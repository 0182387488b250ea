package stats

import (
	"encoding/binary"
	"math/bits"

	"xenkeep/chunkstore/chunk"
)

// maxIDs is the maximum number of slots in the set of chunks, of 8 bytes each.
const maxIDs = 16 << 20

// idSet is a set of chunks by their IDs, which are as good as random, with their
// lengths: a hash table with open addressing, at most three quarters full. When it
// is full at its maximum size, every second chunk is dropped, by a bit of its ID,
// and no longer counted; so the rest is a uniform sample.
type idSet struct {
	table []uint64 // 17 bits of length below 47 bits of ID
	most  int      // maximum number of slots
	n     int
	sum   int64
	skip  int // number of low bits of a counted ID that are zero
}

const lengthBits = 17

func newIDSet(most int) *idSet { return &idSet{most: most} }

// bytes returns the total length of all chunks, each counted once.
func (s *idSet) bytes() int64 { return s.sum << s.skip }

func (s *idSet) add(id chunk.ID, length int) {
	if !s.counts(binary.LittleEndian.Uint64(id[8:])) {
		return
	}
	for 4*(s.n+1) > 3*len(s.table) {
		s.grow()
		if !s.counts(binary.LittleEndian.Uint64(id[8:])) {
			return
		}
	}
	s.put(binary.LittleEndian.Uint64(id[8:])<<lengthBits | uint64(length)&(1<<lengthBits-1))
}

// counts reports whether a chunk is in the sample, by the lowest of the bits that
// the table stores.
func (s *idSet) counts(v uint64) bool { return v&(1<<s.skip-1) == 0 }

func (s *idSet) grow() {
	old, size := s.table, max(1024, 2*len(s.table))
	if size > s.most {
		size = len(s.table)
		s.skip++
	}
	s.table, s.n, s.sum = make([]uint64, size), 0, 0
	for _, v := range old {
		if v != 0 && s.counts(v>>lengthBits) {
			s.put(v)
		}
	}
}

// put adds a chunk unless it is present. No chunk is empty, so zero is an empty
// slot.
func (s *idSet) put(v uint64) {
	mask := uint64(len(s.table) - 1)
	// The lowest bits of a sample's IDs are zero, so the highest select the slot.
	for i := bits.Reverse64(v) & mask; ; i = (i + 1) & mask {
		switch at := s.table[i]; {
		case at == 0:
			s.table[i] = v
			s.n++
			s.sum += int64(v & (1<<lengthBits - 1))
			return
		case at>>lengthBits == v>>lengthBits:
			return
		}
	}
}
