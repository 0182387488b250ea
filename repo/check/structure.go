package check

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"xenkeep/chunkstore"
	"xenkeep/chunkstore/chunk"
	"xenkeep/chunkstore/index"
	"xenkeep/chunkstore/object"
	"xenkeep/chunkstore/pack"
	"xenkeep/chunkstore/seal"
	"xenkeep/internal/disk"
	"xenkeep/repo"
)

// structure walks every tree.
func (c *checker) structure(ctx context.Context) error {
	for _, p := range c.badSnaps {
		if !slices.ContainsFunc(c.rep.Findings, func(f Finding) bool { return f.Object == p.Object }) {
			c.add(p.Object, "", p.Err, hint(p.Object, p.Err))
		}
	}
	c.rep.Snapshots = len(c.all)
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
		c.add("index/", "", fmt.Errorf("no index object covers %d packs that snapshots need", n), "all can be read; the next backup or xenkeep repair index puts it right")
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
	c.add("snapshots/"+s.ID(), vmName(s), fmt.Errorf("record %s: %w", rec.Name, err), "")
	return nil
}

// deep tells whether the data of single snapshots is read.
func (c *checker) deep() bool { return c.o.ReadData && len(c.o.Snapshots) > 0 }

// have tells whether a blob is in a pack that is there.
func (c *checker) have(ctx context.Context, id chunk.ID) bool {
	return c.held(ctx, c.r.Store().Index().Locate(index.PrefixOf(id), nil))
}

// held tells whether one of a blob's places is in a pack that is there.
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

// nowhere names the ranges of disks whose chunks are missing.
func (c *checker) nowhere(ctx context.Context, missing map[index.Prefix]struct{}) error {
	if len(missing) == 0 {
		return nil
	}
	for _, s := range c.all {
		for i := range s.Disks {
			d := &s.Disks[i]
			var rerr error
			err := repo.WalkReadable(ctx, c.r, chunk.ID(d.Root), func(p repo.Piece, at int64) {
				if _, is := missing[index.PrefixOf(p.ID)]; is && rerr == nil {
					rerr = c.report(ctx, s, d, fmt.Errorf("chunk %s: %w", p.ID.String()[:8], chunkstore.ErrMissing), at, at+int64(p.Length))
				}
			})
			if err != nil && (ctx.Err() != nil || object.Retriable(err)) {
				return err // what else a walk finds was told
			}
			if rerr != nil {
				return rerr
			}
		}
	}
	return nil
}

// report tells of a disk, or of a range of it, that cannot be read. It passes on
// what is no damage.
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
	c.add("snapshots/"+s.ID(), at, err, "")
	return nil
}

func (c *checker) disk(ctx context.Context, s *repo.Snapshot, d *repo.Disk, progress func(n int64)) error {
	report := func(err error, from, to int64) error { return c.report(ctx, s, d, err, from, to) }
	p, err := c.r.Store().Load(ctx, chunk.Root, chunk.ID(d.Root))
	if err != nil {
		return report(err, 0, d.Size)
	}
	root, err := repo.DecodeRoot(p)
	if err == nil && root.Size != d.Size {
		err = fmt.Errorf("root of a disk of %d bytes, not %d: %w", root.Size, d.Size, seal.ErrCorrupt)
	}
	if err != nil {
		return report(err, 0, d.Size)
	}
	for i, id := range root.Nodes {
		first := int64(i) * repo.NodeBlocks
		progress(min(repo.NodeBlocks*disk.BlockSize, root.Size-first*disk.BlockSize))
		if id.IsZero() {
			continue
		}
		key := nodeKey{id: id}
		if i == len(root.Nodes)-1 {
			key.size = root.Size
		}
		bad, seen := c.nodes[key]
		if seen && bad == "" {
			continue
		}
		var rerr error
		complain := func(err error, from, to int64) {
			bad = err.Error()
			if e := report(err, from, to); e != nil {
				rerr = e
			}
		}
		p, err := c.r.Store().Load(ctx, chunk.Node, id)
		var node *repo.NodeIDs
		if err == nil {
			node, err = repo.DecodeNode(p)
		}
		if err != nil {
			complain(err, first*disk.BlockSize, (first+repo.NodeBlocks)*disk.BlockSize)
		} else {
			c.blocks(ctx, node, first, root.Size, complain)
		}
		if rerr != nil {
			return rerr
		}
		if c.failed != nil {
			return c.failed
		}
		c.nodes[key] = bad
	}
	return nil
}

