package xapi_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"xenkeep/xapi"
)

// noise returns n bytes of reproducible data.
func noise(n int) []byte {
	out := make([]byte, 0, n+32)
	for i := uint64(1); len(out) < n; i++ {
		sum := sha256.Sum256(strconv.AppendUint(nil, i, 10))
		out = append(out, sum[:]...)
	}
	return out[:n]
}

func export(t *testing.T, c *xapi.Client, opts xapi.ExportOptions) ([]byte, error) {
	t.Helper()
	opts.VDI = "OpaqueRef:vdi"
	e, err := c.ExportVDI(t.Context(), opts)
	if err != nil {
		return nil, err
	}
	defer e.Close(t.Context())
	var data bytes.Buffer
	if _, err := io.CopyBuffer(&data, struct{ io.Reader }{e}, make([]byte, 1<<20)); err != nil {
		ferr := e.Finish(t.Context())
		if ferr == nil {
			t.Errorf("reading failed (%v), the verdict is good", err)
		}
		return data.Bytes(), ferr
	}
	if e.Received() != int64(data.Len()) {
		t.Errorf("received %d, counted %d", data.Len(), e.Received())
	}
	return data.Bytes(), e.Finish(t.Context())
}

func TestExport(t *testing.T) {
	want := append([]byte("conectix"), noise(3<<20+17)...)
	for _, useTLS := range []bool{false, true} {
		p := newFake(t, 2, useTLS)
		p.certs = true
		var query string
		p.bulk = func(w http.ResponseWriter, r *http.Request) {
			query = r.URL.RawQuery
			conn, rw := hijack(t, w)
			defer conn.Close()
			_, _ = io.WriteString(rw, okHead)
			_, _ = rw.Write(want)
			p.endTask(r, "success", "<value/>")
		}
		got, err := export(t, p.dial(), xapi.ExportOptions{Base: "OpaqueRef:base"})
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("TLS %v: %d of %d bytes, %v", useTLS, len(got), len(want), err)
		}
		for _, part := range []string{"session_id=OpaqueRef%3Asession-", "task_id=OpaqueRef%3Atask-", "vdi=OpaqueRef%3Avdi", "format=vhd", "base=OpaqueRef%3Abase"} {
			if !strings.Contains(query, part) {
				t.Errorf("query %s lacks %s", query, part)
			}
		}
		p.noTasks()
	}
}

// TLS streams of old stunnels end without close_notify; this is a valid end
// too.
func TestExportEndsAbruptly(t *testing.T) {
	p := newFake(t, 1, true)
	p.bulk = func(w http.ResponseWriter, r *http.Request) {
		conn, rw := hijack(t, w)
		_, _ = io.WriteString(rw, okHead+"conectix and more")
		p.endTask(r, "success", "")
		_ = conn.(interface{ NetConn() net.Conn }).NetConn().Close()
	}
	if got, err := export(t, p.dial(), xapi.ExportOptions{}); err != nil || string(got) != "conectix and more" {
		t.Errorf("%q, %v", got, err)
	}
}

