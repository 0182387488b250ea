package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime"
	"runtime/pprof"
	"slices"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"xenkeep/job/config"
	"xenkeep/xapi"
)

// diagnostics are the flags, on every command, that show how a command works:
// the decisions that it makes, its messages to the pool, where it spends time
// and memory. None of the outputs contains a secret. Its methods are safe for
// concurrent use once the command has started.
type diagnostics struct {
	verbose                           bool
	traceFile, cpuProfile, memProfile string

	began time.Time
	log   *slog.Logger // decisions; discards them without --verbose

	mu     sync.Mutex
	stderr io.Writer // the progress display of the command, while there is one
	cpu    *os.File
	mem    *os.File
	trace  *os.File
	failed error // the first failed write of the trace
}

func (d *diagnostics) add(root *cobra.Command) {
	s := root.PersistentFlags()
	s.BoolVarP(&d.verbose, "verbose", "v", false, "report decisions and their reasons on stderr")
	s.StringVar(&d.traceFile, "trace-api", "", "append a line of JSON for each message to the pool to this `file`")
	s.StringVar(&d.cpuProfile, "cpu-profile", "", "write a CPU profile (pprof) to this `file`")
	s.StringVar(&d.memProfile, "mem-profile", "", "write a profile of memory (pprof) to this `file` at the end")
}

// start opens the files and begins to record the command of that name.
func (d *diagnostics) start(name string, stderr io.Writer) error {
	d.began, d.stderr, d.log = time.Now(), stderr, slog.New(slog.DiscardHandler)
	if d.verbose {
		d.log = slog.New(lineHandler{w: diagnosticsWriter{d}, least: slog.LevelDebug, most: slog.LevelInfo})
	}
	if err := d.open(); err != nil {
		return err
	}
	d.log.Debug(name, "version", versionText(), "process", os.Getpid())
	return nil
}

func (d *diagnostics) open() (err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.traceFile != "" {
		if d.trace, err = privateFile("--trace-api", d.traceFile, os.O_APPEND); err != nil {
			return err
		}
	}
	if d.memProfile != "" {
		if d.mem, err = privateFile("--mem-profile", d.memProfile, os.O_TRUNC); err != nil {
			return err
		}
	}
	if d.cpuProfile != "" {
		if d.cpu, err = privateFile("--cpu-profile", d.cpuProfile, os.O_TRUNC); err != nil {
			return err
		}
		if err = pprof.StartCPUProfile(d.cpu); err != nil {
			return fmt.Errorf("--cpu-profile %s: %w", d.cpuProfile, err)
		}
	}
	return nil
}

// privateFile opens a file that only its owner can read: names of VMs and hosts
// are nobody else's business.
func privateFile(flag, name string, how int) (*os.File, error) {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY|how, 0o600)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", flag, err)
	}
	if info, serr := f.Stat(); serr == nil && info.Mode().IsRegular() {
		if err := f.Chmod(0o600); err != nil { // it existed, perhaps readable for others
			return nil, errors.Join(fmt.Errorf("%s: %w", flag, err), f.Close())
		}
	}
	return f, nil
}

// stop writes the profiles and closes the files. It reports files
// that could not be written; the command's result does not depend on them. It
// may be called more than once.
func (d *diagnostics) stop() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	var errs []error
	report := func(flag, name string, err error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("%s %s: %w", flag, name, err))
		}
	}
	if d.cpu != nil {
		pprof.StopCPUProfile()
		report("--cpu-profile", d.cpuProfile, d.cpu.Close())
	}
	if d.mem != nil {
		runtime.GC() // the profile counts memory up to the last collection
		report("--mem-profile", d.memProfile, errors.Join(pprof.WriteHeapProfile(d.mem), d.mem.Close()))
	}
	if d.trace != nil {
		report("--trace-api", d.traceFile, errors.Join(d.failed, d.trace.Close()))
	}
	d.cpu, d.mem, d.trace = nil, nil, nil
	return errors.Join(errs...)
}

