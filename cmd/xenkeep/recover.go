package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"
)

// recoveredLine is a snapshot that was brought back.
type recoveredLine struct {
	Type   string    `json:"type"` // "recovered"
	ID     string    `json:"id"`
	VMUUID string    `json:"vm_uuid"`
	VMName string    `json:"vm_name"`
	Data   time.Time `json:"data_time"`
}

type recoverOptions struct {
	repository repositoryFlags
	output     outputFlags
}

func newRecoverCommand() *cobra.Command {
	var o recoverOptions
	cmd := &cobra.Command{
		Use:   "recover SNAPSHOT...",
		Short: "Bring forgotten snapshots back",
		Long: `Bring forgotten snapshots back, by their IDs as xenkeep snapshots --forgotten lists
them: in their grace period, and after it until a prune deletes them. It needs a full key.`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usagef("which snapshots? xenkeep snapshots --forgotten lists them")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error { return runRecover(cmd, &o, args) },
	}
	o.repository.add(cmd)
	o.output.add(cmd)
	return cmd
}

func runRecover(cmd *cobra.Command, o *recoverOptions, specs []string) error {
	ctx, w := cmd.Context(), cmd.OutOrStdout()
	r, err := o.repository.openBare(ctx, cmd.ErrOrStderr())
	if err != nil {
		return err
	}
	defer r.Close()
	forgotten, err := r.ForgottenSnapshots(ctx)
	if err != nil {
		return err
	}
	var ids []string
	var lines []recoveredLine
	for _, spec := range specs {
		s, err := chooseForgotten(forgotten, spec)
		if err != nil {
			return err
		}
		ids = append(ids, s.ID())
		lines = append(lines, recoveredLine{"recovered", s.ID(), s.VM.UUID, vmName(s), s.DataTime})
	}
	if err := r.Recover(ctx, ids, time.Now()); err != nil {
		return err
	}
	var errs []error
	for _, l := range lines {
		if o.output.json {
			errs = append(errs, writeLine(w, l))
			continue
		}
		_, err := fmt.Fprintf(w, "recovered: snapshot %s of %s, %s\n", l.ID[:8], printable(l.VMName), clock(l.Data))
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
