// Package report describes a nightly run: one value, and its forms for people,
// programs, Prometheus, and readers of VmBackup's status log.
package report

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/google/renameio/v2"

	"xenkeep/chunkstore"
	"xenkeep/internal/text"
	"xenkeep/job"
)

// State is the result of a run or of a VM.
type State string

// The states.
const (
	OK      State = "ok"
	Partial State = "partial" // something that was requested is missing
	Failed  State = "failed"
	Skipped State = "skipped" // not begun
)

// Report is a run of a job. Its JSON form is documented in docs/reference/json.md.
type Report struct {
	Type       string    `json:"type"`           // "report"
	Test       bool      `json:"test,omitempty"` // a test of the notifications, without a run
	State      State     `json:"state"`
	Job        string    `json:"job"`
	Machine    string    `json:"machine"`
	Version    string    `json:"version"`
	Pool       string    `json:"pool"` // its name or address
	PoolUUID   string    `json:"pool_uuid,omitempty"`
	Repository string    `json:"repository"`
	Started    time.Time `json:"started"`
	Ended      time.Time `json:"ended"`
	Duration   float64   `json:"duration_s"`
	Error      string    `json:"error,omitempty"` // why the whole run failed
	Hint       string    `json:"hint,omitempty"`
	// Damage is a short sentence about damage that the run found in the repository;
	// empty if it found none.
	Damage     string `json:"damage,omitempty"`
	DamageHint string `json:"damage_hint,omitempty"`
	VMs        []VM   `json:"vms"`
	Excluded   []Left `json:"excluded,omitempty"`
	Uploaded   int64  `json:"bytes_uploaded"`
	Packs      int64  `json:"packs"`
	// Compression are the levels at which new data was compressed.
	Compression []chunkstore.LevelStats `json:"compression,omitempty"`
	Database    string                  `json:"database,omitempty"` // snapshot of the pool's database
	Forgotten   []string                `json:"forgotten,omitempty"`
	Freed       int64                   `json:"bytes_freed"`        // by prune, in this run
	FreedLater  int64                   `json:"bytes_freed_later"`  // by the next prune
	Pruned      string                  `json:"prune,omitempty"`    // "done", "not due", "held back" or "failed"
	Checked     string                  `json:"check,omitempty"`    // the same
	Findings    []string                `json:"findings,omitempty"` // of the check
	Warnings    []string                `json:"warnings,omitempty"`
	Unsent      []string                `json:"unsent,omitempty"` // notifications and files that could not be sent or written, with reasons
}

// VM is the result for a VM.
type VM struct {
	Name       string            `json:"name"`
	UUID       string            `json:"uuid,omitempty"`
	State      State             `json:"state"`
	Snapshot   string            `json:"snapshot,omitempty"` // id
	Kind       string            `json:"kind,omitempty"`
	FirstDisk  bool              `json:"first_disk_only,omitempty"`
	Disks      []job.DiskSummary `json:"disks,omitempty"`
	Left       []string          `json:"left_out,omitempty"` // disks, with reasons
	Size       int64             `json:"size"`
	Read       int64             `json:"bytes_read"`
	New        int64             `json:"bytes_new"`
	Stored     int64             `json:"bytes_stored"`
	Started    time.Time         `json:"started,omitzero"`
	Duration   float64           `json:"duration_s"`
	Waits      job.Timing        `json:"waits"`
	Bottleneck string            `json:"bottleneck,omitempty"`
	LastGood   time.Time         `json:"last_good,omitzero"` // data time of its newest complete snapshot, of any job
	LastGoodID string            `json:"last_good_id,omitempty"`
	Error      string            `json:"error,omitempty"`
	Hint       string            `json:"hint,omitempty"`
	Missing    bool              `json:"missing,omitempty"` // it does not exist in the pool
	// Interrupted is set if its backup was begun when the run was interrupted.
	Interrupted bool `json:"interrupted,omitempty"`
}

// Left is a VM that was selected and excluded.
type Left struct {
	Name   string `json:"name"`
	UUID   string `json:"uuid"`
	Reason string `json:"reason"`
}

// Count returns the number of VMs in a state.
func (r *Report) Count(s State) int {
	n := 0
	for _, v := range r.VMs {
		if v.State == s {
			n++
		}
	}
	return n
}

// Subject returns the report in one line: state, job, host, n of m VMs, and what is
// wrong. Damage comes before every state, because it is permanent.
func (r *Report) Subject() string {
	if r.Test {
		return line(fmt.Sprintf("xenkeep TEST: %s on %s: a test of the notifications, nothing was backed up", r.Job, r.Machine))
	}
	word := string(r.State)
	if r.Damage != "" {
		word = "DAMAGE"
	}
	s := fmt.Sprintf("xenkeep %s: %s on %s, %d of %d VMs", word, r.Job, r.Machine, r.Count(OK), len(r.VMs))
	switch {
	case r.Damage != "":
		s += ": " + r.Damage
	case r.Error != "":
		s += ": " + text.Shorten(line(r.Error), reasonWidth)
	default:
		s += r.failed()
	}
	return line(s)
}

