package xapisim

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"xenkeep/vhd"
)

// readVHD returns the disk in a stream, and the blocks that the stream
// contains.
func readVHD(t *testing.T, stream []byte) (*vhd.Image, []byte) {
	t.Helper()
	r, err := vhd.NewReader(bytes.NewReader(stream), vhd.Options{})
	if err != nil {
		t.Fatal(err)
	}
	disk := make([]byte, r.Size())
	buf := make([]byte, vhd.BlockSize)
	for {
		e, err := r.Next(context.Background(), buf)
		if err == io.EOF {
			return r.Image, disk
		}
		if err != nil {
			t.Fatal(err)
		}
		copy(disk[e.Offset:], buf[:e.Length])
	}
}

// content reads a whole volume.
func (c *client) content(vdi string) []byte {
	c.t.Helper()
	v, err := c.p.Volume(c.uuid("VDI", vdi))
	if err != nil {
		c.t.Fatal(err)
	}
	b := make([]byte, v.Size())
	if _, err := v.ReadAt(b, 0); err != nil && err != io.EOF {
		c.t.Fatal(err)
	}
	return b
}

func TestExportStream(t *testing.T) {
	c := start(t, nil)
	snap := c.snapshotDisk(0)
	full, task := c.export(snap, "format", "vhd")
	c.status(task, "success")
	if task["result"] != "" || task["progress"] != 1.0 {
		t.Errorf("task: %q %v", task["result"], task["progress"])
	}
	img, disk := readVHD(t, full)
	if img.IsDelta() || !bytes.Equal(disk, pattern(1, 8*mib)) {
		t.Error("the full export is not the disk")
	}
	f := img.Footer()
	if f.Time != 0 || string(f.Creator[:]) != "caml" {
		t.Errorf("timestamp %d, creator %q", f.Time, f.Creator)
	}
	if !bytes.Equal(full[1536:2048], make([]byte, 512)) {
		t.Error("the sector at 1536 is not zero")
	}
	if !bytes.Equal(full[2560:3072], bytes.Repeat([]byte{0xff}, 512)) {
		t.Error("the first sector bitmap is not all ones")
	}
	again, _ := c.export(snap, "format", "vhd")
	if bytes.Equal(full[68:84], again[68:84]) {
		t.Error("two exports have one unique id")
	}
	raw, _ := c.export(snap)
	if !bytes.Equal(raw, pattern(1, 8*mib)) {
		t.Error("the raw export is not the disk")
	}
}

// guestWrites changes one page of the VM's first disk.
func (c *client) guestWrites(off int64) []byte {
	c.t.Helper()
	live := c.content(c.disk(0))
	copy(live[off:off+4096], bytes.Repeat([]byte{0xAB}, 4096))
	path := filepath.Join(c.t.TempDir(), "new.raw")
	if err := os.WriteFile(path, live, 0o600); err != nil {
		c.t.Fatal(err)
	}
	n, err := c.p.GuestWrite(c.uuid("VDI", c.disk(0)), path)
	if err != nil || n != 4096 {
		c.t.Fatalf("guest wrote %d bytes, %v", n, err)
	}
	return live
}

func TestExportDelta(t *testing.T) {
	c := start(t, nil)
	base := c.snapshotDisk(0)
	live := c.guestWrites(5 * mib)
	snap := c.snapshotDisk(0)
	delta, task := c.export(snap, "format", "vhd", "base", base)
	c.status(task, "success")
	img, disk := readVHD(t, delta)
	if !img.IsDelta() || img.Allocated() != 2*mib || !img.Present(2) || !bytes.Equal(disk[4*mib:6*mib], live[4*mib:6*mib]) {
		t.Errorf("delta: %v, %d bytes", img.IsDelta(), img.Allocated())
	}
	// The snapshot of the other disk is not a base of this one, and yet the
	// server accepts it.
	unrelated, task := c.export(snap, "format", "vhd", "base", c.snapshotDisk(1))
	c.status(task, "success")
	if img, disk := readVHD(t, unrelated); img.Allocated() != 8*mib || !bytes.Equal(disk, live) {
		t.Errorf("with an unrelated base: %d bytes", img.Allocated())
	}
	same, _ := c.export(snap, "format", "vhd", "base", snap)
	if img, _ := readVHD(t, same); img.Allocated() != 0 {
		t.Errorf("without a change: %d bytes", img.Allocated())
	}
}

