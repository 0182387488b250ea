package index

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/zeebo/blake3"
)

func packID(n int) [32]byte { return blake3.Sum256(fmt.Append(nil, "pack", n)) }

// prefix returns the prefix of the n-th chunk.
func prefix(n int) Prefix {
	sum := blake3.Sum256(binary.LittleEndian.AppendUint64(nil, uint64(n)))
	return PrefixOf(sum)
}

// packOf returns pack n, which contains chunks [from, to).
func packOf(n, from, to int) PackEntries {
	p := PackEntries{Pack: packID(n), Size: int64(1000 + n)}
	for i := from; i < to; i++ {
		p.Entries = append(p.Entries, Entry{Prefix: prefix(i), Offset: uint32(100 * (i - from)), Length: uint32(i%90 + 1)})
	}
	return p
}

func open(t testing.TB, dir string) *Index {
	t.Helper()
	x, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { x.Close() })
	return x
}

func add(t testing.TB, x *Index, source string, packs ...PackEntries) {
	t.Helper()
	if err := x.Add(source, packs); err != nil {
		t.Fatal(err)
	}
}

// wantChunks checks that chunks [from, to) are found, all in pack n.
func wantChunks(t *testing.T, x *Index, n, from, to int) {
	t.Helper()
	for i := from; i < to; i++ {
		at, ok := x.Lookup(prefix(i))
		if want := (Location{Pack: packID(n), Offset: uint32(100 * (i - from)), Length: uint32(i%90 + 1)}); !ok || at != want {
			t.Fatalf("chunk %d: %v %v, want %v", i, at, ok, want)
		}
	}
}

func wantNone(t *testing.T, x *Index, from, to int) {
	t.Helper()
	for i := from; i < to; i++ {
		if at, ok := x.Lookup(prefix(i)); ok {
			t.Fatalf("chunk %d found in %x", i, at.Pack[:4])
		}
	}
}

// dirs runs a test once with a cache folder and once without.
func dirs(t *testing.T, test func(t *testing.T, dir string)) {
	t.Run("folder", func(t *testing.T) { test(t, filepath.Join(t.TempDir(), "cache")) })
	t.Run("memory", func(t *testing.T) { test(t, "") })
}

func TestAddAndLookup(t *testing.T) {
	dirs(t, func(t *testing.T, dir string) {
		x := open(t, dir)
		wantNone(t, x, 0, 10)
		add(t, x, "index/a", packOf(1, 0, 1000), packOf(2, 1000, 3000))
		add(t, x, "index/b", packOf(3, 3000, 3001))
		add(t, x, "index/empty")
		wantChunks(t, x, 1, 0, 1000)
		wantChunks(t, x, 2, 1000, 3000)
		wantChunks(t, x, 3, 3000, 3001)
		wantNone(t, x, 3001, 20_000)
		if got := x.Sources(); !slices.Equal(got, []string{"index/a", "index/b", "index/empty"}) {
			t.Errorf("sources %v", got)
		}
		if s := x.Stats(); s.Entries != 3001 || s.Packs != 3 || s.Sources != 3 || s.Bytes == 0 {
			t.Errorf("stats %+v", s)
		}
		packs := slices.Collect(x.Packs())
		if len(packs) != 3 || !slices.IsSortedFunc(packs, func(a, b Pack) int { return slices.Compare(a.ID[:], b.ID[:]) }) {
			t.Errorf("packs %v", packs)
		}
		if i := slices.IndexFunc(packs, func(p Pack) bool { return p.ID == packID(2) }); i < 0 || packs[i].Entries != 2000 || packs[i].Size != 1002 {
			t.Errorf("packs %v", packs)
		}
	})
}

func TestSurvivesReopening(t *testing.T) {
	dir := t.TempDir()
	x := open(t, dir)
	for i := range 30 {
		add(t, x, fmt.Sprint("index/", i), packOf(i, 100*i, 100*i+100))
	}
	if err := x.Update([]string{"index/7"}, nil); err != nil {
		t.Fatal(err)
	}
	if err := x.Close(); err != nil {
		t.Fatal(err)
	}
	wantNone(t, x, 0, 10)
	if err := x.Add("index/late", nil); !errors.Is(err, errClosed) {
		t.Errorf("add after close: %v", err)
	}
	x = open(t, dir)
	for i := range 30 {
		if i == 7 {
			wantNone(t, x, 700, 800)
		} else {
			wantChunks(t, x, i, 100*i, 100*i+100)
		}
	}
	if s := x.Stats(); s.Sources != 29 || s.Packs != 29 || s.Entries != 2900 || s.Segments > maxSegments {
		t.Errorf("stats %+v", s)
	}
}

