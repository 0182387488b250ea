package restore

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"xenkeep/job"
	"xenkeep/job/lease"
	"xenkeep/job/records"
	"xenkeep/repo"
	"xenkeep/xapi"
)

// VM creates a VM from a snapshot: its disks as new VDIs, its settings, its network
// interfaces, and its memory if the snapshot contains it. If it fails it removes all
// of them, except with Resume: then the error names the disks that remain.
// ErrUnstarted is returned together with a complete VM.
func VM(ctx context.Context, r *repo.Repository, pool *xapi.Client, s *repo.Snapshot, v VMOptions, o Options) (*Restored, error) {
	p := newPoolRestore(r, pool, s, o)
	err := p.run(ctx, func() error {
		m, err := p.planVM(ctx, v)
		if err == nil {
			err = m.restore(ctx)
		}
		if err == nil {
			err = p.removeMarks(ctx)
		}
		return err
	})
	if err == nil && p.complete {
		err = p.finish(ctx, v.Start)
	}
	return p.out, err
}

// vmRestore is a VM that is being restored.
type vmRestore struct {
	*poolRestore
	v           VMOptions
	stored      *records.StoredVM
	placed      []placement
	vdis        map[string]xapi.VDI // created, by the UUID of the original disk
	nets        map[xapi.Ref]*xapi.Network
	isos        map[xapi.Ref]*xapi.VDI // by the original image in the drive
	memory      bool                   // it is restored as suspended, with its memory
	knownFields map[string]bool        // fields that VMs have in the pool's version
	name        string                 // name of the restored VM
	warned      []string               // keys of other_config for which a warning was issued
}

// planVM checks everything that can be checked before the pool is changed.
func (p *poolRestore) planVM(ctx context.Context, v VMOptions) (*vmRestore, error) {
	m := &vmRestore{poolRestore: p, v: v, vdis: make(map[string]xapi.VDI)}
	var err error
	if m.stored, err = records.ReadVM(ctx, p.r, p.s); err != nil {
		return nil, err
	}
	for _, g := range p.s.Missing {
		p.warn("disk %s is not in the snapshot (%s): the VM is restored without it", g.Device, g.Reason)
	}
	var disks []*repo.Disk
	for i := range p.s.Disks {
		d := &p.s.Disks[i]
		switch {
		case d.Device != records.MemoryDevice:
			disks = append(disks, d)
		case p.role == lease.RoleDrill:
		case len(p.s.Missing) > 0:
			p.warn("the memory of the checkpoint is not restored, as a disk is missing that it counts on: the VM comes back halted")
		default:
			m.memory = true
			disks = append(disks, d)
		}
	}
	vms, err := p.pool.VMs(ctx)
	if err != nil {
		return nil, err
	}
	m.knownFields = make(map[string]bool)
	for i := range vms {
		if v.KeepUUID && vms[i].UUID == m.stored.VM.UUID {
			return nil, fmt.Errorf("VM %s (%s) is on this pool: %w", vms[i].NameLabel, vms[i].UUID, job.ErrKeptUUID)
		}
		if len(m.knownFields) == 0 {
			var fields map[string]json.RawMessage
			if err := json.Unmarshal(vms[i].Raw, &fields); err != nil {
				return nil, err
			}
			for k := range fields {
				m.knownFields[k] = true
			}
		}
	}
	if err := m.networks(ctx); err != nil {
		return nil, err
	}
	if err := m.findISOs(ctx); err != nil {
		return nil, err
	}
	m.name = m.nameFor(vms)
	m.warnLostMemory()
	if err := m.warnSameMACs(ctx, vms); err != nil {
		return nil, err
	}
	m.placed, err = p.assignSRs(ctx, disks, v.Target)
	return m, err
}

