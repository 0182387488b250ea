// Package text prepares external names for display: it makes them safe for a
// terminal, measures and shortens them by their width on a terminal, and aligns
// them in tables.
package text

import (
	"fmt"
	"io"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/mattn/go-runewidth"
)

// Clean returns s as a single line that cannot control a terminal, and that looks
// different from every other name: format characters, which include those that
// change the direction of writing and those without width, become escapes such as
// \u202e. Control characters and separators of lines become question marks, and
// invalid UTF-8 the replacement character.
func Clean(s string) string {
	if utf8.ValidString(s) && strings.IndexFunc(s, unsafe) < 0 {
		return s
	}
	var b strings.Builder
	for _, r := range s {
		switch {
		case unicode.Is(unicode.Cf, r) && r > 0xffff:
			fmt.Fprintf(&b, `\U%08x`, r)
		case unicode.Is(unicode.Cf, r):
			fmt.Fprintf(&b, `\u%04x`, r)
		case unsafe(r):
			b.WriteByte('?')
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}

func unsafe(r rune) bool {
	return unicode.In(r, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp)
}

// Width returns the number of columns that a terminal needs for s: two for a
// wide character, none for a combining one.
func Width(s string) int {
	n := 0
	for _, r := range s {
		n += runeWidth(r)
	}
	return n
}

// runeWidth does not depend on the locale, so that reports are the same
// everywhere.
func runeWidth(r rune) int {
	c := runewidth.Condition{StrictEmojiNeutral: true}
	return c.RuneWidth(r)
}

// ellipsis replaces the omitted part of a name.
const ellipsis = "..."

// Shorten returns s in at most width columns. It omits the middle, because the
// beginning and the end distinguish names best. With a width below 5, only the
// beginning remains.
func Shorten(s string, width int) string {
	if Width(s) <= width {
		return s
	}
	if width < len(ellipsis)+2 {
		return head(s, width)
	}
	rest := width - len(ellipsis)
	end := tail(s, rest/2)
	return head(s, rest-Width(end)) + ellipsis + end
}

// head returns the longest beginning of s that fits into width columns.
func head(s string, width int) string {
	n := 0
	for i, r := range s {
		n += runeWidth(r)
		if n > width {
			return s[:i]
		}
	}
	return s
}

// tail returns the longest end of s that fits into width columns and does not
// begin with a combining character.
func tail(s string, width int) string {
	runes := []rune(s)
	n, from := 0, len(runes)
	for i := len(runes) - 1; i >= 0; i-- {
		w := runeWidth(runes[i])
		if n+w > width {
			break
		}
		if n += w; w > 0 {
			from = i
		}
	}
	return string(runes[from:])
}

// Pad returns s, padded with spaces to width columns.
func Pad(s string, width int) string {
	return s + strings.Repeat(" ", max(width-Width(s), 0))
}

// Table aligns the cells of its rows in columns. Rows may have fewer cells than
// others, and cells may be empty.
type Table struct {
	// Columns is the width of the terminal that shows the table; 0 stands for any
	// width. In a narrower one, the cells of the last column are continued on
	// further lines, below each other.
	Columns int

	rows [][]string
}

// Row adds a row. Its cells are cleaned.
func (t *Table) Row(cells ...string) {
	row := make([]string, len(cells))
	for i, c := range cells {
		row[i] = Clean(c)
	}
	t.rows = append(t.rows, row)
}

// WriteTo writes the table. No line ends with spaces.
func (t *Table) WriteTo(w io.Writer) (int64, error) {
	var widths []int
	for _, row := range t.rows {
		for i, c := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], Width(c))
		}
	}
	last := len(widths) - 1
	room := t.lastRoom(widths)
	var b strings.Builder
	for _, row := range t.rows {
		var more []string // of the last cell
		if room > 0 && len(row) == last+1 {
			lines := wrap(row[last], room)
			row, more = append(row[:last:last], lines[0]), lines[1:]
		}
		b.WriteString(join(row, widths))
		for _, m := range more {
			next := make([]string, last+1)
			next[last] = m
			b.WriteString(join(next, widths))
		}
	}
	n, err := io.WriteString(w, b.String())
	return int64(n), err
}

// leastRoom is the least width of a column whose cells are continued.
const leastRoom = 16

// lastRoom returns the width of the last column if its cells must be continued on
// further lines, and 0 if they fit, or if nothing would be gained.
func (t *Table) lastRoom(widths []int) int {
	if t.Columns == 0 || len(widths) == 0 {
		return 0
	}
	room := t.Columns
	for _, w := range widths[:len(widths)-1] {
		room -= w + 2
	}
	if room < leastRoom || widths[len(widths)-1] <= room {
		return 0
	}
	return room
}

// join returns the cells of a row as a line.
func join(row []string, widths []int) string {
	var line strings.Builder
	for i, c := range row {
		if i > 0 {
			line.WriteString("  ")
		}
		line.WriteString(Pad(c, widths[i]))
	}
	return strings.TrimRight(line.String(), " ") + "\n"
}

// wrap breaks text between words into lines of at most columns. A longer word has a
// line of its own.
func wrap(s string, columns int) []string {
	var lines []string
	line := ""
	for _, word := range strings.Fields(s) {
		switch {
		case line == "":
			line = word
		case Width(line)+1+Width(word) <= columns:
			line += " " + word
		default:
			lines, line = append(lines, line), word
		}
	}
	return append(lines, line)
}
