package config

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"net/mail"
	"net/url"
	"os"
	"reflect"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"

	"xenkeep/chunkstore/seal"
	"xenkeep/job/pyre"
)

// ErrConfig is returned for config files that are not right.
var ErrConfig = errors.New("config")

// Problem is one thing wrong with a config file.
type Problem struct {
	Line int    // 0 where it is none's
	Text string // with the key it concerns
}

// Problems are all that is wrong with a file.
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
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	return Parse(file, text)
}

// Parse checks the text of a TOML file; the name is for what it says is wrong.
func Parse(file string, text []byte) (*Config, error) {
	var c Config
	bad := &Problems{File: file}
	d := toml.NewDecoder(bytes.NewReader(text)).DisallowUnknownFields()
	err := d.Decode(&c)
	var missing *toml.StrictMissingError
	var wrong *toml.DecodeError
	switch {
	case errors.As(err, &missing):
		for _, m := range missing.Errors {
			line, _ := m.Position()
			key := []string(m.Key())
			known := keysAt(key[:len(key)-1])
			text := fmt.Sprintf("unknown key %q", strings.Join(key, "."))
			near := nearest(key[len(key)-1], known)
			if near == "" { // of an inline table the path is not told
				near = nearest(key[len(key)-1], keysBelow(reflect.TypeFor[Config](), nil))
			}
			if near != "" {
				text += fmt.Sprintf("; did you mean %q?", near)
			} else if len(known) > 0 {
				text += "; known here: " + strings.Join(known, ", ")
			}
			bad.add(line, "%s", text)
		}
	case errors.As(err, &wrong):
		line, _ := wrong.Position()
		text := strings.TrimPrefix(wrong.Error(), "toml: ")
		if key := wrong.Key(); len(key) > 0 {
			text = strings.Join(key, ".") + ": " + text
		}
		bad.add(line, "%s", text)
	case err != nil:
		bad.add(0, "%s", strings.TrimPrefix(err.Error(), "toml: "))
	}
	if err != nil {
		return nil, bad
	}
	for name, j := range c.Jobs {
		j.Name = name
	}
	c.check(bad)
	if err := bad.err(); err != nil {
		return nil, err
	}
	return &c, nil
}

// keysAt are the keys known below a path, by the types that it leads through.
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