func TestExportHead(t *testing.T) {
	c := start(t, nil)
	snap := c.snapshotDisk(0)
	for _, path := range []string{"/export_raw_vdi", "/export_raw_vdi/"} {
		task := c.must("task.create", "x", "").(string)
		resp := c.get(c.url(path, "vdi", c.uuid("VDI", snap), "format", "VHD", "task_id", task))
		io.Copy(io.Discard, resp.Body)
		want := map[string]string{
			"Cache-Control": "no-cache, no-store", "Task-Id": task, "Content-Type": "application/vhd",
			"Content-Disposition": `attachment; filename="` + c.uuid("VDI", snap) + `.vhd"`,
		}
		for k, v := range want {
			if resp.Header.Get(k) != v {
				t.Errorf("%s: %s is %q, want %q", path, k, resp.Header.Get(k), v)
			}
		}
		if resp.StatusCode != 200 || resp.ContentLength != -1 || len(resp.TransferEncoding) != 0 || !resp.Close {
			t.Errorf("%s: %s, length %d, %v, close %v", path, resp.Status, resp.ContentLength, resp.TransferEncoding, resp.Close)
		}
	}
}

func TestCredentials(t *testing.T) {
	c := start(t, nil)
	snap := c.snapshotDisk(0)
	task := c.must("task.create", "x", "").(string)
	good := c.session
	for _, m := range []string{"GET", "PUT"} {
		c.session = "OpaqueRef:gone"
		req, _ := http.NewRequest(m, c.url(map[string]string{"GET": "/export_raw_vdi", "PUT": "/import_raw_vdi"}[m], "vdi", snap, "task_id", task), nil)
		c.session = good
		resp, err := c.hc.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != 401 || !strings.HasPrefix(resp.Header.Get("WWW-Authenticate"), "Basic realm=") {
			t.Errorf("%s with a bad session: %s %q", m, resp.Status, resp.Header.Get("WWW-Authenticate"))
		}
	}
	c.status(task, "pending")

	req, _ := http.NewRequest("GET", c.base+"/export_raw_vdi?vdi="+snap, nil)
	req.SetBasicAuth(c.p.User(), c.p.Password())
	resp, err := c.hc.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	b, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	if resp.StatusCode != 200 || len(b) != 8*mib {
		t.Errorf("basic: %s, %d bytes", resp.Status, len(b))
	}
	// The session in a cookie takes precedence over that in the query.
	req, _ = http.NewRequest("GET", c.base+"/export_raw_vdi?session_id=OpaqueRef:gone&vdi="+snap, nil)
	req.Header.Set("Cookie", "session_id="+c.session)
	if resp, err = c.hc.Do(req); err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 200 {
		t.Errorf("cookie: %s", resp.Status)
	}
}

// early are requests that are refused before the handler takes over the task.
// Row X12 of the fault list: a request that is refused before its handler
// starts gets a page immediately, and its task fails with the error for a
// missing permission, whatever the reason.
func TestRefusedBeforeHandler(t *testing.T) {
	c := start(t, nil)
	denied := func(what, action, why, answer string, task string) {
		t.Helper()
		if !strings.HasPrefix(answer, "HTTP/1.1 500 Internal Error\r\n") {
			t.Errorf("%s: %q", what, answer)
		}
		c.status(task, "failure", "RBAC_PERMISSION_DENIED", "http/"+action, why)
	}
	export := func(path string, kv ...string) (answer, task string) {
		task = c.must("task.create", "x", "").(string)
		resp := c.get(c.url(path, append([]string{"task_id", task}, kv...)...))
		return resp.Proto + " " + resp.Status + "\r\n", task
	}
	for _, vdi := range []string{"", "11111111-2222-3333-4444-555555555555"} {
		answer, task := export("/export_raw_vdi", "vdi", vdi)
		denied("export of "+vdi, "get_export_raw_vdi", "UUID_INVALID: [ VDI; "+vdi+" ]", answer, task)
	}
	answer, task := export("/export", "uuid", "11111111-2222-3333-4444-555555555555")
	denied("export of a VM", "get_export", "UUID_INVALID: [ VM; 11111111-2222-3333-4444-555555555555 ]", answer, task)
	task = c.must("task.create", "x", "").(string)
	said := c.put(c.url("/import_raw_vdi", "vdi", "11111111-2222-3333-4444-555555555555", "task_id", task), "", nil)
	denied("import", "put_import_raw_vdi", "UUID_INVALID: [ VDI; 11111111-2222-3333-4444-555555555555 ]", said, task)
	vdi := c.newDisk(c.sr("lvm"), 2*mib, map[string]any{})
	for _, pbd := range c.record("SR", c.sr("lvm"))["PBDs"].([]any) {
		c.must("PBD.unplug", pbd)
	}
	answer, task = export("/export_raw_vdi", "vdi", vdi)
	denied("SR that no host sees", "get_export_raw_vdi", "NO_HOSTS_AVAILABLE: [  ]", answer, task)
	// For an import, the answer is a 400 with the page after it, and the task
	// has the code.
	said, rec := c.importTask(vdi, "", nil)
	if !strings.HasPrefix(said, "HTTP/1.1 400 Bad Request\r\n") || !strings.Contains(said, "\r\n\r\nHTTP/1.1 500 Internal Error\r\n") {
		t.Errorf("import to an SR that no host sees: %q", said)
	}
	c.status(rec, "failure", "NO_HOSTS_AVAILABLE")
}

