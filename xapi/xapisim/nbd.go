package xapisim

import (
	"context"
	"crypto/tls"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/url"
	"slices"
	"strings"
	"sync"
	"syscall"

	"xenkeep/internal/disk"
	"xenkeep/nbd"
)

// NBDMode defines how the hosts serve disks over NBD when the pool starts: it
// is the purpose of the management network, which clients may change later.
type NBDMode string

const (
	NBDOff   NBDMode = "off" // also the empty string
	NBDTLS   NBDMode = "tls"
	NBDPlain NBDMode = "plain"
)

// purpose returns the network purpose of the mode.
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

// NBDServer is a kind of NBD server.
type NBDServer string

const (
	// NBDServerXAPI is xapi-nbd as on deployed hosts: EXPORT_NAME only, simple
	// replies, strictly in order. The empty string means the same.
	NBDServerXAPI NBDServer = "xapi"
	// NBDServerXAPINew is xapi-nbd of newer releases, which supports GO and
	// structured replies.
	NBDServerXAPINew NBDServer = "xapi-new"
	// NBDServerFull supports the features of other servers, as future hosts
	// may: also INFO, NO_ZEROES, several connections with a consistent view,
	// holes in replies, the base:allocation context with block status, replies
	// out of order, and errors that do not end the connection.
	NBDServerFull NBDServer = "full"
)

// NBDServers lists all kinds.
var NBDServers = []NBDServer{NBDServerXAPI, NBDServerXAPINew, NBDServerFull}

func (s NBDServer) check() error {
	if s == "" || slices.Contains(NBDServers, s) {
		return nil
	}
	return fmt.Errorf("NBD server %q: not xapi, xapi-new or full", string(s))
}

// profile returns the features of the server; conf is nil for a server without
// TLS.
func (s NBDServer) profile(conf *tls.Config) nbd.Profile {
	p := nbd.XAPI(conf)
	switch s {
	case NBDServerXAPINew:
		p.GO, p.Structured = true, true
	case NBDServerFull:
		full := nbd.Modern()
		full.TLS, full.ForceTLS, full.List = p.TLS, p.ForceTLS, false
		return full
	}
	return p
}

// maxNBD is the maximum number of concurrent NBD connections to a host (xen-api
// ocaml/nbd/lib/consts.ml).
const maxNBD = nbd.HostConnections

// ReadyNBD is the address at which a host serves disks. The real port is 10809
// everywhere.
type ReadyNBD struct {
	Address string `json:"address"`
	Port    int    `json:"port"`
}

// nbdPurposes returns the NBD purposes of all networks. Pool.mu must be held.
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
// at this moment; with no purpose, or with both, the connection is closed
// immediately (xen-api ocaml/nbd/src/main.ml).
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
	dead := h.nbdDead
	p.mu.Unlock()
	defer cancel()
	var profile nbd.Profile
	switch {
	case tls == plain || dead:
		return
	case tls:
		profile = p.cfg.NBDServer.profile(h.tls)
	default:
		profile = p.cfg.NBDServer.profile(nil)
	}
	served := c
	if p.cfg.NBDFragile {
		served = &fragileConn{Conn: c, broken: func() { p.KillNBD(slices.Index(p.hosts, h)) }}
	}
	s := nbd.Server{
		Profile: func(context.Context, net.Conn) nbd.Profile { return profile },
		Open:    func(_ context.Context, name string) (nbd.Export, error) { return p.openNBD(h, c, name) },
	}
	s.ServeConn(ctx, served) // how the client left does not matter
}

// fragileConn detects that its peer has disconnected while replies were in
// progress: a write then fails with a reset or a broken pipe.
type fragileConn struct {
	net.Conn
	broken func()
	once   sync.Once
}

func (c *fragileConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	if errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) {
		c.once.Do(c.broken)
	}
	return n, err
}

// KillNBD ends the NBD server of host i and all its connections. New
// connections are closed immediately. Control-domain VBDs that the server
// attached stay until RestartNBD, Restart or CrashHost.
func (p *Pool) KillNBD(i int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	h := p.hosts[i]
	h.nbdDead = true
	for _, c := range h.nbdOpen {
		c.Close()
	}
}

