package xapisim

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"regexp"
	"strings"
	"testing"
	"time"
)

// testdata/golden-data.tar.zst contains a second recording of the real xapi
// (xen-api commit e2ee48d6), this time with the programs that move a disk's
// data; its README describes how it was made.

// notGoldenData lists the parts that the replay does not compare, by folder and
// part: head, body, task or answer, with the reason. A listed part that
// compares equal is an error.
var notGoldenData = map[string]string{
	"517-VM-start-while-dom0-RO answer": "the recording's hypervisor is simulated and attaches no storage; on a real host the storage layer refuses",
	"518-VM-start-running2 answer":      "follows from 517",
	"542-export-metadata body":          "the records of the recording's VM are longer",
	"551-export-vm-ok body":             "the records of the recording's VM are longer",
}

// dataReplay replays the second recording against a pool.
type dataReplay struct {
	*replay
	disk   []byte // the content of the first disk
	stream []byte // a VHD of it
	vbds   map[string]string
}

// The recorded references of objects that were created without a transcript.
const (
	recA, recB, recSmall  = "7c6df7d5-f044-34b7-c18a-60cf7e0b277a", "dcae6e5f-149e-86cb-8e14-c4f45675d6ac", "36e578d6-53f1-08b7-3fd3-699c15adf0f0"
	recSnap, recSnapUUID  = "b66b9b23-11ec-2c91-d792-56d4a0615ebf", "6aaab1fa-5700-4114-a913-6e067f0107a9"
	recRaw, recRawOfVM    = "74610b08-52af-4155-3271-be7e091fce69", "274b9163-8817-6c0a-1840-dec90eac10fb"
	recMeta, recLive      = "d366c056-c829-4306-2bb6-bf965d1a66fd", "4bc1f051-4824-fc8f-cd59-cd0dfa2f23f0"
	recBig, recFrom       = "f387179c-7fc2-9e4e-9f2c-a0e6d167764d", "f98ccdac-ad30-4b7b-cb9a-be1cea5a8e81"
	recTo, recDom0VBD     = "bd64d30f-7b1e-96bf-53f1-20bfa3429ba1", "3c2e3055-9dcb-58e6-60cc-202e347152d8"
	recVM, recRunning     = "a49ac09d-814c-248e-af61-0a63d1867925", "57a41e16-00f4-9669-d63c-0d323fabdaa2"
	recRawVM, recBIOS     = "695c5abc-a4e6-42d8-9742-62ce7ce86b32", "aa5906c0-5dc9-1d0f-645b-bd0a49256f85"
	recSR, recHost        = "f9460139-0fab-6bf3-1a81-5ef2a5e3a0ed", "20aa53ab-c038-9716-c820-0518aa5771c9"
	recDom0, recSchedule  = "7dfba8a9-4306-5e7c-0201-2505d0444c64", "7d73e8ef-608a-5040-9bfe-66cad1b34104"
	recPIF, recNetwork    = "c7c33c56-a6ab-9c11-4fcc-0d6579928284", "2103f907-8333-966b-368f-84e6bc21ee07"
	recTaskDestroyed      = "2fd6b7d8-ac85-2cc1-8a0b-e35071f34e04"
	recTaskCheckpoint     = "8891c822-18ad-8cea-1bea-d10821b42a9c"
	recCheckpointedResult = "4bf77b57-6549-58c4-7a2f-b0b9c4d9ade2"
)

var recSessions = []string{"42f61c9e-48a2-1b97-9543-3f29a8266c89", "70e1f789-cec5-b3de-1bd1-402bab4c8105", "0382c144-2698-42e0-15b8-410b18dcee66", "8c5aea59-e428-82db-996f-38a187073219"}

