package pack

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"math/rand/v2"
	"slices"
	"testing"

	"xenkeep/chunkstore/chunk"
	"xenkeep/chunkstore/seal"
)

func testKeys(t testing.TB) (*seal.Keys, *chunk.Hasher) {
	t.Helper()
	keys, err := seal.NewKeys()
	if err != nil {
		t.Fatal(err)
	}
	h, err := chunk.NewHasher(keys.ID[:])
	if err != nil {
		t.Fatal(err)
	}
	return keys, h
}

func build(t testing.TB, keys *seal.Keys, h *chunk.Hasher, k chunk.Kind, blobs [][]byte) (ID, []byte, []Blob) {
	t.Helper()
	b, err := NewBuilder(keys, KindOf(k), make([]byte, 0, 4<<20))
	if err != nil {
		t.Fatal(err)
	}
	c, err := seal.NewCompressor(seal.LevelDefault)
	if err != nil {
		t.Fatal(err)
	}
	// Pairs share a blob if the kind allows it.
	per := 1
	if k == chunk.Data {
		per = 2
	}
	for group := range slices.Chunk(blobs, per) {
		var pieces []Entry
		var plain []byte
		for _, p := range group {
			pieces = append(pieces, Entry{ID: h.Sum(k, p), Length: uint32(len(p))})
			plain = append(plain, p...)
		}
		body, enc := c.Compress(nil, plain)
		s, ok := b.Reserve(k, enc, pieces, len(body), 3<<20)
		if !ok {
			t.Fatal("no room")
		}
		if err := b.Fill(s, body); err != nil {
			t.Fatal(err)
		}
	}
	id, data, entries, err := b.Finish()
	if err != nil {
		t.Fatal(err)
	}
	return id, data, entries
}

func someBlobs() [][]byte {
	r := rand.New(rand.NewPCG(1, 2))
	blobs := [][]byte{{}, {1}, bytes.Repeat([]byte("text "), 5000)}
	for range 20 {
		p := make([]byte, r.IntN(60000))
		for i := range p {
			p[i] = byte(r.Uint32())
		}
		blobs = append(blobs, p)
	}
	return blobs
}

func TestRoundTrip(t *testing.T) {
	keys, h := testKeys(t)
	for _, k := range []chunk.Kind{chunk.Data, chunk.List} {
		blobs := someBlobs()
		id, data, _ := build(t, keys, h, k, blobs)
		if id != ID(sha256.Sum256(data)) {
			t.Fatal("the name is not the SHA-256 of the bytes")
		}
		d, err := Parse(keys, data)
		if err != nil {
			t.Fatal(err)
		}
		if err := d.Unlock(); err != nil {
			t.Fatal(err)
		}
		n := 0
		for i := range d.Blobs {
			b := &d.Blobs[i]
			stored := bytes.Clone(data[b.Offset : b.Offset+b.Stored])
			if err := b.CheckStored(stored); err != nil {
				t.Fatal(err)
			}
			p, err := d.Open(nil, b, stored)
			if err != nil || int64(len(p)) != b.Plain() {
				t.Fatalf("blob %d: %v", i, err)
			}
			if got, ok := d.Find(b.Offset); !ok || got != b {
				t.Fatalf("blob %d is not found by its offset", i)
			}
			for _, piece := range b.Pieces {
				from, to, ok := b.Find(piece.ID)
				if !ok || !bytes.Equal(p[from:to], blobs[n]) {
					t.Fatalf("piece %d is not what was put in", n)
				}
				n++
			}
		}
		if n != len(blobs) {
			t.Fatalf("%d pieces of %d", n, len(blobs))
		}
	}
}

// The description of a blob is bound to its bytes: its kind, its encoding, and
// the IDs, lengths and number of its pieces.
func TestBlobIsBound(t *testing.T) {
	keys, h := testKeys(t)
	_, data, _ := build(t, keys, h, chunk.Data, [][]byte{{1, 2, 3}, {4, 5}})
	d, err := Parse(keys, data)
	if err != nil || d.Unlock() != nil || len(d.Blobs) != 1 {
		t.Fatal(err, len(d.Blobs))
	}
	for name, change := range map[string]func(b *Blob){
		"nothing":  func(*Blob) {},
		"kind":     func(b *Blob) { b.Kind = chunk.Record },
		"encoding": func(b *Blob) { b.Encoding = seal.Zstd },
		"id":       func(b *Blob) { b.Pieces[1].ID[0]++ },
		"length":   func(b *Blob) { b.Pieces[0].Length++; b.Pieces[1].Length-- },
		"pieces":   func(b *Blob) { b.Pieces = []Entry{{ID: b.Pieces[0].ID, Length: 5}} },
		"number":   func(b *Blob) { b.Number++ },
	} {
		b := d.Blobs[0]
		b.Pieces = slices.Clone(b.Pieces)
		change(&b)
		_, err := d.Open(nil, &b, bytes.Clone(data[b.Offset:b.Offset+b.Stored]))
		if (err == nil) != (name == "nothing") {
			t.Errorf("%s changed: %v", name, err)
		}
	}
}

