package xapisim

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"time"
)

// The paths with which other processes perform the operations that Go callers
// perform with the methods of a Pool. They are served on loopback only, and
// need no session.
const (
	adminWrite = "/xapisim/write" // GuestWrite
	adminFault = "/xapisim/fault" // Fault, with a Fault as JSON
	adminDo    = "/xapisim/do"    // an Action
	adminClock = "/xapisim/clock" // Advance
)

// Action is a failure of the whole pool, or a command to it.
type Action string

const (
	ActionRestart      Action = "restart"       // Restart
	ActionCrash        Action = "crash"         // CrashHost, for the host that receives the request
	ActionDropSessions Action = "drop-sessions" // DropSessions
	ActionExpireTasks  Action = "expire-tasks"  // ExpireTasks, including the pending ones
	ActionGC           Action = "gc"            // GC
	ActionClear        Action = "clear"         // ClearFaults
	ActionKillNBD      Action = "kill-nbd"      // KillNBD, for the host that receives the request
	ActionRestartNBD   Action = "restart-nbd"   // RestartNBD, likewise
)

// Actions lists all actions.
var Actions = []Action{ActionRestart, ActionCrash, ActionDropSessions, ActionExpireTasks, ActionGC, ActionClear, ActionKillNBD, ActionRestartNBD}

// Do performs an action. host counts from 0, the master; only actions on a host
// use it.
func (p *Pool) Do(a Action, host int) error {
	if host < 0 || host >= len(p.hosts) {
		return fmt.Errorf("%s host %d: there are %d", a, host, len(p.hosts))
	}
	switch a {
	case ActionRestart:
		p.Restart()
	case ActionCrash:
		p.CrashHost(host)
	case ActionKillNBD:
		p.KillNBD(host)
	case ActionRestartNBD:
		p.RestartNBD(host)
	case ActionDropSessions:
		p.DropSessions()
	case ActionExpireTasks:
		p.ExpireTasks(true)
	case ActionGC:
		p.GC()
	case ActionClear:
		p.ClearFaults()
	default:
		return fmt.Errorf("unknown action %q", string(a))
	}
	return nil
}

// admin wraps the handler of an admin path: it sends the result as JSON, and an
// error as text with status 400.
func admin(work func(c *conn, r *httpRequest) (any, error)) func(*conn, *httpRequest) bool {
	return func(c *conn, r *httpRequest) bool {
		if a, ok := c.RemoteAddr().(*net.TCPAddr); !ok || !a.IP.IsLoopback() {
			c.page("403 Forbidden", "403 forbidden", "Access to the requested resource is forbidden.")
			return false
		}
		res, err := work(c, r)
		status, kind := "200 OK", "application/json"
		var body []byte
		if err == nil {
			body, err = json.Marshal(res)
		}
		if err != nil {
			status, kind, body = "400 Bad Request", "text/plain", []byte(err.Error()+"\n")
		}
		c.write(fmt.Sprintf("HTTP/1.1 %s\r\ncontent-type: %s\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%s", status, kind, len(body), body))
		return false
	}
}

var (
	serveAdminWrite = admin(func(c *conn, r *httpRequest) (any, error) {
		n, err := c.pool.GuestWrite(r.query.Get("vdi"), r.query.Get("image"))
		return map[string]int64{"bytes_written": n}, err
	})
	serveAdminFault = admin(func(c *conn, r *httpRequest) (any, error) {
		if r.contentLength < 0 || r.contentLength > maxBody {
			return nil, errors.New("a fault needs a body with a length")
		}
		var f Fault
		d := json.NewDecoder(io.LimitReader(c.br, r.contentLength))
		d.DisallowUnknownFields()
		if err := d.Decode(&f); err != nil {
			return nil, err
		}
		if f.On == "" {
			return nil, errors.New("a fault needs to know what it happens to")
		}
		c.pool.Fault(f)
		return struct{}{}, nil
	})
	serveAdminClock = admin(func(c *conn, r *httpRequest) (any, error) {
		d, err := time.ParseDuration(r.query.Get("advance"))
		if err != nil || d < 0 {
			return nil, fmt.Errorf("advance the clock by %q: want a duration, such as 25h", r.query.Get("advance"))
		}
		return map[string]time.Time{"now": c.pool.Advance(d)}, nil
	})
	serveAdminDo = admin(func(c *conn, r *httpRequest) (any, error) {
		host := 0
		if v := r.query.Get("host"); v != "" {
			var err error
			if host, err = strconv.Atoi(v); err != nil {
				return nil, err
			}
		}
		c.spare() // the client that ends all connections still gets an answer
		return struct{}{}, c.pool.Do(Action(r.query.Get("action")), host)
	})
)
