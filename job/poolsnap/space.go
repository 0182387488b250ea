package poolsnap

import (
	"maps"
	"slices"

	"github.com/dustin/go-humanize"

	"xenkeep/xapi"
)

// room returns an error if an SR has less free space than needed, in bytes. SRs whose
// driver does not report a size are not checked.
func (w *world) room(need map[xapi.Ref]int64, what string) error {
	for _, ref := range slices.Sorted(maps.Keys(need)) {
		sr := w.SRs[ref]
		if sr.PhysicalSize <= 0 {
			continue
		}
		if free := int64(sr.PhysicalSize - sr.PhysicalUtilisation); free < need[ref] {
			return advise("free space on the SR, or wait until deleted snapshots are coalesced", "SR %s: %s needs %s, %s are free: %w", sr.NameLabel, what,
				humanize.IBytes(uint64(need[ref])), humanize.IBytes(uint64(max(free, 0))), ErrSpace)
		}
	}
	return nil
}
