package repair_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"xenkeep/chunkstore/object"
	"xenkeep/chunkstore/object/mem"
	"xenkeep/chunkstore/object/versions"
	"xenkeep/internal/disk/disktest"
	"xenkeep/repo"
	"xenkeep/repo/repair"
	"xenkeep/repo/repotest"
)

var errStorage = errors.New("the storage fails")

// failing is a Keeper of which one call fails, before or after its effect, or all
// calls from that one on.
type failing struct {
	object.Versioned
	at          int
	after, stay bool
	calls       int
	fired       bool
}

func (f *failing) call(do func() error) error {
	n := f.calls
	f.calls++
	if n < f.at || n > f.at && !f.stay {
		return do()
	}
	f.fired = true
	if f.after {
		_ = do()
	}
	return errStorage
}

func (f *failing) Put(ctx context.Context, name string, data []byte) error {
	return f.call(func() error { return f.Versioned.Put(ctx, name, data) })
}

func (f *failing) Get(ctx context.Context, name string, offset, length int64) (p []byte, err error) {
	err = f.call(func() (err error) { p, err = f.Versioned.Get(ctx, name, offset, length); return err })
	return p, err
}

func (f *failing) GetVersion(ctx context.Context, name, id string, offset, length int64) (p []byte, err error) {
	err = f.call(func() (err error) { p, err = f.Versioned.GetVersion(ctx, name, id, offset, length); return err })
	return p, err
}

func (f *failing) ListVersions(ctx context.Context, prefix string, fn func(object.Version) error) error {
	return f.call(func() error { return f.Versioned.ListVersions(ctx, prefix, fn) })
}

func (f *failing) LockedUntil(ctx context.Context, name, id string) (until time.Time, err error) {
	err = f.call(func() (err error) { until, err = f.Versioned.LockedUntil(ctx, name, id); return err })
	return until, err
}

// attacked returns a repository with locks of which every object was overwritten,
// deleted, or both; and the objects before the attack.
func attacked(t *testing.T) (*house, *mem.Keeper, map[string][]byte) {
	raw := mem.NewKeeper(time.Now)
	h := &house{t: t, store: versions.New(raw), cache: t.TempDir(), now: time.Now(), m: disktest.NewMem(diskSize)}
	if _, err := repo.Init(t.Context(), h.store, repo.Options{Secret: repotest.Secret(), LockDays: 7}); err != nil {
		t.Fatal(err)
	}
	h.write(slices.Repeat([]byte("what is on the disk "), 20000), 4096)
	h.backup(false)
	before := make(map[string][]byte)
	raw.SetLockDays(0)
	for n, name := range h.names("") {
		if !object.LockedName(name) {
			continue
		}
		before[name] = h.get(name)
		if n%3 != 0 {
			if err := raw.Put(t.Context(), name, []byte("ha! ha! ha!")); err != nil {
				t.Fatal(err)
			}
		}
		if n%3 != 1 {
			if err := raw.Delete(t.Context(), name); err != nil {
				t.Fatal(err)
			}
		}
	}
	return h, raw, before
}

// Whatever storage call of repair versions fails, the next attempt restores
// everything.
func TestVersionsEveryCallFails(t *testing.T) {
	for how, f := range map[string]failing{"before": {}, "after": {after: true}, "for good": {stay: true}} {
		struck := 0
		for n := 0; ; n++ {
			h, raw, before := attacked(t)
			try := func(k object.Versioned) error {
				r, err := repo.Open(t.Context(), versions.New(k), repo.Options{Secret: repotest.Secret()})
				if err != nil {
					return err
				}
				defer func() { _ = r.Store().Index().Close() }()
				res, err := repair.Versions(t.Context(), r, repair.VersionsOptions{})
				if err == nil && res.Lost > 0 {
					t.Errorf("%s, call %d: %+v", how, n, res)
				}
				return err
			}
			f := f
			f.Versioned, f.at = raw, n
			err := try(&f)
			if !f.fired {
				if err != nil {
					t.Fatal(err)
				}
				break
			}
			struck++
			if err := try(raw); err != nil {
				t.Fatalf("%s, call %d: second try: %v", how, n, err)
			}
			for name, want := range before {
				if p, err := raw.Get(t.Context(), name, 0, -1); err != nil || string(p) != string(want) {
					t.Fatalf("%s, call %d: %s is not as it was: %v", how, n, name, err)
				}
			}
			h.store = raw
			if !h.sound(h.last) {
				t.Fatalf("%s, call %d: not sound", how, n)
			}
		}
		if struck < 20 {
			t.Errorf("%s: only %d calls failed", how, struck)
		}
	}
}
