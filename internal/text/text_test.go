package text

import (
	"strings"
	"testing"
)

// Row N6 of the fault list: names of any width keep the columns aligned, and
// nothing in a name can control the terminal.
func TestTable(t *testing.T) {
	names := []string{"web", "データベース本番", "e\u0301te\u0301", "a\x1b[2Jb\nc", "rtl\u202egnp", "zero\u200bwidth", strings.Repeat("x", 60), "", "한국어 서버", "bad\xffutf8", "line\u2028sep"}
	var tab Table
	tab.Row("STATE", "VM", "READ")
	for _, n := range names {
		tab.Row("failed", n, "10 MiB")
	}
	tab.Row("ok", "short row")
	tab.Row("skipped")
	var b strings.Builder
	if _, err := tab.WriteTo(&b); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSuffix(b.String(), "\n"), "\n")
	if len(lines) != len(names)+3 {
		t.Fatalf("%d lines:\n%s", len(lines), b.String())
	}
	at := func(line, cell string) int { return Width(line[:strings.Index(line, cell)]) }
	for i := range names {
		if got, want := at(lines[i+1], "10 MiB"), at(lines[0], "READ"); got != want {
			t.Errorf("%q: READ begins in column %d, want %d", names[i], got, want)
		}
	}
	for _, l := range lines {
		if strings.HasSuffix(l, " ") || strings.ContainsAny(l, "\x1b\n\u202e\u200b\u2028") {
			t.Errorf("line %q", l)
		}
	}
}

func TestShorten(t *testing.T) {
	for _, c := range []struct {
		in    string
		width int
		want  string
	}{
		{"web", 10, "web"},
		{"production-database-07 xvda", 16, "product...7 xvda"},
		{"データベース本番", 9, "デー...番"},
		{"abcdef", 3, "abc"},
		{"日本語", 1, ""},
		{"abc\u0301de\u0301fghijkl", 7, "ab...kl"},
		{"", 0, ""},
	} {
		got := Shorten(c.in, c.width)
		if got != c.want || Width(got) > c.width && Width(c.in) > c.width {
			t.Errorf("%q in %d columns: %q (%d), want %q", c.in, c.width, got, Width(got), c.want)
		}
	}
}
