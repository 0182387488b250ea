package index

import (
	"errors"
	"io"
	"os"
	"runtime"
)

// Gather takes prefixes in any order and finds them in about that of the index,
// so that memory sees one small part of it after the other. Looking up each
// prefix of many as it comes touches three pages anywhere in the index; where
// that has gigabytes, it costs microseconds each time.
//
// What is not yet looked up lies in a file without a name in the index's folder.
// Where there is no room for that, it is looked up at once.
type Gather struct {
	x     *Index
	found func(p Prefix, at []Location) error

	parts  [gatherParts]gatherPart
	file   *os.File
	next   int64 // where the file ends
	noFile bool
	n      int64
	buf    []byte
	at     []Location
}

// A part holds the prefixes that begin with the same byte: up to a block of them
// in memory, the rest in blocks of the file.
type gatherPart struct {
	prefixes []byte
	blocks   []int64 // where in the file
}

const (
	gatherParts = 256
	gatherBlock = 64 << 10 // bytes, 4,096 prefixes
)

// Gather begins a gathering. Found is told where each prefix lies, hidden packs
// too, in no order; at is good during the call alone, and empty for an unknown
// one. An error of it ends the call of Add or Flush that it was called from. The
// gathering must be closed.
func (x *Index) Gather(found func(p Prefix, at []Location) error) *Gather {
	return &Gather{x: x, found: found, noFile: x.folder.memory()}
}

// Len is how many prefixes wait to be looked up.
func (g *Gather) Len() int64 { return g.n }

// Add takes a prefix.
func (g *Gather) Add(p Prefix) error {
	part := &g.parts[p[0]]
	if len(part.prefixes) >= gatherBlock {
		if !g.spill(part) {
			if err := g.Flush(); err != nil {
				return err
			}
		}
	}
	part.prefixes = append(part.prefixes, p[:]...)
	g.n++
	return nil
}

// spill writes a full block; it reports whether there was room.
func (g *Gather) spill(part *gatherPart) bool {
	if g.noFile {
		return false
	}
	if g.file == nil {
		t, err := g.x.folder.create()
		if err != nil {
			g.noFile = true
			return false
		}
		g.file = t.file
		_ = os.Remove(g.file.Name())
	}
	if _, err := g.file.WriteAt(part.prefixes, g.next); err != nil {
		g.noFile = true
		return false
	}
	part.blocks = append(part.blocks, g.next)
	g.next += int64(len(part.prefixes))
	part.prefixes = part.prefixes[:0]
	return true
}

// Flush looks up all prefixes that wait.
func (g *Gather) Flush() error {
	v := g.x.view.Load()
	defer runtime.KeepAlive(v)
	for i := range g.parts {
		part := &g.parts[i]
		for _, at := range part.blocks {
			if g.buf == nil {
				g.buf = make([]byte, gatherBlock)
			}
			if n, err := g.file.ReadAt(g.buf, at); n < len(g.buf) {
				return errors.Join(err, io.ErrUnexpectedEOF)
			}
			if err := g.look(v, g.buf); err != nil {
				return err
			}
		}
		if err := g.look(v, part.prefixes); err != nil {
			return err
		}
		part.blocks, part.prefixes = part.blocks[:0], part.prefixes[:0]
	}
	g.next, g.n = 0, 0
	return nil
}

func (g *Gather) look(v *view, prefixes []byte) error {
	for ; len(prefixes) > 0; prefixes = prefixes[len(Prefix{}):] {
		p := Prefix(prefixes)
		hi, lo := split(p)
		g.at = v.gather(hi, lo, g.at[:0])
		if err := g.found(p, g.at); err != nil {
			return err
		}
	}
	return nil
}

// Close frees what the gathering holds.
func (g *Gather) Close() {
	if g.file != nil {
		g.file.Close()
	}
	g.parts = [gatherParts]gatherPart{}
}
