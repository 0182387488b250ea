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

// Conn is one connection with one export open. Its methods may be called from
// any number of goroutines; requests of different callers are under way at
// once, and each answer goes straight into its caller's buffer.
type Conn struct {
	nc    net.Conn
	info  Info
	stall time.Duration
	drain time.Duration
	free  chan *call    // calls nobody uses
	gone  chan struct{} // closed when err is set
	ended chan struct{} // closed when the receiver has returned

	leaving chan struct{} // closed when closing is set
	drained chan struct{} // closed when closing is set and no call is under way

	sendMu sync.Mutex
	out    [requestSize]byte

	// received counts bytes, so that the watchdog sees progress.
	received atomic.Int64

	mu      sync.Mutex
	calls   []call
	waiting int   // calls under way
	closing bool  // by Close, so that the server's hanging up is no loss
	err     error // why the connection is over; stays
}

// receiveBuffer is small: it batches headers, while payloads pass it by.
const receiveBuffer = 4096

type callState uint8

const (
	callIdle callState = iota
	callWaiting
	// callAbandoned: its caller is gone, its answer is thrown away.
	callAbandoned
)

// call is one request under way. There is a fixed number of them; a cookie
// holds the call's place and how often it was used, so that an answer to an
// earlier use is not taken for one to this.
type call struct {
	index  uint32
	uses   uint32
	state  callState
	active bool // the receiver is writing into p

	command uint16
	off     int64
	length  int64
	p       []byte
	got     []span   // what of a read has arrived
	extents []Extent // what a block status said
	told    bool     // a block status chunk has arrived
	failure error    // the first error chunk
	err     error
	done    chan struct{} // takes one
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

// Info is what the handshake told of the server and the export.
func (c *Conn) Info() Info { return c.info }

// Size is the export's size in bytes.
func (c *Conn) Size() int64 { return c.info.Size }

// Err is why the connection is over, nil while it is not.
func (c *Conn) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Close ends the connection. Requests under way fail with ErrClosed at once,
// but Close takes in their answers before it sends NBD_CMD_DISC and hangs up: a
// server that writes to a closed connection may die of SIGPIPE, as xapi-nbd
// does, and takes the connections of all other clients with it. A server that
// stops answering is waited for no longer than Options.Drain.
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
		c.sendMu.Lock() // no request is under way, so nobody keeps it for long
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

// drainFactor is how many times Options.Drain a server that does send, but
// slowly, is waited for.
const drainFactor = 6

// await waits for done as long as the server keeps sending, within limits. It
// reports whether done came.
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

// fail ends the connection for the reason err, unless it has ended before.
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

// finish ends a call; c.mu is held.
func (c *Conn) finish(k *call, err error) {
	abandoned := k.state == callAbandoned
	k.state, k.p, k.err = callIdle, nil, err
	c.waiting--
	if c.closing && c.waiting == 0 {
		close(c.drained) // no call begins once closing is set
	}
	if abandoned {
		c.free <- k // has room for all calls
		return
	}
	k.done <- struct{}{}
}

// watch ends the connection when an answer is owed and nothing comes.
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

// acquire takes a free call.
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

// do sends one request and waits for its answer. On return nothing writes to
// p any more. The call comes back to the caller, who reads its results and
// gives it to c.free; it is nil if there was none to be had, or if its answer
// is still to come.
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

// abandon gives up a request whose caller no longer wants it, for the reason
// why; its answer is thrown away when it comes. If the answer is coming in just
// now, abandon waits for the end of it, because p must be the caller's again,
// and because the server must not write to a closed connection. Only if the
// server stops sending within the answer is the connection given up.
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
	// The cause may be io.EOF, which would read as the end of the export.
	return fmt.Errorf("%s: %w: %v", what, ErrLost, err)
}

// ReadAt fills p from byte offset off. Offset and length need not be aligned.
// It ends with all of p read or with an error, io.EOF if p reaches beyond the
// export. After an error, or after ctx has ended, p's content is undefined,
// and nothing writes to it.
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
		// The end of an export that is not a whole number of blocks can only
		// be asked for as it is.
		if off+length != c.info.Size {
			length -= length % align
		}
		return int(length), c.read(ctx, p[:length], off)
	}
	// The head or the tail of an unaligned read: one block of its own.
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

// maxStatusRequest is the longest range asked for at once: 32 bits, aligned.
const maxStatusRequest = 1 << 31

// Extents tells what is known of length bytes at off: extents in order without
// gaps, neighbours different. It fails with ErrNoAllocation if the server does
// not tell.
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
			// After a failure the receiver may still be at it.
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
