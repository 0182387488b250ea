// Package report tells what a nightly run did: one value, and its forms for
// people, programs, Prometheus, and those who read VmBackup's status log.
package report

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/google/renameio/v2"

	"xenkeep/job"
)

// State is how something ended. The four are never mixed up.
type State string

// The states.
const (
	OK      State = "ok"
	Partial State = "partial" // something that was wanted is missing
	Failed  State = "failed"
	Skipped State = "skipped" // not begun
)

// Report is a run of a job. Its JSON form is documented in docs/reference.md.
type Report struct {
	Type       string    `json:"type"` // "report"
	State      State     `json:"state"`
	Job        string    `json:"job"`
	Machine    string    `json:"machine"`
	Version    string    `json:"version"`
	Pool       string    `json:"pool"` // its name, or where it is
	PoolUUID   string    `json:"pool_uuid,omitempty"`
	Repository string    `json:"repository"`
	Started    time.Time `json:"started"`
	Ended      time.Time `json:"ended"`
	Duration   float64   `json:"duration_s"`
	Error      string    `json:"error,omitempty"` // why the whole run failed
	Hint       string    `json:"hint,omitempty"`
	VMs        []VM      `json:"vms"`
	Excluded   []Left    `json:"excluded,omitempty"`
	Uploaded   int64     `json:"bytes_uploaded"`
	Packs      int64     `json:"packs"`
	Database   string    `json:"database,omitempty"` // snapshot of the pool's database
	Forgotten  []string  `json:"forgotten,omitempty"`
	Freed      int64     `json:"bytes_freed"`        // by prune, now
	FreedLater int64     `json:"bytes_freed_later"`  // by the next prune
	Pruned     string    `json:"prune,omitempty"`    // "done", "not due" or why it failed
	Checked    string    `json:"check,omitempty"`    // the same
	Findings   []string  `json:"findings,omitempty"` // of the check
	Warnings   []string  `json:"warnings,omitempty"`
	Unsent     []string  `json:"unsent,omitempty"` // notifications that could not be sent, and why
}

// VM is what became of a VM.
type VM struct {
	Name       string            `json:"name"`
	UUID       string            `json:"uuid,omitempty"`
	State      State             `json:"state"`
	Snapshot   string            `json:"snapshot,omitempty"` // id
	Kind       string            `json:"kind,omitempty"`
	FirstDisk  bool              `json:"first_disk_only,omitempty"`
	Disks      []job.DiskSummary `json:"disks,omitempty"`
	Left       []string          `json:"left_out,omitempty"` // disks, and why
	Size       int64             `json:"size"`
	Read       int64             `json:"bytes_read"`
	New        int64             `json:"bytes_new"`
	Stored     int64             `json:"bytes_stored"`
	Started    time.Time         `json:"started,omitzero"`
	Duration   float64           `json:"duration_s"`
	Waits      job.Waits         `json:"waits"`
	Bottleneck string            `json:"bottleneck,omitempty"`
	LastGood   time.Time         `json:"last_good,omitzero"` // data of its newest complete snapshot, of any job
	Error      string            `json:"error,omitempty"`
	Hint       string            `json:"hint,omitempty"`
	Missing    bool              `json:"missing,omitempty"` // it is not in the pool
}

// Left is a VM that was chosen and excluded.
type Left struct {
	Name   string `json:"name"`
	UUID   string `json:"uuid"`
	Reason string `json:"reason"`
}

// Count counts the VMs of a state.
func (r *Report) Count(s State) int {
	n := 0
	for _, v := range r.VMs {
		if v.State == s {
			n++
		}
	}
	return n
}

// Subject is the report in a line: state, job, host, n of m VMs.
func (r *Report) Subject() string {
	return line(fmt.Sprintf("xenkeep %s: %s on %s, %d of %d VMs", r.State, r.Job, r.Machine, r.Count(OK), len(r.VMs)))
}

// line keeps foreign names from breaking a line.
func line(s string) string {
	return strings.Map(func(c rune) rune {
		if c < ' ' || c == 0x7f {
			return '?'
		}
		return c
	}, s)
}

func size(n int64) string { return humanize.IBytes(uint64(max(n, 0))) }

