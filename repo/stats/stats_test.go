package stats

import (
	"math/rand/v2"
	"testing"

	"xenkeep/chunkstore/chunk"
)

// Each chunk counts once; with more chunks than the set can store, its estimate is
// close to the true value.
func TestIDSet(t *testing.T) {
	for _, n := range []int{0, 1, 700, 3000, 200_000} {
		s := newIDSet(4096)
		r := rand.NewChaCha8([32]byte{byte(n)})
		var want int64
		for range n {
			var id chunk.ID
			_, _ = r.Read(id[:])
			length := 24<<10 + int(id[0])<<8
			want += int64(length)
			s.add(id, length)
			s.add(id, length)
		}
		got := s.bytes()
		if len(s.table) > 4096 || 4*s.n > 3*len(s.table) {
			t.Errorf("%d chunks: %d in a table of %d", n, s.n, len(s.table))
		}
		if exact := n <= 3000; exact != (s.skip == 0) || exact && got != want {
			t.Errorf("%d chunks: %d bytes, want %d (1 in 2^%d counted)", n, got, want, s.skip)
		}
		if off := float64(got-want) / float64(max(want, 1)); off > 0.1 || off < -0.1 {
			t.Errorf("%d chunks: %d bytes, want about %d", n, got, want)
		}
	}
}
