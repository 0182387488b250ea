package inspect

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"strings"
	"testing"

	"xenkeep/internal/disk/disktest"
)

// sparse is a disk of zeros with some other bytes in it. It counts the bytes
// read, and fails a read after more than limit bytes, so that an inspection
// without bounds ends the test and does not exhaust the machine.
type sparse struct {
	size, read, limit int64
	parts             map[int64][]byte // by offset, without overlaps
}

func (s *sparse) Size() int64 { return s.size }

var errUnbounded = errors.New("more is read than an inspection may read")

func (s *sparse) ReadAt(_ context.Context, p []byte, off int64) error {
	if off < 0 || off+int64(len(p)) > s.size {
		return io.ErrUnexpectedEOF
	}
	if s.read += int64(len(p)); s.read > s.limit {
		return errUnbounded
	}
	clear(p)
	for at, part := range s.parts {
		if lo, hi := max(at, off), min(at+int64(len(part)), off+int64(len(p))); lo < hi {
			copy(p[lo-off:hi-off], part[lo-at:])
		}
	}
	return nil
}

// physicalVolume returns a disk whose LVM label refers to a metadata area of
// the given size at byte 4096, which contains a text of n bytes that begins
// with text.
func physicalVolume(size, area int64, text string, n int64) *sparse {
	label := make([]byte, sector)
	copy(label, "LABELONE")
	le.PutUint64(label[8:], 1)
	le.PutUint32(label[20:], 32)
	copy(label[24:], "LVM2 001")
	h := label[32:]
	copy(h, strings.Repeat("a", 32))
	le.PutUint64(h[32:], uint64(size))
	le.PutUint64(h[40:], uint64(size/2)) // data, then zeros, then metadata
	le.PutUint64(h[72:], 4096)
	le.PutUint64(h[80:], uint64(area))
	le.PutUint32(label[16:], lvmCRC(label[20:]))
	head := make([]byte, sector)
	copy(head[4:], " LVM2 x[5A%r0N*>")
	le.PutUint64(head[40:], sector)
	le.PutUint64(head[48:], uint64(n))
	le.PutUint32(head[56:], lvmCRC([]byte(text)))
	le.PutUint32(head, lvmCRC(head[4:]))
	return &sparse{size: size, limit: 1 << 30, parts: map[int64][]byte{sector: label, 4096: head, 4096 + sector: []byte(text)}}
}

// loopingXFS returns an XFS without checksums whose tree of free space has
// several levels: every pointer of a level refers to the single block of the
// next level, and the last level contains leaf.
func loopingXFS(levels int, leaf []byte) *sparse {
	const block = 4096
	super := make([]byte, sector)
	copy(super, "XFSB")
	be.PutUint32(super[4:], block)
	be.PutUint64(super[8:], 1<<16)
	be.PutUint32(super[84:], 1<<16)
	be.PutUint32(super[88:], 1)
	be.PutUint16(super[100:], 4)
	be.PutUint16(super[102:], sector)
	agf, agi := make([]byte, sector), make([]byte, sector)
	copy(agf, "XAGF")
	copy(agi, "XAGI")
	be.PutUint32(agf[16:], 8)
	be.PutUint32(agf[28:], uint32(levels))
	s := &sparse{size: block << 16, limit: 1 << 30, parts: map[int64][]byte{0: super, sector: agf, 2 * sector: agi}}
	for i := range levels {
		p := make([]byte, block)
		copy(p, "ABTB")
		be.PutUint16(p[4:], uint16(levels-1-i))
		const most = (block - 16) / 12
		if i == levels-1 {
			be.PutUint16(p[6:], uint16(len(leaf)/8))
			copy(p[16:], leaf)
		} else {
			be.PutUint16(p[6:], most)
			for j := range most {
				be.PutUint32(p[16+8*most+4*j:], uint32(8+i+1))
			}
		}
		s.parts[int64(8+i)*block] = p
	}
	return s
}

