package prune_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"testing"
	"time"

	"xenkeep/chunkstore/chunk"
	"xenkeep/chunkstore/object/local"
	"xenkeep/internal/disk/disktest"
	"xenkeep/repo"
	"xenkeep/repo/backup"
	"xenkeep/repo/prune"
	"xenkeep/repo/repotest"
)

const togetherDir, togetherRole = "XENKEEP_TEST_TOGETHER", "XENKEEP_TEST_TOGETHER_ROLE"

// hurried returns a clock on which a second of real time is a day, the same in all
// processes, so that packs that wait a day are deleted while the others run.
func hurried(started time.Time) func() time.Time {
	return func() time.Time { return started.Add(time.Since(started) * 60 * 60 * 24) }
}

// TestTogetherChild is one of the processes of TestTogether.
func TestTogetherChild(t *testing.T) {
	dir := os.Getenv(togetherDir)
	if dir == "" {
		return // skipped when run as an ordinary test
	}
	role, err := strconv.Atoi(os.Getenv(togetherRole))
	if err != nil {
		t.Fatal(err)
	}
	objects, err := local.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(dir + "/config")
	if err != nil {
		t.Fatal(err)
	}
	now := hurried(info.ModTime())
	for round := range uint64(together()) {
		if role == 0 {
			p, err := open(t, objects)
			if err != nil {
				t.Fatal(err)
			}
			plan, err := prune.New(t.Context(), p, prune.Options{MaxRepack: 1 << 30, Now: now})
			if err == nil {
				var res *prune.Result
				res, err = plan.Execute(t.Context())
				fmt.Printf("round %d: %+v\n", round, *res)
			}
			if err != nil && !errors.Is(err, prune.ErrStale) {
				t.Fatalf("prune, round %d: %v", round, err)
			}
			continue
		}
		vm := fmt.Sprint("vm ", role)
		r, err := open(t, objects)
		if err != nil {
			t.Fatal(err)
		}
		all, bad, err := r.Snapshots(t.Context())
		if err != nil || len(bad) > 0 {
			t.Fatal(bad, err)
		}
		var mine []*repo.Snapshot
		for _, s := range all {
			if s.VM.UUID == vm {
				mine = append(mine, s)
			}
		}
		var roots []chunk.ID
		if len(mine) > 0 {
			roots = []chunk.ID{chunk.ID(mine[len(mine)-1].Disks[0].Root)}
		}
		c := repotest.ClockAt(now())
		// The content changes and returns, and the three share some of it.
		_, err = save(t.Context(), r, c, disktest.Content(round%4, uint64(role)+round%2*10, 99), vm, roots...)
		if err != nil && !errors.Is(err, backup.ErrRetired) && !errors.Is(err, backup.ErrClaimLeft) {
			t.Fatalf("%s, round %d: %v", vm, round, err)
		}
		for len(mine) > 1 {
			if err := r.DeleteSnapshot(t.Context(), mine[0]); err != nil {
				t.Fatal(err)
			}
			mine = mine[1:]
		}
	}
}

func open(t *testing.T, objects *local.Store) (*repo.Repository, error) {
	t.Helper()
	return repotest.TryOpen(context.WithoutCancel(t.Context()), objects, repo.Options{})
}

// together returns the number of rounds of each process;
// XENKEEP_TEST_TOGETHER_ROUNDS sets another number.
func together() int {
	if n, err := strconv.Atoi(os.Getenv("XENKEEP_TEST_TOGETHER_ROUNDS")); err == nil {
		return n
	}
	return 25
}

// Four processes use one repository, one of them prunes, and nothing synchronizes
// them: none fails, and no published data is lost.
func TestTogether(t *testing.T) {
	if testing.Short() {
		t.Skip("SKIP: four processes")
	}
	dir := t.TempDir() + "/repo"
	objects, err := local.Create(dir)
	if err != nil {
		t.Fatal(err)
	}
	repotest.Init(t, objects)
	ctx, cancel := context.WithTimeout(t.Context(), time.Duration(together())*30*time.Second)
	defer cancel()
	var over sync.WaitGroup
	for role := range 4 {
		over.Go(func() {
			cmd := exec.CommandContext(ctx, os.Args[0], "-test.run=^TestTogetherChild$")
			cmd.Env = append(os.Environ(), togetherDir+"="+dir, togetherRole+"="+strconv.Itoa(role))
			var out bytes.Buffer
			cmd.Stdout, cmd.Stderr = &out, &out
			if err := cmd.Run(); err != nil {
				t.Errorf("process %d: %v\n%s", role, err, out.Bytes())
			}
			if role == 0 {
				t.Logf("%s", out.Bytes())
			}
		})
	}
	over.Wait()
	if err := sound(t.Context(), objects); err != nil {
		t.Error(err)
	}
	r, err := repotest.TryOpen(t.Context(), objects, repo.Options{})
	if err != nil {
		t.Fatal(err)
	}
	all, _, err := r.Snapshots(t.Context())
	if err != nil || len(all) < 3 {
		t.Errorf("%d snapshots, %v", len(all), err)
	}
	claims, _, err := r.Claims(t.Context())
	if err != nil || len(claims) > 0 {
		t.Errorf("%d claims are left, %v", len(claims), err)
	}
}
