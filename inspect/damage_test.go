package inspect_test

import (
	"os"
	"testing"

	"xenkeep/inspect"
	. "xenkeep/inspect/inspecttest"
)

// Images made by mkfs and damaged at random are inspected without a panic and
// within the limits.
func TestDamagedAtRandom(t *testing.T) {
	files := Files()
	for name, build := range map[string]func(t testing.TB) string{
		"ext4": func(t testing.TB) string { return Ext(t, "ext4", 24*MiB, files, "-O", "^metadata_csum,^uninit_bg") },
		"bigalloc": func(t testing.TB) string {
			return Ext(t, "ext4", 24*MiB, files, "-O", "bigalloc,^metadata_csum,^uninit_bg")
		},
		"meta_bg": func(t testing.TB) string {
			return Ext(t, "ext4", 24*MiB, files, "-O", "meta_bg,^resize_inode,^metadata_csum,^uninit_bg")
		},
		"ext2":  func(t testing.TB) string { return Ext(t, "ext2", 8*MiB, files, "-b", "1024") },
		"xfs":   func(t testing.TB) string { return XFS(t, files, "-m", "crc=0") },
		"ntfs":  func(t testing.TB) string { return NTFS(t, 16*MiB, files) },
		"fat12": func(t testing.TB) string { return FAT(t, "12", 2*MiB) },
		"fat32": func(t testing.TB) string { return FAT(t, "32", 40*MiB) },
		"btrfs": func(t testing.TB) string { return Btrfs(t, 128*MiB) },
		"mbr": func(t testing.TB) string {
			return Disk(t, "dos", "83="+Ext(t, "ext2", 8*MiB, files), "7="+NTFS(t, 16*MiB, files))
		},
	} {
		t.Run(name, func(t *testing.T) {
			image, err := os.ReadFile(build(t))
			if err != nil {
				t.Fatal(err)
			}
			inspect.DamageAtRandom(t, image, 7)
		})
	}
	for name, c := range map[string]struct {
		build  func(t testing.TB) string
		repair func(at func(off, n int64) []byte, set func(off int64, p []byte))
	}{
		"gpt": {func(t testing.TB) string { return Disk(t, "gpt", "L="+Ext(t, "ext2", 8*MiB, files)) }, inspect.RepairGPT},
		"lvm": {storedPV, inspect.RepairLVM},
	} {
		t.Run(name, func(t *testing.T) {
			image, err := os.ReadFile(c.build(t))
			if err != nil {
				t.Fatal(err)
			}
			inspect.DamageAtRandom(t, image, 7, c.repair)
		})
	}
}
