// Package filekind detects the kind of a file that a user names as the image of
// a disk: the disk itself, a container that this program reads, or a container
// that must be unpacked or converted first. It reads the beginning and the end
// of a file and changes nothing.
//
// The first bytes decide, together with the last sector for the two formats
// that store their signature there (fixed VHD, DMG). Bytes further inside
// belong to the guest: a disk on which a guest keeps an image file, an archive
// or an ISO is a raw disk. Each signature is longer than a boot sector could
// contain by chance: short magic numbers are matched together with the fields
// after them, and a tar by its checksum.
//
// The following begin with a signature of their own and are raw disks
// nevertheless, because the file is the disk, byte for byte: LUKS (also qemu's
// "luks" format, which has no other header), file systems and LVM without a
// partition table, and an ISO 9660 image, with or without boot code and
// partitions in its first sectors.
//
// If a guest writes an archive or a container to its disk at byte 0, the disk
// cannot be distinguished from the container. It is treated as the container,
// so that no container is ever stored as a disk; the caller may override that.
package filekind

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// Kind is the kind of a file.
type Kind string

// The kinds that this program reads.
const (
	Raw   Kind = "raw"
	ISO   Kind = "iso" // also a raw disk
	VHD   Kind = "vhd"
	QCOW2 Kind = "qcow2"
	XVA   Kind = "xva"
	// Gzip and Zstd are read if they contain an XVA.
	Gzip Kind = "gzip"
	Zstd Kind = "zstd"
)

// The kinds that it does not read.
const (
	QCOW1      Kind = "qcow"
	VHDX       Kind = "vhdx"
	VMDK       Kind = "vmdk"
	VMDKText   Kind = "vmdk descriptor"
	VMDKPiece  Kind = "vmdk piece"
	VDI        Kind = "vdi"
	QED        Kind = "qed"
	Parallels  Kind = "parallels"
	DMG        Kind = "dmg"
	WIM        Kind = "wim"
	VMA        Kind = "vma"
	OVA        Kind = "ova"
	OVF        Kind = "ovf"
	Tar        Kind = "tar"
	XZ         Kind = "xz"
	Bzip2      Kind = "bzip2"
	LZ4        Kind = "lz4"
	LZOP       Kind = "lzop"
	Zip        Kind = "zip"
	SevenZip   Kind = "7z"
	RAR        Kind = "rar"
	XOMetadata Kind = "xo metadata"
	XOAlias    Kind = "xo alias"
	JSON       Kind = "json"
)

const (
	headSize = 4096
	sector   = 512
	// isoAt is the position of the name in the first volume descriptor of ISO
	// 9660.
	isoAt = 32769
	// maxText bounds the texts that are read completely.
	maxText = 16 << 20
)

// input holds the parts of a file that were read.
type input struct {
	f    io.ReaderAt
	size int64
	name string
	head []byte // the first bytes, at most headSize
	tail []byte // the last sector; nil for a file that is shorter
	iso  []byte
}

// kind is a row of the table.
type kind struct {
	kind Kind
	name string // with its article
	is   func(*input) bool
	// make is the command that converts the file to a disk image that this
	// program reads: %[1]s is the file, %[2]s the file with its suffix replaced
	// by .raw.
	make string
	// endings are the usual suffixes of files of the kind.
	endings []string
}

