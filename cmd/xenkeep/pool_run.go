package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"

	"github.com/spf13/cobra"

	"xenkeep/job/config"
	"xenkeep/job/poolsnap"
	"xenkeep/xapi"
)

type poolRunOptions struct {
	onPool
	config string
	job    string
	due    bool
}

func newPoolSnapshotRunCommand() *cobra.Command {
	var o poolRunOptions
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Take the VM snapshots of a job of the config",
		Long: `Take the VM snapshots of a job of the config (type = "pool-snapshot"), and delete those
of its own that its policy keeps no longer. With --due VMs are left out of which the job
has a snapshot since the time that its schedule last named: call it every few minutes.`,
		Example: `  */5 * * * *  xenkeep pool snapshot run --config /etc/xenkeep/xenkeep.toml --job hourly --due`,
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return runPoolSnapshotRun(cmd, &o) },
	}
	o.add(cmd)
	s := cmd.Flags()
	s.StringVar(&o.config, "config", "", "the config `file`; see xenkeep config example")
	s.StringVar(&o.job, "job", "", "the job's `name`, where the file has several")
	s.BoolVar(&o.due, "due", false, "leave out VMs whose time has not come")
	return cmd
}

func runPoolSnapshotRun(cmd *cobra.Command, o *poolRunOptions) error {
	f := jobFileFlags{flags: cmd.Flags(), config: o.config}
	if !f.find() {
		return usagef("which job? give its config with --config")
	}
	c, j, err := f.load(o.job, nil)
	switch {
	case err != nil:
		return err
	case j.Type != config.PoolSnapshot:
		return usagef("job %q backs up: xenkeep backup --job %s --config %s", j.Name, j.Name, o.config)
	case o.due && j.Schedule == "":
		return usagef("job %q has no schedule: --due does not go with it", j.Name)
	}
	p, err := c.PoolOf(j)
	if err != nil {
		return err
	}
	var r repositoryFlags
	f.use(cmd, c, p, &r, &o.pool)
	return o.on(cmd, func(ctx context.Context, pool *xapi.Client) error {
		run, err := poolsnap.RunJob(ctx, pool, poolsnap.JobOptions{Job: j, Due: o.due, StateDir: filepath.Join(r.cache(), "jobs")})
		if run == nil {
			return err
		}
		if o.output.json {
			return errors.Join(err, writeLine(cmd.OutOrStdout(), run))
		}
		for _, text := range run.Warnings {
			warnLine(cmd.ErrOrStderr(), "%s", text)
		}
		return errors.Join(err, printPoolRun(cmd.OutOrStdout(), run))
	})
}

func printPoolRun(w io.Writer, run *poolsnap.JobRun) error {
	t := newTable(w, "VM", "STATUS", "SNAPSHOT", "KIND", "KEPT", "DELETED", "ERROR")
	for _, v := range run.VMs {
		t.row(v.Name, v.Status, v.Snapshot, string(v.Kind), fmt.Sprint(v.Kept), fmt.Sprint(len(v.Deleted)), v.Error)
	}
	if err := t.flush(); err != nil {
		return err
	}
	for _, text := range run.Errors {
		fmt.Fprintf(w, "missing: %s\n", oneLine(text))
	}
	_, err := fmt.Fprintf(w, "%s: job %s, %s\n", run.Status, printable(run.Job), plural(len(run.VMs), "VM"))
	return err
}
