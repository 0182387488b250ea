package tree_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"syscall"
	"testing"
	"time"

	"xenkeep/chunkstore"
	"xenkeep/chunkstore/chunk"
	"xenkeep/chunkstore/object/mem"
	"xenkeep/chunkstore/seal"
	"xenkeep/internal/disk"
	"xenkeep/repo"
	"xenkeep/repo/backup"
	"xenkeep/repo/check"
	"xenkeep/repo/copy"
	"xenkeep/repo/diff"
	"xenkeep/repo/prune"
	"xenkeep/repo/repotest"
	"xenkeep/repo/restore"
	"xenkeep/repo/stats"
	"xenkeep/repo/tree"
	"xenkeep/repo/view"
)

// library is a repository of three disks whose blocks are made of the same chunks
// of 32 KiB, so that trees are large and data is small.
type library struct {
	r          *repo.Repository
	w          *chunkstore.Worker
	random     *rand.Rand
	pool       []chunk.ID
	snap, last *repo.Snapshot // of a large disk, on two days
	small      *repo.Snapshot // of a disk of 512 MiB
}

const (
	pieceSize = 32 << 10
	largeDisk = 16 << 30
	smallDisk = 512 << 20
)

func newLibrary(b *testing.B) *library {
	b.Helper()
	l := &library{r: repotest.Init(b, mem.New()), random: rand.New(rand.NewPCG(1, 2))}
	err := l.r.Store().Write(b.Context(), chunkstore.WriterOptions{Run: chunkstore.RunID{1}}, func(ctx context.Context, w *chunkstore.Writer) (err error) {
		if l.w, err = w.NewWorker(); err != nil {
			return err
		}
		noise := rand.NewChaCha8([32]byte{3})
		for range 2000 {
			p := make([]byte, pieceSize)
			_, _ = noise.Read(p)
			id, err := l.put(chunk.Data, p)
			if err != nil {
				return err
			}
			l.pool = append(l.pool, id)
		}
		var first, second, small chunk.ID
		if first, second, err = l.disk(largeDisk); err == nil {
			small, _, err = l.disk(smallDisk)
		}
		if err != nil {
			return err
		}
		l.w.Done()
		l.snap, l.last, l.small = snapshot(first, largeDisk, 1), snapshot(second, largeDisk, 2), snapshot(small, smallDisk, 1)
		return w.Flush(ctx)
	})
	for _, s := range []*repo.Snapshot{l.snap, l.last, l.small} {
		if err == nil {
			err = l.r.PutSnapshot(b.Context(), s)
		}
	}
	if err == nil {
		err = l.r.LoadIndex(b.Context())
	}
	if err != nil {
		b.Fatal(err)
	}
	return l
}

func snapshot(root chunk.ID, size int64, day int64) *repo.Snapshot {
	at := time.Unix(day*86400, 0).UTC()
	return &repo.Snapshot{
		Run: fmt.Sprintf("%032x", 1), Origin: "image", VM: repo.Named{UUID: fmt.Sprint(size), Name: fmt.Sprint(size)}, DataTime: at, WrittenTime: at, Complete: true,
		Disks: []repo.Disk{{Device: "xvda", VDI: "vdi", Size: size, Root: repo.HexID(root), Method: "full"}},
	}
}

func (l *library) put(kind chunk.Kind, p []byte) (chunk.ID, error) {
	id := l.w.Sum(kind, p)
	_, err := l.w.Put(kind, id, p)
	return id, err
}

// disk creates a disk, and a copy of it with every tenth block changed. Each tenth
// piece is zeros.
func (l *library) disk(size int64) (first, second chunk.ID, err error) {
	list := func() (chunk.ID, error) {
		pieces := make([]tree.Piece, disk.BlockSize/pieceSize)
		for i := range pieces {
			pieces[i] = tree.Piece{Offset: i * pieceSize, Length: pieceSize, ID: l.pool[l.random.IntN(len(l.pool))]}
			if i%10 == 9 {
				pieces[i].ID = chunk.ID{}
			}
		}
		return l.put(chunk.List, tree.AppendList(nil, pieces))
	}
	days := [2]tree.Root{{Size: size}, {Size: size}}
	for at := int64(0); at < disk.Blocks(size); at += tree.NodeBlocks {
		var node tree.Node
		for day := range days {
			for b := range min(tree.NodeBlocks, disk.Blocks(size)-at) {
				if day == 0 || b%10 == 0 {
					if node[b], err = list(); err != nil {
						return first, second, err
					}
				}
			}
			id, err := l.put(chunk.Node, tree.AppendNode(nil, &node))
			if err != nil {
				return first, second, err
			}
			days[day].Nodes = append(days[day].Nodes, id)
		}
	}
	if first, err = l.put(chunk.Root, tree.AppendRoot(nil, &days[0])); err == nil {
		second, err = l.put(chunk.Root, tree.AppendRoot(nil, &days[1]))
	}
	return first, second, err
}

