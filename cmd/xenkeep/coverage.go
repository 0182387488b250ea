package main

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"xenkeep/job/config"
	"xenkeep/job/nightly"
)

// errUncovered is returned if VMs have no good snapshot that is new enough.
var errUncovered = errors.New("some VMs have no good snapshot that is new enough")

type coverageOptions struct {
	repository repositoryFlags
	pool       poolFlags
	output     outputFlags
	config     string
	maxAge     time.Duration
	quiet      bool
}

// coverageSummary ends the list.
type coverageSummary struct {
	Type   string  `json:"type"` // "summary"
	VMs    int     `json:"vms"`
	TooOld int     `json:"too_old"`
	NoJob  int     `json:"no_job"`
	MaxAge float64 `json:"max_age_s"`
}

func newCoverageCommand() *cobra.Command {
	o := coverageOptions{maxAge: 26 * time.Hour}
	cmd := &cobra.Command{
		Use:   "coverage",
		Short: "Show the newest good snapshot of every VM of a pool",
		Long: `Show every VM of the pool that has disks, its newest good snapshot and how old that
is, and with --config in which jobs it is. The exit code is 3 when one is older than
--max-age, or has none; VMs that all jobs of the config leave out do not count.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runCoverage(cmd, &o) },
	}
	o.repository.add(cmd)
	o.pool.add(cmd)
	o.output.add(cmd)
	cmd.Flags().StringVar(&o.config, "config", "", "the repository, pools and jobs of this config `file`")
	cmd.Flags().DurationVar(&o.maxAge, "max-age", o.maxAge, "how old the newest good snapshot of a VM may be")
	cmd.Flags().BoolVarP(&o.quiet, "quiet", "q", false, "show only the VMs that are not protected")
	return cmd
}

// coverageSide is a pool, and the jobs of the config that use it.
type coverageSide struct {
	pool poolFlags
	jobs []*config.Job
}

// coverageRun shows the coverage of one pool after the other.
type coverageRun struct {
	o      *coverageOptions
	stdout io.Writer
	stderr io.Writer
	table  *table
	shown  bool // the table has rows
	sum    coverageSummary
}

func runCoverage(cmd *cobra.Command, o *coverageOptions) error {
	ctx, stderr := cmd.Context(), cmd.ErrOrStderr()
	if o.maxAge <= 0 {
		return usagef("--max-age %v: want more than nothing", o.maxAge)
	}
	sides, err := coverageSides(cmd, o)
	if err != nil {
		return err
	}
	r, err := o.repository.openBare(ctx, stderr)
	if err != nil {
		return err
	}
	defer r.Close()
	x := &coverageRun{
		o: o, stdout: cmd.OutOrStdout(), stderr: stderr, sum: coverageSummary{Type: "summary", MaxAge: o.maxAge.Seconds()},
		table: newTable(cmd.OutOrStdout(), "POOL", "VM", "SNAPSHOT", "AGE", "JOBS"),
	}
	now := time.Now()
	for i := range sides {
		pool, err := sides[i].pool.dial(ctx, stderr)
		if err != nil {
			return err
		}
		list, err := nightly.Coverage(ctx, r, pool, sides[i].jobs, o.maxAge, now)
		if err = errors.Join(err, pool.Close(ctx)); err != nil {
			return err
		}
		for i := range list {
			if err := x.show(&list[i]); err != nil {
				return err
			}
		}
	}
	return x.end()
}

// coverageSides returns the pools to examine: all pools of the config, or the pool
// of the flags.
func coverageSides(cmd *cobra.Command, o *coverageOptions) ([]coverageSide, error) {
	if file, explicit := foundConfig(cmd.Flags()); !explicit {
		o.config = ""
		if o.pool.url == "" && o.repository.location == "" {
			o.config = file
		}
	}
	if o.config == "" {
		return []coverageSide{{pool: o.pool}}, nil
	}
	c, err := config.Load(o.config)
	if err != nil {
		return nil, err
	}
	var sides []coverageSide
	f := jobFileFlags{config: o.config}
	for _, name := range c.PoolNames() {
		if cmd.Flags().Changed("pool") && c.Pools[o.pool.url].URL != "" && name != o.pool.url {
			continue // --pool names another
		}
		p := c.Pools[name]
		s := coverageSide{pool: o.pool, jobs: c.JobsOf(name)}
		f.use(cmd, c, &p, &o.repository, &s.pool)
		sides = append(sides, s)
	}
	return sides, nil
}

// show counts a VM, and writes its line or row.
func (x *coverageRun) show(c *nightly.Covered) error {
	x.sum.VMs++
	if c.TooOld {
		x.sum.TooOld++
	}
	if c.FromFuture {
		printError(x.stderr, fmt.Sprintf("warning: snapshot %s of %s is dated %s, in the future: its age is that since it was written; look at the clock of the pool",
			c.Snapshot[:8], printable(c.Name), clock(c.Data)), "")
	}
	if c.Damaged != "" {
		printError(x.stderr, fmt.Sprintf("warning: a newer snapshot of %s is damaged and is not counted: %s", printable(c.Name), printable(c.Damaged)), "")
	}
	jobs := strings.Join(c.Jobs, ", ")
	if jobs == "" && x.o.config != "" {
		x.sum.NoJob++
		jobs = "in no job"
		if c.Left != "" {
			jobs = "left out: " + c.Left
		}
	}
	switch {
	case x.o.output.json:
		return writeLine(x.stdout, c)
	case x.o.quiet && !c.TooOld:
		return nil
	}
	x.shown = true
	x.table.row(c.Pool, c.Name, c.Snapshot[:min(8, len(c.Snapshot))], coverageAge(c), jobs)
	return nil
}

// coverageAge returns the age of a VM's newest good snapshot for people.
func coverageAge(c *nightly.Covered) string {
	age := "none"
	if c.Snapshot != "" {
		age = time.Duration(c.Age * float64(time.Second)).Round(time.Minute).String()
		if c.Age < 0 {
			age = "from the future"
		}
	}
	if c.TooOld {
		age += "  TOO OLD"
	}
	return age
}

// end writes the result.
func (x *coverageRun) end() (err error) {
	switch {
	case x.o.output.json:
		err = writeLine(x.stdout, x.sum)
	case x.shown:
		err = x.table.flush()
	}
	if err == nil && !x.o.output.json && (!x.o.quiet || x.sum.TooOld > 0) {
		_, err = fmt.Fprintf(x.stdout, "%s, %d without a good snapshot of the last %v\n", plural(x.sum.VMs, "VM"), x.sum.TooOld, x.o.maxAge)
	}
	if err == nil && x.sum.TooOld > 0 {
		err = reported{errUncovered}
	}
	return err
}