func TestUnknownFormat(t *testing.T) {
	c := start(t, nil)
	task := c.must("task.create", "x", "").(string)
	resp := c.get(c.url("/export_raw_vdi", "vdi", c.snapshotDisk(0), "format", "vdmk", "task_id", task))
	b, _ := io.ReadAll(resp.Body)
	if resp.StatusCode != 404 || resp.Proto != "HTTP/1.0" || len(b) != 0 {
		t.Errorf("%s %s with %d bytes", resp.Proto, resp.Status, len(b))
	}
	c.status(task, "failure", "INTERNAL_ERROR", "Unknown format vdmk")
}

func TestRefusedByRole(t *testing.T) {
	c := start(t, nil)
	c.p.Fault(Fault{On: "/export_raw_vdi", Status: 403})
	if resp := c.get(c.url("/export_raw_vdi", "vdi", c.snapshotDisk(0))); resp.StatusCode != 403 {
		t.Errorf("%s", resp.Status)
	}
}

// embedded splits a body at the answer inside it.
func embedded(b []byte) (data []byte, answer string) {
	i := bytes.Index(b, []byte("HTTP/1.1 500 Internal Error\r\n"))
	if i < 0 {
		return b, ""
	}
	return b[:i], string(b[i:])
}

func TestExportFailureIsEmbedded(t *testing.T) {
	c := start(t, nil)
	raw := c.newDisk(c.sr("lvmoiscsi"), 4*mib, map[string]any{"type": "raw"})
	huge := c.newDisk(c.sr("nfs"), 2040<<30, map[string]any{})
	for name, tc := range map[string]struct {
		vdi, base string
		want      []string
	}{
		"unknown base":     {c.snapshotDisk(0), "OpaqueRef:none", nil},
		"base without VHD": {c.snapshotDisk(0), raw, []string{"INTERNAL_ERROR"}},
	} {
		body, task := c.export(tc.vdi, "format", "vhd", "base", tc.base)
		data, answer := embedded(body)
		if len(data) != 0 || !strings.Contains(answer, "Additional information") {
			t.Errorf("%s: %d bytes, then %q", name, len(data), answer)
		}
		c.status(task, "failure")
		info := task["error_info"].([]any)
		if tc.want != nil && info[0] != tc.want[0] {
			t.Errorf("%s: %v, want %v", name, info, tc.want)
		}
		if name == "unknown base" { // the page contains the database's own text
			if !strings.Contains(answer, "Db_exn.Read_missing_uuid(&quot;VDI&quot;, &quot;&quot;, &quot;"+tc.base+"&quot;)") {
				t.Errorf("%s: the page says %q", name, answer)
			}
		} else if !strings.Contains(answer, info[0].(string)+": [ ") {
			t.Errorf("%s: the page does not name %v: %q", name, info[0], answer)
		}
	}
	if n := c.dom0VBDs(); n != 0 {
		t.Errorf("%d attachments left", n)
	}
	c.must("VDI.destroy", huge)
}

