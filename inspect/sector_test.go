package inspect_test

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"os"
	"path/filepath"
	"strings"
	"testing"

	. "xenkeep/inspect/inspecttest"
)

// place is a partition of a generated disk, in bytes.
type place struct {
	at    int64
	image string
}

func length(t *testing.T, file string) int64 {
	t.Helper()
	st, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	return (st.Size() + 4095) &^ 4095
}

// gptDisk creates a disk with a GPT in units of sectors of unit bytes; mbr are
// additional entries of its MBR, as on a hybrid one.
func gptDisk(t *testing.T, unit, size int64, parts []place, mbr ...place) string {
	t.Helper()
	le := binary.LittleEndian
	last := size/unit - 1
	table := make([]byte, 16384)
	for i, p := range parts {
		e := table[128*i:]
		copy(e, "\xaf\x3d\xc6\x0f\x83\x84\x72\x47\x8e\x79\x3d\x69\xd8\x47\x7d\xe4") // Linux filesystem
		e[16] = byte(i + 1)
		le.PutUint64(e[32:], uint64(p.at/unit))
		le.PutUint64(e[40:], uint64((p.at+length(t, p.image))/unit-1))
	}
	tableSectors := int64(len(table)) / unit
	header := func(at, other, tableAt int64) []byte {
		h := make([]byte, unit)
		copy(h, "EFI PART\x00\x00\x01\x00\x5c\x00\x00\x00")
		le.PutUint64(h[24:], uint64(at))
		le.PutUint64(h[32:], uint64(other))
		le.PutUint64(h[40:], uint64(2+tableSectors))
		le.PutUint64(h[48:], uint64(last-1-tableSectors))
		h[56] = 7
		le.PutUint64(h[72:], uint64(tableAt))
		le.PutUint32(h[80:], 128)
		le.PutUint32(h[84:], 128)
		le.PutUint32(h[88:], crc32.ChecksumIEEE(table))
		le.PutUint32(h[16:], crc32.ChecksumIEEE(h[:92]))
		return h
	}
	file := mbrDisk(t, unit, size, parts, append([]place{{at: unit}}, mbr...))
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, w := range []struct {
		p  []byte
		at int64
	}{
		{header(1, last, 2), unit}, {table, 2 * unit},
		{table, (last - tableSectors) * unit}, {header(last, 1, last-tableSectors), last * unit},
	} {
		if _, err := f.WriteAt(w.p, w.at); err != nil {
			t.Fatal(err)
		}
	}
	return file
}

// mbrDisk creates a disk with an MBR in units of sectors of unit bytes. An
// entry without an image is that of a protective MBR.
func mbrDisk(t *testing.T, unit, size int64, content, entries []place) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "disk")
	s := make([]byte, 512)
	s[510], s[511] = 0x55, 0xaa
	for i, p := range entries {
		e := s[446+16*i:]
		e[4] = 0xee
		n := size - unit
		if p.image != "" {
			e[4], n = 0x83, length(t, p.image)
		}
		binary.LittleEndian.PutUint32(e[8:], uint32(p.at/unit))
		binary.LittleEndian.PutUint32(e[12:], uint32(n/unit))
	}
	if err := os.WriteFile(file, s, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file, size); err != nil {
		t.Fatal(err)
	}
	for _, p := range content {
		Place(t, file, p.at, p.image)
	}
	return file
}

// Row D1 of the fault list: partition tables in units of 4096-byte sectors are
// valid, and their partitions are found.
func TestLargeSectors(t *testing.T) {
	files := Files()
	parts := []place{{1 * MiB, Ext(t, "ext4", 24*MiB, files)}, {40 * MiB, FAT(t, "16", 16*MiB)}}
	const size = 64 * MiB
	for name, c := range map[string]struct {
		disk string
		want string
	}{
		"GPT":           {gptDisk(t, 4096, size, parts), "GPT with 2 partitions, sectors of 4096 bytes, both headers sound"},
		"GPT of 512":    {gptDisk(t, 512, size, parts), "GPT with 2 partitions, both headers sound"},
		"hybrid":        {gptDisk(t, 4096, size, parts, parts[0]), "GPT with 2 partitions, sectors of 4096 bytes, both headers sound"},
		"hybrid of 512": {gptDisk(t, 512, size, parts, parts[0]), "GPT with 2 partitions, both headers sound"},
		"MBR":           {mbrDisk(t, 4096, size, parts, parts), "MBR with 2 partitions, sectors of 4096 bytes"},
		"MBR of 512":    {mbrDisk(t, 512, size, parts, parts), "MBR with 2 partitions\n"},
	} {
		rep := look(t, c.disk)
		text := lines(rep)
		if rep.Bad() != 0 || !strings.Contains(text, c.want) || len(rep.Volumes) != 2 || rep.Volumes[0].FS != "ext4" || rep.Volumes[1].FS != "vfat" {
			t.Errorf("%s: want %s:\n%s", name, c.want, text)
			continue
		}
		for i, v := range rep.Volumes {
			if r := v.Runs[0]; r.Offset != parts[i].at || r.Length != length(t, parts[i].image) {
				t.Errorf("%s: %s is at %+v", name, v.Name, r)
			}
		}
	}
}

// The backup of a GPT of 4096-byte sectors is used, and damage to it is
// reported.
func TestLargeSectorsDamaged(t *testing.T) {
	parts := []place{{1 * MiB, Ext(t, "ext4", 24*MiB, Files())}}
	const size = 32 * MiB
	for name, c := range map[string]struct {
		at   int64
		want string
		fs   string
	}{
		"first header":  {4096, `BAD  xvda: GPT: header at sector 1: it is not there; its backup at sector 8191 is sound`, "ext4"},
		"backup header": {size - 4096, `BAD  xvda: GPT: backup header at sector 8191: it is not there`, "ext4"},
		"first table":   {2 * 4096, `header at sector 1: the checksum of its table of partitions is wrong; its backup`, "ext4"},
	} {
		file := gptDisk(t, 4096, size, parts)
		wipe(c.at, 512)(t, func() *os.File {
			f, err := os.OpenFile(file, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = f.Close() })
			return f
		}())
		rep := look(t, file)
		text := strings.ReplaceAll(lines(rep), "bad ", "BAD ")
		if rep.Bad() != 1 || !strings.Contains(text, c.want) || len(rep.Volumes) != 1 || rep.Volumes[0].FS != c.fs {
			t.Errorf("%s: want %s:\n%s", name, c.want, text)
		}
	}
	// Remains of a table of 512-byte sectors are ignored if there is a valid
	// one.
	file := gptDisk(t, 4096, size, parts)
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	old := bytes.Repeat([]byte{0}, 512)
	copy(old, "EFI PART")
	if _, err := f.WriteAt(old, 512); err != nil {
		t.Fatal(err)
	}
	if rep := look(t, file); rep.Bad() != 0 || len(rep.Volumes) != 1 || rep.Volumes[0].FS != "ext4" {
		t.Errorf("beside the remains of another table:\n%s", lines(rep))
	}
}
