package inspect_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"xenkeep/inspect"
	. "xenkeep/inspect/inspecttest"
)

// file is a disk in a file.
type file struct {
	f    *os.File
	size int64
}

func (f file) Size() int64 { return f.size }

func (f file) ReadAt(_ context.Context, p []byte, off int64) error {
	_, err := f.f.ReadAt(p, off)
	return err
}

func open(t testing.TB, name string) file {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return file{f, st.Size()}
}

func look(t testing.TB, names ...string) *inspect.Report {
	t.Helper()
	var disks []inspect.Disk
	for i, name := range names {
		disks = append(disks, inspect.Disk{Name: "xvd" + string(rune('a'+i)), Reader: open(t, name)})
	}
	rep, err := inspect.Disks(t.Context(), disks)
	if err != nil {
		t.Fatal(err)
	}
	return rep
}

func lines(r *inspect.Report) string {
	var b strings.Builder
	for _, f := range r.Findings {
		fmt.Fprintf(&b, "%-4s %s: %s\n", f.Level, f.Where, f.Text)
	}
	return b.String()
}

// sound returns one of five disks without any bad finding.
func sound(t testing.TB, name string) string {
	files := Files()
	switch name {
	case "gpt":
		return Disk(t, "gpt", "U="+FAT(t, "32", 40*MiB), "L="+Ext(t, "ext4", 24*MiB, files), "S="+Swap(t, 4*MiB), "L="+NTFS(t, 16*MiB, files))
	case "mbr":
		return Disk(t, "dos", "c="+FAT(t, "16", 16*MiB), "83="+Ext(t, "ext3", 16*MiB, files, "-O", "^resize_inode,^sparse_super"), "7="+NTFS(t, 16*MiB, files), "83="+Ext(t, "ext2", 8*MiB, files, "-b", "1024"))
	case "xfs":
		return Disk(t, "gpt", "L="+XFS(t, files))
	case "lvm":
		return Disk(t, "gpt", "V="+LVM(t, 400*MiB, map[string]string{"root": Ext(t, "ext4", 24*MiB, files), "data": XFS(t, files)}, "root", "data"))
	case "whole":
		return Ext(t, "ext4", 40*MiB, files, "-O", "^metadata_csum,uninit_bg", "-g", "8192")
	}
	t.Fatal(name)
	return ""
}

func TestSound(t *testing.T) {
	for name, want := range map[string]string{
		"gpt":   `GPT with 4 partitions, both headers sound.*xvda1: FAT32: .*xvda2: ext4: .* with their checksums are sound.*xvda3: swap.*xvda4: ntfs`,
		"mbr":   `MBR with 4 partitions.*xvda1: FAT16: .*xvda2: ext3: .*xvda3: ntfs: .*xvda4: ext2: `,
		"xfs":   `xvda1: xfs: superblock and headers of 4 groups with their checksums are sound`,
		"lvm":   `xvda1: LVM: label and metadata.*vg/data: xfs: .*vg/root: ext4: `,
		"whole": `xvda: ext4: superblock and group descriptors are sound`,
	} {
		t.Run(name, func(t *testing.T) {
			rep := look(t, sound(t, name))
			text := lines(rep)
			if rep.Bad() != 0 || !regexp.MustCompile(`(?s)`+want).MatchString(text) {
				t.Errorf("want %s:\n%s", want, text)
			}
			for _, v := range rep.Volumes {
				if v.FS != "" && v.FS != "swap" && v.FS != "lvm" && !strings.EqualFold(v.Label, "label") {
					t.Errorf("%s: label %q", v.Name, v.Label)
				}
			}
		})
	}
}

// damage changes a copy of a file.
type damage func(t testing.TB, f *os.File)

func wipe(at, n int64) damage {
	return func(t testing.TB, f *os.File) {
		t.Helper()
		if at < 0 {
			st, err := f.Stat()
			if err != nil {
				t.Fatal(err)
			}
			at += st.Size()
		}
		if _, err := f.WriteAt(make([]byte, n), at); err != nil {
			t.Fatal(err)
		}
	}
}

func flip(at int64) damage {
	return func(t testing.TB, f *os.File) {
		t.Helper()
		p := make([]byte, 1)
		if _, err := f.ReadAt(p, at); err != nil {
			t.Fatal(err)
		}
		p[0] ^= 0x10
		if _, err := f.WriteAt(p, at); err != nil {
			t.Fatal(err)
		}
	}
}

