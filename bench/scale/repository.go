package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"time"

	"xenkeep/chunkstore"
	"xenkeep/chunkstore/chunk"
	"xenkeep/chunkstore/index"
	"xenkeep/chunkstore/object"
	"xenkeep/chunkstore/object/local"
	"xenkeep/chunkstore/object/objecttest"
	"xenkeep/chunkstore/pack"
	"xenkeep/chunkstore/slot"
	"xenkeep/internal/disk"
	"xenkeep/repo"
	"xenkeep/repo/backup"
	"xenkeep/repo/tree"

	"golang.org/x/sync/errgroup"
)

var secret = slot.Secret{KeyFile: make([]byte, 32)}

// Average sizes of a chunk and a blob in the bench's images: chunks of 36 KiB
// plain, 28 in a blob of 1 MiB plain and 430 KiB sealed, 76 blobs in a pack.
const (
	diskSize      = 64 << 30 // of each disk that does not really exist
	chunksOfBlock = 57
	blobSize      = 430 << 10
	blobChunks    = 28
	packBlobs     = 76
	packSize      = packBlobs*blobSize + 100_000
	indexPacks    = 32 // of an index object
)

func storage(dir string) string   { return filepath.Join(dir, "repository") }
func warmCache(dir string) string { return filepath.Join(dir, "cache") }

// open opens the repository of a job and counts the requests to the storage of that
// and of all later operations.
func open(ctx context.Context, dir, cache string) (*repo.Repository, *objecttest.Faulty, error) {
	s, err := local.Open(storage(dir))
	if err != nil {
		return nil, nil, err
	}
	counted := objecttest.NewFaulty(&phantoms{Store: s, file: phantomFile(dir)})
	r, err := repo.Open(ctx, counted, repo.Options{Secret: secret, CacheDir: cache})
	if err != nil {
		return nil, nil, err
	}
	return r, counted, r.LoadIndex(ctx)
}

func phantomFile(dir string) string { return filepath.Join(dir, "phantoms") }

// phantoms is a storage that also lists the packs that do not exist, whose names
// are in a file, 32 bytes each.
type phantoms struct {
	object.Store
	file string
}

func (p *phantoms) List(ctx context.Context, prefix string, fn func(object.Info) error) error {
	if err := p.Store.List(ctx, prefix, fn); err != nil || prefix != "packs/" {
		return err
	}
	names, err := os.ReadFile(p.file)
	if err != nil {
		return err
	}
	for ; len(names) >= 32; names = names[32:] {
		if err := fn(object.Info{Name: pack.ID(names[:32]).ObjectName(), Size: packSize, Modified: time.Unix(0, 0)}); err != nil {
			return err
		}
	}
	return nil
}

func counts(f *objecttest.Faulty) outcome {
	return outcome{Requests: f.Calls(objecttest.Any), Fetched: f.Bytes(objecttest.Get)}
}

// maker fills a repository with disks whose data packs do not exist.
type maker struct {
	r   *repo.Repository
	w   *chunkstore.Writer
	run chunkstore.RunID

	mu    sync.Mutex
	names []byte // of the packs that do not exist
}

