package restore

import (
	"context"
	"fmt"
	"strings"

	"xenkeep/job"
	"xenkeep/job/lease"
	"xenkeep/xapi"
)

// resumable reports whether a VDI was begun by a restore of the same snapshot with
// which this restore can continue.
func (p *poolRestore) resumable(v *xapi.VDI) bool {
	role := v.OtherConfig[lease.MarkRole]
	return p.o.Resume && (role == lease.RoleRestore || role == lease.RoleResume) && v.OtherConfig[lease.MarkDone] == "" &&
		v.OtherConfig[lease.MarkRepository] == p.r.ID() && v.OtherConfig[lease.MarkSnapshot] == p.s.ID()
}

// findUnfinished finds the VDI that an earlier restore of a disk left unfinished, and
// takes ownership of it.
func (p *poolRestore) findUnfinished(ctx context.Context, d placement) (xapi.VDI, bool, error) {
	all, err := p.pool.VDIs(ctx)
	if err != nil {
		return xapi.VDI{}, false, err
	}
	c := &job.Common{}
	c.Defaults()
	j := &lease.Liveness{R: p.r, Machine: c.Machine, Now: p.lease.Now()}
	for i := range all {
		v := &all[i]
		if !p.resumable(v) || v.OtherConfig[lease.MarkDisk] != d.d.Device || v.SR != d.sr.Ref || int64(v.VirtualSize) < d.im.Size() {
			continue
		}
		if used, err := p.belongsToVM(ctx, v); used || err != nil {
			if err != nil {
				return *v, false, err
			}
			continue // a restore completed it, but had no time to remove its marks
		}
		m, _ := lease.ReadMarks(v.OtherConfig, v.SnapshotTime.Time)
		if m.Process != "" {
			gone, err := j.Dead(ctx, &m)
			if err != nil {
				return *v, false, err
			}
			if !gone {
				return *v, false, fmt.Errorf("disk %s: VDI %s: run %s on %s is writing it, or was less than an hour ago: %w", d.d.Device, v.UUID, lease.ShortRun(m.Run), m.Machine, job.ErrActive)
			}
		}
		p.vdis = append(p.vdis, v.Ref)
		if err := p.removeTransferTasks(ctx, v.Ref); err != nil {
			return *v, false, err
		}
		return *v, true, p.lease.Mark(ctx, "VDI", v.Ref, p.role)
	}
	return xapi.VDI{}, false, nil
}

// belongsToVM reports whether a VDI is attached to a VM.
func (p *poolRestore) belongsToVM(ctx context.Context, v *xapi.VDI) (bool, error) {
	for _, ref := range v.VBDs {
		b, err := p.pool.VBD(ctx, ref)
		if xapi.IsCode(err, xapi.HandleInvalid) {
			continue
		}
		if err != nil {
			return false, err
		}
		vm, err := p.pool.VM(ctx, b.VM)
		if err != nil {
			return false, err
		}
		if !vm.IsControlDomain {
			return true, nil
		}
	}
	return false, nil
}

// leaveUnfinished marks the unfinished VDIs so that a later run can continue with
// them, and returns a message that names them.
func (p *poolRestore) leaveUnfinished(ctx context.Context) string {
	var uuids []string
	for _, ref := range p.vdis {
		v, err := p.pool.VDI(ctx, ref)
		if xapi.IsCode(err, xapi.HandleInvalid) {
			continue
		}
		name := string(ref)
		if err == nil {
			name = v.UUID
		}
		// If this fails, the run counts as dead after an hour.
		_ = p.pool.RemoveOtherConfig(ctx, "VDI", ref, lease.MarkProcess)
		uuids = append(uuids, name)
	}
	if len(uuids) == 0 {
		return "nothing was made"
	}
	return fmt.Sprintf("the data written so far remain on VDI %s: the same command continues with them, xenkeep cleanup --unfinished removes them", strings.Join(uuids, ", "))
}