// table lists all kinds. The first row that matches applies.
func table() []kind {
	convert := func(format string) string { return "qemu-img convert -p -f " + format + " -O raw %[1]s %[2]s" }
	return []kind{
		{VHD, "a VHD image", isVHD, convert("vpc"), []string{".vhd", ".avhd"}},
		{QCOW2, "a qcow2 image", isQCOW2, convert("qcow2"), []string{".qcow2"}},
		{QCOW1, "a qcow image of version 1", prefix("QFI\xfb\x00\x00\x00\x01"), convert("qcow"), []string{".qcow"}},
		{VHDX, "a VHDX image", prefix("vhdxfile"), convert("vhdx"), []string{".vhdx", ".avhdx"}},
		{VMDKPiece, "one of several files of a VMDK image", isPiece, "qemu-img convert -p -f vmdk -O raw DESCRIPTOR.vmdk %[2]s", nil},
		{VMDK, "a VMDK image", isVMDK, convert("vmdk"), []string{".vmdk"}},
		{VMDKText, "the description of a VMDK image, whose data is in other files", isDescriptor, convert("vmdk"), nil},
		{VDI, "a VDI image of VirtualBox", isVDI, convert("vdi"), []string{".vdi"}},
		{QED, "a QED image", prefix("QED\x00"), convert("qed"), []string{".qed"}},
		{Parallels, "an image of Parallels", either(prefix("WithoutFreeSpace"), prefix("WithouFreSpacExt")), convert("parallels"), []string{".hds"}},
		{DMG, "a DMG image", isDMG, convert("dmg"), []string{".dmg"}},
		{WIM, "a WIM archive", prefix("MSWIM\x00\x00\x00"), "", []string{".wim"}},
		{VMA, "an archive of Proxmox VE", prefix("VMA\x00\x00\x00\x00\x01"), "vma extract %[1]s FOLDER", []string{".vma"}},
		{XVA, "an XVA archive", isXVA, "", []string{".xva"}},
		{OVA, "an OVA archive", isOVA, "tar -xf %[1]s; qemu-img convert -p -O raw DISK.vmdk %[2]s", []string{".ova"}},
		{Tar, "a tar archive", isTar, "tar -xf %[1]s", []string{".tar"}},
		{Gzip, "a gzip file", isGzip, "gzip -dk %[1]s", []string{".gz", ".tgz"}},
		{Zstd, "a zstd file", isZstd, "zstd -d %[1]s", []string{".zst"}},
		{XZ, "an xz file", prefix("\xfd7zXZ\x00"), "xz -dk %[1]s", []string{".xz"}},
		{Bzip2, "a bzip2 file", isBzip2, "bzip2 -dk %[1]s", []string{".bz2"}},
		{LZ4, "an lz4 file", prefix("\x04\x22\x4d\x18"), "lz4 -d %[1]s", []string{".lz4"}},
		{LZOP, "an lzop file", prefix("\x89LZO\x00\r\n\x1a\n"), "lzop -d %[1]s", []string{".lzo"}},
		{Zip, "a zip archive", either(prefix("PK\x03\x04"), prefix("PK\x05\x06"), prefix("PK\x07\x08")), "unzip %[1]s", []string{".zip"}},
		{SevenZip, "a 7z archive", prefix("7z\xbc\xaf\x27\x1c"), "7z x %[1]s", []string{".7z"}},
		{RAR, "a RAR archive", prefix("Rar!\x1a\x07"), "unrar x %[1]s", []string{".rar"}},
		{OVF, "the OVF description of a VM, whose disks are in other files", isOVF, "qemu-img convert -p -O raw DISK.vmdk %[2]s", []string{".ovf"}},
		{XOAlias, "an alias of Xen Orchestra, which names the folder that holds the VHD", isAlias, "", []string{".alias.vhd"}},
		{XOMetadata, "Xen Orchestra's description of a backup, whose data is in other files", isXOMetadata, "", nil},
		{JSON, "a JSON text", isJSON, "", []string{".json"}},
		{ISO, "an ISO 9660 image", isISO, "", nil},
	}
}

// Of detects the kind of a file of size bytes. Its name matters only if the
// content is ambiguous: for the pieces of a VMDK and for Xen Orchestra's
// aliases.
func Of(f io.ReaderAt, size int64, name string) (Kind, error) {
	in := &input{f: f, size: size, name: strings.ToLower(filepath.Base(name))}
	for _, part := range []struct {
		p     *[]byte
		at, n int64
	}{{&in.head, 0, min(headSize, size)}, {&in.tail, size - sector, sector}, {&in.iso, isoAt, 5}} {
		if part.at < 0 || part.at+part.n > size {
			continue
		}
		*part.p = make([]byte, part.n)
		if _, err := f.ReadAt(*part.p, part.at); err != nil && !errors.Is(err, io.EOF) {
			return "", err
		}
	}
	for _, k := range table() {
		if k.is(in) {
			return k.kind, nil
		}
	}
	return Raw, nil
}

