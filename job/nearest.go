package job

import (
	"errors"
	"fmt"
	"strings"
	"unicode"

	"xenkeep/internal/hints"
)

// NotFound returns err, by which nothing has the name wrong, with the nearest name of
// those that exist and with a hint. all lists them; name returns "" for one that is
// not suggested.
func NotFound[T any](err error, wrong string, all func() ([]T, error), name func(*T) string, hint string) error {
	list, lerr := all()
	if lerr != nil {
		return errors.Join(err, lerr)
	}
	names := make([]string, len(list))
	for i := range list {
		names[i] = name(&list[i])
	}
	return hints.With(fmt.Errorf("%w%s", err, DidYouMean(wrong, names)), hint)
}

// DidYouMean suggests the name that is nearest to a wrong one, as the end of an error's
// text; "" if none is near. A short name may have one error, a longer one more.
func DidYouMean(wrong string, names []string) string {
	from := folded(wrong)
	best, least := "", max(len(from)/4, 1)+1
	for _, n := range names {
		d := distance(from, folded(n))
		if d < least && len(from) > 0 && (d == 0 || 2*d < len(from)) {
			best, least = n, d
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf("; did you mean %q?", best)
}

// folded returns a name without the differences that are mistyped most: case, spaces
// and punctuation.
func folded(s string) []rune {
	var out []rune
	for _, r := range strings.ToLower(s) {
		if unicode.IsLetter(r) || unicode.IsDigit(r) {
			out = append(out, r)
		}
	}
	return out
}

// distance returns the number of characters to insert, remove, replace or exchange with
// the next one in order to make one text of the other.
func distance(a, b []rune) int {
	before, row := make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range a {
		next := make([]int, len(b)+1)
		next[0] = i + 1
		for j := range b {
			cost := row[j]
			if a[i] != b[j] {
				cost++
			}
			next[j+1] = min(cost, next[j]+1, row[j+1]+1)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				next[j+1] = min(next[j+1], before[j-1]+1)
			}
		}
		before, row = row, next
	}
	return row[len(b)]
}
