package xapi

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

func golden(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", "golden", name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// The answers in testdata/golden were recorded from xapi itself (xen-api commit
// e2ee48d6).
func TestErrorsInBothForms(t *testing.T) {
	const gone, ghost = "OpaqueRef:7826c5ec-1b11-b3ab-575c-2e839bbb868d", "OpaqueRef:11111111-2222-3333-4444-555555555555"
	for name, want := range map[string]Error{
		"login-wrong":       {Code: SessionAuthenticationFailed, Params: []string{"root", "Authentication failure"}},
		"session-invalid":   {Code: SessionInvalid, Params: []string{ghost}},
		"map-duplicate-key": {Code: MapDuplicateKey, Params: []string{"VM", "other_config", gone, "k"}},
		"param-count":       {Code: ParameterCountMismatch, Params: []string{"VM.get_record", "1", "3"}},
		"handle-invalid":    {Code: HandleInvalid, Params: []string{"VM", ghost}},
		"unknown-method":    {Code: MethodUnknown, Params: []string{"VM.no_such_method"}},
		"no-async":          {Code: "Fault", Params: []string{"No async mode for this operation (rpc: VM.get_record)"}},
		"revert-failed":     {Code: "VM_REVERT_FAILED", Params: []string{gone, string(NullRef)}},
	} {
		for _, form := range []string{"json1", "json2"} {
			_, err := decodeAnswer(golden(t, name+"."+form+".json"))
			var e *Error
			if !errors.As(err, &e) || !reflect.DeepEqual(*e, want) {
				t.Errorf("%s.%s: got %#v, want %#v", name, form, err, want)
			}
			if !errors.Is(err, want.Code) || errors.Is(err, Code("OTHER")) || !IsCode(err, "OTHER", want.Code) {
				t.Errorf("%s.%s: errors.Is does not see the code", name, form)
			}
		}
	}
	for _, form := range []string{"json1", "json2"} {
		raw, err := decodeAnswer(golden(t, "login-ok."+form+".json"))
		var ref Ref
		if err != nil || json.Unmarshal(raw, &ref) != nil || !strings.HasPrefix(string(ref), "OpaqueRef:") {
			t.Errorf("login-ok.%s: %s, %v", form, raw, err)
		}
	}
}

func TestOddAnswers(t *testing.T) {
	for body, want := range map[string]string{
		``:                                     "not JSON-RPC",
		`[]`:                                   "not JSON-RPC",
		`{}`:                                   "neither result nor error",
		`{"id":1,"error":null}`:                "neither result nor error",
		`{"error":[],"id":1}`:                  "unknown form",
		`{"error":{},"id":1}`:                  "unknown form",
		`{"error":7}`:                          "unknown form",
		`{"error":["A",5,null]}`:               "[A 5, ]",
		`{"error":{"message":"A","data":"x"}}`: "[A x]",
		`{"error":{"message":"A"}}`:            "[A]",
	} {
		_, err := decodeAnswer([]byte(body))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want ...%s...", body, err, want)
		}
	}
	if raw, err := decodeAnswer([]byte(`{"result":"","error":null}`)); err != nil || string(raw) != `""` {
		t.Errorf("void: %s, %v", raw, err)
	}
}

func decodeAll[T any, P recordPtr[T]](t *testing.T, name string) []T {
	t.Helper()
	raw, err := decodeAnswer(golden(t, name+".json"))
	if err != nil {
		t.Fatal(err)
	}
	var raws map[Ref]json.RawMessage
	if err := json.Unmarshal(raw, &raws); err != nil {
		t.Fatal(err)
	}
	var list []T
	for ref, raw := range raws {
		r, err := DecodeRecord[T, P](ref, raw)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		list = append(list, r)
		checkFields(t, name, reflect.TypeOf(r), raw)
	}
	if len(list) == 0 {
		t.Fatalf("%s: no records", name)
	}
	return list
}

// checkFields checks that every field of a record type exists under exactly
// that name in a record of the real xapi.
func checkFields(t *testing.T, name string, typ reflect.Type, raw []byte) {
	t.Helper()
	var all map[string]json.RawMessage
	if err := json.Unmarshal(raw, &all); err != nil {
		t.Fatal(err)
	}
	for i := range typ.NumField() {
		tag := typ.Field(i).Tag.Get("json")
		if _, ok := all[tag]; tag != "-" && !ok {
			t.Errorf("%s: the real record has no field %q", name, tag)
		}
	}
}

