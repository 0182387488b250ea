package exchange

import (
	"archive/tar"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"xenkeep/chunkstore/chunk"
	"xenkeep/filekind"
	"xenkeep/job"
	"xenkeep/job/records"
	"xenkeep/job/transfer"
	"xenkeep/repo"
	"xenkeep/repo/backup"
	"xenkeep/xva"
)

// archiveOptions complete the data in an archive.
type archiveOptions struct {
	date time.Time
	vm   repo.Named        // the VM, if it is better known than from the archive
	vdis map[string]string // device -> UUID of the disk, if it is better known
	// folder is the folder of all backups of the VM, if there is one: then the date is
	// that of the backup, and not that of a file.
	folder string
}

// importArchive imports an XVA.
func (im *importer) importArchive(ctx context.Context, file string, o archiveOptions) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	a, err := xva.NewReader(f)
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	defer a.Close()
	s, err := im.describe(a.OVA(), file, o)
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	old := im.unchanged(s)
	if old == nil && o.folder != "" {
		old = im.existing(s, withoutSource)
	}
	if old != nil {
		im.skip(file, old)
		return nil
	}
	last := repo.Latest(im.all, func(x *repo.Snapshot) bool { return job.SameVM(x, s) })
	bases := make(map[string]chunk.ID)
	var roots []chunk.ID
	if last != nil {
		for _, d := range last.Disks {
			bases[d.VDI] = chunk.ID(d.Root)
			roots = append(roots, chunk.ID(d.Root))
		}
	}
	total := int64(0)
	if st, err := f.Stat(); err == nil {
		total = st.Size()
	}
	old, err = im.run(ctx, s, roots, func(ctx context.Context, run *backup.Run) error {
		if err := im.records(ctx, run, s, a.OVA()); err != nil {
			return err
		}
		for {
			src, err := a.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return err
			}
			x := src.Disk()
			d := diskOf(x.VDI, x.VBD, x.Size)
			d.Reason = "imported from " + filepath.Base(file)
			if _, err := im.disk(ctx, run, s, src, d, backup.DiskOptions{Size: x.Size, Base: bases[d.VDI]}, total); err != nil {
				return fmt.Errorf("disk %s: %w", d.Device, err)
			}
		}
		sortDisks(s.Disks)
		return nil
	})
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	if old != nil {
		im.skip(file, old)
	}
	return nil
}

// withoutSource reports whether x was made by an older version, without a Source. Such
// a snapshot of a backup of VmBackup is the same if VM and date match, because these
// identify the backup's folder.
func withoutSource(x, _ *repo.Snapshot) bool { return x.Source == nil }

// diskOf returns a disk as described by an archive's records.
func diskOf(vdi, vbd xva.Value, size int64) repo.Disk {
	d := repo.Disk{
		Device: vbd.Get("device").Text, UserDevice: vbd.Get("userdevice").Text, VDI: vdi.Get("uuid").Text,
		Name: vdi.Get("name_label").Text, Location: vdi.Get("location").Text, Size: size,
	}
	if d.Device == "" {
		if n, err := strconv.Atoi(d.UserDevice); err == nil && n >= 0 && n < 26 {
			d.Device = "xvd" + string(rune('a'+n))
		} else {
			d.Device = d.VDI
		}
	}
	if vdi.Get("type").Text == "suspend" {
		d.Device = records.MemoryDevice
	}
	return d
}

