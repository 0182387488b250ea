package view

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"xenkeep/chunkstore/chunk"
	"xenkeep/chunkstore/object"
	"xenkeep/chunkstore/object/mem"
	"xenkeep/chunkstore/seal"
	"xenkeep/internal/disk/disktest"
	"xenkeep/repo/repotest"
)

// filled is a disk of a little more than 3 GiB, with scattered data.
func filled(t *testing.T, seed byte) *disktest.Mem {
	t.Helper()
	m := disktest.NewMem(3<<30 + 12345)
	random, data := rand.New(rand.NewPCG(uint64(seed), 1)), rand.NewChaCha8([32]byte{seed})
	for range 24 {
		p := make([]byte, 1+random.IntN(3<<20))
		_, _ = data.Read(p)
		if err := m.WriteAt(t.Context(), p, random.Int64N(64<<20)); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.WriteAt(t.Context(), []byte("the end"), m.Size()-7); err != nil {
		t.Fatal(err)
	}
	return m
}

func TestReadAnywhere(t *testing.T) {
	r := repotest.Init(t, mem.New())
	m := filled(t, 1)
	root := repotest.Put(t, r, m)
	v := New(r, Options{Cache: minCache})
	defer v.Close()
	d, err := v.Open(t.Context(), root)
	if err != nil || d.Size() != m.Size() {
		t.Fatal(d, err)
	}
	var wg sync.WaitGroup
	for seed := range uint64(4) {
		wg.Go(func() {
			random := rand.New(rand.NewPCG(seed, 2))
			for range 150 {
				off := random.Int64N(70 << 20)
				if random.IntN(20) == 0 {
					off = m.Size() - 1 - random.Int64N(3<<20)
				}
				p := make([]byte, min(1+random.Int64N(300<<10), m.Size()-off))
				want := make([]byte, len(p))
				if err := d.ReadAt(t.Context(), p, off); err != nil {
					t.Error(err)
					return
				}
				if _, err := m.ReadAt(want, off); err != nil || !bytes.Equal(p, want) {
					t.Errorf("%d bytes at %d differ (%v)", len(p), off, err)
					return
				}
			}
		})
	}
	wg.Go(func() { // sequential, so that data is read ahead
		p, want := make([]byte, 128<<10), make([]byte, 128<<10)
		for off := int64(0); off < 70<<20; off += int64(len(p)) {
			if err := d.ReadAt(t.Context(), p, off); err != nil {
				t.Error(err)
				return
			}
			if _, err := m.ReadAt(want, off); err != nil || !bytes.Equal(p, want) {
				t.Errorf("%d bytes at %d differ (%v)", len(p), off, err)
				return
			}
		}
	})
	wg.Wait()
	for _, off := range []int64{-1, m.Size()} {
		if err := d.ReadAt(t.Context(), make([]byte, 1), off); err == nil {
			t.Errorf("a read at %d of %d is no error", off, m.Size())
		}
	}
	v.cache.mu.Lock()
	if v.cache.bytes > v.cache.limit {
		t.Errorf("cache of %d bytes, may have %d", v.cache.bytes, v.cache.limit)
	}
	v.cache.mu.Unlock()
}

func TestExtents(t *testing.T) {
	r := repotest.Init(t, mem.New())
	m := filled(t, 2)
	v := New(r, Options{})
	defer v.Close()
	d, err := v.Open(t.Context(), repotest.Put(t, r, m))
	if err != nil {
		t.Fatal(err)
	}
	var at, data int64
	for at < d.Size() {
		ext, err := d.Extents(t.Context(), at, d.Size()-at, 10)
		if err != nil || len(ext) == 0 {
			t.Fatal(ext, err)
		}
		for _, e := range ext {
			if e.Offset != at || e.Length <= 0 {
				t.Fatalf("extent %+v, expected at %d", e, at)
			}
			at = e.End()
			if !e.Zero {
				data += e.Length
				continue
			}
			p := make([]byte, min(e.Length, 1<<20))
			if err := d.ReadAt(t.Context(), p, e.Offset); err != nil || !bytes.Equal(p, make([]byte, len(p))) {
				t.Fatalf("extent %+v is not zero (%v)", e, err)
			}
		}
	}
	if data < 20<<20 || data > 70<<20 {
		t.Errorf("%d bytes of data", data)
	}
}

// countingStore counts the reads of packs.
type countingStore struct {
	*mem.Store
	bytes atomic.Int64
}

func (s *countingStore) GetInto(ctx context.Context, name string, off int64, p []byte) error {
	s.bytes.Add(int64(len(p)))
	return s.Store.GetInto(ctx, name, off, p)
}

// Data that two snapshots share is read once.
func TestSharedIsReadOnce(t *testing.T) {
	objects := mem.New()
	plain := repotest.Init(t, objects)
	m := filled(t, 3)
	first := repotest.Put(t, plain, m)
	if err := m.WriteAt(t.Context(), bytes.Repeat([]byte{9}, 4096), 1<<20); err != nil {
		t.Fatal(err)
	}
	second := repotest.Put(t, plain, m)
	counting := &countingStore{Store: objects}
	r := repotest.Open(t, counting)
	v := New(r, Options{Cache: 128 << 20})
	defer v.Close()
	read := func(root chunk.ID) int64 {
		before := counting.bytes.Load()
		d, err := v.Open(t.Context(), root)
		if err != nil {
			t.Fatal(err)
		}
		p := make([]byte, 1<<20)
		for off := int64(0); off < 70<<20; off += int64(len(p)) {
			if err := d.ReadAt(t.Context(), p, off); err != nil {
				t.Fatal(err)
			}
		}
		return counting.bytes.Load() - before
	}
	if a, b := read(first), read(second); b > a/4 {
		t.Errorf("read %d bytes for the first snapshot, %d for the second", a, b)
	}
}

func TestDamageAndClose(t *testing.T) {
	objects := mem.New()
	plain := repotest.Init(t, objects)
	m := disktest.NewMem(8 << 20)
	data := rand.NewChaCha8([32]byte{4})
	p := make([]byte, 8<<20)
	_, _ = data.Read(p)
	if err := m.WriteAt(t.Context(), p, 0); err != nil {
		t.Fatal(err)
	}
	root := repotest.Put(t, plain, m)
	// Damage a byte in the middle of the largest object, the pack of data.
	var big string
	var most int64
	if err := objects.List(t.Context(), "packs/", infoInto(&big, &most)); err != nil {
		t.Fatal(err)
	}
	b, err := objects.Get(t.Context(), big, 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	b = bytes.Clone(b)
	b[len(b)/2] ^= 1
	if err := objects.Delete(t.Context(), big); err != nil {
		t.Fatal(err)
	}
	if err := objects.Put(t.Context(), big, b); err != nil {
		t.Fatal(err)
	}
	v := New(plain, Options{})
	d, err := v.Open(t.Context(), root)
	if err != nil {
		t.Fatal(err)
	}
	bad := 0
	got := make([]byte, 64<<10)
	for off := int64(0); off < m.Size(); off += int64(len(got)) {
		err := d.ReadAt(t.Context(), got, off)
		switch {
		case err == nil && bytes.Equal(got, p[off:off+int64(len(got))]):
		case errors.Is(err, seal.ErrCorrupt):
			bad++
		default:
			t.Fatalf("read at %d: %v", off, err)
		}
	}
	if bad == 0 || bad > 32 {
		t.Errorf("%d reads of %d tell of damage", bad, m.Size()/int64(len(got)))
	}
	v.Close()
}

func TestCancelAndClose(t *testing.T) {
	plain := repotest.Init(t, mem.New())
	m := disktest.NewMem(8 << 20)
	p := make([]byte, 8<<20)
	_, _ = rand.NewChaCha8([32]byte{5}).Read(p)
	if err := m.WriteAt(t.Context(), p, 0); err != nil {
		t.Fatal(err)
	}
	root := repotest.Put(t, plain, m)
	v := New(plain, Options{})
	d, err := v.Open(t.Context(), root)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	got := make([]byte, 64<<10)
	// A read in progress is finished for other readers that may need it.
	if err := d.ReadAt(ctx, got, 0); err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if err := d.ReadAt(t.Context(), got, 0); err != nil || !bytes.Equal(got, p[:len(got)]) {
		t.Errorf("after a cancelled read: %v", err)
	}
	v.Close()

	v = New(plain, Options{})
	if d, err = v.Open(t.Context(), root); err != nil {
		t.Fatal(err)
	}
	v.Close()
	if err := d.ReadAt(t.Context(), got, 5<<20); !errors.Is(err, ErrClosed) {
		t.Errorf("after close: %v", err)
	}
}

// infoInto records the largest object.
func infoInto(name *string, size *int64) func(object.Info) error {
	return func(i object.Info) error {
		if i.Size > *size {
			*name, *size = i.Name, i.Size
		}
		return nil
	}
}
