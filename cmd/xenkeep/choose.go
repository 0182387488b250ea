package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"xenkeep/repo"
)

// advised is an error with its hint.
type advised struct {
	error
	hint string
}

func (a *advised) Unwrap() error { return a.error }
func (a *advised) Hint() string  { return a.hint }

// resolve finds the snapshot that the user means, and tells why it may be
// another than expected. Snapshots that cannot be read are told of, since one of
// them may be what was meant.
func resolve(ctx context.Context, r *repo.Repository, spec string, stderr io.Writer) (*repo.Snapshot, error) {
	snapshots, bad, err := r.Snapshots(ctx)
	if err != nil {
		return nil, err
	}
	tellProblems(stderr, bad)
	return choose(snapshots, spec, stderr)
}

func choose(snapshots []*repo.Snapshot, spec string, stderr io.Writer) (*repo.Snapshot, error) {
	c, err := repo.Choose(snapshots, spec, time.Now())
	if err != nil {
		return nil, nameOfVM(snapshots, spec, err)
	}
	if c.Note != "" {
		tell(stderr, fmt.Sprintf("snapshot %s is taken: %s", c.Snapshot.Short(), oneLine(c.Note)), "")
	}
	return c.Snapshot, nil
}

// chooseToDestroy is choose for commands that delete, or write over what is
// there: they do not take a snapshot that the user may not mean.
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

// nameOfVM adds a hint to an error where a user gave a VM in place of a snapshot.
func nameOfVM(snapshots []*repo.Snapshot, spec string, err error) error {
	if _, verr := repo.FindVM(snapshots, spec); verr != nil || !errors.Is(err, repo.ErrNoSnapshot) {
		return err
	}
	return &advised{err, fmt.Sprintf("%s is a VM: latest:%s is its newest snapshot, and xenkeep snapshots %s lists all", printable(spec), printable(spec), printable(spec))}
}

// resolveToDestroy is resolve for such commands.
func resolveToDestroy(ctx context.Context, r *repo.Repository, spec string, stderr io.Writer) (*repo.Snapshot, error) {
	snapshots, bad, err := r.Snapshots(ctx)
	if err != nil {
		return nil, err
	}
	tellProblems(stderr, bad)
	return chooseToDestroy(snapshots, spec)
}

// ofVM returns the snapshots of a VM, for commands that show them: where the
// name may mean several VMs it shows those of all, and tells their UUIDs.
func ofVM(all []*repo.Snapshot, vm string, stderr io.Writer) ([]*repo.Snapshot, error) {
	v, err := repo.FindVM(all, vm)
	switch {
	case errors.Is(err, repo.ErrAmbiguous):
		tell(stderr, sentence(err), "")
		return slices.DeleteFunc(slices.Clone(all), func(s *repo.Snapshot) bool { return s.VM.Name != vm && s.VM.UUID != vm }), nil
	case err != nil:
		return nil, err
	case v.Former:
		tell(stderr, fmt.Sprintf("VM %s is called %s now", printable(vm), printable(v.Name)), "")
	}
	return v.Snapshots(), nil
}

// filter chooses snapshots: those of a VM, a job, with tags; what is empty
// allows all.
type filter struct {
	vm, job string
	tags    []string
}

// apply returns what of all the filter allows. A word of it that fits nothing is
// an error: it is a wrong name, and not a wish to work on nothing.
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
