package repo

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"xenkeep/chunkstore"
	"xenkeep/chunkstore/object"
	"xenkeep/chunkstore/seal"

	"golang.org/x/sync/errgroup"
)

// An object that is as it was stored, and that no key of the repository signed as an
// object of its folder (and of the run in its name), is junk (seal.ErrJunk). Everyone
// who may put an object can store junk, so it is ignored everywhere, as if it did not
// exist: check reports it, and repair junk deletes it. An object whose content does
// not match its name is damaged instead: its content is not known, so that whoever
// needs all objects of the folder stops.

// ofRun is a small object whose name contains the ID of its run.
type ofRun interface{ runID() string }

func (c *Claim) runID() string     { return c.Run }
func (f *Reference) runID() string { return f.Run }
func (t *Retired) runID() string   { return t.Run }
func (o *RunEnd) runID() string    { return o.Run }

// nameRun returns the run in the name of an object: "claims/RUN-SHA256".
func nameRun(name string) string {
	_, rest, _ := strings.Cut(name, "/")
	run, _, _ := strings.Cut(rest, "-")
	return run
}

// checkRun returns ErrJunk if v belongs to another run than the one that the name
// of its object contains: someone has stored it again under another name.
func checkRun(name string, v any) error {
	if o, ok := v.(ofRun); ok && o.runID() != nameRun(name) {
		return fmt.Errorf("%s: it is of run %s: %w", name, o.runID(), seal.ErrJunk)
	}
	return nil
}

// addJunk records an object that is junk.
func (r *Repository) addJunk(name string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.junk == nil {
		r.junk = make(map[string]error)
	}
	r.junk[name] = err
}

// Junk returns the objects that were ignored so far because they are junk, sorted by
// name.
func (r *Repository) Junk() []Problem {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := make([]Problem, 0, len(r.junk))
	for name, err := range r.junk {
		all = append(all, Problem{Object: name, Err: err})
	}
	slices.SortFunc(all, func(a, b Problem) int { return cmp.Compare(a.Object, b.Object) })
	return all
}

// FindJunk reads every small object and calls fn for each that is junk (ErrJunk) or
// damaged, from one goroutine. Objects of newer versions and of revoked writers are
// neither.
func (r *Repository) FindJunk(ctx context.Context, fn func(name string, size int64, err error) error) error {
	var infos []object.Info
	for folder := range folderKinds() {
		if err := object.ListOwn(ctx, r.objects, folder+"/", func(i object.Info) error {
			infos = append(infos, i)
			return nil
		}); err != nil {
			return err
		}
	}
	slices.SortFunc(infos, func(a, b object.Info) int { return cmp.Compare(a.Name, b.Name) })
	bad := make([]error, len(infos))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(max(2, r.objects.Traits().Parallel))
	for n, i := range infos {
		g.Go(func() error {
			err := r.Verify(gctx, i.Name)
			if gctx.Err() != nil || object.Retriable(err) {
				return err
			}
			if errors.Is(err, seal.ErrJunk) || errors.Is(err, seal.ErrCorrupt) {
				bad[n] = err
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for n, i := range infos {
		if bad[n] == nil {
			continue
		}
		if err := fn(i.Name, i.Size, bad[n]); err != nil {
			return err
		}
	}
	return nil
}

// Verify reads a small object from storage and returns nil if a key of the
// repository wrote it, for its folder and the run in its name, and it can be opened.
func (r *Repository) Verify(ctx context.Context, name string) error {
	folder, _, _ := strings.Cut(name, "/")
	kind, ok := folderKinds()[folder]
	if !ok || !object.Own(name) {
		return fmt.Errorf("%s: not the name of a small object: %w", name, object.ErrName)
	}
	data, err := chunkstore.ReadSmall(ctx, r.objects, r.keys, kind, name)
	if err != nil {
		return err
	}
	var v any
	switch kind {
	case seal.KindClaim:
		v = new(Claim)
	case seal.KindReference:
		v = new(Reference)
	case seal.KindRetired:
		v = new(Retired)
	case seal.KindOver:
		v = new(RunEnd)
	case seal.KindIndex:
		_, err := r.keys.OpenNamed(kind, name, data)
		return err
	default:
		v = new(any)
	}
	_, err = r.openObject(name, data, kind, v)
	return err
}
