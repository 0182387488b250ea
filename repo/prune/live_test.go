package prune

import (
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// A liveSet returns the same answers for every blob as a set of blobs.
func TestLiveSet(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		edges := []uint32{0}
		for range rapid.IntRange(1, 60).Draw(t, "blobs") {
			edges = append(edges, edges[len(edges)-1]+rapid.Uint32Range(1, 9).Draw(t, "size"))
		}
		blobs := len(edges) - 1
		var l liveSet
		want := make([]bool, blobs)
		for range rapid.IntRange(0, 300).Draw(t, "marks") {
			i := rapid.IntRange(0, blobs-1).Draw(t, "blob")
			l.add(edges[i], edges[i+1])
			want[i] = true
			if j := rapid.IntRange(0, blobs-1).Draw(t, "asked"); l.has(edges[j], edges[j+1]) != want[j] {
				t.Fatalf("blob %d: %v", j, !want[j])
			}
		}
		var bytes int64
		for i, w := range want {
			if w {
				bytes += int64(edges[i+1] - edges[i])
			}
			if l.has(edges[i], edges[i+1]) != w {
				t.Fatalf("blob %d at the end: %v", i, !w)
			}
		}
		if l.bytes() != bytes || l.empty() != !slices.Contains(want, true) {
			t.Fatalf("%d bytes, want %d", l.bytes(), bytes)
		}
		from := int64(-1)
		for _, s := range l.stretches() {
			if int64(s.From) <= from || s.To <= s.From {
				t.Fatalf("stretches %v", l.stretches())
			}
			from = int64(s.To)
		}
	})
}
