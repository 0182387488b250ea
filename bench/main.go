// Bench compares xenkeep with restic and borg on disk images like those of virtual
// machines, by running the real programs: xenkeep from a simulated pool over TLS,
// the others from the raw image.
//
//	go run ./bench -xenkeep bin/xenkeep -scale full
//
// Rounds are interleaved: each operation is executed with all tools one after the
// other, in an order that rotates, and the result is the median of the rounds.
// Before each operation, the image (for a restore: the repository) is read into the
// page cache and written data is synced. The first round's restores are compared
// with the images byte for byte. It exits with 1 if a target is missed and with 2
// if something failed.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"xenkeep/bench/measure"
	"xenkeep/bench/workload"

	"golang.org/x/sys/unix"
)

type bench struct {
	xenkeep string // path of the program
	level   string
	dir     string // for repositories and restored files
	scale   workload.Scale
	use     []string // tools
	note    func(format string, args ...any)
	results results
}

// report contains all measurements, as JSON.
type report struct {
	Started  time.Time         `json:"started"`
	Duration float64           `json:"duration_s"`
	Scale    string            `json:"scale"`
	Rounds   int               `json:"rounds"`
	Host     host              `json:"host"`
	Versions map[string]string `json:"versions"`
	Images   []workload.Image  `json:"images"`
	Results  []*result         `json:"results"`
	Targets  []target          `json:"targets"`
}

