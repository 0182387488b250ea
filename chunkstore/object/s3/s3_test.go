package s3_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"xenkeep/chunkstore/object"
	"xenkeep/chunkstore/object/objecttest"
	"xenkeep/chunkstore/object/objecttest/s3proxy"
	"xenkeep/chunkstore/object/objecttest/s3server"
	"xenkeep/chunkstore/object/s3"
)

func config(server *s3server.Server, prefix string) s3.Config {
	return s3.Config{
		Endpoint: server.Endpoint, Bucket: server.Bucket, Prefix: prefix,
		AccessKey: server.AccessKey, SecretKey: server.SecretKey, Region: server.Region,
	}
}

func TestContract(t *testing.T) {
	server := s3server.Start(t)
	n := 0
	objecttest.Run(t, func(t *testing.T) object.Store {
		n++
		s, err := s3.Create(t.Context(), config(server, fmt.Sprintf("some/prefix-%d", n)))
		if err != nil {
			t.Fatal(err)
		}
		return s
	})
}

// Row E12 of the fault list: a server that refuses a suffix range longer than
// the object fulfils the contract too.
func TestContractShortSuffix(t *testing.T) {
	server := s3server.Start(t)
	proxy := s3proxy.Start(t, server.Endpoint, false)
	proxy.Break(s3proxy.ShortSuffix)
	n := 0
	objecttest.Run(t, func(t *testing.T) object.Store {
		n++
		c := config(server, fmt.Sprintf("some/prefix-%d", n))
		c.Endpoint = proxy.Endpoint
		s, err := s3.Create(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		return s
	})
	if proxy.Hits() == 0 {
		t.Error("no suffix range was asked for")
	}
}

func TestOpenAndCreate(t *testing.T) {
	server := s3server.Start(t)
	ctx := t.Context()
	c := config(server, "repo")
	if _, err := s3.Open(ctx, c); !errors.Is(err, object.ErrNoRepository) {
		t.Errorf("open of nothing: %v", err)
	}
	s, err := s3.Create(ctx, c)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Put(ctx, "config", []byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := s3.Create(ctx, c); !errors.Is(err, object.ErrExists) {
		t.Errorf("create over a repository: %v", err)
	}
	// Another repository may be next to it, even if its prefix is the beginning
	// of this one's.
	c.Prefix = "rep"
	if _, err := s3.Create(ctx, c); err != nil {
		t.Error(err)
	}
	c.Prefix = "repo"
	c.Region = "" // so that the server is asked
	s, err = s3.Open(ctx, c)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := s.Get(ctx, "config", 0, -1); err != nil || string(got) != "x" {
		t.Errorf("%q, %v", got, err)
	}
	// Objects that others put into the bucket are not listed.
	for _, stranger := range []string{"Read Me.txt", "notes/UPPER"} {
		path := filepath.Join(server.Folder, "repo", stranger)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.List(ctx, "", func(i object.Info) error {
		if i.Name != "config" {
			t.Errorf("listed %s", i.Name)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
}

func TestErrorClasses(t *testing.T) {
	server := s3server.Start(t)
	good := config(server, "")
	if s, err := s3.Create(t.Context(), good); err != nil {
		t.Fatal(err)
	} else if err := s.Put(t.Context(), "config", nil); err != nil {
		t.Fatal(err)
	}
	dead, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dead.Close()
	for name, tt := range map[string]struct {
		change func(*s3.Config)
		class  error
		words  string
	}{
		"missing bucket": {func(c *s3.Config) { c.Bucket = "no-such-bucket" }, object.ErrNoRepository, "no-such-bucket"},
		"wrong secret":   {func(c *s3.Config) { c.SecretKey = "wrong-secret" }, object.ErrPermission, "SignatureDoesNotMatch"},
		"wrong key":      {func(c *s3.Config) { c.AccessKey = "stranger" }, object.ErrPermission, "access key"},
		"nobody there":   {func(c *s3.Config) { c.Endpoint = dead.Addr().String() }, object.ErrUnavailable, "refused"},
	} {
		c := good
		tt.change(&c)
		_, err := s3.Open(t.Context(), c)
		if !errors.Is(err, tt.class) || !strings.Contains(err.Error(), tt.words) {
			t.Errorf("%s: %v", name, err)
		}
		if strings.Contains(fmt.Sprint(err), c.SecretKey) {
			t.Errorf("%s: the secret is in %v", name, err)
		}
	}
	// If an https client meets a server without TLS, retries would not help.
	c := good
	c.TLS = true
	if _, err := s3.Open(t.Context(), c); err == nil || object.Retriable(err) {
		t.Errorf("TLS to a plain server: %v", err)
	}
}

func TestCredentialsFromEnvironment(t *testing.T) {
	server := s3server.Start(t)
	for _, e := range server.Environ() {
		name, value, _ := strings.Cut(e, "=")
		t.Setenv(name, value)
	}
	c, err := s3.Parse(server.Location("from-env"))
	if err != nil {
		t.Fatal(err)
	}
	s, err := s3.Create(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Put(t.Context(), "config", []byte("x")); err != nil {
		t.Error(err)
	}
}

// TestFaultsOnTheWay uses a proxy that breaks one answer or request.
func TestFaultsOnTheWay(t *testing.T) {
	server := s3server.Start(t)
	var fault atomic.Pointer[func(w http.ResponseWriter, r *http.Request) bool]
	breakWith := func(f func(w http.ResponseWriter, r *http.Request) bool) { fault.Store(&f) }
	target, err := url.Parse("http://" + server.Endpoint)
	if err != nil {
		t.Fatal(err)
	}
	// The signed host must reach the server: only the connection differs.
	through := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(target)
		r.Out.Host = r.In.Host
	}}
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if f := fault.Load(); f == nil || *f == nil || !(*f)(w, r) {
			through.ServeHTTP(w, r)
		}
	}))
	defer proxy.Close()
	c := config(server, "p")
	c.Endpoint = proxy.Listener.Addr().String()
	s, err := s3.Create(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	data := objecttest.Bytes(1, 100_000)
	if err := s.Put(t.Context(), "config", data); err != nil {
		t.Fatal(err)
	}
	answer := func(code int, body string) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool {
			_, _ = io.Copy(io.Discard, r.Body)
			w.WriteHeader(code)
			_, _ = io.WriteString(w, body)
			return true
		}
	}
	cut := func(w http.ResponseWriter, r *http.Request) bool {
		w.Header().Set("Content-Length", "100000")
		w.Header().Set("Last-Modified", "Mon, 02 Jan 2006 15:04:05 GMT")
		_, _ = w.Write(data[:50_000])
		panic(http.ErrAbortHandler)
	}
	reset := func(http.ResponseWriter, *http.Request) bool { panic(http.ErrAbortHandler) }
	for name, tt := range map[string]struct {
		fault func(http.ResponseWriter, *http.Request) bool
		class error
	}{
		"500":        {answer(500, ""), object.ErrUnavailable},
		"slow down":  {answer(503, "<Error><Code>SlowDown</Code></Error>"), object.ErrUnavailable},
		"gateway":    {answer(502, "<html>bad gateway</html>"), object.ErrUnavailable},
		"full":       {answer(507, ""), object.ErrNoSpace},
		"quota":      {answer(403, "<Error><Code>QuotaExceeded</Code></Error>"), object.ErrNoSpace},
		"denied":     {answer(403, "<Error><Code>AccessDenied</Code></Error>"), object.ErrPermission},
		"clock skew": {answer(403, "<Error><Code>RequestTimeTooSkewed</Code></Error>"), object.ErrPermission},
		"no bucket":  {answer(404, "<Error><Code>NoSuchBucket</Code></Error>"), object.ErrNoRepository},
		"reset":      {reset, object.ErrUnavailable},
	} {
		breakWith(tt.fault)
		_, getErr := s.Get(t.Context(), "config", 0, -1)
		for verb, err := range map[string]error{
			"get": getErr, "get into": s.GetInto(t.Context(), "config", 5, make([]byte, 7)),
			"put":    s.Put(t.Context(), "config", data),
			"list":   s.List(t.Context(), "", func(object.Info) error { return nil }),
			"delete": s.Delete(t.Context(), "config"),
		} {
			if !errors.Is(err, tt.class) {
				t.Errorf("%s: %s: %v", name, verb, err)
			}
		}
	}
	// A truncated body is a failure of the connection, and not a short object.
	breakWith(cut)
	if _, err := s.Get(t.Context(), "config", 0, -1); !errors.Is(err, object.ErrUnavailable) || errors.Is(err, object.ErrShort) {
		t.Errorf("cut body: %v", err)
	}
	// The answer of a server that ignores the range must be refused.
	breakWith(func(w http.ResponseWriter, r *http.Request) bool {
		r.Header.Del("Range")
		return false
	})
	if p, err := s.Get(t.Context(), "config", 10, 20); err == nil {
		t.Errorf("range ignored: got %d bytes", len(p))
	}
	// The context is cancelled in the middle of a body.
	ctx, cancel := context.WithCancel(t.Context())
	breakWith(func(w http.ResponseWriter, r *http.Request) bool {
		w.Header().Set("Content-Length", "100000")
		w.Header().Set("Last-Modified", "Mon, 02 Jan 2006 15:04:05 GMT")
		_, _ = w.Write(data[:10])
		_ = http.NewResponseController(w).Flush()
		cancel()
		<-r.Context().Done()
		return true
	})
	if _, err := s.Get(ctx, "config", 0, -1); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	breakWith(nil)
	if got, err := s.Get(t.Context(), "config", 0, -1); err != nil || len(got) != len(data) {
		t.Errorf("healed: %d bytes, %v", len(got), err)
	}
}

func TestParse(t *testing.T) {
	for in, want := range map[string]s3.Config{
		"s3:https://s3.example.org/bucket":               {Endpoint: "s3.example.org", TLS: true, Bucket: "bucket"},
		"s3:http://127.0.0.1:7070/bucket/a/b/":           {Endpoint: "127.0.0.1:7070", Bucket: "bucket", Prefix: "a/b"},
		"s3:https://s3.eu-west-1.amazonaws.com/bkt//p//": {Endpoint: "s3.eu-west-1.amazonaws.com", TLS: true, Bucket: "bkt", Prefix: "p"},
	} {
		got, err := s3.Parse(in)
		if err != nil || got != want {
			t.Errorf("%s: %+v, %v", in, got, err)
		}
		if again, err := s3.Parse(got.Location()); err != nil || again != got {
			t.Errorf("%s: location %s", in, got.Location())
		}
	}
	for _, in := range []string{
		"", "s3:", "s3:bucket", "s3:ftp://h/b", "s3:https:///b", "s3:https://host", "s3:https://host/",
		"s3:https://me:topsecret@host/b", "s3:https://host/b?x=topsecret", "s3:https://me:topsecret@ho%zzst/b", "/a/path",
	} {
		if c, err := s3.Parse(in); !errors.Is(err, object.ErrName) || strings.Contains(err.Error(), "topsecret") {
			t.Errorf("%q: %+v, %v", in, c, err)
		}
	}
}
