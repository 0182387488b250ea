package nbd

import (
	"bytes"
	"context"
	"errors"
	"net"
	"reflect"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// FuzzMessages checks that the encoder reproduces every message that a decoder
// accepts.
func FuzzMessages(f *testing.F) {
	g := goRequest{testName, []uint16{infoBlockSize, infoName}}
	m := metaRequest{testName, []string{contextAllocation, "base:"}}
	r := request{cmdFlagDF, cmdRead, 1 << 40, 1 << 50, 4096}
	b := make([]byte, requestSize)
	r.put(b)
	c := chunk{chunkDone, chunkData, 9, 100}
	cb := make([]byte, structuredSize)
	c.put(cb)
	for _, s := range [][]byte{g.append(nil), m.append(nil), b, cb, {0, 0, 2, 0, 0, 0, 0, 3}, {0, 0, 0, 5, 0, 1, 'x'}} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if g, err := parseGoRequest(b); err == nil && !bytes.Equal(g.append(nil), b) {
			t.Errorf("go %+v", g)
		}
		if m, err := parseMetaRequest(b); err == nil && !bytes.Equal(m.append(nil), b) {
			t.Errorf("meta %+v", m)
		}
		if r, err := parseRequest(b); err == nil {
			out := make([]byte, requestSize)
			if r.put(out); !bytes.Equal(out, b[:requestSize]) {
				t.Errorf("request %+v", r)
			}
		}
		if c, err := parseChunk(b); err == nil {
			out := make([]byte, structuredSize)
			if c.put(out); !bytes.Equal(out, b[:structuredSize]) {
				t.Errorf("chunk %+v", c)
			}
		}
		if ext, err := parseStatus(nil, b, 1000, 5000); err == nil {
			at := int64(1000)
			for _, e := range ext {
				if e.Offset != at || e.Length <= 0 {
					t.Errorf("extents %v", ext)
				}
				at = e.End()
			}
			if at > 5000 {
				t.Errorf("extents %v", ext)
			}
		}
		for _, kind := range []uint16{chunkError, chunkErrorOffset} {
			if errno, msg, err := parseErrorChunk(kind, b); err == nil && (errno == 0 || len(msg) > len(b)-6) {
				t.Errorf("error chunk %v %q", errno, msg)
			}
		}
	})
}

// FuzzSpans compares the ranges that have arrived with a plain table.
func FuzzSpans(f *testing.F) {
	f.Add([]byte{0, 4, 8, 4, 4, 4, 2, 1})
	f.Add([]byte{10, 1, 8, 1, 6, 1, 7, 1, 9, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		var table [600]bool
		var got []span
		for ; len(b) >= 2; b = b[2:] {
			from, n := int64(b[0]), int64(b[1])+1
			taken := false
			for i := from; i < from+n; i++ {
				taken = taken || table[i]
			}
			var err error
			if got, err = addSpan(got, from, from+n); (err != nil) != taken {
				t.Fatalf("[%d,%d) in %v: %v", from, from+n, got, err)
			}
			if err == nil {
				for i := from; i < from+n; i++ {
					table[i] = true
				}
			}
			var want []span
			for i := int64(0); i < int64(len(table)); i++ {
				if !table[i] {
					continue
				}
				if k := len(want) - 1; k >= 0 && want[k].to == i {
					want[k].to++
				} else {
					want = append(want, span{i, i + 1})
				}
			}
			if !reflect.DeepEqual(got, want) {
				t.Fatalf("%v, want %v", got, want)
			}
		}
	})
}

