package backup

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"xenkeep/repo"
	"xenkeep/xapi"
)

// One operation at a time runs on each SR, in whatever order the SRs are named, and
// there is no deadlock.
func TestSRLocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newSRLocks()
		var inA, inB, most atomic.Int32
		var wg sync.WaitGroup
		for i := range 20 {
			wg.Go(func() {
				srs := [][]xapi.Ref{{"a", "b"}, {"b", "a", "b"}, {"a"}, {"b"}}[i%4]
				leave, err := g.acquire(t.Context(), srs)
				if err != nil {
					t.Error(err)
					return
				}
				defer leave()
				for _, sr := range map[int][]*atomic.Int32{0: {&inA, &inB}, 1: {&inA, &inB}, 2: {&inA}, 3: {&inB}}[i%4] {
					if n := sr.Add(1); n > most.Load() {
						most.Store(n)
					}
					defer sr.Add(-1)
				}
				time.Sleep(time.Second)
			})
		}
		wg.Wait()
		if most.Load() != 1 {
			t.Errorf("%d concurrently in one SR", most.Load())
		}
	})
}

// A caller that gives up releases its locks.
func TestSRLocksCanceled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newSRLocks()
		leave, err := g.acquire(t.Context(), []xapi.Ref{"b"})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := g.acquire(ctx, []xapi.Ref{"a", "b"}); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("got in: %v", err)
		}
		leaveA, err := g.acquire(t.Context(), []xapi.Ref{"a"})
		if err != nil {
			t.Fatal(err)
		}
		leaveA()
		leave()
	})
}

// No host and no SR serves more transfers than its limit, and transfers use the host
// with the fewest.
func TestTransferLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newLimits(2, 3)
		var mu sync.Mutex
		now, most := map[string]int{}, map[string]int{}
		count := func(key string, n int) {
			mu.Lock()
			defer mu.Unlock()
			now[key] += n
			most[key] = max(most[key], now[key])
		}
		var wg sync.WaitGroup
		for i := range 24 {
			wg.Go(func() {
				sr := xapi.Ref([]string{"sr1", "sr2"}[i%2])
				host, leave, err := c.acquire(t.Context(), sr, []string{"h1", "h2"})
				if err != nil {
					t.Error(err)
					return
				}
				count(host, 1)
				count(string(sr), 1)
				time.Sleep(time.Second)
				count(host, -1)
				count(string(sr), -1)
				leave()
				leave() // a second call has no effect
			})
		}
		wg.Wait()
		for key, want := range map[string]int{"h1": 2, "h2": 2} {
			if most[key] != want {
				t.Errorf("%s: %d concurrently, want %d", key, most[key], want)
			}
		}
		for _, sr := range []string{"sr1", "sr2"} {
			if most[sr] > 3 {
				t.Errorf("%s: %d concurrently", sr, most[sr])
			}
		}
		if len(c.hosts) != 2 || c.hosts["h1"] != 0 || c.srs["sr1"] != 0 {
			t.Errorf("transfers are still counted: %v %v", c.hosts, c.srs)
		}
	})
}

// A run that is cancelled does not wait for a full host or SR.
func TestTransferLimitsCanceled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newLimits(1, 1)
		_, leave, err := c.acquire(t.Context(), "sr", []string{"h"})
		if err != nil {
			t.Fatal(err)
		}
		defer leave()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, _, err := c.acquire(ctx, "sr", nil); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("the SR let in: %v", err)
		}
		if _, _, err := c.acquire(ctx, "other", []string{"h"}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("the host let in: %v", err)
		}
	})
}

// Whole disks are read as VHDs if possible, and over NBD if the pool cannot export
// them as VHDs or NBD was requested; each method is the fallback of the other.
func TestFullReads(t *testing.T) {
	for _, c := range []struct {
		size      int64
		transport Transport
		off       string
		want      []string
	}{
		{1 << 30, TransportAuto, "", []string{"vhd", "nbd"}},
		{1 << 30, TransportNBD, "", []string{"nbd", "vhd"}},
		{1 << 30, TransportVHD, "switched off", []string{"vhd"}},
		{1<<30 + 4096, TransportAuto, "", []string{"nbd", "raw"}},
		{3 << 40, TransportAuto, "", []string{"nbd", "raw"}},
		{3 << 40, TransportAuto, "no network serves NBD", []string{"raw"}},
	} {
		v := &vmBackup{b: &poolBackup{o: Options{Transport: c.transport}, tracking: &tracking{off: c.off}}}
		rec := &repo.Disk{Reason: "first"}
		var got []string
		for _, w := range v.fullReads(t.Context(), nil, xapi.VDI{VirtualSize: xapi.Int(c.size)}, base{}, rec) {
			got = append(got, w.transport)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%d bytes, %s: %v, want %v", c.size, c.transport, got, c.want)
		}
		if (got[0] == "nbd") != (rec.Reason != "first") {
			t.Errorf("%d bytes, %s: reason %q", c.size, c.transport, rec.Reason)
		}
	}
}
