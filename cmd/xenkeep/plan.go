package main

import (
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"xenkeep/job/nightly"
)

// errPlan marks plans of jobs that would not succeed.
var errPlan = errors.New("the job would not succeed as it is")

type planOptions struct {
	repository repositoryFlags
	pool       poolFlags
	output     outputFlags
	files      jobFileFlags
}

func newPlanCommand() *cobra.Command {
	var o planOptions
	cmd := &cobra.Command{
		Use:   "plan [JOB] --config FILE",
		Short: "Show what a job would do, and touch nothing",
		Long: `Log in, open the repository, and show what a run of a job would do: its settings,
each VM and disk with the way it will be read and why, and all that is not as it
should be. Nothing is changed, on the pool or in the repository. The exit code is 0
when the job would succeed.`,
		Example: "  xenkeep plan nightly --config /etc/xenkeep/xenkeep.toml\n  xenkeep plan --vmbackup-config weekend.cfg --pool https://HOST pre_clean=True",
		Args:    cobra.ArbitraryArgs,
		RunE:    func(cmd *cobra.Command, args []string) error { return runPlan(cmd, &o, args) },
	}
	o.repository.add(cmd)
	o.pool.add(cmd)
	o.output.add(cmd)
	o.files.add(cmd.Flags())
	return cmd
}

func runPlan(cmd *cobra.Command, o *planOptions, args []string) error {
	name := ""
	switch {
	case !o.files.given():
		return usagef("which job? give its config with --config or --vmbackup-config")
	case o.files.config != "" && len(args) > 1:
		return usagef("one job at a time")
	case o.files.config != "" && len(args) == 1:
		name, args = args[0], nil
	}
	n, _, err := o.files.night(cmd, name, args, &o.repository, &o.pool)
	if err != nil {
		return err
	}
	plan, err := nightly.MakePlan(cmd.Context(), *n)
	if err != nil {
		return err
	}
	if o.output.json {
		err = writeLine(cmd.OutOrStdout(), plan)
	} else {
		err = printPlan(cmd.OutOrStdout(), plan)
	}
	if err == nil && !plan.OK {
		err = reported{errPlan}
	}
	return err
}

func printPlan(w io.Writer, p *nightly.Plan) error {
	fmt.Fprintf(w, "job %s\n", printable(p.Job))
	t := newTable(w)
	for _, s := range p.Settings {
		t.row("  "+s.Name, s.Value)
	}
	if err := t.flush(); err != nil {
		return err
	}
	if len(p.VMs) > 0 {
		fmt.Fprintln(w)
		t = newTable(w, "VM", "DISK", "SR", "SIZE", "KIND", "METHOD", "AT MOST", "CBT", "KEEPS", "WHY")
		for _, v := range p.VMs {
			keeps := fmt.Sprintf("%d, -%d", v.Keeps, v.Forgets)
			if len(v.Disks) == 0 {
				t.row(v.Name, "", "", "", v.Kind, "", "", "", keeps, v.Error)
			}
			for i, d := range v.Disks {
				vm, kind := v.Name, v.Kind
				if i > 0 {
					vm, kind, keeps = "", "", ""
				}
				if d.Left != "" {
					t.row(vm, d.Device, d.SR, size(d.Size), kind, "left out", "", "", keeps, d.Left)
					continue
				}
				most := "changes"
				if d.Bytes >= 0 {
					most = size(d.Bytes)
				}
				t.row(vm, d.Device, d.SR, size(d.Size), kind, d.Method, most, yes(d.CBT), keeps, d.Reason)
			}
		}
		if err := t.flush(); err != nil {
			return err
		}
	}
	fmt.Fprintln(w)
	for _, f := range p.Findings {
		fmt.Fprintf(w, "%-5s  %s: %s\n", f.Level, printable(f.What), oneLine(f.Text))
		if f.Hint != "" {
			fmt.Fprintf(w, "       hint: %s\n", oneLine(f.Hint))
		}
	}
	verdict := "the job would succeed"
	if !p.OK {
		verdict = errPlan.Error()
	}
	_, err := fmt.Fprintln(w, verdict)
	return err
}
