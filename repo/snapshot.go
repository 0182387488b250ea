package repo

import (
	"bytes"
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"xenkeep/chunkstore/chunk"
	"xenkeep/chunkstore/object"
	"xenkeep/chunkstore/seal"

	"golang.org/x/sync/errgroup"
)

var (
	// ErrNoSnapshot is returned if no snapshot matches a name.
	ErrNoSnapshot = errors.New("no such snapshot")
	// ErrNoDisk is returned if no disk of a snapshot matches a name.
	ErrNoDisk = errors.New("no such disk")
	// ErrAmbiguous is returned if a name matches several.
	ErrAmbiguous = errors.New("more than one is meant")
)

// OriginDatabase is the origin of snapshots that contain a pool's database as their
// only disk. "latest" alone never selects one.
const OriginDatabase = "pool-database"

// Named identifies a machine, pool or VM by its UUID; the name is for people.
type Named struct {
	UUID string `json:"uuid,omitempty"`
	Name string `json:"name,omitempty"`
}

// Snapshot is one restorable backup of a VM, or of an image.
type Snapshot struct {
	Format      int       `json:"format"`
	Run         string    `json:"run"` // hex
	Job         string    `json:"job,omitempty"`
	Machine     string    `json:"machine,omitempty"`
	Origin      string    `json:"origin"` // "pool", "image", "import" or OriginDatabase
	Pool        Named     `json:"pool"`
	VM          Named     `json:"vm"`
	Kind        string    `json:"kind,omitempty"` // of the VM snapshot: "regular" ...
	Tags        []string  `json:"tags,omitempty"`
	DataTime    time.Time `json:"data_time"` // the pool's snapshot time
	WrittenTime time.Time `json:"written_time"`
	// Complete is set if every selected disk is in the snapshot.
	Complete bool          `json:"complete"`
	Disks    []Disk        `json:"disks"`
	Missing  []MissingDisk `json:"missing,omitempty"` // disks left out or failed
	Records  []Record      `json:"records,omitempty"`
	// GenerationID is the VM's generation_id; a different one means that the VM was
	// reverted, copied or imported.
	GenerationID string `json:"generation_id,omitempty"`
	// Source is the file from which an image or import was read. It is nil for a
	// snapshot that came from a pool or a device, or was stored by an older
	// version.
	Source *Source `json:"source,omitempty"`
	// Original identifies the snapshot that this is a copy of, if it was copied
	// from another repository.
	Original *Original `json:"original,omitempty"`

	id     string
	writer seal.WriterID
	group  string // of writers
	size   int
	grace  *Grace
	// received is when the storage received the object, by its own clock.
	received time.Time
}

// Source identifies a file on the machine that read it, and its content as far as
// that is possible without reading it again.
type Source struct {
	Path     string    `json:"path"`   // absolute, without symbolic links
	Format   string    `json:"format"` // "raw", "vhd", "qcow2", "xva" ...
	Size     int64     `json:"size"`
	Modified time.Time `json:"modified"`
	Changed  time.Time `json:"changed"` // of its inode
	Inode    uint64    `json:"inode,omitempty"`
}

// Same reports whether s and o are one file with the same content.
func (s *Source) Same(o *Source) bool {
	return s != nil && o != nil && s.Path == o.Path && s.Format == o.Format && s.Size == o.Size && s.Inode == o.Inode &&
		s.Modified.Equal(o.Modified) && s.Changed.Equal(o.Changed)
}

// Original identifies the snapshot that a copy was made of; for a copy of a copy,
// the first one.
type Original struct {
	Repository string `json:"repository"` // ID
	Snapshot   string `json:"snapshot"`   // its full ID
}

// CopyOf returns s as a snapshot to be put into another repository, without disks
// and records, which are stored in blobs and which the caller adds. Its job,
// machine and times stay those of the backup.
func CopyOf(r *Repository, s *Snapshot) *Snapshot {
	c := *s
	c.Disks, c.Records = nil, nil
	c.id, c.size, c.group, c.grace, c.received = "", 0, "", nil, time.Time{}
	if c.Original == nil {
		c.Original = &Original{Repository: r.ID(), Snapshot: s.ID()}
	}
	return &c
}

