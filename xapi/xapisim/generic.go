package xapisim

import (
	"fmt"
	"strconv"
	"strings"
)

// generic runs the calls that exist for every class.
func (c *call) generic() (any, error) {
	p, m := c.p, c.method
	cls := m.class.name
	switch m.form {
	case getAll, getAllRecords:
		objs := p.db.all(cls)
		if m.form == getAll {
			return refsOf(objs), nil
		}
		return p.records(objs), nil
	case getAllWhere, getAllRecordsWhere:
		match, err := parseFilter(c.str(0))
		if err != nil {
			return nil, fail("INVALID_VALUE", c.str(0), err.Error())
		}
		var objs []*object
		for _, o := range p.db.all(cls) {
			if match(o) {
				objs = append(objs, o)
			}
		}
		if m.form == getAllWhere {
			return refsOf(objs), nil
		}
		return p.records(objs), nil
	case getByUUID:
		if o := p.db.byUUID(cls, c.str(0)); o != nil {
			return o.ref, nil
		}
		return nil, fail("UUID_INVALID", cls, c.str(0))
	case getByName:
		out := []any{}
		for _, o := range p.db.all(cls) {
			if o.str("name_label") == c.str(0) {
				out = append(out, o.ref)
			}
		}
		return out, nil
	case create:
		return nil, fail("NOT_IMPLEMENTED", m.name)
	}
	o, err := c.object(0)
	if err != nil {
		return nil, err
	}
	switch m.form {
	case getRecord:
		return p.view(o), nil
	case getField:
		return p.view(o).vals[m.field.index], nil
	case setField:
		p.db.put(o, m.field.name, c.args[1])
	case addToMap:
		old := o.mapv(m.field.name)
		if _, ok := old[c.str(1)]; ok {
			return nil, fail("MAP_DUPLICATE_KEY", cls, m.field.name, o.ref, c.str(1))
		}
		p.db.put(o, m.field.name, with(old, c.str(1), c.args[2]))
	case removeFromMap:
		p.db.put(o, m.field.name, withoutKey(o.mapv(m.field.name), c.str(1)))
	case addToSet:
		old := o.set(m.field.name)
		if len(without(old, c.args[1])) == len(old) {
			p.db.put(o, m.field.name, append(append([]any{}, old...), c.args[1]))
		}
	case removeFromSet:
		p.db.put(o, m.field.name, without(o.set(m.field.name), c.args[1]))
	case destroy:
		p.db.destroy(o)
	}
	return void, nil
}

func refsOf(objs []*object) []any {
	out := make([]any, len(objs))
	for i, o := range objs {
		out[i] = o.ref
	}
	return out
}

func (p *Pool) records(objs []*object) map[string]any {
	out := make(map[string]any, len(objs))
	for _, o := range objs {
		out[o.ref] = p.view(o)
	}
	return out
}

// construct reads the record of a create call: it ignores unknown fields and
// those that only the server sets, returns an error for the first mandatory
// field that is missing, and sets all other missing fields to their defaults.
func (c *call) construct(i int) (map[string]any, error) {
	in := c.args[i].(map[string]any)
	out := map[string]any{}
	for _, f := range c.method.class.fields {
		if f.role == serverOnly {
			continue
		}
		raw, ok := in[f.name]
		if f.hidden {
			out[f.name] = f.def
			continue
		}
		if !ok {
			if f.mandatory {
				return nil, fail("INTERNAL_ERROR", fmt.Sprintf("Server_helpers.Dispatcher_FieldNotFound(%q)", f.name))
			}
			out[f.name] = f.def
			continue
		}
		v, err := f.typ.fromWire(raw)
		if err != nil {
			return nil, err
		}
		out[f.name] = v
	}
	return out, nil
}

// parseFilter parses the expressions of get_all_records_where: fields, quoted
// texts, "=", and, or, not, true, false and brackets (xen-api
// ocaml/database/db_filter_parse.mly).
func parseFilter(expr string) (func(*object) bool, error) {
	f := &filter{rest: expr}
	if err := f.next(); err != nil {
		return nil, err
	}
	e, err := f.or()
	if err == nil && f.tok != "" {
		err = errFilter
	}
	return e, err
}

