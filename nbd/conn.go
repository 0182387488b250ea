package nbd

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// Conn is one connection with one open export. It is safe for concurrent use;
// requests of different callers are in flight concurrently, and each answer is
// read directly into its caller's buffer.
type Conn struct {
	nc    net.Conn
	info  Info
	stall time.Duration
	drain time.Duration
	free  chan *call    // unused calls
	gone  chan struct{} // closed when err is set
	ended chan struct{} // closed when the receiver has returned

	leaving chan struct{} // closed when closing is set
	drained chan struct{} // closed when closing is set and no call is in flight

	sendMu sync.Mutex
	out    [requestSize]byte

	// received counts bytes, so that the watchdog notices progress.
	received atomic.Int64

	mu      sync.Mutex
	calls   []call
	waiting int   // calls in flight
	closing bool  // set by Close, so that the end of the connection does not count as a loss
	err     error // why the connection has ended; never changed once set
}

// receiveBuffer is small: it batches headers, while payloads bypass it.
const receiveBuffer = 4096

type callState uint8

const (
	callIdle callState = iota
	callWaiting
	// callAbandoned: its caller has returned; its answer is discarded.
	callAbandoned
)

// call is one request in flight. The number of calls is fixed; a cookie
// contains the call's index and how often it has been used, so that an answer
// to an earlier use is not mistaken for one to this use.
//
// The life of a call, and the owner of the caller's buffer p:
//
//	idle -> waiting       do: it sends the request; the receiver may write into p
//	waiting -> idle       finish, by the receiver or by fail: done is signalled, p is
//	                      the caller's again, who puts the call back into Conn.free
//	waiting -> abandoned  abandon: the caller's context ended before the answer began;
//	                      p is the caller's again, the receiver discards the answer
//	abandoned -> idle     finish: nobody waits, so that it puts the call back itself
//
// While active is set, a waiting call cannot be abandoned: the receiver is writing
// into p, and the caller waits until it has finished.
type call struct {
	index  uint32
	uses   uint32
	state  callState
	active bool // the receiver is writing into p

	command uint16
	off     int64
	length  int64
	p       []byte
	got     []span   // the parts of a read that have arrived
	extents []Extent // the result of a block status request
	told    bool     // a block status chunk has arrived
	failure error    // the first error chunk
	err     error
	done    chan struct{} // receives one value
}

func (c *call) cookie() uint64 { return uint64(c.uses)<<32 | uint64(c.index) }

func newConn(nc net.Conn, info Info, o *Options) *Conn {
	depth := o.Depth
	if depth <= 0 {
		depth = defaultDepth
	}
	depth = min(depth, maxDepth)
	c := &Conn{
		nc: nc, info: info, stall: o.stall(), drain: o.drain(),
		free:    make(chan *call, depth),
		gone:    make(chan struct{}),
		ended:   make(chan struct{}),
		leaving: make(chan struct{}),
		drained: make(chan struct{}),
		calls:   make([]call, depth),
	}
	for i := range c.calls {
		c.calls[i].index = uint32(i)
		c.calls[i].done = make(chan struct{}, 1)
		c.free <- &c.calls[i]
	}
	r := &receiver{c: c}
	r.in = bufio.NewReaderSize(countingReader{nc, &c.received}, receiveBuffer)
	go r.run()
	go c.watch()
	return c
}

type countingReader struct {
	r io.Reader
	n *atomic.Int64
}

func (r countingReader) Read(p []byte) (int, error) {
	n, err := r.r.Read(p)
	r.n.Add(int64(n))
	return n, err
}

// Info returns the server's and the export's properties from the handshake.
func (c *Conn) Info() Info { return c.info }

// Size returns the export's size in bytes.
func (c *Conn) Size() int64 { return c.info.Size }

// Err returns why the connection has ended, or nil while it is open.
func (c *Conn) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Close ends the connection. Requests in flight fail with ErrClosed
// immediately, but Close reads their answers before it sends NBD_CMD_DISC and
// closes the connection: a server that writes to a closed connection may die of
// SIGPIPE, as xapi-nbd does, and then the connections of all other clients end
// too. For a server that stops sending, Close waits no longer than
// Options.Drain.
func (c *Conn) Close() error {
	c.mu.Lock()
	if !c.closing {
		c.closing = true
		close(c.leaving)
		if c.waiting == 0 {
			close(c.drained)
		}
	}
	over := c.err != nil
	c.mu.Unlock()
	if !over && c.await(c.drained) {
		c.sendMu.Lock() // no request is in flight, so nobody holds it for long
		req := request{command: cmdDisconnect}
		req.put(c.out[:])
		_ = c.nc.SetWriteDeadline(time.Now().Add(time.Second))
		_, _ = c.nc.Write(c.out[:])
		c.sendMu.Unlock()
	}
	c.fail(ErrClosed)
	<-c.ended
	return nil
}

