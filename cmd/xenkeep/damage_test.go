package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"xenkeep/chunkstore/object/local"
	"xenkeep/chunkstore/pack"
	"xenkeep/chunkstore/slot"
	"xenkeep/repo"
)

var updateDamage = flag.Bool("update-damage", false, "write testdata/damage.golden anew, to be read before it is kept")

// ruin is a repository in a folder, to be damaged copies of.
type ruin struct {
	t      *testing.T
	dir    string
	images string // folder
}

func (r *ruin) path(name string) string { return filepath.Join(r.dir, name) }

func (r *ruin) command(args ...string) (code int, stdout, stderr string) {
	r.t.Helper()
	var out, errs bytes.Buffer
	code = run(context.Background(), new(diagnostics), append(args, "--repository", r.path("repo"), "--key-file", r.path("key"), "--cache-dir", r.path("cache")), &out, &errs)
	return code, out.String(), errs.String()
}

func (r *ruin) must(args ...string) {
	r.t.Helper()
	if code, _, stderr := r.command(args...); code != 0 {
		r.t.Fatalf("%v: %d: %s", args, code, stderr)
	}
}

// newRuin holds two days of an image that has size bytes of data, a note, and the claim of a live run.
func newRuin(t *testing.T, size int) *ruin {
	t.Helper()
	r := &ruin{t: t, dir: tempDir(t), images: t.TempDir()}
	data := make([]byte, 5<<20)
	_, _ = rand.NewChaCha8([32]byte{}).Read(data[8192:][:size])
	write := func(name string, p []byte) {
		if err := os.WriteFile(filepath.Join(r.images, name), p, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	secret := slot.Secret{KeyFile: bytes.Repeat([]byte{7}, 32)}
	if err := os.WriteFile(r.path("key"), secret.KeyFile, 0o600); err != nil {
		t.Fatal(err)
	}
	write("old.raw", data)
	r.must("init")
	r.must("backup", "--image", filepath.Join(r.images, "old.raw"), "--name", "db", "-q")
	copy(data[3<<20:], bytes.Repeat([]byte("new "), 1000))
	write("disk.raw", data)
	r.must("backup", "--image", filepath.Join(r.images, "disk.raw"), "--name", "db", "-q")
	copy(data[4<<20:], bytes.Repeat([]byte("newer "), 1000))
	write("next.raw", data)
	r.must("snapshots", "protect", "latest:db")
	objects, err := local.Open(r.path("repo"))
	if err != nil {
		t.Fatal(err)
	}
	open, err := repo.Open(t.Context(), objects, repo.Options{Secret: secret})
	if err == nil {
		err = open.PutClaim(t.Context(), &repo.Claim{Run: strings.Repeat("ab", 16), Machine: "elsewhere", Started: time.Now()})
	}
	if err == nil {
		err = open.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// files are the objects, by name.
func (r *ruin) files() []string {
	r.t.Helper()
	var all []string
	root := r.path("repo")
	if err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			all = append(all, strings.TrimPrefix(path, root+"/"))
		}
		return err
	}); err != nil {
		r.t.Fatal(err)
	}
	slices.Sort(all)
	return all
}

func (r *ruin) read(name string) []byte {
	r.t.Helper()
	p, err := os.ReadFile(r.path("repo/" + name))
	if err != nil {
		r.t.Fatal(err)
	}
	return p
}

// object is the object of a kind that is damaged, and the one it is swapped with.
func (r *ruin) object(kind string) (name string) {
	r.t.Helper()
	for _, f := range r.files() {
		folder, _, _ := strings.Cut(f, "/")
		is := map[string]string{"config": "config", "slot": "slots", "claim": "claims", "snapshot": "snapshots", "note": "notes", "index": "index"}[kind] == folder
		if folder == "packs" {
			k := pack.Kind(r.read(f)[6])
			is = kind == "tree pack" && k == pack.Tree || kind == "data pack" && k == pack.Data
		}
		// The newest of several objects, which the commands use; but the oldest
		// pack, which both days reference. Of the two copies of a slot, the first:
		// their times depend on the clock's ticks.
		if is && (name == "" || kind != "slot" && r.time(f).After(r.time(name)) != strings.HasSuffix(kind, " pack")) {
			name = f
		}
	}
	return name
}

func (r *ruin) time(name string) time.Time {
	i, err := os.Stat(r.path("repo/" + name))
	if err != nil {
		r.t.Fatal(err)
	}
	return i.ModTime()
}

func (r *ruin) copy() *ruin {
	c := &ruin{t: r.t, dir: tempDir(r.t), images: r.images}
	if err := os.CopyFS(c.dir, os.DirFS(r.dir)); err != nil {
		r.t.Fatal(err)
	}
	if err := os.RemoveAll(c.path("cache")); err != nil {
		r.t.Fatal(err)
	}
	return c
}

// tempDir returns a folder, in memory if possible, because the table writes much data
// and keeps none.
func tempDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "damage")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

var (
	packNames = regexp.MustCompile(`packs/[0-9a-f]{2}/`)
	hexes     = regexp.MustCompile(`\b[0-9a-f]{8,64}\b`)
	numbers   = regexp.MustCompile(`\b[0-9]+\b`)
)

