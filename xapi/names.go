package xapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"sync"
	"time"
)

// names caches the names of objects whose records were read, because errors of
// the pool contain only references. It is safe for concurrent use.
type names struct {
	mu    sync.Mutex
	known map[Ref]string
	owner string // of the tasks that are created, see NameTasks
}

// maxNames bounds the memory; a pool has fewer objects of these classes.
const maxNames = 200_000

func (n *names) learn(record any) {
	var ref Ref
	var text string
	switch r := record.(type) {
	case *VM:
		class := "VM"
		switch {
		case r.IsASnapshot:
			class = "VM snapshot"
		case r.IsATemplate:
			class = "template"
		}
		ref, text = r.Ref, called(class, r.NameLabel, r.UUID)
	case *VDI:
		class := "VDI"
		if r.IsASnapshot {
			class = "VDI snapshot"
		}
		ref, text = r.Ref, called(class, r.NameLabel, r.UUID)
	case *SR:
		ref, text = r.Ref, called("SR", r.NameLabel, r.UUID)
	case *Host:
		ref, text = r.Ref, called("host", r.NameLabel, r.UUID)
	case *Network:
		ref, text = r.Ref, called("network", r.NameLabel, r.UUID)
	default:
		return
	}
	n.put(ref, text)
}

func (n *names) put(ref Ref, text string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.known == nil || len(n.known) >= maxNames {
		n.known = make(map[Ref]string)
	}
	n.known[ref] = text
}

func (n *names) of(ref Ref) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.known[ref]
}

// called returns the form in which messages name an object.
func called(class, name, uuid string) string {
	if name == "" {
		return fmt.Sprintf("%s %s", class, uuid)
	}
	return fmt.Sprintf("%s %q (%s)", class, name, uuid)
}

var opaqueRef = regexp.MustCompile(`OpaqueRef:[0-9A-Za-z-]+`)

// named adds the names of the objects that the client has read to a pool error.
func (c *Client) named(err error) error {
	var e *Error
	if errors.As(err, &e) && e.names == nil {
		e.names = &c.names
	}
	return err
}

// explainTimeout bounds the time spent on reading names for one error.
const explainTimeout = 5 * time.Second

// Explain adds the names of the objects that the parameters of a pool error
// reference. It reads from the pool the names that the client does not have
// yet, for a few seconds at most. It works even if ctx has ended.
func (c *Client) Explain(ctx context.Context, err error) error {
	var e *Error
	if !errors.As(err, &e) || e.Code == SessionInvalid {
		return err
	}
	e.names = &c.names
	ctx, cancel := detach(ctx, explainTimeout)
	defer cancel()
	session, endpoint := c.current()
	for i, p := range e.Params {
		ref := Ref(opaqueRef.FindString(p))
		if ref == "" || session == "" || c.names.of(ref) != "" {
			continue
		}
		var before string
		if i > 0 {
			before = e.Params[i-1]
		}
		c.ask(ctx, endpoint, session, ref, classesFor(e.Code, before))
	}
	return err
}

// ask reads the name of an object that belongs to one of the classes.
func (c *Client) ask(ctx context.Context, endpoint string, session, ref Ref, classes []string) {
	for _, class := range classes {
		var r struct {
			UUID string `json:"uuid"`
			Name string `json:"name_label"`
		}
		var raw json.RawMessage
		if err := c.rpc(ctx, endpoint, class+".get_record", &raw, session, ref); err != nil || json.Unmarshal(raw, &r) != nil || r.UUID == "" {
			if ctx.Err() != nil {
				return
			}
			continue
		}
		c.names.put(ref, called(class, r.Name, r.UUID))
		return
	}
}

// classesFor returns the classes that a parameter of an error may refer to: the
// class named by the parameter before it, or else all classes, with the one
// that the code begins with first.
func classesFor(code Code, before string) []string {
	all := []string{"VM", "VDI", "SR", "host", "network", "VBD", "PBD", "VIF"}
	for _, class := range all {
		if strings.EqualFold(before, class) {
			return []string{class}
		}
	}
	first := strings.ToLower(strings.SplitN(string(code), "_", 2)[0])
	for i, class := range all {
		if strings.ToLower(class) == first {
			all[0], all[i] = all[i], all[0]
			break
		}
	}
	return all
}
