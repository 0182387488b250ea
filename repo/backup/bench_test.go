package backup_test

import (
	"bytes"
	"context"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"xenkeep/chunkstore/chunk"
	"xenkeep/chunkstore/object"
	"xenkeep/chunkstore/object/mem"
	"xenkeep/chunkstore/seal"
	"xenkeep/internal/disk"
	"xenkeep/repo"
	"xenkeep/repo/backup"
	"xenkeep/repo/repotest"
	"xenkeep/repo/restore"
)

const benchSize = 128 << 20

// realFiles returns benchSize bytes of this machine's programs and libraries or, if
// there are too few, of text and noise that compress about as well.
func realFiles(b *testing.B) []byte {
	b.Helper()
	all := make([]byte, 0, benchSize)
	for _, dir := range []string{"/usr/lib", "/usr/share", "/usr/bin"} {
		_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return nil //nolint:nilerr // what cannot be read is passed over
			}
			if len(all) >= benchSize {
				return fs.SkipAll
			}
			p, err := os.ReadFile(path)
			if err == nil && len(p) > 4096 && len(p) < 16<<20 {
				all = append(all, p[:min(len(p), benchSize-len(all))]...)
			}
			return nil
		})
	}
	src := rand.NewChaCha8([32]byte{})
	for len(all) < benchSize {
		p := make([]byte, 64<<10)
		_, _ = src.Read(p[:len(p)/2])
		all = append(all, p[:min(len(p), benchSize-len(all))]...)
	}
	return all
}

func noiseBytes() []byte {
	p := make([]byte, benchSize)
	_, _ = rand.NewChaCha8([32]byte{}).Read(p)
	return p
}

// bytesSource is a disk whose content is a byte slice.
type bytesSource struct{ r *bytes.Reader }

func (s *bytesSource) Size() int64 { return s.r.Size() }

func (s *bytesSource) Next(_ context.Context, buf []byte) (disk.Extent, error) {
	at := s.r.Size() - int64(s.r.Len())
	n, err := io.ReadFull(s.r, buf[:disk.BlockSize])
	if n > 0 {
		return disk.Extent{Offset: at, Length: int64(n)}, nil
	}
	return disk.Extent{}, err
}

// discard drops data packs and keeps everything else, so that a benchmark needs no
// memory for them.
type discard struct{ object.Store }

func (d discard) Put(ctx context.Context, name string, data []byte) error {
	if len(data) > 3<<20 {
		return nil
	}
	return d.Store.Put(ctx, name, data)
}

func cpu() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// perCPU reports the bytes that fn processes for each second of CPU time.
func perCPU(b *testing.B, n int64, fn func()) {
	b.SetBytes(n)
	b.ReportAllocs()
	before := cpu()
	for b.Loop() {
		fn()
	}
	b.ReportMetric(float64(n)*float64(b.N)/1e6/(cpu()-before).Seconds(), "MB/cpu-s")
}

func write(b *testing.B, r *repo.Repository, p []byte, base chunk.ID, level seal.Level) backup.DiskResult {
	b.Helper()
	var res backup.DiskResult
	o := backup.Options{Level: level}
	if !base.IsZero() {
		o.Roots = []chunk.ID{base}
	}
	err := backup.WithRun(b.Context(), r, o, func(ctx context.Context, run *backup.Run) error {
		var err error
		if res, err = run.BackupDisk(ctx, &bytesSource{bytes.NewReader(p)}, backup.DiskOptions{Size: int64(len(p)), Base: base}); err != nil {
			return err
		}
		return run.Flush(ctx)
	})
	if err != nil {
		b.Fatal(err)
	}
	return res
}

func BenchmarkNewData(b *testing.B) {
	for _, data := range []struct {
		name  string
		bytes []byte
	}{{"files", realFiles(b)}, {"noise", noiseBytes()}} {
		for _, level := range []struct {
			name string
			seal.Level
		}{{"default", seal.LevelDefault}, {"fastest", seal.LevelFastest}} {
			b.Run(data.name+"/"+level.name, func(b *testing.B) {
				var stored int64
				perCPU(b, int64(len(data.bytes)), func() {
					stored = write(b, repotest.Init(b, discard{mem.New()}), data.bytes, chunk.ID{}, level.Level).Counts.Stored
				})
				b.ReportMetric(100*float64(stored)/float64(len(data.bytes)), "%stored")
			})
		}
	}
}

func BenchmarkKnownData(b *testing.B) {
	p := realFiles(b)
	r := repotest.Init(b, mem.New())
	root := write(b, r, p, chunk.ID{}, seal.LevelFastest).Root
	for name, base := range map[string]chunk.ID{"base": root, "no base": {}} {
		b.Run(name, func(b *testing.B) {
			perCPU(b, int64(len(p)), func() {
				if n := write(b, r, p, base, seal.LevelFastest).Counts.New; n != 0 {
					b.Fatalf("%d new bytes", n)
				}
			})
		})
	}
}

type nowhere struct{}

func (nowhere) WriteAt(context.Context, []byte, int64) error { return nil }

func BenchmarkRestore(b *testing.B) {
	p := realFiles(b)
	r := repotest.Init(b, mem.New())
	root := write(b, r, p, chunk.ID{}, seal.LevelDefault).Root
	perCPU(b, int64(len(p)), func() {
		im, err := restore.Open(b.Context(), r, root)
		if err == nil {
			_, err = im.Run(b.Context(), nowhere{}, restore.Options{})
		}
		if err != nil {
			b.Fatal(err)
		}
	})
}
