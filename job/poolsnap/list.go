package poolsnap

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"xenkeep/xapi"
)

// Params holds all fields of a record as in the pool's API, with references replaced
// by UUIDs if the object has one.
type Params map[string]any

// VMRow is a VM in a list.
type VMRow struct {
	Type       string   `json:"type"` // "vm"
	UUID       string   `json:"uuid"`
	Name       string   `json:"name"`
	PowerState string   `json:"power_state"` // running, halted, paused, suspended
	Host       string   `json:"host"`
	VCPUs      int64    `json:"vcpus"`
	Memory     int64    `json:"memory"` // bytes
	Disks      int      `json:"disks"`
	Size       int64    `json:"size"` // bytes of its disks
	Snapshots  int      `json:"snapshots"`
	Tags       []string `json:"tags"`
	Params     Params   `json:"params,omitempty"`
}

// SRRow is a storage repository in a list. Sizes are bytes; -1: the driver does not
// report them.
type SRRow struct {
	Type    string `json:"type"` // "sr"
	UUID    string `json:"uuid"`
	Name    string `json:"name"`
	Driver  string `json:"driver"`
	Shared  bool   `json:"shared"`
	Default bool   `json:"default"`
	Size    int64  `json:"size"`
	Used    int64  `json:"used"`
	Free    int64  `json:"free"`
	VDIs    int    `json:"vdis"`
	Params  Params `json:"params,omitempty"`
}

// HostRow is a host in a list.
type HostRow struct {
	Type    string `json:"type"` // "host"
	UUID    string `json:"uuid"`
	Name    string `json:"name"`
	Address string `json:"address"`
	Master  bool   `json:"master"`
	Enabled bool   `json:"enabled"`
	Version string `json:"version"`
	VMs     int    `json:"vms"` // number of VMs that run on it
	Params  Params `json:"params,omitempty"`
}

// TemplateRow is a template in a list.
type TemplateRow struct {
	Type        string `json:"type"` // "template"
	UUID        string `json:"uuid"`
	Name        string `json:"name"`
	Description string `json:"description"`
	Default     bool   `json:"default"` // comes with the product
	Disks       int    `json:"disks"`
	Size        int64  `json:"size"`
	Params      Params `json:"params,omitempty"`
}

// Filter is one FIELD=VALUE of a record. FIELD is the name of the field in the pool's
// API, with dashes or underscores; FIELD:KEY=VALUE selects one key of a map. Case is
// ignored. A set passes if one of its values does.
type Filter struct{ Field, Key, Value string }

// ParseFilter parses one filter.
func ParseFilter(text string) (Filter, error) {
	field, value, ok := strings.Cut(text, "=")
	if !ok || field == "" {
		return Filter{}, fmt.Errorf("filter %q: want FIELD=VALUE, such as power-state=halted: %w", text, ErrValue)
	}
	field, key, _ := strings.Cut(field, ":")
	return Filter{strings.ReplaceAll(strings.ToLower(field), "-", "_"), key, value}, nil
}

// ParseFilters parses several filters.
func ParseFilters(texts []string) ([]Filter, error) {
	var out []Filter
	for _, t := range texts {
		f, err := ParseFilter(t)
		if err != nil {
			return nil, err
		}
		out = append(out, f)
	}
	return out, nil
}

// lister resolves references to UUIDs.
type lister struct {
	*world
	pool  xapi.Pool
	names map[xapi.Ref]string // UUIDs
}

// newLister reads the records of a pool; deep also resolves references inside of
// records.
func newLister(ctx context.Context, c *xapi.Client, deep bool) (*lister, error) {
	w, err := look(ctx, c)
	if err != nil {
		return nil, err
	}
	l := &lister{world: w, names: make(map[xapi.Ref]string)}
	if l.pool, err = c.Pool(ctx); err != nil {
		return nil, err
	}
	networks, err := c.Networks(ctx)
	if err != nil {
		return nil, err
	}
	for _, n := range networks {
		l.names[n.Ref] = n.UUID
	}
	for _, v := range w.VMs {
		l.names[v.Ref] = v.UUID
	}
	for ref, v := range w.VBDs {
		l.names[ref] = v.UUID
	}
	for ref, v := range w.VDIs {
		l.names[ref] = v.UUID
	}
	for ref, v := range w.SRs {
		l.names[ref] = v.UUID
	}
	for ref, v := range w.Hosts {
		l.names[ref] = v.UUID
	}
	if !deep {
		return l, nil
	}
	for _, class := range []string{
		"VIF", "VM_metrics", "VM_guest_metrics", "VTPM", "VUSB", "VGPU", "console", "PBD", "PIF", "PCI", "host_metrics", "host_cpu", "crashdump",
		"VMSS", "VM_appliance", "blob", "task", "Bond", "PUSB", "PGPU", "Certificate", "host_patch", "pool_patch", "pool_update", "Feature",
	} {
		uuids, err := c.UUIDs(ctx, class)
		if err != nil {
			return nil, err
		}
		maps.Copy(l.names, uuids)
	}
	return l, nil
}

