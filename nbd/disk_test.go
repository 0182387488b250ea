package nbd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// cutter ends a connection at its n-th write: before it, in the middle of it,
// or after it.
type cutter struct {
	net.Conn
	n     int
	where int // number of halves of that write that are still sent
	mu    sync.Mutex
	fired *atomic.Bool
}

func (c *cutter) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n--
	if c.n != -1 {
		return c.Conn.Write(p)
	}
	c.fired.Store(true)
	_, _ = c.Conn.Write(p[:len(p)*c.where/2])
	c.Conn.Close()
	return 0, net.ErrClosed
}

// faultyListener wraps the connections it accepts.
type faultyListener struct {
	net.Listener
	wrap func(net.Conn) net.Conn
}

func (l faultyListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return l.wrap(c), nil
}

// TestCutAtEveryMessage cuts the first connection at each message of either
// side, until a run completes without a cut; each time, the disk's bytes must
// be read correctly.
func TestCutAtEveryMessage(t *testing.T) {
	id := newIdentity(t)
	for name, p := range map[string]Profile{
		"xapi":     XAPI(nil),
		"xapi tls": XAPI(id.conf),
		"modern":   Modern(),
		"simple":   {GO: true},
	} {
		for _, side := range []string{"server", "client"} {
			t.Run(name+" "+side, func(t *testing.T) {
				for n := 0; ; n++ {
					untouched := false
					for where := range 3 {
						untouched = !cutOnce(t, p, id, side, n, where)
					}
					if untouched {
						if n < 4 {
							t.Fatalf("only %d messages seen", n)
						}
						return
					}
				}
			})
		}
	}
}

func cutOnce(t *testing.T, p Profile, id *identity, side string, n, where int) (fired bool) {
	t.Helper()
	var hit atomic.Bool
	var count atomic.Int32
	first := func(c net.Conn) net.Conn {
		if count.Add(1) == 1 {
			return &cutter{Conn: c, n: n, where: where, fired: &hit}
		}
		return c
	}
	e := newExport(5 * 4096)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	o := DiskOptions{Connections: 1, Pause: time.Millisecond}
	ep := Endpoint{Address: l.Addr().String(), ExportName: testName}
	if p.ForceTLS {
		ep.PinnedCertPEM = id.pem
	}
	o.Endpoints = []Endpoint{ep}
	var served net.Listener = l
	if side == "server" {
		served = faultyListener{l, first}
	} else {
		o.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			c, err := (&net.Dialer{}).DialContext(ctx, network, address)
			if err != nil {
				return nil, err
			}
			return first(c), nil
		}
	}
	stop := serveOn(t, &Server{Open: e.open, Profile: always(p)}, served)
	defer stop()
	d, err := Open(testContext(t), o)
	if err != nil {
		t.Fatalf("message %d, half %d: %v", n, where, err)
	}
	readAll(t, d, e.data, 4096, 2)
	d.Close()
	stop()
	if a, b := e.opened.Load(), e.closed.Load(); a != b {
		t.Fatalf("message %d, half %d: export opened %d times, closed %d times", n, where, a, b)
	}
	return hit.Load()
}

