package restore

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"

	"xenkeep/chunkstore/chunk"
	"xenkeep/chunkstore/seal"
	"xenkeep/job/records"
	"xenkeep/repo"
	"xenkeep/xapi"
	"xenkeep/xva"
)

// mappedDisks is the number of disks that the head of the request maps, because hosts
// accept at most 1024 bytes of it; the records of all disks contain their locations.
const mappedDisks = 6

// byImport creates the VM by importing an archive of its records. Only an import can
// create a VM with its original UUID, or a suspended one.
func (m *vmRestore) byImport(ctx context.Context) error {
	ova, err := storedOVA(ctx, m.r, m.s)
	if err != nil {
		return err
	}
	if ova.VM(m.stored.VM.UUID) == nil {
		return fmt.Errorf("snapshot %s: its metadata lack VM %s: %w", m.s.Short(), m.stored.VM.UUID, seal.ErrCorrupt)
	}
	a, err := m.archive(ctx, ova)
	if err != nil {
		return err
	}
	text := a.XML()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Name: "ova.xml", Mode: 0o400, Size: int64(len(text)), ModTime: m.o.Now()}); err != nil {
		return err
	}
	if _, err := w.Write(text); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	to := make(map[string]string)
	for _, old := range slices.Sorted(maps.Keys(m.vdis)) {
		if len(to) < mappedDisks {
			to[old] = m.vdis[old].UUID
		}
	}
	m.vmRequested = true
	o := xapi.MetadataImport{Restore: true, VDIs: to}
	if len(m.poolRestore.vdis) > 0 {
		o.Disk = m.poolRestore.vdis[0]
	}
	refs, err := m.pool.ImportMetadata(ctx, b.Bytes(), o)
	var ref xapi.Ref
	if len(refs) > 0 {
		ref = refs[0]
	}
	if err := m.recordVM(ctx, ref, err); err != nil {
		return err
	}
	if m.memory && m.out.Power != "Suspended" {
		return fmt.Errorf("VM %s: the pool made it %s, not suspended", m.name, m.out.Power)
	}
	if err := m.checkVIFs(ctx); err != nil {
		return err
	}
	if err := m.settings(ctx); err != nil {
		return err
	}
	return m.setBlocked(ctx)
}

// storedOVA returns the pool's own description of the VM that was stored with the
// snapshot, or otherwise one that is made from the VM's records.
func storedOVA(ctx context.Context, r *repo.Repository, s *repo.Snapshot) (*xva.OVA, error) {
	p, err := r.ReadRecord(ctx, s, records.MetadataName)
	if err != nil {
		return nil, err
	}
	if p == nil {
		if p, err = r.ReadRecord(ctx, s, records.RecordsName); err != nil {
			return nil, err
		}
		return records.BuildOVA(s, p)
	}
	t := tar.NewReader(bytes.NewReader(p))
	h, err := t.Next()
	if err != nil || h.Name != "ova.xml" {
		return nil, fmt.Errorf("snapshot %s: %s: no ova.xml: %w", s.Short(), records.MetadataName, seal.ErrCorrupt)
	}
	text, err := io.ReadAll(io.LimitReader(t, chunk.MaxRecord)) // a sparse entry could be longer than its archive
	if err != nil {
		return nil, fmt.Errorf("snapshot %s: %s: %v: %w", s.Short(), records.MetadataName, err, seal.ErrCorrupt)
	}
	return xva.ParseOVA(text)
}

// archive returns the description of the restored VM: with the created disks, the
// networks of this pool, and without fields that the pool does not support. The
// identities (UUID, MAC addresses) are those in ova.
func (m *vmRestore) archive(ctx context.Context, ova *xva.OVA) (*xva.OVA, error) {
	was := ova.VM(m.stored.VM.UUID)
	attached := make(map[string]bool)
	for _, x := range ova.Objects {
		attached[x.ID] = x.Record.Get("currently_attached").True()
	}
	a := ova.Alone(was, func(vdi xva.Value) (int64, bool) {
		made, ok := m.vdis[vdi.Get("uuid").Text]
		return int64(made.VirtualSize), ok
	})
	b := &archiveBuilder{m: m, a: &xva.OVA{Version: a.Version.Clone()}, srs: make(map[xapi.Ref]string)}
	for _, x := range a.Objects {
		if err := b.add(ctx, x, attached[x.ID]); err != nil {
			return nil, err
		}
	}
	if m.memory {
		if err := b.addMemory(ctx); err != nil {
			return nil, err
		}
	}
	if err := b.version(ctx); err != nil {
		return nil, err
	}
	return b.a, b.vm()
}

