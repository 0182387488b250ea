package backup

import (
	"context"
	"slices"

	"xenkeep/chunkstore/chunk"
	"xenkeep/internal/disk"
	"xenkeep/repo/tree"
)

// rechunker chunks a block again of which only parts may have changed. It reads
// those parts, and around them only the bytes that are needed to reach the old cuts
// again. Its pieces are the same as those of a full read:
//
//   - Whether an unchanged page is zero is known without reading it: it is zero if
//     it is in a gap of the old pieces. So the stretches of pages that are not zero
//     are known once the changed parts are read.
//   - Where a chunk ends depends on its own bytes and the one byte after it. So an
//     old chunk is still valid if chunking arrives at its beginning and neither its
//     bytes nor the byte after it have changed.
//   - So the new cuts cannot meet the old ones before the end of the old chunk in
//     which a change ends. Everything up to that point, and the old chunk in which
//     the change begins, is read together with the change: no byte that is not
//     needed, in few requests.
type rechunker struct {
	buf   []byte // the block, as far as it was read
	known []bool // by page: read, or zero
	zero  []bool // by page; pieces determines it for all pages
	old   []tree.Piece
	dirty []disk.Extent
	get   fetch
	read  int64 // bytes requested from the reader
}

// fetch reads a part of the current block or disk, from byte off on, into p.
type fetch func(ctx context.Context, p []byte, off int64) error

// begin starts a block of length bytes and reads the bytes that are needed in any
// case. old are the pieces of the base; dirty are the ranges that may differ from
// it, relative to the block, ascending, in whole pages (or to the end of the
// block).
func (c *rechunker) begin(ctx context.Context, length int, old []tree.Piece, dirty []disk.Extent, get fetch) error {
	pages := (length + disk.PageSize - 1) / disk.PageSize
	if cap(c.buf) < length {
		c.buf = make([]byte, disk.BlockSize)
	}
	c.buf = c.buf[:length]
	c.known = append(c.known[:0], make([]bool, pages)...)
	c.zero = append(c.zero[:0], make([]bool, pages)...)
	c.old, c.dirty, c.get, c.read = old, dirty, get, 0
	c.oldZeros()
	for _, d := range dirty {
		for i := int(d.Offset) / disk.PageSize; i*disk.PageSize < int(d.End()); i++ {
			c.known[i] = false
		}
	}
	for i := 0; i < len(dirty); {
		from, to := readRange(old, dirty[i])
		for i++; i < len(dirty); i++ {
			next, end := readRange(old, dirty[i])
			if next > to {
				break
			}
			to = max(to, end)
		}
		if err := c.ensure(ctx, from, min(to, length)); err != nil {
			return err
		}
	}
	return nil
}

// pieces returns the new pieces of the block that was begun. sum stores a chunk
// that is not one of the old chunks and returns its ID.
func (c *rechunker) pieces(ctx context.Context, cut chunk.Chunker, sum func(p []byte) (chunk.ID, error)) ([]tree.Piece, error) {
	for _, d := range c.dirty {
		for i := int(d.Offset) / disk.PageSize; i*disk.PageSize < int(d.End()); i++ {
			c.zero[i] = zeroPage(c.buf, i*disk.PageSize)
		}
	}
	var out []tree.Piece
	length := len(c.buf)
	for at := 0; at < length; {
		end := at
		zero := c.zero[at/disk.PageSize]
		for end < length && c.zero[end/disk.PageSize] == zero {
			end = min(end+disk.PageSize, length)
		}
		if zero {
			out = append(out, tree.Piece{Offset: at, Length: end - at})
		} else {
			var err error
			if out, err = c.run(ctx, out, at, end, cut, sum); err != nil {
				return nil, err
			}
		}
		at = end
	}
	return out, nil
}

// oldZeros marks the pages that the old pieces show to be zero. These pages are
// known, although their bytes are not cleared in the buffer: nothing reads the
// bytes of a zero page, and clearing them would touch up to 2 MiB of memory for a
// block of which one granule changed.
func (c *rechunker) oldZeros() {
	mark := func(from, to int) {
		for i := from / disk.PageSize; i*disk.PageSize < to; i++ {
			c.known[i], c.zero[i] = true, true
		}
	}
	if len(c.old) == 0 {
		mark(0, len(c.buf))
	}
	for _, p := range c.old {
		if p.IsZero() {
			mark(p.Offset, p.Offset+p.Length)
		}
	}
}

