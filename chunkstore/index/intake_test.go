package index

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// All entries of an intake that is larger than its memory are found. Chunks
// that were added twice are present once, and no file remains except the
// segment.
func TestIntake(t *testing.T) {
	dirs(t, func(t *testing.T, dir string) {
		x := open(t, dir)
		in := x.Intake()
		defer in.Close()
		const sources, each = 40, 20_000
		for i := range sources {
			s := Source{Name: fmt.Sprint("index/", i), Packs: []PackEntries{packOf(i, i*each, (i+1)*each)}}
			if i > 0 {
				s.Packs = append(s.Packs, packOf(i-1, (i-1)*each, i*each))
			}
			if err := in.Add(s); err != nil {
				t.Fatal(err)
			}
		}
		if n := in.Len(); n != sources {
			t.Errorf("%d sources", n)
		}
		if err := in.Finish(); err != nil {
			t.Fatal(err)
		}
		for i := range sources {
			wantChunks(t, x, i, i*each, (i+1)*each)
		}
		wantNone(t, x, sources*each, sources*each+1000)
		if s := x.Stats(); s.Entries != sources*each || s.Segments != 1 || s.Sources != sources || s.Packs != sources {
			t.Errorf("%+v", s)
		}
		if dir == "" {
			return
		}
		if left, err := filepath.Glob(filepath.Join(dir, tempPrefix+"*")); err != nil || len(left) > 0 {
			t.Errorf("left: %v %v", left, err)
		}
		y := open(t, dir)
		wantChunks(t, y, 3, 3*each, 4*each)
	})
}

// A finished intake does not depend on the cache: if the cache contained the
// same packs and is emptied while the intake collects, no entry of the intake
// is lost.
func TestIntakeBesideDamage(t *testing.T) {
	dir := t.TempDir()
	x := open(t, dir)
	add(t, x, "index/old", packOf(1, 0, 500))
	in := x.Intake()
	defer in.Close()
	if err := in.Add(Source{Name: "index/merged", Packs: []PackEntries{packOf(1, 0, 500), packOf(2, 500, 600)}}); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, manifestName), []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := in.Finish(); err != nil {
		t.Fatal(err)
	}
	wantChunks(t, x, 1, 0, 500)
	wantChunks(t, x, 2, 500, 600)
	if x.HasSource("index/old") || !x.HasSource("index/merged") {
		t.Errorf("sources %v", x.Sources())
	}
}

// Rows are sorted into the order of a segment, whatever their keys.
func TestSortRows(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for _, n := range []int{0, 1, 7, 8, 100, 5000} {
		for _, spread := range []uint64{1, 300, 1 << 55} {
			rows := make([]row, n)
			for i := range rows {
				rows[i] = row{hi: 7<<56 | r.Uint64N(spread), lo: r.Uint64N(3), pack: r.Uint32N(3), offset: r.Uint32N(3)}
			}
			want := slices.Clone(rows)
			slices.SortFunc(want, func(a, b row) int { return a.compare(&b) })
			sortRows(rows, make([]row, n))
			if !slices.Equal(rows, want) {
				t.Fatalf("%d rows spread over %d: out of order", n, spread)
			}
		}
	}
}

// While an intake is built, another process changes the index. No entry of
// either is lost.
func TestIntakeBesideUpdates(t *testing.T) {
	dir := t.TempDir()
	x, y := open(t, dir), open(t, dir)
	in := x.Intake()
	defer in.Close()
	const each = 100_000
	for i := range 4 {
		if err := in.Add(Source{Name: fmt.Sprint("index/", i), Packs: []PackEntries{packOf(i, i*each, (i+1)*each)}}); err != nil {
			t.Fatal(err)
		}
	}
	done := make(chan error)
	go func() { done <- in.Finish() }()
	updates := 0
	for ended := false; !ended; {
		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
			ended = true
		default:
			p := packOf(1000+updates, 10_000_000+100*updates, 10_000_100+100*updates)
			if err := y.Update(nil, []Source{{Name: fmt.Sprint("index/more-", updates), Packs: []PackEntries{p}}}); err != nil {
				t.Fatal(err)
			}
			updates++
		}
	}
	t.Logf("%d updates meanwhile", updates)
	for _, z := range []*Index{x, y, open(t, dir)} {
		if err := z.Update(nil, nil); err != nil {
			t.Fatal(err)
		}
		for i := range 4 {
			wantChunks(t, z, i, i*each, (i+1)*each)
		}
		for i := range updates {
			wantChunks(t, z, 1000+i, 10_000_000+100*i, 10_000_100+100*i)
		}
		if s := z.Stats(); s.Entries != int64(4*each+100*updates) || s.Sources != 4+updates {
			t.Errorf("%+v, %d updates", s, updates)
		}
	}
}
