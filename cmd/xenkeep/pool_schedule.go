package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"xenkeep/job/poolsnap"
	"xenkeep/job/vmplan"
	"xenkeep/xapi"
)

func newPoolScheduleCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "schedule",
		Short: "Let the pool itself take VM snapshots at set times",
		Long: `Let the pool itself take VM snapshots at set times, in its own time zone, and keep the
newest ten or fewer of each VM. Needs XenServer 7.2 or later, and a licence for it.`,
		Args:                       cobra.ArbitraryArgs,
		SuggestionsMinimumDistance: 2,
		RunE:                       needsCommand,
	}
	cmd.AddCommand(
		newPoolScheduleCreateCommand(), newPoolScheduleListCommand(), newPoolScheduleShowCommand(), newPoolScheduleEditCommand(),
		newPoolScheduleSwitchCommand("enable", "Let a schedule run again", true), newPoolScheduleSwitchCommand("disable", "Let a schedule rest", false),
		newPoolScheduleDeleteCommand(), newPoolScheduleAssignCommand(), newPoolScheduleUnassignCommand(), newPoolScheduleRunCommand(),
	)
	return cmd
}

// scheduleFlags define a schedule.
type scheduleFlags struct {
	onPool
	name, description     string
	hourly, daily, weekly string
	kind                  choice
	keep                  int
}

func (f *scheduleFlags) add(cmd *cobra.Command) {
	f.onPool.add(cmd)
	s := cmd.Flags()
	s.StringVar(&f.name, "name", "", "the schedule's `name`")
	s.StringVar(&f.description, "description", "", "`text` for people")
	s.StringVar(&f.hourly, "hourly", "", "each hour at this minute: `MM`, 0, 15, 30 or 45")
	s.StringVar(&f.daily, "daily", "", "each day at `HH:MM`")
	s.StringVar(&f.weekly, "weekly", "", "on some days: `DAYS HH:MM`, such as \"Monday,Thursday 02:30\"")
	f.kind.of = []string{"snapshot", "checkpoint", "quiesced"}
	s.Var(&f.kind, "type", "`kind` of snapshots: snapshot, checkpoint (with memory), quiesced (VSS)")
	s.IntVar(&f.keep, "keep", 0, "keep so `many` of each VM, 1 to 10")
	cmd.MarkFlagsMutuallyExclusive("hourly", "daily", "weekly")
}

// options returns the values of the flags. It refuses values that the pool would
// refuse.
func (f *scheduleFlags) options(cmd *cobra.Command) (o poolsnap.ScheduleOptions, err error) {
	given := cmd.Flags().Changed
	if given("name") {
		o.Name = &f.name
	}
	if given("description") {
		o.Description = &f.description
	}
	if given("keep") {
		o.Keep = &f.keep
	}
	if given("type") {
		kind := map[string]vmplan.Kind{"snapshot": vmplan.KindRegular, "checkpoint": vmplan.KindCheckpoint, "quiesced": vmplan.KindQuiesced}[f.kind.text]
		o.Kind = &kind
	}
	var when poolsnap.When
	switch {
	case given("hourly"):
		when, err = poolsnap.Hourly(f.hourly)
	case given("daily"):
		when, err = poolsnap.Daily(f.daily)
	case given("weekly"):
		when, err = poolsnap.Weekly(f.weekly)
	default:
		return o, nil
	}
	if err != nil {
		return o, usagef("%w", err)
	}
	o.When = &when
	return o, nil
}