func cpu() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func root(s *repo.Snapshot) chunk.ID { return chunk.ID(s.Disks[0].Root) }

type nowhere struct{}

func (nowhere) WriteAt(context.Context, []byte, int64) error { return nil }

// patches is a disk of which only changed ranges are read: every read of the same
// range returns the same bytes.
type patches struct{ size int64 }

func (p patches) Size() int64 { return p.size }

func (p patches) ReadAt(_ context.Context, b []byte, off int64) error {
	_, _ = rand.NewChaCha8([32]byte{byte(off >> 16), byte(off >> 24), byte(off >> 32), 1}).Read(b)
	return nil
}

// BenchmarkEngines measures each engine that walks trees. cpu-ms/op is the CPU
// time of all its goroutines.
func BenchmarkEngines(b *testing.B) {
	l := newLibrary(b)
	run := func(name string, fn func(ctx context.Context) error) {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			before := cpu()
			for b.Loop() {
				if err := fn(b.Context()); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(cpu()-before)/1e6/float64(b.N), "cpu-ms/op")
		})
	}
	run("walk", func(ctx context.Context) error {
		n := 0
		err := tree.Chunks(ctx, l.r.Store(), root(l.snap), func(p tree.Piece, _ int64) error { n += p.Length; return nil })
		if err == nil && n == 0 {
			err = fmt.Errorf("no chunks")
		}
		return err
	})
	run("prune", func(ctx context.Context) error {
		_, err := prune.New(ctx, l.r, prune.Options{})
		return err
	})
	run("check", func(ctx context.Context) error { return clean(check.Run(ctx, l.r, check.Options{})) })
	run("checkdata", func(ctx context.Context) error {
		return clean(check.Run(ctx, l.r, check.Options{ReadData: true, Snapshots: []*repo.Snapshot{l.small}}))
	})
	run("stats", func(ctx context.Context) error {
		_, err := stats.Measure(ctx, l.r, []*repo.Snapshot{l.snap, l.last, l.small})
		return err
	})
	run("diff", func(ctx context.Context) error {
		return diff.Ranges(ctx, l.r, root(l.snap), root(l.last), func(diff.Range) error { return nil })
	})
	run("restore", func(ctx context.Context) error {
		im, err := restore.Open(ctx, l.r, root(l.small))
		if err == nil {
			_, err = im.Run(ctx, nowhere{}, restore.Options{})
		}
		return err
	})
	run("view", func(ctx context.Context) error {
		v := view.New(l.r, view.Options{})
		defer v.Close()
		d, err := v.Open(ctx, root(l.small))
		p := make([]byte, 128<<10)
		for off := int64(0); err == nil && off < d.Size(); off += int64(len(p)) {
			err = d.ReadAt(ctx, p, off)
		}
		return err
	})
	run("copy", func(ctx context.Context) error {
		to, err := repo.Init(ctx, mem.New(), repo.Options{Secret: repotest.Key(6)})
		if err != nil {
			return err
		}
		p, err := copy.New(ctx, l.r, to, copy.Options{Level: seal.LevelFastest, Pick: func(s *repo.Snapshot) bool { return s.VM.UUID == l.small.VM.UUID }})
		if err == nil {
			_, err = p.Execute(ctx)
		}
		return err
	})
	changed := func(ctx context.Context) error {
		o := backup.ChangedOptions{Size: largeDisk, Base: root(l.snap)}
		for at := int64(0); at < largeDisk; at += 40 << 20 {
			o.Changed = append(o.Changed, disk.Extent{Offset: at, Length: 64 << 10})
		}
		return backup.WithRun(ctx, l.r, backup.Options{Roots: []chunk.ID{o.Base}}, func(ctx context.Context, run *backup.Run) error {
			if _, err := run.BackupChanged(ctx, patches{largeDisk}, o); err != nil {
				return err
			}
			return run.Flush(ctx)
		})
	}
	if err := changed(b.Context()); err != nil { // the new data is stored once
		b.Fatal(err)
	}
	run("changed", changed)
}

func clean(rep *check.Report, err error) error {
	if err == nil && len(rep.Findings) > 0 {
		err = fmt.Errorf("%v", rep.Findings[0])
	}
	return err
}