// TestDyingConnections reads a disk over connections that are all short-lived.
func TestDyingConnections(t *testing.T) {
	e := newExport(4 << 20)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var never atomic.Bool
	n := atomic.Int32{}
	serveOn(t, &Server{Open: e.open, Profile: always(XAPI(nil))}, faultyListener{l, func(c net.Conn) net.Conn {
		k := int(n.Add(1))
		return &cutter{Conn: c, n: 8 + k%5, where: k % 3, fired: &never}
	}})
	d, err := Open(testContext(t), DiskOptions{
		Endpoints: []Endpoint{{Address: l.Addr().String(), ExportName: testName}},
		Pause:     time.Millisecond, Attempts: 30,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	readAll(t, d, e.data, 64<<10, 6)
	if d.Reconnects() < 5 {
		t.Errorf("%d reconnects", d.Reconnects())
	}
}

func TestAttemptsAreBounded(t *testing.T) {
	e := newExport(1 << 20)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	stop := serveOn(t, &Server{Open: e.open}, l)
	var dials atomic.Int32
	o := DiskOptions{
		Endpoints: []Endpoint{{Address: l.Addr().String(), ExportName: testName}},
		Pause:     time.Millisecond, Attempts: 4, Connections: 1,
		Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			dials.Add(1)
			return (&net.Dialer{}).DialContext(ctx, network, address)
		},
	}
	d, err := Open(testContext(t), o)
	if err != nil {
		t.Fatal(err)
	}
	stop()
	if _, err := d.ReadAt(testContext(t), make([]byte, 512), 0); err == nil {
		t.Fatal("read without a server")
	}
	// The first attempt may still use the connection that is being closed.
	if n := dials.Load(); n < 4 || n > 5 {
		t.Errorf("%d dials", n)
	}
	d.Close()
	if _, err := d.ReadAt(testContext(t), make([]byte, 512), 0); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
	if n := d.opts.Limiter.InUse("127.0.0.1"); n != 0 {
		t.Errorf("%d connections still counted", n)
	}
	// A read that waits for its next attempt ends with its context.
	o.Pause, o.Attempts = time.Hour, 2
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if _, err := Open(ctx, o); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
}

// hosts starts n servers of one export, each with a connection limit of its
// own, and returns endpoints that look like as many hosts.
func hosts(t *testing.T, e *memExport, n int, p Profile) ([]*Server, []Endpoint) {
	var all []*Server
	var ends []Endpoint
	for i := range n {
		s := &Server{Open: e.open, Profile: always(p), MaxConnections: HostConnections}
		all = append(all, s)
		ends = append(ends, Endpoint{Address: startServer(t, s), ExportName: testName, Host: fmt.Sprint("host", i)})
	}
	return all, ends
}

func TestSpreadOverHosts(t *testing.T) {
	e := newExport(8 << 20)
	e.fail = func(int64, int) error { time.Sleep(time.Millisecond); return nil }
	servers, ends := hosts(t, e, 2, XAPI(nil))
	d, err := Open(testContext(t), DiskOptions{Endpoints: ends})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if n := d.Connections(); n != 1 {
		t.Errorf("%d connections before any read", n)
	}
	readAll(t, d, e.data, 64<<10, 8)
	for i, s := range servers {
		if n := s.Active(); n != 2 {
			t.Errorf("host %d has %d connections", i, n)
		}
	}
}

func TestLimitAcrossDisks(t *testing.T) {
	e := newExport(2 << 20)
	_, ends := hosts(t, e, 2, XAPI(nil))
	limiter := NewLimiter(0)
	var mu sync.Mutex
	open, most := map[string]int{}, 0
	dial := func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := (&net.Dialer{}).DialContext(ctx, network, address)
		if err != nil {
			return nil, err
		}
		mu.Lock()
		defer mu.Unlock()
		open[address]++
		most = max(most, open[address])
		return &countedConn{Conn: c, gone: func() { mu.Lock(); open[address]--; mu.Unlock() }}, nil
	}
	var wg sync.WaitGroup
	for range 40 {
		wg.Go(func() {
			d, err := Open(testContext(t), DiskOptions{Endpoints: ends, Limiter: limiter, Dial: dial, Pause: time.Millisecond, Attempts: 20})
			if err != nil {
				t.Error(err)
				return
			}
			defer d.Close()
			got := make([]byte, len(e.data))
			var in sync.WaitGroup
			for i := range 4 {
				in.Go(func() {
					n := len(got) / 4
					if _, err := d.ReadAt(testContext(t), got[i*n:(i+1)*n], int64(i*n)); err != nil {
						t.Error(err)
					}
				})
			}
			in.Wait()
			if !bytes.Equal(got, e.data) {
				t.Error("bytes read differ")
			}
		})
	}
	wg.Wait()
	if most > HostConnections || most < 8 {
		t.Errorf("%d connections to one host at once", most)
	}
	for _, ep := range ends {
		if n := limiter.InUse(ep.Host); n != 0 {
			t.Errorf("%s: %d connections still counted", ep.Host, n)
		}
	}
}

type countedConn struct {
	net.Conn
	once sync.Once
	gone func()
}

func (c *countedConn) Close() error {
	err := c.Conn.Close()
	c.once.Do(c.gone)
	return err
}

// TestMakingRoom: a disk with several connections releases one if another disk
// waits for its first.
func TestMakingRoom(t *testing.T) {
	e := newExport(1 << 20)
	_, ends := hosts(t, e, 1, XAPI(nil))
	limiter := NewLimiter(4)
	a, err := Open(testContext(t), DiskOptions{Endpoints: ends, Limiter: limiter})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	for a.Connections() < 4 {
		readAll(t, a, e.data, 4096, 8)
	}
	opened := make(chan error, 1)
	go func() {
		b, err := Open(testContext(t), DiskOptions{Endpoints: ends, Limiter: limiter})
		if err == nil {
			err = b.Close()
		}
		opened <- err
	}()
	for {
		select {
		case err := <-opened:
			if err != nil {
				t.Fatal(err)
			}
			return
		default:
			readAll(t, a, e.data, 64<<10, 4)
		}
	}
}

func TestLimiter(t *testing.T) {
	l := NewLimiter(2)
	ctx := testContext(t)
	one, _ := l.Acquire(ctx, "a")
	two, _ := l.Acquire(ctx, "a")
	if _, ok := l.TryAcquire("a"); ok {
		t.Fatal("a third")
	}
	if other, ok := l.TryAcquire("b"); !ok {
		t.Fatal("hosts share a limit")
	} else {
		other()
	}
	got := make(chan int, 2)
	for i := range 2 {
		go func() {
			free, err := l.Acquire(ctx, "a")
			if err != nil {
				t.Error(err)
				return
			}
			got <- i
			free()
		}()
		eventually(t, "a waiter", func() bool {
			l.mu.Lock()
			defer l.mu.Unlock()
			return len(l.hosts["a"].queue) == i+1
		})
	}
	short, cancel := context.WithTimeout(ctx, 10*time.Millisecond)
	defer cancel()
	if _, err := l.Acquire(short, "a"); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
	one()
	one() // a second call has no effect
	if a, b := <-got, <-got; a != 0 || b != 1 {
		t.Fatalf("served %d before %d", a, b)
	}
	two()
	eventually(t, "the last release", func() bool { return l.InUse("a") == 0 })
}