// manyGroups returns an XFS that claims to have group after group of 64 small
// blocks over 16 TiB.
func manyGroups() *sparse {
	s := loopingXFS(1, nil)
	s.size = 16 << 40
	super := s.parts[0]
	be.PutUint32(super[4:], 512)
	be.PutUint64(super[8:], uint64(s.size/512))
	be.PutUint32(super[84:], 64)
	be.PutUint32(super[88:], uint32(s.size/512/64))
	s.limit = 17 << 30 // the budget is 64 MiB and 1/1024 of 16 TiB
	return s
}

// hugeGPT returns a disk whose partition table states the greatest number of
// entries of the greatest size.
func hugeGPT() *sparse {
	h := make([]byte, sector)
	copy(h, "EFI PART")
	le.PutUint32(h[12:], 92)
	le.PutUint64(h[24:], 1)
	le.PutUint64(h[32:], 100)
	le.PutUint64(h[72:], 2)
	le.PutUint32(h[80:], 0xffffffff)
	le.PutUint32(h[84:], 0xffffffff)
	le.PutUint32(h[16:], crc32.ChecksumIEEE(h[:92]))
	return &sparse{size: 1 << 30, limit: 1 << 30, parts: map[int64][]byte{sector: h}}
}

// A guest writes the bytes that are inspected here: its disk must neither cost
// unbounded memory or time, nor end the program.
func TestHostileDisks(t *testing.T) {
	group := "vg {\nid = \"x\"\nseqno = 1\nextent_size = 8192\n"
	for name, c := range map[string]struct {
		disk *sparse
		want string // in the findings
	}{
		"an LVM text of 5 GiB":                {physicalVolume(8<<30, 6<<30, "vg", 5<<30), "metadata of 5368709120 bytes is too large"},
		"lists nested 8 million times":        {metadata("a=" + strings.Repeat("[", 8<<20)), "nested too deeply"},
		"sections nested 1 million times":     {metadata(strings.Repeat("a{", 1<<20)), "nested too deeply"},
		"4 million names":                     {metadata(strings.Repeat("a=1\n", 4<<20-1)), "too many values"},
		"a list of 8 million numbers":         {metadata("a=[" + strings.Repeat("1,", 8<<20-8) + "]"), "too many values"},
		"an area that starts before its disk": {metadata(group + `physical_volumes { pv0 { id = "x" pe_start = -99999 } } }`), "cannot be read"},
		"a GPT of 2^64 bytes":                 {hugeGPT(), "its table of partitions has no place on the disk"},
		"XFS groups without end":              {manyGroups(), "inspection stopped: its structures ask for more than 16448 MiB"},
	} {
		t.Run(name, func(t *testing.T) {
			rep, err := Disks(t.Context(), []Disk{{Name: "xvda", Reader: c.disk}})
			if err != nil {
				t.Fatal(err)
			}
			if s := fmt.Sprint(rep.Findings); !strings.Contains(s, c.want) {
				t.Errorf("no %q in %.500s", c.want, s)
			}
		})
	}
}

func metadata(s string) *sparse {
	return physicalVolume(64<<20, 32<<20, s, int64(len(s)))
}

// The walk of a tree of free space whose pointers form a cycle ends.
func TestLoopingTree(t *testing.T) {
	one := make([]byte, 8)
	be.PutUint32(one, 100)
	be.PutUint32(one[4:], 1)
	for name, leaf := range map[string][]byte{"empty leaf": nil, "one record": one} {
		for _, levels := range []int{2, 9} {
			d := loopingXFS(levels, leaf)
			rep, err := Disks(t.Context(), []Disk{{Name: "xvda", Reader: d}})
			if err != nil || len(rep.Volumes) != 1 || rep.Volumes[0].FS != "xfs" {
				t.Fatalf("%s: %v, %v", name, rep, err)
			}
			d.read, d.limit = 0, 1<<20
			_, known, err := rep.Volumes[0].Free(t.Context())
			if err == nil || known || errors.Is(err, errUnbounded) {
				t.Errorf("%s, %d levels: known %v, %v", name, levels, known, err)
			}
		}
	}
}

