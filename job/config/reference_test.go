package config

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// docs/reference/config.md describes exactly the existing keys.
func TestReferenceKeys(t *testing.T) {
	text, err := os.ReadFile("../../docs/reference/config.md")
	if err != nil {
		t.Fatal(err)
	}
	_, page, ok := strings.Cut(string(text), "\n## Keys of the config\n")
	if !ok {
		t.Fatal("docs/reference/config.md has no section about the keys")
	}
	page, _, _ = strings.Cut(page, "\n## ")
	prefixes := map[string][]string{
		"repository": {"repository"}, "pools.*": {"pools", "x"}, "jobs.*": {"jobs", "x"}, "jobs.*.select": {"jobs", "x", "select"}, "jobs.*.exclude": {"jobs", "x", "exclude"},
		"jobs.*.rules[]": {"jobs", "x", "rules"}, "jobs.*.check": {"jobs", "x", "check"}, "jobs.*.concurrency": {"jobs", "x", "concurrency"}, "jobs.*.limits": {"jobs", "x", "limits"},
		"jobs.*.window": {"jobs", "x", "window"}, "jobs.*.hooks": {"jobs", "x", "hooks"}, "jobs.*.keep": {"jobs", "x", "keep"},
		"notify.mail": {"notify", "mail"}, "notify.webhook": {"notify", "webhook"}, "notify.ping": {"notify", "ping"}, "log": {"log"},
	}
	var rows []string
	for _, m := range regexp.MustCompile("(?m)^\\| `([a-z.*\\[\\]-]+)` \\| [^|]+\\| [^|]+ \\|$").FindAllStringSubmatch(page, -1) {
		rows = append(rows, m[1])
		i := strings.LastIndex(m[1], ".")
		if at, known := prefixes[m[1][:i]]; !known || !slices.Contains(keysAt(at), m[1][i+1:]) {
			t.Errorf("there is no key %s", m[1])
		}
	}
	for prefix, at := range prefixes {
		for _, key := range keysAt(at) {
			full := prefix + "." + key
			inside := slices.ContainsFunc(rows, func(r string) bool {
				return r == full || strings.HasPrefix(r, full+".") || strings.HasPrefix(r, full+"[")
			})
			// Similar keys are described together.
			beside := slices.ContainsFunc(strings.Split(page, "\n"), func(l string) bool {
				return strings.HasPrefix(l, "| `"+prefix) && strings.Contains(l, "`"+key+"`")
			})
			if !inside && !beside {
				t.Errorf("docs/reference/config.md lacks %s", full)
			}
		}
	}
}