var (
	errFilterLex = fmt.Errorf(`Failure("lexing: empty token")`)
	errFilter    = fmt.Errorf("Stdlib.Parsing.Parse_error")
)

type filter struct {
	rest string
	tok  string // a word, a sign, or a quoted text with its opening quote
}

func (f *filter) next() error {
	f.rest = strings.TrimLeft(f.rest, " \t\n")
	if f.rest == "" {
		f.tok = ""
		return nil
	}
	switch ch := f.rest[0]; {
	case ch == '"' || ch == '\'':
		end := strings.IndexByte(f.rest[1:], ch)
		if end < 0 {
			return errFilterLex
		}
		f.tok, f.rest = f.rest[:end+1], f.rest[end+2:]
		return nil
	case strings.IndexByte("()=", ch) >= 0:
		f.tok, f.rest = f.rest[:1], f.rest[1:]
		return nil
	}
	for _, w := range []string{"field", "true", "false", "and", "or", "not"} {
		if strings.HasPrefix(f.rest, w) {
			f.tok, f.rest = w, f.rest[len(w):]
			return nil
		}
	}
	return errFilterLex
}

func (f *filter) or() (func(*object) bool, error) {
	a, err := f.and()
	for err == nil && f.tok == "or" {
		if err = f.next(); err != nil {
			break
		}
		l := a
		var r func(*object) bool
		if r, err = f.and(); err != nil {
			break
		}
		a = func(o *object) bool { return l(o) || r(o) }
	}
	return a, err
}

func (f *filter) and() (func(*object) bool, error) {
	a, err := f.unary(0)
	for err == nil && f.tok == "and" {
		if err = f.next(); err != nil {
			break
		}
		l := a
		var r func(*object) bool
		if r, err = f.unary(0); err != nil {
			break
		}
		a = func(o *object) bool { return l(o) && r(o) }
	}
	return a, err
}

func (f *filter) unary(depth int) (func(*object) bool, error) {
	if depth > maxDepth {
		return nil, errFilter
	}
	switch f.tok {
	case "not":
		if err := f.next(); err != nil {
			return nil, err
		}
		e, err := f.unary(depth + 1)
		return func(o *object) bool { return !e(o) }, err
	case "(":
		if depth+strings.Count(f.rest, "(") > maxDepth {
			return nil, errFilter
		}
		if err := f.next(); err != nil {
			return nil, err
		}
		e, err := f.or()
		if err != nil || f.tok != ")" {
			return nil, errFilter
		}
		return e, f.next()
	case "true", "false":
		v := f.tok == "true"
		return func(*object) bool { return v }, f.next()
	}
	l, err := f.value()
	if err != nil {
		return nil, err
	}
	if f.tok != "=" {
		return nil, errFilter
	}
	if err := f.next(); err != nil {
		return nil, err
	}
	r, err := f.value()
	if err != nil {
		return nil, err
	}
	return func(o *object) bool { return l(o) == r(o) }, nil
}

// value parses a quoted text or a field's name.
func (f *filter) value() (func(*object) string, error) {
	isField := f.tok == "field"
	if isField {
		if err := f.next(); err != nil {
			return nil, err
		}
	}
	if f.tok == "" || f.tok[0] != '"' && f.tok[0] != '\'' {
		return nil, errFilter
	}
	text := f.tok[1:]
	if err := f.next(); err != nil {
		return nil, err
	}
	if !isField {
		return func(*object) string { return text }, nil
	}
	// The database writes the fields of a name space with two underscores.
	name := strings.ReplaceAll(text, "__", "_")
	return func(o *object) string {
		fd := o.class.byName[name]
		if fd == nil {
			return "\x00"
		}
		switch v := o.vals[fd.index].(type) {
		case string:
			return v
		case date:
			return string(v)
		case bool:
			return strconv.FormatBool(v)
		case int64:
			return strconv.FormatInt(v, 10)
		}
		return ""
	}, nil
}

// setter returns the handler of a call that only sets a field.
func (p *Pool) setter(field string) handler {
	return func(c *call) (any, error) {
		o, err := c.object(0)
		if err == nil {
			p.db.put(o, field, c.args[1])
		}
		return void, err
	}
}
