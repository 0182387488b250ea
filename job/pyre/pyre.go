// Package pyre matches names like Python's re.match: at the beginning of the name, to
// any end. Patterns are translated to those of github.com/dlclark/regexp2, a
// backtracking engine of the .NET family, which differs in a few corners (Python 3
// documentation, "re"; .NET documentation, "Regular Expression Language"). A pattern
// that cannot be translated is refused, never matched differently.
package pyre

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/dlclark/regexp2"
)

// ErrPattern is returned for patterns that Python refuses, or that cannot be supported
// here.
var ErrPattern = errors.New("no usable regular expression")

// matchLimit ends matches of patterns that would take exponential time.
const matchLimit = 2 * time.Second

// Pattern is a compiled pattern. It is safe for concurrent use.
type Pattern struct {
	text string
	re   *regexp2.Regexp
}

// Compile parses a pattern of Python 3.
func Compile(text string) (*Pattern, error) {
	t := translator{in: []rune(text)}
	if err := t.run(); err != nil {
		return nil, fmt.Errorf("pattern %q: %w: %w", text, ErrPattern, err)
	}
	end := ")"
	if t.options&regexp2.IgnorePatternWhitespace != 0 {
		end = "\n)" // a comment may be open
	}
	re, err := regexp2.Compile(`\A(?:`+t.out.String()+end, t.options)
	if err != nil {
		return nil, fmt.Errorf("pattern %q: %w: %w", text, ErrPattern, err)
	}
	re.MatchTimeout = matchLimit
	return &Pattern{text: text, re: re}, nil
}

// Match reports whether the pattern matches at the beginning of s.
func (p *Pattern) Match(s string) (bool, error) {
	ok, err := p.re.MatchString(s)
	if err != nil {
		return false, fmt.Errorf("pattern %q: %w", p.text, err)
	}
	return ok, nil
}

// String returns the original pattern.
func (p *Pattern) String() string { return p.text }

// translator translates a pattern in one pass.
type translator struct {
	in      []rune
	at      int
	out     strings.Builder
	options regexp2.RegexOptions
	// still is set if a quantifier is not permitted here: at a beginning, or after an
	// assertion.
	still    bool
	named    bool // a named group was seen
	numbered bool // a reference by number was seen
}

func (t *translator) rest() string { return string(t.in[t.at:]) }

func (t *translator) put(s string) { t.out.WriteString(s) }

func (t *translator) run() error {
	if err := t.leadingFlags(); err != nil {
		return err
	}
	t.still = true
	for t.at < len(t.in) {
		if err := t.step(); err != nil {
			return err
		}
	}
	if t.named && t.numbered {
		return errors.New("references by number together with named groups are not supported")
	}
	return nil
}

// leadingFlags cuts (?imsx) from the beginning, the only place where Python permits
// it.
func (t *translator) leadingFlags() error {
	for strings.HasPrefix(t.rest(), "(?") {
		i := 2
		for t.at+i < len(t.in) && strings.ContainsRune("aiLmsux", t.in[t.at+i]) {
			i++
		}
		if i == 2 || t.at+i >= len(t.in) || t.in[t.at+i] != ')' {
			return nil
		}
		for _, f := range t.in[t.at+2 : t.at+i] {
			switch f {
			case 'i':
				t.options |= regexp2.IgnoreCase
			case 'm':
				t.options |= regexp2.Multiline
			case 's':
				t.options |= regexp2.Singleline
			case 'x':
				t.options |= regexp2.IgnorePatternWhitespace
			case 'u': // it is the default
			default:
				return fmt.Errorf("flag %q cannot be honoured", f)
			}
		}
		t.at += i + 1
	}
	return nil
}

func (t *translator) step() error {
	c := t.in[t.at]
	switch c {
	case '\\':
		return t.escape(false)
	case '[':
		return t.class()
	case '(':
		return t.open()
	case '^', '$':
		t.still = true
	case '|':
		t.still = true
	case '*', '+', '?':
		return t.quantifier(string(c))
	case '{':
		return t.braces()
	case '#':
		if t.options&regexp2.IgnorePatternWhitespace != 0 {
			for t.at < len(t.in) && t.in[t.at] != '\n' {
				t.at++
			}
			return nil
		}
		t.still = false
	default:
		t.still = false
	}
	t.put(string(c))
	t.at++
	return nil
}

func (t *translator) quantifier(q string) error {
	if t.still {
		return fmt.Errorf("%q has nothing to repeat", q)
	}
	t.put(q)
	t.at += len(q)
	return t.suffix()
}

// suffix parses the mark of a lazy quantifier. A possessive one is refused, because
// most versions of Python do not support it.
func (t *translator) suffix() error {
	if t.at >= len(t.in) {
		return nil
	}
	switch t.in[t.at] {
	case '?':
		t.put("?")
		t.at++
	case '+':
		return errors.New("possessive quantifiers cannot be honoured")
	}
	if t.at < len(t.in) && strings.ContainsRune("*+?", t.in[t.at]) {
		return errors.New("multiple repeat")
	}
	return nil
}

// braces parses {n}, {n,}, {,m} or {n,m}; anything else is a literal brace.
func (t *translator) braces() error {
	end := strings.IndexRune(t.rest(), '}')
	body := ""
	if end > 0 {
		body = t.rest()[1:end]
	}
	low, high, comma := strings.Cut(body, ",")
	if end <= 1 || !digits(low) || !digits(high) || !comma && low == "" {
		t.put(`\{`)
		t.at++
		t.still = false
		return nil
	}
	if t.still {
		return errors.New("a repetition has nothing to repeat")
	}
	if low == "" {
		low = "0"
	}
	if comma {
		low += ","
	}
	t.put("{" + low + high + "}")
	t.at += end + 1
	return t.suffix()
}

