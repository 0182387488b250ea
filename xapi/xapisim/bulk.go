package xapisim

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"strings"
	"time"

	"xenkeep/xapi/xapisim/sr"
)

// maxVHD is the size of the largest disk that can be exported as a VHD (xen-api
// ocaml/libs/vhd, Vhd.max_disk_size).
const maxVHD = int64(sr.MaxVHDSize)

// transfer is a bulk request in progress.
type transfer struct {
	c     *conn
	r     *httpRequest
	task  string // reference
	fault *Fault
	moved int64     // bytes of body transferred
	total int64     // expected, 0 if unknown
	seen  time.Time // when a cancellation request was first seen
	next  int64     // value of moved at which to check for cancellation again
	// deaf marks transfers that run to their end even if their task is
	// cancelled, because a program other than xapi moves their bytes.
	deaf bool
}

var (
	errCut  = errors.New("stream cut by a scripted fault")
	errGone = errors.New("client is gone")
)

// authorise finds the session of a bulk request; temporary ones end with it.
// The caller sends the error answer. Pool.mu must be held.
func (c *conn) authorise(r *httpRequest) (session *object, temporary bool) {
	if ref := r.credential("session_id"); ref != "" {
		s, _ := c.pool.session(ref)
		return s, false
	}
	if user, pw, ok := r.basicAuth(); ok {
		if s, err := c.pool.login(user, pw, "http"); err == nil {
			return s, true
		}
	}
	return nil, false
}

func unauthorised(realm string) string {
	return pageText("401 Unauthorised", "401 unauthorised", "Please check your credentials and retry.",
		"WWW-Authenticate: Basic realm=\""+realm+"\"\r\n")
}

// redirect returns the answer that redirects the client to another host with
// the same query.
func (c *conn) redirect(r *httpRequest, h *host) string {
	scheme, addr := "https", h.address
	if c.pool.cfg.NoTLS {
		scheme = "http"
	}
	if strings.Contains(addr, ":") {
		addr = "[" + addr + "]"
	}
	if c.pool.cfg.RedirectPort {
		addr = net.JoinHostPort(h.address, c.pool.port)
	}
	loc := (&url.URL{Scheme: scheme, Host: addr, Path: r.path, RawQuery: r.rawQuery}).String()
	return "HTTP/1.1 302 Found\r\nLocation: " + loc + "\r\nConnection: close\r\ncontent-length: 0\r\n" + noCache + "\r\n"
}

// taskOf returns the client's task, or a new one. Pool.mu must be held.
func (p *Pool) taskOf(r *httpRequest, label string) string {
	if t := p.db.find("task", r.credential("task_id")); t != nil {
		return t.ref
	}
	t := p.newTask(label, "")
	if parent := r.param("subtask_of"); p.db.find("task", parent) != nil {
		p.db.put(t, "subtask_of", parent)
	}
	return t.ref
}

func (p *Pool) finish(task, result string, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err != nil {
		p.complete(task, "", asError(err))
		return
	}
	p.complete(task, result, nil)
}

// vdiParam finds a disk by reference or UUID. Pool.mu must be held.
func (p *Pool) vdiParam(v string) *object {
	if o := p.db.find("VDI", v); o != nil {
		return o
	}
	if v == "" {
		return nil
	}
	return p.db.byUUID("VDI", v)
}

// missingError is the API error for an object that does not exist, with the two
// texts that the server uses for it: one for pages and one for tasks.
type missingError struct {
	api  *Error
	page string
}

func (m *missingError) Error() string { return m.page }

// missing returns the server's error for an object that a bulk request names
// and that does not exist.
func missing(cls, v string) error {
	return &missingError{fail("UUID_INVALID", cls, v), fmt.Sprintf("Db_exn.Read_missing_uuid(%q, \"\", %q)", cls, v)}
}

// pageOf returns the text of an error on a page.
func pageOf(err error) string {
	if m, ok := err.(*missingError); ok {
		return m.page
	}
	return asError(err).Error()
}

