package nbd

import (
	"context"
	"errors"
	"net"
	"slices"
	"sync"
	"testing"
	"time"
)

// heldExport returns zeros, after its gate is opened.
type heldExport struct {
	size    int64
	started chan struct{} // receives one value for each read that waits
	gate    chan struct{}
}

func (e *heldExport) Size() int64 { return e.size }

func (e *heldExport) ReadAt(p []byte, _ int64) (int, error) {
	select {
	case e.started <- struct{}{}:
	default:
	}
	<-e.gate
	clear(p)
	return len(p), nil
}

// startHeld serves a heldExport like xapi-nbd, and returns a channel with the
// results of its connections.
func startHeld(t *testing.T) (e *heldExport, address string, ended chan error) {
	t.Helper()
	e = &heldExport{size: 64 << 20, started: make(chan struct{}, 1), gate: make(chan struct{})}
	ended = make(chan error, 16)
	address = startServer(t, &Server{
		Open:    func(context.Context, string) (Export, error) { return e, nil },
		Profile: always(XAPI(nil)),
		Ended:   func(_ net.Addr, err error) { ended <- err },
	})
	return e, address, ended
}

const drainTestLimit = 30 * time.Second

func within[T any](t *testing.T, what string, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(drainTestLimit):
		t.Fatalf("%s: not within %v", what, drainTestLimit)
		panic("unreachable")
	}
}

// Row X8 of the fault list: a client that closes, or whose reads are cancelled,
// while replies are in progress reads these replies, sends NBD_CMD_DISC, and
// only then closes the connection. The server never writes to a closed
// connection, which would kill the real one.
func TestCloseTakesInWhatIsUnderWay(t *testing.T) {
	for name, cancelled := range map[string]bool{"closed": false, "cancelled": true} {
		t.Run(name, func(t *testing.T) {
			e, address, ended := startHeld(t)
			d, err := Open(testContext(t), DiskOptions{
				Endpoints: []Endpoint{{Address: address, ExportName: testName}}, Connections: 2, Depth: 16, Drain: drainTestLimit,
			})
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(testContext(t))
			defer cancel()
			var reads sync.WaitGroup
			failures := make(chan error, 16)
			for i := range 16 { // far more than the sockets' buffers can hold
				reads.Go(func() {
					_, err := d.ReadAt(ctx, make([]byte, 2<<20), int64(i)<<21)
					failures <- err
				})
			}
			within(t, "a read has begun", e.started)
			waitUntil(t, "the reads are under way", func() bool { return underWay(d) == 16 })
			want := ErrClosed
			if cancelled {
				cancel()
				want = context.Canceled
				reads.Wait()
			}
			closed := make(chan struct{})
			go func() {
				defer close(closed)
				_ = d.Close()
			}()
			reads.Wait() // they do not wait for the answers
			close(e.gate)
			within(t, "Close returns", closed)
			for range 16 {
				if err := <-failures; !errors.Is(err, want) {
					t.Errorf("a read under way: %v, want %v", err, want)
				}
			}
			for range 2 {
				if err := within(t, "the server sees the end", ended); err != nil {
					t.Errorf("the server's end of a connection: %v", err)
				}
			}
		})
	}
}

// underWay counts the requests of a disk that have no answer yet.
func underWay(d *Disk) int {
	n := 0
	for _, l := range d.lanes {
		l.mu.Lock()
		if c := l.conn; c != nil {
			c.mu.Lock()
			n += c.waiting
			c.mu.Unlock()
		}
		l.mu.Unlock()
	}
	return n
}

func waitUntil(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(drainTestLimit); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within %v", what, drainTestLimit)
		}
	}
}

// Row X8: Close returns even if the server has stopped answering.
func TestCloseOfDeadServerEnds(t *testing.T) {
	e, address, _ := startHeld(t)
	defer close(e.gate)
	c, err := Dial(testContext(t), Options{Address: address, ExportName: testName, Drain: 20 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	read := make(chan error, 1)
	go func() {
		_, err := c.ReadAt(testContext(t), make([]byte, 4096), 0)
		read <- err
	}()
	within(t, "the read has begun", e.started)
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		_ = c.Close()
	}()
	if err := within(t, "the read ends", read); !errors.Is(err, ErrClosed) {
		t.Errorf("read: %v", err)
	}
	within(t, "Close returns", closed)
}

// Row X8: a read that is cancelled within its answer reads the rest of it, and
// the connection stays in use.
func TestCancelledWithinAnswer(t *testing.T) {
	gate := make(chan struct{})
	first := make(chan struct{})
	e := newExport(4 << 20)
	e.fail = func(off int64, _ int) error {
		if off == 512<<10 { // the second piece of the answer
			close(first)
			<-gate
		}
		return nil
	}
	address := startServer(t, &Server{Open: e.open, Profile: always(XAPI(nil))})
	c, err := Dial(testContext(t), Options{Address: address, ExportName: testName, Drain: drainTestLimit})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx, cancel := context.WithCancel(testContext(t))
	read := make(chan error, 1)
	go func() {
		_, err := c.ReadAt(ctx, make([]byte, 1<<20), 0)
		read <- err
	}()
	within(t, "the answer has begun", first)
	waitUntil(t, "the answer comes in", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.received.Load() >= 512<<10 && slices.ContainsFunc(c.calls, func(k call) bool { return k.active })
	})
	cancel()
	close(gate)
	if err := within(t, "the read ends", read); !errors.Is(err, context.Canceled) {
		t.Errorf("read: %v", err)
	}
	if _, err := c.ReadAt(testContext(t), make([]byte, 4096), 0); err != nil {
		t.Errorf("the connection after a cancelled read: %v", err)
	}
}
