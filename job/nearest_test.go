package job_test

import (
	"testing"

	"xenkeep/job"
)

// A name that is mistyped by one character, or in a longer name by a few, is suggested;
// one that is another name is not.
func TestDidYouMean(t *testing.T) {
	names := []string{"web", "db", "Mail Server", "fileserver-01", "日本"}
	for wrong, want := range map[string]string{
		"wbe": "web", "we": "", "wb": "", "webb": "web", "WEB": "web", "xyz": "", "ab": "", "d b": "db", "": "", "-": "",
		"mailserver": "Mail Server", "mail-sevrer": "Mail Server", "fileservre01": "fileserver-01", "filer": "", "日": "",
	} {
		text := ""
		if want != "" {
			text = "; did you mean \"" + want + "\"?"
		}
		if got := job.DidYouMean(wrong, names); got != text {
			t.Errorf("%q: %q, want %q", wrong, got, text)
		}
	}
	if got := job.DidYouMean("", []string{"-", ""}); got != "" {
		t.Errorf("%q", got)
	}
}
