// Package selection decides which VMs of a pool, and which of their disks, belong to a
// job. It is a function of the pool's records and the config: it calls nothing and
// changes nothing. An ambiguous case (a name that matches nothing, or more than one
// VM) is reported, never guessed.
package selection

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"xenkeep/job/config"
	"xenkeep/job/pyre"
	"xenkeep/repo/retention"
	"xenkeep/xapi"
)

// Inventory holds the records of a pool that a selection needs.
type Inventory struct {
	VMs   []xapi.VM // including templates, snapshots and control domains
	VBDs  map[xapi.Ref]xapi.VBD
	VDIs  map[xapi.Ref]xapi.VDI
	SRs   map[xapi.Ref]xapi.SR
	Hosts map[xapi.Ref]xapi.Host
	// Saved holds the UUIDs of the VMs that jobs have backed up before, by the job's
	// name: if several VMs have the same name, the one that was backed up is selected.
	Saved map[string][]string
}

// Read reads an Inventory from a pool.
func Read(ctx context.Context, pool *xapi.Client) (*Inventory, error) {
	inv := &Inventory{
		VBDs: make(map[xapi.Ref]xapi.VBD), VDIs: make(map[xapi.Ref]xapi.VDI), SRs: make(map[xapi.Ref]xapi.SR), Hosts: make(map[xapi.Ref]xapi.Host),
	}
	var err error
	if inv.VMs, err = pool.VMs(ctx); err != nil {
		return nil, err
	}
	vbds, err := pool.VBDs(ctx)
	if err != nil {
		return nil, err
	}
	for _, v := range vbds {
		inv.VBDs[v.Ref] = v
	}
	vdis, err := pool.VDIs(ctx)
	if err != nil {
		return nil, err
	}
	for _, v := range vdis {
		inv.VDIs[v.Ref] = v
	}
	srs, err := pool.SRs(ctx)
	if err != nil {
		return nil, err
	}
	for _, s := range srs {
		inv.SRs[s.Ref] = s
	}
	hosts, err := pool.Hosts(ctx)
	if err != nil {
		return nil, err
	}
	for _, h := range hosts {
		inv.Hosts[h.Ref] = h
	}
	slices.SortFunc(inv.VMs, func(a, b xapi.VM) int {
		return cmp.Or(cmp.Compare(a.NameLabel, b.NameLabel), cmp.Compare(a.UUID, b.UUID))
	})
	return inv, nil
}

// Disk is a disk of a VM.
type Disk struct {
	VBD  xapi.VBD
	VDI  xapi.VDI
	SR   xapi.SR
	Left string // why it is left out; "" if it is saved
}

// FirstOnly is the reason for disks that are left out because the job saves only a
// VM's first disk.
const FirstOnly = "only the first disk is wanted"

// Device returns the name of the disk for users.
func (d *Disk) Device() string {
	if d.VBD.Device != "" {
		return d.VBD.Device
	}
	var n int
	if _, err := fmt.Sscanf(d.VBD.UserDevice, "%d", &n); err == nil && n >= 0 && n < 26 {
		return "xvd" + string(rune('a'+n))
	}
	return d.VBD.UserDevice
}

// VM is a selected VM, with its settings.
type VM struct {
	Record   xapi.VM
	By       string // the key or name that selected it
	Disks    []Disk // by userdevice
	Priority int
	Snapshot []config.Kind
	Keep     retention.Policy
}

// Left is a VM that was selected and then excluded.
type Left struct {
	Record xapi.VM
	Reason string
}

// Severity is the severity of a Finding.
type Severity int

// The severities.
const (
	Note  Severity = iota // information
	Warn                  // probably not intended
	Error                 // a VM that was requested is not saved
)

// Finding is an observation about a selection.
type Finding struct {
	Severity Severity
	Subject  string // the name, pattern or VM that it is about
	Text     string
	Hint     string
	// Missing is set if a requested VM does not exist: the run counts it as failed.
	Missing bool
}

// Result is the result of a selection.
type Result struct {
	VMs      []VM // by name
	Left     []Left
	Findings []Finding
}

