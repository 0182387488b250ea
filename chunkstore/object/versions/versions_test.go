package versions_test

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"xenkeep/chunkstore/object"
	"xenkeep/chunkstore/object/mem"
	"xenkeep/chunkstore/object/objecttest"
	"xenkeep/chunkstore/object/versions"
)

func TestContract(t *testing.T) {
	objecttest.Run(t, func(*testing.T) object.Store { return versions.New(mem.NewKeeper(time.Now)) })
	objecttest.RunKeeper(t, func(*testing.T) object.Versioned { return versions.New(mem.NewKeeper(time.Now)) })
}

func put(t *testing.T, s object.Store, name string, data []byte) {
	t.Helper()
	if err := s.Put(t.Context(), name, data); err != nil {
		t.Fatal(err)
	}
}

// reads checks that all ways of reading return data.
func reads(t *testing.T, s object.Store, name string, data []byte) {
	t.Helper()
	p, err := s.Get(t.Context(), name, 0, -1)
	if err != nil || !bytes.Equal(p, data) {
		t.Errorf("%s: whole: %q, %v", name, p, err)
	}
	p, err = s.Get(t.Context(), name, -3, -1)
	if err != nil || !bytes.Equal(p, data[len(data)-3:]) {
		t.Errorf("%s: its end: %q, %v", name, p, err)
	}
	p = make([]byte, 4)
	if err := s.GetInto(t.Context(), name, 1, p); err != nil || !bytes.Equal(p, data[1:5]) {
		t.Errorf("%s: in part: %q, %v", name, p, err)
	}
}

func listed(t *testing.T, s object.Store, prefix string) map[string]int64 {
	t.Helper()
	found := make(map[string]int64)
	if err := s.List(t.Context(), prefix, func(i object.Info) error {
		if _, twice := found[i.Name]; twice {
			t.Errorf("%s listed twice", i.Name)
		}
		found[i.Name] = i.Size
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return found
}

// Objects that were deleted, overwritten or both are read as they were.
func TestAttack(t *testing.T) {
	ctx := t.Context()
	k := mem.NewKeeper(time.Now)
	k.SetLockDays(10)
	data := make([][]byte, 5)
	names := make([]string, 5)
	for i := range data {
		data[i] = objecttest.Bytes(uint64(i), 100)
		names[i] = objecttest.Named(data[i])
		put(t, k, names[i], data[i])
	}
	put(t, k, "slots/a/k1", []byte("the old slot"))
	put(t, k, "slots/a/k1", []byte("the new slot"))
	k.SetLockDays(0) // an attacker does not set it
	for i, name := range names {
		if i&1 != 0 {
			put(t, k, name, []byte("garbage of another length"))
		}
		if i&2 != 0 {
			if err := k.Delete(ctx, name); err != nil {
				t.Fatal(err)
			}
		}
	}
	put(t, k, names[4], objecttest.Bytes(77, 100)) // of equal length
	if err := k.Delete(ctx, "slots/a/k1"); err != nil {
		t.Fatal(err)
	}

	// Without a listing, objects that are read as a whole are compared with
	// their names. A read of a part detects only that an object is missing or
	// too short.
	s := versions.New(k)
	for i, name := range names {
		p, err := s.Get(ctx, name, 0, -1)
		if err != nil || !bytes.Equal(p, data[i]) {
			t.Errorf("object %d: %v", i, err)
		}
	}
	s = versions.New(k)
	if p, err := s.Get(ctx, names[4], 0, 50); err != nil || bytes.Equal(p, data[4][:50]) {
		t.Errorf("a part of what was overwritten cannot be known to be wrong: %v", err)
	}
	if found, err := s.Recover(ctx, names[4]); err != nil || !found {
		t.Errorf("recover: %v, %v", found, err)
	}
	reads(t, s, names[4], data[4])
	if found, err := s.Recover(ctx, names[4]); err != nil || !found {
		t.Errorf("recover again: %v, %v", found, err)
	}
	sound := objecttest.Named(objecttest.Bytes(50, 20))
	put(t, s, sound, objecttest.Bytes(50, 20))
	if found, err := s.Recover(ctx, sound); err != nil || found {
		t.Errorf("recover what is sound: %v, %v", found, err)
	}

	// If locks are requested, listings include all objects, and all are read
	// correctly.
	s = versions.New(k)
	s.SetLockDays(10)
	found := listed(t, s, "packs/")
	for i, name := range names {
		if found[name] != 100 {
			t.Errorf("object %d is listed with %d bytes", i, found[name])
		}
		reads(t, s, name, data[i])
		if info, err := s.Stat(ctx, name); err != nil || info.Size != 100 {
			t.Errorf("object %d: stat %+v, %v", i, info, err)
		}
		if until, err := s.LockedUntil(ctx, name, ""); err != nil || until.IsZero() {
			t.Errorf("object %d: locked until %v, %v", i, until, err)
		}
		if err := s.Delete(ctx, name); !errors.Is(err, object.ErrLocked) {
			t.Errorf("object %d: deleted: %v", i, err)
		}
	}
	// If the name is not a SHA-256, the newest version is used.
	if len(listed(t, s, "slots/")) != 1 {
		t.Error("the slot is not listed")
	}
	reads(t, s, "slots/a/k1", []byte("the new slot"))
	// After another Put, the new version is read and not the old one.
	put(t, s, "slots/a/k1", []byte("another slot"))
	reads(t, s, "slots/a/k1", []byte("another slot"))
}

// Without locks a deletion is respected, except for packs, to which other
// objects may refer.
func TestDeletionsCount(t *testing.T) {
	k := mem.NewKeeper(time.Now)
	s := versions.New(k)
	data := objecttest.Bytes(1, 50)
	pack := objecttest.Named(data)
	snapshot := "snapshots/" + pack[len("packs/ab/"):]
	for _, name := range []string{pack, snapshot, "notes/aa"} {
		put(t, s, name, data)
		if err := s.Delete(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{snapshot, "notes/aa"} {
		if _, err := s.Get(t.Context(), name, 0, -1); !errors.Is(err, object.ErrNotFound) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if len(listed(t, s, "")) != 0 {
		t.Error("deleted objects are listed")
	}
	reads(t, s, pack, data)
}