// drainFactor bounds the wait for a server that does send, but slowly, as a
// multiple of Options.Drain.
const drainFactor = 6

// await waits for done while the server keeps sending, within limits. It
// reports whether done was closed or received from.
func (c *Conn) await(done <-chan struct{}) bool {
	select {
	case <-done:
		return true
	default:
	}
	tick := time.NewTicker(max(c.drain/8, time.Millisecond))
	defer tick.Stop()
	start := time.Now()
	received, since := c.received.Load(), start
	for {
		select {
		case <-done:
			return true
		case <-c.gone:
			return false
		case now := <-tick.C:
			if n := c.received.Load(); n != received {
				received, since = n, now
			}
			if now.Sub(since) >= c.drain || now.Sub(start) >= drainFactor*c.drain {
				return false
			}
		}
	}
}

// fail ends the connection with the reason err, unless it has ended before.
func (c *Conn) fail(err error) {
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return
	}
	if c.closing {
		err = ErrClosed
	}
	c.err = err
	close(c.gone)
	for i := range c.calls {
		// The receiver finishes the call whose buffer it is writing to.
		if k := &c.calls[i]; k.state == callWaiting && !k.active {
			c.finish(k, err)
		}
	}
	c.mu.Unlock()
	c.nc.Close()
}

// finish ends a call; c.mu must be held.
func (c *Conn) finish(k *call, err error) {
	abandoned := k.state == callAbandoned
	k.state, k.p, k.err = callIdle, nil, err
	c.waiting--
	if c.closing && c.waiting == 0 {
		close(c.drained) // no call begins after closing is set
	}
	if abandoned {
		c.free <- k // has capacity for all calls
		return
	}
	k.done <- struct{}{}
}

// watch ends the connection if an answer is pending and no data arrive.
func (c *Conn) watch() {
	tick := time.NewTicker(max(c.stall/4, time.Millisecond))
	defer tick.Stop()
	var received int64
	since := time.Now()
	for {
		select {
		case <-c.gone:
			return
		case now := <-tick.C:
			c.mu.Lock()
			n, waiting := c.received.Load(), c.waiting
			c.mu.Unlock()
			if waiting == 0 || n != received {
				received, since = n, now
			} else if now.Sub(since) >= c.stall {
				c.fail(fmt.Errorf("%d requests without an answer for %v: %w", waiting, c.stall, ErrStalled))
				return
			}
		}
	}
}

