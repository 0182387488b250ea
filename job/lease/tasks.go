package lease

import (
	"context"
	"slices"
	"strings"
	"time"

	"xenkeep/job"
	"xenkeep/xapi"
)

// findEnded adds the tasks of transfers whose run had no time to remove them: their
// process has ended, their object does not exist any more or belongs to a dead run, or
// they ended so long ago that no run waits for their result.
func (c *cleanup) findEnded(ctx context.Context) error {
	by, known := c.runsOf()
	there := make(map[xapi.Ref]bool)
	for i := range c.vms {
		there[c.vms[i].Ref] = true
	}
	var now time.Time
	for i := range c.tasks {
		t := &c.tasks[i]
		ref, _ := TransferOf(t)
		if ref.IsNull() || known[t.Ref] {
			continue
		}
		if now.IsZero() {
			var err error
			if now, err = PoolTime(ctx, c.pool); err != nil {
				return err
			}
		}
		l := leftover("task", t.Ref, t.UUID, t.NameLabel, Marks{})
		l.State, l.Action, l.Seen = StateDead, ActRemove, t.Finished.Time
		ended := t.Status != "pending" && t.Status != "cancelling"
		old := ended && !t.Finished.IsZero() && now.Sub(t.Finished.Time) > deadAfter
		of := by[ref]
		dead := of != nil && of.State == StateDead
		machine, process := taskOwnerOf(t)
		gone := job.ProcessGone(machine, process, c.o.Machine)
		switch {
		case dead && (ended || gone || of.Role == roleRead):
			l.Role, l.Repository, l.Run, l.Machine, l.Job = of.Role, of.Repository, of.Run, of.Machine, of.Job
		case gone:
			l.Machine = machine
		case !ended, !old && (of != nil || c.vdis[ref] != nil || there[ref]):
			continue
		}
		c.found = append(c.found, l)
	}
	return nil
}

// runsOf returns the leftovers found so far by their object, and the tasks among them.
func (c *cleanup) runsOf() (by map[xapi.Ref]*Leftover, tasks map[xapi.Ref]bool) {
	by, tasks = make(map[xapi.Ref]*Leftover), make(map[xapi.Ref]bool)
	add := func(ref xapi.Ref, l *Leftover) {
		if by[ref] == nil || l.State == StateLive {
			by[ref] = l
		}
	}
	for i := range c.found {
		l := &c.found[i]
		tasks[l.ref] = tasks[l.ref] || l.Class == "task"
		add(l.ref, l)
		if l.Role != roleRead {
			continue
		}
		for _, v := range c.vdis { // it reads the VM's own disks
			if slices.ContainsFunc(v.VBDs, func(ref xapi.Ref) bool { return c.has(l.ref, ref) }) {
				add(v.Ref, l)
			}
		}
	}
	return by, tasks
}

// has reports whether a VM has a VBD.
func (c *cleanup) has(vm, vbd xapi.Ref) bool {
	return slices.ContainsFunc(c.vms, func(v xapi.VM) bool { return v.Ref == vm && slices.Contains(v.VBDs, vbd) })
}

// TransferOf parses the object and the kind of a transfer from its task, as
// xapi.Client.ExportVDI describes it. For any other task it returns "".
func TransferOf(t *xapi.Task) (ref xapi.Ref, kind string) {
	if !strings.HasPrefix(t.NameLabel, "xenkeep") {
		return "", ""
	}
	for _, k := range []string{"export of ", "import to ", "metadata of "} {
		if rest, ok := strings.CutPrefix(t.NameDescription, k); ok {
			about, _, _ := strings.Cut(rest, " ")
			return xapi.Ref(about), strings.Fields(k)[0]
		}
	}
	return "", ""
}

// taskOwner returns the description of the tasks of a process, by which cleanup
// recognizes the tasks of a process that has ended.
func taskOwner(machine, process string) string {
	return "by " + machine + ", process " + process
}

// taskOwnerOf parses the process that created a task.
func taskOwnerOf(t *xapi.Task) (machine, process string) {
	_, owner, _ := strings.Cut(t.NameDescription, " by ")
	machine, process, _ = strings.Cut(owner, ", process ")
	process, _, _ = strings.Cut(process, " [")
	return machine, process
}