// keysBelow are all keys of a type and what it holds.
func keysBelow(t reflect.Type, keys []string) []string {
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice || t.Kind() == reflect.Map {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct {
		return keys
	}
	for i := range t.NumField() {
		if k := t.Field(i).Tag.Get("toml"); k != "" && k != "-" {
			keys = keysBelow(t.Field(i).Type, append(keys, k))
		}
	}
	return keys
}

// nearest is the known word that a mistyped one means; "" where none is near.
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

// distance is how many letters are to be put in, left out, changed or swapped
// with their neighbour to come from a to b.
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

func oneOf[T ~string](bad *Problems, key string, v T, words ...T) {
	if v != "" && !slices.Contains(words, v) {
		bad.add(0, "%s: %q is none of %v", key, v, words)
	}
}

func (s Secret) check(bad *Problems, key string) {
	if err := s.validate(); err != nil {
		bad.add(0, "%s: %v", key, err)
	}
}

// check tells what TOML cannot.
func (c *Config) check(bad *Problems) {
	if c.Repository.Location == "" {
		bad.add(0, "repository.location: which repository?")
	}
	c.Repository.Password.check(bad, "repository.password")
	if !c.Repository.Password.IsZero() && c.Repository.KeyFile != "" {
		bad.add(0, "repository: a password or a key-file, not both")
	}
	if len(c.Pools) == 0 {
		bad.add(0, "pools: there is none: add [pools.NAME] with its url")
	}
	for _, name := range sorted(c.Pools) {
		p := c.Pools[name]
		if p.URL == "" {
			bad.add(0, "pools.%s.url: which pool?", name)
		}
		p.Password.check(bad, "pools."+name+".password")
	}
	if len(c.Jobs) == 0 {
		bad.add(0, "jobs: there is none: add [jobs.NAME]")
	}
	c.Notify.check(bad, "notify")
	oneOf(bad, "log.format", c.Log.Format, "text", "json")
	for _, name := range sorted(c.Jobs) {
		j := c.Jobs[name]
		j.check(bad, "jobs."+name)
		if _, err := c.PoolOf(j); err != nil && len(c.Pools) > 0 {
			bad.add(0, "jobs.%s.pool: %v", name, err)
		}
	}
}

func patterns(bad *Problems, key string, list []string) {
	for _, p := range list {
		if _, err := pyre.Compile(p); err != nil {
			bad.add(0, "%s: %v", key, err)
		}
	}
}

func kinds(bad *Problems, key string, list []Kind) {
	for i, k := range list {
		if k == "" {
			bad.add(0, "%s: an empty word", key)
		}
		oneOf(bad, key, k, Regular, Quiesced, Checkpoint, Offline)
		if slices.Contains(list[:i], k) {
			bad.add(0, "%s: %q stands there twice", key, k)
		}
	}
}

func states(bad *Problems, key string, list []string) {
	for _, s := range list {
		oneOf(bad, key, s, "running", "halted", "paused", "suspended")
	}
}

func (k Keep) check(bad *Problems, key string) {
	if err := k.Policy().Validate(); err != nil {
		bad.add(0, "%s: %v", key, err)
	}
}

func (j *Job) check(bad *Problems, key string) {
	if strings.ContainsAny(j.Name, "/\n\"") || j.Name == "" {
		bad.add(0, "%s: a job's name has no quotes, slashes or ends of lines", key)
	}
	patterns(bad, key+".select.patterns", j.Select.Patterns)
	patterns(bad, key+".exclude.patterns", j.Exclude.Patterns)
	patterns(bad, key+".exclude.disk-patterns", j.Exclude.DiskPatterns)
	states(bad, key+".select.power-state", j.Select.PowerState)
	states(bad, key+".exclude.power-state", j.Exclude.PowerState)
	s := j.Select
	if j.VmBackup == nil && !s.All && len(s.Names)+len(s.UUIDs)+len(s.Patterns)+len(s.Tags)+len(s.PowerState)+len(s.Hosts)+len(s.SRs) == 0 {
		bad.add(0, "%s.select: which VMs? name some, or say all = true", key)
	}
	kinds(bad, key+".snapshot", j.Snapshot)
	for i, r := range j.Rules {
		at := fmt.Sprintf("%s.rules[%d]", key, i)
		patterns(bad, at+".patterns", r.Patterns)
		kinds(bad, at+".snapshot", r.Snapshot)
		oneOf(bad, at+".disks", r.Disks, "all", "first")
		if r.Keep != nil {
			r.Keep.check(bad, at+".keep")
		}
		if len(r.Names)+len(r.UUIDs)+len(r.Patterns)+len(r.Tags) == 0 {
			bad.add(0, "%s: for which VMs? give names, uuids, patterns or tags", at)
		}
	}
	oneOf(bad, key+".transport", j.Transport, "auto", "nbd", "vhd")
	oneOf(bad, key+".keep-base", j.KeepBase, "auto", "cbt", "snapshot", "none")
	if j.Compression != "" {
		if _, err := seal.ParseLevel(j.Compression); err != nil {
			bad.add(0, "%s.compression: %v", key, err)
		}
	}
	oneOf(bad, key+".prune", j.Prune, Never, Run, Daily, Weekly, Monthly)
	oneOf(bad, key+".check.every", j.Check.Every, Never, Run, Daily, Weekly, Monthly)
	j.Keep.check(bad, key+".keep")
	for what, n := range map[string]int{
		"nbd-connections": j.NBDConnections, "concurrency.vms": j.Concurrency.VMs, "concurrency.disks": j.Concurrency.Disks,
		"concurrency.per-host": j.Concurrency.PerHost, "concurrency.per-sr": j.Concurrency.PerSR,
	} {
		if n < 0 {
			bad.add(0, "%s.%s: %d is less than nothing", key, what, n)
		}
	}
	if j.Retries != nil && (*j.Retries < 0 || *j.Retries > 10) {
		bad.add(0, "%s.retries: %d: want 0 to 10", key, *j.Retries)
	}
	if j.Notify != nil {
		j.Notify.check(bad, key+".notify")
	}
}

func (n Notify) check(bad *Problems, key string) {
	link := func(key, text string) {
		u, err := url.Parse(text)
		if text != "" && (err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "") {
			bad.add(0, "%s: %q is no address of the web", key, text)
		}
	}
	if m := n.Mail; m != nil {
		at := key + ".mail"
		if m.Server == "" {
			bad.add(0, "%s.server: which mail server? HOST:PORT", at)
		}
		oneOf(bad, at+".tls", m.TLS, "starttls", "tls", "none")
		oneOf(bad, at+".when", m.When, Always, OnFailure)
		m.Password.check(bad, at+".password")
		if (m.User == "") != m.Password.IsZero() {
			bad.add(0, "%s: user and password go together", at)
		}
		if len(m.To) == 0 {
			bad.add(0, "%s.to: to whom?", at)
		}
		for _, a := range append([]string{m.From}, m.To...) {
			if _, err := mail.ParseAddress(a); err != nil {
				bad.add(0, "%s: address %q: %v", at, a, strings.TrimPrefix(err.Error(), "mail: "))
			}
		}
	}
	if w := n.Webhook; w != nil {
		if w.URL == "" {
			bad.add(0, "%s.webhook.url: where to?", key)
		}
		link(key+".webhook.url", w.URL)
		oneOf(bad, key+".webhook.when", w.When, Always, OnFailure)
		w.Token.check(bad, key+".webhook.token")
	}
	if p := n.Ping; p != nil {
		if p.Start+p.Success+p.Failure == "" {
			bad.add(0, "%s.ping: give start, success or failure", key)
		}
		link(key+".ping.start", p.Start)
		link(key+".ping.success", p.Success)
		link(key+".ping.failure", p.Failure)
	}
}
