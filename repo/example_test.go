package repo_test

import (
	"bytes"
	"context"
	"fmt"
	"log"
	"time"

	"xenkeep/chunkstore/object/mem"
	"xenkeep/chunkstore/slot"
	"xenkeep/repo"
)

// Open a repository and list its snapshots. The storage here is in memory;
// package chunkstore/object/all opens folders and S3 buckets by their location.
func ExampleOpen() {
	ctx := context.Background()
	objects := mem.New()
	secret := slot.Secret{KeyFile: bytes.Repeat([]byte{7}, 32)}
	makeExampleRepository(ctx, objects, secret)

	r, err := repo.Open(ctx, objects, repo.Options{Secret: secret})
	if err != nil {
		log.Fatal(err)
	}
	defer r.Close()
	snapshots, problems, err := r.Snapshots(ctx)
	if err != nil {
		log.Fatal(err)
	}
	for _, p := range problems { // objects that cannot be read
		fmt.Println(p.Object, p.Err)
	}
	for _, s := range snapshots {
		fmt.Println(s.DataTime.Format(time.DateTime), s.VM.Name, len(s.Disks), "disks")
	}
	// Output:
	// 2026-03-15 02:00:00 web 0 disks
	// 2026-03-16 02:00:00 web 0 disks
}

// makeExampleRepository makes a repository with two snapshots of a VM without
// disks. Package repo/backup shows how disks are stored.
func makeExampleRepository(ctx context.Context, objects *mem.Store, secret slot.Secret) {
	r, err := repo.Init(ctx, objects, repo.Options{Secret: secret})
	if err != nil {
		log.Fatal(err)
	}
	defer r.Close()
	for day := 15; day <= 16; day++ {
		s := &repo.Snapshot{
			Origin:   "image",
			VM:       repo.Named{UUID: "5f0c3a8e-1111-4222-8333-944445555666", Name: "web"},
			DataTime: time.Date(2026, 3, day, 2, 0, 0, 0, time.UTC),
			Complete: true,
		}
		if err := r.PutSnapshot(ctx, s); err != nil {
			log.Fatal(err)
		}
	}
}
