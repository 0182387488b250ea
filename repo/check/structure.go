package check

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"xenkeep/chunkstore"
	"xenkeep/chunkstore/chunk"
	"xenkeep/chunkstore/index"
	"xenkeep/chunkstore/object"
	"xenkeep/chunkstore/pack"
	"xenkeep/chunkstore/seal"
	"xenkeep/internal/disk"
	"xenkeep/repo"
	"xenkeep/repo/tree"
)

// structure walks every tree.
func (c *checker) structure(ctx context.Context) error {
	for _, p := range c.badSnaps {
		if !slices.ContainsFunc(c.rep.Findings, func(f Finding) bool { return f.Object == p.Object }) {
			c.add(kindOf(p.Err), p.Object, "", p.Err)
		}
	}
	for _, s := range c.all {
		if s.Grace() == nil {
			c.rep.Snapshots++
		} else {
			c.rep.InGrace++
		}
	}
	var total int64
	for _, s := range c.all {
		total += s.Size()
	}
	missing := make(map[index.Prefix]struct{})
	if !c.deep() {
		c.progress = func() {}
		c.later = c.r.Store().Index().Gather(func(p index.Prefix, at []index.Location) error {
			c.progress()
			if !c.held(ctx, at) {
				missing[p] = struct{}{}
			}
			return ctx.Err()
		})
		defer c.later.Close()
	}
	add, done := c.o.Begin("disks", total)
	defer done()
	for _, s := range c.all {
		for _, rec := range s.Records {
			if err := c.record(ctx, s, rec); err != nil {
				return err
			}
		}
		for i := range s.Disks {
			if err := c.disk(ctx, s, &s.Disks[i], add); err != nil {
				return err
			}
		}
	}
	if c.later != nil {
		if err := c.gathered(ctx); err != nil {
			return err
		}
		if err := c.nowhere(ctx, missing); err != nil {
			return err
		}
	}
	if n := len(c.lean); n > 0 {
		c.add(Uncovered, "index/", "", fmt.Errorf("no index object covers %d packs that snapshots need", n))
	}
	return nil
}

func (c *checker) record(ctx context.Context, s *repo.Snapshot, rec repo.Record) error {
	err := error(chunkstore.ErrMissing)
	if c.have(ctx, chunk.ID(rec.ID)) {
		err = nil
		if c.deep() {
			_, err = c.r.Store().Load(ctx, chunk.Record, chunk.ID(rec.ID))
		}
	}
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil || object.Retriable(err) || errors.Is(err, seal.ErrNoDataKey):
		return err
	}
	c.suspect(err)
	c.add(BadData, "snapshots/"+s.ID(), vmName(s), fmt.Errorf("record %s: %w", rec.Name, err))
	return nil
}

// deep reports whether the data of single snapshots is read.
func (c *checker) deep() bool { return c.o.ReadData && len(c.o.Snapshots) > 0 }

// have reports whether a blob is in a pack that exists.
func (c *checker) have(ctx context.Context, id chunk.ID) bool {
	return c.held(ctx, c.r.Store().Index().Locate(index.PrefixOf(id), nil))
}

// held reports whether one of a blob's locations is in a pack that exists.
func (c *checker) held(ctx context.Context, places []index.Location) bool {
	var uncovered *pack.ID
	for _, at := range places {
		if size, ok := c.there(ctx, at.Pack); ok && int64(at.Offset)+int64(at.Length) <= size {
			in := pack.ID(at.Pack)
			if c.rep.Orphans == 0 || !c.r.Store().Adopted(in) {
				return true
			}
			uncovered = &in
		}
	}
	if uncovered != nil {
		c.lean[*uncovered] = true
	}
	return uncovered != nil
}

// gathered looks up the chunks that were gathered.
func (c *checker) gathered(ctx context.Context) error {
	if n := c.later.Len(); n > 0 {
		add, done := c.o.Begin("chunks", c.bytes)
		defer done()
		each, left := c.bytes/n, int64(0)
		c.progress = func() {
			if left += each; left > disk.BlockSize {
				add(left)
				left = 0
			}
		}
	}
	return c.later.Flush()
}

// nowhere reports the ranges of disks whose chunks are missing.
func (c *checker) nowhere(ctx context.Context, missing map[index.Prefix]struct{}) error {
	if len(missing) == 0 {
		return nil
	}
	for _, s := range c.all {
		for i := range s.Disks {
			d := &s.Disks[i]
			var rerr error
			err := c.chunks(ctx, d, func(p tree.Piece, at int64) error {
				if _, is := missing[index.PrefixOf(p.ID)]; is {
					rerr = c.report(ctx, s, d, fmt.Errorf("chunk %s: %w", p.ID.String()[:8], chunkstore.ErrMissing), at, at+int64(p.Length))
				}
				return rerr
			})
			if rerr != nil {
				return rerr
			}
			if err != nil && (ctx.Err() != nil || object.Retriable(err)) {
				return err // other errors of the walk were reported before
			}
		}
	}
	return nil
}

// report adds a finding for a disk, or a range of it, that cannot be read. It
// returns errors that are not damage.
func (c *checker) report(ctx context.Context, s *repo.Snapshot, d *repo.Disk, err error, from, to int64) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if object.Retriable(err) || errors.Is(err, seal.ErrNoDataKey) {
		return err
	}
	c.suspect(err)
	at := vmName(s) + " " + d.Device
	if to > from {
		at = fmt.Sprintf("%s, bytes %d to %d", at, from, min(to, d.Size))
		c.lose(s, d, from, to)
	}
	c.add(BadData, "snapshots/"+s.ID(), at, err)
	return nil
}