type archiveBuilder struct {
	m       *vmRestore
	a       *xva.OVA
	srs     map[xapi.Ref]string // IDs of the SRs in the archive
	suspend string              // ID of the memory image
}

// add adds an object to the archive, adapted to this pool.
func (b *archiveBuilder) add(ctx context.Context, x xva.Object, attached bool) error {
	m := b.m
	rec := &x.Record
	switch x.Class {
	case "host", "VM_metrics", "VM_guest_metrics", "SR":
		return nil // it is not imported, or it is an object of this pool
	case "VDI":
		uuid := rec.Get("uuid").Text
		made, ok := m.vdis[uuid]
		if !ok {
			return nil // an image in a drive
		}
		return b.addVDI(ctx, x.ID, made, uuid)
	case "VBD":
		rec.Set("currently_attached", xva.Boolean(attached && m.memory))
		if rec.Get("type").Text != "Disk" {
			if rec.Get("type").Text != "CD" {
				return nil
			}
			return b.addDrive(ctx, x)
		}
	case "VIF":
		var f *xapi.VIF
		for _, v := range m.stored.VIFs {
			if v.Device == rec.Get("device").Text {
				f = &v
			}
		}
		if f == nil || m.nets[f.Network] == nil {
			return nil // left out; a warning was issued
		}
		rec.Set("currently_attached", xva.Boolean(attached && m.memory))
		if !m.v.KeepMAC {
			rec.Set("MAC", xva.String(newMAC()))
			rec.Set("MAC_autogenerated", xva.Boolean(true))
		}
		id := x.ID + "-network"
		n, err := xva.FromJSON(m.nets[f.Network].Raw)
		if err != nil {
			return err
		}
		rec.Set("network", xva.String(id))
		b.a.Objects = append(b.a.Objects, xva.Object{Class: "network", ID: id, Record: n})
	case "network":
		return nil
	}
	b.a.Objects = append(b.a.Objects, x)
	return nil
}

// addVDI adds a disk of this pool under a UUID that the request maps to it.
func (b *archiveBuilder) addVDI(ctx context.Context, id string, made xapi.VDI, uuid string) error {
	rec, err := xva.FromJSON(made.Raw)
	if err != nil {
		return err
	}
	sr, ok := b.srs[made.SR]
	if !ok {
		s, err := b.m.pool.SR(ctx, made.SR)
		if err != nil {
			return err
		}
		r, err := xva.FromJSON(s.Raw)
		if err != nil {
			return err
		}
		sr = fmt.Sprintf("Ref:sr%d", len(b.srs))
		b.srs[made.SR] = sr
		for _, field := range []string{"VDIs", "PBDs"} {
			r.Set(field, xva.Value{Kind: xva.Array})
		}
		b.a.Objects = append(b.a.Objects, xva.Object{Class: "SR", ID: sr, Record: r})
	}
	rec.Set("SR", xva.String(sr))
	rec.Set("VBDs", xva.Value{Kind: xva.Array})
	rec.Set("uuid", xva.String(uuid))
	b.a.Objects = append(b.a.Objects, xva.Object{Class: "VDI", ID: id, Record: rec})
	return nil
}

// addDrive adds a CD drive with its image on this pool.
func (b *archiveBuilder) addDrive(ctx context.Context, x xva.Object) error {
	var iso *xapi.VDI
	for _, d := range b.m.stored.VBDs {
		if d.UserDevice == x.Record.Get("userdevice").Text {
			iso = b.m.isos[d.VDI]
		}
	}
	x.Record.Set("VDI", xva.String(xva.NullRef))
	x.Record.Set("empty", xva.Boolean(iso == nil))
	if iso != nil {
		id := x.ID + "-image"
		x.Record.Set("VDI", xva.String(id))
		if err := b.addVDI(ctx, id, *iso, iso.UUID); err != nil {
			return err
		}
	}
	b.a.Objects = append(b.a.Objects, x)
	return nil
}

func (b *archiveBuilder) addMemory(ctx context.Context) error {
	for _, d := range b.m.placed {
		if d.d.Device == records.MemoryDevice {
			b.suspend = "Ref:memory"
			return b.addVDI(ctx, b.suspend, b.m.vdis[d.d.VDI], d.d.VDI)
		}
	}
	return nil
}

