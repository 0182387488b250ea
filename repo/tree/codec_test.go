package tree

import (
	"bytes"
	"encoding/hex"
	"strings"
	"testing"

	"xenkeep/chunkstore/chunk"
)

func FuzzList(f *testing.F) {
	f.Add(AppendList(nil, []Piece{{Length: 4096}, {ID: chunk.ID{1}, Length: 100}}), 4196)
	f.Add([]byte{}, 0)
	f.Fuzz(func(t *testing.T, p []byte, length int) {
		pieces, err := DecodeList(nil, p, length)
		if err == nil && !bytes.Equal(AppendList(nil, pieces), p) {
			t.Fatal("what decodes does not encode to the same bytes")
		}
	})
}

func FuzzNode(f *testing.F) {
	f.Add(AppendNode(nil, &Node{3: chunk.ID{1}, 511: chunk.ID{2}}))
	f.Fuzz(func(t *testing.T, p []byte) {
		n, err := DecodeNode(p)
		if err == nil && !bytes.Equal(AppendNode(nil, n), p) {
			t.Fatal("what decodes does not encode to the same bytes")
		}
	})
}

func FuzzRoot(f *testing.F) {
	f.Add(AppendRoot(nil, &Root{Size: 3 << 30, Nodes: []chunk.ID{{}, {1}, {2}}}))
	f.Add(AppendRoot(nil, &Root{}))
	f.Fuzz(func(t *testing.T, p []byte) {
		r, err := DecodeRoot(p)
		if err == nil && !bytes.Equal(AppendRoot(nil, r), p) {
			t.Fatal("what decodes does not encode to the same bytes")
		}
	})
}

// The encodings of lists, nodes and roots are pinned: they are the format.
func TestTreeVectors(t *testing.T) {
	id := func(b byte) (id chunk.ID) {
		for i := range id {
			id[i] = b
		}
		return id
	}
	eleven := strings.Repeat("11", 32)
	twos := strings.Repeat("22", 32)
	node := Node{0: id(0x11), 9: id(0x22)}
	for name, c := range map[string]struct {
		got  []byte
		want string
	}{
		"list": {AppendList(nil, []Piece{{Length: 4096}, {ID: id(0x11), Offset: 4096, Length: 300}, {Offset: 4396, Length: 1}}), "8040" + "d904" + eleven + "02"},
		"node": {AppendNode(nil, &node), "0102" + strings.Repeat("00", 62) + eleven + twos},
		"root": {AppendRoot(nil, &Root{Size: 3<<30 + 1, Nodes: []chunk.ID{{}, id(0x22), {}, id(0x11)}}), "01" + "00000000c0000001" + "0a" + twos + eleven},
		"none": {AppendRoot(nil, &Root{}), "01" + "0000000000000000"},
	} {
		if got := hex.EncodeToString(c.got); got != c.want {
			t.Errorf("%s is %s, want %s", name, got, c.want)
		}
	}
}
