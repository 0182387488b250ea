// Package workload builds raw disk images that look like those of virtual machines:
// partitioned, with a real ext4 file system that the kernel wrote, filled with this
// machine's own programs, libraries and texts and with generated databases, logs,
// dumps and archives; each one on day one and, after further work of the guest, on
// day two.
//
// All content is derived from fixed seeds and from the files below /usr. Block
// allocation and inode change times are the kernel's, so two builds have the same
// files and nearly, not exactly, the same bytes; images are built once and kept,
// and all programs of a comparison read the same ones.
package workload

import "fmt"

// Scale defines the sizes of the images, in bytes.
type Scale struct {
	Name string
	Thin int64 // size of the thin disks
	Full int64 // size of the full disk
	// The content of the guests of thin disks.
	Real, DB, Log, Archive, Dump, Noise int64
	// FullReal is the amount of real files on the full disk; FullDB is the size of
	// its database.
	FullReal, FullDB int64
	// Pair is the size of the disks that contain only one archive or dump.
	Pair int64
	// Rows and Members are the numbers of insertions in dump and archive on day
	// two.
	Rows, Members int
}

const mib = 1 << 20

// The available scales.
var (
	// Small is for trying things out.
	Small = Scale{
		Name: "small", Thin: 1 << 30, Full: 512 * mib,
		Real: 96 * mib, DB: 24 * mib, Log: 8 * mib, Archive: 24 * mib, Dump: 16 * mib, Noise: 12 * mib,
		FullReal: 160 * mib, FullDB: 48 * mib, Pair: 160 * mib, Rows: 20, Members: 3,
	}
	// Large is the scale with which the targets are measured.
	Large = Scale{
		Name: "full", Thin: 10 << 30, Full: 8 << 30,
		Real: 1100 * mib, DB: 256 * mib, Log: 64 * mib, Archive: 192 * mib, Dump: 120 * mib, Noise: 128 * mib,
		FullReal: 4 << 30, FullDB: 1 << 30, Pair: 768 * mib, Rows: 150, Members: 20,
	}
)

// ScaleByName returns the scale with this name.
func ScaleByName(name string) (Scale, error) {
	for _, s := range []Scale{Small, Large} {
		if s.Name == name {
			return s, nil
		}
	}
	return Scale{}, fmt.Errorf("scale %q: want small or full", name)
}