// version makes the archive acceptable for a host that is older than the one that
// wrote it, by leaving out fields that the host does not support.
func (b *archiveBuilder) version(ctx context.Context) error {
	pool, err := b.m.pool.Pool(ctx)
	if err != nil {
		return err
	}
	master, err := b.m.pool.Host(ctx, pool.Master)
	if err != nil {
		return err
	}
	var ours, theirs [2]int64
	for i, k := range []string{"xapi_major", "xapi_minor"} {
		_, _ = fmt.Sscan(b.a.Version.Get(k).Text, &ours[i])
	}
	n, _ := fmt.Sscanf(master.SoftwareVersion["xapi"], "%d.%d", &theirs[0], &theirs[1])
	if n == 2 && (ours[0] > theirs[0] || ours[0] == theirs[0] && ours[1] > theirs[1]) {
		for i, k := range []string{"xapi_major", "xapi_minor"} {
			b.a.Version.Set(k, xva.String(fmt.Sprint(theirs[i])))
		}
	}
	return nil
}

// vm adapts the VM's own record.
func (b *archiveBuilder) vm() error {
	m := b.m
	var vm *xva.Value
	for i := range b.a.Objects {
		if b.a.Objects[i].Class == "VM" {
			vm = &b.a.Objects[i].Record
		}
	}
	kept := xva.Value{Kind: xva.Struct}
	var names []string
	for i, name := range vm.Names {
		if m.knownFields[name] || len(m.knownFields) == 0 {
			kept.Set(name, vm.Items[i])
		} else if slices.Contains(xapi.VMSettings(), name) {
			names = append(names, name)
		}
	}
	var raw map[string]json.RawMessage
	if err := json.Unmarshal(m.stored.VM.Raw, &raw); err != nil {
		return err
	}
	m.dropUnknown(names, func(name string) (string, bool) { s, ok := raw[name]; return string(s), ok }, func(string) {})
	*vm = kept
	other := m.otherConfig()
	if other["mac_seed"] == "" {
		other["mac_seed"] = newUUID()
	}
	uuid := m.stored.VM.UUID
	if !m.v.KeepUUID {
		uuid = newUUID()
	}
	set := map[string]xva.Value{
		"uuid": xva.String(uuid), "name_label": xva.String(m.name), "other_config": textMap(other),
		"ha_always_run": xva.Boolean(false), "ha_restart_priority": xva.String(""), "blocked_operations": {Kind: xva.Struct},
		"is_default_template": xva.Boolean(false), "snapshot_schedule": xva.String(xva.NullRef), "appliance": xva.String(xva.NullRef),
		"affinity": xva.String(xva.NullRef), "suspend_SR": xva.String(xva.NullRef), "VGPUs": {Kind: xva.Array}, "VUSBs": {Kind: xva.Array},
		"attached_PCIs": {Kind: xva.Array}, "groups": {Kind: xva.Array}, "metrics": xva.String(xva.NullRef), "guest_metrics": xva.String(xva.NullRef),
	}
	if m.memory {
		set["power_state"], set["suspend_VDI"] = xva.String("Suspended"), xva.String(b.suspend)
	}
	for name, v := range set {
		if vm.Has(name) {
			vm.Set(name, v)
		}
	}
	return nil
}

func textMap(m map[string]string) xva.Value {
	v := xva.Value{Kind: xva.Struct}
	for _, k := range slices.Sorted(maps.Keys(m)) {
		v.Set(k, xva.String(m[k]))
	}
	return v
}

// checkVIFs checks that the pool chose the intended networks: it selects them by name,
// and several may have the same name.
func (m *vmRestore) checkVIFs(ctx context.Context) error {
	vm, err := m.pool.VM(ctx, m.vm)
	if err != nil {
		return err
	}
	want := make(map[string]*xapi.Network)
	for _, f := range m.stored.VIFs {
		want[f.Device] = m.nets[f.Network]
	}
	for _, ref := range vm.VIFs {
		f, err := m.pool.VIF(ctx, ref)
		if err != nil {
			return err
		}
		if to := want[f.Device]; to != nil && f.Network != to.Ref {
			return fmt.Errorf("network interface %s: the pool put it on another network called %q: rename one of them, or use --network", f.Device, to.NameLabel)
		}
	}
	return nil
}

// newMAC returns a random, locally administered address.
func newMAC() string {
	var b [6]byte
	_, _ = rand.Read(b[:])
	b[0] = b[0]&^1 | 2
	return fmt.Sprintf("%02x:%02x:%02x:%02x:%02x:%02x", b[0], b[1], b[2], b[3], b[4], b[5])
}

// newUUID returns a random UUID.
func newUUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:])
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
