package inspect

import (
	"cmp"
	"errors"
	"fmt"
	"hash/crc32"
	"maps"
	"slices"
	"strings"
)

// physical is a physical volume of LVM.
type physical struct {
	v    *Volume
	uuid string // without dashes
	text string // of the newest valid metadata; "" if there is none
}

// The limits of one inspection of LVM's metadata, over all its disks. A node is
// a name with its value; a logical volume of one segment has about 25.
const (
	maxText  = 16 << 20 // bytes of one metadata text
	maxNodes = 500_000
	maxDepth = 16 // sections and lists inside each other
	maxRuns  = 1 << 20
)

// lvmLimits holds the remaining parts of these limits.
type lvmLimits struct{ text, nodes, runs int64 }

// lvmCRC computes the CRC-32 of LVM2 (lib/misc/crc.c): it begins with a value
// of its own and has no complement.
func lvmCRC(p []byte) uint32 {
	c := uint32(0xf597a6cf)
	table := crc32.MakeTable(crc32.IEEE)
	for _, b := range p {
		c = table[byte(c)^b] ^ c>>8
	}
	return c
}

// lvmLabel finds the label in one of the first four sectors; it returns its
// sector, and whether its checksum is correct.
func (l *look) lvmLabel(v *Volume) (p []byte, sound bool, err error) {
	all, err := v.at(l.ctx, 0, 4*sector)
	if err != nil || all == nil {
		return nil, false, err
	}
	for i := range 4 {
		p := all[i*sector : (i+1)*sector]
		if string(p[:8]) == "LABELONE" && string(p[24:32]) == "LVM2 001" {
			return p, le.Uint64(p[8:]) == uint64(i) && lvmCRC(p[20:]) == le.Uint32(p[16:]), nil
		}
	}
	return nil, false, nil
}

// probeLVM recognizes physical volumes of LVM2.
func probeLVM(l *look, v *Volume) (bool, error) {
	p, sound, err := l.lvmLabel(v)
	if err != nil || p == nil {
		return false, err
	}
	v.FS = "lvm"
	if !sound {
		l.find(v.Name, Bad, "LVM: label has a wrong checksum")
		return true, nil
	}
	off := int(le.Uint32(p[20:]))
	if off < 32 || off+40 > sector {
		l.find(v.Name, Bad, "LVM: label without a header")
		return true, nil
	}
	h := p[off:]
	pv := &physical{v: v, uuid: string(h[:32])}
	v.UUID = dashed(pv.uuid)
	found := len(l.rep.Findings)
	if size := int64(le.Uint64(h[32:])); size > v.Size() {
		l.find(v.Name, Bad, "LVM: physical volume of %d bytes on a volume of %d: it is cut", size, v.Size())
	}
	// Two lists of areas, each ended by zeros: data, then metadata.
	at := 40
	for lists := 0; at+16 <= len(h); at += 16 {
		if allZero(h[at : at+16]) {
			if lists++; lists == 2 {
				break
			}
			continue
		}
		if lists == 1 {
			if err := l.lvmArea(v, pv, int64(le.Uint64(h[at:])), int64(le.Uint64(h[at+8:]))); err != nil {
				return true, err
			}
		}
	}
	if len(l.rep.Findings) == found {
		l.find(v.Name, OK, "LVM: label and metadata with their checksums are sound")
	}
	l.pvs = append(l.pvs, pv)
	return true, nil
}

// lvmArea reads a metadata area.
func (l *look) lvmArea(v *Volume, pv *physical, off, size int64) error {
	h, err := v.at(l.ctx, off, sector)
	switch {
	case err != nil:
		return err
	case h == nil || !v.has(off, size):
		l.find(v.Name, Bad, "LVM: metadata area at byte %d is beyond the end of the volume", off)
		return nil
	case string(h[4:20]) != " LVM2 x[5A%r0N*>":
		l.find(v.Name, Bad, "LVM: metadata area at byte %d has no magic number", off)
		return nil
	case lvmCRC(h[4:]) != le.Uint32(h):
		l.find(v.Name, Bad, "LVM: header of the metadata area at byte %d has a wrong checksum", off)
		return nil
	}
	loc := h[40:]
	at, n := int64(le.Uint64(loc)), int64(le.Uint64(loc[8:]))
	if at == 0 && n == 0 || le.Uint32(loc[20:])&1 != 0 {
		return nil // no group yet, or an area to be ignored
	}
	if at < sector || at >= size || n <= 0 || n > size-sector {
		l.find(v.Name, Bad, "LVM: metadata is outside its area")
		return nil
	}
	if n > min(maxText, l.lvm.text) {
		l.find(v.Name, Bad, "LVM: metadata of %d bytes is too large to be read", n)
		return nil
	}
	l.lvm.text -= n
	p, err := v.at(l.ctx, off+at, min(n, size-at))
	if err != nil {
		return err
	}
	if n > size-at { // the area is a ring buffer
		more, err := v.at(l.ctx, off+sector, n-(size-at))
		if err != nil {
			return err
		}
		p = append(p, more...)
	}
	if lvmCRC(p) != le.Uint32(loc[16:]) {
		l.find(v.Name, Bad, "LVM: metadata has a wrong checksum")
		return nil
	}
	pv.text = strings.TrimRight(string(p), "\x00\n ")
	return nil
}

