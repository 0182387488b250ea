package check

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"xenkeep/repo"

	"github.com/google/renameio/v2"
)

// Unsound returns the IDs of the snapshots that must not be counted on, each with
// the reason: those that the last checks on this machine found damaged, and those
// that a damage list or a note in the repository names.
func Unsound(ctx context.Context, r *repo.Repository) (map[string]string, error) {
	bad := readUnsound(unsoundFile(r))
	lists, _, err := r.ReadDamage(ctx)
	if err != nil {
		return nil, err
	}
	for _, l := range lists {
		for _, d := range l.Blocks {
			if bad[d.Snapshot] == "" {
				bad[d.Snapshot] = fmt.Sprintf("a damage list names its disk %s", d.Device)
			}
		}
	}
	notes, _, err := r.Notes(ctx)
	if err != nil {
		return nil, err
	}
	for _, n := range notes {
		if n.Kind == repo.NoteDamaged && bad[n.Snapshot] == "" {
			bad[n.Snapshot] = n.Text
			if n.Text == "" {
				bad[n.Snapshot] = "a note marks it as damaged"
			}
		}
	}
	return bad, nil
}

// Unsound returns the IDs of the snapshots that the findings name, each with the
// first finding about it.
func (r *Report) Unsound() map[string]string {
	bad := make(map[string]string)
	for _, f := range r.Findings {
		id, ok := strings.CutPrefix(f.Object, "snapshots/")
		if !ok || f.Kind == Withdrawn || f.Kind == Revoked || bad[id] != "" {
			continue
		}
		bad[id] = f.Error
		if f.Where != "" {
			bad[id] = f.Where + ": " + f.Error
		}
	}
	return bad
}

// unsoundFile returns the file in the cache folder that holds the snapshots which
// checks found damaged, or "" without a cache folder. It is JSON: reasons by ID.
func unsoundFile(r *repo.Repository) string {
	if r.CacheDir() == "" {
		return ""
	}
	return filepath.Join(r.CacheDir(), "unsound.json")
}

// readUnsound treats a damaged file as missing, because it is only a cache.
func readUnsound(file string) map[string]string {
	bad := make(map[string]string)
	if p, err := os.ReadFile(file); err == nil && json.Unmarshal(p, &bad) != nil || bad == nil {
		return make(map[string]string)
	}
	return bad
}

// rememberUnsound records which snapshots the check found damaged. An earlier
// finding is dropped only by a check that would find the damage again.
func (c *checker) rememberUnsound() error {
	file := unsoundFile(c.r)
	if file == "" {
		return nil
	}
	old, found := readUnsound(file), c.rep.Unsound()
	whole := c.o.ReadData && c.o.Subset == (Subset{}) && c.o.Budget == 0
	exists := make(map[string]bool)
	for _, s := range c.all {
		exists[s.ID()] = true
	}
	kept := make(map[string]string)
	for id, why := range old {
		if len(c.o.Snapshots) > 0 {
			if !exists[id] || !c.o.ReadData {
				kept[id] = why
			}
		} else if exists[id] && !whole && c.stillBad() {
			kept[id] = why
		}
	}
	for id, why := range found {
		kept[id] = why
	}
	if len(old) == 0 && len(kept) == 0 {
		return nil
	}
	p, err := json.Marshal(kept)
	return errors.Join(err, os.MkdirAll(filepath.Dir(file), 0o700), renameio.WriteFile(file, p, 0o600))
}

// stillBad reports whether a pack in storage was damaged when it was last read.
func (c *checker) stillBad() bool {
	for _, id := range c.proofs.bad() {
		if _, ok := c.packs[id]; ok {
			return true
		}
	}
	return false
}
