package nbd

import (
	"context"
	"sync"
)

// HostConnections is the maximum number of concurrent connections to xapi-nbd;
// it accepts and closes further ones (ocaml/nbd/lib/consts.ml of xen-api).
const HostConnections = 16

// Limiter bounds the connections to each host over all disks that share it.
type Limiter struct {
	max int

	mu    sync.Mutex
	hosts map[string]*hostLimit
}

type hostLimit struct {
	used  int
	queue []chan struct{} // waiting callers, the one that has waited longest first
}

// NewLimiter returns a limiter for perHost connections per host, or
// HostConnections if that is zero.
func NewLimiter(perHost int) *Limiter {
	if perHost <= 0 {
		perHost = HostConnections
	}
	return &Limiter{max: perHost, hosts: make(map[string]*hostLimit)}
}

func (l *Limiter) host(name string) *hostLimit {
	h := l.hosts[name]
	if h == nil {
		h = &hostLimit{}
		l.hosts[name] = h
	}
	return h
}

// Acquire waits until another connection to host is allowed, first come, first
// served. The caller returns it with release, which may be called more than
// once.
func (l *Limiter) Acquire(ctx context.Context, host string) (release func(), err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if release, ok := l.TryAcquire(host); ok {
		return release, nil
	}
	l.mu.Lock()
	h := l.host(host)
	if h.used < l.max && len(h.queue) == 0 {
		h.used++
		l.mu.Unlock()
		return l.releaser(host), nil
	}
	turn := make(chan struct{})
	h.queue = append(h.queue, turn)
	l.mu.Unlock()
	select {
	case <-turn:
		return l.releaser(host), nil
	case <-ctx.Done():
	}
	l.mu.Lock()
	for i, q := range h.queue {
		if q == turn {
			h.queue = append(h.queue[:i], h.queue[i+1:]...)
			l.mu.Unlock()
			return nil, ctx.Err()
		}
	}
	l.mu.Unlock()
	// The connection was granted at the same moment: pass it on.
	l.releaser(host)()
	return nil, ctx.Err()
}

// TryAcquire acquires another connection to host if one is allowed now and
// nobody waits for it.
func (l *Limiter) TryAcquire(host string) (release func(), ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	h := l.host(host)
	if h.used >= l.max || len(h.queue) > 0 {
		return nil, false
	}
	h.used++
	return l.releaser(host), true
}

// InUse returns the number of acquired connections to host.
func (l *Limiter) InUse(host string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.host(host).used
}

// wanted reports whether a caller waits for a connection to host.
func (l *Limiter) wanted(host string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.host(host).queue) > 0
}

func (l *Limiter) releaser(host string) func() {
	var once sync.Once
	return func() {
		once.Do(func() {
			l.mu.Lock()
			defer l.mu.Unlock()
			h := l.host(host)
			if len(h.queue) > 0 {
				close(h.queue[0]) // the connection passes to the waiting caller
				h.queue = h.queue[1:]
				return
			}
			h.used--
		})
	}
}
