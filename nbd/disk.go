package nbd

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Endpoint is one address that serves the disk: one record of
// VDI.get_nbd_info.
type Endpoint struct {
	Address       string // host:port
	Network       string // default "tcp"
	ExportName    string // a secret, as in Options
	PinnedCertPEM []byte
	TLS           *tls.Config
	ServerName    string
	// Host identifies the machine: endpoints with the same Host share its
	// connection limit. The default is the address without the port.
	Host string
}

func (e *Endpoint) host() string {
	if e.Host != "" {
		return e.Host
	}
	if host, _, err := net.SplitHostPort(e.Address); err == nil {
		return host
	}
	return e.Address
}

// DiskOptions define the location of a disk and the number of attempts.
type DiskOptions struct {
	Endpoints   []Endpoint
	Connections int // maximum number, 4 if zero
	Depth       int // maximum number of concurrent requests per connection, as in Options
	Stall       time.Duration
	Drain       time.Duration // as in Options
	// Limiter is shared by the disks of a process; if nil, the disk has one of
	// its own.
	Limiter *Limiter
	// Attempts is how often a read is tried before its error is returned, 6 if
	// zero. Pause is the wait before the second attempt, 100 ms if zero; it
	// doubles up to MaxPause, 5 s if zero.
	Attempts        int
	Pause, MaxPause time.Duration
	// Renew, if set, is called for new endpoints when the server refuses the
	// export: the session in the export name may have ended. If it fails, the
	// read that needed it fails with its error.
	Renew func(ctx context.Context) ([]Endpoint, error)
	// Connected, if set, is called after each attempt to connect to a server. It
	// must be safe for concurrent use.
	Connected func(address string, began time.Time, err error)
	// Dial is as in Options.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// maxPiece is the longest read in one request: the size of a block, so that the
// connections get equal shares, and only few bytes are read again after a loss.
const maxPiece = 2 << 20

// Disk reads one export over several connections. Open makes the first one; the
// others are made when reads wait for the existing ones. A Disk is safe for
// concurrent use; reads overlap only if their callers call it concurrently.
type Disk struct {
	opts  DiskOptions
	info  Info
	lanes []*lane

	reconnects atomic.Int64

	renewals atomic.Int64
	renewing chan struct{} // held while Renew runs
	closed   chan struct{}

	mu        sync.Mutex
	endpoints []Endpoint
	basic     map[string]bool // addresses of servers that support only EXPORT_NAME
	onHost    map[string]int  // this disk's connections by host
}

// lane is a slot for one connection.
type lane struct {
	// turn is held while conn is being made; it is a channel so that a context
	// can end the wait for it.
	turn chan struct{}
	load atomic.Int32 // reads that chose this lane

	mu      sync.Mutex
	conn    *Conn
	at      *place    // place of conn
	resting time.Time // no connection is tried before this time
}

// laneRest is how long an additional connection is not tried again after an
// attempt has failed. Another client may be using the host's connections.
const laneRest = 10 * time.Second

// errNoLane means that no additional connection is available at the moment.
var errNoLane = errors.New("no further connection")

// Open connects to the disk. It tries every endpoint, and waits for the limiter
// if it must. ctx bounds only Open.
func Open(ctx context.Context, o DiskOptions) (*Disk, error) {
	if len(o.Endpoints) == 0 {
		return nil, errors.New("open disk: no endpoints")
	}
	if o.Connections <= 0 {
		o.Connections = 4
	}
	if o.Limiter == nil {
		o.Limiter = NewLimiter(0)
	}
	if o.Attempts <= 0 {
		o.Attempts = 6
	}
	if o.Pause <= 0 {
		o.Pause = 100 * time.Millisecond
	}
	if o.MaxPause <= 0 {
		o.MaxPause = 5 * time.Second
	}
	d := &Disk{
		opts: o, endpoints: slices.Clone(o.Endpoints),
		basic: make(map[string]bool), onHost: make(map[string]int),
		closed: make(chan struct{}), renewing: make(chan struct{}, 1),
	}
	for range o.Connections {
		d.lanes = append(d.lanes, &lane{turn: make(chan struct{}, 1)})
	}
	d.info.Size = -1
	err := d.retry(ctx, func() error {
		c, err := d.connect(ctx, d.lanes[0], true)
		if err == nil {
			d.info = c.Info()
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open disk: %w", err)
	}
	return d, nil
}

// Size returns the disk's size in bytes.
func (d *Disk) Size() int64 { return d.info.Size }

// Info returns the results of the first handshake.
func (d *Disk) Info() Info { return d.info }

// Connections returns the number of open connections.
func (d *Disk) Connections() int {
	n := 0
	for _, l := range d.lanes {
		l.mu.Lock()
		if l.conn != nil && l.conn.Err() == nil {
			n++
		}
		l.mu.Unlock()
	}
	return n
}

// Reconnects returns the number of connections that replaced a lost one.
func (d *Disk) Reconnects() int64 { return d.reconnects.Load() }

// Close ends all connections. Reads in progress fail with ErrClosed; Close
// waits for their answers, within limits, as Conn.Close does.
func (d *Disk) Close() error {
	d.mu.Lock()
	select {
	case <-d.closed:
		d.mu.Unlock()
		return nil
	default:
	}
	close(d.closed)
	d.mu.Unlock()
	var all sync.WaitGroup
	for _, l := range d.lanes {
		l.mu.Lock()
		c, at := l.conn, l.at
		l.conn, l.at = nil, nil
		l.mu.Unlock()
		if c != nil {
			all.Go(func() {
				_ = c.Close()
				at.release()
			})
		}
	}
	all.Wait()
	return nil
}

func (d *Disk) isClosed() bool {
	select {
	case <-d.closed:
		return true
	default:
		return false
	}
}

// ReadAt fills p from byte offset off, of any alignment, over the connection
// with the least load. If a read loses its connection, it is repeated over
// another. It either reads all of p or returns an error, io.EOF if p reaches
// beyond the disk; after an error p's content is undefined.
func (d *Disk) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	want := len(p)
	if off < 0 || off > d.info.Size {
		return 0, fmt.Errorf("read at %d: beyond the disk's %d bytes", off, d.info.Size)
	}
	p = p[:min(int64(want), d.info.Size-off)]
	for n := 0; n < len(p); {
		m := min(len(p)-n, maxPiece-int((off+int64(n))%maxPiece))
		if err := d.readPiece(ctx, p[n:n+m], off+int64(n)); err != nil {
			return n, err
		}
		n += m
	}
	if len(p) < want {
		return len(p), io.EOF
	}
	return want, nil
}

func (d *Disk) readPiece(ctx context.Context, p []byte, off int64) error {
	return d.retry(ctx, func() error {
		l, c, err := d.pick(ctx)
		if err != nil {
			return err
		}
		_, err = c.ReadAt(ctx, p, off)
		d.done(l)
		return err
	})
}

// Extents returns the allocation of length bytes at off, like Conn.Extents.
func (d *Disk) Extents(ctx context.Context, off, length int64) (ext []Extent, err error) {
	if !d.info.Allocation {
		return nil, ErrNoAllocation
	}
	err = d.retry(ctx, func() error {
		l, c, err := d.pick(ctx)
		if err != nil {
			return err
		}
		ext, err = c.Extents(ctx, off, length)
		d.done(l)
		return err
	})
	return ext, err
}

// retry calls f until it succeeds, fails permanently, or has used all attempts.
// This is the only place that makes this decision.
func (d *Disk) retry(ctx context.Context, f func() error) error {
	pause := d.opts.Pause
	for attempt := 1; ; attempt++ {
		renewals := d.renewals.Load()
		err := f()
		if err == nil || ctx.Err() != nil || attempt >= d.opts.Attempts || !d.passing(err) {
			return err
		}
		if d.opts.Renew != nil && errors.Is(err, ErrRefused) && !errors.Is(err, ErrBusy) {
			if rerr := d.renew(ctx, renewals); rerr != nil {
				return fmt.Errorf("%w; new endpoints: %w", err, rerr)
			}
		}
		t := time.NewTimer(pause)
		select {
		case <-t.C:
		case <-d.closed:
			t.Stop()
			return ErrClosed
		case <-ctx.Done():
			t.Stop()
			return fmt.Errorf("%w; last error: %w", ctx.Err(), err)
		}
		pause = min(pause*2, d.opts.MaxPause)
	}
}

// dialErrors holds the error of every endpoint that was tried.
type dialErrors []error

func (e dialErrors) Error() string {
	var all []string
	for _, err := range e {
		all = append(all, err.Error())
	}
	return strings.Join(all, "; ")
}

func (e dialErrors) Unwrap() []error { return e }

// passing reports whether another attempt may succeed.
func (d *Disk) passing(err error) bool {
	if d.isClosed() {
		return false
	}
	var each dialErrors
	if errors.As(err, &each) {
		return slices.ContainsFunc(each, d.passing)
	}
	var re *RemoteError
	if errors.As(err, &re) {
		// The server itself answered the request with an error; only "shutting
		// down" is temporary.
		return re.Errno == ESHUTDOWN
	}
	return !errors.Is(err, ErrTLS) && !errors.Is(err, ErrChanged) && !errors.Is(err, ErrNoAllocation)
}

// renew gets new endpoints, once for all reads that used the same old ones.
func (d *Disk) renew(ctx context.Context, seen int64) error {
	select {
	case d.renewing <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-d.renewing }()
	if d.renewals.Load() != seen {
		return nil
	}
	e, err := d.opts.Renew(ctx)
	if err != nil {
		return err
	}
	if len(e) == 0 {
		return errors.New("none")
	}
	d.mu.Lock()
	d.endpoints = slices.Clone(e)
	d.mu.Unlock()
	d.renewals.Add(1)
	return nil
}

// pick chooses the connection for a read and adds the read to its load.
func (d *Disk) pick(ctx context.Context) (*lane, *Conn, error) {
	for {
		if d.isClosed() {
			return nil, nil, ErrClosed
		}
		// The least loaded of the connected lanes, and one that is not
		// connected.
		var best, empty *lane
		now := time.Now()
		for _, l := range d.lanes {
			l.mu.Lock()
			live := l.conn != nil && l.conn.Err() == nil
			rests := now.Before(l.resting)
			l.mu.Unlock()
			switch {
			case live && (best == nil || l.load.Load() < best.load.Load()):
				best = l
			case !live && !rests && empty == nil && len(l.turn) == 0:
				empty = l
			}
		}
		if best != nil && (empty == nil || best.load.Load() == 0) {
			if c := best.take(); c != nil {
				return best, c, nil
			}
			continue
		}
		l := empty
		if l == nil {
			l = d.lanes[0] // none is connected, and all are being connected or must wait
		}
		_, err := d.connect(ctx, l, best == nil)
		if err == nil {
			if c := l.take(); c != nil {
				return l, c, nil
			}
			continue
		}
		if best == nil || ctx.Err() != nil {
			return nil, nil, err
		}
		if c := best.take(); c != nil {
			return best, c, nil
		}
	}
}

// take adds a read to the load of l and returns its connection if it is usable.
func (l *lane) take() *Conn {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.conn == nil || l.conn.Err() != nil {
		return nil
	}
	l.load.Add(1)
	return l.conn
}

// done removes a read from the load of l. If another disk waits for the
// connection's host, and the connection is idle and not the disk's only one,
// done closes it.
func (d *Disk) done(l *lane) {
	if l.load.Add(-1) > 0 {
		return
	}
	l.mu.Lock()
	c, at := l.conn, l.at
	l.mu.Unlock()
	if c == nil || !d.opts.Limiter.wanted(at.endpoint.host()) {
		return
	}
	d.mu.Lock() // one at a time, so that one connection remains
	leave := false
	if d.Connections() > 1 {
		l.mu.Lock()
		if l.conn == c && l.load.Load() == 0 {
			leave = true
			l.conn, l.at = nil, nil
			l.resting = time.Now().Add(laneRest)
		}
		l.mu.Unlock()
	}
	d.mu.Unlock()
	if leave {
		_ = c.Close()
		at.release()
	}
}
