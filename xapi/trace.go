package xapi

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Kinds of a TraceEvent.
const (
	TraceCall     = "call"     // one call by JSON-RPC, or one try of it
	TraceHTTP     = "http"     // the head of a bulk request, until its answer begins
	TraceTransfer = "transfer" // the end of a bulk request's connection
	TraceNBD      = "nbd"      // a connection to an NBD server, until its handshake ends
)

// TraceEvent describes one exchange with the pool, for a person who looks for
// the cause of a fault. It holds no secret: arguments are summarised from a list
// of those that are known to be harmless, results are only measured, and session
// references and the password are masked in errors.
type TraceEvent struct {
	Time   time.Time `json:"time"` // when it began
	Kind   string    `json:"kind"`
	Host   string    `json:"host"`   // host:port
	Method string    `json:"method"` // "VM.get_record", "GET /export_raw_vdi"
	Args   []string  `json:"args,omitempty"`
	Millis float64   `json:"ms"`
	// Result is the size of a call's answer, or the status of an HTTP answer.
	Result string `json:"result,omitempty"`
	// Received and Sent are the bytes of a transfer.
	Received int64  `json:"received,omitempty"`
	Sent     int64  `json:"sent,omitempty"`
	Error    string `json:"error,omitempty"`
}

// trace passes an event that began at began to the configured function, if any.
func (c *Client) trace(began time.Time, e TraceEvent, session Ref, err error) {
	if c.cfg.Trace == nil {
		return
	}
	e.Time, e.Millis = began.UTC(), float64(time.Since(began).Microseconds())/1000
	if err != nil {
		e.Error = c.mask(err.Error(), session)
	}
	c.cfg.Trace(e)
}

// TraceNBD records the end of an attempt to connect to an NBD server of the
// pool. Errors of package nbd contain no export name, which is a secret.
func (c *Client) TraceNBD(address string, began time.Time, err error) {
	session, _ := c.current()
	c.trace(began, TraceEvent{Kind: TraceNBD, Host: address, Method: "connect"}, session, err)
}

// shortestMasked is the length from which a password is masked in texts. To
// mask a shorter one would show it by the holes that it leaves.
const shortestMasked = 4

// mask removes a session reference and the password from a text.
func (c *Client) mask(text string, session Ref) string {
	if current, _ := c.current(); current != "" {
		text = strings.ReplaceAll(text, string(current), "(session)")
	}
	if session != "" {
		text = strings.ReplaceAll(text, string(session), "(session)")
	}
	if p := c.cfg.Password; len(p) >= shortestMasked {
		text = strings.ReplaceAll(text, p, "(password)")
	}
	return text
}

// shownStrings lists the calls whose strings are names and keys that a person
// reads anyway, with the number of arguments that may be shown. The strings of
// all other calls are only measured: for example, a value of other_config can be
// anybody's secret.
func shownStrings(method string) int {
	_, name, _ := strings.Cut(strings.TrimPrefix(method, "Async."), ".")
	switch {
	case strings.HasPrefix(name, "get_by_"), strings.HasPrefix(name, "set_name_"):
		return 2
	case strings.HasPrefix(name, "add_to_"), strings.HasPrefix(name, "remove_from_"):
		return 2 // the object and the key, not the value
	case method == "task.create", name == "snapshot", name == "snapshot_with_quiesce", name == "checkpoint":
		return 2
	}
	return 0
}

var uuidText = regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)

// summaries returns the arguments of a call in a form without secrets. The first
// parameter of all calls but the login is the session, which is left out.
func summaries(method string, params []any) []string {
	if method == "session.login_with_password" {
		return nil // name and password
	}
	if len(params) > 0 {
		params = params[1:]
	}
	var list []string
	for i, p := range params {
		list = append(list, summary(p, i < shownStrings(method)))
	}
	return list
}

func summary(p any, show bool) string {
	switch p := p.(type) {
	case nil:
		return "null"
	case Ref:
		return string(p)
	case []Ref:
		return fmt.Sprint(p)
	case bool, int, int64, float64:
		return fmt.Sprint(p)
	case string:
		if show || p == "" || uuidText.MatchString(p) {
			return fmt.Sprintf("%q", p)
		}
		return fmt.Sprintf("(%d bytes)", len(p))
	}
	v := reflect.ValueOf(p)
	if v.Kind() == reflect.String {
		return summary(v.String(), show)
	}
	// The names of a record's fields are shown, not their values.
	var fields map[string]json.RawMessage
	data, err := json.Marshal(p)
	if err == nil && json.Unmarshal(data, &fields) == nil {
		var names []string
		for name := range fields {
			names = append(names, name)
		}
		slices.Sort(names)
		return "(record of " + strings.Join(names, " ") + ")"
	}
	return fmt.Sprintf("(%d bytes)", len(data))
}

// debug returns the log for decisions that are of interest only to a person who
// looks for the cause of a fault.
func (c *Client) debug() *slog.Logger {
	if c.cfg.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return c.cfg.Log
}
