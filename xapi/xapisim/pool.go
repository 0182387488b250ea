// Package xapisim simulates a XenServer pool in one process, for tests and for
// experiments: hosts that serve XenAPI over HTTPS (JSON-RPC and XML-RPC),
// storage repositories with chains of VHD files (package sr), disks over NBD,
// and guests that write.
//
// It is written from the contract and from recordings of the real server, never
// from the calls that this program's client makes: it refuses the same requests
// as a real pool, with the same codes and parameters.
//
// New starts a pool. Fault scripts a failure at a call, a transfer or a step of
// the storage. Advance moves the pool's clock. Dump returns all records, for a
// comparison before and after.
//
// A file holds one class or one concern: the methods of VMs are in vm.go, those
// of disks in vdi.go, exports and imports of disks in bulk.go, whole VMs in
// xva.go and xvaimport.go, tasks in task.go. schema.go and schema.txt define
// fields, types and calls of each class; version.go defines the features that
// older versions lack; roles.txt defines the role that each call needs.
// docs/simulator.md lists the behaviours, each with the test that shows it.
package xapisim

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"xenkeep/xapi/xapisim/sr"
)

// Config describes a pool. The zero value is usable: a master and a member with
// TLS on loopback, four SRs, no VMs.
type Config struct {
	// State is the folder of the disks' data; if empty, a temporary one that
	// Close removes.
	State string
	// Listen is the master's address (default 127.0.0.1:0). The members listen
	// on the same port at the following loopback addresses, because the
	// addresses in a pool's records have no port.
	Listen string
	// Hosts is the number of hosts (default 2). The first is the master.
	Hosts int
	NoTLS bool
	// User and Password of the superuser (default root and a random password).
	User, Password string
	// Users are further accounts, with roles.
	Users []User
	// SRs are the storage repositories; nil means DefaultSRs, an empty slice
	// means none.
	SRs []SRConfig
	VMs []VMConfig

	// Scale multiplies all times during which the server itself waits: waits
	// for other operations, time-outs, the pause after a wrong password
	// (default 1).
	Scale float64
	// LoginDelay is the pause after a wrong password (default 2 s).
	LoginDelay time.Duration
	// HeadTimeout is how long a read of a connection's first request head may
	// take, unscaled (default 10 s).
	HeadTimeout time.Duration
	// GCDelay is the time between a deletion and the garbage collection of its
	// SR (default 5 s).
	GCDelay time.Duration
	// Linger is how long dom0's VBD stays after a transfer has ended (0: it is
	// removed before the task completes).
	Linger time.Duration
	// NBDLinger is how long dom0's VBD stays after an NBD connection has ended,
	// as on a real host (0: one second, scaled; negative: it is removed
	// immediately). HoldNBD makes a test independent of it.
	NBDLinger time.Duration
	// CancelDelay is how long a transfer continues after task.cancel (default
	// 10 s).
	CancelDelay time.Duration
	// Unlicensed disables the licensed features.
	Unlicensed bool
	// HA means that high availability is enabled. The pool has no plan of its
	// own and restarts no VMs.
	HA bool
	// NBDHybrid makes full exports behave as on hosts with NBD attachments.
	NBDHybrid bool
	// XVAWithoutMap makes whole-VM exports look for zeros instead of reading
	// the VHDs' maps, as older versions do. XVAKeepAlive makes them send an
	// empty entry after that much time without a block, instead of after five
	// seconds (scaled); negative: never.
	XVAWithoutMap bool
	XVAKeepAlive  int
	// RollingUpgrade simulates a pool during a rolling upgrade.
	RollingUpgrade bool
	// Version is the product version that the pool simulates.
	Version Version
	// NBD defines how the hosts serve disks over NBD, NBDServer the kind of
	// server.
	NBD       NBDMode
	NBDServer NBDServer
	// NBDFragile makes the NBD server of a host die, as xapi-nbd may, if a
	// client disconnects while replies are in progress. RestartNBD starts it
	// again.
	NBDFragile bool
	// CBT enables changed block tracking on the disks of all VMs.
	CBT bool
	// Guests are scripts for the guests of VMs.
	Guests []GuestScript
	// StorageRevert makes the storage support a revert of its own, which
	// VM.revert then uses: disks keep their identity, and their changed-block
	// logs do not contain the revert.
	StorageRevert bool
	// RedirectPort adds the port to redirects, for clients that would otherwise
	// connect to port 443, which is correct with a real pool.
	RedirectPort bool
}

