package job

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"

	"xenkeep/internal/disk"
	"xenkeep/nbd"
	"xenkeep/repo/backup"
	"xenkeep/xapi"
)

// Transport says how disks are read.
type Transport string

const (
	// TransportAuto reads what changed-block tracking names over NBD where
	// both can be had, and VHD exports elsewhere.
	TransportAuto Transport = "auto"
	// TransportNBD is TransportAuto, and takes NBD without encryption too.
	TransportNBD Transport = "nbd"
	// TransportVHD reads VHD exports alone.
	TransportVHD Transport = "vhd"
)

// granule is the unit of changed-block tracking, in bytes.
const granule = 64 << 10

// tracking is what a run knows of changed-block tracking on its pool.
type tracking struct {
	off     string // why it is not used at all; empty where it may be
	drivers map[string]bool
	limiter *nbd.Limiter
}

// newTracking looks whether the pool serves NBD and which SR drivers can track.
func newTracking(ctx context.Context, pool *xapi.Client, t Transport) (*tracking, error) {
	k := &tracking{drivers: make(map[string]bool), limiter: nbd.NewLimiter(0)}
	if t == TransportVHD {
		k.off = "NBD is switched off (--transport vhd)"
		return k, nil
	}
	nets, err := pool.Networks(ctx)
	if err != nil {
		return nil, err
	}
	tls, plain := false, false
	for _, n := range nets {
		tls = tls || slices.Contains(n.Purpose, "nbd")
		plain = plain || slices.Contains(n.Purpose, "insecure_nbd")
	}
	switch {
	case tls || (plain && t == TransportNBD):
	case plain:
		k.off = "NBD is not encrypted on this pool (--transport nbd takes it all the same)"
	default:
		k.off = "no network serves NBD"
	}
	if k.off != "" {
		return k, nil
	}
	sms, err := pool.SMs(ctx)
	if err != nil {
		return nil, err
	}
	for _, m := range sms {
		_, can := m.Features["VDI_CONFIG_CBT"]
		k.drivers[m.Type] = can || slices.Contains(m.Capabilities, "VDI_CONFIG_CBT")
	}
	return k, nil
}

// arm switches tracking on for a disk, before the VM snapshot is taken: so that
// this very VDI snapshot is one to compare the next with. It returns why not.
func (k *tracking) arm(ctx context.Context, pool *xapi.Client, d *diskPlan) string {
	switch {
	case k.off != "":
		return k.off
	case !k.drivers[d.sr.Type] || !vhdBacked(d.sr, d.vdi):
		return "its SR does not track changes"
	case d.vdi.CBTEnabled:
		return ""
	}
	if err := pool.EnableCBT(ctx, d.vdi.Ref); err != nil {
		return "changes cannot be tracked: " + oneLine(err)
	}
	return ""
}

// changedExtents reads the bitmap of list_changed_blocks for a disk of size
// bytes; a bitmap of another length is an error, as nothing is then known.
func changedExtents(bits []byte, size int64) ([]disk.Extent, error) {
	granules := (size + granule - 1) / granule
	if want := (granules + 7) / 8; int64(len(bits)) != want {
		return nil, fmt.Errorf("the pool's bitmap of changes has %d bytes, a disk of this size needs %d", len(bits), want)
	}
	var out []disk.Extent
	for i := range granules {
		if bits[i/8]&(0x80>>(i%8)) == 0 {
			continue
		}
		from := i * granule
		n := min(granule, size-from)
		if k := len(out); k > 0 && out[k-1].End() == from {
			out[k-1].Length += n
		} else {
			out = append(out, disk.Extent{Offset: from, Length: n})
		}
	}
	return out, nil
}

// nbdReader is an NBD export as a disk of its true size.
type nbdReader struct {
	d    *nbd.Disk
	size int64
}

func (r nbdReader) Size() int64 { return r.size }

func (r nbdReader) ReadAt(ctx context.Context, p []byte, off int64) error {
	_, err := r.d.ReadAt(ctx, p, off)
	return err
}

// openNBD connects to a VDI snapshot.
func (v *vmBackup) openNBD(ctx context.Context, snap xapi.VDI) (*nbd.Disk, error) {
	endpoints := func(ctx context.Context) ([]nbd.Endpoint, error) {
		infos, err := v.b.pool.NBDInfo(ctx, snap.Ref)
		if err != nil {
			return nil, err
		}
		if len(infos) == 0 {
			return nil, errors.New("no host serves it over NBD")
		}
		var out []nbd.Endpoint
		for _, i := range infos {
			e := nbd.Endpoint{
				Address:    net.JoinHostPort(i.Address, strconv.FormatInt(int64(i.Port), 10)),
				ExportName: i.ExportName, ServerName: i.Subject, Host: i.Cert,
			}
			if i.Cert != "" {
				e.PinnedCertPEM = []byte(i.Cert)
			}
			out = append(out, e)
		}
		return out, nil
	}
	first, err := endpoints(ctx)
	if err != nil {
		return nil, err
	}
	d, err := nbd.Open(ctx, nbd.DiskOptions{Endpoints: first, Connections: v.b.o.NBDConnections, Limiter: v.b.tracking.limiter, Renew: endpoints})
	if err != nil {
		return nil, err
	}
	if d.Size() < int64(snap.VirtualSize) {
		return nil, errors.Join(fmt.Errorf("NBD serves %d bytes of a disk of %d", d.Size(), snap.VirtualSize), d.Close())
	}
	return d, nil
}

// verifyShare is one block in how many that changed-block tracking calls
// unchanged and that is read all the same.
const verifyShare = 100

// transferChanged saves a disk from its base and what changed-block tracking
// says has changed since.
func (v *vmBackup) transferChanged(ctx context.Context, d *diskPlan, snap xapi.VDI, base base) (res backup.DiskResult, err error) {
	size := int64(snap.VirtualSize)
	bits, err := v.b.pool.ChangedBlocks(ctx, base.tracked, snap.Ref)
	if err != nil {
		return res, err
	}
	changed, err := changedExtents(bits, size)
	if err != nil {
		return res, err
	}
	r, err := v.openNBD(ctx, snap)
	if err != nil {
		return res, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	var total int64
	for _, e := range changed {
		total += e.Length
	}
	m := v.b.o.Progress.Begin(v.plan.vm.NameLabel+" "+d.device(), total)
	defer m.Done()
	o := backup.ChangedOptions{Size: size, Base: base.root, Changed: changed, Progress: metered(m)}
	if v.b.o.VerifyCBT {
		o.Verify = backup.Sample(verifyShare, v.b.started.Unix())
	}
	return v.run.Changed(ctx, nbdReader{d: r, size: size}, o)
}
