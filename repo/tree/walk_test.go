package tree_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"xenkeep/chunkstore"
	"xenkeep/chunkstore/chunk"
	"xenkeep/chunkstore/object"
	"xenkeep/chunkstore/object/mem"
	"xenkeep/chunkstore/object/objecttest"
	"xenkeep/chunkstore/seal"
	"xenkeep/internal/disk"
	"xenkeep/internal/disk/disktest"
	"xenkeep/repo/repotest"
	"xenkeep/repo/tree"
)

// store writes blobs with put into a new repository, and returns its store.
func store(t *testing.T, objects object.Store, put func(put func(chunk.Kind, []byte) chunk.ID)) *chunkstore.Store {
	t.Helper()
	s := repotest.Init(t, objects).Store()
	if err := s.Write(t.Context(), chunkstore.WriterOptions{Run: chunkstore.RunID{1}}, func(ctx context.Context, w *chunkstore.Writer) error {
		k, err := w.NewWorker()
		if err != nil {
			return err
		}
		defer k.Done()
		put(func(kind chunk.Kind, p []byte) chunk.ID {
			id := k.Sum(kind, p)
			if _, perr := k.Put(kind, id, p); perr != nil {
				err = perr
			}
			return id
		})
		return errors.Join(err, w.Flush(ctx))
	}); err != nil {
		t.Fatal(err)
	}
	return s
}

