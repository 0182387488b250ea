package xapisim

// volatile lists fields that differ between two dumps of a pool even if nothing
// happened that matters to a user.
var volatile = map[string]map[string]bool{
	"":    {"allowed_operations": true, "current_operations": true, "last_updated": true},
	"VDI": {"physical_utilisation": true},
	"SR":  {"physical_utilisation": true, "virtual_allocation": true, "VDIs": true},
}

// Dump returns all records by class and reference, for a comparison of the pool
// before and after an operation. It omits sessions, tasks, messages and base
// copies (which the garbage collector removes), the parent in a disk's
// sm_config, and fields that change by themselves. A VM's parent is the one
// that the server keeps.
func (p *Pool) Dump() map[string]map[string]map[string]any {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := map[string]map[string]map[string]any{}
	for _, c := range p.db.sch.order {
		switch c.name {
		case "session", "task", "message", "event":
			continue
		}
		objs := map[string]map[string]any{}
		for ref, o := range p.db.tables[c.name].objs {
			if c.name == "VDI" && !o.bool("managed") {
				continue
			}
			f := map[string]any{}
			for i, fd := range c.fields {
				if volatile[""][fd.name] || volatile[c.name][fd.name] {
					continue
				}
				v := o.vals[i]
				if c.name == "VDI" && fd.name == "sm_config" {
					v = withoutKey(o.mapv("sm_config"), "vhd-parent")
				}
				f[fd.name] = v
			}
			objs[ref] = f
		}
		if len(objs) > 0 {
			out[c.name] = objs
		}
	}
	return out
}
