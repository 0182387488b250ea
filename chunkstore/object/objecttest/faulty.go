package objecttest

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"xenkeep/chunkstore/object"
)

// Verb is a method of a store.
type Verb string

// The verbs that faults and counts tell apart. Get is both Get and GetInto.
const (
	Any    Verb = ""
	Put    Verb = "put"
	Get    Verb = "get"
	Stat   Verb = "stat"
	List   Verb = "list"
	Delete Verb = "delete"
)

// Fault is one thing that goes wrong.
type Fault struct {
	Verb   Verb   // Any: every verb
	Prefix string // of the names it strikes, "" all
	N      int    // strikes the N-th matching call from now on, counted from 0

	// Stay makes all later matching calls fail too, without effect; with Any
	// and no Prefix that is how the process looks to the storage when killed.
	Stay bool
	// After lets the N-th call take effect before it fails. A List has shown
	// its objects then.
	After bool
	// Err is the class of the error; nil is object.ErrUnavailable unless
	// Mangle or Do is set, which need not fail the call.
	Err error
	// Mangle changes what a Get has read. A result shorter than was asked for
	// is given to Get's caller, and is object.ErrShort to GetInto's.
	Mangle func(p []byte) []byte
	// Do runs before the call, say to kill or cancel something.
	Do func()
}

// FlipBit is a Mangle that flips one bit, counted from the start, of what is
// read, modulo its length.
func FlipBit(bit int) func([]byte) []byte {
	return func(p []byte) []byte {
		if len(p) > 0 {
			p[bit/8%len(p)] ^= 1 << (bit % 8)
		}
		return p
	}
}

// Truncate is a Mangle that cuts off the last n bytes of what is read.
func Truncate(n int) func([]byte) []byte {
	return func(p []byte) []byte { return p[:max(0, len(p)-n)] }
}

// Injected is a fault that waits to strike.
type Injected struct {
	fault Fault
	f     *Faulty
	seen  int
}

// Fired tells whether the fault has struck. A sweep ends when it has not.
func (i *Injected) Fired() bool {
	i.f.mu.Lock()
	defer i.f.mu.Unlock()
	return i.seen > i.fault.N
}

// Faulty is a store that goes wrong as it is told to, and counts. With calls in
// one order its doings are the same each time.
type Faulty struct {
	inner object.Store

	mu       sync.Mutex
	faults   []*Injected
	calls    map[Verb]int
	bytes    map[Verb]int64
	traits   object.Traits
	now      func() time.Time
	delay    time.Duration
	born     map[string]time.Time // when first put, for the delay of listings
	limited  bool
	room     int64            // bytes left, where limited
	sizes    map[string]int64 // of what was put while limited
	rate     int64            // bytes a second, 0: as fast as it goes
	each     time.Duration    // more for each call
	freeFrom time.Time        // when the slow line is free
}

var _ object.Store = (*Faulty)(nil)

// NewFaulty gives a store that does as inner does until told otherwise.
func NewFaulty(inner object.Store) *Faulty {
	return &Faulty{
		inner: inner, traits: inner.Traits(),
		calls: make(map[Verb]int), bytes: make(map[Verb]int64),
	}
}

// Inject adds a fault.
func (f *Faulty) Inject(fault Fault) *Injected {
	f.mu.Lock()
	defer f.mu.Unlock()
	i := &Injected{fault: fault, f: f}
	f.faults = append(f.faults, i)
	return i
}

// Heal removes all faults, the limit on space and the slowness.
func (f *Faulty) Heal() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.faults, f.limited, f.rate, f.each = nil, false, 0, 0
}

// DelayLists hides an object from List until it has been there for actual, by
// the clock now, and has Traits declare a bound of its own: a test that makes
// the two differ shows what the bound is for. Objects put before stay shown.
func (f *Faulty) DelayLists(declared, actual time.Duration, now func() time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.traits.ListDelay, f.delay, f.now = declared, actual, now
	f.born = make(map[string]time.Time)
}

// LimitSpace lets n more bytes be put; what does not fit is object.ErrNoSpace.
// Deleting what was put since gives its bytes back.
func (f *Faulty) LimitSpace(n int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.limited, f.room, f.sizes = true, n, make(map[string]int64)
}

// Slow makes all data share one line of so many bytes a second, and each call
// take a time of its own before. Zero values switch it off.
func (f *Faulty) Slow(bytesPerSecond int64, each time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rate, f.each = bytesPerSecond, each
}

// Calls tells how many calls of a verb there were, Any for all of them, failed
// ones too.
func (f *Faulty) Calls(v Verb) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls[v]
}

// Bytes tells how many bytes of payload were put or got without error.
func (f *Faulty) Bytes(v Verb) int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.bytes[v]
}

// ResetCounts sets all counts to zero.
func (f *Faulty) ResetCounts() {
	f.mu.Lock()
	defer f.mu.Unlock()
	clear(f.calls)
	clear(f.bytes)
}

