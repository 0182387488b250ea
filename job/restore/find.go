package restore

import (
	"context"
	"errors"
	"fmt"

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
	all, aerr := pool.SRs(ctx)
	if aerr != nil {
		return sr, errors.Join(err, aerr)
	}
	var names []string
	for _, s := range all {
		names = append(names, s.NameLabel)
	}
	return sr, hints.With(fmt.Errorf("%w%s", err, job.DidYouMean(name, names)), list)
}

// findNetwork returns the network with a name or UUID, like findSR.
func findNetwork(ctx context.Context, pool *xapi.Client, name string) (xapi.Network, error) {
	n, err := pool.FindNetwork(ctx, name)
	if !errors.Is(err, xapi.ErrNotFound) {
		return n, err
	}
	all, aerr := pool.Networks(ctx)
	if aerr != nil {
		return n, errors.Join(err, aerr)
	}
	var names []string
	for _, x := range all {
		names = append(names, x.NameLabel)
	}
	return n, hints.With(fmt.Errorf("%w%s", err, job.DidYouMean(name, names)),
		"xe network-list lists them; a UUID is taken in place of a name, also where the name holds \"=\"")

}
