package poolsnap

import (
	"maps"
	"slices"

	"github.com/dustin/go-humanize"

	"xenkeep/xapi"
)

// room refuses what needs more bytes on some SR than are free there. Drivers
// that do not tell their size are trusted.
func (w *world) room(need map[xapi.Ref]int64, what string) error {
	for _, ref := range slices.Sorted(maps.Keys(need)) {
		sr := w.SRs[ref]
		if sr.PhysicalSize <= 0 {
			continue
		}
		if free := int64(sr.PhysicalSize - sr.PhysicalUtilisation); free < need[ref] {
			return advise("free space on the SR, or wait until what was deleted is coalesced", "SR %s: %s needs %s, %s are free: %w", sr.NameLabel, what,
				humanize.IBytes(uint64(need[ref])), humanize.IBytes(uint64(max(free, 0))), ErrSpace)
		}
	}
	return nil
}