func newPoolScheduleCreateCommand() *cobra.Command {
	var f scheduleFlags
	cmd := &cobra.Command{
		Use:     "create",
		Short:   "Make a schedule, without VMs yet",
		Example: `  xenkeep pool schedule create --name nightly --daily 02:30 --type snapshot --keep 7`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o, err := f.options(cmd)
			switch {
			case err != nil:
				return err
			case o.When == nil:
				return usagef("when? give --hourly, --daily or --weekly")
			}
			return f.on(cmd, func(ctx context.Context, c *xapi.Client) error {
				s, err := poolsnap.CreateSchedule(ctx, c, o)
				if err == nil && !f.output.json {
					fmt.Fprintf(cmd.ErrOrStderr(), "no VM belongs to it yet: xenkeep pool schedule assign %s VM...\n", printable(s.Name))
				}
				return tellSchedule(cmd, &f.onPool, s, err)
			})
		},
	}
	f.add(cmd)
	for _, name := range []string{"name", "type", "keep"} {
		cmd.MarkFlagRequired(name)
	}
	return cmd
}

func newPoolScheduleEditCommand() *cobra.Command {
	var f scheduleFlags
	cmd := &cobra.Command{
		Use:   "edit SCHEDULE",
		Short: "Change a schedule; what is not named stays",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o, err := f.options(cmd)
			switch {
			case err != nil:
				return err
			case o == poolsnap.ScheduleOptions{}:
				return usagef("what is to be changed?")
			}
			return f.on(cmd, func(ctx context.Context, c *xapi.Client) error {
				s, err := poolsnap.EditSchedule(ctx, c, args[0], o)
				return tellSchedule(cmd, &f.onPool, s, err)
			})
		},
	}
	f.add(cmd)
	return cmd
}

func newPoolScheduleListCommand() *cobra.Command {
	var o onPool
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the pool's snapshot schedules",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return o.on(cmd, func(ctx context.Context, c *xapi.Client) error {
				rows, err := poolsnap.Schedules(ctx, c)
				if err != nil {
					return err
				}
				if o.output.json {
					return writeLines(cmd.OutOrStdout(), rows)
				}
				t := newTable(cmd.OutOrStdout(), "UUID", "NAME", "ENABLED", "WHEN", "TYPE", "KEEP", "VMS", "LAST RUN")
				for _, r := range rows {
					t.row(r.UUID, r.Name, yes(r.Enabled), r.When, string(r.Kind), fmt.Sprint(r.Keep), fmt.Sprint(len(r.VMs)), lastRun(&r))
				}
				return t.flush()
			})
		},
	}
	o.add(cmd)
	return cmd
}

func lastRun(s *poolsnap.Schedule) string {
	if s.LastRun.IsZero() {
		return "never"
	}
	return clock(s.LastRun)
}

func newPoolScheduleShowCommand() *cobra.Command {
	return newPoolScheduleOneCommand("show SCHEDULE", "Show a schedule, its VMs, and the pool's messages about its last runs", poolsnap.ShowSchedule)
}

func newPoolScheduleRunCommand() *cobra.Command {
	return newPoolScheduleOneCommand("run-now SCHEDULE", "Let the pool take the snapshots of a schedule now", poolsnap.RunSchedule)
}

func newPoolScheduleSwitchCommand(word, short string, on bool) *cobra.Command {
	return newPoolScheduleOneCommand(word+" SCHEDULE", short, func(ctx context.Context, c *xapi.Client, name string) (*poolsnap.Schedule, error) {
		return poolsnap.EnableSchedule(ctx, c, name, on)
	})
}

// newPoolScheduleOneCommand does something with a schedule, and shows it.
func newPoolScheduleOneCommand(use, short string, work func(context.Context, *xapi.Client, string) (*poolsnap.Schedule, error)) *cobra.Command {
	var o onPool
	cmd := &cobra.Command{
		Use:   use,
		Short: short,
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.on(cmd, func(ctx context.Context, c *xapi.Client) error {
				s, err := work(ctx, c, args[0])
				return tellSchedule(cmd, &o, s, err)
			})
		},
	}
	o.add(cmd)
	return cmd
}

func tellSchedule(cmd *cobra.Command, o *onPool, s *poolsnap.Schedule, err error) error {
	if s == nil {
		return err
	}
	if o.output.json {
		return errors.Join(err, writeLine(cmd.OutOrStdout(), s))
	}
	return errors.Join(err, printSchedule(cmd.OutOrStdout(), s))
}