// SRConfig describes a storage repository. A shared one is plugged at every
// host, a local one only at Host.
type SRConfig struct {
	Name   string
	Type   string // ext, nfs, smb, file, lvm, lvmoiscsi, lvmohba, iso
	Shared bool
	Host   int
	Size   int64 // physical size in bytes (default 8 TiB)
	QCOW2  bool  // disks are qcow2 files, not VHDs
	// Images are the files of a library (type iso), which are never written.
	Images []string
}

// VMConfig describes a VM. Its disks are raw or VHD files that are never
// written, on the SR with that name (default: the first one).
type VMConfig struct {
	Name   string
	Disks  []string
	SR     string
	Halted bool
	// Drivers makes the VM's guest report drivers as soon as it runs.
	Drivers bool
	// RawDisks creates volumes without VHD (on LVM, sm_config type=raw).
	RawDisks bool
}

const defaultSRSize = 8 << 40

// DefaultSRs returns thin and thick, shared and local SRs.
func DefaultSRs() []SRConfig {
	return []SRConfig{
		{Name: "NFS virtual disk storage", Type: "nfs", Shared: true},
		{Name: "Local storage", Type: "ext"},
		{Name: "iSCSI virtual disk storage", Type: "lvmoiscsi", Shared: true},
		{Name: "Local storage on member", Type: "lvm", Host: 1},
	}
}

// Pool is a running simulated pool.
type Pool struct {
	cfg      Config
	dir      string
	tempDir  bool
	ctx      context.Context // ends when the pool is closed
	stop     context.CancelFunc
	work     sync.WaitGroup
	hosts    []*host
	port     string
	ready    Ready
	licensed bool

	mu      sync.Mutex // guards all fields below
	db      *database
	calls   map[string]handler
	stores  map[string]*storage // by SR reference
	origin  map[string]string   // UUID of the VM from which a snapshot was taken
	faults  []*Fault
	watch   func(method string)
	waiting int
	domid   int64
	bridges int
	guests  []GuestScript
	roles   map[string]string // by session; sessions of root are absent
	ahead   time.Duration     // offset of the pool's clock to the machine's clock
	looked  time.Time         // the time up to which schedules have been run
	nbdHold int               // number of holders of the VBDs of ended NBD connections
	nbdHeld []*object         // those VBDs
	refSeq  int               // counts the Ref:N of metadata exports; never reset
}

// Ready describes a started pool to its user.
type Ready struct {
	URL         string    `json:"url"`
	User        string    `json:"user"`
	Password    string    `json:"password"`
	Fingerprint string    `json:"fingerprint"`
	VMs         []ReadyVM `json:"vms"`
	SRs         []ReadySR `json:"srs"`
	// NBD lists where the hosts serve disks; it is empty if NBD is off.
	NBD []ReadyNBD `json:"nbd"`
}

// ReadyVM is a VM of the configuration.
type ReadyVM struct {
	UUID  string      `json:"uuid"`
	Name  string      `json:"name"`
	Disks []ReadyDisk `json:"disks"`
}

// ReadyDisk is a disk of a VM; Size is in bytes.
type ReadyDisk struct {
	VDI    string `json:"vdi"`
	Device string `json:"device"`
	Size   int64  `json:"size"`
}

// ReadySR is a storage repository.
type ReadySR struct {
	UUID string `json:"uuid"`
	Name string `json:"name"`
	Type string `json:"type"`
}

