package prune

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"xenkeep/chunkstore/object"
	"xenkeep/chunkstore/pack"

	"github.com/google/renameio/v2"
	"golang.org/x/sync/errgroup"
)

// If the repository locks its objects, a dead pack is deleted when neither it nor
// an index object that names it is locked any more, and the locks of live objects
// are extended before they end. Those of index objects are not: packs describe
// their own content.

// locked removes packs from the plan that cannot be deleted yet because of locks,
// and determines when they can be.
func (p *Plan) locked(ctx context.Context) error {
	s := p.s
	k, ok := object.VersionedOf(s.r.Objects())
	if !ok || s.r.LockDays() == 0 {
		return nil
	}
	candidates := p.remove
	if s.o.Exclusive {
		candidates = append(slices.Clone(p.remove), p.repack...)
	}
	index := make(map[string]time.Time)
	until := make(map[pack.ID]time.Time)
	var mu sync.Mutex
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(max(2, s.r.Objects().Traits().Parallel))
	ask := func(name string, keep func(time.Time)) {
		g.Go(func() error {
			t, err := k.LockedUntil(gctx, name, "")
			if errors.Is(err, object.ErrNotFound) {
				return nil
			}
			mu.Lock()
			defer mu.Unlock()
			keep(t)
			return err
		})
	}
	wanted := make(map[pack.ID]bool)
	for _, id := range candidates {
		wanted[id] = true
		ask(id.ObjectName(), func(t time.Time) { until[id] = t })
	}
	for _, h := range s.heads {
		if slices.ContainsFunc(h.Packs, func(id pack.ID) bool { return wanted[id] }) {
			ask(h.Name, func(t time.Time) { index[h.Name] = t })
		}
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for _, h := range s.heads {
		for _, id := range h.Packs {
			if t := index[h.Name]; wanted[id] && t.After(until[id]) {
				until[id] = t
			}
		}
	}
	held := func(id pack.ID) bool { return until[id].After(s.at) }
	var stay []pack.ID
	for _, id := range p.remove {
		if held(id) {
			stay = append(stay, id)
		}
	}
	p.remove = slices.DeleteFunc(p.remove, held)
	p.stay = make(map[string]bool)
	for _, id := range stay {
		p.stay[id.String()] = true
	}
	p.Delete, p.Locked = s.count(p.remove), s.count(stay)
	p.Freed -= p.Locked.Bytes
	p.Later += p.Locked.Bytes
	if s.o.Exclusive {
		p.repack = slices.DeleteFunc(p.repack, held)
		was := p.Repack.Bytes - p.Copy
		p.Repack, p.Copy = s.count(p.repack), 0
		for _, id := range p.repack {
			p.Copy += s.packs[id].live.bytes()
		}
		p.Freed -= was - (p.Repack.Bytes - p.Copy)
	}
	p.unlocks(stay, until)
	return nil
}

// unlocks determines when all dead packs may be deleted. For packs whose lock was
// not queried, their age determines the minimum.
func (p *Plan) unlocks(stay []pack.ID, until map[pack.ID]time.Time) {
	s := p.s
	var last time.Time
	note := func(t time.Time) {
		if t.After(last) {
			last = t
		}
	}
	for _, id := range stay {
		note(until[id])
	}
	days := time.Duration(s.r.LockDays()) * 24 * time.Hour
	for id, st := range s.packs {
		if _, condemned := s.condemned[id]; st.dead() && condemned && !slices.Contains(p.remove, id) {
			note(st.modified.Add(days))
		}
	}
	if !s.o.Exclusive {
		for _, id := range append(slices.Clone(p.condemn), p.repack...) {
			note(s.packs[id].modified.Add(days))
		}
	}
	if last.IsZero() {
		return
	}
	if p.Until == nil || last.After(*p.Until) {
		p.Until = &last
	}
}

// extendLocks extends the locks of live objects that have less than half of their
// time left. The lock times of the other objects are cached on this machine.
func (e *execution) extendLocks(ctx context.Context) error {
	k, ok := object.VersionedOf(e.r.Objects())
	days := e.r.LockDays()
	if !ok || days == 0 {
		return nil
	}
	whole := time.Duration(days) * 24 * time.Hour
	known := readLocks(e.lockFile())
	var names []string
	young := func(modified time.Time) bool { return modified.Add(whole / 2).After(e.s.at) }
	for id, st := range e.s.packs {
		if !st.live.empty() && !young(st.modified) {
			names = append(names, id.ObjectName())
		}
	}
	for _, prefix := range []string{"snapshots/", "slots/", "config"} {
		if err := object.ListOwn(ctx, e.r.Objects(), prefix, func(i object.Info) error {
			if !young(i.Modified) && !e.s.forgotten[i.Name] {
				names = append(names, i.Name)
			}
			return nil
		}); err != nil {
			return err
		}
	}
	var mu sync.Mutex
	fresh := make(map[string]time.Time, len(names))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(max(2, e.r.Objects().Traits().Parallel))
	for _, name := range names {
		mu.Lock()
		until, asked := known[name]
		mu.Unlock()
		if asked && until.Sub(e.s.at) >= whole/2 {
			mu.Lock()
			fresh[name] = until
			mu.Unlock()
			continue
		}
		g.Go(func() error {
			until, err := k.LockedUntil(gctx, name, "")
			if errors.Is(err, object.ErrNotFound) {
				return nil // deleted meanwhile
			}
			extend := err == nil && until.Sub(e.s.at) < whole/2
			if extend {
				until = e.s.at.Add(whole)
				err = k.Lock(gctx, name, "", until)
			}
			if err != nil {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			fresh[name] = until
			if extend {
				e.res.Extended++
			}
			return nil
		})
	}
	err := g.Wait()
	writeLocks(e.lockFile(), fresh)
	return err
}

func (e *execution) lockFile() string {
	if dir := e.r.CacheDir(); dir != "" {
		return filepath.Join(dir, "locks")
	}
	return ""
}

// readLocks reads the cached lock times: lines of a name and a time.
func readLocks(file string) map[string]time.Time {
	known := make(map[string]time.Time)
	p, err := os.ReadFile(file)
	if err != nil {
		return known
	}
	scan := bufio.NewScanner(bytes.NewReader(p))
	for scan.Scan() {
		name, text, _ := strings.Cut(scan.Text(), " ")
		if n, err := strconv.ParseInt(text, 10, 64); err == nil {
			known[name] = time.Unix(n, 0)
		}
	}
	return known
}

// writeLocks writes the cached lock times; a failure only costs requests.
func writeLocks(file string, known map[string]time.Time) {
	if file == "" || os.MkdirAll(filepath.Dir(file), 0o700) != nil {
		return
	}
	var b bytes.Buffer
	for name, until := range known {
		fmt.Fprintf(&b, "%s %d\n", name, until.Unix())
	}
	_ = renameio.WriteFile(file, b.Bytes(), 0o600)
}