// TestMergedIndexObjects replaces index objects by two that are split by
// prefix, as the repository's own merging does. No entry may be lost or be
// present twice.
func TestMergedIndexObjects(t *testing.T) {
	dirs(t, func(t *testing.T, dir string) {
		x := open(t, dir)
		all := []PackEntries{packOf(1, 0, 500), packOf(2, 500, 900)}
		add(t, x, "index/a", all[0])
		add(t, x, "index/b", all[1])
		var low, high []PackEntries
		for _, p := range all {
			l, h := p, p
			l.Entries, h.Entries = nil, nil
			for _, e := range p.Entries {
				if e.Prefix[0] < 128 {
					l.Entries = append(l.Entries, e)
				} else {
					h.Entries = append(h.Entries, e)
				}
			}
			low, high = append(low, l), append(high, h)
		}
		// Once into the index that already has the packs, and once into an
		// empty one.
		fresh := open(t, "")
		for _, y := range []*Index{x, fresh} {
			err := y.Update([]string{"index/a", "index/b"}, []Source{{"index/low", low}, {"index/high", high}})
			if err != nil {
				t.Fatal(err)
			}
			wantChunks(t, y, 1, 0, 500)
			wantChunks(t, y, 2, 500, 900)
			if s := y.Stats(); s.Entries != 900 || s.Sources != 2 || s.Packs != 2 {
				t.Errorf("stats %+v", s)
			}
		}
		if err := x.Update([]string{"index/low", "index/high"}, []Source{{"index/c", all[1:]}}); err != nil {
			t.Fatal(err)
		}
		wantNone(t, x, 0, 500)
		wantChunks(t, x, 2, 500, 900)
	})
}

func TestPackComesBack(t *testing.T) {
	dirs(t, func(t *testing.T, dir string) {
		x := open(t, dir)
		add(t, x, "index/a", packOf(1, 0, 500))
		add(t, x, "index/b", packOf(2, 500, 5000))
		for range 3 {
			if err := x.Update([]string{"index/a"}, nil); err != nil {
				t.Fatal(err)
			}
			wantNone(t, x, 0, 500)
			add(t, x, "index/a", packOf(1, 0, 500))
			wantChunks(t, x, 1, 0, 500)
		}
		// The object is replaced under the same name in one step.
		if err := x.Update([]string{"index/a"}, []Source{{"index/a", []PackEntries{packOf(3, 0, 400)}}}); err != nil {
			t.Fatal(err)
		}
		wantChunks(t, x, 3, 0, 400)
		wantNone(t, x, 400, 500)
		// An object that the index already contains is skipped.
		add(t, x, "index/a", packOf(9, 9000, 9100))
		wantNone(t, x, 9000, 9100)
	})
}

func TestHidePacks(t *testing.T) {
	dirs(t, func(t *testing.T, dir string) {
		x := open(t, dir)
		add(t, x, "index/a", packOf(1, 0, 100))
		x.HidePacks([][32]byte{packID(1), packID(77)})
		wantNone(t, x, 0, 100)
		if at := x.Locate(prefix(5), nil); len(at) != 1 || at[0].Pack != packID(1) {
			t.Errorf("hidden, but to be read: %v", at)
		}
		add(t, x, "index/b", packOf(2, 0, 100))
		wantChunks(t, x, 2, 0, 100)
		at := x.Locate(prefix(5), make([]Location, 1))
		if len(at) != 3 || at[1].Pack != packID(2) || at[2].Pack != packID(1) {
			t.Errorf("places %v", at)
		}
		if n := len(slices.Collect(x.Packs())); n != 2 {
			t.Errorf("%d packs", n)
		}
		x.HidePacks(nil)
		if at := x.Locate(prefix(5), nil); len(at) != 2 {
			t.Errorf("places %v", at)
		}
	})
}

