// Package objecttest contains the contract of object.Store as tests, and a
// store that fails on demand.
package objecttest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"xenkeep/chunkstore/object"
)

// Run tests stores against the contract of object.Store. Open must return a
// new, empty store, which Run closes. Open should remove the resources below
// the store with t.Cleanup.
func Run(t *testing.T, open func(t *testing.T) object.Store) {
	tests := []struct {
		name string
		test func(t *testing.T, s object.Store)
	}{
		{"PutThenGet", testPutThenGet},
		{"Ranges", testRanges},
		{"Tail", testTail},
		{"TooLarge", testTooLarge},
		{"Absent", testAbsent},
		{"Replace", testReplace},
		{"BuffersAreNotShared", testBuffers},
		{"Stat", testStat},
		{"List", testList},
		{"ListStopsAtError", testListStops},
		{"ListMany", testListMany},
		{"Delete", testDelete},
		{"Names", testNames},
		{"Cancelled", testCancelled},
		{"AtOnce", testAtOnce},
		{"PackSized", testPackSized},
		{"Throttle", testThrottle},
		{"Location", testLocation},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := open(t)
			tt.test(t, s)
			if err := s.Close(); err != nil {
				t.Errorf("close: %v", err)
			}
		})
	}
}

// Bytes returns n pseudo-random bytes that depend only on seed.
func Bytes(seed uint64, n int) []byte {
	var key [32]byte
	for i := range 8 {
		key[i] = byte(seed >> (8 * i))
	}
	p := make([]byte, n)
	rand.NewChaCha8(key).Read(p)
	return p
}

func put(t *testing.T, s object.Store, name string, data []byte) {
	t.Helper()
	if err := s.Put(t.Context(), name, data); err != nil {
		t.Fatal(err)
	}
}

func wantData(t *testing.T, s object.Store, name string, want []byte) {
	t.Helper()
	got, err := s.Get(t.Context(), name, 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Fatalf("get %s: %d bytes that differ from the %d put", name, len(got), len(want))
	}
}

func wantClass(t *testing.T, err, class error) {
	t.Helper()
	if !errors.Is(err, class) {
		t.Errorf("error %v, want one of class %v", err, class)
	}
}