// failEarly fails the task of a request that is refused before its handler
// starts, and returns the page. Whatever the reason, the task fails with the
// error for a missing permission (xen-api ocaml/xapi/xapi_http.ml, rbac_raise).
// Pool.mu must be held.
func (c *conn) failEarly(r *httpRequest, action string, err error) (page string) {
	if t := c.pool.db.find("task", r.credential("task_id")); t != nil {
		c.pool.complete(t.ref, "", fail("RBAC_PERMISSION_DENIED", "http/"+action, asError(err).Error()))
	}
	return internalError(pageOf(err))
}

// pass counts n bytes, and stops the stream if a fault or a cancellation
// request applies. It returns how many of the bytes may be transferred.
func (t *transfer) pass(n int) (int, error) {
	p := t.c.pool
	if t.moved >= t.next {
		t.next = t.moved + 8<<20
		p.mu.Lock()
		if !t.deaf && p.cancelled(t.task) && t.seen.IsZero() {
			t.seen = time.Now()
		}
		if task := p.db.find("task", t.task); task != nil && t.total > 0 && task.str("status") == "pending" {
			p.db.put(task, "progress", min(1, float64(t.moved)/float64(t.total)))
		}
		p.mu.Unlock()
	}
	if !t.seen.IsZero() && time.Since(t.seen) >= p.scaled(p.cfg.CancelDelay) {
		return 0, fail("TASK_CANCELLED", t.task)
	}
	if f := t.fault; f != nil && f.Cut && t.moved+int64(n) >= f.CutAt {
		return int(max(0, f.CutAt-t.moved)), errCut
	}
	return n, nil
}

// Write sends body data.
func (t *transfer) Write(b []byte) (int, error) {
	n, stop := t.pass(len(b))
	w, err := t.c.Conn.Write(b[:n])
	t.moved += int64(w)
	if err != nil {
		return w, errGone
	}
	return w, stop
}

// Read receives body data.
func (t *transfer) Read(b []byte) (int, error) {
	n, stop := t.pass(len(b))
	if stop != nil && n == 0 {
		return 0, stop
	}
	r, err := t.c.br.Read(b[:n])
	t.moved += int64(r)
	return r, err
}

// cut ends a transfer that a fault stops: it hangs, resets the connection, or
// closes it without a page. The task stays unchanged, as when a host dies. It
// reports whether it did so; otherwise the caller must report the failure like
// any other.
func (t *transfer) cut(err error) bool {
	if !errors.Is(err, errCut) {
		return false
	}
	switch f := t.fault; {
	case f.Stall:
		io.Copy(io.Discard, t.c.br)
	case f.Reset:
		t.c.reset()
	case f.Embedded:
		return false
	}
	return true
}

// faultError returns the error with which a fault makes a transfer fail.
func (t *transfer) faultError() error {
	if f := t.fault; f != nil && f.Code != "" {
		return fail(f.Code, f.Params...)
	}
	return fail("VDI_IO_ERROR", "Device I/O errors")
}

// plugDom0 attaches a disk to the host's control domain for a transfer. Pool.mu
// must be held.
func (p *Pool) plugDom0(h *host, vdi *object, mode string) (*object, error) {
	if vdi.str("type") == "cbt_metadata" {
		return nil, fail("VDI_INCOMPATIBLE_TYPE", vdi.ref, cbtMetadata)
	}
	if mode == "RW" && vdi.bool("read_only") {
		return nil, fail("VDI_READONLY", vdi.ref)
	}
	if err := p.activate(vdi, mode); err != nil {
		return nil, err
	}
	taken := map[string]bool{}
	if dom0 := p.db.find("VM", h.dom0); dom0 != nil {
		for _, o := range p.db.refs("VBD", dom0.set("VBDs")) {
			taken[o.str("userdevice")] = true
		}
	}
	n := 0
	for taken[fmt.Sprint(n)] {
		n++
	}
	dev := fmt.Sprint(n)
	return p.newVBD(map[string]any{
		"VM": h.dom0, "VDI": vdi.ref, "userdevice": dev, "device": deviceName(dev), "mode": mode, "type": "Disk",
		"unpluggable": true, "empty": false, "currently_attached": true,
	}), nil
}

// unplugDom0 removes dom0's VBDs, immediately or, with Config.Linger, later.
func (p *Pool) unplugDom0(vbds []*object) { p.unplugLater(vbds, p.cfg.Linger) }

