package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"xenkeep/mount"
)

type mountOptions struct {
	repository repositoryFlags
	vm         string
	allowOther bool
	cache      byteSize
}

func newMountCommand() *cobra.Command {
	o := mountOptions{cache: 64 << 20}
	cmd := &cobra.Command{
		Use:   "mount DIR",
		Short: "Show all snapshots as files, read-only",
		Long: `Mount the repository on an empty folder until it is interrupted or unmounted
(fusermount3 -u DIR). Every snapshot is a folder, VM/TIME, with each disk as .raw and
.vhd, and each partition and logical volume as .raw; VM/latest is the newest complete
one. Nothing is read before it is asked for.

It needs no root. Files of a guest are then reached with what reads its file system:
mount -o loop,ro as root, ntfs-3g, debugfs, guestmount.`,
		Example: `  xenkeep mount /mnt/backup
  mount -o loop,ro,noload /mnt/backup/web/latest/xvda1.raw /mnt/web`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return runMount(cmd, &o, args[0]) },
	}
	o.repository.add(cmd)
	s := cmd.Flags()
	s.StringVar(&o.vm, "vm", "", "show this `VM` alone")
	s.BoolVar(&o.allowOther, "allow-other", false, "let all users of this machine read what is mounted")
	s.Var(&o.cache, "cache", "keep at most this `size` in memory")
	return cmd
}

func runMount(cmd *cobra.Command, o *mountOptions, dir string) error {
	ctx := cmd.Context()
	stderr := cmd.ErrOrStderr()
	r, err := o.repository.open(ctx, stderr)
	if err != nil {
		return err
	}
	defer r.Close()
	tellProblems(stderr, r.Problems())
	err = mount.Serve(ctx, r, dir, mount.Options{
		Cache: int64(o.cache), AllowOther: o.allowOther, VM: o.vm,
		Ready: func() {
			fmt.Fprintf(cmd.OutOrStdout(), "mounted on %s; Ctrl-C, or fusermount3 -u, unmounts it\n", printable(dir))
		},
		Log: func(text string) { printError(stderr, oneLine(text), "") },
	})
	if errors.Is(err, errInterrupted) && errors.Is(context.Cause(ctx), errInterrupted) {
		return nil // that is how it ends
	}
	return err
}