func TestExportFailures(t *testing.T) {
	for name, test := range map[string]struct {
		serve func(p *fakePool, w http.ResponseWriter, r *http.Request)
		want  error
		text  string
	}{
		"failure in place of the data": {func(p *fakePool, w http.ResponseWriter, r *http.Request) {
			p.endTask(r, "failure", "", "VDI_IN_USE", "OpaqueRef:vdi", "export")
			conn, rw := hijack(t, w)
			defer conn.Close()
			_, _ = io.WriteString(rw, okHead+page500("VDI_IN_USE", "OpaqueRef:vdi", "export"))
		}, xapi.VDIInUse, ""},
		"the same, task untouched": {func(p *fakePool, w http.ResponseWriter, r *http.Request) {
			conn, rw := hijack(t, w)
			defer conn.Close()
			_, _ = io.WriteString(rw, okHead+page500("VDI_IN_USE", "OpaqueRef:vdi", "export"))
		}, xapi.VDIInUse, ""},
		"failure behind some data": {func(p *fakePool, w http.ResponseWriter, r *http.Request) {
			p.endTask(r, "failure", "", "VDI_IO_ERROR", "Device I/O errors")
			conn, rw := hijack(t, w)
			defer conn.Close()
			_, _ = io.WriteString(rw, okHead+"conectix..."+page500("VDI_IO_ERROR", "Device I/O errors"))
		}, xapi.VDIIOError, ""},
		"cut without a word": {func(p *fakePool, w http.ResponseWriter, _ *http.Request) {
			conn, rw := hijack(t, w)
			defer conn.Close()
			_, _ = io.WriteString(rw, okHead+"conectix...")
		}, xapi.ErrNoVerdict, ""},
		"reset": {func(p *fakePool, w http.ResponseWriter, r *http.Request) {
			conn, rw := hijack(t, w)
			_, _ = io.WriteString(rw, okHead+"conectix...")
			_ = conn.(*net.TCPConn).SetLinger(0)
			_ = conn.Close()
		}, nil, ""},
		"task lost": {func(p *fakePool, w http.ResponseWriter, r *http.Request) {
			p.mu.Lock()
			delete(p.tasks, r.URL.Query().Get("task_id"))
			p.mu.Unlock()
			conn, rw := hijack(t, w)
			defer conn.Close()
			_, _ = io.WriteString(rw, okHead+"conectix...")
		}, xapi.ErrTaskLost, ""},
		"task cancelled by somebody": {func(p *fakePool, w http.ResponseWriter, r *http.Request) {
			p.endTask(r, "cancelled", "")
			conn, rw := hijack(t, w)
			defer conn.Close()
			_, _ = io.WriteString(rw, okHead+"conectix...")
		}, xapi.TaskCancelled, ""},
		"403": {func(p *fakePool, w http.ResponseWriter, r *http.Request) {
			p.endTask(r, "failure", "", "RBAC_PERMISSION_DENIED", "http/get_export_raw_vdi", "no")
			w.WriteHeader(403)
			_, _ = io.WriteString(w, "<html><body><h1>HTTP 403 forbidden</h1></body></html>")
		}, xapi.RBACPermissionDenied, "HTTP 403"},
		"404": {func(p *fakePool, w http.ResponseWriter, r *http.Request) {
			p.endTask(r, "failure", "", "INTERNAL_ERROR", "Unknown format x")
			conn, rw := hijack(t, w)
			defer conn.Close()
			_, _ = io.WriteString(rw, "HTTP/1.0 404 Not Found\r\n\r\n")
		}, xapi.Code("INTERNAL_ERROR"), "Unknown format"},
		"500, task untouched": {func(p *fakePool, w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(500)
			_, _ = io.WriteString(w, "<html><body><h1>HTTP 500</h1><h1> Additional information </h1>NO_HOSTS_AVAILABLE: [  ]</body></html>")
		}, xapi.NoHostsAvailable, "HTTP 500"},
		"500 without a code": {func(p *fakePool, w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(500)
			_, _ = io.WriteString(w, "<html><body>Db_exn.Read_missing_uuid(&quot;VDI&quot;)</body></html>")
		}, nil, `Read_missing_uuid("VDI")`},
		"401 for ever": {func(p *fakePool, w http.ResponseWriter, _ *http.Request) { w.WriteHeader(401) }, nil, "HTTP 401"},
		"not HTTP": {func(p *fakePool, w http.ResponseWriter, _ *http.Request) {
			conn, rw := hijack(t, w)
			defer conn.Close()
			_, _ = io.WriteString(rw, "SSH-2.0\r\n")
		}, nil, "malformed HTTP"},
		"redirect in a circle": {func(p *fakePool, w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Location", "https://"+p.hosts[0].addr+r.URL.RequestURI())
			w.WriteHeader(302)
		}, nil, "redirects lead nowhere"},
		"redirect to nowhere": {func(p *fakePool, w http.ResponseWriter, r *http.Request) { w.WriteHeader(302) }, nil, "redirects lead nowhere"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newFake(t, 1, false)
			p.bulk = func(w http.ResponseWriter, r *http.Request) { test.serve(p, w, r) }
			c := p.dial()
			_, err := export(t, c, xapi.ExportOptions{})
			if err == nil || test.want != nil && !errors.Is(err, test.want) || !strings.Contains(err.Error(), test.text) {
				t.Errorf("got %v, want %v ...%s...", err, test.want, test.text)
			}
			noSecrets(t, err)
			p.noTasks()
		})
	}
}