func TestRecords(t *testing.T) {
	kinds := map[string]int{}
	for _, vm := range decodeAll[VM](t, "VM") {
		switch {
		case vm.Real():
			kinds["real"]++
		case vm.IsASnapshot && vm.IsATemplate:
			kinds["snapshot"]++
		case vm.IsControlDomain:
			kinds["dom0"]++
		case vm.IsATemplate:
			kinds["template"]++
		}
		if vm.Ref == "" || vm.UUID == "" || !bytes.Contains(vm.Raw, []byte(vm.UUID)) {
			t.Errorf("VM %q: reference or raw record missing", vm.NameLabel)
		}
	}
	for _, kind := range []string{"real", "snapshot", "dom0"} {
		if kinds[kind] == 0 {
			t.Errorf("no %s among the VMs: %v", kind, kinds)
		}
	}
	for _, vdi := range decodeAll[VDI](t, "VDI") {
		if vdi.VirtualSize == 0 || vdi.SR.IsNull() {
			t.Errorf("VDI %s: no size or SR", vdi.UUID)
		}
		if vdi.IsASnapshot && vdi.SnapshotTime.IsZero() {
			t.Errorf("VDI %s: snapshot without a time", vdi.UUID)
		}
	}
	decodeAll[VBD](t, "VBD")
	decodeAll[VIF](t, "VIF")
	decodeAll[SR](t, "SR")
	decodeAll[PBD](t, "PBD")
	decodeAll[Network](t, "network")
	decodeAll[Task](t, "task")
	decodeAll[HostMetrics](t, "host_metrics")
	decodeAll[SM](t, "SM")
	host := decodeAll[Host](t, "host")[0]
	if host.SoftwareVersion["product_version"] == "" || host.APIVersionMajor != 2 {
		t.Errorf("host version %v, API %d", host.SoftwareVersion, host.APIVersionMajor)
	}
	if pool := decodeAll[Pool](t, "pool")[0]; pool.Master != host.Ref {
		t.Errorf("pool master %s, host %s", pool.Master, host.Ref)
	}

	raw, err := decodeAnswer(golden(t, "VDI-cbt_metadata.json"))
	if err != nil {
		t.Fatal(err)
	}
	vdi, err := DecodeRecord[VDI]("OpaqueRef:x", raw)
	if err != nil || vdi.Type != "cbt_metadata" || !vdi.CBTEnabled {
		t.Errorf("cbt_metadata record: type %q, cbt %v, %v", vdi.Type, vdi.CBTEnabled, err)
	}
}

func TestNumbers(t *testing.T) {
	for in, want := range map[string]Int{`0`: 0, `-1`: -1, `"2190433320960"`: 2190433320960, `9223372036854775807`: 1<<63 - 1, `3.0`: 3, `null`: 0} {
		var got Int
		if err := json.Unmarshal([]byte(in), &got); err != nil || got != want {
			t.Errorf("%s: %d, %v", in, got, err)
		}
	}
	for _, in := range []string{`"x"`, `""`, `1.5`, `{}`, `true`, `1e300`} {
		var got Int
		if err := json.Unmarshal([]byte(in), &got); err == nil {
			t.Errorf("%s: taken as %d", in, got)
		}
	}
	var f Float
	if err := json.Unmarshal([]byte(`"0.25"`), &f); err != nil || f != 0.25 {
		t.Errorf("float: %v, %v", f, err)
	}
}

func TestTimes(t *testing.T) {
	want := time.Date(2026, 8, 21, 10, 11, 12, 0, time.UTC)
	for _, s := range []string{
		"20260821T10:11:12Z", "20260821T10:11:12", "2026-08-21T10:11:12Z",
		"20260821T12:11:12+0200", "2026-08-21T12:11:12+02:00", "2026-08-21T10:11:12",
	} {
		if got, err := ParseTime(s); err != nil || !got.Equal(want) {
			t.Errorf("%s: %v, %v", s, got, err)
		}
	}
	never, err := ParseTime("19700101T00:00:00Z")
	if err != nil || !never.IsZero() || never.String() != "19700101T00:00:00Z" {
		t.Errorf("never: %v, %v", never, err)
	}
	if b, _ := json.Marshal(Time{want}); string(b) != `"20260821T10:11:12Z"` {
		t.Errorf("marshalled %s", b)
	}
	if _, err := ParseTime("yesterday"); err == nil {
		t.Error("yesterday was understood")
	}
}