func cut(size int64) damage {
	return func(t testing.TB, f *os.File) {
		t.Helper()
		if err := f.Truncate(size); err != nil {
			t.Fatal(err)
		}
	}
}

// The table of damage: the damaged part, and the line that reports it.
func TestDamaged(t *testing.T) {
	made := map[string]string{}
	get := func(t testing.TB, kind string, make func() string) string {
		if made[kind] == "" {
			made[kind] = make()
		}
		return made[kind]
	}
	files := Files()
	plain := map[string]func(t testing.TB) string{
		"gpt":   func(t testing.TB) string { return sound(t, "gpt") },
		"mbr":   func(t testing.TB) string { return sound(t, "mbr") },
		"xfs":   func(t testing.TB) string { return sound(t, "xfs") },
		"ext4":  func(t testing.TB) string { return Disk(t, "dos", "83="+Ext(t, "ext4", 160*MiB, files)) },
		"ntfs":  func(t testing.TB) string { return Disk(t, "dos", "7="+NTFS(t, 16*MiB, files)) },
		"fat":   func(t testing.TB) string { return Disk(t, "dos", "c="+FAT(t, "32", 40*MiB)) },
		"btrfs": func(t testing.TB) string { return Btrfs(t, 128*MiB) },
		"lvm":   storedPV,
	}
	const p1 = MiB // the first partition
	for _, c := range []struct {
		name, kind string
		do         damage
		want       string
	}{
		{"no MBR signature", "mbr", wipe(510, 2), `xvda: sector 0: no boot signature 55 aa, but 4 partitions are entered`},
		{"no protective MBR signature", "gpt", wipe(510, 2), `xvda: sector 0: no boot signature 55 aa before the GPT`},
		{"GPT backup only", "gpt", wipe(512, 512), `xvda: GPT: header at sector 1: it is not there; its backup at sector \d+ is sound`},
		{"GPT checksum", "gpt", flip(512 + 48), `xvda: GPT: header at sector 1: its checksum is wrong; its backup`},
		{"GPT entries", "gpt", flip(1024 + 40), `xvda: GPT: header at sector 1: the checksum of its table of partitions is wrong; its backup`},
		{"GPT primary only", "gpt", wipe(-512, 512), `xvda: GPT: backup header at sector \d+: it is not there; that at sector 1 is sound`},
		{"both GPTs", "gpt", func(t testing.TB, f *os.File) { wipe(512, 512)(t, f); wipe(-512, 512)(t, f) }, `xvda: GPT: neither header can be used`},
		{"ext4 superblock checksum", "ext4", flip(p1 + 1024 + 120), `xvda1: ext4: superblock has a wrong checksum; its backup in block \d+ is sound \(e2fsck -b`},
		{"ext4 magic", "ext4", wipe(p1+1024+56, 2), `xvda1: ext4: superblock has no magic number; its backup in block \d+ is sound`},
		{"ext4 group descriptor", "ext4", flip(p1 + 2048 + 8), `xvda1: ext4: 1 group descriptor with a wrong checksum, the first is that of group 0`},
		{"ext4 cut", "ext4", cut(100 * MiB), `xvda1: ext4 of 167772160 bytes on a volume of 103809024: it is cut`},
		{"XFS magic", "xfs", wipe(p1, 4), `xvda1: xfs: superblock has no magic number, but group headers lie behind it`},
		{"XFS superblock checksum", "xfs", flip(p1 + 200), `xvda1: xfs: superblock has a wrong checksum`},
		{"XFS group header", "xfs", flip(p1 + 512 + 52), `xvda1: xfs: 1 group header broken, the first is XAGF of group 0`},
		{"NTFS boot sector", "ntfs", wipe(p1, 512), `xvda1: ntfs: boot sector is broken; its backup at byte \d+ is sound`},
		{"NTFS backup boot sector", "ntfs", wipe(p1+16*MiB-512, 512), `xvda1: ntfs: the backup of the boot sector, at the end, is not there`},
		{"NTFS MFT", "ntfs", wipe(p1+16384, 8192), `xvda1: ntfs: record 0 of the MFT is broken`},
		{"FAT32 boot sector", "fat", wipe(p1, 512), `xvda1: FAT32: boot sector is broken; its backup in sector 6 is sound`},
		{"FAT32 information", "fat", wipe(p1+512, 512), `xvda1: FAT32: information sector 1 is broken`},
		{"btrfs checksum", "btrfs", flip(64<<10 + 300), `xvda: btrfs: superblock has a wrong checksum; its copy at 64 MiB is sound`},
		{"btrfs magic", "btrfs", wipe(64<<10+64, 8), `xvda: btrfs: superblock has no magic number; its copy at 64 MiB is sound`},
		{"truncated LVM", "lvm", cut(30 * MiB), `xvda: LVM: physical volume of 67108864 bytes on a volume of 31457280: it is cut`},
		{"LVM label checksum", "lvm", flip(512 + 40), `xvda: LVM: label has a wrong checksum`},
		{"LVM no label", "lvm", wipe(512, 512), `xvda: LVM: no label, but a metadata area at byte 4096`},
		{"LVM metadata", "lvm", func(t testing.TB, f *os.File) { wipe(4608, 64<<10)(t, f) }, `xvda: LVM: metadata has a wrong checksum`},
		{"partition behind the end", "mbr", cut(30 * MiB), `xvda3: partition begins at byte \d+, behind the disk's end`},
	} {
		t.Run(c.name, func(t *testing.T) {
			src := get(t, c.kind, func() string { return plain[c.kind](outer(t)) })
			name := filepath.Join(t.TempDir(), "damaged")
			Run(t, "cp", "--sparse=always", src, name)
			f, err := os.OpenFile(name, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			c.do(t, f)
			_ = f.Close()
			rep := look(t, name)
			found := false
			for _, x := range rep.Findings {
				found = found || x.Level == inspect.Bad && regexp.MustCompile(`^`+c.want).MatchString(x.Where+": "+x.Text)
			}
			if !found {
				t.Errorf("want %s:\n%s", c.want, lines(rep))
			}
		})
	}
}

// longer is a TB whose temporary folder exists as long as the image is used.
type longer struct {
	testing.TB
	dir string
}

func (l longer) TempDir() string {
	dir, err := os.MkdirTemp(l.dir, "")
	if err != nil {
		l.Fatal(err)
	}
	return dir
}

var longDir string

func outer(t testing.TB) testing.TB { return longer{t, longDir} }

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "inspect-")
	if err != nil {
		panic(err)
	}
	longDir = dir
	code := m.Run()
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

