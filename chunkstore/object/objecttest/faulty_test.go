package objecttest_test

import (
	"bytes"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"xenkeep/chunkstore/object"
	"xenkeep/chunkstore/object/mem"
	"xenkeep/chunkstore/object/objecttest"
)

func TestHealthyFaultyKeepsTheContract(t *testing.T) {
	objecttest.Run(t, func(*testing.T) object.Store { return objecttest.NewFaulty(mem.New()) })
}

func TestFailNth(t *testing.T) {
	f := objecttest.NewFaulty(mem.New())
	before := f.Inject(objecttest.Fault{Verb: objecttest.Put, Prefix: "packs/", N: 1})
	after := f.Inject(objecttest.Fault{Verb: objecttest.Put, N: 4, After: true, Err: object.ErrNoSpace})
	never := f.Inject(objecttest.Fault{N: 100})
	var failed []int
	for i, name := range []string{"config", "packs/00/a", "index/a", "packs/00/b", "packs/00/c"} {
		if f.Put(t.Context(), name, []byte("12345")) != nil {
			failed = append(failed, i)
		}
	}
	if fmt.Sprint(failed) != "[3 4]" || !before.Fired() || !after.Fired() || never.Fired() {
		t.Errorf("failed %v", failed)
	}
	f.Heal()
	if _, err := f.Stat(t.Context(), "packs/00/b"); !errors.Is(err, object.ErrNotFound) {
		t.Errorf("failed before its effect: %v", err)
	}
	if _, err := f.Stat(t.Context(), "packs/00/c"); err != nil {
		t.Errorf("failed after its effect: %v", err)
	}
	if f.Calls(objecttest.Put) != 5 || f.Calls(objecttest.Any) != 7 || f.Bytes(objecttest.Put) != 15 {
		t.Errorf("counts %d %d %d", f.Calls(objecttest.Put), f.Calls(objecttest.Any), f.Bytes(objecttest.Put))
	}
}

func TestStayIsAKill(t *testing.T) {
	m := mem.New()
	f := objecttest.NewFaulty(m)
	f.Inject(objecttest.Fault{N: 1, Stay: true, After: true})
	for i := range 4 {
		err := f.Put(t.Context(), fmt.Sprintf("notes/%d", i), nil)
		if (err == nil) != (i == 0) {
			t.Errorf("put %d: %v", i, err)
		}
	}
	n := 0
	if err := m.List(t.Context(), "", func(object.Info) error { n++; return nil }); err != nil || n != 2 {
		t.Errorf("%d objects reached the storage, %v", n, err)
	}
}

func TestMangle(t *testing.T) {
	f := objecttest.NewFaulty(mem.New())
	data := objecttest.Bytes(1, 100)
	if err := f.Put(t.Context(), "config", data); err != nil {
		t.Fatal(err)
	}
	f.Inject(objecttest.Fault{Verb: objecttest.Get, Mangle: objecttest.FlipBit(83)})
	f.Inject(objecttest.Fault{Verb: objecttest.Get, N: 1, Mangle: objecttest.Truncate(7)})
	f.Inject(objecttest.Fault{Verb: objecttest.Get, N: 2, Mangle: objecttest.Truncate(7)})
	got, err := f.Get(t.Context(), "config", 0, -1)
	if err != nil || bytes.Equal(got, data) || got[10]^data[10] != 8 {
		t.Errorf("flip: %v", err)
	}
	if got, err = f.Get(t.Context(), "config", 0, -1); err != nil || !bytes.Equal(got, data[:93]) {
		t.Errorf("truncate: %d bytes, %v", len(got), err)
	}
	if err := f.GetInto(t.Context(), "config", 0, make([]byte, 100)); !errors.Is(err, object.ErrShort) {
		t.Errorf("truncate into: %v", err)
	}
	if got, err = f.Get(t.Context(), "config", 0, -1); err != nil || !bytes.Equal(got, data) {
		t.Errorf("afterwards: %v", err)
	}
}

func TestDelayedLists(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	f := objecttest.NewFaulty(mem.New())
	if err := f.Put(t.Context(), "old", nil); err != nil {
		t.Fatal(err)
	}
	f.DelayLists(time.Minute, time.Hour, func() time.Time { return now })
	if err := f.Put(t.Context(), "new", nil); err != nil {
		t.Fatal(err)
	}
	count := func() (n int) {
		if err := f.List(t.Context(), "", func(object.Info) error { n++; return nil }); err != nil {
			t.Error(err)
		}
		return n
	}
	if n := count(); n != 1 || f.Traits().ListDelay != time.Minute {
		t.Errorf("%d shown at once, traits %+v", n, f.Traits())
	}
	if _, err := f.Get(t.Context(), "new", 0, -1); err != nil {
		t.Errorf("get of a hidden object: %v", err)
	}
	now = now.Add(time.Hour)
	if n := count(); n != 2 {
		t.Errorf("%d shown later", n)
	}
}

func TestLimitedSpace(t *testing.T) {
	f := objecttest.NewFaulty(mem.New())
	f.LimitSpace(100)
	ctx := t.Context()
	for _, s := range []struct {
		name string
		n    int
		fits bool
	}{{"a", 60, true}, {"b", 50, false}, {"a", 90, true}, {"b", 10, true}, {"c", 1, false}} {
		if err := f.Put(ctx, s.name, make([]byte, s.n)); (err == nil) != s.fits || (err != nil && !errors.Is(err, object.ErrNoSpace)) {
			t.Errorf("%s %d: %v", s.name, s.n, err)
		}
	}
	if err := f.Delete(ctx, "a"); err != nil {
		t.Fatal(err)
	}
	if err := f.Put(ctx, "c", make([]byte, 90)); err != nil {
		t.Error(err)
	}
}

func TestSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := objecttest.NewFaulty(mem.New())
		f.Slow(1000, time.Second)
		start := time.Now()
		done := make(chan error)
		for i := range 2 {
			go func() { done <- f.Put(t.Context(), fmt.Sprint(i), make([]byte, 5000)) }()
		}
		for range 2 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
		if d := time.Since(start); d != 11*time.Second {
			t.Errorf("two puts of 5000 bytes at 1000 a second took %v", d)
		}
	})
}
