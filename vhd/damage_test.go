package vhd

import (
	"testing"

	"xenkeep/internal/disk"
	"xenkeep/internal/disk/disktest"
)

// Files that are damaged at random, with correct checksums again, are read to an
// end or an error, within the limits of time and memory.
func TestDamagedAtRandom(t *testing.T) {
	small := craft{size: 3*minBlockSize + 512, blockSize: minBlockSize, gap: 1,
		blocks:  map[int64][]byte{0: noise(1, minBlockSize), 2: noise(2, minBlockSize)},
		bitmaps: map[int64][]byte{2: {0xf0, 0x0f, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14}}}
	delta := small
	delta.delta = true
	buf := make([]byte, disk.BlockSize)
	for name, whole := range map[string][]byte{
		"dynamic": small.bytes(), "delta": delta.bytes(), "fixed": write(t, Layout{Fixed: true, Size: 5000}, map[int64][]byte{0: noise(7, 5000)}),
	} {
		t.Run(name, func(t *testing.T) {
			// Most of a file is content; the structures are at its beginning.
			head := whole[:min(len(whole), 4096)]
			disktest.TryDamaged(t, 3000, func(p []byte) {
				p = append(p, whole[min(len(whole), len(head)):]...)
				if len(p) >= 2048 && p[0] == footerCookie[0] {
					fix(p[:512], footerChecksum)
					fix(p[512:1536], headerChecksum)
					copy(p[len(p)-512:], p[:512])
				}
				_, _ = walkStream(p, 0, buf)
				_, _ = walkFile(p, 0, buf)
			}, head)
		})
	}
}