// storedPV returns a physical volume of 64 MiB made by lvm2 2.03.16: its first
// MiB, which is stored in testdata, contains all bytes that are not zero.
func storedPV(t testing.TB) string {
	t.Helper()
	z, err := os.Open("testdata/pv.gz")
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	r, err := gzip.NewReader(z)
	if err != nil {
		t.Fatal(err)
	}
	p, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(t.TempDir(), "pv")
	if err := errors.Join(os.WriteFile(name, p, 0o600), os.Truncate(name, 64*MiB)); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestStoredPV(t *testing.T) {
	rep := look(t, storedPV(t))
	var names []string
	for _, v := range rep.Volumes {
		names = append(names, fmt.Sprint(v.Name, " ", v.Size()/MiB, " ", v.Runs))
	}
	want := "[xvda 64 [{0 0 67108864}] vgx/data 20 [{0 26214400 20971520}] vgx/root 24 [{0 1048576 25165824}]]"
	if rep.Bad() != 0 || fmt.Sprint(names) != want {
		t.Errorf("%v\n%s", names, lines(rep))
	}
}

// The free ranges of a file system can be overwritten, as its own checker
// confirms: after every free range is filled with garbage, all files are still
// intact.
func TestFree(t *testing.T) {
	files := Files()
	for name, c := range map[string]struct {
		make  func(t testing.TB) string
		check func(t testing.TB, name string)
		most  int64 // used
	}{
		"ext4":          {func(t testing.TB) string { return Ext(t, "ext4", 160*MiB, files) }, checkExt, 20 * MiB},
		"ext4 bigalloc": {func(t testing.TB) string { return Ext(t, "ext4", 64*MiB, files, "-O", "bigalloc", "-C", "16384") }, checkExt, 20 * MiB},
		"ext3":          {func(t testing.TB) string { return Ext(t, "ext3", 64*MiB, files) }, checkExt, 20 * MiB},
		"ext2":          {func(t testing.TB) string { return Ext(t, "ext2", 20*MiB, files, "-b", "1024") }, checkExt, 8 * MiB},
		"xfs":           {func(t testing.TB) string { return XFS(t, files) }, checkXFS, 80 * MiB},
		"xfs v4":        {func(t testing.TB) string { return XFS(t, files, "-m", "crc=0") }, checkXFS, 80 * MiB},
		"ntfs":          {func(t testing.TB) string { return NTFS(t, 24*MiB, files) }, checkNTFS, 12 * MiB},
		"fat16":         {func(t testing.TB) string { return FAT(t, "16", 16*MiB) }, checkFAT, 1 * MiB},
		"fat32":         {func(t testing.TB) string { return FAT(t, "32", 40*MiB) }, checkFAT, 1 * MiB},
		"fat12":         {func(t testing.TB) string { return FAT(t, "12", 2*MiB) }, checkFAT, 1 * MiB},
	} {
		t.Run(name, func(t *testing.T) {
			image := c.make(t)
			rep := look(t, image)
			free, known, err := rep.Volumes[0].Free(t.Context())
			if err != nil || !known {
				t.Fatal(known, err)
			}
			f, err := os.OpenFile(image, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			used, last := rep.Volumes[0].Size(), int64(0)
			junk := bytes.Repeat([]byte("junk"), 256<<10)
			for _, e := range free {
				if e.Offset < last || e.Length <= 0 {
					t.Fatalf("%+v behind %d", e, last)
				}
				last = e.End()
				used -= e.Length
				for off := e.Offset; off < e.End(); off += int64(len(junk)) {
					if _, err := f.WriteAt(junk[:min(int64(len(junk)), e.End()-off)], off); err != nil {
						t.Fatal(err)
					}
				}
			}
			if used > c.most || used < 0 {
				t.Errorf("%d bytes are used of %d", used, rep.Volumes[0].Size())
			}
			c.check(t, image)
		})
	}
}

func checkExt(t testing.TB, name string) {
	Run(t, "e2fsck", "-fn", name)
	out := filepath.Join(t.TempDir(), "out")
	for file, want := range Files() {
		Run(t, "debugfs", "-R", "dump "+file+" "+out, name)
		if got, err := os.ReadFile(out); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s differs", file)
		}
	}
}

func checkXFS(t testing.TB, name string) {
	Run(t, "xfs_repair", "-n", "-f", name)
	Same(t, Mount(t, "-o", "loop,ro,norecovery,nouuid", name), Files())
}

func checkNTFS(t testing.TB, name string) {
	for file, want := range Files() {
		if len(want) == 0 {
			continue
		}
		out := Run(t, "ntfscat", name, file)
		if out != string(want) {
			t.Errorf("%s differs", file)
		}
	}
}

func checkFAT(t testing.TB, name string) { Run(t, "fsck.fat", "-n", name) }

// TestNothing: a disk without any known content is not damaged.
func TestNothing(t *testing.T) {
	for name, p := range map[string][]byte{
		"empty": nil, "zeros": make([]byte, MiB), "noise": bytes.Repeat([]byte("0123456789abcdef"), 65536), "tiny": make([]byte, 600),
	} {
		file := filepath.Join(t.TempDir(), "disk")
		if err := os.WriteFile(file, p, 0o600); err != nil {
			t.Fatal(err)
		}
		if rep := look(t, file); rep.Bad() != 0 || len(rep.Volumes) != 1 {
			t.Errorf("%s: %s", name, lines(rep))
		}
	}
}

// FuzzDisks: no disk makes an inspection panic or read forever.
func FuzzDisks(f *testing.F) {
	p, err := os.ReadFile(storedPV(f))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(p[:64<<10])
	f.Add(append(make([]byte, 1024), bytes.Repeat([]byte{0x53, 0xef, 1, 0}, 2000)...))
	f.Fuzz(func(t *testing.T, p []byte) {
		rep, err := inspect.Disks(t.Context(), []inspect.Disk{{Name: "d", Reader: memory(p)}})
		if err != nil {
			return
		}
		for _, v := range rep.Volumes {
			_, _, _ = v.Free(t.Context())
		}
	})
}

type memory []byte

func (m memory) Size() int64 { return int64(len(m)) }

func (m memory) ReadAt(_ context.Context, p []byte, off int64) error {
	if off < 0 || off+int64(len(p)) > int64(len(m)) {
		return io.ErrUnexpectedEOF
	}
	copy(p, m[off:])
	return nil
}