// Disks of one VM share the limits: the inspection of ten thousand partitions
// of a few bytes, each over the whole disk, reads no more than that of a few
// regular ones.
func TestSharedBudget(t *testing.T) {
	all := newBudget(nil, 100, 0, 1)
	for i := range 3 {
		one := newBudget(all, 60, 0, 1)
		err := one.spend(50)
		if (err == nil) != (i < 2) {
			t.Errorf("volume %d: %v", i, err)
		}
	}
	if err := newBudget(nil, 60, 0, 1).spend(61); err == nil {
		t.Error("a volume has no limit of its own")
	}
	if err := (*budget)(nil).spend(1 << 62); err != nil {
		t.Error(err)
	}
}

// A panic that the content of a volume causes ends the probe of this volume;
// any other panic is a fault of the program and is not recovered.
func TestGuard(t *testing.T) {
	var p []byte
	err := guard(func() error { _ = p[len(p)]; return nil })
	var bounded *boundError
	if !errors.As(err, &bounded) {
		t.Errorf("index out of range: %v", err)
	}
	if err := guard(func() error { return io.EOF }); !errors.Is(err, io.EOF) {
		t.Error(err)
	}
	defer func() {
		if recover() == nil {
			t.Error("a panic of another kind is hidden")
		}
	}()
	_ = guard(func() error { panic("fault") })
}

// The number of findings is bounded too, and the last one reports this.
func TestManyFindings(t *testing.T) {
	l := &look{rep: &Report{}}
	for range 2 * maxFindings {
		l.find("xvda", Bad, "x")
	}
	if n := len(l.rep.Findings); n != maxFindings+1 || l.rep.Findings[n-1].Text != "more findings are left out" {
		t.Errorf("%d findings, the last is %v", n, l.rep.Findings[n-1])
	}
}

// overlay is a disk with changed bytes over another disk. It records the
// sectors that are read, because only changes in these can have an effect.
type overlay struct {
	under   []byte
	changed map[int64]byte
	seen    map[int64]bool // sectors; nil: not recorded
	read    int64
}

func (o *overlay) Size() int64 { return int64(len(o.under)) }

func (o *overlay) ReadAt(_ context.Context, p []byte, off int64) error {
	if off < 0 || off+int64(len(p)) > int64(len(o.under)) {
		return io.ErrUnexpectedEOF
	}
	if o.read += int64(len(p)); o.read > 4<<30 {
		return errUnbounded
	}
	copy(p, o.under[off:])
	for at, b := range o.changed {
		if at >= off && at < off+int64(len(p)) {
			p[at-off] = b
		}
	}
	for s := off / sector; o.seen != nil && s <= (off+int64(len(p))-1)/sector; s++ {
		o.seen[s] = true
	}
	return nil
}

// bytes returns n bytes at off, or nil beyond the end.
func (o *overlay) bytes(off, n int64) []byte {
	if off < 0 || n < 0 || n > 1<<20 || off > int64(len(o.under))-n {
		return nil
	}
	p := make([]byte, n)
	copy(p, o.under[off:])
	for at, b := range o.changed {
		if at >= off && at < off+n {
			p[at-off] = b
		}
	}
	return p
}

func (o *overlay) set(off int64, p []byte) {
	for i, b := range p {
		o.changed[off+int64(i)] = b
	}
}

// RepairGPT corrects the checksums of the partition table at the start of a disk,
// so that its damaged content is read.
func RepairGPT(at func(off, n int64) []byte, set func(off int64, p []byte)) {
	h := at(sector, sector)
	size := int64(le.Uint32(h[12:]))
	if size < 92 || size > sector {
		size = 92
	}
	if entries := at(int64(le.Uint64(h[72:])&(1<<40-1))*sector, int64(le.Uint32(h[80:])&0xffff)*int64(le.Uint32(h[84:])&0xffff)); entries != nil {
		le.PutUint32(h[88:], crc32.ChecksumIEEE(entries))
	}
	le.PutUint32(h[16:], 0)
	le.PutUint32(h[16:], crc32.ChecksumIEEE(h[:size]))
	set(sector+16, h[16:20])
	set(sector+88, h[88:92])
}