const (
	reasonWidth = 100 // of an error in the subject
	mostNamed   = 3   // VMs in the subject
)

// failed names the VMs that failed, for the subject.
func (r *Report) failed() string {
	var names []string
	for i := range r.VMs {
		if v := &r.VMs[i]; v.State == Failed {
			names = append(names, text.Shorten(line(v.Name), nameWidth))
		}
	}
	n := len(names)
	switch {
	case n == 0:
		return ""
	case n > mostNamed:
		return fmt.Sprintf(": %s and %d more failed", strings.Join(names[:mostNamed], ", "), n-mostNamed)
	}
	return ": " + strings.Join(names, ", ") + " failed"
}

// Level returns the level of a log message about the run.
func (r *Report) Level() slog.Level {
	switch {
	case r.Damage != "" || r.State == Failed:
		return slog.LevelError
	case r.State != OK:
		return slog.LevelWarn
	}
	return slog.LevelInfo
}

// Log writes to l the reason for each VM that is not OK, and how the run ended. VMs
// that failed during their backup are in the log already.
func (r *Report) Log(l *slog.Logger) {
	for i := range r.VMs {
		v := &r.VMs[i]
		if v.State == OK || v.State == Failed && !v.Missing {
			continue
		}
		level := slog.LevelWarn
		if v.State == Failed {
			level = slog.LevelError
		}
		l.Log(context.Background(), level, "VM "+string(v.State), attrs("vm", v.Name, "uuid", v.UUID, "error", cmp.Or(v.Error, strings.Join(v.Left, "; ")), "hint", v.Hint)...)
	}
	list := []any{"job", r.Job, "state", string(r.State), "vms", len(r.VMs), "ok", r.Count(OK), "duration", r.Duration}
	list = append(list, attrs("error", r.Error, "hint", r.Hint, "damage", r.Damage, "damage_hint", r.DamageHint)...)
	l.Log(context.Background(), r.Level(), "run ended", list...)
}

// attrs leaves out empty values.
func attrs(pairs ...string) []any {
	var list []any
	for i := 0; i < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			list = append(list, pairs[i], pairs[i+1])
		}
	}
	return list
}

func line(s string) string { return text.Clean(s) }

func size(n int64) string { return humanize.IBytes(uint64(max(n, 0))) }

func took(s float64) string {
	return time.Duration(s * float64(time.Second)).Round(time.Second / 10).String()
}

// methods returns the methods by which a VM's disks were read, each once.
func (v *VM) methods() string {
	var list []string
	for _, d := range v.Disks {
		m := d.Method
		if !strings.Contains(strings.Join(list, ","), m) {
			list = append(list, m)
		}
	}
	return strings.Join(list, ",")
}

// Text writes the report for people: first the problems and their hints, then the
// table, then the rest.
func (r *Report) Text(w io.Writer) error {
	if r.Test {
		_, err := fmt.Fprintf(w, "%s\n", r.Subject())
		return err
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s\npool %s, repository %s\nfrom %s to %s (%s)\n", r.Subject(), line(r.Pool), line(r.Repository),
		clock(r.Started), clock(r.Ended), took(r.Duration))
	hint := func(h string) {
		if h != "" {
			fmt.Fprintf(&b, "  hint: %s\n", line(h))
		}
	}
	if r.Error != "" {
		fmt.Fprintf(&b, "error: %s\n", line(r.Error))
		hint(r.Hint)
	}
	if r.Damage != "" {
		fmt.Fprintf(&b, "\nDAMAGE: %s\n", line(r.Damage))
		for i, x := range r.Findings {
			if i == mostFindings {
				fmt.Fprintf(&b, "  and %d more: xenkeep check lists all\n", len(r.Findings)-i)
				break
			}
			fmt.Fprintf(&b, "  %s\n", line(x))
		}
		hint(r.DamageHint)
	}
	list := r.worstFirst()
	r.failures(&b, list)
	if len(list) > 0 {
		b.WriteByte('\n')
		t := table(list)
		_, _ = t.WriteTo(&b) // writing to a buffer does not fail
	}
	b.WriteByte('\n')
	r.rest(&b)
	_, err := w.Write(b.Bytes())
	return err
}

// mostFindings limits the findings above the table, so that the table stays on the
// screen.
const mostFindings = 10

// worstFirst returns the VMs that failed, then partial ones, then those that were not
// begun, then those that are OK.
func (r *Report) worstFirst() []*VM {
	rank := map[State]int{Failed: 0, Partial: 1, Skipped: 2, OK: 3}
	list := make([]*VM, len(r.VMs))
	for i := range r.VMs {
		list[i] = &r.VMs[i]
	}
	slices.SortStableFunc(list, func(a, b *VM) int { return cmp.Compare(rank[a.State], rank[b.State]) })
	return list
}

