package nbd

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"testing"
	"time"
)

// rawClient is a client with manual control, to see exactly the bytes that a
// server sends.
type rawClient struct{ wire }

func dialRaw(t *testing.T, addr string, flags uint32) *rawClient {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	r := &rawClient{wire{c, t}}
	if g := r.take(greetingSize); !bytes.Equal(g, []byte("NBDMAGICIHAVEOPT\x00\x01")) {
		t.Fatalf("greeting %q", g)
	}
	r.put(flags)
	return r
}

// ask sends an option and returns the type of the only reply to it.
func (r *rawClient) ask(option uint32, data []byte) uint32 {
	r.t.Helper()
	r.put(appendOption(nil, option, data))
	h := r.take(optionReplySize)
	if h == nil {
		return 0
	}
	if be.Uint64(h) != replyMagic || be.Uint32(h[8:]) != option {
		r.t.Fatalf("reply %x", h)
	}
	r.take(int(be.Uint32(h[16:])))
	return be.Uint32(h[12:])
}

func (r *rawClient) gone() bool {
	n, err := io.Copy(io.Discard, r)
	return n == 0 && (err == nil || hungUp(err))
}

func (r *rawClient) startTLS() {
	r.t.Helper()
	if k := r.ask(optStartTLS, nil); k != repAck {
		r.t.Fatalf("starttls: %x", k)
	}
	tc := tls.Client(r.Conn, &tls.Config{InsecureSkipVerify: true})
	if err := tc.Handshake(); err != nil {
		r.t.Fatal(err)
	}
	r.Conn = tc
}

// TestXAPIForcedTLS and the tests after it cover the behaviour of xapi-nbd
// (lib/server.ml of xapi-project/nbd), line by line.
func TestXAPIForcedTLS(t *testing.T) {
	id := newIdentity(t)
	e := newExport(4096)
	addr := startServer(t, &Server{Open: e.open, Profile: always(XAPI(id.conf))})
	if !dialRaw(t, addr, 0).gone() {
		t.Error("a client without fixed newstyle is served")
	}
	r := dialRaw(t, addr, flagFixedNewstyle)
	for _, o := range []uint32{optList, optInfo, optGo, optStructuredReply, optSetMetaContext, 4711} {
		if k := r.ask(o, []byte("xyz")); k != repErrTLSRequired {
			t.Errorf("option %d in the clear: %x", o, k)
		}
	}
	r.startTLS()
	if k := r.ask(optStartTLS, nil); k != repErrInvalid {
		t.Errorf("second starttls: %x", k)
	}
	if k := r.ask(optList, nil); k != repErrPolicy {
		t.Errorf("list: %x", k)
	}
	r.put(appendOption(nil, optExportName, []byte(testName)))
	if got := r.take(10 + exportPadding); !bytes.Equal(got[:10], []byte{0, 0, 0, 0, 0, 0, 16, 0, 0, 3}) || !bytes.Equal(got[10:], make([]byte, exportPadding)) {
		t.Errorf("export information %x", got)
	}
	r = dialRaw(t, addr, flagFixedNewstyle)
	r.put(appendOption(nil, optExportName, []byte(testName)))
	if !r.gone() {
		t.Error("export name in the clear was answered")
	}
	r = dialRaw(t, addr, flagFixedNewstyle)
	r.put(appendOption(nil, optAbort, nil))
	if !r.gone() {
		t.Error("abort in the clear was answered")
	}
	r = dialRaw(t, addr, flagFixedNewstyle)
	r.startTLS()
	if k := r.ask(optAbort, nil); k != repAck {
		t.Errorf("abort: %x", k)
	}
}

