package inspect

import (
	"bytes"
	"context"
	"fmt"
	"strings"

	"xenkeep/internal/disk"
)

// fatBoot holds the fields of a FAT boot sector that are used here.
type fatBoot struct {
	kind                        int // 12, 16 or 32
	sector, cluster             int64
	reserved, fats, size, total int64 // sectors
	data                        int64 // byte offset of cluster 2
	clusters                    int64
	info, backup                int64 // sectors, FAT32
}

func fatDecode(p []byte) *fatBoot {
	if len(p) < sector || p[510] != 0x55 || p[511] != 0xaa || p[0] != 0xeb && p[0] != 0xe9 {
		return nil
	}
	b := &fatBoot{
		sector: int64(le.Uint16(p[11:])), reserved: int64(le.Uint16(p[14:])), fats: int64(p[16]),
		size: int64(le.Uint16(p[22:])), total: int64(le.Uint16(p[19:])),
	}
	per, root := int64(p[13]), int64(le.Uint16(p[17:]))
	if b.total == 0 {
		b.total = int64(le.Uint32(p[32:]))
	}
	if b.size == 0 {
		b.size = int64(le.Uint32(p[36:]))
		b.info, b.backup = int64(le.Uint16(p[48:])), int64(le.Uint16(p[50:]))
	}
	power2 := func(n int64) bool { return n > 0 && n&(n-1) == 0 }
	if !power2(b.sector) || b.sector < 512 || b.sector > 4096 || !power2(per) || b.reserved == 0 || b.fats == 0 || b.fats > 2 ||
		b.size == 0 || b.total == 0 || p[21] < 0xf0 {
		return nil
	}
	b.cluster = per * b.sector
	start := b.reserved + b.fats*b.size + (root*32+b.sector-1)/b.sector
	if start >= b.total {
		return nil
	}
	b.data, b.clusters = start*b.sector, (b.total-start)/per
	switch {
	case root == 0:
		b.kind = 32
	case b.clusters < 4085:
		b.kind = 12
	default:
		b.kind = 16
	}
	if (b.clusters+2)*int64(b.kind)/8 > b.size*b.sector {
		return nil
	}
	return b
}

func probeFAT(l *look, v *Volume) (bool, error) {
	p, err := v.at(l.ctx, 0, sector)
	if err != nil {
		return false, err
	}
	b := fatDecode(p)
	if b == nil {
		return false, nil
	}
	v.FS = "vfat"
	at := 43
	if b.kind == 32 {
		at = 71
	}
	v.UUID = fmt.Sprintf("%04X-%04X", le.Uint16(p[at-2:]), le.Uint16(p[at-4:]))
	if v.Label = strings.TrimSpace(string(p[at : at+11])); v.Label == "NO NAME" {
		v.Label = ""
	}
	found := len(l.rep.Findings)
	if size := b.total * b.sector; size > v.Size() {
		l.find(v.Name, Bad, "FAT%d of %d bytes on a volume of %d: it is cut", b.kind, size, v.Size())
	}
	fat, err := v.at(l.ctx, b.reserved*b.sector, 8)
	if err != nil {
		return true, err
	}
	if fat != nil && fat[0] != p[21] {
		l.find(v.Name, Bad, "FAT%d: the table begins with %02x, the boot sector contains %02x", b.kind, fat[0], p[21])
	}
	if b.kind == 32 {
		info, err := v.at(l.ctx, b.info*b.sector, sector)
		if err != nil {
			return true, err
		}
		if b.info != 0 && b.info != 0xffff && (info == nil || string(info[:4]) != "RRaA" || string(info[484:488]) != "rrAa") {
			l.find(v.Name, Bad, "FAT32: information sector %d is broken", b.info)
		}
		backup, err := v.at(l.ctx, b.backup*b.sector, sector)
		if err != nil {
			return true, err
		}
		if b.backup != 0 && b.backup != 0xffff && !bytes.Equal(backup[:min(90, len(backup))], p[:90]) {
			l.find(v.Name, Bad, "FAT32: the backup of the boot sector in sector %d differs from it", b.backup)
		}
	}
	if len(l.rep.Findings) == found {
		l.find(v.Name, OK, "FAT%d: boot sector and table are sound", b.kind)
	}
	v.free = b.freeClusters
	return true, nil
}

// brokenFAT looks for the backup boot sector of a FAT32.
func brokenFAT(l *look, v *Volume) (bool, error) {
	p, err := v.at(l.ctx, 6*sector, sector)
	if err != nil {
		return false, err
	}
	if b := fatDecode(p); b == nil || b.kind != 32 || b.backup != 6 || string(p[82:85]) != "FAT" {
		return false, nil
	}
	v.FS = "vfat"
	l.find(v.Name, Bad, "FAT32: boot sector is broken; its backup in sector 6 is sound")
	return true, nil
}

// freeClusters reads the first table.
func (b *fatBoot) freeClusters(ctx context.Context, v *Volume) ([]disk.Extent, error) {
	var free freeList
	const step = 3 << 18 // clusters; a whole number of bytes for each kind
	for c := int64(0); c < b.clusters+2; c += step {
		n := min(step, b.clusters+2-c)
		bytes := (n*int64(b.kind) + 7) / 8
		p, err := v.at(ctx, b.reserved*b.sector+c*int64(b.kind)/8, bytes)
		if err != nil {
			return nil, err
		}
		if p == nil {
			return nil, fmt.Errorf("the table is beyond the end of the volume")
		}
		for i := range n {
			var e uint32
			switch b.kind {
			case 32:
				e = le.Uint32(p[4*i:]) & 0x0fffffff
			case 16:
				e = uint32(le.Uint16(p[2*i:]))
			default:
				at := i * 3 / 2
				e = uint32(p[at])
				if at+1 < int64(len(p)) {
					e |= uint32(p[at+1]) << 8
				}
				if i%2 == 1 {
					e >>= 4
				}
				e &= 0xfff
			}
			if e == 0 && c+i >= 2 {
				free.add(b.data+(c+i-2)*b.cluster, b.cluster)
			}
		}
	}
	return free, nil
}