// RepairLVM corrects the checksums of the label, the metadata area and its text
// of a physical volume.
func RepairLVM(at func(off, n int64) []byte, set func(off int64, p []byte)) {
	label := at(sector, sector)
	le.PutUint32(label[16:], lvmCRC(label[20:]))
	set(sector+16, label[16:20])
	head := at(4096, sector)
	if head == nil {
		return
	}
	if text := at(4096+int64(le.Uint64(head[40:])&(1<<30-1)), int64(le.Uint64(head[48:])&(1<<30-1))); text != nil {
		le.PutUint32(head[56:], lvmCRC(text))
	}
	le.PutUint32(head, lvmCRC(head[4:]))
	set(4096, head[:4])
	set(4096+56, head[56:60])
}

// DamageAtRandom inspects an image repeatedly with some of the relevant bytes
// changed: bits flipped, fields set to their maximum or zero, sectors copied
// over each other. Each of repairs then corrects checksums. No inspection may panic or read without bounds. The images
// have no checksums, because a wrong checksum would keep the changes from the
// rest of the code.
func DamageAtRandom(t *testing.T, image []byte, seed uint64, repairs ...func(at func(off, n int64) []byte, set func(off int64, p []byte))) {
	o := &overlay{under: image, seen: map[int64]bool{}}
	inspectAll(t, o)
	var places []int64
	for s := range o.seen {
		for at := s * sector; at < min((s+1)*sector, int64(len(image))); at++ {
			if image[at] != 0 || at%64 == 0 {
				places = append(places, at)
			}
		}
	}
	if len(places) == 0 {
		t.Fatal("nothing is read of this image")
	}
	o.seen = nil
	r := rand.New(rand.NewPCG(seed, 1))
	m := disktest.NewMeter(t)
	for i := range disktest.Moves(4000) {
		o.changed, o.read = map[int64]byte{}, 0
		for range 1 + r.IntN(4) {
			at := places[r.IntN(len(places))]
			switch r.IntN(4) {
			case 0:
				o.changed[at] = image[at] ^ 1<<r.IntN(8)
			case 1:
				for k := range int64(1) << r.IntN(4) {
					o.changed[at+k] = 0xff
				}
			case 2:
				for k := range int64(1) << r.IntN(4) {
					o.changed[at+k] = 0
				}
			default:
				from := places[r.IntN(len(places))]
				for k := range min(8, int64(len(image))-from) {
					o.changed[at+k] = image[from+k]
				}
			}
		}
		for _, repair := range repairs {
			repair(o.bytes, o.set)
		}
		m.Run(func() { inspectAll(t, o) })
		if t.Failed() {
			t.Fatalf("move %d of seed %d: %v", i, seed, o.changed)
		}
		if m.Over() {
			return
		}
	}
}

func inspectAll(t *testing.T, o *overlay) {
	t.Helper()
	rep, err := Disks(t.Context(), []Disk{{Name: "xvda", Reader: o}})
	if errors.Is(err, errUnbounded) {
		t.Error(err)
	}
	for _, f := range rep.Findings {
		if strings.Contains(f.Text, "not understood") {
			t.Error(f)
		}
	}
	for _, v := range rep.Volumes {
		_, _, err := v.Free(t.Context())
		var bounded *boundError
		if errors.Is(err, errUnbounded) || errors.As(err, &bounded) && strings.Contains(bounded.text, "not understood") {
			t.Error(v.Name, err)
		}
	}
}

// FuzzVG reads volume groups: no text makes the reader panic, and its result
// stays within the limits.
func FuzzVG(f *testing.F) {
	f.Add("vg {\nid = \"x\"\nseqno = 3\nextent_size = 8192\nphysical_volumes { pv0 { id = \"y\" pe_start = 2048 } }\n" +
		"logical_volumes { root { id = \"z\" status = [\"READ\", \"VISIBLE\"] segment_count = 1 segment1 { start_extent = 0 extent_count = 5 type = \"striped\" stripes = [\"pv0\", 0] } } } }")
	f.Add("a = [[1, 2], \"\\\"\"] # comment\n")
	f.Fuzz(func(t *testing.T, s string) {
		nodes := int64(1000)
		g, err := parseVG(s, &nodes)
		if err != nil {
			return
		}
		for _, lv := range g.lvs {
			for _, s := range lv.segments {
				if s.extents < 0 || s.extents*g.extent < 0 {
					t.Errorf("%+v", s)
				}
			}
		}
	})
}