func TestXAPIPlain(t *testing.T) {
	e := newExport(4096)
	addr := startServer(t, &Server{Open: e.open, Profile: always(XAPI(nil)), List: func(context.Context) ([]Listed, error) { return nil, nil }})
	r := dialRaw(t, addr, 0) // served, although the client does not set fixed newstyle
	for o, want := range map[uint32]uint32{
		optStartTLS: repErrPolicy, optList: repErrPolicy, optInfo: repErrUnsup, optGo: repErrUnsup,
		optStructuredReply: repErrUnsup, optSetMetaContext: repErrUnsup, optListMetaContext: repErrUnsup, 4711: repErrUnsup,
	} {
		if k := r.ask(o, nil); k != want {
			t.Errorf("option %d: %x, want %x", o, k, want)
		}
	}
	r.put(appendOption(nil, optExportName, []byte("/unknown")))
	if !r.gone() {
		t.Error("unknown export was answered")
	}
	if addr := startServer(t, &Server{Open: e.open, Profile: always(Profile{Drop: true})}); true {
		if _, err := Dial(testContext(t), Options{Address: addr}); !errors.Is(err, ErrBusy) {
			t.Errorf("nbd not enabled: %v", err)
		}
	}
}

func TestXAPITransmission(t *testing.T) {
	e := newExport(2 << 20)
	addr := startServer(t, &Server{Open: e.open, Profile: always(XAPI(nil))})
	open := func() *rawClient {
		r := dialRaw(t, addr, flagFixedNewstyle)
		r.put(appendOption(nil, optExportName, []byte(testName)))
		r.take(10 + exportPadding)
		return r
	}
	send := func(r *rawClient, command uint16, off uint64, n uint32) {
		b := make([]byte, requestSize)
		q := request{command: command, cookie: 77, offset: off, length: n}
		q.put(b)
		r.put(b)
	}
	answer := func(r *rawClient) Errno {
		h := r.take(simpleSize)
		if h == nil || be.Uint32(h) != simpleMagic || be.Uint64(h[8:]) != 77 {
			t.Fatalf("answer %x", h)
		}
		return Errno(be.Uint32(h[4:]))
	}
	r := open()
	before := e.reads.Load()
	send(r, cmdRead, 512, 1<<20)
	send(r, cmdRead, 0, 0)
	send(r, cmdRead, 0, 512)
	if e1 := answer(r); e1 != 0 || !bytes.Equal(r.take(1<<20), e.data[512:512+1<<20]) {
		t.Errorf("read: %v", e1)
	}
	if e2, e3 := answer(r), answer(r); e2 != 0 || e3 != 0 || !bytes.Equal(r.take(512), e.data[:512]) {
		t.Errorf("reads: %v, %v", e2, e3)
	}
	if n := e.reads.Load() - before; n != 2+1+1 {
		t.Errorf("%d reads of the disk", n)
	}
	send(r, cmdDisconnect, 0, 0)
	if !r.gone() {
		t.Error("still there after disconnect")
	}
	for _, tc := range []struct {
		command uint16
		off     uint64
		n       uint32
		want    Errno
	}{
		{cmdRead, 1, 512, EINVAL}, {cmdRead, 512, 511, EINVAL}, {cmdWrite, 0, 512, EPERM}, {cmdFlush, 0, 0, EINVAL},
		{cmdTrim, 0, 512, EINVAL}, {cmdBlockStatus, 0, 512, EINVAL}, {99, 0, 0, EINVAL},
		// Success is reported before the disk is read.
		{cmdRead, 2 << 20, 512, 0}, {cmdRead, 1 << 63, 512, 0},
	} {
		r := open()
		send(r, tc.command, tc.off, tc.n)
		if got := answer(r); got != tc.want {
			t.Errorf("%+v: %v", tc, got)
		}
		if !r.gone() {
			t.Errorf("%+v: still there", tc)
		}
	}
	eventually(t, "every detach", func() bool { return e.opened.Load() == e.closed.Load() })
}