// FuzzClient sends arbitrary bytes to a client. It may fail only with the
// errors of this package, and a read that succeeds after a handshake has been
// answered.
func FuzzClient(f *testing.F) {
	ack := appendOptionReply(nil, optStructuredReply, repAck, nil)
	ack = appendOptionReply(ack, optSetMetaContext, repMetaContext, append([]byte{0, 0, 0, 1}, contextAllocation...))
	ack = appendOptionReply(ack, optSetMetaContext, repAck, nil)
	head := append([]byte("NBDMAGICIHAVEOPT\x00\x01"), ack...)
	head = appendOptionReply(head, optGo, repInfo, []byte{0, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 3})
	head = appendOptionReply(head, optGo, repAck, nil)
	c := chunk{0, chunkHole, 1 << 32, 12}
	b := make([]byte, structuredSize)
	c.put(b)
	hole := append(append(bytes.Clone(head), b...), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 16, 0)
	c = chunk{chunkDone, chunkNone, 1 << 32, 0}
	c.put(b)
	f.Add(append(hole, b...))
	f.Add(head)
	old := append([]byte("NBDMAGICIHAVEOPT\x00\x03"), appendOptionReply(nil, optStructuredReply, repErrUnsup, nil)...)
	old = appendOptionReply(old, optGo, repErrUnsup, []byte("no"))
	old = append(old, 0, 0, 0, 0, 0, 0, 16, 0, 0, 3)
	s := make([]byte, simpleSize)
	putSimple(s, 0, 1<<32)
	f.Add(append(append(old, s...), make([]byte, 4096)...))
	f.Fuzz(func(t *testing.T, server []byte) {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		conn, err := Dial(ctx, Options{Address: "fuzz", Stall: 5 * time.Second, Dial: func(context.Context, string, string) (net.Conn, error) {
			return &playback{in: bytes.NewReader(server), gate: make(chan struct{})}, nil
		}})
		if err == nil {
			defer conn.Close()
			p := bytes.Repeat([]byte{1}, int(min(conn.Size(), 4096)))
			_, err = conn.ReadAt(ctx, p, 0)
			if err == nil && len(p) > 0 && !bytes.Contains(server, []byte{0, 0, 0, 1, 0, 0, 0, 0}) {
				t.Error("read without an answer to the first request")
			}
			if err == nil {
				_, err = conn.Extents(ctx, 0, conn.Size())
			}
		}
		var re *RemoteError
		if err != nil && !errors.As(err, &re) {
			for _, known := range []error{ErrRefused, ErrTLS, ErrLost, ErrProtocol, ErrNoAllocation} {
				if errors.Is(err, known) {
					return
				}
			}
			t.Errorf("error of no class: %v", err)
		}
	})
}

// playback is a connection whose other side always sends the same bytes,
// whatever it receives. With a gate, the bytes after the handshake, whose end
// is detected by the removal of the deadline, are sent only after the first
// request.
type playback struct {
	net.Conn
	in     *bytes.Reader
	gate   chan struct{}
	opened sync.Once
	shaken atomic.Bool
}

func (p *playback) Read(b []byte) (int, error) {
	if p.gate != nil && p.shaken.Load() {
		<-p.gate
	}
	return p.in.Read(b)
}

func (p *playback) Write(b []byte) (int, error) {
	if len(b) == requestSize && be.Uint32(b) == requestMagic {
		p.open()
	}
	return len(b), nil
}

func (p *playback) SetDeadline(t time.Time) error {
	p.shaken.Store(t.IsZero())
	return nil
}

func (p *playback) open() {
	if p.gate != nil {
		p.opened.Do(func() { close(p.gate) })
	}
}

func (p *playback) Close() error                     { p.open(); return nil }
func (p *playback) SetWriteDeadline(time.Time) error { return nil }
func (p *playback) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (p *playback) RemoteAddr() net.Addr             { return &net.TCPAddr{} }

// FuzzServer sends arbitrary bytes to a server. It must end, close every export
// that it opened, and send no data without the export's name.
func FuzzServer(f *testing.F) {
	g := goRequest{name: testName}
	m := metaRequest{testName, []string{contextAllocation}}
	hello := []byte{0, 0, 0, 1}
	full := appendOption(bytes.Clone(hello), optStructuredReply, nil)
	full = appendOption(full, optSetMetaContext, m.append(nil))
	full = appendOption(full, optList, nil)
	full = appendOption(full, optInfo, g.append(nil))
	full = appendOption(full, optGo, g.append(nil))
	for _, command := range []uint16{cmdRead, cmdBlockStatus, cmdWrite, cmdDisconnect} {
		b := make([]byte, requestSize)
		r := request{command: command, cookie: 5, length: 512}
		r.put(b)
		full = append(full, b...)
		if command == cmdWrite {
			full = append(full, make([]byte, 512)...)
		}
	}
	f.Add(full, true)
	f.Add(full, false)
	f.Add(appendOption(bytes.Clone(hello), optStartTLS, nil), false)
	f.Add(append(appendOption(bytes.Clone(hello), optExportName, []byte(testName)), full[len(full)-requestSize:]...), false)
	f.Fuzz(func(t *testing.T, client []byte, modern bool) {
		e := newExport(8192)
		p := XAPI(nil)
		if modern {
			p = Modern()
		}
		s := &Server{Open: e.open, Profile: always(p)}
		_ = s.ServeConn(context.Background(), &playback{in: bytes.NewReader(client)})
		if e.opened.Load() != e.closed.Load() {
			t.Errorf("opened %d, closed %d", e.opened.Load(), e.closed.Load())
		}
		if e.opened.Load() > 0 && !bytes.Contains(client, []byte(testName)) {
			t.Error("export opened without its name")
		}
	})
}
