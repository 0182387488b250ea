// Package chunk identifies and cuts plain data: it defines IDs, their keyed
// hash, and the positions at which a run of bytes is cut. It does no I/O and
// does not depend on storage.
package chunk

import (
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/hex"
	"fmt"

	"github.com/zeebo/blake3"
)

// IDSize is the length of an ID in bytes.
const IDSize = 32

// ID identifies a piece of plain data by its content. It is a BLAKE3 hash,
// keyed per repository and per kind: equal bytes have unrelated IDs in two
// repositories, and a block list can never be mistaken for a piece of a disk.
type ID [IDSize]byte

// IsZero reports whether id is the zero value, which is the ID of no data.
func (id ID) IsZero() bool { return id == ID{} }

// String returns the ID in lower-case hexadecimal.
func (id ID) String() string { return hex.EncodeToString(id[:]) }

// Kind is the kind of a blob's content. Its values are part of the format.
type Kind uint8

const (
	Data   Kind = 1 // a chunk of a disk
	Record Kind = 2 // pool records and other metadata of a snapshot
	List   Kind = 3 // the chunk IDs of one disk block
	Node   Kind = 4 // the block-list IDs of one GiB
	Root   Kind = 5 // the node IDs of one disk
)

// Tree reports whether blobs of this kind are stored in tree packs.
func (k Kind) Tree() bool { return k >= List && k <= Root }

// Valid reports whether this version supports the kind k.
func (k Kind) Valid() bool { return k >= Data && k <= Root }

// Limits of the plain length of a blob in bytes, by its kind (docs/format.md,
// section 5).
const (
	// MaxData bounds the chunks of one blob together, and Params.Max.
	MaxData = 1 << 20
	// MaxRecord bounds a record.
	MaxRecord = 64 << 20
	// MaxList bounds a block list: 2048 chunks of 1 KiB, the least that
	// Params.Min may be, need 70 KiB.
	MaxList = 128 << 10
	// MaxNode is the length of a node in which no block is zero.
	MaxNode = 64 + 512*IDSize
	// MaxRoot is the length of the root of a disk of 64 TiB in which no node is
	// zero.
	MaxRoot = 1 + 8 + 65536/8 + 65536*IDSize
)

// MaxPlain returns the greatest plain length of a blob of kind k in bytes. A
// reader must not allocate more memory for a blob, because a few stored bytes
// can claim to be gigabytes.
func (k Kind) MaxPlain() int64 {
	switch k {
	case Data:
		return MaxData
	case Record:
		return MaxRecord
	case List:
		return MaxList
	case Node:
		return MaxNode
	case Root:
		return MaxRoot
	}
	return 0
}

func (k Kind) String() string {
	switch k {
	case Data:
		return "chunk"
	case Record:
		return "record"
	case List:
		return "block list"
	case Node:
		return "node"
	case Root:
		return "root"
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// Hasher computes IDs. It is not safe for concurrent use; use Clone for that.
type Hasher struct {
	keys [Root + 1][32]byte
	h    [Root + 1]*blake3.Hasher
}

// NewHasher returns a Hasher with the repository's 32-byte ID key. The key of
// each kind is HKDF-SHA256(key, salt "", info "xenkeep id " + kind number).
func NewHasher(key []byte) (*Hasher, error) {
	h := new(Hasher)
	for k := Data; k <= Root; k++ {
		sub, err := hkdf.Key(sha256.New, key, nil, fmt.Sprintf("xenkeep id %d", uint8(k)), 32)
		if err != nil {
			return nil, err
		}
		copy(h.keys[k][:], sub)
	}
	return h, nil
}

// Clone returns an independent Hasher with the same key.
func (h *Hasher) Clone() *Hasher { return &Hasher{keys: h.keys} }

// Sum returns the ID of p as data of kind k. The hash is part of the format
// (docs/format.md, section 9), and TestIDVectors pins it.
func (h *Hasher) Sum(k Kind, p []byte) (id ID) {
	b := h.h[k]
	if b == nil {
		b, _ = blake3.NewKeyed(h.keys[k][:]) // fails only for keys that are not 32 bytes long
		h.h[k] = b
	}
	b.Reset()
	_, _ = b.Write(p)
	b.Sum(id[:0])
	return id
}
