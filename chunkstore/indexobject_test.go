package chunkstore

import (
	"bytes"
	"errors"
	"reflect"
	"testing"

	"xenkeep/chunkstore/index"
	"xenkeep/chunkstore/seal"
)

func sample() *IndexObject {
	return &IndexObject{
		Run: RunID{1, 2},
		Packs: []index.PackEntries{
			{Pack: [32]byte{3}, Size: 5000, Entries: []index.Entry{
				{Prefix: index.Prefix{1}, Offset: 200, Length: 100}, {Prefix: index.Prefix{2}, Offset: 300, Length: 50},
			}},
			{Pack: [32]byte{4}, Size: 1 << 33, Entries: []index.Entry{}},
		},
		Replaces: [][32]byte{{9}, {8}},
	}
}

func TestIndexObject(t *testing.T) {
	keys, err := seal.NewKeys()
	if err != nil {
		t.Fatal(err)
	}
	data, name, err := SealIndexObject(keys, sample())
	if err != nil {
		t.Fatal(err)
	}
	if name != "index/"+seal.Name(data) {
		t.Errorf("name is %s", name)
	}
	got, err := OpenIndexObject(keys, data)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, sample()) {
		t.Errorf("got %+v", got)
	}
	gap := sample()
	gap.Packs[0].Entries[1].Offset++
	if _, _, err := SealIndexObject(keys, gap); err == nil {
		t.Error("a gap is sealed")
	}
	// One blob contains several pieces.
	together := sample()
	together.Packs[0].Entries[1].Offset = together.Packs[0].Entries[0].Offset
	together.Packs[0].Entries[1].Length = together.Packs[0].Entries[0].Length
	if data, _, err = SealIndexObject(keys, together); err != nil {
		t.Fatal(err)
	}
	if got, err = OpenIndexObject(keys, data); err != nil || !reflect.DeepEqual(got, together) {
		t.Errorf("got %+v: %v", got, err)
	}
	// Sixteen zero bytes represent a piece that another object lists.
	holes := sample()
	holes.Packs[0].Entries[0].Prefix = index.Prefix{}
	if data, _, err = SealIndexObject(keys, holes); err != nil {
		t.Fatal(err)
	}
	if got, err = OpenIndexObject(keys, data); err != nil || len(got.Packs[0].Entries) != 1 || got.Packs[0].Entries[0].Offset != 300 {
		t.Errorf("got %+v: %v", got, err)
	}
}

func parts(f testing.TB) (head, body []byte) {
	f.Helper()
	keys, err := seal.NewKeys()
	if err != nil {
		f.Fatal(err)
	}
	data, _, err := SealIndexObject(keys, sample())
	if err != nil {
		f.Fatal(err)
	}
	o, err := keys.OpenObject(seal.KindIndex, data)
	if err != nil {
		f.Fatal(err)
	}
	return o.Head, o.Body
}

func FuzzIndexObject(f *testing.F) {
	head, body := parts(f)
	f.Add(head, body)
	f.Add([]byte{}, []byte{})
	f.Fuzz(func(t *testing.T, head, body []byte) {
		o, err := ReadIndexHead(head)
		if err == nil {
			err = decodeIndexBody(o, body)
		}
		if err != nil {
			if !errors.Is(err, seal.ErrCorrupt) {
				t.Fatal(err)
			}
			return
		}
		n := 0
		for _, p := range o.Packs {
			n += len(p.Entries)
		}
		if n*16 > len(body) || len(o.Packs)*40 > len(head) {
			t.Fatalf("%d entries of %d packs from %d and %d bytes", n, len(o.Packs), len(head), len(body))
		}
	})
}

// Every truncated head or body is refused.
func TestIndexObjectShort(t *testing.T) {
	head, body := parts(t)
	for i := range head {
		if _, err := ReadIndexHead(head[:i]); !errors.Is(err, seal.ErrCorrupt) {
			t.Errorf("head of %d bytes: %v", i, err)
		}
	}
	for i := range body {
		o, err := ReadIndexHead(bytes.Clone(head))
		if err != nil {
			t.Fatal(err)
		}
		if err := decodeIndexBody(o, body[:i]); !errors.Is(err, seal.ErrCorrupt) {
			t.Errorf("body of %d bytes: %v", i, err)
		}
	}
}
