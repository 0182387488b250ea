package backup

import (
	"context"
	"slices"
	"sync"

	"xenkeep/xapi"
)

// srLocks serializes snapshot operations per SR: an SR executes them one after the
// other anyway, and the pool gives up calls that wait there too long. It is safe for
// concurrent use.
type srLocks struct {
	mu *sync.Mutex
	of map[xapi.Ref]chan struct{}
}

func newSRLocks() srLocks {
	return srLocks{mu: new(sync.Mutex), of: make(map[xapi.Ref]chan struct{})}
}

// acquire locks all the given SRs. All callers lock in the same order, so that they
// cannot deadlock.
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
