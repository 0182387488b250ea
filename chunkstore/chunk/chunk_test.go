package chunk

import (
	"bytes"
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

// The end of a chunk depends only on its own bytes: cutting again from any cut
// returns the same later cuts. Incremental backups rely on this.
func TestCutIsLocal(t *testing.T) {
	c, err := NewChunker(DefaultParams(), testKey(7))
	if err != nil {
		t.Fatal(err)
	}
	run := seeded(2, 2<<20)
	ends := c.Ends(nil, run)
	for i, e := range ends[:len(ends)-1] {
		var rest []int
		for _, x := range c.Ends(nil, run[e:]) {
			rest = append(rest, x+e)
		}
		if !slices.Equal(rest, ends[i+1:]) {
			t.Fatalf("cut again at %d: %v, want %v", e, rest, ends[i+1:])
		}
	}
}

// First finds the same cuts as Ends, from the shortest possible part of the
// run, and no other cuts.
func TestFirst(t *testing.T) {
	c, _ := NewChunker(DefaultParams(), testKey(7))
	run := seeded(5, 400<<10)
	at := 0
	for _, e := range c.Ends(nil, run) {
		for n := 1; ; n += 997 {
			n = min(n, len(run)-at)
			got := c.First(run[at:at+n], at+n == len(run))
			if got != 0 && got != e-at {
				t.Fatalf("from %d, %d bytes: cut at %d, want %d", at, n, got, e-at)
			}
			if got == 0 && n > e-at {
				t.Fatalf("from %d: the cut at %d is not seen in %d bytes", at, e-at, n)
			}
			if got != 0 {
				break
			}
		}
		at = e
	}
}

func TestCutSizes(t *testing.T) {
	p := DefaultParams()
	c, _ := NewChunker(p, testKey(7))
	data := seeded(3, 2<<20)
	for _, n := range []int{0, 1, 511, 512, p.Min - 1, p.Min, p.Min + 1, p.Normal, p.Max - 1, p.Max, p.Max + 1, 2 << 20} {
		ends := c.Ends(nil, data[:n])
		at := 0
		for i, e := range ends {
			if size := e - at; size > p.Max || size <= 0 || (size < p.Min && i < len(ends)-1) {
				t.Fatalf("run of %d: chunk %d has %d bytes", n, i, size)
			}
			at = e
		}
		if at != n {
			t.Fatalf("run of %d ends at %d", n, at)
		}
	}
	if zeros := c.Ends(nil, make([]byte, 1<<20)); zeros[len(zeros)-1] != 1<<20 {
		t.Fatal("constant data is not covered")
	}
}

func BenchmarkCut(b *testing.B) {
	c, _ := NewChunker(DefaultParams(), testKey(7))
	data := seeded(4, 2<<20)
	var ends []int
	b.SetBytes(int64(len(data)))
	b.ReportAllocs()
	for b.Loop() {
		ends = c.Ends(ends[:0], data)
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
