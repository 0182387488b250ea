// Package poolsnap is XenServer's own VM snapshots as an administrator uses
// them beside backups: take, list, revert, delete, copy, export, and schedule.
// What destroys something is a plan first (RevertPlan, DeletePlan), which people
// can read, and then a call that carries it out.
//
// Nothing here touches a repository. What backups keep on the pool, their bases
// and what is under way, bears their marks and is refused.
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
	// ErrSpace is returned where an SR has not the room for what is asked.
	ErrSpace = errors.New("not enough free space on the SR")
	// ErrSeveral is returned where several VMs match and one is meant.
	ErrSeveral = errors.New("several VMs match")
	// ErrNone is returned where no VM matches.
	ErrNone = errors.New("no VM matches")
	// ErrInUse is returned for what belongs to a backup.
	ErrInUse = errors.New("belongs to a backup of xenkeep")
	// ErrKind is returned where a snapshot is meant and another object named,
	// or the other way round.
	ErrKind = errors.New("not what is meant")
	// ErrValue is returned for values that the pool would refuse.
	ErrValue = errors.New("bad value")
)

// advised is an error with its hint, in the form that job.HintOf finds.
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

// Warn is told of what is worth knowing and no failure.
type Warn func(format string, args ...any)

// world is a pool at one moment.
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

// snapshot finds a VM snapshot by its UUID or, where it is the only one, by its
// name.
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

// kindOf is what people call a VM's record.
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
