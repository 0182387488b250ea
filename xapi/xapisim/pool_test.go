package xapisim

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"reflect"
	"sort"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestListMethodsMatchesRecording(t *testing.T) {
	_, calls := readGolden(t)
	var want struct{ Result []string }
	if err := json.Unmarshal(calls["016-system-listMethods"]["json2.response.json"], &want); err != nil {
		t.Fatal(err)
	}
	s, err := loadSchema()
	if err != nil {
		t.Fatal(err)
	}
	got := append([]string(nil), s.names...)
	sort.Strings(got)
	sort.Strings(want.Result)
	if !reflect.DeepEqual(got, want.Result) {
		t.Errorf("%d methods, recorded %d", len(got), len(want.Result))
	}
}

func TestMemberSaysHostIsSlave(t *testing.T) {
	c := start(t, nil)
	member := c.p.HostURL(1)
	for _, m := range []string{"session.login_with_password", "VM.get_all"} {
		args := []any{}
		if m != "VM.get_all" {
			args = []any{c.p.User(), c.p.Password()}
		}
		_, err := c.callAt(member, m, args...)
		e, ok := err.(*apiError)
		if !ok || e.Message != "HOST_IS_SLAVE" || len(e.Data) != 1 || net.ParseIP(e.Data[0]) == nil {
			t.Errorf("%s at the member: %v", m, err)
		}
	}
	if rec := c.record("host", c.record("pool", c.must("pool.get_all").([]any)[0])["master"]); rec["address"] != "127.0.0.1" {
		t.Errorf("master's address is %v", rec["address"])
	}
}

func TestRedirectToCapableHost(t *testing.T) {
	c := start(t, nil)
	vdi := c.newDisk(c.sr("lvm"), 4*mib, map[string]any{}) // only the member can reach it
	task := c.must("task.create", "x", "").(string)
	for _, m := range []string{"GET", "PUT"} {
		path := map[string]string{"GET": "/export_raw_vdi", "PUT": "/import_raw_vdi"}[m]
		u := c.url(path, "vdi", vdi, "task_id", task, "format", "vhd")
		req, _ := http.NewRequest(m, u, nil)
		resp, err := c.hc.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		pu, _ := url.Parse(u)
		want := "https://127.0.0.2" + path + "?" + pu.RawQuery
		if resp.StatusCode != 302 || resp.Header.Get("Location") != want || len(b) != 0 {
			t.Errorf("%s: %s to %q with %d bytes, want 302 to %q", m, resp.Status, resp.Header.Get("Location"), len(b), want)
		}
	}
	c.status(task, "pending")
	c.base = c.p.HostURL(1)
	resp := c.get(c.url("/export_raw_vdi", "vdi", vdi, "format", "vhd"))
	if b, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != 200 || len(b) < 2048 {
		t.Errorf("at the member: %s, %d bytes, %v", resp.Status, len(b), err)
	}
}

func TestRedirectPicksAtRandom(t *testing.T) {
	c := start(t, func(cfg *Config) { cfg.Hosts = 3 })
	vdi := c.newDisk(c.sr("nfs"), 2*mib, map[string]any{})
	master := c.record("pool", c.must("pool.get_all").([]any)[0])["master"]
	for _, pbd := range c.record("SR", c.sr("nfs"))["PBDs"].([]any) {
		if c.record("PBD", pbd)["host"] == master {
			// The guest of this pool runs on the master and keeps the SR
			// plugged.
			c.must("VM.hard_shutdown", c.vm())
			c.must("PBD.unplug", pbd)
		}
	}
	seen := map[string]int{}
	for range 40 {
		resp := c.get(c.url("/export_raw_vdi", "vdi", vdi))
		u, _ := url.Parse(resp.Header.Get("Location"))
		seen[u.Host]++
	}
	if len(seen) != 2 || seen["127.0.0.2"] == 0 || seen["127.0.0.3"] == 0 {
		t.Errorf("redirects went to %v, want both members", seen)
	}
}

