package retry_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"xenkeep/chunkstore/object"
	"xenkeep/chunkstore/object/mem"
	"xenkeep/chunkstore/object/objecttest"
	"xenkeep/chunkstore/object/retry"
)

// quick returns a policy that records its waits instead of waiting.
func quick(waits *[]time.Duration) retry.Policy {
	return retry.Policy{
		Attempts: 5, First: time.Second, Longest: 4 * time.Second,
		Random: func() float64 { return 0 },
		Sleep: func(ctx context.Context, d time.Duration) error {
			*waits = append(*waits, d)
			return ctx.Err()
		},
	}
}

func TestContract(t *testing.T) {
	objecttest.Run(t, func(*testing.T) object.Store { return retry.New(mem.New(), retry.Policy{}) })
}

// TestContractWhileEveryOtherCallFails runs the contract tests over a store in
// which every other call fails, alternately before and after it has taken
// effect.
func TestContractWhileEveryOtherCallFails(t *testing.T) {
	objecttest.Run(t, func(*testing.T) object.Store {
		f := objecttest.NewFaulty(mem.New())
		for n := 0; n < 4000; n += 4 {
			f.Inject(objecttest.Fault{N: n})
			f.Inject(objecttest.Fault{N: n + 2, After: true})
		}
		var none []time.Duration
		p := quick(&none)
		p.Attempts = 100 // because concurrent calls may each hit several faults in a row
		p.Sleep = func(ctx context.Context, _ time.Duration) error { return ctx.Err() }
		return retry.New(f, p)
	})
}

func TestBackOff(t *testing.T) {
	f := objecttest.NewFaulty(mem.New())
	f.Inject(objecttest.Fault{Stay: true})
	var waits []time.Duration
	heard := 0
	p := quick(&waits)
	p.Notify = func(error, int, time.Duration) { heard++ }
	err := retry.New(f, p).Put(t.Context(), "config", nil)
	if !errors.Is(err, object.ErrUnavailable) || f.Calls(objecttest.Put) != 5 || heard != 4 {
		t.Errorf("%d calls, %d heard of, %v", f.Calls(objecttest.Put), heard, err)
	}
	want := []time.Duration{500 * time.Millisecond, time.Second, 2 * time.Second, 2 * time.Second}
	if fmt.Sprint(waits) != fmt.Sprint(want) {
		t.Errorf("waits %v, want %v", waits, want)
	}
}

func TestOnlyWhatIsWorthIt(t *testing.T) {
	for class, calls := range map[error]int{
		object.ErrUnavailable: 2, object.ErrNotFound: 1, object.ErrShort: 1, object.ErrNoRepository: 1,
		object.ErrNoSpace: 1, object.ErrPermission: 1, object.ErrName: 1, context.Canceled: 1,
		context.DeadlineExceeded: 1, errors.New("bug"): 1,
	} {
		f := objecttest.NewFaulty(mem.New())
		f.Inject(objecttest.Fault{Err: class})
		var waits []time.Duration
		err := retry.New(f, quick(&waits)).Put(t.Context(), "config", nil)
		if f.Calls(objecttest.Put) != calls {
			t.Errorf("%v: %d calls", class, f.Calls(objecttest.Put))
		}
		if (calls == 1) != errors.Is(err, class) {
			t.Errorf("%v became %v", class, err)
		}
	}
}

func TestCancelEndsTheWait(t *testing.T) {
	f := objecttest.NewFaulty(mem.New())
	ctx, cancel := context.WithCancel(t.Context())
	f.Inject(objecttest.Fault{Stay: true, Do: cancel, Err: object.ErrUnavailable})
	err := retry.New(f, retry.Policy{First: time.Hour, Longest: time.Hour}).Put(ctx, "config", nil)
	if !errors.Is(err, context.Canceled) || f.Calls(objecttest.Put) != 1 {
		t.Errorf("%d calls, %v", f.Calls(objecttest.Put), err)
	}
}

// TestListShowsEachOnce makes a listing fail after it has listed everything.
func TestListShowsEachOnce(t *testing.T) {
	m := mem.New()
	for i := range 3 {
		if err := m.Put(t.Context(), fmt.Sprintf("notes/%d", i), nil); err != nil {
			t.Fatal(err)
		}
	}
	f := objecttest.NewFaulty(m)
	f.Inject(objecttest.Fault{Verb: objecttest.List, After: true})
	var waits []time.Duration
	seen := make(map[string]int)
	err := retry.New(f, quick(&waits)).List(t.Context(), "", func(i object.Info) error {
		seen[i.Name]++
		return nil
	})
	if err != nil || len(seen) != 3 || f.Calls(objecttest.List) != 2 {
		t.Errorf("%v after %d calls, %v", seen, f.Calls(objecttest.List), err)
	}
	for name, n := range seen {
		if n != 1 {
			t.Errorf("%s shown %d times", name, n)
		}
	}
}
