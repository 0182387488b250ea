package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"xenkeep/internal/text"
	"xenkeep/job"
)

// progressFlags define how progress is shown: as bars on a terminal, as lines
// elsewhere, or not at all.
type progressFlags struct{ quiet bool }

func (f *progressFlags) add(cmd *cobra.Command) {
	cmd.Flags().BoolVarP(&f.quiet, "quiet", "q", false, "show no progress, and no result that is as it should be")
}

// display shows progress, and warnings in between.
type display interface {
	job.Overview
	io.Writer
	// Close ends it; nothing is shown afterwards. It may be called twice.
	Close()
}

const (
	barsEvery  = 200 * time.Millisecond
	linesEvery = 10 * time.Second
)

// start begins to show progress on stderr. Transfers that end after ctx is cancelled
// are shown as stopped.
func (f *progressFlags) start(ctx context.Context, stderr io.Writer, json bool) display {
	if f.quiet || json {
		return silence{stderr}
	}
	t := f.tracker(ctx, stderr)
	diagnosticsOf(ctx).show(t)
	return t
}

func (f *progressFlags) tracker(ctx context.Context, stderr io.Writer) *tracker {
	t := &tracker{ctx: ctx, w: stderr, now: time.Now}
	file, ok := stderr.(*os.File)
	if !ok || !term.IsTerminal(int(file.Fd())) || os.Getenv("TERM") == "dumb" {
		t.every(linesEvery, t.list)
		return t
	}
	t.screen = &screen{size: func() (int, int) { return terminalSize(file) }}
	t.every(barsEvery, t.draw)
	return t
}

func terminalSize(file *os.File) (cols, rows int) {
	cols, rows, err := term.GetSize(int(file.Fd()))
	if err != nil || cols <= 0 || rows <= 0 {
		return 80, 24
	}
	return cols, rows
}

// meters begins a meter for each part of an engine's work.
func meters(show display) func(what string, total int64) (add func(n int64), done func()) {
	return func(what string, total int64) (func(n int64), func()) {
		m := show.Begin(what, total)
		return m.Add, m.Done
	}
}

type silence struct{ io.Writer }

func (silence) Begin(string, int64) job.Meter                    { return silence{} }
func (silence) Add(int64)                                        {}
func (silence) Done()                                            {}
func (silence) Expect(map[string]int64)                          {}
func (silence) BeginVM(string, int64)                            {}
func (silence) BeginDisk(string, string, int64, int64) job.Meter { return silence{} }
func (silence) EndVM(string)                                     {}
func (silence) Close()                                           {}

// tracker follows transfers and shows them: on a terminal as bars that are
// redrawn in place, elsewhere as a line for each now and then.
type tracker struct {
	ctx context.Context // of the command
	now func() time.Time
	w   io.Writer

	stop chan struct{}
	over sync.WaitGroup

	mu     sync.Mutex // also held while writing
	screen *screen    // nil if lines are written
	open   []*transfer
	run    overview
	closed bool
}

// every calls show at intervals until the tracker is closed.
func (t *tracker) every(interval time.Duration, show func()) {
	t.stop = make(chan struct{})
	t.over.Go(func() {
		tick := time.NewTicker(interval)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				show()
			case <-t.stop:
				return
			}
		}
	})
}

// Write writes p above the bars.
func (t *tracker) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.screen == nil {
		return t.w.Write(p)
	}
	if _, err := io.WriteString(t.w, t.screen.erase()); err != nil {
		return 0, err
	}
	n, err := t.w.Write(p)
	if err == nil && !t.closed {
		_, err = io.WriteString(t.w, t.screen.frame(t.frame()))
	}
	return n, err
}

func (t *tracker) Begin(label string, total int64) job.Meter {
	return t.begin(&transfer{t: t, label: printable(label), total: total, began: t.now()})
}

