package xapisim

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const mib = 1 << 20

// client is a plain client of a pool, written without the simulator's code.
type client struct {
	t       *testing.T
	p       *Pool
	hc      *http.Client
	base    string
	session string
}

// start starts a pool with one VM that has two 8 MiB disks, with shortened
// waits.
func start(t *testing.T, change func(*Config)) *client {
	t.Helper()
	dir := t.TempDir()
	cfg := Config{State: filepath.Join(dir, "state"), Scale: 0.01}
	for i := range 2 {
		path := filepath.Join(dir, fmt.Sprintf("disk%d.raw", i))
		if err := os.WriteFile(path, pattern(byte(i+1), 8*mib), 0o600); err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			cfg.VMs = []VMConfig{{Name: "web"}}
		}
		cfg.VMs[0].Disks = append(cfg.VMs[0].Disks, path)
	}
	if change != nil {
		change(&cfg)
	}
	p, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	c := &client{t: t, p: p, base: p.URL()}
	pins := map[string]bool{}
	for _, f := range p.Fingerprints() {
		pins[f] = true
	}
	c.hc = &http.Client{
		Transport: &http.Transport{
			TLSClientConfig: &tls.Config{InsecureSkipVerify: true, VerifyPeerCertificate: func(raw [][]byte, _ [][]*x509.Certificate) error {
				sum := sha256.Sum256(raw[0])
				if !pins[hex.EncodeToString(sum[:])] {
					return errors.New("certificate is not the pinned one")
				}
				return nil
			}},
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	t.Cleanup(c.hc.CloseIdleConnections)
	c.session = c.must("session.login_with_password", p.User(), p.Password(), "1.0", "test").(string)
	return c
}

// pattern returns n bytes that differ from page to page.
func pattern(seed byte, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = seed + byte(i>>12) + byte(i)
	}
	return b
}

type apiError struct {
	Message string
	Data    []string
}

func (e *apiError) Error() string { return e.Message + " " + strings.Join(e.Data, " ") }

// call makes a call with the session as its first parameter, except for calls
// without a session.
func (c *client) call(method string, args ...any) (any, error) {
	return c.callAt(c.base, method, args...)
}

func (c *client) callAt(base, method string, args ...any) (any, error) {
	if method != "session.login_with_password" {
		args = append([]any{c.session}, args...)
	}
	body, err := json.Marshal(map[string]any{"jsonrpc": "2.0", "id": 7, "method": method, "params": args})
	if err != nil {
		return nil, err
	}
	resp, err := c.hc.Post(base+"/jsonrpc", "application/json", bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	var out struct {
		Result any
		Error  *apiError
	}
	if resp.StatusCode != 200 {
		return nil, fmt.Errorf("status %s", resp.Status)
	}
	if err := json.NewDecoder(resp.Body).Decode(&out); err != nil {
		return nil, err
	}
	if out.Error != nil {
		return nil, out.Error
	}
	return out.Result, nil
}

func (c *client) must(method string, args ...any) any {
	c.t.Helper()
	v, err := c.call(method, args...)
	if err != nil {
		c.t.Fatalf("%s: %v", method, err)
	}
	return v
}

func (c *client) record(cls string, ref any) map[string]any {
	c.t.Helper()
	return c.must(cls+".get_record", ref).(map[string]any)
}

// refused expects an API error: the code, then its parameters.
func (c *client) refused(want []string, method string, args ...any) {
	c.t.Helper()
	v, err := c.call(method, args...)
	var e *apiError
	if !errors.As(err, &e) {
		c.t.Fatalf("%s: got %v, %v; want %v", method, v, err, want)
	}
	got := append([]string{e.Message}, e.Data...)
	if strings.Join(got, "|") != strings.Join(want, "|") {
		c.t.Errorf("%s: got %q, want %q", method, got, want)
	}
}

func (c *client) vm() string {
	return c.must("VM.get_by_uuid", c.p.Ready().VMs[0].UUID).(string)
}

// disk returns the reference of the VM's i-th disk.
func (c *client) disk(i int) string {
	return c.must("VDI.get_by_uuid", c.p.Ready().VMs[0].Disks[i].VDI).(string)
}

func (c *client) uuid(cls string, ref any) string { return c.must(cls+".get_uuid", ref).(string) }

// snapshotDisk takes a disk snapshot.
func (c *client) snapshotDisk(i int) string { return c.must("VDI.snapshot", c.disk(i)).(string) }

// sr finds an SR by type.
func (c *client) sr(kind string) string {
	for _, s := range c.p.Ready().SRs {
		if s.Type == kind {
			return c.must("SR.get_by_uuid", s.UUID).(string)
		}
	}
	c.t.Fatalf("no SR of type %s", kind)
	return ""
}

// newDisk creates a VDI.
func (c *client) newDisk(srRef string, size int64, sm map[string]any) string {
	c.t.Helper()
	return c.must("VDI.create", map[string]any{
		"name_label": "d", "name_description": "", "SR": srRef, "virtual_size": size, "type": "user", "sharable": false,
		"read_only": false, "other_config": map[string]any{}, "sm_config": sm,
	}).(string)
}

// url builds a bulk URL with session and task.
func (c *client) url(path string, kv ...string) string {
	q := url.Values{"session_id": {c.session}}
	for i := 0; i < len(kv); i += 2 {
		q.Set(kv[i], kv[i+1])
	}
	return c.base + path + "?" + q.Encode()
}

func (c *client) get(u string) *http.Response {
	c.t.Helper()
	resp, err := c.hc.Get(u)
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { resp.Body.Close() })
	return resp
}

