package repo

import (
	"context"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"xenkeep/chunkstore"
	"xenkeep/chunkstore/object"
	"xenkeep/chunkstore/seal"

	"github.com/google/renameio/v2"
	"golang.org/x/sync/errgroup"
)

const cataloguePrefix = "catalogue/"

const (
	// catalogueSize is the maximum number of snapshots in one catalogue. A
	// catalogue of snapshots with a disk or two is about a MiB.
	catalogueSize = 1024
	// catalogueBytes is the size of the snapshots from which a catalogue is split.
	// In base64, they stay far below the limit of a catalogue.
	catalogueBytes = 24 << 20
	// catalogueMin is the number of snapshots from which catalogues are worth the
	// request that lists them.
	catalogueMin = 256
)

// catalogue contains copies of snapshot objects, so that a machine with an empty
// cache does not have to fetch each of them. The copies are self-verifying: by
// their hash, which is the snapshot's name, and by their own signature. Only the
// snapshot's own object proves that the snapshot exists.
type catalogue struct {
	Objects [][]byte `json:"objects"`
}

// readCatalogue reads one catalogue from the cache folder or the storage.
func (r *Repository) readCatalogue(ctx context.Context, name string) (*catalogue, error) {
	var c catalogue
	file := ""
	if r.cacheDir != "" {
		file = filepath.Join(r.cacheDir, "catalogue", strings.TrimPrefix(name, cataloguePrefix))
		if data, err := os.ReadFile(file); err == nil && strings.HasSuffix(name, seal.Name(data)) {
			_, err := r.openObject(name, data, seal.KindCatalogue, &c)
			return &c, err
		}
	}
	data, err := chunkstore.ReadSmall(ctx, r.objects, r.keys, seal.KindCatalogue, name)
	if err != nil {
		return nil, err
	}
	if _, err := r.openObject(name, data, seal.KindCatalogue, &c); err != nil {
		return nil, err
	}
	if file != "" && os.MkdirAll(filepath.Dir(file), 0o700) == nil {
		_ = renameio.WriteFile(file, data, 0o600) // it is a cache, so a failed write does no harm
	}
	return &c, nil
}

// catalogued maps a catalogue's name to the IDs of the snapshots in it.
type catalogued map[string][]string

// fromCatalogues calls fn once for each wanted snapshot (by ID) that a catalogue
// contains, from several goroutines concurrently, and removes it from wanted.
// Catalogues that cannot be read are skipped, because the snapshots' own objects
// can be read instead.
func (r *Repository) fromCatalogues(ctx context.Context, wanted map[string]bool, fn func(name string, data []byte)) (catalogued, error) {
	var names []string
	if err := object.ListOwn(ctx, r.objects, cataloguePrefix, func(i object.Info) error {
		names = append(names, i.Name)
		return nil
	}); err != nil {
		return nil, err
	}
	var mu sync.Mutex
	found := make(catalogued)
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(max(2, r.objects.Traits().Parallel))
	for _, name := range names {
		g.Go(func() error {
			c, err := r.readCatalogue(ctx, name)
			switch {
			case ctx.Err() != nil:
				return context.Cause(ctx)
			case object.Retriable(err):
				return err
			case err != nil:
				return nil
			}
			for _, data := range c.Objects {
				id := seal.Name(data)
				mu.Lock()
				want := wanted[id]
				delete(wanted, id)
				found[name] = append(found[name], id)
				mu.Unlock()
				if want {
					fn(snapshotPrefix+id, data)
				}
			}
			return nil
		})
	}
	return found, g.Wait()
}

// MergeCatalogues writes new catalogues for the snapshots that are in none, if
// there are many of them, and replaces catalogues of which less than half of the
// snapshots still exist. Prune calls it; readers use the catalogues that exist.
func (r *Repository) MergeCatalogues(ctx context.Context) error {
	exist := make(map[string]bool)
	if err := object.ListOwn(ctx, r.objects, snapshotPrefix, func(i object.Info) error {
		exist[strings.TrimPrefix(i.Name, snapshotPrefix)] = true
		return nil
	}); err != nil {
		return err
	}
	held, err := r.fromCatalogues(ctx, map[string]bool{}, nil)
	if err != nil {
		return err
	}
	loose := maps.Clone(exist)
	var stale []string
	for name, ids := range held {
		live := 0
		for _, id := range ids {
			if exist[id] {
				live++
			}
		}
		if live*2 < len(ids) {
			stale = append(stale, name)
			continue
		}
		for _, id := range ids {
			delete(loose, id)
		}
	}
	ids := slices.Sorted(maps.Keys(loose))
	for len(ids) >= catalogueMin || (len(ids) > 0 && len(stale) > 0) {
		n := min(len(ids), catalogueSize)
		if err := r.putCatalogue(ctx, ids[:n]); err != nil {
			return err
		}
		ids = ids[n:]
	}
	for _, name := range stale {
		if err := r.objects.Delete(ctx, name); err != nil {
			return err
		}
	}
	return nil
}

func (r *Repository) putCatalogue(ctx context.Context, ids []string) error {
	objects := make([][]byte, len(ids))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(max(2, r.objects.Traits().Parallel))
	for i, id := range ids {
		g.Go(func() error {
			data, err := r.cachedObject(gctx, seal.KindSnapshot, snapshotPrefix+id)
			if errors.Is(err, object.ErrNotFound) || errors.Is(err, seal.ErrCorrupt) || errors.Is(err, seal.ErrJunk) || errors.Is(err, seal.ErrNewer) {
				return nil // deleted meanwhile, or damaged or junk, which check reports
			}
			objects[i] = data
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	objects = slices.DeleteFunc(objects, func(p []byte) bool { return p == nil })
	for len(objects) > 0 {
		n, size := 1, len(objects[0])
		for n < len(objects) && size+len(objects[n]) <= catalogueBytes {
			size += len(objects[n])
			n++
		}
		if _, _, err := r.putObject(ctx, cataloguePrefix, seal.KindCatalogue, catalogue{Objects: objects[:n]}); err != nil {
			return err
		}
		objects = objects[n:]
	}
	return nil
}
