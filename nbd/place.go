package nbd

import (
	"cmp"
	"context"
	"fmt"
	"time"
)

// connect makes l's connection, or returns it if another goroutine has just
// made it. If the disk needs the connection, connect waits for the limiter;
// otherwise it is an additional one, which may fail.
func (d *Disk) connect(ctx context.Context, l *lane, need bool) (*Conn, error) {
	select {
	case l.turn <- struct{}{}:
	case <-d.closed:
		return nil, ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer func() { <-l.turn }()

	l.mu.Lock()
	old, oldAt := l.conn, l.at
	if old != nil && old.Err() == nil {
		l.mu.Unlock()
		return old, nil
	}
	l.conn, l.at = nil, nil
	l.mu.Unlock()
	if old != nil {
		_ = old.Close() // waits for its end, so that the host notices the end before the new connection
		oldAt.release()
	}

	c, at, err := d.dialAny(ctx, need)
	if err == nil && d.info.Size >= 0 && c.Size() != d.info.Size {
		err = fmt.Errorf("%w: %d bytes, was %d", ErrChanged, c.Size(), d.info.Size)
		_ = c.Close()
		at.release()
	}
	if err != nil {
		if ctx.Err() == nil && !need {
			l.mu.Lock()
			l.resting = time.Now().Add(laneRest)
			l.mu.Unlock()
		}
		return nil, err
	}
	if old != nil {
		d.reconnects.Add(1)
	}
	d.mu.Lock()
	closed := d.isClosed()
	if !closed {
		l.mu.Lock()
		l.conn, l.at = c, at
		l.mu.Unlock()
	}
	d.mu.Unlock()
	if closed {
		_ = c.Close()
		at.release()
		return nil, ErrClosed
	}
	return c, nil
}

// place is a connection's reservation at a host. It is made before the
// connection, so that connections made at the same moment take each other into
// account.
type place struct {
	endpoint Endpoint
	release  func()
}

// nextPlace reserves a place at the endpoint, among those not in tried, whose
// host has the fewest connections of this disk, and among equals the fewest of
// this process. It skips hosts that are full and adds them to full. It returns
// nil if no endpoint is left.
func (d *Disk) nextPlace(tried map[int]bool, full *[]Endpoint) *place {
	d.mu.Lock()
	defer d.mu.Unlock()
	for {
		best := -1
		for i := range d.endpoints {
			if tried[i] {
				continue
			}
			if best < 0 || d.lessBusy(&d.endpoints[i], &d.endpoints[best]) {
				best = i
			}
		}
		if best < 0 {
			return nil
		}
		tried[best] = true
		e := d.endpoints[best]
		free, ok := d.opts.Limiter.TryAcquire(e.host())
		if ok {
			return d.take(e, free)
		}
		*full = append(*full, e)
	}
}

func (d *Disk) lessBusy(a, b *Endpoint) bool {
	x, y := a.host(), b.host()
	return cmp.Or(cmp.Compare(d.onHost[x], d.onHost[y]),
		cmp.Compare(d.opts.Limiter.InUse(x), d.opts.Limiter.InUse(y))) < 0
}

// take records a place that the limiter has granted; d.mu must be held.
func (d *Disk) take(e Endpoint, free func()) *place {
	host := e.host()
	d.onHost[host]++
	return &place{endpoint: e, release: func() {
		d.mu.Lock()
		d.onHost[host]--
		d.mu.Unlock()
		free()
	}}
}

// dialAny tries one endpoint after the other until a connection succeeds. If
// the disk needs the connection, it waits for a host that is full.
func (d *Disk) dialAny(ctx context.Context, need bool) (*Conn, *place, error) {
	var failed dialErrors
	var full []Endpoint
	tried := make(map[int]bool)
	for {
		at := d.nextPlace(tried, &full)
		if at == nil {
			break
		}
		c, err := d.dial(ctx, at)
		if err == nil {
			return c, at, nil
		}
		failed = append(failed, err)
		if ctx.Err() != nil || d.isClosed() {
			return nil, nil, failed
		}
	}
	if len(full) > 0 && need {
		e := full[0]
		free, err := d.opts.Limiter.Acquire(ctx, e.host())
		if err != nil {
			return nil, nil, append(failed, fmt.Errorf("wait for a connection to %s: %w", e.host(), err))
		}
		d.mu.Lock()
		at := d.take(e, free)
		d.mu.Unlock()
		c, err := d.dial(ctx, at)
		if err == nil {
			return c, at, nil
		}
		failed = append(failed, err)
	}
	if len(failed) == 0 {
		return nil, nil, errNoLane
	}
	return nil, nil, failed
}

// dial connects from a place, which it releases if it fails.
func (d *Disk) dial(ctx context.Context, at *place) (*Conn, error) {
	e := &at.endpoint
	d.mu.Lock()
	basic := d.basic[e.Address]
	d.mu.Unlock()
	began := time.Now()
	c, err := Dial(ctx, Options{
		Address: e.Address, Network: e.Network, ExportName: e.ExportName,
		TLS: e.TLS, PinnedCertPEM: e.PinnedCertPEM, ServerName: e.ServerName,
		Basic: basic, Depth: d.opts.Depth, Stall: d.opts.Stall, Drain: d.opts.Drain, Dial: d.opts.Dial,
	})
	if d.opts.Connected != nil {
		d.opts.Connected(e.Address, began, err)
	}
	if err != nil {
		at.release()
		return nil, err
	}
	d.mu.Lock()
	d.basic[e.Address] = c.Info().Basic
	d.mu.Unlock()
	return c, nil
}
