package repo

import (
	"bytes"
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
	f.Add(AppendNode(nil, &NodeIDs{3: chunk.ID{1}, 511: chunk.ID{2}}))
	f.Fuzz(func(t *testing.T, p []byte) {
		n, err := DecodeNode(p)
		if err == nil && !bytes.Equal(AppendNode(nil, n), p) {
			t.Fatal("what decodes does not encode to the same bytes")
		}
	})
}

func FuzzRoot(f *testing.F) {
	f.Add(AppendRoot(nil, &RootNode{Size: 3 << 30, Nodes: []chunk.ID{{}, {1}, {2}}}))
	f.Add(AppendRoot(nil, &RootNode{}))
	f.Fuzz(func(t *testing.T, p []byte) {
		r, err := DecodeRoot(p)
		if err == nil && !bytes.Equal(AppendRoot(nil, r), p) {
			t.Fatal("what decodes does not encode to the same bytes")
		}
	})
}
