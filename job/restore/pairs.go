package restore

import (
	"errors"
	"fmt"
	"strings"
)

// Pair is a part of a text such as "xvda=SR1,xvdb=SR2". A part without "=" has only a
// Value.
type Pair struct{ Key, Value string }

// cutWord cuts a word from the beginning of text: up to the first of the characters
// stops, or a text in double quotes, in which two quotes represent one.
func cutWord(text, stops string) (word, rest string, err error) {
	if !strings.HasPrefix(text, `"`) {
		if i := strings.IndexAny(text, stops); i >= 0 && stops != "" {
			return text[:i], text[i:], nil
		}
		return text, "", nil
	}
	var b strings.Builder
	for i := 1; i < len(text); i++ {
		switch {
		case text[i] != '"':
			b.WriteByte(text[i])
		case strings.HasPrefix(text[i:], `""`):
			b.WriteByte('"')
			i++
		default:
			rest = text[i+1:]
			if rest != "" && (stops == "" || !strings.ContainsRune(stops, rune(rest[0]))) {
				return "", "", fmt.Errorf("%q: there is text after the closing quote", text)
			}
			return b.String(), rest, nil
		}
	}
	return "", "", fmt.Errorf("%q: a closing quote is missing", text)
}

// ParsePairs parses "xvda=SR1,xvdb=SR2". A name with a comma must be in double quotes,
// and so must a key, or a name without a key, that contains a "=".
func ParsePairs(text string) ([]Pair, error) {
	var pairs []Pair
	for more := true; more; {
		first, rest, err := cutWord(text, "=,")
		if err != nil {
			return nil, err
		}
		p := Pair{Value: first}
		if strings.HasPrefix(rest, "=") {
			p.Key = first
			if p.Value, rest, err = cutWord(rest[1:], ","); err != nil {
				return nil, err
			}
			if p.Key == "" {
				return nil, errors.New("a name is missing before =")
			}
		}
		if p.Value == "" {
			return nil, errors.New("a name is empty")
		}
		pairs = append(pairs, p)
		text, more = strings.CutPrefix(rest, ",")
	}
	return pairs, nil
}

// ParsePair parses "OLD=NEW". OLD must be in double quotes if it contains a "="; NEW
// may contain one, and both may contain commas.
func ParsePair(text string) (Pair, error) {
	key, rest, err := cutWord(text, "=")
	if err != nil {
		return Pair{}, err
	}
	value, ok := strings.CutPrefix(rest, "=")
	if !ok {
		return Pair{}, errors.New("want OLD=NEW")
	}
	if value, _, err = cutWord(value, ""); err != nil {
		return Pair{}, err
	}
	if key == "" || value == "" {
		return Pair{}, errors.New("want OLD=NEW")
	}
	return Pair{key, value}, nil
}
