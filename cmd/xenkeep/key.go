package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/google/renameio/v2"
	"github.com/spf13/cobra"

	"xenkeep/job"
	"xenkeep/repo"
)

func newKeyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "key",
		Short: "Keep the repository's keys",
		Args:  cobra.ArbitraryArgs,
		RunE:  needsCommand,
	}
	cmd.AddCommand(newKeyListCommand(), newKeyAddCommand(), newKeyRemoveCommand(), newKeyChangePasswordCommand(), newKeyExportCommand(),
		newKeyRevokeCommand(), newKeyRevocationsCommand(), newKeyObjectsCommand(), newKeyGroupCommand(), newKeyPacksCommand())
	return cmd
}

type keyExportOptions struct {
	repository repositoryFlags
	force      bool
}

func newKeyExportCommand() *cobra.Command {
	var o keyExportOptions
	cmd := &cobra.Command{
		Use:   "export FILE",
		Short: "Write a page from which alone the repository opens",
		Long: `Write a page of text to be printed, from which alone the repository opens: without
its password, and with its config and key slots lost. FILE "-" is stdout.`,
		Example: "  xenkeep key export page.txt\n  XENKEEP_KEY_FILE=page.txt xenkeep snapshots",
		Args:    cobra.ExactArgs(1),
		RunE:    func(cmd *cobra.Command, args []string) error { return runKeyExport(cmd, &o, args[0]) },
	}
	o.repository.add(cmd)
	cmd.Flags().BoolVar(&o.force, "force", false, "replace the file that is there")
	return cmd
}

func runKeyExport(cmd *cobra.Command, o *keyExportOptions, file string) error {
	r, err := o.repository.openBare(cmd.Context(), cmd.ErrOrStderr())
	if err != nil {
		return err
	}
	defer r.Close()
	page, err := keyPage(r, time.Now())
	if err != nil {
		return err
	}
	if file == "-" {
		_, err := cmd.OutOrStdout().Write(page)
		return err
	}
	if err := writePage(file, page, o.force); err != nil {
		return err
	}
	fmt.Fprintf(cmd.OutOrStdout(), "wrote %s: print it, keep the page where the backups are not, and delete the file\n", file)
	return nil
}

func writePage(file string, page []byte, force bool) error {
	if force {
		return renameio.WriteFile(file, page, 0o600)
	}
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s: %w: --force replaces it", file, job.ErrExists)
	}
	if err != nil {
		return err
	}
	_, err = f.Write(page)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return errors.Join(err, os.Remove(file))
	}
	return nil
}

func keyPage(r *repo.Repository, now time.Time) ([]byte, error) {
	code, err := r.KeyPage()
	if err != nil {
		return nil, err
	}
	var page bytes.Buffer
	fmt.Fprintf(&page, `KEY PAGE OF A XENKEEP REPOSITORY

  location    %s
  id          %s
  written     %s

Whoever holds this page reads every backup in the repository: no password protects
it. Keep it as you keep a key to the house, and not where the backups are.

It opens the repository when the password is forgotten, and when the repository's
config and key slots are lost. Type or scan the lines below into a file, with the
first and the last one; each line ends in a check of its own, so that a line typed
wrong is named. Then

  XENKEEP_KEY_FILE=FILE xenkeep snapshots --repository LOCATION

`, r.Objects().Location(), r.ID(), now.Format("2006-01-02 15:04 MST"))
	page.Write(code)
	return page.Bytes(), nil
}
