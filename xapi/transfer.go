package xapi

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

const (
	// maxHead is the limit of hosts for the head of a request; beyond it they
	// answer 431 (xen-api ocaml/xapi/xapi_globs.ml).
	maxHead = 1024
	// maxPage bounds how much the client reads of an HTML error page, or of an
	// answer embedded in a stream.
	maxPage = 64 << 10
	// maxAnswerHead bounds the head of an answer, which is a few hundred bytes.
	maxAnswerHead = 256 << 10
	maxRedirects  = 5
	// refusalWait is how long the client waits for the task to report why a
	// request was refused; some tasks never do.
	refusalWait  = time.Second
	streamBuffer = 256 << 10
)

// stream is the connection of one bulk request. It enforces deadlines and
// cancellation, which appear as errors of reads and writes.
type stream struct {
	conn   net.Conn
	in     *bufio.Reader
	stall  time.Duration
	reason atomic.Pointer[error] // why we cut the connection
	unhook func() bool
	ended  func(received, sent int64) // called once, when the stream is closed

	// head is how many bytes may still be read before the head of the answer is
	// complete; 0 means that it is, -1 that it is too long.
	head int64

	received, sent atomic.Int64
	closed         atomic.Bool

	armedRead, armedWrite time.Time
}

// errEndedEarly: the host answered before it had read the body.
var errEndedEarly = errors.New("host ended the request early")

// errLongHead: the head of an answer does not end.
var errLongHead = errors.New("the head of the answer is too long")

func (c *Client) connect(ctx context.Context, addr string, stall time.Duration) (*stream, error) {
	conn, err := c.dial(ctx, addr)
	var untrusted *UntrustedHostError
	if errors.As(err, &untrusted) && c.trust.pinned() {
		// The host may have a certificate that is newer than our login.
		certs, cerr := c.Certificates(ctx)
		if cerr != nil {
			return nil, err
		}
		for _, cert := range certs {
			c.trust.learn(cert)
		}
		conn, err = c.dial(ctx, addr)
	}
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", addr, err)
	}
	s := &stream{conn: conn, stall: stall}
	s.in = bufio.NewReaderSize(s, streamBuffer)
	s.unhook = context.AfterFunc(ctx, func() { s.cut(context.Cause(ctx)) })
	return s, nil
}

// cut closes the connection; blocked reads and writes then return reason.
func (s *stream) cut(reason error) {
	s.reason.CompareAndSwap(nil, &reason)
	if t, ok := s.conn.(*tls.Conn); ok {
		_ = t.NetConn().Close() // without the TLS close_notify, which could block
		return
	}
	_ = s.conn.Close()
}

// interrupt makes current and future writes fail, while reads continue.
func (s *stream) interrupt(reason error) {
	s.reason.CompareAndSwap(nil, &reason)
	_ = s.conn.SetWriteDeadline(time.Unix(1, 0))
}

func (s *stream) close() {
	s.unhook()
	_ = s.conn.Close()
	if s.ended != nil && s.closed.CompareAndSwap(false, true) {
		s.ended(s.received.Load(), s.sent.Load())
	}
}

// Read reads from the connection; without progress for too long, it returns
// ErrStalled. A missing TLS close_notify is treated as the end of the data: the
// format and the task show whether the data are complete.
func (s *stream) Read(p []byte) (int, error) {
	if now := time.Now(); now.Sub(s.armedRead) > s.stall/16 {
		s.armedRead = now
		if err := s.conn.SetReadDeadline(now.Add(s.stall)); err != nil {
			return 0, s.explain(err)
		}
	}
	n, err := s.conn.Read(p)
	s.received.Add(int64(n))
	if s.head > 0 {
		if s.head -= int64(n); s.head <= 0 {
			s.head = -1
		}
	}
	if s.head < 0 {
		return 0, errLongHead
	}
	if err != nil {
		if err == io.ErrUnexpectedEOF && s.reason.Load() == nil {
			err = io.EOF
		}
		err = s.explain(err)
	}
	return n, err
}

