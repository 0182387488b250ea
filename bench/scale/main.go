// Scale measures the cost of a repository that has grown for years: it creates
// repositories of 1, 2 and 4 TiB of unique data, of which only the trees, the index
// and one disk of 10 GiB really exist, and runs the operations that users run. Each
// operation runs in a process of its own.
//
//	go run ./bench/scale
//	go run ./bench/scale -tib 0.01,0.02 -disk 0.05 -snapshots 5000
//	go run ./bench/scale -tib '' -snapshots 0 -cached 20
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"xenkeep/bench/measure"
)

// memoryTarget is the upper limit for each operation, in bytes of anonymous memory.
const memoryTarget = 512 << 20

// job describes the work of a child process.
type job struct {
	Op        string
	Dir       string
	Bytes     int64 // unique data
	Disk      int64 // of the one disk that really exists
	Snapshots int
}

const childEnv = "XENKEEP_SCALE_JOB"

// outcome is the result that a child reports in addition to its cost.
type outcome struct {
	Note     string  `json:"note,omitempty"`
	Requests int     `json:"requests"`
	Fetched  int64   `json:"fetched"` // bytes
	Rate     float64 `json:"rate,omitempty"`
}

// result is one operation at one size.
type result struct {
	Op      string  `json:"op"`
	Size    string  `json:"size"`
	Wall    float64 `json:"wall_s"`
	CPU     float64 `json:"cpu_s"`
	Anon    int64   `json:"peak_anonymous_bytes"`
	Outcome outcome `json:"outcome"`
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var err error
	if text := os.Getenv(childEnv); text != "" {
		err = child(ctx, text)
	} else {
		err = run(ctx, os.Args[1:])
	}
	if err != nil {
		if !errors.Is(err, flag.ErrHelp) {
			fmt.Fprintln(os.Stderr, "scale:", err)
		}
		os.Exit(1)
	}
}

func child(ctx context.Context, text string) error {
	var j job
	if err := json.Unmarshal([]byte(text), &j); err != nil {
		return err
	}
	op, ok := operations[j.Op]
	if !ok {
		return fmt.Errorf("no operation %q", j.Op)
	}
	o, err := op(ctx, j)
	if err != nil {
		return fmt.Errorf("%s: %w", j.Op, err)
	}
	return json.NewEncoder(os.Stdout).Encode(o)
}

func run(ctx context.Context, args []string) (err error) {
	f := flag.NewFlagSet("scale", flag.ContinueOnError)
	sizes := f.String("tib", "1,2,4", "unique data of the repositories, in `TiB`")
	disk := f.Float64("disk", 10, "size of the one disk that is really there, in `GiB`")
	snapshots := f.Int("snapshots", 100_000, "how many snapshots are listed")
	cached := f.Float64("cached", 0, "measure the local index of this many `TiB` alone, too")
	base := f.String("dir", os.TempDir(), "`folder` for the repositories, which do not stay")
	jsonFile := f.String("json", "", "write the results to this `file` too")
	if err := f.Parse(args); err != nil {
		return err
	}
	dir, err := os.MkdirTemp(*base, "xenkeep-scale-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	fmt.Printf("%d cores, load %.1f\n", runtime.NumCPU(), measure.Load())
	var all []result
	do := func(size string, j job) error {
		r, err := measured(ctx, size, j)
		if err == nil {
			all = append(all, r)
		}
		return err
	}
	err = func() error {
		for _, text := range strings.FieldsFunc(*sizes, func(r rune) bool { return r == ',' }) {
			tib, err := strconv.ParseFloat(text, 64)
			if err != nil {
				return err
			}
			at := filepath.Join(dir, "repository")
			for _, op := range []string{"make", "open, cold", "open, cached", "lookups, known", "lookups, unknown", "incremental", "prune plan", "check", "restore, cold"} {
				if err := do(text+" TiB", job{Op: op, Dir: at, Bytes: int64(tib * (1 << 40)), Disk: int64(*disk * (1 << 30))}); err != nil {
					return err
				}
			}
			if err := os.RemoveAll(at); err != nil {
				return err
			}
		}
		if *snapshots > 0 {
			at := filepath.Join(dir, "snapshots")
			for _, op := range []string{"make snapshots", "snapshots, cold", "snapshots, cached"} {
				if err := do(fmt.Sprint(*snapshots), job{Op: op, Dir: at, Snapshots: *snapshots}); err != nil {
					return err
				}
			}
		}
		if *cached > 0 {
			at := filepath.Join(dir, "cached")
			for _, op := range []string{"make index", "index alone"} {
				if err := do(fmt.Sprint(*cached, " TiB"), job{Op: op, Dir: at, Bytes: int64(*cached * (1 << 40))}); err != nil {
					return err
				}
			}
		}
		return nil
	}()
	over := table(all)
	if *jsonFile != "" {
		data, jerr := json.MarshalIndent(all, "", "  ")
		if jerr == nil {
			jerr = os.WriteFile(*jsonFile, append(data, '\n'), 0o644)
		}
		err = errors.Join(err, jerr)
	}
	if err == nil && over > 0 {
		err = fmt.Errorf("%d operations took more than %d MiB of memory", over, memoryTarget>>20)
	}
	return err
}

// measured runs one operation in a process of its own.
func measured(ctx context.Context, size string, j job) (r result, err error) {
	self, err := os.Executable()
	if err != nil {
		return r, err
	}
	if err := os.MkdirAll(j.Dir, 0o755); err != nil {
		return r, err
	}
	text, err := json.Marshal(j)
	if err != nil {
		return r, err
	}
	out, u, err := measure.Run(ctx, measure.Command{Args: []string{self}, Env: []string{childEnv + "=" + string(text), "GOMEMLIMIT=400MiB", "GOGC=75"}})
	if err != nil {
		return r, err
	}
	r = result{Op: j.Op, Size: size, Wall: u.Wall.Seconds(), CPU: u.CPU.Seconds(), Anon: u.PeakAnon}
	if err := json.Unmarshal(out, &r.Outcome); err != nil {
		return r, fmt.Errorf("%s printed %q: %w", j.Op, out, err)
	}
	fmt.Fprintf(os.Stderr, "%-10s %-18s %8s  CPU %7.1f s  anon %4d MiB  %s\n", size, j.Op, u.Wall.Round(100*time.Millisecond), r.CPU, r.Anon>>20, r.Outcome.Note)
	return r, nil
}

// table prints the results and returns the number of those over the memory target.
func table(all []result) (over int) {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "size\toperation\twall s\tCPU s\tanonymous MiB\trequests\tfetched MiB\ta second\t\t")
	for _, r := range all {
		mark := ""
		if r.Anon > memoryTarget && !strings.HasPrefix(r.Op, "make") {
			over++
			mark = "OVER"
		}
		rate := ""
		if r.Outcome.Rate > 0 {
			rate = fmt.Sprintf("%.0f", r.Outcome.Rate)
		}
		fmt.Fprintf(w, "%s\t%s\t%.1f\t%.1f\t%d\t%d\t%d\t%s\t%s\t%s\t\n", r.Size, r.Op, r.Wall, r.CPU, r.Anon>>20, r.Outcome.Requests, r.Outcome.Fetched>>20, rate, r.Outcome.Note, mark)
	}
	_ = w.Flush()
	return over
}