// params decodes a record, without secrets that it may contain.
func (l *lister) params(raw json.RawMessage) (Params, error) {
	var p Params
	d := json.NewDecoder(strings.NewReader(string(raw)))
	d.UseNumber()
	if err := d.Decode(&p); err != nil {
		return nil, err
	}
	for k, v := range p {
		p[k] = l.readable(v)
	}
	return p, nil
}

func (l *lister) readable(v any) any {
	switch v := v.(type) {
	case string:
		if v == string(xapi.NullRef) {
			return ""
		}
		if uuid := l.names[xapi.Ref(v)]; uuid != "" {
			return uuid
		}
	case []any:
		for i := range v {
			v[i] = l.readable(v[i])
		}
	case map[string]any:
		out := make(map[string]any, len(v))
		for k, x := range v {
			if uuid := l.names[xapi.Ref(k)]; uuid != "" { // a task of current_operations
				k = uuid
			}
			out[k] = l.readable(x)
		}
		return out
	}
	return v
}

// fits reports whether a record passes all filters.
func (l *lister) fits(raw json.RawMessage, filters []Filter) (bool, error) {
	if len(filters) == 0 {
		return true, nil
	}
	p, err := l.params(raw)
	if err != nil {
		return false, err
	}
	for _, f := range filters {
		name := ""
		for k := range p {
			if strings.EqualFold(k, f.Field) {
				name = k
			}
		}
		if name == "" {
			return false, advise("--params all shows the fields that there are", "filter %s=%s: no such field: %w", f.Field, f.Value, ErrValue)
		}
		v := p[name]
		if m, ok := v.(map[string]any); ok && f.Key != "" {
			v, ok = m[f.Key]
			if !ok {
				return false, nil
			}
		}
		if !holds(v, f.Value) {
			return false, nil
		}
	}
	return true, nil
}

func holds(v any, want string) bool {
	switch v := v.(type) {
	case []any:
		if len(v) == 0 {
			return want == ""
		}
		return slices.ContainsFunc(v, func(e any) bool { return holds(e, want) })
	case map[string]any:
		return Text(v) == want
	}
	return strings.EqualFold(Text(v), want)
}

// Text formats a value of Params for users.
func Text(v any) string {
	switch v := v.(type) {
	case nil:
		return ""
	case string:
		return v
	case []any:
		var parts []string
		for _, e := range v {
			parts = append(parts, Text(e))
		}
		return strings.Join(parts, "; ")
	case map[string]any:
		var parts []string
		for _, k := range slices.Sorted(maps.Keys(v)) {
			parts = append(parts, k+": "+Text(v[k]))
		}
		return strings.Join(parts, "; ")
	}
	return fmt.Sprint(v)
}

// ListOptions select the records and fields of a list.
type ListOptions struct {
	Filters []Filter
	Params  bool // include all fields
}

// each calls row for each record that passes the filters, with its fields if the
// options request them.
func each[T any](l *lister, list []T, o ListOptions, raw func(*T) json.RawMessage, row func(*T, Params)) error {
	for i := range list {
		r := raw(&list[i])
		ok, err := l.fits(r, o.Filters)
		if err != nil {
			return err
		}
		if !ok {
			continue
		}
		var p Params
		if o.Params {
			if p, err = l.params(r); err != nil {
				return err
			}
		}
		row(&list[i], p)
	}
	return nil
}

// disks returns the number of a VM's disks and their bytes.
func (w *world) disks(v *xapi.VM) (n int, size int64) {
	for _, ref := range v.VBDs {
		vbd := w.VBDs[ref]
		if vdi, ok := w.VDIs[vbd.VDI]; ok && vbd.Type == "Disk" {
			n++
			size += int64(vdi.VirtualSize)
		}
	}
	return n, size
}

func (l *lister) of(is func(*xapi.VM) bool) []xapi.VM {
	var list []xapi.VM
	for i := range l.VMs {
		if is(&l.VMs[i]) {
			list = append(list, l.VMs[i])
		}
	}
	return list
}

