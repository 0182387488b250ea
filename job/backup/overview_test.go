package backup_test

import (
	"context"
	"errors"
	"maps"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"xenkeep/job"
	"xenkeep/job/backup"
	"xenkeep/job/jobtest"
	"xenkeep/xapi/xapisim"
)

// follower records the reports of a run about its VMs.
type follower struct {
	mu       sync.Mutex
	expected map[string]int64
	begun    map[string]int64
	disks    map[string]int64
	ended    []string
}

func (f *follower) Begin(string, int64) job.Meter { return f }

func (f *follower) Add(int64) {}

func (f *follower) Done() {}

func (f *follower) Expect(sizes map[string]int64) { f.expected = maps.Clone(sizes) }

func (f *follower) BeginVM(vm string, size int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.begun[vm] = size
}

func (f *follower) BeginDisk(vm, _ string, size, _ int64) job.Meter {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.disks[vm] += size
	return f
}

func (f *follower) EndVM(vm string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ended = append(f.ended, vm)
}

// Row N21 of the fault list: a run reports the number of its VMs, the size of each,
// and the end of each, whether it was saved or not, so that the total progress can be
// shown.
func TestOverview(t *testing.T) {
	dir := t.TempDir()
	cfg := xapisim.Config{VMs: []xapisim.VMConfig{
		{Name: "a", Disks: []string{jobtest.Image(t, filepath.Join(dir, "1"), 4*jobtest.MiB, 1, 6), jobtest.Image(t, filepath.Join(dir, "2"), 8*jobtest.MiB, 2, 6)}},
		{Name: "b", Disks: []string{jobtest.Image(t, filepath.Join(dir, "3"), 4*jobtest.MiB, 3, 6)}},
	}}
	w := jobtest.New(t, cfg)
	uuid := make(map[string]string)
	for _, vm := range w.Sim.Ready().VMs {
		uuid[vm.Name] = vm.UUID
	}
	f := &follower{begun: map[string]int64{}, disks: map[string]int64{}}
	o := w.Options()
	o.All, o.Progress = true, f
	o.VMBefore = func(_ context.Context, name, _ string) error {
		if name == "b" {
			return job.ErrHook
		}
		return nil
	}
	sum, err := backup.Run(t.Context(), w.Repo, w.Pool, o)
	if !errors.Is(err, job.ErrPartial) || len(sum.Snapshots) != 1 {
		t.Fatalf("%v %+v", err, sum)
	}
	if len(f.expected) != 2 || f.begun[uuid["a"]] != 12*jobtest.MiB || f.disks[uuid["a"]] != 12*jobtest.MiB || len(f.begun) != 1 {
		t.Errorf("%+v", f)
	}
	slices.Sort(f.ended)
	if want := slices.Sorted(maps.Values(uuid)); !slices.Equal(f.ended, want) {
		t.Errorf("ended %v, want %v", f.ended, want)
	}
	o.All, o.VMBefore, o.Selected = false, nil, []backup.VMRequest{{UUID: uuid["b"], Name: "b", Size: 4 * jobtest.MiB}}
	if _, err := backup.Run(t.Context(), w.Repo, w.Pool, o); err != nil || f.expected[uuid["b"]] != 4*jobtest.MiB || len(f.expected) != 1 {
		t.Errorf("%v %+v", err, f)
	}
}