// Disk is one disk of a snapshot, and the way it was read.
type Disk struct {
	Device      string   `json:"device"`               // "xvda"; the name of an image
	UserDevice  string   `json:"userdevice,omitempty"` // "0"
	VDI         string   `json:"vdi,omitempty"`        // UUID
	VDISnapshot string   `json:"vdi_snapshot,omitempty"`
	Name        string   `json:"name,omitempty"`
	SR          string   `json:"sr,omitempty"` // UUID
	Location    string   `json:"location,omitempty"`
	Size        int64    `json:"size"`
	Root        HexID    `json:"root"`
	Method      string   `json:"method"` // "full", "vhd-delta" or "cbt"
	Reason      string   `json:"reason"`
	Counts      DiskRead `json:"counts"`
}

// DiskRead counts bytes of a disk's backup.
type DiskRead struct {
	Read    int64 `json:"bytes_read"`    // received from the transport
	Changed int64 `json:"bytes_changed"` // in chunks that the last snapshot does not have at that position
	New     int64 `json:"bytes_new"`     // in chunks that were in no pack
	Stored  int64 `json:"bytes_stored"`  // size of these chunks and of the tree as stored
}

// MissingDisk is a disk that is not in a snapshot.
type MissingDisk struct {
	Device string `json:"device"`
	VDI    string `json:"vdi,omitempty"`
	Reason string `json:"reason"`
}

// Record is a metadata blob of a snapshot: XAPI records or a metadata export.
type Record struct {
	Name string `json:"name"`
	Size int64  `json:"size"`
	ID   HexID  `json:"id"`
}

// HexID is a chunk.ID that is encoded as hexadecimal text.
type HexID chunk.ID

// MarshalText returns the ID in hexadecimal.
func (h HexID) MarshalText() ([]byte, error) { return []byte(hex.EncodeToString(h[:])), nil }

// UnmarshalText parses the text that MarshalText returns.
func (h *HexID) UnmarshalText(p []byte) error {
	if len(p) != 2*len(h) {
		return fmt.Errorf("id of %d characters", len(p))
	}
	_, err := hex.Decode(h[:], p)
	return err
}

// ID returns the snapshot's identity: the SHA-256 that names its object, in hex.
// Users may type a unique prefix of it.
func (s *Snapshot) ID() string { return s.id }

// Short returns the prefix of the ID that is shown to people.
func (s *Snapshot) Short() string { return s.id[:min(8, len(s.id))] }

// Writer returns the ID of the key slot that wrote the snapshot.
func (s *Snapshot) Writer() seal.WriterID { return s.writer }

// StoredSize returns the length of the snapshot's object in bytes.
func (s *Snapshot) StoredSize() int { return s.size }

// Received returns when the storage received the snapshot, by its own clock; the zero
// time for a snapshot that was not read from a storage.
func (s *Snapshot) Received() time.Time { return s.received }

// Size returns the logical size of the snapshot's disks in bytes.
func (s *Snapshot) Size() int64 {
	var n int64
	for _, d := range s.Disks {
		n += d.Size
	}
	return n
}

// Disk returns the disk with this device, userdevice, VDI UUID or name.
func (s *Snapshot) Disk(name string) (*Disk, error) {
	var found []*Disk
	for i := range s.Disks {
		if d := &s.Disks[i]; d.Device == name || d.UserDevice == name || d.VDI == name {
			return d, nil
		} else if d.Name == name {
			found = append(found, d)
		}
	}
	switch len(found) {
	case 0:
		return nil, fmt.Errorf("disk %q: %w in snapshot %s, which has %s", name, ErrNoDisk, s.Short(), s.devices())
	case 1:
		return found[0], nil
	}
	return nil, fmt.Errorf("disk %q of snapshot %s: %w: name its device", name, s.Short(), ErrAmbiguous)
}

// devices returns the names of the snapshot's disks for a message.
func (s *Snapshot) devices() string {
	var names []string
	for _, d := range s.Disks {
		names = append(names, d.Device)
	}
	if len(names) == 0 {
		return "no disks"
	}
	return strings.Join(names, ", ")
}

const snapshotPrefix = "snapshots/"

