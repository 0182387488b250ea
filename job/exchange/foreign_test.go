package exchange_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"xenkeep/job"
	"xenkeep/job/backup"
	"xenkeep/job/browse"
	"xenkeep/job/exchange"
	"xenkeep/job/jobtest"
	"xenkeep/job/transfer"
	"xenkeep/repo"
)

// refusedImage tries to import a file and to back it up, and returns both errors.
// Neither may store a snapshot.
func refusedImage(t *testing.T, file string, raw bool) (imported, backedUp error) {
	t.Helper()
	r := jobtest.NewRepository(t)
	sum, err := exchange.Import(t.Context(), r, []string{file}, exchange.ImportOptions{Common: job.Common{StateDir: t.TempDir()}, Raw: raw})
	if err != nil {
		if sum == nil || len(sum.Failed) != 1 {
			t.Fatalf("%v %+v", err, sum)
		}
		imported = sum.Failed[0].Err()
	}
	_, backedUp = backup.Image(t.Context(), r, backup.ImageOptions{Common: job.Common{StateDir: t.TempDir()}, File: file, Raw: raw})
	all, bad, err := r.Snapshots(t.Context())
	want := 0
	for _, err := range []error{imported, backedUp} {
		if err == nil {
			want++
		}
	}
	if err != nil || len(bad) > 0 || len(all) != want {
		t.Errorf("%s: %d snapshots, %d expected, %v", file, len(all), want, err)
	}
	return imported, backedUp
}

// Row C1 of the fault list: a container is never stored as if it were the disk in it;
// the error names it and the command that converts it. --format raw stores its bytes
// unchanged.
func TestForeignContainers(t *testing.T) {
	if _, err := exec.LookPath("qemu-img"); err != nil {
		t.Skip("SKIP: no qemu-img")
	}
	dir := t.TempDir()
	raw := jobtest.Image(t, filepath.Join(dir, "b.raw"), 6*jobtest.MiB, 5, 30)
	for _, c := range []struct {
		file, tool string
		name, hint string // of the import
		backup     string // hint of the backup; "" is that of the import
	}{
		{"a.vmdk", "qemu-img convert -f raw -O vmdk b.raw a.vmdk", "a VMDK image", "qemu-img convert -p -f vmdk -O raw", ""},
		{"f.vmdk", "qemu-img convert -f raw -O vmdk -o subformat=monolithicFlat b.raw f.vmdk", "description of a VMDK", "qemu-img convert -p -f vmdk -O raw", ""},
		{"p-s001.vmdk", "qemu-img convert -f raw -O vmdk -o subformat=twoGbMaxExtentSparse b.raw p.vmdk", "one of several files of a VMDK", "DESCRIPTOR.vmdk", ""},
		{"a.vdi", "qemu-img convert -f raw -O vdi b.raw a.vdi", "VDI image", "-f vdi -O raw", ""},
		{"a.vhdx", "qemu-img convert -f raw -O vhdx b.raw a.vhdx", "VHDX image", "-f vhdx -O raw", ""},
		{"a.qed", "qemu-img convert -f raw -O qed b.raw a.qed", "QED image", "-f qed -O raw", ""},
		{"a.hdd", "qemu-img convert -f raw -O parallels b.raw a.hdd", "Parallels", "-f parallels -O raw", ""},
		{"b.raw.xz", "xz -k -0 b.raw", "an xz file", "xz -dk", ""},
		{"b.raw.bz2", "bzip2 -k b.raw", "a bzip2 file", "bzip2 -dk", ""},
		{"b.raw.gz", "gzip -k -1 b.raw", "a gzip file", "gzip -dk", "xenkeep import"},
		{"b.raw.zst", "zstd -q b.raw", "a zstd file", "zstd -d", "xenkeep import"},
		{"a.zip", "zip -q -0 a.zip b.raw", "a zip archive", "unzip", ""},
		{"a.tar", "tar -cf a.tar b.raw", "a tar archive", "tar -xf", ""},
	} {
		t.Run(c.file, func(t *testing.T) {
			words := strings.Fields(c.tool)
			if _, err := exec.LookPath(words[0]); err != nil {
				t.Skipf("SKIP: no %s", words[0])
			}
			cmd := exec.Command(words[0], words[1:]...)
			cmd.Dir = dir
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%s: %v: %s", c.tool, err, out)
			}
			file := filepath.Join(dir, c.file)
			imported, backedUp := refusedImage(t, file, false)
			for what, err := range map[string]error{"import": imported, "backup": backedUp} {
				hint := c.hint
				if what == "backup" && c.backup != "" {
					hint = c.backup
				}
				if !errors.Is(err, transfer.ErrForeignImage) || !strings.Contains(err.Error(), file) || !strings.Contains(err.Error(), c.name) {
					t.Errorf("%s: %v, want %s", what, err, c.name)
				} else if got := job.HintOf(err); !strings.Contains(got, hint) {
					t.Errorf("%s: hint %q, want %q", what, got, hint)
				}
			}
			if imported, backedUp = refusedImage(t, file, true); imported != nil || backedUp != nil {
				t.Errorf("as a raw disk: %v, %v", imported, backedUp)
			}
		})
	}
	if imported, backedUp := refusedImage(t, raw, false); imported != nil || backedUp != nil {
		t.Errorf("the raw disk: %v, %v", imported, backedUp)
	}
}

