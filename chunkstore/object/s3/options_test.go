package s3_test

import (
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"xenkeep/chunkstore/object"
	"xenkeep/chunkstore/object/objecttest"
	"xenkeep/chunkstore/object/objecttest/s3proxy"
	"xenkeep/chunkstore/object/objecttest/s3server"
	"xenkeep/chunkstore/object/s3"
)

const somePack = "packs/ab/abababababababababababababababababababababababababababababababab"

// Each option has its documented effect on requests, as a server receives them.
func TestOptions(t *testing.T) {
	server := s3server.Start(t)
	proxy := s3proxy.Start(t, server.Endpoint, false)
	n := 0
	open := func(change func(c *s3.Config)) *s3.Store {
		t.Helper()
		n++
		c := config(server, fmt.Sprintf("o%d", n))
		c.Endpoint = proxy.Endpoint
		change(&c)
		s, err := s3.Connect(c)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.Close() })
		return s
	}
	// sent puts an object and returns the headers of the request.
	sent := func(s *s3.Store, name string) http.Header {
		t.Helper()
		proxy.Seen()
		if err := s.Put(t.Context(), name, []byte("content")); err != nil {
			t.Error(err)
		}
		seen := proxy.Seen()
		if len(seen) != 1 {
			t.Fatalf("%d requests for one put", len(seen))
		}
		return seen[0].Header
	}
	for sum, header := range map[s3.Checksum]string{
		"": "X-Amz-Checksum-Sha256", s3.SHA256: "X-Amz-Checksum-Sha256", s3.CRC32C: "X-Amz-Checksum-Crc32c", s3.MD5: "Content-Md5",
	} {
		h := sent(open(func(c *s3.Config) { c.Checksum = sum }), "notes/aa")
		if h.Get(header) == "" {
			t.Errorf("checksum %q: no %s in %v", sum, header, h)
		}
	}
	h := sent(open(func(c *s3.Config) { c.Checksum = s3.None }), "notes/aa")
	if h.Get("X-Amz-Checksum-Sha256")+h.Get("Content-Md5") != "" {
		t.Errorf("checksum none: %v", h)
	}
	s := open(func(c *s3.Config) { c.StorageClass = "STANDARD" })
	if h := sent(s, somePack); h.Get("X-Amz-Storage-Class") != "STANDARD" {
		t.Errorf("storage class of a pack: %v", h)
	}
	if h := sent(s, "notes/aa"); h.Get("X-Amz-Storage-Class") != "" {
		t.Errorf("storage class of a note: %v", h)
	}
	s = open(func(c *s3.Config) { c.NoOverwrite = true })
	if h := sent(s, somePack); h.Get("If-None-Match") != "*" {
		t.Errorf("no overwrite: %v", h)
	}
	if err := s.Put(t.Context(), somePack, []byte("other")); err == nil || object.Retriable(err) {
		t.Errorf("overwritten: %v", err)
	}
	if err := s.Put(t.Context(), somePack, []byte("content")); err != nil {
		t.Errorf("the same again: %v", err)
	}
	if h := sent(s, "config"); h.Get("If-None-Match") != "" {
		t.Errorf("the config may be replaced: %v", h)
	}
}

// If the answer to an upload is lost, the object was stored nevertheless. It
// must not be mistaken for an object of another writer.
func TestLostAnswerWithoutOverwriting(t *testing.T) {
	server := s3server.Start(t)
	proxy := s3proxy.Start(t, server.Endpoint, false)
	c := config(server, "p")
	c.Endpoint = proxy.Endpoint
	c.NoOverwrite = true
	s, err := s3.Connect(c)
	if err != nil {
		t.Fatal(err)
	}
	proxy.Break(s3proxy.Lost)
	if err := s.Put(t.Context(), somePack, []byte("content")); !errors.Is(err, object.ErrUnavailable) {
		t.Errorf("lost answer: %v", err)
	}
	proxy.Break(s3proxy.AppendOnly(server.Folder))
	if err := s.Put(t.Context(), somePack, []byte("content")); err != nil {
		t.Errorf("again, where nothing may be replaced: %v", err)
	}
	if err := s.Put(t.Context(), somePack, []byte("c0ntent")); !errors.Is(err, object.ErrPermission) {
		t.Errorf("another content: %v", err)
	}
	if err := s.Delete(t.Context(), somePack); !errors.Is(err, object.ErrPermission) {
		t.Errorf("delete: %v", err)
	}
}

