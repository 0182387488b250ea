package main

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"xenkeep/job/config"
	"xenkeep/job/nightly"
)

// errUncovered marks VMs that are not protected as was asked for.
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

func runCoverage(cmd *cobra.Command, o *coverageOptions) error {
	ctx, stderr := cmd.Context(), cmd.ErrOrStderr()
	if o.maxAge <= 0 {
		return usagef("--max-age %v: want more than nothing", o.maxAge)
	}
	type side struct {
		pool poolFlags
		jobs []*config.Job
	}
	sides := []side{{pool: o.pool}}
	if file, explicit := foundConfig(cmd.Flags()); !explicit {
		o.config = ""
		if o.pool.url == "" && o.repository.location == "" {
			o.config = file
		}
	}
	if o.config != "" {
		c, err := config.Load(o.config)
		if err != nil {
			return err
		}
		sides = nil
		f := jobFileFlags{config: o.config}
		for _, name := range c.PoolNames() {
			if cmd.Flags().Changed("pool") && c.Pools[o.pool.url].URL != "" && name != o.pool.url {
				continue // --pool names another
			}
			p := c.Pools[name]
			s := side{pool: o.pool, jobs: c.JobsOf(name)}
			f.use(cmd, c, &p, &o.repository, &s.pool)
			sides = append(sides, s)
		}
	}
	r, err := o.repository.openBare(ctx, stderr)
	if err != nil {
		return err
	}
	defer r.Close()
	sum := coverageSummary{Type: "summary", MaxAge: o.maxAge.Seconds()}
	now := time.Now()
	t := newTable(cmd.OutOrStdout(), "POOL", "VM", "SNAPSHOT", "AGE", "JOBS")
	shown := false
	for i := range sides {
		pool, err := sides[i].pool.dial(ctx, stderr)
		if err != nil {
			return err
		}
		list, err := nightly.Coverage(ctx, r, pool, sides[i].jobs, o.maxAge, now)
		err = errors.Join(err, pool.Close(ctx))
		if err != nil {
			return err
		}
		for _, c := range list {
			sum.VMs++
			if c.TooOld {
				sum.TooOld++
			}
			if c.FromFuture {
				tell(stderr, fmt.Sprintf("warning: snapshot %s of %s is dated %s, in the future: its age is that since it was written; look at the clock of the pool",
					c.Snapshot[:8], printable(c.Name), clock(c.Data)), "")
			}
			if c.Damaged != "" {
				tell(stderr, fmt.Sprintf("warning: a newer snapshot of %s is damaged and is not counted: %s", printable(c.Name), printable(c.Damaged)), "")
			}
			jobs := strings.Join(c.Jobs, ", ")
			if jobs == "" && o.config != "" {
				sum.NoJob++
				jobs = "in no job"
				if c.Left != "" {
					jobs = "left out: " + c.Left
				}
			}
			if o.output.json {
				if err := writeLine(cmd.OutOrStdout(), c); err != nil {
					return err
				}
				continue
			}
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
			if !o.quiet || c.TooOld {
				shown = true
				t.row(c.Pool, c.Name, c.Snapshot[:min(8, len(c.Snapshot))], age, jobs)
			}
		}
	}
	switch {
	case o.output.json:
		err = writeLine(cmd.OutOrStdout(), sum)
	case shown:
		err = t.flush()
	}
	if err == nil && !o.output.json && (!o.quiet || sum.TooOld > 0) {
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s, %d without a good snapshot of the last %v\n", plural(sum.VMs, "VM"), sum.TooOld, o.maxAge)
	}
	if err == nil && sum.TooOld > 0 {
		err = reported{errUncovered}
	}
	return err
}
