package xapisim

import (
	_ "embed"
	"fmt"
	"strconv"
	"strings"
	"sync"
)

//go:embed schema.txt
var schemaText string

//go:embed sync.txt
var syncText string

// kind is the kind of a XenAPI value.
type kind uint8

const (
	kVoid kind = iota
	kString
	kInt
	kFloat
	kBool
	kDate
	kEnum
	kRef
	kSet
	kMap
	kRecord
)

// typ is a XenAPI type. name is the enum's or the class's; elem is a set's
// element or a map's value, key a map's key.
type typ struct {
	kind      kind
	name      string
	key, elem *typ
	values    map[string]bool // of an enum
	zero      any             // the value of a field of this type that was never set
}

// role defines who sets a field: only the server, the constructor, or any
// client.
type role uint8

const (
	serverOnly role = iota
	constructor
	readWrite
)

type field struct {
	name      string
	typ       *typ
	role      role
	def       any // the datamodel's default
	mandatory bool
	hidden    bool // from clients of an older version
	index     int
}

// class is one class of the data model. lower is its name in events.
type class struct {
	name, lower string
	hidden      bool // from clients of an older version
	fields      []*field
	byName      map[string]*field
	relations   map[int]*relation // by the index of a reference field
}

// form distinguishes the implicit calls of the data model from those with code
// of their own.
type form uint8

const (
	custom form = iota
	untyped
	getRecord
	getByUUID
	getByName
	getAll
	getAllWhere
	getAllRecords
	getAllRecordsWhere
	getField
	setField
	addToMap
	removeFromMap
	addToSet
	removeFromSet
	create
	destroy
)

type param struct {
	name     string
	typ      *typ
	optional bool
}

// method is one call. params exclude the session.
type method struct {
	name      string // Class.call
	class     *class
	form      form
	field     *field
	params    []param
	noSession bool
	sync      bool // flagged as having no Async. form
}

// mandatory returns the minimum number of parameters of a call, and whether it
// accepts more: calls with optional parameters ignore parameters that they do
// not define.
func (m *method) mandatory() (n int, open bool) {
	for _, p := range m.params {
		if p.optional {
			open = true
			continue
		}
		n++
	}
	return n, open
}

type schema struct {
	classes map[string]*class
	order   []*class
	methods map[string]*method
	names   []string // of the methods, in the order of system.listMethods
	types   map[string]*typ
}

var loadSchema = sync.OnceValues(func() (*schema, error) { return parseSchema(schemaText) })

// parseSchema parses the table in schema.txt.
func parseSchema(text string) (*schema, error) {
	s := &schema{classes: map[string]*class{}, methods: map[string]*method{}, types: map[string]*typ{}}
	lines := strings.Split(text, "\n")
	for _, l := range lines {
		if f := strings.Fields(l); len(f) > 2 && f[0] == "enum" {
			t := &typ{kind: kEnum, name: f[1], values: map[string]bool{}}
			for _, v := range f[2:] {
				t.values[strings.TrimPrefix(v, "-")] = true
			}
			t.zero = strings.TrimPrefix(f[2], "-")
			s.types["enum("+f[1]+")"] = t
		}
	}
	var cur *class
	var without map[string]bool
	var calls []*method
	implicit, listed := []string{}, false
	flush := func() {
		if cur == nil {
			return
		}
		if listed {
			for _, m := range s.implicit(cur, implicit) {
				if !without[strings.TrimPrefix(m.name, cur.name+".")] {
					s.add(m)
				}
			}
			for _, m := range calls {
				s.add(m)
			}
		}
	}
	for n, l := range lines {
		f := strings.Fields(l)
		if len(f) == 0 || strings.HasPrefix(f[0], "#") || f[0] == "enum" {
			continue
		}
		if f[0] != "class" && cur == nil {
			return nil, fmt.Errorf("schema line %d: no class", n+1)
		}
		switch f[0] {
		case "class":
			flush()
			cur = &class{name: f[1], lower: strings.ToLower(f[1]), byName: map[string]*field{}, relations: map[int]*relation{}}
			s.classes[cur.name] = cur
			s.order = append(s.order, cur)
			without, calls, implicit, listed = map[string]bool{}, nil, nil, len(f) == 2
		case "field":
			fd, err := s.field(f)
			if err != nil {
				return nil, fmt.Errorf("schema line %d: %w", n+1, err)
			}
			fd.index = len(cur.fields)
			cur.fields = append(cur.fields, fd)
			cur.byName[fd.name] = fd
		case "call":
			m := &method{name: cur.name + "." + f[1], class: cur}
			if _, err := s.typ(f[2]); err != nil {
				return nil, fmt.Errorf("schema line %d: %w", n+1, err)
			}
			for _, p := range f[3:] {
				if p == "nosession" {
					m.noSession = true
					continue
				}
				name, t, _ := strings.Cut(p, ":")
				pt, err := s.typ(t)
				if err != nil {
					return nil, fmt.Errorf("schema line %d: %w", n+1, err)
				}
				m.params = append(m.params, param{strings.TrimSuffix(name, "?"), pt, strings.HasSuffix(name, "?")})
			}
			calls = append(calls, m)
		case "untyped":
			calls = append(calls, &method{name: cur.name + "." + f[1], class: cur, form: untyped})
		case "ctor", "dtor":
			implicit = append(implicit, f[0])
		case "setter":
			fd := cur.byName[f[1]]
			if fd == nil {
				return nil, fmt.Errorf("schema line %d: no field %s", n+1, f[1])
			}
			calls = append(calls, s.selfCall(cur, "set_"+f[1], setField, fd, param{name: "value", typ: fd.typ}))
		case "without":
			for _, w := range f[1:] {
				without[w] = true
			}
		default:
			return nil, fmt.Errorf("schema line %d: unknown word %q", n+1, f[0])
		}
	}
	flush()
	for _, l := range strings.Split(syncText, "\n") {
		if m := s.methods[l]; m != nil {
			m.sync = true
		} else if l != "" && !strings.HasPrefix(l, "#") {
			return nil, fmt.Errorf("table of synchronous calls: no call %s", l)
		}
	}
	return s, s.relate()
}

