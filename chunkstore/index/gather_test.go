package index

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// Gather finds the same locations as Locate. It reports each chunk as often as
// it was added, including chunks in hidden packs, whether or not it can write a
// file.
func TestGather(t *testing.T) {
	const chunks, times = 3000, 40_000
	for _, where := range []string{"memory", "folder", "no room"} {
		t.Run(where, func(t *testing.T) {
			dir := ""
			if where != "memory" {
				dir = filepath.Join(t.TempDir(), "cache")
			}
			x := open(t, dir)
			add(t, x, "index/a", packOf(1, 0, 2000), packOf(2, 1000, 2500))
			add(t, x, "index/b", packOf(3, 2200, chunks))
			x.HidePacks([][32]byte{packID(2)})
			if where == "no room" {
				if err := os.RemoveAll(dir); err != nil {
					t.Fatal(err)
				}
			}
			got := make(map[Prefix]int)
			g := x.Gather(func(p Prefix, at []Location) error {
				if got[p]++; got[p] == 1 && !slices.Equal(at, x.Locate(p, nil)) {
					order := func(a, b Location) int { return slices.Compare(a.Pack[:], b.Pack[:]) }
					want := x.Locate(p, nil)
					slices.SortFunc(want, order)
					slices.SortFunc(at, order)
					if !slices.Equal(at, want) {
						t.Fatalf("%v, want %v", at, want)
					}
				}
				return nil
			})
			defer g.Close()
			for round := range 2 {
				for i := range chunks + 5 {
					if err := g.Add(prefix(i)); err != nil {
						t.Fatal(err)
					}
				}
				for range times { // more than one block of one part
					if err := g.Add(prefix(7)); err != nil {
						t.Fatal(err)
					}
				}
				early := len(got) > 0
				if round == 0 && early != (where == "no room") || where != "no room" && g.Len() != chunks+5+times {
					t.Errorf("%d prefixes wait, looked up before: %v", g.Len(), early)
				}
				if err := g.Flush(); err != nil {
					t.Fatal(err)
				}
				if len(got) != chunks+5 || g.Len() != 0 {
					t.Fatalf("%d prefixes, %d wait", len(got), g.Len())
				}
				for i := range chunks + 5 {
					want := 1 + round
					if i == 7 {
						want *= times + 1
					}
					if n := got[prefix(i)]; n != want {
						t.Fatalf("chunk %d: %d times, want %d", i, n, want)
					}
				}
			}
			if left, err := filepath.Glob(filepath.Join(dir, tempPrefix+"*")); dir != "" && (err != nil || len(left) > 0) {
				t.Errorf("left: %v %v", left, err)
			}
		})
	}
}

// An error of the callback ends the call, and a failed read of the spool is an
// error.
func TestGatherFails(t *testing.T) {
	x := open(t, t.TempDir())
	add(t, x, "index/a", packOf(1, 0, 10))
	why := errors.New("no more")
	g := x.Gather(func(Prefix, []Location) error { return why })
	defer g.Close()
	for range 2*spoolBlock/len(Prefix{}) + 1 {
		if err := g.Add(prefix(1)); err != nil {
			t.Fatal(err)
		}
	}
	if err := g.Flush(); !errors.Is(err, why) {
		t.Errorf("error %v", err)
	}
	if err := g.spool.file.Truncate(spoolBlock + 5); err != nil {
		t.Fatal(err)
	}
	g.found = func(Prefix, []Location) error { return nil }
	if err := g.Flush(); err == nil {
		t.Error("a file that was cut off was read")
	}
}
