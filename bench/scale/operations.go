package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"xenkeep/chunkstore/chunk"
	"xenkeep/chunkstore/index"
	"xenkeep/chunkstore/object/local"
	"xenkeep/internal/disk"
	"xenkeep/repo"
	"xenkeep/repo/check"
	"xenkeep/repo/prune"
	"xenkeep/repo/restore"
	"xenkeep/repo/tree"
)

// operations are the operations that a child process can run.
var operations = map[string]func(ctx context.Context, j job) (outcome, error){
	"make":              makeRepository,
	"open, cold":        openCold,
	"open, cached":      openCached,
	"lookups, known":    func(ctx context.Context, j job) (outcome, error) { return lookups(ctx, j, true) },
	"lookups, unknown":  func(ctx context.Context, j job) (outcome, error) { return lookups(ctx, j, false) },
	"incremental":       incremental,
	"prune plan":        prunePlan,
	"check":             checkAll,
	"restore, cold":     restoreCold,
	"make snapshots":    makeSnapshots,
	"snapshots, cold":   func(ctx context.Context, j job) (outcome, error) { return listSnapshots(ctx, j, false) },
	"snapshots, cached": func(ctx context.Context, j job) (outcome, error) { return listSnapshots(ctx, j, true) },
	"make index":        makeIndex,
	"index alone":       indexAlone,
}

func openCold(ctx context.Context, j job) (outcome, error) {
	cache := filepath.Join(j.Dir, "cold")
	if err := os.RemoveAll(cache); err != nil {
		return outcome{}, err
	}
	return opened(ctx, j, cache)
}

func openCached(ctx context.Context, j job) (outcome, error) {
	return opened(ctx, j, filepath.Join(j.Dir, "cold"))
}

func opened(ctx context.Context, j job, cache string) (outcome, error) {
	r, f, err := open(ctx, j.Dir, cache)
	if err != nil {
		return outcome{}, err
	}
	defer r.Close()
	o := counts(f)
	n := 0
	for p := range r.Store().Index().Packs() {
		n += int(p.Entries)
	}
	o.Note = fmt.Sprintf("%.1f million entries", float64(n)/1e6)
	return o, nil
}

// lookups looks up a million IDs: known ones spread over the whole index, or
// unknown ones.
func lookups(ctx context.Context, j job, known bool) (outcome, error) {
	r, _, err := open(ctx, j.Dir, filepath.Join(j.Dir, "cold"))
	if err != nil {
		return outcome{}, err
	}
	defer r.Close()
	// The IDs come from the same generators as the disks.
	const each = 20_000
	var ids []chunk.ID
	disks := max(1, int(j.Bytes/diskSize))
	for n := 0; len(ids) < 1_000_000; n++ {
		mark := byte(1)
		if !known {
			mark = 2
		}
		g := rand.NewChaCha8([32]byte{byte(n % disks), byte(n % disks >> 8), mark})
		for range each {
			var id chunk.ID
			_, _ = g.Read(id[:])
			ids = append(ids, id)
		}
		if n == disks-1 && len(ids) < 1_000_000 {
			break
		}
	}
	rand.New(rand.NewPCG(1, 1)).Shuffle(len(ids), func(a, b int) { ids[a], ids[b] = ids[b], ids[a] })
	rate := func() (float64, int) {
		began, found := time.Now(), 0
		for _, id := range ids {
			if r.Store().Has(id) {
				found++
			}
		}
		return float64(len(ids)) / time.Since(began).Seconds(), found
	}
	first, found := rate()
	second, _ := rate()
	if known && found < len(ids)*9/10 || !known && found > 0 {
		return outcome{}, fmt.Errorf("%d of %d IDs found", found, len(ids))
	}
	return outcome{Rate: second, Note: fmt.Sprintf("first time %.0f a second", first)}, nil
}

