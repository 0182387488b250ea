package repotest

import (
	"context"
	"sync"
	"time"
)

// Clock is a clock that tests move. It is safe for concurrent use.
type Clock struct {
	mu sync.Mutex
	t  time.Time
}

// NewClock returns a clock that shows the beginning of 2026.
func NewClock() *Clock { return ClockAt(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)) }

// ClockAt returns a clock that shows t.
func ClockAt(t time.Time) *Clock { return &Clock{t: t} }

// Now returns the time that the clock shows.
func (c *Clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

// Add moves the clock.
func (c *Clock) Add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

// Wait moves the clock by d and returns: time passes only here.
func (c *Clock) Wait(_ context.Context, d time.Duration) error { c.Add(d); return nil }