// RestartNBD starts the NBD server of host i again, which first removes the
// VBDs that it had left attached.
func (p *Pool) RestartNBD(i int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	h := p.hosts[i]
	p.dropVBDs(h.nbdLeft)
	h.nbdDead, h.nbdLeft = false, nil
}

// NBDAlive reports whether the NBD server of host i runs.
func (p *Pool) NBDAlive(i int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return !p.hosts[i].nbdDead
}

// nbdExport is a disk that is attached to the control domain while one
// connection lasts.
type nbdExport struct {
	p       *Pool
	host    *host
	conn    net.Conn
	read    func(p []byte, off int64) (int, error)
	extents func(off, length int64) []disk.Extent
	size    int64
	vbd     *object
	fault   *Fault
	closed  sync.Once

	mu    sync.Mutex
	moved int64
}

// openNBD opens an export named /<uuid>?session_id=<ref>.
func (p *Pool) openNBD(h *host, c net.Conn, name string) (nbd.Export, error) {
	u, err := url.Parse(name)
	if err != nil {
		return nil, errors.New("malformed export name") // without the name, which is a secret
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
	h.nbdOpen = append(h.nbdOpen, c)
	return &nbdExport{p: p, host: h, conn: c, read: v.ReadAt, extents: v.Allocated, size: v.Size(), vbd: vbd, fault: f}, nil
}

// nbdFault is the value of Fault.On for NBD connections.
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
				io.Copy(io.Discard, e.conn) // until the client or the host closes the connection
			}
			return 0, errCut
		}
	}
	return e.read(b, off)
}

// Extents returns the ranges that the disk's files hold; the rest reads as
// zeros.
func (e *nbdExport) Extents(off, length int64) ([]nbd.Extent, error) {
	var out []nbd.Extent
	add := func(to int64, zero bool) {
		if to > off {
			out = append(out, nbd.Extent{Extent: disk.Extent{Offset: off, Length: to - off}, Hole: zero, Zero: zero})
			off = to
		}
	}
	end := off + length
	for _, x := range e.extents(off, length) {
		add(x.Offset, true)
		add(min(x.End(), end), false)
	}
	add(end, true)
	return out, nil
}

func (e *nbdExport) Close() error {
	e.closed.Do(func() { e.p.unplugNBD(e) })
	return nil
}

// unplugNBD removes the VBD of an ended connection when it is due; a server
// that has died does not remove it.
func (p *Pool) unplugNBD(e *nbdExport) {
	p.mu.Lock()
	h := e.host
	h.nbdOpen = slices.DeleteFunc(h.nbdOpen, func(c net.Conn) bool { return c == e.conn })
	switch {
	case h.nbdDead:
		h.nbdLeft = append(h.nbdLeft, e.vbd)
		p.mu.Unlock()
		return
	case p.nbdHold > 0:
		p.nbdHeld = append(p.nbdHeld, e.vbd)
		p.mu.Unlock()
		return
	}
	p.mu.Unlock()
	p.unplugLater([]*object{e.vbd}, p.cfg.NBDLinger)
}

// HoldNBD keeps dom0's VBDs of NBD connections that end from now on until
// release is called, regardless of Config.NBDLinger. release may be called more
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

// nbdInfo is VDI.get_nbd_info: it returns one record for each address of each
// host where the disk's SR is plugged, on networks with an NBD purpose.
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

// purposeCalls are the calls that enable and disable NBD. The two purposes
// exclude each other in the whole pool (xen-api ocaml/xapi/xapi_network.ml).
func (p *Pool) purposeCalls() map[string]handler {
	return map[string]handler{
		"network.add_purpose":    p.networkAddPurpose,
		"network.remove_purpose": p.networkRemovePurpose,
	}
}

// networkAddPurpose implements network.add_purpose.
func (p *Pool) networkAddPurpose(c *call) (any, error) {
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
}

// networkRemovePurpose implements network.remove_purpose.
func (p *Pool) networkRemovePurpose(c *call) (any, error) {
	n, err := c.object(0)
	if err == nil {
		p.db.put(n, "purpose", without(n.set("purpose"), c.args[1]))
	}
	return void, err
}

func stringsOf(set []any) []string {
	out := make([]string, len(set))
	for i, v := range set {
		out[i], _ = v.(string)
	}
	return out
}