// unplugLater removes VBDs of dom0 after a while.
func (p *Pool) unplugLater(vbds []*object, linger time.Duration) {
	drop := func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.dropVBDs(vbds)
	}
	if linger <= 0 || len(vbds) == 0 {
		drop()
		return
	}
	p.work.Add(1)
	go func() {
		defer p.work.Done()
		sleep(p.ctx, linger)
		drop()
	}()
}

// dropVBDs destroys those of the VBDs that still exist. Pool.mu must be held.
func (p *Pool) dropVBDs(vbds []*object) {
	for _, o := range vbds {
		if p.db.find("VBD", o.ref) != nil {
			p.destroyWith("VBD_metrics", o)
		}
	}
}

// exportKinds maps the export formats to their media types.
var exportKinds = map[string]string{
	"raw": "application/octet-stream", "vhd": "application/vhd", "tar": "application/x-tar", "qcow2": "application/x-qemu-disk",
}

const notFound10 = "HTTP/1.0 404 Not Found\r\nConnection: close\r\n" + bulkNoCache + "\r\n"

// serveExportRaw handles GET /export_raw_vdi (xen-api
// ocaml/xapi/export_raw_vdi.ml).
func (c *conn) serveExportRaw(r *httpRequest) bool {
	p := c.pool
	t := &transfer{c: c, r: r, fault: p.takeStreamFault("/export_raw_vdi")}
	p.mu.Lock()
	session, temporary, page := c.admit(r, "get_export_raw_vdi")
	if page != "" {
		p.mu.Unlock()
		c.write(page)
		return false
	}
	if temporary {
		defer p.logoutLater(session)
	}
	vdi := p.vdiParam(r.param("vdi"))
	if vdi == nil {
		page := c.failEarly(r, "get_export_raw_vdi", missing("VDI", r.param("vdi")))
		p.mu.Unlock()
		c.write(page)
		return false
	}
	if !p.sees(c.host, vdi.str("SR")) {
		other, page := p.hostFor([]string{vdi.str("SR")}), ""
		if other == nil {
			page = c.failEarly(r, "get_export_raw_vdi", fail("NO_HOSTS_AVAILABLE"))
		} else {
			page = c.redirect(r, other)
		}
		p.mu.Unlock()
		c.write(page)
		return false
	}
	t.task = p.taskOf(r, "Exporting VDI "+vdi.uuid()+" through "+c.host.address)
	format := strings.ToLower(r.param("format"))
	if format == "" {
		format = "raw"
	}
	t.deaf = format != "tar"
	p.mu.Unlock()
	kind := exportKinds[format]
	if kind == "" || format == "qcow2" && p.cfg.Version.old() {
		p.finish(t.task, "", fail("INTERNAL_ERROR", "Unknown format "+format))
		c.write(notFound10)
		return false
	}
	c.write("HTTP/1.1 200 OK\r\nConnection: close\r\nCache-Control: no-cache, no-store\r\ntask-id:" + t.task +
		"\r\ncontent-type:" + kind + "\r\ncontent-disposition: attachment; filename=\"" + vdi.uuid() + "." + format + "\"\r\n\r\n")

	vbds, err := t.export(vdi, format)
	if t.cut(err) {
		p.unplugDom0(vbds)
		return false
	}
	p.unplugDom0(vbds)
	if err == nil {
		p.finish(t.task, "", nil)
		return false
	}
	if errors.Is(err, errGone) || errors.Is(err, errCut) {
		err = t.faultError()
	}
	p.finish(t.task, "", err)
	c.write(internalError(pageOf(err)))
	return false
}

// logoutLater ends a session that a bulk request opened for itself.
func (p *Pool) logoutLater(s *object) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.db.find("session", s.ref) != nil {
		p.db.destroy(s)
	}
}

