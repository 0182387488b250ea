package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

func newRootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "xenkeep",
		Short: "Back up and restore the VMs of a XenServer or XCP-ng pool",
		Long: `xenkeep backs up the virtual machines of a XenServer or XCP-ng pool into a
deduplicating, encrypted repository: a folder, or a bucket of S3.

  xenkeep init --repository /srv/backup
  xenkeep backup --repository /srv/backup --pool https://HOST web db
  xenkeep restore --repository /srv/backup latest:web --to web.raw`,
		Args:                       cobra.ArbitraryArgs,
		SuggestionsMinimumDistance: 2,
		RunE:                       needsCommand,
	}
	root.AddCommand(
		newInitCommand(), newBackupCommand(), newSnapshotsCommand(), newShowCommand(), newRestoreCommand(),
		newForgetCommand(), newPruneCommand(), newCheckCommand(), newCopyCommand(), newRepairCommand(), newRepoCommand(), newCleanupCommand(), newPoolCommand(), newDoctorCommand(), newPlanCommand(), newCoverageCommand(), newConfigCommand(), newNotifyCommand(), newStatsCommand(), newKeyCommand(), newVersionCommand(), newSimCommand(),
	)
	root.AddCommand(newExportCommand(), newImportCommand(), newVerifyCommand(), newDiffCommand(), newMountCommand(), newServeCommand())
	addConfigFlags(root)
	addCompletion(root)
	addHelp(root)
	return root
}

// needsCommand is the action of a command that only has subcommands.
func needsCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return usagef("which command?")
	}
	hint := ""
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		hint = `; did you mean "` + strings.Join(near, `" or "`) + `"?`
	}
	return usagef("no command %q%s", args[0], hint)
}

// usagef returns an error of the command line.
func usagef(format string, args ...any) error {
	return &usageError{fmt.Errorf(format, args...)}
}

type usageError struct{ error }

func (e *usageError) Unwrap() []error { return []error{e.error, errUsage} }

// variable is an environment variable, which sets its flag unless the flag is given.
// Secrets have no flag, because every user of the machine can read command lines.
type variable struct {
	name, flag string
}

var variables = []variable{
	{"XENKEEP_CONFIG", "config"},
	{"XENKEEP_REPOSITORY", "repository"},
	{"XENKEEP_PASSWORD_FILE", "password-file"},
	{"XENKEEP_PASSWORD_COMMAND", "password-command"},
	{"XENKEEP_PASSWORD", ""},
	{"XENKEEP_KEY_FILE", "key-file"},
	{"XENKEEP_CACHE_DIR", "cache-dir"},
	{"XENKEEP_OTHER_PASSWORD_FILE", "other-password-file"},
	{"XENKEEP_OTHER_PASSWORD_COMMAND", "other-password-command"},
	{"XENKEEP_OTHER_PASSWORD", ""},
	{"XENKEEP_OTHER_KEY_FILE", "other-key-file"},
	{"XENKEEP_S3_ENDPOINT", "s3-endpoint"},
	{"XENKEEP_S3_REGION", "s3-region"},
	{"XENKEEP_S3_PROFILE", "s3-profile"},
	{"XENKEEP_S3_STYLE", "s3-style"},
	{"XENKEEP_S3_CA_FILE", "s3-ca-file"},
	{"XENKEEP_S3_STORAGE_CLASS", "s3-storage-class"},
	{"XENKEEP_S3_CHECKSUM", "s3-checksum"},
	{"XENKEEP_S3_PARALLEL", "s3-parallel"},
	{"XENKEEP_S3_NO_OVERWRITE", "s3-no-overwrite"},
	{"XENKEEP_S3_LOCK_MODE", "s3-lock-mode"},
	{"XENKEEP_POOL", "pool"},
	{"XENKEEP_POOL_USER", "pool-user"},
	{"XENKEEP_POOL_PASSWORD_FILE", "pool-password-file"},
	{"XENKEEP_POOL_PASSWORD", ""},
	{"XENKEEP_POOL_FINGERPRINT", "pool-fingerprint"},
	{"XENKEEP_POOL_CA_FILE", "pool-ca-file"},
	{"XENKEEP_POOL_INSECURE", "pool-insecure"},
}