func (c *checker) disk(ctx context.Context, s *repo.Snapshot, d *repo.Disk, progress func(n int64)) error {
	root, err := tree.ReadRoot(ctx, c.r.Store(), chunk.ID(d.Root))
	if err == nil {
		err = root.CheckSize(d.Size)
	}
	if err != nil {
		return c.report(ctx, s, d, err, 0, d.Size)
	}
	w := diskCheck{c: c, report: func(err error, from, to int64) error { return c.report(ctx, s, d, err, from, to) }}
	if err := tree.Walk(ctx, c.r.Store(), root, tree.Visitor{
		Enter: func(p tree.Part) (bool, error) {
			if p.Kind == chunk.List {
				return !c.walked(p), nil
			}
			progress(p.End() - w.at)
			w.at = p.End()
			return w.enter(p), nil
		},
		List:   func(p tree.Part, pieces []tree.Piece) error { return w.list(ctx, p, pieces) },
		Broken: func(p tree.Part, err error) error { return w.broken(err, p.Offset, p.End()) },
		Leave:  func(node tree.Part) error { return w.leave(ctx, node) },
	}); err != nil {
		return err
	}
	progress(root.Size - w.at)
	return nil
}

// walked reports whether all chunks of a block list were gathered before.
func (c *checker) walked(list tree.Part) bool {
	_, seen := c.lists[index.PrefixOf(list.ID)]
	return seen && list.Length == disk.BlockSize
}

// diskCheck is the walk of one disk's tree.
type diskCheck struct {
	c      *checker
	report func(err error, from, to int64) error
	at     int64    // offset up to which the disk was walked
	bad    string   // the error below the current node
	data   []dataAt // chunks of the current node, which are to be read
}

// enter reports whether a node must be walked: it was not walked before, or damage
// was found below it, which is reported for each disk.
func (w *diskCheck) enter(node tree.Part) bool {
	bad, seen := w.c.nodes[node.Key()]
	w.bad, w.data = bad, w.data[:0]
	return !seen || bad != ""
}

func (w *diskCheck) broken(err error, from, to int64) error {
	w.bad = err.Error()
	return w.report(err, from, to)
}

// list checks that each chunk of a block list exists.
func (w *diskCheck) list(ctx context.Context, p tree.Part, pieces []tree.Piece) error {
	if w.c.later != nil {
		return w.c.gather(p, pieces)
	}
	return tree.EachChunk(func(piece tree.Piece, at int64) error {
		if w.c.have(ctx, piece.ID) {
			w.data = append(w.data, dataAt{id: piece.ID, at: at, length: int64(piece.Length)})
			return nil
		}
		return w.broken(fmt.Errorf("chunk %s: %w", piece.ID.String()[:8], chunkstore.ErrMissing), at, at+int64(piece.Length))
	})(p, pieces)
}

// gather adds the chunks of a block list to those that are looked up at the end.
func (c *checker) gather(list tree.Part, pieces []tree.Piece) error {
	for i := range pieces {
		if pieces[i].IsZero() {
			continue
		}
		c.bytes += int64(pieces[i].Length)
		if err := c.later.Add(index.PrefixOf(pieces[i].ID)); err != nil {
			return err
		}
	}
	if len(c.lists) < listsMost && list.Length == disk.BlockSize {
		c.lists[index.PrefixOf(list.ID)] = struct{}{}
	}
	return nil
}

func (w *diskCheck) leave(ctx context.Context, node tree.Part) error {
	if err := w.c.readData(ctx, w.data, w.broken); err != nil {
		return err
	}
	w.c.nodes[node.Key()] = w.bad
	return nil
}

// chunks calls fn for each chunk in the readable block lists of a disk.
func (c *checker) chunks(ctx context.Context, d *repo.Disk, fn func(p tree.Piece, at int64) error) error {
	root, err := tree.ReadRoot(ctx, c.r.Store(), chunk.ID(d.Root))
	if err != nil {
		return err
	}
	return tree.Walk(ctx, c.r.Store(), root, tree.Visitor{List: tree.EachChunk(fn), Broken: func(tree.Part, error) error { return nil }})
}

// dataAt is a chunk and its position on a disk.
type dataAt struct {
	id         chunk.ID
	at, length int64
}

// readData reads the chunks of a node (one GiB), each from any pack that has a
// sound copy.
func (c *checker) readData(ctx context.Context, data []dataAt, broken func(err error, from, to int64) error) error {
	for len(data) > 0 {
		part := data[:min(len(data), 1024)]
		data = data[len(part):]
		ids := make([]chunk.ID, len(part))
		for i := range part {
			ids[i] = part[i].id
		}
		if err := c.r.Store().Fetch(ctx, chunk.Data, ids, func(i int, p []byte) error {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.rep.Read += int64(len(p))
			return nil
		}); err == nil {
			continue
		}
		if err := c.readEach(ctx, part, broken); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// readEach reads chunks one by one, to determine those that are damaged. Damage of
// chunks that follow each other on the disk is reported once.
func (c *checker) readEach(ctx context.Context, data []dataAt, broken func(err error, from, to int64) error) error {
	var from, to int64
	var why error
	tell := func() error {
		if to > from {
			return broken(why, from, to)
		}
		return nil
	}
	for _, x := range data {
		_, err := c.r.Store().Load(ctx, chunk.Data, x.id)
		if err == nil {
			continue
		}
		if x.at != to {
			if err := tell(); err != nil {
				return err
			}
			from, why = x.at, err
		}
		to = x.at + x.length
	}
	return tell()
}
