package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"xenkeep/internal/text"
)

// outputFlags define how results are written: as text, or as JSON, with one object
// per line, each with a type. Results are written to stdout, everything else to
// stderr.
type outputFlags struct{ json bool }

func (f *outputFlags) add(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&f.json, "json", false, "write JSON, one object a line")
}

// writeLine writes one object as a line.
func writeLine(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

// table aligns columns. Cells may hold foreign names of any width.
type table struct {
	w io.Writer
	t text.Table
}

func newTable(w io.Writer, head ...string) *table {
	t := &table{w: w}
	if f, ok := w.(*os.File); ok && isTerminal(f) {
		t.t.Columns, _ = terminalSize(f)
	}
	if len(head) > 0 {
		t.row(head...)
	}
	return t
}

func (t *table) row(cells ...string) { t.t.Row(cells...) }

func (t *table) flush() error {
	_, err := t.t.WriteTo(t.w)
	return err
}

// isTerminal reports whether w is a terminal.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

func size(n int64) string { return humanize.IBytes(uint64(max(n, 0))) }

func clock(t time.Time) string { return t.Local().Format("2006-01-02 15:04:05") }

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func plural(n int, one string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %ss", n, one)
}

func seconds(s float64) string {
	return time.Duration(s * float64(time.Second)).Round(100 * time.Millisecond).String()
}