// PutSnapshot publishes a snapshot. It is the last write of a backup: everything
// that the snapshot refers to must already be in storage and in the index. After an
// error the snapshot may exist: s has its ID then.
func (r *Repository) PutSnapshot(ctx context.Context, s *Snapshot) error {
	s.Format = Format
	name, size, err := r.putObject(ctx, snapshotPrefix, seal.KindSnapshot, s)
	s.id, s.size, s.writer = strings.TrimPrefix(name, snapshotPrefix), size, r.keys.Cert.Writer()
	if sum, derr := parsePacks([]string{s.id}); err == nil && derr == nil {
		r.store.Own(sum[0])
	}
	s.group = r.config.group(s.writer, r.keys.Cert.Role())
	return err
}

// Vouch makes the store verify everything that a run builds upon, unless this machine
// has published snapshots with all of these roots: then all data below them was in
// trusted packs. In a repository without write-only keys, everything is trusted.
func (r *Repository) Vouch(ctx context.Context, roots []chunk.ID) error {
	if !r.store.Mixed() || !slices.ContainsFunc(roots, func(id chunk.ID) bool { return !id.IsZero() }) {
		return nil
	}
	all, _, err := r.Snapshots(ctx)
	if err != nil {
		return err
	}
	sound := make(map[chunk.ID]bool)
	for _, s := range all {
		// What was written before a key was revoked may use packs that are rejected now.
		if sum, err := parsePacks([]string{s.id}); err != nil || !r.store.IsOwn(sum[0]) || !s.WrittenTime.After(r.revokedAt) {
			continue
		}
		for i := range s.Disks {
			sound[chunk.ID(s.Disks[i].Root)] = true
		}
	}
	if slices.ContainsFunc(roots, func(id chunk.ID) bool { return !id.IsZero() && !sound[id] }) {
		r.store.Distrust()
	}
	return nil
}

// Snapshots reads the snapshots that were not forgotten, oldest data first. Snapshots
// that cannot be read or are invalid (ErrWithdrawn) are returned in bad; none is ever
// skipped silently, except junk, which Junk returns.
func (r *Repository) Snapshots(ctx context.Context) (all []*Snapshot, bad []Problem, err error) {
	all, bad, err = r.AllSnapshots(ctx)
	return slices.DeleteFunc(all, func(s *Snapshot) bool { return s.grace != nil }), bad, err
}

// ForgottenSnapshots reads the snapshots that are in their grace period, or past it
// and not deleted yet, oldest data first.
func (r *Repository) ForgottenSnapshots(ctx context.Context) ([]*Snapshot, error) {
	all, _, err := r.AllSnapshots(ctx)
	return slices.DeleteFunc(all, func(s *Snapshot) bool { return s.grace == nil }), err
}