// export attaches and streams a disk; the caller must unplug the VBDs.
func (t *transfer) export(vdi *object, format string) (vbds []*object, err error) {
	p := t.c.pool
	if f := t.fault; f != nil && f.Code != "" && !f.Cut {
		return nil, t.faultError()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if format == "vhd" && vdi.int("virtual_size") > maxVHD {
		return nil, fail("VDI_TOO_LARGE", vdi.ref, fmt.Sprint(maxVHD))
	}
	if format == "qcow2" && t.r.param("base") != "" {
		// The real server uses another tool for this, whose output is not
		// known.
		return nil, fail("NOT_IMPLEMENTED", "differences as "+format)
	}
	vbd, err := p.plugDom0(t.c.host, vdi, "RO")
	if err != nil {
		return nil, err
	}
	vbds = append(vbds, vbd)
	v, err := p.volume(vdi)
	if err != nil {
		return vbds, err
	}
	var base *sr.Volume
	if ref := t.r.param("base"); ref != "" {
		b := p.vdiParam(ref)
		if b == nil {
			return vbds, missing("VDI", ref)
		}
		bv, err := p.plugDom0(t.c.host, b, "RO")
		if err != nil {
			return vbds, err
		}
		vbds = append(vbds, bv)
		if base, err = p.volume(b); err != nil {
			return vbds, err
		}
		if format == "raw" {
			base = nil // the base is attached and otherwise ignored
		}
	}
	p.mu.Unlock()
	defer p.mu.Lock()
	if format == "tar" {
		w := tar.NewWriter(t)
		if err := p.streamBlocks(w, "vdi", v, vdi.str("SR")); err != nil {
			return vbds, err
		}
		return vbds, w.Close()
	}
	e, err := v.Export(format, base)
	if err != nil {
		return vbds, exportError(err, vdi)
	}
	defer e.Close()
	t.total = e.Length()
	if _, err = e.WriteTo(t); errors.Is(err, sr.ErrHangs) {
		io.Copy(io.Discard, t.c.br) // until the client closes the connection
		return vbds, errGone
	}
	return vbds, exportError(err, vdi)
}

// refuseImport returns the status and error of an import that the host refuses
// because of its form.
func (p *Pool) refuseImport(r *httpRequest, format string, chunked bool, vdi, srObj *object) (status string, err error) {
	encoding, encoded := r.header["transfer-encoding"]
	switch {
	case encoded:
		return "404", fail("INTERNAL_ERROR", "Cannot handle encoding: "+encoding)
	case exportKinds[format] == "", format == "qcow2" && p.cfg.Version.old():
		return "404", fail("INTERNAL_ERROR", "Unknown format "+format)
	case chunked && format != "raw":
		return "404", fail("INTERNAL_ERROR", "Cannot handle chunked VHD")
	case vdi == nil && srObj == nil:
		return "400", fail("VDI_MISSING")
	case vdi == nil && format != "raw":
		return "400", fail("INTERNAL_ERROR", "Direct import of "+format+" into an SR is not supported")
	}
	return "", nil
}

// exportError returns errors that end the stream unchanged, and converts all
// others to API errors.
func exportError(err error, vdi *object) error {
	var e *Error
	switch {
	case err == nil, errors.Is(err, errCut), errors.Is(err, errGone):
		return err
	case errors.As(err, &e):
		return e
	case errors.Is(err, sr.ErrTooLarge):
		return fail("VDI_TOO_LARGE", vdi.ref, fmt.Sprint(maxVHD))
	}
	return srError(err, vdi.str("SR"))
}

// serveImportRaw handles PUT /import_raw_vdi (xen-api
// ocaml/xapi/import_raw_vdi.ml).
func (c *conn) serveImportRaw(r *httpRequest) bool {
	p := c.pool
	t := &transfer{c: c, r: r, fault: p.takeStreamFault("/import_raw_vdi"), total: max(0, r.contentLength), deaf: true}
	p.mu.Lock()
	session, temporary, page := c.admit(r, "put_import_raw_vdi")
	if page != "" {
		p.mu.Unlock()
		c.write(page)
		return false
	}
	if temporary {
		defer p.logoutLater(session)
	}
	vdi := p.vdiParam(r.param("vdi"))
	if r.param("vdi") != "" && vdi == nil {
		page := c.failEarly(r, "put_import_raw_vdi", missing("VDI", r.param("vdi")))
		p.mu.Unlock()
		c.write(page)
		return false
	}
	srObj := p.db.find("SR", r.param("sr_id"))
	if srObj == nil && r.param("sr_uuid") != "" {
		srObj = p.db.byUUID("SR", r.param("sr_uuid"))
	}
	where := ""
	if vdi != nil {
		where = vdi.str("SR")
	} else if srObj != nil {
		where = srObj.ref
	}
	format := strings.ToLower(r.param("format"))
	if format == "" {
		format = "raw"
	}
	_, chunked := r.query["chunked"]
	chunked = chunked || r.cookie("chunked") != ""
	status, err := "", error(nil)
	if where != "" && !p.sees(c.host, where) {
		other := p.hostFor([]string{where})
		if other != nil {
			p.mu.Unlock()
			c.write(c.redirect(r, other))
			return false
		}
		status, err = "400", fail("NO_HOSTS_AVAILABLE")
	}
	t.task = p.taskOf(r, "Importing raw VDI")
	p.mu.Unlock()
	if err == nil {
		status, err = p.refuseImport(r, format, chunked, vdi, srObj)
	}
	if err != nil {
		p.finish(t.task, "", err)
		if status == "404" {
			c.write(notFound10)
		} else {
			c.write(badRequest + internalError(asError(err).Error()))
		}
		c.drain()
		return false
	}
	c.write("HTTP/1.1 200 OK\r\nConnection: close\r\nCache-Control: no-cache, no-store\r\ntask-id:" + t.task +
		"\r\ncontent-type: application/octet-stream\r\n\r\n")

	result, vbds, err := t.receive(vdi, srObj, format, chunked)
	if t.cut(err) {
		p.unplugDom0(vbds)
		return false
	}
	p.unplugDom0(vbds)
	if err == nil {
		p.finish(t.task, string(appendXML(nil, result)), nil)
		return false
	}
	if errors.Is(err, errCut) {
		err = t.faultError()
	}
	p.finish(t.task, "", err)
	c.write(badRequest + internalError(asError(err).Error()))
	c.drain()
	return false
}

const badRequest = "HTTP/1.1 400 Bad Request\r\nConnection: close\r\n" + bulkNoCache + "\r\n"

// bulkNoCache is noCache in the spelling of the bulk handlers.
const bulkNoCache = "Cache-Control: no-cache, no-store\r\n"

// drain ends the answer and, for a moment, reads and discards the data that the
// client still sends, so that the client reads the answer before the connection
// breaks.
func (c *conn) drain() {
	if cw, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		cw.CloseWrite()
	}
	c.SetReadDeadline(time.Now().Add(2 * time.Second))
	io.Copy(io.Discard, io.LimitReader(c.br, 64<<20))
}

