package config

import (
	"bytes"
	"encoding"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// filler fills a Config from the values of a TOML file. Unlike a TOML decoder it does
// not stop at the first value of a wrong type, and it describes values in the terms of
// TOML, not of Go.
type filler struct {
	bad   *Problems
	wrong []string // keys that were reported
}

// mostSyntax limits the number of invalid lines that are reported.
const mostSyntax = 50

// syntax parses content as TOML. An invalid line is reported and blanked; if it is the
// head of a table, the lines of the table are blanked, too. It also returns the
// remaining content. The tree is nil if nothing can be read.
func (f *filler) syntax(content []byte) (map[string]any, []byte) {
	lines := bytes.Split(content, []byte("\n"))
	for range mostSyntax {
		var tree map[string]any
		text := bytes.Join(lines, []byte("\n"))
		err := toml.Unmarshal(text, &tree)
		if err == nil {
			if tree == nil {
				tree = map[string]any{}
			}
			return tree, text
		}
		message := strings.TrimPrefix(err.Error(), "toml: ")
		var wrong *toml.DecodeError
		if !errors.As(err, &wrong) {
			f.bad.add(0, "%s", message)
			return nil, text
		}
		at, _ := wrong.Position()
		if at < 1 || at > len(lines) || len(bytes.TrimSpace(lines[at-1])) == 0 {
			f.bad.add(at, "%s", message)
			return nil, text
		}
		if strings.HasSuffix(message, "U+000A at start of value") {
			message = "there is no value"
		}
		if key := f.blank(lines, at-1); key != "" {
			message = key + ": " + message
		}
		f.bad.add(at, "%s", message)
	}
	return nil, nil
}

// blank blanks a line and returns the key or table that is lost by that, or "".
func (f *filler) blank(lines [][]byte, at int) (name string) {
	head := bytes.HasPrefix(bytes.TrimSpace(lines[at]), []byte("["))
	if head {
		name = strings.Trim(string(bytes.TrimSpace(lines[at])), "[] ")
	} else if key, _, ok := bytes.Cut(lines[at], []byte("=")); ok && len(bytes.TrimSpace(key)) > 0 {
		name = strings.TrimPrefix(tableOf(lines, at)+"."+string(bytes.TrimSpace(key)), ".")
	}
	if name != "" {
		f.wrong = append(f.wrong, name)
	}
	lines[at] = nil
	for at++; head && at < len(lines) && !bytes.HasPrefix(bytes.TrimSpace(lines[at]), []byte("[")); at++ {
		lines[at] = nil
	}
	return name
}

// tableOf returns the name of the table that a line belongs to.
func tableOf(lines [][]byte, at int) string {
	for ; at >= 0; at-- {
		if l := bytes.TrimSpace(lines[at]); bytes.HasPrefix(l, []byte("[")) {
			return strings.Trim(string(l), "[] ")
		}
	}
	return ""
}

// follows reports whether a problem with key is probably a consequence of one that was
// reported: it is about the same key, a key below it, or the table that lacks it.
func (f *filler) follows(key string) bool {
	return slices.ContainsFunc(f.wrong, func(w string) bool {
		above := w[:max(strings.LastIndexAny(w, ".["), 0)]
		job := strings.Count(above, ".") == 1 && strings.HasPrefix(above, "jobs.") // its name is checked separately
		return key == w || strings.HasPrefix(key, w+".") || strings.HasPrefix(w, key+".") && strings.Count(key, ".") == 0 || key == above && !job
	})
}

func (f *filler) fail(key, format string, args ...any) {
	f.wrong = append(f.wrong, key)
	f.bad.add(0, "%s: %s", key, fmt.Sprintf(format, args...))
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

// table fills a struct from a table.
func (f *filler) table(to reflect.Value, tree map[string]any, path string) {
	fields := make(map[string]reflect.Value)
	for i := range to.NumField() {
		if k := to.Type().Field(i).Tag.Get("toml"); k != "" && k != "-" {
			fields[k] = to.Field(i)
		}
	}
	for _, key := range sorted(tree) {
		if field, ok := fields[key]; ok {
			f.value(field, tree[key], join(path, key))
			continue
		}
		known := sorted(fields)
		text := ""
		if near := nearest(key, known); near != "" {
			text = fmt.Sprintf("; did you mean %q?", near)
		} else {
			text = "; known here: " + strings.Join(known, ", ")
		}
		f.bad.add(0, "%s: unknown key%s", join(path, key), text)
	}
}

// value sets a field to a value.
func (f *filler) value(to reflect.Value, v any, path string) {
	if to.Kind() == reflect.Pointer {
		to.Set(reflect.New(to.Type().Elem()))
		f.value(to.Elem(), v, path)
		return
	}
	text, isText := v.(string)
	if u, ok := to.Addr().Interface().(encoding.TextUnmarshaler); ok && isText {
		if err := u.UnmarshalText([]byte(text)); err != nil {
			f.fail(path, "%v", err)
		}
		return
	}
	switch to.Kind() {
	case reflect.String:
		if isText {
			to.SetString(text)
			return
		}
	case reflect.Bool:
		if b, ok := v.(bool); ok {
			to.SetBool(b)
			return
		}
	case reflect.Int, reflect.Int64:
		if n, ok := v.(int64); ok && !to.OverflowInt(n) {
			to.SetInt(n)
			return
		}
	case reflect.Slice:
		if list, ok := v.([]any); ok {
			to.Set(reflect.MakeSlice(to.Type(), len(list), len(list)))
			for i, e := range list {
				f.value(to.Index(i), e, fmt.Sprintf("%s[%d]", path, i))
			}
			return
		}
	case reflect.Map:
		if tree, ok := v.(map[string]any); ok {
			to.Set(reflect.MakeMap(to.Type()))
			for _, key := range sorted(tree) {
				e := reflect.New(to.Type().Elem()).Elem()
				f.value(e, tree[key], join(path, key))
				to.SetMapIndex(reflect.ValueOf(key), e)
			}
			return
		}
	case reflect.Struct:
		if _, isUntil := to.Interface().(Until); isUntil {
			break
		}
		if tree, ok := v.(map[string]any); ok {
			f.table(to, tree, path)
			return
		}
	}
	f.fail(path, "%s", f.wanted(to, v, path))
}

// wanted describes the expected type of a field, and the value that was found.
func (f *filler) wanted(to reflect.Value, v any, path string) string {
	got := fmt.Sprintf("not %v", v)
	switch v := v.(type) {
	case string:
		got = fmt.Sprintf("not the text %q", v)
	case int64, float64:
		got = fmt.Sprintf("not the number %v", v)
	case []any:
		got = "not a list"
	case map[string]any:
		got = "not a table"
	}
	switch to.Interface().(type) {
	case Secret:
		return `want { file = "..." }, { command = "..." } or { env = "..." }: the secret itself does not belong into a config`
	case Size:
		return `want a size such as "20G", ` + got
	case Count:
		return `want a number or "all", ` + got
	case Duration:
		return `want a length of time such as "10m", ` + got
	case Period:
		return `want a length of time such as "1y6m" or "30d", ` + got
	case Until:
		return `want a time of day such as "06:00" or a length such as "6h", ` + got
	}
	switch to.Kind() {
	case reflect.String:
		return "want a text in quotes, " + got
	case reflect.Bool:
		return "want true or false, " + got
	case reflect.Int, reflect.Int64:
		return "want a whole number, " + got
	case reflect.Slice:
		if to.Type().Elem().Kind() == reflect.Struct {
			return "want tables [[" + path + "]], " + got
		}
		return `want a list such as ["a", "b"], ` + got
	case reflect.Map:
		return "want tables [" + path + ".NAME], " + got
	}
	return "want a table [" + path + "], " + got
}
