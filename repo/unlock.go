package repo

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"xenkeep/chunkstore/object"
	"xenkeep/chunkstore/seal"
	"xenkeep/chunkstore/slot"

	"github.com/google/renameio/v2"
	"golang.org/x/sync/errgroup"
)

// Anyone who can write to the storage can put any number of key slots that state
// any cost, and a slot is authenticated only by opening it. So the cheapest slots
// are tried first, and only until the budget is spent. This program writes slots of
// slot.StandardCost only.
const (
	// slotBudget is the cost of all slots that are tried together, which takes some
	// ten seconds.
	slotBudget = 64 * slot.StandardCost
	// slotLimit is the cost of a single slot, unless the user names it.
	slotLimit = 8 * slot.StandardCost
	// slotsKept is the total size of slots that are kept in memory between
	// reading their heads and opening them, in bytes.
	slotsKept = 16 << 20
)

// UntriedError is returned if no slot opens that was tried, and others would have
// taken too long.
type UntriedError struct {
	Slots []slot.Head // those that were not tried
	Err   error       // of those that were tried
}

func (e *UntriedError) Error() string {
	const most = 8
	var names []string
	for _, h := range e.Slots[:min(most, len(e.Slots))] {
		name := h.ID
		if h.Label != "" {
			name += fmt.Sprintf(" (%.100q)", h.Label)
		}
		names = append(names, name)
	}
	if n := len(e.Slots) - most; n > 0 {
		names = append(names, fmt.Sprintf("and %d more", n))
	}
	return fmt.Sprintf("%v; key slots that were not tried, because they state that opening them takes long: %s", e.Err, strings.Join(names, ", "))
}

func (e *UntriedError) Unwrap() error { return e.Err }

// openAny opens the repository with the first of these slots that the secret opens.
// older means that they are older versions of slots.
func openAny(ctx context.Context, objects object.Store, slots []storedSlot, older bool, o Options) (*Repository, error) {
	slots, err := inOrder(slots, o)
	if err != nil {
		return nil, err
	}
	budget := cmp.Or(o.slotBudget, slotBudget)
	var wrong error = slot.ErrWrongSecret
	var untried []slot.Head
	for _, s := range slots {
		if !o.Secret.Fits(s.head.KDF) {
			continue
		}
		cost := s.head.KDF.Cost()
		if o.Slot == "" && cost > min(slotLimit, budget) {
			untried = append(untried, s.head)
			continue
		}
		budget -= min(cost, budget)
		keys, raw, err := s.open(ctx, objects, o.Secret)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if errors.Is(err, slot.ErrWrongSecret) {
			continue
		}
		if object.Retriable(err) {
			return nil, err
		}
		if err != nil {
			// The slot is damaged, or of a kind that this version does not support.
			// That prevents no other slot from opening.
			wrong = fmt.Errorf("key slot %s: %w", s.head.ID, err)
			continue
		}
		r, err := open(ctx, objects, keys, raw, o)
		if errors.Is(err, seal.ErrForeign) {
			wrong = err // a slot left over from a repository that was never finished
			continue
		}
		if err == nil && o.CacheDir != "" {
			rememberSlot(o.CacheDir, s.head)
		}
		if err == nil && older {
			r.addProblems(Problem{Object: "slots/a/" + s.head.ID, Err: fmt.Errorf("slots/a/%s: overwritten or deleted; an older version opens: %w", s.head.ID, seal.ErrCorrupt)})
		}
		return r, err
	}
	if len(untried) > 0 {
		return nil, &UntriedError{Slots: untried, Err: wrong}
	}
	return nil, wrong
}

// inOrder returns the slots in the order in which they are tried: the one that
// opened last, unless its cost has grown, then by their cost. If o names a slot, it
// returns that one alone, which may have two versions.
func inOrder(slots []storedSlot, o Options) ([]storedSlot, error) {
	if o.Slot != "" {
		return named(slots, o.Slot)
	}
	last := make(map[string]string) // by repository
	for _, s := range slots {
		if _, known := last[s.head.Repository]; !known {
			last[s.head.Repository] = rememberedSlot(o.CacheDir, s.head.Repository)
		}
	}
	rank := func(s storedSlot) int {
		if s.head.ID == last[s.head.Repository] && s.head.KDF.Cost() <= slot.StandardCost {
			return 0
		}
		return 1
	}
	slices.SortStableFunc(slots, func(a, b storedSlot) int {
		return cmp.Or(rank(a)-rank(b), cmp.Compare(a.head.KDF.Cost(), b.head.KDF.Cost()))
	})
	return slots, nil
}