func TestParallelIsABound(t *testing.T) {
	server := s3server.Start(t)
	proxy := s3proxy.Start(t, server.Endpoint, false)
	c := config(server, "p")
	c.Endpoint, c.Parallel = proxy.Endpoint, 3
	s, err := s3.Connect(c)
	if err != nil {
		t.Fatal(err)
	}
	if tr := s.Traits(); tr.Parallel != 3 || tr.Uploads != 1 {
		t.Errorf("traits %+v", tr)
	}
	var now, most atomic.Int32
	proxy.Break(func(w http.ResponseWriter, r *http.Request, pass http.Handler) bool {
		for n := now.Add(1); ; {
			if m := most.Load(); n <= m || most.CompareAndSwap(m, n) {
				break
			}
		}
		pass.ServeHTTP(w, r)
		now.Add(-1)
		return true
	})
	done := make(chan error)
	for i := range 20 {
		go func() {
			name := fmt.Sprintf("notes/%02d", i)
			err := s.Put(t.Context(), name, objecttest.Bytes(1, 50_000))
			if err == nil {
				_, err = s.Get(t.Context(), name, 0, -1)
			}
			done <- err
		}()
	}
	for range 20 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if most.Load() > 3 {
		t.Errorf("%d requests at once", most.Load())
	}
}

func TestVirtualHosts(t *testing.T) {
	server := s3server.StartWith(t, s3server.Options{VirtualDomain: "s3.example.org"})
	c := config(server, "p")
	c.Endpoint, c.Style = "s3.example.org", s3.Virtual
	var asked atomic.Value
	s, err := s3.Create(t.Context(), s3.Dialed(c, func(network, addr string) (net.Conn, error) {
		asked.Store(addr)
		return net.Dial(network, server.Endpoint)
	}))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Put(t.Context(), "config", []byte("x")); err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(asked.Load()); got != server.Bucket+".s3.example.org:80" {
		t.Errorf("connected to %s", got)
	}
	if p, err := os.ReadFile(filepath.Join(server.Folder, "p", "config")); err != nil || string(p) != "x" {
		t.Errorf("in the bucket: %q, %v", p, err)
	}
}

