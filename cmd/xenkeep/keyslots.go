package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"xenkeep/chunkstore/seal"
	"xenkeep/chunkstore/slot"
	"xenkeep/repo"
)

// newSecretFlags define the secret that opens a new key slot.
type newSecretFlags struct{ passwordFile, passwordCommand, keyFile string }

func (f *newSecretFlags) add(cmd *cobra.Command) {
	s := cmd.Flags()
	s.StringVar(&f.passwordFile, "new-password-file", "", "`file` whose content is the new password")
	s.StringVar(&f.passwordCommand, "new-password-command", "", "`command` of the shell that prints the new password")
	s.StringVar(&f.keyFile, "new-key-file", "", "in place of a password: a key `file`; one that is not there is made")
	cmd.MarkFlagsMutuallyExclusive("new-password-file", "new-password-command", "new-key-file")
}

func (f *newSecretFlags) read(ctx context.Context, stderr io.Writer) (slot.Secret, error) {
	if f.keyFile != "" {
		if err := makeKeyFile(f.keyFile); err != nil {
			return slot.Secret{}, err
		}
	}
	values := secretFlagsValues{passwordFile: f.passwordFile, passwordCommand: f.passwordCommand, keyFile: f.keyFile}
	k, err := values.readNew(ctx, stderr)
	return k.secret, err
}

// makeKeyFile draws a key unless the file is there.
func makeKeyFile(name string) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("key file: %w", err)
	}
	p := make([]byte, 32)
	_, _ = rand.Read(p)
	_, err = f.Write(p)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return errors.Join(err, os.Remove(name))
	}
	return nil
}

// keyLine is a key slot, or a writer that has none any more.
type keyLine struct {
	Type      string     `json:"type"` // "key"
	ID        string     `json:"id"`
	Role      string     `json:"role"`
	Label     string     `json:"label,omitempty"`
	Secret    string     `json:"secret,omitempty"`
	Created   *time.Time `json:"created,omitempty"`
	State     string     `json:"state"`
	Current   bool       `json:"current"`
	Snapshots int        `json:"snapshots"`
}

// keyPackLine is a pack that a writer wrote.
type keyPackLine struct {
	Type   string `json:"type"` // "pack"
	Object string `json:"object"`
	Size   int64  `json:"size"`
}

