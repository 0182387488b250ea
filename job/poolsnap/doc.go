// Package poolsnap manages XenServer's own VM snapshots, in addition to backups: take,
// list, revert, delete, copy, export, and schedule. An operation that destroys
// something is first a plan (RevertPlan, Doomed), which can be shown to the user, and
// then a call that executes it.
//
// The package does not use a repository. Objects that backups keep on the pool, bases
// and those of running backups, have marks and are refused.
package poolsnap

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"xenkeep/job/selection"
	"xenkeep/xapi"
)

var (
	// ErrSpace is returned if an SR has too little free space for an operation.
	ErrSpace = errors.New("not enough free space on the SR")
	// ErrSeveral is returned if several VMs match where one is required.
	ErrSeveral = errors.New("several VMs match")
	// ErrNone is returned if no VM matches.
	ErrNone = errors.New("no VM matches")
	// ErrInUse is returned for objects that belong to a backup.
	ErrInUse = errors.New("belongs to a backup of xenkeep")
	// ErrKind is returned if another object is named where a snapshot is required, or
	// the other way round.
	ErrKind = errors.New("wrong kind of object")
	// ErrValue is returned for values that the pool would refuse.
	ErrValue = errors.New("bad value")
)

// advised is an error with its hint, for job.HintOf.
type advised struct {
	err  error
	hint string
}

func (a *advised) Error() string { return a.err.Error() }
func (a *advised) Unwrap() error { return a.err }
func (a *advised) Hint() string  { return a.hint }

func advise(hint, format string, args ...any) error {
	return &advised{fmt.Errorf(format, args...), hint}
}

// Warn receives information that is worth knowing and not an error.
type Warn func(format string, args ...any)

// world holds the records of a pool at one moment.
type world struct {
	*selection.Inventory
	byRef map[xapi.Ref]*xapi.VM
}

func look(ctx context.Context, pool *xapi.Client) (*world, error) {
	inv, err := selection.Read(ctx, pool)
	if err != nil {
		return nil, err
	}
	w := &world{inv, make(map[xapi.Ref]*xapi.VM, len(inv.VMs))}
	for i := range inv.VMs {
		w.byRef[inv.VMs[i].Ref] = &inv.VMs[i]
	}
	return w, nil
}

// snapshot finds a VM snapshot by its UUID or, if it is the only one with that name,
// by its name.
func (w *world) snapshot(name string) (*xapi.VM, error) {
	return w.find(name, "VM snapshot", "xenkeep pool snapshot list shows them", func(v *xapi.VM) bool { return v.IsASnapshot })
}

func (w *world) template(name string) (*xapi.VM, error) {
	return w.find(name, "template", "xenkeep pool templates shows them", func(v *xapi.VM) bool { return v.IsATemplate && !v.IsASnapshot })
}

func (w *world) vm(name string) (*xapi.VM, error) {
	return w.find(name, "VM", "xenkeep pool vms shows them", func(v *xapi.VM) bool { return v.Real() })
}

func (w *world) find(name, what, hint string, is func(*xapi.VM) bool) (*xapi.VM, error) {
	var found, other []*xapi.VM
	for i := range w.VMs {
		v := &w.VMs[i]
		switch {
		case !strings.EqualFold(v.UUID, name) && v.NameLabel != name:
		case is(v):
			if strings.EqualFold(v.UUID, name) {
				return v, nil
			}
			found = append(found, v)
		default:
			other = append(other, v)
		}
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) > 1:
		e := &xapi.AmbiguousError{Class: what, Name: name}
		for _, v := range found {
			e.UUIDs = append(e.UUIDs, v.UUID)
		}
		return nil, e
	case len(other) > 0:
		return nil, advise(hint, "%s %q: this is a %s: %w", what, name, kindOf(other[0]), ErrKind)
	}
	return nil, advise(hint, "%s %q: %w", what, name, xapi.ErrNotFound)
}

// kindOf returns the word for a VM's record: for example VM, VM snapshot or template.
func kindOf(v *xapi.VM) string {
	switch {
	case v.IsControlDomain:
		return "control domain"
	case v.IsASnapshot:
		return "VM snapshot"
	case v.IsATemplate:
		return "template"
	}
	return "VM"
}