func TestExportTooLarge(t *testing.T) {
	c := start(t, nil)
	vdi := c.newDisk(c.sr("nfs"), 2*mib, map[string]any{})
	c.p.mu.Lock() // no driver creates a VHD of that size; qcow2 disks may have it
	c.p.db.put(c.p.db.find("VDI", vdi), "virtual_size", maxVHD+1)
	c.p.mu.Unlock()
	body, task := c.export(vdi, "format", "vhd")
	if data, answer := embedded(body); len(data) != 0 || !strings.Contains(answer, "VDI_TOO_LARGE") {
		t.Errorf("%d bytes, then %q", len(data), answer)
	}
	c.status(task, "failure", "VDI_TOO_LARGE", vdi, "2190433320960")
}

func TestExportCutWithTail(t *testing.T) {
	c := start(t, nil)
	snap := c.snapshotDisk(0)
	whole, _ := c.export(snap)
	for _, at := range []int64{0, 1, 511, 3*mib + 7, int64(len(whole)) - 1} {
		c.p.Fault(Fault{On: "/export_raw_vdi", Cut: true, CutAt: at, Embedded: true})
		body, task := c.export(snap)
		data, answer := embedded(body)
		if int64(len(data)) != at || !bytes.Equal(data, whole[:at]) || !strings.HasSuffix(answer, "VDI_IO_ERROR: [ Device I/O errors ]</body></html>") {
			t.Errorf("cut at %d: %d bytes, then %q", at, len(data), answer)
		}
		c.status(task, "failure", "VDI_IO_ERROR", "Device I/O errors")
	}
}

func TestExportCutWithoutTail(t *testing.T) {
	c := start(t, nil)
	snap := c.snapshotDisk(0)
	task := c.must("task.create", "x", "").(string)
	c.p.Fault(Fault{On: "/export_raw_vdi", Cut: true, CutAt: 5 * mib})
	body, err := io.ReadAll(c.get(c.url("/export_raw_vdi", "vdi", snap, "task_id", task)).Body)
	if err != nil || len(body) != 5*mib {
		t.Errorf("%d bytes, %v", len(body), err)
	}
	c.status(task, "pending")

	c.p.Fault(Fault{On: "/export_raw_vdi", Cut: true, CutAt: 5 * mib, Reset: true})
	body, err = io.ReadAll(c.get(c.url("/export_raw_vdi", "vdi", snap, "task_id", task)).Body)
	if err == nil || len(body) > 5*mib {
		t.Errorf("reset: %d bytes, %v", len(body), err)
	}
	c.status(task, "pending")
}

func TestExportStalls(t *testing.T) {
	c := start(t, nil)
	snap := c.snapshotDisk(0)
	c.p.Fault(Fault{On: "/export_raw_vdi", Cut: true, CutAt: mib, Stall: true})
	ctx, cancel := context.WithCancel(t.Context())
	req, _ := http.NewRequestWithContext(ctx, "GET", c.url("/export_raw_vdi", "vdi", snap), nil)
	resp, err := c.hc.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(resp.Body, make([]byte, mib)); err != nil {
		t.Fatal(err)
	}
	more := make(chan struct{})
	go func() {
		defer close(more)
		resp.Body.Read(make([]byte, 1))
	}()
	select {
	case <-more:
		t.Error("the stream goes on")
	case <-time.After(50 * time.Millisecond):
	}
	if c.dom0VBDs() != 1 {
		t.Error("the disk is not attached meanwhile")
	}
	cancel()
	<-more
	eventually(t, "the disk is let go", func() bool { return c.dom0VBDs() == 0 })
}

func TestOddSizeNeverEnds(t *testing.T) {
	c := start(t, nil)
	odd := filepath.Join(t.TempDir(), "odd.raw")
	if err := os.WriteFile(odd, pattern(3, 3*mib), 0o600); err != nil {
		t.Fatal(err)
	}
	c.p.mu.Lock()
	srObj := c.p.db.find("SR", c.sr1Locked("nfs"))
	uuid := newUUID()
	v, err := c.p.stores[srObj.ref].sr.AddImage(uuid, odd, map[string]string{"type": "raw"})
	if err == nil {
		c.p.db.create("VDI", map[string]any{"uuid": uuid, "location": uuid, "managed": true, "SR": srObj.ref, "virtual_size": v.Size(), "type": "user"})
	}
	c.p.mu.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	task := c.must("task.create", "x", "").(string)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	req, _ := http.NewRequestWithContext(ctx, "GET", c.url("/export_raw_vdi", "vdi", uuid, "format", "vhd", "task_id", task), nil)
	resp, err := c.hc.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if b, _ := io.ReadAll(resp.Body); ctx.Err() == nil {
		t.Errorf("the stream ended after %d bytes", len(b))
	}
	c.status(c.finished(task), "failure", "VDI_IO_ERROR", "Device I/O errors")
}

