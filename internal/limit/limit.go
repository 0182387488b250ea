// Package limit limits the rate of transfers; the rate may depend on the time
// of day.
package limit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
	"sync"
	"time"

	"xenkeep/internal/disk"

	"github.com/dustin/go-humanize"
	"golang.org/x/time/rate"
)

// Schedule is a rate, and other rates for certain times of the day. The zero
// value has no limit.
type Schedule struct {
	text    string
	windows []window // the first that contains the time applies
	usual   int64    // bytes per second; 0 is unlimited
}

type window struct {
	from, to int // minutes of the day; if to is before from, the window crosses midnight
	rate     int64
}

// Parse parses the notation of users: rates in bytes per second, separated by
// commas, each for the hours after its @ or, without one, for all other times:
// "50M", "20M@08:00-18:00,200M", "unlimited@22:00-06:00,10M".
func Parse(text string) (Schedule, error) {
	s := Schedule{text: text}
	usual := false
	for _, part := range strings.Split(text, ",") {
		r, hours, timed := strings.Cut(strings.TrimSpace(part), "@")
		n, err := parseRate(r)
		if err != nil {
			return Schedule{}, fmt.Errorf("limit %q: %w", text, err)
		}
		if !timed {
			if usual {
				return Schedule{}, fmt.Errorf("limit %q: two rates without hours", text)
			}
			s.usual, usual = n, true
			continue
		}
		w := window{rate: n}
		from, to, ok := strings.Cut(hours, "-")
		if ok {
			w.from, err = parseMinute(from)
		}
		if ok && err == nil {
			w.to, err = parseMinute(to)
		}
		if !ok || err != nil || w.from == w.to {
			return Schedule{}, fmt.Errorf("limit %q: hours %q: want HH:MM-HH:MM", text, hours)
		}
		s.windows = append(s.windows, w)
	}
	return s, nil
}

func parseRate(text string) (int64, error) {
	if text == "unlimited" {
		return 0, nil
	}
	n, err := humanize.ParseBytes(strings.TrimSuffix(text, "/s"))
	switch {
	case err != nil:
		return 0, fmt.Errorf("rate %q: want bytes a second, as 500K, 50M or 1G, or unlimited", text)
	case n < 1024 || n > math.MaxInt64/2:
		return 0, fmt.Errorf("rate %q: want 1K at least", text)
	}
	return int64(n), nil
}

func parseMinute(text string) (int, error) {
	if text == "24:00" {
		return 0, nil
	}
	t, err := time.Parse("15:04", text)
	if err != nil {
		return 0, err
	}
	return t.Hour()*60 + t.Minute(), nil
}

// String returns the text from which the schedule was parsed.
func (s Schedule) String() string { return s.text }

// Rate returns the limit at a time, in bytes per second, by t's own time zone;
// 0 is unlimited.
func (s Schedule) Rate(t time.Time) int64 {
	m := t.Hour()*60 + t.Minute()
	for _, w := range s.windows {
		if (w.from < w.to && m >= w.from && m < w.to) || (w.from > w.to && (m >= w.from || m < w.to)) {
			return w.rate
		}
	}
	return s.usual
}

// A Limiter limits the total rate of all its users according to a schedule. A
// nil Limiter has no limit.
type Limiter struct {
	s   Schedule
	now func() time.Time

	mu     sync.Mutex
	rate   int64
	bucket *rate.Limiter // nil while there is no limit
	asked  time.Time
}

// New returns a Limiter, or nil if the schedule has no limit at any time.
func New(s Schedule, now func() time.Time) *Limiter {
	if s.usual == 0 && len(s.windows) == 0 {
		return nil
	}
	if now == nil {
		now = time.Now
	}
	return &Limiter{s: s, now: now, rate: -1}
}

// current returns the bucket for this time of the day.
func (l *Limiter) current() *rate.Limiter {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	if l.rate >= 0 && now.Sub(l.asked).Abs() < time.Second {
		return l.bucket
	}
	l.asked = now
	r := l.s.Rate(now)
	if r == l.rate {
		return l.bucket
	}
	l.rate = r
	if r == 0 {
		l.bucket = nil
		return nil
	}
	// Bursts of a tenth of a second are allowed, so that short transfers are
	// smooth.
	l.bucket = rate.NewLimiter(rate.Limit(r), int(max(min(r/10, 8<<20), 1024)))
	return l.bucket
}

// Wait waits until n more bytes may be transferred.
func (l *Limiter) Wait(ctx context.Context, n int) error {
	if l == nil {
		return nil
	}
	for n > 0 {
		b := l.current()
		if b == nil {
			return nil
		}
		k := min(n, b.Burst())
		if err := b.WaitN(ctx, k); err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if errors.Is(err, context.DeadlineExceeded) || strings.Contains(err.Error(), "deadline") {
				// It will not be in time: wait for the deadline itself.
				<-ctx.Done()
				return context.Cause(ctx)
			}
			return err
		}
		n -= k
	}
	return nil
}

// Reader limits the rate of r; the end of ctx ends its waits.
func (l *Limiter) Reader(ctx context.Context, r io.Reader) io.Reader {
	if l == nil {
		return r
	}
	return &reader{ctx: ctx, l: l, r: r}
}

// reader waits after each read, for the number of bytes read.
type reader struct {
	ctx context.Context //nolint:containedctx // an io.Reader has no other way
	l   *Limiter
	r   io.Reader
}

// piece is the maximum size of one read, so that the number of bytes that wait
// is always small.
const piece = 256 << 10

func (r *reader) Read(p []byte) (int, error) {
	n, err := r.r.Read(p[:min(len(p), piece)])
	if werr := r.l.Wait(r.ctx, n); werr != nil {
		return n, werr
	}
	return n, err
}

// Disk limits the rate of a disk.Reader.
func (l *Limiter) Disk(r disk.Reader) disk.Reader {
	if l == nil {
		return r
	}
	return &limitedDisk{Reader: r, l: l}
}

type limitedDisk struct {
	disk.Reader
	l *Limiter
}

func (d *limitedDisk) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := d.l.Wait(ctx, len(p)); err != nil {
		return err
	}
	return d.Reader.ReadAt(ctx, p, off)
}

// Source limits the rate of a disk.Source.
func (l *Limiter) Source(s disk.Source) disk.Source {
	if l == nil {
		return s
	}
	return &limitedSource{Source: s, l: l}
}

type limitedSource struct {
	disk.Source
	l *Limiter
}

func (s *limitedSource) Next(ctx context.Context, buf []byte) (disk.Extent, error) {
	e, err := s.Source.Next(ctx, buf)
	if err == nil {
		err = s.l.Wait(ctx, int(e.Length))
	}
	return e, err
}