// Owner returns the name of the selected VM to which a disk belongs, or "".
func (r *Result) Owner(disk xapi.Ref) string {
	for i := range r.VMs {
		for j := range r.VMs[i].Disks {
			if r.VMs[i].Disks[j].VDI.Ref == disk {
				return r.VMs[i].Record.NameLabel
			}
		}
	}
	return ""
}

type chooser struct {
	inv  *Inventory
	job  *config.Job
	res  *Result
	real []*xapi.VM
	by   map[xapi.Ref]string
	why  map[xapi.Ref]string // excluded
}

// roleKey is the mark of VMs that are being restored, or in a boot drill (job/lease).
const roleKey, roleRestore, roleDrill = "xenkeep:role", "restore", "drill"

// Choose applies a job's selection.
func Choose(inv *Inventory, j *config.Job) (*Result, error) {
	c := &chooser{inv: inv, job: j, res: &Result{}, by: make(map[xapi.Ref]string), why: make(map[xapi.Ref]string)}
	for i := range inv.VMs {
		if vm := &inv.VMs[i]; vm.Real() && vm.OtherConfig[roleKey] != roleRestore && vm.OtherConfig[roleKey] != roleDrill {
			c.real = append(c.real, vm)
		}
	}
	var err error
	if j.VmBackup != nil {
		err = c.asVmBackup(j.VmBackup)
	} else if err = c.choose(); err == nil {
		err = c.exclude()
	}
	if err != nil {
		return nil, err
	}
	c.marks()
	if err := c.finish(); err != nil {
		return nil, err
	}
	c.doubles()
	return c.res, nil
}

func (c *chooser) find(s Severity, subject, hint, format string, args ...any) {
	c.res.Findings = append(c.res.Findings, Finding{Severity: s, Subject: subject, Hint: hint, Text: fmt.Sprintf(format, args...), Missing: false})
}

func (c *chooser) missing(subject, hint, format string, args ...any) {
	c.res.Findings = append(c.res.Findings, Finding{Severity: Error, Subject: subject, Hint: hint, Text: fmt.Sprintf(format, args...), Missing: true})
}

// take selects a VM; if it was selected before, that is reported.
func (c *chooser) take(vm *xapi.VM, by string) {
	if was, twice := c.by[vm.Ref]; twice {
		if was != by {
			c.find(Note, vm.NameLabel, "", "chosen twice, by %s and by %s: backed up once", was, by)
		}
		return
	}
	c.by[vm.Ref] = by
}

// named returns the only real VM with a name. If there are several, it returns the one
// that the job has backed up before, if there is exactly one, and all of them.
func (c *chooser) named(name string) (*xapi.VM, []*xapi.VM) {
	var all []*xapi.VM
	for _, vm := range c.real {
		if vm.NameLabel == name {
			all = append(all, vm)
		}
	}
	if len(all) == 1 {
		return all[0], all
	}
	var before []*xapi.VM
	for _, vm := range all {
		if slices.Contains(c.inv.Saved[c.job.Name], vm.UUID) {
			before = append(before, vm)
		}
	}
	if len(before) == 1 {
		return before[0], all
	}
	return nil, all
}

// other describes other objects with a name: "a template", "a VM snapshot" ...
func (c *chooser) other(name string) string {
	for i := range c.inv.VMs {
		switch vm := &c.inv.VMs[i]; {
		case vm.NameLabel != name || vm.Real():
		case vm.IsControlDomain:
			return "a control domain"
		case vm.IsASnapshot:
			return "a VM snapshot"
		default:
			return "a template"
		}
	}
	return ""
}

func uuids(vms []*xapi.VM) string {
	var list []string
	for _, vm := range vms {
		list = append(list, vm.UUID)
	}
	return strings.Join(list, ", ")
}

