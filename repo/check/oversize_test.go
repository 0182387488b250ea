package check_test

import (
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"xenkeep/chunkstore/object/local"
	"xenkeep/internal/disk/disktest"
	"xenkeep/repo/check"
	"xenkeep/repo/repotest"
)

// Row S8 of the fault list: a sparse file of 4 GiB in place of an object, which
// anyone who can write to the storage can create, is named by check, is read by
// nothing, and does not prevent opening, listing and restoring.
func TestOversizeObjects(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "r")
	store, err := local.Create(dir)
	if err != nil {
		t.Fatal(err)
	}
	m := disktest.NewMem(4 << 20)
	disktest.Scribble(t, m, 1, 8)
	s := repotest.MustSave(t, repotest.Init(t, store), "vm", m)
	sum := strings.Repeat("0123456789abcdef", 4)
	huge := []string{
		"config", "slots/a/" + sum[:32], "slots/b/" + sum[:32], "snapshots/" + sum, "notes/" + sum, "claims/" + sum[:32] + "-" + sum,
		"references/" + sum[:32] + "-" + sum, "index/" + sum, "packs/01/" + sum, "damage/" + sum, "over/" + s.Run + "-" + sum,
	}
	for _, name := range huge {
		path := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if err == nil {
			err = f.Truncate(4 << 30)
			f.Close()
		}
		if err != nil {
			t.Skip("no sparse files here: ", err)
		}
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	r := repotest.Open(t, store)
	all, bad, err := r.Snapshots(t.Context())
	if err != nil || len(all) != 1 || len(bad) == 0 {
		t.Errorf("%d snapshots and %v, %v", len(all), bad, err)
	}
	if slots, err := r.Slots(t.Context()); err != nil || len(slots) != 2 {
		t.Errorf("%d slots, %v", len(slots), err)
	}
	repotest.MustRestore(t, r, s.Disks[0].Root, m)
	rep, err := check.Run(t.Context(), r, check.Options{ReadData: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range huge {
		if !slices.ContainsFunc(rep.Findings, func(f check.Finding) bool { return f.Object == name }) {
			t.Errorf("check does not name %s", name)
		}
	}
	keyless, err := check.Keyless(t.Context(), store, check.KeylessOptions{Options: check.Options{ReadData: true}})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range huge {
		if !slices.ContainsFunc(keyless.Findings, func(f check.Finding) bool { return f.Object == name }) {
			t.Errorf("check without a key does not name %s", name)
		}
	}
	runtime.ReadMemStats(&after)
	if used := after.TotalAlloc - before.TotalAlloc; used > 1<<30 {
		t.Errorf("%d bytes allocated", used)
	}
}
