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

// deletedLine is the result of a deletion.
type deletedLine struct {
	Type    string            `json:"type"` // "deleted"
	Objects []poolsnap.Object `json:"objects"`
	Stay    []poolsnap.Object `json:"stay"`
}

func newPoolSnapshotDeleteCommand() *cobra.Command {
	var o onPool
	var yes confirmFlags
	var do poolsnap.DeleteOptions
	cmd := &cobra.Command{
		Use:   "delete SNAPSHOT...",
		Short: "Delete VM snapshots of the pool with their disks",
		Long: `Delete VM snapshots of the pool with their disks and memory images, after the objects are
listed and confirmed. The space comes back when the SR has coalesced its chains. What
belongs to a backup of xenkeep is left alone, unless --force is given.`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.on(cmd, func(ctx context.Context, c *xapi.Client) error {
				plan, err := poolsnap.PlanDelete(ctx, c, args, do)
				if err != nil {
					return err
				}
				return deleteAll(ctx, cmd, c, plan, &o, &yes)
			})
		},
	}
	o.add(cmd)
	yes.add(cmd)
	s := cmd.Flags()
	s.BoolVar(&do.MetadataOnly, "metadata-only", false, "remove the snapshot's record alone; its disks and memory image stay on their SRs")
	s.BoolVar(&do.Force, "force", false, "delete also what belongs to a backup of xenkeep")
	return cmd
}

func deleteAll(ctx context.Context, cmd *cobra.Command, c *xapi.Client, plan []poolsnap.Doomed, o *onPool, yes *confirmFlags) error {
	// The user must see the objects to confirm, also if stdout is redirected.
	w := cmd.OutOrStdout()
	if o.output.json {
		w = cmd.ErrOrStderr()
	}
	if !o.output.json || !yes.yes {
		printDoomed(w, plan)
	}
	if err := yes.ask(cmd); err != nil {
		return err
	}
	done := deletedLine{Type: "deleted", Objects: []poolsnap.Object{}, Stay: []poolsnap.Object{}}
	for _, d := range plan {
		done.Stay = append(done.Stay, d.Stay...)
	}
	err := poolsnap.Delete(ctx, c, plan, func(x poolsnap.Object) { done.Objects = append(done.Objects, x) })
	if o.output.json {
		return errors.Join(err, writeLine(cmd.OutOrStdout(), done))
	}
	if err == nil {
		_, err = fmt.Fprintf(w, "%s destroyed\n", plural(len(done.Objects), "object"))
		return err
	}
	fmt.Fprintf(w, "%s destroyed, not all\n", plural(len(done.Objects), "object"))
	return err
}

func printDoomed(w io.Writer, plan []poolsnap.Doomed) {
	fmt.Fprintln(w, "The following objects are about to be destroyed:")
	for _, d := range plan {
		for _, x := range d.Objects {
			printObject(w, x, "")
		}
		for _, x := range d.Stay {
			printObject(w, x, " stays")
		}
	}
}

func printObject(w io.Writer, x poolsnap.Object, more string) {
	if x.Class == "VM" {
		fmt.Fprintf(w, "  VM  %s  %s %s%s\n", x.UUID, x.What, printable(x.Name), more)
		return
	}
	fmt.Fprintf(w, "  VDI %s  %s, %s, %s its own%s\n", x.UUID, x.What, size(x.Size), size(x.Used), more)
}