// prepare makes all commands below root read the environment, start d, and return
// errors to run. It sets began when a command's own action starts.
func prepare(root *cobra.Command, d *diagnostics, began *bool) {
	d.add(root)
	root.SilenceErrors, root.SilenceUsage = true, true
	root.InitDefaultCompletionCmd()
	walk(root, func(cmd *cobra.Command) {
		inner := cmd.RunE
		if inner == nil {
			return
		}
		cmd.RunE = func(cmd *cobra.Command, args []string) error {
			if err := refuseEmpty(cmd.Flags(), args); err != nil {
				return err
			}
			used, err := fromEnvironment(cmd.Flags())
			if err != nil {
				return err
			}
			*began = true
			if err := d.start(cmd.CommandPath(), cmd.ErrOrStderr()); err != nil {
				return err
			}
			for _, v := range used {
				d.log.Debug("flag from the environment", "flag", "--"+v.flag, "variable", v.name)
			}
			if file, _ := foundConfig(cmd.Flags()); file != "" {
				d.log.Debug("config", "file", file)
			}
			cmd.SetContext(context.WithValue(cmd.Context(), diagnosticsKey{}, d))
			return inner(cmd, args)
		}
	})
}

// mayBeEmpty are flags for which an empty text is valid: it clears the value.
var mayBeEmpty = []string{"description", "label", "param", "reason"}

// refuseEmpty refuses flags and arguments without content. They usually come from
// variables that are not set, and would select everything: forget --vm "$VM" must not
// mean all VMs.
func refuseEmpty(flags *pflag.FlagSet, args []string) error {
	var err error
	flags.Visit(func(f *pflag.Flag) {
		empty := f.Value.Type() == "string" && f.Value.String() == ""
		if l, ok := f.Value.(pflag.SliceValue); ok {
			empty = slices.Contains(l.GetSlice(), "")
		}
		if empty && !slices.Contains(mayBeEmpty, f.Name) {
			err = usagef("--%s is empty: is it a variable that is not set?", f.Name)
		}
	})
	if slices.Contains(args, "") {
		return usagef("a word of the command is empty: is it a variable that is not set?")
	}
	return err
}

func walk(cmd *cobra.Command, fn func(*cobra.Command)) {
	fn(cmd)
	for _, c := range cmd.Commands() {
		walk(c, fn)
	}
}

// secretFlags are alternatives: one of these flags overrides the variables of the
// others.
var (
	secretFlags      = []string{"key-file", "password-file", "password-command"}
	otherSecretFlags = []string{"other-key-file", "other-password-file", "other-password-command"}
)

// fromEnvironment sets flags that are not given from their variables, and
// returns those that it used.
func fromEnvironment(flags *pflag.FlagSet) (used []variable, err error) {
	aside := make(map[string]bool)
	for _, choice := range [][]string{secretFlags, otherSecretFlags} {
		for _, name := range choice {
			if flags.Changed(name) {
				for _, other := range choice {
					aside[other] = true
				}
			}
		}
	}
	for _, v := range variables {
		text := os.Getenv(v.name)
		f := flags.Lookup(v.flag)
		if f == nil || f.Changed || text == "" || aside[v.flag] {
			continue
		}
		if err := f.Value.Set(text); err != nil {
			return nil, usagef("%s: %w", v.name, err)
		}
		used = append(used, v)
	}
	return used, nil
}

// list is a flag of several values, separated by commas or white space.
type list []string

func (l *list) String() string { return strings.Join(*l, ",") }
func (l *list) Type() string   { return "list" }

func (l *list) Set(text string) error {
	values := strings.FieldsFunc(text, func(r rune) bool { return r == ',' || r == ' ' || r == '\t' || r == '\n' })
	if len(values) == 0 {
		return errors.New("empty: is it a variable that is not set?")
	}
	*l = append(*l, values...)
	return nil
}