func newUUID() string {
	var b [16]byte
	rand.Read(b[:])
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// withDefaults returns the configuration with its zero values replaced.
func (cfg Config) withDefaults() Config {
	if cfg.Listen == "" {
		cfg.Listen = "127.0.0.1:0"
	}
	if cfg.Hosts == 0 {
		cfg.Hosts = 2
	}
	if cfg.User == "" {
		cfg.User = "root"
	}
	if cfg.Password == "" {
		cfg.Password = newUUID()
	}
	if cfg.SRs == nil {
		cfg.SRs = DefaultSRs()
	}
	if cfg.Scale == 0 {
		cfg.Scale = 1
	}
	if cfg.LoginDelay == 0 {
		cfg.LoginDelay = 2 * time.Second
	}
	if cfg.HeadTimeout == 0 {
		cfg.HeadTimeout = 10 * time.Second
	}
	if cfg.NBDLinger == 0 {
		cfg.NBDLinger = time.Duration(float64(time.Second) * cfg.Scale)
	}
	if cfg.GCDelay == 0 {
		cfg.GCDelay = 5 * time.Second
	}
	if cfg.CancelDelay == 0 {
		cfg.CancelDelay = 10 * time.Second
	}
	return cfg
}

// check returns an error for a value that no pool can have.
func (cfg *Config) check() error {
	if err := cfg.NBDServer.check(); err != nil {
		return err
	}
	for _, u := range cfg.Users {
		if rank(u.Role) < 0 {
			return fmt.Errorf("user %s: unknown role %q", u.Name, u.Role)
		}
	}
	for _, g := range cfg.Guests {
		if err := g.check(); err != nil {
			return err
		}
	}
	return nil
}

// New starts a pool.
func New(cfg Config) (_ *Pool, err error) {
	cfg = cfg.withDefaults()
	if err := cfg.check(); err != nil {
		return nil, err
	}
	sch, err := cfg.Version.schema()
	if err != nil {
		return nil, err
	}
	p := &Pool{
		cfg: cfg, dir: cfg.State, db: newDatabase(sch), calls: map[string]handler{}, licensed: !cfg.Unlicensed,
		stores: map[string]*storage{}, origin: map[string]string{}, roles: map[string]string{},
	}
	for _, v := range cfg.VMs {
		if v.Drivers {
			p.guests = append(p.guests, GuestScript{Name: v.Name})
		}
	}
	p.guests = append(p.guests, cfg.Guests...)
	if p.dir == "" {
		if p.dir, err = os.MkdirTemp("", "xapisim-"); err != nil {
			return nil, err
		}
		p.tempDir = true
	} else if err := os.MkdirAll(p.dir, 0o700); err != nil {
		return nil, err
	}
	p.looked = p.now()
	p.ctx, p.stop = context.WithCancel(context.Background())
	for _, group := range []map[string]handler{
		p.sessionCalls(), p.taskCalls(), p.eventCalls(), p.vmCalls(), p.vusbCalls(), p.vmSetters(), p.vmSizes(), p.vdiCalls(), p.vmssCalls(), p.infraCalls(), p.purposeCalls(),
	} {
		for k, h := range group {
			p.calls[k] = h
		}
	}
	defer func() {
		if err != nil {
			p.Close()
		}
	}()
	if err := p.listen(); err != nil {
		return nil, err
	}
	if err := p.furnish(); err != nil {
		return nil, err
	}
	for _, h := range p.hosts {
		p.work.Go(func() { h.serve(p, h.ln) })
		p.work.Go(func() { h.serveNBD(p) })
	}
	p.work.Go(func() { p.housekeeping(p.ctx) })
	return p, nil
}

// listen opens the addresses of all hosts on one port.
func (p *Pool) listen() error {
	first, port, err := net.SplitHostPort(p.cfg.Listen)
	if err != nil {
		return fmt.Errorf("listen %s: %w", p.cfg.Listen, err)
	}
	ip := net.ParseIP(first)
	if ip == nil {
		return fmt.Errorf("listen %s: not an IP address", p.cfg.Listen)
	}
	for try := 0; ; try++ {
		err := p.listenOn(ip, port)
		if err == nil {
			return nil
		}
		p.closeListeners()
		p.hosts = nil
		if port != "0" || try == 20 {
			return err
		}
	}
}

func (p *Pool) listenOn(ip net.IP, port string) error {
	for i := range p.cfg.Hosts {
		addr := append(net.IP(nil), ip...)
		addr[len(addr)-1] += byte(i)
		ln, err := net.Listen("tcp", net.JoinHostPort(addr.String(), port))
		if err != nil {
			return err
		}
		_, port, _ = net.SplitHostPort(ln.Addr().String())
		h := &host{name: fmt.Sprintf("host%d", i+1), address: addr.String(), master: i == 0, secure: !p.cfg.NoTLS, ln: ln}
		p.hosts = append(p.hosts, h)
		if h.nbd, err = net.Listen("tcp", net.JoinHostPort(h.address, "0")); err != nil {
			return err
		}
		if err := h.makeCertificate(); err != nil {
			return err
		}
		h.life, h.kill = context.WithCancel(p.ctx)
	}
	p.port = port
	return nil
}

func (p *Pool) closeListeners() {
	for _, h := range p.hosts {
		h.ln.Close()
		if h.nbd != nil {
			h.nbd.Close()
		}
	}
}

// scaled applies Config.Scale.
func (p *Pool) scaled(d time.Duration) time.Duration { return time.Duration(float64(d) * p.cfg.Scale) }

func (p *Pool) masterAddress() string { return p.hosts[0].address }

// URL returns the URL of the master.
func (p *Pool) URL() string { return p.HostURL(0) }

// HostURL returns the URL of host i.
func (p *Pool) HostURL(i int) string {
	scheme := "https://"
	if p.cfg.NoTLS {
		scheme = "http://"
	}
	return scheme + net.JoinHostPort(p.hosts[i].address, p.port)
}

// User and Password return the credentials of the superuser.
func (p *Pool) User() string     { return p.cfg.User }
func (p *Pool) Password() string { return p.cfg.Password }

// Fingerprint returns the SHA-256 of the master's certificate, in lower-case
// hex.
func (p *Pool) Fingerprint() string { return p.hosts[0].fingerprint }

// Fingerprints returns the fingerprints of all hosts.
func (p *Pool) Fingerprints() []string {
	var out []string
	for _, h := range p.hosts {
		out = append(out, h.fingerprint)
	}
	return out
}

// Ready returns the description of the pool as it was when it started.
func (p *Pool) Ready() Ready { return p.ready }

// Close stops the pool and removes its disks' data.
func (p *Pool) Close() error {
	p.mu.Lock()
	p.stop()
	p.mu.Unlock()
	p.closeListeners()
	p.work.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	var errs []error
	for _, st := range p.stores {
		if st.gcTimer != nil {
			st.gcTimer.Stop()
		}
		errs = append(errs, st.sr.Close())
	}
	if p.tempDir {
		errs = append(errs, os.RemoveAll(p.dir))
	}
	return errors.Join(errs...)
}

// Restart simulates a restart of xapi: connections, sessions and tasks are
// lost, and VBDs of dom0 are removed.
func (p *Pool) Restart() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.restart()
}

