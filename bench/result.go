package main

import (
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
	"time"
)

// A result contains the measurements of one operation of one tool in all rounds.
type result struct {
	Scenario string    `json:"scenario"`
	Op       string    `json:"operation"`
	Tool     string    `json:"tool"`
	Data     int64     `json:"image_data_bytes"` // of the image, without holes
	Wall     []float64 `json:"wall_s"`
	CPU      []float64 `json:"cpu_s"`
	PoolCPU  []float64 `json:"pool_cpu_s,omitempty"`
	Load     []float64 `json:"load_before"`
	PeakRSS  int64     `json:"peak_rss_bytes"`
	PeakAnon int64     `json:"peak_anonymous_bytes"`
	Size     []int64   `json:"repository_bytes"` // after the operation
	Note     string    `json:"note,omitempty"`
}

// results are in the order in which they were first added.
type results struct{ all []*result }

func (r *results) find(scenario, op, tool string) *result {
	for _, x := range r.all {
		if x.Scenario == scenario && x.Op == op && x.Tool == tool {
			return x
		}
	}
	return nil
}

func (r *results) add(scenario string, st step, tool string, c cost, size int64, load float64) {
	x := r.find(scenario, st.op, tool)
	if x == nil {
		x = &result{Scenario: scenario, Op: st.op, Tool: tool, Data: st.data}
		r.all = append(r.all, x)
	}
	x.Wall = append(x.Wall, c.Wall.Seconds())
	x.CPU = append(x.CPU, c.CPU.Seconds())
	if c.pool > 0 {
		x.PoolCPU = append(x.PoolCPU, c.pool.Seconds())
	}
	x.Load = append(x.Load, load)
	x.PeakRSS, x.PeakAnon = max(x.PeakRSS, c.PeakRSS), max(x.PeakAnon, c.PeakAnon)
	x.Size = append(x.Size, size)
	x.Note = c.note
}

// median returns the median of a few numbers, or 0 if there are none.
func median[T int64 | float64](v []T) T {
	if len(v) == 0 {
		return 0
	}
	v = slices.Clone(v)
	slices.Sort(v)
	if n := len(v); n%2 == 0 {
		return (v[n/2-1] + v[n/2]) / 2
	}
	return v[len(v)/2]
}

// wall returns the median of an operation's wall time, or 0.
func (r *results) wall(scenario, op, tool string) float64 {
	if x := r.find(scenario, op, tool); x != nil {
		return median(x.Wall)
	}
	return 0
}

// size returns the size of the repository after an operation, or 0.
func (r *results) size(scenario, op, tool string) float64 {
	if x := r.find(scenario, op, tool); x != nil {
		return float64(median(x.Size))
	}
	return 0
}

// growth returns the number of bytes by which an operation enlarged the repository.
func (r *results) growth(scenario, op, before, tool string) float64 {
	a, b := r.size(scenario, before, tool), r.size(scenario, op, tool)
	if a == 0 || b == 0 {
		return 0
	}
	return b - a
}

// A target is a figure to be reached; Value is 0 if it was not measured.
type target struct {
	Name  string  `json:"name"`
	Value float64 `json:"value"`
	Most  float64 `json:"at_most"`
	Unit  string  `json:"unit,omitempty"` // "" means a ratio to restic
	Met   bool    `json:"met"`
}

// targets compares xenkeep with restic.
func (r *results) targets() (all []target) {
	share := func(name string, most, ours, theirs float64) {
		if theirs > 0 && ours > 0 {
			all = append(all, target{Name: name, Value: ours / theirs, Most: most, Met: ours <= most*theirs})
		}
	}
	time := func(name, scenario, op string, most float64) {
		share(name, most, r.wall(scenario, op, "xenkeep"), r.wall(scenario, op, "restic"))
	}
	grown := func(name, scenario string, most float64) {
		share(name, most, r.growth(scenario, opDayTwo, opFull, "xenkeep"), r.growth(scenario, opDayTwo, opFull, "restic"))
	}
	time("thin disk, full backup, wall time", "thin", opFull, 1.0/3)
	time("full disk, full backup, wall time", "full", opFull, 1.0/2)
	time("thin disk, day two, wall time", "thin", opDayTwo, 1.0/5)
	time("full disk, day two, wall time", "full", opDayTwo, 1.0/5)
	time("thin disk, restore to raw, wall time", "thin", opRestore, 1.0/2)
	time("full disk, restore to raw, wall time", "full", opRestore, 1.0/2)
	share("thin disk, two days and second VM, size", 0.92, r.size("thin", opOther, "xenkeep"), r.size("thin", opOther, "restic"))
	grown("thin disk, day two, growth", "thin", 0.45)
	grown("tar that shifts, growth", "archive", 0.25)
	grown("SQL dump that shifts, growth", "dump", 0.25)
	for _, op := range []string{opCheck, opPrune} {
		if open, theirs := r.wall("keep", opKeys, "xenkeep"), r.wall("keep", opKeys, "restic"); theirs > 0 {
			share("50 snapshots, "+op+", wall time less opening", 1.0/2, r.wall("keep", op, "xenkeep")-open, r.wall("keep", op, "restic")-theirs)
		}
	}
	if open, theirs := r.wall("tracked", opKeys, "xenkeep"), r.wall("tracked", opKeys, "restic"); theirs > 0 {
		share("16 GiB with 3 % changed by CBT and NBD, wall time less opening", 1.0/10,
			r.wall("tracked", opDayTwo, "xenkeep")-open, r.wall("tracked", opDayTwo, "restic")-theirs)
	}
	var most int64
	for _, x := range r.all {
		if x.Tool == "xenkeep" {
			most = max(most, x.PeakAnon)
		}
	}
	if most > 0 {
		all = append(all, target{Name: "peak anonymous memory of xenkeep, all runs", Value: float64(most) / (1 << 20), Most: 512, Unit: "MiB", Met: most < 512<<20})
	}
	return all
}

