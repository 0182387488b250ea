package retention

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// Period is a calendar period. A day is a day of the local clock, whether it has
// 23, 24 or 25 hours; a month ends on the same day of another month.
type Period struct{ Years, Months, Days, Hours int }

// ErrPeriod is returned for text that is not a period.
var ErrPeriod = errors.New("want numbers with y, m, w, d or h, such as 1y6m, 8w or 36h")

// ParsePeriod parses a period such as "1y6m", "30d" or "36h": years, months, weeks,
// days and hours, in this order, each at most once.
func ParsePeriod(text string) (Period, error) {
	var p Period
	rest, units := text, "ymwdh"
	for rest != "" {
		i := strings.IndexFunc(rest, func(r rune) bool { return r < '0' || r > '9' })
		if i <= 0 {
			return Period{}, fmt.Errorf("period %q: %w", text, ErrPeriod)
		}
		n, err := strconv.Atoi(rest[:i])
		at := strings.IndexByte(units, rest[i])
		if err != nil || at < 0 || n > math.MaxInt32 {
			return Period{}, fmt.Errorf("period %q: %w", text, ErrPeriod)
		}
		switch units[at] {
		case 'y':
			p.Years = n
		case 'm':
			p.Months = n
		case 'w':
			p.Days = 7 * n
		case 'd':
			p.Days += n
		case 'h':
			p.Hours = n
		}
		rest, units = rest[i+1:], units[at+1:]
	}
	if p == (Period{}) {
		return p, fmt.Errorf("period %q: %w", text, ErrPeriod)
	}
	return p, nil
}

// ParseGrace parses the length of a grace period: a period such as "7d" or "36h", or
// "0" for none.
func ParseGrace(text string) (Period, error) {
	if strings.TrimSpace(text) == "0" {
		return Period{}, nil
	}
	return ParsePeriod(text)
}

// String returns the form that ParsePeriod parses, or "" for the zero period.
func (p Period) String() string {
	var b strings.Builder
	for _, u := range []struct {
		n    int
		unit byte
	}{{p.Years, 'y'}, {p.Months, 'm'}, {p.Days, 'd'}, {p.Hours, 'h'}} {
		if u.n != 0 {
			fmt.Fprintf(&b, "%d%c", u.n, u.unit)
		}
	}
	return b.String()
}

// After returns the time that is the period after t, by the clock of t's zone.
func (p Period) After(t time.Time) time.Time {
	return t.AddDate(p.Years, p.Months, p.Days).Add(time.Duration(p.Hours) * time.Hour)
}

// Before returns the time that is the period before t, by the clock of t's zone. If
// the month has fewer days than needed, it is the month's last day.
func (p Period) Before(t time.Time) time.Time {
	year, month, day := t.Date()
	first := time.Date(year-p.Years, month-time.Month(p.Months), 1, 0, 0, 0, 0, t.Location())
	last := time.Date(first.Year(), first.Month()+1, 0, 0, 0, 0, 0, t.Location()).Day()
	b := time.Date(first.Year(), first.Month(), min(day, last)-p.Days,
		t.Hour(), t.Minute(), t.Second(), t.Nanosecond(), t.Location())
	return b.Add(-time.Duration(p.Hours) * time.Hour)
}
