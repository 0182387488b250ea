package xapisim

import (
	"fmt"
	"sort"
	"strconv"
	"strings"
	"time"
)

// subscription is the set of events that a client of event.from asks for.
type subscription struct {
	all     bool
	classes map[string]bool
	objects map[[2]string]bool
}

// parseSubscription never fails: a word that names no class matches no event.
func parseSubscription(words []any) subscription {
	s := subscription{classes: map[string]bool{}, objects: map[[2]string]bool{}}
	for _, w := range words {
		word := w.(string)
		if word == "*" {
			s.all = true
			continue
		}
		cls, ref, ok := strings.Cut(word, "/")
		if ok {
			s.objects[[2]string{strings.ToLower(cls), ref}] = true
		} else {
			s.classes[strings.ToLower(word)] = true
		}
	}
	return s
}

func (s *subscription) wants(cls, ref string) bool {
	return s.all || s.classes[cls] || s.objects[[2]string{cls, ref}]
}

// parseToken parses the two numbers of a token; the empty token stands for the
// beginning.
func parseToken(tok string) (uint64, error) {
	if tok == "" {
		return 0, nil
	}
	a, b, ok := strings.Cut(tok, ",")
	n, err := strconv.ParseUint(a, 10, 64)
	if _, err2 := strconv.ParseUint(b, 10, 64); !ok || err != nil || err2 != nil {
		return 0, fail("EVENT_FROM_TOKEN_PARSE_FAILURE", tok)
	}
	return n, nil
}

func token(gen uint64) string { return fmt.Sprintf("%020d,%020d", gen, 0) }

// eventFrom waits for an event to report.
func (p *Pool) eventFrom(c *call) (any, error) {
	sub := parseSubscription(c.args[0].([]any))
	since, err := parseToken(c.str(1))
	if err != nil {
		return nil, err
	}
	timeout := c.args[2].(float64)
	deadline := time.Now().Add(p.scaled(time.Duration(timeout * float64(time.Second))))
	batched := false
	for {
		events := p.eventsSince(&sub, since)
		left := time.Until(deadline)
		if len(events) > 0 && !batched && since > 0 && !(len(sub.classes) == 1 && sub.classes["task"]) {
			batched = true // several changes within 50 ms are reported together
			c.wait(min(p.scaled(50*time.Millisecond), max(left, 0)))
			continue
		}
		if len(events) > 0 || left <= 0 || c.ctx.Err() != nil {
			tok := token(since)
			if len(events) > 0 {
				tok = token(p.db.gen)
			}
			return ordered{{"events", events}, {"valid_ref_counts", p.refCounts()}, {"token", tok}}, nil
		}
		if p.db.find("session", c.session.ref) == nil {
			return nil, fail("SESSION_INVALID", c.session.ref)
		}
		changed := p.db.changed
		p.mu.Unlock()
		timer := time.NewTimer(left)
		select {
		case <-changed:
		case <-timer.C:
		case <-c.ctx.Done():
		}
		timer.Stop()
		p.mu.Lock()
	}
}

func (p *Pool) eventsSince(sub *subscription, since uint64) []any {
	type event struct {
		gen uint64
		val ordered
	}
	var list []event
	head := func(gen uint64, cls, op, ref string) ordered {
		return ordered{{"id", strconv.FormatUint(gen, 10)}, {"timestamp", "0.0"}, {"class", cls}, {"operation", op}, {"ref", ref}}
	}
	for _, c := range p.db.sch.order {
		if c.hidden {
			continue
		}
		if c.name == "session" || c.name == "user" || c.name == "secret" { // these classes have no events
			continue
		}
		for _, o := range p.db.tables[c.name].objs {
			if o.modified <= since || !sub.wants(c.lower, o.ref) {
				continue
			}
			op := "mod"
			if o.created > since {
				op = "add"
			}
			gen := o.modified
			if c.name == "message" {
				gen = 0
			}
			list = append(list, event{o.modified, append(head(gen, c.lower, op, o.ref), member{"snapshot", p.view(o)})})
		}
	}
	for _, t := range p.db.dead {
		if t.deleted > since && t.created <= since && sub.wants(t.class.lower, t.ref) {
			list = append(list, event{t.deleted, head(t.deleted, t.class.lower, "del", t.ref)})
		}
	}
	sort.Slice(list, func(i, j int) bool { return list[i].gen < list[j].gen })
	out := make([]any, len(list))
	for i, e := range list {
		out[i] = e.val
	}
	return out
}

// refCounts counts the objects of each class, as 32-bit integers. Messages are
// not rows of the real database, so their count is zero.
func (p *Pool) refCounts() map[string]any {
	out := map[string]any{}
	for _, c := range p.db.sch.order {
		if c.hidden {
			continue
		}
		n := len(p.db.tables[c.name].objs)
		if c.name == "message" {
			n = 0
		}
		out[c.lower] = int32(n)
	}
	return out
}

func (p *Pool) eventCalls() map[string]handler {
	return map[string]handler{
		"event.from":           p.eventFrom,
		"event.inject":         p.eventInject,
		"event.register":       func(c *call) (any, error) { return void, nil },
		"event.unregister":     func(c *call) (any, error) { return void, nil },
		"event.get_current_id": func(c *call) (any, error) { return int64(0), nil },
		"event.next":           p.eventNext,
	}
}

// eventInject implements event.inject.
func (p *Pool) eventInject(c *call) (any, error) {
	o := p.objectOfClass(c.str(0), c.str(1))
	if o == nil {
		return nil, fail("HANDLE_INVALID", c.str(0), c.str(1))
	}
	p.db.touch(o)
	// The token precedes the injected event, so that the client sees
	// the event.
	return token(p.db.gen - 1), nil
}

// eventNext implements event.next.
func (p *Pool) eventNext(c *call) (any, error) {
	return nil, fail("SESSION_NOT_REGISTERED", "trackid="+strings.ReplaceAll(newUUID(), "-", ""))
}

// objectOfClass finds an object; the case of the class name does not matter.
func (p *Pool) objectOfClass(cls, ref string) *object {
	for name, t := range p.db.tables {
		if strings.EqualFold(name, cls) {
			return t.objs[ref]
		}
	}
	return nil
}
