package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"xenkeep/job/poolsnap"
	"xenkeep/job/vmplan"
	"xenkeep/xapi"
)

func newPoolSnapshotCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:                        "snapshot",
		Short:                      "Take, list, revert, delete, copy and export VM snapshots on the pool",
		Args:                       cobra.ArbitraryArgs,
		RunE:                       needsCommand,
		SuggestionsMinimumDistance: 2,
	}
	cmd.AddCommand(
		newPoolSnapshotCreateCommand(), newPoolSnapshotListCommand(), newPoolSnapshotShowCommand(), newPoolSnapshotRevertCommand(),
		newPoolSnapshotDeleteCommand(), newPoolSnapshotCopyCommand(false), newPoolSnapshotCopyCommand(true), newPoolSnapshotExportCommand(), newPoolSnapshotRunCommand(),
	)
	return cmd
}

type poolCreateOptions struct {
	onPool
	name, description string
	quiesce, memory   bool
	ignore, where     []string
	multiple          bool
}

func newPoolSnapshotCreateCommand() *cobra.Command {
	var o poolCreateOptions
	cmd := &cobra.Command{
		Use:   "create VM...",
		Short: "Take VM snapshots, and print their UUIDs",
		Long: `Take VM snapshots: of all disks of a VM, crash-consistent, whatever it does meanwhile.
Where the output is no terminal it is the UUIDs alone, one a line.

With --quiesce the guest's applications take part, through Windows' Volume Shadow Copy
Service. That needs the Xen VSS provider in the guest (install-XenProvider.cmd) and hosts
older than 8.1. Windows gives 10 s for it: when they do not suffice it is tried again,
three times in all. Have no more than two disks on such a VM, or spread them over several
SRs. Windows 8.1, 8, 7, 2000, XP, 2003 and Vista are not supported, nor are dynamic disks.

With --memory the guest's memory is saved too: the VM must run or be suspended, and it
stands still meanwhile. The SR must have room for the memory and 4 MB for each disk, and a
fifth more.`,
		Example: `  xenkeep pool snapshot create web --name before-upgrade
  xenkeep pool snapshot create --where power-state=running --where tags=prod --multiple`,
		Args: func(cmd *cobra.Command, args []string) error {
			switch {
			case len(args) == 0 && len(o.where) == 0:
				return usagef("which VM? name it, or give --where")
			case len(args) > 0 && len(o.where) > 0:
				return usagef("name VMs or give --where, not both")
			case o.quiesce && o.memory:
				return usagef("--quiesce or --memory, not both")
			case len(o.ignore) > 0 && (len(args) != 1 || o.quiesce || o.memory):
				return usagef("--ignore-disk requires one VM and a regular snapshot")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error { return runPoolSnapshotCreate(cmd, &o, args) },
	}
	o.add(cmd)
	s := cmd.Flags()
	s.StringVar(&o.name, "name", "", "the snapshot's `name` (the VM's and the time)")
	s.StringVar(&o.description, "description", "", "`text` for people")
	s.BoolVar(&o.quiesce, "quiesce", false, "let the guest's applications take part (VSS)")
	s.BoolVar(&o.memory, "memory", false, "save the memory too")
	s.StringArrayVar(&o.ignore, "ignore-disk", nil, "leave this `disk` out: its UUID, device or name; may be repeated")
	s.StringArrayVar(&o.where, "where", nil, "the VMs that have this `FIELD=VALUE`; may be repeated: all must fit")
	s.BoolVar(&o.multiple, "multiple", false, "more than one VM may be meant")
	return cmd
}

func runPoolSnapshotCreate(cmd *cobra.Command, o *poolCreateOptions, args []string) error {
	filters, err := poolsnap.ParseFilters(o.where)
	if err != nil {
		return usagef("%w", err)
	}
	co := poolsnap.CreateOptions{
		VMs: args, Where: filters, Several: o.multiple, Kind: vmplan.KindRegular, Name: o.name, Text: o.description, Ignore: o.ignore, Now: time.Now(),
		Warn: func(format string, a ...any) { warnLine(cmd.ErrOrStderr(), format, a...) },
		Begun: func(vm string, kind vmplan.Kind) {
			if kind == vmplan.KindCheckpoint {
				fmt.Fprintf(cmd.ErrOrStderr(), "VM %s stands still while its memory is saved\n", printable(vm))
			}
		},
	}
	if o.quiesce {
		co.Kind = vmplan.KindQuiesced
	}
	if o.memory {
		co.Kind = vmplan.KindCheckpoint
	}
	return o.on(cmd, func(ctx context.Context, c *xapi.Client) error {
		made, err := poolsnap.Create(ctx, c, co)
		if o.output.json {
			return errors.Join(err, writeLines(cmd.OutOrStdout(), made))
		}
		people := isTerminal(cmd.OutOrStdout())
		for _, m := range made {
			if !people { // a script wants the UUID alone
				fmt.Fprintln(cmd.OutOrStdout(), m.UUID)
				continue
			}
			left := ""
			if len(m.Left) > 0 {
				left = ", " + plural(len(m.Left), "disk") + " left out"
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s  %s snapshot of VM %s: %s, %s%s\n", m.UUID, m.Kind, printable(m.VMName), printable(m.Name), plural(m.Disks, "disk"), left)
		}
		return err
	})
}

func warnLine(w io.Writer, format string, args ...any) {
	fmt.Fprintf(w, "warning: %s\n", oneLine(fmt.Sprintf(format, args...)))
}

func newPoolSnapshotListCommand() *cobra.Command {
	var o onPool
	cmd := &cobra.Command{
		Use:   "list [VM]",
		Short: "List the VM snapshots of the pool, or of one VM",
		Long: `List the VM snapshots of the pool, or of one VM, as a tree: each stands below the one
that the VM came from when it was taken. A star marks the one that the VM's present state
comes from.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.on(cmd, func(ctx context.Context, c *xapi.Client) error {
				rows, err := poolsnap.Snapshots(ctx, c, strings.Join(args, ""))
				if err != nil {
					return err
				}
				if o.output.json {
					return writeLines(cmd.OutOrStdout(), rows)
				}
				return printVMSnapshots(cmd.OutOrStdout(), rows)
			})
		},
	}
	o.add(cmd)
	return cmd
}

func printVMSnapshots(w io.Writer, rows []poolsnap.SnapshotRow) error {
	current := false
	t := newTable(w, "UUID", "VM", "TIME", "KIND", "DISKS", "SIZE", "NAME", "DESCRIPTION")
	for _, r := range rows {
		name, vm := strings.Repeat("  ", r.Depth)+r.Name, r.VMName
		if r.Current {
			name += " *"
			current = true
		}
		if r.VM == "" {
			vm = "(gone)"
		}
		t.row(r.UUID, vm, clock(r.Time), kindText(&r), fmt.Sprint(r.Disks), size(r.Size), name, r.Description)
	}
	err := t.flush()
	if err == nil && current {
		_, err = fmt.Fprintln(w, "* the snapshot that the present state of its VM comes from")
	}
	return err
}

func kindText(r *poolsnap.SnapshotRow) string {
	text := string(r.Kind)
	switch {
	case r.Scheduled:
		text += ", scheduled"
	case r.Job != "":
		text += ", job " + r.Job
	}
	return text
}

func newPoolSnapshotShowCommand() *cobra.Command {
	var o onPool
	cmd := &cobra.Command{
		Use:   "show SNAPSHOT",
		Short: "Show all about one VM snapshot of the pool",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.on(cmd, func(ctx context.Context, c *xapi.Client) error {
				d, err := poolsnap.Show(ctx, c, args[0])
				if err != nil {
					return err
				}
				if o.output.json {
					return writeLine(cmd.OutOrStdout(), d)
				}
				return printVMSnapshot(cmd.OutOrStdout(), d)
			})
		},
	}
	o.add(cmd)
	return cmd
}

func printVMSnapshot(w io.Writer, d *poolsnap.SnapshotDetail) error {
	t := newTable(w)
	vm := d.VMName + " (" + d.VM + ")"
	if d.VM == "" {
		vm = "gone"
	}
	t.row("uuid", d.UUID)
	t.row("name", d.Name)
	t.row("description", d.Description)
	t.row("snapshot of", vm)
	t.row("time", clock(d.Time))
	t.row("kind", kindText(&d.SnapshotRow))
	t.row("parent", d.Parent)
	t.row("children", strings.Join(d.Children, " "))
	t.row("tags", strings.Join(d.Tags, " "))
	if d.MemorySize > 0 {
		t.row("memory", size(d.MemorySize)+" (VDI "+d.MemoryVDI+")")
	}
	if d.Mark != "" {
		t.row("belongs to", "a backup of xenkeep ("+d.Mark+")")
	}
	if err := t.flush(); err != nil {
		return err
	}
	fmt.Fprintln(w)
	t = newTable(w, "DISK", "VDI", "SNAPSHOT OF", "SIZE", "ITS OWN", "SR", "NAME")
	for _, x := range d.DiskList {
		of := x.Of
		if of == "" {
			of = "(gone)"
		}
		t.row(x.Device, x.VDI, of, size(x.Size), size(x.Used), x.SR, x.Name)
	}
	return t.flush()
}
