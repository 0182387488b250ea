// Package inspect reports the content of a disk: partition tables, LVM, and
// file systems, by their own magic numbers, sizes and checksums. It reports
// which of them exist, which are inconsistent, and which bytes a file system
// marks as free. It only reads, a small part of each disk, and never repairs.
//
// The level Bad means damage: a structure existed and is broken. Unknown
// content is not damage. A snapshot of a running VM has the state after a power
// failure; if a journal will repair a state, the finding is a note.
//
// Sources: UEFI specification 2.10 section 5 (GPT); Documentation/filesystems/
// ext4, fs/xfs/libxfs/xfs_format.h and fs/btrfs of Linux; libfsntfs
// documentation (NTFS); Microsoft FAT specification 1.03; lib/format_text of
// LVM2.
package inspect

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"xenkeep/internal/disk"
)

// Level is the severity of a finding.
type Level string

// The levels, from good to bad.
const (
	OK   Level = "ok"
	Note Level = "note"
	Bad  Level = "bad"
)

// Finding is the result of one check.
type Finding struct {
	Where string // "xvda", "xvda1", "vg/root"
	Level Level
	Text  string
}

// Disk is one disk to inspect.
type Disk struct {
	Name string // "xvda"
	disk.Reader
}

// Volume is a partition, a logical volume, or a whole disk without a partition
// table.
type Volume struct {
	Name   string // "xvda1", "vg/root", "xvda"
	Number int    // of a partition; 0 for others
	Kind   string // "partition", "logical volume", "disk"
	Type   string // as in the partition table: "Linux filesystem"
	Runs   []Run  // the positions of its bytes, in their order
	FS     string // "ext4", "xfs", "ntfs", "vfat", "btrfs", "swap", "lvm", "luks" ...; "" unknown
	Label  string
	UUID   string
	// Reader reads the volume.
	Reader disk.Reader

	budget *budget // bounds the bytes that probes read; nil: unbounded
	free   func(ctx context.Context, v *Volume) ([]disk.Extent, error)
}

// Run is a contiguous part of a disk.
type Run struct {
	Disk   int // index into the disks passed to Disks
	Offset int64
	Length int64
}

// Size returns the volume's size in bytes.
func (v *Volume) Size() int64 { return v.Reader.Size() }

// Report holds the results of an inspection of some disks.
type Report struct {
	Tables   []string // for each disk: "gpt", "mbr", or "" without one
	Volumes  []*Volume
	Findings []Finding
}

// Bad returns the number of findings of damage.
func (r *Report) Bad() int {
	n := 0
	for _, f := range r.Findings {
		if f.Level == Bad {
			n++
		}
	}
	return n
}

// look is an inspection in progress.
type look struct {
	ctx    context.Context
	rep    *Report
	pvs    []*physical
	budget *budget // of all volumes together
	lvm    lvmLimits
}

// maxFindings bounds the findings of one inspection, because a hostile disk can
// contain any number of inconsistencies.
const maxFindings = 4096

func (l *look) find(where string, level Level, format string, args ...any) {
	switch n := len(l.rep.Findings); {
	case n == maxFindings:
		where, level, format, args = "", Note, "more findings are left out", nil
	case n > maxFindings:
		return
	}
	l.rep.Findings = append(l.rep.Findings, Finding{where, level, fmt.Sprintf(format, args...)})
}

// Disks inspects the disks of one VM, whose volume groups may span several
// disks. The error is a read error; everything else is reported as a finding.
func Disks(ctx context.Context, disks []Disk) (*Report, error) {
	total := int64(0)
	for _, d := range disks {
		total += d.Size()
	}
	l := &look{ctx: ctx, rep: &Report{}, budget: newBudget(nil, 4*minBudget, total, 256), lvm: lvmLimits{text: 4 * maxText, nodes: maxNodes, runs: maxRuns}}
	for i, d := range disks {
		if err := l.disk(i, d); err != nil {
			return l.rep, fmt.Errorf("%s: %w", d.Name, err)
		}
	}
	if err := l.groups(disks); err != nil {
		return l.rep, err
	}
	return l.rep, nil
}

// disk finds a disk's partitions and inspects each of them.
func (l *look) disk(index int, d Disk) error {
	whole := &Volume{Name: d.Name, Kind: "disk", Reader: d.Reader, Runs: []Run{{index, 0, d.Size()}}}
	if d.Size() < 1024 {
		l.rep.Tables = append(l.rep.Tables, "")
		l.find(d.Name, Note, "%d bytes: too small to hold anything", d.Size())
		l.rep.Volumes = append(l.rep.Volumes, whole)
		return nil
	}
	var table string
	var parts []partition
	err := guard(func() (err error) {
		table, parts, err = l.partitions(d)
		return err
	})
	var bounded *boundError
	if errors.As(err, &bounded) {
		l.find(d.Name, Note, "the partition table is not read: %v", bounded)
		table, parts, err = "", nil, nil
	}
	if err != nil {
		return err
	}
	l.rep.Tables = append(l.rep.Tables, table)
	if table == "" {
		l.rep.Volumes = append(l.rep.Volumes, whole)
		return l.content(whole)
	}
	for _, p := range parts {
		v := &Volume{
			Name: partitionName(d.Name, p.number), Number: p.number, Kind: "partition", Type: p.kind,
			Reader: &section{d.Reader, p.offset, p.length}, Runs: []Run{{index, p.offset, p.length}},
		}
		l.rep.Volumes = append(l.rep.Volumes, v)
		if err := l.content(v); err != nil {
			return err
		}
	}
	return nil
}