// export reads a whole export and returns it with its task's record.
func (c *client) export(vdi string, kv ...string) ([]byte, map[string]any) {
	c.t.Helper()
	task := c.must("task.create", "export", "").(string)
	resp := c.get(c.url("/export_raw_vdi", append([]string{"vdi", vdi, "task_id", task}, kv...)...))
	if resp.StatusCode != 200 {
		c.t.Fatalf("export: %s", resp.Status)
	}
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		c.t.Fatalf("export: %v", err)
	}
	return b, c.finished(task)
}

// put sends an import over a raw connection, because the answer precedes the
// body, and returns everything that the server sent.
func (c *client) put(u string, head string, body []byte) string {
	c.t.Helper()
	pu, err := url.Parse(u)
	if err != nil {
		c.t.Fatal(err)
	}
	conn := c.dial(pu.Host)
	defer conn.Close()
	if !strings.Contains(head, "Content-Length") && !strings.Contains(head, "Transfer-Encoding") && head != "none\r\n" {
		head += fmt.Sprintf("Content-Length: %d\r\n", len(body))
	}
	if head == "none\r\n" {
		head = ""
	}
	fmt.Fprintf(conn, "PUT %s HTTP/1.1\r\nHost: x\r\n%s\r\n", pu.RequestURI(), head)
	go conn.Write(body)
	conn.SetReadDeadline(time.Now().Add(20 * time.Second))
	b, err := io.ReadAll(conn)
	if err != nil {
		c.t.Fatalf("import: %v after %q", err, b)
	}
	return string(b)
}

func (c *client) dial(addr string) net.Conn {
	c.t.Helper()
	var conn net.Conn
	var err error
	if strings.HasPrefix(c.base, "https") {
		conn, err = tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true})
	} else {
		conn, err = net.Dial("tcp", addr)
	}
	if err != nil {
		c.t.Fatal(err)
	}
	return conn
}

// importTask imports with a task and returns the answer and the task.
func (c *client) importTask(vdi, head string, body []byte, kv ...string) (string, map[string]any) {
	c.t.Helper()
	task := c.must("task.create", "import", "").(string)
	said := c.put(c.url("/import_raw_vdi", append([]string{"vdi", vdi, "task_id", task}, kv...)...), head, body)
	return said, c.finished(task)
}

// finished waits with events until a task is no longer pending.
func (c *client) finished(task string) map[string]any {
	c.t.Helper()
	token := ""
	for range 50 {
		rec := c.record("task", task)
		if rec["status"] != "pending" {
			return rec
		}
		res := c.must("event.from", []string{"task/" + task}, token, 100.5).(map[string]any)
		token = res["token"].(string)
	}
	c.t.Fatalf("task stays pending")
	return nil
}

func (c *client) status(task any, want string, errorInfo ...string) {
	c.t.Helper()
	rec, ok := task.(map[string]any)
	if !ok {
		rec = c.record("task", task)
	}
	if rec["status"] != want {
		c.t.Errorf("task: status %v (%v), want %s", rec["status"], rec["error_info"], want)
	}
	if len(errorInfo) > 0 {
		if got := fmt.Sprint(rec["error_info"]); got != fmt.Sprint(errorInfo) {
			c.t.Errorf("task: error_info %s, want %v", got, errorInfo)
		}
	}
}

// dom0VBDs counts the attachments to control domains.
func (c *client) dom0VBDs() int {
	n := 0
	for _, v := range c.must("VM.get_all_records").(map[string]any) {
		if rec := v.(map[string]any); rec["is_control_domain"] == true {
			n += len(rec["VBDs"].([]any))
		}
	}
	return n
}

// eventually retries until ok returns true, for at most ten seconds.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for !ok() {
		select {
		case <-ctx.Done():
			t.Fatalf("%s: not within ten seconds", what)
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// insecure returns a client for benchmarks.
func insecure() *http.Client {
	return &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ReadBufferSize: 1 << 20}}
}
