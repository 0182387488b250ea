package inspect

// probeSwap recognizes Linux swap by the end of its first page.
func probeSwap(l *look, v *Volume) (bool, error) {
	for _, page := range []int64{4096, 8192, 16384, 65536} {
		p, err := v.at(l.ctx, page-10, 10)
		if err != nil || p == nil {
			return false, err
		}
		if string(p) == "SWAPSPACE2" || string(p) == "SWAP-SPACE" {
			v.FS = "swap"
			l.find(v.Name, OK, "swap space")
			return true, nil
		}
	}
	return false, nil
}

// probeLUKS recognizes volumes encrypted with LUKS.
func probeLUKS(l *look, v *Volume) (bool, error) {
	p, err := v.at(l.ctx, 0, 592)
	if err != nil || p == nil || string(p[:6]) != "LUKS\xba\xbe" {
		return false, err
	}
	v.FS, v.UUID = "luks", text(p[168:208])
	l.find(v.Name, OK, "encrypted by LUKS version %d: not looked into", be.Uint16(p[6:]))
	return true, nil
}

// probeRAID recognizes members of Linux RAID with metadata 1.1 or 1.2, which is
// at the start, or 4 KiB after it.
func probeRAID(l *look, v *Volume) (bool, error) {
	for _, at := range []int64{4096, 0} {
		p, err := v.at(l.ctx, at, 256)
		if err != nil {
			return false, err
		}
		if p != nil && le.Uint32(p) == 0xa92b4efc && le.Uint32(p[4:]) == 1 {
			v.FS, v.Label = "raid", text(p[32:64])
			l.find(v.Name, Note, "member of a Linux RAID: its content is not inspected")
			return true, nil
		}
	}
	return false, nil
}

const btrfsSize = 4096

// btrfsSuper reads the superblock at off; sound reports whether its checksum,
// if it is a CRC, is correct.
func (l *look) btrfsSuper(v *Volume, off int64) (p []byte, sound bool, err error) {
	p, err = v.at(l.ctx, off, btrfsSize)
	if err != nil || p == nil || string(p[64:72]) != "_BHRfS_M" {
		return nil, false, err
	}
	if kind := le.Uint16(p[196:]); kind != 0 {
		return p, true, nil // another hash function: not verified here
	}
	return p, ^crc32c(^uint32(0), p[32:]) == le.Uint32(p), nil
}

// probeBtrfs recognizes btrfs by its superblock at 64 KiB.
func probeBtrfs(l *look, v *Volume) (bool, error) {
	p, sound, err := l.btrfsSuper(v, 64<<10)
	if err != nil || p == nil {
		return false, err
	}
	v.FS = "btrfs"
	if !sound {
		_, copied, err := l.btrfsSuper(v, 64<<20)
		if err != nil {
			return true, err
		}
		if copied {
			l.find(v.Name, Bad, "btrfs: superblock has a wrong checksum; its copy at 64 MiB is sound (btrfs rescue super-recover)")
		} else {
			l.find(v.Name, Bad, "btrfs: superblock has a wrong checksum")
		}
		return true, nil
	}
	v.Label, v.UUID = text(p[299:555]), uuidText(p[32:48])
	// The device's own item, from byte 201: id, then its size.
	if size := int64(le.Uint64(p[209:])); size > v.Size() {
		l.find(v.Name, Bad, "btrfs of %d bytes on a volume of %d: it is cut", size, v.Size())
		return true, nil
	}
	if v.Size() >= 64<<20+btrfsSize {
		if c, copied, err := l.btrfsSuper(v, 64<<20); err != nil {
			return true, err
		} else if c == nil || !copied {
			l.find(v.Name, Bad, "btrfs: the superblock's copy at 64 MiB is broken")
			return true, nil
		}
	}
	l.find(v.Name, OK, "btrfs: superblock with its checksum, and its copy, are sound")
	return true, nil
}

// brokenBtrfs looks for the superblock's copy.
func brokenBtrfs(l *look, v *Volume) (bool, error) {
	_, sound, err := l.btrfsSuper(v, 64<<20)
	if err != nil || !sound {
		return false, err
	}
	v.FS = "btrfs"
	l.find(v.Name, Bad, "btrfs: superblock has no magic number; its copy at 64 MiB is sound (btrfs rescue super-recover)")
	return true, nil
}