// call does one call: the faults that strike it, and do in between.
func (f *Faulty) call(ctx context.Context, v Verb, name string, do func() (bytes int64, err error)) (mangle func([]byte) []byte, err error) {
	f.mu.Lock()
	f.calls[v]++
	f.calls[Any]++
	var before, after error
	var hooks []func()
	for _, i := range f.faults {
		ft := &i.fault
		if (ft.Verb != Any && ft.Verb != v) || !strings.HasPrefix(name, ft.Prefix) {
			continue
		}
		now := i.seen
		i.seen++
		if now < ft.N || (now > ft.N && !ft.Stay) {
			continue
		}
		class := ft.Err
		if class == nil && ft.Mangle == nil && ft.Do == nil {
			class = object.ErrUnavailable
		}
		if ft.Do != nil {
			hooks = append(hooks, ft.Do)
		}
		if ft.Mangle != nil {
			mangle = ft.Mangle
		}
		if class == nil {
			continue
		}
		err := &object.Error{Op: string(v), Name: name, Class: class}
		if ft.After && now == ft.N {
			after = err
		} else {
			before = err
		}
	}
	each := f.each
	f.mu.Unlock()
	for _, hook := range hooks {
		hook()
	}
	if before != nil {
		return nil, before
	}
	if err := wait(ctx, each); err != nil {
		return nil, &object.Error{Op: string(v), Name: name, Class: err}
	}
	n, err := do()
	if err != nil {
		return nil, err
	}
	if after != nil {
		return nil, after
	}
	f.mu.Lock()
	f.bytes[v] += n
	f.bytes[Any] += n
	f.mu.Unlock()
	return mangle, nil
}

// transfer waits until n bytes have gone over the slow line.
func (f *Faulty) transfer(ctx context.Context, n int64) error {
	f.mu.Lock()
	if f.rate == 0 {
		f.mu.Unlock()
		return nil
	}
	now := time.Now()
	if f.freeFrom.Before(now) {
		f.freeFrom = now
	}
	f.freeFrom = f.freeFrom.Add(time.Duration(float64(n) / float64(f.rate) * float64(time.Second)))
	d := f.freeFrom.Sub(now)
	f.mu.Unlock()
	return wait(ctx, d)
}

func wait(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// take books space for an object, and gives what undoes that.
func (f *Faulty) take(name string, n int64) (undo func(), ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.limited {
		return func() {}, true
	}
	old := f.sizes[name]
	if n-old > f.room {
		return nil, false
	}
	f.room -= n - old
	f.sizes[name] = n
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.room += n - old
		f.sizes[name] = old
	}, true
}

// Put implements object.Store.
func (f *Faulty) Put(ctx context.Context, name string, data []byte) error {
	_, err := f.call(ctx, Put, name, func() (int64, error) {
		undo, ok := f.take(name, int64(len(data)))
		if !ok {
			return 0, &object.Error{Op: "put", Name: name, Class: object.ErrNoSpace}
		}
		err := f.transfer(ctx, int64(len(data)))
		if err != nil {
			err = &object.Error{Op: "put", Name: name, Class: err}
		} else if err = f.inner.Put(ctx, name, data); err == nil {
			f.mu.Lock()
			if _, known := f.born[name]; f.born != nil && !known {
				f.born[name] = f.now()
			}
			f.mu.Unlock()
		}
		if err != nil {
			undo()
		}
		return int64(len(data)), err
	})
	return err
}

// Get implements object.Store.
func (f *Faulty) Get(ctx context.Context, name string, offset, length int64) ([]byte, error) {
	var p []byte
	mangle, err := f.call(ctx, Get, name, func() (n int64, err error) {
		if p, err = f.inner.Get(ctx, name, offset, length); err == nil {
			err = f.transfer(ctx, int64(len(p)))
		}
		return int64(len(p)), err
	})
	if err != nil {
		return nil, err
	}
	if mangle != nil {
		p = mangle(p)
	}
	return p, nil
}

// GetInto implements object.Store.
func (f *Faulty) GetInto(ctx context.Context, name string, offset int64, p []byte) error {
	mangle, err := f.call(ctx, Get, name, func() (int64, error) {
		err := f.inner.GetInto(ctx, name, offset, p)
		if err == nil {
			err = f.transfer(ctx, int64(len(p)))
		}
		return int64(len(p)), err
	})
	if err != nil || mangle == nil {
		return err
	}
	q := mangle(slices.Clone(p))
	if copy(p, q) < len(p) {
		return &object.Error{Op: "get", Name: name, Class: object.ErrShort}
	}
	return nil
}

// Stat implements object.Store.
func (f *Faulty) Stat(ctx context.Context, name string) (info object.Info, err error) {
	_, err = f.call(ctx, Stat, name, func() (int64, error) {
		info, err = f.inner.Stat(ctx, name)
		return 0, err
	})
	return info, err
}

// List implements object.Store.
func (f *Faulty) List(ctx context.Context, prefix string, fn func(object.Info) error) error {
	_, err := f.call(ctx, List, prefix, func() (int64, error) {
		return 0, f.inner.List(ctx, prefix, func(i object.Info) error {
			if f.late(i.Name) {
				return nil
			}
			return fn(i)
		})
	})
	return err
}

// late tells whether a listing does not show an object yet.
func (f *Faulty) late(name string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	born, ok := f.born[name]
	return ok && f.now().Sub(born) < f.delay
}

// Delete implements object.Store.
func (f *Faulty) Delete(ctx context.Context, name string) error {
	_, err := f.call(ctx, Delete, name, func() (int64, error) {
		if err := f.inner.Delete(ctx, name); err != nil {
			return 0, err
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.limited {
			f.room += f.sizes[name]
			delete(f.sizes, name)
		}
		delete(f.born, name)
		return 0, nil
	})
	return err
}

// Traits implements object.Store.
func (f *Faulty) Traits() object.Traits {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.traits
}

// Location implements object.Store.
func (f *Faulty) Location() string { return f.inner.Location() }

// Close implements object.Store.
func (f *Faulty) Close() error { return f.inner.Close() }
