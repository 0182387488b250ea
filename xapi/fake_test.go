package xapi_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"xenkeep/xapi"
)

// fakePool answers the few calls that a client needs, on one or more hosts, and
// can be made to misbehave. The simulated pool, by contrast, always behaves
// correctly.
type fakePool struct {
	t     *testing.T
	hosts []*fakeHost

	mu       sync.Mutex
	master   int
	uuid     string
	password string
	sessions map[string]bool
	tasks    map[string]*fakeTask
	serial   int
	calls    []string
	logins   int
	certs    bool // has records of the hosts' certificates
	form1    bool // errors as arrays

	// call, if set, is called first; the usual answer follows only if it
	// returns nil.
	call func(host int, method string, params []any) (result any, err *xapi.Error)
	// bulk handles every request except those to /jsonrpc.
	bulk http.HandlerFunc
}

type fakeHost struct {
	srv  *httptest.Server
	addr string
	der  []byte
}

type fakeTask struct {
	status, result string
	info           []string
}

// newFake starts a pool of n hosts; the first one is its master.
func newFake(t *testing.T, n int, useTLS bool) *fakePool {
	t.Helper()
	p := &fakePool{t: t, uuid: "pool-uuid", password: "right", sessions: map[string]bool{}, tasks: map[string]*fakeTask{}}
	for i := range n {
		h := &fakeHost{}
		h.srv = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { p.serve(i, w, r) }))
		h.srv.Config.ErrorLog = nil
		if useTLS {
			cert := selfSigned(t)
			h.der = cert.Certificate[0]
			h.srv.TLS = &tls.Config{Certificates: []tls.Certificate{cert}}
			h.srv.StartTLS()
		} else {
			h.srv.Start()
		}
		h.addr = h.srv.Listener.Addr().String()
		t.Cleanup(func() { h.srv.CloseClientConnections(); h.srv.Close() })
		p.hosts = append(p.hosts, h)
	}
	return p
}

func selfSigned(t *testing.T) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	serial, _ := rand.Int(rand.Reader, big.NewInt(1<<62))
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "host"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func (p *fakePool) config() xapi.Config {
	cfg := xapi.Config{
		URL: p.hosts[0].srv.URL, User: "root", Password: "right", Pace: 0.001,
		StallTimeout: 5 * time.Second, VerdictTimeout: 500 * time.Millisecond,
	}
	if der := p.hosts[0].der; der != nil {
		cfg.Trust.Fingerprints = []string{xapi.Fingerprint(der)}
	} else {
		cfg.Trust.Insecure = true
	}
	return cfg
}

func (p *fakePool) dial() *xapi.Client {
	p.t.Helper()
	c, err := xapi.Dial(context.Background(), p.config())
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() {
		if err := c.Close(context.Background()); err != nil {
			p.t.Errorf("close: %v", err)
		}
	})
	return c
}

func (p *fakePool) count(method string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := 0
	for _, c := range p.calls {
		if c == method {
			n++
		}
	}
	return n
}

func (p *fakePool) forgetSessions() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sessions = map[string]bool{}
}

// noTasks checks that a transfer has left no task on the pool.
func (p *fakePool) noTasks() {
	p.t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.tasks) > 0 {
		p.t.Errorf("%d tasks left behind", len(p.tasks))
	}
}

// endTask completes the task named in a bulk request.
func (p *fakePool) endTask(r *http.Request, status, result string, info ...string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if task := p.tasks[r.URL.Query().Get("task_id")]; task != nil && task.status == "pending" {
		*task = fakeTask{status, result, info}
	}
}

func (p *fakePool) serve(host int, w http.ResponseWriter, r *http.Request) {
	if r.URL.Path != "/jsonrpc" {
		p.bulk(w, r)
		return
	}
	body, _ := io.ReadAll(r.Body)
	var req struct {
		Method string
		Params []any
		ID     any
	}
	if err := json.Unmarshal(body, &req); err != nil {
		w.WriteHeader(500)
		return
	}
	result, err := p.answer(host, req.Method, req.Params)
	w.Header().Set("Content-Type", "application/json")
	answer := map[string]any{"jsonrpc": "2.0", "id": req.ID}
	switch {
	case err == nil:
		answer["result"] = result
	case p.form1:
		answer = map[string]any{"id": req.ID, "result": nil, "error": append([]string{string(err.Code)}, err.Params...)}
	default:
		answer["error"] = map[string]any{"code": 1, "message": err.Code, "data": append([]string{}, err.Params...)}
	}
	_ = json.NewEncoder(w).Encode(answer)
}

func fault(code xapi.Code, params ...string) *xapi.Error {
	return &xapi.Error{Code: code, Params: params}
}

