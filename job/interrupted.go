package job

import (
	"fmt"

	"github.com/dustin/go-humanize"
)

// VMInterrupt is a VM whose backup was begun and not completed, because the run was
// interrupted. Its JSON form is documented in docs/reference/json.md.
type VMInterrupt struct {
	VM    string `json:"vm"`
	UUID  string `json:"vm_uuid"`
	Read  int64  `json:"bytes_read"`
	Total int64  `json:"bytes_total"` // of the disks that were begun
	Clean bool   `json:"pool_clean"`  // no object of the backup is left on the pool
}

// Reason describes how much of the backup was read, how that will be used, and whether
// the pool is clean.
func (i *VMInterrupt) Reason() string {
	text := "before its data were read"
	if i.Total > 0 {
		text = "after " + amountOf(i.Read, i.Total) + "; the next run uses the uploaded data"
	}
	if i.Clean {
		return text + "; the pool is clean"
	}
	return text + "; its VM snapshot is still on the pool, and the next run or xenkeep cleanup removes it"
}

// amountOf formats a part of a whole in the unit of the whole: for example "50 of 700
// MiB".
func amountOf(part, whole int64) string {
	part = min(part, whole)
	for _, u := range []struct {
		size int64
		name string
	}{{1 << 40, "TiB"}, {1 << 30, "GiB"}, {1 << 20, "MiB"}} {
		if whole < 10*u.size {
			continue
		}
		return fmt.Sprintf("%d of %d %s", part/u.size, whole/u.size, u.name)
	}
	return humanize.IBytes(uint64(part)) + " of " + humanize.IBytes(uint64(whole))
}