// name selects by name, and reports a name that matches no VM or several.
func (c *chooser) name(name, by string) {
	vm, all := c.named(name)
	switch {
	case vm != nil:
		c.take(vm, by)
	case len(all) > 1:
		c.missing(name, "name it by its UUID, or rename the others", "%d VMs are called %q: %s", len(all), name, uuids(all))
	case c.other(name) != "":
		c.missing(name, "correct the name", "no VM is called %q, only %s", name, c.other(name))
	default:
		c.missing(name, "correct the name, or take it out of the config", "no VM is called %q", name)
	}
}

func (c *chooser) choose() error {
	s := c.job.Select
	for _, n := range s.Names {
		c.name(n, fmt.Sprintf("name %q", n))
	}
	for _, u := range s.UUIDs {
		i := slices.IndexFunc(c.real, func(vm *xapi.VM) bool { return strings.EqualFold(vm.UUID, u) })
		if i < 0 {
			c.missing(u, "correct the UUID, or take it out of the config", "no VM has the UUID %s", u)
			continue
		}
		c.take(c.real[i], "its UUID")
	}
	for _, text := range s.Patterns {
		p, err := pyre.Compile(text)
		if err != nil {
			return err
		}
		n := 0
		for _, vm := range c.real {
			ok, err := p.Match(vm.NameLabel)
			if err != nil {
				return err
			}
			if ok {
				n++
				c.take(vm, fmt.Sprintf("pattern %q", text))
			}
		}
		if n == 0 {
			c.missing(text, "correct it, or take it out of the config", "the pattern %q matches no VM", text)
		}
	}
	for _, tag := range s.Tags {
		n := 0
		for _, vm := range c.real {
			if slices.Contains(vm.Tags, tag) {
				n++
				c.take(vm, fmt.Sprintf("tag %q", tag))
			}
		}
		if n == 0 {
			c.missing(tag, "tag a VM with it, or take it out of the config", "no VM has the tag %q", tag)
		}
	}
	if s.All || len(s.Names)+len(s.UUIDs)+len(s.Patterns)+len(s.Tags) == 0 {
		for _, vm := range c.real {
			if _, chosen := c.by[vm.Ref]; !chosen {
				c.take(vm, "all")
			}
		}
	}
	c.places("select.hosts", s.Hosts, c.isHost)
	c.places("select.srs", s.SRs, c.isSR)
	for _, vm := range c.real {
		if _, chosen := c.by[vm.Ref]; !chosen {
			continue
		}
		switch {
		case len(s.PowerState) > 0 && !slices.Contains(s.PowerState, strings.ToLower(vm.PowerState)):
			c.why[vm.Ref] = "its power state is " + strings.ToLower(vm.PowerState)
		case len(s.Hosts) > 0 && !c.resident(vm, s.Hosts):
			c.why[vm.Ref] = "it is not resident on " + strings.Join(s.Hosts, ", ")
		case len(s.SRs) > 0 && !c.on(vm, s.SRs):
			c.why[vm.Ref] = "it has no disk on " + strings.Join(s.SRs, ", ")
		}
	}
	return nil
}

// places reports hosts and SRs that do not exist.
func (c *chooser) places(key string, names []string, there func(string) bool) {
	for _, n := range names {
		if !there(n) {
			c.find(Error, n, "correct the name", "%s: the pool has no %q", key, n)
		}
	}
}

func (c *chooser) isHost(name string) bool {
	for _, h := range c.inv.Hosts {
		if h.NameLabel == name || h.Hostname == name || strings.EqualFold(h.UUID, name) {
			return true
		}
	}
	return false
}

func (c *chooser) isSR(name string) bool {
	for _, s := range c.inv.SRs {
		if s.NameLabel == name || strings.EqualFold(s.UUID, name) {
			return true
		}
	}
	return false
}

func (c *chooser) resident(vm *xapi.VM, names []string) bool {
	h, ok := c.inv.Hosts[vm.ResidentOn]
	return ok && slices.ContainsFunc(names, func(n string) bool {
		return h.NameLabel == n || h.Hostname == n || strings.EqualFold(h.UUID, n)
	})
}

func (c *chooser) on(vm *xapi.VM, names []string) bool {
	for _, d := range c.disks(vm) {
		if slices.ContainsFunc(names, func(n string) bool { return d.SR.NameLabel == n || strings.EqualFold(d.SR.UUID, n) }) {
			return true
		}
	}
	return false
}

