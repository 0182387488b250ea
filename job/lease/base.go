package lease

import (
	"context"
	"errors"

	"xenkeep/xapi"
)

// IsBase reports whether a VDI snapshot is kept as a base by the backups of this
// repository.
func IsBase(v *xapi.VDI, repository string) bool {
	return v.IsASnapshot && v.OtherConfig[MarkRepository] == repository && v.OtherConfig[MarkRole] == RoleBase
}

// dropOldBases destroys the bases of a disk in this repository except keep.
func dropOldBases(ctx context.Context, pool *xapi.Client, repository string, disk xapi.Ref, keep xapi.Ref) error {
	return DropBases(ctx, pool, repository, disk, func(s *xapi.VDI) bool { return s.Ref != keep })
}

// DropBases destroys those bases of a disk in this repository for which unwanted
// returns true.
func DropBases(ctx context.Context, pool *xapi.Client, repository string, disk xapi.Ref, unwanted func(*xapi.VDI) bool) error {
	v, err := pool.VDI(ctx, disk)
	if err != nil {
		if xapi.IsCode(err, xapi.HandleInvalid) {
			return nil
		}
		return err
	}
	var errs []error
	for _, ref := range v.Snapshots {
		s, err := pool.VDI(ctx, ref)
		if xapi.IsCode(err, xapi.HandleInvalid) {
			continue
		}
		if err == nil && IsBase(&s, repository) && unwanted(&s) {
			err = pool.DestroyVDI(ctx, ref)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
