package filekind_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"xenkeep/filekind"
)

const size = 4 << 20

// disk writes a raw disk with a boot sector.
func disk(t *testing.T, dir string) string {
	t.Helper()
	p := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(p[:size/2])
	p[510], p[511] = 0x55, 0xaa
	return write(t, filepath.Join(dir, "b.raw"), p)
}

func write(t *testing.T, name string, p []byte) string {
	t.Helper()
	if err := os.WriteFile(name, p, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func of(t *testing.T, file string) filekind.Kind {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	k, err := filekind.Of(f, st.Size(), file)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// run runs a tool in a folder, and skips the test if the tool is missing.
func run(t *testing.T, dir, tool string, args ...string) {
	t.Helper()
	path, err := exec.LookPath(tool)
	if err != nil {
		t.Skipf("SKIP: no %s", tool)
	}
	cmd := exec.Command(path, args...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v: %s", tool, args, err, out)
	}
}

// Rows C1 and C2 of the fault list: files of other tools are recognised, and
// only a disk is treated as a disk.
func TestFilesOfOtherTools(t *testing.T) {
	for _, c := range []struct {
		name string
		tool string // a command line, with "b.raw" as its input
		file string
		want filekind.Kind
	}{
		{"vmdk sparse", "qemu-img convert -f raw -O vmdk -o subformat=monolithicSparse b.raw a.vmdk", "a.vmdk", filekind.VMDK},
		{"vmdk stream", "qemu-img convert -f raw -O vmdk -o subformat=streamOptimized b.raw a.vmdk", "a.vmdk", filekind.VMDK},
		{"vmdk flat", "qemu-img convert -f raw -O vmdk -o subformat=monolithicFlat b.raw a.vmdk", "a.vmdk", filekind.VMDKText},
		{"vmdk flat extent", "qemu-img convert -f raw -O vmdk -o subformat=monolithicFlat b.raw a.vmdk", "a-flat.vmdk", filekind.Raw},
		{"vmdk flat pieces", "qemu-img convert -f raw -O vmdk -o subformat=twoGbMaxExtentFlat b.raw a.vmdk", "a.vmdk", filekind.VMDKText},
		{"vmdk flat piece", "qemu-img convert -f raw -O vmdk -o subformat=twoGbMaxExtentFlat b.raw a.vmdk", "a-f001.vmdk", filekind.VMDKPiece},
		{"vmdk sparse pieces", "qemu-img convert -f raw -O vmdk -o subformat=twoGbMaxExtentSparse b.raw a.vmdk", "a.vmdk", filekind.VMDKText},
		{"vmdk sparse piece", "qemu-img convert -f raw -O vmdk -o subformat=twoGbMaxExtentSparse b.raw a.vmdk", "a-s001.vmdk", filekind.VMDKPiece},
		{"vdi", "qemu-img convert -f raw -O vdi b.raw a", "a", filekind.VDI},
		{"vhdx", "qemu-img convert -f raw -O vhdx b.raw a", "a", filekind.VHDX},
		{"vhd", "qemu-img convert -f raw -O vpc b.raw a", "a", filekind.VHD},
		{"vhd fixed", "qemu-img convert -f raw -O vpc -o subformat=fixed b.raw a", "a", filekind.VHD},
		{"qed", "qemu-img convert -f raw -O qed b.raw a", "a", filekind.QED},
		{"parallels", "qemu-img convert -f raw -O parallels b.raw a", "a", filekind.Parallels},
		{"qcow", "qemu-img convert -f raw -O qcow b.raw a", "a", filekind.QCOW1},
		{"qcow2", "qemu-img convert -f raw -O qcow2 b.raw a", "a", filekind.QCOW2},
		{"qcow2 old", "qemu-img convert -f raw -O qcow2 -o compat=0.10 b.raw a", "a", filekind.QCOW2},
		{"luks", "qemu-img convert --object secret,id=s,data=x -f raw -O luks -o key-secret=s,iter-time=10 b.raw a", "a", filekind.Raw},
		{"raw", "cp b.raw a", "a", filekind.Raw},
		{"gzip", "gzip -k b.raw", "b.raw.gz", filekind.Gzip},
		{"xz", "xz -k b.raw", "b.raw.xz", filekind.XZ},
		{"bzip2", "bzip2 -k b.raw", "b.raw.bz2", filekind.Bzip2},
		{"bzip2 of nothing", "bzip2 -k none", "none.bz2", filekind.Bzip2},
		{"zstd", "zstd -q b.raw", "b.raw.zst", filekind.Zstd},
		{"lz4", "lz4 -q b.raw a", "a", filekind.LZ4},
		{"zip", "zip -q a.zip b.raw", "a.zip", filekind.Zip},
		{"zip from a pipe", "zip -q -fd a.zip b.raw", "a.zip", filekind.Zip},
		{"tar", "tar -cf a b.raw", "a", filekind.Tar},
		{"tar ustar", "tar -c --format=ustar -f a b.raw", "a", filekind.Tar},
		{"tar v7", "tar -c --format=v7 -f a b.raw", "a", filekind.Tar},
		{"tar pax", "tar -c --format=pax -f a b.raw", "a", filekind.Tar},
		{"ova", "tar -cf a vm.ovf b.raw", "a", filekind.OVA},
		{"xva", "tar -cf a ova.xml b.raw", "a", filekind.XVA},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			disk(t, dir)
			write(t, filepath.Join(dir, "none"), nil)
			write(t, filepath.Join(dir, "vm.ovf"), []byte("<?xml?>"))
			write(t, filepath.Join(dir, "ova.xml"), []byte("<?xml?>"))
			words := strings.Fields(c.tool)
			run(t, dir, words[0], words[1:]...)
			if got := of(t, filepath.Join(dir, c.file)); got != c.want {
				t.Errorf("%q, want %q", got, c.want)
			}
		})
	}
}

// The command in a refusal's message produces the disk again.
func TestConvert(t *testing.T) {
	for format, kind := range map[string]filekind.Kind{
		"vmdk": filekind.VMDK, "vdi": filekind.VDI, "vhdx": filekind.VHDX, "qed": filekind.QED, "parallels": filekind.Parallels,
		"qcow": filekind.QCOW1, "qcow2": filekind.QCOW2, "vpc": filekind.VHD,
	} {
		dir := filepath.Join(t.TempDir(), "it's a folder")
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		raw, err := os.ReadFile(disk(t, dir))
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(dir, "a disk."+format)
		run(t, dir, "qemu-img", "convert", "-f", "raw", "-O", format, filepath.Join(dir, "b.raw"), file)
		if k := of(t, file); k != kind {
			t.Fatalf("%s: %q", format, k)
		}
		run(t, dir, "sh", "-c", kind.Convert(file))
		got, err := os.ReadFile(filepath.Join(dir, "a disk.raw"))
		if err != nil || !bytes.HasPrefix(got, raw) {
			t.Errorf("%s: %s: another disk: %v", format, kind.Convert(file), err)
		}
	}
	if got := filekind.XZ.Convert("-x.xz"); got != "xz -dk ./-x.xz" {
		t.Errorf("%q", got)
	}
	if got := filekind.XVA.Convert("x.xva"); got != "" {
		t.Errorf("%q", got)
	}
}

// A disk is detected as raw whatever the guest stores on it, also if its first
// sector only resembles a container.
func TestRawDisks(t *testing.T) {
	mark := func(at int, text string) func(p []byte) { return func(p []byte) { copy(p[at:], text) } }
	boot := mark(510, "\x55\xaa")
	for name, change := range map[string][]func(p []byte){
		"empty":                          {func(p []byte) { clear(p) }},
		"qcow2 in the first partition":   {boot, mark(1<<20, "QFI\xfb\x00\x00\x00\x03")},
		"VHD inside":                     {boot, mark(1<<20, "conectix")},
		"gzip in sector 1":               {boot, mark(512, "\x1f\x8b\x08\x00")},
		"VMDK descriptor inside":         {boot, mark(4096, "# Disk DescriptorFile\nversion=1\ncreateType=\"x\"")},
		"ISO hybrid":                     {boot, mark(0, "\x33\xed\x90\x90"), mark(32769, "CD001")},
		"boot code like gzip's magic":    {boot, mark(0, "\x1f\x8b\x0e\x00")},
		"the letters of VMDK alone":      {boot, mark(0, "KDMV\xff\xff\xff\xff")},
		"the letters of bzip2 alone":     {boot, mark(0, "BZh9 is no archive")},
		"ustar without its checksum":     {boot, mark(257, "ustar\x00")},
		"XFS":                            {mark(0, "XFSB")},
		"LVM":                            {mark(512, "LABELONE")},
		"a brace":                        {mark(0, "{")},
		"VDI's signature of no version":  {boot, mark(64, "\x7f\x10\xda\xbe")},
		"koly at the end without length": {mark(size-512, "koly")},
	} {
		p := make([]byte, size)
		_, _ = rand.NewChaCha8([32]byte{2}).Read(p)
		for _, c := range change {
			c(p)
		}
		if k := of(t, write(t, filepath.Join(t.TempDir(), "x"), p)); k != filekind.Raw {
			t.Errorf("%s: %q", name, k)
		}
	}
	p := make([]byte, size)
	copy(p[32769:], "CD001")
	if k := of(t, write(t, filepath.Join(t.TempDir(), "x"), p)); k != filekind.ISO || !k.IsDisk() {
		t.Errorf("an ISO without boot code: %q", k)
	}
}

// Formats that no installed tool writes, and texts.
func TestMarks(t *testing.T) {
	var plain bytes.Buffer
	w := tar.NewWriter(&plain)
	if err := errors.Join(w.WriteHeader(&tar.Header{Name: "ova.xml", Size: 0, Format: tar.FormatUSTAR}), w.Close()); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, content string
		want          filekind.Kind
	}{
		{"7z", "7z\xbc\xaf\x27\x1c\x00\x04", filekind.SevenZip},
		{"rar", "Rar!\x1a\x07\x01\x00", filekind.RAR},
		{"wim", "MSWIM\x00\x00\x00", filekind.WIM},
		{"vma", "VMA\x00\x00\x00\x00\x01", filekind.VMA},
		{"esx", "COWD\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00", filekind.VMDK},
		{"sesparse", "\xbe\xba\xfe\xca\x00\x00\x00\x00\x01\x00\x00\x00\x02\x00\x00\x00", filekind.VMDK},
		{"x-000001-delta.vmdk", "COWD\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00", filekind.VMDKPiece},
		{"pzstd", "\x50\x2a\x4d\x18\x04\x00\x00\x00", filekind.Zstd},
		{"xva", plain.String(), filekind.XVA},
		{"descriptor.vmdk", "version=1\r\nCID=fffffffe\r\ncreateType=\"vmfs\"\r\n", filekind.VMDKText},
		{"vm.ovf", "\xef\xbb\xbf<?xml version='1.0'?>\n<ovf:Envelope>", filekind.OVF},
		{"disk.alias.vhd", "data/5a3bfd6c.vhd", filekind.XOAlias},
		{"20260101T000000Z.json", `{"jobId":"x","mode":"full","xva":"a.xva"}`, filekind.XOMetadata},
		{"package.json", ` {"name": "x"}`, filekind.JSON},
		{"broken.json", `{"name": `, filekind.Raw},
		{"a.dmg", strings.Repeat("\x00", 512) + "koly\x00\x00\x00\x04" + strings.Repeat("\x00", 504), filekind.DMG},
		{"none", "", filekind.Raw},
		{"short", "x", filekind.Raw},
	} {
		if k := of(t, write(t, filepath.Join(t.TempDir(), c.name), []byte(c.content))); k != c.want {
			t.Errorf("%s: %q, want %q", c.name, k, c.want)
		}
	}
}

func TestNamed(t *testing.T) {
	for name, want := range map[string]filekind.Kind{
		"x.raw": filekind.Raw, "x.img": filekind.Raw, "x.iso": filekind.Raw, "x": filekind.Raw, "/dev/sdb": filekind.Raw,
		"x.VHD": filekind.VHD, "x.alias.vhd": filekind.XOAlias, "x.vmdk": filekind.VMDK, "x-flat.vmdk": filekind.Raw, "x.raw.gz": filekind.Gzip,
		"a.vhdx/x.raw": filekind.Raw, "x.avhdx": filekind.VHDX,
	} {
		if got := filekind.Named(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
}

func FuzzOf(f *testing.F) {
	f.Add([]byte("QFI\xfb"), "x")
	f.Add([]byte("conectix"), "x.vhd")
	f.Add([]byte(`{"vhds":{}}`), "x.json")
	f.Fuzz(func(t *testing.T, p []byte, name string) {
		k, err := filekind.Of(bytes.NewReader(p), int64(len(p)), name)
		if err != nil || k.Name() == "" {
			t.Fatal(k, err)
		}
		_ = k.Convert(name)
		_ = filekind.Named(name)
	})
}
