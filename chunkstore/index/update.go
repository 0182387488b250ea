package index

import (
	"errors"
	"fmt"
	"slices"
)

// Add adds one index object. It is Update without removals.
func (x *Index) Add(source string, packs []PackEntries) error {
	return x.Update(nil, []Source{{Name: source, Packs: packs}})
}

// Update removes the index objects named in remove and adds those of add, in
// one durable step. A pack that no source covers any more leaves the index. A
// source in add that the index already contains is skipped, unless remove names
// it too; a name in remove that the index does not contain is skipped. Packs
// are assumed to be immutable, because their names are hashes of their content.
// Entries of add are held in memory until they are written, so callers should
// pass many index objects in several calls.
//
// If the cache turns out to be damaged, it is emptied before add is applied:
// Sources then lacks the other index objects, which the caller must add again.
func (x *Index) Update(remove []string, add []Source) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.closed {
		return errClosed
	}
	if err := x.change(func() error { return x.apply(remove, add) }); err != nil {
		return fmt.Errorf("update index: %w", err)
	}
	return x.merge()
}

// merge does all merges that are due. The caller must hold x.mu.
func (x *Index) merge() error {
	for {
		merged, err := x.mergeOnce()
		if err != nil {
			return fmt.Errorf("merge index: %w", err)
		}
		if !merged {
			return nil
		}
	}
}

// change calls do with the lock held and with a view of the newest manifest.
func (x *Index) change(do func() error) error {
	unlock, err := x.folder.lock()
	if err != nil {
		return err
	}
	defer unlock()
	if err := x.refresh(); err != nil {
		return err
	}
	return do()
}

// refresh loads the changes of other processes. The lock must be held. If the
// cache is damaged, refresh empties it.
func (x *Index) refresh() error {
	if x.folder.memory() {
		return nil
	}
	old := x.view.Load()
	m, stamp, err := x.folder.readManifest()
	if errors.Is(err, errSegment) {
		return x.reset()
	}
	if err != nil || stamp == old.stamp {
		return err
	}
	known := make(map[string]*segment)
	for _, s := range old.segments {
		known[s.name] = s.segment
	}
	parts := make([]*part, 0, len(m.Segments))
	for _, entry := range m.Segments {
		s := known[entry.Name]
		if s == nil {
			if s, err = x.folder.open(entry.Name, entry.Size); errors.Is(err, errSegment) {
				return x.reset()
			} else if err != nil {
				return err
			}
		}
		p := &part{segment: s, dropped: make(map[string]struct{})}
		for _, name := range entry.Dropped {
			p.dropped[name] = struct{}{}
		}
		parts = append(parts, p)
	}
	x.view.Store(newView(parts, x.hidden, stamp))
	return nil
}

// reset empties the cache. The lock must be held.
func (x *Index) reset() error {
	return x.publish(nil)
}

// publish makes parts the content of the index. The lock must be held.
func (x *Index) publish(parts []*part) error {
	for _, p := range parts {
		if err := x.folder.adopt(p.segment); err != nil {
			return err
		}
	}
	m := manifestOf(parts)
	stamp, err := x.folder.writeManifest(m)
	if err != nil {
		return err
	}
	if !x.folder.memory() {
		x.folder.clean(m)
	}
	x.view.Store(newView(parts, x.hidden, stamp))
	return nil
}

// apply changes the content of the index. The lock must be held.
func (x *Index) apply(remove []string, add []Source) error {
	v := x.view.Load()
	parts := v.copyParts()
	changed := false
	in := make(map[string]bool, len(v.sources))
	for name := range v.sources {
		in[name] = true
	}
	for _, name := range remove {
		if !in[name] {
			continue
		}
		in[name] = false
		changed = true
		for _, s := range parts {
			if slices.ContainsFunc(s.sources, func(src segmentSource) bool { return src.name == name }) {
				if s.dropped == nil {
					s.dropped = make(map[string]struct{})
				}
				s.dropped[name] = struct{}{}
			}
		}
	}
	var fresh []Source
	for _, s := range add {
		if !in[s.Name] {
			in[s.Name] = true
			fresh = append(fresh, s)
		}
	}
	if len(fresh) == 0 {
		if !changed {
			return nil
		}
		return x.publish(parts)
	}
	take := newIntake(x.folder)
	defer take.close()
	for i := range fresh {
		if err := take.add(&fresh[i]); err != nil {
			return err
		}
	}
	s, err := take.build(v, func(string) bool { return false })
	if err != nil {
		return err
	}
	if err := x.publish(append(parts, &part{segment: s})); err != nil {
		x.folder.remove(s)
		return err
	}
	return nil
}

// mergeOnce does one merge, if one is due. The work is done without the lock,
// so that other processes can continue. Their changes since the merge began are
// checked before the result replaces the parts.
func (x *Index) mergeOnce() (merged bool, err error) {
	v := x.view.Load()
	chosen := v.choose()
	if len(chosen) == 0 {
		return false, nil
	}
	s, gone, err := v.merge(x.folder, chosen)
	if errors.Is(err, errSegment) {
		return true, x.change(x.reset)
	}
	if err != nil {
		return false, err
	}
	err = x.change(func() error {
		merged, err = x.replace(chosen, s, gone)
		return err
	})
	if err != nil {
		x.folder.remove(s)
	}
	return merged, err
}

// replace puts s in the place of the parts from which it was merged, unless
// another process has merged them too, or needs a pack that was left out. The
// lock must be held.
func (x *Index) replace(chosen []*part, s *segment, gone [][32]byte) (bool, error) {
	now := x.view.Load()
	dropped := make(map[string]struct{}) // since the merge began
	var parts []*part
	found := 0
	for _, p := range now.copyParts() {
		i := slices.IndexFunc(chosen, func(c *part) bool { return c.name == p.name })
		if i < 0 {
			parts = append(parts, p)
			continue
		}
		found++
		for name := range p.dropped {
			if _, before := chosen[i].dropped[name]; !before {
				dropped[name] = struct{}{}
			}
		}
	}
	lost := found < len(chosen)
	for i := range gone {
		for _, p := range now.segments {
			if n, ok := p.packNumber(&gone[i]); ok && p.live.has(n) {
				lost = true
			}
		}
	}
	if lost {
		x.folder.remove(s)
		return false, nil
	}
	if s.n > 0 || len(s.sources) > 0 {
		parts = append(parts, &part{segment: s, dropped: dropped})
	} else {
		x.folder.remove(s)
	}
	return true, x.publish(parts)
}
