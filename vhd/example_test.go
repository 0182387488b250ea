package vhd_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"

	"xenkeep/internal/disk"
	"xenkeep/vhd"
)

// Read a VHD as a pool sends it: sequentially, without seeking. Blocks that are
// not present in the VHD are not returned.
func ExampleNewReader() {
	ctx := context.Background()
	stream := exampleVHD(ctx)

	r, err := vhd.NewReader(stream, vhd.Options{})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("disk of", r.Size()>>20, "MiB, differencing:", r.IsDelta())
	buf := make([]byte, disk.BlockSize)
	for {
		e, err := r.Next(ctx, buf)
		if errors.Is(err, io.EOF) {
			break // only after the stream is proved to be complete
		}
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("%d bytes at %d: %s\n", e.Length, e.Offset, bytes.TrimRight(buf[:e.Length], "\x00"))
	}
	// Output:
	// disk of 64 MiB, differencing: false
	// 2097152 bytes at 10485760: the sixth block
	// 2097152 bytes at 41943040: the last one
}

// exampleVHD writes a dynamic VHD that holds two blocks of a disk of 64 MiB.
func exampleVHD(ctx context.Context) io.Reader {
	var b bytes.Buffer
	w, err := vhd.NewWriter(&b, vhd.Layout{
		Size:    64 << 20,
		Present: func(block int64) bool { return block == 5 || block == 20 },
	})
	if err != nil {
		log.Fatal(err)
	}
	if err := w.WriteAt(ctx, []byte("the sixth block"), 5*disk.BlockSize); err != nil {
		log.Fatal(err)
	}
	if err := w.WriteAt(ctx, []byte("the last one"), 20*disk.BlockSize); err != nil {
		log.Fatal(err)
	}
	if err := w.Close(); err != nil {
		log.Fatal(err)
	}
	return &b
}
