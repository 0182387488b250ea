package restore

import (
	"context"

	"xenkeep/chunkstore/chunk"
	"xenkeep/repo"
	"xenkeep/repo/restore"
	"xenkeep/xapi"
)

// FillVDI writes a disk to an existing VDI, as Disks does to one that it has just
// created: for targets that no SR of the simulated pool creates by itself.
func FillVDI(ctx context.Context, r *repo.Repository, pool *xapi.Client, d *repo.Disk, vdi xapi.Ref) error {
	im, err := restore.Open(ctx, r, chunk.ID(d.Root))
	if err != nil {
		return err
	}
	v, err := pool.VDI(ctx, vdi)
	if err != nil {
		return err
	}
	sr, err := pool.SR(ctx, v.SR)
	if err != nil {
		return err
	}
	p := &poolRestore{r: r, pool: pool}
	p.o.Defaults()
	_, err = p.fill(ctx, im, v, sr, nil)
	return err
}
