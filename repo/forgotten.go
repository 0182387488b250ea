package repo

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"xenkeep/chunkstore"
	"xenkeep/chunkstore/object"
	"xenkeep/chunkstore/seal"

	"github.com/google/renameio/v2"
	"golang.org/x/sync/errgroup"
)

const forgottenPrefix = "forgotten/"

// FeatureGrace is the name of the feature that gives forgotten snapshots a grace
// period.
const FeatureGrace = "grace"

// Forgotten moves snapshots into a grace period, or brings them back. For each
// snapshot the latest statement counts; of two with one time, the one that brings it
// back. It is valid only if a full key signed it: otherwise the thief of a write-only
// key could have snapshots deleted by the next prune.
type Forgotten struct {
	Time      time.Time `json:"time"`
	Until     time.Time `json:"until,omitzero"`      // end of the grace period of Snapshots
	Snapshots []string  `json:"snapshots,omitempty"` // full IDs of forgotten snapshots
	Recovered []string  `json:"recovered,omitempty"` // full IDs of snapshots that are brought back
	Reason    string    `json:"reason,omitempty"`

	name string
}

// Grace is the state of a forgotten snapshot.
type Grace struct {
	Since, Until time.Time // when it was forgotten, and when a prune may delete it
	Reason       string

	doubtful bool // a statement cannot be read that may bring the snapshot back
}

// Over reports whether a prune may delete the snapshot.
func (g *Grace) Over(now time.Time) bool { return !g.doubtful && !now.Before(g.Until) }

// graces maps the IDs of forgotten snapshots to their state.
type graces map[string]*Grace

// statements evaluates the objects; order does not matter.
func statements(all []*Forgotten) (forgotten graces, last map[string]time.Time) {
	slices.SortStableFunc(all, func(a, b *Forgotten) int { return a.Time.Compare(b.Time) })
	forgotten, last = make(graces), make(map[string]time.Time)
	for _, f := range all {
		for _, id := range f.Snapshots {
			if g := forgotten[id]; g == nil && last[id].Equal(f.Time) && !f.Time.IsZero() {
				continue // brought back by another statement of the same time
			}
			forgotten[id], last[id] = &Grace{Since: f.Time, Until: f.Until, Reason: f.Reason}, f.Time
		}
		for _, id := range f.Recovered {
			delete(forgotten, id)
			last[id] = f.Time
		}
	}
	return forgotten, last
}

