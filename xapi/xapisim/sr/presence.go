package sr

import "math/bits"

// pages is a set of the pages of one block.
type pages [pagesPerBlock / 64]uint64

// allPages contains every page of a block.
var allPages = func() (p pages) {
	for i := range p {
		p[i] = ^uint64(0)
	}
	return p
}()

// pageRange returns the set of pages from lo up to, but excluding, hi.
func pageRange(lo, hi int) (p pages) {
	for i := range p {
		first, last := max(lo-64*i, 0), min(hi-64*i, 64)
		if first < last {
			p[i] = ^uint64(0) >> (64 - (last - first)) << first
		}
	}
	return p
}

func (p *pages) empty() bool { return *p == pages{} }

func (p *pages) has(i int) bool { return p[i/64]>>(i%64)&1 != 0 }

func (p pages) and(o pages) pages {
	for i := range p {
		p[i] &= o[i]
	}
	return p
}

func (p pages) or(o pages) pages {
	for i := range p {
		p[i] |= o[i]
	}
	return p
}

func (p pages) without(o pages) pages {
	for i := range p {
		p[i] &^= o[i]
	}
	return p
}

// next returns the first stretch of consecutive pages at or after from; lo is
// pagesPerBlock if there is none.
func (p *pages) next(from int) (lo, hi int) {
	lo = p.scan(from, 0)
	return lo, p.scan(lo, ^uint64(0))
}

// scan finds the first page at or after from whose bit, xored with flip, is
// set.
func (p *pages) scan(from int, flip uint64) int {
	for from < pagesPerBlock {
		if w := (p[from/64] ^ flip) >> (from % 64); w != 0 {
			return from + bits.TrailingZeros64(w)
		}
		from = (from/64 + 1) * 64
	}
	return pagesPerBlock
}

// presence is the set of pages of a disk that a file or layer holds. A disk of
// 1 TiB that is completely present or completely absent costs two bits per
// block.
type presence struct {
	some, full bitset
	partial    map[int64]*pages
}

func (p *presence) get(block int64) pages {
	switch {
	case !p.some.has(block):
		return pages{}
	case p.full.has(block):
		return allPages
	}
	return *p.partial[block]
}

// add adds pages of a block and reports whether it was empty before.
func (p *presence) add(block int64, set pages) (first bool) {
	if set.empty() || p.full.has(block) {
		return false
	}
	first = !p.some.has(block)
	p.some.set(block)
	have := p.partial[block]
	if have == nil {
		have = new(pages)
	}
	*have = have.or(set)
	if *have == allPages {
		p.full.set(block)
		delete(p.partial, block)
		return first
	}
	if p.partial == nil {
		p.partial = make(map[int64]*pages)
	}
	p.partial[block] = have
	return first
}

// addRange adds all pages that contain a byte of [off, end).
func (p *presence) addRange(off, end int64) {
	for off < end {
		block := off / blockSize
		stop := min(end, (block+1)*blockSize)
		start := block * blockSize
		p.add(block, pageRange(int((off-start)/pageSize), int((stop-start+pageSize-1)/pageSize)))
		off = stop
	}
}

// bitset is a set of block numbers that grows as needed.
type bitset []uint64

func (b bitset) has(i int64) bool { return i/64 < int64(len(b)) && b[i/64]>>(i%64)&1 != 0 }

func (b *bitset) set(i int64) {
	if n := i/64 + 1; n > int64(len(*b)) {
		*b = append(*b, make([]uint64, n-int64(len(*b)))...)
	}
	(*b)[i/64] |= 1 << (i % 64)
}

// next returns the first member at or after i, or -1.
func (b bitset) next(i int64) int64 {
	for i>>6 < int64(len(b)) {
		if w := b[i>>6] >> (i & 63); w != 0 {
			return i + int64(bits.TrailingZeros64(w))
		}
		i = (i>>6 + 1) << 6
	}
	return -1
}

// union adds all members of o.
func (b *bitset) union(o bitset) {
	if len(o) > len(*b) {
		*b = append(*b, make([]uint64, len(o)-len(*b))...)
	}
	for i, w := range o {
		(*b)[i] |= w
	}
}

// cut removes all members from n on.
func (b *bitset) cut(n int64) {
	if n/64 >= int64(len(*b)) {
		return
	}
	*b = (*b)[:n/64+1]
	(*b)[n/64] &= 1<<(n%64) - 1
}

// count returns the number of members.
func (b bitset) count() int64 {
	n := 0
	for _, w := range b {
		n += bits.OnesCount64(w)
	}
	return int64(n)
}