// Write writes to the connection, with the same time limit.
func (s *stream) Write(p []byte) (int, error) {
	// Writes are split into pieces, so that a slow connection that makes
	// progress is not mistaken for a stalled one.
	const piece = 1 << 20
	done := 0
	for done < len(p) {
		if reason := s.reason.Load(); reason != nil {
			return done, *reason
		}
		if now := time.Now(); now.Sub(s.armedWrite) > s.stall/16 {
			s.armedWrite = now
			if err := s.conn.SetWriteDeadline(now.Add(s.stall)); err != nil {
				return done, s.explain(err)
			}
			if reason := s.reason.Load(); reason != nil { // interrupted meanwhile
				_ = s.conn.SetWriteDeadline(time.Unix(1, 0))
			}
		}
		n, err := s.conn.Write(p[done:min(len(p), done+piece)])
		done += n
		s.sent.Add(int64(n))
		if err != nil {
			return done, s.explain(err)
		}
	}
	return done, nil
}

func (s *stream) explain(err error) error {
	if err == io.EOF {
		return err
	}
	if reason := s.reason.Load(); reason != nil {
		return *reason
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return &stalledError{s.stall}
	}
	return err
}

// stalledError is ErrStalled with the time that was allowed.
type stalledError struct{ allowed time.Duration }

func (e *stalledError) Error() string {
	return fmt.Sprintf("stalled: no data moved for %v, and no more is allowed", e.allowed)
}

func (e *stalledError) Unwrap() error { return ErrStalled }
func (e *stalledError) Hint() string {
	return "look at the host and at the storage of the SR: xe task-list, and /var/log/SMlog and /var/log/xensource.log on the host, and run it again"
}

// bulk is a GET or PUT of bulk data. Query holds all parameters except the
// session.
type bulk struct {
	method, path string
	query        [][2]string
	length       int64 // of a PUT's body; -1 omits the length
	stall        time.Duration
}

// open sends the head of a bulk request to addr and follows redirects (hosts
// send them before they touch the body or the task). It returns the first other
// answer, whose body has not been read. If the host refuses the session, open
// renews it once.
func (c *Client) open(ctx context.Context, addr string, req bulk) (*stream, *http.Response, string, error) {
	renewed := false
	for hops := 0; ; hops++ {
		session, _ := c.current()
		s, resp, err := c.send(ctx, addr, session, req)
		if err != nil {
			return nil, nil, addr, err
		}
		switch resp.StatusCode {
		case http.StatusMovedPermanently, http.StatusFound, http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
			s.close()
			next, err := c.redirect(resp.Header.Get("Location"))
			if err == nil && hops < maxRedirects && !c.inPool(ctx, next) {
				return nil, nil, addr, &HTTPError{Host: addr, Method: req.method, Path: req.path, Status: resp.StatusCode, Text: fmt.Sprintf("the redirect leads to %q, which is no host of the pool: the session is not sent there", next)}
			}
			if err != nil || hops >= maxRedirects {
				return nil, nil, addr, &HTTPError{Host: addr, Method: req.method, Path: req.path, Status: resp.StatusCode, Text: "redirects lead nowhere"}
			}
			c.debug().Debug("pool: redirected", "request", req.method+" "+req.path, "from", addr, "to", next)
			addr = next
		case http.StatusUnauthorized:
			if renewed {
				return s, resp, addr, nil
			}
			s.close()
			renewed = true
			if err := c.logInAgain(ctx, session, ""); err != nil {
				return nil, nil, addr, err
			}
		default:
			return s, resp, addr, nil
		}
	}
}

// redirect returns the address in a Location header, which contains the bare
// address of a host, and whose scheme is always https. We keep our own scheme.
func (c *Client) redirect(location string) (string, error) {
	u, err := url.Parse(location)
	if err != nil || u.Hostname() == "" {
		return "", errors.New("no host in the redirect")
	}
	port := u.Port()
	if port == "" {
		port = c.port
	}
	return net.JoinHostPort(u.Hostname(), port), nil
}