func TestExportSessionRenewed(t *testing.T) {
	p := newFake(t, 1, false)
	p.bulk = func(w http.ResponseWriter, r *http.Request) {
		p.mu.Lock()
		known := p.sessions[r.URL.Query().Get("session_id")]
		p.mu.Unlock()
		if !known {
			w.WriteHeader(401)
			return
		}
		p.endTask(r, "success", "")
		_, _ = io.WriteString(w, "conectix")
	}
	c := p.dial()
	p.mu.Lock()
	p.call = func(_ int, method string, _ []any) (any, *xapi.Error) {
		if method == "task.create" {
			defer clear(p.sessions) // lost between this call and the transfer
			ref := p.ref("task")
			p.tasks[ref] = &fakeTask{status: "pending"}
			return ref, nil
		}
		return nil, nil
	}
	p.mu.Unlock()
	if got, err := export(t, c, xapi.ExportOptions{}); err != nil || string(got) != "conectix" {
		t.Errorf("%q, %v", got, err)
	}
	p.noTasks()
}

func TestExportRedirected(t *testing.T) {
	p := newFake(t, 2, true)
	p.certs = true
	asked := 0
	p.bulk = func(w http.ResponseWriter, r *http.Request) {
		if asked++; r.Host != p.hosts[1].addr {
			w.Header().Set("Location", "https://"+p.hosts[1].addr+r.URL.RequestURI())
			w.Header().Set("Connection", "close")
			w.WriteHeader(302)
			return
		}
		p.endTask(r, "success", "")
		_, _ = io.WriteString(w, "conectix")
	}
	if got, err := export(t, p.dial(), xapi.ExportOptions{Host: p.hosts[0].addr}); err != nil || string(got) != "conectix" || asked != 2 {
		t.Errorf("%q after %d requests, %v", got, asked, err)
	}
}

