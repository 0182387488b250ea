package config

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"reflect"
	"slices"
	"strings"
	"unicode/utf8"
)

// ErrConfig is returned for invalid config files.
var ErrConfig = errors.New("config")

// Problem is one fault of a config file.
type Problem struct {
	Line int    // 0 if it has none
	Text string // with the key
}

// Problems holds all faults of a file.
type Problems struct {
	File string
	List []Problem
}

func (p *Problems) Error() string {
	var lines []string
	for _, x := range p.List {
		at := p.File
		if x.Line > 0 {
			at = fmt.Sprintf("%s:%d", p.File, x.Line)
		}
		lines = append(lines, at+": "+x.Text)
	}
	return strings.Join(lines, "\n")
}

// Unwrap makes errors.Is(err, ErrConfig) true.
func (p *Problems) Unwrap() error { return ErrConfig }

func (p *Problems) add(line int, format string, args ...any) {
	p.List = append(p.List, Problem{line, fmt.Sprintf(format, args...)})
}

func (p *Problems) err() error {
	if len(p.List) == 0 {
		return nil
	}
	return p
}

// Load reads and checks a TOML file.
func Load(file string) (*Config, error) {
	text, err := readText(file)
	if err != nil {
		return nil, err
	}
	return Parse(file, text)
}

// Parse parses and checks the text of a TOML file, and returns all its faults. file is
// the name for messages.
func Parse(file string, content []byte) (*Config, error) {
	c, _, bad := parse(file, content)
	if err := bad.err(); err != nil {
		return nil, err
	}
	return c, nil
}

// LoadStrictly is Load, but also tries the files that runs write. Load does not,
// because a run continues if it cannot write them.
func LoadStrictly(file string) (*Config, error) {
	text, err := readText(file)
	if err != nil {
		return nil, err
	}
	c, places, bad := parse(file, text)
	if c != nil {
		for _, o := range c.Outputs() {
			if err := o.Try(); err != nil {
				bad.add(0, "%s: %v", o.Key, err)
			}
		}
		bad.locate(places)
	}
	if err := bad.err(); err != nil {
		return nil, err
	}
	return c, nil
}

// parse returns a nil Config if the file is not TOML.
func parse(file string, content []byte) (*Config, map[string]place, *Problems) {
	bad := &Problems{File: file}
	f := &filler{bad: bad}
	tree, content := f.syntax(content)
	if tree == nil {
		return nil, nil, bad
	}
	c := new(Config)
	f.table(reflect.ValueOf(c).Elem(), tree, "")
	for name, j := range c.Jobs {
		j.Name = name
	}
	more := new(Problems)
	c.check(more)
	for _, p := range more.List {
		if key, _, _ := strings.Cut(p.Text, ": "); !f.follows(key) {
			bad.List = append(bad.List, p)
		}
	}
	places := placesOf(content)
	bad.locate(places)
	return c, places, bad
}

// keysAt returns the keys that are valid below a path.
func keysAt(path []string) []string {
	t := reflect.TypeFor[Config]()
	for _, step := range path {
		for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice {
			t = t.Elem()
		}
		switch t.Kind() {
		case reflect.Map:
			t = t.Elem()
			continue
		case reflect.Struct:
		default:
			return nil
		}
		next := reflect.Type(nil)
		for i := range t.NumField() {
			if t.Field(i).Tag.Get("toml") == step {
				next = t.Field(i).Type
			}
		}
		if next == nil {
			return nil
		}
		t = next
	}
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice || t.Kind() == reflect.Map {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct {
		return nil
	}
	var keys []string
	for i := range t.NumField() {
		if k := t.Field(i).Tag.Get("toml"); k != "" && k != "-" {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	return keys
}

// nearest returns the known word that is most similar to a mistyped one; "" if none is
// similar.
func nearest(word string, known []string) string {
	best, least := "", len(word)/3+2
	w := strings.NewReplacer("_", "-").Replace(strings.ToLower(word))
	for _, k := range known {
		d := distance(w, strings.ToLower(k))
		if strings.HasPrefix(k, w) || strings.HasPrefix(w, k) {
			d = min(d, 1)
		}
		if d < least {
			best, least = k, d
		}
	}
	return best
}

// distance returns the number of letters that must be inserted, removed, changed or
// swapped with their neighbour to turn a into b.
func distance(a, b string) int {
	var before []int
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		next := make([]int, len(b)+1)
		next[0] = i + 1
		for j := range len(b) {
			d := row[j]
			if a[i] != b[j] {
				d++
			}
			next[j+1] = min(d, row[j+1]+1, next[j]+1)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				next[j+1] = min(next[j+1], before[j-1]+1)
			}
		}
		before, row = row, next
	}
	return row[len(b)]
}

func sorted[T any](m map[string]T) []string { return slices.Sorted(maps.Keys(m)) }

// readText reads a config, without the byte order mark that editors on Windows write.
func readText(file string) ([]byte, error) {
	p, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	p = bytes.TrimPrefix(p, []byte("\xef\xbb\xbf"))
	if !utf8.Valid(p) {
		var bad Problems
		bad.File = file
		bad.add(0, "it is not a text file in UTF-8")
		return nil, bad.err()
	}
	return p, nil
}