// send sends the head of a bulk request, reads the head of the answer, and
// traces both and the end of the transfer.
func (c *Client) send(ctx context.Context, addr string, session Ref, req bulk) (*stream, *http.Response, error) {
	began := time.Now()
	s, resp, err := c.sendHead(ctx, addr, session, req)
	if c.cfg.Trace == nil {
		return s, resp, err
	}
	e := TraceEvent{Kind: TraceHTTP, Host: addr, Method: req.method + " " + req.path}
	for _, kv := range req.query { // references, UUIDs and formats
		e.Args = append(e.Args, kv[0]+"="+kv[1])
	}
	end := e
	if resp != nil {
		e.Result = strconv.Itoa(resp.StatusCode)
	}
	c.trace(began, e, session, err)
	if s != nil {
		s.ended = func(received, sent int64) {
			end.Kind, end.Received, end.Sent = TraceTransfer, received, sent
			var cause error
			if reason := s.reason.Load(); reason != nil {
				cause = *reason
			}
			c.trace(began, end, session, cause)
		}
	}
	return s, resp, err
}

func (c *Client) sendHead(ctx context.Context, addr string, session Ref, req bulk) (*stream, *http.Response, error) {
	var head strings.Builder
	head.WriteString(req.method + " " + req.path + "?session_id=" + url.QueryEscape(string(session)))
	for _, kv := range req.query {
		head.WriteString("&" + kv[0] + "=" + url.QueryEscape(kv[1]))
	}
	head.WriteString(" HTTP/1.1\r\nHost: " + addr + "\r\nUser-Agent: " + strings.Map(printable, c.cfg.UserAgent) + "\r\n")
	if req.method == http.MethodPut && req.length >= 0 {
		head.WriteString("Content-Length: " + strconv.FormatInt(req.length, 10) + "\r\n")
	}
	head.WriteString("\r\n")
	if head.Len() > maxHead {
		return nil, nil, fmt.Errorf("%s %s: %w", req.method, req.path, ErrHeadTooLong)
	}
	s, err := c.connect(ctx, addr, req.stall)
	if err != nil {
		return nil, nil, err
	}
	if _, err = io.WriteString(s, head.String()); err == nil {
		var resp *http.Response
		s.head = maxAnswerHead + streamBuffer // the buffer may contain the start of the body
		if resp, err = http.ReadResponse(s.in, &http.Request{Method: req.method}); err == nil {
			s.head = 0
			return s, resp, nil
		}
	}
	s.close()
	if s.head < 0 {
		err = errLongHead // whatever its last line looks like
	}
	return nil, nil, fmt.Errorf("%s %s on %s: %w", req.method, req.path, addr, s.explain(err))
}

// refusal builds an error from an answer other than 200, with the task's error
// if it has one: some refusals never touch the task.
func (c *Client) refusal(ctx context.Context, s *stream, resp *http.Response, addr string, req bulk, task Ref) error {
	page, _ := io.ReadAll(io.LimitReader(resp.Body, maxPage))
	s.close()
	e := &HTTPError{Host: addr, Method: req.method, Path: req.path, Status: resp.StatusCode, Text: pageText(page)}
	session, _ := c.current()
	e.Text = strings.ReplaceAll(e.Text, string(session), "(session)")
	if verr := c.verdict(ctx, task, refusalWait); verr != nil {
		var pe *Error
		if errors.As(verr, &pe) {
			e.Cause = pe
		}
	}
	if pe := ParseErrorPage(page); e.Cause == nil && pe != nil {
		e.Cause = c.redact(pe, session)
	}
	return e
}

// verdict waits up to limit for the end of a transfer's task, and returns the
// task's error, if any.
func (c *Client) verdict(ctx context.Context, task Ref, limit time.Duration) error {
	wait, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	_, err := c.WaitTask(wait, task)
	if ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded) {
		return ErrNoVerdict
	}
	return err
}

// address returns the address to send a request to: the one that the caller
// chose, or else a host that can reach the disk, which avoids a redirect.
func (c *Client) address(ctx context.Context, host string, vdi Ref) (string, error) {
	if host != "" {
		return c.hostPort(host), nil
	}
	var sr Ref
	if err := c.Call(ctx, "VDI.get_SR", &sr, vdi); err != nil {
		return "", err
	}
	hosts, err := c.HostsFor(ctx, sr)
	if err != nil {
		return "", err
	}
	if hosts[0].Address == "" {
		return c.Master(), nil
	}
	return c.hostPort(hosts[0].Address), nil
}
