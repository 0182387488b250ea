// Package check proves a repository: that every object opens, that every
// reference of every snapshot resolves, and on demand that every stored byte
// is what it was. It changes nothing.
package check

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"xenkeep/chunkstore"
	"xenkeep/chunkstore/chunk"
	"xenkeep/chunkstore/index"
	"xenkeep/chunkstore/object"
	"xenkeep/chunkstore/pack"
	"xenkeep/chunkstore/seal"
	"xenkeep/chunkstore/slot"
	"xenkeep/internal/disk"
	"xenkeep/repo"

	"golang.org/x/sync/errgroup"
)

// Options tell how deep a check goes.
type Options struct {
	// ReadData reads every pack whole, compares it with its name, and opens
	// every blob in it. It needs a full key.
	ReadData bool
	// Progress, where set, is called with bytes read of packs; from several
	// goroutines at once.
	Progress func(n int64)
}

// Finding is one thing wrong.
type Finding struct {
	Object string `json:"object"`          // in storage, or the snapshot it concerns
	Where  string `json:"where,omitempty"` // VM, disk and bytes, where it is data
	Error  string `json:"error"`
	Cure   string `json:"cure,omitempty"`
}

func (f Finding) String() string {
	s := f.Object
	if f.Where != "" {
		s += " (" + f.Where + ")"
	}
	s += ": " + f.Error
	if f.Cure != "" {
		s += "; " + f.Cure
	}
	return s
}

// Report is what a check found.
type Report struct {
	Snapshots int       `json:"snapshots"`
	Packs     int       `json:"packs"`
	PackBytes int64     `json:"pack_bytes"`
	Orphans   int       `json:"unindexed_packs"` // left by killed runs; the next backup takes them in
	Claims    int       `json:"claims"`
	Read      int64     `json:"bytes_read"`
	Findings  []Finding `json:"findings"`
}

// Run checks r, which must be open with its index loaded.
func Run(ctx context.Context, r *repo.Repository, o Options) (*Report, error) {
	c := &checker{r: r, o: o, packs: make(map[pack.ID]int64), nodes: make(map[nodeKey]string), lean: make(map[pack.ID]bool)}
	for _, p := range r.Problems() {
		c.add(p.Object, "", p.Err, cureOf(p.Object))
	}
	for _, step := range []func(context.Context) error{c.slots, c.listPacks, c.index, c.small, c.stored, c.snapshots, c.data} {
		if err := step(ctx); err != nil {
			return nil, err
		}
	}
	slices.SortStableFunc(c.rep.Findings, func(a, b Finding) int { return strings.Compare(a.Object, b.Object) })
	return &c.rep, nil
}

func cureOf(name string) string {
	switch {
	case name == "config":
		return "keys hold a copy, so the repository still opens"
	case strings.HasPrefix(name, "index/"):
		return "what it covered is found again in the packs themselves"
	case strings.HasPrefix(name, "snapshots/"):
		return "this backup is lost unless another copy of the object exists"
	}
	return ""
}

type checker struct {
	r   *repo.Repository
	o   Options
	mu  sync.Mutex
	rep Report

	packs map[pack.ID]int64 // in storage, with size
	// nodes are those walked, with what was wrong below them, so that shared
	// subtrees are walked once.
	nodes map[nodeKey]string
	lean  map[pack.ID]bool // packs that snapshots need and no index object covers
}

// nodeKey is a node; where it is a disk's last one, what its lists must cover
// depends on the disk's size too.
type nodeKey struct {
	id   chunk.ID
	size int64
}

func (c *checker) add(object, where string, err error, cure string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.rep.Findings = append(c.rep.Findings, Finding{Object: object, Where: where, Error: err.Error(), Cure: cure})
}

