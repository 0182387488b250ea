package chunkstore

import (
	"bytes"
	"context"
	"math/rand/v2"
	"testing"

	"xenkeep/chunkstore/chunk"
	"xenkeep/chunkstore/index"
	"xenkeep/chunkstore/object/mem"
	"xenkeep/chunkstore/pack"
	"xenkeep/chunkstore/seal"
)

func newStore(t testing.TB) *Store {
	t.Helper()
	keys, err := seal.NewKeys()
	if err != nil {
		t.Fatal(err)
	}
	x, err := index.Open("")
	if err != nil {
		t.Fatal(err)
	}
	s, err := New(Options{Objects: mem.New(), Keys: keys, Params: chunk.DefaultParams(), Index: x})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// A blob may have any size up to that of a pack, whatever the current target
// size of packs is.
func TestBlobSizes(t *testing.T) {
	s := newStore(t)
	src := rand.NewChaCha8([32]byte{2})
	var want [][]byte
	for _, n := range []int{0, 1, 63, 64, 100, 24 << 10, 4<<20 - 3000, 4 << 20, 9 << 20, 31 << 20, pack.TargetSize} {
		p := make([]byte, n)
		_, _ = src.Read(p)
		want = append(want, p)
	}
	ids := make([]chunk.ID, len(want))
	err := s.Write(t.Context(), WriterOptions{}, func(ctx context.Context, w *Writer) error {
		k, err := w.NewWorker()
		if err != nil {
			return err
		}
		defer k.Done()
		for i, p := range want {
			ids[i] = k.Sum(chunk.Record, p)
			if _, err := k.Put(chunk.Record, ids[i], p); err != nil {
				return err
			}
		}
		if _, err := k.Put(chunk.Record, chunk.ID{1}, make([]byte, 10)); err != nil {
			return err
		}
		big := make([]byte, pack.TargetSize+1)
		_, _ = src.Read(big)
		if _, err := k.Put(chunk.Record, k.Sum(chunk.Record, big), big); err == nil {
			t.Error("a blob larger than a pack is taken")
		}
		if _, err := k.Put(chunk.Record, k.Sum(chunk.Record, big), big); err == nil {
			t.Error("a blob that was refused counts as stored")
		}
		return w.Flush(ctx)
	})
	if err != nil {
		t.Fatal(err)
	}
	for i, id := range ids {
		p, err := s.Load(t.Context(), chunk.Record, id)
		if err != nil || !bytes.Equal(p, want[i]) {
			t.Errorf("blob of %d bytes came back otherwise: %v", len(want[i]), err)
		}
	}
	// Content that does not match its ID is never returned.
	if _, err := s.Load(t.Context(), chunk.Record, chunk.ID{1}); err == nil {
		t.Error("content under a wrong ID was read")
	}
}
