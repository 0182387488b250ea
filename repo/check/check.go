// Package check proves a repository: that every object opens, that every
// reference of every snapshot resolves, and on demand that every stored byte
// is what it was (Run). Without any key it proves what names prove (Keyless). It
// changes nothing in the repository; what it has read it remembers in the cache
// folder.
package check

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"xenkeep/chunkstore"
	"xenkeep/chunkstore/index"
	"xenkeep/chunkstore/pack"
	"xenkeep/chunkstore/seal"
	"xenkeep/repo"
	"xenkeep/repo/tree"
)

// Options tell how deep a check goes.
type Options struct {
	// ReadData reads packs whole, compares them with their names, and opens
	// every blob in them: all packs, or those of Subset or Budget. It needs a
	// full key.
	ReadData bool
	Subset   Subset
	// Budget reads packs of so many bytes: those first that were read longest
	// ago. One pack is read at least.
	Budget int64
	// Suspects reads the packs that are known or seem to be damaged: by what an
	// earlier check remembers, by damage lists, by what this one comes upon.
	Suspects bool
	// Snapshots are those to be checked, by themselves: their trees and, with
	// ReadData, their data, wherever a sound copy lies. None: everything.
	Snapshots []*repo.Snapshot
	Now       func() time.Time
	// Begin, where set, is told of each part: what it is and how many bytes it
	// goes through. What it returns counts them, from several goroutines at
	// once, and is told of the end.
	Begin func(what string, total int64) (add func(n int64), done func())
}

func (o *Options) defaults() {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Begin == nil {
		o.Begin = func(string, int64) (func(int64), func()) { return func(int64) {}, func() {} }
	}
}

// Kind is what is wrong. It decides what can be done about it.
type Kind int

const (
	BadData      Kind = iota // damaged data, which the error and Where describe
	BadObject                // an object, other than a pack, that is damaged or missing
	Revoked                  // an object of a writer who was revoked
	Withdrawn                // a snapshot of a run that was ended before it counted
	Remade                   // an index object that cannot be read, and was made again from the packs
	Uncovered                // packs that snapshots need are in no index object
	MissingPack              // that an index names
	PackSize                 // a pack has another size than the index states
	DamagedPack              // its content is not what was written
	ChangedPack              // the same, where no key opens it to find out what is damaged
	LostPack                 // nothing of a damaged pack can be read
	UnreadPack               // a pack whose contents cannot be listed
	SlotsDiffer              // the two copies of a key slot are sound, and are not equal
	SlotDamaged              // one copy of a key slot is damaged or missing
	NoSlot                   // no key slot is left
	BadCondemned             // a condemned list that cannot be read
)

// Finding is one thing wrong.
type Finding struct {
	Kind Kind `json:"-"`
	// Keyless tells that it was found without a key.
	Keyless bool   `json:"-"`
	Object  string `json:"object"`          // in storage, or the snapshot it concerns
	Where   string `json:"where,omitempty"` // VM, disk and bytes, where it is data
	Error   string `json:"error"`
}

func (f Finding) String() string {
	s := f.Object
	if f.Where != "" {
		s += " (" + f.Where + ")"
	}
	return s + ": " + f.Error
}

// Report is what a check found.
type Report struct {
	Snapshots   int        `json:"snapshots"`
	Packs       int        `json:"packs"`
	PackBytes   int64      `json:"pack_bytes"`
	Orphans     int        `json:"unindexed_packs"` // left by killed runs; the next backup takes them in
	Claims      int        `json:"claims"`
	DamageLists int        `json:"damage_lists"` // published by repair
	PacksRead   int        `json:"packs_read"`
	Read        int64      `json:"bytes_read"`
	OldestProof *time.Time `json:"oldest_proof,omitempty"`  // when the pack that was read longest ago was read
	NeverRead   int        `json:"packs_never_read"`        // as far as this machine remembers
	Foreign     []string   `json:"foreign_files,omitempty"` // what others put into the repository's place
	Findings    []Finding  `json:"findings"`

	damage Damage
}

// Damage is what a check found damaged, for repair.
type Damage struct {
	Packs  []pack.ID // of which nothing can be read: missing, or without a table of contents
	Hurt   []pack.ID // of which some blobs can be read
	Blobs  []chunkstore.BadBlob
	Ranges []Range
}

// Range is a part of a disk that cannot be read.
type Range struct {
	Snapshot *repo.Snapshot
	Disk     *repo.Disk
	From, To int64 // bytes
}