// slots reads both copies of each key slot.
func (c *checker) slots(ctx context.Context) error {
	copies := make(map[string]int)
	content := make(map[string][]byte)
	var names []string
	if err := c.r.Objects().List(ctx, "slots/", func(i object.Info) error {
		names = append(names, i.Name)
		return nil
	}); err != nil {
		return err
	}
	for _, name := range names {
		data, err := c.r.Objects().Get(ctx, name, 0, -1)
		if err == nil {
			var h slot.Head
			if h, err = slot.ReadHead(data); err == nil && (h.Repository != c.r.ID() || !strings.HasSuffix(name, "/"+h.ID)) {
				err = fmt.Errorf("slot of another name: %w", seal.ErrCorrupt)
			}
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		id := name[strings.LastIndexByte(name, '/')+1:]
		if err != nil {
			c.add(name, "", err, "")
			copies[id] += 0
			continue
		}
		copies[id]++
		if other := content[id]; other != nil && !bytes.Equal(other, data) {
			c.add("slots/a/"+id, "", fmt.Errorf("the two copies of this key slot differ: %w", seal.ErrCorrupt), "make a new slot; the one that opens is sound")
		}
		content[id] = data
	}
	for id, n := range copies {
		if n < 2 {
			c.add("slots/a/"+id, "", fmt.Errorf("%d of 2 copies of this key slot are sound", n), "")
		}
	}
	if len(copies) == 0 {
		c.add("slots/", "", errors.New("no key slot is left"), "keep a printed key page")
	}
	return nil
}

func (c *checker) listPacks(ctx context.Context) error {
	return c.r.Objects().List(ctx, "packs/", func(i object.Info) error {
		if id, ok := pack.ParseObjectName(i.Name); ok {
			c.packs[id] = i.Size
			c.rep.Packs++
			c.rep.PackBytes += i.Size
		} else {
			c.add(i.Name, "", errors.New("not a pack's name"), "")
		}
		return nil
	})
}

// index compares what the index says with what is there. Packs that only an
// index names, and nothing needs, are reported all the same: they are lost.
func (c *checker) index(ctx context.Context) error {
	known := make(map[pack.ID]bool)
	for p := range c.r.Store().Index().Packs() {
		known[p.ID] = true
		id := pack.ID(p.ID)
		size, ok := c.packs[id]
		switch {
		case !ok:
			c.add(id.ObjectName(), "", errors.New("pack is missing"), "")
		case size != p.Size:
			c.add(id.ObjectName(), "", fmt.Errorf("pack has %d bytes instead of %d", size, p.Size), "")
		}
	}
	for id := range c.packs {
		if !known[id] || c.r.Store().Adopted(id) {
			c.rep.Orphans++
		}
	}
	if c.rep.Orphans == 0 {
		return nil
	}
	// A killed run's packs harm nobody. Those of a lost index object do: what
	// snapshots need of them is named.
	_, err := c.r.Store().AdoptForReading(ctx)
	return err
}

// stored reads the snapshots where they lie, and with ReadData the index
// objects: what was opened so far may have come from the cache here.
func (c *checker) stored(ctx context.Context) error {
	prefixes := []string{"snapshots/", "references/", "retired/"}
	if c.o.ReadData {
		prefixes = append(prefixes, "index/")
	}
	var names []string
	for _, prefix := range prefixes {
		if err := c.r.Objects().List(ctx, prefix, func(i object.Info) error {
			names = append(names, i.Name)
			return nil
		}); err != nil {
			return err
		}
	}
	known := make(map[string]bool)
	for _, p := range c.r.Problems() {
		known[p.Object] = true
	}
	kinds := map[string]seal.ObjectKind{
		"snapshots": seal.KindSnapshot, "references": seal.KindReference, "retired": seal.KindRetired, "index": seal.KindIndex,
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(max(2, c.r.Objects().Traits().Parallel))
	for _, name := range names {
		g.Go(func() error {
			data, err := c.r.Objects().Get(ctx, name, 0, -1)
			if err == nil && !strings.HasSuffix(name, seal.Name(data)) {
				err = fmt.Errorf("content does not fit its name: %w", seal.ErrCorrupt)
			}
			if err == nil {
				_, err = c.r.Keys().OpenObject(kinds[name[:strings.IndexByte(name, '/')]], data)
			}
			switch {
			case err == nil || known[name] || errors.Is(err, object.ErrNotFound): // gone meanwhile
			case ctx.Err() != nil || object.Retriable(err):
				return err
			default:
				c.add(name, "", err, cureOf(name))
			}
			return nil
		})
	}
	return g.Wait()
}

// small opens claims, notes, damage and condemned lists.
func (c *checker) small(ctx context.Context) error {
	claims, bad, err := c.r.Claims(ctx)
	if err != nil {
		return err
	}
	c.rep.Claims = len(claims)
	_, more, err := c.r.Notes(ctx)
	if err != nil {
		return err
	}
	bad = append(bad, more...)
	damage, more, err := c.r.ReadDamage(ctx)
	if err != nil {
		return err
	}
	_ = damage
	for _, p := range append(bad, more...) {
		c.add(p.Object, "", p.Err, "")
	}
	if _, err := c.r.CondemnedPacks(ctx); err != nil {
		if ctx.Err() != nil || object.Retriable(err) {
			return err
		}
		c.add("condemned/", "", err, "")
	}
	return nil
}

// snapshots walks every tree.
func (c *checker) snapshots(ctx context.Context) error {
	all, bad, err := c.r.Snapshots(ctx)
	if err != nil {
		return err
	}
	for _, p := range bad {
		if !slices.ContainsFunc(c.rep.Findings, func(f Finding) bool { return f.Object == p.Object }) {
			c.add(p.Object, "", p.Err, cureOf(p.Object))
		}
	}
	c.rep.Snapshots = len(all)
	for _, s := range all {
		for _, rec := range s.Records {
			if !c.have(chunk.ID(rec.ID)) {
				c.add("snapshots/"+s.ID(), vmName(s), fmt.Errorf("record %s: %w", rec.Name, chunkstore.ErrMissing), "")
			}
		}
		for i := range s.Disks {
			if err := c.disk(ctx, s, &s.Disks[i]); err != nil {
				return err
			}
		}
	}
	if n := len(c.lean); n > 0 {
		c.add("index/", "", fmt.Errorf("no index object covers %d packs that snapshots need", n), "all can be read; the next backup puts the index right")
	}
	return nil
}

func vmName(s *repo.Snapshot) string {
	if s.VM.Name == "" {
		return s.VM.UUID
	}
	return s.VM.Name
}

// have tells whether a blob is in a pack that is there.
func (c *checker) have(id chunk.ID) bool {
	var uncovered *pack.ID
	for _, at := range c.r.Store().Index().Locate(index.PrefixOf(id), nil) {
		if size, ok := c.packs[at.Pack]; ok && int64(at.Offset)+int64(at.Length) <= size {
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

func (c *checker) disk(ctx context.Context, s *repo.Snapshot, d *repo.Disk) error {
	where := vmName(s) + " " + d.Device
	report := func(err error, from, to int64) error {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if object.Retriable(err) {
			return err
		}
		at := where
		if to > from {
			at = fmt.Sprintf("%s, bytes %d to %d", where, from, min(to, d.Size))
		}
		c.add("snapshots/"+s.ID(), at, err, "")
		return nil
	}
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
		if id.IsZero() {
			continue
		}
		first := int64(i) * repo.NodeBlocks
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
			ids, at = append(ids, id), append(at, first+int64(i))
		}
	}
	var mu sync.Mutex
	one := func(block int64, p []byte) {
		pieces, err := repo.DecodeList(nil, p, repo.BlockLength(size, block))
		mu.Lock()
		defer mu.Unlock()
		if err != nil {
			complain(err, block*disk.BlockSize, (block+1)*disk.BlockSize)
			return
		}
		for _, piece := range pieces {
			if !piece.IsGap() && !c.have(piece.ID) {
				from := block*disk.BlockSize + int64(piece.Offset)
				complain(fmt.Errorf("chunk %s: %w", piece.ID.String()[:8], chunkstore.ErrMissing), from, from+int64(piece.Length))
			}
		}
	}
	seen := make([]bool, len(ids))
	err := c.r.Store().Fetch(ctx, chunk.List, ids, func(i int, p []byte) error {
		one(at[i], p)
		seen[i] = true
		return nil
	})
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
		one(at[i], p)
	}
}