func TestTaskResults(t *testing.T) {
	for in, want := range map[string][]string{
		"":                                  nil,
		"<value/>":                          nil,
		"<value></value>":                   nil,
		"OpaqueRef:a":                       {"OpaqueRef:a"},
		"<value>OpaqueRef:a</value>":        {"OpaqueRef:a"},
		"<value><string>x</string></value>": {"x"},
		"<value>a&lt;b</value>":             {"a<b"},
		"<value><array><data></data></array></value>":                                 nil,
		"<value><array><data><value>a</value><value>b</value></data></array></value>": {"a", "b"},
	} {
		if got, err := ParseTaskResult(in); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %q, %v", in, got, err)
		}
	}
	if _, err := ParseTaskResult("<value>cut"); err == nil {
		t.Error("a cut result was taken")
	}
	for _, name := range []string{"task-success.json", "task-success.json1.json"} {
		raw, err := decodeAnswer(golden(t, name))
		if err != nil {
			t.Fatal(err)
		}
		task, err := DecodeRecord[Task]("OpaqueRef:t", raw)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := task.outcome(); err != nil || len(got) != 1 || got[0] != "OpaqueRef:eb9c7a34-03ef-d0ff-29ab-49c09d9e3a8f" {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	raw, _ := decodeAnswer(golden(t, "task-failure.json"))
	task, err := DecodeRecord[Task]("OpaqueRef:t", raw)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := task.outcome(); !IsCode(err, VMBadPowerState) {
		t.Errorf("failed task: %v", err)
	}
	if _, err := (&Task{Status: "cancelled"}).outcome(); !IsCode(err, TaskCancelled) {
		t.Errorf("cancelled task: %v", err)
	}
	if _, err := (&Task{Status: "failure"}).outcome(); err == nil {
		t.Error("a failed task without a reason passed")
	}
}

func TestErrorPages(t *testing.T) {
	e := ParseErrorPage(golden(t, "export-embedded-500.txt"))
	if e == nil || e.Code != "SR_BACKEND_FAILURE_1200" || len(e.Params) != 3 || !strings.Contains(e.Params[1], "errno=2") {
		t.Errorf("embedded failure: %#v", e)
	}
	// The HTML error page after a cut stream, and after the 400 of an import.
	junk := append(bytes.Repeat([]byte{0xff, 'A', ':', ' ', '['}, 1000), golden(t, "export-embedded-500.txt")...)
	if e := ParseErrorPage(junk); e == nil || e.Code != "SR_BACKEND_FAILURE_1200" {
		t.Errorf("embedded failure behind data: %#v", e)
	}
	if e := ParseErrorPage([]byte("<html><body>Additional information </h1>VDI_IN_USE: [ OpaqueRef:x; export ]</body></html>")); !reflect.DeepEqual(e, &Error{Code: VDIInUse, Params: []string{"OpaqueRef:x", "export"}}) {
		t.Errorf("VDI_IN_USE page: %#v", e)
	}
	for _, name := range []string{"export-500.txt", "export-401.txt"} {
		page := golden(t, name)
		if e := ParseErrorPage(page); e != nil {
			t.Errorf("%s: code %s out of nothing", name, e.Code)
		}
		if text := pageText(page); !strings.Contains(text, "HTTP") || strings.Contains(text, "<") {
			t.Errorf("%s: text %q", name, text)
		}
	}
	if e := ParseErrorPage([]byte("data X_Y_Z: [ a ]")); e != nil {
		t.Errorf("guest data taken for a page: %#v", e)
	}
}

func TestErrorText(t *testing.T) {
	e := &Error{Code: VDIInUse, Method: "VDI.destroy", Params: []string{"OpaqueRef:x", "destroy\n"}}
	if got, want := e.Error(), "VDI.destroy: the disk is in use [VDI_IN_USE OpaqueRef:x, destroy ]"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if e := (&Error{Code: SessionInvalid, Params: []string{"OpaqueRef:secret"}}); strings.Contains(e.Error(), "secret") {
		t.Errorf("the session shows in %q", e)
	}
}

func FuzzAnswer(f *testing.F) {
	for _, name := range []string{"login-wrong.json1.json", "login-wrong.json2.json", "servertime.json", "handle-invalid.json1.json"} {
		f.Add(golden(f, name))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		raw, err := decodeAnswer(data)
		if err == nil && !json.Valid(raw) {
			t.Errorf("result %q is not JSON", raw)
		}
		if err != nil && err.Error() == "" {
			t.Error("an error without words")
		}
	})
}

func FuzzRecord(f *testing.F) {
	f.Add([]byte(`{"uuid":"u","virtual_size":"5","snapshot_time":"20260821T10:11:12Z","tags":["a"],"sm_config":{"a":"b"}}`))
	f.Add([]byte(`{"virtual_size":1e3,"snapshot_time":null}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		vdi, err := DecodeRecord[VDI]("OpaqueRef:x", data)
		if err != nil {
			return
		}
		if !bytes.Equal(vdi.Raw, data) {
			t.Error("raw record changed")
		}
		again, err := DecodeRecord[VDI]("OpaqueRef:x", vdi.Raw)
		if err != nil || !reflect.DeepEqual(vdi, again) {
			t.Errorf("decoded twice: %v", err)
		}
	})
}

func FuzzTaskResult(f *testing.F) {
	f.Add("<value><array><data><value>a</value></data></array></value>")
	f.Add("<value>OpaqueRef:x</value>")
	f.Fuzz(func(t *testing.T, s string) {
		values, err := ParseTaskResult(s)
		if err != nil {
			return
		}
		total := 0
		for _, v := range values {
			total += len(v)
		}
		if total > 3*len(s)+3 { // invalid UTF-8 grows to three times its size
			t.Errorf("%d bytes out of %d", total, len(s))
		}
	})
}

func FuzzErrorPage(f *testing.F) {
	f.Add(golden(f, "export-embedded-500.txt"))
	f.Fuzz(func(t *testing.T, page []byte) {
		if e := ParseErrorPage(page); e != nil && (e.Code == "" || e.Error() == "") {
			t.Errorf("%#v", e)
		}
		if len(pageText(page)) > 320 {
			t.Error("long text")
		}
	})
}