// cutHost ends a host's connections and removes the VBDs of its control domain.
func (p *Pool) cutHost(h *host) {
	h.kill()
	h.life, h.kill = context.WithCancel(p.ctx)
	h.nbdDead, h.nbdLeft = false, nil
	if dom0 := p.db.find("VM", h.dom0); dom0 != nil {
		for _, vbd := range p.db.refs("VBD", dom0.set("VBDs")) {
			p.db.destroy(vbd)
		}
	}
}

func (p *Pool) restart() {
	for _, cls := range []string{"session", "task"} {
		for _, o := range p.db.all(cls) {
			p.db.destroy(o)
		}
	}
	for _, cls := range []string{"VM", "VDI"} {
		for _, o := range p.db.all(cls) {
			if len(o.mapv("current_operations")) > 0 {
				p.db.put(o, "current_operations", map[string]any{})
			}
		}
	}
	for _, h := range p.hosts {
		p.cutHost(h)
	}
}

// DropSessions ends every session.
func (p *Pool) DropSessions() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.db.all("session") {
		p.db.destroy(s)
	}
}

// GuestWrite makes the live disk equal to the file, like a guest that writes
// the 4 KiB pages in which they differ. It returns the number of bytes written.
func (p *Pool) GuestWrite(vdiUUID, imageFile string) (int64, error) {
	v, err := p.liveVolume(vdiUUID)
	if err != nil {
		return 0, err
	}
	n, err := v.WriteImage(imageFile)
	p.sync(vdiUUID)
	return n, err
}

// Volume returns the data of a VDI, for tests.
func (p *Pool) Volume(vdiUUID string) (*sr.Volume, error) { return p.liveVolume(vdiUUID) }

func (p *Pool) liveVolume(vdiUUID string) (*sr.Volume, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	vdi := p.db.byUUID("VDI", vdiUUID)
	if vdi == nil {
		return nil, fail("UUID_INVALID", "VDI", vdiUUID)
	}
	return p.volume(vdi)
}

func (p *Pool) sync(vdiUUID string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if vdi := p.db.byUUID("VDI", vdiUUID); vdi != nil {
		p.syncVDI(vdi)
		if s := p.db.find("SR", vdi.str("SR")); s != nil {
			p.syncSR(s)
		}
	}
}