// named returns the versions of the slot with this ID, prefix or label.
func named(slots []storedSlot, name string) ([]storedSlot, error) {
	ids := make(map[string]bool)
	for _, s := range slots {
		if s.head.ID == name {
			ids = map[string]bool{name: true}
			break
		}
		if s.head.Label == name || len(name) >= 4 && strings.HasPrefix(s.head.ID, name) {
			ids[s.head.ID] = true
		}
	}
	switch len(ids) {
	case 0:
		return nil, fmt.Errorf("key slot %q: %w", name, ErrNoSlot)
	case 1:
		return slices.DeleteFunc(slots, func(s storedSlot) bool { return !ids[s.head.ID] }), nil
	}
	return nil, fmt.Errorf("key slot %q: %w", name, ErrAmbiguous)
}

// rememberedSlot returns the ID of the slot that opened a repository last on this
// machine. The repository's ID is from a slot, where anything may be written.
func rememberedSlot(cacheDir, repository string) string {
	if id, err := hex.DecodeString(repository); cacheDir == "" || err != nil || len(id) != len(seal.RepoID{}) {
		return ""
	}
	id, _ := os.ReadFile(filepath.Join(cacheDir, repository, "slot"))
	return string(id)
}

// rememberSlot records the slot that opened, so that it is tried first next time.
// Errors are ignored, because they do no harm.
func rememberSlot(cacheDir string, h slot.Head) {
	if rememberedSlot(cacheDir, h.Repository) == h.ID {
		return
	}
	dir := filepath.Join(cacheDir, h.Repository)
	if os.MkdirAll(dir, 0o700) == nil {
		_ = renameio.WriteFile(filepath.Join(dir, "slot"), []byte(h.ID), 0o600)
	}
}

// storedSlot is one copy of a key slot.
type storedSlot struct {
	head slot.Head
	name string // of the object
	data []byte // nil if it must be read again
}

func (s *storedSlot) open(ctx context.Context, objects object.Store, secret slot.Secret) (*seal.Keys, []byte, error) {
	data := s.data
	if data == nil {
		var err error
		if data, err = objects.Get(ctx, s.name, 0, -1); err != nil {
			return nil, nil, err
		}
	}
	return slot.Open(ctx, data, secret)
}

// readSlots reads every slot. If its two copies differ, both are returned: only
// opening them shows which of them is sound.
func readSlots(ctx context.Context, objects object.Store) ([]storedSlot, error) {
	var names []string
	if err := object.ListOwn(ctx, objects, "slots/", func(i object.Info) error {
		names = append(names, i.Name)
		return nil
	}); err != nil {
		return nil, err
	}
	slices.Sort(names)
	found := make([]*storedSlot, len(names))
	sums := make([][32]byte, len(names))
	var mu sync.Mutex
	kept := 0
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(max(2, objects.Traits().Parallel))
	for i, name := range names {
		g.Go(func() error {
			data, err := objects.Get(gctx, name, 0, -1)
			if errors.Is(err, object.ErrNotFound) || errors.Is(err, object.ErrTooLarge) {
				return nil // check reports one that is no slot
			}
			if err != nil {
				return err
			}
			h, err := slot.ReadHead(data)
			if err != nil || h.ID != name[strings.LastIndexByte(name, '/')+1:] {
				return nil // damaged, which check reports
			}
			sums[i] = sha256.Sum256(data)
			found[i] = &storedSlot{head: h, name: name}
			mu.Lock()
			defer mu.Unlock()
			if kept+len(data) <= slotsKept {
				kept += len(data)
				found[i].data = data
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	seen := make(map[[32]byte]bool)
	var slots []storedSlot
	for i, s := range found {
		if s != nil && !seen[sums[i]] { // otherwise it is identical to the other copy
			seen[sums[i]] = true
			slots = append(slots, *s)
		}
	}
	return slots, nil
}