func (s *schema) add(m *method) {
	if _, ok := s.methods[m.name]; ok && m.form != custom {
		return
	}
	if _, ok := s.methods[m.name]; !ok {
		s.names = append(s.names, m.name)
	}
	s.methods[m.name] = m
}

func (s *schema) field(f []string) (*field, error) {
	if len(f) < 4 {
		return nil, fmt.Errorf("short field")
	}
	t, err := s.typ(f[2])
	if err != nil {
		return nil, err
	}
	fd := &field{name: f[1], typ: t, role: map[string]role{"ro": serverOnly, "cons": constructor, "rw": readWrite}[f[3]]}
	fd.def, fd.mandatory = t.zero, fd.role != serverOnly
	if len(f) > 4 {
		fd.mandatory = false
		if f[4] != "-" {
			fd.def, err = t.parseText(f[4])
		}
	}
	return fd, err
}

// parseText parses a default in the table.
func (t *typ) parseText(v string) (any, error) {
	switch t.kind {
	case kInt:
		return strconv.ParseInt(v, 10, 64)
	case kFloat:
		return strconv.ParseFloat(v, 64)
	case kBool:
		return strconv.ParseBool(v)
	case kDate:
		return date(v), nil
	}
	return v, nil
}

// typ parses a type in the table's notation, such as map(string,ref(VDI)).
func (s *schema) typ(v string) (*typ, error) {
	if t, ok := s.types[v]; ok {
		return t, nil
	}
	t, err := s.newType(v)
	if err == nil {
		s.types[v] = t
	}
	return t, err
}

func (s *schema) newType(v string) (*typ, error) {
	switch v {
	case "void", "any":
		return &typ{kind: kVoid, zero: ""}, nil
	case "string":
		return &typ{kind: kString, zero: ""}, nil
	case "int":
		return &typ{kind: kInt, zero: int64(0)}, nil
	case "float":
		return &typ{kind: kFloat, zero: float64(0)}, nil
	case "bool":
		return &typ{kind: kBool, zero: false}, nil
	case "datetime":
		return &typ{kind: kDate, zero: epoch}, nil
	}
	word, rest, ok := strings.Cut(v, "(")
	if !ok || !strings.HasSuffix(rest, ")") {
		return nil, fmt.Errorf("unknown type %q", v)
	}
	rest = strings.TrimSuffix(rest, ")")
	switch word {
	case "ref":
		return &typ{kind: kRef, name: rest, zero: nullRef}, nil
	case "record":
		return &typ{kind: kRecord, name: rest, zero: map[string]any{}}, nil
	case "option":
		return s.typ(rest)
	case "set":
		e, err := s.typ(rest)
		return &typ{kind: kSet, elem: e, zero: []any{}}, err
	case "map":
		depth := 0
		for i, r := range rest {
			switch {
			case r == '(':
				depth++
			case r == ')':
				depth--
			case r == ',' && depth == 0:
				k, err := s.typ(rest[:i])
				if err != nil {
					return nil, err
				}
				e, err := s.typ(rest[i+1:])
				return &typ{kind: kMap, key: k, elem: e, zero: map[string]any{}}, err
			}
		}
	}
	return nil, fmt.Errorf("unknown type %q", v)
}