func digits(s string) bool {
	return strings.Trim(s, "0123456789") == "" && len(s) < 9
}

// open parses the beginning of a group.
func (t *translator) open() error {
	t.still = true
	rest := t.rest()
	if !strings.HasPrefix(rest, "(?") {
		t.put("(")
		t.at++
		return nil
	}
	take := func(in, out string) error {
		t.put(out)
		t.at += len(in)
		return nil
	}
	switch {
	case strings.HasPrefix(rest, "(?:"):
		return take("(?:", "(?:")
	case strings.HasPrefix(rest, "(?="), strings.HasPrefix(rest, "(?!"):
		return take(rest[:3], rest[:3])
	case strings.HasPrefix(rest, "(?<="), strings.HasPrefix(rest, "(?<!"):
		return errors.New("lookbehind assertions are not supported")
	case strings.HasPrefix(rest, "(?P<"):
		end := strings.IndexByte(rest, '>')
		if end < 0 || !identifier(rest[4:end]) {
			return errors.New("a group's name is no name")
		}
		t.named = true
		t.put("(?<" + rest[4:end] + ">")
		t.at += end + 1
		return nil
	case strings.HasPrefix(rest, "(?P="):
		end := strings.IndexByte(rest, ')')
		if end < 0 || !identifier(rest[4:end]) {
			return errors.New("a reference's name is no name")
		}
		t.put(`\k<` + rest[4:end] + ">")
		t.at += end + 1
		t.still = false
		return nil
	case strings.HasPrefix(rest, "(?#"):
		end := strings.IndexByte(rest, ')')
		if end < 0 {
			return errors.New("a comment does not end")
		}
		t.at += len([]rune(rest[:end+1]))
		return nil
	}
	// (?i:...), (?-i:...): flags for a part.
	i := 2
	for i < len(rest) && strings.IndexByte("imsx-", rest[i]) >= 0 {
		i++
	}
	if i > 2 && i < len(rest) && rest[i] == ':' && !strings.Contains(rest[:i], "x") && strings.Count(rest[:i], "-") <= 1 && rest[i-1] != '-' {
		return take(rest[:i+1], rest[:i+1])
	}
	return fmt.Errorf("%q begins nothing that can be honoured", rest[:min(len(rest), 4)])
}

func identifier(s string) bool {
	for i, r := range s {
		letter := r == '_' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z'
		if !letter && (i == 0 || r < '0' || r > '9') {
			return false
		}
	}
	return s != ""
}

// escape parses a backslash and its meaning.
func (t *translator) escape(inClass bool) error {
	if t.at+1 >= len(t.in) {
		return errors.New("a backslash at the end")
	}
	c := t.in[t.at+1]
	t.at += 2
	t.still = false
	switch {
	case c >= '0' && c <= '9':
		if c != '0' && !inClass {
			t.numbered = true
		}
		// The two engines count octal digits differently.
		if t.at < len(t.in) && t.in[t.at] >= '0' && t.in[t.at] <= '9' || c == '0' || inClass {
			return errors.New("octal escapes cannot be honoured: write \\xHH")
		}
	case strings.ContainsRune("bBA", c) && !inClass:
		t.still = true
	case c == 'Z' && !inClass:
		t.still = true
		t.put(`\z`)
		return nil
	case c == 'x':
		return t.hex(2, c)
	case c == 'u':
		return t.hex(4, c)
	case strings.ContainsRune("dDwWsSafnrtv", c), c == 'b' && inClass:
	case c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z':
		return fmt.Errorf(`bad escape \%c`, c)
	case c == ' ' || c == '#' || c == '_' || c > 0x7f || c < ' ':
		t.put(literal(c))
		return nil
	}
	t.put(`\` + string(c))
	return nil
}

func (t *translator) hex(n int, c rune) error {
	if t.at+n > len(t.in) || strings.Trim(string(t.in[t.at:t.at+n]), "0123456789abcdefABCDEF") != "" {
		return fmt.Errorf(`incomplete escape \%c`, c)
	}
	t.put(`\` + string(c) + string(t.in[t.at:t.at+n]))
	t.at += n
	return nil
}

// literal returns a pattern for a character, also where white space is ignored.
func literal(c rune) string {
	if c > 0x7f {
		return string(c)
	}
	return fmt.Sprintf(`\x%02x`, c)
}

// class parses a set in brackets. In it, an opening bracket and a hyphen before one
// are literal, whereas .NET would subtract a set.
func (t *translator) class() error {
	t.put("[")
	t.at++
	if t.at < len(t.in) && t.in[t.at] == '^' {
		t.put("^")
		t.at++
	}
	for first := true; t.at < len(t.in); first = false {
		switch c := t.in[t.at]; {
		case c == ']' && !first:
			t.put("]")
			t.at++
			t.still = false
			return nil
		case c == '\\':
			from := t.at
			if err := t.escape(true); err != nil {
				return err
			}
			many := strings.ContainsRune("dDwWsS", t.in[from+1])
			if many && t.at+1 < len(t.in) && t.in[t.at] == '-' && t.in[t.at+1] != ']' {
				return errors.New("bad character range")
			}
		case c == '[' || c == ']' || c == '^':
			t.put(`\` + string(c))
			t.at++
		case c == '#' || c == ' ':
			t.put(literal(c))
			t.at++
		default:
			t.put(string(c))
			t.at++
		}
	}
	return errors.New("a set does not end")
}