// receive attaches the disk and writes the body to it.
func (t *transfer) receive(vdi, srObj *object, format string, chunked bool) (result string, vbds []*object, err error) {
	p := t.c.pool
	if f := t.fault; f != nil && f.Code != "" && !f.Cut {
		return "", nil, t.faultError()
	}
	length := t.r.contentLength
	p.mu.Lock()
	if vdi == nil {
		if vdi, err = p.createVDI(map[string]any{
			"name_label": "Imported VDI", "SR": srObj.ref, "virtual_size": max(length, 0), "type": "user",
			"sm_config": map[string]any{}, "other_config": map[string]any{},
		}); err != nil {
			p.mu.Unlock()
			return "", nil, err
		}
	}
	vbd, err := p.plugDom0(t.c.host, vdi, "RW")
	if err != nil {
		p.mu.Unlock()
		return "", nil, err
	}
	vbds = append(vbds, vbd)
	v, err := p.volume(vdi)
	if err == nil && length < 0 {
		length = v.Size()
	}
	p.mu.Unlock()
	if err != nil {
		return "", vbds, err
	}
	switch {
	case t.r.contentLength == 0: // a request that only looks for redirects
	case chunked:
		err = v.ImportChunked(t)
	case format == "vhd":
		err = v.ImportVHD(t, length)
	case format == "raw":
		err = v.ImportRaw(t, length)
	default:
		err = fail("NOT_IMPLEMENTED", "import as "+format)
	}
	p.sync(vdi.uuid())
	var e *Error
	switch {
	case err == nil:
		return vdi.ref, vbds, nil
	case errors.Is(err, errCut), errors.As(err, &e):
		return "", vbds, err
	}
	return "", vbds, srError(err, vdi.str("SR"))
}