func TestNamesAreNotUnique(t *testing.T) {
	c := start(t, nil)
	vm := c.vm()
	snap := c.must("VM.snapshot", vm, "web").(string)
	c.must("VM.hard_shutdown", vm)
	tpl := c.must("VM.clone", vm, "web").(string)
	c.must("VM.set_is_a_template", tpl, true)
	got := c.must("VM.get_by_name_label", "web").([]any)
	if len(got) != 3 {
		t.Fatalf("%d objects named web, want VM, snapshot and template", len(got))
	}
	rec := c.record("VM", snap)
	if rec["is_a_snapshot"] != true || rec["is_a_template"] != true {
		t.Errorf("a VM snapshot must be a template, too: %v %v", rec["is_a_snapshot"], rec["is_a_template"])
	}
}

func TestLoginDelay(t *testing.T) {
	c := start(t, func(cfg *Config) { cfg.LoginDelay = 5 * time.Second }) // scaled to 50 ms
	began := time.Now()
	c.refused([]string{"SESSION_AUTHENTICATION_FAILED", "root", "Authentication failure"}, "session.login_with_password", "root", "wrong")
	if d := time.Since(began); d < 50*time.Millisecond {
		t.Errorf("refused after %v", d)
	}
}

func TestHeadLimit(t *testing.T) {
	c := start(t, nil)
	for _, n := range []int{maxHead, maxHead + 1} {
		conn := c.dial(strings.TrimPrefix(c.base, "https://"))
		head := "OPTIONS /x HTTP/1.1\r\nX: "
		fmt.Fprint(conn, head+strings.Repeat("a", n-len(head)-4)+"\r\n\r\n")
		line, err := bufio.NewReader(conn).ReadString('\n')
		conn.Close()
		want := "HTTP/1.1 200 OK\r\n"
		if n > maxHead {
			want = "HTTP/1.1 431 Request Header Fields Too Large\r\n"
		}
		if err != nil || line != want {
			t.Errorf("%d bytes of head: %q, %v", n, line, err)
		}
	}
}

func TestSlowHeadTimesOut(t *testing.T) {
	c := start(t, nil)
	c.p.cfg.HeadTimeout = 50 * time.Millisecond
	conn := c.dial(strings.TrimPrefix(c.base, "https://"))
	defer conn.Close()
	fmt.Fprint(conn, "GET / HTT")
	line, _ := bufio.NewReader(conn).ReadString('\n')
	if line != "HTTP/1.1 408 Request Timeout\r\n" {
		t.Errorf("got %q", line)
	}
}

