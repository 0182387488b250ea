package backup

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/dustin/go-humanize"

	"xenkeep/job"
	"xenkeep/job/vmplan"
	"xenkeep/repo"
	"xenkeep/repo/retention"
	"xenkeep/xapi"
)

// VMPreview is the expected backup of one VM.
type VMPreview struct {
	Kind     vmplan.Kind // of the VM snapshot that is likely to be taken
	Fallback []string    // why it is none of the kinds before it
	Disks    []DiskPreview
	Space    error    // ErrSpace if an SR has too little free space for the VM snapshot
	Warnings []string // for example, advice of the vendor against this kind
}

// DiskPreview is the expected backup of one disk.
type DiskPreview struct {
	Device, VDI, Name, SR string
	Size                  int64
	Method, Reason        string
	Bytes                 int64  // upper bound of the bytes to be read; -1 if it is not known
	Tracked               bool   // its changes are tracked already
	Left                  string // why it is left out; "" if it is not
	Asked                 bool   // the user requested to leave it out
}

// Preview predicts the backups of VMs without changing the pool or the repository.
type Preview struct {
	r         *repo.Repository
	pool      *xapi.Client
	o         Options
	b         *poolBackup
	srs       map[xapi.Ref]error // why an SR cannot be reached; nil if it can
	Untracked string             // why no changes are tracked on this pool; "" if they can be
}

// NewPreview reads the repository and the features of the pool.
func NewPreview(ctx context.Context, r *repo.Repository, pool *xapi.Client, o Options) (*Preview, error) {
	o.Defaults()
	f := &Preview{srs: make(map[xapi.Ref]error), r: r, pool: pool, o: o, b: &poolBackup{r: r, pool: pool, o: o, outcome: newOutcome()}}
	var err error
	if f.b.all, _, err = r.Snapshots(ctx); err != nil {
		return nil, err
	}
	t, err := newTracking(ctx, pool, cmp.Or(o.Transport, TransportAuto))
	if err != nil {
		return nil, err
	}
	f.Untracked = t.off
	return f, nil
}

// VM predicts the backup of one VM. An error is the reason why the backup would fail;
// the preview may be non-nil nevertheless.
func (f *Preview) VM(ctx context.Context, c VMRequest) (*VMPreview, error) {
	o := f.o.planOptions(c.Leave, c.Kinds)
	o.Repository, o.Machine = f.r.ID(), f.o.Machine
	p, err := vmplan.Read(ctx, f.pool, c.UUID, o)
	if err != nil {
		return nil, err
	}
	for _, d := range p.Disks {
		if err := f.checkAttached(ctx, &d.SR); err != nil {
			return nil, fmt.Errorf("disk %s: %w", d.Device(), err)
		}
	}
	out := &VMPreview{Space: vmplan.CheckSpace(p)}
	kinds := c.Kinds
	if len(kinds) == 0 {
		kinds = []vmplan.Kind{vmplan.KindRegular}
	}
	var last error
	for _, k := range kinds {
		err := p.Unable(k)
		if err == nil && k == vmplan.KindQuiesced {
			err = f.canQuiesce(ctx)
		}
		if err == nil {
			out.Kind, last = k, nil
			break
		}
		last = err
		out.Fallback = append(out.Fallback, job.OneLine(err))
	}
	if last != nil {
		return out, last
	}
	out.Warnings = p.KindWarnings(out.Kind)
	if p.VM.OtherConfig["snapmanager"] == "true" {
		out.Warnings = append(out.Warnings, "other_config has snapmanager=true, which lets its guest import the disks of other VMs")
	}
	if raw := p.DirectDisks(); len(raw) > 0 && p.VM.PowerState != "Halted" {
		var size int64
		for _, d := range raw {
			size += int64(d.VDI.VirtualSize)
		}
		out.Warnings = append(out.Warnings, fmt.Sprintf("it stays shut down until its raw disks are read (%s)", humanize.IBytes(uint64(size))))
	}
	newest := f.b.lastSnapshot(p.VM.UUID)
	for _, d := range p.Disks {
		x, err := f.disk(ctx, p, d, newest)
		if err != nil {
			return nil, err
		}
		out.Disks = append(out.Disks, x)
	}
	for _, d := range p.Left {
		out.Disks = append(out.Disks, DiskPreview{Device: d.Device(), VDI: d.VDI.UUID, Name: d.VDI.NameLabel, SR: d.SR.NameLabel, Size: int64(d.VDI.VirtualSize), Left: d.Reason, Asked: c.Leave[d.VDI.UUID] != ""})
	}
	return out, nil
}

