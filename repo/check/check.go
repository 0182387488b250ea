// Package check verifies a repository (Run): every object can be opened, every
// reference of every snapshot resolves, and optionally every stored byte is
// unchanged. Without any key it verifies objects against their names (Keyless). It
// changes nothing in the repository; it records in the cache folder which packs it
// has read and which snapshots it found damaged.
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

// Options configures the depth of a check.
type Options struct {
	// ReadData reads whole packs, compares them with their names, and opens every
	// blob in them: all packs, or those selected by Subset or Budget. It needs a
	// full key.
	ReadData bool
	Subset   Subset
	// Budget limits the packs that are read to so many bytes, starting with those
	// that were read longest ago. At least one pack is read.
	Budget int64
	// Suspects reads the packs that are or may be damaged: according to an earlier
	// check, to damage lists, or to the findings of this check.
	Suspects bool
	// Snapshots limits the check to these snapshots: their trees and, with
	// ReadData, their data, in whatever pack there is a sound copy. If it is empty,
	// everything is checked.
	Snapshots []*repo.Snapshot
	Now       func() time.Time
	// Begin, if set, is called at the start of each part with its name and its
	// number of bytes. add counts bytes, from several goroutines concurrently, and
	// done is called at the end.
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

// Kind classifies a finding. It determines the possible repairs.
type Kind int

const (
	BadData      Kind = iota // damaged data, described by Error and Where
	BadObject                // an object, other than a pack, that is damaged or missing
	Revoked                  // an object of a writer who was revoked
	Withdrawn                // a snapshot of a run that was ended before it was published
	Remade                   // an index object that could not be read and was rebuilt from the packs
	Uncovered                // no index object covers some packs that snapshots need
	MissingPack              // an index names a pack that does not exist
	PackSize                 // the size of a pack differs from its size in the index
	DamagedPack              // the content of a pack was changed
	ChangedPack              // the same, but without a key the damaged blobs cannot be determined
	LostPack                 // no blob of a damaged pack can be read
	UnreadPack               // the contents of a pack cannot be listed
	SlotsDiffer              // the two copies of a key slot are both valid but differ
	SlotDamaged              // one copy of a key slot is damaged or missing
	NoSlot                   // no key slot exists
	BadCondemned             // a condemned list that cannot be read
	Junk                     // an object that no key of the repository wrote; it is ignored
	Disbelieved              // an index object of a write-only key, about packs of others; it is ignored
)

// Finding is one problem.
type Finding struct {
	Kind Kind `json:"-"`
	// Keyless is set if the problem was found without a key.
	Keyless bool   `json:"-"`
	Object  string `json:"object"`          // name in storage, or the affected snapshot
	Where   string `json:"where,omitempty"` // VM, disk and bytes, if data is affected
	Error   string `json:"error"`
}

func (f Finding) String() string {
	s := f.Object
	if f.Where != "" {
		s += " (" + f.Where + ")"
	}
	return s + ": " + strings.TrimPrefix(f.Error, f.Object+": ") // some errors begin with the object, too
}

// Checked counts the snapshots that were checked.
type Checked struct {
	Snapshots int `json:"snapshots"`
	InGrace   int `json:"in_grace"` // forgotten snapshots that can be recovered
}

// Report is the result of a check.
type Report struct {
	Checked
	Packs       int        `json:"packs"`
	PackBytes   int64      `json:"pack_bytes"`
	Orphans     int        `json:"unindexed_packs"` // left by killed runs; the next backup adopts them
	Claims      int        `json:"claims"`
	DamageLists int        `json:"damage_lists"` // published by repair
	PacksRead   int        `json:"packs_read"`
	Read        int64      `json:"bytes_read"`
	OldestProof *time.Time `json:"oldest_proof,omitempty"`  // when the pack that was read longest ago was last read
	NeverRead   int        `json:"packs_never_read"`        // according to the cache folder of this machine
	Foreign     []string   `json:"foreign_files,omitempty"` // files of others in the repository's folder or prefix
	Findings    []Finding  `json:"findings"`
	Trust

	damage Damage
}

// Trust counts what was found about the writers of objects.
type Trust struct {
	Junk     int `json:"junk"`           // of the findings, objects that no key of the repository wrote
	Proved   int `json:"packs_proved"`   // packs of write-only keys that were opened, and are trusted from now on
	Unproved int `json:"packs_unproved"` // packs of write-only keys that no full key has opened yet
}

// Damage lists the damage that a check found, for repair.
type Damage struct {
	Packs  []pack.ID // packs of which no blob can be read: missing, or without a table of contents
	Hurt   []pack.ID // packs of which some blobs can be read
	Blobs  []chunkstore.BadBlob
	Ranges []Range
}

// Range is a part of a disk that cannot be read.
type Range struct {
	Snapshot *repo.Snapshot
	Disk     *repo.Disk
	From, To int64 // bytes
}

// Damaged returns the number of findings, without objects that are ignored and
// therefore do no harm: junk, and statements of a write-only key about others.
func (r *Report) Damaged() (n int) {
	for i := range r.Findings {
		if k := r.Findings[i].Kind; k != Junk && k != Disbelieved {
			n++
		}
	}
	return n
}

// Damage returns the damage that was found.
func (r *Report) Damage() *Damage { return &r.damage }

// Run checks r, which must be open.
func Run(ctx context.Context, r *repo.Repository, o Options) (*Report, error) {
	o.defaults()
	r.Store().BypassCache() // read from storage, not from the cache on this machine
	c := &checker{
		r: r, o: o, packs: make(map[pack.ID]stored), nodes: make(map[tree.Key]string), lists: make(map[index.Prefix]struct{}), lean: make(map[pack.ID]bool),
		deleted: make(map[pack.ID]bool), suspects: make(map[pack.ID]bool), proofs: openProofs(r.CacheDir()),
		bad: &damaged{packs: make(map[pack.ID]bool), blobs: make(map[badBlob]bool)},
	}
	// Snapshots are read first: everything that they need is then in the index and
	// among the packs that are listed later, whatever other runs do meanwhile.
	steps := []func(context.Context) error{c.listSnapshots, c.r.LoadIndex, c.problems, c.slots, c.listPacks, c.small, c.index, c.disbelieved, c.stored, c.foreign, c.structure, c.data}
	if len(o.Snapshots) > 0 {
		c.all = o.Snapshots
		steps = []func(context.Context) error{c.r.LoadIndex, c.listPacks, c.small, c.index, c.structure}
	}
	for _, step := range steps {
		if err := step(ctx); err != nil {
			return nil, errors.Join(err, c.remember())
		}
	}
	c.junk()
	if len(o.Snapshots) > 0 {
		c.rep.Findings = slices.DeleteFunc(c.rep.Findings, func(f Finding) bool { return !strings.HasPrefix(f.Object, "snapshots/") })
	}
	slices.SortStableFunc(c.rep.Findings, func(a, b Finding) int { return strings.Compare(a.Object, b.Object) })
	if err := c.remember(); err != nil {
		return nil, err
	}
	if err := c.rememberUnsound(); err != nil {
		return nil, fmt.Errorf("remember what is damaged: %w", err)
	}
	c.rep.OldestProof, c.rep.NeverRead = c.proofs.oldest(c.packs)
	if r.NeedsFull("") == nil {
		c.rep.Unproved = r.Store().Unproved() - c.rep.Proved
	}
	return &c.rep, nil
}

func (c *checker) remember() error {
	err := c.proofs.save(func(id pack.ID) bool { _, ok := c.packs[id]; return ok })
	if err != nil {
		err = fmt.Errorf("remember what was read: %w", err)
	}
	return err
}

// kindOf returns the Kind of an object's error.
func kindOf(err error) Kind {
	switch {
	case errors.Is(err, seal.ErrRevoked):
		return Revoked
	case errors.Is(err, repo.ErrWithdrawn):
		return Withdrawn
	case errors.Is(err, seal.ErrJunk):
		return Junk
	}
	return BadObject
}

type checker struct {
	r       *repo.Repository // nil in a keyless check
	o       Options
	keyless bool
	mu      sync.Mutex
	rep     Report

	all      []*repo.Snapshot
	badSnaps []repo.Problem
	packs    map[pack.ID]stored // in storage
	deleted  map[pack.ID]bool   // packs that a pruner is deleting, according to a list
	suspects map[pack.ID]bool
	proofs   *proofs
	bad      *damaged
	proved   []pack.ID // packs of write-only keys that were opened completely
	// nodes maps the nodes that were walked to the error below them, so that shared
	// subtrees are walked once.
	nodes map[tree.Key]string
	lists map[index.Prefix]struct{} // block lists of full blocks whose chunks were gathered
	lean  map[pack.ID]bool          // packs that snapshots need and no index object covers

	// Chunks are gathered and looked up at the end, unless they are read.
	later    *index.BulkLookup
	bytes    int64  // total length of the chunks
	progress func() // called for each chunk
}

// stored is a pack in storage; its size is negative if it is known not to exist.
type stored struct {
	size     int64
	modified time.Time
}

// listsMost limits the number of block lists that are remembered as gathered: about
// 80 MB of memory, for 4 TiB of disks. Other lists are gathered again.
const listsMost = 2 << 20

func (c *checker) add(kind Kind, object, where string, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.rep.Findings = append(c.rep.Findings, Finding{Kind: kind, Keyless: c.keyless, Object: object, Where: where, Error: err.Error()})
}

// lose records that a range of a disk cannot be read.
func (c *checker) lose(s *repo.Snapshot, d *repo.Disk, from, to int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.rep.damage.Ranges = append(c.rep.damage.Ranges, Range{Snapshot: s, Disk: d, From: from, To: min(to, d.Size)})
}

// suspect records the pack on which a read has failed, for Options.Suspects.
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
