package config

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"xenkeep/repo/retention"
)

// Count is a number of snapshots, or all of them.
type Count int

// UnmarshalText parses "all" or a number in quotes.
func (c *Count) UnmarshalText(p []byte) error {
	if s := string(p); s == "all" || s == "unlimited" {
		*c = retention.All
		return nil
	}
	n, err := strconv.Atoi(string(p))
	if err != nil || n < 0 {
		return fmt.Errorf("%q: want a number or \"all\"", p)
	}
	*c = Count(n)
	return nil
}

// Period is a calendar period.
type Period retention.Period

// UnmarshalText parses a period.
func (p *Period) UnmarshalText(text []byte) error {
	v, err := retention.ParsePeriod(string(text))
	*p = Period(v)
	return err
}

// Grace is the length of a grace period: a period, or "0" for none.
type Grace retention.Period

// UnmarshalText reads a grace period.
func (g *Grace) UnmarshalText(text []byte) error {
	v, err := retention.ParseGrace(string(text))
	*g = Grace(v)
	return err
}

// Size is a number of bytes.
type Size int64

// UnmarshalText parses a number with or without a unit of 1024: "500M", "20G", "20
// GiB".
func (s *Size) UnmarshalText(p []byte) error {
	n, err := ParseSize(string(p))
	*s = Size(n)
	return err
}

// ParseSize parses a size; see Size.
func ParseSize(text string) (int64, error) {
	bad := fmt.Errorf("size %q: want a number with K, M, G or T, such as 20G", text)
	t := strings.ToUpper(strings.TrimSpace(text))
	t = strings.TrimSuffix(strings.TrimSuffix(t, "B"), "I")
	unit := int64(1)
	if t != "" {
		if i := strings.IndexByte("KMGT", t[len(t)-1]); i >= 0 {
			unit, t = 1<<(10*(i+1)), strings.TrimSpace(t[:len(t)-1])
		}
	}
	n, err := strconv.ParseFloat(t, 64)
	if err != nil || n < 0 || math.IsInf(n, 0) || math.IsNaN(n) || n*float64(unit) > 1<<60 {
		return 0, bad
	}
	return int64(n * float64(unit)), nil
}

// Every is the interval of a periodic operation.
type Every string

// The values of Every; "" is Never.
const (
	Never   Every = "never"
	Run     Every = "always"
	Daily   Every = "daily"
	Weekly  Every = "weekly"
	Monthly Every = "monthly"
)

// Due reports whether the operation is due at now, if last was its last time; last may
// be zero. A day counts as 20 hours and a week as 6 days and 20 hours, so that a job
// that begins a little earlier than last time does not skip its turn.
func (e Every) Due(last, now time.Time) bool {
	const slack = 4 * time.Hour
	switch e {
	case Run:
		return true
	case Daily:
		return !now.Before(last.Add(24*time.Hour - slack))
	case Weekly:
		return !now.Before(last.Add(7*24*time.Hour - slack))
	case Monthly:
		return !now.Before(last.AddDate(0, 1, 0).Add(-slack))
	}
	return false
}

// Until is the end of a window: a time of day ("06:00"), or a length ("6h").
type Until struct {
	Clock  int // minutes after midnight, local; -1 if not set
	Length time.Duration
	set    bool
}

// UnmarshalText parses the end of a window.
func (u *Until) UnmarshalText(p []byte) error {
	text := string(p)
	if t, err := time.Parse("15:04", text); err == nil {
		*u = Until{Clock: t.Hour()*60 + t.Minute(), set: true}
		return nil
	}
	d, err := time.ParseDuration(text)
	if err != nil || d <= 0 {
		return fmt.Errorf("stop-after %q: want a time of day such as 06:00, or a length such as 6h", text)
	}
	*u = Until{Clock: -1, Length: d, set: true}
	return nil
}

// String returns the form that UnmarshalText parses.
func (u Until) String() string {
	switch {
	case !u.set:
		return ""
	case u.Clock >= 0:
		return fmt.Sprintf("%02d:%02d", u.Clock/60, u.Clock%60)
	}
	return u.Length.String()
}

// After returns the end of the window of a run that began at start; zero if there is
// none. A time of day means the next one.
func (u Until) After(start time.Time) time.Time {
	switch {
	case !u.set:
		return time.Time{}
	case u.Clock < 0:
		return start.Add(u.Length)
	}
	y, m, d := start.Date()
	end := time.Date(y, m, d, u.Clock/60, u.Clock%60, 0, 0, start.Location())
	if !end.After(start) {
		end = time.Date(y, m, d+1, u.Clock/60, u.Clock%60, 0, 0, start.Location())
	}
	return end
}
