package restore

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"unicode"

	"xenkeep/internal/hints"
	"xenkeep/xapi"
)

// findSR returns the SR with a name or UUID; "" is the pool's default. The error lists
// similar names and the command that lists all SRs.
func findSR(ctx context.Context, pool *xapi.Client, name string) (xapi.SR, error) {
	const list = "xenkeep pool srs lists them; a UUID is taken in place of a name, also where the name holds a comma or \"=\""
	if name == "" {
		rec, err := pool.Pool(ctx)
		if err != nil {
			return xapi.SR{}, err
		}
		sr, err := pool.SR(ctx, rec.DefaultSR)
		if rec.DefaultSR.IsNull() || xapi.IsCode(err, xapi.HandleInvalid) {
			return sr, hints.With(errors.New("no SR is specified, and the pool has no default SR"), "specify one with --to-sr; "+list)
		}
		return sr, err
	}
	sr, err := pool.FindSR(ctx, name)
	if !errors.Is(err, xapi.ErrNotFound) {
		return sr, err
	}
	all, aerr := pool.SRs(ctx)
	if aerr != nil {
		return sr, errors.Join(err, aerr)
	}
	var names []string
	for _, s := range all {
		names = append(names, s.NameLabel)
	}
	return sr, hints.With(fmt.Errorf("%w%s", err, didYouMean(name, names)), list)
}

// findNetwork returns the network with a name or UUID, like findSR.
func findNetwork(ctx context.Context, pool *xapi.Client, name string) (xapi.Network, error) {
	n, err := pool.FindNetwork(ctx, name)
	if !errors.Is(err, xapi.ErrNotFound) {
		return n, err
	}
	all, aerr := pool.Networks(ctx)
	if aerr != nil {
		return n, errors.Join(err, aerr)
	}
	var names []string
	for _, x := range all {
		names = append(names, x.NameLabel)
	}
	return n, hints.With(fmt.Errorf("%w%s", err, didYouMean(name, names)),
		"xe network-list lists them; a UUID is taken in place of a name, also where the name holds \"=\"")

}

// didYouMean suggests the most similar name to a wrong one, if there is a similar one.
func didYouMean(wrong string, names []string) string {
	best, least := "", len(wrong)/4+1
	for _, n := range names {
		if d := distance(folded(wrong), folded(n)); d < least || d == 0 && best == "" {
			best, least = n, d
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf("; did you mean %q?", best)
}

// folded returns a name without frequent sources of typing errors: case, spaces and
// punctuation.
func folded(s string) []rune {
	var out []rune
	for _, r := range strings.ToLower(s) {
		if unicode.IsLetter(r) || unicode.IsDigit(r) {
			out = append(out, r)
		}
	}
	return out
}

// distance returns the number of characters that must be inserted, removed or replaced
// to turn one text into the other.
func distance(a, b []rune) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range a {
		diagonal := row[0]
		row[0] = i + 1
		for j := range b {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
