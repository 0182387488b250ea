package count_test

import (
	"fmt"
	"testing"

	"xenkeep/chunkstore/object"
	"xenkeep/chunkstore/object/count"
	"xenkeep/chunkstore/object/mem"
	"xenkeep/chunkstore/object/objecttest"
	"xenkeep/chunkstore/object/retry"
)

func TestContract(t *testing.T) {
	objecttest.Run(t, func(*testing.T) object.Store { return count.New(mem.New()) })
}

// paged lists in pages of three.
type paged struct{ object.Store }

func (paged) Traits() object.Traits { return object.Traits{ListPageSize: 3, Parallel: 1} }

func TestCounts(t *testing.T) {
	ctx := t.Context()
	s := retry.New(count.New(paged{mem.New()}), retry.Policy{})
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for i := range 7 {
		check(s.Put(ctx, fmt.Sprintf("packs/ab/%d", i), []byte("x")))
	}
	check(s.Put(ctx, "config", []byte("x")))
	_, err := s.Get(ctx, "packs/ab/0", 0, -1)
	check(err)
	check(s.GetInto(ctx, "config", 0, make([]byte, 1)))
	_, err = s.Stat(ctx, "config")
	check(err)
	before := count.Of(s)
	for prefix, pages := range map[string]int64{"packs/": 3, "c": 1, "packs/ab/6": 1, "none": 1} {
		was := count.Of(s).List
		check(s.List(ctx, prefix, func(object.Info) error { return nil }))
		if n := count.Of(s).List - was; n != pages {
			t.Errorf("list %q: %d requests, want %d", prefix, n, pages)
		}
	}
	check(s.Delete(ctx, "config"))
	want := count.Requests{Put: 8, Get: 2, Stat: 1, List: 6, Delete: 1, PackPut: 7, PackGet: 1}
	if got := count.Of(s); got != want || got.Total() != 18 || got.Metadata() != 10 {
		t.Errorf("%+v, want %+v", got, want)
	}
	if got := count.Of(s).Sub(before); got.List != 6 || got.Delete != 1 || got.Put != 0 {
		t.Errorf("since: %+v", got)
	}
	if count.Of(mem.New()) != (count.Requests{}) {
		t.Error("what does not count has counted")
	}
}