func (c *chooser) exclude() error {
	e := c.job.Exclude
	for _, n := range e.Names {
		_, all := c.named(n)
		if len(all) == 0 {
			c.find(Error, n, "correct the name, or take it out of the config", "exclude.names: no VM is called %q", n)
		}
		for _, vm := range all {
			c.why[vm.Ref] = fmt.Sprintf("excluded by name %q", n)
		}
	}
	for _, u := range e.UUIDs {
		i := slices.IndexFunc(c.real, func(vm *xapi.VM) bool { return strings.EqualFold(vm.UUID, u) })
		if i < 0 {
			c.find(Error, u, "correct the UUID, or take it out of the config", "exclude.uuids: no VM has the UUID %s", u)
			continue
		}
		c.why[c.real[i].Ref] = "excluded by its UUID"
	}
	for _, text := range e.Patterns {
		p, err := pyre.Compile(text)
		if err != nil {
			return err
		}
		n := 0
		for _, vm := range c.real {
			ok, err := p.Match(vm.NameLabel)
			if err != nil {
				return err
			}
			if ok {
				n++
				c.why[vm.Ref] = fmt.Sprintf("excluded by pattern %q", text)
			}
		}
		if n == 0 {
			c.find(Note, text, "", "exclude.patterns: %q matches no VM", text)
		}
	}
	c.places("exclude.hosts", e.Hosts, c.isHost)
	c.places("exclude.srs", e.SRs, c.isSR)
	for _, vm := range c.real {
		state := strings.ToLower(vm.PowerState)
		switch {
		case slices.ContainsFunc(e.Tags, func(t string) bool { return slices.Contains(vm.Tags, t) }):
			c.why[vm.Ref] = "excluded by tag"
		case slices.Contains(e.PowerState, state):
			c.why[vm.Ref] = "excluded: its power state is " + state
		case c.resident(vm, e.Hosts):
			c.why[vm.Ref] = "excluded by its host"
		case c.on(vm, e.SRs):
			c.why[vm.Ref] = "excluded by an SR that a disk of it is on"
		}
	}
	return nil
}

// noBackup reports whether tags contain Xen Orchestra's mark.
func noBackup(tags []string) bool {
	return slices.ContainsFunc(tags, func(t string) bool { return t == "xo:no-bak" || strings.HasPrefix(t, "xo:no-bak=") })
}

// marks applies the marks that users of Xen Orchestra set on VMs.
func (c *chooser) marks() {
	if c.job.Exclude.IgnoreMarks {
		return
	}
	for _, vm := range c.real {
		if _, chosen := c.by[vm.Ref]; chosen && noBackup(vm.Tags) {
			c.why[vm.Ref] = "it has the tag xo:no-bak"
		}
	}
}

// disks returns a VM's disks by userdevice.
func (c *chooser) disks(vm *xapi.VM) []Disk {
	var list []Disk
	for _, ref := range vm.VBDs {
		vbd, ok := c.inv.VBDs[ref]
		if !ok || vbd.Type != "Disk" || vbd.Empty || vbd.VDI.IsNull() {
			continue
		}
		vdi, ok := c.inv.VDIs[vbd.VDI]
		if !ok {
			continue
		}
		list = append(list, Disk{VBD: vbd, VDI: vdi, SR: c.inv.SRs[vdi.SR]})
	}
	slices.SortFunc(list, func(a, b Disk) int {
		x, y := a.VBD.UserDevice, b.VBD.UserDevice
		return cmp.Or(cmp.Compare(len(x), len(y)), cmp.Compare(x, y))
	})
	return list
}