// Damage is what was found damaged.
func (r *Report) Damage() *Damage { return &r.damage }

// Run checks r, which must be open.
func Run(ctx context.Context, r *repo.Repository, o Options) (*Report, error) {
	o.defaults()
	r.Store().AsStored() // not what is kept on this machine
	c := &checker{
		r: r, o: o, packs: make(map[pack.ID]stored), nodes: make(map[tree.Key]string), lists: make(map[index.Prefix]struct{}), lean: make(map[pack.ID]bool),
		deleted: make(map[pack.ID]bool), suspects: make(map[pack.ID]bool), proofs: openProofs(r.CacheDir()),
		bad: &damaged{packs: make(map[pack.ID]bool), blobs: make(map[badBlob]bool)},
	}
	// Snapshots first: what they need is in the index and among the packs
	// that are read after them, whatever other runs do meanwhile.
	steps := []func(context.Context) error{c.listSnapshots, c.r.LoadIndex, c.problems, c.slots, c.listPacks, c.small, c.index, c.stored, c.foreign, c.structure, c.data}
	if len(o.Snapshots) > 0 {
		c.all = o.Snapshots
		steps = []func(context.Context) error{c.r.LoadIndex, c.listPacks, c.small, c.index, c.structure}
	}
	for _, step := range steps {
		if err := step(ctx); err != nil {
			return nil, errors.Join(err, c.remember())
		}
	}
	if len(o.Snapshots) > 0 {
		c.rep.Findings = slices.DeleteFunc(c.rep.Findings, func(f Finding) bool { return !strings.HasPrefix(f.Object, "snapshots/") })
	}
	if err := c.remember(); err != nil {
		return nil, err
	}
	c.rep.OldestProof, c.rep.NeverRead = c.proofs.oldest(c.packs)
	slices.SortStableFunc(c.rep.Findings, func(a, b Finding) int { return strings.Compare(a.Object, b.Object) })
	return &c.rep, nil
}

func (c *checker) remember() error {
	err := c.proofs.save(func(id pack.ID) bool { _, ok := c.packs[id]; return ok })
	if err != nil {
		err = fmt.Errorf("remember what was read: %w", err)
	}
	return err
}

// kindOf returns the kind of an object's error.
func kindOf(err error) Kind {
	switch {
	case errors.Is(err, seal.ErrRevoked):
		return Revoked
	case errors.Is(err, repo.ErrWithdrawn):
		return Withdrawn
	}
	return BadObject
}

type checker struct {
	r       *repo.Repository // nil without a key
	o       Options
	keyless bool
	mu      sync.Mutex
	rep     Report

	all      []*repo.Snapshot
	badSnaps []repo.Problem
	packs    map[pack.ID]stored // in storage
	deleted  map[pack.ID]bool   // a pruner says that they are going
	suspects map[pack.ID]bool
	proofs   *proofs
	bad      *damaged
	// nodes are those walked, with what was wrong below them, so that shared
	// subtrees are walked once.
	nodes map[tree.Key]string
	lists map[index.Prefix]struct{} // block lists of whole blocks whose chunks are gathered
	lean  map[pack.ID]bool          // packs that snapshots need and no index object covers

	// Chunks are gathered and looked up in the end, unless they are read.
	later    *index.Gather
	bytes    int64  // of them
	progress func() // after each
}

// stored is a pack in storage; its size is negative where it is known not to be
// there.
type stored struct {
	size     int64
	modified time.Time
}

// listsMost bounds how many block lists are known to be gathered: some 80 MB,
// for 4 TiB. Others are gathered again.
const listsMost = 2 << 20

func (c *checker) add(kind Kind, object, where string, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.rep.Findings = append(c.rep.Findings, Finding{Kind: kind, Keyless: c.keyless, Object: object, Where: where, Error: err.Error()})
}

// lose notes that a range of a disk cannot be read.
func (c *checker) lose(s *repo.Snapshot, d *repo.Disk, from, to int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.rep.damage.Ranges = append(c.rep.damage.Ranges, Range{Snapshot: s, Disk: d, From: from, To: min(to, d.Size)})
}

// suspect notes a pack that a read has failed on, for Options.Suspects.
func (c *checker) suspect(err error) {
	var blob *chunkstore.BlobError
	if errors.As(err, &blob) && blob.Pack != (pack.ID{}) {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.suspects[blob.Pack] = true
	}
}

func vmName(s *repo.Snapshot) string {
	if s.VM.Name == "" {
		return s.VM.UUID
	}
	return s.VM.Name
}
