// Package retry makes a store repeat calls that failed for a temporary reason.
package retry

import (
	"context"
	"hash/maphash"
	"math/rand/v2"
	"time"

	"xenkeep/chunkstore/object"
)

// Policy determines how often and for how long calls are retried. The zero
// value is the default.
type Policy struct {
	Attempts int           // total number of calls; 0: 7, about half a minute of waiting
	First    time.Duration // wait after the first failure, doubled after each further one; 0: 500 ms
	Longest  time.Duration // upper bound of one wait; 0: 15 s

	// Sleep waits, or returns ctx's error if ctx ends first; nil means the real
	// clock. Random returns numbers in [0, 1); nil means math/rand/v2.
	Sleep  func(ctx context.Context, d time.Duration) error
	Random func() float64

	// Notify, if not nil, is called for each failure that is retried. It must
	// be safe for concurrent use.
	Notify func(err error, attempt int, wait time.Duration)
}

// Store is a store that retries.
type Store struct {
	object.Store
	policy Policy
}

var _ object.Store = (*Store)(nil)

// New wraps inner. Only calls that returned object.ErrUnavailable are repeated.
// A repeated Put sends the same bytes.
func New(inner object.Store, p Policy) *Store { return &Store{Store: inner, policy: p.withDefaults()} }

// Do calls f, which opens a store, and retries it like a call of a Store.
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

// do calls f until it succeeds, fails permanently, or the attempts or ctx end.
// It returns the last error of f, or the context's error if that ended a wait.
func (s *Store) do(ctx context.Context, op, name string, f func() error) error {
	wait := s.policy.First
	for attempt := 1; ; attempt++ {
		err := f()
		if err == nil || attempt >= s.policy.Attempts || !object.Retriable(err) {
			return err
		}
		// The wait is between half and all of the current one, so that clients
		// that failed together do not retry together.
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

// List implements object.Store. A listing that fails is started again, and
// skips the objects that fn has already received. For that it keeps a hash of
// 128 bits of each name while it runs, which is 16 bytes instead of some 70 for
// a name.
func (s *Store) List(ctx context.Context, prefix string, fn func(object.Info) error) error {
	var shown seen
	var stopped error // fn's error, which must not be retried
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

// seen is a set of names, stored as hashes of 128 bits.
type seen struct {
	seeds [2]maphash.Seed
	names map[[2]uint64]struct{}
}

// again adds a name, and reports whether it was already in the set.
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
