// Package s3proxy stands between a client and an S3 server in tests, and goes
// wrong as real ones do: errors, throttling, resets, bodies cut short, slow
// answers, refusals.
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

// A Fault deals with a request in place of, or around, the server, which pass
// asks; it reports false where it has done nothing.
type Fault func(w http.ResponseWriter, r *http.Request, pass http.Handler) bool

// Proxy is a running proxy without faults until it is told otherwise.
type Proxy struct {
	Endpoint string // host:port
	Server   *httptest.Server

	mu    sync.Mutex
	fault Fault
	seen  []*http.Request
	hits  int
}

// Start starts a proxy to the server at endpoint (host:port) that ends with the
// test. With tls it speaks TLS, by a certificate of httptest's CA.
func Start(t testing.TB, endpoint string, tls bool) *Proxy {
	t.Helper()
	target, err := url.Parse("http://" + endpoint)
	if err != nil {
		t.Fatal(err)
	}
	p := new(Proxy)
	// The host that was signed must reach the server: only the way changes.
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

// Break has each request from now on meet a fault; nil heals the proxy.
func (p *Proxy) Break(f Fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fault, p.hits = f, 0
}

// Hits is how many requests met the fault since Break.
func (p *Proxy) Hits() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.hits
}

// Seen gives the requests since the last call, and forgets them. Their bodies
// are gone.
func (p *Proxy) Seen() []*http.Request {
	p.mu.Lock()
	defer p.mu.Unlock()
	seen := p.seen
	p.seen = nil
	return seen
}

// Answer is a fault that answers with a status and an S3 error code; the body
// is none where the code is empty.
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

// Reset breaks the connection before the server hears of the request.
func Reset(http.ResponseWriter, *http.Request, http.Handler) bool { panic(http.ErrAbortHandler) }

// Lost lets the server do what is asked, and breaks the connection in place of
// its answer.
func Lost(_ http.ResponseWriter, r *http.Request, pass http.Handler) bool {
	pass.ServeHTTP(httptest.NewRecorder(), r)
	panic(http.ErrAbortHandler)
}

// Truncate cuts the body of an answer in the middle.
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

// Slow is a fault that has an answer come late and in two parts.
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

// Storm has every n-th request go wrong, each time by the next of faults.
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

// ShortSuffix refuses, as gofakes3 does, a suffix range that is longer than the
// object. Other servers answer with the whole object.
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

// AppendOnly refuses, as a bucket's policy would, to delete anything and to
// replace what is there; folder is where the server keeps the bucket's objects.
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
