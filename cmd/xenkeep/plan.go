package main

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"regexp"

	"github.com/spf13/cobra"

	"xenkeep/job/config"
	"xenkeep/job/nightly"
)

// errPlan marks plans of jobs that would not succeed.
var errPlan = errors.New("the job would not succeed as it is")

type planOptions struct {
	repository repositoryFlags
	pool       poolFlags
	output     outputFlags
	files      jobFileFlags
	all        bool
}

func newPlanCommand() *cobra.Command {
	var o planOptions
	cmd := &cobra.Command{
		Use:   "plan [JOB] --config FILE | plan VM... | plan --all",
		Short: "Show what a job or a backup would do, and touch nothing",
		Long: `Log in, open the repository, and show what a run of a job would do, or without a
config what xenkeep backup would do with these VMs: its settings,
each VM and disk with the way it will be read and why, and all that is not as it
should be. Nothing is changed, on the pool or in the repository. The exit code is 0
when the job would succeed.`,
		Example: "  xenkeep plan web db\n  xenkeep plan nightly --config /etc/xenkeep/xenkeep.toml\n  xenkeep plan --vmbackup-config weekend.cfg --pool https://HOST pre_clean=True",
		Args:    cobra.ArbitraryArgs,
		RunE:    func(cmd *cobra.Command, args []string) error { return runPlan(cmd, &o, args) },
	}
	o.repository.add(cmd)
	o.pool.add(cmd)
	o.output.add(cmd)
	o.files.add(cmd.Flags())
	cmd.Flags().BoolVar(&o.all, "all", false, "without a config: every VM of the pool")
	return cmd
}

// isJob reports whether the arguments name a job of the config that foundConfig
// returns: no argument means its only job, one argument a job's name. Otherwise they
// are VMs.
func (o *planOptions) isJob(args []string) bool {
	if o.all || len(args) > 1 || !o.files.find() {
		return false
	}
	if len(args) == 0 {
		return true
	}
	c, err := config.Load(o.files.config)
	return err == nil && c.Jobs[args[0]] != nil
}

func runPlan(cmd *cobra.Command, o *planOptions, args []string) error {
	name := ""
	switch {
	case !o.files.given() && !o.isJob(args):
		n, err := o.vms(args)
		if err != nil {
			return err
		}
		n.Open, n.Dial = nightDoors(cmd.ErrOrStderr(), &o.repository, &o.pool)
		return showPlan(cmd, o, n)
	case o.all:
		return usagef("the config of the job selects the VMs: omit --all")
	case o.files.vmBackup == "" && len(args) > 1:
		return usagef("one job at a time")
	case o.files.vmBackup == "" && len(args) == 1:
		name, args = args[0], nil
	}
	n, _, err := o.files.night(cmd, name, args, &o.repository, &o.pool)
	if err != nil {
		return err
	}
	return showPlan(cmd, o, n)
}

// vms is a run of xenkeep backup without a config, which looks at no marks on
// VMs and forgets nothing.
func (o *planOptions) vms(args []string) (*nightly.Night, error) {
	switch {
	case len(args) == 0 && !o.all:
		return nil, usagef("which job, or which VMs? give a config with --config or --vmbackup-config, or name VMs")
	case len(args) > 0 && o.all:
		return nil, usagef("--all is every VM of the pool: name no VMs")
	}
	if err := errors.Join(o.repository.check(), o.pool.check()); err != nil {
		return nil, err
	}
	j := &config.Job{Name: "default", Select: config.Selection{All: o.all}, Exclude: config.Exclusion{IgnoreMarks: true}}
	for _, vm := range args {
		if uuidForm.MatchString(vm) {
			j.Select.UUIDs = append(j.Select.UUIDs, vm)
		} else {
			j.Select.Names = append(j.Select.Names, vm)
		}
	}
	return &nightly.Night{
		Job: j, Location: o.repository.location, PoolName: o.pool.url,
		StateDir: filepath.Join(o.repository.cache(), "jobs"), Machine: machineName(), Version: versionText(),
	}, nil
}

var uuidForm = regexp.MustCompile(`^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$`)

func showPlan(cmd *cobra.Command, o *planOptions, n *nightly.Night) error {
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
