package xapisim

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// maxDepth bounds the nesting of a request.
const maxDepth = 64

// request is a received call.
type request struct {
	method string
	params []any
	object any    // the params if they are not an array
	id     string // JSON only, in its original form
	v2     bool
}

// parseXMLRPC parses a methodCall.
func parseXMLRPC(body []byte) (*request, error) {
	d := xml.NewDecoder(bytes.NewReader(body))
	d.CharsetReader = func(charset string, r io.Reader) (io.Reader, error) {
		return nil, fmt.Errorf("charset %s", charset)
	}
	if err := expect(d, "methodCall"); err != nil {
		return nil, err
	}
	if err := expect(d, "methodName"); err != nil {
		return nil, err
	}
	name, err := text(d)
	if err != nil {
		return nil, err
	}
	req := &request{method: strings.TrimSpace(name), params: []any{}}
	t, err := element(d)
	if err != nil {
		return nil, err
	}
	if s, ok := t.(xml.StartElement); ok {
		if s.Name.Local != "params" {
			return nil, fmt.Errorf("xml: unexpected <%s>", s.Name.Local)
		}
		for {
			t, err := element(d)
			if err != nil {
				return nil, err
			}
			s, ok := t.(xml.StartElement)
			if !ok {
				break
			}
			if s.Name.Local != "param" {
				return nil, fmt.Errorf("xml: unexpected <%s>", s.Name.Local)
			}
			if err := expect(d, "value"); err != nil {
				return nil, err
			}
			v, err := xmlValue(d, 0)
			if err != nil {
				return nil, err
			}
			req.params = append(req.params, v)
			if err := end(d); err != nil {
				return nil, err
			}
		}
		if err := end(d); err != nil {
			return nil, err
		}
	}
	return req, nil
}

var errXML = errors.New("xml: unexpected element")

// element returns the next start or end element; it ignores the text between
// elements.
func element(d *xml.Decoder) (xml.Token, error) {
	for {
		t, err := d.Token()
		if err != nil {
			return nil, err
		}
		switch t := t.(type) {
		case xml.StartElement, xml.EndElement:
			return t, nil
		}
	}
}

func expect(d *xml.Decoder, name string) error {
	t, err := element(d)
	if err != nil {
		return err
	}
	if s, ok := t.(xml.StartElement); !ok || s.Name.Local != name {
		return errXML
	}
	return nil
}

func end(d *xml.Decoder) error {
	t, err := element(d)
	if err != nil {
		return err
	}
	if _, ok := t.(xml.EndElement); !ok {
		return errXML
	}
	return nil
}

// text reads character data up to the end of the element.
func text(d *xml.Decoder) (string, error) {
	var b strings.Builder
	for {
		t, err := d.Token()
		if err != nil {
			return "", err
		}
		switch t := t.(type) {
		case xml.CharData:
			b.Write(t)
		case xml.EndElement:
			return b.String(), nil
		case xml.StartElement:
			return "", errXML
		}
	}
}

// xmlValue parses the content of <value>, up to and including its end.
func xmlValue(d *xml.Decoder, depth int) (any, error) {
	if depth > maxDepth {
		return nil, errors.New("xml: nested too deep")
	}
	var bare strings.Builder
	for {
		t, err := d.Token()
		if err != nil {
			return nil, err
		}
		switch t := t.(type) {
		case xml.CharData:
			bare.Write(t)
		case xml.EndElement:
			return bare.String(), nil
		case xml.StartElement:
			v, err := xmlTyped(d, t.Name.Local, depth)
			if err != nil {
				return nil, err
			}
			return v, end(d)
		}
	}
}