// networks finds the network of each interface.
func (m *vmRestore) networks(ctx context.Context) error {
	here, err := m.pool.Networks(ctx)
	if err != nil {
		return err
	}
	m.nets = make(map[xapi.Ref]*xapi.Network)
	used := make(map[string]bool)
	for _, old := range m.stored.Networks {
		for _, k := range []string{old.UUID, old.NameLabel} {
			to, ok := m.v.Networks[k]
			if !ok {
				continue
			}
			used[k] = true
			n, err := findNetwork(ctx, m.pool, to)
			if err != nil {
				return err
			}
			m.nets[old.Ref] = &n
		}
	}
	for _, k := range slices.Sorted(maps.Keys(m.v.Networks)) {
		if !used[k] {
			return fmt.Errorf("network %q: no interface of VM %s was on it", k, m.stored.VM.NameLabel)
		}
	}
	for _, f := range m.vifs() {
		old := m.stored.Networks[f.Network]
		if m.nets[f.Network] != nil || m.role == lease.RoleDrill {
			continue
		}
		var found []*xapi.Network
		for i := range here {
			n := &here[i]
			if n.UUID == old.UUID {
				found = []*xapi.Network{n}
				break
			}
			if n.NameLabel == old.NameLabel {
				found = append(found, n)
			}
		}
		if len(found) != 1 {
			m.warn("network interface %s is left out: %d networks here are called %q", f.Device, len(found), old.NameLabel)
			continue
		}
		m.nets[f.Network] = found[0]
	}
	return nil
}

// findISOs finds the images of the drives: by their UUID, then by their name in a
// library of this pool.
func (m *vmRestore) findISOs(ctx context.Context) error {
	m.isos = make(map[xapi.Ref]*xapi.VDI)
	var all []xapi.VDI
	libraries := make(map[xapi.Ref]bool)
	for _, b := range m.drives() {
		was, known := m.stored.VDIs[b.VDI]
		if b.Type != "CD" || b.Empty || b.VDI.IsNull() {
			continue
		}
		if known && all == nil {
			var err error
			if all, err = m.pool.VDIs(ctx); err != nil {
				return err
			}
			srs, err := m.pool.SRs(ctx)
			if err != nil {
				return err
			}
			for _, sr := range srs {
				libraries[sr.Ref] = sr.ContentType == "iso"
			}
		}
		var found []*xapi.VDI
		for i := range all {
			v := &all[i]
			if !known || !libraries[v.SR] {
				continue
			}
			if v.UUID == was.UUID {
				found = []*xapi.VDI{v}
				break
			}
			if v.Location == was.Location && v.NameLabel == was.NameLabel {
				found = append(found, v)
			}
		}
		if len(found) == 1 {
			m.isos[b.VDI] = found[0]
		} else {
			m.warn("CD drive %s comes back empty: %s", b.UserDevice, describeISO(was, len(found)))
		}
	}
	return nil
}

func describeISO(was xapi.VDI, n int) string {
	if was.NameLabel == "" {
		return "its image is not known"
	}
	return fmt.Sprintf("%d images here are called %q", n, was.NameLabel)
}

// drives returns the stored VBDs in the order of their userdevices.
func (m *vmRestore) drives() []xapi.VBD {
	return slices.SortedFunc(maps.Values(m.stored.VBDs), func(a, b xapi.VBD) int {
		x, _ := strconv.Atoi(a.UserDevice)
		y, _ := strconv.Atoi(b.UserDevice)
		return cmp.Or(cmp.Compare(x, y), cmp.Compare(a.UserDevice, b.UserDevice))
	})
}

// vifs returns the stored VIFs in the order of their devices.
func (m *vmRestore) vifs() []xapi.VIF {
	return slices.SortedFunc(maps.Values(m.stored.VIFs), func(a, b xapi.VIF) int {
		x, _ := strconv.Atoi(a.Device)
		y, _ := strconv.Atoi(b.Device)
		return cmp.Or(cmp.Compare(x, y), cmp.Compare(a.Device, b.Device))
	})
}

func (m *vmRestore) restore(ctx context.Context) error {
	for _, d := range m.placed {
		was := m.storedVDI(d.d.VDI)
		vdi, err := m.disk(ctx, d, was)
		if err != nil {
			return err
		}
		m.vdis[d.d.VDI] = vdi
	}
	if m.v.KeepUUID || m.memory {
		return m.byImport(ctx)
	}
	return m.byCreation(ctx)
}

func (m *vmRestore) storedVDI(uuid string) *xapi.VDI {
	for _, v := range m.stored.VDIs {
		if v.UUID == uuid {
			return &v
		}
	}
	return nil
}

