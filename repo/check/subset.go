package check

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"

	"xenkeep/chunkstore/pack"
)

// Subset selects the packs that are read: a percentage of the bytes, a number of
// bytes, or the n-th of m parts. At most one of these is set; the zero value
// selects all packs.
type Subset struct {
	Percent  float64 // of the bytes, selected at random
	Bytes    int64   // selected at random; at least one pack
	Part, Of int     // a pack's part depends on its name, which never changes
}

// ParseSubset parses "5%", "3/7" or, with the function size, "10G".
func ParseSubset(text string, size func(string) (int64, error)) (s Subset, err error) {
	if share, ok := strings.CutSuffix(text, "%"); ok {
		s.Percent, err = strconv.ParseFloat(share, 64)
		if err != nil || !(s.Percent > 0 && s.Percent <= 100) {
			return Subset{}, errors.New("a share is more than 0% and at most 100%")
		}
		return s, nil
	}
	if part, of, ok := strings.Cut(text, "/"); ok {
		var perr error
		s.Part, err = strconv.Atoi(part)
		s.Of, perr = strconv.Atoi(of)
		if err != nil || perr != nil || s.Part < 1 || s.Of < s.Part {
			return Subset{}, errors.New("a part is such as 3/7: from 1/7 to 7/7")
		}
		return s, nil
	}
	if s.Bytes, err = size(text); err == nil && s.Bytes <= 0 {
		err = errors.New("want more than nothing")
	}
	return s, err
}

func (s Subset) String() string {
	switch {
	case s.Percent > 0:
		return strconv.FormatFloat(s.Percent, 'f', -1, 64) + "%"
	case s.Of > 0:
		return fmt.Sprintf("%d/%d", s.Part, s.Of)
	}
	return strconv.FormatInt(s.Bytes, 10)
}

// choose returns the packs that are read, in the order of reading.
func (o *Options) choose(packs map[pack.ID]stored, proofs *proofs) []pack.ID {
	all := make([]pack.ID, 0, len(packs))
	var total int64
	for id, p := range packs {
		if o.Subset.Of == 0 || part(id, o.Subset.Of) == o.Subset.Part {
			all = append(all, id)
			total += p.size
		}
	}
	slices.SortFunc(all, func(a, b pack.ID) int { return slices.Compare(a[:], b[:]) })
	limit := total
	switch {
	case o.Budget > 0:
		// Packs that were never read come first, then those read longest ago.
		slices.SortStableFunc(all, func(a, b pack.ID) int {
			return proofs.when(a, packs[a].modified).Compare(proofs.when(b, packs[b].modified))
		})
		limit = o.Budget
	case o.Subset.Bytes > 0 || o.Subset.Percent > 0:
		rand.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
		if limit = o.Subset.Bytes; o.Subset.Percent > 0 {
			limit = int64(float64(total) * o.Subset.Percent / 100)
		}
	}
	for i, id := range all {
		if limit -= packs[id].size; limit < 0 && i > 0 {
			return all[:i]
		}
	}
	return all
}

// part returns the part, from 1 to n, that a pack belongs to.
func part(id pack.ID, n int) int {
	v := uint64(0)
	for _, b := range id[:8] {
		v = v<<8 | uint64(b)
	}
	return int(v%uint64(n)) + 1
}
