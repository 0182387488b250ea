package xapisim

import (
	"strings"
	"time"
)

// Fault is one scripted mishap. On names the call ("VM.snapshot", also behind
// Async.) or the HTTP path ("/export_raw_vdi") it happens to; "*" is any call.
// Further names: "/nbd", an NBD connection when it opens its export, and the
// storage manager's own steps: "sm.cbt_snapshot" and "sm.cbt_resize", at which
// a changed-block log is lost, "sm.cbt_enable" and "sm.cbt_disable", which fail, as
// does "sm.vdi_clone", with the fault's code or SR_BACKEND_FAILURE_81.
// It happens at the Nth match from now (0 and 1: the next) and Times times (0:
// once, negative: always).
type Fault struct {
	On    string `json:"on"`
	Nth   int    `json:"nth,omitempty"`
	Times int    `json:"times,omitempty"`

	// Code makes a call fail, before it does anything or, with After, when it
	// is done. On a bulk path the transfer fails with it: at byte CutAt with
	// Embedded, else before the first byte.
	Code   string   `json:"code,omitempty"`
	Params []string `json:"params,omitempty"`
	After  bool     `json:"after,omitempty"`
	// Reset cuts the connection so that the peer sees a reset.
	Reset bool `json:"reset,omitempty"`
	// Delay is how long the operation holds its object, unscaled.
	Delay time.Duration `json:"delay,omitempty"`
	// Do runs before the call is looked at, with nothing held: it may call the
	// pool itself.
	Do func() `json:"-"`
	// DropSession ends the caller's session first.
	DropSession bool `json:"drop_session,omitempty"`

	// Status answers an HTTP request with an error page of that status.
	Status int `json:"status,omitempty"`
	// Cut stops a stream after CutAt bytes of body: with the server's error
	// page behind them when Embedded, else bare. Stall hangs there until the
	// client goes away.
	Cut      bool  `json:"cut,omitempty"`
	CutAt    int64 `json:"cut_at,omitempty"`
	Embedded bool  `json:"embedded,omitempty"`
	Stall    bool  `json:"stall,omitempty"`
}

// Fault scripts a mishap.
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

// Watch has fn called with the name of each API call before it is looked at,
// for those who script faults by what is called; nil ends it. It must not call
// the pool.
func (p *Pool) Watch(fn func(method string)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.watch = fn
}

// ClearFaults forgets what was scripted and did not happen yet.
func (p *Pool) ClearFaults() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.faults = nil
}

// takeFault returns the fault due for this call or path. Pool.mu is held.
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

// takeSM tells whether a step of the storage manager fails. Pool.mu is held.
func (p *Pool) takeSM(step string) bool { return p.takeFault("sm."+step) != nil }

// takeStreamFault returns the fault due for a transfer.
func (p *Pool) takeStreamFault(path string) *Fault {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.takeFault(path)
}