// readForgotten reads all statements of full keys. Those that cannot be read are
// returned as problems: one of them may bring a snapshot back.
func (r *Repository) readForgotten(ctx context.Context) ([]*Forgotten, []Problem, error) {
	if !r.config.Uses(FeatureGrace) {
		return nil, nil, nil
	}
	var names []string
	if err := object.ListOwn(ctx, r.objects, forgottenPrefix, func(i object.Info) error {
		names = append(names, i.Name)
		return nil
	}); err != nil {
		return nil, nil, err
	}
	slices.Sort(names)
	all := make([]*Forgotten, len(names))
	errs := make([]error, len(names))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(max(2, r.objects.Traits().Parallel))
	for i, name := range names {
		g.Go(func() error {
			all[i], errs[i] = r.readStatement(gctx, name)
			if gctx.Err() != nil {
				return gctx.Err()
			}
			if object.Retriable(errs[i]) {
				return errs[i]
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, nil, err
	}
	var bad []Problem
	for i, err := range errs {
		if err != nil && !errors.Is(err, object.ErrNotFound) {
			bad = append(bad, Problem{Object: names[i], Err: err})
		}
	}
	return slices.DeleteFunc(all, func(f *Forgotten) bool { return f == nil }), bad, nil
}

// readStatement reads one statement, from the cache folder if it is there. It
// returns nil for one that nobody has signed who may forget.
func (r *Repository) readStatement(ctx context.Context, name string) (*Forgotten, error) {
	data, err := r.cachedObject(ctx, seal.KindForgotten, name)
	f := &Forgotten{name: name}
	if err == nil {
		if o, err := r.keys.VerifyNamed(seal.KindForgotten, name, data); err == nil && o.Cert.Role() != seal.Full && r.defends(FullKeysForget) {
			return nil, nil
		}
		_, err = r.openObject(name, data, seal.KindForgotten, f)
	}
	switch {
	case errors.Is(err, seal.ErrJunk):
		r.addJunk(name, err)
		return nil, nil
	case errors.Is(err, seal.ErrRevoked):
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return f, nil
}

// cachedObject reads an object that is named by its hash, from the cache folder if
// it is there: a cached object cannot be stale. It verifies the object.
func (r *Repository) cachedObject(ctx context.Context, kind seal.ObjectKind, name string) ([]byte, error) {
	var file string
	if r.cacheDir != "" {
		file = filepath.Join(r.cacheDir, filepath.FromSlash(name))
		if data, err := os.ReadFile(file); err == nil && seal.CheckName(name, data) == nil {
			return data, nil
		}
	}
	data, err := chunkstore.ReadSmall(ctx, r.objects, r.keys, kind, name)
	if err != nil {
		return nil, err
	}
	if _, err := r.keys.VerifyNamed(kind, name, data); err != nil && !errors.Is(err, seal.ErrRevoked) {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if file != "" && os.MkdirAll(filepath.Dir(file), 0o700) == nil {
		_ = renameio.WriteFile(file, data, 0o600) // it is a cache, so a failed write does no harm
	}
	return data, nil
}

// HasGrace reports whether forgotten snapshots get a grace period: the repository
// uses the feature, and the key in use is a full key.
func (r *Repository) HasGrace() bool {
	return r.config.Uses(FeatureGrace) && r.NeedsFull("") == nil
}

// Forget moves snapshots into a grace period that ends at until. Prune deletes them
// after that. It needs a full key.
func (r *Repository) Forget(ctx context.Context, ids []string, until time.Time, reason string, now time.Time) error {
	return r.state(ctx, &Forgotten{Time: now.UTC(), Until: until.UTC(), Snapshots: ids, Reason: reason})
}

// ErrNotForgotten is returned for a snapshot that was not forgotten.
var ErrNotForgotten = errors.New("was not forgotten")

// Recover brings forgotten snapshots back. It needs a full key. A prune that runs at
// the same time may be deleting snapshots whose grace period is over, so Recover
// checks that they exist after it has put its statement.
func (r *Repository) Recover(ctx context.Context, ids []string, now time.Time) error {
	if err := r.state(ctx, &Forgotten{Time: now.UTC(), Recovered: ids}); err != nil {
		return err
	}
	for _, id := range ids {
		if _, err := r.objects.Stat(ctx, snapshotPrefix+id); err != nil {
			return fmt.Errorf("snapshot %s: a prune has deleted it: %w", id[:min(8, len(id))], err)
		}
	}
	return nil
}

// state puts a statement, dated later than all earlier ones about its snapshots,
// even if the clock of another machine was ahead.
func (r *Repository) state(ctx context.Context, f *Forgotten) error {
	if err := r.NeedsFull("forget with a grace period"); err != nil {
		return err
	}
	if !r.config.Uses(FeatureGrace) {
		return fmt.Errorf("feature %q: the repository does not use it: xenkeep repo upgrade adds it", FeatureGrace)
	}
	all, bad, err := r.readForgotten(ctx)
	if err == nil && len(bad) > 0 {
		err = bad[0].Err
	}
	if err != nil {
		return err
	}
	_, last := statements(all)
	for _, id := range slices.Concat(f.Snapshots, f.Recovered) {
		if t := last[id]; !t.Before(f.Time) {
			f.Time = t.Add(time.Nanosecond)
		}
	}
	slices.Sort(f.Snapshots)
	slices.Sort(f.Recovered)
	f.name, _, err = r.putObject(ctx, forgottenPrefix, seal.KindForgotten, f)
	return err
}

// setGraces sets the Grace of the forgotten snapshots. Statements that cannot be read
// are returned as problems.
func (r *Repository) setGraces(ctx context.Context, all []*Snapshot) ([]Problem, error) {
	if len(all) == 0 {
		return nil, nil
	}
	said, bad, err := r.readForgotten(ctx)
	if err != nil {
		return nil, err
	}
	states, _ := statements(said)
	for _, s := range all {
		if s.grace = states[s.id]; s.grace != nil {
			s.grace.doubtful = len(bad) > 0
		}
	}
	return bad, nil
}

// Grace returns the state of a forgotten snapshot; nil for one that was not
// forgotten.
func (s *Snapshot) Grace() *Grace { return s.grace }

// TidyForgotten deletes statements of which no snapshot exists any more. Prune calls
// it.
func (r *Repository) TidyForgotten(ctx context.Context) error {
	all, _, err := r.readForgotten(ctx)
	if err != nil || len(all) == 0 {
		return err
	}
	exist := make(map[string]bool)
	if err := object.ListOwn(ctx, r.objects, snapshotPrefix, func(i object.Info) error {
		exist[strings.TrimPrefix(i.Name, snapshotPrefix)] = true
		return nil
	}); err != nil {
		return err
	}
	// A statement that brings snapshots back goes last: without it, an earlier one
	// would count again.
	slices.SortStableFunc(all, func(a, b *Forgotten) int { return len(a.Recovered) - len(b.Recovered) })
	for _, f := range all {
		if slices.ContainsFunc(slices.Concat(f.Snapshots, f.Recovered), func(id string) bool { return exist[id] }) {
			continue
		}
		if err := r.objects.Delete(ctx, f.name); err != nil {
			return err
		}
	}
	return nil
}
