package index

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"sync"
	"testing"
)

const benchEntries = 10_000_000 // about 400 GiB of unique data

// randomPrefix is cheap and as evenly distributed as real IDs are. Entries have
// even n; prefixes that must miss have odd n.
func randomPrefix(n uint64) (p Prefix) {
	mix := func(z uint64) uint64 { // the finalizer of SplitMix64
		z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
		z = (z ^ z>>27) * 0x94d049bb133111eb
		return z ^ z>>31
	}
	binary.BigEndian.PutUint64(p[:8], mix(2*n+1))
	binary.BigEndian.PutUint64(p[8:], mix(n^0x9e3779b97f4a7c15))
	return p
}

// fill adds so many entries, in the shape in which a run adds them: 64 packs
// per index object.
func fill(x *Index, entries int) error {
	const perPack, packs = 1300, 64
	n := uint64(0)
	for source := 0; n < uint64(entries); source++ {
		s := Source{Name: fmt.Sprint("index/", source)}
		for i := 0; i < packs && n < uint64(entries); i++ {
			p := PackEntries{Pack: packID(source*packs + i), Size: 32 << 20, Entries: make([]Entry, 0, perPack)}
			for j := range perPack {
				p.Entries = append(p.Entries, Entry{Prefix: randomPrefix(2 * n), Offset: uint32(j) << 14, Length: 1 << 14})
				n++
			}
			s.Packs = append(s.Packs, p)
		}
		if err := x.Update(nil, []Source{s}); err != nil {
			return err
		}
	}
	return nil
}

func mustFill(tb testing.TB, x *Index, entries int) {
	tb.Helper()
	if err := fill(x, entries); err != nil {
		tb.Fatal(err)
	}
}

// bigIndex is built once and shared by all benchmarks.
var bigIndex = sync.OnceValues(func() (*Index, error) {
	dir, err := os.MkdirTemp("", "index-bench")
	if err != nil {
		return nil, err
	}
	x, err := Open(dir)
	if err != nil {
		return nil, err
	}
	if err := fill(x, benchEntries); err != nil {
		return nil, err
	}
	return x, os.RemoveAll(dir) // the memory maps remain valid
})

func big(b *testing.B) *Index {
	x, err := bigIndex()
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	b.Logf("%+v", x.Stats())
	b.ResetTimer()
	return x
}

func BenchmarkLookupHit(b *testing.B) {
	x := big(b)
	r := rand.New(rand.NewPCG(1, 2))
	for b.Loop() {
		if _, ok := x.Lookup(randomPrefix(2 * r.Uint64N(benchEntries))); !ok {
			b.Fatal("missed")
		}
	}
}

func BenchmarkLookupMiss(b *testing.B) {
	x := big(b)
	r := rand.New(rand.NewPCG(1, 2))
	for b.Loop() {
		if _, ok := x.Lookup(randomPrefix(2*r.Uint64N(benchEntries) + 1)); ok {
			b.Fatal("found")
		}
	}
}

func BenchmarkLookupParallel(b *testing.B) {
	x := big(b)
	b.RunParallel(func(pb *testing.PB) {
		r := rand.New(rand.NewPCG(1, 2))
		for pb.Next() {
			x.Lookup(randomPrefix(r.Uint64N(2 * benchEntries)))
		}
	})
}

// BenchmarkTakeIn adds the index objects of some 80 GiB of data one by one,
// merges included.
func BenchmarkTakeIn(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		x := open(b, b.TempDir())
		mustFill(b, x, 2_000_000)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/2_000_000, "ns/entry")
}

func BenchmarkOpen(b *testing.B) {
	dir := b.TempDir()
	x := open(b, dir)
	mustFill(b, x, 2_000_000)
	b.ReportAllocs()
	b.ResetTimer()
	for b.Loop() {
		y := open(b, dir)
		if y.Stats().Entries < 2_000_000 {
			b.Fatal(y.Stats())
		}
	}
}

// TestMemoryDoesNotGrow compares the heap of an index with the heap of an index
// ten times as large.
func TestMemoryDoesNotGrow(t *testing.T) {
	if testing.Short() {
		t.Skip("SKIP: -short: takes in 1.1 million entries")
	}
	heap := func(entries int) int64 {
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		x := open(t, t.TempDir())
		mustFill(t, x, entries)
		runtime.GC()
		runtime.ReadMemStats(&after)
		if n := x.Stats().Entries; n < int64(entries) {
			t.Fatalf("%d entries", n)
		}
		return int64(after.HeapAlloc) - int64(before.HeapAlloc)
	}
	small, large := heap(100_000), heap(1_000_000)
	t.Logf("heap: %d bytes for 100,000 entries, %d for 1,000,000", small, large)
	if large > small+1<<20 {
		t.Errorf("heap grew from %d to %d bytes", small, large)
	}
}

// TestFilter counts the lookups of absent prefixes that pass the filter.
func TestFilter(t *testing.T) {
	x := open(t, "")
	mustFill(t, x, 200_000)
	through, asked := 0, 0
	for n := range uint64(200_000) {
		hi, lo := split(randomPrefix(2*n + 1))
		for _, s := range x.view.Load().segments {
			asked++
			if s.mayHold(hi, lo) {
				through++
			}
		}
	}
	if rate := float64(through) / float64(asked); rate > 0.02 || rate == 0 {
		t.Errorf("%.4f of lookups in vain pass the filter", rate)
	}
	for _, tt := range []struct {
		entries uint64
		budget  int64
		most    uint64
	}{{0, 1 << 20, 0}, {100, 0, 0}, {100, -5, 0}, {1, 1 << 20, 1}, {1 << 32, filterMemory, filterMemory / blockSize}} {
		blocks, hashes := filterSize(tt.entries, tt.budget)
		if blocks != tt.most || (blocks > 0) != (hashes > 0) {
			t.Errorf("%d entries in %d bytes: %d blocks, %d hashes", tt.entries, tt.budget, blocks, hashes)
		}
	}
}
