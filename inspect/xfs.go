package inspect

import (
	"context"
	"fmt"

	"xenkeep/internal/disk"
)

// xfsSuper holds the fields of an XFS superblock that are used here.
type xfsSuper struct {
	block, blocks       int64
	agBlocks, ags, size int64 // size of a sector
	v5                  bool
}

func xfsDecode(p []byte) *xfsSuper {
	if len(p) < sector || string(p[:4]) != "XFSB" {
		return nil
	}
	s := &xfsSuper{
		block: int64(be.Uint32(p[4:])), blocks: int64(be.Uint64(p[8:])), agBlocks: int64(be.Uint32(p[84:])), ags: int64(be.Uint32(p[88:])),
		size: int64(be.Uint16(p[102:])), v5: be.Uint16(p[100:])&0xf == 5,
	}
	ok := func(n, lo, hi int64) bool { return n >= lo && n <= hi && n&(n-1) == 0 }
	if !ok(s.block, 512, 65536) || !ok(s.size, 512, 32768) || s.agBlocks == 0 || s.ags == 0 || s.blocks <= 0 ||
		s.blocks > s.ags*s.agBlocks || s.blocks <= (s.ags-1)*s.agBlocks {
		return nil
	}
	return s
}

// xfsSum reports whether a sector's CRC, which is at off, is correct.
func xfsSum(p []byte, off int) bool {
	said := le.Uint32(p[off:])
	c := crc32c(^uint32(0), p[:off])
	c = crc32c(c, []byte{0, 0, 0, 0})
	return ^crc32c(c, p[off+4:]) == said
}

func probeXFS(l *look, v *Volume) (bool, error) {
	p, err := v.at(l.ctx, 0, sector)
	if err != nil || p == nil || string(p[:4]) != "XFSB" {
		return false, err
	}
	v.FS = "xfs"
	s := xfsDecode(p)
	if s == nil {
		l.find(v.Name, Bad, "xfs: superblock contradicts itself (xfs_repair looks for a backup)")
		return true, nil
	}
	v.Label, v.UUID = text(p[108:120]), uuidText(p[32:48])
	if p, err = v.at(l.ctx, 0, s.size); err != nil {
		return true, err
	}
	found := len(l.rep.Findings)
	switch {
	case s.v5 && !xfsSum(p, 224):
		l.find(v.Name, Bad, "xfs: superblock has a wrong checksum")
	case p[126] != 0:
		l.find(v.Name, Bad, "xfs: mkfs or growfs was not finished")
	}
	if size := s.blocks * s.block; size > v.Size() {
		l.find(v.Name, Bad, "xfs of %d bytes on a volume of %d: it is cut", size, v.Size())
	}
	wrong, first := 0, ""
	for ag := range s.ags {
		at := ag * s.agBlocks * s.block
		head, err := v.at(l.ctx, at, 4*s.size)
		if err != nil {
			return true, err
		}
		if head == nil {
			break // truncated: reported above
		}
		for _, x := range []struct {
			magic  string
			sector int64
			crc    int
		}{{"XFSB", 0, 224}, {"XAGF", 1, 216}, {"XAGI", 2, 312}} {
			h := head[x.sector*s.size : (x.sector+1)*s.size]
			if string(h[:4]) != x.magic || s.v5 && !xfsSum(h, x.crc) {
				if x.sector > 0 || ag > 0 {
					if wrong++; wrong == 1 {
						first = fmt.Sprintf("%s of group %d", x.magic, ag)
					}
				}
			}
		}
	}
	if wrong > 0 {
		l.find(v.Name, Bad, "xfs: %s broken, the first is %s", count(wrong, "group header"), first)
	}
	if len(l.rep.Findings) == found {
		how := ""
		if s.v5 {
			how = " with their checksums"
		}
		l.find(v.Name, OK, "xfs: superblock and headers of %s%s are sound", count(int(s.ags), "group"), how)
	}
	v.free = s.freeBlocks
	return true, nil
}

// brokenXFS recognizes an XFS without its superblock by the headers that follow
// it.
func brokenXFS(l *look, v *Volume) (bool, error) {
	for _, size := range []int64{512, 4096} {
		p, err := v.at(l.ctx, 0, 4*size)
		if err != nil || p == nil {
			return false, err
		}
		if string(p[size:size+4]) == "XAGF" && string(p[2*size:2*size+4]) == "XAGI" {
			v.FS = "xfs"
			l.find(v.Name, Bad, "xfs: superblock has no magic number, but group headers lie behind it (xfs_repair looks for a backup)")
			return true, nil
		}
	}
	return false, nil
}

// freeBlocks walks the tree of free space of each group, by block number.
func (s *xfsSuper) freeBlocks(ctx context.Context, v *Volume) ([]disk.Extent, error) {
	var free freeList
	for ag := range s.ags {
		base := ag * s.agBlocks * s.block
		agf, err := v.at(ctx, base+s.size, s.size)
		if err != nil {
			return nil, err
		}
		if agf == nil || string(agf[:4]) != "XAGF" {
			return nil, fmt.Errorf("group %d: no header", ag)
		}
		last := int64(-1)
		root, levels := int64(be.Uint32(agf[16:])), int(be.Uint32(agf[28:]))
		if err := s.walk(ctx, v, base, root, levels, true, func(start, n int64) error {
			if start <= last || n < 1 || start+n > s.agBlocks {
				return fmt.Errorf("group %d: free blocks out of order", ag)
			}
			last = start + n - 1
			free.add(base+start*s.block, n*s.block)
			return nil
		}); err != nil {
			return nil, err
		}
	}
	return free, nil
}

// walk visits the records below a block of a free-space tree with this number
// of levels. Only a root may be empty: every other block contains a record, and
// fn refuses records that do not ascend, so the walk of a tree with a cycle
// ends with an error.
func (s *xfsSuper) walk(ctx context.Context, v *Volume, base, block int64, levels int, root bool, fn func(start, n int64) error) error {
	if levels < 1 || levels > 9 || block >= s.agBlocks {
		return fmt.Errorf("tree of free space: block %d, level %d", block, levels)
	}
	p, err := v.at(ctx, base+block*s.block, s.block)
	if err != nil {
		return err
	}
	head, magic := int64(16), "ABTB"
	if s.v5 {
		head, magic = 56, "AB3B"
	}
	if p == nil || string(p[:4]) != magic || int(be.Uint16(p[4:])) != levels-1 {
		return fmt.Errorf("tree of free space: block %d is none of it", block)
	}
	n := int64(be.Uint16(p[6:]))
	if n == 0 && (levels > 1 || !root) {
		return fmt.Errorf("tree of free space: block %d is empty", block)
	}
	if levels == 1 {
		if head+8*n > s.block {
			return fmt.Errorf("tree of free space: block %d has %d records", block, n)
		}
		for i := range n {
			r := p[head+8*i:]
			if err := fn(int64(be.Uint32(r)), int64(be.Uint32(r[4:]))); err != nil {
				return err
			}
		}
		return nil
	}
	most := (s.block - head) / 12
	if n > most {
		return fmt.Errorf("tree of free space: block %d has %d records", block, n)
	}
	for i := range n {
		if err := s.walk(ctx, v, base, int64(be.Uint32(p[head+8*most+4*i:])), levels-1, false, fn); err != nil {
			return err
		}
	}
	return nil
}