// makeRepository creates disks of 64 GiB up to the requested size, backs up each
// one twice, and adds one disk that really exists.
func makeRepository(ctx context.Context, j job) (outcome, error) {
	s, err := local.Create(storage(j.Dir))
	if err != nil {
		return outcome{}, err
	}
	r, err := repo.Init(ctx, s, repo.Options{Secret: secret, CacheDir: warmCache(j.Dir)})
	if err != nil {
		return outcome{}, err
	}
	defer r.Close()
	if err := r.LoadIndex(ctx); err != nil {
		return outcome{}, err
	}
	m := &maker{r: r, run: chunkstore.RunID{1}}
	var snapshots []*repo.Snapshot
	err = r.Store().Write(ctx, chunkstore.WriterOptions{Run: m.run}, func(ctx context.Context, w *chunkstore.Writer) error {
		m.w = w
		g, gctx := errgroup.WithContext(ctx)
		g.SetLimit(2)
		disks := max(1, int(j.Bytes/diskSize))
		snapshots = make([]*repo.Snapshot, 2*disks)
		for i := range disks {
			g.Go(func() error {
				size := min(diskSize, j.Bytes) / disk.BlockSize * disk.BlockSize
				first, second, err := m.disk(gctx, uint64(i), size)
				if err != nil {
					return err
				}
				for day, root := range []chunk.ID{first, second} {
					snapshots[2*i+day] = &repo.Snapshot{
						Run: fmt.Sprintf("%032x", 1), Origin: "pool", Pool: repo.Named{UUID: "pool"}, VM: repo.Named{UUID: fmt.Sprint("vm", i), Name: fmt.Sprint("vm", i)},
						DataTime: time.Unix(int64(day)*86400, 0).UTC(), WrittenTime: time.Unix(int64(day)*86400, 0).UTC(), Complete: true,
						Disks: []repo.Disk{{Device: "xvda", VDI: fmt.Sprint("vdi", i), Size: size, Root: repo.HexID(root), Method: "full"}},
					}
				}
				return nil
			})
		}
		if err := g.Wait(); err != nil {
			return err
		}
		return w.Flush(ctx)
	})
	if err != nil {
		return outcome{}, err
	}
	if err := os.WriteFile(phantomFile(j.Dir), m.names, 0o644); err != nil {
		return outcome{}, err
	}
	for _, s := range snapshots {
		if err := r.PutSnapshot(ctx, s); err != nil {
			return outcome{}, err
		}
	}
	if err := realDisk(ctx, r, j.Disk); err != nil {
		return outcome{}, err
	}
	return outcome{Note: fmt.Sprintf("%d disks of %d GiB, 2 snapshots of each", len(snapshots)/2, min(diskSize, j.Bytes)>>30)}, nil
}

// disk puts the tree of a disk on two days: on the second one, one list in each
// node is different.
func (m *maker) disk(ctx context.Context, n uint64, size int64) (first, second chunk.ID, err error) {
	k, err := m.w.NewWorker()
	if err != nil {
		return first, second, err
	}
	defer k.Done()
	r := rand.NewChaCha8([32]byte{byte(n), byte(n >> 8), 1})
	packs := &fakePacks{m: m, r: r}
	days := [2]tree.Root{{Size: size}, {Size: size}}
	var list []byte
	put := func(kind chunk.Kind, p []byte) (chunk.ID, error) {
		id := k.Sum(kind, p)
		_, err := k.Put(kind, id, p)
		return id, err
	}
	for at := int64(0); at < disk.Blocks(size); at += tree.NodeBlocks {
		var node tree.Node
		for b := range min(tree.NodeBlocks, disk.Blocks(size)-at) {
			if list, err = packs.block(ctx, list[:0]); err != nil {
				return first, second, err
			}
			if node[b], err = put(chunk.List, list); err != nil {
				return first, second, err
			}
		}
		for day := range days {
			if day == 1 {
				if list, err = packs.block(ctx, list[:0]); err != nil {
					return first, second, err
				}
				if node[0], err = put(chunk.List, list); err != nil {
					return first, second, err
				}
			}
			id, err := put(chunk.Node, tree.AppendNode(nil, &node))
			if err != nil {
				return first, second, err
			}
			days[day].Nodes = append(days[day].Nodes, id)
		}
	}
	if err := packs.flush(ctx); err != nil {
		return first, second, err
	}
	if first, err = put(chunk.Root, tree.AppendRoot(nil, &days[0])); err != nil {
		return first, second, err
	}
	second, err = put(chunk.Root, tree.AppendRoot(nil, &days[1]))
	return first, second, err
}