// TestSkewedKeys puts all keys into the first and the last bucket.
func TestSkewedKeys(t *testing.T) {
	x := open(t, t.TempDir())
	p := PackEntries{Pack: packID(1)}
	key := func(i int, first byte) (k Prefix) {
		for j := range k {
			k[j] = first
		}
		binary.BigEndian.PutUint32(k[12:], uint32(i))
		return k
	}
	for i := range 5000 {
		p.Entries = append(p.Entries,
			Entry{Prefix: key(2*i, 0), Offset: uint32(i)}, Entry{Prefix: key(2*i, 255), Offset: uint32(i)})
	}
	add(t, x, "index/a", p)
	for i := range 10_000 {
		for _, first := range []byte{0, 255} {
			at, ok := x.Lookup(key(i, first))
			if ok != (i%2 == 0) || (ok && at.Offset != uint32(i/2)) {
				t.Fatalf("key %d of %d: %v %v", i, first, at, ok)
			}
		}
	}
}

func TestConcurrentLookups(t *testing.T) {
	x := open(t, t.TempDir())
	add(t, x, "index/first", packOf(1, 0, 2000))
	stop := make(chan struct{})
	var g sync.WaitGroup
	for w := range 3 {
		g.Go(func() {
			r := rand.New(rand.NewPCG(1, uint64(w)))
			for {
				select {
				case <-stop:
					return
				default:
				}
				i := r.IntN(2000)
				if at, ok := x.Lookup(prefix(i)); !ok || at.Pack != packID(1) {
					t.Errorf("chunk %d: %v %v", i, at, ok)
					return
				}
				if _, ok := x.Lookup(prefix(-1 - i)); ok {
					t.Error("found what is not there")
					return
				}
			}
		})
	}
	for i := range 60 {
		add(t, x, fmt.Sprint("index/", i), packOf(10+i, 10_000+200*i, 10_200+200*i))
		if i%10 == 9 {
			if err := x.Update([]string{fmt.Sprint("index/", i-5)}, nil); err != nil {
				t.Error(err)
			}
			x.HidePacks([][32]byte{packID(10 + i)})
			runtime.GC() // unmaps segments that only old views used
		}
	}
	close(stop)
	g.Wait()
}

