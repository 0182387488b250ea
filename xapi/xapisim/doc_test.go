package xapisim

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestDocNamesTests checks docs/simulator.md: each row of its tables names
// tests that exist, or contains NOT DONE.
func TestDocNamesTests(t *testing.T) {
	doc, err := os.ReadFile("../../docs/simulator.md")
	if err != nil {
		t.Fatal(err)
	}
	have := map[string]bool{}
	for prefix, pattern := range map[string]string{"": "*_test.go", "sr.": "sr/*_test.go"} {
		files, err := filepath.Glob(pattern)
		if err != nil || len(files) == 0 {
			t.Fatalf("%s: no tests, %v", pattern, err)
		}
		for _, f := range files {
			b, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w+)\(`).FindAllStringSubmatch(string(b), -1) {
				have[prefix+m[1]] = true
			}
		}
	}
	rows := 0
	shown := false // inside a table of behaviour and its tests
	for n, line := range strings.Split(string(doc), "\n") {
		switch {
		case !strings.HasPrefix(line, "|"):
			shown = false
			continue
		case strings.HasSuffix(line, "shown by |"):
			shown = true
			continue
		case !shown || strings.HasPrefix(line, "| ---"):
			continue
		}
		cells := strings.Split(strings.Trim(line, "| "), " | ")
		if len(cells) != 2 {
			t.Errorf("line %d: %d cells", n+1, len(cells))
			continue
		}
		rows++
		if cells[1] == "NOT DONE" {
			continue
		}
		for _, name := range strings.Split(cells[1], ", ") {
			if !have[name] {
				t.Errorf("line %d: no test %q", n+1, name)
			}
		}
	}
	if rows < 80 {
		t.Errorf("only %d rows", rows)
	}
}