// sr1Locked is sr for callers that hold the pool's lock.
func (c *client) sr1Locked(kind string) string {
	for _, o := range c.p.db.all("SR") {
		if o.str("type") == kind {
			return o.ref
		}
	}
	return ""
}

func TestClientStopsReading(t *testing.T) {
	c := start(t, nil)
	snap := c.snapshotDisk(0)
	task := c.must("task.create", "x", "").(string)
	resp := c.get(c.url("/export_raw_vdi", "vdi", snap, "format", "vhd", "task_id", task))
	if _, err := io.ReadFull(resp.Body, make([]byte, 4096)); err != nil { // header and BAT
		t.Fatal(err)
	}
	c.status(task, "pending")
	resp.Body.Close()
	c.status(c.finished(task), "failure")
	eventually(t, "the disk is let go", func() bool { return c.dom0VBDs() == 0 })
	c.must("VDI.destroy", snap)
}

func TestDom0VBD(t *testing.T) {
	c := start(t, func(cfg *Config) { cfg.Linger = 100 * time.Millisecond })
	snap := c.snapshotDisk(0)
	resp := c.get(c.url("/export_raw_vdi", "vdi", snap))
	if _, err := io.ReadFull(resp.Body, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	if c.dom0VBDs() != 1 {
		t.Error("no attachment while the export runs")
	}
	c.refused([]string{"VDI_IN_USE", snap, "destroy"}, "VDI.destroy", snap)
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		t.Fatal(err)
	}
	c.refused([]string{"VDI_IN_USE", snap, "destroy"}, "VDI.destroy", snap)
	eventually(t, "the attachment goes", func() bool {
		_, err := c.call("VDI.destroy", snap)
		return err == nil
	})
}

func TestCancelHasDelay(t *testing.T) {
	c := start(t, func(cfg *Config) { cfg.Scale = 0.005 }) // ten seconds are 50 ms
	v, err := c.p.Volume(c.uuid("VDI", c.newDisk(c.sr("nfs"), 64<<20, map[string]any{})))
	if err != nil {
		t.Fatal(err)
	}
	b := pattern(9, 2*mib)
	for off := int64(0); off < v.Size(); off += int64(len(b)) {
		if _, err := v.WriteAt(b, off); err != nil {
			t.Fatal(err)
		}
	}
	task := c.must("task.create", "x", "").(string)
	resp := c.get(c.url("/export_raw_vdi", "vdi", v.UUID(), "format", "tar", "task_id", task))
	if _, err := io.ReadFull(resp.Body, make([]byte, mib)); err != nil {
		t.Fatal(err)
	}
	c.must("task.cancel", task)
	c.status(task, "pending")
	time.Sleep(100 * time.Millisecond) // the server is blocked meanwhile
	n, _ := io.Copy(io.Discard, io.LimitReader(resp.Body, 16*mib))
	time.Sleep(100 * time.Millisecond)
	rest, _ := io.Copy(io.Discard, resp.Body)
	if n+rest >= 63*mib {
		t.Errorf("all %d bytes came", n+rest+mib)
	}
	c.status(c.finished(task), "cancelled", "TASK_CANCELLED", task)
}

// Row X12: the tool that moves the bytes of a disk does not check tasks. A
// cancelled export runs to its end and succeeds, and its task keeps the
// cancellation request.
func TestCancelledExportRunsToItsEnd(t *testing.T) {
	c := start(t, func(cfg *Config) { cfg.CancelDelay = time.Nanosecond })
	snap := c.snapshotDisk(0)
	task := c.must("task.create", "cancelme", "").(string)
	resp := c.get(c.url("/export_raw_vdi", "vdi", snap, "task_id", task))
	if _, err := io.ReadFull(resp.Body, make([]byte, 512)); err != nil {
		t.Fatal(err)
	}
	c.must("task.cancel", task)
	if n, err := io.Copy(io.Discard, resp.Body); err != nil || n != 8*mib-512 {
		t.Errorf("%d bytes, %v", n+512, err)
	}
	rec := c.finished(task)
	c.status(rec, "success")
	want := map[string]any{"DummyRef:|" + rec["uuid"].(string) + "|task.cancel": "cancel"}
	if got := rec["current_operations"]; fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("current_operations %v, want %v", got, want)
	}
}

