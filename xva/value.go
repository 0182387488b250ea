package xva

import (
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// Kind is the type of a Value. XenServer's form of XML-RPC represents integers
// as strings.
type Kind int

// The kinds of XML-RPC that XenServer uses.
const (
	Text   Kind = iota // a string or an integer
	Bool               // Text is "1" or "0"
	Double             // Text is a number
	Time               // Text has the form 20260821T10:11:12Z
	Array              // Items
	Struct             // Items, with their names in Names
)

// Value is a value of XML-RPC.
type Value struct {
	Kind  Kind
	Text  string
	Items []Value
	Names []string
}

// maxDepth bounds the nesting of values.
const maxDepth = 32

// Get returns a member of a struct, or an empty text if there is none.
func (v Value) Get(name string) Value {
	for i, n := range v.Names {
		if n == name && v.Kind == Struct {
			return v.Items[i]
		}
	}
	return Value{}
}

// Has reports whether a struct has a member.
func (v Value) Has(name string) bool {
	for _, n := range v.Names {
		if n == name && v.Kind == Struct {
			return true
		}
	}
	return false
}

// Set replaces a member of a struct, or adds it. Values may share members:
// modify only a value returned by Clone.
func (v *Value) Set(name string, to Value) {
	v.Kind = Struct
	for i, n := range v.Names {
		if n == name {
			v.Items[i] = to
			return
		}
	}
	v.Names, v.Items = append(v.Names, name), append(v.Items, to)
}

// Clone returns a copy that shares nothing with v.
func (v Value) Clone() Value {
	c := v
	c.Names = append([]string(nil), v.Names...)
	c.Items = make([]Value, len(v.Items))
	for i, it := range v.Items {
		c.Items[i] = it.Clone()
	}
	return c
}

// String returns a text value.
func String(s string) Value { return Value{Text: s} }

// Boolean returns a boolean value.
func Boolean(b bool) Value {
	if b {
		return Value{Kind: Bool, Text: "1"}
	}
	return Value{Kind: Bool, Text: "0"}
}

// True reports whether a value is true.
func (v Value) True() bool { return v.Kind == Bool && v.Text == "1" }

// Strings returns the texts of an array.
func (v Value) Strings() []string {
	var out []string
	if v.Kind == Array {
		for _, it := range v.Items {
			out = append(out, it.Text)
		}
	}
	return out
}

// MarshalJSON returns the value in the form of JSON-RPC, except that integers
// stay strings.
func (v Value) MarshalJSON() ([]byte, error) {
	switch v.Kind {
	case Bool:
		return json.Marshal(v.True())
	case Double:
		if f, err := strconv.ParseFloat(v.Text, 64); err == nil && f-f == 0 {
			return json.Marshal(f)
		}
		return []byte("0"), nil
	case Array:
		items := v.Items
		if items == nil {
			items = []Value{}
		}
		return json.Marshal(items)
	case Struct:
		m := make(map[string]Value, len(v.Items))
		for i, n := range v.Names {
			m[n] = v.Items[i]
		}
		return json.Marshal(m)
	}
	return json.Marshal(v.Text)
}

// FromJSON converts a record of JSON-RPC to a Value. It recognizes dates by
// their form, and floats by their decimal point.
func FromJSON(p []byte) (Value, error) {
	d := json.NewDecoder(strings.NewReader(string(p)))
	d.UseNumber()
	v, err := fromJSON(d, 0)
	if err != nil {
		return v, fmt.Errorf("xva: record: %w", err)
	}
	return v, nil
}

func fromJSON(d *json.Decoder, depth int) (v Value, err error) {
	if depth > maxDepth {
		return v, errors.New("too deep")
	}
	t, err := d.Token()
	if err != nil {
		return v, err
	}
	switch t := t.(type) {
	case json.Delim:
		v.Kind = Array
		if t == '{' {
			v.Kind = Struct
		}
		for d.More() {
			if v.Kind == Struct {
				name, err := d.Token()
				if err != nil {
					return v, err
				}
				v.Names = append(v.Names, name.(string))
			}
			it, err := fromJSON(d, depth+1)
			if err != nil {
				return v, err
			}
			v.Items = append(v.Items, it)
		}
		_, err = d.Token()
		return v, err
	case bool:
		return Boolean(t), nil
	case json.Number:
		v.Text = t.String()
		if strings.ContainsAny(v.Text, ".eE") {
			v.Kind = Double
		}
	case string:
		v.Text = t
		if isTime(t) {
			v.Kind = Time
		}
	}
	return v, nil
}

// isTime reports whether s has the form 20260821T10:11:12Z.
func isTime(s string) bool {
	const look = "ddddddddTdd:dd:ddZ"
	if len(s) != len(look) {
		return false
	}
	for i, c := range []byte(look) {
		if c == 'd' && (s[i] < '0' || s[i] > '9') || c != 'd' && s[i] != c {
			return false
		}
	}
	return true
}

// AppendXML appends the value in the form that XenServer writes: no space
// between the tags, strings directly within <value>.
func (v Value) AppendXML(dst []byte) []byte {
	dst = append(dst, "<value>"...)
	switch v.Kind {
	case Text:
		dst = appendText(dst, v.Text)
	case Bool:
		dst = append(dst, "<boolean>"+v.Text+"</boolean>"...)
	case Double:
		dst = append(dst, "<double>"+v.Text+"</double>"...)
	case Time:
		dst = append(dst, "<dateTime.iso8601>"+v.Text+"</dateTime.iso8601>"...)
	case Array:
		dst = append(dst, "<array><data>"...)
		for _, it := range v.Items {
			dst = it.AppendXML(dst)
		}
		dst = append(dst, "</data></array>"...)
	case Struct:
		dst = append(dst, "<struct>"...)
		for i, n := range v.Names {
			dst = append(dst, "<member><name>"...)
			dst = appendText(dst, n)
			dst = append(dst, "</name>"...)
			dst = v.Items[i].AppendXML(dst)
			dst = append(dst, "</member>"...)
		}
		dst = append(dst, "</struct>"...)
	}
	return append(dst, "</value>"...)
}

func appendText(dst []byte, s string) []byte {
	for _, r := range s {
		switch {
		case r == '&':
			dst = append(dst, "&amp;"...)
		case r == '<':
			dst = append(dst, "&lt;"...)
		case r == '>':
			dst = append(dst, "&gt;"...)
		case r < ' ' && r != '\t' && r != '\n' && r != '\r':
			dst = append(dst, '?') // not representable in XML
		case r == '\r':
			dst = append(dst, "&#13;"...)
		default:
			dst = append(dst, string(r)...)
		}
	}
	return dst
}

// ParseXML parses a value, with or without white space between the tags.
func ParseXML(r io.Reader) (Value, error) {
	d := xml.NewDecoder(r)
	for {
		t, err := d.Token()
		if err != nil {
			return Value{}, err
		}
		if s, ok := t.(xml.StartElement); ok {
			if s.Name.Local != "value" {
				return Value{}, fmt.Errorf("element %q where a value is expected", s.Name.Local)
			}
			return parseValue(d, 0)
		}
	}
}

// parseValue parses up to the end of a value whose start element was read.
func parseValue(d *xml.Decoder, depth int) (v Value, err error) {
	if depth > maxDepth {
		return v, errors.New("values too deep within each other")
	}
	var text strings.Builder
	typed := false
	for {
		t, err := d.Token()
		if err != nil {
			return v, err
		}
		switch t := t.(type) {
		case xml.CharData:
			text.Write(t)
		case xml.EndElement:
			if !typed {
				v.Text = text.String()
			}
			return v, nil
		case xml.StartElement:
			typed = true
			if v, err = parseTyped(d, t.Name.Local, depth); err != nil {
				return v, err
			}
		}
	}
}

func parseTyped(d *xml.Decoder, kind string, depth int) (v Value, err error) {
	switch kind {
	case "array":
		v.Kind = Array
	case "struct":
		v.Kind = Struct
	case "boolean":
		v.Kind = Bool
	case "double":
		v.Kind = Double
	case "dateTime.iso8601":
		v.Kind = Time
	case "string", "int", "i4", "i8":
	default:
		return v, fmt.Errorf("value of the unknown type %q", kind)
	}
	var text strings.Builder
	for open := 1; open > 0; {
		t, err := d.Token()
		if err != nil {
			return v, err
		}
		switch t := t.(type) {
		case xml.CharData:
			text.Write(t)
		case xml.EndElement:
			open--
		case xml.StartElement:
			switch name := t.Name.Local; {
			case v.Kind == Array && name == "data", v.Kind == Struct && name == "member":
				open++
			case v.Kind == Struct && name == "name":
				var n string
				if err := d.DecodeElement(&n, &t); err != nil {
					return v, err
				}
				v.Names = append(v.Names, n)
			case name == "value" && (v.Kind == Array || v.Kind == Struct):
				it, err := parseValue(d, depth+1)
				if err != nil {
					return v, err
				}
				v.Items = append(v.Items, it)
			default:
				return v, fmt.Errorf("element %q within a value of type %q", name, kind)
			}
		}
	}
	if v.Kind == Struct && len(v.Names) != len(v.Items) {
		return v, errors.New("struct with names and values that do not pair")
	}
	if v.Kind != Array && v.Kind != Struct {
		v.Text = text.String()
		if v.Kind != Text {
			v.Text = strings.TrimSpace(v.Text)
		}
		if v.Kind == Bool && v.Text != "0" && v.Text != "1" {
			return v, fmt.Errorf("boolean %.10q", v.Text)
		}
	}
	return v, nil
}