// brokenLVM recognizes a physical volume without a label by its metadata area.
func brokenLVM(l *look, v *Volume) (bool, error) {
	h, err := v.at(l.ctx, 4096, sector)
	if err != nil || h == nil || string(h[4:20]) != " LVM2 x[5A%r0N*>" {
		return false, err
	}
	v.FS = "lvm"
	l.find(v.Name, Bad, "LVM: no label, but a metadata area at byte 4096 (vgcfgrestore, pvcreate --restorefile)")
	return true, nil
}

func dashed(u string) string {
	if len(u) != 32 {
		return u
	}
	return strings.Join([]string{u[:6], u[6:10], u[10:14], u[14:18], u[18:22], u[22:26], u[26:]}, "-")
}

// groups finds the logical volumes of all volume groups and inspects them.
func (l *look) groups(disks []Disk) error {
	newest := make(map[string]*vgText) // by UUID
	for _, pv := range l.pvs {
		if pv.text == "" {
			continue
		}
		var g *vgText
		err := guard(func() (err error) {
			g, err = parseVG(pv.text, &l.lvm.nodes)
			return err
		})
		pv.text = ""
		if err != nil {
			l.find(pv.v.Name, Bad, "LVM: metadata: %v", err)
			continue
		}
		if old := newest[g.id]; old == nil || g.seqno > old.seqno {
			newest[g.id] = g
		}
	}
	all := make([]*vgText, 0, len(newest))
	for _, g := range newest {
		all = append(all, g)
	}
	slices.SortFunc(all, func(a, b *vgText) int { return cmp.Or(strings.Compare(a.name, b.name), strings.Compare(a.id, b.id)) })
	for _, g := range all {
		err := guard(func() error { return l.group(disks, g) })
		var bounded *boundError
		if errors.As(err, &bounded) {
			l.find(g.name, Note, "inspection stopped: %v", bounded)
			continue
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (l *look) group(disks []Disk, g *vgText) error {
	here := make(map[string]*physical) // by UUID
	for _, pv := range l.pvs {
		here[pv.uuid] = pv
	}
	where := make(map[string]*physical) // pv0 -> volume
	for _, name := range slices.Sorted(maps.Keys(g.pvs)) {
		id := g.pvs[name].id
		if where[name] = here[strings.ReplaceAll(id, "-", "")]; where[name] == nil {
			l.find(g.name, Note, "volume group: physical volume %s is on none of these disks", id)
		}
	}
	for _, lv := range g.lvs {
		v := &Volume{Name: g.name + "/" + lv.name, Kind: "logical volume", UUID: lv.id}
		j := &joined{disks: disks}
		why := ""
		for _, s := range lv.segments {
			runs, err := g.runs(s, where, &l.lvm.runs)
			if err != nil {
				why = err.Error()
				break
			}
			for _, r := range runs {
				j.add(r)
			}
		}
		if why == "" {
			for _, r := range j.runs {
				if r.Offset < 0 || r.Offset > disks[r.Disk].Size()-r.Length {
					why = fmt.Sprintf("reaches to byte %d of %s, which has %d", r.Offset+r.Length, disks[r.Disk].Name, disks[r.Disk].Size())
					l.find(v.Name, Bad, "logical volume %s: it is cut", why)
					break
				}
			}
			if why != "" {
				continue
			}
		}
		if why != "" {
			if lv.visible {
				l.find(v.Name, Note, "logical volume not looked into: %s", why)
			}
			continue
		}
		if !lv.visible {
			continue
		}
		v.Reader, v.Runs = j, j.runs
		l.rep.Volumes = append(l.rep.Volumes, v)
		if err := l.content(v); err != nil {
			return fmt.Errorf("%s: %w", v.Name, err)
		}
	}
	return nil
}

// runs maps a segment to disks: linear, or striped.
func (g *vgText) runs(s vgSegment, where map[string]*physical, left *int64) ([]Run, error) {
	if s.kind != "striped" {
		return nil, fmt.Errorf("its segments are of type %q", s.kind)
	}
	if len(s.stripes) == 0 || s.extents <= 0 || s.extents%int64(len(s.stripes)) != 0 || len(s.stripes) > 1 && s.stripeSize <= 0 {
		return nil, fmt.Errorf("a segment of %d extents has %d stripes", s.extents, len(s.stripes))
	}
	place := func(i int) (int, int64, error) {
		st := s.stripes[i]
		p, pv := g.pvs[st.pv], where[st.pv]
		if pv == nil {
			return 0, 0, fmt.Errorf("a part of it is on %s, which is on none of these disks", st.pv)
		}
		base := pv.v.Runs[0] // partitions and disks have exactly one
		return base.Disk, base.Offset + p.start*sector + st.start*g.extent, nil
	}
	if len(s.stripes) == 1 {
		*left--
		d, off, err := place(0)
		return []Run{{d, off, s.extents * g.extent}}, err
	}
	stripe := s.stripeSize * sector
	rows := s.extents / int64(len(s.stripes)) * g.extent / stripe
	if rows > *left/int64(len(s.stripes)) {
		return nil, fmt.Errorf("it has more than %d stripes", *left)
	}
	*left -= rows * int64(len(s.stripes))
	var runs []Run
	for row := range rows {
		for i := range s.stripes {
			d, off, err := place(i)
			if err != nil {
				return nil, err
			}
			runs = append(runs, Run{d, off + row*stripe, stripe})
		}
	}
	return runs, nil
}
