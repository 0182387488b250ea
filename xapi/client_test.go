package xapi_test

import (
	"context"
	"encoding/pem"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"xenkeep/xapi"
)

func TestLogin(t *testing.T) {
	p := newFake(t, 1, false)
	c := p.dial()
	if c.PoolUUID() != "pool-uuid" || c.Master() != p.hosts[0].addr {
		t.Errorf("pool %s at %s", c.PoolUUID(), c.Master())
	}
	if err := c.Close(t.Context()); err != nil || len(p.sessions) != 0 {
		t.Errorf("close: %v, %d sessions left", err, len(p.sessions))
	}
	if err := c.Call(t.Context(), "pool.get_all", nil); err == nil {
		t.Error("a closed client makes calls")
	}
}

func TestWrongPassword(t *testing.T) {
	p := newFake(t, 1, false)
	cfg := p.config()
	cfg.Password = "wrong"
	_, err := xapi.Dial(t.Context(), cfg)
	if !errors.Is(err, xapi.SessionAuthenticationFailed) || p.logins != 1 {
		t.Errorf("after %d logins: %v", p.logins, err)
	}

	// The password changed during the run: the client tries it once more, and
	// not again after that.
	c := p.dial()
	p.mu.Lock()
	p.password, p.logins = "changed", 0
	p.mu.Unlock()
	p.forgetSessions()
	for range 3 {
		if _, err := c.Pool(t.Context()); !errors.Is(err, xapi.SessionAuthenticationFailed) {
			t.Errorf("changed password: %v", err)
		}
	}
	if p.logins != 1 {
		t.Errorf("%d logins with a refused password", p.logins)
	}
}

func TestFollowsMaster(t *testing.T) {
	p := newFake(t, 2, false)
	p.master = 1
	c := p.dial() // at host 0
	if c.Master() != p.hosts[1].addr {
		t.Errorf("at %s, master is %s", c.Master(), p.hosts[1].addr)
	}
	p.mu.Lock()
	p.master = 0
	p.mu.Unlock()
	if _, err := c.Pool(t.Context()); err != nil || c.Master() != p.hosts[0].addr {
		t.Errorf("after a change of master: at %s, %v", c.Master(), err)
	}
}

// A master that is down does not answer HOST_IS_SLAVE: the client has to ask
// another host for the new master.
func TestMasterGone(t *testing.T) {
	p := newFake(t, 3, false)
	c := p.dial()
	p.mu.Lock()
	p.master = 2
	p.mu.Unlock()
	p.hosts[0].srv.CloseClientConnections()
	p.hosts[0].srv.Close()
	if _, err := c.Pool(t.Context()); err != nil || c.Master() != p.hosts[2].addr {
		t.Errorf("at %s: %v", c.Master(), err)
	}
}

func TestSessionLost(t *testing.T) {
	p := newFake(t, 1, false)
	p.form1 = true
	c := p.dial()
	p.forgetSessions()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if _, err := c.Pool(t.Context()); err != nil {
				t.Errorf("getter after a lost session: %v", err)
			}
		})
	}
	wg.Wait()
	if p.logins != 2 {
		t.Errorf("%d logins, want the first and one more", p.logins)
	}

	p.forgetSessions()
	_, err := c.CreateTask(t.Context(), "a", "b")
	if !errors.Is(err, xapi.SessionInvalid) {
		t.Errorf("a call that is not repeatable: %v", err)
	}
	noSecrets(t, err)
	if _, err := c.CreateTask(t.Context(), "a", "b"); err != nil {
		t.Errorf("with the new session: %v", err)
	}
	if n := p.count("task.create"); n != 2 {
		t.Errorf("task.create called %d times", n)
	}

	p.mu.Lock()
	p.call = func(_ int, method string, params []any) (any, *xapi.Error) {
		if method == "VM.get_all_records" {
			return nil, fault(xapi.SessionInvalid, params[0].(string))
		}
		return nil, nil
	}
	p.mu.Unlock()
	_, err = c.VMs(t.Context())
	if n := p.count("VM.get_all_records"); !errors.Is(err, xapi.SessionInvalid) || n != 2 {
		t.Errorf("a session refused for ever: %d calls, %v", n, err)
	}
	noSecrets(t, err)
}

func TestOtherPool(t *testing.T) {
	p := newFake(t, 1, false)
	c := p.dial()
	p.forgetSessions()
	p.mu.Lock()
	p.uuid = "another"
	p.mu.Unlock()
	_, err := c.VMs(t.Context())
	if !errors.Is(err, xapi.ErrOtherPool) {
		t.Errorf("got %v", err)
	}
	if len(p.sessions) != 0 {
		t.Error("a session is left on the other pool")
	}
}

