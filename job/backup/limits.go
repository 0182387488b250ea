package backup

import (
	"context"
	"sync"

	"xenkeep/xapi"
)

// The default number of disks that are read concurrently from a host and from an SR. A
// host's exports share its dom0 and its network; more than a few slow each other down.
// Xen Orchestra chose 12 disks over all hosts.
const (
	defaultPerHost = 6
	defaultPerSR   = 4
)

// limits bounds the number of disks that are read concurrently from each host and from
// each SR, over all VMs of a run. It is safe for concurrent use.
type limits struct {
	perHost, perSR int

	mu    sync.Mutex
	hosts map[string]int // by address
	srs   map[xapi.Ref]int
	freed chan struct{} // closed and replaced whenever a transfer ends
}

func newLimits(perHost, perSR int) *limits {
	if perHost <= 0 {
		perHost = defaultPerHost
	}
	if perSR <= 0 {
		perSR = defaultPerSR
	}
	return &limits{
		perHost: perHost, perSR: perSR,
		hosts: make(map[string]int), srs: make(map[xapi.Ref]int), freed: make(chan struct{}),
	}
}

// acquire waits until the SR and one of hosts may serve one more transfer. It returns
// the host with the fewest transfers, or "" if hosts is empty and only the SR is
// counted.
func (c *limits) acquire(ctx context.Context, sr xapi.Ref, hosts []string) (host string, release func(), err error) {
	for {
		c.mu.Lock()
		host, ok := c.leastBusy(hosts)
		if ok && c.srs[sr] < c.perSR {
			c.add(sr, host, 1)
			c.mu.Unlock()
			return host, sync.OnceFunc(func() {
				c.mu.Lock()
				defer c.mu.Unlock()
				c.add(sr, host, -1)
				close(c.freed)
				c.freed = make(chan struct{})
			}), nil
		}
		freed := c.freed
		c.mu.Unlock()
		select {
		case <-freed:
		case <-ctx.Done():
			return "", nil, context.Cause(ctx)
		}
	}
}

func (c *limits) add(sr xapi.Ref, host string, n int) {
	c.srs[sr] += n
	if host != "" {
		c.hosts[host] += n
	}
}

// leastBusy returns the host with the fewest transfers that may take one more. It
// reports whether there is one.
func (c *limits) leastBusy(hosts []string) (string, bool) {
	best, ok := "", len(hosts) == 0
	for _, h := range hosts {
		if n := c.hosts[h]; n < c.perHost && (!ok || n < c.hosts[best]) {
			best, ok = h, true
		}
	}
	return best, ok
}
