package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// block is a fenced block of a page: the word after the fence, and its lines.
type block struct {
	info  string
	lines []string
}

func blocks(t *testing.T, file string) []block {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var all []block
	var open *block
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSuffix(line, "\n")
		info, fence := strings.CutPrefix(line, "```")
		switch {
		case fence && open == nil:
			open = &block{info: info}
		case fence:
			all = append(all, *open)
			open = nil
		case open != nil:
			open.lines = append(open.lines, line)
		}
	}
	return all
}

var (
	spaces  = regexp.MustCompile(` {2,}`)
	tableXK = regexp.MustCompile("`xenkeep ([a-z -]+)")
)

// shown turns a line of a page into a pattern: "…" is anything, and two spaces
// or more are that.
func shown(line string) string {
	parts := strings.Split(spaces.ReplaceAllString(strings.TrimSpace(line), "  "), "…")
	for i, p := range parts {
		pieces := strings.Split(p, "  ")
		for j := range pieces {
			pieces[j] = regexp.QuoteMeta(pieces[j])
		}
		parts[i] = strings.Join(pieces, " +")
	}
	return "(?m)^ *" + strings.Join(parts, ".*") + " *$"
}

// The examples of docs/from-xe-and-vmbackup.md are typed in, in order, and print
// the output that the page shows.
func TestDocExamples(t *testing.T) {
	page := blocks(t, "../../docs/from-xe-and-vmbackup.md")
	script := map[string]*strings.Builder{"current": {}, "8.0": {}}
	for v, s := range script {
		s.WriteString("image disk.raw 4 1 3\npool --version=" + v + " --no-tls --drivers --hosts=1 web=disk.raw,disk.raw db=disk.raw DEV-1=disk.raw DEV-DestructiveTest=disk.raw\n")
		s.WriteString("env XENKEEP_REPOSITORY=\n")
	}
	var files strings.Builder
	typed := make(map[string]bool)
	for _, b := range page {
		word, how, _ := strings.Cut(b.info, " ")
		if word == "ini" {
			files.WriteString("-- " + strings.TrimPrefix(b.lines[0], "# ") + " --\n" + strings.Join(b.lines, "\n") + "\n")
		}
		if word != "console" {
			continue
		}
		s := script["current"]
		if how == "8.0" {
			s = script["8.0"]
		}
		for _, line := range b.lines {
			cmd, ok := strings.CutPrefix(line, "$ ")
			switch {
			case ok && how == "fails":
				s.WriteString("! exec sh -c '" + cmd + " 2>&1'\n")
			case ok:
				s.WriteString("exec sh -c '" + cmd + " 2>&1'\n")
			default:
				s.WriteString("stdout '" + strings.ReplaceAll(shown(line), "'", "''") + "'\n")
			}
			if ok {
				typed[cmd] = true
			}
		}
	}
	for v, s := range script {
		t.Run(v, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, "page.txtar"), []byte(s.String()+files.String()), 0o600); err != nil {
				t.Fatal(err)
			}
			testscript.Run(t, stories(testscript.Params{Dir: dir, ContinueOnError: true}, func(*testscript.Env) {}))
		})
	}
	// Each command in the tables has an example.
	text, err := os.ReadFile("../../docs/from-xe-and-vmbackup.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range tableXK.FindAllStringSubmatch(string(text), -1) {
		want := "xenkeep " + strings.TrimSpace(regexp.MustCompile(` -.*`).ReplaceAllString(m[1], ""))
		found := false
		for cmd := range typed {
			found = found || strings.HasPrefix(cmd, firstWords(want))
		}
		if !found && !strings.Contains(want, "import") && !strings.Contains(want, "config example") && !strings.Contains(want, "snapshot run") && !strings.Contains(want, "doctor") {
			t.Errorf("%s is in a table and no example", want)
		}
	}
}

// firstWords returns the words of the command itself, without its arguments.
func firstWords(cmd string) string {
	words := strings.Fields(cmd)
	n := 2
	if len(words) > 2 && words[1] == "pool" {
		n = 3
		if len(words) > 3 && (words[2] == "snapshot" || words[2] == "schedule" || words[2] == "template" || words[2] == "vm") {
			n = 4
		}
	}
	return strings.Join(words[:min(n, len(words))], " ")
}