func (t *tracker) BeginDisk(vm, label string, size, total int64) job.Meter {
	return t.begin(&transfer{t: t, label: printable(label), total: total, began: t.now(), vm: vm, size: size})
}

func (t *tracker) begin(m *transfer) job.Meter {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.open = append(t.open, m)
	return m
}

// list writes a line for each transfer that is in progress.
func (t *tracker) list() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return
	}
	now := t.now()
	for _, m := range t.open {
		fmt.Fprintln(t.w, m.text(now))
	}
	if line := t.run.text(now, t.open); line != "" {
		fmt.Fprintln(t.w, line)
	}
}

// draw draws the bars anew.
func (t *tracker) draw() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return
	}
	_, _ = io.WriteString(t.w, t.screen.frame(t.frame())) // a failure to show progress is ignored
}

// frame returns the lines of bars.
func (t *tracker) frame() []string {
	cols, rows := t.screen.size()
	now := t.now()
	var last []string
	if line := t.run.text(now, t.open); line != "" {
		last = append(last, text.Shorten(line, cols-1))
	}
	room := max(rows-1-len(last), 1)
	shown := t.open
	if len(shown) > room {
		shown = shown[:max(room-1, 0)]
		last = append([]string{fmt.Sprintf("and %d more", len(t.open)-len(shown))}, last...)
	}
	return append(barLines(shown, cols-1, now), last...)
}

// Close ends the display. It leaves a line with the progress of each open transfer
// and, if the run was interrupted, of the run.
func (t *tracker) Close() {
	t.mu.Lock()
	if t.closed {
		t.mu.Unlock()
		return
	}
	t.closed = true
	var b strings.Builder
	if t.screen != nil {
		b.WriteString(t.screen.erase())
	}
	for _, m := range t.open {
		fmt.Fprintln(&b, m.stopped())
	}
	if line := t.run.stopped(t.open); line != "" && t.ctx.Err() != nil {
		fmt.Fprintln(&b, line)
	}
	_, _ = io.WriteString(t.w, b.String())
	t.mu.Unlock()
	if t.stop != nil {
		close(t.stop)
	}
	t.over.Wait()
}

// transfer is one transfer that is followed.
type transfer struct {
	t     *tracker
	label string
	total int64 // 0: unknown
	began time.Time
	vm    string // set for a disk of a run
	size  int64  // of that disk
	done  int64  // under t.mu
}

func (m *transfer) Add(n int64) {
	m.t.mu.Lock()
	m.done += n
	m.t.mu.Unlock()
}

// Done ends the transfer. If an interruption ended it, it leaves a line.
func (m *transfer) Done() {
	t := m.t
	t.mu.Lock()
	defer t.mu.Unlock()
	n := len(t.open)
	t.open = slices.DeleteFunc(t.open, func(o *transfer) bool { return o == m })
	if t.closed || len(t.open) == n {
		return
	}
	if t.ctx.Err() == nil || m.total > 0 && m.done >= m.total {
		t.run.diskDone(m)
		return
	}
	t.run.cut += m.credit()
	line := m.stopped() + "\n"
	if t.screen != nil {
		line = t.screen.erase() + line + t.screen.frame(t.frame())
	}
	_, _ = io.WriteString(t.w, line)
}

// rate returns bytes per second, or 0 if it is not known yet.
func (m *transfer) rate(now time.Time) float64 {
	if took := now.Sub(m.began).Seconds(); took > 0 {
		return float64(m.done) / took
	}
	return 0
}

// left returns the remaining time, or 0 if it is not known.
func (m *transfer) left(now time.Time) time.Duration {
	rate, left := m.rate(now), m.total-m.done
	if rate <= 0 || left <= 0 {
		return 0
	}
	return time.Duration(float64(left) / rate * float64(time.Second)).Round(time.Second)
}

// credit is how much of its disk is done, in bytes of the disk.
func (m *transfer) credit() float64 {
	if m.total <= 0 {
		return 0
	}
	return float64(m.size) * min(float64(m.done)/float64(m.total), 1)
}

