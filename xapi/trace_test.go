package xapi

import (
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"
)

// Arguments are shown only if they are known to be harmless.
func TestTraceArguments(t *testing.T) {
	const session, vm, uuid = Ref("OpaqueRef:session"), Ref("OpaqueRef:vm"), "3e1b1b3e-9d3c-4f6c-8a8b-0d3f3c0c9d11"
	type device struct {
		Password string `json:"password"`
		Server   string `json:"server"`
	}
	for _, c := range []struct {
		method string
		params []any
		want   []string
	}{
		{"session.login_with_password", []any{"root", "secret", "1.0", "xenkeep"}, nil},
		{"session.logout", []any{session}, nil},
		{"VM.get_record", []any{session, vm}, []string{"OpaqueRef:vm"}},
		{"VM.get_by_name_label", []any{session, "web"}, []string{`"web"`}},
		{"VM.snapshot", []any{session, vm, "xenkeep web"}, []string{"OpaqueRef:vm", `"xenkeep web"`}},
		{"VM.add_to_other_config", []any{session, vm, "key", "secret"}, []string{"OpaqueRef:vm", `"key"`, "(6 bytes)"}},
		{"secret.create", []any{session, device{"secret", "nas"}}, []string{"(record of password server)"}},
		{"SR.create", []any{session, map[string]string{"password": "secret"}, int64(7), true}, []string{"(record of password)", "7", "true"}},
		{"pool.join", []any{session, "host", "root", "secret"}, []string{"(4 bytes)", "(4 bytes)", "(6 bytes)"}},
		{"VDI.get_by_uuid", []any{session, uuid}, []string{`"` + uuid + `"`}},
		{"event.from", []any{session, []string{"vm"}, "token", 30.0}, []string{"(6 bytes)", "(5 bytes)", "30"}},
		{"VBD.destroy", []any{session, []Ref{vm}, nil}, []string{"[OpaqueRef:vm]", "null"}},
	} {
		if got := summaries(c.method, c.params); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %q, want %q", c.method, got, c.want)
		}
	}
}

// Errors are shown with the sessions and the password masked.
func TestTraceErrors(t *testing.T) {
	var got []TraceEvent
	c := &Client{cfg: Config{Password: "secret", Trace: func(e TraceEvent) { got = append(got, e) }}, session: "OpaqueRef:new"}
	c.trace(time.Now(), TraceEvent{Kind: TraceCall, Method: "VM.start"}, "OpaqueRef:old", errors.New("OpaqueRef:old, OpaqueRef:new, secret, OpaqueRef:vm"))
	c.TraceNBD("host:10809", time.Now(), errors.New("refused"))
	if want := "(session), (session), (password), OpaqueRef:vm"; got[0].Error != want {
		t.Errorf("%q, want %q", got[0].Error, want)
	}
	if e := got[1]; e.Kind != TraceNBD || e.Host != "host:10809" || e.Error != "refused" || e.Millis < 0 {
		t.Errorf("NBD: %+v", e)
	}
	// To mask a password of one letter would show it by the holes.
	c.cfg.Password = "e"
	if got := c.mask("refused", ""); strings.Contains(got, "(password)") {
		t.Errorf("%q", got)
	}
}
