// Package tree implements the Merkle tree of a disk: its encoding, and the only
// code that decodes and traverses it.
//
// A root names a node for each GiB of the disk, a node names a block list for each
// block of disk.BlockSize, and a block list names the chunks of its block. Holes
// and zeros are the same: a block of zeros has no list, a GiB of zeros has no node.
// Every encoding is a pure function of the disk's content, so equal parts of disks
// have equal IDs.
//
// Walk visits a whole tree. ReadLists and ReadData read blocks of it. Code that
// keeps parts of trees in a cache of its own decodes them with DecodeNode and
// DecodeList.
package tree

import (
	"encoding/binary"
	"fmt"
	"slices"

	"xenkeep/chunkstore/chunk"
	"xenkeep/chunkstore/seal"
	"xenkeep/internal/disk"
)

const (
	// NodeBlocks is the number of blocks that a node covers.
	NodeBlocks = 512
	// NodeSize is the number of bytes that a node covers: 1 GiB.
	NodeSize = NodeBlocks * disk.BlockSize
	// MaxSize is the size of the largest disk, in bytes: 64 TiB. It limits the
	// memory that a damaged root can request.
	MaxSize = 64 << 40
)

// Piece is a stretch of a block: a chunk, or zeros if ID is zero.
type Piece struct {
	ID     chunk.ID
	Offset int // in the block
	Length int
}

// IsZero reports whether the piece is a stretch of zeros.
func (p Piece) IsZero() bool { return p.ID.IsZero() }

// Check returns an error unless data, the content of the piece's chunk, has the
// length that the block list states.
func (p Piece) Check(data []byte) error { return checkLength(p.ID, len(data), p.Length) }

func checkLength(id chunk.ID, got, want int) error {
	if got != want {
		return fmt.Errorf("chunk %s: %d bytes where its block list says %d: %w", id.String()[:8], got, want, seal.ErrCorrupt)
	}
	return nil
}

// AppendList appends the encoding of a block list to dst: for each piece of the
// block an unsigned LEB128 number, which is twice the piece's length, plus one for
// a chunk, and then the chunk's ID. Two stretches of zeros never follow each other.
func AppendList(dst []byte, pieces []Piece) []byte {
	for _, p := range pieces {
		v := uint64(p.Length) << 1
		if !p.IsZero() {
			v |= 1
		}
		dst = binary.AppendUvarint(dst, v)
		if !p.IsZero() {
			dst = append(dst, p.ID[:]...)
		}
	}
	return dst
}

// DecodeList appends the pieces of a block list to dst. It fails unless they cover
// a block of length bytes.
func DecodeList(dst []Piece, list []byte, length int) ([]Piece, error) {
	if length < 0 {
		return nil, fmt.Errorf("block list: of a block after the disk's end: %w", seal.ErrCorrupt)
	}
	dst = slices.Grow(dst, len(list)/(chunk.IDSize+1)+1)
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

// Node is a decoded node: the IDs of its block lists, zero for blocks of zeros.
type Node [NodeBlocks]chunk.ID

// IsZero reports whether all blocks of the node are zero.
func (n *Node) IsZero() bool { return *n == Node{} }

// AppendNode appends the encoding of a node: a bitmap of 64 bytes, in which bit i
// (lowest bit first) is set if block i has a list, then the IDs of these lists.
func AppendNode(dst []byte, n *Node) []byte { return appendSparse(dst, n[:]) }

// DecodeNode decodes the encoding that AppendNode returns.
func DecodeNode(p []byte) (*Node, error) {
	n := new(Node)
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

// Root is a decoded root: a disk's size and the IDs of its nodes.
type Root struct {
	Size  int64
	Nodes []chunk.ID // one for each GiB, zero for a GiB of zeros
}

// rootVersion is the first byte of a root, so that other shapes of tree can follow.
const rootVersion = 1

// Nodes returns the number of nodes of a disk of size bytes.
func Nodes(size int64) int { return int((disk.Blocks(size) + NodeBlocks - 1) / NodeBlocks) }

// AppendRoot appends the encoding of a root: its version (1 byte), the size (8
// bytes, big-endian), a bitmap of the nodes that exist and their IDs, as in a node.
func AppendRoot(dst []byte, r *Root) []byte {
	dst = append(dst, rootVersion)
	dst = binary.BigEndian.AppendUint64(dst, uint64(r.Size))
	return appendSparse(dst, r.Nodes)
}

// DecodeRoot decodes the encoding that AppendRoot returns.
func DecodeRoot(p []byte) (*Root, error) {
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
	r := &Root{Size: int64(size)}
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