// failures writes a paragraph for each VM that is not OK.
func (r *Report) failures(b *bytes.Buffer, list []*VM) {
	names := make(map[string]int)
	for _, v := range list {
		names[v.Name]++
	}
	for _, v := range list {
		if v.State == OK {
			continue
		}
		name := line(v.Name)
		if names[v.Name] > 1 && v.UUID != "" {
			name += " (" + v.UUID + ")"
		}
		switch {
		case v.Interrupted:
			fmt.Fprintf(b, "\ninterrupted %s %s", name, line(strings.TrimPrefix(v.Error, "interrupted ")))
		case v.Error != "":
			fmt.Fprintf(b, "\n%s %s: %s", v.State, name, line(v.Error))
		default:
			fmt.Fprintf(b, "\n%s %s", v.State, name)
		}
		b.WriteByte('\n')
		for _, l := range v.Left {
			fmt.Fprintf(b, "  %s\n", line(l))
		}
		if v.Hint != "" {
			fmt.Fprintf(b, "  hint: %s\n", line(v.Hint))
		}
		if !v.Missing {
			fmt.Fprintf(b, "  last good: %s\n", v.lastGood(r.Ended))
		}
	}
}

// lastGood describes the VM's newest complete snapshot.
func (v *VM) lastGood(now time.Time) string {
	if v.LastGood.IsZero() {
		return "none"
	}
	s := clock(v.LastGood)
	if v.LastGoodID != "" {
		s += ", snapshot " + short(v.LastGoodID)
	}
	if age := now.Sub(v.LastGood); age > 0 {
		s += ", " + ago(age)
	}
	return s
}

// ago formats an age in its largest unit.
func ago(d time.Duration) string {
	switch {
	case d < 2*time.Hour:
		return fmt.Sprintf("%.0f minutes old", d.Minutes())
	case d < 48*time.Hour:
		return fmt.Sprintf("%.0f hours old", d.Hours())
	}
	return fmt.Sprintf("%.0f days old", d.Hours()/24)
}

func clock(t time.Time) string { return t.Local().Format("2006-01-02 15:04:05") }

// short returns a snapshot's ID as users type it.
func short(id string) string { return id[:min(8, len(id))] }

// nameWidth is the maximum width of a name in the table; the paragraphs above it
// contain the full name.
const nameWidth = 32

func table(list []*VM) *text.Table {
	t := new(text.Table)
	t.Row("STATE", "VM", "DISKS", "METHOD", "READ", "NEW", "STORED", "TIME", "RATE", "BOTTLENECK")
	for _, v := range list {
		cells := []string{string(v.State), text.Shorten(line(v.Name), nameWidth)}
		if v.Snapshot != "" {
			rate := ""
			if v.Duration > 0 {
				rate = size(int64(float64(v.Read)/v.Duration)) + "/s"
			}
			share := max(v.Waits.Pool, v.Waits.Network, v.Waits.CPU, v.Waits.Storage)
			cells = append(cells, fmt.Sprint(len(v.Disks)), v.methods(), size(v.Read), size(v.New), size(v.Stored),
				took(v.Duration), rate, fmt.Sprintf("%s %.0f %%", v.Bottleneck, 100*share))
		}
		t.Row(cells...)
	}
	return t
}

// rest writes everything below the table.
func (r *Report) rest(b *bytes.Buffer) {
	for i := range r.VMs {
		if v := &r.VMs[i]; v.State == OK {
			for _, l := range v.Left {
				fmt.Fprintf(b, "%s: %s\n", line(v.Name), line(l))
			}
		}
	}
	for _, l := range r.Excluded {
		fmt.Fprintf(b, "left out: %s: %s\n", line(l.Name), line(l.Reason))
	}
	for _, x := range r.Warnings {
		fmt.Fprintf(b, "warning: %s\n", line(x))
	}
	for _, x := range r.Unsent {
		fmt.Fprintf(b, "not sent: %s\n", line(x))
	}
	if r.Database != "" {
		fmt.Fprintf(b, "pool database: snapshot %s\n", short(r.Database))
	}
	if text := job.CompressionText(r.Compression); text != "" {
		fmt.Fprintln(b, text)
	}
	fmt.Fprintf(b, "%s uploaded in %d packs", size(r.Uploaded), r.Packs)
	if n := len(r.Forgotten); n > 0 {
		fmt.Fprintf(b, ", %d old snapshots forgotten", n)
	}
	b.WriteByte('\n')
	if r.Pruned != "" {
		fmt.Fprintf(b, "prune: %s", line(r.Pruned))
		if r.Freed+r.FreedLater > 0 {
			fmt.Fprintf(b, ", %s came back, %s more with the next pass", size(r.Freed), size(r.FreedLater))
		}
		b.WriteByte('\n')
	}
	if r.Checked != "" {
		fmt.Fprintf(b, "check: %s\n", line(r.Checked))
	}
}

// WriteFile writes the report as JSON; the file gets its name only when it is
// complete.
func (r *Report) WriteFile(name string) error {
	p, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return renameio.WriteFile(name, append(p, '\n'), 0o640, renameio.IgnoreUmask())
}
