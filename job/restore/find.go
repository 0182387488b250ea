package restore

import (
	"context"
	"errors"

	"xenkeep/internal/hints"
	"xenkeep/job"
	"xenkeep/xapi"
)

// findSR returns the SR with a name or UUID; "" is the pool's default. The error lists
// similar names and the command that lists all SRs.
func findSR(ctx context.Context, pool *xapi.Client, name string) (xapi.SR, error) {
	const list = "xenkeep pool srs lists them; a UUID is taken in place of a name, also where the name holds a comma or \"=\""
	if name == "" {
		rec, err := pool.Pool(ctx)
		if err != nil {
			return xapi.SR{}, err
		}
		sr, err := pool.SR(ctx, rec.DefaultSR)
		if rec.DefaultSR.IsNull() || xapi.IsCode(err, xapi.HandleInvalid) {
			return sr, hints.With(errors.New("no SR is specified, and the pool has no default SR"), "specify one with --to-sr; "+list)
		}
		return sr, err
	}
	sr, err := pool.FindSR(ctx, name)
	if !errors.Is(err, xapi.ErrNotFound) {
		return sr, err
	}
	return sr, job.NotFound(err, name, func() ([]xapi.SR, error) { return pool.SRs(ctx) }, func(sr *xapi.SR) string { return sr.NameLabel }, list)
}

// findNetwork returns the network with a name or UUID, like findSR.
func findNetwork(ctx context.Context, pool *xapi.Client, name string) (xapi.Network, error) {
	n, err := pool.FindNetwork(ctx, name)
	if !errors.Is(err, xapi.ErrNotFound) {
		return n, err
	}
	return n, job.NotFound(err, name, func() ([]xapi.Network, error) { return pool.Networks(ctx) }, func(n *xapi.Network) string { return n.NameLabel },
		"xe network-list lists them; a UUID is taken in place of a name, also where the name holds \"=\"")
}
