// Package pyre matches names the way Python's re.match does: at the beginning
// of the name, to wherever the pattern ends. Patterns are translated into those
// of github.com/dlclark/regexp2, a backtracking engine of the .NET family, which
// differ in a few corners (Python 3 documentation, "re"; .NET documentation,
// "Regular Expression Language"). What cannot be translated is refused, never
// matched in another way.
package pyre

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/dlclark/regexp2"
)

// ErrPattern is returned for patterns that Python refuses, or that cannot be
// honoured here.
var ErrPattern = errors.New("no usable regular expression")

// matchLimit ends matches of patterns that would try for ever.
const matchLimit = 2 * time.Second

// Pattern is a compiled pattern; it may be used by many goroutines.
type Pattern struct {
	text string
	re   *regexp2.Regexp
}

// Compile reads a pattern of Python 3.
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

// Match tells whether the pattern matches at the beginning of s.
func (p *Pattern) Match(s string) (bool, error) {
	ok, err := p.re.MatchString(s)
	if err != nil {
		return false, fmt.Errorf("pattern %q: %w", p.text, err)
	}
	return ok, nil
}

// String is the pattern as it was written.
func (p *Pattern) String() string { return p.text }

// translator goes through a pattern once.
type translator struct {
	in      []rune
	at      int
	out     strings.Builder
	options regexp2.RegexOptions
	// still tells that a quantifier may not stand here: at a beginning, or
	// behind an assertion.
	still    bool
	named    bool // a group with a name was seen
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
		return errors.New("references by number beside named groups cannot be honoured")
	}
	return nil
}

// leadingFlags takes (?imsx) off the beginning, where alone Python allows it.
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
			case 'u': // as it is anyway
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

// suffix takes the mark of a lazy quantifier. A possessive one is refused:
// most Pythons do not know it.
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

// braces is {n}, {n,}, {,m} or {n,m}; anything else is a brace as such.
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

// open is the beginning of a group.
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
		return errors.New("assertions that look behind cannot be honoured")
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

// escape is a backslash and what it means.
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
		// Two engines count octal digits in two ways.
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

// literal is a character as such, also where white space is passed over.
func literal(c rune) string {
	if c > 0x7f {
		return string(c)
	}
	return fmt.Sprintf(`\x%02x`, c)
}

// class is a set in brackets. In it an opening bracket and a hyphen before one
// mean themselves, where .NET would subtract.
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
