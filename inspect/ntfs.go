package inspect

import (
	"bytes"
	"context"
	"fmt"

	"xenkeep/internal/disk"
)

// ntfsBoot holds the fields of an NTFS boot sector that are used here.
type ntfsBoot struct {
	sector, cluster int64 // bytes
	sectors         int64
	mft, mirror     int64 // byte offsets
	record          int64 // bytes
}

func ntfsDecode(p []byte) *ntfsBoot {
	if len(p) < sector || string(p[3:11]) != "NTFS    " || p[510] != 0x55 || p[511] != 0xaa {
		return nil
	}
	b := &ntfsBoot{sector: int64(le.Uint16(p[11:])), sectors: int64(le.Uint64(p[40:]))}
	per := int64(p[13])
	if per > 0x80 {
		per = 1 << (256 - per)
	}
	b.cluster = per * b.sector
	power2 := func(n int64) bool { return n > 0 && n&(n-1) == 0 }
	if !power2(b.sector) || b.sector < 256 || b.sector > 4096 || !power2(b.cluster) || b.cluster > 2<<20 || b.sectors <= 0 || b.sectors > 1<<50 {
		return nil
	}
	if n := int64(int8(p[64])); n > 0 {
		b.record = n * b.cluster
	} else if n >= -20 {
		b.record = 1 << -n
	}
	clusters := b.sectors * b.sector / b.cluster
	mft, mirror := int64(le.Uint64(p[48:])), int64(le.Uint64(p[56:]))
	if b.record < 512 || b.record > 64<<10 || mft <= 0 || mft >= clusters || mirror <= 0 || mirror >= clusters {
		return nil
	}
	b.mft, b.mirror = mft*b.cluster, mirror*b.cluster
	return b
}

func probeNTFS(l *look, v *Volume) (bool, error) {
	p, err := v.at(l.ctx, 0, sector)
	if err != nil || p == nil {
		return false, err
	}
	if string(p[3:11]) == "-FVE-FS-" {
		v.FS = "bitlocker"
		l.find(v.Name, OK, "encrypted by BitLocker: not looked into")
		return true, nil
	}
	b := ntfsDecode(p)
	if b == nil {
		return false, nil
	}
	return true, l.ntfs(v, b, p)
}

// ntfs verifies an NTFS whose boot sector, boot, is valid.
func (l *look) ntfs(v *Volume, b *ntfsBoot, boot []byte) error {
	v.FS, v.UUID = "ntfs", fmt.Sprintf("%016X", le.Uint64(boot[72:]))
	found := len(l.rep.Findings)
	if size := (b.sectors + 1) * b.sector; size > v.Size()+b.sector {
		l.find(v.Name, Bad, "ntfs of %d bytes on a volume of %d: it is cut", size, v.Size())
	} else {
		// The copy is in the volume's last sector.
		copied := false
		for _, at := range []int64{b.sectors * b.sector, v.Size() - b.sector} {
			c, err := v.at(l.ctx, at, sector)
			if err != nil {
				return err
			}
			copied = copied || c != nil && ntfsDecode(c) != nil
		}
		if !copied {
			l.find(v.Name, Bad, "ntfs: the backup of the boot sector, at the end, is not there")
		}
	}
	first, err := v.at(l.ctx, b.mft, 4*b.record)
	if err != nil {
		return err
	}
	mirror, err := v.at(l.ctx, b.mirror, 4*b.record)
	if err != nil {
		return err
	}
	dirty := false
	var broken []int64
	for i := range int64(4) {
		if first == nil {
			broken = append(broken, i)
			continue
		}
		rec := bytes.Clone(first[i*b.record : (i+1)*b.record])
		if !fixup(rec) {
			broken = append(broken, i)
			continue
		}
		if mirror != nil && i == 0 && string(mirror[:4]) != "FILE" {
			l.find(v.Name, Bad, "ntfs: the copy of the MFT's beginning is broken")
		}
		if i == 3 {
			eachAttribute(rec, func(kind uint32, a []byte) bool {
				if data := resident(a); kind == 0x60 {
					v.Label = utf16Text(data)
				} else if kind == 0x70 && len(data) >= 12 {
					dirty = le.Uint16(data[10:])&1 != 0
				}
				return true
			})
		}
	}
	if len(broken) > 0 {
		l.find(v.Name, Bad, "ntfs: record %d of the MFT is broken", broken[0])
	}
	if len(l.rep.Findings) == found {
		l.find(v.Name, OK, "ntfs: boot sector, its backup, the MFT's beginning and its copy are sound")
		if dirty {
			l.find(v.Name, Note, "ntfs: marked to be checked (chkdsk) when it is next used")
		}
	}
	v.free = b.freeClusters
	return nil
}

