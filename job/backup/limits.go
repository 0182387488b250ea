package backup

import (
	"context"
	"sync"

	"xenkeep/xapi"
)

// What a host and an SR are asked for at once unless the user says otherwise.
// A host's exports share its dom0 and its network; more than a few slow each
// other down. Xen Orchestra came to 12 disks over all hosts.
const (
	defaultPerHost = 6
	defaultPerSR   = 4
)

// limits bound how many disks are read at once from each host and from each
// SR, over all VMs of a run.
type limits struct {
	perHost, perSR int

	mu    sync.Mutex
	hosts map[string]int // by address
	srs   map[xapi.Ref]int
	freed chan struct{} // closed, and replaced, whenever a place becomes free
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

// acquire waits until an SR and one of hosts have a place, and gives the host
// that has the least to do; "" where hosts is empty and only the SR counts.
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

// leastBusy finds the host with the fewest transfers that may take one more.
func (c *limits) leastBusy(hosts []string) (string, bool) {
	best, ok := "", len(hosts) == 0
	for _, h := range hosts {
		if n := c.hosts[h]; n < c.perHost && (!ok || n < c.hosts[best]) {
			best, ok = h, true
		}
	}
	return best, ok
}
