package backup

import (
	"bytes"
	"context"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"

	"xenkeep/chunkstore/chunk"
	"xenkeep/internal/disk"
	"xenkeep/repo/tree"
)

// fullCut returns the pieces of a full read of a block.
func fullCut(cut chunk.Chunker, h *chunk.Hasher, data []byte) []tree.Piece {
	var out []tree.Piece
	for at := 0; at < len(data); {
		end := at
		zero := zeroPage(data, at)
		for end < len(data) && zeroPage(data, end) == zero {
			end = min(end+disk.PageSize, len(data))
		}
		if zero {
			out = append(out, tree.Piece{Offset: at, Length: end - at})
			at = end
			continue
		}
		run := at
		for _, e := range cut.Ends(nil, data[at:end]) {
			out = append(out, tree.Piece{ID: h.Sum(chunk.Data, data[at:run+e]), Offset: at, Length: run + e - at})
			at = run + e
		}
	}
	return out
}

func cases(t *testing.T, n int) int {
	if s := os.Getenv("XENKEEP_CASES"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	if testing.Short() {
		return n / 50
	}
	return n
}

// cutKey is a cut key for every algorithm: its first 8 bytes are an irreducible
// polynomial.
func cutKey() []byte {
	return append([]byte{0x00, 0x3D, 0xA3, 0x35, 0x8B, 0x4D, 0xC1, 0x73}, bytes.Repeat([]byte{7}, 24)...)
}

// Chunking again around the changes returns the pieces of a full read, whatever
// changed: pages that become zero or stop being zero, block edges, odd lengths,
// dirty ranges without a change. CI runs 10^5 cases (XENKEEP_CASES).
func TestRecutEqualsFullRead(t *testing.T) {
	var chunkers [2]chunk.Chunker
	for i, p := range []chunk.Params{chunk.DefaultParams(), chunk.RabinParams()} {
		var err error
		if chunkers[i], err = chunk.NewChunker(p, cutKey()); err != nil {
			t.Fatal(err)
		}
	}
	h, _ := chunk.NewHasher(bytes.Repeat([]byte{7}, 32))
	noise := make([]byte, 8<<20)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(noise)
	n := cases(t, 20_000)
	var rc rechunker
	for i := range n {
		cut := chunkers[i%2]
		r := rand.New(rand.NewPCG(uint64(i), 9))
		// Small blocks make most cases cheap and their edges frequent.
		length := []int{1 + r.IntN(300<<10), 64<<10 + r.IntN(512<<10), disk.BlockSize}[min(r.IntN(40), 2)%3]
		if i%40 != 0 && length == disk.BlockSize {
			length = 128<<10 + r.IntN(384<<10)
		}
		data := bytes.Clone(noise[r.IntN(4<<20):][:length])
		for range r.IntN(6) { // zero stretches
			from := r.IntN(length) / disk.PageSize * disk.PageSize
			clear(data[from:min(length, from+disk.PageSize*(1+r.IntN(20)))])
		}
		old := fullCut(cut, h, data)
		if len(old) == 1 && old[0].IsZero() {
			old = nil
		}
		var dirty []disk.Extent
		const granule = 64 << 10
		for g := 0; g < length; g += granule {
			if r.IntN(6) != 0 {
				continue
			}
			e := disk.Extent{Offset: int64(g), Length: int64(min(granule, length-g))}
			if k := len(dirty); k > 0 && dirty[k-1].End() == e.Offset {
				dirty[k-1].Length += e.Length
			} else {
				dirty = append(dirty, e)
			}
			for range r.IntN(4) { // a granule may be dirty and unchanged
				from := g + r.IntN(int(e.Length))
				to := min(from+1+r.IntN(20000), g+int(e.Length))
				switch r.IntN(4) {
				case 0:
					clear(data[from/disk.PageSize*disk.PageSize : to])
				case 1:
					data[from] ^= 1
				case 2:
					data[g] ^= 0x55 // the byte after a chunk that ends here
				default:
					copy(data[from:to], noise[r.IntN(4<<20):])
				}
			}
		}
		want := fullCut(cut, h, data)
		if err := rc.begin(t.Context(), length, old, dirty, func(_ context.Context, p []byte, off int64) error { copy(p, data[off:]); return nil }); err != nil {
			t.Fatal(err)
		}
		got, err := rc.pieces(t.Context(), cut, func(p []byte) (chunk.ID, error) { return h.Sum(chunk.Data, p), nil })
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(tree.AppendList(nil, got), tree.AppendList(nil, want)) {
			t.Fatalf("case %d: %d bytes, dirty %v: cut again otherwise than in full", i, length, dirty)
		}
	}
}

// An isolated granule costs less than four times its size to read, neighbouring
// granules little more than themselves, and few need a second read.
func TestRecutReadsLittle(t *testing.T) {
	for _, p := range []chunk.Params{chunk.DefaultParams(), chunk.RabinParams()} {
		t.Run(p.Algorithm, func(t *testing.T) { recutReadsLittle(t, p) })
	}
}

func recutReadsLittle(t *testing.T, p chunk.Params) {
	cut, err := chunk.NewChunker(p, cutKey())
	if err != nil {
		t.Fatal(err)
	}
	h, _ := chunk.NewHasher(bytes.Repeat([]byte{7}, 32))
	data := make([]byte, disk.BlockSize)
	_, _ = rand.NewChaCha8([32]byte{2}).Read(data)
	old := fullCut(cut, h, data)
	r := rand.New(rand.NewPCG(1, 1))
	for _, c := range []struct {
		granules int
		most     float64
	}{{1, 4}, {4, 2}, {16, 1.3}} {
		var read, asked, reads int64
		const rounds = 200
		for range rounds {
			e := disk.Extent{Offset: int64(r.IntN(32-c.granules)) << 16, Length: int64(c.granules) << 16}
			next := bytes.Clone(data)
			for range 5 {
				next[e.Offset+r.Int64N(e.Length)] ^= 1
			}
			var rc rechunker
			if err := rc.begin(t.Context(), len(next), old, []disk.Extent{e},
				func(_ context.Context, p []byte, off int64) error { reads++; copy(p, next[off:]); return nil }); err != nil {
				t.Fatal(err)
			}
			if _, err := rc.pieces(t.Context(), cut, func(p []byte) (chunk.ID, error) { return h.Sum(chunk.Data, p), nil }); err != nil {
				t.Fatal(err)
			}
			read, asked = read+rc.read, asked+e.Length
		}
		if got := float64(read) / float64(asked); got > c.most {
			t.Errorf("%d granules together: %.2f times their size is read, want at most %.1f", c.granules, got, c.most)
		} else {
			t.Logf("%d granules together: %.2f times their size is read, in %.2f reads", c.granules, got, float64(reads)/rounds)
		}
		if reads > 2*rounds {
			t.Errorf("%d granules together: %.1f reads", c.granules, float64(reads)/rounds)
		}
	}
}