// byCreation creates the VM by single calls, which works on any version.
func (m *vmRestore) byCreation(ctx context.Context) error {
	if err := m.createVM(ctx); err != nil {
		return err
	}
	if err := m.createVBDs(ctx); err != nil {
		return err
	}
	if err := m.createVIFs(ctx); err != nil {
		return err
	}
	if err := m.createVTPM(ctx); err != nil {
		return err
	}
	if err := m.settings(ctx); err != nil {
		return err
	}
	return m.setBlocked(ctx)
}

// otherConfig returns the VM's original other_config, with the marks of this run.
func (m *vmRestore) otherConfig() map[string]string {
	if m.role == lease.RoleDrill {
		// No key by which the pool or another tool would treat the drill as the VM
		// itself: automatic start, devices of the host, schedules.
		return m.lease.Marks(lease.RoleDrill)
	}
	other := make(map[string]string)
	maps.Copy(other, m.stored.VM.OtherConfig)
	maps.DeleteFunc(other, func(k, _ string) bool {
		// MAC addresses are derived from the seed; the marks belong to the original
		// VM.
		return strings.HasPrefix(k, "xenkeep:") || k == "import_task" || (k == "mac_seed" && !m.v.KeepMAC)
	})
	m.dropHostDevices(other)
	maps.Copy(other, m.lease.Marks(lease.RoleRestore))
	return other
}

func (m *vmRestore) createVM(ctx context.Context) error {
	fields, err := xapi.VMFields(&m.stored.VM)
	if err != nil {
		return err
	}
	m.dropUnknown(slices.Sorted(maps.Keys(fields)), func(name string) (string, bool) {
		raw, ok := fields[name].(json.RawMessage)
		return string(raw), ok
	}, func(name string) { delete(fields, name) })
	fields["name_label"] = m.name
	fields["other_config"] = m.otherConfig()
	fields["ha_always_run"] = false
	fields["ha_restart_priority"] = ""
	if m.role == lease.RoleDrill {
		fields["tags"] = []string{}
	}
	// It is set at the end, because it may block operations that are still necessary,
	// or those that undo the restore.
	delete(fields, "blocked_operations")
	// It is a new VM, and its guest must see a new generation ID. A VM without a
	// generation ID remains without.
	delete(fields, "generation_id")
	if m.stored.VM.GenerationID == "" {
		fields["generation_id"] = ""
	}
	m.vmRequested = true
	ref, err := m.pool.CreateVM(ctx, fields)
	return m.recordVM(ctx, ref, err)
}

// recordVM records the created VM, even if err is not nil.
func (m *vmRestore) recordVM(ctx context.Context, ref xapi.Ref, err error) error {
	m.vm = ref
	if !ref.IsNull() {
		m.lease.Renew("VM", ref)
	}
	if err != nil {
		return fmt.Errorf("VM %s: %w", m.name, err)
	}
	rec, err := m.pool.VM(ctx, ref)
	if err != nil {
		return err
	}
	m.out.VM, m.out.VMName, m.out.Power = rec.UUID, rec.NameLabel, rec.PowerState
	return nil
}

// dropUnknown removes fields that the pool's version does not have, and warns about
// those with a value other than the default.
func (m *vmRestore) dropUnknown(names []string, text func(string) (string, bool), drop func(string)) {
	for _, name := range names {
		if m.knownFields[name] || len(m.knownFields) == 0 || name == "memory_target" {
			continue
		}
		if s, ok := text(name); ok && !slices.Contains([]string{"", `""`, "[]", "{}", "null", "0", "false", `"OpaqueRef:NULL"`}, s) {
			m.out.Dropped = append(m.out.Dropped, name)
		}
		drop(name)
	}
	if len(m.out.Dropped) > 0 {
		m.warn("settings that this version of the pool does not support are dropped: %s", strings.Join(m.out.Dropped, ", "))
	}
}