// acquire takes an unused call.
func (c *Conn) acquire(ctx context.Context) (*call, error) {
	select {
	case k := <-c.free:
		return k, nil
	default:
	}
	select {
	case k := <-c.free:
		return k, nil
	case <-c.gone:
		return nil, c.Err()
	case <-c.leaving:
		return nil, ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// do sends one request and waits for its answer. When it returns, nothing
// writes to p any more. It returns the call to the caller, who reads its
// results and puts it back into c.free; the call is nil if none was available,
// or if its answer is still to come.
func (c *Conn) do(ctx context.Context, command uint16, p []byte, off, length int64) (*call, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	k, err := c.acquire(ctx)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	if c.err != nil || c.closing {
		err := c.err
		if err == nil {
			err = ErrClosed
		}
		c.mu.Unlock()
		c.free <- k
		return nil, err
	}
	k.uses++
	k.state, k.active = callWaiting, false
	k.command, k.off, k.length, k.p = command, off, length, p
	k.got, k.extents, k.told, k.failure, k.err = k.got[:0], nil, false, nil, nil
	c.waiting++
	req := request{command: command, cookie: k.cookie(), offset: uint64(off), length: uint32(length)}
	c.mu.Unlock()

	c.sendMu.Lock()
	req.put(c.out[:])
	_, err = c.nc.Write(c.out[:])
	c.sendMu.Unlock()
	if err != nil {
		c.fail(lost("send request", err))
	}
	select {
	case <-k.done:
		return k, k.err
	case <-ctx.Done():
		return c.abandon(ctx.Err(), k)
	case <-c.leaving:
		return c.abandon(ErrClosed, k)
	}
}

// abandon cancels a request whose caller no longer waits for it, with the
// reason why; its answer is discarded when it arrives. If the answer is
// arriving at this moment, abandon waits for its end, because p must belong to
// the caller again, and because the server must not write to a closed
// connection. It closes the connection only if the server stops sending within
// the answer.
func (c *Conn) abandon(why error, k *call) (*call, error) {
	c.mu.Lock()
	if k.state == callWaiting && !k.active {
		k.state, k.p = callAbandoned, nil
		c.mu.Unlock()
		return nil, why
	}
	c.mu.Unlock()
	if !c.await(k.done) {
		c.fail(fmt.Errorf("cancelled within an answer: %w", ErrLost))
		<-k.done
	}
	return k, why
}

func lost(what string, err error) error {
	if errors.Is(err, ErrProtocol) || errors.Is(err, ErrLost) {
		return err
	}
	// The cause may be io.EOF, which a caller would take for the end of the
	// export.
	return fmt.Errorf("%s: %w: %v", what, ErrLost, err)
}

// ReadAt fills p from byte offset off. Offset and length need not be aligned.
// It either reads all of p or returns an error, io.EOF if p reaches beyond the
// export. After an error, or after ctx has ended, p's content is undefined, and
// nothing writes to it.
func (c *Conn) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	want := len(p)
	if off < 0 || off > c.info.Size {
		return 0, fmt.Errorf("read at %d: beyond the export's %d bytes", off, c.info.Size)
	}
	p = p[:min(int64(want), c.info.Size-off)]
	n := 0
	for n < len(p) {
		m, err := c.readSome(ctx, p[n:], off+int64(n))
		if err != nil {
			return n, err
		}
		n += m
	}
	if n < want {
		return n, io.EOF
	}
	return n, nil
}

// readSome reads a first part of p with one request.
func (c *Conn) readSome(ctx context.Context, p []byte, off int64) (int, error) {
	align := c.info.MinBlock
	skip := off % align
	length := int64(len(p))
	if skip == 0 && length >= align {
		length = min(length, c.info.MaxPayload)
		// If the end of an export is not a whole number of blocks, it can only
		// be requested with its exact length.
		if off+length != c.info.Size {
			length -= length % align
		}
		return int(length), c.read(ctx, p[:length], off)
	}
	// The head or the tail of an unaligned read: a block of its own.
	start := off - skip
	block := make([]byte, min(align, c.info.Size-start))
	if err := c.read(ctx, block, start); err != nil {
		return 0, err
	}
	return copy(p, block[skip:]), nil
}

func (c *Conn) read(ctx context.Context, p []byte, off int64) error {
	k, err := c.do(ctx, cmdRead, p, off, int64(len(p)))
	if k != nil {
		c.free <- k
	}
	if err != nil {
		return fmt.Errorf("read %d bytes at %d: %w", len(p), off, err)
	}
	return nil
}

// maxStatusRequest is the longest range of one status request: 32 bits,
// aligned.
const maxStatusRequest = 1 << 31

// Extents returns the allocation of length bytes at off: extents in order
// without gaps, of which adjacent ones differ. It fails with ErrNoAllocation if
// the server does not report allocation.
func (c *Conn) Extents(ctx context.Context, off, length int64) ([]Extent, error) {
	if !c.info.Allocation {
		return nil, ErrNoAllocation
	}
	if off < 0 || length < 0 || off > c.info.Size || length > c.info.Size-off {
		return nil, fmt.Errorf("extents of %d bytes at %d: beyond the export's %d bytes", length, off, c.info.Size)
	}
	align := c.info.MinBlock
	var all []Extent
	for end := off + length; off < end; {
		start := off - off%align
		stop := min((end+align-1)/align*align, start+maxStatusRequest, c.info.Size)
		k, err := c.do(ctx, cmdBlockStatus, nil, start, stop-start)
		var some []Extent
		if k != nil {
			// After a failure the receiver may still be using the call.
			if err == nil {
				some = k.extents
			}
			c.free <- k
		}
		if err != nil {
			return nil, fmt.Errorf("extents of %d bytes at %d: %w", stop-start, start, err)
		}
		before := off
		for _, e := range some {
			a, b := max(e.Offset, off), min(e.End(), end)
			if a < b {
				e.Offset, e.Length = a, b-a
				all = appendExtent(all, e)
				off = b
			}
		}
		if off == before {
			return nil, fmt.Errorf("extents at %d: %w: answer does not reach the range", off, ErrProtocol)
		}
	}
	return all, nil
}
