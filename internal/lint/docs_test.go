package lint

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

var (
	verb    = regexp.MustCompile(`%[-+# 0]*[0-9]*(\.[0-9]+)?(\[[0-9]+\])?[a-zA-Z]`)
	message = regexp.MustCompile("(?s)```message\n(.*?)```")
	link    = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	test    = regexp.MustCompile("`((?:Test|Fuzz|Example)[A-Za-z0-9_]*)`")
	heading = regexp.MustCompile(`(?m)^#+ (.*)$`)
	symbols = regexp.MustCompile(`[^\p{L}\p{N} _-]`)
)

// literals returns the text of all string literals of the program, with "…" in
// place of the verbs of fmt.
func literals(t *testing.T) string {
	t.Helper()
	var all strings.Builder
	for _, name := range tracked(t, "*.go") {
		if strings.HasSuffix(name, "_test.go") || strings.Contains(name, "/bench/") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(f, func(n ast.Node) bool {
			if l, ok := n.(*ast.BasicLit); ok && l.Kind == token.STRING {
				if s, err := strconv.Unquote(l.Value); err == nil {
					all.WriteString(verb.ReplaceAllString(s, "…") + "\n")
				}
			}
			return true
		})
	}
	return all.String()
}

// The messages of docs/troubleshooting.md are those of the program: the text
// between two "…" is part of one of its string literals.
func TestTroubleshootingQuotesTheProgram(t *testing.T) {
	page, err := os.ReadFile("../../docs/troubleshooting.md")
	if err != nil {
		t.Fatal(err)
	}
	text, n := literals(t), 0
	for _, b := range message.FindAllStringSubmatch(string(page), -1) {
		for line := range strings.Lines(b[1]) {
			for _, part := range strings.Split(strings.TrimSpace(line), "…") {
				for _, piece := range strings.Split(part, ": ") { // an error that wraps another
					piece = strings.Trim(piece, " :")
					if len(piece) < 4 {
						continue
					}
					n++
					if !strings.Contains(text, piece) {
						t.Errorf("docs/troubleshooting.md quotes %q, which the program does not print: correct the page", piece)
					}
				}
			}
		}
	}
	if n < 40 {
		t.Errorf("only %d parts of messages found", n)
	}
}

// The tests that docs/tests.md names exist.
func TestMapOfTestsNamesTests(t *testing.T) {
	page, err := os.ReadFile("../../docs/tests.md")
	if err != nil {
		t.Fatal(err)
	}
	there := make(map[string]bool)
	fn := regexp.MustCompile(`(?m)^func ((?:Test|Fuzz|Example)\w*)\(`)
	for _, name := range tracked(t, "*_test.go") {
		src, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range fn.FindAllStringSubmatch(string(src), -1) {
			there[m[1]] = true
		}
	}
	named := test.FindAllStringSubmatch(string(page), -1)
	for _, m := range named {
		if !there[m[1]] {
			t.Errorf("docs/tests.md names %s, which is no test", m[1])
		}
	}
	if len(named) < 80 {
		t.Errorf("docs/tests.md names only %d tests", len(named))
	}
}

// anchor returns the name that a heading of a page has in a link.
func anchor(heading string) string {
	return strings.ReplaceAll(strings.ToLower(symbols.ReplaceAllString(heading, "")), " ", "-")
}

// Links between pages refer to an existing file and, if they name a heading, to
// an existing heading.
func TestLinks(t *testing.T) {
	for _, name := range tracked(t, "*.md") {
		page, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range link.FindAllStringSubmatch(fenced.ReplaceAllString(string(page), ""), -1) {
			if strings.Contains(m[1], "://") || strings.HasPrefix(m[1], "mailto:") {
				continue
			}
			file, section, _ := strings.Cut(m[1], "#")
			target := name
			if file != "" {
				target = filepath.Join(filepath.Dir(name), file)
			}
			there, err := os.Stat(target)
			if err != nil {
				t.Errorf("%s: link to %s: no such file", name, m[1])
				continue
			}
			if section == "" || there.IsDir() {
				continue
			}
			other, err := os.ReadFile(target)
			if err != nil {
				t.Fatal(err)
			}
			found := false
			for _, h := range heading.FindAllStringSubmatch(string(other), -1) {
				found = found || anchor(h[1]) == section
			}
			if !found {
				t.Errorf("%s: link to %s: no such heading", name, m[1])
			}
		}
	}
}

// The pictures are the output of scripts/draw for their texts.
func TestPicturesAreDrawn(t *testing.T) {
	for _, name := range tracked(t, "docs/pictures/*.txt") {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		want, err := os.ReadFile(strings.TrimSuffix(name, ".txt") + ".svg")
		if err != nil {
			t.Fatal(err)
		}
		drawn := filepath.Join(t.TempDir(), filepath.Base(name))
		if err := os.WriteFile(drawn, text, 0o600); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command("../../scripts/draw", drawn).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", name, err, out)
		}
		got, err := os.ReadFile(strings.TrimSuffix(drawn, ".txt") + ".svg")
		if err != nil {
			t.Fatal(err)
		}
		if string(got) != string(want) {
			t.Errorf("%s has changed since it was drawn: run scripts/draw", name)
		}
	}
}

// Fragments of the changelog have the form that changelog/TEMPLATE shows.
func TestChangelogFragments(t *testing.T) {
	first := regexp.MustCompile(`^(Fix|Change|Add|Security): .*[^.\n]\n(\n[^\n]|$)`)
	for _, name := range tracked(t, "changelog/unreleased/*") {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if !first.Match(text) {
			t.Errorf("%s: want a line such as \"Fix: ...\" without a full stop, then an empty line and text, as changelog/TEMPLATE says", name)
		}
	}
}
