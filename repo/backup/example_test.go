package backup_test

import (
	"bytes"
	"context"
	"fmt"
	"log"
	"time"

	"xenkeep/chunkstore/chunk"
	"xenkeep/chunkstore/object/mem"
	"xenkeep/chunkstore/slot"
	"xenkeep/internal/disk/disktest"
	"xenkeep/repo"
	"xenkeep/repo/backup"
)

// Back up a disk. Any disk.Source can be stored; this one is in memory. A second
// backup of the same bytes, with the first as its base, stores no chunk again.
func ExampleRun_BackupDisk() {
	ctx := context.Background()
	secret := slot.Secret{KeyFile: bytes.Repeat([]byte{7}, 32)}
	r, err := repo.Init(ctx, mem.New(), repo.Options{Secret: secret})
	if err != nil {
		log.Fatal(err)
	}
	defer r.Close()
	if err := r.LoadIndex(ctx); err != nil {
		log.Fatal(err)
	}

	m := disktest.NewMem(8 << 20)
	if err := m.WriteAt(ctx, bytes.Repeat([]byte("hello disk "), 6000), 3<<20); err != nil {
		log.Fatal(err)
	}
	var base backup.DiskResult
	var claimed []chunk.ID // the roots that the run builds on: prune keeps them
	for day := 15; day <= 16; day++ {
		err = backup.WithRun(ctx, r, backup.Options{Job: "nightly", Roots: claimed}, func(ctx context.Context, run *backup.Run) error {
			d, err := run.BackupDisk(ctx, m.Source(), backup.DiskOptions{Size: m.Size(), Base: base.Root})
			if err != nil {
				return err
			}
			run.Add(&repo.Snapshot{
				Origin:   "image",
				VM:       repo.Named{UUID: "5f0c3a8e-1111-4222-8333-944445555666", Name: "web"},
				DataTime: time.Date(2026, 3, day, 2, 0, 0, 0, time.UTC),
				Complete: true,
				Disks:    []repo.Disk{{Device: "xvda", Size: m.Size(), Root: repo.HexID(d.Root), Method: "full", Counts: d.Counts}},
			})
			fmt.Println("March", day, "same tree as before:", d.Root == base.Root, "- new bytes:", d.Counts.New)
			base, claimed = d, []chunk.ID{d.Root}
			return run.Flush(ctx) // packs, index, references, then the snapshot
		})
		if err != nil {
			log.Fatal(err)
		}
	}
	// Output:
	// March 15 same tree as before: false - new bytes: 69632
	// March 16 same tree as before: true - new bytes: 0
}