func xmlTyped(d *xml.Decoder, kind string, depth int) (any, error) {
	switch kind {
	case "struct":
		return xmlStruct(d, depth)
	case "array":
		if err := expect(d, "data"); err != nil {
			return nil, err
		}
		out := []any{}
		for {
			t, err := element(d)
			if err != nil {
				return nil, err
			}
			s, ok := t.(xml.StartElement)
			if !ok {
				return out, end(d)
			}
			if s.Name.Local != "value" {
				return nil, errXML
			}
			v, err := xmlValue(d, depth+1)
			if err != nil {
				return nil, err
			}
			out = append(out, v)
		}
	}
	s, err := text(d)
	if err != nil {
		return nil, err
	}
	switch kind {
	case "string":
		return s, nil
	case "int", "i4", "i8":
		return strconv.ParseInt(strings.TrimSpace(s), 10, 64)
	case "double":
		return strconv.ParseFloat(strings.TrimSpace(s), 64)
	case "boolean":
		return strings.TrimSpace(s) == "1", nil
	case "dateTime.iso8601":
		return date(s), nil
	case "nil":
		return nil, nil
	case "base64":
		return s, nil
	}
	return nil, fmt.Errorf("xml: unknown kind <%s>", kind)
}

func xmlStruct(d *xml.Decoder, depth int) (any, error) {
	out := map[string]any{}
	for {
		t, err := element(d)
		if err != nil {
			return nil, err
		}
		s, ok := t.(xml.StartElement)
		if !ok {
			return out, nil
		}
		if s.Name.Local != "member" {
			return nil, errXML
		}
		if err := expect(d, "name"); err != nil {
			return nil, err
		}
		name, err := text(d)
		if err != nil {
			return nil, err
		}
		if err := expect(d, "value"); err != nil {
			return nil, err
		}
		if out[name], err = xmlValue(d, depth+1); err != nil {
			return nil, err
		}
		if err := end(d); err != nil {
			return nil, err
		}
	}
}

var xmlEscaper = strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", `"`, "&quot;")

// appendXML writes <value>...</value> as the server does: no space between
// tags, strings without a type element, integers as strings.
func appendXML(b []byte, v any) []byte {
	b = append(b, "<value>"...)
	switch v := v.(type) {
	case string:
		b = append(b, xmlEscaper.Replace(v)...)
	case int64:
		b = strconv.AppendInt(b, v, 10)
	case int32:
		b = append(append(b, "<i4>"...), strconv.Itoa(int(v))+"</i4>"...)
	case float64:
		b = append(append(b, "<double>"...), strconv.FormatFloat(v, 'g', -1, 64)+"</double>"...)
	case bool:
		n := "0"
		if v {
			n = "1"
		}
		b = append(b, "<boolean>"+n+"</boolean>"...)
	case date:
		b = append(b, "<dateTime.iso8601>"+string(v)+"</dateTime.iso8601>"...)
	case []any:
		b = append(b, "<array><data>"...)
		for _, e := range v {
			b = appendXML(b, e)
		}
		b = append(b, "</data></array>"...)
	case map[string]any:
		b = append(b, "<struct>"...)
		for _, k := range sortedKeys(v) {
			b = appendMember(b, k, v[k])
		}
		b = append(b, "</struct>"...)
	case ordered:
		b = append(b, "<struct>"...)
		for _, m := range v {
			b = appendMember(b, m.key, m.val)
		}
		b = append(b, "</struct>"...)
	case *record:
		b = append(b, "<struct>"...)
		for i, f := range v.class.fields {
			if f.hidden {
				continue
			}
			b = appendMember(b, f.name, v.vals[i])
		}
		b = append(b, "</struct>"...)
	}
	return append(b, "</value>"...)
}

func appendMember(b []byte, k string, v any) []byte {
	b = append(append(append(b, "<member><name>"...), xmlEscaper.Replace(k)...), "</name>"...)
	return append(appendXML(b, v), "</member>"...)
}

// ordered is a struct whose members keep their order.
type ordered []member

type member struct {
	key string
	val any
}

// xmlAnswer builds the methodResponse.
func xmlAnswer(req *request, result any, e *Error) []byte {
	b := []byte(`<?xml version="1.0"?><methodResponse><params><param>`)
	switch {
	case e != nil:
		b = appendXML(b, ordered{{"Status", "Failure"}, {"ErrorDescription", e.list()}})
	case req.method == "system.listMethods":
		b = appendXML(b, result)
	default:
		b = appendXML(b, ordered{{"Status", "Success"}, {"Value", result}})
	}
	return append(b, "</param></params></methodResponse>"...)
}