// line returns the first line of a command's output, with the variable parts masked.
func (r *ruin) line(stdout, stderr string) string {
	for _, text := range []string{stderr, stdout} {
		for l := range strings.Lines(text) {
			if text == stderr && !strings.HasPrefix(l, "xenkeep:") {
				continue
			}
			l = strings.ReplaceAll(strings.TrimSpace(l), r.dir, "DIR")
			if strings.HasPrefix(l, "SNAPSHOT ") { // of a table the line below it
				lines := strings.Split(strings.TrimSpace(stdout), "\n")
				l = lines[len(lines)-1]
			}
			l = packNames.ReplaceAllString(l, "packs/")
			l = numbers.ReplaceAllString(hexes.ReplaceAllString(l, "ID"), "N")
			return l
		}
	}
	return ""
}

// For each kind of object and of damage, each command has the result in
// testdata/damage.golden, and no command deletes anything because of the damage.
func TestDamageTable(t *testing.T) {
	whole, foreign := newRuin(t, 600<<10), newRuin(t, 2000<<10)
	damages := []struct {
		name string
		do   func(own, other []byte) []byte
	}{
		{"missing", func(_, _ []byte) []byte { return nil }},
		{"truncated", func(own, _ []byte) []byte { return own[:len(own)*2/3] }},
		{"flipped bit", func(own, _ []byte) []byte {
			at := len(own) / 2
			if string(own[:4]) == "XKPK" { // in the first blob
				at = map[pack.Kind]int{pack.Tree: 200, pack.Data: 1400}[pack.Kind(own[6])]
			}
			own[at] ^= 1
			return own
		}},
		{"swapped", func(_, other []byte) []byte { return other }},
	}
	commands := []struct {
		name string
		args []string
	}{
		{"backup", []string{"backup", "--image", "disk.raw", "--name", "db", "-q"}},
		{"incremental", []string{"backup", "--image", "next.raw", "--name", "db", "-q"}},
		{"restore", []string{"restore", "latest:db", "--to", "out.raw", "-q"}},
		{"check", []string{"check", "--read-data", "-q"}},
		{"prune", []string{"prune", "-q"}},
		{"repair index", []string{"repair", "index", "-q"}},
		{"repair packs", []string{"repair", "packs", "-q"}},
		{"repair snapshots", []string{"repair", "snapshots", "--read-data", "-q"}},
	}
	var table strings.Builder
	for _, kind := range []string{"config", "slot", "claim", "snapshot", "note", "index", "tree pack", "data pack"} {
		name := whole.object(kind)
		other := foreign.read(foreign.object(kind))
		for _, d := range damages {
			for _, c := range commands {
				r := whole.copy()
				p := d.do(whole.read(name), other)
				file := r.path("repo/" + name)
				if err := os.Remove(file); err != nil {
					t.Fatal(err)
				}
				if p != nil {
					if err := os.WriteFile(file, p, 0o600); err != nil {
						t.Fatal(err)
					}
				}
				before := r.files()
				args := slices.Clone(c.args)
				for i, a := range args {
					if a == "out.raw" {
						args[i] = r.path(a)
					} else if strings.HasSuffix(a, ".raw") {
						args[i] = filepath.Join(r.images, a)
					}
				}
				code, stdout, stderr := r.command(args...)
				line := r.line(stdout, stderr)
				fmt.Fprintf(&table, "%s | %s | %s | %d | %s\n", kind, d.name, c.name, code, line)
				if code != 0 && line == "" {
					t.Errorf("%s %s: %s ends with %d and says nothing", kind, d.name, c.name, code)
				}
				after := r.files()
				for _, f := range before {
					// Only an index object is made again and replaced.
					if !slices.Contains(after, f) && !(c.name == "repair index" && strings.HasPrefix(f, "index/")) {
						t.Errorf("%s %s: %s deletes %s", kind, d.name, c.name, f)
					}
				}
				if c.name == "restore" && code == 0 {
					r.compare("out.raw", kind == "snapshot")
				}
				if c.name == "restore" && code != 0 {
					if _, err := os.Stat(r.path("out.raw")); err == nil {
						t.Errorf("%s %s: a restore that fails leaves a file", kind, d.name)
					}
				}
			}
		}
	}
	const golden = "testdata/damage.golden"
	if *updateDamage {
		if err := os.WriteFile(golden, []byte(table.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	got, kept := strings.Split(table.String(), "\n"), strings.Split(string(want), "\n")
	if len(got) != len(kept) {
		t.Fatalf("%d cells, %d in %s", len(got), len(kept), golden)
	}
	for i := range got {
		if got[i] != kept[i] {
			t.Errorf("is  %s\nwas %s", got[i], kept[i])
		}
	}
}

// compare compares restored data with the newest day or, if that snapshot is damaged,
// with the day before.
func (r *ruin) compare(name string, older bool) {
	r.t.Helper()
	got, err := os.ReadFile(r.path(name))
	if err != nil {
		r.t.Fatal(err)
	}
	want, err := os.ReadFile(filepath.Join(r.images, "disk.raw"))
	if err == nil && older && !bytes.Equal(got, want) {
		want, err = os.ReadFile(filepath.Join(r.images, "old.raw"))
	}
	if err != nil {
		r.t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		r.t.Errorf("%s is not what was saved", name)
	}
}
