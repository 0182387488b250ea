package objecttest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"testing"
	"time"

	"xenkeep/chunkstore/object"
)

// Named returns the object name of a pack with this content.
func Named(data []byte) string {
	sum := sha256.Sum256(data)
	text := hex.EncodeToString(sum[:])
	return "packs/" + text[:2] + "/" + text
}

// RunKeeper tests stores against the contract of object.Versioned, in addition to
// Run. Open must return a new, empty store that keeps versions and can lock
// them.
func RunKeeper(t *testing.T, open func(t *testing.T) object.Versioned) {
	for _, tt := range []struct {
		name string
		test func(t *testing.T, k object.Versioned)
	}{
		{"Versions", testVersions},
		{"Locks", testLocks},
		{"Deletes", testDeletesVersions},
	} {
		t.Run(tt.name, func(t *testing.T) {
			k := open(t)
			if _, ok := object.VersionedOf(k); !ok {
				t.Fatal("the store does not say that it keeps versions")
			}
			tt.test(t, k)
		})
	}
}

func versionsOf(t *testing.T, k object.Versioned, name string) (all []object.Version) {
	t.Helper()
	if err := k.ListVersions(t.Context(), name, func(v object.Version) error {
		if v.Name == name {
			all = append(all, v)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return all
}

func testVersions(t *testing.T, k object.Versioned) {
	ctx := t.Context()
	contents := [][]byte{[]byte("one"), []byte("second"), []byte("the third")}
	for _, p := range contents {
		put(t, k, "notes/aa", p)
	}
	put(t, k, "notes/ab", nil)
	if err := k.Delete(ctx, "notes/aa"); err != nil {
		t.Fatal(err)
	}
	all := versionsOf(t, k, "notes/aa")
	if len(all) != 4 || !all[0].Deleted || !all[0].Latest || all[1].Latest || all[3].Deleted {
		t.Fatalf("versions %+v", all)
	}
	for i, v := range all[1:] {
		want := contents[2-i]
		if v.Size != int64(len(want)) {
			t.Errorf("version %d: %d bytes", i, v.Size)
		}
		if p, err := k.GetVersion(ctx, "notes/aa", v.ID, 0, -1); err != nil || !bytes.Equal(p, want) {
			t.Errorf("version %d: %q, %v", i, p, err)
		}
		if p, err := k.GetVersion(ctx, "notes/aa", v.ID, 1, 2); err != nil || !bytes.Equal(p, want[1:3]) {
			t.Errorf("version %d, in part: %q, %v", i, p, err)
		}
	}
	_, err := k.Get(ctx, "notes/aa", 0, -1)
	wantClass(t, err, object.ErrNotFound)
	stop := errors.New("stop")
	wantClass(t, k.ListVersions(ctx, "notes/", func(object.Version) error { return stop }), stop)
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	wantClass(t, k.ListVersions(cancelled, "notes/", func(object.Version) error { return nil }), context.Canceled)
}

func testLocks(t *testing.T, k object.Versioned) {
	ctx := t.Context()
	data := []byte("a pack")
	name := Named(data)
	put(t, k, "index/before", data)
	k.SetLockDays(2)
	put(t, k, name, data)
	put(t, k, "notes/aa", data)
	lasts := func(name, id string, days float64) {
		t.Helper()
		until, err := k.LockedUntil(ctx, name, id)
		if err != nil {
			t.Fatal(err)
		}
		info, err := k.Stat(ctx, name)
		if err != nil {
			t.Fatal(err)
		}
		got := 0.0
		if !until.IsZero() {
			got = until.Sub(info.Modified).Hours() / 24
		}
		if got < days-0.01 || got > days+0.01 {
			t.Errorf("%s is locked for %.2f days, want %.2f", name, got, days)
		}
	}
	lasts(name, "", 2)
	lasts(name, versionsOf(t, k, name)[0].ID, 2)
	lasts("notes/aa", "", 0)
	lasts("index/before", "", 0)
	var locked *object.LockedError
	if err := k.Delete(ctx, name); !errors.As(err, &locked) || locked.Until.IsZero() || !errors.Is(err, object.ErrLocked) {
		t.Errorf("deleted a locked object: %v", err)
	}
	wantData(t, k, name, data)
	if n := len(versionsOf(t, k, name)); n != 1 {
		t.Errorf("%d versions after a delete that was refused", n)
	}
	info, err := k.Stat(ctx, name)
	if err != nil {
		t.Fatal(err)
	}
	if err := k.Lock(ctx, name, "", info.Modified.Add(5*24*time.Hour)); err != nil {
		t.Fatal(err)
	}
	lasts(name, "", 5)
	_, err = k.LockedUntil(ctx, "packs/none", "")
	wantClass(t, err, object.ErrNotFound)
}

func testDeletesVersions(t *testing.T, k object.Versioned) {
	k.SetLockDays(1)
	for i := range 3 {
		put(t, k, "claims/aa", Bytes(uint64(i), 10))
	}
	if err := k.Delete(t.Context(), "claims/aa"); err != nil {
		t.Fatal(err)
	}
	if all := versionsOf(t, k, "claims/aa"); len(all) != 0 {
		t.Errorf("left of what may go: %+v", all)
	}
	if err := k.Delete(t.Context(), "claims/aa"); err != nil {
		t.Errorf("what is not there: %v", err)
	}
}
