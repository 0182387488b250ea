package xapisim

import (
	"strings"
	"time"
)

// Fault is one scripted failure. On is the call ("VM.snapshot", also if it is
// made as Async.) or the HTTP path ("/export_raw_vdi") where it happens; "*" is
// any call. Further values are "/nbd", an NBD connection when it opens its
// export, and the storage manager's own steps: at "sm.cbt_snapshot" and
// "sm.cbt_resize" a changed-block log is lost; "sm.cbt_enable",
// "sm.cbt_disable" and "sm.vdi_clone" fail with the fault's code or
// SR_BACKEND_FAILURE_81. The fault happens at the Nth match from now (0 and 1:
// the next) and Times times (0: once, negative: always).
type Fault struct {
	On    string `json:"on"`
	Nth   int    `json:"nth,omitempty"`
	Times int    `json:"times,omitempty"`

	// Code makes a call fail, before it has any effect or, with After, when it
	// is complete. On a bulk path the transfer fails with it: at byte CutAt
	// with Embedded, otherwise before the first byte.
	Code   string   `json:"code,omitempty"`
	Params []string `json:"params,omitempty"`
	After  bool     `json:"after,omitempty"`
	// Reset breaks the connection so that the peer sees a reset.
	Reset bool `json:"reset,omitempty"`
	// Delay is how long the operation occupies its object, unscaled.
	Delay time.Duration `json:"delay,omitempty"`
	// Do runs before the call or the transfer is processed, with no lock held: it
	// may call the pool itself.
	Do func() `json:"-"`
	// DropSession ends the caller's session before the call.
	DropSession bool `json:"drop_session,omitempty"`

	// Status answers an HTTP request with an error page of that status.
	Status int `json:"status,omitempty"`
	// Cut stops a stream after CutAt bytes of body: with Embedded, the server's
	// error page follows them; otherwise nothing does. Stall hangs at that
	// point until the client closes the connection.
	Cut      bool  `json:"cut,omitempty"`
	CutAt    int64 `json:"cut_at,omitempty"`
	Embedded bool  `json:"embedded,omitempty"`
	Stall    bool  `json:"stall,omitempty"`
}

// Fault schedules a failure.
func (p *Pool) Fault(f Fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if f.Times == 0 {
		f.Times = 1
	}
	if f.Nth == 0 {
		f.Nth = 1
	}
	p.faults = append(p.faults, &f)
}

// Watch registers fn to be called with the name of each API call before the
// call is processed, for tests that script faults by the calls they see; nil
// removes it. fn must not call the pool.
func (p *Pool) Watch(fn func(method string)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.watch = fn
}

// ClearFaults removes all scripted faults that have not happened yet.
func (p *Pool) ClearFaults() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.faults = nil
}

// takeFault returns the fault that is due for this call or path. Pool.mu must
// be held.
func (p *Pool) takeFault(name string) *Fault {
	var due *Fault
	keep := p.faults[:0]
	for _, f := range p.faults {
		match := f.On == name || f.On == "*" && !strings.HasPrefix(name, "/") && !strings.HasPrefix(name, "sm.")
		if !match {
			keep = append(keep, f)
			continue
		}
		if f.Nth > 1 || due != nil {
			if f.Nth > 1 {
				f.Nth--
			}
			keep = append(keep, f)
			continue
		}
		due = f
		if f.Times > 0 {
			f.Times--
		}
		if f.Times != 0 {
			keep = append(keep, f)
		}
	}
	p.faults = keep
	return due
}

// takeHTTPFault returns a fault that answers a path with an error page.
func (p *Pool) takeHTTPFault(r *httpRequest) *Fault {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, f := range p.faults {
		if f.Status != 0 && strings.HasPrefix(f.On, "/") && strings.HasPrefix(r.path, f.On) {
			return p.takeFault(f.On)
		}
	}
	return nil
}

// takeSM reports whether a step of the storage manager fails. Pool.mu must be
// held.
func (p *Pool) takeSM(step string) bool { return p.takeFault("sm."+step) != nil }

// takeStreamFault returns the fault that is due for a transfer.
func (p *Pool) takeStreamFault(path string) *Fault {
	p.mu.Lock()
	f := p.takeFault(path)
	p.mu.Unlock()
	if f != nil && f.Do != nil {
		f.Do()
	}
	return f
}
