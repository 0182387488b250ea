package xapisim

import (
	"fmt"
	"sort"
)

// object is one row of the pool's database.
type object struct {
	class             *class
	ref               string
	vals              []any
	created, modified uint64 // generations of the database
}

func (o *object) get(name string) any { return o.vals[o.class.byName[name].index] }

func (o *object) str(name string) string {
	switch v := o.get(name).(type) {
	case string:
		return v
	case date:
		return string(v)
	}
	return ""
}

func (o *object) bool(name string) bool           { b, _ := o.get(name).(bool); return b }
func (o *object) int(name string) int64           { n, _ := o.get(name).(int64); return n }
func (o *object) set(name string) []any           { s, _ := o.get(name).([]any); return s }
func (o *object) mapv(name string) map[string]any { m, _ := o.get(name).(map[string]any); return m }
func (o *object) uuid() string                    { return o.str("uuid") }

func (o *object) record() *record {
	return &record{o.class, append([]any(nil), o.vals...)}
}

// table holds the rows of one class.
type table struct {
	class *class
	objs  map[string]*object
}

// tomb records a deleted row, for event.from.
type tomb struct {
	class            *class
	ref              string
	created, deleted uint64
}

// database holds all objects of the pool. Pool.mu guards it.
type database struct {
	sch     *schema
	tables  map[string]*table
	gen     uint64
	dead    []tomb
	changed chan struct{} // closed at the next change
	opened  []string      // references of all sessions since the start
}

func newDatabase(sch *schema) *database {
	db := &database{sch: sch, tables: map[string]*table{}, changed: make(chan struct{})}
	for _, c := range sch.order {
		db.tables[c.name] = &table{c, map[string]*object{}}
	}
	return db
}

func (db *database) touch(o *object) {
	db.gen++
	o.modified = db.gen
	close(db.changed)
	db.changed = make(chan struct{})
}

// create adds a row. Omitted fields get their defaults.
func (db *database) create(cls string, fields map[string]any) *object {
	t := db.tables[cls]
	o := &object{class: t.class, ref: "OpaqueRef:" + newUUID(), vals: make([]any, len(t.class.fields))}
	for i, f := range t.class.fields {
		o.vals[i] = f.def
	}
	if f := t.class.byName["uuid"]; f != nil {
		o.vals[f.index] = newUUID()
	}
	t.objs[o.ref] = o
	db.gen++
	o.created = db.gen
	for _, k := range sortedKeys(fields) {
		f := t.class.byName[k]
		if f == nil {
			panic(fmt.Sprintf("xapisim: %s has no field %s", cls, k))
		}
		db.link(o, f.index, fields[k])
		o.vals[f.index] = fields[k]
	}
	db.touch(o)
	return o
}

// put sets one field and updates the other side of a relation.
func (db *database) put(o *object, name string, v any) {
	f := o.class.byName[name]
	db.link(o, f.index, v)
	o.vals[f.index] = v
	db.touch(o)
}

// link keeps the sets at the other side of a relation up to date, newest first.
func (db *database) link(o *object, index int, v any) {
	r := o.class.relations[index]
	if r == nil {
		return
	}
	old, _ := o.vals[index].(string)
	now, _ := v.(string)
	if old == now {
		return
	}
	if p := db.tables[r.parent].objs[old]; p != nil {
		db.rawPut(p, r.field, without(p.set(r.field), o.ref))
	}
	if p := db.tables[r.parent].objs[now]; p != nil {
		db.rawPut(p, r.field, append([]any{o.ref}, p.set(r.field)...))
	}
}

func (db *database) rawPut(o *object, name string, v any) {
	o.vals[o.class.byName[name].index] = v
	db.touch(o)
}

func without(set []any, v any) []any {
	out := make([]any, 0, len(set))
	for _, e := range set {
		if e != v {
			out = append(out, e)
		}
	}
	return out
}

// with returns m with k set to v; m itself is not modified.
func with(m map[string]any, k string, v any) map[string]any {
	out := make(map[string]any, len(m)+1)
	for k, e := range m {
		out[k] = e
	}
	out[k] = v
	return out
}

func withoutKey(m map[string]any, key string) map[string]any {
	out := make(map[string]any, len(m))
	for k, e := range m {
		if k != key {
			out[k] = e
		}
	}
	return out
}

// destroy removes a row. References to it dangle afterwards, as in the real
// database.
func (db *database) destroy(o *object) {
	for i := range o.class.relations {
		db.link(o, i, nullRef)
	}
	delete(db.tables[o.class.name].objs, o.ref)
	db.touch(o)
	db.dead = append(db.dead, tomb{o.class, o.ref, o.created, db.gen})
	if len(db.dead) > 10000 {
		db.dead = append([]tomb(nil), db.dead[5000:]...)
	}
}

// find returns the object of that class and ref, or nil.
func (db *database) find(cls, ref string) *object {
	t := db.tables[cls]
	if t == nil {
		return nil
	}
	return t.objs[ref]
}

// byUUID returns the object of that class and UUID, or nil.
func (db *database) byUUID(cls, uuid string) *object {
	for _, o := range db.tables[cls].objs {
		if o.uuid() == uuid {
			return o
		}
	}
	return nil
}

// all lists the objects of a class, newest first.
func (db *database) all(cls string) []*object {
	t := db.tables[cls]
	out := make([]*object, 0, len(t.objs))
	for _, o := range t.objs {
		out = append(out, o)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].created > out[j].created })
	return out
}

// refs lists the existing objects of a set of references.
func (db *database) refs(cls string, set []any) []*object {
	var out []*object
	for _, r := range set {
		if o := db.find(cls, r.(string)); o != nil {
			out = append(out, o)
		}
	}
	return out
}