func (m *transfer) amount() string {
	if m.total > 0 {
		return size(m.done) + " of " + size(m.total)
	}
	return size(m.done)
}

func (m *transfer) stopped() string { return m.label + ": " + m.amount() + ", stopped" }

// text returns, for example, "web xvda: 1.2 GiB of 10 GiB, 105 MiB/s, 1m24s left".
func (m *transfer) text(now time.Time) string {
	s := m.label + ": " + m.amount()
	if rate := m.rate(now); rate > 0 {
		s += ", " + size(int64(rate)) + "/s"
	}
	if left := m.left(now); left > 0 {
		s += fmt.Sprintf(", %v left", left)
	}
	return s
}

const (
	leastLabel = 8
	mostLabel  = 60
	leastBar   = 10
	mostBar    = 50
)

// barLines returns a line for each transfer in at most cols columns: name,
// amount, bar, rate and time left. It shortens the name first, and omits bar and rate
// if that is not enough.
func barLines(open []*transfer, cols int, now time.Time) []string {
	type right struct{ amount, rate, left string }
	var rights []right
	var label, amount, rate, left int
	for _, m := range open {
		r := right{amount: m.amount()}
		if v := m.rate(now); v > 0 {
			r.rate = size(int64(v)) + "/s"
		}
		if v := m.left(now); v > 0 {
			r.left = v.String()
		}
		rights = append(rights, r)
		label, amount = max(label, text.Width(m.label)), max(amount, len(r.amount))
		rate, left = max(rate, len(r.rate)), max(left, len(r.left))
	}
	widest := label
	bar := cols - amount - rate - left - 10 // two spaces between five columns, two brackets
	label = min(label, mostLabel, max(bar-leastBar, 0))
	bar = min(bar-label, mostBar)
	if bar < leastBar {
		bar, label = 0, max(cols-amount-rate-left-6, 0)
	}
	if label < leastLabel && label < widest {
		rate, label = 0, max(cols-amount-left-4, 0)
	}
	var lines []string
	for i, m := range open {
		cells := []string{text.Pad(text.Shorten(m.label, label), label), fmt.Sprintf("%*s", amount, rights[i].amount)}
		if bar > 0 {
			cells = append(cells, m.bar(bar))
		}
		if rate > 0 {
			cells = append(cells, fmt.Sprintf("%*s", rate, rights[i].rate))
		}
		cells = append(cells, fmt.Sprintf("%*s", left, rights[i].left))
		lines = append(lines, text.Shorten(strings.TrimRight(strings.Join(cells, "  "), " "), cols))
	}
	return lines
}

// bar returns a bar of some columns between brackets, or blanks if the total is not
// known.
func (m *transfer) bar(cols int) string {
	if m.total <= 0 {
		return strings.Repeat(" ", cols+2)
	}
	n := int(min(m.done, m.total) * int64(cols) / m.total)
	return "[" + strings.Repeat("=", n) + strings.Repeat(" ", cols-n) + "]"
}

// screen redraws a block of lines at the bottom of a terminal.
type screen struct {
	size  func() (cols, rows int)
	drawn int // lines of the block
}

// erase returns the control sequence that removes the block. It clears line by line,
// because some terminals keep a copy of a screen that is cleared as a whole.
func (s *screen) erase() string { return s.frame(nil) }

// frame returns the control sequence that replaces the block by lines.
func (s *screen) frame(lines []string) string {
	var b strings.Builder
	if s.drawn > 0 {
		fmt.Fprintf(&b, "\r\x1b[%dA", s.drawn)
	}
	for _, l := range lines {
		b.WriteString(l + "\x1b[K\n")
	}
	if more := s.drawn - len(lines); more > 0 {
		b.WriteString(strings.Repeat("\x1b[K\n", more))
		fmt.Fprintf(&b, "\x1b[%dA", more)
	}
	s.drawn = len(lines)
	return b.String()
}