// disk predicts the read of one disk; newest is the VM's latest complete snapshot.
func (f *Preview) disk(ctx context.Context, p *vmplan.Plan, d *vmplan.DiskPlan, newest *repo.Snapshot) (DiskPreview, error) {
	x := DiskPreview{Device: d.Device(), VDI: d.VDI.UUID, Name: d.VDI.NameLabel, SR: d.SR.NameLabel, Size: int64(d.VDI.VirtualSize), Method: "full", Tracked: d.VDI.CBTEnabled}
	d.Untracked = f.Untracked
	if err := f.o.AllowShrink.CheckDisk(newest, d.VDI.UUID, x.Size); err != nil {
		return x, fmt.Errorf("disk %s: %w", d.Device(), err)
	}
	base, err := findBase(ctx, f.pool, f.r.ID(), newest, &p.VM, d, &d.VDI, f.b.healthOf(newest))
	if err != nil {
		return x, err
	}
	if d.Direct {
		base = base.untracked(directReason)
	}
	x.Reason, x.Bytes = base.reason, int64(d.VDI.VirtualSize)
	if d.SR.StoresVHD(d.VDI) && d.VDI.PhysicalUtilisation > 0 {
		x.Bytes = min(x.Bytes, int64(d.VDI.PhysicalUtilisation))
	}
	switch {
	case !base.tracked.IsNull():
		x.Method, x.Bytes = "cbt", -1
	case !base.vdi.IsNull():
		x.Method, x.Bytes = "vhd-delta", -1
	}
	return x, nil
}

// checkAttached returns an error if no running host is attached to the SR: then the
// pool can neither snapshot nor export its disks.
func (f *Preview) checkAttached(ctx context.Context, sr *xapi.SR) error {
	if err, known := f.srs[sr.Ref]; known {
		return err
	}
	_, err := f.pool.HostsFor(ctx, sr.Ref)
	f.srs[sr.Ref] = err
	return err
}

// canQuiesce returns an error if the pool's version has no quiesced snapshots.
func (f *Preview) canQuiesce(ctx context.Context) error {
	hosts, err := f.pool.Hosts(ctx)
	if err != nil {
		return err
	}
	for _, h := range hosts {
		// The API of 8.0, the last with such snapshots, is 2.12.
		if h.APIVersionMajor > 2 || h.APIVersionMajor == 2 && h.APIVersionMinor > 12 {
			return &vmplan.Unable{Kind: vmplan.KindQuiesced, Why: "the pool's version has none any more (they went with 8.1)", Advice: "configure another kind after it"}
		}
	}
	return nil
}

// ForgetVMs applies retention to those VMs of a job on a pool that have a complete
// snapshot, as Run does at its end. It returns the IDs of the deleted snapshots.
func ForgetVMs(ctx context.Context, r *repo.Repository, c job.Common, pool string, vms []VMRequest, policy retention.Policy) ([]string, error) {
	c.Defaults()
	all, _, err := r.Snapshots(ctx)
	if err != nil {
		return nil, err
	}
	var newest []*repo.Snapshot
	for i := range vms {
		s := repo.Latest(all, func(s *repo.Snapshot) bool {
			return s.Origin == "pool" && s.Pool.UUID == pool && s.VM.UUID == vms[i].UUID && s.Job == c.Job
		})
		if s != nil {
			newest = append(newest, s)
		}
	}
	return job.Forget(ctx, r, &c, func(s *repo.Snapshot) retention.Policy {
		i := slices.IndexFunc(vms, func(v VMRequest) bool { return v.UUID == s.VM.UUID })
		if vms[i].Retention != nil {
			return *vms[i].Retention
		}
		return policy
	}, newest)
}

// LatestComplete returns the newest complete snapshot of a VM of a pool, of any job, that is
// not among unsound, the IDs of damaged snapshots; nil if there is none.
func LatestComplete(all []*repo.Snapshot, pool, vm string, unsound map[string]string) *repo.Snapshot {
	return repo.Latest(all, func(s *repo.Snapshot) bool {
		return s.Origin == "pool" && s.Pool.UUID == pool && s.VM.UUID == vm && unsound[s.ID()] == ""
	})
}

// DataTime returns the time of a snapshot's data, for computing its age. The data time
// is set by the pool's clock, which may be ahead of ours; no data is newer than the
// snapshot that holds it, and so the earlier of both times is returned.
func DataTime(s *repo.Snapshot) time.Time {
	if s.WrittenTime.Before(s.DataTime) {
		return s.WrittenTime
	}
	return s.DataTime
}