// TestModernOptions sends the options that only clients of other projects use.
func TestModernOptions(t *testing.T) {
	e := newExport(4096)
	s := &Server{Open: e.open, Profile: always(Modern()), List: func(context.Context) ([]Listed, error) {
		return []Listed{{testName, "a disk"}}, nil
	}}
	addr := startServer(t, s)
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	r := &rawClient{wire{c, t}}
	r.take(greetingSize)
	r.put(uint32(3))
	g := goRequest{name: "unknown"}
	m := metaRequest{name: testName, queries: []string{contextAllocation}}
	for _, tc := range []struct {
		option uint32
		data   []byte
		want   uint32
	}{
		{optStartTLS, nil, repErrUnsup}, {optGo, []byte{1}, repErrInvalid}, {optGo, g.append(nil), repErrUnknown},
		{optInfo, g.append(nil), repErrUnknown}, {optList, []byte{1}, repErrInvalid},
		{optSetMetaContext, m.append(nil), repErrInvalid}, // before structured replies
		{optStructuredReply, []byte{1}, repErrInvalid}, {optStructuredReply, nil, repAck},
		{optSetMetaContext, []byte{1}, repErrInvalid}, {optList, nil, repServer},
	} {
		if k := r.ask(tc.option, tc.data); k != tc.want {
			t.Errorf("option %d %q: %x, want %x", tc.option, tc.data, k, tc.want)
		}
	}
	if n := e.opened.Load(); n != 0 {
		t.Errorf("opened %d times", n)
	}
}

// TestModernRequests: a client's mistake never ends a session that can
// continue, and no write has an effect.
func TestModernRequests(t *testing.T) {
	for _, structured := range []bool{false, true} {
		e := newExport(1 << 20)
		p := Profile{GO: true, Structured: structured, BlockStatus: structured}
		c := mustDial(t, Options{Address: startServer(t, &Server{Open: e.open, Profile: always(p)})})
		for _, tc := range []struct {
			command uint16
			off     int64
			n       int64
			want    Errno
		}{
			{cmdRead, 1 << 20, 1, EINVAL}, {cmdRead, -1, 1, EINVAL}, {cmdTrim, 0, 1, EPERM}, {cmdWriteZeroes, 0, 1, EPERM},
			{cmdCache, 0, 1, EINVAL}, {99, 0, 0, EINVAL}, {cmdBlockStatus, 0, 0, EINVAL}, {cmdFlush, 0, 0, 0},
		} {
			k, err := c.do(testContext(t), tc.command, nil, tc.off, tc.n)
			var got Errno
			errors.As(err, &got)
			if k == nil || got != tc.want || tc.want == 0 && err != nil {
				t.Errorf("structured %v, %+v: %v", structured, tc, err)
			}
			if k != nil {
				c.free <- k
			}
		}
		readAll(t, c, e.data, 4096, 2)
	}
	// A write's data is skipped.
	e := newExport(4096)
	c := mustDial(t, Options{Address: startServer(t, &Server{Open: e.open})})
	want := bytes.Clone(e.data)
	c.sendMu.Lock()
	b := make([]byte, requestSize+512)
	q := request{command: cmdWrite, cookie: 0, length: 512}
	q.put(b)
	binary.BigEndian.PutUint64(b[8:], 1<<32) // the cookie of the first call
	k := <-c.free
	c.mu.Lock()
	k.uses, k.state = 1, callWaiting
	k.command = cmdRead
	c.waiting++
	binary.BigEndian.PutUint64(b[8:], k.cookie())
	c.mu.Unlock()
	_, _ = c.nc.Write(b)
	c.sendMu.Unlock()
	<-k.done
	if !errors.Is(k.err, EPERM) {
		t.Errorf("write: %v", k.err)
	}
	c.free <- k
	readAll(t, c, want, 512, 2)
}

func TestServerStops(t *testing.T) {
	e := newExport(4096)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 4)
	stop := serveOn(t, &Server{Open: e.open, Ended: func(_ net.Addr, err error) { ended <- err }}, l)
	c := mustDial(t, Options{Address: l.Addr().String()})
	readAll(t, c, e.data, 512, 1)
	c.Close()
	if err := <-ended; err != nil {
		t.Errorf("orderly end: %v", err)
	}
	mustDial(t, Options{Address: l.Addr().String()})
	stop()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("end by the server: %v", err)
	}
	if e.opened.Load() != 2 || e.closed.Load() != 2 {
		t.Errorf("opened %d, closed %d", e.opened.Load(), e.closed.Load())
	}
}
