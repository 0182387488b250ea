package s3test

import (
	"context"
	"io"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"xenkeep/chunkstore/chunk"
	"xenkeep/chunkstore/object"
	"xenkeep/chunkstore/object/count"
	"xenkeep/chunkstore/object/mem"
	"xenkeep/chunkstore/object/objecttest"
	"xenkeep/chunkstore/pack"
	"xenkeep/internal/disk"
	"xenkeep/repo"
	"xenkeep/repo/backup"
	"xenkeep/repo/check"
	"xenkeep/repo/repotest"
)

// remote is an in-memory storage that behaves like S3: it lists in pages and
// prefers few requests. It records how many packs are read concurrently, and which
// prefixes are listed.
type remote struct {
	object.Store
	now, most atomic.Int32
	packLists atomic.Int32
	gate      chan struct{} // if set, a read of a pack waits for another one, or for a long time
}

func (r *remote) Traits() object.Traits {
	return object.Traits{Parallel: 8, ListPageSize: 1000, PreferWholeReads: true}
}

func (r *remote) Get(ctx context.Context, name string, offset, length int64) ([]byte, error) {
	if strings.HasPrefix(name, "packs/") {
		n := r.now.Add(1)
		defer r.now.Add(-1)
		if n > r.most.Load() {
			r.most.Store(n)
		}
		if r.gate != nil {
			select {
			case r.gate <- struct{}{}:
			case <-r.gate:
			case <-time.After(time.Second):
			}
		}
	}
	return r.Store.Get(ctx, name, offset, length)
}

func (r *remote) List(ctx context.Context, prefix string, fn func(object.Info) error) error {
	if strings.HasPrefix("packs/", prefix) {
		r.packLists.Add(1)
	}
	return r.Store.List(ctx, prefix, fn)
}

// days is a disk of many blocks, each of which contains one page, a different one
// each day.
type days struct {
	blocks int64
	day    uint64
	at     int64
}

func (d *days) Size() int64 { return d.blocks * disk.BlockSize }

func (d *days) page(block int64) []byte {
	return objecttest.Bytes(uint64(block)<<8|d.day, disk.PageSize)
}

func (d *days) Next(_ context.Context, buf []byte) (disk.Extent, error) {
	if d.at == d.blocks {
		return disk.Extent{}, io.EOF
	}
	copy(buf, d.page(d.at))
	d.at++
	return disk.Extent{Offset: (d.at - 1) * disk.BlockSize, Length: disk.PageSize}, nil
}

func (d *days) ReadAt(_ context.Context, p []byte, off int64) error {
	clear(p)
	for i := int64(0); i < int64(len(p)); i += disk.PageSize {
		if (off+i)%disk.BlockSize == 0 {
			copy(p[i:], d.page((off+i)/disk.BlockSize))
		}
	}
	return nil
}

// An incremental backup of 10,000 changed blocks makes at most 200 requests that do
// not transfer packs, and lists no packs; on a machine with an empty cache each
// tree pack is read whole, with one request, several concurrently.
func TestRequestsOfAnIncremental(t *testing.T) {
	const blocks = 10_000
	inner := &remote{Store: mem.New()}
	if _, err := repo.Init(t.Context(), inner, repo.Options{Secret: repotest.Secret()}); err != nil {
		t.Fatal(err)
	}
	// every returns the first page of each n-th block.
	every := func(n, from int64) (changed []disk.Extent) {
		for i := from; i < blocks; i += n {
			changed = append(changed, disk.Extent{Offset: i * disk.BlockSize, Length: disk.PageSize})
		}
		return changed
	}
	var base chunk.ID
	day := uint64(0)
	// run backs up one more day on a machine that has a cache folder.
	run := func(cache string, storage object.Store, changed []disk.Extent) (count.Requests, error) {
		day++
		d := &days{blocks: blocks, day: day}
		counted := count.New(storage)
		r, err := repo.Open(t.Context(), counted, repo.Options{Secret: repotest.Secret(), CacheDir: cache})
		if err == nil {
			err = r.LoadIndex(t.Context())
		}
		if err != nil {
			return count.Requests{}, err
		}
		s := &repo.Snapshot{Origin: "image", VM: repo.Named{UUID: "vm", Name: "vm"}, DataTime: time.Now(), Complete: true}
		o := backup.Options{Job: "nightly", Machine: "here"}
		if day > 1 {
			o.Roots = []chunk.ID{base}
		}
		err = backup.WithRun(t.Context(), r, o, func(ctx context.Context, run *backup.Run) error {
			var res backup.DiskResult
			var err error
			if day == 1 {
				res, err = run.BackupDisk(ctx, d, backup.DiskOptions{Size: d.Size()})
			} else {
				res, err = run.BackupChanged(ctx, d, backup.ChangedOptions{Size: d.Size(), Base: base, Changed: changed})
			}
			if err != nil {
				return err
			}
			base = res.Root
			s.Disks = []repo.Disk{{Device: "xvda", Size: d.Size(), Root: repo.HexID(res.Root), Method: "cbt", Counts: res.Counts}}
			run.Add(s)
			return run.Flush(ctx)
		})
		return count.Of(counted), err
	}
	cache := t.TempDir()
	if _, err := run(cache, inner, every(1, 0)); err != nil {
		t.Fatal(err)
	}
	n, err := run(cache, inner, every(1, 0))
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("warm: %+v, %d of them metadata", n, n.Metadata())
	if n.Metadata() > 200 || n.PackGet > 0 || inner.packLists.Load() > 0 {
		t.Errorf("warm: %+v, %d of them metadata; packs listed %d times", n, n.Metadata(), inner.packLists.Load())
	}

	// Days with few changes spread the tree over several packs.
	for i := range int64(4) {
		if _, err := run(cache, inner, every(8, i)); err != nil {
			t.Fatal(err)
		}
	}
	// With an empty cache: the first two concurrent requests release each other.
	inner.gate = make(chan struct{})
	inner.most.Store(0)
	trees := int64(treePacks(t, inner.Store))
	n, err = run(t.TempDir(), inner, every(1, 0))
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("cold: %+v, %d of them metadata, of %d tree packs, %d at once", n, n.Metadata(), trees, inner.most.Load())
	if n.Metadata() > 200 || n.PackGet > 2*trees || inner.packLists.Load() > 0 {
		t.Errorf("cold: %+v, %d of them metadata, of %d tree packs", n, n.Metadata(), trees)
	}
	if trees < 5 || inner.most.Load() < 2 {
		t.Errorf("tree packs came one by one")
	}
	inner.gate = nil
	// Damage in the cache is detected, and does no harm.
	spoil(t, cache)
	if n, err = run(cache, inner, every(1, 0)); err != nil {
		t.Errorf("with a damaged cache: %v", err)
	}
	r, err := repo.Open(t.Context(), inner, repo.Options{Secret: repotest.Secret(), CacheDir: cache})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.LoadIndex(t.Context()); err != nil {
		t.Fatal(err)
	}
	rep, err := check.Run(t.Context(), r, check.Options{})
	if err != nil || len(rep.Findings) > 0 {
		t.Errorf("check: %v, %v", rep, err)
	}
}

// treePacks counts the packs of lists, nodes and roots.
func treePacks(t *testing.T, s object.Store) (n int) {
	t.Helper()
	for _, name := range repotest.Names(t, s, "packs/") {
		head, err := s.Get(t.Context(), name, 6, 1)
		if err != nil {
			t.Fatal(err)
		}
		if pack.Kind(head[0]) == pack.Tree {
			n++
		}
	}
	return n
}