func TestStillBooting(t *testing.T) {
	p := newFake(t, 1, false)
	c := p.dial()
	left := 3
	p.mu.Lock()
	p.call = func(_ int, method string, _ []any) (any, *xapi.Error) {
		if method == "pool.get_all_records" && left > 0 {
			left--
			return nil, fault(xapi.HostStillBooting)
		}
		return nil, nil
	}
	p.mu.Unlock()
	if _, err := c.Pool(t.Context()); err != nil || left != 0 {
		t.Errorf("%v, %d refusals left", err, left)
	}
}

func TestTrust(t *testing.T) {
	p := newFake(t, 2, true)
	own := xapi.Fingerprint(p.hosts[0].der)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.hosts[0].der}), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		trust xapi.Trust
		ok    bool
	}{
		"pinned":        {xapi.Trust{Fingerprints: []string{strings.Repeat("00", 32), strings.ToLower(strings.ReplaceAll(own, ":", ""))}}, true},
		"wrong pin":     {xapi.Trust{Fingerprints: []string{strings.Repeat("00", 32)}}, false},
		"CA":            {xapi.Trust{CAFile: ca}, true},
		"CA, any name":  {xapi.Trust{CAFile: ca, AnyName: true}, true},
		"insecure":      {xapi.Trust{Insecure: true}, true},
		"nothing given": {xapi.Trust{}, false},
	} {
		cfg := p.config()
		cfg.Trust = test.trust
		c, err := xapi.Dial(t.Context(), cfg)
		if test.ok {
			if err != nil {
				t.Errorf("%s: %v", name, err)
				continue
			}
			_ = c.Close(t.Context())
			continue
		}
		var untrusted *xapi.UntrustedHostError
		if !errors.As(err, &untrusted) || untrusted.Fingerprint != own || untrusted.Host != "127.0.0.1" || !strings.Contains(err.Error(), own) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if p.logins != 4 {
		t.Errorf("%d logins: a password went to a host that is not trusted", p.logins)
	}
	for name, trust := range map[string]xapi.Trust{
		"bad pin": {Fingerprints: []string{"xx"}}, "no file": {CAFile: "/nonexistent"}, "empty file": {CAFile: os.DevNull},
	} {
		cfg := p.config()
		cfg.Trust = trust
		if _, err := xapi.Dial(t.Context(), cfg); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// The other hosts are trusted because the pool lists their certificates;
// otherwise the error names the host and the fingerprint to add.
func TestTrustOfOtherHosts(t *testing.T) {
	for _, known := range []bool{true, false} {
		p := newFake(t, 2, true)
		p.certs = known
		p.bulk = func(w http.ResponseWriter, r *http.Request) {
			p.endTask(r, "success", "")
			w.Header().Set("Connection", "close")
		}
		c := p.dial()
		e, err := c.ExportVDI(t.Context(), xapi.ExportOptions{VDI: "OpaqueRef:vdi", Host: p.hosts[1].addr})
		if known {
			if err != nil {
				t.Errorf("host of a known certificate: %v", err)
				continue
			}
			_ = e.Close(t.Context())
			continue
		}
		var untrusted *xapi.UntrustedHostError
		if !errors.As(err, &untrusted) || untrusted.Fingerprint != xapi.Fingerprint(p.hosts[1].der) {
			t.Errorf("host of an unknown certificate: %v", err)
		}
		p.noTasks()
	}
}

func TestOldHost(t *testing.T) {
	p := newFake(t, 1, false)
	p.hosts[0].srv.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/xml")
	})
	if _, err := xapi.Dial(t.Context(), p.config()); !errors.Is(err, xapi.ErrNoJSONRPC) {
		t.Errorf("got %v", err)
	}
	p.hosts[0].srv.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(500)
		_, _ = w.Write([]byte("<html><body><h1>HTTP 500</h1>Yojson</body></html>"))
	})
	_, err := xapi.Dial(t.Context(), p.config())
	var h *xapi.HTTPError
	if !errors.As(err, &h) || h.Status != 500 || !strings.Contains(err.Error(), "Yojson") {
		t.Errorf("got %v", err)
	}
}

// async answers Async calls with a task that ends like end.
func async(p *fakePool, method string, end fakeTask) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.call = func(_ int, m string, _ []any) (any, *xapi.Error) {
		if m != "Async."+method {
			return nil, nil
		}
		ref := p.ref("task")
		p.tasks[ref] = &end
		return ref, nil
	}
}

