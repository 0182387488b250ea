package index

import (
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// model is the index as plain maps.
type model struct {
	packs   []PackEntries         // of the repository, immutable
	sources map[string][]int      // the packs that each covers
	hidden  map[int]bool          // packs
	places  map[Prefix][]Location // of all packs
}

// live returns the packs that at least one source covers.
func (m *model) live() map[[32]byte]bool {
	live := make(map[[32]byte]bool)
	for _, packs := range m.sources {
		for _, p := range packs {
			live[m.packs[p].Pack] = true
		}
	}
	return live
}

// TestModel adds, replaces and removes index objects at random through two
// indexes on one folder, reopens the indexes, and compares everything with
// maps.
func TestModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		m := &model{sources: make(map[string][]int), hidden: make(map[int]bool), places: make(map[Prefix][]Location)}
		chunks := rapid.IntRange(1, 400).Draw(rt, "chunks")
		for n := range rapid.IntRange(1, 12).Draw(rt, "packs") {
			from := rapid.IntRange(0, chunks-1).Draw(rt, "from") // packs may overlap: such chunks are stored twice
			p := packOf(n, from, rapid.IntRange(from, chunks).Draw(rt, "to"))
			m.packs = append(m.packs, p)
			for _, e := range p.Entries {
				m.places[e.Prefix] = append(m.places[e.Prefix], Location{p.Pack, e.Offset, e.Length})
			}
		}
		dir := ""
		if rapid.Bool().Draw(rt, "folder") {
			dir = t.TempDir()
		}
		open := func() *Index {
			x, err := Open(dir)
			if err != nil {
				rt.Fatal(err)
			}
			return x
		}
		xs := []*Index{open()}
		if dir != "" {
			xs = append(xs, open())
		}
		next := 0
		compare := func(x *Index) {
			if err := x.Update(nil, nil); err != nil { // loads the changes of the other index
				rt.Fatal(err)
			}
			live := m.live()
			for i := range chunks + 5 {
				p := prefix(i)
				var want []Location
				visible := false
				for _, at := range m.places[p] {
					if live[at.Pack] {
						want = append(want, at)
						visible = visible || !m.hidden[slices.IndexFunc(m.packs, func(q PackEntries) bool { return q.Pack == at.Pack })]
					}
				}
				got := x.Locate(p, nil)
				at, ok := x.Lookup(p)
				order := func(a, b Location) int { return slices.Compare(a.Pack[:], b.Pack[:]) }
				if ok && (len(got) == 0 || got[0] != at) {
					rt.Fatalf("chunk %d: looked up %v, located %v", i, at, got)
				}
				slices.SortFunc(want, order)
				slices.SortFunc(got, order)
				if !slices.Equal(want, got) || ok != visible {
					rt.Fatalf("chunk %d: %d places, want %d; found %v, want %v", i, len(got), len(want), ok, visible)
				}
			}
			n := 0
			for p := range x.Packs() {
				if !live[p.ID] {
					rt.Fatalf("pack %x is not live", p.ID[:4])
				}
				n++
				want := m.packs[slices.IndexFunc(m.packs, func(q PackEntries) bool { return q.Pack == p.ID })]
				if p.Size != want.Size || int(p.Entries) != len(want.Entries) {
					rt.Fatalf("pack %+v, want %d entries", p, len(want.Entries))
				}
			}
			if s := x.Stats(); n != len(live) || s.Packs != n || s.Sources != len(m.sources) || s.Segments > maxSegments {
				rt.Fatalf("%d packs of %d, stats %+v", n, len(live), s)
			}
			if got := x.Sources(); len(got) != len(m.sources) {
				rt.Fatalf("sources %v, want %d", got, len(m.sources))
			}
		}
		rt.Repeat(map[string]func(*rapid.T){
			"update": func(rt *rapid.T) {
				x := rapid.SampledFrom(xs).Draw(rt, "index")
				names := make([]string, 0, len(m.sources))
				for name := range m.sources {
					names = append(names, name)
				}
				slices.Sort(names)
				var remove []string
				if len(names) > 0 {
					remove = rapid.SliceOfNDistinct(rapid.SampledFrom(names), 0, len(names), rapid.ID).Draw(rt, "remove")
				}
				var sources []Source
				for range rapid.IntRange(0, 3).Draw(rt, "sources") {
					s := Source{Name: fmt.Sprint("index/", next)}
					next++
					split := rapid.Bool().Draw(rt, "split") // into two objects by prefix
					other := Source{Name: s.Name + "-high"}
					for n, p := range m.packs {
						if !rapid.Bool().Draw(rt, "covers") {
							continue
						}
						m.sources[s.Name] = append(m.sources[s.Name], n)
						if split {
							m.sources[other.Name] = append(m.sources[other.Name], n)
							high := p
							high.Entries = nil
							p.Entries = slices.DeleteFunc(slices.Clone(p.Entries), func(e Entry) bool {
								if e.Prefix[0] >= 100 {
									high.Entries = append(high.Entries, e)
								}
								return e.Prefix[0] >= 100
							})
							other.Packs = append(other.Packs, high)
						}
						s.Packs = append(s.Packs, p)
					}
					if m.sources[s.Name] == nil {
						m.sources[s.Name] = []int{}
					}
					sources = append(sources, s)
					if len(other.Packs) > 0 {
						sources = append(sources, other)
					}
				}
				if rapid.Bool().Draw(rt, "intake") {
					// Meanwhile another index adds some of them.
					in := x.Intake()
					defer in.Close()
					for _, s := range sources {
						if err := in.Add(s); err != nil {
							rt.Fatal(err)
						}
					}
					some := rapid.IntRange(0, len(sources)).Draw(rt, "some")
					if err := rapid.SampledFrom(xs).Draw(rt, "other").Update(remove, sources[:some]); err != nil {
						rt.Fatal(err)
					}
					if err := in.Finish(); err != nil {
						rt.Fatal(err)
					}
				} else if err := x.Update(remove, sources); err != nil {
					rt.Fatal(err)
				}
				// If one half of a split object is removed, the entries of its
				// packs remain.
				for _, name := range remove {
					delete(m.sources, name)
				}
			},
			"hide": func(rt *rapid.T) {
				m.hidden = make(map[int]bool)
				var ids [][32]byte
				for n, p := range m.packs {
					if rapid.Bool().Draw(rt, "hide") {
						m.hidden[n] = true
						ids = append(ids, p.Pack)
					}
				}
				for _, x := range xs {
					x.HidePacks(ids)
				}
			},
			"reopen": func(rt *rapid.T) {
				if dir == "" {
					rt.Skip("in memory")
				}
				i := rapid.IntRange(0, len(xs)-1).Draw(rt, "index")
				if err := xs[i].Close(); err != nil {
					rt.Fatal(err)
				}
				xs[i] = open()
				var ids [][32]byte
				for n := range m.hidden {
					ids = append(ids, m.packs[n].Pack)
				}
				xs[i].HidePacks(ids)
			},
			"": func(rt *rapid.T) {
				for _, x := range xs {
					compare(x)
				}
			},
		})
	})
}
