package repo

import (
	"encoding/binary"
	"fmt"

	"xenkeep/chunkstore/chunk"
	"xenkeep/chunkstore/seal"
	"xenkeep/internal/disk"
)

// A disk is a Merkle tree: block lists name the chunks of a block of
// disk.BlockSize, nodes name NodeBlocks block lists, the root names the nodes.
// Hole and zero are one thing: an all-zero block has no list, a GiB of them no
// node. Every encoding is a pure function of the content.

// NodeBlocks is how many blocks one node covers: 1 GiB.
const NodeBlocks = 512

// Piece is a stretch of a block: a chunk, or a gap of zeros where ID is zero.
type Piece struct {
	ID     chunk.ID
	Offset int // in the block
	Length int
}

// IsGap tells whether the piece is zeros.
func (p Piece) IsGap() bool { return p.ID.IsZero() }

// A block list is one piece after another, covering the block: the length of
// the piece times two, plus one for a chunk, as an unsigned LEB128 number, and
// for a chunk its ID. No two gaps follow each other.

// AppendList appends the encoding of a block list to dst.
func AppendList(dst []byte, pieces []Piece) []byte {
	for _, p := range pieces {
		v := uint64(p.Length) << 1
		if !p.IsGap() {
			v |= 1
		}
		dst = binary.AppendUvarint(dst, v)
		if !p.IsGap() {
			dst = append(dst, p.ID[:]...)
		}
	}
	return dst
}

// DecodeList appends the pieces of a block list to dst; they cover a block of
// length bytes.
func DecodeList(dst []Piece, list []byte, length int) ([]Piece, error) {
	at, gap := 0, false
	for len(list) > 0 {
		v, n := binary.Uvarint(list)
		if n <= 0 || (n > 1 && list[n-1] == 0) {
			return nil, fmt.Errorf("block list: %w", seal.ErrCorrupt)
		}
		list = list[n:]
		size := v >> 1
		if size == 0 || size > uint64(length-at) {
			return nil, fmt.Errorf("block list: piece of %d bytes at %d of %d: %w", size, at, length, seal.ErrCorrupt)
		}
		p := Piece{Offset: at, Length: int(size)}
		if v&1 == 1 {
			if len(list) < chunk.IDSize {
				return nil, fmt.Errorf("block list: %w", seal.ErrCorrupt)
			}
			copy(p.ID[:], list)
			list = list[chunk.IDSize:]
			if p.ID.IsZero() {
				return nil, fmt.Errorf("block list: zero ID: %w", seal.ErrCorrupt)
			}
			gap = false
		} else {
			if gap {
				return nil, fmt.Errorf("block list: two gaps: %w", seal.ErrCorrupt)
			}
			gap = true
		}
		at += p.Length
		dst = append(dst, p)
	}
	if at != length {
		return nil, fmt.Errorf("block list: covers %d bytes of %d: %w", at, length, seal.ErrCorrupt)
	}
	return dst, nil
}

// NodeIDs are the block-list IDs of one node; zero IDs stand for zero blocks.
type NodeIDs [NodeBlocks]chunk.ID

// IsZero tells whether the node covers zeros alone.
func (n *NodeIDs) IsZero() bool { return *n == NodeIDs{} }

// AppendNode appends the encoding of a node: a bitmap of 64 bytes, bit i of it
// (lowest bit first) telling whether block i has a list, then the IDs of those.
func AppendNode(dst []byte, n *NodeIDs) []byte { return appendSparse(dst, n[:]) }

// DecodeNode undoes AppendNode.
func DecodeNode(p []byte) (*NodeIDs, error) {
	n := new(NodeIDs)
	if err := decodeSparse(n[:], p); err != nil {
		return nil, fmt.Errorf("node: %w", err)
	}
	if n.IsZero() {
		return nil, fmt.Errorf("node: empty: %w", seal.ErrCorrupt)
	}
	return n, nil
}

func appendSparse(dst []byte, ids []chunk.ID) []byte {
	at := len(dst)
	dst = append(dst, make([]byte, (len(ids)+7)/8)...)
	for i, id := range ids {
		if !id.IsZero() {
			dst[at+i/8] |= 1 << (i % 8)
			dst = append(dst, id[:]...)
		}
	}
	return dst
}

func decodeSparse(ids []chunk.ID, p []byte) error {
	m := (len(ids) + 7) / 8
	if len(p) < m {
		return seal.ErrCorrupt
	}
	bits, p := p[:m], p[m:]
	for i := range m * 8 {
		if bits[i/8]&(1<<(i%8)) == 0 {
			continue
		}
		if i >= len(ids) || len(p) < chunk.IDSize {
			return seal.ErrCorrupt
		}
		copy(ids[i][:], p)
		if ids[i].IsZero() {
			return seal.ErrCorrupt
		}
		p = p[chunk.IDSize:]
	}
	if len(p) != 0 {
		return seal.ErrCorrupt
	}
	return nil
}

// RootNode is a decoded root: a disk's size and the IDs of its nodes.
type RootNode struct {
	Size  int64
	Nodes []chunk.ID // one for each GiB begun; zero for zeros
}

// MaxSize is the largest disk, in bytes: 64 TiB. It bounds what a root may claim.
const MaxSize = 64 << 40

// rootVersion leads a root, so that other shapes of tree can follow.
const rootVersion = 1

// Nodes is how many nodes a disk of size bytes has.
func Nodes(size int64) int { return int((disk.Blocks(size) + NodeBlocks - 1) / NodeBlocks) }

// AppendRoot appends the encoding of a root: its version (1 byte), the size
// (8 bytes, big-endian), a bitmap of the nodes that are there and their IDs, as
// in a node.
func AppendRoot(dst []byte, r *RootNode) []byte {
	dst = append(dst, rootVersion)
	dst = binary.BigEndian.AppendUint64(dst, uint64(r.Size))
	return appendSparse(dst, r.Nodes)
}

// DecodeRoot undoes AppendRoot.
func DecodeRoot(p []byte) (*RootNode, error) {
	if len(p) < 9 {
		return nil, fmt.Errorf("root: %w", seal.ErrCorrupt)
	}
	if p[0] != rootVersion {
		return nil, fmt.Errorf("root of version %d: %w", p[0], seal.ErrNewer)
	}
	size := binary.BigEndian.Uint64(p[1:])
	if size > MaxSize {
		return nil, fmt.Errorf("root: size %d: %w", size, seal.ErrCorrupt)
	}
	r := &RootNode{Size: int64(size)}
	n := Nodes(r.Size)
	if (n+7)/8 > len(p)-9 {
		return nil, fmt.Errorf("root: %w", seal.ErrCorrupt)
	}
	r.Nodes = make([]chunk.ID, n)
	if err := decodeSparse(r.Nodes, p[9:]); err != nil {
		return nil, fmt.Errorf("root: %w", err)
	}
	return r, nil
}

// BlockLength is the length of block i of a disk of size bytes.
func BlockLength(size, i int64) int {
	return int(min(disk.BlockSize, size-i*disk.BlockSize))
}
