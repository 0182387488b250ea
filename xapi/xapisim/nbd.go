package xapisim

import (
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/url"
	"strings"
	"sync"

	"xenkeep/nbd"
)

// NBDMode says how the hosts serve disks over NBD when the pool starts: by the
// purpose of the management network, which clients may change later.
type NBDMode string

const (
	NBDOff   NBDMode = "off" // also the empty string
	NBDTLS   NBDMode = "tls"
	NBDPlain NBDMode = "plain"
)

// purpose is what the mode makes of a network.
func (m NBDMode) purpose() (string, error) {
	switch m {
	case "", NBDOff:
		return "", nil
	case NBDTLS:
		return "nbd", nil
	case NBDPlain:
		return "insecure_nbd", nil
	}
	return "", fmt.Errorf("nbd mode %q: not tls, plain or off", string(m))
}

// maxNBD is how many NBD connections a host serves at once
// (xen-api ocaml/nbd/lib/consts.ml).
const maxNBD = nbd.HostConnections

// ReadyNBD is where a host serves disks. The real port is 10809 everywhere.
type ReadyNBD struct {
	Address string `json:"address"`
	Port    int    `json:"port"`
}

// nbdPurposes are those of all networks. Pool.mu is held.
func (p *Pool) nbdPurposes() (tls, plain bool) {
	for _, n := range p.db.all("network") {
		for _, v := range n.set("purpose") {
			tls, plain = tls || v == "nbd", plain || v == "insecure_nbd"
		}
	}
	return tls, plain
}

// serveNBD serves a host's disks until its listener closes. A restart ends all
// connections.
func (h *host) serveNBD(p *Pool) {
	for {
		c, err := h.nbd.Accept()
		if err != nil {
			return
		}
		p.work.Add(1)
		go func() {
			defer p.work.Done()
			h.serveNBDConn(p, c)
		}()
	}
}

// serveNBDConn serves one connection. Its mode is that of the pool's networks
// at this moment; with no purpose, or with both, it is closed at once
// (xen-api ocaml/nbd/src/main.ml).
func (h *host) serveNBDConn(p *Pool, c net.Conn) {
	defer c.Close()
	if h.nbdConns.Add(1) > maxNBD {
		h.nbdConns.Add(-1)
		return
	}
	defer h.nbdConns.Add(-1)
	p.mu.Lock()
	ctx, cancel := context.WithCancel(h.life)
	tls, plain := p.nbdPurposes()
	p.mu.Unlock()
	defer cancel()
	profile := nbd.XAPI(nil)
	switch {
	case tls == plain:
		return
	case tls:
		profile = nbd.XAPI(h.tls)
	}
	profile.GO, profile.Structured = p.cfg.NBDModern, p.cfg.NBDModern
	s := nbd.Server{
		Profile: func(context.Context, net.Conn) nbd.Profile { return profile },
		Open:    func(_ context.Context, name string) (nbd.Export, error) { return p.openNBD(h, c, name) },
	}
	s.ServeConn(ctx, c) // how a client left is of no interest
}

// nbdExport is a disk attached to the control domain for the life of one
// connection.
type nbdExport struct {
	p      *Pool
	conn   net.Conn
	read   func(p []byte, off int64) (int, error)
	size   int64
	vbd    *object
	fault  *Fault
	closed sync.Once

	mu    sync.Mutex
	moved int64
}