func TestExportStalls(t *testing.T) {
	p := newFake(t, 1, true)
	release := make(chan struct{})
	p.bulk = func(w http.ResponseWriter, r *http.Request) {
		conn, rw := hijack(t, w)
		defer conn.Close()
		_, _ = io.WriteString(rw, okHead+"conectix")
		<-release
	}
	defer close(release)
	start := time.Now()
	c := p.dial()
	go func() { // the pool cancels as requested
		for p.count("task.cancel") == 0 {
			time.Sleep(5 * time.Millisecond)
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		for _, task := range p.tasks {
			task.status = "cancelled"
		}
	}()
	got, err := export(t, c, xapi.ExportOptions{StallTimeout: 200 * time.Millisecond})
	if !errors.Is(err, xapi.ErrStalled) || string(got) != "conectix" || time.Since(start) > 4*time.Second {
		t.Errorf("%q after %v: %v", got, time.Since(start), err)
	}
	// The error for a stalled transfer contains the time limit and a hint.
	var advice interface{ Hint() string }
	if !errors.As(err, &advice) || !strings.Contains(err.Error(), "no data moved for 200ms") || !strings.Contains(advice.Hint(), "SMlog") {
		t.Errorf("%v: no hint, or no time", err)
	}
	p.noTasks()
}

func TestExportCancelled(t *testing.T) {
	p := newFake(t, 1, true)
	release := make(chan struct{})
	defer close(release)
	p.bulk = func(w http.ResponseWriter, r *http.Request) {
		conn, rw := hijack(t, w)
		defer conn.Close()
		_, _ = io.WriteString(rw, okHead+"conectix")
		p.endTask(r, "failure", "", "VDI_IO_ERROR")
		<-release
	}
	ctx, cancel := context.WithCancel(t.Context())
	c := p.dial()
	e, err := c.ExportVDI(ctx, xapi.ExportOptions{VDI: "OpaqueRef:vdi"})
	if err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(50*time.Millisecond, cancel)
	if _, err := io.Copy(io.Discard, e); !errors.Is(err, context.Canceled) {
		t.Errorf("read: %v", err)
	}
	if err := e.Finish(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("verdict: %v", err)
	}
	if err := e.Close(ctx); err != nil {
		t.Errorf("close: %v", err)
	}
	p.noTasks()
}

// If a reader stops early, the host stops too.
func TestExportLeft(t *testing.T) {
	p := newFake(t, 1, false)
	stopped := make(chan error, 1)
	p.bulk = func(w http.ResponseWriter, r *http.Request) {
		conn, rw := hijack(t, w)
		defer conn.Close()
		_, err := io.WriteString(rw, okHead+"conectix")
		for err == nil {
			_, err = rw.Write(make([]byte, 1<<16))
		}
		p.endTask(r, "failure", "", "VDI_IO_ERROR")
		stopped <- err
	}
	c := p.dial()
	e, err := c.ExportVDI(t.Context(), xapi.ExportOptions{VDI: "OpaqueRef:vdi"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(e, make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	if err := e.Finish(t.Context()); !errors.Is(err, xapi.ErrTrailing) {
		t.Errorf("verdict: %v", err)
	}
	<-stopped
	p.noTasks()
}

func TestExportRawDelta(t *testing.T) {
	p := newFake(t, 1, false)
	if _, err := p.dial().ExportVDI(t.Context(), xapi.ExportOptions{VDI: "a", Format: xapi.FormatRaw, Base: "b"}); err == nil {
		t.Error("a raw delta was asked for")
	}
	// The data of a raw disk may begin like an answer.
	p.bulk = func(w http.ResponseWriter, r *http.Request) {
		p.endTask(r, "success", "")
		_, _ = io.WriteString(w, page500("A_CODE", "x"))
	}
	if got, err := export(t, p.dial(), xapi.ExportOptions{Format: xapi.FormatRaw}); err != nil || string(got) != page500("A_CODE", "x") {
		t.Errorf("%q, %v", got, err)
	}
}

func TestLongHead(t *testing.T) {
	p := newFake(t, 1, false)
	c := p.dial()
	_, err := c.ExportVDI(t.Context(), xapi.ExportOptions{VDI: xapi.Ref(strings.Repeat("x", 1000))})
	if !errors.Is(err, xapi.ErrHeadTooLong) {
		t.Errorf("got %v", err)
	}
}

func TestImport(t *testing.T) {
	want := noise(3<<20 + 5)
	for _, useTLS := range []bool{false, true} {
		p := newFake(t, 2, useTLS)
		p.certs = true
		var got []byte
		var head http.Header
		p.bulk = func(w http.ResponseWriter, r *http.Request) {
			if r.Host != p.hosts[1].addr {
				w.Header().Set("Location", "https://"+p.hosts[1].addr+r.URL.RequestURI())
				w.Header().Set("Connection", "close")
				w.WriteHeader(302)
				return
			}
			head = r.Header
			length := r.ContentLength
			conn, rw := hijack(t, w)
			defer conn.Close()
			_, _ = io.WriteString(rw, okHead) // before the body is read
			got = make([]byte, length)
			_, err := io.ReadFull(rw, got)
			if err != nil {
				t.Errorf("read body: %v", err)
			}
			p.endTask(r, "success", "<value>OpaqueRef:vdi</value>")
		}
		called := 0
		err := p.dial().ImportVDI(t.Context(), xapi.ImportOptions{VDI: "OpaqueRef:vdi", ContentLength: int64(len(want)), Host: p.hosts[0].addr}, func(w io.Writer) error {
			called++
			for rest := want; len(rest) > 0; {
				n := min(len(rest), 512)
				if len(rest) > 1<<20 {
					n = 1 << 19
				}
				if _, err := w.Write(rest[:n]); err != nil {
					return err
				}
				rest = rest[n:]
			}
			return nil
		})
		if err != nil || called != 1 || !bytes.Equal(got, want) {
			t.Errorf("TLS %v: %d of %d bytes, body made %d times, %v", useTLS, len(got), len(want), called, err)
		}
		if head.Get("Transfer-Encoding") != "" || head.Get("Expect") != "" {
			t.Errorf("head %v", head)
		}
		p.noTasks()
	}
}

func TestImportFailures(t *testing.T) {
	data := noise(1 << 20)
	errOurs := errors.New("repository unreadable")
	write := func(w io.Writer) error {
		for range 64 {
			if _, err := w.Write(data); err != nil {
				return fmt.Errorf("write: %w", err)
			}
		}
		return nil
	}
	for name, test := range map[string]struct {
		serve  func(t *testing.T, p *fakePool, w http.ResponseWriter, r *http.Request)
		length int64
		body   func(w io.Writer) error
		want   error
		text   string
	}{
		"refused while the body is sent": {func(t *testing.T, p *fakePool, w http.ResponseWriter, r *http.Request) {
			conn, rw := hijack(t, w)
			defer conn.Close()
			_, _ = io.WriteString(rw, okHead)
			_, _ = io.ReadFull(rw, make([]byte, 1<<20))
			p.endTask(r, "failure", "", "VDI_IN_USE", "OpaqueRef:vdi")
			_, _ = io.WriteString(rw, "HTTP/1.1 400 Bad Request\r\n\r\n"+page500("VDI_IN_USE", "OpaqueRef:vdi"))
		}, 64 << 20, write, xapi.VDIInUse, ""},
		"the same, body not read, task untouched": {func(t *testing.T, p *fakePool, w http.ResponseWriter, r *http.Request) {
			conn, rw := hijack(t, w)
			_, _ = io.WriteString(rw, okHead+"HTTP/1.1 400 Bad Request\r\n\r\n"+page500("VDI_IN_USE", "OpaqueRef:vdi"))
			_ = conn.(*net.TCPConn).CloseWrite()
			_, _ = io.Copy(io.Discard, rw)
			_ = conn.Close()
		}, 64 << 20, write, xapi.VDIInUse, ""},
		"reset while the body is sent": {func(t *testing.T, p *fakePool, w http.ResponseWriter, r *http.Request) {
			conn, rw := hijack(t, w)
			_, _ = io.WriteString(rw, okHead)
			_, _ = io.ReadFull(rw, make([]byte, 1<<20))
			p.endTask(r, "failure", "", "VDI_IO_ERROR", "Device I/O errors")
			_ = conn.(*net.TCPConn).SetLinger(0)
			_ = conn.Close()
		}, 64 << 20, write, xapi.VDIIOError, ""},
		"failure at the end": {func(t *testing.T, p *fakePool, w http.ResponseWriter, r *http.Request) {
			conn, rw := hijack(t, w)
			defer conn.Close()
			_, _ = io.WriteString(rw, okHead)
			_, _ = io.CopyN(io.Discard, rw, 64<<20)
			p.endTask(r, "failure", "", "VDI_IO_ERROR", "Device I/O errors")
		}, 64 << 20, write, xapi.VDIIOError, ""},
		"closed at the end, task pending": {func(t *testing.T, p *fakePool, w http.ResponseWriter, r *http.Request) {
			conn, rw := hijack(t, w)
			defer conn.Close()
			_, _ = io.WriteString(rw, okHead)
			_, _ = io.CopyN(io.Discard, rw, 64<<20)
		}, 64 << 20, write, xapi.ErrNoVerdict, ""},
		"404": {func(t *testing.T, p *fakePool, w http.ResponseWriter, r *http.Request) {
			p.endTask(r, "failure", "", "INTERNAL_ERROR", "Unknown format x")
			w.WriteHeader(404)
		}, 64 << 20, write, xapi.Code("INTERNAL_ERROR"), "HTTP 404"},
		"body fails": {serveAll, 64 << 20, func(w io.Writer) error {
			_, _ = w.Write(data)
			return errOurs
		}, errOurs, ""},
		"body too short": {serveAll, 64<<20 + 1, write, nil, "1 bytes before"},
		"body too long":  {serveAll, 64<<20 - 1, write, nil, "exceeds the length"},
		"stalled": {func(t *testing.T, p *fakePool, w http.ResponseWriter, r *http.Request) {
			conn, rw := hijack(t, w)
			defer conn.Close()
			_, _ = io.WriteString(rw, okHead)
			select {
			case <-t.Context().Done():
			case <-time.After(1500 * time.Millisecond):
			}
			p.endTask(r, "failure", "", "VDI_IO_ERROR")
		}, 64 << 20, write, xapi.ErrStalled, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newFake(t, 1, name == "body fails")
			p.bulk = func(w http.ResponseWriter, r *http.Request) { test.serve(t, p, w, r) }
			err := p.dial().ImportVDI(t.Context(), xapi.ImportOptions{
				VDI: "OpaqueRef:vdi", ContentLength: test.length, StallTimeout: 500 * time.Millisecond,
			}, test.body)
			if err == nil || test.want != nil && !errors.Is(err, test.want) || !strings.Contains(err.Error(), test.text) {
				t.Errorf("got %v, want %v ...%s...", err, test.want, test.text)
			}
			noSecrets(t, err)
			p.noTasks()
		})
	}
}

func serveAll(t *testing.T, p *fakePool, w http.ResponseWriter, r *http.Request) {
	conn, rw := hijack(t, w)
	defer conn.Close()
	_, _ = io.WriteString(rw, okHead)
	_, _ = io.Copy(io.Discard, rw)
	p.endTask(r, "failure", "", "VDI_IO_ERROR", "Device I/O errors")
}

func TestImportCancelled(t *testing.T) {
	p := newFake(t, 1, true)
	p.bulk = func(w http.ResponseWriter, r *http.Request) { serveAll(t, p, w, r) }
	c := p.dial()
	ctx, cancel := context.WithCancel(t.Context())
	n := 0
	err := c.ImportVDI(ctx, xapi.ImportOptions{VDI: "OpaqueRef:vdi", ContentLength: 1 << 40}, func(w io.Writer) error {
		for {
			if _, err := w.Write(make([]byte, 1<<20)); err != nil {
				return err
			}
			if n++; n == 3 {
				cancel()
			}
		}
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	p.noTasks()
}

func TestExportMetadata(t *testing.T) {
	p := newFake(t, 1, false)
	want := noise(500 << 10)
	cut := false
	p.bulk = func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("ref") != "OpaqueRef:vm" {
			p.endTask(r, "failure", "", "HANDLE_INVALID", "VM", "x")
			w.WriteHeader(500)
			return
		}
		conn, rw := hijack(t, w)
		defer conn.Close()
		_, _ = fmt.Fprintf(rw, "HTTP/1.0 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n", len(want))
		if cut {
			_, _ = rw.Write(want[:100])
			return
		}
		_, _ = rw.Write(want)
		p.endTask(r, "success", "")
	}
	c := p.dial()
	var got bytes.Buffer
	if err := c.ExportMetadata(t.Context(), "OpaqueRef:vm", &got); err != nil || !bytes.Equal(got.Bytes(), want) {
		t.Errorf("%d of %d bytes, %v", got.Len(), len(want), err)
	}
	if err := c.ExportMetadata(t.Context(), "OpaqueRef:none", io.Discard); !errors.Is(err, xapi.HandleInvalid) {
		t.Errorf("unknown VM: %v", err)
	}
	cut = true
	if err := c.ExportMetadata(t.Context(), "OpaqueRef:vm", io.Discard); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("cut answer: %v", err)
	}
	p.noTasks()
}

// BenchmarkExport measures the cost of a stream through TLS, sender included.
func BenchmarkExport(b *testing.B) {
	t := &testing.T{}
	p := newFake(t, 1, true)
	block := noise(2 << 20)
	const blocks = 64
	p.bulk = func(w http.ResponseWriter, r *http.Request) {
		conn, rw := hijack(t, w)
		defer conn.Close()
		_, _ = io.WriteString(rw, okHead)
		for range blocks {
			_, _ = rw.Write(block)
		}
		p.endTask(r, "success", "")
	}
	c, err := xapi.Dial(b.Context(), p.config())
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(blocks * int64(len(block)))
	b.ReportAllocs()
	buf := make([]byte, 2<<20)
	for b.Loop() {
		e, err := c.ExportVDI(b.Context(), xapi.ExportOptions{VDI: "OpaqueRef:vdi"})
		if err != nil {
			b.Fatal(err)
		}
		for err == nil {
			_, err = io.ReadFull(e, buf)
		}
		if err := e.Finish(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}

// Row S10 of the fault list: a redirect takes the session only to hosts that the
// pool lists, even if any host is trusted.
func TestRedirectOutOfPool(t *testing.T) {
	reached := make(chan string, 10)
	thief := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { reached <- r.RequestURI }))
	t.Cleanup(thief.Close)
	p := newFake(t, 1, false)
	p.bulk = func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Location", thief.URL+r.URL.RequestURI())
		w.WriteHeader(302)
	}
	_, err := export(t, p.dial(), xapi.ExportOptions{})
	if err == nil || !strings.Contains(err.Error(), strings.TrimPrefix(thief.URL, "http://")) || !strings.Contains(err.Error(), "no host of the pool") {
		t.Errorf("%v", err)
	}
	select {
	case uri := <-reached:
		t.Errorf("%s was requested from a host that is not in the pool", uri)
	default:
	}
	noSecrets(t, err)
	p.noTasks()
}

// A host cannot make the client use memory without end: not by a head that does
// not end, nor by the answer to a login, which may come from anything that listens
// at the address.
func TestEndlessAnswers(t *testing.T) {
	p := newFake(t, 1, false)
	p.bulk = func(w http.ResponseWriter, _ *http.Request) {
		conn, rw := hijack(t, w)
		defer conn.Close()
		_, _ = io.WriteString(rw, "HTTP/1.1 200 OK\r\n")
		for i := 0; ; i++ {
			if _, err := fmt.Fprintf(rw, "X-Header-%d: %s\r\n", i, strings.Repeat("x", 1000)); err != nil {
				return
			}
		}
	}
	_, err := export(t, p.dial(), xapi.ExportOptions{})
	if err == nil || !strings.Contains(err.Error(), "head of the answer is too long") {
		t.Errorf("a head without end: %v", err)
	}
	for name, status := range map[string]int{"200": 200, "an error page": 500} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(status)
			for {
				if _, err := io.WriteString(w, strings.Repeat("[", 1000)); err != nil {
					return
				}
			}
		}))
		t.Cleanup(server.Close)
		if _, err := xapi.Dial(t.Context(), xapi.Config{URL: server.URL, Password: "x", Trust: xapi.Trust{Insecure: true}}); err == nil {
			t.Errorf("an answer without end, %s: logged in", name)
		}
	}
}
