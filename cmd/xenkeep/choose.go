package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"xenkeep/repo"
)

// advised is an error with its hint.
type advised struct {
	error
	hint string
}

func (a *advised) Unwrap() error { return a.error }
func (a *advised) Hint() string  { return a.hint }

// resolve finds the snapshot that the user names, and reports on stderr why it may
// be another than expected. It also reports snapshots that cannot be read, because
// the user may mean one of them.
func resolve(ctx context.Context, r *repo.Repository, spec, writer string, stderr io.Writer) (*repo.Snapshot, error) {
	snapshots, err := candidates(ctx, r, writer, stderr)
	if err != nil {
		return nil, err
	}
	s, err := choose(snapshots, spec, stderr)
	return s, orForgotten(ctx, r, spec, err)
}

// candidates are the snapshots that a name may mean: all, or those of the writer, or
// group of writers, that is selected.
func candidates(ctx context.Context, r *repo.Repository, writer string, stderr io.Writer) ([]*repo.Snapshot, error) {
	snapshots, bad, err := r.Snapshots(ctx)
	if err != nil {
		return nil, err
	}
	tellProblems(stderr, bad)
	tellMissed(stderr, r)
	if writer == "" {
		return snapshots, nil
	}
	by, err := writtenBy(ctx, r, writer)
	if err != nil {
		return nil, err
	}
	snapshots = slices.DeleteFunc(snapshots, func(s *repo.Snapshot) bool { return !by(s) })
	if len(snapshots) == 0 {
		return nil, fmt.Errorf("of key %q: %w", writer, repo.ErrNoSnapshot)
	}
	return snapshots, nil
}

// writtenBy returns the test for the snapshots of a writer: a group's name, or a
// key's ID, the beginning of it, or its label.
func writtenBy(ctx context.Context, r *repo.Repository, writer string) (func(*repo.Snapshot) bool, error) {
	for _, g := range r.Config().Groups {
		if g.Name == writer {
			return func(s *repo.Snapshot) bool { return slices.Contains(g.Writers, s.Writer().String()) }, nil
		}
	}
	id, err := r.FindWriter(ctx, writer)
	return func(s *repo.Snapshot) bool { return s.Writer().String() == id }, err
}

// orForgotten explains that a snapshot which does not exist was forgotten.
func orForgotten(ctx context.Context, r *repo.Repository, spec string, err error) error {
	if !errors.Is(err, repo.ErrNoSnapshot) {
		return err
	}
	forgotten, ferr := r.ForgottenSnapshots(ctx)
	if ferr != nil {
		return err
	}
	if s, ferr := chooseForgotten(forgotten, spec); ferr == nil {
		return &advised{fmt.Errorf("%w: it was forgotten %s", err, clock(s.Grace().Since)), "xenkeep snapshots recover " + s.Short() + " brings it back"}
	}
	return err
}

// writerFlag selects the snapshots of one writer.
type writerFlag struct{ writer string }

func (f *writerFlag) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.writer, "writer", "", "only snapshots that this `key` wrote (its ID, the beginning of it, its label), or a group of keys")
}

func choose(snapshots []*repo.Snapshot, spec string, stderr io.Writer) (*repo.Snapshot, error) {
	c, err := repo.Choose(snapshots, spec, time.Now())
	if err != nil {
		return nil, nameOfVM(snapshots, spec, err)
	}
	if c.Note != "" {
		printError(stderr, fmt.Sprintf("snapshot %s is taken: %s", c.Snapshot.Short(), oneLine(c.Note)), "")
	}
	return c.Snapshot, nil
}

// chooseToDestroy is choose for commands that delete or overwrite: it refuses a
// snapshot that may not be the one that the user means.
func chooseToDestroy(snapshots []*repo.Snapshot, spec string) (*repo.Snapshot, error) {
	c, err := repo.Choose(snapshots, spec, time.Now())
	switch {
	case err != nil:
		return nil, nameOfVM(snapshots, spec, err)
	case c.Bare:
		return nil, &advised{usagef("%q alone may be a snapshot of any VM: it is now %s of VM %s", spec, c.Snapshot.Short(), printable(vmName(c.Snapshot))),
			"name the VM: latest:" + vmName(c.Snapshot)}
	case c.Note != "":
		return nil, &advised{usagef("%s; it is snapshot %s", c.Note, c.Snapshot.Short()), "name the snapshot by its ID if it is the one"}
	}
	return c.Snapshot, nil
}

// nameOfVM adds a hint to an error if the user named a VM instead of a snapshot.
func nameOfVM(snapshots []*repo.Snapshot, spec string, err error) error {
	if _, verr := repo.FindVM(snapshots, spec); verr != nil || !errors.Is(err, repo.ErrNoSnapshot) {
		return err
	}
	return &advised{err, fmt.Sprintf("%s is a VM: latest:%s is its newest snapshot, and xenkeep snapshots %s lists all", printable(spec), printable(spec), printable(spec))}
}

// resolveToDestroy is resolve for commands that delete or overwrite.
func resolveToDestroy(ctx context.Context, r *repo.Repository, spec, writer string, stderr io.Writer) (*repo.Snapshot, error) {
	snapshots, err := candidates(ctx, r, writer, stderr)
	if err != nil {
		return nil, err
	}
	s, err := chooseToDestroy(snapshots, spec)
	return s, orForgotten(ctx, r, spec, err)
}

// ofVM returns the snapshots of a VM, for commands that show them. If several VMs
// have the name, it returns the snapshots of all, and lists their UUIDs on stderr.
func ofVM(all []*repo.Snapshot, vm string, stderr io.Writer) ([]*repo.Snapshot, error) {
	v, err := repo.FindVM(all, vm)
	switch {
	case errors.Is(err, repo.ErrAmbiguous):
		printError(stderr, message(err), "")
		return slices.DeleteFunc(slices.Clone(all), func(s *repo.Snapshot) bool { return s.VM.Name != vm && s.VM.UUID != vm }), nil
	case err != nil:
		return nil, err
	case v.Former:
		printError(stderr, fmt.Sprintf("VM %s is called %s now", printable(vm), printable(v.Name)), "")
	}
	return v.Snapshots(), nil
}

// filter selects snapshots by VM, job and tags. An empty field selects all.
type filter struct {
	vm, job string
	tags    []string
}

// apply returns the snapshots that the filter selects. A field that matches none is
// an error, because it is probably a wrong name.
func (f *filter) apply(all []*repo.Snapshot) ([]*repo.Snapshot, error) {
	some := all
	keep := func(what string, fn func(*repo.Snapshot) bool) error {
		some = slices.DeleteFunc(slices.Clone(some), func(s *repo.Snapshot) bool { return !fn(s) })
		if len(some) == 0 {
			return fmt.Errorf("%s: %w", what, repo.ErrNoSnapshot)
		}
		return nil
	}
	if f.vm != "" {
		v, err := repo.FindVM(all, f.vm)
		if err == nil {
			err = v.Renamed()
		}
		if err != nil {
			return nil, err
		}
		if err := keep(fmt.Sprintf("VM %q", f.vm), v.Has); err != nil {
			return nil, err
		}
	}
	if f.job != "" {
		if err := keep(fmt.Sprintf("job %q", f.job), func(s *repo.Snapshot) bool { return s.Job == f.job }); err != nil {
			return nil, err
		}
	}
	if len(f.tags) > 0 {
		if err := keep("tag "+strings.Join(f.tags, ", "), func(s *repo.Snapshot) bool { return s.HasTags(f.tags) }); err != nil {
			return nil, err
		}
	}
	return some, nil
}
