package repo

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// ErrTime is returned for text that is not a valid time.
var ErrTime = errors.New("no such time")

// When is the period that a user names: a day, a minute or a second. End is the
// first moment after it.
type When struct{ Begin, End time.Time }

// ParseWhen parses a time as people write it, in the time zone of now. Valid forms
// are 2026-11-24 (that day), 2026-11-24 03:00 (that minute) and 2026-11-24 03:00:12
// (that second), each also with a T between date and time, and with a zone such as
// Z or +01:00 at its end; and today, yesterday and the names of weekdays, each
// optionally followed by a time of day. A weekday means the last such day, today
// included.
func ParseWhen(text string, now time.Time) (When, error) {
	text = strings.TrimSpace(text)
	if w, ok := zoned(text); ok {
		return w, nil
	}
	if text != "" && text[0] >= '0' && text[0] <= '9' {
		text = strings.Replace(text, "T", " ", 1)
	}
	day, clock, _ := strings.Cut(text, " ")
	date, err := parseDay(day, now)
	if err != nil {
		return When{}, fmt.Errorf("%q: %w", text, err)
	}
	if clock = strings.TrimSpace(clock); clock == "" {
		return When{date, date.AddDate(0, 0, 1)}, nil
	}
	for _, l := range []struct {
		layout string
		long   time.Duration
	}{{"15:04", time.Minute}, {"15:04:05", time.Second}} {
		if c, err := time.Parse(l.layout, clock); err == nil {
			// The time of day is that of this date, which may have 23 or 25 hours.
			t, err := local(date, c)
			if err != nil {
				return When{}, fmt.Errorf("%q: %w", text, err)
			}
			return When{t, t.Add(l.long)}, nil
		}
	}
	return When{}, fmt.Errorf("%q: %w: want a time of day such as 03:00", text, ErrTime)
}

// zoned parses a time with a zone.
func zoned(text string) (When, bool) {
	if len(text) < 11 {
		return When{}, false
	}
	text = text[:10] + strings.Replace(text[10:11], " ", "T", 1) + strings.ReplaceAll(text[11:], " ", "")
	for _, l := range []struct {
		layout string
		long   time.Duration
	}{{"2006-01-02T15:04:05Z07:00", time.Second}, {"2006-01-02T15:04Z07:00", time.Minute}} {
		if t, err := time.Parse(l.layout, text); err == nil {
			return When{t, t.Add(l.long)}, true
		}
	}
	return When{}, false
}

// local returns the moment of a time of day on a date. If the clocks were changed
// on that date, a time may not exist or may exist twice: that is an error, because
// either choice can select a snapshot that the user does not mean.
func local(date, clock time.Time) (time.Time, error) {
	at := func(hour int) time.Time {
		return time.Date(date.Year(), date.Month(), date.Day(), hour, clock.Minute(), clock.Second(), 0, date.Location())
	}
	t := at(clock.Hour())
	if t.Hour() != clock.Hour() || t.Minute() != clock.Minute() {
		return t, fmt.Errorf("%w on that day: the clocks were set forward; name an earlier or later one", ErrTime)
	}
	// Clocks are set back by at most a few hours.
	const form = "2006-01-02T15:04Z07:00"
	for _, d := range []time.Duration{-time.Hour, time.Hour, -30 * time.Minute, 30 * time.Minute} {
		other := t.Add(d)
		if other.Day() == t.Day() && other.Hour() == t.Hour() && other.Minute() == t.Minute() {
			if other.Before(t) {
				t, other = other, t
			}
			return t, fmt.Errorf("%w: it was twice, because the clocks were set back: write %s or %s", ErrTime, t.Format(form), other.Format(form))
		}
	}
	return t, nil
}

// weekday reports whether text is the name of a weekday, or its first three
// letters.
func weekday(text string) (time.Weekday, bool) {
	for d := time.Sunday; d <= time.Saturday; d++ {
		if strings.EqualFold(text, d.String()) || strings.EqualFold(text, d.String()[:3]) {
			return d, true
		}
	}
	return 0, false
}

// parseDay returns the first moment of a day.
func parseDay(text string, now time.Time) (time.Time, error) {
	today := time.Date(now.Year(), now.Month(), now.Day(), 0, 0, 0, 0, now.Location())
	switch strings.ToLower(text) {
	case "today":
		return today, nil
	case "yesterday":
		return today.AddDate(0, 0, -1), nil
	}
	if d, ok := weekday(text); ok {
		return today.AddDate(0, 0, -int(today.Weekday()-d+7)%7), nil
	}
	day, err := time.ParseInLocation("2006-01-02", text, now.Location())
	if err != nil {
		return time.Time{}, fmt.Errorf("%w: want a day such as 2026-11-24, today, yesterday or tuesday, with a time such as 03:00 if need be", ErrTime)
	}
	return day, nil
}
