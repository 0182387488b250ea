package chunk

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"slices"
	"testing"
)

func seeded(seed uint64, n int) []byte {
	b := make([]byte, n)
	src := rand.NewChaCha8([32]byte{byte(seed)})
	_, _ = src.Read(b)
	return b
}

func testKey(b byte) []byte { return bytes.Repeat([]byte{b}, 32) }

// rabinKey returns a cut key that begins with a polynomial.
func rabinKey(pol uint64) []byte {
	return append(binary.BigEndian.AppendUint64(nil, pol), make([]byte, 24)...)
}

// newChunkers returns a chunker of each algorithm, by its name.
func newChunkers(tb testing.TB) map[string]Chunker {
	tb.Helper()
	out := make(map[string]Chunker)
	for _, c := range []struct {
		p   Params
		key []byte
	}{{DefaultParams(), testKey(7)}, {RabinParams(), rabinKey(0x3DA3358B4DC173)}} {
		var err error
		if out[c.p.Algorithm], err = NewChunker(c.p, c.key); err != nil {
			tb.Fatal(err)
		}
	}
	return out
}

func TestCutVectors(t *testing.T) {
	c, err := NewChunker(DefaultParams(), testKey(7))
	if err != nil {
		t.Fatal(err)
	}
	got := c.Ends(nil, seeded(1, 512<<10))
	// These values are pinned: an unnoticed change here would end deduplication
	// against every existing repository.
	want := []int{37261, 79797, 115849, 159879, 193834, 231999, 265003, 309696, 346377, 390616, 431246, 468647, 506773, 524288}
	if !slices.Equal(got, want) {
		t.Fatalf("cuts are %v, want %v", got, want)
	}
	other, _ := NewChunker(DefaultParams(), testKey(8))
	if slices.Equal(got, other.Ends(nil, seeded(1, 512<<10))) {
		t.Fatal("another key cuts at the same places")
	}
}

func TestIDVectors(t *testing.T) {
	h, err := NewHasher(testKey(7))
	if err != nil {
		t.Fatal(err)
	}
	if got, want := h.Sum(Data, []byte("xenkeep")).String(), "9db9b5d21a1e2eed8e9d5a6725ee3b1670272a171e251230e79c8910b93fecad"; got != want {
		t.Errorf("data id is %s, want %s", got, want)
	}
	if h.Sum(Data, []byte("x")) == h.Sum(List, []byte("x")) {
		t.Error("two kinds share an ID")
	}
	if h.Sum(Data, []byte("x")) != h.Clone().Sum(Data, []byte("x")) {
		t.Error("a clone gives another ID")
	}
}

// Rabin's cuts are pinned like those of FastCDC.
func TestRabinVectors(t *testing.T) {
	got := newChunkers(t)[Rabin].Ends(nil, seeded(1, 512<<10))
	want := []int{55218, 82926, 115077, 153862, 207356, 240508, 268556, 334196, 359843, 413451, 441028, 473548, 510775, 524288}
	if !slices.Equal(got, want) {
		t.Fatalf("cuts are %v, want %v", got, want)
	}
	for _, pol := range []uint64{0, 1, 0x3DA3358B4DC172, 0x3DA3358B4DC173 | 1<<60} {
		if _, err := NewChunker(RabinParams(), rabinKey(pol)); !errors.Is(err, errPolynomial) {
			t.Errorf("polynomial %x: %v", pol, err)
		}
	}
}

// The cuts are those that docs/format.md defines, computed bit by bit.
func TestRabinDefinition(t *testing.T) {
	const pol = 0x3DA3358B4DC173
	p := RabinParams()
	run := seeded(8, 200<<10)
	cuts := func(chunk []byte) bool { // whether a chunk ends after these bytes
		if len(chunk) < p.Min {
			return false
		}
		var f uint64
		for _, b := range chunk[len(chunk)-64:] {
			for bit := 7; bit >= 0; bit-- {
				if f = f<<1 | uint64(b>>bit&1); f>>53 == 1 {
					f ^= pol
				}
			}
		}
		return f&uint64(p.Normal-1) == 0 || len(chunk) == p.Max
	}
	var want []int
	at := 0
	for i := 1; i <= len(run); i++ {
		if i == len(run) || cuts(run[at:i]) {
			want = append(want, i)
			at = i
		}
	}
	if got := newChunkers(t)[Rabin].Ends(nil, run); !slices.Equal(got, want) {
		t.Fatalf("cuts are %v, want %v", got, want)
	}
}

// A new key cuts, and two keys cut at different places.
func TestNewKey(t *testing.T) {
	for _, p := range []Params{DefaultParams(), RabinParams()} {
		var ends [2][]int
		for i := range ends {
			key, err := p.NewKey()
			if err != nil {
				t.Fatal(err)
			}
			c, err := NewChunker(p, key[:])
			if err != nil {
				t.Fatal(err)
			}
			ends[i] = c.Ends(nil, seeded(1, 512<<10))
		}
		if slices.Equal(ends[0], ends[1]) {
			t.Errorf("%s: two keys cut at the same places", p.Algorithm)
		}
	}
}