func newKeyListCommand() *cobra.Command {
	var repository repositoryFlags
	var output outputFlags
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the key slots, and all who wrote",
		Long: `List the key slots, and writers of snapshots whose slot is gone or was revoked. Each
slot is a writer: objects written with it contain its id.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := repository.openBare(cmd.Context(), cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			defer r.Close()
			lines, err := keyLines(cmd.Context(), r)
			if err != nil {
				return err
			}
			return showKeys(cmd.OutOrStdout(), lines, output.json)
		},
	}
	repository.add(cmd)
	output.add(cmd)
	return cmd
}

// secretNames are the names of the kinds of secret that open a slot.
var secretNames = map[string]string{"argon2id": "password", "keyfile": "key file"}

func keyLines(ctx context.Context, r *repo.Repository) ([]keyLine, error) {
	slots, err := r.Slots(ctx)
	if err != nil {
		return nil, err
	}
	writers, err := r.Writers(ctx)
	if err != nil {
		return nil, err
	}
	revoked, _, err := r.Revocations(ctx)
	if err != nil {
		return nil, err
	}
	var lines []keyLine
	for _, s := range slots {
		l := keyLine{Type: "key", ID: s.ID, Role: s.Role, Label: s.Label, Secret: secretNames[s.Secret], State: "ok", Current: s.Current, Snapshots: writers[s.ID].Snapshots}
		if !s.Created.IsZero() {
			l.Created = &s.Created
		}
		if s.Copies < 2 {
			l.State = fmt.Sprintf("%d of 2 copies", s.Copies)
		}
		lines = append(lines, l)
		delete(writers, s.ID)
	}
	for _, v := range revoked {
		i := slices.IndexFunc(lines, func(l keyLine) bool { return l.ID == v.Writer })
		if i < 0 {
			i = len(lines)
			lines = append(lines, keyLine{Type: "key", ID: v.Writer, Role: seal.WriteOnly.String(), Snapshots: writers[v.Writer].Snapshots})
			delete(writers, v.Writer)
		}
		lines[i].State = "revoked"
	}
	rest := make([]string, 0, len(writers))
	for id := range writers {
		rest = append(rest, id)
	}
	slices.Sort(rest)
	for _, id := range rest {
		lines = append(lines, keyLine{Type: "key", ID: id, Role: writers[id].Role, State: "removed", Snapshots: writers[id].Snapshots})
	}
	return lines, nil
}

func showKeys(w io.Writer, lines []keyLine, json bool) error {
	if json {
		var errs []error
		for _, l := range lines {
			errs = append(errs, writeLine(w, l))
		}
		return errors.Join(errs...)
	}
	t := newTable(w, "ID", "ROLE", "LABEL", "OPENED BY", "CREATED", "SNAPSHOTS", "STATE")
	for _, l := range lines {
		state, created := l.State, ""
		if l.Current {
			state += ", in use"
		}
		if l.Created != nil {
			created = clock(*l.Created)
		}
		t.row(l.ID, l.Role, l.Label, l.Secret, created, fmt.Sprint(l.Snapshots), state)
	}
	return t.flush()
}

func newKeyAddCommand() *cobra.Command {
	var repository repositoryFlags
	var secret newSecretFlags
	var label string
	var writeOnly bool
	cmd := &cobra.Command{
		Use:   "add",
		Short: "Add a password or key file",
		Long: `Add a key slot: another password or key file that opens the repository. With
--write-only it can add backups, build on old ones, list and prune, and opens no data:
for the machine that only backs up.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := repository.openBare(cmd.Context(), cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			defer r.Close()
			if err := r.NeedsFull("add a key"); err != nil {
				return err // before a key file is made
			}
			s, err := secret.read(cmd.Context(), cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			role := seal.Full
			if writeOnly {
				role = seal.WriteOnly
			}
			id, err := r.AddSlot(cmd.Context(), s, label, role, time.Now())
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "added: %s key %s\n", role, id)
			return err
		},
	}
	repository.add(cmd)
	secret.add(cmd)
	cmd.Flags().StringVar(&label, "label", "", "`name` for people, such as that of the machine")
	cmd.Flags().BoolVar(&writeOnly, "write-only", false, "a key that opens no data")
	return cmd
}

func newKeyRemoveCommand() *cobra.Command {
	var repository repositoryFlags
	cmd := &cobra.Command{
		Use:   "remove KEY",
		Short: "Remove a password or key file",
		Long: `Remove a key slot, by its id, the beginning of it, or its label: its password opens
the repository no more. Who opened the repository with it may have kept the keys:
xenkeep key revoke shuts such a writer out.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := repository.openBare(cmd.Context(), cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			defer r.Close()
			s, err := r.FindSlot(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if err := r.RemoveSlot(cmd.Context(), s.ID); err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "removed: key %s\n", s.ID)
			return err
		},
	}
	repository.add(cmd)
	return cmd
}

func newKeyChangePasswordCommand() *cobra.Command {
	var repository repositoryFlags
	var secret newSecretFlags
	cmd := &cobra.Command{
		Use:   "change-password",
		Short: "Change the password of the key in use",
		Long: `Change the password, or key file, of the key that the repository was opened with. When
that was a printed key page, a slot is made of it again: so a forgotten password is
replaced. The keys below stay the same.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := repository.openBare(cmd.Context(), cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			defer r.Close()
			s, err := secret.read(cmd.Context(), cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			if err := r.ChangeSecret(cmd.Context(), s, time.Now()); err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "changed: key %s\n", r.Keys().Cert.Writer())
			return err
		},
	}
	repository.add(cmd)
	secret.add(cmd)
	return cmd
}

func newKeyPacksCommand() *cobra.Command {
	var repository repositoryFlags
	var output outputFlags
	cmd := &cobra.Command{
		Use:   "packs KEY",
		Short: "List the packs that a key wrote",
		Long:  `List the packs that a writer wrote, which reads the beginning of every pack.`,
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, w := cmd.Context(), cmd.OutOrStdout()
			r, err := repository.openBare(ctx, cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			defer r.Close()
			id, err := r.FindWriter(ctx, args[0])
			if err != nil {
				return err
			}
			return r.PacksOf(ctx, id, func(name string, n int64) error {
				if output.json {
					return writeLine(w, keyPackLine{"pack", name, n})
				}
				_, err := fmt.Fprintln(w, name)
				return err
			})
		},
	}
	repository.add(cmd)
	output.add(cmd)
	return cmd
}
