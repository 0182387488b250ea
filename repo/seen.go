package repo

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"xenkeep/chunkstore/seal"

	"github.com/google/renameio/v2"
)

// A storage that is put back to an earlier state, or replaced by another repository,
// looks sound: every object in it is genuine. Only a machine that has seen the later
// state can notice. It remembers, in the cache folder, which repository is at a
// location, the features of the config, and the newest snapshot of each VM.

// ErrReplaced is returned if another repository is at a location than the one that
// this machine has used there.
var ErrReplaced = errors.New("another repository is here than before")

// ErrRolledBack is the class of problems of a storage that lacks what this machine has
// seen in it.
var ErrRolledBack = errors.New("it was deleted by another machine, or the storage was put back to an earlier state")

// locationFile is the file that remembers the repository at a location.
func locationFile(cacheDir, location string) string {
	sum := sha256.Sum256([]byte(location))
	return filepath.Join(cacheDir, "locations", hex.EncodeToString(sum[:16]))
}

// CheckLocation returns ErrReplaced if this machine has used other repositories at this
// location, and not this one. Otherwise it remembers the repository. Nothing is
// remembered without a cache folder.
func (r *Repository) CheckLocation(cacheDir string) error {
	if cacheDir == "" {
		return nil
	}
	known := knownAt(cacheDir, r.location())
	if len(known) > 0 && !slices.Contains(known, r.ID()) {
		return fmt.Errorf("%s: it is repository %s, and was %s: %w", r.objects.Location(), r.ID()[:8], known[0][:8], ErrReplaced)
	}
	return r.AcceptLocation(cacheDir)
}

// AcceptLocation makes CheckLocation accept this repository at its location, beside
// those that it accepts already: for example, disks that are attached in turn.
func (r *Repository) AcceptLocation(cacheDir string) error {
	known := knownAt(cacheDir, r.location())
	if cacheDir == "" || slices.Contains(known, r.ID()) {
		return nil
	}
	file := locationFile(cacheDir, r.location())
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return err
	}
	return renameio.WriteFile(file, []byte(strings.Join(append([]string{r.ID()}, known...), "\n")+"\n"), 0o600)
}

// location returns the location in a form that does not depend on the working folder.
func (r *Repository) location() string {
	at := r.objects.Location()
	if strings.Contains(at, "://") || strings.HasPrefix(at, "s3:") {
		return at
	}
	if abs, err := filepath.Abs(at); err == nil {
		return abs
	}
	return at
}

// knownAt returns the IDs of the repositories that this machine accepts at a location.
func knownAt(cacheDir, location string) (ids []string) {
	data, err := os.ReadFile(locationFile(cacheDir, location))
	if err != nil {
		return nil
	}
	for _, id := range strings.Fields(string(data)) {
		if len(id) == hex.EncodedLen(len(seal.RepoID{})) {
			ids = append(ids, id)
		}
	}
	return ids
}

// seen is the state that this machine has seen.
type seen struct {
	Newest map[string]seenSnapshot `json:"newest"` // by VM, job and group of writers
}

type seenSnapshot struct {
	ID   string    `json:"id"`
	VM   string    `json:"vm"`
	Data time.Time `json:"data_time"`
}

func (r *Repository) seenFile() string { return filepath.Join(r.cacheDir, "seen.json") }

func seenKey(s *Snapshot) string {
	return strings.Join([]string{s.Origin, s.Pool.UUID, vmKey(s), s.Job, s.group}, "\x00")
}

// listing is the result of the last listing of snapshots.
type listing struct {
	all []*Snapshot
	bad []Problem
}

// Missed compares the snapshots that were listed last with those that this machine has
// seen, and returns a problem for each VM (and job) whose newest snapshot has
// disappeared, unless this machine has deleted it or a newer one exists. Each is
// reported once: from then on the present state is remembered.
func (r *Repository) Missed() []Problem {
	r.mu.Lock()
	listed := r.listed
	r.mu.Unlock()
	if r.cacheDir == "" || listed == nil {
		return nil
	}
	all := listed.all
	before := r.readSeen()
	var gone []string
	for _, p := range listed.bad {
		gone = append(gone, strings.TrimPrefix(p.Object, snapshotPrefix))
	}
	exist := make(map[string]bool)
	now := seen{Newest: make(map[string]seenSnapshot)}
	for _, s := range all { // oldest first
		exist[s.id] = true
		if s.Complete && s.grace == nil {
			now.Newest[seenKey(s)] = seenSnapshot{ID: s.id, VM: s.VM.Name, Data: s.DataTime}
		}
	}
	var missed []Problem
	for key, s := range before.Newest {
		if exist[s.ID] || slices.Contains(gone, s.ID) || len(s.ID) != hex.EncodedLen(sha256.Size) {
			continue
		}
		// An older snapshot of the VM that is newest now, or none: it was taken away.
		if n, ok := now.Newest[key]; ok && !n.Data.Before(s.Data) {
			continue // a newer one exists, so that a policy may have forgotten it elsewhere
		}
		missed = append(missed, Problem{Object: snapshotPrefix + s.ID, Err: fmt.Errorf("snapshot %s, the newest of VM %s, of %s, is gone: %w",
			s.ID[:8], s.VM, s.Data.Local().Format("2006-01-02 15:04"), ErrRolledBack)})
	}
	slices.SortFunc(missed, func(a, b Problem) int { return strings.Compare(a.Object, b.Object) })
	if !sameSeen(before.Newest, now.Newest) {
		r.writeSeen(now)
	}
	return missed
}

func (r *Repository) readSeen() (s seen) {
	if data, err := os.ReadFile(r.seenFile()); err == nil {
		_ = json.Unmarshal(data, &s) // a damaged file is written again
	}
	return s
}

func (r *Repository) writeSeen(s seen) {
	if data, err := json.Marshal(s); err == nil && os.MkdirAll(r.cacheDir, 0o700) == nil {
		_ = renameio.WriteFile(r.seenFile(), data, 0o600) // it is a cache
	}
}

// unsee makes Missed not expect a snapshot that this machine has deleted.
func (r *Repository) unsee(id string) {
	if r.cacheDir == "" {
		return
	}
	s := r.readSeen()
	n := len(s.Newest)
	maps.DeleteFunc(s.Newest, func(_ string, o seenSnapshot) bool { return o.ID == id })
	if len(s.Newest) != n {
		r.writeSeen(s)
	}
}

func sameSeen(a, b map[string]seenSnapshot) bool {
	if len(a) != len(b) {
		return false
	}
	for k, v := range a {
		if b[k].ID != v.ID {
			return false
		}
	}
	return true
}
