package limit_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"xenkeep/internal/limit"
)

func TestParse(t *testing.T) {
	at := func(hm string) time.Time {
		x, err := time.Parse("15:04", hm)
		if err != nil {
			t.Fatal(err)
		}
		return x
	}
	for text, want := range map[string]map[string]int64{
		"50M":                           {"00:00": 50e6, "12:00": 50e6},
		"1GiB/s":                        {"03:00": 1 << 30},
		"20M@08:00-18:00,200M":          {"07:59": 200e6, "08:00": 20e6, "17:59": 20e6, "18:00": 200e6},
		"unlimited@22:00-06:00, 10M":    {"21:59": 10e6, "22:00": 0, "23:59": 0, "05:59": 0, "06:00": 10e6},
		"5M@20:00-24:00":                {"19:59": 0, "20:00": 5e6, "23:59": 5e6, "00:00": 0},
		"1M@00:00-12:00,2M@06:00-18:00": {"07:00": 1e6, "13:00": 2e6, "19:00": 0},
	} {
		s, err := limit.Parse(text)
		if err != nil {
			t.Errorf("%q: %v", text, err)
			continue
		}
		for hm, rate := range want {
			if got := s.Rate(at(hm)); got != rate {
				t.Errorf("%q at %s: %d, want %d", text, hm, got, rate)
			}
		}
	}
	for _, text := range []string{"", "fast", "-5M", "0", "100", "5M,6M", "5M@8-18", "5M@08:00", "5M@25:00-26:00", "5M@08:00-08:00", "5M@"} {
		if _, err := limit.Parse(text); err == nil || !strings.Contains(err.Error(), "limit") {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func parse(t *testing.T, text string) limit.Schedule {
	t.Helper()
	s, err := limit.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// Reads through a Limiter take the time that its rate requires, and the rate
// changes with the hour.
func TestReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		// The clock in this synctest bubble begins at midnight, UTC.
		start := time.Now().UTC()
		l := limit.New(parse(t, "1MiB@00:00-00:01,4MiB"), func() time.Time { return time.Now().UTC() })
		data := bytes.Repeat([]byte{7}, 100<<20)
		var out bytes.Buffer
		if _, err := io.Copy(&out, l.Reader(t.Context(), bytes.NewReader(data))); err != nil {
			t.Fatal(err)
		}
		// 60 MiB in the first minute, 40 MiB in ten seconds.
		if d := time.Since(start); d < 68*time.Second || d > 72*time.Second {
			t.Errorf("took %v", d)
		}
		if !bytes.Equal(out.Bytes(), data) {
			t.Error("other bytes came out")
		}
	})
}

// Two users of a Limiter share its rate; a cancelled wait ends immediately.
func TestShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := limit.New(parse(t, "1MiB"), nil)
		start := time.Now()
		done := make(chan error, 2)
		for range 2 {
			go func() { done <- l.Wait(t.Context(), 10<<20) }()
		}
		for range 2 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
		if d := time.Since(start); d < 19*time.Second || d > 21*time.Second {
			t.Errorf("took %v", d)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start = time.Now()
		if err := l.Wait(ctx, 100<<20); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) > time.Second {
			t.Errorf("%v after %v", err, time.Since(start))
		}
	})
}

func TestUnlimited(t *testing.T) {
	if limit.New(limit.Schedule{}, nil) != nil {
		t.Error("no limit is a Limiter")
	}
	var l *limit.Limiter
	if err := l.Wait(t.Context(), 1<<40); err != nil {
		t.Error(err)
	}
}