func TestDoesNotAllocate(t *testing.T) {
	x := open(t, t.TempDir())
	add(t, x, "index/a", packOf(1, 0, 1000))
	if n := testing.AllocsPerRun(1000, func() { x.Lookup(prefix0); x.Lookup(missing) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

var prefix0, missing = prefix(0), prefix(-1)

// TestTwoProcesses lets two indexes share one folder, first in turns and then
// concurrently.
func TestTwoProcesses(t *testing.T) {
	dir := t.TempDir()
	x, y := open(t, dir), open(t, dir)
	add(t, x, "index/a", packOf(1, 0, 100))
	wantNone(t, y, 0, 100) // y does not see it until its next change
	add(t, y, "index/b", packOf(2, 100, 200))
	wantChunks(t, y, 1, 0, 100)
	add(t, x, "index/b", packOf(2, 100, 200))
	wantChunks(t, x, 2, 100, 200)
	if s := x.Stats(); s.Entries != 200 {
		t.Errorf("stats %+v", s)
	}
	var g sync.WaitGroup
	for w, z := range []*Index{x, y} {
		g.Go(func() {
			for i := range 40 {
				n := 1000 + 2*i + w
				if err := z.Add(fmt.Sprint("index/", n), []PackEntries{packOf(n, 50*n, 50*n+50)}); err != nil {
					t.Error(err)
				}
				if i%8 == 7 { // an object of the other index, perhaps in a segment that it is merging
					if err := z.Update([]string{fmt.Sprint("index/", n^1), fmt.Sprint("index/", n-4)}, nil); err != nil {
						t.Error(err)
					}
					if err := z.Add(fmt.Sprint("index/", n-4), []PackEntries{packOf(n-4, 50*(n-4), 50*(n-4)+50)}); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	g.Wait()
	z := open(t, dir)
	for _, name := range z.Sources() {
		var n int
		if _, err := fmt.Sscanf(name, "index/%d", &n); err == nil {
			wantChunks(t, z, n, 50*n, 50*n+50)
		}
	}
	if s := z.Stats(); s.Sources < 60 || s.Packs != s.Sources || s.Segments > maxSegments {
		t.Errorf("stats %+v", s)
	}
}

// TestMergeMeetsReturningPack interrupts a merge after its work, while another
// process adds again a pack that the merge has left out.
func TestMergeMeetsReturningPack(t *testing.T) {
	dir := t.TempDir()
	x, y := open(t, dir), open(t, dir)
	add(t, x, "index/a", packOf(1, 0, 1000))
	add(t, x, "index/b", packOf(2, 1000, 1050))
	// Remove index/a without the merge that Update would do next.
	if err := x.change(func() error { return x.apply([]string{"index/a"}, nil) }); err != nil {
		t.Fatal(err)
	}
	v := x.view.Load()
	chosen := v.choose()
	s, gone, err := v.merge(x.folder, chosen)
	if err != nil || len(gone) != 1 {
		t.Fatalf("%d gone, %v", len(gone), err)
	}
	if err := y.change(func() error { return y.apply(nil, []Source{{"index/c", []PackEntries{packOf(1, 0, 1000)}}}) }); err != nil {
		t.Fatal(err)
	}
	err = x.change(func() error {
		replaced, err := x.replace(chosen, s, gone)
		if replaced {
			t.Error("entries of a pack in use were thrown away")
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, z := range []*Index{x, y, open(t, dir)} {
		if z == y {
			add(t, y, "index/d")
		}
		wantChunks(t, z, 1, 0, 1000)
		wantChunks(t, z, 2, 1000, 1050)
	}
}

// TestDamage damages each file of a cache in several ways. Opening must neither
// crash nor trust the damaged file, and adding the sources again must restore
// the index.
func TestDamage(t *testing.T) {
	sources := []Source{
		{"index/a", []PackEntries{packOf(1, 0, 3000)}},
		{"index/b", []PackEntries{packOf(2, 3000, 3500)}},
	}
	build := func(t *testing.T) string {
		dir := t.TempDir()
		x := open(t, dir)
		for _, s := range sources {
			add(t, x, s.Name, s.Packs...)
		}
		if err := x.Close(); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	hurt := map[string]func(path string, p []byte) error{
		"missing":     func(path string, _ []byte) error { return os.Remove(path) },
		"empty":       func(path string, _ []byte) error { return os.Truncate(path, 0) },
		"half":        func(path string, p []byte) error { return os.Truncate(path, int64(len(p)/2)) },
		"short":       func(path string, p []byte) error { return os.Truncate(path, int64(len(p)-1)) },
		"longer":      func(path string, p []byte) error { return os.WriteFile(path, append(p, 0), 0o600) },
		"zeros":       func(path string, p []byte) error { return os.WriteFile(path, make([]byte, len(p)), 0o600) },
		"first byte":  func(path string, p []byte) error { p[0] ^= 1; return os.WriteFile(path, p, 0o600) },
		"head":        func(path string, p []byte) error { p[min(30, len(p)-1)] ^= 1; return os.WriteFile(path, p, 0o600) },
		"fan":         func(path string, p []byte) error { p[min(4099, len(p)-2)] ^= 8; return os.WriteFile(path, p, 0o600) },
		"middle":      func(path string, p []byte) error { p[len(p)/2] ^= 1; return os.WriteFile(path, p, 0o600) },
		"last byte":   func(path string, p []byte) error { p[len(p)-1] ^= 1; return os.WriteFile(path, p, 0o600) },
		"other words": func(path string, p []byte) error { return os.WriteFile(path, []byte("hello\nworld\n"), 0o600) },
	}
	files, err := os.ReadDir(build(t))
	if err != nil {
		t.Fatal(err)
	}
	for n, file := range files {
		if file.Name() == lockName {
			continue
		}
		kind, _, _ := strings.Cut(file.Name(), "-")
		for how, do := range hurt {
			t.Run(fmt.Sprintf("%s %d %s", kind, n, how), func(t *testing.T) {
				dir := build(t)
				now, err := os.ReadDir(dir) // in the same order, although the names differ
				if err != nil {
					t.Fatal(err)
				}
				path := filepath.Join(dir, now[n].Name())
				p, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				if err := do(path, p); err != nil {
					t.Fatal(err)
				}
				x := open(t, dir)
				for i := range 4000 {
					at, ok := x.Lookup(prefix(i)) // may miss, must not crash
					if ok && at.Pack != packID(1) && at.Pack != packID(2) {
						t.Fatalf("chunk %d in pack %x", i, at.Pack)
					}
				}
				if err := x.Update(nil, sources); err != nil {
					t.Fatal(err)
				}
				// Damage to entries is detected when they are next read
				// completely.
				if s, _, err := x.view.Load().merge(folder{}, x.view.Load().segments); errors.Is(err, errSegment) {
					if err := x.change(x.reset); err != nil {
						t.Fatal(err)
					}
					if err := x.Update(nil, sources); err != nil {
						t.Fatal(err)
					}
				} else if err != nil || s.n != 3500 {
					t.Fatal(err)
				}
				wantChunks(t, x, 1, 0, 3000)
				wantChunks(t, x, 2, 3000, 3500)
			})
		}
	}
}

// TestDamageFoundByMerge flips a bit in the entries, which opening does not
// read. The merge, which does read them, must not copy the damage.
func TestDamageFoundByMerge(t *testing.T) {
	dir := t.TempDir()
	x := open(t, dir)
	add(t, x, "index/a", packOf(1, 0, 3000))
	s := x.view.Load().segments[0]
	path := filepath.Join(dir, s.name)
	p, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	p[int64(len(p))-int64(len(s.packs))-10_000] ^= 0x40
	if err := x.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, p, 0o600); err != nil {
		t.Fatal(err)
	}
	x = open(t, dir)
	if !x.HasSource("index/a") {
		t.Fatal("the damage shows at opening; the test hits the wrong place")
	}
	add(t, x, "index/b", packOf(2, 3000, 6000)) // of like size, so merged
	if got := x.Sources(); len(got) != 0 {
		t.Errorf("kept %v", got)
	}
	add(t, x, "index/a", packOf(1, 0, 3000))
	wantChunks(t, x, 1, 0, 3000)
}

func TestCleansUp(t *testing.T) {
	dir := t.TempDir()
	x := open(t, dir)
	for i := range 10 {
		add(t, x, fmt.Sprint("index/", i), packOf(i, 100*i, 100*i+100))
	}
	old := time.Now().Add(-48 * time.Hour)
	for _, name := range []string{"seg-orphan", "tmp-old", "tmp-young", "letter.txt"} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
		if name == "tmp-old" {
			if err := os.Chtimes(path, old, old); err != nil {
				t.Fatal(err)
			}
		}
	}
	x = open(t, dir)
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	segments := 0
	for _, e := range entries {
		switch {
		case e.Name() == "seg-orphan" || e.Name() == "tmp-old":
			t.Errorf("%s is still there", e.Name())
		case strings.HasPrefix(e.Name(), segmentPrefix):
			segments++
		}
	}
	if len(entries) != segments+4 || segments != x.Stats().Segments {
		t.Errorf("files %v for %d segments", entries, x.Stats().Segments)
	}
}

// TestFailedWrite makes the folder unwritable. The index must remain as it was.
func TestFailedWrite(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "cache")
	x := open(t, dir)
	add(t, x, "index/a", packOf(1, 0, 100))
	if err := os.Rename(dir, dir+".away"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	// The error names the folder and contains the next step.
	var full *FolderError
	if err := x.Add("index/b", []PackEntries{packOf(2, 100, 200)}); !errors.As(err, &full) || full.Dir != dir || !strings.Contains(full.Hint(), "--cache-dir") {
		t.Errorf("added to a folder that is none: %v", err)
	}
	wantChunks(t, x, 1, 0, 100)
	if x.HasSource("index/b") {
		t.Error("has what could not be written")
	}
}

// TestFolderDeleted deletes the cache folder, which a user may do at any time.
func TestFolderDeleted(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "cache")
	x := open(t, dir)
	add(t, x, "index/a", packOf(1, 0, 100))
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	wantChunks(t, x, 1, 0, 100)
	add(t, x, "index/b", packOf(2, 100, 200))
	wantChunks(t, x, 2, 100, 200)
	if got := x.Sources(); !slices.Equal(got, []string{"index/b"}) {
		t.Errorf("sources %v", got)
	}
}