func TestAsync(t *testing.T) {
	p := newFake(t, 1, false)
	c := p.dial()
	async(p, "VM.snapshot", fakeTask{status: "success", result: "<value>OpaqueRef:snap</value>"})
	if ref, err := c.SnapshotVM(t.Context(), "OpaqueRef:vm", "n"); err != nil || ref != "OpaqueRef:snap" {
		t.Errorf("snapshot: %s, %v", ref, err)
	}
	async(p, "VM.snapshot", fakeTask{status: "failure", info: []string{"SR_BACKEND_FAILURE_44", "", "full"}})
	if _, err := c.SnapshotVM(t.Context(), "OpaqueRef:vm", "n"); !errors.Is(err, xapi.SRNoSpace) || !strings.HasPrefix(err.Error(), "VM.snapshot: ") {
		t.Errorf("full SR: %v", err)
	}
	async(p, "VDI.destroy", fakeTask{status: "failure", info: []string{"HANDLE_INVALID", "VDI", "x"}})
	if err := c.DestroyVDI(t.Context(), "OpaqueRef:vdi"); err != nil {
		t.Errorf("destroy of what is gone: %v", err)
	}
	async(p, "VDI.destroy", fakeTask{status: "failure", info: []string{"VDI_IN_USE", "x", "destroy"}})
	if err := c.DestroyVDI(t.Context(), "OpaqueRef:vdi"); !errors.Is(err, xapi.VDIInUse) {
		t.Errorf("destroy of a disk in use: %v", err)
	}
	if n := p.count("Async.VDI.destroy"); n != 1+11 {
		t.Errorf("%d tries to destroy", n)
	}
	p.noTasks()

	p.mu.Lock()
	p.call = func(_ int, m string, params []any) (any, *xapi.Error) {
		if m == "Async.VM.snapshot" && len(params) != 3 {
			return nil, fault(xapi.ParameterCountMismatch, "VM.snapshot", "2", "3")
		}
		return nil, nil
	}
	p.mu.Unlock()
	if _, err := c.SnapshotVM(t.Context(), "OpaqueRef:vm", "n", "OpaqueRef:vdi"); !errors.Is(err, xapi.ErrIgnoreVDIs) {
		t.Errorf("ignored disks on an old host: %v", err)
	}
}

func TestTaskLost(t *testing.T) {
	p := newFake(t, 1, false)
	c := p.dial()
	if _, err := c.WaitTask(t.Context(), "OpaqueRef:unknown"); !errors.Is(err, xapi.ErrTaskLost) {
		t.Errorf("got %v", err)
	}
}

// Cancellation stops the operation on the pool. If the operation has created an
// object nevertheless, the caller gets its reference.
func TestCancelAsync(t *testing.T) {
	p := newFake(t, 1, false)
	c := p.dial()
	ctx, cancel := context.WithCancel(t.Context())
	async(p, "VM.snapshot", fakeTask{status: "pending"})
	started := p.call
	p.call = func(host int, m string, params []any) (any, *xapi.Error) {
		if m == "task.get_record" {
			cancel()
		}
		if m == "task.cancel" {
			*p.tasks[params[1].(string)] = fakeTask{status: "success", result: "<value>OpaqueRef:snap</value>"}
		}
		return started(host, m, params)
	}
	ref, err := c.SnapshotVM(ctx, "OpaqueRef:vm", "n")
	if !errors.Is(err, context.Canceled) || ref != "OpaqueRef:snap" || p.count("task.cancel") != 1 {
		t.Errorf("cancelled: %s, %v, %d cancels", ref, err, p.count("task.cancel"))
	}
	p.noTasks()
}

func TestOtherConfig(t *testing.T) {
	p := newFake(t, 1, false)
	c := p.dial()
	config := map[string]string{}
	p.mu.Lock()
	p.call = func(_ int, m string, params []any) (any, *xapi.Error) {
		switch m {
		case "VDI.remove_from_other_config":
			delete(config, params[2].(string))
			return "", nil
		case "VDI.add_to_other_config":
			if _, ok := config[params[2].(string)]; ok {
				return nil, fault(xapi.MapDuplicateKey, "VDI", "other_config")
			}
			config[params[2].(string)] = params[3].(string)
			return "", nil
		}
		return nil, nil
	}
	p.mu.Unlock()
	for _, v := range []string{"a", "b"} {
		if err := c.SetOtherConfig(t.Context(), "VDI", "OpaqueRef:vdi", "k", v); err != nil || config["k"] != v {
			t.Errorf("set %s: %v, %v", v, config, err)
		}
	}
	if err := c.RemoveOtherConfig(t.Context(), "VDI", "OpaqueRef:vdi", "k"); err != nil || len(config) != 0 {
		t.Errorf("remove: %v, %v", config, err)
	}
}

