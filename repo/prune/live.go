package prune

import (
	"cmp"
	"slices"

	"xenkeep/chunkstore"
)

// liveSet records which bytes of a pack are needed. Neighbours in a pack mostly
// live and die together, so that there are far fewer stretches than blobs; at worst
// there are half as many.
type liveSet struct {
	spans  []chunkstore.Span // the first sorted of them are ascending and disjoint
	sorted int
}

// add marks the bytes [from, to) as needed.
func (l *liveSet) add(from, to uint32) {
	if n := len(l.spans); n > 0 {
		last := &l.spans[n-1]
		if from >= last.From && to <= last.To {
			return
		}
		if from == last.To {
			last.To = to
			return
		}
		if l.has(from, to) {
			return
		}
	}
	l.spans = append(l.spans, chunkstore.Span{From: from, To: to})
	if len(l.spans) > l.sorted+l.sorted/4+16 {
		l.compact()
	}
}

// has reports whether all bytes [from, to) are known to be needed. It may return
// false if they were added in parts.
func (l *liveSet) has(from, to uint32) bool {
	i, found := slices.BinarySearchFunc(l.spans[:l.sorted], from, func(s chunkstore.Span, at uint32) int { return cmp.Compare(s.From, at) })
	if !found {
		i--
	}
	if i >= 0 && to <= l.spans[i].To {
		return true
	}
	return slices.ContainsFunc(l.spans[l.sorted:], func(s chunkstore.Span) bool { return from >= s.From && to <= s.To })
}

func (l *liveSet) compact() {
	slices.SortFunc(l.spans, func(a, b chunkstore.Span) int { return cmp.Compare(a.From, b.From) })
	n := 0
	for _, s := range l.spans {
		if n > 0 && s.From <= l.spans[n-1].To {
			l.spans[n-1].To = max(l.spans[n-1].To, s.To)
			continue
		}
		l.spans[n] = s
		n++
	}
	l.spans = l.spans[:n]
	l.sorted = n
}

func (l *liveSet) empty() bool { return len(l.spans) == 0 }

// stretches returns the needed ranges, ascending and disjoint.
func (l *liveSet) stretches() []chunkstore.Span {
	l.compact()
	return l.spans
}

// bytes returns the number of needed bytes.
func (l *liveSet) bytes() (n int64) {
	for _, s := range l.stretches() {
		n += int64(s.To - s.From)
	}
	return n
}
