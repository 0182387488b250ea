package main

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"xenkeep/xapi/xapisim"
)

// The run in README.md is typed in, in order, and prints exactly what the page
// shows, except for IDs, dates, durations, numbers of packs and of requests, the
// blocks that are read to verify changed-block tracking, and the width of columns.
func TestReadme(t *testing.T) {
	dir := tempDir(t)
	pool, err := xapisim.New(xapisim.Config{
		CBT: true, NBD: xapisim.NBDTLS, Scale: 0.01,
		VMs: []xapisim.VMConfig{
			{Name: "web", Disks: []string{sparseImage(t, dir, "web.raw", 2<<30, 24, 1)}},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	for name, value := range map[string]string{
		"XENKEEP_REPOSITORY": filepath.Join(dir, "backup"), "XENKEEP_CACHE_DIR": filepath.Join(dir, "cache"), "XENKEEP_PASSWORD": "a password",
		"XENKEEP_POOL": pool.URL(), "XENKEEP_POOL_PASSWORD": pool.Password(), "XENKEEP_POOL_FINGERPRINT": pool.Fingerprint(), "TZ": "UTC",
	} {
		t.Setenv(name, value)
	}
	t.Chdir(dir)

	backups := 0
	for _, b := range blocks(t, filepath.Join(repositoryRoot, "README.md")) {
		if b.info != "console" {
			continue
		}
		for len(b.lines) > 0 {
			command, ok := strings.CutPrefix(b.lines[0], "$ ")
			if !ok {
				t.Fatalf("output without a command: %s", b.lines[0])
			}
			n := 1
			for n < len(b.lines) && !strings.HasPrefix(b.lines[n], "$ ") {
				n++
			}
			if strings.HasPrefix(command, "xenkeep backup") {
				if backups++; backups == 2 { // the guest has worked for a day
					if _, err := pool.GuestWrite(pool.Ready().VMs[0].Disks[0].VDI, sparseImage(t, dir, "web2.raw", 2<<30, 30, 1)); err != nil {
						t.Fatal(err)
					}
				}
			}
			typed(t, dir, command, b.lines[1:n])
			b.lines = b.lines[n:]
		}
	}
	if backups < 2 {
		t.Errorf("README.md shows %d backups", backups)
	}
}

// repositoryRoot is absolute, because a test changes the folder.
var repositoryRoot = func() string {
	dir, err := filepath.Abs("../..")
	if err != nil {
		panic(err)
	}
	return dir
}()

// sparseImage writes an image of size bytes with n pieces of 1 MiB, every other
// of which compresses well.
func sparseImage(t *testing.T, dir, name string, size int64, n int, seed byte) string {
	t.Helper()
	name = filepath.Join(dir, name)
	f, err := os.Create(name)
	if err == nil {
		err = f.Truncate(size)
	}
	data := rand.NewChaCha8([32]byte{seed})
	p := make([]byte, 1<<20)
	for i := 0; i < n && err == nil; i++ {
		_, _ = data.Read(p)
		for j := range p {
			if i%2 == 1 {
				p[j] = byte(j / 512)
			}
		}
		_, err = f.WriteAt(p, int64(i)*5<<20)
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return name
}

// typed runs a command line in dir, whose output must be these lines.
func typed(t *testing.T, dir, line string, want []string) {
	t.Helper()
	var args []string
	for _, m := range regexp.MustCompile(`"([^"]*)"|(\S+)`).FindAllStringSubmatch(line, -1) {
		args = append(args, m[1]+m[2])
	}
	var out bytes.Buffer
	if code := run(t.Context(), new(diagnostics), args[1:], &out, &out); args[0] != "xenkeep" || code != exitOK {
		t.Fatalf("%s: exit code %d\n%s", line, code, out.String())
	}
	got, shown := masked(strings.ReplaceAll(out.String(), dir, "/srv")), masked(strings.Join(want, "\n"))
	if got != shown {
		t.Errorf("%s printed\n%s\nREADME.md shows\n%s\nmasked:\n%s\nand\n%s", line, out.String(), strings.Join(want, "\n"), got, shown)
	}
}

// masked replaces the parts that differ each time.
func masked(text string) string {
	for _, m := range []struct{ pattern, by string }{
		{`[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}`, "UUID"},
		{`\b[0-9a-f]{8}\b`, "ID"},
		{`\d{4}-\d\d-\d\d \d\d:\d\d:\d\d`, "DATE"},
		{`\b\d+(\.\d+)?m?s\b`, "DURATION"},
		{`\d+ packs?`, "N packs"},
		{`\d+ (requests?|put|get|stat|list|delete|of them)`, "N $1"},
		{` {2,}`, "  "},
		{`cbt  \d+ MiB`, "cbt  N MiB"}, // it depends on the ID of the run which unchanged blocks are read too
		{`(?m) +$`, ""},
	} {
		text = regexp.MustCompile(m.pattern).ReplaceAllString(text, m.by)
	}
	return strings.TrimRight(text, "\n")
}