// Row X12 of the fault list: the simulator answers transfers and calls about
// attached disks as the real server did in the recording.
func TestGoldenData(t *testing.T) {
	names, calls := readRecording(t, "testdata/golden-data.tar.zst")
	r := newDataReplay(t)
	listed, compared := map[string]bool{}, 0
	for _, name := range names {
		if strings.HasSuffix(name, ".json") {
			continue // replayed while the disk is attached
		}
		parts := r.step(name, calls[name])
		for suffix := range calls {
			if r.belongs(name, suffix) {
				parts[suffix+" answer"] = r.answerAlone(suffix, calls[suffix]["answer.json"])
			}
		}
		for part, diffs := range parts {
			key := part
			if !strings.Contains(part, " ") {
				key = name + " " + part
			}
			reason := notGoldenData[key]
			listed[key] = true
			switch {
			case reason != "" && len(diffs) == 0:
				t.Errorf("%s: listed as not golden (%s) and yet equal: take it off the list", key, reason)
			case reason == "" && len(diffs) > 0:
				t.Errorf("%s:\n  %s", key, strings.Join(diffs, "\n  "))
			case reason == "":
				compared++
			}
		}
	}
	for key := range notGoldenData {
		if !listed[key] {
			t.Errorf("notGoldenData lists %q, which is not in the recording", key)
		}
	}
	for name := range calls {
		if strings.HasSuffix(name, ".json") && !listed[name+" answer"] {
			t.Errorf("%s was not replayed", name)
		}
	}
	t.Logf("%d parts of %d cases compare equal; %d are listed", compared, len(names), len(notGoldenData))
}

