package backup

import (
	"context"
	"slices"
	"sync"

	"xenkeep/xapi"
)

// gates let one at a time through to each SR: an SR makes its snapshots one
// after the other anyway, and calls that wait there are given up by the pool.
type gates struct {
	mu *sync.Mutex
	of map[xapi.Ref]chan struct{}
}

func newGates() gates {
	return gates{mu: new(sync.Mutex), of: make(map[xapi.Ref]chan struct{})}
}

// enter waits for all of some SRs, in one order for all so that no two wait for
// each other.
func (g gates) enter(ctx context.Context, srs []xapi.Ref) (leave func(), err error) {
	srs = slices.Clone(srs)
	slices.Sort(srs)
	var held []chan struct{}
	leave = func() {
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
			leave()
			return nil, context.Cause(ctx)
		}
	}
	return leave, nil
}
