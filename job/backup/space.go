package backup

import (
	"context"
	"slices"

	"xenkeep/job/vmplan"
	"xenkeep/xapi"
)

// explainSpace adds the names of the full SRs to a pool's error, which reports only
// that some storage is full.
func (v *vmBackup) explainSpace(ctx context.Context, err error) error {
	if !xapi.IsCode(err, xapi.SRNoSpace) {
		return err
	}
	needs := vmplan.SpaceNeeds(v.plan)
	for i := range needs {
		if sr, serr := v.b.pool.SR(ctx, needs[i].SR.Ref); serr == nil {
			needs[i].SR = sr
		}
	}
	if short := slices.DeleteFunc(slices.Clone(needs), func(n vmplan.SRNeed) bool { return n.SR.PhysicalSize <= 0 || n.Free() >= n.Need }); len(short) > 0 {
		needs = short
	}
	return &vmplan.SpaceError{Needs: needs, Err: err}
}