// incremental makes the lookups for 10,000 changed granules of one disk: new
// chunks, and the old lists around them.
func incremental(ctx context.Context, j job) (outcome, error) {
	r, f, err := open(ctx, j.Dir, filepath.Join(j.Dir, "cold"))
	if err != nil {
		return outcome{}, err
	}
	defer r.Close()
	all, _, err := r.Snapshots(ctx)
	if err != nil {
		return outcome{}, err
	}
	s := repo.Latest(all, func(s *repo.Snapshot) bool { return s.VM.Name == "vm0" })
	before := f.Calls("")
	began := time.Now()
	root, err := tree.ReadRoot(ctx, r.Store(), chunk.ID(s.Disks[0].Root))
	if err != nil {
		return outcome{}, err
	}
	random := rand.New(rand.NewPCG(9, 9))
	lists, found := 0, 0
	for range 10_000 / len(root.Nodes) * len(root.Nodes) {
		id := root.Nodes[random.IntN(len(root.Nodes))]
		if r.Store().Has(id) {
			found++
		}
		var fresh chunk.ID
		for k := range fresh {
			fresh[k] = byte(random.Uint32())
		}
		if r.Store().Has(fresh) {
			return outcome{}, errors.New("a chunk nobody stored is known")
		}
	}
	for i := 0; i < len(root.Nodes); i += max(1, len(root.Nodes)/16) {
		node, err := tree.ReadNode(ctx, r.Store(), root.Nodes[i])
		if err != nil {
			return outcome{}, err
		}
		var ids []chunk.ID
		for _, id := range node {
			if !id.IsZero() {
				ids = append(ids, id)
			}
		}
		if err := r.Store().Fetch(ctx, chunk.List, ids, func(int, []byte) error { return nil }); err != nil {
			return outcome{}, err
		}
		lists += len(ids)
	}
	o := counts(f)
	o.Requests -= before
	o.Note = fmt.Sprintf("20,000 lookups, %d block lists in %s", lists, time.Since(began).Round(time.Millisecond))
	return o, nil
}

func prunePlan(ctx context.Context, j job) (outcome, error) {
	r, f, err := open(ctx, j.Dir, filepath.Join(j.Dir, "cold"))
	if err != nil {
		return outcome{}, err
	}
	defer r.Close()
	p, err := prune.New(ctx, r, prune.Options{})
	if err != nil {
		return outcome{}, err
	}
	o := counts(f)
	o.Note = fmt.Sprintf("%d snapshots", p.Snapshots)
	return o, nil
}

// checkAll checks that all references resolve; no pack is read whole.
func checkAll(ctx context.Context, j job) (outcome, error) {
	r, f, err := open(ctx, j.Dir, filepath.Join(j.Dir, "cold"))
	if err != nil {
		return outcome{}, err
	}
	defer r.Close()
	rep, err := check.Run(ctx, r, check.Options{})
	if err != nil {
		return outcome{}, err
	}
	if n := len(rep.Findings); n > 0 {
		return outcome{}, fmt.Errorf("%d findings, the first: %+v", n, rep.Findings[0])
	}
	o := counts(f)
	o.Note = fmt.Sprintf("%d snapshots", rep.Snapshots)
	return o, nil
}

// restoreCold restores the disk that really exists on a machine with an empty
// cache.
func restoreCold(ctx context.Context, j job) (outcome, error) {
	cache, err := os.MkdirTemp(j.Dir, "fresh-")
	if err != nil {
		return outcome{}, err
	}
	defer os.RemoveAll(cache)
	r, f, err := open(ctx, j.Dir, cache)
	if err != nil {
		return outcome{}, err
	}
	defer r.Close()
	forIndex := f.Bytes("get")
	all, _, err := r.Snapshots(ctx)
	if err != nil {
		return outcome{}, err
	}
	s := repo.Latest(all, func(s *repo.Snapshot) bool { return s.VM.Name == "real" })
	if s == nil {
		return outcome{}, errors.New("the disk that is there is not there")
	}
	im, err := restore.Open(ctx, r, chunk.ID(s.Disks[0].Root))
	if err != nil {
		return outcome{}, err
	}
	sink := &counting{}
	if _, err := im.Run(ctx, sink, restore.Options{}); err != nil {
		return outcome{}, err
	}
	if sink.n < j.Disk*9/10 {
		return outcome{}, fmt.Errorf("%d of %d bytes were restored", sink.n, j.Disk)
	}
	o := counts(f)
	o.Note = fmt.Sprintf("%d MiB of disk, %d MiB of it fetched for the index", sink.n>>20, forIndex>>20)
	return o, nil
}

type counting struct{ n int64 }

func (c *counting) WriteAt(_ context.Context, p []byte, _ int64) error {
	c.n += int64(len(p))
	return nil
}

var _ disk.Sink = (*counting)(nil)