// IsDisk reports whether a file of the kind holds a disk byte for byte.
func (k Kind) IsDisk() bool { return k == Raw || k == ISO }

// Name returns the kind in words, with its article.
func (k Kind) Name() string {
	for _, row := range table() {
		if row.kind == k {
			return row.name
		}
	}
	return "a raw disk"
}

// Convert returns the command that converts a file of the kind to one that can
// be imported; it is empty if there is none.
func (k Kind) Convert(file string) string {
	for _, row := range table() {
		if row.kind == k && row.make != "" {
			stem := strings.TrimSuffix(file, filepath.Ext(file))
			return fmt.Sprintf(row.make, Quote(file), Quote(stem+".raw"))
		}
	}
	return ""
}

// Named returns the kind that a file's name suggests, or Raw if it suggests
// none.
func Named(file string) Kind {
	name := strings.ToLower(filepath.Base(file))
	if strings.HasSuffix(name, "-flat.vmdk") {
		return Raw // the whole disk, byte for byte
	}
	found, longest := Raw, 0
	for _, row := range table() {
		for _, e := range row.endings {
			if strings.HasSuffix(name, e) && len(e) > longest {
				found, longest = row.kind, len(e)
			}
		}
	}
	return found
}

// Quote returns s quoted as one word for a shell.
func Quote(s string) string {
	if s != "" && strings.IndexFunc(s, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("._-/+=:,@%", r))
	}) < 0 {
		if s[0] != '-' {
			return s
		}
		return "./" + s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

func prefix(mark string) func(*input) bool {
	return func(in *input) bool { return bytes.HasPrefix(in.head, []byte(mark)) }
}

func either(of ...func(*input) bool) func(*input) bool {
	return func(in *input) bool {
		for _, is := range of {
			if is(in) {
				return true
			}
		}
		return false
	}
}

// isVHD looks for the footer at the end, which every VHD has, and for its copy
// at the start, which remains in a truncated VHD.
func isVHD(in *input) bool {
	return bytes.HasPrefix(in.head, []byte("conectix")) || bytes.HasPrefix(in.tail, []byte("conectix"))
}

func isQCOW2(in *input) bool {
	if !bytes.HasPrefix(in.head, []byte("QFI\xfb")) {
		return false
	}
	return len(in.head) < 8 || binary.BigEndian.Uint32(in.head[4:]) != 1
}

func isDMG(in *input) bool { return bytes.HasPrefix(in.tail, []byte("koly\x00\x00\x00\x04")) }

// isVMDK recognizes sparse extents: of hosted products, of ESX, and of its
// snapshots (SEsparse).
func isVMDK(in *input) bool {
	if len(in.head) < 16 {
		return false
	}
	version := binary.LittleEndian.Uint32(in.head[4:])
	switch {
	case string(in.head[:4]) == "KDMV", string(in.head[:4]) == "COWD":
		return version >= 1 && version <= 8
	}
	return binary.LittleEndian.Uint64(in.head) == 0xcafebabe && binary.LittleEndian.Uint64(in.head[8:]) == 0x200000001
}

var (
	descriptor = regexp.MustCompile(`(?im)^\s*createType\s*=`)
	pieceName  = regexp.MustCompile(`-([fs]\d{3}|delta|sesparse)\.vmdk$`)
)

func isDescriptor(in *input) bool {
	text := bytes.TrimLeft(bytes.TrimPrefix(in.head, []byte("\xef\xbb\xbf")), " \t\r\n")
	if len(text) > 64 && bytes.HasPrefix(bytes.ToLower(text), []byte("# disk descriptorfile")) {
		return true
	}
	return in.size <= 1<<20 && !bytes.Contains(bytes.TrimRight(in.head, "\x00"), []byte{0}) && descriptor.Match(in.head)
}

// isPiece decides by the name: a flat piece has no signature, and a sparse one,
// like the changes since a snapshot, looks like a whole image.
func isPiece(in *input) bool { return pieceName.MatchString(in.name) }

// isVDI recognizes 64 bytes of free text, the signature, and the version 1.1 or
// 0.1.
func isVDI(in *input) bool {
	if len(in.head) < 72 || binary.LittleEndian.Uint32(in.head[64:]) != 0xbeda107f {
		return false
	}
	version := binary.LittleEndian.Uint32(in.head[68:])
	return version == 0x00010001 || version == 0x00000001
}

// isGzip requires the only defined method and no reserved flag (RFC 1952).
func isGzip(in *input) bool {
	return len(in.head) >= 4 && bytes.HasPrefix(in.head, []byte("\x1f\x8b\x08")) && in.head[3]&0xe0 == 0
}

// isZstd recognizes frames and skippable frames, with which files of pzstd
// begin (RFC 8878).
func isZstd(in *input) bool {
	if len(in.head) < 8 {
		return false
	}
	magic := binary.LittleEndian.Uint32(in.head)
	return magic == 0xfd2fb528 || magic&^0xf == 0x184d2a50
}

func isBzip2(in *input) bool {
	h := in.head
	return len(h) >= 10 && string(h[:3]) == "BZh" && h[3] >= '1' && h[3] <= '9' &&
		(string(h[4:10]) == "1AY&SY" || string(h[4:10]) == "\x17\x72\x45\x38\x50\x90")
}

// tarName returns the name of a tar's first member; ok reports whether the file
// is a tar, by the checksum of its first header.
func tarName(in *input) (name string, ok bool) {
	if len(in.head) < 512 {
		return "", false
	}
	h := in.head[:512]
	said, err := strconv.ParseInt(strings.Trim(string(h[148:156]), " \x00"), 8, 64)
	if err != nil || h[0] == 0 {
		return "", false
	}
	sum := int64(8 * ' ')
	for i, c := range h {
		if i < 148 || i >= 156 {
			sum += int64(c)
		}
	}
	name, _, _ = strings.Cut(string(h[:100]), "\x00")
	return name, sum == said
}

func isXVA(in *input) bool {
	name, ok := tarName(in)
	return ok && strings.TrimPrefix(name, "./") == "ova.xml" || bytes.HasPrefix(in.head, []byte("ova.xml\x00"))
}

func isOVA(in *input) bool {
	name, ok := tarName(in)
	return ok && strings.HasSuffix(strings.ToLower(name), ".ovf")
}

func isTar(in *input) bool {
	_, ok := tarName(in)
	return ok
}

func isOVF(in *input) bool {
	text := bytes.TrimLeft(bytes.TrimPrefix(in.head, []byte("\xef\xbb\xbf")), " \t\r\n")
	return bytes.HasPrefix(text, []byte("<?xml")) && bytes.Contains(text, []byte("Envelope"))
}

// isAlias recognizes a line that names a VHD file.
func isAlias(in *input) bool {
	if in.size == 0 || in.size >= headSize {
		return false
	}
	text := strings.TrimSpace(string(in.head))
	return strings.HasSuffix(text, ".vhd") && strings.IndexFunc(text, func(r rune) bool { return r < ' ' || r == 0xfffd }) < 0
}

func isJSON(in *input) bool {
	_, ok := object(in)
	return ok
}

// isXOMetadata recognizes the metadata file of a Xen Orchestra backup: it names
// the VHD files or the XVA that hold the data.
func isXOMetadata(in *input) bool {
	m, ok := object(in)
	if !ok {
		return false
	}
	for _, key := range []string{"vhds", "xva", "vmSnapshot", "scheduleId"} {
		if _, ok := m[key]; ok {
			return true
		}
	}
	return false
}

// object parses a file that consists of one JSON object.
func object(in *input) (map[string]json.RawMessage, bool) {
	if text := bytes.TrimLeft(in.head, " \t\r\n"); in.size > maxText || len(text) == 0 || text[0] != '{' {
		return nil, false
	}
	p := make([]byte, in.size)
	if _, err := in.f.ReadAt(p, 0); err != nil && !errors.Is(err, io.EOF) {
		return nil, false
	}
	var m map[string]json.RawMessage
	return m, json.Unmarshal(p, &m) == nil
}

// isISO recognizes an image without a boot sector at its start. With a boot
// sector it is a raw disk, as on a USB stick.
func isISO(in *input) bool {
	return string(in.iso) == "CD001" && !(len(in.head) >= sector && in.head[510] == 0x55 && in.head[511] == 0xaa)
}