// record appends an event to the trace. Lines are not buffered, so that none is
// lost if the process is killed.
func (d *diagnostics) record(e xapi.TraceEvent) {
	line, err := json.Marshal(e)
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.trace == nil || d.failed != nil {
		return
	}
	if err == nil {
		_, err = d.trace.Write(append(line, '\n'))
	}
	d.failed = err
}

// traceFunc returns the function that records events, or nil if they are not
// wanted.
func (d *diagnostics) traceFunc() func(xapi.TraceEvent) {
	if d.traceFile == "" {
		return nil
	}
	return d.record
}

// show makes verbose lines appear in a display of progress, above its bars.
func (d *diagnostics) show(w io.Writer) {
	d.mu.Lock()
	d.stderr = w
	d.mu.Unlock()
}

// end reports how the command ended, and stops.
func (d *diagnostics) end(code int) error {
	if d.log != nil {
		d.log.Debug("ended", "exit code", code, "meaning", exitMeanings[code], "after", time.Since(d.began).Round(time.Millisecond))
	}
	return d.stop()
}

// diagnosticsWriter writes to the stderr of the moment.
type diagnosticsWriter struct{ d *diagnostics }

func (w diagnosticsWriter) Write(p []byte) (int, error) {
	w.d.mu.Lock()
	defer w.d.mu.Unlock()
	return w.d.stderr.Write(p)
}

type diagnosticsKey struct{}

// diagnosticsOf returns the diagnostics of the command that ctx belongs to. In
// other contexts, for example of completion, they record nothing.
func diagnosticsOf(ctx context.Context) *diagnostics {
	if d, ok := ctx.Value(diagnosticsKey{}).(*diagnostics); ok {
		return d
	}
	return &diagnostics{log: slog.New(slog.DiscardHandler), stderr: io.Discard}
}

// warnings returns a log whose warnings are shown as they occur and, with
// --verbose, its other records too. Errors are left out: they are part of the
// result, or end the command.
func warnings(ctx context.Context, w io.Writer) *slog.Logger {
	least := slog.LevelWarn
	if diagnosticsOf(ctx).verbose {
		least = slog.LevelDebug
	}
	return slog.New(lineHandler{w: w, least: least, most: slog.LevelWarn})
}

// withLog returns the log of a job's config, whose records --verbose shows on
// stderr too.
func withLog(ctx context.Context, show io.Writer, log *slog.Logger, c *config.Log) *slog.Logger {
	if !diagnosticsOf(ctx).verbose {
		return log
	}
	most := slog.LevelWarn
	if c.File == "" {
		most = slog.LevelDebug // the rest is on stderr already
	}
	return slog.New(slog.NewMultiHandler(log.Handler(), lineHandler{w: show, least: slog.LevelDebug, most: most}))
}

// lineHandler writes each record as one line. A warning begins with "xenkeep:",
// as errors do; other records begin with the time.
type lineHandler struct {
	w           io.Writer
	least, most slog.Level
	attrs       []slog.Attr
}

func (h lineHandler) Enabled(_ context.Context, l slog.Level) bool {
	return l >= h.least && l <= h.most
}

func (h lineHandler) Handle(_ context.Context, r slog.Record) error {
	message := r.Message
	add := func(a slog.Attr) bool {
		message += fmt.Sprintf(", %s %v", a.Key, a.Value)
		return true
	}
	for _, a := range h.attrs {
		add(a)
	}
	r.Attrs(add)
	begin := "xenkeep: warning: "
	if r.Level < slog.LevelWarn {
		begin = r.Time.Local().Format("15:04:05.000 ")
	}
	_, err := fmt.Fprint(h.w, begin+oneLine(message)+"\n")
	return err
}

func (h lineHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	h.attrs = append(slices.Clip(h.attrs), attrs...)
	return h
}

func (h lineHandler) WithGroup(string) slog.Handler { return h }