func TestFullHost(t *testing.T) {
	e := newExport(4096)
	servers, ends := hosts(t, e, 1, XAPI(nil))
	var hogs []*Conn
	for range HostConnections {
		hogs = append(hogs, mustDial(t, Options{Address: ends[0].Address}))
	}
	if _, err := Dial(testContext(t), Options{Address: ends[0].Address, ExportName: testName}); !errors.Is(err, ErrBusy) {
		t.Fatalf("one more connection: %v", err)
	}
	if _, err := Open(testContext(t), DiskOptions{Endpoints: ends, Attempts: 2, Pause: time.Millisecond}); !errors.Is(err, ErrBusy) {
		t.Fatalf("disk on a full host: %v", err)
	}
	eventually(t, "the server's count", func() bool { return servers[0].Active() == HostConnections })
	time.AfterFunc(5*time.Millisecond, func() { hogs[3].Close() })
	d, err := Open(testContext(t), DiskOptions{Endpoints: ends, Attempts: 100, Pause: time.Millisecond, MaxPause: 5 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	// All further connections are refused, and the existing one does all reads.
	readAll(t, d, e.data, 512, 8)
	if n := d.Connections(); n != 1 {
		t.Errorf("%d connections", n)
	}
}

func TestEndedSession(t *testing.T) {
	e := newExport(1 << 20)
	var valid atomic.Value
	valid.Store(testName)
	s := &Server{Profile: always(XAPI(nil)), Open: func(_ context.Context, name string) (Export, error) {
		if name != valid.Load() {
			return nil, errors.New("session invalid")
		}
		e.opened.Add(1)
		return e, nil
	}}
	addr := startServer(t, s)
	renewed := 0
	o := DiskOptions{
		Endpoints: []Endpoint{{Address: addr, ExportName: testName}}, Pause: time.Millisecond, Attempts: 3, Connections: 2,
		Renew: func(context.Context) ([]Endpoint, error) {
			renewed++
			return []Endpoint{{Address: addr, ExportName: valid.Load().(string)}}, nil
		},
	}
	for _, with := range []bool{true, false} {
		valid.Store(testName)
		if !with {
			o.Renew = nil
		}
		d, err := Open(testContext(t), o)
		if err != nil {
			t.Fatal(err)
		}
		valid.Store("/f00d?session_id=another")
		for _, l := range d.lanes {
			if l.conn != nil {
				l.conn.nc.Close()
			}
		}
		p := make([]byte, 4096)
		_, err = d.ReadAt(testContext(t), p, 0)
		if with && (err != nil || !bytes.Equal(p, e.data[:4096]) || renewed != 1) {
			t.Errorf("with new endpoints: %v, %d times", err, renewed)
		}
		if !with && !errors.Is(err, ErrRefused) {
			t.Errorf("without: %v", err)
		}
		d.Close()
	}
}

func TestChangedExport(t *testing.T) {
	small, big := newExport(4096), newExport(8192)
	var n atomic.Int32
	s := &Server{Open: func(context.Context, string) (Export, error) {
		if n.Add(1) == 1 {
			return small, nil
		}
		return big, nil
	}}
	d, err := Open(testContext(t), DiskOptions{Endpoints: []Endpoint{{Address: startServer(t, s)}}, Connections: 1, Pause: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	d.lanes[0].conn.nc.Close()
	if _, err := d.ReadAt(testContext(t), make([]byte, 512), 0); !errors.Is(err, ErrChanged) {
		t.Fatal(err)
	}
	if n := n.Load(); n != 2 {
		t.Errorf("%d connections", n)
	}
}

// TestStalledServer: a connection without progress is replaced by another.
func TestStalledServer(t *testing.T) {
	e := newExport(8192)
	var n atomic.Int32
	addr := newScript(t, func(w *wire) {
		opened(w, false, 8192)
		silent := n.Add(1) == 1
		for r := w.request(); r.length > 0 && !silent; r = w.request() {
			w.put(uint32(simpleMagic), uint32(0), r.cookie, e.data[r.offset:r.offset+uint64(r.length)])
		}
	})
	d, err := Open(testContext(t), DiskOptions{Endpoints: []Endpoint{{Address: addr}}, Connections: 1, Stall: 500 * time.Millisecond, Pause: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	readAll(t, d, e.data, 4096, 2)
	// An idle connection is not stalled.
	time.Sleep(1100 * time.Millisecond)
	readAll(t, d, e.data, 4096, 2)
	if n := n.Load(); n != 2 {
		t.Errorf("%d connections", n)
	}
}