func TestValidate(t *testing.T) {
	for name, p := range map[string]Params{
		"unknown":          {Algorithm: "new", Min: 24 << 10, Normal: 32 << 10, Max: 96 << 10},
		"no power of two":  {Algorithm: FastCDC, Min: 24 << 10, Normal: 33 << 10, Max: 96 << 10},
		"normal below min": {Algorithm: FastCDC, Min: 24 << 10, Normal: 16 << 10, Max: 96 << 10},
		"rabin, tiny":      {Algorithm: Rabin, Min: 24 << 10, Normal: 512, Max: 96 << 10},
		"rabin, no room":   {Algorithm: Rabin, Min: 24 << 10, Normal: 64 << 10, Max: 88 << 10},
		"rabin, zero":      {Algorithm: Rabin, Min: 24 << 10, Max: 96 << 10},
	} {
		if p.Validate() == nil {
			t.Errorf("%s: valid", name)
		}
	}
}

// The end of a chunk depends only on its own bytes: cutting again from any cut
// returns the same later cuts. Incremental backups rely on this.
func TestCutIsLocal(t *testing.T) {
	for name, c := range newChunkers(t) {
		run := seeded(2, 2<<20)
		ends := c.Ends(nil, run)
		for i, e := range ends[:len(ends)-1] {
			var rest []int
			for _, x := range c.Ends(nil, run[e:]) {
				rest = append(rest, x+e)
			}
			if !slices.Equal(rest, ends[i+1:]) {
				t.Fatalf("%s: cut again at %d: %v, want %v", name, e, rest, ends[i+1:])
			}
		}
	}
}

// A chunk ends at the same place whatever follows the byte after it.
func TestCutIgnoresRest(t *testing.T) {
	for name, c := range newChunkers(t) {
		run := seeded(6, 1<<20)
		at := 0
		for _, e := range c.Ends(nil, run) {
			if e+1 >= len(run) {
				break
			}
			other := slices.Concat(run[at:e+1], seeded(9, 200<<10))
			if got := c.Ends(nil, other)[0]; got != e-at {
				t.Fatalf("%s: chunk at %d ends at %d, with other bytes after it at %d", name, at, e-at, got)
			}
			at = e
		}
	}
}

// First finds the same cuts as Ends, from the shortest possible part of the
// run, and no other cuts.
func TestFirst(t *testing.T) {
	for name, c := range newChunkers(t) {
		run := seeded(5, 400<<10)
		at := 0
		for _, e := range c.Ends(nil, run) {
			for n := 1; ; n += 997 {
				n = min(n, len(run)-at)
				got := c.First(run[at:at+n], at+n == len(run))
				if got != 0 && got != e-at {
					t.Fatalf("%s: from %d, %d bytes: cut at %d, want %d", name, at, n, got, e-at)
				}
				if got == 0 && n > e-at {
					t.Fatalf("%s: from %d: the cut at %d is not seen in %d bytes", name, at, e-at, n)
				}
				if got != 0 {
					break
				}
			}
			at = e
		}
	}
}

func TestCutSizes(t *testing.T) {
	data := seeded(3, 2<<20)
	for name, c := range newChunkers(t) {
		p := DefaultParams() // Rabin's shortest and longest chunks are the same
		for _, n := range []int{0, 1, 511, 512, p.Min - 65, p.Min - 64, p.Min - 63, p.Min - 1, p.Min, p.Min + 1, p.Normal, p.Max - 1, p.Max, p.Max + 1, 2 << 20} {
			ends := c.Ends(nil, data[:n])
			at := 0
			for i, e := range ends {
				if size := e - at; size > p.Max || size <= 0 || (size < p.Min && i < len(ends)-1) {
					t.Fatalf("%s: run of %d: chunk %d has %d bytes", name, n, i, size)
				}
				at = e
			}
			if at != n {
				t.Fatalf("%s: run of %d ends at %d", name, n, at)
			}
		}
		if zeros := c.Ends(nil, make([]byte, 1<<20)); zeros[len(zeros)-1] != 1<<20 {
			t.Fatalf("%s: constant data is not covered", name)
		}
	}
}

func BenchmarkCut(b *testing.B) {
	data := seeded(4, 2<<20)
	for name, c := range newChunkers(b) {
		b.Run(name, func(b *testing.B) {
			var ends []int
			b.SetBytes(int64(len(data)))
			b.ReportAllocs()
			for b.Loop() {
				ends = c.Ends(ends[:0], data)
			}
		})
	}
}

func BenchmarkID(b *testing.B) {
	h, _ := NewHasher(testKey(7))
	data := seeded(4, 32<<10)
	b.SetBytes(int64(len(data)))
	b.ReportAllocs()
	for b.Loop() {
		h.Sum(Data, data)
	}
}
