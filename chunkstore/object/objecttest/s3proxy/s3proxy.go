// Package s3proxy is a proxy between a client and an S3 server in tests. It
// fails as real servers do: with errors, throttling, connection resets,
// truncated bodies, slow answers and refusals.
package s3proxy

import (
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// A Fault handles a request instead of the server, or before and after the
// server, to which it can forward the request through pass. It returns false if
// it has done nothing.
type Fault func(w http.ResponseWriter, r *http.Request, pass http.Handler) bool

// Proxy is a running proxy. It has no fault until Break is called.
type Proxy struct {
	Endpoint string // host:port
	Server   *httptest.Server

	mu    sync.Mutex
	fault Fault
	seen  []*http.Request
	hits  int
}

// Start starts a proxy to the server at endpoint (host:port). The proxy stops
// with the test. If tls is true, it serves TLS with a certificate of httptest's
// CA.
func Start(t testing.TB, endpoint string, tls bool) *Proxy {
	t.Helper()
	target, err := url.Parse("http://" + endpoint)
	if err != nil {
		t.Fatal(err)
	}
	p := new(Proxy)
	// The signed host must reach the server: only the connection differs.
	pass := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(target)
			r.Out.Host = r.In.Host
		},
		ErrorHandler: func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) },
	}
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.mu.Lock()
		fault := p.fault
		p.seen = append(p.seen, r.Clone(r.Context()))
		p.mu.Unlock()
		if fault == nil || !fault(w, r, pass) {
			pass.ServeHTTP(w, r)
			return
		}
		p.mu.Lock()
		p.hits++
		p.mu.Unlock()
	})
	if tls {
		p.Server = httptest.NewTLSServer(handler)
	} else {
		p.Server = httptest.NewServer(handler)
	}
	t.Cleanup(p.Server.Close)
	p.Endpoint = p.Server.Listener.Addr().String()
	return p
}

// Break applies a fault to each request from now on. If f is nil, the proxy has
// no fault any more.
func (p *Proxy) Break(f Fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fault, p.hits = f, 0
}

// Hits returns how many requests the fault has handled since Break.
func (p *Proxy) Hits() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.hits
}

// Seen returns the requests since the last call, and forgets them. Their bodies
// are already consumed.
func (p *Proxy) Seen() []*http.Request {
	p.mu.Lock()
	defer p.mu.Unlock()
	seen := p.seen
	p.seen = nil
	return seen
}

// Answer returns a fault that answers with a status and an S3 error code. If
// the code is empty, there is no body.
func Answer(status int, code string) Fault {
	return func(w http.ResponseWriter, r *http.Request, _ http.Handler) bool {
		_, _ = io.Copy(io.Discard, r.Body)
		w.WriteHeader(status)
		if code != "" && r.Method != http.MethodHead {
			_, _ = io.WriteString(w, "<Error><Code>"+code+"</Code><Message>injected</Message></Error>")
		}
		return true
	}
}

// Reset closes the connection before the server receives the request.
func Reset(http.ResponseWriter, *http.Request, http.Handler) bool { panic(http.ErrAbortHandler) }

// Lost lets the server execute the request, and closes the connection instead
// of sending its answer.
func Lost(_ http.ResponseWriter, r *http.Request, pass http.Handler) bool {
	pass.ServeHTTP(httptest.NewRecorder(), r)
	panic(http.ErrAbortHandler)
}

// Truncate cuts off the body of an answer in the middle.
func Truncate(w http.ResponseWriter, r *http.Request, pass http.Handler) bool {
	rec := httptest.NewRecorder()
	pass.ServeHTTP(rec, r)
	body := rec.Body.Bytes()
	for k, v := range rec.Header() {
		w.Header()[k] = v
	}
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(rec.Code)
	_, _ = w.Write(body[:len(body)/2])
	if len(body) < 2 {
		return true
	}
	panic(http.ErrAbortHandler)
}

// Slow returns a fault that sends an answer late and in two parts.
func Slow(d time.Duration) Fault {
	return func(w http.ResponseWriter, r *http.Request, pass http.Handler) bool {
		rec := httptest.NewRecorder()
		pass.ServeHTTP(rec, r)
		for k, v := range rec.Header() {
			w.Header()[k] = v
		}
		w.WriteHeader(rec.Code)
		body := rec.Body.Bytes()
		_, _ = w.Write(body[:len(body)/2])
		_ = http.NewResponseController(w).Flush()
		select {
		case <-time.After(d):
		case <-r.Context().Done():
		}
		_, _ = w.Write(body[len(body)/2:])
		return true
	}
}

// Storm returns a fault that makes every n-th request fail, by each of faults
// in turn.
func Storm(n int, faults ...Fault) Fault {
	var mu sync.Mutex
	count, next := 0, 0
	return func(w http.ResponseWriter, r *http.Request, pass http.Handler) bool {
		mu.Lock()
		count++
		if count%n != 0 {
			mu.Unlock()
			return false
		}
		f := faults[next%len(faults)]
		next++
		mu.Unlock()
		return f(w, r, pass)
	}
}

// ShortSuffix refuses a suffix range that is longer than the object, as
// gofakes3 does. Other servers answer with the whole object.
func ShortSuffix(w http.ResponseWriter, r *http.Request, pass http.Handler) bool {
	suffix, ok := strings.CutPrefix(r.Header.Get("Range"), "bytes=-")
	want, err := strconv.Atoi(suffix)
	if !ok || err != nil || r.Method != http.MethodGet {
		return false
	}
	rec := httptest.NewRecorder()
	pass.ServeHTTP(rec, r)
	if rec.Code < 300 && rec.Body.Len() < want {
		return Answer(http.StatusRequestedRangeNotSatisfiable, "InvalidRange")(w, r, pass)
	}
	for k, v := range rec.Header() {
		w.Header()[k] = v
	}
	w.WriteHeader(rec.Code)
	_, _ = w.Write(rec.Body.Bytes())
	return true
}

// AppendOnly returns a fault that refuses all deletions and the replacement of
// existing objects, as the policy of a bucket can do. Folder is where the
// server stores the bucket's objects.
func AppendOnly(folder string) Fault {
	forbid := Answer(http.StatusForbidden, "AccessDenied")
	return func(w http.ResponseWriter, r *http.Request, pass http.Handler) bool {
		switch r.Method {
		case http.MethodPut:
			_, key, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
			if _, err := os.Stat(filepath.Join(folder, filepath.FromSlash(key))); err != nil {
				return false
			}
		case http.MethodDelete, http.MethodPost:
		default:
			return false
		}
		return forbid(w, r, pass)
	}
}
