package tree

import (
	"bytes"
	"context"
	"fmt"
	"sync/atomic"

	"xenkeep/chunkstore"
	"xenkeep/chunkstore/chunk"
	"xenkeep/chunkstore/object"
	"xenkeep/chunkstore/seal"
	"xenkeep/internal/disk"
)

// Part is a node or a block list, and the bytes of the disk that it covers. Length
// is zero or negative for the list of a block after the disk's end, which only a
// damaged or forged node has.
type Part struct {
	disk.Extent
	Kind chunk.Kind // chunk.Node or chunk.List
	ID   chunk.ID
}

// Key identifies everything below a part. The length is part of it because the same
// node covers less of a disk that ends in it.
type Key struct {
	ID     chunk.ID
	Length int64
}

// Key returns the key of the part: parts with equal keys are equal trees.
func (p Part) Key() Key { return Key{p.ID, p.Length} }

// inside returns an error if the part is after the disk's end.
func (p Part) inside() error {
	if p.Length <= 0 {
		return fmt.Errorf("block %d after the disk's end: %w", p.Offset/disk.BlockSize, seal.ErrCorrupt)
	}
	return nil
}

// Node returns node i as a part. Its ID is zero for a GiB of zeros, and if the disk
// has no such node.
func (r *Root) Node(i int) Part {
	at := int64(i) * NodeSize
	p := Part{Extent: disk.Extent{Offset: at, Length: min(NodeSize, r.Size-at)}, Kind: chunk.Node}
	if i < len(r.Nodes) {
		p.ID = r.Nodes[i]
	}
	return p
}

// CheckSize returns an error unless the disk has size bytes.
func (r *Root) CheckSize(size int64) error {
	if r.Size != size {
		return fmt.Errorf("root of a disk of %d bytes, not %d: %w", r.Size, size, seal.ErrCorrupt)
	}
	return nil
}

// List returns the list of the node's block i as a part; at is the node's part. The
// list's ID is zero for a block of zeros.
func (n *Node) List(at Part, i int) Part {
	from := at.Offset + int64(i)*disk.BlockSize
	return Part{Extent: disk.Extent{Offset: from, Length: min(disk.BlockSize, at.End()-from)}, Kind: chunk.List, ID: n[i]}
}

// Lists appends the block lists of the node to dst, without blocks of zeros; at is
// the node's part.
func (n *Node) Lists(dst []Part, at Part) []Part {
	for i, id := range n {
		if !id.IsZero() {
			dst = append(dst, n.List(at, i))
		}
	}
	return dst
}

// ReadRoot reads the root of a disk.
func ReadRoot(ctx context.Context, s *chunkstore.Store, id chunk.ID) (*Root, error) {
	p, err := s.Load(ctx, chunk.Root, id)
	if err != nil {
		return nil, err
	}
	return DecodeRoot(p)
}

// ReadNode reads a node. A zero ID is a node of zeros.
func ReadNode(ctx context.Context, s *chunkstore.Store, id chunk.ID) (*Node, error) {
	if id.IsZero() {
		return new(Node), nil
	}
	p, err := s.Load(ctx, chunk.Node, id)
	if err != nil {
		return nil, err
	}
	return DecodeNode(p)
}

// nodesAtOnce is how many nodes ReadNodes holds. A node takes up to 16 KiB.
const nodesAtOnce = 64

// ReadNodes reads all nodes of a disk, many with each request, and calls fn for
// each in order, except for those of zeros. A node that has a block after the
// disk's end is an error.
func ReadNodes(ctx context.Context, s *chunkstore.Store, r *Root, fn func(at Part, n *Node) error) error {
	var parts []Part
	for i, id := range r.Nodes {
		if !id.IsZero() {
			parts = append(parts, r.Node(i))
		}
	}
	var nodes [nodesAtOnce]*Node
	for len(parts) > 0 {
		group := parts[:min(len(parts), nodesAtOnce)]
		parts = parts[len(group):]
		ids := make([]chunk.ID, len(group))
		for i, p := range group {
			ids[i] = p.ID
		}
		if err := s.Fetch(ctx, chunk.Node, ids, func(i int, p []byte) (err error) {
			nodes[i], err = DecodeNode(p)
			return err
		}); err != nil {
			return err
		}
		for i, p := range group {
			for j, list := range nodes[i] {
				if list.IsZero() {
					continue
				}
				if err := nodes[i].List(p, j).inside(); err != nil {
					return fmt.Errorf("node %d: %w", p.Offset/NodeSize, err)
				}
			}
			if err := fn(p, nodes[i]); err != nil {
				return err
			}
		}
	}
	return nil
}

// Block is a block of a disk while it is read. ReadLists and ReadData reuse its
// memory.
type Block struct {
	Part           // its list, with a zero ID for a block of zeros
	Pieces []Piece // none for a block of zeros
	Data   []byte

	list []byte // encoded, if FetchLists read it
	read bool
	err  error
}