// blocks checks the lists of one node and that each chunk they name is there.
func (c *checker) blocks(ctx context.Context, node *repo.NodeIDs, first, size int64, complain func(err error, from, to int64)) {
	var ids []chunk.ID
	var at []int64
	for i, id := range node {
		if !id.IsZero() {
			if b := first + int64(i); b >= disk.Blocks(size) {
				complain(fmt.Errorf("block %d behind the disk's end: %w", b, seal.ErrCorrupt), 0, 0)
				continue
			}
			if _, seen := c.lists[index.PrefixOf(id)]; seen && repo.BlockLength(size, first+int64(i)) == disk.BlockSize {
				continue
			}
			ids, at = append(ids, id), append(at, first+int64(i))
		}
	}
	var mu sync.Mutex
	var data []dataAt
	one := func(id index.Prefix, block int64, p []byte) {
		pieces, err := repo.DecodeList(nil, p, repo.BlockLength(size, block))
		mu.Lock()
		defer mu.Unlock()
		if err != nil {
			complain(err, block*disk.BlockSize, (block+1)*disk.BlockSize)
			return
		}
		for _, piece := range pieces {
			if piece.IsGap() {
				continue
			}
			if c.later != nil {
				c.bytes += int64(piece.Length)
				if c.failed == nil {
					c.failed = c.later.Add(index.PrefixOf(piece.ID))
				}
				continue
			}
			if at := block*disk.BlockSize + int64(piece.Offset); c.have(ctx, piece.ID) {
				data = append(data, dataAt{id: piece.ID, at: at, length: int64(piece.Length)})
			} else {
				complain(fmt.Errorf("chunk %s: %w", piece.ID.String()[:8], chunkstore.ErrMissing), at, at+int64(piece.Length))
			}
		}
		if c.later != nil && len(c.lists) < listsMost && repo.BlockLength(size, block) == disk.BlockSize {
			c.lists[id] = struct{}{}
		}
	}
	seen := make([]bool, len(ids))
	err := c.r.Store().Fetch(ctx, chunk.List, ids, func(i int, p []byte) error {
		one(index.PrefixOf(ids[i]), at[i], p)
		seen[i] = true
		return nil
	})
	defer func() { c.readData(ctx, data, complain) }()
	if err == nil || ctx.Err() != nil {
		if err != nil {
			complain(err, 0, 0)
		}
		return
	}
	// One by one, to name each that is bad.
	for i, id := range ids {
		if seen[i] {
			continue
		}
		p, err := c.r.Store().Load(ctx, chunk.List, id)
		if err != nil {
			complain(err, at[i]*disk.BlockSize, (at[i]+1)*disk.BlockSize)
			continue
		}
		one(index.PrefixOf(id), at[i], p)
	}
}

// dataAt is a chunk and where it lies on a disk.
type dataAt struct {
	id         chunk.ID
	at, length int64
}

// readData reads chunks of a GiB, each from wherever a sound copy lies.
func (c *checker) readData(ctx context.Context, data []dataAt, complain func(err error, from, to int64)) {
	slices.SortFunc(data, func(a, b dataAt) int { return cmp.Compare(a.at, b.at) })
	for len(data) > 0 && ctx.Err() == nil {
		n := min(len(data), 1024)
		part := data[:n]
		data = data[n:]
		ids := make([]chunk.ID, n)
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
		var from, to int64 // what lies side by side is one finding
		var why error
		tell := func() {
			if to > from {
				complain(why, from, to)
			}
			from, to, why = 0, 0, nil
		}
		for i := range part {
			_, err := c.r.Store().Load(ctx, chunk.Data, ids[i])
			if err == nil {
				continue
			}
			if part[i].at != to {
				tell()
				from, why = part[i].at, err
			}
			to = part[i].at + part[i].length
		}
		tell()
	}
	if ctx.Err() != nil {
		complain(ctx.Err(), 0, 0)
	}
}
