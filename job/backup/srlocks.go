package backup

import (
	"context"
	"slices"
	"sync"

	"xenkeep/xapi"
)

// srLocks let one at a time through to each SR: an SR makes its snapshots one
// after the other anyway, and calls that wait there are given up by the pool.
type srLocks struct {
	mu *sync.Mutex
	of map[xapi.Ref]chan struct{}
}

func newSRLocks() srLocks {
	return srLocks{mu: new(sync.Mutex), of: make(map[xapi.Ref]chan struct{})}
}

// acquire waits for all of some SRs, in one order for all so that no two wait for
// each other.
func (g srLocks) acquire(ctx context.Context, srs []xapi.Ref) (release func(), err error) {
	srs = slices.Clone(srs)
	slices.Sort(srs)
	var held []chan struct{}
	release = func() {
		for _, c := range held {
			<-c
		}
	}
	for _, ref := range slices.Compact(srs) {
		g.mu.Lock()
		c := g.of[ref]
		if c == nil {
			c = make(chan struct{}, 1)
			g.of[ref] = c
		}
		g.mu.Unlock()
		select {
		case c <- struct{}{}:
			held = append(held, c)
		case <-ctx.Done():
			release()
			return nil, context.Cause(ctx)
		}
	}
	return release, nil
}