// ensure makes the bytes [from, to) known, in whole pages.
func (c *rechunker) ensure(ctx context.Context, from, to int) error {
	for i := from / disk.PageSize; i*disk.PageSize < to; {
		if c.known[i] {
			i++
			continue
		}
		j := i
		for j*disk.PageSize < to && !c.known[j] {
			c.known[j] = true
			j++
		}
		p := c.buf[i*disk.PageSize : min(j*disk.PageSize, len(c.buf))]
		if err := c.get(ctx, p, int64(i)*disk.PageSize); err != nil {
			return err
		}
		c.read += int64(len(p))
		i = j
	}
	return nil
}

// run chunks the stretch [at, end).
func (c *rechunker) run(ctx context.Context, out []tree.Piece, at, end int, cut chunk.Chunker, sum func(p []byte) (chunk.ID, error)) ([]tree.Piece, error) {
	for at < end {
		if p, ok := unchangedChunk(at, end, c.old, c.dirty); ok {
			out = append(out, p)
			at += p.Length
			continue
		}
		limit := min(end, at+cut.Max())
		to := min(limit, max(nextCut(c.old, at), lastDirty(at, limit, c.dirty)))
		for {
			if err := c.ensure(ctx, at, to); err != nil {
				return nil, err
			}
			if n := cut.First(c.buf[at:to], to == end); n > 0 {
				id, err := sum(c.buf[at : at+n])
				if err != nil {
					return nil, err
				}
				out = append(out, tree.Piece{ID: id, Offset: at, Length: n})
				at += n
				break
			}
			to = min(limit, nextCut(c.old, to))
		}
	}
	return out, nil
}

// readRange returns the range that must be read if e has changed: the old chunks in
// which it begins and ends, and one more byte on either side.
func readRange(old []tree.Piece, e disk.Extent) (from, to int) {
	from, to = int(e.Offset), int(e.End())
	if p, ok := chunkAt(old, from-1); ok {
		from = p.Offset
	}
	if _, ok := chunkAt(old, to-1); ok {
		to = nextCut(old, to-1)
	}
	return from, to
}

// nextCut returns the end of the old chunk that contains byte at, plus one byte.
// Without such a chunk it returns at plus one.
func nextCut(old []tree.Piece, at int) int {
	if p, ok := chunkAt(old, at); ok {
		at = p.Offset + p.Length
	}
	return at + 1
}

// chunkAt returns the old chunk that contains byte at, if there is one.
func chunkAt(old []tree.Piece, at int) (tree.Piece, bool) {
	i, ok := slices.BinarySearchFunc(old, at, func(p tree.Piece, at int) int { return p.Offset - at })
	if !ok {
		i--
	}
	if i < 0 || old[i].IsZero() || at >= old[i].Offset+old[i].Length {
		return tree.Piece{}, false
	}
	return old[i], true
}

// unchangedChunk returns the old chunk that begins at offset at, if neither its bytes nor
// the byte after it have changed.
func unchangedChunk(at, end int, old []tree.Piece, dirty []disk.Extent) (tree.Piece, bool) {
	i, ok := slices.BinarySearchFunc(old, at, func(p tree.Piece, at int) int { return p.Offset - at })
	if !ok || old[i].IsZero() || old[i].Offset+old[i].Length > end {
		return tree.Piece{}, false
	}
	last := int64(at + old[i].Length) // the byte after it
	for _, d := range dirty {
		if d.Offset <= last && d.End() > int64(at) {
			return tree.Piece{}, false
		}
	}
	return old[i], true
}

// lastDirty returns the end of the last dirty range in [from, to), at most to, or
// from if there is none.
func lastDirty(from, to int, dirty []disk.Extent) int {
	for _, d := range slices.Backward(dirty) {
		if int(d.Offset) < to && int(d.End()) > from {
			return min(int(d.End()), to)
		}
	}
	return from
}
