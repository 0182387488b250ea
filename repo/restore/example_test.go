package restore_test

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
	"xenkeep/repo/repotest"
	"xenkeep/repo/restore"
)

// Restore a disk of a snapshot into a disk.Sink; this one is in memory.
func ExampleImage_Run() {
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
	original := disktest.NewMem(8 << 20)
	if err := original.WriteAt(ctx, []byte("hello disk"), 3<<20); err != nil {
		log.Fatal(err)
	}
	now := func() time.Time { return time.Date(2026, 3, 15, 2, 0, 0, 0, time.UTC) }
	s, err := repotest.Save(ctx, r, "web", original.Source(), backup.DiskOptions{Size: original.Size()}, backup.Options{Now: now})
	if err != nil {
		log.Fatal(err)
	}

	d, err := s.Disk("xvda")
	if err != nil {
		log.Fatal(err)
	}
	image, err := restore.Open(ctx, r, chunk.ID(d.Root))
	if err != nil {
		log.Fatal(err)
	}
	target := disktest.NewMem(image.Size()) // it reads as zeros, so zeros need not be written
	if _, err := image.Run(ctx, target, restore.Options{Zeros: false}); err != nil {
		log.Fatal(err)
	}
	p := make([]byte, 10)
	if _, err := target.ReadAt(p, 3<<20); err != nil {
		log.Fatal(err)
	}
	fmt.Println(image.Size(), "bytes,", image.Blocks(), "block with data")
	fmt.Printf("%s\n", p)
	// Output:
	// 8388608 bytes, 1 block with data
	// hello disk
}