// setBlocked sets the operations that are blocked on the VM.
func (m *vmRestore) setBlocked(ctx context.Context) error {
	blocked := maps.Clone(m.stored.VM.BlockedOperations)
	maps.DeleteFunc(blocked, func(_, why string) bool { return lease.Owns(why) })
	if len(blocked) == 0 || m.role == lease.RoleDrill {
		return nil
	}
	if err := m.pool.SetVMField(ctx, m.vm, "blocked_operations", blocked); err != nil {
		if ctx.Err() != nil {
			return err
		}
		m.warn("blocked_operations of the VM are not set: %s", job.OneLine(err))
	}
	return nil
}

func (m *vmRestore) createVBDs(ctx context.Context) error {
	for _, b := range m.drives() {
		n := xapi.VBD{
			VM: m.vm, UserDevice: b.UserDevice, Bootable: b.Bootable, Mode: b.Mode, Type: b.Type,
			Unpluggable: b.Unpluggable, OtherConfig: b.OtherConfig,
			QoSAlgorithmType: b.QoSAlgorithmType, QoSParams: b.QoSParams,
		}
		switch b.Type {
		case "Disk":
			vdi, ok := m.vdis[m.stored.VDIs[b.VDI].UUID]
			if !ok {
				continue // left out of the snapshot; a warning was issued
			}
			n.VDI = vdi.Ref
		case "CD":
			n.Empty, n.VDI = true, xapi.NullRef
			if iso := m.isos[b.VDI]; iso != nil {
				n.Empty, n.VDI = false, iso.Ref
			}
		default: // the pool has no empty disk drives
			m.warn("%s drive %s is left out", b.Type, b.UserDevice)
			continue
		}
		if _, err := m.pool.CreateVBD(ctx, n); err != nil {
			return fmt.Errorf("VBD %s: %w", b.UserDevice, err)
		}
	}
	return nil
}

func (m *vmRestore) createVIFs(ctx context.Context) error {
	if m.role == lease.RoleDrill {
		return nil
	}
	for _, f := range m.vifs() {
		to := m.nets[f.Network]
		if to == nil {
			continue // a warning was issued
		}
		n := xapi.VIF{
			VM: m.vm, Network: to.Ref, Device: f.Device, MTU: f.MTU, OtherConfig: f.OtherConfig,
			LockingMode: f.LockingMode, IPv4Allowed: f.IPv4Allowed, IPv6Allowed: f.IPv6Allowed,
			QoSAlgorithmType: f.QoSAlgorithmType, QoSParams: f.QoSParams,
		}
		if m.v.KeepMAC {
			n.MAC = f.MAC
		}
		if _, err := m.pool.CreateVIF(ctx, n); err != nil {
			return fmt.Errorf("VIF %s: %w", f.Device, err)
		}
	}
	return nil
}

// createVTPM creates an empty vTPM in place of the original one, whose content no call
// returns.
func (m *vmRestore) createVTPM(ctx context.Context) error {
	if len(m.stored.VM.VTPMs) == 0 {
		return nil
	}
	_, err := m.pool.CreateVTPM(ctx, m.vm)
	switch {
	case xapi.IsCode(err, xapi.MethodUnknown):
		m.warn("the VM is restored without its vTPM: this version of the pool has none")
	case err != nil:
		return fmt.Errorf("vTPM: %w", err)
	case m.role != lease.RoleDrill:
		m.warn("the VM has a new, empty vTPM: secrets that its guest sealed in the old one need its recovery key")
	}
	return nil
}

// finish starts or resumes a restored VM, if the options request it.
func (p *poolRestore) finish(ctx context.Context, start bool) error {
	if !start {
		return nil
	}
	var err error
	if p.out.Power == "Suspended" {
		err = p.retryStart(ctx, p.pool.ResumeVM)
	} else {
		err = p.retryStart(ctx, p.pool.StartVM)
	}
	if err != nil {
		return fmt.Errorf("VM %s (%s): %w: %w", p.out.VMName, p.out.VM, job.ErrUnstarted, err)
	}
	p.out.Power = "Running"
	return nil
}

// retryStart starts or resumes the VM. It tries again while a host still holds one of
// its disks for a read that has ended.
func (p *poolRestore) retryStart(ctx context.Context, start func(context.Context, xapi.Ref) error) error {
	var out error
	_ = p.pool.Retry(ctx, func(ctx context.Context) error {
		if out = start(ctx, p.vm); xapi.InUse(out) {
			return out
		}
		return nil
	})
	return out
}
