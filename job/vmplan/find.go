package vmplan

import (
	"context"
	"errors"

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
	return vm, job.NotFound(err, nameOrUUID, func() ([]xapi.VM, error) { return pool.VMs(ctx) }, func(vm *xapi.VM) string {
		if !vm.Real() {
			return ""
		}
		return vm.NameLabel
	}, "xenkeep pool vms lists them; a UUID is taken in place of a name")
}
