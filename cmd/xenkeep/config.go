package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"xenkeep/job/config"
)

func newConfigCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "config",
		Short: "Show an example of a config, check one, or turn one of VmBackup into one",
		Args:  cobra.ArbitraryArgs,
		RunE:  needsCommand,
	}
	cmd.AddCommand(newConfigExampleCommand(), newConfigCheckCommand(), newConfigImportCommand())
	return cmd
}

func newConfigExampleCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "example",
		Short: "Print a config with every key explained",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := cmd.OutOrStdout().Write(config.Example)
			return err
		},
	}
}

func newConfigCheckCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "check FILE",
		Short: "Say what is wrong with a config",
		Long: `Say all that is wrong with a config, each fault on a line with the line of the file.
The files that runs write (log, reports, metrics) are tried; neither pool nor
repository is asked: xenkeep plan does that.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := config.LoadStrictly(args[0])
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: ok, %s, %s\n", printable(args[0]), plural(len(c.Pools), "pool"), plural(len(c.Jobs), "job"))
			return err
		},
	}
}

func newConfigImportCommand() *cobra.Command {
	var out string
	cmd := &cobra.Command{
		Use:   "import-vmbackup FILE [NAME=VALUE...]",
		Short: "Turn a config of VmBackup into one of xenkeep's",
		Long: `Turn a config file of VmBackup into one of xenkeep's that does the same, with the
address of the pool to be filled in. NAME=VALUE are parameters that VmBackup takes after its
config file: compress=True, pre_clean=True, ignore_extra_keys=True.`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			p, err := config.ParseVmBackupParams(args[1:])
			if err != nil {
				return usagef("%w", err)
			}
			v, err := config.LoadVmBackup(args[0], p)
			if err != nil {
				return err
			}
			if out == "" {
				_, err = cmd.OutOrStdout().Write(v.TOML())
				return err
			}
			f, err := os.OpenFile(out, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o640)
			if err != nil {
				return err
			}
			_, err = f.Write(v.TOML())
			if err = errors.Join(err, f.Close()); err != nil {
				return errors.Join(err, os.Remove(out)) // a part of it would only be in the way
			}
			return nil
		},
	}
	cmd.Flags().StringVarP(&out, "output", "o", "", "write it to this `file`, which must not be there")
	return cmd
}
