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

// Row S10 of the fault list: characters that change the direction of writing, or
// that have no width, are shown, so that no name can look like another.
func TestClean(t *testing.T) {
	for in, want := range map[string]string{
		"web": "web", "데이터 é 🚀": "데이터 é 🚀", "a\x1b[2Jb\nc\u0085\u2028": "a?[2Jb?c??", "bad\xff": "bad\ufffd",
		"rtl\u202egnp": `rtl\u202egnp`, "we\u200bb": `we\u200bb`, "\u2066x\u2069": `\u2066x\u2069`, "\u200f\u200e\ufeff": `\u200f\u200e\ufeff`,
		"soft\u00adhyphen": `soft\u00adhyphen`, "tag\U000e0041": `tag\U000e0041`,
	} {
		if got := Clean(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
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

// On a narrow terminal the last column is continued below itself; where even that
// does not help, and without a terminal, lines stay whole.
func TestTableWraps(t *testing.T) {
	for _, c := range []struct {
		columns int
		want    string
	}{
		{0, "ID    REASON\nab12  changes since snapshot 479986c0 of web\ncd\n"},
		{80, "ID    REASON\nab12  changes since snapshot 479986c0 of web\ncd\n"},
		{30, "ID    REASON\nab12  changes since snapshot\n      479986c0 of web\ncd\n"},
		{22, "ID    REASON\nab12  changes since\n      snapshot\n      479986c0 of web\ncd\n"},
		{21, "ID    REASON\nab12  changes since snapshot 479986c0 of web\ncd\n"},
	} {
		table := Table{Columns: c.columns}
		table.Row("ID", "REASON")
		table.Row("ab12", "changes since snapshot 479986c0 of web")
		table.Row("cd")
		var b strings.Builder
		if _, err := table.WriteTo(&b); err != nil || b.String() != c.want {
			t.Errorf("%d columns:\n%s%v, want\n%s", c.columns, b.String(), err, c.want)
		}
	}
}