func took(s float64) string {
	return time.Duration(s * float64(time.Second)).Round(time.Second / 10).String()
}

// methods are the ways in which a VM's disks were read, each once.
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

// Text writes the report for people, with its table.
func (r *Report) Text(w io.Writer) error {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s\npool %s, repository %s\nfrom %s to %s (%s)\n", r.Subject(), line(r.Pool), line(r.Repository),
		r.Started.Local().Format("2006-01-02 15:04:05"), r.Ended.Local().Format("2006-01-02 15:04:05"), took(r.Duration))
	if r.Error != "" {
		fmt.Fprintf(&b, "error: %s\n", line(r.Error))
		if r.Hint != "" {
			fmt.Fprintf(&b, "  hint: %s\n", line(r.Hint))
		}
	}
	if len(r.VMs) > 0 {
		b.WriteByte('\n')
		t := tabwriter.NewWriter(&b, 0, 8, 2, ' ', 0)
		fmt.Fprintln(t, "STATE\tVM\tDISKS\tMETHOD\tREAD\tNEW\tSTORED\tTIME\tRATE\tBOTTLENECK")
		for _, v := range r.VMs {
			cells := []string{string(v.State), line(v.Name), "", "", "", "", "", "", "", ""}
			if v.Snapshot != "" {
				rate := ""
				if v.Duration > 0 {
					rate = size(int64(float64(v.Read)/v.Duration)) + "/s"
				}
				share := max(v.Waits.Pool, v.Waits.Network, v.Waits.CPU, v.Waits.Storage)
				cells = []string{string(v.State), line(v.Name), fmt.Sprint(len(v.Disks)), v.methods(), size(v.Read), size(v.New), size(v.Stored),
					took(v.Duration), rate, fmt.Sprintf("%s %.0f %%", v.Bottleneck, 100*share)}
			}
			fmt.Fprintln(t, strings.TrimRight(strings.Join(cells, "\t"), "\t"))
		}
		_ = t.Flush()
		for _, v := range r.VMs {
			if v.Error != "" {
				fmt.Fprintf(&b, "%s %s: %s\n", v.State, line(v.Name), line(v.Error))
				if v.Hint != "" {
					fmt.Fprintf(&b, "  hint: %s\n", line(v.Hint))
				}
			}
			for _, l := range v.Left {
				fmt.Fprintf(&b, "%s: %s\n", line(v.Name), line(l))
			}
		}
		b.WriteByte('\n')
	}
	for _, l := range r.Excluded {
		fmt.Fprintf(&b, "left out: %s: %s\n", line(l.Name), line(l.Reason))
	}
	for _, x := range r.Warnings {
		fmt.Fprintf(&b, "warning: %s\n", line(x))
	}
	for _, x := range r.Findings {
		fmt.Fprintf(&b, "damage: %s\n", line(x))
	}
	for _, x := range r.Unsent {
		fmt.Fprintf(&b, "not sent: %s\n", line(x))
	}
	if r.Database != "" {
		fmt.Fprintf(&b, "pool database: snapshot %s\n", r.Database[:min(8, len(r.Database))])
	}
	fmt.Fprintf(&b, "%s uploaded in %d packs", size(r.Uploaded), r.Packs)
	if n := len(r.Forgotten); n > 0 {
		fmt.Fprintf(&b, ", %d old snapshots forgotten", n)
	}
	b.WriteByte('\n')
	if r.Pruned != "" {
		fmt.Fprintf(&b, "prune: %s", line(r.Pruned))
		if r.Freed+r.FreedLater > 0 {
			fmt.Fprintf(&b, ", %s came back, %s more with the next pass", size(r.Freed), size(r.FreedLater))
		}
		b.WriteByte('\n')
	}
	if r.Checked != "" {
		fmt.Fprintf(&b, "check: %s\n", line(r.Checked))
	}
	_, err := w.Write(b.Bytes())
	return err
}

// WriteFile writes the report as JSON; the file has its name only when it is
// whole.
func (r *Report) WriteFile(name string) error {
	p, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return renameio.WriteFile(name, append(p, '\n'), 0o640, renameio.IgnoreUmask())
}