// A walk visits every chunk of a disk once, in order, with its position on the
// disk, and skips zeros and the parts for which Enter returns false.
func TestWalk(t *testing.T) {
	m := disktest.NewMem(3<<30 + 777)
	for _, at := range []int64{0, 5 << 20, tree.NodeSize - disk.BlockSize, 3 << 30} {
		p := objecttest.Bytes(uint64(at), 700)
		if err := m.WriteAt(t.Context(), p, at); err != nil {
			t.Fatal(err)
		}
	}
	r := repotest.Init(t, mem.New())
	id := repotest.Put(t, r, m)
	root, err := tree.ReadRoot(t.Context(), r.Store(), id)
	if err != nil || root.CheckSize(m.Size()) != nil || root.CheckSize(m.Size()+1) == nil {
		t.Fatal(root, err)
	}
	var got []string
	v := tree.Visitor{
		Enter: func(p tree.Part) (bool, error) {
			got = append(got, fmt.Sprintf("%v %d+%d", p.Kind, p.Offset, p.Length))
			return true, nil
		},
		List: func(p tree.Part, pieces []tree.Piece) error {
			got = append(got, fmt.Sprintf("%d pieces at %d", len(pieces), p.Offset))
			return nil
		},
		Leave: func(p tree.Part) error { got = append(got, fmt.Sprint("leave ", p.Offset)); return nil },
	}
	if err := tree.Walk(t.Context(), r.Store(), root, v); err != nil {
		t.Fatal(err)
	}
	want := []string{
		"node 0+1073741824", "block list 0+2097152", "block list 4194304+2097152", "block list 1071644672+2097152",
		"2 pieces at 0", "3 pieces at 4194304", "2 pieces at 1071644672", "leave 0",
		"node 3221225472+777", "block list 3221225472+777", "1 pieces at 3221225472", "leave 3221225472",
	}
	if !slices.Equal(got, want) {
		t.Errorf("visited\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	got = nil
	v.Enter = func(p tree.Part) (bool, error) { return p.Kind == chunk.Node && p.Offset == 0, nil }
	if err := tree.Walk(t.Context(), r.Store(), root, v); err != nil || !slices.Equal(got, []string{"leave 0"}) {
		t.Errorf("a walk that enters one node and no list visits %v: %v", got, err)
	}
	var ids, chunks int
	if err := tree.IDs(t.Context(), r.Store(), id, func(chunk.ID) { ids++ }); err != nil || ids != 1+2+4+4 {
		t.Errorf("%d IDs, want 11: %v", ids, err)
	}
	if err := tree.Chunks(t.Context(), r.Store(), id, func(p tree.Piece, at int64) error {
		chunks++
		data := make([]byte, p.Length)
		if _, err := m.ReadAt(data, at); err != nil || r.Store().NewHasher().Sum(chunk.Data, data) != p.ID {
			t.Errorf("the chunk at %d is another (%v)", at, err)
		}
		return nil
	}); err != nil || chunks != 4 {
		t.Errorf("%d chunks: %v", chunks, err)
	}
}

// damaged is a disk of two nodes: the second is missing, and of the first node's
// blocks 0 and 3 are sound, 1 has a list that does not decode, 2 has none in the
// repository, and 500 is after the disk's end in the other disk, cut.
func damaged(t *testing.T, objects object.Store) (s *chunkstore.Store, whole, cut *tree.Root) {
	t.Helper()
	s = store(t, objects, func(put func(chunk.Kind, []byte) chunk.ID) {
		data := put(chunk.Data, objecttest.Bytes(1, disk.BlockSize/2))
		pieces := []tree.Piece{{ID: data, Length: disk.BlockSize / 2}, {Offset: disk.BlockSize / 2, Length: disk.BlockSize / 2}}
		sound := put(chunk.List, tree.AppendList(nil, pieces))
		node := &tree.Node{0: sound, 1: put(chunk.List, []byte("no list")), 2: {9}, 3: sound}
		whole = &tree.Root{Size: 2 * tree.NodeSize, Nodes: []chunk.ID{put(chunk.Node, tree.AppendNode(nil, node)), {8}}}
		node = &tree.Node{0: sound, 500: sound}
		cut = &tree.Root{Size: 2 * disk.BlockSize, Nodes: []chunk.ID{put(chunk.Node, tree.AppendNode(nil, node))}}
	})
	return s, whole, cut
}

// Damage ends a walk, or is passed to Broken part by part, and everything else is
// visited. Errors of the storage are not damage.
func TestBroken(t *testing.T) {
	objects := objecttest.NewFaulty(mem.New())
	s, whole, cut := damaged(t, objects)
	if err := tree.Walk(t.Context(), s, whole, tree.Visitor{}); !errors.Is(err, seal.ErrCorrupt) && !errors.Is(err, chunkstore.ErrMissing) {
		t.Errorf("damage does not end the walk: %v", err)
	}
	walk := func(root *tree.Root) (lists, broken []int64, left int, err error) {
		err = tree.Walk(t.Context(), s, root, tree.Visitor{
			List: func(p tree.Part, pieces []tree.Piece) error {
				if len(pieces) != 2 {
					t.Errorf("%d pieces at %d", len(pieces), p.Offset)
				}
				lists = append(lists, p.Offset/disk.BlockSize)
				return nil
			},
			Broken: func(p tree.Part, err error) error {
				if !errors.Is(err, seal.ErrCorrupt) && !errors.Is(err, chunkstore.ErrMissing) {
					t.Errorf("block %d: %v", p.Offset/disk.BlockSize, err)
				}
				broken = append(broken, p.Offset/disk.BlockSize)
				return nil
			},
			Leave: func(tree.Part) error { left++; return nil },
		})
		return lists, broken, left, err
	}
	for range 2 { // reused memory changes nothing
		lists, broken, left, err := walk(whole)
		if err != nil || left != 2 || !slices.Equal(lists, []int64{0, 3}) || !slices.Equal(broken, []int64{1, 2, tree.NodeBlocks}) {
			t.Errorf("lists %v, broken %v, %d nodes left: %v", lists, broken, left, err)
		}
	}
	if lists, broken, left, err := walk(cut); err != nil || left != 1 || !slices.Equal(lists, []int64{0}) || !slices.Equal(broken, []int64{500}) {
		t.Errorf("a block after the end: lists %v, broken %v, %d nodes left: %v", lists, broken, left, err)
	}
	if err := tree.ReadNodes(t.Context(), s, cut, func(tree.Part, *tree.Node) error { return nil }); !errors.Is(err, seal.ErrCorrupt) {
		t.Errorf("ReadNodes, a block after the end: %v", err)
	}
	why := errors.New("enough")
	if err := tree.Walk(t.Context(), s, whole, tree.Visitor{Broken: func(tree.Part, error) error { return why }}); !errors.Is(err, why) {
		t.Errorf("an error of Broken does not end the walk: %v", err)
	}
	objects.Inject(objecttest.Fault{Stay: true})
	if _, broken, _, err := walk(whole); err == nil || !object.Retriable(err) || len(broken) > 0 {
		t.Errorf("a storage that fails: broken %v, %v", broken, err)
	}
}

// ReadData reads a block whatever its memory contained before, and refuses a chunk
// of another length than its list states.
func TestReadData(t *testing.T) {
	content := objecttest.Bytes(1, disk.BlockSize/2)
	var id chunk.ID
	s := store(t, mem.New(), func(put func(chunk.Kind, []byte) chunk.ID) { id = put(chunk.Data, content) })
	want := make([]byte, disk.BlockSize)
	copy(want[4096:], content)
	blocks := []tree.Block{
		{Part: tree.Part{Extent: disk.Extent{Length: disk.BlockSize}}, Data: objecttest.Bytes(2, disk.BlockSize)}, // of zeros
		{
			Part:   tree.Part{Extent: disk.Extent{Offset: disk.BlockSize, Length: disk.BlockSize}},
			Pieces: []tree.Piece{{Length: 4096}, {ID: id, Offset: 4096, Length: len(content)}, {Offset: 4096 + len(content), Length: disk.BlockSize/2 - 4096}},
			Data:   objecttest.Bytes(3, disk.BlockSize),
		},
	}
	if err := tree.ReadData(t.Context(), s, blocks); err != nil {
		t.Fatal(err)
	}
	if string(blocks[0].Data) != string(make([]byte, disk.BlockSize)) || string(blocks[1].Data) != string(want) {
		t.Error("blocks hold other bytes than their pieces name")
	}
	blocks[1].Pieces[1].Length--
	err := tree.ReadData(t.Context(), s, blocks)
	if !errors.Is(err, seal.ErrCorrupt) || !strings.Contains(err.Error(), "1048576 bytes where its block list says 1048575") {
		t.Errorf("a chunk of another length: %v", err)
	}
}