// describe returns the snapshot for an archive's records, with the better known
// identity from o.
func (im *importer) describe(ova *xva.OVA, file string, o archiveOptions) (*repo.Snapshot, error) {
	vm := ova.VM("")
	if vm == nil {
		return nil, fmt.Errorf("ova.xml holds no VM: %w", xva.ErrCorrupt)
	}
	if o.vm.UUID != "" {
		vm.Record.Set("uuid", xva.String(o.vm.UUID))
		vm.Record.Set("name_label", xva.String(o.vm.Name))
	}
	vm.Record.Set("is_a_template", xva.Boolean(false))
	for _, b := range ova.Of("VBD") {
		vdi := ova.Find(b.Record.Get("VDI").Text)
		if vdi == nil || b.Record.Get("type").Text == "CD" {
			continue
		}
		if uuid := o.vdis[diskOf(vdi.Record, b.Record, 0).Device]; uuid != "" {
			vdi.Record.Set("uuid", xva.String(uuid))
		}
	}
	s, err := im.identity(repo.Named{UUID: vm.Record.Get("uuid").Text, Name: vm.Record.Get("name_label").Text}, cmp.Or(o.folder, file))
	if err != nil {
		return nil, err
	}
	if s.Source, err = transfer.SourceOf(file, filekind.XVA); err != nil {
		return nil, err
	}
	s.DataTime, s.Complete, s.Kind = im.date(o.date), true, "regular"
	s.GenerationID = vm.Record.Get("generation_id").Text
	return s, nil
}

// identity returns a snapshot with the identity of a VM: it belongs to the VM's pool
// if the repository has backups of it from exactly one pool. A VM without a UUID is
// identified by its file or folder.
func (im *importer) identity(vm repo.Named, from string) (*repo.Snapshot, error) {
	if vm.UUID == "" { // the archive was not made by a pool
		at, err := transfer.ImageIdentity(im.o.Machine, from, "")
		if err != nil {
			return nil, err
		}
		vm.UUID = at.UUID
	}
	s := &repo.Snapshot{Origin: OriginImport, VM: vm, Tags: im.o.Tags}
	pools := make(map[repo.Named]bool)
	for _, x := range im.all {
		if x.Origin == "pool" && x.VM.UUID == vm.UUID {
			pools[repo.Named{UUID: x.Pool.UUID}] = true
			s.Pool = x.Pool
		}
	}
	if len(pools) == 1 {
		s.Origin = "pool"
	} else {
		s.Pool = repo.Named{}
	}
	return s, nil
}

// records stores the records in an archive like those of a backup.
func (im *importer) records(ctx context.Context, run *backup.Run, s *repo.Snapshot, ova *xva.OVA) error {
	// Without its snapshots, which the records may contain.
	ova = ova.Alone(ova.VM(""), func(vdi xva.Value) (int64, bool) {
		size, err := strconv.ParseInt(vdi.Get("virtual_size").Text, 10, 64)
		return size, err == nil
	})
	vm := ova.VM("")
	raw := func(v xva.Value) records.RawRecord {
		p, _ := json.Marshal(v) // texts, numbers and structs of them can always be encoded
		return p
	}
	of := func(class string) map[string]records.RawRecord {
		m := make(map[string]records.RawRecord)
		for _, x := range ova.Of(class) {
			m[x.ID] = raw(x.Record)
		}
		return m
	}
	info := records.VMInfo{
		VM: raw(vm.Record), VBDs: of("VBD"), VDIs: of("VDI"), VIFs: of("VIF"), Networks: of("network"), SRs: of("SR"),
	}
	if g := ova.Find(vm.Record.Get("guest_metrics").Text); g != nil {
		info.GuestMetrics = raw(g.Record)
	}
	p, err := json.Marshal(info)
	if err != nil {
		return err
	}
	text := ova.XML()
	var meta bytes.Buffer
	t := tar.NewWriter(&meta)
	if err := t.WriteHeader(&tar.Header{Name: "ova.xml", Mode: 0o400, Size: int64(len(text)), Format: tar.FormatUSTAR}); err != nil {
		return err
	}
	if _, err := t.Write(text); err != nil {
		return err
	}
	if err := t.Close(); err != nil {
		return err
	}
	for _, rec := range []struct {
		name string
		data []byte
	}{{records.RecordsName, p}, {records.MetadataName, meta.Bytes()}} {
		stored, err := run.Record(ctx, rec.name, rec.data)
		if err != nil {
			return err
		}
		s.Records = append(s.Records, stored)
	}
	return nil
}
