package diff_test

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"xenkeep/chunkstore/object/mem"
	"xenkeep/internal/disk"
	"xenkeep/internal/disk/disktest"
	"xenkeep/repo/diff"
	"xenkeep/repo/repotest"
)

// Ranges cover every byte that differs, and little more; Blocks returns the same
// blocks.
func TestAgainstBytes(t *testing.T) {
	r := repotest.Init(t, mem.New())
	for seed := range uint64(6) {
		random, data := rand.New(rand.NewPCG(seed, 3)), rand.NewChaCha8([32]byte{byte(seed)})
		size := []int64{24 << 20, 1100 << 20, 5<<20 + 777}[seed%3]
		a := disktest.NewMem(size)
		scribble := func(m *disktest.Mem, n, most int) {
			for range n {
				p := make([]byte, 1+random.IntN(most))
				if random.IntN(4) > 0 {
					_, _ = data.Read(p)
				}
				off := random.Int64N(min(m.Size(), 24<<20))
				if err := m.WriteAt(t.Context(), p[:min(int64(len(p)), m.Size()-off)], off); err != nil {
					t.Fatal(err)
				}
			}
		}
		scribble(a, 30, 900<<10)
		other := size
		if seed > 3 {
			other += int64(seed-4)*6<<20 - 3<<20
		}
		b := a.Resized(other)
		scribble(b, 4, 200<<10)
		ra, rb := repotest.Put(t, r, a), repotest.Put(t, r, b)
		bits, err := diff.Blocks(t.Context(), r, ra, rb)
		if err != nil {
			t.Fatal(err)
		}
		longest := max(size, other)
		said := make([]bool, disk.Blocks(longest)*disk.BlockSize/512)
		var total, last int64
		if err := diff.Ranges(t.Context(), r, ra, rb, func(x diff.Range) error {
			if x.Length <= 0 || x.Offset < last {
				t.Fatalf("range %+v behind %d", x, last)
			}
			last = x.End()
			total += x.Length
			for s := x.Offset / 512; s*512 < x.End() && s < int64(len(said)); s++ {
				said[s] = true
			}
			if x.Zero {
				p := make([]byte, min(x.Length, max(0, other-x.Offset)))
				if _, err := b.ReadAt(p, x.Offset); len(p) > 0 && (err != nil || !bytes.Equal(p, make([]byte, len(p)))) {
					t.Errorf("%+v is not zero", x)
				}
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		var differ int64
		pa, pb := make([]byte, 512), make([]byte, 512)
		for b2 := range disk.Blocks(longest) {
			if !a.Holds(b2) && !b.Holds(b2) {
				continue
			}
			changed := false
			for s := b2 * disk.BlockSize / 512; s < min((b2+1)*disk.BlockSize, longest+511)/512; s++ {
				clear(pa)
				clear(pb)
				_, _ = a.ReadAt(pa, s*512)
				_, _ = b.ReadAt(pb, s*512)
				if !bytes.Equal(pa, pb) {
					differ, changed = differ+512, true
					if !said[s] {
						t.Fatalf("seed %d: sector %d differs and no range says so", seed, s)
					}
				}
			}
			if is := bits[b2/64]&(1<<(b2%64)) != 0; is != changed && size == other {
				t.Errorf("seed %d: block %d: %v, differs %v", seed, b2, is, changed)
			}
		}
		if total > differ+4<<20 || differ == 0 {
			t.Errorf("seed %d: ranges of %d bytes, %d differ", seed, total, differ)
		}
		if err := diff.Ranges(t.Context(), r, ra, ra, func(x diff.Range) error {
			t.Errorf("a disk differs from itself at %+v", x)
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
}