func names(t *testing.T, s object.Store, prefix string) map[string]object.Info {
	t.Helper()
	found := make(map[string]object.Info)
	err := s.List(t.Context(), prefix, func(i object.Info) error {
		if _, twice := found[i.Name]; twice {
			t.Errorf("list %q: %s twice", prefix, i.Name)
		}
		found[i.Name] = i
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func testPutThenGet(t *testing.T, s object.Store) {
	for i, name := range []string{"config", "slots/a/0001", "packs/ab/" + fmt.Sprintf("%064x", 7), "new-folder/deep/er/x_1.y"} {
		for _, size := range []int{0, 1, 4096, 100_001} {
			data := Bytes(uint64(i), size)
			put(t, s, name, data)
			wantData(t, s, name, data)
		}
	}
}

func testRanges(t *testing.T, s object.Store) {
	data := Bytes(1, 10_000)
	put(t, s, "index/aa", data)
	for _, r := range []struct{ offset, length, n int64 }{
		{0, 0, 0}, {0, 1, 1}, {0, 10_000, 10_000}, {9_999, 1, 1}, {10_000, 0, 0},
		{5, 4_096, 4_096}, {10_000, -1, 0}, {9_000, -1, 1_000}, {0, -7, 10_000},
	} {
		want := data[r.offset : r.offset+r.n]
		got, err := s.Get(t.Context(), "index/aa", r.offset, r.length)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("get %d+%d: %d bytes, %v", r.offset, r.length, len(got), err)
		}
		if r.length >= 0 {
			p := Bytes(2, int(r.length))
			if err := s.GetInto(t.Context(), "index/aa", r.offset, p); err != nil || !bytes.Equal(p, want) {
				t.Errorf("get into %d+%d: %v", r.offset, r.length, err)
			}
		}
	}
	for _, r := range [][2]int64{{0, 10_001}, {9_999, 2}, {10_000, 1}, {10_001, 0}, {10_001, -1}, {20_000, 5}, {1 << 40, 1}} {
		_, err := s.Get(t.Context(), "index/aa", r[0], r[1])
		wantClass(t, err, object.ErrShort)
		wantClass(t, err, io.ErrUnexpectedEOF)
		if r[1] >= 0 {
			wantClass(t, s.GetInto(t.Context(), "index/aa", r[0], make([]byte, r[1])), object.ErrShort)
		}
	}
	for _, r := range [][2]int64{{-1, 1}, {-5, 0}, {1 << 62, 1 << 62}} {
		_, err := s.Get(t.Context(), "index/aa", r[0], r[1])
		wantClass(t, err, object.ErrName)
	}
	wantClass(t, s.GetInto(t.Context(), "index/aa", -1, make([]byte, 1)), object.ErrName)
}

// An object that is larger than any object of its kind is not read to its end.
// Ranges of it are, because readers choose their length.
func testTooLarge(t *testing.T, s object.Store) {
	const name = "config"
	n := object.MaxWhole(name)
	data := Bytes(4, int(n)+1)
	put(t, s, name, data)
	for _, offset := range []int64{0, -n - 1, -n - 2} {
		_, err := s.Get(t.Context(), name, offset, -1)
		wantClass(t, err, object.ErrTooLarge)
	}
	for _, offset := range []int64{1, -n} {
		if p, err := s.Get(t.Context(), name, offset, -1); err != nil || !bytes.Equal(p, data[1:]) {
			t.Errorf("from %d: %d bytes, %v", offset, len(p), err)
		}
	}
	if p, err := s.Get(t.Context(), name, 0, n+1); err != nil || !bytes.Equal(p, data) {
		t.Errorf("a range: %d bytes, %v", len(p), err)
	}
	put(t, s, name, data[:n])
	if p, err := s.Get(t.Context(), name, 0, -1); err != nil || !bytes.Equal(p, data[:n]) {
		t.Errorf("the largest: %d bytes, %v", len(p), err)
	}
}

func testTail(t *testing.T, s object.Store) {
	data := Bytes(3, 1_000)
	put(t, s, "packs/00/aa", data)
	put(t, s, "packs/00/empty", nil)
	for _, n := range []int64{1, 16, 999, 1_000, 1_001, 1 << 40} {
		got, err := s.Get(t.Context(), "packs/00/aa", -n, -1)
		if want := data[max(0, 1_000-n):]; err != nil || !bytes.Equal(got, want) {
			t.Errorf("last %d: %d bytes, %v", n, len(got), err)
		}
	}
	if got, err := s.Get(t.Context(), "packs/00/empty", -8, -1); err != nil || len(got) != 0 {
		t.Errorf("last 8 of nothing: %d bytes, %v", len(got), err)
	}
}

func testAbsent(t *testing.T, s object.Store) {
	ctx := t.Context()
	put(t, s, "snapshots/aa", []byte("x"))
	for _, name := range []string{"config", "snapshots/ab", "snapshots/a", "nowhere/at/all", "snapshots"} {
		_, err := s.Get(ctx, name, 0, -1)
		wantClass(t, err, object.ErrNotFound)
		_, err = s.Get(ctx, name, 100, 5)
		wantClass(t, err, object.ErrNotFound)
		_, err = s.Get(ctx, name, -8, -1)
		wantClass(t, err, object.ErrNotFound)
		wantClass(t, s.GetInto(ctx, name, 0, make([]byte, 1)), object.ErrNotFound)
		wantClass(t, s.GetInto(ctx, name, 0, nil), object.ErrNotFound)
		_, err = s.Stat(ctx, name)
		wantClass(t, err, object.ErrNotFound)
	}
}

func testReplace(t *testing.T, s object.Store) {
	put(t, s, "config", Bytes(1, 5_000))
	put(t, s, "config", Bytes(1, 5_000))
	wantData(t, s, "config", Bytes(1, 5_000))
	put(t, s, "config", Bytes(2, 10))
	wantData(t, s, "config", Bytes(2, 10))
	if found := names(t, s, ""); len(found) != 1 {
		t.Errorf("%d objects after replacing one", len(found))
	}
}

func testBuffers(t *testing.T, s object.Store) {
	data := Bytes(1, 1_000)
	put(t, s, "config", data)
	clear(data)
	wantData(t, s, "config", Bytes(1, 1_000))
	got, err := s.Get(t.Context(), "config", 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	clear(got)
	_ = append(got[:0:1000], 1, 2, 3)
	wantData(t, s, "config", Bytes(1, 1_000))
}

func testStat(t *testing.T, s object.Store) {
	put(t, s, "notes/aa", Bytes(1, 1_234))
	i, err := s.Stat(t.Context(), "notes/aa")
	if err != nil || i.Name != "notes/aa" || i.Size != 1_234 {
		t.Errorf("stat: %+v, %v", i, err)
	}
	if age := time.Since(i.Modified); age < -time.Hour || age > time.Hour {
		t.Errorf("modified %v ago", age)
	}
}

func testList(t *testing.T, s object.Store) {
	all := []string{
		"config", "slots/a/k1", "slots/b/k1", "packs/ab/ab01", "packs/ab/ab02", "packs/ac/ac01",
		"index/aa", "index/ab", "index-old/aa", "snapshots/aa",
	}
	for i, name := range all {
		put(t, s, name, Bytes(uint64(i), i*100))
	}
	for prefix, want := range map[string][]string{
		"":              all,
		"config":        {"config"},
		"c":             {"config"},
		"slots/":        {"slots/a/k1", "slots/b/k1"},
		"slots/a/":      {"slots/a/k1"},
		"packs/a":       {"packs/ab/ab01", "packs/ab/ab02", "packs/ac/ac01"},
		"packs/ab/":     {"packs/ab/ab01", "packs/ab/ab02"},
		"packs/ab/ab02": {"packs/ab/ab02"},
		"index/":        {"index/aa", "index/ab"},
		"index":         {"index/aa", "index/ab", "index-old/aa"},
		"claims/":       nil,
		"nowhere/at/":   nil,
		"packs/ab/zz":   nil,
	} {
		found := names(t, s, prefix)
		if len(found) != len(want) {
			t.Errorf("list %q: %v, want %v", prefix, found, want)
		}
		for _, name := range want {
			if _, ok := found[name]; !ok {
				t.Errorf("list %q: no %s", prefix, name)
			}
		}
	}
	for i, name := range all {
		if got := names(t, s, "")[name]; got.Size != int64(i*100) || time.Since(got.Modified).Abs() > time.Hour {
			t.Errorf("list: %+v, want size %d and a time near now", got, i*100)
		}
	}
}

func testListStops(t *testing.T, s object.Store) {
	for i := range 5 {
		put(t, s, fmt.Sprintf("index/%02d", i), nil)
	}
	stop, calls := errors.New("stop"), 0
	err := s.List(t.Context(), "index/", func(object.Info) error {
		if calls++; calls == 2 {
			return stop
		}
		return nil
	})
	if !errors.Is(err, stop) || calls != 2 {
		t.Errorf("list went on after an error: %d calls, %v", calls, err)
	}
}

// testListMany puts more objects than one page of a listing contains, which is
// 1,000 in S3.
func testListMany(t *testing.T, s object.Store) {
	if testing.Short() {
		t.Skip("SKIP: -short: 1,100 objects")
	}
	var g sync.WaitGroup
	for w := range 4 {
		g.Go(func() {
			for i := w; i < 1_100; i += 4 {
				if err := s.Put(t.Context(), fmt.Sprintf("notes/%04d", i), []byte{1}); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	g.Wait()
	if n := len(names(t, s, "notes/")); n != 1_100 {
		t.Errorf("list: %d objects of 1100", n)
	}
}

func testDelete(t *testing.T, s object.Store) {
	ctx := t.Context()
	put(t, s, "packs/ab/x", []byte("x"))
	put(t, s, "packs/ab/xy", []byte("y"))
	for range 2 {
		if err := s.Delete(ctx, "packs/ab/x"); err != nil {
			t.Error(err)
		}
	}
	if err := s.Delete(ctx, "never/was"); err != nil {
		t.Error(err)
	}
	_, err := s.Get(ctx, "packs/ab/x", 0, -1)
	wantClass(t, err, object.ErrNotFound)
	wantData(t, s, "packs/ab/xy", []byte("y"))
	if err := s.Delete(ctx, "packs/ab/xy"); err != nil {
		t.Error(err)
	}
	if found := names(t, s, ""); len(found) != 0 {
		t.Errorf("left: %v", found)
	}
	put(t, s, "packs/ab/x", []byte("again"))
	wantData(t, s, "packs/ab/x", []byte("again"))
}

func testNames(t *testing.T, s object.Store) {
	ctx := t.Context()
	for _, name := range []string{
		"", "/", "a/", "/a", "a//b", ".", "..", "../a", "a/../b", "a/./b", ".tmp-1", "a/.hidden",
		"A", "a b", "a\\b", "a\x00b", "ä", "a:b", string(bytes.Repeat([]byte("a"), 129)), string(bytes.Repeat([]byte("a/"), 300)) + "a",
	} {
		wantClass(t, s.Put(ctx, name, nil), object.ErrName)
		_, err := s.Get(ctx, name, 0, -1)
		wantClass(t, err, object.ErrName)
		_, err = s.Stat(ctx, name)
		wantClass(t, err, object.ErrName)
		wantClass(t, s.Delete(ctx, name), object.ErrName)
	}
	for _, prefix := range []string{"/", "../", "a/../", "..", "A/"} {
		wantClass(t, s.List(ctx, prefix, func(object.Info) error { return nil }), object.ErrName)
	}
}

func testCancelled(t *testing.T, s object.Store) {
	put(t, s, "config", []byte("x"))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	wantClass(t, s.Put(ctx, "notes/aa", []byte("x")), context.Canceled)
	_, err := s.Get(ctx, "config", 0, -1)
	wantClass(t, err, context.Canceled)
	wantClass(t, s.GetInto(ctx, "config", 0, make([]byte, 1)), context.Canceled)
	_, err = s.Stat(ctx, "config")
	wantClass(t, err, context.Canceled)
	wantClass(t, s.List(ctx, "", func(object.Info) error { return nil }), context.Canceled)
	wantClass(t, s.Delete(ctx, "config"), context.Canceled)
	if object.Retriable(err) {
		t.Error("a cancelled call is taken to be worth another try")
	}
	if found := names(t, s, ""); len(found) != 1 {
		t.Errorf("cancelled calls had an effect: %v", found)
	}
}

// testAtOnce lets writers replace an object while readers read it. Each reader
// must see one complete version.
func testAtOnce(t *testing.T, s object.Store) {
	const versions, size = 4, 50_000
	var data [versions][]byte
	for v := range versions {
		data[v] = bytes.Repeat([]byte{byte(v)}, size)
	}
	put(t, s, "config", data[0])
	var g sync.WaitGroup
	for v := range versions {
		g.Go(func() {
			for range 5 {
				if err := s.Put(t.Context(), "config", data[v]); err != nil {
					t.Error(err)
				}
				if err := s.Put(t.Context(), fmt.Sprintf("notes/%d", v), data[v]); err != nil {
					t.Error(err)
				}
			}
		})
		g.Go(func() {
			for range 10 {
				got, err := s.Get(t.Context(), "config", 0, -1)
				if err != nil || len(got) != size || !bytes.Equal(got, data[got[0]%versions]) {
					t.Errorf("get while put: %d bytes of two versions, %v", len(got), err)
				}
			}
		})
	}
	g.Wait()
	for v := range versions {
		wantData(t, s, fmt.Sprintf("notes/%d", v), data[v])
	}
}

func testPackSized(t *testing.T, s object.Store) {
	data := Bytes(9, 33<<20)
	put(t, s, "packs/cd/big", data)
	wantData(t, s, "packs/cd/big", data)
	p := make([]byte, 4<<20)
	if err := s.GetInto(t.Context(), "packs/cd/big", 20<<20, p); err != nil || !bytes.Equal(p, data[20<<20:24<<20]) {
		t.Errorf("get 4 MiB of 33: %v", err)
	}
}

// A Put calls its throttle before each piece that it sends, and ends if the
// throttle returns an error.
func testThrottle(t *testing.T, s object.Store) {
	data := Bytes(7, 3*object.ThrottlePiece+5)
	var asked atomic.Int64
	ctx := object.WithThrottle(t.Context(), func(_ context.Context, n int) error {
		if n > object.ThrottlePiece {
			t.Errorf("%d bytes at once", n)
		}
		asked.Add(int64(n))
		return nil
	})
	if err := s.Put(ctx, "a/throttled", data); err != nil {
		t.Fatal(err)
	}
	if n := asked.Load(); n < int64(len(data)) {
		t.Errorf("asked for %d of %d bytes", n, len(data))
	}
	wantData(t, s, "a/throttled", data)

	stop := errors.New("enough")
	ctx = object.WithThrottle(t.Context(), func(context.Context, int) error { return stop })
	if err := s.Put(ctx, "a/stopped", data); err == nil {
		t.Error("a Put went on without leave")
	}
	if _, err := s.Get(t.Context(), "a/stopped", 0, -1); !errors.Is(err, object.ErrNotFound) {
		t.Errorf("a stopped Put left something: %v", err)
	}
}

func testLocation(t *testing.T, s object.Store) {
	if s.Location() == "" {
		t.Error("no location")
	}
	if tr := s.Traits(); tr.Parallel < 1 || tr.ListDelay < 0 {
		t.Errorf("traits %+v", tr)
	}
}
