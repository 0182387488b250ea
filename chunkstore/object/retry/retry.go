// Package retry makes a store try again what failed for a passing reason.
package retry

import (
	"context"
	"hash/maphash"
	"math/rand/v2"
	"time"

	"xenkeep/chunkstore/object"
)

// Policy says how often and how patiently. The zero value is the default.
type Policy struct {
	Attempts int           // calls in all; 0: 7, about half a minute of waiting
	First    time.Duration // wait after the first failure, doubled after each; 0: 500 ms
	Longest  time.Duration // bound of one wait; 0: 15 s

	// Sleep waits, or returns ctx's error when that ends first; nil is the real
	// thing. Random gives numbers in [0, 1); nil is math/rand/v2.
	Sleep  func(ctx context.Context, d time.Duration) error
	Random func() float64

	// Notify, where set, hears of each failure that is tried again. It may be
	// called at once from many goroutines.
	Notify func(err error, attempt int, wait time.Duration)
}

// Store is a store that tries again.
type Store struct {
	object.Store
	policy Policy
}

var _ object.Store = (*Store)(nil)

// New wraps inner. Only calls that ended in object.ErrUnavailable are repeated;
// a repeated Put sends the same bytes.
func New(inner object.Store, p Policy) *Store { return &Store{Store: inner, policy: p.withDefaults()} }

// Do calls f, which opens a store, as often as a call of a Store is tried.
func Do(ctx context.Context, p Policy, location string, f func() error) error {
	s := &Store{policy: p.withDefaults()}
	return s.do(ctx, "open", location, f)
}

func (p Policy) withDefaults() Policy {
	if p.Attempts <= 0 {
		p.Attempts = 7
	}
	if p.First <= 0 {
		p.First = 500 * time.Millisecond
	}
	if p.Longest <= 0 {
		p.Longest = 15 * time.Second
	}
	if p.Sleep == nil {
		p.Sleep = sleep
	}
	if p.Random == nil {
		p.Random = rand.Float64
	}
	return p
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// do calls f until it works, fails for good, or attempts or ctx end. The error
// is f's last one, or the context's if that ended a wait.
func (s *Store) do(ctx context.Context, op, name string, f func() error) error {
	wait := s.policy.First
	for attempt := 1; ; attempt++ {
		err := f()
		if err == nil || attempt >= s.policy.Attempts || !object.Retriable(err) {
			return err
		}
		// Between half and the whole of it, so that clients that failed
		// together do not come back together.
		d := time.Duration(float64(wait) * (0.5 + s.policy.Random()/2))
		if s.policy.Notify != nil {
			s.policy.Notify(err, attempt, d)
		}
		if ended := s.policy.Sleep(ctx, d); ended != nil {
			return &object.Error{Op: op, Name: name, Class: ended, Cause: err}
		}
		wait = min(2*wait, s.policy.Longest)
	}
}

// Put implements object.Store.
func (s *Store) Put(ctx context.Context, name string, data []byte) error {
	return s.do(ctx, "put", name, func() error { return s.Store.Put(ctx, name, data) })
}

// Get implements object.Store.
func (s *Store) Get(ctx context.Context, name string, offset, length int64) (p []byte, err error) {
	err = s.do(ctx, "get", name, func() error {
		p, err = s.Store.Get(ctx, name, offset, length)
		return err
	})
	if err != nil {
		return nil, err
	}
	return p, nil
}

// GetInto implements object.Store.
func (s *Store) GetInto(ctx context.Context, name string, offset int64, p []byte) error {
	return s.do(ctx, "get", name, func() error { return s.Store.GetInto(ctx, name, offset, p) })
}

// Stat implements object.Store.
func (s *Store) Stat(ctx context.Context, name string) (info object.Info, err error) {
	err = s.do(ctx, "stat", name, func() error {
		info, err = s.Store.Stat(ctx, name)
		return err
	})
	return info, err
}

// List implements object.Store. A listing that breaks begins again, and shows
// only what it has not shown; for that it remembers a hash of 128 bits of each
// name while it runs, which is 16 bytes for names of 70.
func (s *Store) List(ctx context.Context, prefix string, fn func(object.Info) error) error {
	var shown seen
	var stopped error // fn's error, which is nothing to try again
	err := s.do(ctx, "list", prefix, func() error {
		err := s.Store.List(ctx, prefix, func(i object.Info) error {
			if shown.again(i.Name) {
				return nil
			}
			stopped = fn(i)
			return stopped
		})
		if stopped != nil {
			return nil
		}
		return err
	})
	if stopped != nil {
		return stopped
	}
	return err
}

// seen remembers names, by hashes of 128 bits.
type seen struct {
	seeds [2]maphash.Seed
	names map[[2]uint64]struct{}
}

// again tells whether a name was asked about before.
func (s *seen) again(name string) bool {
	if s.names == nil {
		s.seeds = [2]maphash.Seed{maphash.MakeSeed(), maphash.MakeSeed()}
		s.names = make(map[[2]uint64]struct{})
	}
	h := [2]uint64{maphash.String(s.seeds[0], name), maphash.String(s.seeds[1], name)}
	_, again := s.names[h]
	s.names[h] = struct{}{}
	return again
}

// Delete implements object.Store.
func (s *Store) Delete(ctx context.Context, name string) error {
	return s.do(ctx, "delete", name, func() error { return s.Store.Delete(ctx, name) })
}
