package xapisim

import (
	"context"
	"time"
)

// newTask adds a pending task.
func (p *Pool) newTask(label, description string) *object {
	return p.db.create("task", map[string]any{
		"name_label": label, "name_description": description, "created": dateOf(p.now()),
		"finished": epoch, "status": "pending", "resident_on": p.hosts[0].ref,
		"progress": float64(0), "type": "<none/>",
	})
}

// cancelWish returns the key under which a cancellation request is stored.
func cancelWish(t *object) string { return "DummyRef:|" + t.uuid() + "|task.cancel" }

// cancelled reports whether the cancellation of a task was requested.
func (p *Pool) cancelled(ref string) bool {
	t := p.db.find("task", ref)
	return t != nil && t.mapv("current_operations")[cancelWish(t)] == "cancel"
}

// complete ends a task; it does not change a task that is not pending. result
// is the text of an XML-RPC value, or empty.
func (p *Pool) complete(ref, result string, e *Error) {
	t := p.db.find("task", ref)
	if t == nil || t.str("status") != "pending" {
		return
	}
	p.db.put(t, "finished", dateOf(p.now()))
	p.db.put(t, "progress", float64(1))
	ops := map[string]any{} // a cancellation request is kept forever
	if p.cancelled(ref) {
		ops[cancelWish(t)] = "cancel"
	}
	p.db.put(t, "current_operations", ops)
	switch {
	case e == nil:
		p.db.put(t, "result", result)
		p.db.put(t, "status", "success")
	case e.Code == "TASK_CANCELLED":
		p.db.put(t, "error_info", e.list())
		p.db.put(t, "status", "cancelled")
	default:
		p.db.put(t, "error_info", e.list())
		p.db.put(t, "status", "failure")
	}
}

// startAsync runs the call of a task and returns the task.
func (p *Pool) startAsync(c *call, label string) (any, *Error) {
	t := p.newTask(label, "")
	c.task = t.ref
	c.ctx = p.ctx
	p.work.Add(1)
	go func() {
		defer p.work.Done()
		p.mu.Lock()
		defer p.mu.Unlock()
		res, err := p.run(c)
		if err != nil {
			p.complete(t.ref, "", asError(err))
			return
		}
		p.complete(t.ref, string(appendXML(nil, res)), nil)
	}()
	return t.ref, nil
}

func (p *Pool) taskCalls() map[string]handler {
	set := func(name string) handler {
		return func(c *call) (any, error) {
			t, err := c.object(0)
			if err == nil {
				p.db.put(t, name, c.args[1])
			}
			return void, err
		}
	}
	return map[string]handler{
		"task.create":     func(c *call) (any, error) { return p.newTask(c.str(0), c.str(1)).ref, nil },
		"task.destroy":    p.taskDestroy,
		"task.cancel":     p.taskCancel,
		"task.set_status": set("status"), "task.set_progress": set("progress"),
		"task.set_result": set("result"), "task.set_error_info": set("error_info"),
	}
}

// taskDestroy implements task.destroy.
func (p *Pool) taskDestroy(c *call) (any, error) {
	t, err := c.object(0)
	if err != nil {
		return nil, err
	}
	if t.str("status") == "pending" { // the work continues
		p.db.put(t, "current_operations", map[string]any{"task": "destroy"})
		return void, nil
	}
	p.db.destroy(t)
	return void, nil
}

// taskCancel implements task.cancel.
func (p *Pool) taskCancel(c *call) (any, error) {
	t, err := c.object(0)
	if err != nil {
		return nil, err
	}
	if t.str("status") == "pending" {
		p.db.put(t, "current_operations", with(t.mapv("current_operations"), cancelWish(t), "cancel"))
	}
	return void, nil
}

// ExpireTasks removes every task that is not pending, as the server does some
// time after the tasks end; with pending set, the others too.
func (p *Pool) ExpireTasks(pending bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, t := range p.db.all("task") {
		if pending || t.str("status") != "pending" {
			p.db.destroy(t)
		}
	}
}

// expireOld applies the server's own limits: it removes ended tasks after 65
// minutes, pending ones after a day, and the oldest ended ones if there are
// more than 200 (xen-api ocaml/xapi/xapi_globs.ml, db_gc_util.ml).
func (p *Pool) expireOld(now time.Time) {
	tasks := p.db.all("task")
	excess := len(tasks) - 200
	for i := len(tasks) - 1; i >= 0; i-- {
		t := tasks[i]
		if t.str("status") == "pending" {
			if at, err := time.Parse(dateForm, t.str("created")); err == nil && now.Sub(at) > 24*time.Hour {
				p.db.destroy(t)
			}
			continue
		}
		at, err := time.Parse(dateForm, t.str("finished"))
		if excess > 0 || err == nil && at.Year() > 1970 && now.Sub(at) > 65*time.Minute {
			p.db.destroy(t)
			excess--
		}
	}
}

// housekeeping runs until ctx ends.
func (p *Pool) housekeeping(ctx context.Context) {
	tick := time.NewTicker(time.Minute)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			p.mu.Lock()
			p.expireOld(p.now())
			p.runSchedules()
			p.mu.Unlock()
		}
	}
}