// AllSnapshots is Snapshots with those that were forgotten and not deleted yet; their
// Grace is set. If a statement about forgotten snapshots cannot be read, no grace
// period is over, because the statement may bring a snapshot back; it is added to
// Problems.
func (r *Repository) AllSnapshots(ctx context.Context) (all []*Snapshot, bad []Problem, err error) {
	var names []string
	received := make(map[string]time.Time)
	if err := object.ListOwn(ctx, r.objects, snapshotPrefix, func(i object.Info) error {
		names = append(names, i.Name)
		received[i.Name] = i.Modified
		return nil
	}); err != nil {
		return nil, nil, err
	}
	var mu sync.Mutex
	add := func(name string, s *Snapshot, err error) {
		if errors.Is(err, seal.ErrJunk) {
			r.addJunk(name, err)
			return
		}
		mu.Lock()
		defer mu.Unlock()
		if err != nil {
			bad = append(bad, Problem{Object: name, Err: err})
		} else {
			s.received = received[name]
			all = append(all, s)
		}
	}
	if len(names) >= catalogueMin {
		left := make(map[string]bool, len(names))
		for _, name := range names {
			left[strings.TrimPrefix(name, snapshotPrefix)] = true
		}
		if _, err := r.fromCatalogues(ctx, left, func(name string, data []byte) {
			s, err := r.decodeSnapshot(name, data)
			add(name, s, err)
		}); err != nil {
			return nil, nil, err
		}
		names = slices.DeleteFunc(names, func(name string) bool { return !left[strings.TrimPrefix(name, snapshotPrefix)] })
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(max(2, r.objects.Traits().Parallel))
	for _, name := range names {
		g.Go(func() error {
			s, err := r.readSnapshot(gctx, name)
			switch {
			case gctx.Err() != nil:
				return gctx.Err()
			case errors.Is(err, object.ErrNotFound): // deleted meanwhile
			case object.Retriable(err):
				return err
			default:
				add(name, s, err)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, nil, err
	}
	all, withdrawn, err := r.counted(ctx, all)
	if err != nil {
		return nil, nil, err
	}
	bad = append(bad, withdrawn...)
	unread, err := r.setGraces(ctx, all)
	if err != nil {
		return nil, nil, err
	}
	r.addProblems(unread...)
	slices.SortFunc(all, func(a, b *Snapshot) int {
		return cmp.Or(a.DataTime.Compare(b.DataTime), a.WrittenTime.Compare(b.WrittenTime), strings.Compare(a.id, b.id))
	})
	slices.SortFunc(bad, func(a, b Problem) int { return strings.Compare(a.Object, b.Object) })
	r.mu.Lock()
	r.listed = &listing{slices.Clone(all), bad}
	r.mu.Unlock()
	return all, bad, nil
}

// readSnapshot reads one snapshot.
func (r *Repository) readSnapshot(ctx context.Context, name string) (*Snapshot, error) {
	data, err := r.cachedObject(ctx, seal.KindSnapshot, name)
	if err != nil {
		return nil, err
	}
	return r.decodeSnapshot(name, data)
}

// SetAsideSnapshot takes the cached copy of a snapshot's object out of use, because the
// object in storage is damaged: otherwise this machine would list a snapshot that no
// other machine can read. It returns the file that contains the copy from now on, or ""
// if there is no sound copy.
func (r *Repository) SetAsideSnapshot(name string) string {
	id, ok := strings.CutPrefix(name, snapshotPrefix)
	if !ok || r.cacheDir == "" {
		return ""
	}
	file := filepath.Join(r.cacheDir, "snapshots", id)
	aside := file + ".lost"
	if data, err := os.ReadFile(file); err == nil && seal.Name(data) == id {
		_ = os.Rename(file, aside) // a copy that stays in use is reported again
	}
	if _, err := os.Stat(aside); err != nil {
		return ""
	}
	return aside
}

func (r *Repository) decodeSnapshot(name string, data []byte) (*Snapshot, error) {
	s := new(Snapshot)
	o, err := r.openObject(name, data, seal.KindSnapshot, s)
	if err != nil {
		return nil, err
	}
	if s.Format > Format {
		return nil, fmt.Errorf("%s: format %d: %w", name, s.Format, seal.ErrNewer)
	}
	s.id, s.size, s.writer = strings.TrimPrefix(name, snapshotPrefix), len(data), o.Cert.Writer()
	s.group = r.config.group(s.writer, o.Cert.Role())
	return s, nil
}

// Latest returns the snapshot with the greatest data time among the complete ones
// that match, or nil. all must be in the order that Snapshots returns.
func Latest(all []*Snapshot, match func(*Snapshot) bool) *Snapshot {
	for _, s := range slices.Backward(all) {
		if s.Complete && match(s) {
			return s
		}
	}
	return nil
}

// ReadRecord returns the metadata blob of a snapshot with this name, or nil if the
// snapshot has none of that name.
func (r *Repository) ReadRecord(ctx context.Context, s *Snapshot, name string) ([]byte, error) {
	for _, rec := range s.Records {
		if rec.Name == name {
			p, err := r.store.Load(ctx, chunk.Record, chunk.ID(rec.ID))
			return bytes.Clone(p), err
		}
	}
	return nil, nil
}

// DeleteSnapshot deletes a snapshot from the repository. Prune frees its data
// later.
func (r *Repository) DeleteSnapshot(ctx context.Context, s *Snapshot) error {
	if err := r.objects.Delete(ctx, snapshotPrefix+s.id); err != nil {
		return err
	}
	r.unsee(s.id)
	return nil
}
