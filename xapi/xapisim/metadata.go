package xapisim

import (
	"archive/tar"
	"bytes"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// serveExportMetadata handles GET /export_metadata (xen-api
// ocaml/xapi/export.ml): a tar with ova.xml, built in memory, so that its
// length is known and a failure is a plain 500.
func (c *conn) serveExportMetadata(r *httpRequest) bool {
	c.write(c.exportMetadata(r))
	return false
}

// exportMetadata returns the whole answer, so that it is sent without holding
// the pool's lock.
func (c *conn) exportMetadata(r *httpRequest) string {
	p := c.pool
	p.mu.Lock()
	defer p.mu.Unlock()
	session, temporary, page := c.admit(r, "get_export_metadata")
	if page != "" {
		return page
	}
	if temporary {
		defer p.db.destroy(session)
	}
	if !c.host.master {
		return c.redirect(r, p.hosts[0])
	}
	task := p.taskOf(r, "VM.export")
	body, err := p.metadata(c, r, task)
	if f := p.takeFault("/export_metadata"); f != nil && f.Code != "" {
		err = fail(f.Code, f.Params...)
	}
	if err != nil {
		p.complete(task, "", asError(err))
		return internalError(asError(err).Error())
	}
	p.complete(task, "", nil)
	head := fmt.Sprintf("HTTP/1.0 200 OK\r\nConnection: close\r\nCache-Control: no-cache, no-store\r\ntask-id: %s\r\nServer: xapi/26.1\r\n"+
		"content-type: application/octet-stream\r\nContent-Length: %d\r\nContent-Disposition: attachment; filename=\"export.xva\"\r\n\r\n", task, len(body))
	return head + string(body)
}

// metadata builds the archive of the VMs that the request names.
func (p *Pool) metadata(c *conn, r *httpRequest, task string) ([]byte, error) {
	var vms []*object
	if r.query.Get("all") == "true" {
		dom0s := r.query.Get("include_dom0") != "false"
		for _, vm := range p.db.all("VM") {
			if !vm.bool("is_a_snapshot") && !vm.bool("is_default_template") && (dom0s || !vm.bool("is_control_domain")) {
				vms = append(vms, vm)
			}
		}
	} else {
		vm, err := p.vmParam(r)
		if err != nil {
			return nil, err
		}
		vms = append(vms, vm)
	}
	cl := &call{ctx: c.ctx, p: p, host: c.host, task: task}
	for _, vm := range vms {
		end, err := cl.beginWithin(vm, "metadata_export", 2*time.Minute)
		if err != nil {
			return nil, err
		}
		defer end()
	}
	if r.query.Get("export_snapshots") != "false" {
		for _, vm := range vms[:len(vms):len(vms)] {
			vms = append(vms, p.db.refs("VM", vm.set("snapshots"))...)
		}
	}
	skip := map[string]bool{}
	for _, k := range strings.Split(r.query.Get("excluded_device_types"), ",") {
		skip[strings.ToLower(k)] = true
	}
	x := &exported{p: p, ids: map[string]string{}}
	for _, vm := range vms {
		x.addVM(vm, skip)
	}
	return x.archive()
}

// exported collects objects and assigns them their names in the archive.
type exported struct {
	p    *Pool
	objs map[string][]*object
	ids  map[string]string
	// alone is set for an archive of one VM with its disks; power if the
	// archive preserves its power state.
	alone, power bool
}

func (x *exported) add(cls, ref string) {
	o := x.p.db.find(cls, ref)
	if o == nil || x.ids[ref] != "" {
		return
	}
	if x.objs == nil {
		x.objs = map[string][]*object{}
	}
	x.ids[ref] = "Ref:" + strconv.Itoa(x.p.refSeq)
	x.p.refSeq++
	x.objs[cls] = append(x.objs[cls], o)
}

// rewrite replaces references to exported objects.
func (x *exported) rewrite(v any) any {
	switch v := v.(type) {
	case string:
		if id := x.ids[v]; id != "" {
			return id
		}
	case []any:
		out := make([]any, len(v))
		for i, e := range v {
			out[i] = x.rewrite(e)
		}
		return out
	case map[string]any:
		out := make(map[string]any, len(v))
		for k, e := range v {
			out[k] = x.rewrite(e)
		}
		return out
	}
	return v
}

// ova returns the archive's description of all objects.
func (x *exported) ova() []byte {
	objects := []any{}
	for _, cls := range []string{"host", "VM", "VM_metrics", "VM_guest_metrics", "VBD", "VIF", "network", "VDI", "SR", "VTPM"} {
		for _, o := range x.objs[cls] {
			r := o.record()
			for i, f := range o.class.fields {
				switch {
				case f.name == "allowed_operations":
					r.vals[i] = []any{}
				case f.name == "current_operations":
					r.vals[i] = map[string]any{}
				case x.alone:
					v, ok := any(nil), false
					if cls == "VM" {
						v, ok = x.single(f.name)
					}
					if !ok {
						v = x.known(r.vals[i])
					}
					r.vals[i] = x.rewrite(v)
				default:
					r.vals[i] = x.rewrite(r.vals[i])
				}
			}
			objects = append(objects, ordered{{"class", cls}, {"id", x.ids[o.ref]}, {"snapshot", r}})
		}
	}
	software, _ := x.p.cfg.Version.software()
	major, minor, _ := strings.Cut(software["xapi"].(string), ".")
	xapiMajor, _ := strconv.ParseInt(major, 10, 64)
	xapiMinor, _ := strconv.ParseInt(minor, 10, 64)
	version := ordered{
		{"hostname", "localhost"}, {"date", software["date"]}, {"product_version", software["product_version"]},
		{"product_brand", software["product_brand"]}, {"build_number", software["build_number"]},
		{"xapi_major", xapiMajor}, {"xapi_minor", xapiMinor}, {"export_vsn", int64(2)},
	}
	return appendXML(nil, ordered{{"version", version}, {"objects", objects}})
}

func (x *exported) archive() ([]byte, error) {
	ova := x.ova()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Name: "ova.xml", Mode: 0o400, Size: int64(len(ova)), ModTime: time.Now()}); err != nil {
		return nil, err
	}
	if _, err := w.Write(ova); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}
