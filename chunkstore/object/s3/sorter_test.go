package s3

import (
	"fmt"
	"testing"

	"xenkeep/chunkstore/object"
)

// If a server lists deletions before versions on each page, the listing is
// sorted, even if one name has more versions than a page.
func TestSorter(t *testing.T) {
	var all []object.Version // in the expected order
	for i := range 3000 {
		name := fmt.Sprintf("packs/%05d", i)
		n := 1 + i%3
		if i == 1500 {
			n = 2500
		}
		for v := range n {
			all = append(all, object.Version{Info: object.Info{Name: name}, ID: fmt.Sprint(n - v), Latest: v == 0, Deleted: v == 0 && i%5 == 0})
		}
	}
	var held sorter
	limit, at := 4*page, 0
	take := func(v object.Version) error {
		if v != all[at] {
			t.Fatalf("entry %d is %+v, want %+v", at, v, all[at])
		}
		at++
		return nil
	}
	most := 0
	for from := 0; from < len(all); from += page {
		part := all[from:min(from+page, len(all))]
		for _, deleted := range []bool{true, false} {
			for _, v := range part {
				if v.Deleted != deleted {
					continue
				}
				held = append(held, v)
				most = max(most, len(held))
				if len(held) >= limit {
					var err error
					if held, err = held.emit(len(held)-2*page, take); err != nil {
						t.Fatal(err)
					}
					limit = len(held) + 2*page
				}
			}
		}
	}
	if _, err := held.emit(len(held), take); err != nil || at != len(all) {
		t.Errorf("%d of %d entries, %v", at, len(all), err)
	}
	if most > 8*page {
		t.Errorf("%d entries were held", most)
	}
}
