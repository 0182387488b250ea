package xapi

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Ref names an object in the pool's database, as "OpaqueRef:<uuid>". It is
// valid as long as the object's row exists; to remember an object, store its
// UUID.
type Ref string

// NullRef is the null reference.
const NullRef Ref = "OpaqueRef:NULL"

// IsNull reports whether r references no object: some fields hold the null
// reference, others that were never set hold an empty string.
func (r Ref) IsNull() bool { return r == "" || r == NullRef }

// Int is a 64-bit integer. Current hosts send JSON numbers; strings, as in
// XML-RPC, and whole floats are accepted too.
type Int int64

// UnmarshalJSON implements json.Unmarshaler.
func (i *Int) UnmarshalJSON(b []byte) error {
	if string(b) == "null" {
		return nil
	}
	s := unquote(b)
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		f, ferr := strconv.ParseFloat(s, 64)
		if ferr != nil || f != float64(int64(f)) || f >= 1<<62 || f <= -(1<<62) {
			return fmt.Errorf("integer %.40q: not a whole number", s)
		}
		n = int64(f)
	}
	*i = Int(n)
	return nil
}

// Float is a floating-point number, decoded from a number or a string.
type Float float64

// UnmarshalJSON implements json.Unmarshaler.
func (f *Float) UnmarshalJSON(b []byte) error {
	if string(b) == "null" {
		return nil
	}
	v, err := strconv.ParseFloat(unquote(b), 64)
	if err != nil {
		return fmt.Errorf("float %.40q: not a number", b)
	}
	*f = Float(v)
	return nil
}

func unquote(b []byte) string {
	b = bytes.TrimSpace(b)
	if len(b) >= 2 && b[0] == '"' {
		b = b[1 : len(b)-1]
	}
	return string(b)
}

// Time is an instant in UTC, in whole seconds on the wire. The pool's "never",
// 1970-01-01, is the zero Time.
type Time struct{ time.Time }

const timeLayout = "20060102T15:04:05Z"

// The forms that pools have been seen to send or accept: their own, with and
// without a zone, and RFC 3339 (xen-api ocaml/libs/clock/date.ml).
var timeLayouts = []string{
	timeLayout,
	"20060102T15:04:05Z07:00",
	"20060102T15:04:05Z0700",
	"20060102T15:04:05",
	time.RFC3339Nano,
	"2006-01-02T15:04:05",
}

// ParseTime parses a datetime as pools send it: 20260821T10:11:12Z. A form
// without a zone is in UTC.
func ParseTime(s string) (Time, error) {
	if s == "" {
		return Time{}, nil
	}
	for _, layout := range timeLayouts {
		if t, err := time.Parse(layout, s); err == nil {
			if t.Unix() == 0 {
				return Time{}, nil
			}
			return Time{t.UTC()}, nil
		}
	}
	return Time{}, fmt.Errorf("datetime %.40q: unknown form", s)
}

// String returns the form used on the wire.
func (t Time) String() string {
	if t.IsZero() {
		return "19700101T00:00:00Z"
	}
	return t.UTC().Format(timeLayout)
}

// MarshalJSON implements json.Marshaler.
func (t Time) MarshalJSON() ([]byte, error) { return []byte(strconv.Quote(t.String())), nil }

// UnmarshalJSON implements json.Unmarshaler.
func (t *Time) UnmarshalJSON(b []byte) error {
	if string(b) == "null" {
		return nil
	}
	var s string
	if err := json.Unmarshal(b, &s); err != nil {
		return errors.New("datetime: not a string")
	}
	v, err := ParseTime(strings.TrimSpace(s))
	if err != nil {
		return err
	}
	*t = v
	return nil
}