// write prints the results as tables.
func (r *results) write(w io.Writer) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	scenario, op := "", ""
	for _, x := range r.sorted() {
		if x.Scenario != scenario {
			t.Flush()
			scenario, op = x.Scenario, ""
			fmt.Fprintf(w, "\n%s\n", scenario)
			fmt.Fprintln(t, "operation\ttool\twall s\tof restic\tmin..max s\tCPU s\tCPU s/GiB\tpool CPU s\tpeak RSS MiB\tanonymous MiB\trepository MiB\tgrown MiB\tload\t  \t")
		}
		first := ""
		if x.Op != op {
			op, first = x.Op, x.Op
		}
		ratio, perGiB, pool := "", "", ""
		if theirs := r.wall(x.Scenario, x.Op, "restic"); theirs > 0 {
			ratio = fmt.Sprintf("%.3f", median(x.Wall)/theirs)
		}
		if x.Data > 0 {
			perGiB = fmt.Sprintf("%.2f", median(x.CPU)/(float64(x.Data)/(1<<30)))
		}
		if len(x.PoolCPU) > 0 {
			pool = fmt.Sprintf("%.2f", median(x.PoolCPU))
		}
		fmt.Fprintf(t, "%s\t%s\t%.2f\t%s\t%.2f..%.2f\t%.2f\t%s\t%s\t%d\t%d\t%.1f\t%s\t%.1f\t  %s\t\n", first, x.Tool, median(x.Wall), ratio,
			slices.Min(x.Wall), slices.Max(x.Wall), median(x.CPU), perGiB, pool, x.PeakRSS>>20, x.PeakAnon>>20,
			float64(median(x.Size))/(1<<20), r.grown(x), median(x.Load), x.Note)
	}
	t.Flush()
}

// grown formats the number of bytes by which an operation enlarged the repository.
func (r *results) grown(x *result) string {
	if x.Scenario == "memory" {
		return "" // each operation has a repository of its own
	}
	before := int64(0)
	for _, y := range r.all {
		if y == x {
			break
		}
		if y.Scenario == x.Scenario && y.Tool == x.Tool {
			before = median(y.Size)
		}
	}
	return fmt.Sprintf("%.1f", float64(median(x.Size)-before)/(1<<20))
}

// sorted returns the results with the tools of an operation next to each other,
// always in the same order.
func (r *results) sorted() []*result {
	order := func(names []string, name string) int { return slices.Index(names, name) }
	var scenarios, ops []string
	for _, x := range r.all {
		if !slices.Contains(scenarios, x.Scenario) {
			scenarios = append(scenarios, x.Scenario)
		}
		if !slices.Contains(ops, x.Op) {
			ops = append(ops, x.Op)
		}
	}
	tools := []string{"xenkeep", "restic", "borg"}
	all := slices.Clone(r.all)
	slices.SortStableFunc(all, func(a, b *result) int {
		if a.Scenario != b.Scenario {
			return order(scenarios, a.Scenario) - order(scenarios, b.Scenario)
		}
		if a.Op != b.Op {
			return order(ops, a.Op) - order(ops, b.Op)
		}
		return order(tools, a.Tool) - order(tools, b.Tool)
	})
	return all
}

func writeTargets(w io.Writer, targets []target) (met bool) {
	met = true
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "\ntargets (share of restic's where no unit is given)\n")
	for _, x := range targets {
		verdict := "MET"
		if !x.Met {
			verdict, met = "MISSED", false
		}
		fmt.Fprintf(t, "%s\t%.3f %s\tat most %.3f %s\t%s\n", x.Name, x.Value, x.Unit, x.Most, x.Unit, verdict)
	}
	t.Flush()
	return met
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.1f s", d.Seconds()) }