type host struct {
	Kernel string  `json:"kernel"`
	CPU    string  `json:"cpu"`
	Cores  int     `json:"cores"`
	Memory int64   `json:"memory_bytes"`
	Load   float64 `json:"load_at_start"`
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if text := os.Getenv(slowChild); text != "" {
		if err := runSlowChild(ctx, text, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	met, err := run(ctx, os.Args[1:])
	if err != nil {
		if !errors.Is(err, flag.ErrHelp) {
			fmt.Fprintln(os.Stderr, "bench:", err)
		}
		os.Exit(2)
	}
	if !met {
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) (met bool, err error) {
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	xk := f.String("xenkeep", "bin/xenkeep", "the xenkeep `program` to measure")
	level := f.String("compression", "", "xenkeep's compression `level`; its own if empty")
	scaleName := f.String("scale", "small", "size of the images: small or full")
	rounds := f.Int("rounds", 5, "how often each operation is measured")
	only := f.String("only", "thin,full,archive,dump,memory,tracked,keep,serve", "what to measure")
	use := f.String("tools", "xenkeep,restic,borg", "what to measure it with")
	base := f.String("dir", defaultDir(), "`folder` for images, which stay, and repositories, which do not (XENKEEP_BENCH_DIR)")
	jsonFile := f.String("json", "", "write the report to this `file` too")
	buildOnly := f.Bool("build", false, "build the images and end")
	if err := f.Parse(args); err != nil {
		return false, err
	}
	scale, err := workload.ScaleByName(*scaleName)
	if err != nil {
		return false, err
	}
	b := &bench{level: *level, scale: scale, use: strings.Split(*use, ","), note: func(format string, args ...any) {
		fmt.Fprintf(os.Stderr, format+"\n", args...)
	}}
	names := strings.Split(*only, ",")
	var need []string
	for _, n := range names {
		images, ok := imagesOf[n]
		if !ok {
			return false, fmt.Errorf("-only %s: no such scenario", n)
		}
		need = append(need, images...)
	}
	if b.xenkeep, err = filepath.Abs(*xk); err != nil {
		return false, err
	}
	if *base, err = filepath.Abs(*base); err != nil {
		return false, err
	}
	if err := os.MkdirAll(*base, 0o755); err != nil {
		return false, err
	}
	images, err := workload.Build(ctx, *base, scale, need, b.note)
	if err != nil || *buildOnly {
		return true, err
	}
	rep := report{Started: time.Now().UTC(), Scale: scale.Name, Rounds: *rounds, Host: thisHost(), Versions: make(map[string]string)}
	for _, n := range need {
		rep.Images = append(rep.Images, images[n])
	}
	if err := b.versions(ctx, rep.Versions); err != nil {
		return false, err
	}
	if b.dir, err = os.MkdirTemp(*base, "run-"); err != nil {
		return false, err
	}
	defer os.RemoveAll(b.dir)
	// The measurements are reported even if something failed later.
	err = b.measure(ctx, names, images, *rounds)
	rep.Duration, rep.Results, rep.Targets = time.Since(rep.Started).Seconds(), b.results.all, b.results.targets()
	rep.head(os.Stdout)
	b.results.write(os.Stdout)
	met = writeTargets(os.Stdout, rep.Targets)
	if *jsonFile != "" {
		data, jerr := json.MarshalIndent(rep, "", "  ")
		if jerr == nil {
			jerr = os.WriteFile(*jsonFile, append(data, '\n'), 0o644)
		}
		err = errors.Join(err, jerr)
	}
	return met, err
}

func (b *bench) measure(ctx context.Context, names []string, images map[string]workload.Image, rounds int) error {
	for _, n := range names {
		var err error
		switch n {
		case "memory":
			err = b.memory(ctx)
		case "serve":
			err = b.serving(ctx, images[workload.Thin], rounds)
		case "keep":
			err = b.keep(ctx, rounds)
		case "tracked":
			err = b.tracked(ctx, images, rounds)
		default:
			err = b.scenario(ctx, newScenario(n, images), rounds)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) scenario(ctx context.Context, s scenario, rounds int) error {
	if s.name == "archive" || s.name == "dump" {
		rounds = 1 // these scenarios measure sizes
	}
	for n := range rounds {
		if err := b.round(ctx, s, n); err != nil {
			return err
		}
	}
	return nil
}

// tools returns the selected tools, each without a repository yet.
func (b *bench) tools() (all []tool) {
	for _, t := range []tool{&xenkeep{binary: b.xenkeep, level: b.level}, &restic{binary: "restic"}, &borg{binary: "borg"}} {
		if slices.Contains(b.use, t.name()) {
			all = append(all, t)
		}
	}
	return all
}

func (b *bench) versions(ctx context.Context, to map[string]string) error {
	commands := map[string][]string{"xenkeep": {b.xenkeep, "version"}, "restic": {"restic", "version"}, "borg": {"borg", "--version"}}
	for _, name := range b.use {
		args, ok := commands[name]
		if !ok {
			return fmt.Errorf("-tools %s: no such tool", name)
		}
		if _, err := exec.LookPath(args[0]); err != nil {
			return fmt.Errorf("%s is not installed: leave it out with -tools, or on Debian: apt install restic borgbackup", name)
		}
		v, err := versionOf(ctx, args...)
		if err != nil {
			return err
		}
		to[name] = v
	}
	return nil
}

func defaultDir() string {
	if dir := os.Getenv("XENKEEP_BENCH_DIR"); dir != "" {
		return dir
	}
	return filepath.Join(os.TempDir(), "xenkeep-bench")
}

func thisHost() host {
	h := host{Cores: runtime.NumCPU(), Load: measure.Load()}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		h.Kernel = unix.ByteSliceToString(u.Release[:])
	}
	var s unix.Sysinfo_t
	if unix.Sysinfo(&s) == nil {
		h.Memory = int64(s.Totalram) * int64(s.Unit)
	}
	data, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(data)) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == "model name" {
			h.CPU = strings.TrimSpace(value)
			break
		}
	}
	return h
}

func (r *report) head(w *os.File) {
	fmt.Fprintf(w, "scale %s, median of %d rounds, %s in all\n", r.Scale, r.Rounds, seconds(time.Duration(r.Duration*float64(time.Second))))
	fmt.Fprintf(w, "%d cores of %s, %d GiB of memory, Linux %s, load %.1f at the start and %.1f at the end\n",
		r.Host.Cores, r.Host.CPU, r.Host.Memory>>30, r.Host.Kernel, r.Host.Load, measure.Load())
	for _, name := range []string{"xenkeep", "restic", "borg"} {
		if v := r.Versions[name]; v != "" {
			fmt.Fprintf(w, "%s: %s\n", name, v)
		}
	}
	for _, img := range r.Images {
		fmt.Fprintf(w, "image %s: %d MiB, of which %d MiB are not holes (day two %d)\n", img.Name, img.Size>>20, img.Data>>20, img.Data2>>20)
	}
	fmt.Fprintln(w, "CPU s/GiB: of the image's data, holes left out; pool CPU: the simulated pool's, which is not in CPU")
}
