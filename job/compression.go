package job

import (
	"fmt"
	"slices"
	"strings"

	"github.com/dustin/go-humanize"

	"xenkeep/chunkstore"
)

// AddWritten adds the packs and the compression levels of a run to the summary.
func (s *Summary) AddWritten(w chunkstore.WriteStats) {
	s.Packs += w.Packs
	s.Stored += w.Stored
	for _, l := range w.Levels {
		i := slices.IndexFunc(s.Compression, func(o chunkstore.LevelStats) bool { return o.Level == l.Level })
		if i < 0 {
			s.Compression = append(s.Compression, l)
			continue
		}
		o := &s.Compression[i]
		o.Plain, o.Stored, o.Reason = o.Plain+l.Plain, o.Stored+l.Stored, l.Reason
	}
}

// worthShowing is the amount of new data, in bytes, from which people are shown how
// it was compressed.
const worthShowing = 256 << 20

// CompressionText describes the levels that a run chose, for people. It is empty if
// the user chose the level, or if the run compressed little.
func CompressionText(levels []chunkstore.LevelStats) string {
	var total int64
	var parts []string
	for _, l := range levels {
		total += l.Plain
		text := humanize.IBytes(uint64(l.Plain))
		switch l.Reason {
		case chunkstore.ReasonChosen:
			return ""
		case "":
			text += " as it is (it does not compress)"
		case chunkstore.ReasonBegin:
			text += " at level " + l.Level + " (the first)"
		case chunkstore.ReasonCPU:
			text += " at level " + l.Level + " (the CPU was the bottleneck)"
		case chunkstore.ReasonSource:
			text += " at level " + l.Level + " (there was time while the source was read)"
		case chunkstore.ReasonStorage:
			text += " at level " + l.Level + " (there was time while the storage was written)"
		}
		parts = append(parts, text)
	}
	if total < worthShowing {
		return ""
	}
	return fmt.Sprintf("compression: %s", strings.Join(parts, ", "))
}
