package check

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"xenkeep/chunkstore"
	"xenkeep/chunkstore/chunk"
	"xenkeep/chunkstore/index"
	"xenkeep/chunkstore/object"
	"xenkeep/chunkstore/pack"
	"xenkeep/chunkstore/seal"
	"xenkeep/repo/tree"

	"golang.org/x/sync/errgroup"
)

// damaged records the damage that was found by reading packs.
type damaged struct {
	packs map[pack.ID]bool // packs of which no blob can be read
	blobs map[badBlob]bool
}

type badBlob struct {
	pack pack.ID
	id   chunk.ID
}

// data reads the packs that the options select.
func (c *checker) data(ctx context.Context) error {
	var ids []pack.ID
	there := make(map[pack.ID]stored)
	for id, p := range c.packs {
		if p.size >= 0 {
			there[id] = p
		}
	}
	if c.o.ReadData {
		ids = c.o.choose(there, c.proofs)
	}
	if c.o.Suspects {
		for _, id := range c.proofs.bad() {
			c.suspects[id] = true
		}
		for id := range c.suspects {
			if _, ok := there[id]; ok && !slices.Contains(ids, id) {
				ids = append(ids, id)
			}
		}
	}
	if len(ids) == 0 {
		return nil
	}
	var total int64
	for _, id := range ids {
		total += there[id].size
	}
	add, done := c.o.Begin("packs", total)
	defer done()
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(atOnce)
	rooms := make(chan *room, atOnce)
	for range atOnce {
		rooms <- new(room)
	}
	var vanished []pack.ID
	for _, id := range ids {
		g.Go(func() error {
			if gctx.Err() != nil {
				return gctx.Err()
			}
			size := there[id].size
			in := <-rooms
			defer func() { rooms <- in }()
			data, err := in.read(gctx, c.r.Objects(), id.ObjectName(), size)
			if err == nil {
				err = c.pack(id, data, in)
			}
			switch {
			case gctx.Err() != nil:
				return gctx.Err()
			case errors.Is(err, seal.ErrNoDataKey) || object.Retriable(err):
				return err
			case errors.Is(err, object.ErrNotFound):
				c.mu.Lock()
				vanished = append(vanished, id)
				c.mu.Unlock()
				return nil
			case err != nil:
				c.add(DamagedPack, id.ObjectName(), "", err)
				if !c.r.Store().TrustsPack(id) {
					c.r.Store().Refute(id)
				}
			}
			c.proofs.add(id, c.o.Now(), err != nil)
			c.mu.Lock()
			if err == nil && c.o.ReadData && !c.r.Store().TrustsPack(id) {
				c.proved = append(c.proved, id)
			}
			c.rep.Read += size
			c.rep.PacksRead++
			c.mu.Unlock()
			add(size)
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return errors.Join(err, c.publish(ctx))
	}
	if err := c.publish(ctx); err != nil {
		return err
	}
	if len(vanished) > 0 {
		if err := c.gone(ctx, vanished); err != nil {
			return err
		}
	}
	if len(c.bad.packs)+len(c.bad.blobs) == 0 {
		return nil
	}
	for id := range c.bad.packs {
		c.rep.damage.Packs = append(c.rep.damage.Packs, id)
	}
	hurt := make(map[pack.ID]bool)
	for b := range c.bad.blobs {
		c.rep.damage.Blobs = append(c.rep.damage.Blobs, chunkstore.BadBlob{ID: b.id, Pack: b.pack})
		hurt[b.pack] = true
	}
	for id := range hurt {
		c.rep.damage.Hurt = append(c.rep.damage.Hurt, id)
	}
	return c.affected(ctx, c.bad)
}

// publish makes the packs of write-only keys that were opened completely trusted for
// everyone. It is no error if the storage may only be read.
func (c *checker) publish(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	ids := c.proved
	c.proved = nil
	if len(ids) == 0 || c.r.NeedsFull("") != nil || c.r.CanWrite() != nil {
		return nil
	}
	err := c.r.PutProof(ctx, ids, c.o.Now())
	if errors.Is(err, object.ErrPermission) {
		return nil
	}
	if err == nil {
		c.rep.Proved = len(ids)
	}
	return err
}

// atOnce is the number of packs, of some 32 MiB each, that are in memory
// concurrently.
const atOnce = 3

// room is memory that is reused for reading and opening one pack after another.
type room struct{ data, plain []byte }

// read reads the object, which was size bytes long when it was listed.
func (m *room) read(ctx context.Context, s object.Store, name string, size int64) ([]byte, error) {
	if size > 2*pack.TargetSize { // not written by us
		return s.Get(ctx, name, 0, -1)
	}
	if int64(cap(m.data)) < size {
		m.data = make([]byte, size, size+size/8)
	}
	data := m.data[:size]
	err := s.GetInto(ctx, name, 0, data)
	if errors.Is(err, object.ErrShort) { // it is shorter now
		return s.Get(ctx, name, 0, -1)
	}
	return data, err
}

// gone reports packs that disappeared after they were listed, unless a pruner has
// deleted them meanwhile.
func (c *checker) gone(ctx context.Context, ids []pack.ID) error {
	lists, err := c.r.Condemnations(ctx)
	if err != nil && (ctx.Err() != nil || object.Retriable(err)) {
		return err
	}
	for _, l := range lists {
		if deleted, err := l.PackIDs(); err == nil && l.Deleted {
			ids = slices.DeleteFunc(ids, func(id pack.ID) bool { return slices.Contains(deleted, id) })
		}
	}
	for _, id := range ids {
		c.add(BadData, id.ObjectName(), "", errors.New("pack is missing"))
		c.bad.packs[id] = true
	}
	return nil
}

// pack verifies one pack and records its damaged blobs.
func (c *checker) pack(id pack.ID, data []byte, in *room) error {
	bad := c.bad
	err := seal.CheckName(id.String(), data)
	if err == nil {
		// Every byte is as it was written, so it must be possible to open it.
		d, err := pack.Parse(c.r.Keys(), data)
		if err != nil {
			c.mu.Lock()
			bad.packs[id] = true
			c.mu.Unlock()
			return err
		}
		return c.open(id, d, data, in)
	}
	if d, perr := pack.Parse(c.r.Keys(), data); perr == nil {
		if oerr := c.open(id, d, data, in); oerr != nil {
			return oerr
		}
		return err
	}
	// The directory is damaged, so that no blob of the pack can be read.
	c.mu.Lock()
	bad.packs[id] = true
	c.mu.Unlock()
	return fmt.Errorf("%w, and its directory does not open", err)
}

func (c *checker) open(id pack.ID, d *pack.Directory, data []byte, in *room) error {
	unlocked := true
	if err := d.Unlock(); errors.Is(err, seal.ErrNoDataKey) && !c.o.ReadData {
		unlocked = false // the hashes of the sealed blobs are sufficient
	} else if err != nil {
		return err
	}
	h := c.r.Store().NewHasher()
	var first error
	n := 0
	note := func(id2 chunk.ID, err error) {
		c.mu.Lock()
		c.bad.blobs[badBlob{id, id2}] = true
		c.mu.Unlock()
		if n++; first == nil {
			first = err
		}
	}
	for i := range d.Blobs {
		b := &d.Blobs[i]
		var p []byte
		var err error
		if unlocked {
			p, err = d.Open(in.plain, b, data[b.Offset:b.Offset+b.Stored])
		} else {
			err = b.CheckStored(data[b.Offset : b.Offset+b.Stored])
		}
		from := 0
		for _, piece := range b.Pieces {
			perr := err
			if err == nil && unlocked {
				to := from + int(piece.Length)
				if perr = chunkstore.CheckID(h, b.Kind, piece.ID, p[from:to]); perr != nil {
					perr = fmt.Errorf("%v %s: %w", b.Kind, piece.ID.String()[:8], perr)
				}
				from = to
			}
			if perr != nil {
				note(piece.ID, perr)
			}
		}
		if err == nil && unlocked {
			in.plain = p
		}
	}
	if first != nil && n > 1 {
		return fmt.Errorf("%w (and %d more pieces)", first, n-1)
	}
	return first
}

// affected reports the disks and ranges that contain damaged chunks of which no
// pack contains a sound copy.
func (c *checker) affected(ctx context.Context, bad *damaged) error {
	lost := func(id chunk.ID) (in pack.ID, lost bool) {
		for _, at := range c.r.Store().Index().Locate(index.PrefixOf(id), nil) {
			there := c.packs[at.Pack].size > 0
			if there && !bad.packs[at.Pack] && !bad.blobs[badBlob{at.Pack, id}] {
				return in, false
			}
			if there {
				in, lost = at.Pack, true
			}
		}
		return in, lost
	}
	for _, s := range c.all {
		for _, rec := range s.Records {
			if in, is := lost(chunk.ID(rec.ID)); is {
				c.add(BadData, "snapshots/"+s.ID(), vmName(s), fmt.Errorf("record %s is damaged in %s", rec.Name, in.ObjectName()))
			}
		}
		for i := range s.Disks {
			d := &s.Disks[i]
			// Damaged chunks that are adjacent on the disk are one finding.
			var from, to int64
			var in pack.ID
			tell := func() {
				if to > from {
					c.add(BadData, "snapshots/"+s.ID(), fmt.Sprintf("%s %s, bytes %d to %d", vmName(s), d.Device, from, to),
						fmt.Errorf("damaged in %s: %w", in.ObjectName(), seal.ErrCorrupt))
					c.lose(s, d, from, to)
				}
				from, to = 0, 0
			}
			err := c.chunks(ctx, d, func(p tree.Piece, at int64) error {
				where, is := lost(p.ID)
				if !is {
					return nil
				}
				if at != to || where != in {
					tell()
					from, in = at, where
				}
				to = at + int64(p.Length)
				return nil
			})
			tell()
			if err != nil && ctx.Err() != nil {
				return err
			}
		}
	}
	return nil
}