func TestFindVM(t *testing.T) {
	p := newFake(t, 1, false)
	c := p.dial()
	const uuid = "11111111-2222-3333-4444-555555555555"
	vms := map[string]map[string]any{
		"OpaqueRef:1": {"uuid": uuid, "name_label": "web"},
		"OpaqueRef:2": {"uuid": "u2", "name_label": "web", "is_a_template": true, "is_a_snapshot": true},
		"OpaqueRef:3": {"uuid": "u3", "name_label": "db"},
		"OpaqueRef:4": {"uuid": "u4", "name_label": "db"},
		"OpaqueRef:5": {"uuid": "u5", "name_label": "tpl", "is_a_template": true},
	}
	p.mu.Lock()
	p.call = func(_ int, m string, params []any) (any, *xapi.Error) {
		switch m {
		case "VM.get_by_uuid":
			if params[1] == uuid {
				return "OpaqueRef:1", nil
			}
			return nil, fault(xapi.UUIDInvalid, "VM", params[1].(string))
		case "VM.get_by_name_label":
			refs := []string{}
			for ref, vm := range vms {
				if vm["name_label"] == params[1] {
					refs = append(refs, ref)
				}
			}
			return refs, nil
		case "VM.get_record":
			return vms[params[1].(string)], nil
		}
		return nil, nil
	}
	p.mu.Unlock()
	for _, name := range []string{"web", uuid} {
		if vm, err := c.FindVM(t.Context(), name); err != nil || vm.Ref != "OpaqueRef:1" {
			t.Errorf("%s: %s, %v", name, vm.Ref, err)
		}
	}
	var ambiguous *xapi.AmbiguousError
	if _, err := c.FindVM(t.Context(), "db"); !errors.As(err, &ambiguous) || strings.Join(ambiguous.UUIDs, " ") != "u3 u4" {
		t.Errorf("db: %v", err)
	}
	if _, err := c.FindVM(t.Context(), "tpl"); !errors.Is(err, xapi.ErrNotFound) || !strings.Contains(err.Error(), "template (u5)") {
		t.Errorf("tpl: %v", err)
	}
	for _, name := range []string{"none", "99999999-2222-3333-4444-555555555555"} {
		if _, err := c.FindVM(t.Context(), name); !errors.Is(err, xapi.ErrNotFound) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Calls that change something use connections of their own, so that a
// kept-alive connection which the host has just closed leaves no doubt.
func TestStaleConnections(t *testing.T) {
	p := newFake(t, 1, false)
	c := p.dial()
	for range 5 {
		p.hosts[0].srv.CloseClientConnections()
		if _, err := c.CreateTask(t.Context(), "a", "b"); err != nil {
			t.Fatalf("create: %v", err)
		}
		p.hosts[0].srv.CloseClientConnections()
		if _, err := c.Pool(t.Context()); err != nil {
			t.Fatalf("getter: %v", err)
		}
	}
}

func TestLargeRequest(t *testing.T) {
	p := newFake(t, 1, false)
	c := p.dial()
	if err := c.Call(t.Context(), "VM.set_name_label", nil, strings.Repeat("x", 300<<10)); err == nil || !strings.Contains(err.Error(), "exceeds") {
		t.Errorf("got %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Nanosecond)
	defer cancel()
	<-ctx.Done()
	if err := c.Call(ctx, "VM.get_all", nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("ended context: %v", err)
	}
}

// Row S10 of the fault list: plain HTTP, which shows the password to the network,
// needs the same permission as an unknown host.
func TestPlainHTTPNeedsPermission(t *testing.T) {
	p := newFake(t, 1, false)
	cfg := p.config()
	cfg.Trust.Insecure = false
	_, err := xapi.Dial(t.Context(), cfg)
	var plain *xapi.PlainError
	if !errors.As(err, &plain) || !strings.Contains(err.Error(), cfg.URL) || plain.Hint() == "" {
		t.Errorf("plain HTTP: %v", err)
	}
	if n := p.count("session.login_with_password"); n > 0 {
		t.Errorf("%d logins before it was refused", n)
	}
}
