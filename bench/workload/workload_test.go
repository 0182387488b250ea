package workload

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

var tiny = Scale{
	Name: "tiny", Thin: 128 * mib, Full: 96 * mib,
	Real: 8 * mib, DB: 4 * mib, Log: mib, Archive: 4 * mib, Dump: 2 * mib, Noise: 2 * mib,
	FullReal: 16 * mib, FullDB: 4 * mib, Pair: 48 * mib, Rows: 5, Members: 2,
}

// needMount skips the test if a disk cannot be mounted.
func needMount(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("SKIP: building images mounts them, which needs root")
	}
	path := filepath.Join(t.TempDir(), "try")
	l := layout{size: 16 * mib, start: alignedStart, gpt: true, uuid: "5eed0000-0000-4000-8000-000000000000"}
	if err := format(t.Context(), path, l); err != nil {
		t.Skip("SKIP: no e2fsprogs here:", err)
	}
	if err := within(t.Context(), path, l, func(string) error { return nil }); err != nil {
		t.Skip("SKIP: no loop mounts here:", err)
	}
}

func TestImagesAreSoundFileSystems(t *testing.T) {
	needMount(t)
	dir := t.TempDir()
	all := []string{Thin, Other, Old, Full, Archive, Dump}
	images, err := Build(t.Context(), dir, tiny, all, t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range all {
		img := images[name]
		start, kind := int64(alignedStart), "gpt"
		switch name {
		case Old:
			start, kind = oldStart, "dos"
		case Other:
			kind = "dos"
		}
		for _, path := range []string{img.DayOne, img.DayTwo} {
			if path == "" {
				continue
			}
			out, err := exec.Command(Program("e2fsck"), "-fn", fmt.Sprintf("%s?offset=%d", path, start*sector)).CombinedOutput()
			if err != nil {
				t.Errorf("e2fsck %s: %v\n%s", path, err, out)
			}
			if out, err = exec.Command(Program("blkid"), "-p", "-o", "value", "-s", "PTTYPE", path).Output(); err != nil || strings.TrimSpace(string(out)) != kind {
				t.Errorf("blkid %s: partition table %q (%v), want %s", path, out, err, kind)
			}
			if info, err := os.Stat(path); err != nil || info.Size() != img.Size {
				t.Errorf("%s: %v, want %d bytes", path, err, img.Size)
			}
		}
		if img.DayTwo != "" {
			one, two := changed(t, img.DayOne, img.DayTwo)
			if share := float64(one) / float64(two); share < 0.005 || share > 0.5 {
				t.Errorf("%s: day two changes %d of %d pages", name, one, two)
			}
		}
	}
	if f := images[Full]; f.Data != f.Size || f.Data2 != f.Size {
		t.Errorf("full has holes: %d and %d of %d bytes are data", f.Data, f.Data2, f.Size)
	}
	if f := images[Thin]; f.Data > f.Size/2 {
		t.Errorf("thin is not thin: %d of %d bytes are data", f.Data, f.Size)
	}
	// An existing image is used unchanged.
	before, err := os.Stat(images[Dump].DayOne)
	if err != nil {
		t.Fatal(err)
	}
	if images, err = Build(t.Context(), dir, tiny, []string{Dump}, t.Logf); err != nil {
		t.Fatal(err)
	}
	if after, err := os.Stat(images[Dump].DayOne); err != nil || !after.ModTime().Equal(before.ModTime()) {
		t.Error("built again")
	}
}

// changed returns the number of pages that differ, and the number of all pages.
func changed(t *testing.T, a, b string) (n, of int) {
	t.Helper()
	p, err := os.ReadFile(a)
	if err != nil {
		t.Fatal(err)
	}
	q, err := os.ReadFile(b)
	if err != nil {
		t.Fatal(err)
	}
	for at := 0; at < len(p); at += 4096 {
		of++
		if !bytes.Equal(p[at:at+4096], q[at:at+4096]) {
			n++
		}
	}
	return n, of
}

// TestContentFollowsFromSeeds pins the content of generated files: results of
// different days can only be compared if it never changes unnoticed.
func TestContentFollowsFromSeeds(t *testing.T) {
	words := vocabulary(7)
	for _, c := range []struct {
		name string
		want string
		fill func(b *bytes.Buffer) error
	}{
		{"database", "e13ce5dc349ac129", func(b *bytes.Buffer) error { return writeDatabase(b, 1, mib, words) }},
		{"log", "63a72f8d60b0933c", func(b *bytes.Buffer) error { return writeLog(b, 1, epoch, mib, words) }},
		{"dump", "220a01570006d889", func(b *bytes.Buffer) error { return writeDump(b, 1, mib, 0, words) }},
		{"dump with rows", "b2f38c0417ff4f9b", func(b *bytes.Buffer) error { return writeDump(b, 1, mib, 15, words) }},
		{"noise", "8f12def7f340d155", func(b *bytes.Buffer) error { return WriteNoise(b, 1, mib) }},
	} {
		var b bytes.Buffer
		if err := c.fill(&b); err != nil {
			t.Fatal(err)
		}
		if sum := fmt.Sprintf("%x", sha256.Sum256(b.Bytes()))[:16]; sum != c.want {
			t.Errorf("%s: %d bytes, SHA-256 %s, want %s", c.name, b.Len(), sum, c.want)
		}
	}
}

func TestDumpWithRowsIsTheDumpShifted(t *testing.T) {
	words := vocabulary(7)
	var one, two bytes.Buffer
	if err := writeDump(&one, 1, mib, 0, words); err != nil {
		t.Fatal(err)
	}
	if err := writeDump(&two, 1, mib, 150, words); err != nil {
		t.Fatal(err)
	}
	old := make(map[string]bool)
	for line := range strings.Lines(one.String()) {
		old[line] = true
	}
	var kept strings.Builder
	rows := 0
	for line := range strings.Lines(two.String()) {
		if old[line] {
			kept.WriteString(line)
		} else {
			rows++
		}
	}
	if kept.String() != one.String() || rows != 150 {
		t.Errorf("%d rows inserted; the rest equal: %v", rows, kept.String() == one.String())
	}
}

func TestCopyTreeStaysWithinItsLimit(t *testing.T) {
	dir := t.TempDir()
	n, err := CopyTree(t.Context(), dir, 2*mib)
	if err != nil {
		t.Fatal(err)
	}
	if n > 2*mib || n < mib {
		t.Errorf("%d bytes copied, want about 2 MiB", n)
	}
}