// A machine that may only write can list the contents of a data pack, but
// cannot open a blob.
func TestWriteOnly(t *testing.T) {
	keys, h := testKeys(t)
	weak, err := keys.ForNewWriter(seal.WriteOnly)
	if err != nil {
		t.Fatal(err)
	}
	_, data, entries := build(t, weak, h, chunk.Data, someBlobs())
	d, err := Parse(weak, data)
	if err != nil || len(d.Blobs) != len(entries) {
		t.Fatalf("table of contents: %v", err)
	}
	if err := d.Unlock(); !errors.Is(err, seal.ErrNoDataKey) {
		t.Fatalf("unlock gives %v", err)
	}
	if d, err = Parse(keys, data); err != nil || d.Unlock() != nil {
		t.Fatalf("the full key does not open what the write-only one wrote: %v", err)
	}
	if d.Cert.Role() != seal.WriteOnly || d.Cert.Writer() != weak.Cert.Writer() {
		t.Fatal("the pack does not name its writer")
	}
}

// A flipped bit outside of the blobs is detected when the directory is opened,
// and a flipped bit in a blob is detected when the blob is opened.
func TestDamage(t *testing.T) {
	keys, h := testKeys(t)
	_, data, entries := build(t, keys, h, chunk.Data, [][]byte{bytes.Repeat([]byte("x"), 3000), {1, 2, 3}, {4}})
	first, last := int(entries[0].Offset), int(entries[1].Offset+entries[1].Stored)
	for i := range data {
		bad := bytes.Clone(data)
		bad[i] ^= 1 << (i % 8)
		d, err := Parse(keys, bad)
		if i < first || i >= last {
			zero := i >= len(bad)-8 && i < len(bad)-4 // reserved bytes of the trailer have no meaning yet
			if err == nil && !zero {
				t.Fatalf("byte %d of %d: damage to the directory unnoticed", i, len(data))
			}
			continue
		}
		if err != nil {
			t.Fatalf("byte %d: damage to a blob closes the directory: %v", i, err)
		}
		if err := d.Unlock(); err != nil {
			t.Fatal(err)
		}
		bad1 := 0
		for i := range d.Blobs {
			e := &d.Blobs[i]
			if _, err := d.Open(nil, e, bytes.Clone(bad[e.Offset:e.Offset+e.Stored])); errors.Is(err, seal.ErrCorrupt) {
				bad1++
			}
		}
		if bad1 != 1 {
			t.Fatalf("byte %d: %d blobs damaged", i, bad1)
		}
	}
	for n := range data {
		if _, err := Parse(keys, data[:n]); err == nil {
			t.Fatalf("a pack cut at %d parses", n)
		}
	}
	other, _ := testKeys(t)
	if _, err := Parse(other, data); !errors.Is(err, seal.ErrForeign) {
		t.Fatalf("a foreign pack gives %v", err)
	}
}

func TestObjectName(t *testing.T) {
	id := ID(sha256.Sum256([]byte("a")))
	if got, ok := ParseObjectName(id.ObjectName()); !ok || got != id {
		t.Fatal("name does not round trip")
	}
	for _, bad := range []string{"", "packs/", "packs/00/" + id.String(), id.String(), id.ObjectName() + "0"} {
		if _, ok := ParseObjectName(bad); ok {
			t.Errorf("%q parses", bad)
		}
	}
}

func FuzzParse(f *testing.F) {
	keys, h := testKeys(f)
	_, data, _ := build(f, keys, h, chunk.Data, [][]byte{bytes.Repeat([]byte("x"), 300)})
	f.Add(data)
	f.Add(data[:200])
	f.Fuzz(func(t *testing.T, p []byte) {
		d, err := Parse(keys, p)
		if err == nil && !bytes.Equal(p[:len(p)-8], data[:len(data)-8]) {
			t.Fatalf("a forged pack parses: %v", d)
		}
	})
}

func FuzzTable(f *testing.F) {
	f.Add(encodeTable([]Blob{{Kind: chunk.Data, Stored: 20, Pieces: []Entry{{Length: 4}}}}))
	f.Add(make([]byte, 8))
	f.Fuzz(func(t *testing.T, p []byte) {
		e, err := decodeTable(p, 200)
		if err == nil && !bytes.Equal(encodeTable(e), p) {
			t.Fatal("what decodes does not encode to the same bytes")
		}
	})
}
