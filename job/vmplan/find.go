package vmplan

import (
	"context"
	"errors"
	"fmt"

	"xenkeep/internal/hints"
	"xenkeep/job"
	"xenkeep/xapi"
)

// FindVM returns the VM of a name or UUID. If there is none, the error suggests the
// nearest name, and the hint is the command that lists them all.
func FindVM(ctx context.Context, pool *xapi.Client, nameOrUUID string) (xapi.VM, error) {
	vm, err := pool.FindVM(ctx, nameOrUUID)
	if !errors.Is(err, xapi.ErrNotFound) {
		return vm, err
	}
	all, aerr := pool.VMs(ctx)
	if aerr != nil {
		return vm, errors.Join(err, aerr)
	}
	var names []string
	for i := range all {
		if all[i].Real() {
			names = append(names, all[i].NameLabel)
		}
	}
	return vm, hints.With(fmt.Errorf("%w%s", err, job.DidYouMean(nameOrUUID, names)), "xenkeep pool vms lists them; a UUID is taken in place of a name")
}