// brokenNTFS looks for the copy of the boot sector in the last sector.
func brokenNTFS(l *look, v *Volume) (bool, error) {
	for _, at := range []int64{v.Size() - sector, v.Size() - 2*sector, (v.Size() &^ 4095) - sector} {
		p, err := v.at(l.ctx, at, sector)
		if err != nil {
			return false, err
		}
		b := ntfsDecode(p)
		if b == nil || b.sectors*b.sector > v.Size() || b.sectors*b.sector < v.Size()-1<<20 {
			continue
		}
		v.FS = "ntfs"
		l.find(v.Name, Bad, "ntfs: boot sector is broken; its backup at byte %d is sound", at)
		return true, nil
	}
	p, err := v.at(l.ctx, 0, sector)
	if err == nil && p != nil && string(p[3:11]) == "NTFS    " {
		v.FS = "ntfs"
		l.find(v.Name, Bad, "ntfs: boot sector contradicts itself, and no backup was found")
		return true, nil
	}
	return false, err
}

// fixup restores the bytes at the ends of a record's sectors that the update
// sequence replaced, and reports whether all of them match.
func fixup(rec []byte) bool {
	if len(rec) < 48 || string(rec[:4]) != "FILE" {
		return false
	}
	off, n := int(le.Uint16(rec[4:])), int(le.Uint16(rec[6:]))
	if n < 2 || off+2*n > len(rec) || (n-1)*sector > len(rec) {
		return false
	}
	seq := rec[off : off+2*n]
	for i := 1; i < n; i++ {
		end := rec[i*sector-2 : i*sector]
		if !bytes.Equal(end, seq[:2]) {
			return false
		}
		copy(end, seq[2*i:2*i+2])
	}
	return true
}

// eachAttribute calls fn for the attributes of a record, until fn returns
// false.
func eachAttribute(rec []byte, fn func(kind uint32, a []byte) bool) {
	for at := int(le.Uint16(rec[20:])); at+16 <= len(rec); {
		kind, n := le.Uint32(rec[at:]), int(le.Uint32(rec[at+4:]))
		if kind == 0xffffffff || n < 16 || at+n > len(rec) {
			return
		}
		if !fn(kind, rec[at:at+n]) {
			return
		}
		at += n
	}
}

func resident(a []byte) []byte {
	if a[8] != 0 || len(a) < 24 {
		return nil
	}
	n, off := int(le.Uint32(a[16:])), int(le.Uint16(a[20:]))
	if n < 0 || off+n > len(a) {
		return nil
	}
	return a[off : off+n]
}

// freeClusters reads $Bitmap, record 6 of the MFT.
func (b *ntfsBoot) freeClusters(ctx context.Context, v *Volume) ([]disk.Extent, error) {
	rec, err := v.at(ctx, b.mft+6*b.record, b.record)
	if err != nil {
		return nil, err
	}
	if !fixup(rec) {
		return nil, fmt.Errorf("record of $Bitmap is broken")
	}
	clusters := b.sectors * b.sector / b.cluster
	var free freeList
	done := int64(0) // clusters
	take := func(p []byte) {
		n := min(int64(len(p))*8, clusters-done)
		addBits(&free, p, done*b.cluster, b.cluster, n)
		done += n
	}
	eachAttribute(rec, func(kind uint32, a []byte) bool {
		if kind != 0x80 || a[9] != 0 {
			return true
		}
		if a[8] == 0 {
			take(resident(a))
			return false
		}
		var runs [][2]int64
		if runs, err = dataRuns(a); err != nil {
			return false
		}
		for _, r := range runs {
			for c := int64(0); c < r[1] && done < clusters; {
				n := min(r[1]-c, (1<<20+b.cluster-1)/b.cluster)
				p, rerr := v.at(ctx, (r[0]+c)*b.cluster, n*b.cluster)
				if rerr != nil || p == nil {
					err = rerr
					if err == nil {
						err = fmt.Errorf("$Bitmap is beyond the end of the volume")
					}
					return false
				}
				take(p)
				c += n
			}
		}
		return false
	})
	if err == nil && done < clusters {
		err = fmt.Errorf("$Bitmap covers %d clusters, the volume has %d", done, clusters)
	}
	return free, err
}

// dataRuns returns the runs (cluster, length) of an attribute that is not
// resident.
func dataRuns(a []byte) (runs [][2]int64, err error) {
	bad := fmt.Errorf("runs of an attribute are broken")
	if len(a) < 64 || int(le.Uint16(a[32:])) >= len(a) {
		return nil, bad
	}
	p := a[le.Uint16(a[32:]):]
	at := int64(0)
	for len(p) > 0 && p[0] != 0 {
		n, m := int(p[0]&15), int(p[0]>>4)
		if n == 0 || n > 8 || m > 8 || len(p) < 1+n+m || m == 0 {
			return nil, bad
		}
		var length, move int64
		for i := n - 1; i >= 0; i-- {
			length = length<<8 | int64(p[1+i])
		}
		for i := m - 1; i >= 0; i-- {
			if i == m-1 {
				move = int64(int8(p[1+n+i]))
			} else {
				move = move<<8 | int64(p[1+n+i])
			}
		}
		at += move
		if length <= 0 || at < 0 || length > 1<<40 {
			return nil, bad
		}
		runs = append(runs, [2]int64{at, length})
		p = p[1+n+m:]
	}
	return runs, nil
}
