package backup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"xenkeep/chunkstore/chunk"
	"xenkeep/job/transfer"
	"xenkeep/repo"
	"xenkeep/repo/backup"
)

// databaseDevice is the device name of the disk that holds the dump.
const databaseDevice = "database"

// errEmptyDump is returned for a dump without rows.
var errEmptyDump = errors.New("the pool sent a dump without content, as in the middle of a rolling upgrade")

// lastDatabase returns the newest snapshot of a pool's database, or nil.
func lastDatabase(all []*repo.Snapshot, pool string) *repo.Snapshot {
	return repo.Latest(all, func(s *repo.Snapshot) bool {
		return s.Origin == repo.OriginDatabase && s.Pool.UUID == pool && len(s.Disks) == 1
	})
}

// saveDatabase stores the pool's database as a snapshot of its own. The length of the
// dump is known only at its end, and so the dump is first written to an unlinked
// temporary file, which no other process can open. It is chunked and deduplicated like
// a disk.
func (b *poolBackup) saveDatabase(ctx context.Context, run *backup.Run) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("the pool's database: %w", err)
		}
	}()
	began := b.o.Now()
	f, err := os.CreateTemp("", "xenkeep-")
	if err != nil {
		return err
	}
	defer f.Close()
	if err := os.Remove(f.Name()); err != nil {
		return err
	}
	w := &rowFinder{w: f}
	if err := b.pool.ExportDatabase(ctx, w); err != nil {
		return err
	}
	if !w.found {
		return errEmptyDump
	}
	pool, err := b.pool.Pool(ctx)
	if err != nil {
		return err
	}
	var base chunk.ID
	if last := lastDatabase(b.all, pool.UUID); last != nil {
		base = chunk.ID(last.Disks[0].Root)
	}
	d, err := run.BackupDisk(ctx, &transfer.RawFile{F: f, Bytes: w.n}, backup.DiskOptions{Size: w.n, Base: base})
	if err != nil {
		return err
	}
	name := repo.Named{UUID: pool.UUID, Name: pool.NameLabel}
	if name.Name == "" {
		name.Name = pool.UUID
	}
	b.dump = &repo.Snapshot{
		Origin: repo.OriginDatabase, Pool: name, VM: repo.Named{UUID: "database:" + pool.UUID, Name: "pool database of " + name.Name},
		Tags: b.o.Tags, DataTime: began.UTC(), Complete: true,
		Disks: []repo.Disk{{
			Device: databaseDevice, Size: w.n, Root: repo.HexID(d.Root), Method: "full", Reason: "database dump", Counts: d.Counts,
		}},
	}
	run.Add(b.dump)
	return nil
}

// rowFinder writes a dump through to w and finds out whether it contains a row of a
// table: the dump of a rolling upgrade has tables without rows (xen-api
// ocaml/xapi/pool_db_backup.ml).
type rowFinder struct {
	w     io.Writer
	n     int64
	tail  []byte
	found bool
}

func (r *rowFinder) Write(p []byte) (int, error) {
	mark := []byte("<row ")
	if !r.found {
		r.tail = append(r.tail, p[:min(len(p), len(mark))]...)
		r.found = bytes.Contains(r.tail, mark) || bytes.Contains(p, mark)
		if len(p) > len(mark) {
			r.tail = append(r.tail[:0], p[len(p)-len(mark):]...)
		}
		r.tail = r.tail[max(0, len(r.tail)-len(mark)):]
	}
	n, err := r.w.Write(p)
	r.n += int64(n)
	return n, err
}