// fakePacks are data packs of which only the index exists.
type fakePacks struct {
	m     *maker
	r     *rand.ChaCha8
	packs []index.PackEntries
}

// block invents the chunks of one block, all of them new, and appends its list.
func (f *fakePacks) block(ctx context.Context, list []byte) ([]byte, error) {
	pieces := make([]tree.Piece, chunksOfBlock)
	at := 0
	for i := range pieces {
		n := disk.BlockSize / chunksOfBlock
		if i == len(pieces)-1 {
			n = disk.BlockSize - at
		}
		pieces[i] = tree.Piece{Offset: at, Length: n}
		_, _ = f.r.Read(pieces[i].ID[:])
		at += n
		if err := f.add(ctx, pieces[i].ID); err != nil {
			return nil, err
		}
	}
	return tree.AppendList(list, pieces), nil
}

func (f *fakePacks) add(ctx context.Context, id chunk.ID) error {
	if len(f.packs) == 0 || len(f.packs[len(f.packs)-1].Entries) == packBlobs*blobChunks {
		if len(f.packs) == indexPacks {
			if err := f.flush(ctx); err != nil {
				return err
			}
		}
		p := index.PackEntries{Size: packSize}
		_, _ = f.r.Read(p.Pack[:])
		f.packs = append(f.packs, p)
	}
	p := &f.packs[len(f.packs)-1]
	p.Entries = append(p.Entries, index.Entry{Prefix: index.Prefix(id[:16]), Offset: uint32(4096 + len(p.Entries)/blobChunks*blobSize), Length: blobSize})
	return nil
}

func (f *fakePacks) flush(ctx context.Context) error {
	if len(f.packs) == 0 {
		return nil
	}
	f.m.mu.Lock()
	for i := range f.packs {
		f.m.names = append(f.m.names, f.packs[i].Pack[:]...)
	}
	f.m.mu.Unlock()
	err := f.m.r.Store().PutIndex(ctx, f.m.run, f.packs)
	f.packs = f.packs[:0]
	return err
}

// realDisk backs up a disk of texts that repeat a little.
func realDisk(ctx context.Context, r *repo.Repository, size int64) error {
	return backup.WithRun(ctx, r, backup.Options{Job: "scale", Machine: "scale", Process: "scale"}, func(ctx context.Context, run *backup.Run) error {
		res, err := run.BackupDisk(ctx, &textDisk{size: size, r: rand.New(rand.NewPCG(1, 2))}, backup.DiskOptions{Size: size})
		if err != nil {
			return err
		}
		run.Add(&repo.Snapshot{
			Origin: "pool", Pool: repo.Named{UUID: "pool"}, VM: repo.Named{UUID: "real", Name: "real"}, DataTime: time.Unix(200_000, 0).UTC(), Complete: true,
			Disks: []repo.Disk{{Device: "xvda", VDI: "real", Size: size, Root: repo.HexID(res.Root), Method: "full"}},
		})
		return run.Flush(ctx)
	})
}

// textDisk is a disk whose pages are 256 random bytes, sixteen times.
type textDisk struct {
	size, at int64
	r        *rand.Rand
}

func (d *textDisk) Size() int64 { return d.size }

func (d *textDisk) Next(ctx context.Context, buf []byte) (disk.Extent, error) {
	if d.at == d.size {
		return disk.Extent{}, io.EOF
	}
	e := disk.Extent{Offset: d.at, Length: min(disk.BlockSize, d.size-d.at)}
	for at := 0; at < int(e.Length); at += disk.PageSize {
		page := buf[at:min(at+disk.PageSize, int(e.Length))]
		for i := 0; i < min(256, len(page)); i += 8 {
			binary.LittleEndian.PutUint64(page[i:], d.r.Uint64())
		}
		for n := 256; n < len(page); n *= 2 {
			copy(page[n:], page[:n])
		}
	}
	d.at = e.End()
	return e, ctx.Err()
}