func TestGuestWriteOverHTTP(t *testing.T) {
	c := start(t, nil)
	path := filepath.Join(t.TempDir(), "x.raw")
	want := pattern(1, 8*mib)
	copy(want[mib:], "the guest was here")
	if err := os.WriteFile(path, want, 0o600); err != nil {
		t.Fatal(err)
	}
	resp, err := c.hc.Post(c.base+adminWrite+"?vdi="+c.uuid("VDI", c.disk(0))+"&image="+path, "", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if b, _ := io.ReadAll(resp.Body); string(b) != `{"bytes_written":4096}` {
		t.Errorf("%s %s", resp.Status, b)
	}
	if !bytes.Equal(c.content(c.disk(0)), want) {
		t.Error("the disk is not the file")
	}
}

func TestExportMetadata(t *testing.T) {
	c := start(t, nil)
	c.must("VM.snapshot", c.vm(), "s")
	for _, q := range [][]string{{"ref", c.vm()}, {"uuid", c.p.Ready().VMs[0].UUID}} {
		resp := c.get(c.url("/export_metadata", q...))
		b, _ := io.ReadAll(resp.Body)
		if resp.StatusCode != 200 || resp.Proto != "HTTP/1.0" || resp.ContentLength != int64(len(b)) || len(b) < 10000 {
			t.Fatalf("%s %s, %d of %d bytes", resp.Proto, resp.Status, len(b), resp.ContentLength)
		}
		if !bytes.HasPrefix(b, []byte("ova.xml\x00")) || bytes.Count(b, []byte("<name>class</name><value>VM</value>")) != 2 {
			t.Errorf("archive: %d VMs", bytes.Count(b, []byte("<name>class</name><value>VM</value>")))
		}
		without := c.get(c.url("/export_metadata", append(q, "export_snapshots", "false", "excluded_device_types", "vif")...))
		b, _ = io.ReadAll(without.Body)
		if bytes.Contains(b, []byte("<name>class</name><value>VIF</value>")) || bytes.Count(b, []byte("<name>class</name><value>VM</value>")) != 1 {
			t.Error("options are ignored")
		}
	}
	if resp := c.get(c.url("/export_metadata", "ref", "OpaqueRef:x")); resp.StatusCode != 500 {
		t.Errorf("unknown VM: %s", resp.Status)
	}
	c.p.Fault(Fault{On: "/export_metadata", Code: "INTERNAL_ERROR", Params: []string{"x"}})
	if resp := c.get(c.url("/export_metadata", "ref", c.vm())); resp.StatusCode != 500 {
		t.Errorf("failure: %s", resp.Status)
	}
}

// BenchmarkExport reads a sparse file's export over TLS; b.SetBytes makes it
// report the rate.
func BenchmarkExport(b *testing.B) {
	path := filepath.Join(b.TempDir(), "disk.raw")
	const size = 512 << 20
	f, err := os.Create(path)
	if err != nil {
		b.Fatal(err)
	}
	for off := int64(0); off < size; off += 2 * mib {
		if _, err := f.WriteAt([]byte("x"), off); err != nil {
			b.Fatal(err)
		}
	}
	f.Truncate(size)
	f.Close()
	for _, plain := range []bool{false, true} {
		b.Run(fmt.Sprintf("tls=%v", !plain), func(b *testing.B) {
			p, err := New(Config{State: b.TempDir(), NoTLS: plain, VMs: []VMConfig{{Name: "a", Disks: []string{path}, Halted: true}}})
			if err != nil {
				b.Fatal(err)
			}
			defer p.Close()
			p.mu.Lock()
			s, _ := p.login(p.User(), p.Password(), "")
			p.mu.Unlock()
			c := &client{base: p.URL(), session: s.ref}
			b.SetBytes(size)
			for b.Loop() {
				hc := insecure()
				resp, err := hc.Get(c.url("/export_raw_vdi", "vdi", p.Ready().VMs[0].Disks[0].VDI, "format", "vhd"))
				if err != nil {
					b.Fatal(err)
				}
				n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, resp.Body, make([]byte, 1<<20))
				resp.Body.Close()
				if err != nil || n < size {
					b.Fatalf("%d bytes, %v", n, err)
				}
			}
		})
	}
}
