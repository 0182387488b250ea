package xapisim

import (
	"fmt"
	"sort"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// The values of the simulated server are Go's string (also for enums and
// references), int64, float64, bool, date, []any, map[string]any, *record, and
// int32 for the only field that the server sends as a 32-bit integer. Decoded
// requests use the same types, with nil for JSON null and XML nil. Sets and
// maps are never modified in place, so that a record can be returned without
// copying them.

// date is a time in the format of the server, such as 20260131T08:00:00Z.
type date string

const (
	dateForm      = "20060102T15:04:05Z"
	epoch    date = "19700101T00:00:00Z"
	nullRef       = "OpaqueRef:NULL"
)

func dateOf(t time.Time) date { return date(t.UTC().Format(dateForm)) }

// parseDate parses the forms that xapi accepts: its own, RFC 3339, offsets, or
// no zone, which means UTC (xen-api ocaml/libs/clock/date.ml).
func parseDate(s string) (date, bool) {
	for _, form := range []string{dateForm, "20060102T15:04:05", "20060102T15:04:05-0700", "20060102T150405Z",
		time.RFC3339Nano, "2006-01-02T15:04:05", "20060102T15:04:05Z07:00"} {
		if t, err := time.Parse(form, s); err == nil {
			return dateOf(t), true
		}
	}
	return "", false
}

// record holds an object's fields at one instant.
type record struct {
	class *class
	vals  []any
}

// rpcText formats a received value as in the server's messages.
func rpcText(v any) string {
	switch v := v.(type) {
	case nil:
		return "N"
	case int64:
		return fmt.Sprintf("I(%d)", v)
	case float64:
		return "F(" + floatText(v) + ")"
	case bool:
		return fmt.Sprintf("B(%t)", v)
	case string:
		return "S(" + v + ")"
	case date:
		return "D(" + string(v) + ")"
	case []any:
		var b strings.Builder
		b.WriteByte('[')
		for i, e := range v {
			if i > 0 {
				b.WriteByte(';')
			}
			b.WriteString(rpcText(e))
		}
		b.WriteByte(']')
		return b.String()
	case map[string]any:
		var b strings.Builder
		b.WriteByte('{')
		for i, k := range sortedKeys(v) {
			if i > 0 {
				b.WriteByte(';')
			}
			b.WriteString(k + ":" + rpcText(v[k]))
		}
		b.WriteByte('}')
		return b.String()
	}
	return "?"
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	return keys
}

// failure returns the INTERNAL_ERROR of an OCaml Failure with this text.
func failure(text string) *Error {
	return fail("INTERNAL_ERROR", "Failure("+strconv.Quote(text)+")")
}

// fromWire converts a received value to a value of type t. For values of a
// wrong type it returns the server's own error messages.
func (t *typ) fromWire(v any) (any, error) {
	switch t.kind {
	case kString, kRef, kEnum:
		s, ok := v.(string)
		if !ok {
			return nil, failure("Expected string, got '" + rpcText(v) + "'")
		}
		if t.kind == kEnum && !t.values[s] {
			return nil, failure("Unknown tag/contents")
		}
		if !storable(s) {
			return nil, fail("INTERNAL_ERROR", "Db_exn.Invalid_value")
		}
		return s, nil
	case kInt:
		switch v := v.(type) {
		case int64:
			return v, nil
		case string:
			n, err := strconv.ParseInt(v, 0, 64)
			if err != nil {
				return nil, failure("Int64.of_string")
			}
			return n, nil
		}
		return nil, failure("Expected int64, got '" + rpcText(v) + "'")
	case kFloat:
		switch v := v.(type) {
		case float64:
			return v, nil
		case int64:
			return float64(v), nil
		case string:
			f, err := strconv.ParseFloat(v, 64)
			if err != nil {
				return nil, failure("float_of_string")
			}
			return f, nil
		}
		return nil, failure("Expected float, got '" + rpcText(v) + "'")
	case kBool:
		if b, ok := v.(bool); ok {
			return b, nil
		}
		return nil, failure("Expected bool, got '" + rpcText(v) + "'")
	case kDate:
		var text string
		switch v := v.(type) {
		case date:
			text = string(v)
		case string:
			text = v
		default:
			return nil, failure("Expected DateTime, got '" + rpcText(v) + "'")
		}
		d, ok := parseDate(text)
		if !ok {
			return nil, failure("date.ml:of_iso8601: unable to parse " + text)
		}
		return d, nil
	case kSet:
		a, ok := v.([]any)
		if !ok {
			return nil, failure("Expecting Rpc.Enum, but found '" + rpcText(v) + "'")
		}
		out := make([]any, len(a))
		for i, e := range a {
			x, err := t.elem.fromWire(e)
			if err != nil {
				return nil, err
			}
			out[i] = x
		}
		return out, nil
	case kMap:
		m, ok := v.(map[string]any)
		if !ok {
			return nil, failure("Expecting Rpc.Dict, but found '" + rpcText(v) + "'")
		}
		out := make(map[string]any, len(m))
		for k, e := range m {
			if _, err := t.key.fromWire(k); err != nil {
				return nil, err
			}
			x, err := t.elem.fromWire(e)
			if err != nil {
				return nil, err
			}
			out[k] = x
		}
		return out, nil
	case kRecord:
		m, ok := v.(map[string]any)
		if !ok {
			return nil, failure("Expecting Rpc.Dict, but found '" + rpcText(v) + "'")
		}
		return m, nil
	}
	return v, nil
}

// storable reports whether the server's database accepts a string: XML
// characters in valid UTF-8.
func storable(s string) bool {
	for _, r := range s {
		if r < 0x20 && r != '\t' && r != '\n' && r != '\r' || r == 0xFFFE || r == 0xFFFF {
			return false
		}
	}
	return utf8.ValidString(s)
}

// floatText formats a float as the server does: in JSON always with a point or
// an exponent.
func floatText(f float64) string {
	s := strconv.FormatFloat(f, 'g', -1, 64)
	if !strings.ContainsAny(s, ".eEnI") {
		s += ".0"
	}
	return s
}

func strs(v ...string) []any {
	out := make([]any, len(v))
	for i, s := range v {
		out[i] = s
	}
	return out
}
