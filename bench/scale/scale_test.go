package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

func TestMain(m *testing.M) {
	if text := os.Getenv(childEnv); text != "" {
		if err := child(context.Background(), text); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// With more than twice the data in a repository, no operation needs more memory.
// Opening it for the first time may need as much as one portion of the index needs.
func TestMemoryDoesNotGrow(t *testing.T) {
	const slack = 48 << 20 // variation caused by the garbage collector
	sizes := []int64{40 << 30, 100 << 30}
	first := make(map[string]int64)
	for i, size := range sizes {
		dir := filepath.Join(t.TempDir(), fmt.Sprint(i))
		for _, op := range []string{"make", "open, cold", "open, cached", "lookups, known", "lookups, unknown", "incremental", "prune plan", "check", "restore, cold"} {
			r, err := measured(t.Context(), fmt.Sprint(size>>30, " GiB"), job{Op: op, Dir: dir, Bytes: size, Disk: 64 << 20})
			if err != nil {
				t.Fatal(err)
			}
			if op == "make" {
				continue
			}
			if r.Anon > memoryTarget {
				t.Errorf("%d GiB, %s: %d MiB of memory", size>>30, op, r.Anon>>20)
			}
			if i == 0 {
				first[op] = r.Anon
			} else if r.Anon > first[op]+slack {
				t.Errorf("%s: %d MiB of memory for %d GiB, %d MiB for %d GiB", op, first[op]>>20, sizes[0]>>30, r.Anon>>20, size>>30)
			}
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
	}
}

// Many snapshots are read in few requests.
func TestSnapshotRequests(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "r")
	for _, op := range []string{"make snapshots", "snapshots, cold"} {
		r, err := measured(t.Context(), "2000", job{Op: op, Dir: dir, Snapshots: 2000})
		if err != nil {
			t.Fatal(err)
		}
		if op != "make snapshots" && r.Outcome.Requests > 40 {
			t.Errorf("%s: %d requests", op, r.Outcome.Requests)
		}
	}
}
