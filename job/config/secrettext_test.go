package config

import (
	"context"
	"os"
	"path/filepath"
	"testing"
)

// A secret is the text that its author sees: a byte order mark and line ends do not
// belong to it, whichever editor wrote the file.
func TestSecretText(t *testing.T) {
	for _, c := range []struct{ name, in, want string }{
		{"plain", "geheim", "geheim"},
		{"line end", "geheim\n", "geheim"},
		{"Windows line end", "geheim\r\n", "geheim"},
		{"several line ends", "geheim\r\n\r\n", "geheim"},
		{"BOM", "\xef\xbb\xbfgeheim\r\n", "geheim"},
		{"only a BOM", "\xef\xbb\xbf\r\n", ""},
		{"BOM inside", "ge\xef\xbb\xbfheim", "ge\xef\xbb\xbfheim"},
		{"UTF-16, little-endian", "\xff\xfeg\x00\xe4\x00\r\x00\n\x00", "gä"},
		{"UTF-16, big-endian", "\xfe\xff\x00g\x00\xe4\x00\n", "gä"},
		{"UTF-16, a pair", "\xff\xfe\x3d\xd8\x00\xde", "\U0001F600"},
		{"bytes that only begin like UTF-16", "\xff\xfeabc", "\xff\xfeabc"},
		{"an unpaired surrogate", "\xff\xfe\x3d\xd8", "\xff\xfe\x3d\xd8"},
		{"spaces count", " geheim ", " geheim "},
	} {
		if got := string(SecretText([]byte(c.in))); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

// Row "a password file with a BOM" of the fault list: no source of a secret in the
// config includes the mark, nor does the base64 of VmBackup.
func TestSecretReadWithoutMark(t *testing.T) {
	dir := t.TempDir()
	file := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for name, s := range map[string]Secret{
		"file":     {File: file("plain", "\xef\xbb\xbfgeheim\r\n")},
		"UTF-16":   {File: file("wide", "\xff\xfeg\x00e\x00h\x00e\x00i\x00m\x00\r\x00\n\x00")},
		"command":  {Command: `printf '\357\273\277geheim\r\n'`},
		"obscured": {File: file("obscured", "\xef\xbb\xbfZ2VoZWlt\r\n"), Obscured: true},
	} {
		p, err := s.Read(context.Background())
		if err != nil || string(p) != "geheim" {
			t.Errorf("%s: %q, %v", name, p, err)
		}
	}
}
