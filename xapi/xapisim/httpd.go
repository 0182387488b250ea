package xapisim

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// The server implements HTTP itself, because net/http can neither enforce the
// limits of the real server exactly nor write a second answer into a body.
const (
	maxHead = 1024      // bytes of a request's head (xen-api ocaml/xapi/xapi_globs.ml)
	maxBody = 300 << 10 // bytes of an RPC body (xen-api ocaml/xapi-consts/constants.ml)

	handshakeTimeout = 60 * time.Second
	maxConnections   = 800
)

var (
	errHeadTooLong = errors.New("request head too long")
	errBadHead     = errors.New("malformed request head")
)

// httpRequest is a parsed request head. query is decoded; header names are
// lower case.
type httpRequest struct {
	method, path, rawQuery, proto string
	query                         url.Values
	header                        map[string]string
	contentLength                 int64 // -1 when absent
}

// readHead reads a request's head of at most maxHead bytes or, if not limited,
// of up to a size that a server can handle.
func readHead(br *bufio.Reader, limited bool) (*httpRequest, error) {
	var head []byte
	limit := maxHead
	if !limited {
		limit = 64 << 10
	}
	for {
		line, err := br.ReadSlice('\n')
		head = append(head, line...)
		if len(head) > limit {
			return nil, errHeadTooLong
		}
		if err != nil {
			if err == bufio.ErrBufferFull {
				continue
			}
			if err == io.EOF && len(head) > 0 {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
		if l := bytes.TrimRight(line, "\r\n"); len(l) == 0 {
			if len(head) == len(line) { // blank lines before a request are skipped
				head = head[:0]
				continue
			}
			return parseHead(head)
		}
	}
}

// parseHead parses the bytes of a head.
func parseHead(head []byte) (*httpRequest, error) {
	lines := strings.Split(strings.TrimRight(string(head), "\r\n"), "\n")
	parts := strings.Fields(lines[0])
	if len(parts) != 3 || !strings.HasPrefix(parts[2], "HTTP/1.") {
		return nil, errBadHead
	}
	r := &httpRequest{method: parts[0], proto: parts[2], header: map[string]string{}, contentLength: -1}
	r.path, r.rawQuery, _ = strings.Cut(parts[1], "?")
	if p, err := url.PathUnescape(r.path); err == nil {
		r.path = p
	}
	r.query, _ = url.ParseQuery(r.rawQuery)
	for _, l := range lines[1:] {
		k, v, ok := strings.Cut(strings.TrimRight(l, "\r"), ":")
		if !ok {
			return nil, errBadHead
		}
		r.header[strings.ToLower(strings.TrimSpace(k))] = strings.TrimSpace(v)
	}
	if v, ok := r.header["content-length"]; ok {
		n, err := strconv.ParseInt(v, 10, 64)
		if err != nil || n < 0 {
			return nil, errBadHead
		}
		r.contentLength = n
	}
	return r, nil
}

// cookie returns a cookie's value.
func (r *httpRequest) cookie(name string) string {
	for _, part := range strings.FieldsFunc(r.header["cookie"], func(c rune) bool { return c == ';' || c == '&' }) {
		if k, v, _ := strings.Cut(strings.TrimSpace(part), "="); k == name {
			if u, err := url.QueryUnescape(v); err == nil {
				return u
			}
			return v
		}
	}
	return ""
}

// param returns a parameter from the query or a cookie; the query takes
// precedence.
func (r *httpRequest) param(name string) string {
	if v := r.query.Get(name); v != "" {
		return v
	}
	return r.cookie(name)
}

// credential returns session_id or task_id; for these the cookie takes
// precedence.
func (r *httpRequest) credential(name string) string {
	if v := r.cookie(name); v != "" {
		return v
	}
	return r.query.Get(name)
}

func (r *httpRequest) basicAuth() (user, password string, ok bool) {
	enc, ok := strings.CutPrefix(r.header["authorization"], "Basic ")
	if !ok {
		return "", "", false
	}
	b, err := base64.StdEncoding.DecodeString(enc)
	if err != nil {
		return "", "", false
	}
	return strings.Cut(string(b), ":")
}

// keepAlive reports whether the client wants to keep the connection.
func (r *httpRequest) keepAlive() bool {
	v := strings.ToLower(r.header["connection"])
	return v != "close" && (r.proto == "HTTP/1.1" || v == "keep-alive")
}

// conn is one client's connection.
type conn struct {
	net.Conn
	br   *bufio.Reader
	host *host
	pool *Pool
	ctx  context.Context
	// headEnd is the deadline of the first head while it is being read.
	headEnd time.Time
	spare   func() bool // excludes this connection from those that end when the host dies
}

// headReader reads from a connection, with the time limits of a first head.
type headReader struct{ c *conn }

func (h headReader) Read(b []byte) (int, error) {
	if end := h.c.headEnd; !end.IsZero() {
		if d := time.Now().Add(h.c.pool.cfg.HeadTimeout); d.Before(end) {
			end = d
		}
		h.c.SetReadDeadline(end)
	}
	return h.c.Conn.Read(b)
}

// serve handles connections until the listener closes.
func (h *host) serve(p *Pool, ln net.Listener) {
	slots := make(chan struct{}, maxConnections)
	for {
		nc, err := ln.Accept()
		if err != nil {
			return
		}
		select {
		case slots <- struct{}{}:
		default:
			nc.Close()
			continue
		}
		p.work.Add(1)
		go func() {
			defer p.work.Done()
			defer func() { <-slots }()
			p.mu.Lock()
			ctx, cancel := context.WithCancel(h.life)
			p.mu.Unlock()
			defer cancel()
			stop := context.AfterFunc(ctx, func() { nc.Close() })
			defer stop()
			defer nc.Close()
			c := &conn{Conn: nc, host: h, pool: p, ctx: ctx, spare: stop}
			if h.secure {
				tc := tls.Server(nc, h.tls)
				hs, done := context.WithTimeout(ctx, handshakeTimeout)
				err := tc.HandshakeContext(hs)
				done()
				if err != nil {
					return
				}
				c.Conn = tc
			}
			c.br = bufio.NewReaderSize(headReader{c}, 64<<10)
			for first := true; c.one(first); first = false {
			}
			c.Conn.Close()
		}()
	}
}

// reset closes the connection so that the peer sees a reset.
func (c *conn) reset() {
	raw := c.Conn
	if t, ok := raw.(*tls.Conn); ok {
		raw = t.NetConn()
	}
	if t, ok := raw.(*net.TCPConn); ok {
		t.SetLinger(0)
	}
	raw.Close()
}

// one handles one request and reports whether the connection stays open.
func (c *conn) one(first bool) bool {
	limited := !c.pool.cfg.Version.old() // since xapi 22.30
	if first && limited {                // each read has its time limit, and all reads together have six times as much
		c.headEnd = time.Now().Add(6 * c.pool.cfg.HeadTimeout)
	}
	r, err := readHead(c.br, limited)
	c.headEnd = time.Time{}
	var ne net.Error
	switch {
	case errors.Is(err, errHeadTooLong):
		c.page("431 Request Header Fields Too Large", "431 request header fields too large", "Exceeded the maximum header size.")
		return false
	case errors.As(err, &ne) && ne.Timeout():
		c.page("408 Request Timeout", "408 request timeout", "Timed out waiting for the request.")
		return false
	case errors.Is(err, errBadHead):
		c.page("400 Bad Request", "400 bad request", "The HTTP request was malformed.")
		return false
	case err != nil:
		return false
	}
	c.SetReadDeadline(time.Time{})
	if f := c.pool.takeHTTPFault(r); f != nil && f.Status != 0 {
		c.page(fmt.Sprintf("%d Fault", f.Status), fmt.Sprintf("%d fault", f.Status), "Scripted fault.")
		return false
	}
	for _, rt := range routes {
		if r.method == rt.method && strings.HasPrefix(r.path, rt.prefix) {
			return rt.serve(c, r)
		}
	}
	switch r.method {
	case "OPTIONS":
		c.write("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n" + keepHeader(r) + noCache + accessControl +
			"Access-Control-Allow-Methods: PUT\r\n\r\n")
		return r.keepAlive()
	case "GET", "PUT", "POST":
		c.page("403 Forbidden", "403 forbidden", "Access to the requested resource is forbidden.")
	default:
		c.page("501 Method not implemented", "501 Method Not Implemented",
			"<p>Unknown "+htmlEscape(r.method)+" not supported.<br /></p>")
	}
	return false
}

// route is a path of the server; the longest prefix takes precedence.
type route struct {
	method, prefix string
	serve          func(*conn, *httpRequest) bool
}

var routes = []route{
	{"POST", adminWrite, serveAdminWrite},
	{"POST", adminFault, serveAdminFault},
	{"POST", adminDo, serveAdminDo},
	{"POST", adminClock, serveAdminClock},
	{"POST", "/jsonrpc", (*conn).serveRPC},
	{"POST", "/", (*conn).serveRPC},
	{"GET", "/export_raw_vdi", (*conn).serveExportRaw},
	{"GET", "/export_metadata", (*conn).serveExportMetadata},
	{"GET", "/export", (*conn).serveExportVM},
	{"GET", "/pool/xmldbdump", (*conn).serveDatabase},
	{"PUT", "/import_raw_vdi", (*conn).serveImportRaw},
	{"PUT", "/import_metadata", (*conn).serveImportMetadata},
	{"PUT", "/import", (*conn).serveImportVM},
}

const (
	noCache       = "cache-control: no-cache, no-store\r\n"
	accessControl = "Access-Control-Allow-Origin: *\r\nAccess-Control-Allow-Headers: X-Requested-With\r\n"
)

func keepHeader(r *httpRequest) string {
	if r.keepAlive() {
		return "connection: keep-alive\r\n"
	}
	return "connection: close\r\n"
}

func (c *conn) write(s string) error {
	_, err := io.WriteString(c.Conn, s)
	return err
}

// page sends one of the server's error pages, after which the server closes the
// connection.
func (c *conn) page(status, title, text string, headers ...string) {
	c.write(pageText(status, title, text, headers...))
}

func pageText(status, title, text string, headers ...string) string {
	body := "<html><body><h1>HTTP " + title + "</h1>" + text + "</body></html>"
	return fmt.Sprintf("HTTP/1.1 %s\r\ncontent-length: %d\r\ncontent-type: text/html\r\nconnection: close\r\n%s%s\r\n%s",
		status, len(body), noCache, strings.Join(headers, ""), body)
}

// internalError returns the 500 page, which also appears inside broken bodies.
func internalError(detail string) string {
	return pageText("500 Internal Error", "500 internal server error",
		"An unexpected error occurred; please wait a while and try again. If the problem persists, please contact your support representative."+
			"<h1> Additional information </h1>"+htmlEscape(detail))
}

// serveRPC handles one call in JSON-RPC or XML-RPC.
func (c *conn) serveRPC(r *httpRequest) bool {
	if r.contentLength < 0 || r.contentLength > maxBody {
		c.write(internalError("Http_svr.Client_requested_size_over_limit"))
		// The rest of the body is read, so that the client receives the page
		// before a reset.
		rest := min(r.contentLength, 1<<20)
		if rest < 0 {
			rest = 64 << 10
			_ = c.SetReadDeadline(time.Now().Add(200 * time.Millisecond)) // its end is not known
		}
		_, _ = io.CopyN(io.Discard, c.br, rest)
		return false
	}
	body := make([]byte, r.contentLength)
	if _, err := io.ReadFull(c.br, body); err != nil {
		return false
	}
	parse, answer, kind := parseXMLRPC, xmlAnswer, "text/xml"
	if strings.HasPrefix(r.path, "/jsonrpc") {
		parse, answer, kind = parseJSONRPC, jsonAnswer, "application/json"
	}
	req, err := parse(body)
	if err != nil {
		c.write(internalError(err.Error()))
		return false
	}
	ctx, done := c.watch()
	res, e := c.pool.dispatch(ctx, c.host, req)
	done()
	if e != nil && e.Code == resetMark {
		c.reset()
		return false
	}
	if e != nil && e.Code == "HOST_STILL_BOOTING" {
		req.v2 = false // raised before the dispatcher, which is the only part that handles 2.0
	}
	out := answer(req, res, e)
	head := fmt.Sprintf("HTTP/1.1 200 OK\r\ncontent-length: %d\r\n%s%scontent-type: %s\r\n%s\r\n",
		len(out), keepHeader(r), noCache, kind, accessControl)
	bufs := append([]byte(head), out...)
	if _, err := c.Conn.Write(bufs); err != nil {
		return false
	}
	return r.keepAlive()
}

// watch returns a context that ends with the connection's. If a client closes
// the connection while its call waits, the server notices this when it writes
// the answer, like the real server.
func (c *conn) watch() (context.Context, func()) {
	return context.WithCancel(c.ctx)
}