// Row F7 of the fault list: the error of a backup of a qcow2 image or of an XVA names
// the command import.
func TestBackupImagePointsToImport(t *testing.T) {
	dir := t.TempDir()
	for name, content := range map[string]string{
		"a disk.qcow2": "QFI\xfb\x00\x00\x00\x03" + strings.Repeat("\x00", 1000),
		"vm.xva":       "ova.xml\x00" + strings.Repeat("\x00", 1000),
	} {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := backup.Image(t.Context(), jobtest.NewRepository(t), backup.ImageOptions{Common: job.Common{StateDir: t.TempDir()}, File: file})
		if !errors.Is(err, transfer.ErrForeignImage) || !strings.HasPrefix(job.HintOf(err), "xenkeep import ") {
			t.Errorf("%s: %v, hint %q", name, err, job.HintOf(err))
		}
	}
}

// Row C2 of the fault list: a VHD without its first sector, a truncated one, and a
// file with only the name of one are refused, not stored as raw disks.
func TestDamagedVHDIsNoRawDisk(t *testing.T) {
	if _, err := exec.LookPath("qemu-img"); err != nil {
		t.Skip("SKIP: no qemu-img")
	}
	dir := t.TempDir()
	raw := jobtest.Image(t, filepath.Join(dir, "b.raw"), 6*jobtest.MiB, 5, 30)
	for name, c := range map[string]struct {
		sub    string
		damage func(f *os.File, size int64) error
	}{
		"dynamic without its first sector": {"dynamic", func(f *os.File, _ int64) error { _, err := f.WriteAt(make([]byte, 512), 0); return err }},
		"dynamic, cut by its footer":       {"dynamic", func(f *os.File, size int64) error { return f.Truncate(size - 512) }},
		"dynamic, cut in a block":          {"dynamic", func(f *os.File, size int64) error { return f.Truncate(size / 2) }},
		"fixed, cut by its footer":         {"fixed", func(f *os.File, size int64) error { return f.Truncate(size - 512) }},
		"fixed, footer damaged":            {"fixed", func(f *os.File, size int64) error { _, err := f.WriteAt([]byte{1}, size-100); return err }},
		"block past the end": {"dynamic", func(f *os.File, _ int64) error {
			_, err := f.WriteAt([]byte{0x10, 0, 0, 0}, 1536) // the first entry of the BAT
			return err
		}},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(dir, strings.ReplaceAll(name, " ", "_")+".vhd")
			jobtest.RunTool(t, "qemu-img", "convert", "-f", "raw", "-O", "vpc", "-o", "force_size=on,subformat="+c.sub, raw, file)
			f, err := os.OpenFile(file, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			st, err := f.Stat()
			if err == nil {
				err = c.damage(f, st.Size())
			}
			if err := errors.Join(err, f.Close()); err != nil {
				t.Fatal(err)
			}
			imported, backedUp := refusedImage(t, file, false)
			if imported == nil || backedUp == nil || !strings.Contains(imported.Error(), file) || !strings.Contains(backedUp.Error(), file) {
				t.Errorf("import: %v; backup: %v", imported, backedUp)
			}
		})
	}
}

// Row C1 of the fault list: Xen Orchestra's own files are refused by their names.
func TestXenOrchestraFiles(t *testing.T) {
	dir := t.TempDir()
	alias := filepath.Join(dir, "20260101T000000Z.alias.vhd")
	meta := filepath.Join(dir, "20260101T000000Z.json")
	folder := filepath.Join(dir, "5a3bfd6c.vhd")
	for name, content := range map[string]string{
		alias: "data/5a3bfd6c.vhd", meta: `{"jobId":"1","mode":"delta","vhds":{"OpaqueRef:1":"vdis/1/2/20260101T000000Z.vhd"}}`,
		filepath.Join(folder, "header"): "cxsparse", filepath.Join(folder, "footer"): "conectix", filepath.Join(folder, "bat"): "", filepath.Join(folder, "blocks", "0", "0"): "",
	} {
		if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o700), os.WriteFile(name, []byte(content), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	for _, file := range []string{alias, meta, folder} {
		imported, backedUp := refusedImage(t, file, false)
		if !errors.Is(imported, transfer.ErrForeignImage) || !strings.Contains(imported.Error(), "Xen Orchestra") || job.HintOf(imported) == "" || backedUp == nil {
			t.Errorf("%s: import: %v; backup: %v", file, imported, backedUp)
		}
	}
}

// Row C1 of the fault list: verify names a container that an older version stored as
// if it were the disk. It does not report damage if the user declared the file to be
// raw.
func TestVerifyNamesContainers(t *testing.T) {
	if _, err := exec.LookPath("qemu-img"); err != nil {
		t.Skip("SKIP: no qemu-img")
	}
	dir := t.TempDir()
	raw := jobtest.Image(t, filepath.Join(dir, "b.raw"), 6*jobtest.MiB, 5, 30)
	file := filepath.Join(dir, "a.vdi")
	jobtest.RunTool(t, "qemu-img", "convert", "-f", "raw", "-O", "vdi", raw, file)
	r := jobtest.NewRepository(t)
	if _, err := backup.Image(t.Context(), r, backup.ImageOptions{Common: job.Common{StateDir: t.TempDir()}, File: file, Raw: true}); err != nil {
		t.Fatal(err)
	}
	all, _, err := r.Snapshots(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		reason, origin string
		bad            int
	}{{all[0].Disks[0].Reason, "image", 0}, {"image file", "image", 1}, {"read in full", "pool", 0}} {
		s := *all[0]
		s.Origin, s.Disks = c.origin, append([]repo.Disk(nil), s.Disks...)
		s.Disks[0].Reason = c.reason
		v, err := browse.Verify(t.Context(), r, &s, "")
		if err != nil || v.Bad != c.bad || !strings.Contains(v.Findings[len(v.Findings)-1].Text, "a VDI image") {
			t.Errorf("%+v: %+v, %v", c, v, err)
		}
	}
}