// ReadLists reads the lists of blocks and sets their Pieces. It stops at the first
// error, unless broken is set: then it reads all lists that it can, and calls
// broken in the order of blocks for each list that is damaged or missing. It stops
// if broken returns an error. It stops in any case if the storage fails or ctx is
// done.
func ReadLists(ctx context.Context, s *chunkstore.Store, blocks []Block, broken func(b *Block, err error) error) error {
	return readLists(ctx, s, blocks, (*Block).decode, broken)
}

// FetchLists is ReadLists without decoding the lists, which takes less memory and
// time if only some are used: Block.Decode decodes one.
func FetchLists(ctx context.Context, s *chunkstore.Store, blocks []Block, broken func(b *Block, err error) error) error {
	return readLists(ctx, s, blocks, (*Block).keep, broken)
}

// readLists calls take with each list, from several goroutines concurrently.
func readLists(ctx context.Context, s *chunkstore.Store, blocks []Block, take func(*Block, []byte) error, broken func(*Block, error) error) error {
	ids, of := make([]chunk.ID, 0, len(blocks)), make([]*Block, 0, len(blocks))
	for i := range blocks {
		b := &blocks[i]
		b.Pieces, b.list, b.read, b.err = b.Pieces[:0], nil, false, nil
		if b.ID.IsZero() {
			continue
		}
		ids, of = append(ids, b.ID), append(of, b)
	}
	var bad atomic.Bool
	err := s.Fetch(ctx, chunk.List, ids, func(i int, p []byte) error {
		if err := take(of[i], p); err != nil {
			if broken == nil {
				return err
			}
			bad.Store(true)
		}
		return nil
	})
	if broken == nil || err == nil && !bad.Load() {
		return err
	}
	if err != nil {
		if err := ends(ctx, err); err != nil {
			return err
		}
		if err := oneByOne(ctx, s, of, take); err != nil {
			return err
		}
	}
	for _, b := range of {
		if b.err != nil {
			b.Pieces = b.Pieces[:0]
			if err := broken(b, b.err); err != nil {
				return err
			}
		}
	}
	return nil
}

// oneByOne reads the lists that a failed Fetch did not, so that damage is reported
// for the lists that have it and for no others.
func oneByOne(ctx context.Context, s *chunkstore.Store, blocks []*Block, take func(*Block, []byte) error) error {
	for _, b := range blocks {
		if b.read {
			continue
		}
		p, err := s.Load(ctx, chunk.List, b.ID)
		if err != nil {
			if err := ends(ctx, err); err != nil {
				return err
			}
			b.err = err
			continue
		}
		_ = take(b, p) // the error is in b.err
	}
	return nil
}

// decode sets Pieces, or err.
func (b *Block) decode(list []byte) error {
	b.read = true
	var pieces []Piece
	if pieces, b.err = DecodeList(b.Pieces, list, int(b.Length)); b.err == nil {
		b.Pieces = pieces
	}
	return b.err
}

// keep sets list.
func (b *Block) keep(list []byte) error {
	b.read, b.list = true, bytes.Clone(list)
	return nil
}

// Decode returns the pieces of a block whose list FetchLists has read: none for a
// block of zeros, and none if the list is broken.
func (b *Block) Decode() ([]Piece, error) {
	if b.list == nil {
		return nil, nil
	}
	return DecodeList(nil, b.list, int(b.Length))
}

// ends returns err if it ends a walk over damaged trees, because it is not damage:
// an error of the storage, or the end of ctx.
func ends(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if object.Retriable(err) {
		return err
	}
	return nil
}

// ReadData reads the chunks of blocks and sets their Data, according to their
// Pieces. It checks that each chunk has the length that its block list states.
func ReadData(ctx context.Context, s *chunkstore.Store, blocks []Block) error {
	n := 0
	for i := range blocks {
		n += len(blocks[i].Pieces)
	}
	ids, to := make([]chunk.ID, 0, n), make([][]byte, 0, n)
	for i := range blocks {
		b := &blocks[i]
		if int64(cap(b.Data)) < b.Length {
			b.Data = make([]byte, disk.BlockSize)
		}
		b.Data = b.Data[:b.Length]
		if len(b.Pieces) == 0 {
			clear(b.Data)
		}
		for _, p := range b.Pieces {
			if part := b.Data[p.Offset : p.Offset+p.Length]; p.IsZero() {
				clear(part)
			} else {
				ids, to = append(ids, p.ID), append(to, part)
			}
		}
	}
	return s.Fetch(ctx, chunk.Data, ids, func(i int, p []byte) error {
		if err := checkLength(ids[i], len(p), len(to[i])); err != nil {
			return err
		}
		copy(to[i], p)
		return nil
	})
}
