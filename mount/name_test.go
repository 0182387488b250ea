package mount

import "testing"

// Row S10 of the fault list: file names contain no character that controls a
// terminal, changes the direction of writing, or is invisible.
func TestFileNamesAreVisible(t *testing.T) {
	for in, want := range map[string]string{
		"web": "web", "데이터": "데이터", "a/b": "a_b", "a\x1b[2J": "a_[2J", "c1\u0085": "c1_", "rtl\u202egnp": "rtl_gnp", "we\u200bb": "we_b", "line\u2028": "line_", "": "_", "..": "_..",
	} {
		if got := fileName(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}
