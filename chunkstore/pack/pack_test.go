package pack

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"math/rand/v2"
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

func build(t testing.TB, keys *seal.Keys, h *chunk.Hasher, k chunk.Kind, blobs [][]byte) (ID, []byte, []Entry) {
	t.Helper()
	b, err := NewBuilder(keys, KindOf(k), make([]byte, 0, 4<<20))
	if err != nil {
		t.Fatal(err)
	}
	c, err := seal.NewCompressor(seal.LevelDefault)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range blobs {
		body, enc := c.Compress(nil, p)
		s, ok := b.Reserve(h.Sum(k, p), k, enc, len(p), len(body), 3<<20)
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
		for i, e := range d.Entries {
			stored := bytes.Clone(data[e.Offset : e.Offset+e.Stored])
			if err := e.CheckStored(stored); err != nil {
				t.Fatal(err)
			}
			p, err := d.Open(nil, e, stored)
			if err != nil || !bytes.Equal(p, blobs[i]) {
				t.Fatalf("blob %d: %v", i, err)
			}
			if got, ok := d.Find(e.Offset); !ok || got != e {
				t.Fatalf("blob %d is not found by its offset", i)
			}
		}
	}
}

// A machine that may only write lists what is in a data pack but opens none.
func TestWriteOnly(t *testing.T) {
	keys, h := testKeys(t)
	weak, err := keys.ForNewWriter(seal.WriteOnly)
	if err != nil {
		t.Fatal(err)
	}
	_, data, entries := build(t, weak, h, chunk.Data, someBlobs())
	d, err := Parse(weak, data)
	if err != nil || len(d.Entries) != len(entries) {
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

// Every flipped bit outside the blobs is noticed when the directory is opened,
// every one inside when the blob is.
func TestDamage(t *testing.T) {
	keys, h := testKeys(t)
	_, data, entries := build(t, keys, h, chunk.Data, [][]byte{bytes.Repeat([]byte("x"), 3000), {1, 2, 3}})
	first, last := int(entries[0].Offset), int(entries[1].Offset+entries[1].Stored)
	for i := range data {
		bad := bytes.Clone(data)
		bad[i] ^= 1 << (i % 8)
		d, err := Parse(keys, bad)
		if i < first || i >= last {
			zero := i >= len(bad)-8 && i < len(bad)-4 // reserved bytes of the trailer mean nothing yet
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
		for _, e := range d.Entries {
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
	f.Add(encodeTable([]Entry{{Kind: chunk.Data, Stored: 20, Plain: 4}}))
	f.Add([]byte{0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, p []byte) {
		e, err := decodeTable(p, 200, -1)
		if err == nil && !bytes.Equal(encodeTable(e), p) {
			t.Fatal("what decodes does not encode to the same bytes")
		}
	})
}