// partitionName returns Linux's name of a partition: xvda1, or nvme0n1p1 after
// a name that ends with a digit.
func partitionName(name string, n int) string {
	if last := name[max(0, len(name)-1):]; last >= "0" && last <= "9" {
		return fmt.Sprintf("%sp%d", name, n)
	}
	return fmt.Sprintf("%s%d", name, n)
}

// content detects and verifies the content of a volume.
func (l *look) content(v *Volume) error {
	if v.Size() < 512 {
		return nil
	}
	v.budget = newBudget(l.budget, minBudget, v.Size(), 1024)
	defer func() { v.budget = nil }()
	err := guard(func() error { return l.probe(v) })
	var bounded *boundError
	if errors.As(err, &bounded) {
		l.find(v.Name, Note, "inspection stopped: %v", bounded)
		return nil
	}
	return err
}

// probe tries every kind of content.
func (l *look) probe(v *Volume) error {
	for _, probe := range []func(*look, *Volume) (bool, error){
		probeLVM, probeXFS, probeExt, probeBtrfs, probeLUKS, probeNTFS, probeFAT, probeSwap, probeRAID,
		// These come last, because remains of an older file system can be found
		// on a volume that holds a sound newer one.
		brokenExt, brokenXFS, brokenNTFS, brokenFAT, brokenBtrfs, brokenLVM,
	} {
		if known, err := probe(l, v); known || err != nil {
			return err
		}
	}
	p := make([]byte, min(v.Size(), 64<<10))
	if err := v.read(l.ctx, p, 0); err != nil {
		return err
	}
	switch {
	case v.Type == typeBIOSBoot || v.Type == typeReserved:
		l.find(v.Name, OK, "%s, without a file system", v.Type)
	case allZero(p):
		l.find(v.Name, Note, "empty, as far as its beginning shows")
	default:
		l.find(v.Name, Note, "content unknown here")
	}
	return nil
}

func (v *Volume) read(ctx context.Context, p []byte, off int64) error {
	if err := v.budget.spend(int64(len(p))); err != nil {
		return err
	}
	return v.Reader.ReadAt(ctx, p, off)
}

// has reports whether bytes [off, off+n) are in the volume.
func (v *Volume) has(off, n int64) bool { return off >= 0 && n >= 0 && off <= v.Size()-n }

// at reads n bytes; it returns nil if the volume is shorter.
func (v *Volume) at(ctx context.Context, off, n int64) ([]byte, error) {
	if !v.has(off, n) {
		return nil, nil
	}
	p := make([]byte, n)
	return p, v.read(ctx, p, off)
}

// Free returns the byte ranges of the volume that its file system marks as
// free, in order; known is false if this package does not read the file
// system's maps (btrfs, swap, LUKS ...), or if they contain too many ranges.
func (v *Volume) Free(ctx context.Context) (free []disk.Extent, known bool, err error) {
	if v.free == nil {
		return nil, false, nil
	}
	bounded := *v
	bounded.budget = newBudget(nil, minBudget, v.Size(), 512)
	err = guard(func() (err error) {
		free, err = v.free(ctx, &bounded)
		return err
	})
	if len(free) >= maxFree {
		return nil, false, err
	}
	return free, err == nil, err
}

// maxFree is the maximum number of free ranges, which need 32 MiB: for a file
// system with more, the free ranges count as unknown.
const maxFree = 2 << 20

// section is a part of a disk.
type section struct {
	r      disk.Reader
	off, n int64
}

func (s *section) Size() int64 { return s.n }

func (s *section) ReadAt(ctx context.Context, p []byte, off int64) error {
	if off < 0 || off+int64(len(p)) > s.n {
		return fmt.Errorf("bytes %d to %d of %d", off, off+int64(len(p)), s.n)
	}
	return s.r.ReadAt(ctx, p, s.off+off)
}

// joined is the concatenation of parts of disks.
type joined struct {
	disks  []Disk
	runs   []Run
	starts []int64 // starts[i] is the offset of runs[i] in the volume
	size   int64
}

func (j *joined) add(r Run) {
	j.runs, j.starts = append(j.runs, r), append(j.starts, j.size)
	j.size += r.Length
}

func (j *joined) Size() int64 { return j.size }

func (j *joined) ReadAt(ctx context.Context, p []byte, off int64) error {
	if off < 0 || off+int64(len(p)) > j.size {
		return fmt.Errorf("bytes %d to %d of %d", off, off+int64(len(p)), j.size)
	}
	// The last run that begins at or before off contains off.
	i, _ := slices.BinarySearch(j.starts, off+1)
	for i--; len(p) > 0; i++ {
		r, skip := j.runs[i], off-j.starts[i]
		n := min(int64(len(p)), r.Length-skip)
		if err := j.disks[r.Disk].ReadAt(ctx, p[:n], r.Offset+skip); err != nil {
			return err
		}
		p, off = p[n:], off+n
	}
	return nil
}

func allZero(p []byte) bool {
	for _, b := range p {
		if b != 0 {
			return false
		}
	}
	return true
}

// freeList collects free ranges, which are added in order, and joins adjacent
// ones.
type freeList []disk.Extent

func (f *freeList) add(off, n int64) {
	if n <= 0 {
		return
	}
	if last := len(*f) - 1; last >= 0 && (*f)[last].End() == off {
		(*f)[last].Length += n
		return
	}
	if len(*f) < maxFree {
		*f = append(*f, disk.Extent{Offset: off, Length: n})
	}
}

var le, be = binary.LittleEndian, binary.BigEndian

func uuidText(p []byte) string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", p[0:4], p[4:6], p[6:8], p[8:10], p[10:16])
}

// text returns the text of p up to the terminating zero of a C string.
func text(p []byte) string {
	for i, c := range p {
		if c == 0 {
			return string(p[:i])
		}
	}
	return string(p)
}
