package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"xenkeep/job/poolsnap"
	"xenkeep/xapi"
)

func newPoolSnapshotRevertCommand() *cobra.Command {
	var o onPool
	var yes confirmFlags
	safety := choice{of: []string{string(poolsnap.SafetyAuto), string(poolsnap.SafetyYes), string(poolsnap.SafetyNo)}, text: string(poolsnap.SafetyAuto)}
	var ro poolsnap.RevertOptions
	cmd := &cobra.Command{
		Use:   "revert SNAPSHOT",
		Short: "Take a VM back to one of its snapshots",
		Long: `Take a VM back to one of its snapshots, once what is lost is shown and confirmed. The VM
ends halted, or suspended where the snapshot holds memory. Other snapshots stay.

Hosts destroy the VM's disks before they clone those of the snapshot: where the space for
that may not suffice the revert is refused beforehand. The present state is snapshotted
first, where there is room for it (--safety).`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ro.Safety, ro.Now = poolsnap.Safety(safety.text), time.Now()
			ro.Warn = func(format string, a ...any) { warnLine(cmd.ErrOrStderr(), format, a...) }
			return o.on(cmd, func(ctx context.Context, c *xapi.Client) error { return runRevert(ctx, cmd, c, args[0], ro, &o, &yes) })
		},
	}
	o.add(cmd)
	yes.add(cmd)
	s := cmd.Flags()
	s.Var(&safety, "safety", "snapshot the present state first: `auto` (where there is room), yes or no")
	s.Lookup("safety").NoOptDefVal = string(poolsnap.SafetyYes)
	s.BoolVar(&ro.Start, "start", false, "start, or resume, the VM afterwards")
	s.BoolVar(&ro.Force, "force", false, "go on though the space may not suffice")
	return cmd
}

func runRevert(ctx context.Context, cmd *cobra.Command, c *xapi.Client, name string, ro poolsnap.RevertOptions, o *onPool, yes *confirmFlags) error {
	p, err := poolsnap.PlanRevert(ctx, c, name, ro)
	if err != nil {
		return err
	}
	out := cmd.OutOrStdout()
	if o.output.json {
		err = writeLine(out, p)
		if !yes.yes {
			printRevert(cmd.ErrOrStderr(), p)
		}
	} else {
		printRevert(out, p)
	}
	if err := errors.Join(err, yes.ask(cmd)); err != nil {
		return err
	}
	r, err := poolsnap.Revert(ctx, c, p)
	var hurt *poolsnap.HurtError
	if errors.As(err, &hurt) {
		printHurt(cmd.ErrOrStderr(), hurt)
	}
	if r == nil {
		return err
	}
	if o.output.json {
		return errors.Join(err, writeLine(out, r))
	}
	fmt.Fprintf(out, "VM %s is back at snapshot %s and %s\n", printable(r.VMName), r.Snapshot, r.PowerState)
	for _, d := range r.Disks {
		fmt.Fprintf(out, "  %s is VDI %s (%s)\n", d.Device, d.VDI, d.Fate)
	}
	if r.Safety != "" {
		fmt.Fprintf(out, "  the state before is snapshot %s\n", r.Safety)
	}
	return err
}

func printRevert(w io.Writer, p *poolsnap.RevertPlan) {
	name := p.VMName
	if p.VM == "" {
		name = "(gone)"
	}
	fmt.Fprintf(w, "VM %s goes back to snapshot %s, %s, of %s\n", printable(name), p.Snapshot, printable(p.Name), clock(p.Time))
	fmt.Fprintln(w, "Lost:")
	for _, l := range p.Lost {
		fmt.Fprintf(w, "  %s\n", printable(l))
	}
	for _, d := range p.Disks {
		if d.Fate == "replaced" {
			fmt.Fprintf(w, "  %s: VDI %s, %s, is replaced\n", d.Device, d.VDI, size(d.Size))
		}
	}
	fmt.Fprintf(w, "Afterwards the VM is %s.\n", p.EndsAs)
	if p.Safety {
		fmt.Fprintln(w, "The present state is snapshotted first.")
	} else {
		fmt.Fprintf(w, "The present state is not snapshotted first: %s.\n", oneLine(p.NoSafety))
	}
}

// printHurt describes the state after a failed revert, and the possible next steps.
func printHurt(w io.Writer, h *poolsnap.HurtError) {
	fmt.Fprintf(w, "VM %s is %s.\n", printable(h.VM), h.State)
	for _, d := range h.Have {
		fmt.Fprintf(w, "  it has %s: VDI %s, %s\n", d.Device, d.VDI, size(d.Size))
	}
	for _, d := range h.Lost {
		fmt.Fprintf(w, "  %s: VDI %s is %s\n", d.Device, d.VDI, d.Fate)
	}
	for _, way := range h.Ways() {
		fmt.Fprintf(w, "  %s\n", way)
	}
}