func TestBodyLimit(t *testing.T) {
	c := start(t, nil)
	for _, n := range []int{maxBody, maxBody + 1} {
		body := `{"jsonrpc":"2.0","method":"system.listMethods","params":[],"id":1}`
		body += strings.Repeat(" ", n-len(body))
		resp, err := c.hc.Post(c.base+"/jsonrpc", "text/plain", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if want := map[bool]int{true: 200, false: 500}[n == maxBody]; resp.StatusCode != want {
			t.Errorf("%d bytes: %s, want %d", n, resp.Status, want)
		}
	}
	req, _ := http.NewRequest("POST", c.base+"/jsonrpc", io.MultiReader(strings.NewReader("{}"))) // no length
	resp, err := c.hc.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 500 {
		t.Errorf("without a length: %s", resp.Status)
	}
}

func TestUnderscoreNames(t *testing.T) {
	c := start(t, nil)
	task := c.must("task_create", "a", "").(string)
	c.must("task_set_status", task, "success")
	c.must("VM_get_record", c.vm())
	c.must("VM_guest_metrics_get_all_records")
	c.refused([]string{"MESSAGE_METHOD_UNKNOWN", "VM_nope"}, "VM_nope")
}

func TestAnswersAreBare(t *testing.T) {
	c := start(t, nil)
	resp, err := c.hc.Post(c.base+"/jsonrpc", "x/y", strings.NewReader(`{"jsonrpc":"2.0","method":"system.listMethods","params":[],"id":"s"}`))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if got := resp.Header.Get("Content-Type"); got != "application/json" {
		t.Errorf("content type %q", got)
	}
	for _, path := range []string{"/", "/RPC2", "/xmlrpc", "/no/such"} {
		body := `<?xml version="1.0"?><methodCall><methodName>VDI.get_virtual_size</methodName><params><param><value>` + c.session +
			`</value></param><param><value><string>` + c.disk(0) + `</string></value></param></params></methodCall>`
		resp, err := c.hc.Post(c.base+path, "text/xml", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		want := `<?xml version="1.0"?><methodResponse><params><param><value><struct><member><name>Status</name><value>Success</value></member>` +
			`<member><name>Value</name><value>8388608</value></member></struct></value></param></params></methodResponse>`
		if string(b) != want || resp.Header.Get("Content-Type") != "text/xml" {
			t.Errorf("%s: %s", path, b)
		}
	}
}

func TestRecordsAreWhole(t *testing.T) {
	c := start(t, nil)
	c.must("VM.snapshot", c.vm(), "s")
	s, err := loadSchema()
	if err != nil {
		t.Fatal(err)
	}
	kinds := map[kind]string{kString: "string", kRef: "string", kEnum: "string", kDate: "string", kInt: "float64", kFloat: "float64",
		kBool: "bool", kSet: "[]interface {}", kMap: "map[string]interface {}"}
	for _, cls := range []string{"network", "PIF", "pool", "SR", "task", "VBD", "VDI", "VIF", "VM", "VM_guest_metrics", "host", "PBD", "host_metrics", "SM", "Certificate"} {
		recs := c.must(cls + ".get_all_records").(map[string]any)
		if len(recs) == 0 && cls != "task" {
			t.Errorf("%s: no records", cls)
		}
		for ref, v := range recs {
			rec := v.(map[string]any)
			if len(rec) != len(s.classes[cls].fields) {
				t.Errorf("%s %s: %d fields, want %d", cls, ref, len(rec), len(s.classes[cls].fields))
			}
			for _, f := range s.classes[cls].fields {
				if got := fmt.Sprintf("%T", rec[f.name]); got != kinds[f.typ.kind] {
					t.Errorf("%s.%s: %s, want %s", cls, f.name, got, kinds[f.typ.kind])
				}
			}
		}
	}
}

func TestReferencesLead(t *testing.T) {
	c := start(t, nil)
	c.must("VM.snapshot", c.vm(), "s")
	c.p.mu.Lock()
	defer c.p.mu.Unlock()
	for _, cls := range c.p.db.sch.order {
		for _, o := range c.p.db.all(cls.name) {
			for i, f := range cls.fields {
				if f.typ.kind == kRef {
					if ref := o.vals[i].(string); ref != nullRef && c.p.db.find(f.typ.name, ref) == nil {
						t.Errorf("%s.%s of %s leads nowhere: %s", cls.name, f.name, o.ref, ref)
					}
				}
				if f.typ.kind == kSet && f.typ.elem.kind == kRef {
					for _, ref := range o.vals[i].([]any) {
						if c.p.db.find(f.typ.elem.name, ref.(string)) == nil {
							t.Errorf("%s.%s of %s leads nowhere: %s", cls.name, f.name, o.ref, ref)
						}
					}
				}
			}
		}
	}
}

func TestPartialRecordsTakeDefaults(t *testing.T) {
	c := start(t, nil)
	vm := c.vm()
	vdi := c.must("VDI.create", map[string]any{
		"name_label": "x", "SR": c.sr("nfs"), "virtual_size": 1, "type": "user", "sharable": false, "read_only": false, "other_config": map[string]any{},
	})
	vbd := c.must("VBD.create", map[string]any{
		"VM": vm, "VDI": vdi, "userdevice": "autodetect", "bootable": false, "mode": "RW", "type": "Disk", "empty": false,
		"other_config": map[string]any{}, "qos_algorithm_type": "", "qos_algorithm_params": map[string]any{}, "no_such_field": 1,
	})
	rec := c.record("VBD", vbd)
	if rec["userdevice"] != "2" || rec["currently_attached"] != false || rec["device"] != "" || rec["unpluggable"] != true {
		t.Errorf("VBD: %v", rec)
	}
	vif := c.must("VIF.create", map[string]any{
		"device": "1", "network": c.record("VIF", c.record("VM", vm)["VIFs"].([]any)[0])["network"], "VM": vm, "MAC": "", "MTU": 1500,
		"other_config": map[string]any{}, "qos_algorithm_type": "", "qos_algorithm_params": map[string]any{},
	})
	if rec := c.record("VIF", vif); rec["MAC_autogenerated"] != true || len(rec["MAC"].(string)) != 17 || rec["currently_attached"] != false {
		t.Errorf("VIF: %v", rec)
	}
	c.refused([]string{"INTERNAL_ERROR", `Server_helpers.Dispatcher_FieldNotFound("virtual_size")`}, "VDI.create", map[string]any{"name_label": "x", "SR": c.sr("nfs")})
}

func TestManyCallsWhileEventsHang(t *testing.T) {
	c := start(t, func(cfg *Config) { cfg.Scale = 1 })
	pool := c.must("pool.get_all").([]any)[0]
	token := c.must("event.inject", "pool", pool).(string)
	res := c.must("event.from", []string{"pool"}, token, 60.1).(map[string]any)
	if ev := res["events"].([]any); len(ev) != 1 || ev[0].(map[string]any)["ref"] != pool {
		t.Fatalf("after event.inject: %v", ev)
	}
	token = res["token"].(string)
	type answer struct {
		res any
		err error
	}
	hung := make(chan answer, 1)
	go func() {
		v, err := c.call("event.from", []string{"vm"}, token, 60.1)
		hung <- answer{v, err}
	}()
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			for range 10 {
				if _, err := c.call("VM.get_all_records"); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	select {
	case a := <-hung:
		t.Fatalf("event.from did not hang: %v %v", a.res, a.err)
	default:
	}
	c.must("VM.add_to_other_config", c.vm(), "k", "v")
	a := <-hung
	if a.err != nil {
		t.Fatal(a.err)
	}
	ev := a.res.(map[string]any)["events"].([]any)
	if len(ev) != 1 {
		t.Fatalf("%d events", len(ev))
	}
	if m := ev[0].(map[string]any); m["class"] != "vm" || m["operation"] != "mod" || m["snapshot"].(map[string]any)["other_config"].(map[string]any)["k"] != "v" {
		t.Errorf("event: %v", m)
	}
}

func TestRefCountsAreTrue(t *testing.T) {
	c := start(t, nil)
	for range 3 {
		c.must("task.create", "t", "")
	}
	counts := c.must("event.from", []string{"pool"}, "", 0.1).(map[string]any)["valid_ref_counts"].(map[string]any)
	for cls, lower := range map[string]string{"task": "task", "VM": "vm", "VDI": "vdi", "VBD": "vbd", "SR": "sr"} {
		if n := len(c.must(cls + ".get_all").([]any)); counts[lower] != float64(n) {
			t.Errorf("%s: counted %v, there are %d", lower, counts[lower], n)
		}
	}
	if s, _ := loadSchema(); len(counts) != len(s.classes) {
		t.Errorf("%d classes counted, want %d", len(counts), len(s.classes))
	}
}

func TestUnknownEventClassesHearNothing(t *testing.T) {
	c := start(t, nil)
	for _, cls := range []string{"nosuch", "a/b/c", "", "/"} {
		res := c.must("event.from", []string{cls}, "", 1.1).(map[string]any)
		if n := len(res["events"].([]any)); n != 0 {
			t.Errorf("%q: %d events", cls, n)
		}
	}
	if n := len(c.must("event.from", []string{"POOL"}, "", -1).(map[string]any)["events"].([]any)); n != 1 {
		t.Errorf("POOL with a negative whole number for a time-out: %d events", n)
	}
	c.refused([]string{"EVENT_FROM_TOKEN_PARSE_FAILURE", "x"}, "event.from", []string{"vm"}, "x", 1.0)
}

func TestCertificatesOfAllHosts(t *testing.T) {
	c := start(t, nil)
	found := map[string]bool{}
	for _, v := range c.must("host.get_all_records").(map[string]any) {
		certs := v.(map[string]any)["certificates"].([]any)
		if len(certs) != 1 {
			t.Fatalf("certificates: %v", certs)
		}
		rec := c.record("Certificate", certs[0])
		found[strings.ToLower(strings.ReplaceAll(rec["fingerprint_sha256"].(string), ":", ""))] = true
	}
	for _, f := range c.p.Fingerprints() {
		if !found[f] {
			t.Errorf("no record of the certificate %s", f)
		}
	}
}

func TestStillBootingIsTheOldForm(t *testing.T) {
	c := start(t, nil)
	c.p.Fault(Fault{On: "*", Code: "HOST_STILL_BOOTING"})
	resp, err := c.hc.Post(c.base+"/jsonrpc", "", strings.NewReader(`{"jsonrpc":"2.0","method":"VM.get_all","params":["`+c.session+`"],"id":1}`))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if b, _ := io.ReadAll(resp.Body); string(b) != `{"result":null,"error":["HOST_STILL_BOOTING"],"id":1}` {
		t.Errorf("got %s", b)
	}
}

func TestScriptedCallFaults(t *testing.T) {
	c := start(t, nil)
	vm := c.vm()
	c.p.Fault(Fault{On: "VM.get_record", Nth: 2, Code: "HOST_OFFLINE", Params: []string{"h"}})
	c.must("VM.get_record", vm)
	c.refused([]string{"HOST_OFFLINE", "h"}, "VM.get_record", vm)
	c.must("VM.get_record", vm)

	c.p.Fault(Fault{On: "VM.snapshot", Reset: true, After: true})
	if _, err := c.call("VM.snapshot", vm, "done and lost"); err == nil {
		t.Error("the answer arrived")
	}
	if n := len(c.must("VM.get_by_name_label", "done and lost").([]any)); n != 1 {
		t.Errorf("%d snapshots, want the one whose answer was lost", n)
	}
	c.p.Fault(Fault{On: "VM.snapshot", DropSession: true})
	c.refused([]string{"SESSION_INVALID", c.session}, "VM.snapshot", vm, "x")
	c.refused([]string{"SESSION_INVALID", c.session}, "VM.get_all")
}

func TestDumpComparesPools(t *testing.T) {
	c := start(t, nil)
	before := c.p.Dump()
	snap := c.must("VM.snapshot", c.vm(), "s").(string)
	if reflect.DeepEqual(before, c.p.Dump()) {
		t.Fatal("a snapshot is not seen")
	}
	vbds := c.record("VM", snap)["VBDs"].([]any)
	var disks []any
	for _, vbd := range vbds {
		if v := c.record("VBD", vbd); v["type"] == "Disk" {
			disks = append(disks, v["VDI"])
		}
	}
	c.must("VM.destroy", snap)
	for _, d := range disks {
		c.must("VDI.destroy", d)
	}
	c.p.GC()
	if after := c.p.Dump(); !reflect.DeepEqual(before, after) {
		for cls := range before {
			for ref := range before[cls] {
				for f, v := range before[cls][ref] {
					if !reflect.DeepEqual(v, after[cls][ref][f]) {
						t.Errorf("%s %s.%s: %v, then %v", cls, ref, f, v, after[cls][ref][f])
					}
				}
			}
			if len(before[cls]) != len(after[cls]) {
				t.Errorf("%s: %d, then %d", cls, len(before[cls]), len(after[cls]))
			}
		}
	}
}

func TestReadyIsOneJSONLine(t *testing.T) {
	c := start(t, nil)
	b, err := json.Marshal(c.p.Ready())
	if err != nil {
		t.Fatal(err)
	}
	var m map[string]any
	if err := json.Unmarshal(b, &m); err != nil {
		t.Fatal(err)
	}
	disk := m["vms"].([]any)[0].(map[string]any)["disks"].([]any)[1].(map[string]any)
	if m["url"] != c.p.URL() || disk["device"] != "xvdb" || disk["size"] != float64(8*mib) || len(m["srs"].([]any)) != 4 {
		t.Errorf("ready: %s", b)
	}
}