func TestCAFile(t *testing.T) {
	server := s3server.Start(t)
	proxy := s3proxy.Start(t, server.Endpoint, true)
	c := config(server, "p")
	c.Endpoint, c.TLS = proxy.Endpoint, true
	_, err := s3.Create(t.Context(), c)
	if err == nil || object.Retriable(err) || !strings.Contains(object.HintOf(err), "--s3-ca-file") {
		t.Errorf("unknown CA: %v, hint %q", err, object.HintOf(err))
	}
	dir := t.TempDir()
	c.CAFile = filepath.Join(dir, "ca.pem")
	if _, err := s3.Create(t.Context(), c); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no CA file: %v", err)
	}
	if err := os.WriteFile(c.CAFile, []byte("nothing"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s3.Create(t.Context(), c); err == nil || !strings.Contains(err.Error(), "PEM") {
		t.Errorf("empty CA file: %v", err)
	}
	block := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: proxy.Server.Certificate().Raw})
	if err := os.WriteFile(c.CAFile, block, 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := s3.Create(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Put(t.Context(), "config", []byte("x")); err != nil {
		t.Error(err)
	}
	c.CAFile = ""
	t.Setenv("AWS_CA_BUNDLE", filepath.Join(dir, "ca.pem"))
	if _, err := s3.Open(t.Context(), c); err != nil {
		t.Errorf("by AWS_CA_BUNDLE: %v", err)
	}
}

// Each refusal has a hint with the next step for the user.
func TestHints(t *testing.T) {
	server := s3server.Start(t)
	proxy := s3proxy.Start(t, server.Endpoint, false)
	good := config(server, "p")
	good.Endpoint = proxy.Endpoint
	s, err := s3.Create(t.Context(), good)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Put(t.Context(), "config", nil); err != nil {
		t.Fatal(err)
	}
	for words, change := range map[string]func(*s3.Config){
		"make the bucket": func(c *s3.Config) { c.Bucket = "no-such-bucket" },
		"AWS_SECRET":      func(c *s3.Config) { c.SecretKey = "wrong-secret" },
		"AWS_ACCESS":      func(c *s3.Config) { c.AccessKey = "stranger" },
	} {
		c := good
		change(&c)
		if _, err := s3.Open(t.Context(), c); !strings.Contains(object.HintOf(err), words) {
			t.Errorf("%v: hint %q, want %q", err, object.HintOf(err), words)
		}
	}
	for verb, tt := range map[string]struct {
		do     func() error
		action string
	}{
		"put":    {func() error { return s.Put(t.Context(), "notes/a", nil) }, "s3:PutObject"},
		"get":    {func() error { _, err := s.Get(t.Context(), "config", 0, -1); return err }, "s3:GetObject"},
		"stat":   {func() error { _, err := s.Stat(t.Context(), "config"); return err }, "s3:GetObject"},
		"list":   {func() error { return s.List(t.Context(), "", func(object.Info) error { return nil }) }, "s3:ListBucket"},
		"delete": {func() error { return s.Delete(t.Context(), "config") }, "s3:DeleteObject"},
		"lock":   {func() error { return s.Lock(t.Context(), "config", "", time.Now().Add(time.Hour)) }, "s3:PutObjectRetention"},
	} {
		proxy.Break(s3proxy.Answer(403, "AccessDenied"))
		err := tt.do()
		if !errors.Is(err, object.ErrPermission) || !strings.Contains(object.HintOf(err), tt.action+" on "+server.Bucket) {
			t.Errorf("%s: %v, hint %q", verb, err, object.HintOf(err))
		}
	}
	proxy.Break(func(w http.ResponseWriter, r *http.Request, pass http.Handler) bool {
		w.Header().Set("Date", time.Now().Add(-20*time.Minute).UTC().Format(http.TimeFormat))
		return s3proxy.Answer(403, "RequestTimeTooSkewed")(w, r, pass)
	})
	_, err = s.Get(t.Context(), "config", 0, -1)
	if hint := object.HintOf(err); !strings.Contains(hint, "20m0s ahead of") && !strings.Contains(hint, "20m1s ahead of") {
		t.Errorf("clock: %v, hint %q", err, hint)
	}
	// Row "S3" of the fault list: a refusal because of the clock is not blamed
	// on permissions, and the message names the flag that helps.
	if strings.Contains(err.Error(), "permission") || !errors.Is(err, object.ErrClock) {
		t.Errorf("clock: %v", err)
	}
	for _, tt := range []struct {
		status        int
		code, message string
		class         error
		hint          string
	}{
		{403, "QuotaExceeded", "Quota exceeded", object.ErrNoSpace, "quota"},
		{403, "XMinioAdminBucketQuotaExceeded", "Bucket quota exceeded", object.ErrNoSpace, "quota"},
		{400, "InvalidArgument", "x-amz-checksum-sha256 is not supported", nil, "--s3-checksum"},
		{400, "InvalidRequest", "Unsupported header received", nil, "--s3-checksum"},
		{501, "NotImplemented", "A header you provided implies functionality that is not implemented", object.ErrUnsupported, "--s3-checksum"},
		{400, "BadRequest", "the region 'us-east-1' is wrong; expecting 'eu-west-1'", nil, "--s3-region"},
	} {
		proxy.Break(func(w http.ResponseWriter, r *http.Request, _ http.Handler) bool {
			_, _ = io.Copy(io.Discard, r.Body)
			w.WriteHeader(tt.status)
			_, _ = fmt.Fprintf(w, "<Error><Code>%s</Code><Message>%s</Message></Error>", tt.code, tt.message)
			return true
		})
		err := s.Put(t.Context(), "notes/b", []byte("b"))
		if err == nil || tt.class != nil && !errors.Is(err, tt.class) || !strings.Contains(object.HintOf(err), tt.hint) || strings.Contains(object.HintOf(err), "credentials") {
			t.Errorf("%s: %v, hint %q, want %q", tt.code, err, object.HintOf(err), tt.hint)
		}
	}
	proxy.Break(s3proxy.Answer(400, "AuthorizationHeaderMalformed"))
	if _, err = s.Get(t.Context(), "config", 0, -1); !strings.Contains(object.HintOf(err), "--s3-region") {
		t.Errorf("region: %v, hint %q", err, object.HintOf(err))
	}
}

func TestProfiles(t *testing.T) {
	server := s3server.Start(t)
	file := filepath.Join(t.TempDir(), "credentials")
	text := fmt.Sprintf("[default]\naws_access_key_id = nobody\naws_secret_access_key = nothing-at-all\n[backup]\naws_access_key_id = %s\naws_secret_access_key = %s\n",
		server.AccessKey, server.SecretKey)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, v := range []string{"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "MINIO_ROOT_USER", "MINIO_ACCESS_KEY", "AWS_PROFILE"} {
		t.Setenv(v, "")
	}
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", file)
	t.Setenv("AWS_CONFIG_FILE", file)
	c := config(server, "p")
	c.AccessKey, c.SecretKey = "", ""
	if _, err := s3.Create(t.Context(), c); !errors.Is(err, object.ErrPermission) {
		t.Errorf("default profile: %v", err)
	}
	t.Setenv("AWS_PROFILE", "backup")
	if _, err := s3.Create(t.Context(), c); err != nil {
		t.Errorf("AWS_PROFILE: %v", err)
	}
	t.Setenv("AWS_PROFILE", "")
	t.Setenv("AWS_ACCESS_KEY_ID", "stranger")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "stranger-secret")
	c.Profile = "backup"
	if _, err := s3.Create(t.Context(), c); err != nil {
		t.Errorf("named profile: %v", err)
	}
}

func TestShortLocations(t *testing.T) {
	t.Setenv("AWS_ENDPOINT_URL", "")
	t.Setenv("AWS_ENDPOINT_URL_S3", "")
	for endpoint, want := range map[string]string{
		"":                        "s3:https://s3.amazonaws.com/bkt/p/q",
		"http://127.0.0.1:9000":   "s3:http://127.0.0.1:9000/bkt/p/q",
		"https://s3.example.org/": "s3:https://s3.example.org/bkt/p/q",
	} {
		t.Setenv("AWS_ENDPOINT_URL", endpoint)
		c, err := s3.Parse("s3://bkt/p/q")
		if err != nil || c.Location() != want {
			t.Errorf("at %q: %s, %v", endpoint, c.Location(), err)
		}
	}
	for _, endpoint := range []string{"https://host/path", "://"} {
		if _, err := s3.ParseAt("s3://b", endpoint); err == nil {
			t.Errorf("endpoint %q is taken", endpoint)
		}
	}
	for _, c := range []s3.Config{{StorageClass: "glacier"}, {Style: "x"}, {Checksum: "x"}, {LockMode: "x"}, {Parallel: -1}} {
		if c.Validate() == nil {
			t.Errorf("%+v is taken", c)
		}
	}
}