func rawVM(v *xapi.VM) json.RawMessage { return v.Raw }

// VMs lists the VMs of a pool, by name.
func VMs(ctx context.Context, c *xapi.Client, o ListOptions) ([]VMRow, error) {
	l, err := newLister(ctx, c, o.Params || len(o.Filters) > 0)
	if err != nil {
		return nil, err
	}
	rows := []VMRow{}
	err = each(l, l.of((*xapi.VM).Real), o, rawVM, func(v *xapi.VM, p Params) {
		n, size := l.disks(v)
		rows = append(rows, VMRow{
			Type: "vm", UUID: v.UUID, Name: v.NameLabel, PowerState: strings.ToLower(v.PowerState), Host: l.Hosts[v.ResidentOn].NameLabel,
			VCPUs: int64(v.VCPUsAtStartup), Memory: int64(v.MemoryStaticMax), Disks: n, Size: size, Snapshots: len(v.Snapshots), Tags: v.Tags, Params: p,
		})
	})
	return rows, err
}

// Templates lists the templates of a pool, by name, without VM snapshots.
func Templates(ctx context.Context, c *xapi.Client, o ListOptions) ([]TemplateRow, error) {
	l, err := newLister(ctx, c, o.Params || len(o.Filters) > 0)
	if err != nil {
		return nil, err
	}
	rows := []TemplateRow{}
	is := func(v *xapi.VM) bool { return v.IsATemplate && !v.IsASnapshot }
	err = each(l, l.of(is), o, rawVM, func(v *xapi.VM, p Params) {
		n, size := l.disks(v)
		rows = append(rows, TemplateRow{"template", v.UUID, v.NameLabel, v.NameDescription, isDefault(v), n, size, p})
	})
	return rows, err
}

// isDefault reports whether a template came with the product; before 7.2 only
// other_config contains that.
func isDefault(v *xapi.VM) bool {
	return v.IsDefaultTemplate || v.OtherConfig["default_template"] == "true"
}

// SRs lists the storage repositories of a pool, by name.
func SRs(ctx context.Context, c *xapi.Client, o ListOptions) ([]SRRow, error) {
	l, err := newLister(ctx, c, o.Params || len(o.Filters) > 0)
	if err != nil {
		return nil, err
	}
	list := slices.SortedFunc(maps.Values(l.SRs), func(a, b xapi.SR) int {
		return cmp.Or(cmp.Compare(a.NameLabel, b.NameLabel), cmp.Compare(a.UUID, b.UUID))
	})
	rows := []SRRow{}
	err = each(l, list, o, func(s *xapi.SR) json.RawMessage { return s.Raw }, func(s *xapi.SR, p Params) {
		r := SRRow{"sr", s.UUID, s.NameLabel, s.Type, s.Shared, s.Ref == l.pool.DefaultSR, -1, -1, -1, len(s.VDIs), p}
		if s.PhysicalSize > 0 {
			r.Size, r.Used = int64(s.PhysicalSize), int64(s.PhysicalUtilisation)
			r.Free = max(r.Size-r.Used, 0)
		}
		rows = append(rows, r)
	})
	return rows, err
}

// Hosts lists the hosts of a pool, the master first.
func Hosts(ctx context.Context, c *xapi.Client, o ListOptions) ([]HostRow, error) {
	l, err := newLister(ctx, c, o.Params || len(o.Filters) > 0)
	if err != nil {
		return nil, err
	}
	list := slices.SortedFunc(maps.Values(l.Hosts), func(a, b xapi.Host) int {
		if m := l.pool.Master; (a.Ref == m) != (b.Ref == m) {
			if a.Ref == m {
				return -1
			}
			return 1
		}
		return cmp.Or(cmp.Compare(a.NameLabel, b.NameLabel), cmp.Compare(a.UUID, b.UUID))
	})
	rows := []HostRow{}
	err = each(l, list, o, func(h *xapi.Host) json.RawMessage { return h.Raw }, func(h *xapi.Host, p Params) {
		r := HostRow{
			Type: "host", UUID: h.UUID, Name: h.NameLabel, Address: h.Address, Master: h.Ref == l.pool.Master, Enabled: h.Enabled,
			Version: strings.TrimSpace(h.SoftwareVersion["product_brand"] + " " + h.SoftwareVersion["product_version"]), Params: p,
		}
		for i := range l.VMs {
			if v := &l.VMs[i]; v.Real() && v.ResidentOn == h.Ref && v.PowerState == "Running" {
				r.VMs++
			}
		}
		rows = append(rows, r)
	})
	return rows, err
}
