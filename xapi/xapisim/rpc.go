package xapisim

import (
	"context"
	"fmt"
	"strings"
	"time"
)

// handler runs one call. Pool.mu must be held.
type handler func(c *call) (any, error)

// call is an API call in progress.
type call struct {
	ctx     context.Context
	p       *Pool
	host    *host
	session *object
	method  *method
	args    []any
	task    string        // reference of the task that represents the call
	hold    time.Duration // set by a fault: how long the operation takes
}

// void is the result of calls without a result.
const void = ""

// dispatch runs a request that arrived at host h and returns its result.
func (p *Pool) dispatch(ctx context.Context, h *host, req *request) (any, *Error) {
	name, async := req.method, ""
	for _, prefix := range []string{"Async.", "InternalAsync."} {
		if rest, ok := strings.CutPrefix(name, prefix); ok {
			name, async = rest, prefix
			break
		}
	}
	if name == "system.listMethods" || name == "system_listMethods" {
		return strs(p.db.sch.names...), nil
	}
	m := p.db.sch.methods[name]
	if m == nil { // every call is also available as Class_call
		if i := strings.IndexByte(name, '_'); i > 0 {
			m = p.db.sch.method(name)
		}
	}
	if m == nil {
		return nil, fail("MESSAGE_METHOD_UNKNOWN", name) // without the prefix Async.
	}
	if async != "" && !m.async() {
		return nil, fail("Fault", "No async mode for this operation (rpc: "+m.name+")")
	}
	args, err := m.arguments(req)
	if err != nil {
		return nil, asError(err)
	}
	c := &call{ctx: ctx, p: p, host: h, method: m, args: args, task: "OpaqueRef:" + newUUID()}
	p.mu.Lock()
	defer p.mu.Unlock()
	if !m.noSession {
		if c.session, err = p.session(req.params[0].(string)); err != nil {
			return nil, asError(err)
		}
		if !h.master && !memberCalls[m.name] {
			return nil, fail("HOST_IS_SLAVE", p.masterAddress())
		}
		if err := p.allow(c.session, m.name); err != nil {
			return nil, asError(err)
		}
	} else if !h.master && m.name == "session.login_with_password" {
		return nil, fail("HOST_IS_SLAVE", p.masterAddress())
	}
	if async != "" {
		return p.startAsync(c, async+m.name)
	}
	res, err := p.run(c)
	if err != nil {
		return nil, asError(err)
	}
	return res, nil
}

// memberCalls are answered by members too.
var memberCalls = map[string]bool{"session.logout": true, "session.local_logout": true}

// run applies scripted faults around a call.
func (p *Pool) run(c *call) (any, error) {
	if p.watch != nil {
		p.watch(c.method.name)
	}
	f := p.takeFault(c.method.name)
	if f != nil && f.Do != nil {
		p.mu.Unlock()
		f.Do()
		p.mu.Lock()
	}
	if f != nil {
		c.hold = f.Delay
		if f.DropSession && c.session != nil {
			p.db.destroy(c.session)
			return nil, fail("SESSION_INVALID", c.session.ref)
		}
		if f.Code != "" && !f.After {
			return nil, fail(f.Code, f.Params...)
		}
		if f.Reset && !f.After {
			return nil, fail(resetMark)
		}
	}
	res, err := p.handle(c)
	if c.hold > 0 { // no operation has applied the delay
		c.wait(c.hold)
	}
	if f != nil && f.After && err == nil {
		if f.Reset {
			return nil, fail(resetMark)
		}
		if f.Code != "" {
			return nil, fail(f.Code, f.Params...)
		}
	}
	return res, err
}

// resetMark marks an answer for which the connection is to be reset instead.
const resetMark = "\x00reset"

func (p *Pool) handle(c *call) (any, error) {
	if h := p.calls[c.method.name]; h != nil {
		return h(c)
	}
	if c.method.form == custom || c.method.form == untyped {
		return nil, fail("NOT_IMPLEMENTED", c.method.name)
	}
	return c.generic()
}

// method finds a call by its name with an underscore.
func (s *schema) method(alias string) *method {
	for i := 0; i < len(alias); i++ {
		if alias[i] == '_' {
			if m := s.methods[alias[:i]+"."+alias[i+1:]]; m != nil {
				return m
			}
		}
	}
	return nil
}

// async reports whether the call has an Async. form. Getters and setters of
// fields never have one, and neither has any call of some classes; for the
// others the data model names the calls without one (xen-api
// ocaml/idl/datamodel.ml, no_async_messages_for).
func (m *method) async() bool {
	switch m.class.name {
	case "session", "task", "event", "blob", "message", "auth":
		return false
	}
	return m.form == create || m.form == destroy || m.form == custom && !m.sync
}

