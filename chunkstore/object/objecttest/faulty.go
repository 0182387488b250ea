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

// The verbs that faults and counts distinguish. Get stands for both Get and
// GetInto.
const (
	Any    Verb = ""
	Put    Verb = "put"
	Get    Verb = "get"
	Stat   Verb = "stat"
	List   Verb = "list"
	Delete Verb = "delete"
)

// Fault is a failure of a call.
type Fault struct {
	Verb   Verb   // Any means every verb
	Prefix string // of the names that it affects; "" means all
	N      int    // affects the N-th matching call from now on, counted from 0

	// Stay makes all later matching calls fail too, without effect. With Any
	// and no Prefix, a killed process looks like this to the storage.
	Stay bool
	// After lets the N-th call take effect before it fails. A List has then
	// called fn for its objects.
	After bool
	// Err is the class of the error. If it is nil, the class is
	// object.ErrUnavailable, unless Mangle or Do is set: then the call need not
	// fail.
	Err error
	// Mangle changes the bytes that a Get has read. If the result is shorter
	// than requested, Get returns it, and GetInto returns object.ErrShort.
	Mangle func(p []byte) []byte
	// Do runs before the call, for example to kill or cancel something.
	Do func()
}

// FlipBit returns a Mangle that flips one bit of the bytes read. The bit is
// counted from the start, modulo their length.
func FlipBit(bit int) func([]byte) []byte {
	return func(p []byte) []byte {
		if len(p) > 0 {
			p[bit/8%len(p)] ^= 1 << (bit % 8)
		}
		return p
	}
}

// Truncate returns a Mangle that removes the last n of the bytes read.
func Truncate(n int) func([]byte) []byte {
	return func(p []byte) []byte { return p[:max(0, len(p)-n)] }
}

// Injected is a fault that was added to a store.
type Injected struct {
	fault Fault
	f     *Faulty
	seen  int
}

// Fired reports whether the fault has occurred. A sweep ends when it has not.
func (i *Injected) Fired() bool {
	i.f.mu.Lock()
	defer i.f.mu.Unlock()
	return i.seen > i.fault.N
}

// Faulty is a store that fails on demand, and counts calls. If calls come in
// the same order, it behaves the same each time.
type Faulty struct {
	inner object.Store

	mu       sync.Mutex
	faults   []*Injected
	calls    map[Verb]int
	bytes    map[Verb]int64
	traits   object.Traits
	now      func() time.Time
	delay    time.Duration
	born     map[string]time.Time // time of the first Put, for the delay of listings
	limited  bool
	room     int64            // bytes left, if limited
	sizes    map[string]int64 // of the objects put while limited
	rate     int64            // bytes per second; 0: unlimited
	each     time.Duration    // additional duration of each call
	freeFrom time.Time        // time from which the slow line is free
}

var _ object.Store = (*Faulty)(nil)

// NewFaulty returns a store that behaves like inner until it is changed.
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

// Heal removes all faults, the limit on space, and the slowness.
func (f *Faulty) Heal() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.faults, f.limited, f.rate, f.each = nil, false, 0, 0
}

// DelayLists hides an object from List until it has existed for actual,
// according to the clock now, and makes Traits return declared as the delay. A
// test that makes the two differ shows the purpose of the declared bound.
// Objects that were put before remain visible.
func (f *Faulty) DelayLists(declared, actual time.Duration, now func() time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.traits.ListDelay, f.delay, f.now = declared, actual, now
	f.born = make(map[string]time.Time)
}

// LimitSpace allows n more bytes to be put. A Put that does not fit returns
// object.ErrNoSpace. Deleting an object that was put since then frees its
// bytes.
func (f *Faulty) LimitSpace(n int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.limited, f.room, f.sizes = true, n, make(map[string]int64)
}

// Slow makes all data share one line with that many bytes per second, and
// delays each call by each. Zero values disable this.
func (f *Faulty) Slow(bytesPerSecond int64, each time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rate, f.each = bytesPerSecond, each
}

// Calls returns the number of calls of a verb, or of all verbs for Any,
// including failed calls.
func (f *Faulty) Calls(v Verb) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls[v]
}

// Bytes returns the number of payload bytes that were put or read without
// error.
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

// call does one call: it applies the faults that affect the call, and runs do
// in between.
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

// transfer waits until n bytes have passed over the slow line.
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

// take reserves space for an object, and returns a function that undoes this.
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

// late reports whether listings do not include an object yet.
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