// openNBD opens an export named /<uuid>?session_id=<ref>.
func (p *Pool) openNBD(h *host, c net.Conn, name string) (nbd.Export, error) {
	u, err := url.Parse(name)
	if err != nil {
		return nil, errors.New("malformed export name") // without the name, a secret
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	f := p.takeFault(nbdFault)
	if f != nil && f.DropSession {
		if s := p.db.find("session", u.Query().Get("session_id")); s != nil {
			p.db.destroy(s)
		}
	}
	if _, err := p.session(u.Query().Get("session_id")); err != nil {
		return nil, errors.New("session is invalid")
	}
	vdi := p.db.byUUID("VDI", strings.TrimPrefix(u.Path, "/"))
	if vdi == nil {
		return nil, fs.ErrNotExist
	}
	if f != nil && f.Code != "" {
		return nil, fail(f.Code, f.Params...)
	}
	if !p.sees(h, vdi.str("SR")) {
		return nil, fail("SR_NOT_ATTACHED", vdi.str("SR"))
	}
	v, err := p.volume(vdi)
	if err != nil {
		return nil, err
	}
	vbd, err := p.plugDom0(h, vdi, "RO")
	if err != nil {
		return nil, err
	}
	return &nbdExport{p: p, conn: c, read: v.ReadAt, size: v.Size(), vbd: vbd, fault: f}, nil
}

// nbdFault is what a Fault for NBD connections is On.
const nbdFault = "/nbd"

func (e *nbdExport) Size() int64 { return e.size }

func (e *nbdExport) ReadAt(b []byte, off int64) (int, error) {
	if e.fault != nil && e.fault.Cut {
		e.mu.Lock()
		e.moved += int64(len(b))
		due := e.moved > e.fault.CutAt
		e.mu.Unlock()
		if due {
			if e.fault.Stall {
				io.Copy(io.Discard, e.conn) // until the client or the host goes away
			}
			return 0, errCut
		}
	}
	return e.read(b, off)
}

func (e *nbdExport) Close() error {
	e.closed.Do(func() { e.p.unplugNBD(e.vbd) })
	return nil
}

// unplugNBD takes the VBD of an ended connection away, when it is due.
func (p *Pool) unplugNBD(vbd *object) {
	p.mu.Lock()
	if p.nbdHold > 0 {
		p.nbdHeld = append(p.nbdHeld, vbd)
		p.mu.Unlock()
		return
	}
	p.mu.Unlock()
	p.unplugLater([]*object{vbd}, p.cfg.NBDLinger)
}

// HoldNBD keeps dom0's VBDs of NBD connections that end from now on until
// release is called, whatever Config.NBDLinger says. Release may be called more
// than once, also from Fault.Do.
func (p *Pool) HoldNBD() (release func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.nbdHold++
	return sync.OnceFunc(func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.nbdHold--; p.nbdHold == 0 {
			p.dropVBDs(p.nbdHeld)
			p.nbdHeld = nil
		}
	})
}

// nbdInfo is VDI.get_nbd_info: one record for each address, on a network that
// is for NBD, of each host where the disk's SR is plugged.
func (p *Pool) nbdInfo(c *call) (any, error) {
	vdi, err := c.object(0)
	if err != nil {
		return nil, err
	}
	if vdi.str("type") == "cbt_metadata" {
		return nil, fail("VDI_INCOMPATIBLE_TYPE", vdi.ref, cbtMetadata)
	}
	out := []any{}
	for _, h := range p.hosts {
		if !p.sees(h, vdi.str("SR")) {
			continue
		}
		for _, pif := range p.db.all("PIF") {
			n := p.db.find("network", pif.str("network"))
			if pif.str("host") != h.ref || !pif.bool("currently_attached") || n == nil || len(n.set("purpose")) == 0 {
				continue
			}
			if ip := pif.str("IP"); ip != "" {
				out = append(out, ordered{
					{"exportname", "/" + vdi.uuid() + "?session_id=" + c.session.ref},
					{"address", ip}, {"port", int64(h.nbdPort())},
					{"cert", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: h.cert}))},
					{"subject", h.name},
				})
			}
		}
	}
	return out, nil
}

func (h *host) nbdPort() int { return h.nbd.Addr().(*net.TCPAddr).Port }

// purposeCalls are those that switch NBD on and off. The two purposes exclude
// each other in the whole pool (xen-api ocaml/xapi/xapi_network.ml).
func (p *Pool) purposeCalls() map[string]handler {
	return map[string]handler{
		"network.add_purpose": func(c *call) (any, error) {
			n, err := c.object(0)
			if err != nil {
				return nil, err
			}
			add := c.str(1)
			if contains(stringsOf(n.set("purpose")), add) {
				return void, nil
			}
			tls, plain := p.nbdPurposes()
			switch {
			case add == "nbd" && plain:
				return nil, fail("NETWORK_INCOMPATIBLE_PURPOSES", add, "insecure_nbd")
			case add == "insecure_nbd" && tls:
				return nil, fail("NETWORK_INCOMPATIBLE_PURPOSES", add, "nbd")
			}
			p.db.put(n, "purpose", append([]any{add}, n.set("purpose")...))
			return void, nil
		},
		"network.remove_purpose": func(c *call) (any, error) {
			n, err := c.object(0)
			if err == nil {
				p.db.put(n, "purpose", without(n.set("purpose"), c.args[1]))
			}
			return void, err
		},
	}
}

func stringsOf(set []any) []string {
	out := make([]string, len(set))
	for i, v := range set {
		out[i], _ = v.(string)
	}
	return out
}