func (p *fakePool) answer(host int, method string, params []any) (any, *xapi.Error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.calls = append(p.calls, method)
	arg := func(i int) string {
		if i < len(params) {
			s, _ := params[i].(string)
			return s
		}
		return ""
	}
	if p.call != nil {
		if result, err := p.call(host, method, params); result != nil || err != nil {
			return result, err
		}
	}
	if host != p.master {
		return nil, fault(xapi.HostIsSlave, p.hosts[p.master].addr)
	}
	if method == "session.login_with_password" {
		p.logins++
		if arg(1) != p.password {
			return nil, fault(xapi.SessionAuthenticationFailed, arg(0), "Authentication failure")
		}
		ref := p.ref("session")
		p.sessions[ref] = true
		return ref, nil
	}
	if !p.sessions[arg(0)] {
		return nil, fault(xapi.SessionInvalid, arg(0))
	}
	task := p.tasks[arg(1)]
	switch method {
	case "session.logout":
		delete(p.sessions, arg(0))
		return "", nil
	case "pool.get_all_records":
		return map[string]any{"OpaqueRef:pool": map[string]any{"uuid": p.uuid, "master": fmt.Sprint("OpaqueRef:host", p.master)}}, nil
	case "host.get_all_records":
		all := map[string]any{}
		for i, h := range p.hosts {
			all[fmt.Sprint("OpaqueRef:host", i)] = map[string]any{"uuid": fmt.Sprint("host", i), "address": h.addr, "metrics": fmt.Sprint("OpaqueRef:metrics", i)}
		}
		return all, nil
	case "host_metrics.get_all_records":
		all := map[string]any{}
		for i := range p.hosts {
			all[fmt.Sprint("OpaqueRef:metrics", i)] = map[string]any{"live": true}
		}
		return all, nil
	case "Certificate.get_all_records":
		if !p.certs {
			return nil, fault(xapi.MethodUnknown, method)
		}
		all := map[string]any{}
		for i, h := range p.hosts {
			all[fmt.Sprint("OpaqueRef:cert", i)] = map[string]any{"type": "host", "fingerprint": xapi.Fingerprint(h.der)}
		}
		return all, nil
	case "PBD.get_all_records":
		all := map[string]any{}
		for i := range p.hosts {
			all[fmt.Sprint("OpaqueRef:pbd", i)] = map[string]any{"host": fmt.Sprint("OpaqueRef:host", i), "SR": "OpaqueRef:sr", "currently_attached": true}
		}
		return all, nil
	case "VDI.get_SR":
		return "OpaqueRef:sr", nil
	case "task.create":
		ref := p.ref("task")
		p.tasks[ref] = &fakeTask{status: "pending"}
		return ref, nil
	}
	if strings.HasPrefix(method, "task.") && task == nil {
		return nil, fault(xapi.HandleInvalid, "task", arg(1))
	}
	switch method {
	case "task.get_record":
		return map[string]any{"status": task.status, "result": task.result, "error_info": append([]string{}, task.info...), "progress": 0.5}, nil
	case "task.cancel":
		return "", nil
	case "task.set_status":
		task.status = arg(2)
		return "", nil
	case "task.destroy":
		if task.status != "pending" { // a pending task is only marked
			delete(p.tasks, arg(1))
		}
		return "", nil
	}
	return nil, fault(xapi.MethodUnknown, method)
}

func (p *fakePool) ref(kind string) string {
	p.serial++
	return fmt.Sprintf("OpaqueRef:%s-%08d-secret", kind, p.serial)
}

// hijack takes over the connection, for answers that net/http cannot send.
func hijack(t *testing.T, w http.ResponseWriter) (net.Conn, io.ReadWriter) {
	conn, rw, err := w.(http.Hijacker).Hijack()
	if err != nil {
		t.Error(err)
		panic(http.ErrAbortHandler)
	}
	return conn, struct {
		io.Reader
		io.Writer
	}{rw, conn}
}

const okHead = "HTTP/1.1 200 OK\r\nConnection: close\r\nCache-Control: no-cache, no-store\r\ntask-id: OpaqueRef:x\r\ncontent-type: application/octet-stream\r\n\r\n"

func page500(code string, params ...string) string {
	body := "<html><body><h1>HTTP 500 internal server error</h1>An unexpected error occurred.<h1> Additional information </h1>" + code + ": [ " + strings.Join(params, "; ") + " ]</body></html>"
	return fmt.Sprintf("HTTP/1.1 500 Internal Error\r\ncontent-length: %d\r\ncontent-type: text/html\r\nconnection: close\r\n\r\n%s", len(body), body)
}

// noSecrets checks that an error does not contain a session reference.
func noSecrets(t *testing.T, err error) {
	t.Helper()
	if err != nil && (strings.Contains(err.Error(), "-secret") && strings.Contains(err.Error(), "session-") || strings.Contains(err.Error(), "right")) {
		t.Errorf("a secret shows in %q", err)
	}
	var e *xapi.Error
	if errors.As(err, &e) && slices.ContainsFunc(e.Params, func(s string) bool { return strings.Contains(s, "session-") }) {
		t.Errorf("the session shows in %q", e.Params)
	}
}