// newDataReplay creates the pool and the disks of the recording.
func newDataReplay(t *testing.T) *dataReplay {
	t.Helper()
	p, err := New(Config{
		NoTLS: true, Hosts: 1, User: "root", Password: "golden-pw", Scale: 0.01, State: t.TempDir(), NBD: NBDTLS, NBDHybrid: true,
		SRs: []SRConfig{{Name: "file", Type: "file"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	r := &dataReplay{replay: &replay{t: t, p: p, toSim: map[string]string{}, wide: map[string]string{}}, vbds: map[string]string{}}
	for _, s := range recSessions {
		r.open(s)
	}
	r.bind(recHost, p.hosts[0].ref)
	r.bind(recDom0, p.hosts[0].dom0)
	r.bind(recSR, p.db.all("SR")[0].ref)
	r.bind(recPIF, p.db.all("PIF")[0].ref)
	r.bind(recNetwork, p.db.all("PIF")[0].str("network"))
	for rec, size := range map[string]int64{recA: 8 * mib, recB: 8 * mib, recSmall: 4 * mib, recLive: 64 * mib, recBig: 660602880} {
		r.bind(rec, r.newDisk(size, map[string]any{}))
	}
	r.do("VDI.set_name_label", r.sim(recBig), "big-root")
	r.do("network.set_name_label", r.sim(recNetwork), "net0")
	for _, rec := range []string{recRaw, recRawOfVM} {
		r.bind(rec, r.newDisk(8*mib, map[string]any{"type": "raw"}))
	}
	for rec, disk := range map[string]string{recBIOS: "", recRunning: recBig, recRawVM: recRawOfVM} {
		r.bind(rec, r.newMachine("vm", disk))
	}
	r.do("VM.start", r.newMachine("live", recLive), false, false)
	r.bind(recVM, r.newMachine("oem", ""))
	r.do("VM.set_blocked_operations", r.sim(recVM), map[string]any{"clone": "no"})
	p.mu.Lock()
	p.db.put(p.db.find("VM", r.sim(recVM)), "memory_overhead", int64(7<<20)) // the recording's memory daemon is a stub
	p.mu.Unlock()
	r.do("VM.set_bios_strings", r.sim(recVM), map[string]any{"bios-vendor": "ACME"})
	r.bind(recSchedule, r.do("VMSS.create", map[string]any{"name_label": "x", "type": "snapshot", "frequency": "hourly", "schedule": map[string]any{}}).(string))
	r.disk = make([]byte, 8*mib)
	_, _ = rand.NewChaCha8([32]byte{9}).Read(r.disk)
	return r
}

func (r *dataReplay) sim(rec string) string { return r.toSim["OpaqueRef:"+rec] }

func (r *dataReplay) newDisk(size int64, sm map[string]any) string {
	return r.do("VDI.create", map[string]any{
		"name_label": "disk", "name_description": "", "SR": r.sim(recSR), "virtual_size": size, "type": "user", "sharable": false,
		"read_only": false, "other_config": map[string]any{}, "sm_config": sm,
	}).(string)
}

// newMachine creates a halted VM, with a disk if disk is not empty.
func (r *dataReplay) newMachine(name, disk string) string {
	vm := r.do("VM.create", machineRecord(name)).(string)
	if disk != "" {
		r.plug(vm, r.sim(disk), "RW", false)
	}
	return vm
}

func (r *dataReplay) plug(vm, vdi, mode string, plug bool) string {
	vbd := r.do("VBD.create", map[string]any{
		"VM": vm, "VDI": vdi, "userdevice": "autodetect", "bootable": false, "mode": mode, "type": "Disk", "empty": false,
		"unpluggable": true, "other_config": map[string]any{}, "qos_algorithm_type": "", "qos_algorithm_params": map[string]any{},
	}).(string)
	if plug {
		r.do("VBD.plug", vbd)
	}
	return vbd
}

// prepare performs the steps that happened between the recorded cases.
func (r *dataReplay) prepare(name string) {
	dom0 := r.sim(recDom0)
	switch name[:3] {
	case "416":
		snap := r.do("VDI.snapshot", r.sim(recA), map[string]any{}).(string)
		r.bind(recSnap, snap)
		r.toSim[recSnapUUID] = r.do("VDI.get_uuid", snap).(string)
	case "428":
		r.vbds["rw"] = r.plug(dom0, r.sim(recA), "RW", true)
	case "431":
		r.do("VBD.unplug", r.vbds["rw"])
		r.do("VBD.destroy", r.vbds["rw"])
		r.vbds["ro"] = r.plug(dom0, r.sim(recA), "RO", true)
	case "434":
		r.do("VBD.unplug", r.vbds["ro"])
		r.do("VBD.destroy", r.vbds["ro"])
		r.bind(recMeta, r.trackedSnapshot(recB))
		r.do("VDI.data_destroy", r.sim(recMeta))
	case "506":
		r.bind(recFrom, r.trackedSnapshot(recBig))
		r.bind(recTo, r.trackedSnapshot(recBig))
	case "509":
		r.settle(recTaskDestroyed)
	case "514":
		vbd := r.plug(dom0, r.sim(recBig), "RO", true)
		r.bind(recDom0VBD, vbd)
	case "519":
		r.do("VBD.unplug", r.sim(recDom0VBD))
		r.do("VBD.destroy", r.sim(recDom0VBD))
		if r.do("VM.get_power_state", r.sim(recRunning)) == "Halted" {
			r.do("VM.start", r.sim(recRunning), false, false)
		}
		r.p.mu.Lock() // the recording's guest has drivers
		vm := r.p.db.find("VM", r.sim(recRunning))
		r.p.db.put(r.p.db.find("VM_guest_metrics", vm.str("guest_metrics")), "PV_drivers_detected", true)
		r.p.mu.Unlock()
	case "521":
		r.settle(recTaskCheckpoint)
	}
}

func (r *dataReplay) trackedSnapshot(rec string) string {
	r.do("VDI.enable_cbt", r.sim(rec))
	return r.do("VDI.snapshot", r.sim(rec), map[string]any{}).(string)
}

// settle waits for the end of a task.
func (r *dataReplay) settle(rec string) {
	r.t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for r.do("task.get_status", r.sim(rec)) == "pending" {
		if time.Now().After(deadline) {
			r.t.Fatalf("task %s does not end", rec)
		}
		time.Sleep(time.Millisecond)
	}
}

// belongs reports whether an answer without a request was recorded in the state
// after a case.
func (r *dataReplay) belongs(name, answer string) bool {
	switch {
	case strings.HasPrefix(answer, "rpc-attached-rw-"):
		return strings.HasPrefix(name, "430-")
	case strings.HasPrefix(answer, "rpc-attached-ro-"):
		return strings.HasPrefix(name, "432-")
	}
	return strings.HasSuffix(answer, ".json") && strings.HasPrefix(name, "403-")
}

// step replays one case and returns the differences by part.
func (r *dataReplay) step(name string, files goldenCall) map[string][]string {
	r.t.Helper()
	r.prepare(name)
	if req := files["json2.request.json"]; req != nil {
		head, got := r.http("POST", "/jsonrpc", "", r.translate(req))
		if strings.HasPrefix(name, "503-") { // port and certificate differ between hosts
			got = anyPort.ReplaceAll(anyCert.ReplaceAll(got, []byte(`"cert":"`+recordedCert+`"`)), []byte(`"port":10809`))
		}
		want := strings.Split(strings.TrimSpace(string(files["json2.head.txt"])), "\n")
		return map[string][]string{
			"head":   compareHeads(want[:len(want)-1], head), // its last line is a duration
			"answer": r.compareBodies("json2", files["json2.response.json"], got),
		}
	}
	return r.transfer(name, files)
}

const recordedCert = `-----BEGIN CERTIFICATE-----\n(PEM)\n-----END CERTIFICATE-----`

var (
	anyCert = regexp.MustCompile(`"cert":"-----BEGIN CERTIFICATE-----\\n[^"]+-----END CERTIFICATE-----\\n"`)
	anyPort = regexp.MustCompile(`"port":\d+`)
)

var taskParam = regexp.MustCompile(`task_id=OpaqueRef:([0-9a-f-]{36})`)

// transfer replays a case of the data path.
func (r *dataReplay) transfer(name string, files goldenCall) map[string][]string {
	r.t.Helper()
	var rec map[string]any
	if err := json.Unmarshal(files["task.json"], &rec); err != nil {
		r.t.Fatal(err)
	}
	request := string(files["request.txt"])
	m := taskParam.FindStringSubmatch(request)
	task := r.do("task.create", rec["name_label"], rec["name_description"]).(string)
	r.bind(m[1], task)
	want := string(files["response.txt"])
	answer := r.exchange(request, r.body(name, request), !strings.Contains(want, gaveUp))
	head, body, _ := bytes.Cut(answer, []byte("\r\n\r\n"))
	wantHead, wantBody, _ := strings.Cut(strings.ReplaceAll(want, "\r\n", "\n"), "\n\n")
	if strings.HasPrefix(name, "402-") {
		r.stream = body
	}
	r.settle(m[1])
	return map[string][]string{
		"head": r.compareDataHeads(wantHead, strings.ReplaceAll(string(head), "\r\n", "\n")),
		"body": r.compareDataBodies(wantBody, body),
		"task": r.compareTasks(rec, task),
	}
}

// body returns the body of a request.
func (r *dataReplay) body(name, request string) []byte {
	m := regexp.MustCompile(`\(body (\d+) bytes\)`).FindStringSubmatch(request)
	if m == nil {
		return nil
	}
	var n int
	fmt.Sscan(m[1], &n)
	garbage := make([]byte, n)
	switch name[:3] {
	case "401":
		return r.disk
	case "404", "405", "411":
		return r.stream[:n]
	case "409":
		b := append([]byte{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x20, 0}, r.disk[:2*mib]...)
		return append(b, make([]byte, 12)...)
	}
	_, _ = rand.NewChaCha8([32]byte{4}).Read(garbage)
	return garbage
}

// gaveUp appears in a recorded answer at the point where the client had waited
// for more data without success.
const gaveUp = "##TimeoutError"

// exchange sends a recorded request and returns the whole answer, or only its
// head if the recording's client stopped there.
func (r *dataReplay) exchange(request string, body []byte, whole bool) []byte {
	r.t.Helper()
	c, err := net.Dial("tcp", r.p.hosts[0].ln.Addr().String())
	if err != nil {
		r.t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	head, _, _ := strings.Cut(strings.ReplaceAll(request, "\r\n", "\n"), "\n\n")
	head = strings.ReplaceAll(strings.TrimSpace(head), "\n", "\r\n")
	_, _ = c.Write(append(r.translate([]byte(head)), "\r\n\r\n"...))
	go func() { _, _ = c.Write(body) }()
	var got []byte
	for b := make([]byte, 1); !whole && !bytes.HasSuffix(got, []byte("\r\n\r\n")); {
		if _, err := io.ReadFull(c, b); err != nil {
			r.t.Fatal(err)
		}
		got = append(got, b...)
	}
	if !whole {
		return got
	}
	got, err = io.ReadAll(c)
	if err != nil {
		r.t.Fatalf("%s: %v after %d bytes", head, err, len(got))
	}
	return got
}

var (
	anyFileName = regexp.MustCompile(`filename="[0-9a-f-]{36}\.`)
	anyServer   = regexp.MustCompile(`(?m)^Server: .*$`)
	anyLength   = regexp.MustCompile(`(?m)^Content-Length: \d+$`)
)

// compareDataHeads compares heads byte for byte, except for names and lengths
// that are specific to the recording.
func (r *dataReplay) compareDataHeads(want, got string) []string {
	want = string(r.translate([]byte(want)))
	for _, x := range []*regexp.Regexp{anyFileName, anyServer, anyLength} {
		want, got = x.ReplaceAllString(want, "?"), x.ReplaceAllString(got, "?")
	}
	if want != got {
		return []string{fmt.Sprintf("recorded %q, got %q", want, got)}
	}
	return nil
}

// compareDataBodies compares data by length, and texts byte for byte.
func (r *dataReplay) compareDataBodies(want string, got []byte) []string {
	var n int
	if _, err := fmt.Sscanf(want, "(body %d bytes)", &n); err == nil {
		if len(got) != n {
			return []string{fmt.Sprintf("recorded %d bytes, got %d", n, len(got))}
		}
		return nil
	}
	if i := max(strings.Index(want, "(the daemon reset"), strings.Index(want, gaveUp)); i >= 0 {
		want = want[:i]
	}
	w := strings.TrimSpace(string(r.translate([]byte(want))))
	g := strings.TrimSpace(strings.ReplaceAll(string(got), "\r\n", "\n"))
	if w != g {
		return []string{fmt.Sprintf("recorded %q, got %q", w, g)}
	}
	return nil
}

// compareTasks compares the record of a task with the recorded one.
func (r *dataReplay) compareTasks(want map[string]any, task string) []string {
	r.t.Helper()
	_, body := r.http("POST", "/jsonrpc", "", fmt.Appendf(nil, `{"jsonrpc":"2.0","method":"task.get_record","params":["%s","%s"],"id":1}`, r.session, task))
	var answer struct{ Result map[string]any }
	if err := json.Unmarshal(body, &answer); err != nil {
		return []string{err.Error()}
	}
	got := answer.Result
	diffs := append(sameKeys("task", want, got), sameKinds("task", want, got)...)
	for _, k := range []string{"status", "progress", "result", "error_info", "type", "allowed_operations", "subtask_of", "other_config"} {
		w, g := string(r.translate(fmt.Appendf(nil, "%q", want[k]))), fmt.Sprintf("%q", got[k])
		if w != g {
			diffs = append(diffs, fmt.Sprintf("task.%s: recorded %s, got %s", k, w, g))
		}
	}
	w, _ := want["current_operations"].(map[string]any)
	g, _ := got["current_operations"].(map[string]any)
	if len(w) != len(g) {
		diffs = append(diffs, fmt.Sprintf("task.current_operations: recorded %v, got %v", w, g))
	}
	return diffs
}

// answerAlone replays a call of which the recording contains only the answer,
// or the export that was cancelled.
func (r *dataReplay) answerAlone(name string, file []byte) []string {
	r.t.Helper()
	var rec struct {
		Call   string
		Answer json.RawMessage
	}
	if err := json.Unmarshal(file, &rec); err != nil {
		r.t.Fatal(err)
	}
	if rec.Call == "" {
		return r.cancelledExport(file)
	}
	args := map[string]string{"VDI.resize": ",16777216", "VDI.snapshot": ",{}", "VDI.clone": ",{}"}[rec.Call]
	_, got := r.http("POST", "/jsonrpc", "", fmt.Appendf(nil, `{"jsonrpc":"2.0","method":%q,"params":["%s","%s"%s],"id":1}`,
		rec.Call, r.session, r.sim(recA), args))
	return r.compareBodies("json2", regexp.MustCompile(`"id": \d+`).ReplaceAll(rec.Answer, []byte(`"id": 1`)), got)
}

// cancelledExport cancels an export in progress and compares its task.
func (r *dataReplay) cancelledExport(file []byte) []string {
	r.t.Helper()
	var want map[string]any
	if err := json.Unmarshal(file, &want); err != nil {
		r.t.Fatal(err)
	}
	task := r.do("task.create", want["name_label"], "").(string)
	c, err := net.Dial("tcp", r.p.hosts[0].ln.Addr().String())
	if err != nil {
		r.t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprintf(c, "GET /export_raw_vdi?vdi=%s&format=raw&session_id=%s&task_id=%s HTTP/1.1\r\nHost: pool\r\n\r\n", r.sim(recA), r.session, task)
	if _, err := io.ReadFull(c, make([]byte, 1024)); err != nil {
		r.t.Fatal(err)
	}
	r.do("task.cancel", task)
	if _, err := io.Copy(io.Discard, c); err != nil {
		r.t.Fatal(err)
	}
	return r.compareTasks(want, task)
}