// makeSnapshots publishes empty snapshots, and the catalogues that a prune would
// make of them.
func makeSnapshots(ctx context.Context, j job) (outcome, error) {
	s, err := local.Create(storage(j.Dir))
	if err != nil {
		return outcome{}, err
	}
	r, err := repo.Init(ctx, s, repo.Options{Secret: secret})
	if err != nil {
		return outcome{}, err
	}
	defer r.Close()
	if err := os.WriteFile(phantomFile(j.Dir), nil, 0o644); err != nil {
		return outcome{}, err
	}
	for i := range j.Snapshots {
		vm := fmt.Sprintf("5ad1ed00-0000-4000-8000-%012x", i%200)
		snap := &repo.Snapshot{
			Run: fmt.Sprintf("%032x", i), Job: "nightly", Machine: "backup", Origin: "pool", Pool: repo.Named{UUID: "4f00dbab-0000-4000-8000-000000000001", Name: "pool"},
			VM: repo.Named{UUID: vm, Name: "machine-" + vm[30:]}, Kind: "regular", DataTime: time.Unix(int64(i)*60, 0).UTC(), WrittenTime: time.Unix(int64(i)*60, 0).UTC(), Complete: true,
		}
		for d := range 2 {
			snap.Disks = append(snap.Disks, repo.Disk{
				Device: "xvd" + string(rune('a'+d)), UserDevice: fmt.Sprint(d), VDI: fmt.Sprintf("5ad1ed00-0000-4000-9%03x-%012x", d, i%200), Name: "disk", Size: 64 << 30,
				Root: repo.HexID{byte(i), byte(i >> 8), byte(i >> 16), byte(d)}, Method: "cbt", Reason: "changes since snapshot 01234567",
			})
		}
		if err := r.PutSnapshot(ctx, snap); err != nil {
			return outcome{}, err
		}
	}
	return outcome{}, r.MergeCatalogues(ctx)
}

func listSnapshots(ctx context.Context, j job, cached bool) (outcome, error) {
	cache := filepath.Join(j.Dir, "cache")
	if !cached {
		if err := os.RemoveAll(cache); err != nil {
			return outcome{}, err
		}
	}
	r, f, err := open(ctx, j.Dir, cache)
	if err != nil {
		return outcome{}, err
	}
	defer r.Close()
	all, bad, err := r.Snapshots(ctx)
	if err != nil || len(bad) > 0 || len(all) != j.Snapshots {
		return outcome{}, fmt.Errorf("%d snapshots, %d unreadable: %w", len(all), len(bad), err)
	}
	o := counts(f)
	// A local listing is one call; S3 returns a thousand names per request.
	o.Requests += (j.Snapshots + 999) / 1000
	o.Note = "a page of 1000 names counted as a request"
	return o, nil
}

// makeIndex creates only the local index, as in the cache of a repository with so
// much data.
func makeIndex(_ context.Context, j job) (outcome, error) {
	x, err := index.Open(j.Dir)
	if err != nil {
		return outcome{}, err
	}
	g := rand.NewChaCha8([32]byte{1})
	chunks := j.Bytes / (disk.BlockSize / chunksOfBlock)
	const perSource = indexPacks * packBlobs * blobChunks
	source := 0
	some := func() error {
		in := x.Intake()
		defer in.Close()
		for left := x.Portion() / 16 / perSource; left > 0 && int64(source)*perSource < chunks; left-- {
			s := index.Source{Name: fmt.Sprintf("%064x", source), Packs: make([]index.PackEntries, indexPacks)}
			for i := range s.Packs {
				p := &s.Packs[i]
				p.Size = packSize
				_, _ = g.Read(p.Pack[:])
				p.Entries = make([]index.Entry, packBlobs*blobChunks)
				for k := range p.Entries {
					e := &p.Entries[k]
					_, _ = g.Read(e.Prefix[:])
					e.Offset, e.Length = uint32(4096+k/blobChunks*blobSize), blobSize
				}
			}
			if err := in.Add(s); err != nil {
				return err
			}
			source++
		}
		return in.Finish()
	}
	for int64(source)*perSource < chunks && err == nil {
		err = some()
	}
	return outcome{Note: fmt.Sprintf("%.0f million entries", float64(chunks)/1e6)}, errors.Join(err, x.Close())
}

func indexAlone(_ context.Context, j job) (outcome, error) {
	began := time.Now()
	x, err := index.Open(j.Dir)
	if err != nil {
		return outcome{}, err
	}
	defer x.Close()
	took := time.Since(began)
	g := rand.NewChaCha8([32]byte{2})
	const n = 1_000_000
	began = time.Now()
	for range n {
		var p index.Prefix
		_, _ = g.Read(p[:])
		if _, ok := x.Lookup(p); ok {
			return outcome{}, errors.New("an ID nobody stored is known")
		}
	}
	return outcome{Rate: n / time.Since(began).Seconds(), Note: fmt.Sprintf("opened in %s; unknown IDs", took.Round(time.Millisecond))}, nil
}
