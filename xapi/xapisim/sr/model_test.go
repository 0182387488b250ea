package sr

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
)

// Snapshots, exports, garbage collection and writes run concurrently: every
// snapshot must be one instant of a disk whose pages the writer numbers in
// order.
func TestConcurrency(t *testing.T) {
	s := newSR(t, Config{Type: "ext"})
	const pagesWritten = 64
	v := create(t, s, "v", 4*mib, nil)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		page := make([]byte, pageSize)
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			for j := range page {
				page[j] = byte(i / pagesWritten)
			}
			if _, err := v.WriteAt(page, int64(i%pagesWritten)*pageSize); err != nil {
				t.Error(err)
				return
			}
		}
	})
	for i := range 40 {
		snap, _, err := v.Snapshot(fmt.Sprintf("s%d", i), fmt.Sprintf("b%d", i))
		if err != nil {
			t.Fatal(err)
		}
		e, err := snap.Export("raw", nil)
		if err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		wg.Go(func() {
			if _, err := s.GC(); err != nil {
				t.Error(err)
			}
		})
		if _, err := e.WriteTo(&b); err != nil {
			t.Fatal(err)
		}
		e.Close()
		drops := 0
		for p := 1; p < pagesWritten; p++ {
			cur, last := b.Bytes()[p*pageSize], b.Bytes()[(p-1)*pageSize]
			if b.Bytes()[p*pageSize+pageSize-1] != cur {
				t.Fatalf("snapshot %d holds half a write", i)
			}
			if cur != last {
				drops++
			}
		}
		if drops > 1 {
			t.Fatalf("snapshot %d mixes %d instants", i, drops)
		}
		if err := snap.Destroy(); err != nil {
			t.Fatal(err)
		}
		if i%8 == 7 {
			// No export blocks it now.
			if _, err := s.GC(); err != nil {
				t.Fatal(err)
			}
		}
	}
	close(stop)
	wg.Wait()
}

// Random guest writes, snapshots, clones, deletions and collections are
// compared with plain byte slices; full and differencing exports are applied as
// a backup tool would.
func TestModel(t *testing.T) {
	seed := rand.Uint64()
	rnd := rand.New(rand.NewPCG(seed, 0))
	defer func() {
		if t.Failed() {
			t.Logf("seed %d", seed)
		}
	}()
	for _, kind := range []string{"ext", "lvm"} {
		s := newSR(t, Config{Type: kind})
		model := map[string][]byte{}
		image := make([]byte, 6*mib)
		for i := range image[2*mib+777 : 5*mib] {
			image[2*mib+777+i] = byte(rnd.Uint32())
		}
		path := filepath.Join(t.TempDir(), "image")
		if err := os.WriteFile(path, image, 0o400); err != nil {
			t.Fatal(err)
		}
		if _, err := s.AddImage("0", path, nil); err != nil {
			t.Fatal(err)
		}
		model["0"] = bytes.Clone(image)
		names := []string{"0"}
		for step := 1; step <= 300 && !t.Failed(); step++ {
			name := names[rnd.IntN(len(names))]
			v, want := s.Volume(name), model[name]
			switch op := rnd.IntN(12); {
			case op < 6:
				off := rnd.IntN(len(want))
				n := min(1+rnd.IntN(1<<rnd.IntN(20)), len(want)-off)
				if rnd.IntN(2) == 0 {
					off, n = off&^511, (n+511)&^511
				}
				p := make([]byte, min(n, len(want)-off))
				if rnd.IntN(4) > 0 {
					for i := range p {
						p[i] = byte(rnd.Uint32())
					}
				}
				write(t, v, p, int64(off))
				copy(want[off:], p)
			case op < 9:
				fork := v.Snapshot
				if rnd.IntN(3) == 0 {
					fork = v.Clone
				}
				id := fmt.Sprint(step)
				if _, _, err := fork(id, "base"+id); fault(err) == FaultChainTooLong {
					continue
				} else if err != nil {
					t.Fatal(err)
				}
				model[id] = bytes.Clone(want)
				names = append(names, id)
			case op == 9 && len(names) > 3:
				if err := v.Destroy(); err != nil {
					t.Fatal(err)
				}
				delete(model, name)
				for i, n := range names {
					if n == name {
						names = append(names[:i], names[i+1:]...)
						break
					}
				}
			case op == 10:
				if _, err := s.GC(); err != nil {
					t.Fatal(err)
				}
			case op == 11 && len(want) < 12*mib:
				if err := v.Resize(int64(len(want)) + 1); err != nil {
					t.Fatal(err)
				}
				model[name] = append(want, make([]byte, 2*mib)...)
			}
			if step%25 == 0 {
				checkModel(t, s, model, names, rnd)
			}
		}
		for _, n := range names {
			if err := s.Volume(n).Destroy(); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := s.GC(); err != nil {
			t.Fatal(err)
		}
		if st := s.Stat(); st.Utilisation != 0 || st.VirtualAllocation != 0 {
			t.Errorf("an empty repository holds %+v", st)
		}
		if files, _ := os.ReadDir(s.cfg.Dir); len(files) != 0 {
			t.Errorf("%d files are left", len(files))
		}
	}
}

func checkModel(t *testing.T, s *SR, model map[string][]byte, names []string, rnd *rand.Rand) {
	t.Helper()
	for name, want := range model {
		if !bytes.Equal(content(t, s.Volume(name)), want) {
			t.Fatalf("volume %s differs", name)
		}
	}
	to, from := names[rnd.IntN(len(names))], names[rnd.IntN(len(names))]
	target := newSR(t, Config{Type: "ext"})
	copied := create(t, target, "copy", int64(max(len(model[to]), len(model[from]))), nil)
	full := export(t, s.Volume(from), "vhd", nil)
	if err := copied.ImportVHD(bytes.NewReader(full), int64(len(full))); err != nil {
		t.Fatal(err)
	}
	delta := export(t, s.Volume(to), "vhd", s.Volume(from))
	if err := copied.ImportVHD(bytes.NewReader(delta), int64(len(delta))); err != nil {
		t.Fatal(err)
	}
	got := content(t, copied)[:len(model[to])]
	if !bytes.Equal(got, model[to]) {
		t.Fatalf("full of %s and difference to %s do not make %s", from, to, to)
	}
	if raw := export(t, s.Volume(to), "raw", nil); !bytes.Equal(raw, model[to]) {
		t.Fatalf("raw export of %s differs", to)
	}
}

// BenchmarkExport measures a full export of a file that is in the page cache.
func BenchmarkExport(b *testing.B) {
	path := filepath.Join(b.TempDir(), "image")
	const size = 512 * mib
	data := make([]byte, size)
	fillGarbage(data, newUUID(), 0)
	if err := os.WriteFile(path, data, 0o400); err != nil {
		b.Fatal(err)
	}
	s := newSR(b, Config{Type: "ext"})
	v, err := s.AddImage("v", path, nil)
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(size)
	b.ReportAllocs()
	for b.Loop() {
		e, err := v.Export("vhd", nil)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := e.WriteTo(struct{ io.Writer }{io.Discard}); err != nil {
			b.Fatal(err)
		}
		e.Close()
	}
}
