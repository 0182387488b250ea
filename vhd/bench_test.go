package vhd

import (
	"bytes"
	"context"
	"io"
	"testing"

	"xenkeep/internal/disk"
)

// endless is a stream of many blocks that all hold the same bytes, so that the
// benchmark measures the codec and not the memory.
type endless struct {
	head, block, tail []byte
	blocks            int
	part              []byte
}

func (e *endless) Read(p []byte) (int, error) {
	for len(e.part) == 0 {
		switch {
		case e.head != nil:
			e.part, e.head = e.head, nil
		case e.blocks > 0:
			e.part = e.block
			e.blocks--
		case e.tail != nil:
			e.part, e.tail = e.tail, nil
		default:
			return 0, io.EOF
		}
	}
	n := copy(p, e.part)
	e.part = e.part[n:]
	return n, nil
}

func BenchmarkReader(b *testing.B) {
	const blocks = 128
	l := Layout{Profile: ForXAPI, Size: blocks * BlockSize}
	head, tail := l.Head(), l.Tail()
	block := append(bytes.Clone(l.BlockHead(0)), noise(1, BlockSize)...)
	buf := make([]byte, disk.BlockSize)
	b.SetBytes(l.Size)
	b.ReportAllocs()
	for b.Loop() {
		r, err := NewReader(&endless{head: head, block: block, tail: tail, blocks: blocks}, Options{})
		if err != nil {
			b.Fatal(err)
		}
		for {
			if _, err = r.Next(context.Background(), buf); err != nil {
				break
			}
		}
		if err != io.EOF {
			b.Fatal(err)
		}
	}
}

// count accepts writes like a file or socket, without the copy.
type count struct{ n int64 }

func (c *count) Write(p []byte) (int, error) {
	c.n += int64(len(p))
	return len(p), nil
}

func BenchmarkWriter(b *testing.B) {
	const blocks = 128
	l := Layout{Size: blocks * BlockSize}
	p := noise(1, BlockSize)
	b.SetBytes(l.Size)
	b.ReportAllocs()
	for b.Loop() {
		var c count
		w, err := NewWriter(&c, l)
		if err != nil {
			b.Fatal(err)
		}
		for i := range int64(blocks) {
			if err := w.WriteAt(context.Background(), p, i*BlockSize); err != nil {
				b.Fatal(err)
			}
		}
		if err := w.Close(); err != nil || c.n != w.ContentLength() {
			b.Fatal(err, c.n)
		}
	}
}

// BenchmarkSparse reads and writes the head of a 1 TiB disk with one block.
func BenchmarkSparse(b *testing.B) {
	l := Layout{Size: 1 << 40, Present: func(b int64) bool { return b == 1000 }}
	p := noise(1, BlockSize)
	buf := make([]byte, disk.BlockSize)
	b.ReportAllocs()
	for b.Loop() {
		stream := write(b, l, map[int64][]byte{1000: p})
		r, err := NewReader(bytes.NewReader(stream), Options{})
		if err != nil {
			b.Fatal(err)
		}
		if _, err := walk(r, buf); err != nil {
			b.Fatal(err)
		}
	}
}

// TestHotPathAllocatesNothing shows that neither reading nor writing of blocks
// allocates memory.
func TestHotPathAllocatesNothing(t *testing.T) {
	ctx := context.Background()
	l := Layout{Profile: ForXAPI, Size: 300 * BlockSize}
	block := append(bytes.Clone(l.BlockHead(0)), make([]byte, BlockSize)...)
	r, err := NewReader(&endless{head: l.Head(), block: block, tail: l.Tail(), blocks: 300}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	w, err := NewWriter(&count{}, l)
	if err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, disk.BlockSize)
	off := int64(0)
	step := func() {
		e, err := r.Next(ctx, buf)
		if err != nil {
			t.Fatal(err)
		}
		if err := w.WriteAt(ctx, buf[:e.Length], off); err != nil {
			t.Fatal(err)
		}
		off += e.Length
	}
	step()
	if n := testing.AllocsPerRun(100, step); n != 0 {
		t.Errorf("%v allocations a block", n)
	}
}