func (s *schema) selfCall(c *class, name string, f form, fd *field, more ...param) *method {
	self := &typ{kind: kRef, name: c.name, zero: nullRef}
	return &method{name: c.name + "." + name, class: c, form: f, field: fd,
		params: append([]param{{name: "self", typ: self}}, more...)}
}

// implicit lists the calls that every class has by the rules of the data model.
func (s *schema) implicit(c *class, ctors []string) []*method {
	str := &typ{kind: kString, zero: ""}
	plain := func(name string, f form, p ...param) *method {
		return &method{name: c.name + "." + name, class: c, form: f, params: p}
	}
	ms := []*method{
		s.selfCall(c, "get_record", getRecord, nil),
		plain("get_by_uuid", getByUUID, param{name: "uuid", typ: str}),
		plain("get_all", getAll),
		plain("get_all_where", getAllWhere, param{name: "expr", typ: str}),
		plain("get_all_records", getAllRecords),
		plain("get_all_records_where", getAllRecordsWhere, param{name: "expr", typ: str}),
	}
	if c.byName["name_label"] != nil {
		ms = append(ms, plain("get_by_name_label", getByName, param{name: "label", typ: str}))
	}
	for _, f := range c.fields {
		ms = append(ms, s.selfCall(c, "get_"+f.name, getField, f))
		if f.role != readWrite {
			continue
		}
		ms = append(ms, s.selfCall(c, "set_"+f.name, setField, f, param{name: "value", typ: f.typ}))
		switch f.typ.kind {
		case kMap:
			ms = append(ms,
				s.selfCall(c, "add_to_"+f.name, addToMap, f, param{name: "key", typ: f.typ.key}, param{name: "value", typ: f.typ.elem}),
				s.selfCall(c, "remove_from_"+f.name, removeFromMap, f, param{name: "key", typ: f.typ.key}))
		case kSet:
			ms = append(ms,
				s.selfCall(c, "add_"+f.name, addToSet, f, param{name: "value", typ: f.typ.elem}),
				s.selfCall(c, "remove_"+f.name, removeFromSet, f, param{name: "value", typ: f.typ.elem}))
		}
	}
	for _, w := range ctors {
		if w == "ctor" {
			ms = append(ms, plain("create", create, param{name: "args", typ: &typ{kind: kRecord, name: c.name}}))
		} else {
			ms = append(ms, s.selfCall(c, "destroy", destroy, nil))
		}
	}
	return ms
}

// relation describes that the set called field of class parent lists the
// objects whose reference field points at the parent.
type relation struct {
	parent, field string
}

// relate adds the two-sided relations of the data model (xen-api
// ocaml/idl/datamodel.ml, all_relations).
func (s *schema) relate() error {
	for _, r := range [][4]string{
		{"VBD", "VM", "VM", "VBDs"}, {"VBD", "VDI", "VDI", "VBDs"},
		{"VIF", "VM", "VM", "VIFs"}, {"VIF", "network", "network", "VIFs"},
		{"VDI", "SR", "SR", "VDIs"}, {"VDI", "snapshot_of", "VDI", "snapshots"},
		{"PBD", "host", "host", "PBDs"}, {"PBD", "SR", "SR", "PBDs"},
		{"PIF", "host", "host", "PIFs"}, {"PIF", "network", "network", "PIFs"},
		{"VM", "resident_on", "host", "resident_VMs"}, {"VM", "snapshot_of", "VM", "snapshots"},
		{"VM", "parent", "VM", "children"}, {"VM", "snapshot_schedule", "VMSS", "VMs"},
		{"VM", "appliance", "VM_appliance", "VMs"},
		{"console", "VM", "VM", "consoles"}, {"host_cpu", "host", "host", "host_CPUs"},
		{"crashdump", "VM", "VM", "crash_dumps"}, {"crashdump", "VDI", "VDI", "crash_dumps"},
		{"VTPM", "VM", "VM", "VTPMs"}, {"VGPU", "VM", "VM", "VGPUs"}, {"VUSB", "VM", "VM", "VUSBs"},
		{"VUSB", "USB_group", "USB_group", "VUSBs"}, {"PUSB", "USB_group", "USB_group", "PUSBs"}, {"PUSB", "host", "host", "PUSBs"},
		{"Certificate", "host", "host", "certificates"},
		{"task", "subtask_of", "task", "subtasks"},
	} {
		c, p := s.classes[r[0]], s.classes[r[2]]
		if c == nil || p == nil || c.byName[r[1]] == nil || p.byName[r[3]] == nil {
			return fmt.Errorf("schema: unknown relation %v", r)
		}
		c.relations[c.byName[r[1]].index] = &relation{r[2], r[3]}
	}
	return nil
}
