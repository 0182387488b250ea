package doctor

import (
	"context"
	"time"

	"xenkeep/job"
	"xenkeep/job/lease"
	"xenkeep/xapi"
)

// Blocked returns findings for the VMs of a pool that a dead run still blocks,
// although none of their disks is half restored.
func Blocked(ctx context.Context, pool *xapi.Client) ([]Finding, error) {
	vms, err := pool.VMs(ctx)
	if err != nil {
		return nil, err
	}
	var out []Finding
	var now time.Time
	for i := range vms {
		vm := &vms[i]
		guard, guarded := lease.Guarded(vm)
		if !vm.Real() || !guarded {
			continue
		}
		if now.IsZero() {
			if now, err = lease.PoolTime(ctx, pool); err != nil {
				return nil, err
			}
		}
		m := lease.WriterOf(vm.OtherConfig, vm.UUID)
		if m != nil && !lease.WriterGone(m, vm.OtherConfig, job.Hostname(), now) {
			continue
		}
		disks, err := lease.HalfDisks(ctx, pool, vm)
		if err != nil {
			return nil, err
		}
		if len(disks) == 0 {
			by := "a restore"
			if guard == lease.GuardRead {
				by = "a backup"
			}
			out = append(out, Finding{Level: Warn, What: "VM " + vm.NameLabel, Text: "start is blocked by " + by + " that has ended", Hint: lease.UnblockHint(m)})
		}
	}
	return out, nil
}
