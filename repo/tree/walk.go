package tree

import (
	"context"

	"xenkeep/chunkstore"
	"xenkeep/chunkstore/chunk"
)

// Visitor contains the functions that a Walk calls. Any of them may be nil. They
// are called from one goroutine. An error that one of them returns ends the walk.
type Visitor struct {
	// Enter is called for each node, and for each block list, before it is read. If
	// it returns false, the walk skips the part and everything below it. The lists
	// of a node are entered before the first of them is visited.
	Enter func(p Part) (bool, error)
	// List is called for each block list. The pieces are valid until it returns.
	List func(p Part, pieces []Piece) error
	// Leave is called for each node that was entered, after everything below it,
	// even if some of it, or the node itself, is broken.
	Leave func(node Part) error
	// Broken is called for a part that is damaged or missing. If it returns nil,
	// the walk continues without that part. If Broken is nil, the walk ends with
	// the error. It is not called for errors of the storage: they end the walk.
	Broken func(p Part, err error) error
}

// Walk visits the nodes and block lists below a root, from the beginning of the
// disk to its end. The index must have been loaded. It keeps the decoded lists of a
// GiB, about 1.5 MiB, in memory.
func Walk(ctx context.Context, s *chunkstore.Store, root *Root, v Visitor) error {
	w := walker{s: s, v: v}
	for i, id := range root.Nodes {
		if id.IsZero() {
			continue
		}
		if err := w.node(ctx, root.Node(i)); err != nil {
			return err
		}
	}
	return nil
}

type walker struct {
	s      *chunkstore.Store
	v      Visitor
	parts  []Part
	blocks []Block // with memory for pieces, which each node reuses
}

func (w *walker) node(ctx context.Context, at Part) error {
	if in, err := w.enter(at); !in || err != nil {
		return err
	}
	node, err := ReadNode(ctx, w.s, at.ID)
	if err == nil {
		err = w.lists(ctx, node, at)
	} else {
		err = w.broken(ctx, at, err)
	}
	if err != nil || w.v.Leave == nil {
		return err
	}
	return w.v.Leave(at)
}

func (w *walker) enter(p Part) (bool, error) {
	if w.v.Enter == nil {
		return true, nil
	}
	return w.v.Enter(p)
}

// broken returns the error that ends the walk, if any.
func (w *walker) broken(ctx context.Context, p Part, err error) error {
	if w.v.Broken == nil {
		return err
	}
	if err := ends(ctx, err); err != nil {
		return err
	}
	return w.v.Broken(p, err)
}

func (w *walker) lists(ctx context.Context, node *Node, at Part) error {
	w.parts = node.Lists(w.parts[:0], at)
	n := 0
	for _, p := range w.parts {
		if err := p.inside(); err != nil {
			if err := w.broken(ctx, p, err); err != nil {
				return err
			}
			continue
		}
		in, err := w.enter(p)
		if err != nil {
			return err
		}
		if !in {
			continue
		}
		if n == len(w.blocks) {
			w.blocks = append(w.blocks, Block{})
		}
		w.blocks[n].Part = p
		n++
	}
	blocks := w.blocks[:n]
	var broken func(*Block, error) error
	if w.v.Broken != nil {
		broken = func(b *Block, err error) error { return w.v.Broken(b.Part, err) }
	}
	if err := ReadLists(ctx, w.s, blocks, broken); err != nil {
		return err
	}
	if w.v.List == nil {
		return nil
	}
	for i := range blocks {
		if b := &blocks[i]; b.err == nil {
			if err := w.v.List(b.Part, b.Pieces); err != nil {
				return err
			}
		}
	}
	return nil
}

// EachChunk returns a function for Visitor.List that calls fn for each chunk, with
// its offset on the disk.
func EachChunk(fn func(p Piece, at int64) error) func(list Part, pieces []Piece) error {
	return func(list Part, pieces []Piece) error {
		for _, p := range pieces {
			if p.IsZero() {
				continue
			}
			if err := fn(p, list.Offset+int64(p.Offset)); err != nil {
				return err
			}
		}
		return nil
	}
}

// IDs calls fn for the root, and for each node, block list and chunk of its tree. A
// blob that several parts of the tree name is passed several times.
func IDs(ctx context.Context, s *chunkstore.Store, root chunk.ID, fn func(id chunk.ID)) error {
	fn(root)
	r, err := ReadRoot(ctx, s, root)
	if err != nil {
		return err
	}
	return Walk(ctx, s, r, Visitor{
		Enter: func(p Part) (bool, error) { fn(p.ID); return true, nil },
		List:  EachChunk(func(p Piece, _ int64) error { fn(p.ID); return nil }),
	})
}

// Chunks calls fn for each chunk of a disk, with its offset on the disk, in order.
func Chunks(ctx context.Context, s *chunkstore.Store, root chunk.ID, fn func(p Piece, at int64) error) error {
	r, err := ReadRoot(ctx, s, root)
	if err != nil {
		return err
	}
	return Walk(ctx, s, r, Visitor{List: EachChunk(fn)})
}
