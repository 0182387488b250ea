package xapi_test

import (
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"xenkeep/xapi"
)

// Row N19 of the fault list, with real connections.
func TestDialWithoutPool(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	plain := newFake(t, 1, false)
	secure := newFake(t, 1, true)
	web := httptest.NewServer(http.NotFoundHandler())
	defer web.Close()
	page := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<html>hello</html>")) }))
	defer page.Close()
	slaves := newFake(t, 2, false)
	slaves.call = func(int, string, []any) (any, *xapi.Error) { return nil, fault(xapi.HostIsSlave, slaves.hosts[1].addr) }
	lost := newFake(t, 1, false)
	lost.call = func(int, string, []any) (any, *xapi.Error) { return nil, fault(xapi.HostIsSlave, gone) }
	for _, c := range []struct{ name, url, text, hint string }{
		{"nobody", "https://" + gone, "nobody answers at https://" + gone + " (connection refused)", "is the host on, is it the master's address"},
		{"TLS to a plain port", "https://" + plain.hosts[0].addr, "https://" + plain.hosts[0].addr + ": what answers does not speak TLS", "443"},
		{"no TLS to a TLS port", "http://" + secure.hosts[0].addr, "what answers speaks TLS", "https://"},
		{"a web server", web.URL, "what answers is no host of a pool", "is it the address of a host of the pool?"},
		{"a page", page.URL, "what answers is no host of a pool", "is it the address of a host of the pool?"},
		{"slaves alone", slaves.hosts[0].srv.URL, "the hosts name each other as the master", "xe pool-list params=master"},
		{"a slave, and no master", lost.hosts[0].srv.URL, lost.hosts[0].addr + " is not the master and leads to " + gone + ": nobody answers at", "is the host on"},
	} {
		_, err := xapi.Dial(t.Context(), xapi.Config{URL: c.url, Password: "right", Trust: xapi.Trust{Insecure: true}})
		var x *xapi.UnreachableError
		if !errors.As(err, &x) || !strings.Contains(err.Error(), c.text) || !strings.Contains(x.Hint(), c.hint) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

// Row "a pin that no longer fits" of the fault list: the message differs from
// that for a pool without configured fingerprints.
func TestPinThatNoLongerFits(t *testing.T) {
	p := newFake(t, 1, true)
	cfg := p.config()
	cfg.Trust.Fingerprints = []string{strings.Repeat("ab", 32)}
	_, err := xapi.Dial(t.Context(), cfg)
	var untrusted *xapi.UntrustedHostError
	if !errors.As(err, &untrusted) || !untrusted.Pinned || !strings.Contains(err.Error(), "none of those that are pinned") {
		t.Errorf("%v", err)
	}
	cfg.Trust.Fingerprints = nil
	if _, err = xapi.Dial(t.Context(), cfg); !errors.As(err, &untrusted) || untrusted.Pinned {
		t.Errorf("without a pin: %v", err)
	}
}

// Row "pool errors name OpaqueRefs" of the fault list: messages refer to
// objects by their name and UUID.
func TestErrorsNameObjects(t *testing.T) {
	const vm, vdi, sr, gone = "OpaqueRef:00000000-0000-4000-8000-000000000001", "OpaqueRef:00000000-0000-4000-8000-000000000002", "OpaqueRef:00000000-0000-4000-8000-000000000003", "OpaqueRef:00000000-0000-4000-8000-000000000004"
	p := newFake(t, 1, false)
	p.call = func(_ int, method string, params []any) (any, *xapi.Error) {
		ref := ""
		if len(params) > 1 {
			ref, _ = params[1].(string)
		}
		switch {
		case method == "VM.get_record" && ref == vm:
			return map[string]any{"uuid": "vm-uuid", "name_label": "web"}, nil
		case method == "VDI.get_record" && ref == vdi:
			return map[string]any{"uuid": "vdi-uuid", "name_label": "web data"}, nil
		case method == "SR.get_record" && ref == sr:
			return map[string]any{"uuid": "sr-uuid", "name_label": ""}, nil
		case strings.HasSuffix(method, ".get_record"):
			return nil, fault(xapi.HandleInvalid, "VM", ref)
		case method == "VM.start":
			return nil, fault(xapi.VMBadPowerState, vm, "halted", "running")
		case method == "VDI.destroy":
			return nil, fault(xapi.VDIInUse, vdi, "destroy")
		case method == "SR.scan":
			return nil, fault(xapi.OtherOperationInProgress, "SR", sr, "scan", gone)
		}
		return nil, nil
	}
	c := p.dial()
	if _, err := c.VM(t.Context(), vm); err != nil {
		t.Fatal(err)
	}
	// Names of records that the client has read need no call.
	err := c.Call(t.Context(), "VM.start", nil, xapi.Ref(vm))
	if want := `VM.start: the VM's power state does not allow this [VM_BAD_POWER_STATE VM "web" (vm-uuid), halted, running]`; err == nil || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
	if !errors.Is(err, xapi.VMBadPowerState) {
		t.Errorf("%v is no VMBadPowerState any more", err)
	}
	// The client reads other names from the pool, once.
	err = c.Call(t.Context(), "VDI.destroy", nil, xapi.Ref(vdi))
	if n := p.count("VDI.get_record"); n != 0 {
		t.Errorf("%d calls though nobody asked for names", n)
	}
	if err = c.Explain(t.Context(), err); !strings.Contains(err.Error(), `[VDI_IN_USE VDI "web data" (vdi-uuid), destroy]`) {
		t.Errorf("%v", err)
	}
	_ = c.Explain(t.Context(), c.Call(t.Context(), "VDI.destroy", nil, xapi.Ref(vdi)))
	if n := p.count("VDI.get_record"); n != 1 {
		t.Errorf("%d calls for one name", n)
	}
	err = c.Explain(t.Context(), c.Call(t.Context(), "SR.scan", nil, xapi.Ref(sr)))
	if err == nil || !strings.Contains(err.Error(), "[OTHER_OPERATION_IN_PROGRESS SR, SR sr-uuid, scan, "+gone+"]") {
		t.Errorf("%v", err)
	}
}
