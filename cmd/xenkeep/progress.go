package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"
	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/term"

	"xenkeep/job"
)

// progressFlags say how a run is followed: by bars on a terminal, by lines
// elsewhere, or not at all.
type progressFlags struct{ quiet bool }

func (f *progressFlags) add(cmd *cobra.Command) {
	cmd.Flags().BoolVarP(&f.quiet, "quiet", "q", false, "show no progress, and no result that is as it should be")
}

// display shows progress, and warnings in between.
type display interface {
	job.Progress
	io.Writer
	// Close ends it; nothing is shown afterwards.
	Close()
}

// start begins to show progress on stderr.
func (f *progressFlags) start(stderr io.Writer, json bool) display {
	file, ok := stderr.(*os.File)
	switch {
	case f.quiet || json:
		return silence{stderr}
	case ok && term.IsTerminal(int(file.Fd())):
		return &bars{p: mpb.New(mpb.WithOutput(file), mpb.WithRefreshRate(200*time.Millisecond))}
	}
	return newLines(stderr, 10*time.Second)
}

// meters begins a meter for each part of an engine's work.
func meters(show display) func(what string, total int64) (add func(n int64), done func()) {
	return func(what string, total int64) (func(n int64), func()) {
		m := show.Begin(what, total)
		return m.Add, m.Done
	}
}

type silence struct{ io.Writer }

func (silence) Begin(string, int64) job.Meter { return silence{} }
func (silence) Add(int64)                     {}
func (silence) Done()                         {}
func (silence) Close()                        {}

// bars draws a bar for each transfer.
type bars struct {
	p    *mpb.Progress
	mu   sync.Mutex
	open []*mpb.Bar
}

func (b *bars) Write(p []byte) (int, error) { return b.p.Write(p) }

func (b *bars) Begin(label string, total int64) job.Meter {
	bar := b.p.AddBar(0, mpb.PrependDecorators(
		decor.Name(printable(label), decor.WCSyncSpaceR),
		decor.CountersKibiByte("% .1f / % .1f", decor.WCSyncSpace),
	), mpb.AppendDecorators(
		decor.AverageSpeed(decor.SizeB1024(0), "% .1f", decor.WCSyncSpace),
		decor.OnComplete(decor.AverageETA(decor.ET_STYLE_GO, decor.WCSyncSpace), " done"),
	))
	bar.SetTotal(total, false)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.open = append(b.open, bar)
	return barMeter{bar}
}

func (b *bars) Close() {
	b.mu.Lock()
	open := b.open
	b.mu.Unlock()
	for _, bar := range open {
		bar.Abort(false)
	}
	b.p.Wait()
}

type barMeter struct{ bar *mpb.Bar }

func (m barMeter) Add(n int64) { m.bar.IncrInt64(n) }
func (m barMeter) Done()       { m.bar.SetTotal(-1, true) }

// lines writes a line for each transfer now and then.
type lines struct {
	w    io.Writer
	stop chan struct{}
	over sync.WaitGroup

	mu   sync.Mutex // also held while writing
	open []*lineMeter
}

func newLines(w io.Writer, every time.Duration) *lines {
	l := &lines{w: w, stop: make(chan struct{})}
	l.over.Go(func() {
		t := time.NewTicker(every)
		defer t.Stop()
		for {
			select {
			case <-t.C:
				l.show()
			case <-l.stop:
				return
			}
		}
	})
	return l
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}

func (l *lines) Begin(label string, total int64) job.Meter {
	m := &lineMeter{l: l, label: printable(label), total: total, began: time.Now()}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open = append(l.open, m)
	return m
}

func (l *lines) show() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, m := range l.open {
		fmt.Fprintln(l.w, m.text(time.Now()))
	}
}

func (l *lines) Close() {
	close(l.stop)
	l.over.Wait()
}

type lineMeter struct {
	l     *lines
	label string
	total int64
	began time.Time
	done  int64 // under l.mu
}

func (m *lineMeter) Add(n int64) {
	m.l.mu.Lock()
	m.done += n
	m.l.mu.Unlock()
}

func (m *lineMeter) Done() {
	m.l.mu.Lock()
	defer m.l.mu.Unlock()
	m.l.open = slices.DeleteFunc(m.l.open, func(o *lineMeter) bool { return o == m })
}

// text is such as "web xvda: 1.2 GiB of 10 GiB, 105 MiB/s, 1m24s left".
func (m *lineMeter) text(now time.Time) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s", m.label, size(m.done))
	if m.total > 0 {
		fmt.Fprintf(&b, " of %s", size(m.total))
	}
	if took := now.Sub(m.began).Seconds(); took > 0 && m.done > 0 {
		rate := float64(m.done) / took
		fmt.Fprintf(&b, ", %s/s", humanize.IBytes(uint64(rate)))
		if left := m.total - m.done; left > 0 {
			fmt.Fprintf(&b, ", %v left", time.Duration(float64(left)/rate*float64(time.Second)).Round(time.Second))
		}
	}
	return b.String()
}

// warnings is a log whose warnings people see as they come. Errors are left
// out: they end in the result, or end the command.
func warnings(w io.Writer) *slog.Logger { return slog.New(warningHandler{w: w}) }

type warningHandler struct {
	w     io.Writer
	attrs []slog.Attr
}

func (h warningHandler) Enabled(_ context.Context, l slog.Level) bool { return l == slog.LevelWarn }

func (h warningHandler) Handle(_ context.Context, r slog.Record) error {
	text := r.Message
	add := func(a slog.Attr) bool {
		text += fmt.Sprintf(", %s %v", a.Key, a.Value)
		return true
	}
	for _, a := range h.attrs {
		add(a)
	}
	r.Attrs(add)
	_, err := fmt.Fprintf(h.w, "xenkeep: warning: %s\n", oneLine(text))
	return err
}

func (h warningHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	h.attrs = append(slices.Clip(h.attrs), attrs...)
	return h
}

func (h warningHandler) WithGroup(string) slog.Handler { return h }