// finish collects the settings of each selected VM.
func (c *chooser) finish() error {
	e := c.job.Exclude
	used := make([]bool, len(e.Disks))
	var like []*pyre.Pattern
	for _, text := range e.DiskPatterns {
		p, err := pyre.Compile(text)
		if err != nil {
			return err
		}
		like = append(like, p)
	}
	rules, err := compileRules(c.job)
	if err != nil {
		return err
	}
	for _, vm := range c.real {
		for _, d := range c.disks(vm) {
			for i, x := range e.Disks {
				used[i] = used[i] || isDisk(x, vm, &d)
			}
		}
		by, chosen := c.by[vm.Ref]
		if !chosen {
			continue
		}
		v := VM{Record: *vm, By: by, Disks: c.disks(vm), Snapshot: c.job.Snapshot, Keep: c.job.Keep.Policy()}
		if len(v.Disks) == 0 && by == "all" && c.why[vm.Ref] == "" {
			c.why[vm.Ref] = "it has no disks"
		}
		if why := c.why[vm.Ref]; why != "" {
			c.res.Left = append(c.res.Left, Left{*vm, why})
			continue
		}
		first := false
		for _, r := range rules {
			ok, err := r.applies(vm)
			if err != nil {
				return err
			}
			if ok {
				r.apply(&v, &first)
			}
		}
		for i := range v.Disks {
			d := &v.Disks[i]
			switch {
			case first && i > 0:
				d.Left = FirstOnly
			case slices.ContainsFunc(e.Disks, func(x string) bool { return isDisk(x, vm, d) }):
				d.Left = "excluded by the config"
			case !e.IgnoreMarks && strings.Contains(d.VDI.NameLabel, "[NOBAK]"):
				d.Left = "its name contains [NOBAK]"
			case !e.IgnoreMarks && noBackup(d.VDI.Tags):
				d.Left = "it has the tag xo:no-bak"
			}
			for _, p := range like {
				ok, err := p.Match(d.VDI.NameLabel)
				if err != nil {
					return err
				}
				if ok && d.Left == "" {
					d.Left = fmt.Sprintf("excluded by pattern %q", p)
				}
			}
		}
		if len(v.Disks) > 0 && !slices.ContainsFunc(v.Disks, func(d Disk) bool { return d.Left == "" }) {
			c.res.Left = append(c.res.Left, Left{*vm, "all its disks are left out"})
			c.find(Warn, vm.NameLabel, "exclude the VM, or fewer of its disks", "all disks of it are left out: it is not backed up")
			continue
		}
		c.res.VMs = append(c.res.VMs, v)
	}
	for i, x := range e.Disks {
		if !used[i] {
			c.find(Error, x, "correct it, or take it out of the config", "exclude.disks: no disk is %q", x)
		}
	}
	return nil
}

// isDisk reports whether x, a UUID, a name or VM:DEVICE, names a disk.
func isDisk(x string, vm *xapi.VM, d *Disk) bool {
	if strings.EqualFold(x, d.VDI.UUID) || x == d.VDI.NameLabel {
		return true
	}
	i := strings.LastIndexByte(x, ':')
	return i > 0 && (x[:i] == vm.NameLabel || strings.EqualFold(x[:i], vm.UUID)) && (x[i+1:] == d.Device() || x[i+1:] == d.VBD.UserDevice)
}

// chosenOf returns the UUIDs of the selected VMs with a name.
func (c *chooser) chosenOf(name string) []string {
	var list []string
	for i := range c.res.VMs {
		if vm := &c.res.VMs[i].Record; vm.NameLabel == name {
			list = append(list, vm.UUID)
		}
	}
	return list
}

// doubles reports names that several VMs have.
func (c *chooser) doubles() {
	told := make(map[string]bool)
	for i := range c.res.VMs {
		name := c.res.VMs[i].Record.NameLabel
		if told[name] {
			continue
		}
		told[name] = true
		if _, all := c.named(name); len(all) > 1 {
			taken := ""
			if chosen := c.chosenOf(name); len(chosen) == 1 {
				taken = "; the one with the UUID " + chosen[0] + " is backed up"
			}
			c.find(Warn, name, "give each VM a name of its own", "%d VMs are called %q: %s%s", len(all), name, uuids(all), taken)
		}
		if what := c.other(name); what != "" {
			c.find(Warn, name, "rename one of them", "%s is called %q too; the VM is backed up", what, name)
		}
	}
}
