package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"xenkeep/job/poolsnap"
	"xenkeep/xapi"
)

// newPoolSnapshotCopyCommand is copy, or clone.
func newPoolSnapshotCopyCommand(clone bool) *cobra.Command {
	var o onPool
	co := poolsnap.CopyOptions{Clone: clone}
	cmd := &cobra.Command{
		Use:   "copy SNAPSHOT",
		Short: "Make a template of a VM snapshot, with full copies of its disks",
		Long: `Make a template of a VM snapshot, in the same pool, with full copies of its disks, on
their SRs or on another one. The memory is not copied. The snapshot stays.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.on(cmd, func(ctx context.Context, c *xapi.Client) error {
				m, err := poolsnap.Copy(ctx, c, args[0], co)
				return tellMade(cmd, &o, m, err)
			})
		},
	}
	if clone {
		cmd.Use, cmd.Short = "clone SNAPSHOT", "Make a template of a VM snapshot by a fast clone, on the same SRs"
		cmd.Long = `Make a template of a VM snapshot, in the same pool: its disks are clones, which share
with the snapshot what neither has written. The memory is not copied. The snapshot stays.`
	}
	o.add(cmd)
	cmd.Flags().StringVar(&co.Name, "name", "", "the template's `name`")
	if !clone {
		cmd.Flags().StringVar(&co.SR, "to-sr", "", "the `SR` for its disks (that of each)")
	}
	cmd.MarkFlagRequired("name")
	return cmd
}

func tellMade(cmd *cobra.Command, o *onPool, m *poolsnap.Made, err error) error {
	if m == nil {
		return err
	}
	if o.output.json {
		return errors.Join(err, writeLine(cmd.OutOrStdout(), m))
	}
	return errors.Join(err, printMade(cmd.OutOrStdout(), m))
}

func printMade(w io.Writer, m *poolsnap.Made) error {
	more := ""
	if m.MemoryDropped {
		more = ", without the snapshot's memory"
	}
	if m.Running {
		more += ", running"
	}
	word := "VM"
	if m.Type == "template" {
		word = m.Type
	}
	_, err := fmt.Fprintf(w, "%s  %s %s, %s%s\n", m.UUID, word, printable(m.Name), plural(m.Disks, "disk"), more)
	return err
}

func newPoolTemplateCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "template", Short: "Make VMs of templates, and delete templates", Args: cobra.ArbitraryArgs, RunE: needsCommand, SuggestionsMinimumDistance: 2}
	cmd.AddCommand(newPoolTemplateCreateCommand(), newPoolTemplateDeleteCommand())
	return cmd
}

func newPoolTemplateCreateCommand() *cobra.Command {
	var o onPool
	var name string
	var start bool
	cmd := &cobra.Command{
		Use:   "create-vm TEMPLATE",
		Short: "Make a VM of a template",
		Long: `Make a VM of a template: a clone of it, with the disks that it has and those that it
asks for. It gets MAC addresses of its own.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.on(cmd, func(ctx context.Context, c *xapi.Client) error {
				m, err := poolsnap.CreateVM(ctx, c, args[0], name, start)
				return tellMade(cmd, &o, m, err)
			})
		},
	}
	o.add(cmd)
	cmd.Flags().StringVar(&name, "name", "", "the VM's `name`")
	cmd.Flags().BoolVar(&start, "start", false, "start it")
	cmd.MarkFlagRequired("name")
	return cmd
}

func newPoolTemplateDeleteCommand() *cobra.Command {
	var o onPool
	var yes confirmFlags
	cmd := &cobra.Command{
		Use:   "delete TEMPLATE",
		Short: "Delete a template with its disks",
		Long: `Delete a template with its disks, after they are listed and confirmed. Templates
that came with the product cannot be deleted.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.on(cmd, func(ctx context.Context, c *xapi.Client) error {
				plan, err := poolsnap.PlanDeleteTemplate(ctx, c, args[0])
				if err != nil {
					return err
				}
				return deleteAll(ctx, cmd, c, plan, &o, &yes)
			})
		},
	}
	o.add(cmd)
	yes.add(cmd)
	return cmd
}