// arguments checks number and types of the parameters and fills in the optional
// ones. The numbers in the error exclude the session; a call without any
// parameter counts as -1.
func (m *method) arguments(req *request) ([]any, error) {
	got := len(req.params)
	if !m.noSession {
		got--
	}
	want, open := m.mandatory()
	if m.form == untyped {
		want, open = 0, true
	}
	if got < want || got > want && !open {
		return nil, fail("MESSAGE_PARAMETER_COUNT_MISMATCH", m.name, fmt.Sprint(want), fmt.Sprint(got))
	}
	rest := req.params
	if !m.noSession {
		if _, err := m.class.sessionType().fromWire(rest[0]); err != nil {
			return nil, err
		}
		rest = rest[1:]
	}
	args := make([]any, len(m.params))
	for i, p := range m.params {
		if i >= len(rest) {
			args[i] = p.typ.zero
			continue
		}
		v, err := p.typ.fromWire(rest[i])
		if err != nil {
			return nil, err
		}
		args[i] = v
	}
	return args, nil
}

var sessionRef = &typ{kind: kRef, name: "session", zero: nullRef}

func (*class) sessionType() *typ { return sessionRef }

// str returns the i-th argument as a string.
func (c *call) str(i int) string {
	switch v := c.args[i].(type) {
	case string:
		return v
	case date:
		return string(v)
	}
	return ""
}

// object returns the object that the i-th argument, a reference, refers to.
func (c *call) object(i int) (*object, error) {
	return c.p.lookup(c.method.params[i].typ.name, c.str(i))
}

// lookup finds an object, or returns HANDLE_INVALID.
func (p *Pool) lookup(cls, ref string) (*object, error) {
	if o := p.db.find(cls, ref); o != nil {
		return o, nil
	}
	return nil, fail("HANDLE_INVALID", cls, ref)
}

// wait releases the server's lock for d.
func (c *call) wait(d time.Duration) {
	c.hold = 0
	c.p.mu.Unlock()
	defer c.p.mu.Lock()
	sleep(c.ctx, d)
}

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// unlocked runs slow work without the server's lock.
func (c *call) unlocked(work func() error) error {
	c.p.mu.Unlock()
	defer c.p.mu.Lock()
	return work()
}

// begin marks operation op on o, after waiting for operations that exclude it,
// like the real server: with pauses, for up to two hours (scaled), and with at
// most 100 waiting calls (xen-api ocaml/xapi/helpers.ml, Policy.standard).
func (c *call) begin(o *object, op string) (end func(), err error) {
	return c.beginWithin(o, op, 2*time.Hour)
}

func (c *call) beginWithin(o *object, op string, limit time.Duration) (end func(), err error) {
	p := c.p
	limit = p.scaled(limit)
	start := time.Now()
	for {
		other, task := p.conflict(o, op)
		if other == "" {
			break
		}
		if p.waiting >= 100 {
			return nil, fail("TOO_MANY_PENDING_TASKS")
		}
		if p.cancelled(c.task) {
			return nil, fail("TASK_CANCELLED", c.task)
		}
		if left := limit - time.Since(start); left <= 0 || c.ctx.Err() != nil {
			return nil, fail("OTHER_OPERATION_IN_PROGRESS", o.class.name, o.ref, other, task)
		}
		p.waiting++
		c.wait(min(p.scaled(time.Second)+time.Millisecond, limit))
		p.waiting--
		if p.db.find(o.class.name, o.ref) == nil {
			return nil, fail("HANDLE_INVALID", o.class.name, o.ref)
		}
	}
	p.db.put(o, "current_operations", with(o.mapv("current_operations"), c.task, op))
	if c.hold > 0 {
		c.wait(c.hold)
	}
	return func() {
		if p.db.find(o.class.name, o.ref) != nil {
			p.db.put(o, "current_operations", withoutKey(o.mapv("current_operations"), c.task))
		}
	}, nil
}

// together are operations that may run concurrently on one VM.
var together = [][]string{{"clone", "copy", "export"}, {"snapshot", "checkpoint"}}

// conflict returns an operation on o that excludes op, and its task.
func (p *Pool) conflict(o *object, op string) (other, task string) {
	for _, t := range sortedKeys(o.mapv("current_operations")) {
		cur := o.mapv("current_operations")[t].(string)
		if o.class.name == "VDI" && cur == "copy" && op != "destroy" {
			continue
		}
		if o.class.name == "VM" {
			free := false
			for _, g := range together {
				free = free || contains(g, cur) && contains(g, op)
			}
			if free {
				continue
			}
		}
		return cur, t
	}
	return "", ""
}

func contains(set []string, v string) bool {
	for _, s := range set {
		if s == v {
			return true
		}
	}
	return false
}