func printSchedule(w io.Writer, s *poolsnap.Schedule) error {
	state := "enabled"
	if !s.Enabled {
		state = "disabled"
	}
	fmt.Fprintf(w, "%s  schedule %s: %s, %s, keeps %d of each VM, %s; last run %s\n", s.UUID, printable(s.Name), s.When, s.Kind, s.Keep, state, lastRun(s))
	if s.Description != "" {
		fmt.Fprintf(w, "  %s\n", printable(s.Description))
	}
	for _, m := range s.VMs {
		fmt.Fprintf(w, "  VM %s (%s), %s by schedules\n", printable(m.Name), m.UUID, plural(m.Snapshots, "snapshot"))
	}
	for _, r := range s.Runs {
		what := "ok"
		if !r.OK {
			what = "FAIL"
		}
		if _, err := fmt.Fprintf(w, "  %s %-4s %s [%s]\n", clock(r.Time), what, oneLine(r.Text), printable(r.What)); err != nil {
			return err
		}
	}
	return nil
}

func newPoolScheduleDeleteCommand() *cobra.Command {
	var o onPool
	var unassign bool
	cmd := &cobra.Command{
		Use:   "delete SCHEDULE",
		Short: "Delete a schedule that no VM belongs to; snapshots that it made stay",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.on(cmd, func(ctx context.Context, c *xapi.Client) error {
				s, err := poolsnap.DeleteSchedule(ctx, c, args[0], unassign)
				switch {
				case err != nil:
					return err
				case o.output.json:
					return writeLine(cmd.OutOrStdout(), s)
				}
				fmt.Fprintf(cmd.OutOrStdout(), "schedule %s deleted, %s taken out of it\n", printable(s.Name), plural(len(s.VMs), "VM"))
				return nil
			})
		},
	}
	o.add(cmd)
	cmd.Flags().BoolVar(&unassign, "unassign", false, "take its VMs out of it first")
	return cmd
}

func newPoolScheduleAssignCommand() *cobra.Command {
	var o onPool
	cmd := &cobra.Command{
		Use:   "assign SCHEDULE VM...",
		Short: "Put VMs into a schedule, out of the one that they are in",
		Args:  cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.on(cmd, func(ctx context.Context, c *xapi.Client) error {
				list, err := poolsnap.Assign(ctx, c, args[0], args[1:])
				return tellAssigned(cmd, &o, list, err)
			})
		},
	}
	o.add(cmd)
	return cmd
}

func newPoolScheduleUnassignCommand() *cobra.Command {
	var o onPool
	cmd := &cobra.Command{
		Use:   "unassign VM...",
		Short: "Take VMs out of the schedules that they are in",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.on(cmd, func(ctx context.Context, c *xapi.Client) error {
				list, err := poolsnap.Unassign(ctx, c, args)
				return tellAssigned(cmd, &o, list, err)
			})
		},
	}
	o.add(cmd)
	return cmd
}

func tellAssigned(cmd *cobra.Command, o *onPool, list []poolsnap.Assigned, err error) error {
	w := cmd.OutOrStdout()
	if o.output.json {
		return errors.Join(err, writeLines(w, list))
	}
	for _, a := range list {
		var parts []string
		switch {
		case a.To == "" && a.From == "":
			parts = append(parts, "is in no schedule")
		case a.To == "":
			parts = append(parts, "taken out of schedule "+a.From)
		case a.From == a.To:
			parts = append(parts, "is in schedule "+a.To+" already")
		case a.From != "":
			parts = append(parts, "moved from schedule "+a.From+" to "+a.To)
		default:
			parts = append(parts, "put into schedule "+a.To)
		}
		if _, werr := fmt.Fprintf(w, "VM %s %s\n", printable(a.VMName), printable(strings.Join(parts, " "))); werr != nil {
			return errors.Join(err, werr)
		}
	}
	return err
}
