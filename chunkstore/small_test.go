package chunkstore

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"reflect"
	"runtime"
	"testing"

	"xenkeep/chunkstore/chunk"
	"xenkeep/chunkstore/index"
	"xenkeep/chunkstore/object"
	"xenkeep/chunkstore/pack"
	"xenkeep/chunkstore/seal"
)

// allocated returns how many bytes fn allocates.
func allocated(fn func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	fn()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// largeIndex is an index object of packs that are as full as a writer fills
// them.
func largeIndex(packs int) *IndexObject {
	o := &IndexObject{Run: RunID{1}}
	for i := range packs {
		p := index.PackEntries{Pack: [32]byte{byte(i), 7}, Size: pack.TargetSize}
		for j := range 32768 {
			var e index.Entry
			binary.BigEndian.PutUint64(e.Prefix[:], uint64(i+1)*0x9e3779b97f4a7c15*uint64(j+1))
			binary.BigEndian.PutUint64(e.Prefix[8:], uint64(j+1)*0xbf58476d1ce4e5b9*uint64(i+3))
			e.Offset, e.Length = uint32(1374+j*1000), 1000
			p.Entries = append(p.Entries, e)
		}
		o.Packs = append(o.Packs, p)
	}
	return o
}

// Row S8 of the fault list: an index object that is larger than any other small
// object is read into memory only after its signature was verified.
func TestLargeIndexObject(t *testing.T) {
	s := newStore(t)
	want := largeIndex(40)
	data, name, err := SealIndexObject(s.keys, want)
	if err != nil {
		t.Fatal(err)
	}
	if int64(len(data)) <= object.MaxWhole(name) {
		t.Fatalf("%d bytes are not large", len(data))
	}
	put := func(s *Store, name string, data []byte) {
		t.Helper()
		if err := s.objects.Put(t.Context(), name, data); err != nil {
			t.Fatal(err)
		}
	}
	put(s, name, data)
	got, err := s.readIndexObject(t.Context(), name)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Fatalf("a large index object: %v", err)
	}
	if h, err := s.indexHead(t.Context(), name); err != nil || len(h.Packs) != 40 {
		t.Errorf("its head: %d packs, %v", len(h.Packs), err)
	}
	if kind, _, err := ReadSmallHead(t.Context(), s.objects, name); err != nil || kind != seal.KindIndex {
		t.Errorf("without a key: kind %d, %v", kind, err)
	}

	other := newStore(t)
	put(other, name, data)
	forged := bytes.Clone(data)
	forged[len(forged)-100]++
	forgedName := "index/" + seal.Name(forged)
	put(s, forgedName, forged)
	renamed := "index/" + seal.Name([]byte("another"))
	put(s, renamed, data)
	put(s, "condemned/"+seal.Name(data), data)
	for _, c := range []struct {
		what string
		s    *Store
		kind seal.ObjectKind
		name string
		want error
	}{
		{"of another repository", other, seal.KindIndex, name, seal.ErrJunk},
		{"with a wrong signature", s, seal.KindIndex, forgedName, seal.ErrJunk},
		{"with another name", s, seal.KindIndex, renamed, seal.ErrCorrupt},
		{"as a condemned list", s, seal.KindCondemned, "condemned/" + seal.Name(data), seal.ErrJunk},
	} {
		var err error
		if used := allocated(func() { _, err = ReadSmall(t.Context(), c.s.objects, c.s.keys, c.kind, c.name) }); !errors.Is(err, c.want) || used > 2*provePiece {
			t.Errorf("a large index object %s: %v, %d bytes allocated", c.what, err, used)
		}
	}
}

// Row S8 of the fault list: a small object that claims to be longer than its
// kind can be is refused, and none is written.
func TestSmallObjectsAreBounded(t *testing.T) {
	s := newStore(t)
	long := bytes.Repeat([]byte("x"), 16<<20+1)
	for _, kind := range []seal.ObjectKind{seal.KindSnapshot, seal.KindNote, seal.KindClaim, seal.KindRetired, seal.KindOver, seal.KindConfig} {
		if _, _, err := s.keys.SealObject(kind, nil, long); err == nil {
			t.Errorf("kind %d: an object is sealed that readers refuse", kind)
		}
		data, _, err := s.keys.SealObject(kind, nil, long[:16<<20])
		if err != nil {
			t.Errorf("kind %d: %v", kind, err)
			continue
		}
		if o, err := s.keys.OpenObject(kind, data); err != nil || len(o.Body) != 16<<20 {
			t.Errorf("kind %d, the longest: %v", kind, err)
		}
	}
	// An index object of one pack cannot list more than a pack contains.
	head := make([]byte, 24+40)
	head[19] = 1
	if _, _, err := s.keys.SealObject(seal.KindIndex, head, make([]byte, 1<<20)); err == nil {
		t.Error("an index object is sealed that readers refuse")
	}
}

// Row S8 of the fault list: the index cannot make a reader allocate more than a
// pack can contain.
func TestIndexedLengthIsBounded(t *testing.T) {
	s := newStore(t)
	o := &IndexObject{Packs: []index.PackEntries{{Pack: [32]byte{1}, Size: 1 << 32, Entries: []index.Entry{{Prefix: index.Prefix{1}, Offset: 200, Length: 1 << 31}}}}}
	data, _, err := SealIndexObject(s.keys, o)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := OpenIndexObject(s.keys, data); !errors.Is(err, seal.ErrCorrupt) {
		t.Errorf("a blob of 2 GiB: %v", err)
	}
	// A length that a pack could contain, but that this one does not.
	var id chunk.ID
	if err := s.Write(t.Context(), WriterOptions{}, func(ctx context.Context, w *Writer) error {
		k, err := w.NewWorker()
		if err != nil {
			return err
		}
		defer k.Done()
		p := []byte("a piece")
		id = k.Sum(chunk.Data, p)
		if _, err := k.Put(chunk.Data, id, p); err != nil {
			return err
		}
		return w.Flush(ctx)
	}); err != nil {
		t.Fatal(err)
	}
	at, ok := s.index.Lookup(index.PrefixOf(id))
	if !ok {
		t.Fatal("not stored")
	}
	lied := index.Entry{Prefix: index.Prefix{9}, Offset: at.Offset, Length: 60 << 20}
	if err := s.index.Add("index/lie", []index.PackEntries{{Pack: at.Pack, Size: 60 << 20, Entries: []index.Entry{lied}}}); err != nil {
		t.Fatal(err)
	}
	used := allocated(func() { _, err = s.Load(t.Context(), chunk.Data, chunk.ID{9}) })
	if err == nil || used > 8<<20 {
		t.Errorf("%v, %d bytes allocated", err, used)
	}
}
