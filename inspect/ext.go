package inspect

import (
	"context"
	"fmt"
	"hash/crc32"
	"math/bits"

	"xenkeep/internal/disk"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// crc32c continues a CRC as computed by ext4, XFS and btrfs: without the last
// complement.
func crc32c(seed uint32, p []byte) uint32 { return ^crc32.Update(^seed, castagnoli, p) }

// extSuper holds the fields of an ext superblock that are used here.
type extSuper struct {
	raw                          []byte
	blockSize, blocks, inodes    int64
	firstBlock, perGroup         int64
	groups, descSize             int64
	compat, incompat, ro         uint32
	seed                         uint32 // of checksums
	reserved, firstMeta, state   int64
	clusterRatio                 int64
	metaBG, csum, gdtCSum, flex  bool
	sparse, bit64, needsRecovery bool
}

const (
	extMagicAt = 56
	extSize    = 1024
)

func extDecode(p []byte) *extSuper {
	if len(p) < extSize || le.Uint16(p[extMagicAt:]) != 0xef53 {
		return nil
	}
	s := &extSuper{
		raw: p, inodes: int64(le.Uint32(p)), blocks: int64(le.Uint32(p[4:])), firstBlock: int64(le.Uint32(p[20:])),
		perGroup: int64(le.Uint32(p[32:])), state: int64(le.Uint16(p[58:])), reserved: int64(le.Uint16(p[206:])),
		compat: le.Uint32(p[92:]), incompat: le.Uint32(p[96:]), ro: le.Uint32(p[100:]), firstMeta: int64(le.Uint32(p[260:])),
	}
	log := le.Uint32(p[24:])
	// mke2fs refuses groups of fewer than 256 blocks (misc/mke2fs.c).
	if log > 6 || s.perGroup < 256 || s.perGroup > 8*(1024<<log)*65536 {
		return nil
	}
	s.blockSize = 1024 << log
	s.metaBG, s.bit64, s.flex = s.incompat&0x10 != 0, s.incompat&0x80 != 0, s.incompat&0x200 != 0
	s.needsRecovery = s.incompat&4 != 0
	s.sparse, s.gdtCSum, s.csum = s.ro&1 != 0, s.ro&0x10 != 0, s.ro&0x400 != 0
	s.descSize = 32
	if s.bit64 {
		s.blocks |= int64(le.Uint32(p[336:])) << 32
		if d := int64(le.Uint16(p[254:])); d >= 64 && d <= 1024 && d&(d-1) == 0 {
			s.descSize = d
		} else {
			s.descSize = 64
		}
	}
	s.clusterRatio = 1
	if s.ro&0x200 != 0 { // bigalloc
		if c := le.Uint32(p[28:]); c >= log && c < 30 {
			s.clusterRatio = 1 << (c - log)
		}
	}
	if s.blocks > 0 {
		s.groups = (s.blocks - s.firstBlock + s.perGroup - 1) / s.perGroup
	}
	s.seed = crc32c(^uint32(0), p[104:120])
	if s.incompat&0x2000 != 0 { // csum_seed
		s.seed = le.Uint32(p[624:])
	}
	return s
}

// checksumOK reports whether the superblock's own checksum is correct.
func (s *extSuper) checksumOK() bool {
	return !s.csum || crc32c(^uint32(0), s.raw[:1020]) == le.Uint32(s.raw[1020:])
}

func (s *extSuper) kind() string {
	switch {
	case s.incompat&0x40 != 0 || s.csum || s.bit64 || s.flex:
		return "ext4"
	case s.compat&4 != 0:
		return "ext3"
	}
	return "ext2"
}

// probeExt recognizes ext2, ext3 and ext4.
func probeExt(l *look, v *Volume) (bool, error) {
	p, err := v.at(l.ctx, 1024, extSize)
	if err != nil || p == nil {
		return false, err
	}
	s := extDecode(p)
	if s == nil || !s.checksumOK() {
		return false, nil
	}
	v.FS, v.Label, v.UUID = s.kind(), text(p[120:136]), uuidText(p[104:120])
	bad := len(l.rep.Findings)
	if size := s.blocks * s.blockSize; size > v.Size() {
		l.find(v.Name, Bad, "%s of %d bytes on a volume of %d: it is cut", v.FS, size, v.Size())
	}
	if s.state&2 != 0 {
		l.find(v.Name, Bad, "%s: the kernel noted errors in it: run e2fsck", v.FS)
	}
	wrong, err := s.checkGroups(l.ctx, v)
	if err != nil {
		return true, err
	}
	if wrong != "" {
		l.find(v.Name, Bad, "%s: %s", v.FS, wrong)
	}
	if len(l.rep.Findings) == bad {
		how := "superblock and group descriptors"
		if s.csum {
			how += " with their checksums"
		}
		l.find(v.Name, OK, "%s: %s are sound", v.FS, how)
		if s.needsRecovery {
			l.find(v.Name, Note, "%s: was mounted; the journal will be played back", v.FS)
		}
	}
	v.free = s.freeBlocks
	return true, nil
}

// brokenExt looks for a backup if the superblock is damaged.
func brokenExt(l *look, v *Volume) (bool, error) {
	p, err := v.at(l.ctx, 1024, extSize)
	if err != nil || p == nil {
		return false, err
	}
	what := "has no magic number"
	if le.Uint16(p[extMagicAt:]) == 0xef53 {
		what = "contradicts itself"
		if s := extDecode(p); s != nil {
			what = "has a wrong checksum"
		}
	}
	for _, size := range []int64{4096, 1024, 2048} {
		block := 8 * size
		if size == 1024 {
			block++
		}
		b, err := v.at(l.ctx, block*size, extSize)
		if err != nil {
			return false, err
		}
		if s := extDecode(b); s != nil && s.blockSize == size && s.checksumOK() && le.Uint16(b[90:]) == 1 {
			v.FS, v.Label, v.UUID = s.kind(), text(b[120:136]), uuidText(b[104:120])
			l.find(v.Name, Bad, "%s: superblock %s; its backup in block %d is sound (e2fsck -b %d -B %d)", v.FS, what, block, block, size)
			return true, nil
		}
	}
	if le.Uint16(p[extMagicAt:]) == 0xef53 && le.Uint32(p[24:]) <= 6 {
		v.FS = "ext4"
		l.find(v.Name, Bad, "ext4: superblock %s, and no backup was found", what)
		return true, nil
	}
	return false, nil
}

// hasSuper reports whether a group begins with a copy of the superblock.
func (s *extSuper) hasSuper(g int64) bool {
	if g <= 1 || !s.sparse {
		return true
	}
	for _, base := range []int64{3, 5, 7} {
		for n := base; n <= g; n *= base {
			if n == g {
				return true
			}
		}
	}
	return false
}

// eachDescriptor reads the group descriptors and calls fn with each.
func (s *extSuper) eachDescriptor(ctx context.Context, v *Volume, fn func(g int64, d []byte) error) error {
	perBlock := s.blockSize / s.descSize
	for g := int64(0); g < s.groups; g += perBlock {
		block := 1024/s.blockSize + 1 + g/perBlock // after the superblock
		if s.metaBG && g/perBlock >= s.firstMeta {
			block = s.firstBlock + g*s.perGroup
			if s.hasSuper(g) {
				block++
			}
		}
		p, err := v.at(ctx, block*s.blockSize, s.blockSize)
		if err != nil {
			return err
		}
		if p == nil {
			return fmt.Errorf("group descriptors in block %d are beyond the end of the volume", block)
		}
		for i := int64(0); i < perBlock && g+i < s.groups; i++ {
			if err := fn(g+i, p[i*s.descSize:(i+1)*s.descSize]); err != nil {
				return err
			}
		}
	}
	return nil
}

// checkGroups verifies the group descriptors and returns a description of the
// damage.
func (s *extSuper) checkGroups(ctx context.Context, v *Volume) (wrong string, err error) {
	n, first := 0, int64(0)
	note := func(g int64) {
		if n == 0 {
			first = g
		}
		n++
	}
	var outside bool
	err = s.eachDescriptor(ctx, v, func(g int64, d []byte) error {
		said := le.Uint16(d[30:])
		var num [4]byte
		le.PutUint32(num[:], uint32(g))
		switch {
		case s.csum:
			c := crc32c(s.seed, num[:])
			c = crc32c(c, d[:30])
			c = crc32c(c, []byte{0, 0})
			c = crc32c(c, d[32:])
			if uint16(c) != said {
				note(g)
			}
		case s.gdtCSum:
			c := crc16(0xffff, s.raw[104:120])
			c = crc16(c, num[:])
			c = crc16(c, d[:30])
			if len(d) > 32 {
				c = crc16(c, d[32:])
			}
			if c != said {
				note(g)
			}
		}
		bitmap, _ := s.bitmapOf(d)
		if bitmap <= 0 || bitmap >= s.blocks {
			outside = true
		}
		return nil
	})
	switch {
	case err != nil && ctx.Err() == nil && !isRead(err):
		return err.Error(), nil
	case err != nil:
		return "", err
	case n > 0:
		return fmt.Sprintf("%s with a wrong checksum, the first is that of group %d", count(n, "group descriptor"), first), nil
	case outside:
		return "group descriptors point outside", nil
	}
	return "", nil
}

// isRead reports whether err is a read error, and not an error created in this
// file, which wraps no other error.
func isRead(err error) bool {
	_, wraps := err.(interface{ Unwrap() error })
	return wraps
}

func (s *extSuper) bitmapOf(d []byte) (block int64, uninit bool) {
	block = int64(le.Uint32(d))
	if s.bit64 {
		block |= int64(le.Uint32(d[32:])) << 32
	}
	return block, (s.gdtCSum || s.csum) && le.Uint16(d[18:])&2 != 0
}

// freeBlocks reads the block bitmaps.
func (s *extSuper) freeBlocks(ctx context.Context, v *Volume) ([]disk.Extent, error) {
	var free freeList
	unit := s.blockSize * s.clusterRatio
	err := s.eachDescriptor(ctx, v, func(g int64, d []byte) error {
		start := s.firstBlock + g*s.perGroup
		length := min(s.perGroup, s.blocks-start)
		at, uninit := s.bitmapOf(d)
		if uninit {
			return s.freeUninit(v, &free, g, start, length, d)
		}
		p, err := v.at(ctx, at*s.blockSize, s.blockSize)
		if err != nil {
			return err
		}
		if p == nil {
			return fmt.Errorf("block bitmap of group %d is beyond the end of the volume", g)
		}
		addBits(&free, p, start*s.blockSize, unit, (length+s.clusterRatio-1)/s.clusterRatio)
		return nil
	})
	return free, err
}

// freeUninit handles a group whose bitmap was never written: all of it is free
// except for the superblock's copy and the tables. These are at its start or in
// other groups, so everything up to their end counts as used.
func (s *extSuper) freeUninit(_ *Volume, free *freeList, g, start, length int64, d []byte) error {
	used := int64(0)
	if s.hasSuper(g) {
		used = 1
		if !s.metaBG {
			perBlock := s.blockSize / s.descSize
			used += (s.groups+perBlock-1)/perBlock + s.reserved
		}
	}
	inodeBlocks := (int64(le.Uint32(s.raw[40:]))*int64(max(128, le.Uint16(s.raw[88:]))) + s.blockSize - 1) / s.blockSize
	high := func(lo, hi int) int64 {
		n := int64(le.Uint32(d[lo:]))
		if s.bit64 {
			n |= int64(le.Uint32(d[hi:])) << 32
		}
		return n
	}
	for _, r := range [][2]int64{{high(0, 32), 1}, {high(4, 36), 1}, {high(8, 40), inodeBlocks}} {
		if r[0] >= start && r[0] < start+length {
			used = max(used, r[0]+r[1]-start)
		}
	}
	free.add((start+min(used, length))*s.blockSize, (length-min(used, length))*s.blockSize)
	return nil
}

// addBits adds the units whose bit is not set, lowest bit first.
func addBits(free *freeList, p []byte, at, unit, n int64) {
	for i := int64(0); i < min(n, 8*int64(len(p))); {
		b := p[i/8]
		if i%8 == 0 && b == 0xff {
			i += 8
			continue
		}
		if i%8 == 0 && b == 0 && n-i >= 8 {
			free.add(at+i*unit, 8*unit)
			i += 8
			continue
		}
		if b&(1<<(i%8)) == 0 {
			free.add(at+i*unit, unit)
		}
		i++
	}
}

// crc16 computes the CRC-16 (ARC) of Linux's lib/crc16.c.
func crc16(c uint16, p []byte) uint16 {
	for _, b := range p {
		c ^= uint16(b)
		for range 8 {
			low := c & 1
			c = c >> 1
			if low != 0 {
				c ^= bits.Reverse16(0x8005)
			}
		}
	}
	return c
}
