package job

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"xenkeep/repo"
	"xenkeep/repo/retention"
	"xenkeep/xapi"
)

// Forecast is what a backup of a VM would do.
type Forecast struct {
	Kind     Kind     // that its VM snapshot will likely be of
	Fallback []string // why it is not one of the kinds before it
	Disks    []DiskForecast
	Space    error    // ErrSpace where its SRs lack room for the VM snapshot
	Warnings []string // what the vendor or we advise against
}

// DiskForecast is what would be done with one disk.
type DiskForecast struct {
	Device, VDI, Name, SR string
	Size                  int64
	Method, Reason        string
	Bytes                 int64  // to be read at most; -1 where that cannot be known
	Tracked               bool   // its changes are tracked now
	Left                  string // why it is left out
	Asked                 bool   // it is left out because that was asked for
}

// Foresight foresees runs on a pool; it changes nothing there.
type Foresight struct {
	r         *repo.Repository
	pool      *xapi.Client
	o         BackupOptions
	b         *poolBackup
	srs       map[xapi.Ref]error // why an SR cannot be reached; nil where it can
	Untracked string             // why no changes are tracked on this pool; "" where they may be
}

// Foresee begins to foresee a run.
func Foresee(ctx context.Context, r *repo.Repository, pool *xapi.Client, o BackupOptions) (*Foresight, error) {
	o.defaults()
	f := &Foresight{srs: make(map[xapi.Ref]error), r: r, pool: pool, o: o, b: &poolBackup{r: r, pool: pool, o: o, damaged: map[string]soundness{}}}
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

// VM foresees the backup of one VM. An error says why it would fail.
func (f *Foresight) VM(ctx context.Context, c Chosen) (*Forecast, error) {
	o := f.o.planOptions(c.Leave)
	o.repository, o.machine = f.r.ID(), f.o.Machine
	p, err := planVM(ctx, f.pool, c.UUID, o)
	if err != nil {
		return nil, err
	}
	for _, d := range p.disks {
		if err := f.plugged(ctx, &d.sr); err != nil {
			return nil, fmt.Errorf("disk %s: %w", d.device(), err)
		}
	}
	out := &Forecast{Space: checkSpace(p)}
	kinds := c.Kinds
	if len(kinds) == 0 {
		kinds = []Kind{KindRegular}
	}
	var last error
	for _, k := range kinds {
		err := p.unable(k)
		if err == nil && k == KindQuiesced {
			err = f.quiesce(ctx)
		}
		if err == nil {
			out.Kind, last = k, nil
			break
		}
		last = err
		out.Fallback = append(out.Fallback, oneLine(err))
	}
	if last != nil {
		return out, last
	}
	out.Warnings = p.kindWarnings(out.Kind)
	if p.vm.OtherConfig["snapmanager"] == "true" {
		out.Warnings = append(out.Warnings, "other_config says snapmanager=true, which lets its guest import the disks of other VMs")
	}
	newest := f.b.last(p.vm.UUID)
	for _, d := range p.disks {
		x := DiskForecast{Device: d.device(), VDI: d.vdi.UUID, Name: d.vdi.NameLabel, SR: d.sr.NameLabel, Size: int64(d.vdi.VirtualSize), Method: "full", Tracked: d.vdi.CBTEnabled}
		d.untracked = f.Untracked
		if err := f.o.AllowShrink.checkDisk(newest, d.vdi.UUID, x.Size); err != nil {
			return nil, fmt.Errorf("disk %s: %w", d.device(), err)
		}
		base, err := findBase(ctx, f.pool, f.r.ID(), newest, &p.vm, d, &d.vdi, f.b.soundness(newest))
		if err != nil {
			return nil, err
		}
		x.Reason, x.Bytes = base.reason, int64(d.vdi.VirtualSize)
		if d.sr.StoresVHD(d.vdi) && d.vdi.PhysicalUtilisation > 0 {
			x.Bytes = min(x.Bytes, int64(d.vdi.PhysicalUtilisation))
		}
		switch {
		case !base.tracked.IsNull():
			x.Method, x.Bytes = "cbt", -1
		case !base.vdi.IsNull():
			x.Method, x.Bytes = "vhd-delta", -1
		}
		out.Disks = append(out.Disks, x)
	}
	for _, d := range p.left {
		out.Disks = append(out.Disks, DiskForecast{Device: d.device(), VDI: d.vdi.UUID, Name: d.vdi.NameLabel, SR: d.sr.NameLabel, Size: int64(d.vdi.VirtualSize), Left: d.reason, Asked: c.Leave[d.vdi.UUID] != ""})
	}
	return out, nil
}

// plugged refuses an SR that no running host reaches: neither a VM snapshot nor
// an export can be had there.
func (f *Foresight) plugged(ctx context.Context, sr *xapi.SR) error {
	if err, known := f.srs[sr.Ref]; known {
		return err
	}
	_, err := f.pool.HostsFor(ctx, sr.Ref)
	f.srs[sr.Ref] = err
	return err
}

// quiesce asks the pool whether it has quiesced snapshots still.
func (f *Foresight) quiesce(ctx context.Context) error {
	hosts, err := f.pool.Hosts(ctx)
	if err != nil {
		return err
	}
	for _, h := range hosts {
		// The API of 8.0, the last with such snapshots, is 2.12.
		if h.APIVersionMajor > 2 || h.APIVersionMajor == 2 && h.APIVersionMinor > 12 {
			return &unable{kind: KindQuiesced, why: "the pool's version has none any more (they went with 8.1)", hint: "configure another kind after it"}
		}
	}
	return nil
}

// ForgetVMs applies retention to VMs of a job on a pool, as a backup does at its
// end: to those that hold a complete snapshot.
func ForgetVMs(ctx context.Context, r *repo.Repository, c Common, pool string, vms []Chosen, policy retention.Policy) ([]string, error) {
	c.defaults()
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
	return forget(ctx, r, &c, func(s *repo.Snapshot) retention.Policy {
		i := slices.IndexFunc(vms, func(v Chosen) bool { return v.UUID == s.VM.UUID })
		if vms[i].Retention != nil {
			return *vms[i].Retention
		}
		return policy
	}, newest)
}

// Good returns the newest complete snapshot of a VM of a pool, of any job, that is
// not among unsound, the IDs of damaged snapshots; nil if there is none.
func Good(all []*repo.Snapshot, pool, vm string, unsound map[string]string) *repo.Snapshot {
	return repo.Latest(all, func(s *repo.Snapshot) bool {
		return s.Origin == "pool" && s.Pool.UUID == pool && s.VM.UUID == vm && unsound[s.ID()] == ""
	})
}

// ClockSkew is how far two clocks may differ before that is worth a warning.
const ClockSkew = 5 * time.Minute

// Taken returns when the data of a snapshot were so, for telling its age. The
// pool's clock, by which the snapshot's data time is set, may be ahead of ours;
// no data is newer than the snapshot that holds it.
func Taken(s *repo.Snapshot) time.Time {
	if s.Written.Before(s.Data) {
		return s.Written
	}
	return s.Data
}
