package transfer

import (
	"fmt"

	"xenkeep/internal/disk"
)

// granule is the unit of changed-block tracking, in bytes.
const granule = 64 << 10

// ChangedExtents parses the bitmap of list_changed_blocks for a disk of size bytes. A
// bitmap of another length is an error, because then nothing is known about the
// changes.
func ChangedExtents(bitmap []byte, size int64) ([]disk.Extent, error) {
	granules := (size + granule - 1) / granule
	if want := (granules + 7) / 8; int64(len(bitmap)) != want {
		return nil, fmt.Errorf("the pool's bitmap of changes has %d bytes, a disk of this size needs %d", len(bitmap), want)
	}
	var out []disk.Extent
	for i := range granules {
		if bitmap[i/8]&(0x80>>(i%8)) == 0 {
			continue
		}
		from := i * granule
		n := min(granule, size-from)
		if k := len(out); k > 0 && out[k-1].End() == from {
			out[k-1].Length += n
		} else {
			out = append(out, disk.Extent{Offset: from, Length: n})
		}
	}
	return out, nil
}
