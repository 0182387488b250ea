package repair

import (
	"cmp"
	"slices"
	"strings"

	"xenkeep/internal/disk"
	"xenkeep/repo"
	"xenkeep/repo/check"
)

// blocks converts ranges of bytes into ranges of blocks for the damage list, and
// into lines for people, merged if they touch.
func blocks(ranges []check.Range) (list []repo.DamagedDisk, lost []Lost, snapshots int) {
	slices.SortStableFunc(ranges, func(a, b check.Range) int {
		return cmp.Or(a.Snapshot.DataTime.Compare(b.Snapshot.DataTime), strings.Compare(a.Snapshot.ID(), b.Snapshot.ID()),
			strings.Compare(a.Disk.Device, b.Disk.Device), cmp.Compare(a.From, b.From))
	})
	seen := make(map[string]bool)
	for _, r := range ranges {
		seen[r.Snapshot.ID()] = true
		first, end := r.From/disk.BlockSize, (r.To+disk.BlockSize-1)/disk.BlockSize
		if n := len(list); n > 0 && list[n-1].Snapshot == r.Snapshot.ID() && list[n-1].Device == r.Disk.Device {
			d, l := &list[n-1], &lost[len(lost)-1]
			if last := &d.Ranges[len(d.Ranges)-1]; first <= last[0]+last[1] {
				last[1] = max(last[1], end-last[0])
			} else {
				d.Ranges = append(d.Ranges, [2]int64{first, end - first})
			}
			if r.From <= l.To {
				l.To = max(l.To, r.To)
				continue
			}
		} else {
			list = append(list, repo.DamagedDisk{Snapshot: r.Snapshot.ID(), Device: r.Disk.Device, VDI: r.Disk.VDI, Ranges: [][2]int64{{first, end - first}}})
		}
		lost = append(lost, Lost{
			Snapshot: r.Snapshot.ID(), Data: r.Snapshot.DataTime, VMUUID: r.Snapshot.VM.UUID, VMName: r.Snapshot.VM.Name,
			Device: r.Disk.Device, VDI: r.Disk.VDI, From: r.From, To: r.To,
		})
	}
	return list, lost, len(seen)
}
