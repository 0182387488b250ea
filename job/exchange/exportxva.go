package exchange

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"

	"xenkeep/chunkstore/chunk"
	"xenkeep/chunkstore/seal"
	"xenkeep/job/records"
	"xenkeep/repo"
	"xenkeep/repo/restore"
	"xenkeep/xva"
)

// prepareXVA creates the records of the archive and finds the disks in its order.
func (x *exporter) prepareXVA(ctx context.Context) (writer, error) {
	keep, err := x.chooseDisks()
	if err != nil {
		return nil, err
	}
	ova, err := x.archiveRecords(ctx, keep)
	if err != nil {
		return nil, err
	}
	parts, err := x.archiveDisks(ctx, ova, keep)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context, w io.Writer, _ *os.File) error {
		return buffered(w, func(w io.Writer) error {
			return compressed(w, x.o.Compress, func(w io.Writer) error { return x.writeXVA(ctx, w, ova, parts) })
		})
	}, nil
}

// chooseDisks returns the disks of the archive, by the UUID of the VDI.
func (x *exporter) chooseDisks() (map[string]*repo.Disk, error) {
	keep := make(map[string]*repo.Disk)
	for i := range x.s.Disks {
		switch d := &x.s.Disks[i]; {
		case x.o.Disk != "":
		case d.Device == records.MemoryDevice:
			x.res.Warnings = append(x.res.Warnings, "the memory is not in the archive: the VM is halted in it")
		default:
			keep[d.VDI] = d
		}
	}
	if x.o.Disk != "" {
		d, err := x.s.Disk(x.o.Disk)
		if err != nil {
			return nil, err
		}
		if d.Device == records.MemoryDevice {
			return nil, fmt.Errorf("an xva holds no memory image by itself: %w", ErrFormat)
		}
		keep[d.VDI] = d
	}
	if len(keep) == 0 {
		return nil, fmt.Errorf("snapshot %s holds no disk", x.s.Short())
	}
	for _, g := range x.s.Missing {
		x.res.Warnings = append(x.res.Warnings, fmt.Sprintf("disk %s is not in the snapshot (%s): the archive is without it", g.Device, g.Reason))
	}
	return keep, nil
}

// archiveRecords returns the records of the VM with only the disks in keep.
func (x *exporter) archiveRecords(ctx context.Context, keep map[string]*repo.Disk) (*xva.OVA, error) {
	ova, err := x.records(ctx)
	if err != nil {
		return nil, err
	}
	vm := ova.VM(x.s.VM.UUID)
	if vm == nil && ova.VM("") != nil && ova.VM("").Record.Get("uuid").Text == "" {
		vm = ova.VM("") // the VM has no UUID in the archive
	}
	if vm == nil {
		return nil, fmt.Errorf("snapshot %s: its records lack VM %s: %w", x.s.Short(), x.s.VM.UUID, seal.ErrCorrupt)
	}
	return ova.Alone(vm, func(vdi xva.Value) (int64, bool) {
		d, ok := keep[vdi.Get("uuid").Text]
		if !ok {
			return 0, false
		}
		return d.Size, true
	}), nil
}

// archiveDisk is a disk of an archive, with its ID there.
type archiveDisk struct {
	id string
	d  *repo.Disk
	im *restore.Image
}

// archiveDisks opens the disks in keep, in the order of the archive. It returns an
// error if the records do not contain each of them exactly once.
func (x *exporter) archiveDisks(ctx context.Context, ova *xva.OVA, keep map[string]*repo.Disk) ([]archiveDisk, error) {
	order, err := ova.Disks()
	if err != nil {
		return nil, err
	}
	var parts []archiveDisk
	for _, a := range order {
		uuid := a.VDI.Get("uuid").Text
		d := keep[uuid]
		if d == nil {
			return nil, fmt.Errorf("snapshot %s: two records of disk %s: %w", x.s.Short(), uuid, seal.ErrCorrupt)
		}
		im, err := x.open(ctx, d)
		if err != nil {
			return nil, err
		}
		parts = append(parts, archiveDisk{a.ID, d, im})
		delete(keep, uuid)
	}
	for _, uuid := range slices.Sorted(maps.Keys(keep)) {
		return nil, fmt.Errorf("snapshot %s: no record contains the device of disk %s: export it by itself, as raw, vhd or qcow2", x.s.Short(), keep[uuid].Device)
	}
	return parts, nil
}

// writeXVA writes the archive.
func (x *exporter) writeXVA(ctx context.Context, w io.Writer, ova *xva.OVA, parts []archiveDisk) error {
	a, err := xva.NewWriter(w, ova)
	if err != nil {
		return err
	}
	for _, p := range parts {
		dw, err := a.Disk(p.id)
		if err != nil {
			return err
		}
		if err := x.writeDisk(ctx, p.im, p.d, dw, restore.Options{}); err != nil {
			return err
		}
		if err := dw.Close(); err != nil {
			return err
		}
	}
	return a.Close()
}

// records returns the pool's description of the VM: its own export of the metadata if
// it is stored, otherwise its records, otherwise a description that is made from the
// disks.
func (x *exporter) records(ctx context.Context) (*xva.OVA, error) {
	p, err := x.r.ReadRecord(ctx, x.s, records.MetadataName)
	if err != nil {
		return nil, err
	}
	if p != nil {
		t := tar.NewReader(bytes.NewReader(p))
		h, err := t.Next()
		if err != nil || h.Name != "ova.xml" {
			return nil, fmt.Errorf("snapshot %s: %s: no ova.xml: %w", x.s.Short(), records.MetadataName, seal.ErrCorrupt)
		}
		text, err := io.ReadAll(io.LimitReader(t, chunk.MaxRecord)) // a sparse entry could be longer than its archive
		if err != nil {
			return nil, fmt.Errorf("snapshot %s: %s: %v: %w", x.s.Short(), records.MetadataName, err, seal.ErrCorrupt)
		}
		return xva.ParseOVA(text)
	}
	if p, err = x.r.ReadRecord(ctx, x.s, records.RecordsName); err != nil {
		return nil, err
	}
	if p != nil {
		return records.BuildOVA(x.s, p)
	}
	var disks []xva.PlainDisk
	for i := range x.s.Disks {
		d := &x.s.Disks[i]
		name := d.Name
		if name == "" {
			name = d.Device
		}
		disks = append(disks, xva.PlainDisk{UUID: d.VDI, Name: name, Size: d.Size})
	}
	x.res.Warnings = append(x.res.Warnings, "nothing is known of the VM but its disks: the archive describes a plain one; look at memory, processors and network before its first start")
	return xva.Plain(x.s.VM.Name, "", disks), nil
}
