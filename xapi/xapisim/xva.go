package xapisim

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha1"
	"errors"
	"fmt"
	"io"
	"sort"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"

	"xenkeep/xapi/xapisim/sr"
)

const (
	xvaBlock   = 1 << 20 // size of a block of a whole-VM archive, in bytes
	xvaSilence = 5 * time.Second
)

// vmParam finds the VM that a request for a whole VM names, by ref or uuid in
// the query. Pool.mu must be held.
func (p *Pool) vmParam(r *httpRequest) (*object, error) {
	name := r.query.Get("ref")
	if name == "" {
		name = r.query.Get("uuid")
	}
	vm := p.db.find("VM", name)
	if vm == nil && name != "" {
		vm = p.db.byUUID("VM", name)
	}
	if vm == nil {
		return nil, missing("VM", name)
	}
	return vm, nil
}

// serveExportVM handles GET /export (xen-api ocaml/xapi/export.ml).
func (c *conn) serveExportVM(r *httpRequest) bool {
	p := c.pool
	t := &transfer{c: c, r: r, fault: p.takeStreamFault("/export")}
	p.mu.Lock()
	session, temporary, page := c.admit(r, "get_export")
	if page != "" {
		p.mu.Unlock()
		c.write(page)
		return false
	}
	if temporary {
		defer p.logoutLater(session)
	}
	vm, err := p.vmParam(r)
	if err != nil {
		page := c.failEarly(r, "get_export", err)
		p.mu.Unlock()
		c.write(page)
		return false
	}
	var srs []string
	here := true
	for _, vbd := range p.db.refs("VBD", vm.set("VBDs")) {
		if vdi := p.db.find("VDI", vbd.str("VDI")); vdi != nil {
			srs = append(srs, vdi.str("SR"))
			here = here && p.sees(c.host, vdi.str("SR"))
		}
	}
	if !here {
		other := p.hostFor(srs)
		if other == nil { // the task fails, and the connection is closed without an answer
			task := p.taskOf(r, "VM.export")
			p.complete(task, "", fail("NO_HOSTS_AVAILABLE"))
			p.mu.Unlock()
			return false
		}
		p.mu.Unlock()
		c.write(c.redirect(r, other))
		return false
	}
	t.task = p.taskOf(r, "VM.export")
	if task := p.db.find("task", t.task); task != nil {
		p.db.put(task, "progress", float64(0))
	}
	cl := &call{ctx: c.ctx, p: p, host: c.host, task: t.task}
	end, err := cl.beginExport(vm)
	p.mu.Unlock()
	if err == nil {
		c.write("HTTP/1.0 200 OK\r\nConnection: close\r\n" + bulkNoCache + "task-id: " + t.task +
			"\r\nServer: xapi/26.1\r\ncontent-type: application/octet-stream\r\nContent-Disposition: attachment; filename=\"export.xva\"\r\n\r\n")
		err = t.exportVM(vm, r)
		p.mu.Lock()
		end()
		p.mu.Unlock()
	}
	if t.cut(err) {
		return false
	}
	if err == nil {
		p.finish(t.task, "", nil)
		return false
	}
	if errors.Is(err, errGone) || errors.Is(err, errCut) {
		err = t.faultError()
	}
	p.finish(t.task, "", err)
	c.write(internalError(asError(err).Error()))
	return false
}

// beginExport makes the checks and marks the operation like beginVM, with the
// shorter wait of exports.
func (c *call) beginExport(vm *object) (end func(), err error) {
	if err := c.p.checkVM(vm, "export"); err != nil {
		return nil, err
	}
	return c.beginWithin(vm, "export", 2*time.Minute)
}

// exportVM streams the archive.
func (t *transfer) exportVM(vm *object, r *httpRequest) error {
	p := t.c.pool
	if f := t.fault; f != nil && f.Code != "" && !f.Cut {
		return t.faultError()
	}
	var out io.Writer = t
	var closer io.Closer
	switch kind := r.query.Get("use_compression"); {
	case kind == "true" || kind == "gzip":
		z, _ := gzip.NewWriterLevel(t, gzip.BestSpeed)
		out, closer = z, z
	case kind == "zstd" && p.cfg.Version != Version80:
		z, err := zstd.NewWriter(t, zstd.WithEncoderConcurrency(1))
		if err != nil {
			return err
		}
		out, closer = z, z
	}
	w := tar.NewWriter(out)
	p.mu.Lock()
	x := &exported{p: p, ids: map[string]string{}, alone: true, power: r.param("preserve_power_state") == "true"}
	disks := x.addVM(vm, nil)
	ova := x.ova()
	p.mu.Unlock()
	if err := writeEntry(w, "ova.xml", ova); err != nil {
		return err
	}
	sort.Slice(disks, func(i, j int) bool { return x.ids[disks[i].ref] < x.ids[disks[j].ref] })
	for _, vdi := range disks {
		if err := t.exportDisk(w, x.ids[vdi.ref], vdi); err != nil {
			return err
		}
	}
	if err := w.Close(); err != nil {
		return err
	}
	if closer != nil {
		return closer.Close()
	}
	return nil
}

func writeEntry(w *tar.Writer, name string, data []byte) error {
	if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o400, Size: int64(len(data)), ModTime: time.Unix(0, 0), Format: tar.FormatUSTAR}); err != nil {
		return err
	}
	_, err := w.Write(data)
	return err
}

// xvaChecksum returns the entry that follows each block: XXH64 since 8.1, SHA-1
// before.
func (v Version) xvaChecksum(block []byte) (suffix, sum string) {
	if v == Version80 {
		return ".checksum", fmt.Sprintf("%x", sha1.Sum(block))
	}
	return ".xxhash", fmt.Sprintf("%016X", xxh64(block))
}

// exportDisk attaches one disk and streams it.
func (t *transfer) exportDisk(w *tar.Writer, prefix string, vdi *object) (err error) {
	p := t.c.pool
	p.mu.Lock()
	vbd, err := p.plugDom0(t.c.host, vdi, "RO")
	if err != nil {
		p.mu.Unlock()
		return err
	}
	v, err := p.volume(vdi)
	p.mu.Unlock()
	defer p.unplugDom0([]*object{vbd})
	if err != nil {
		return err
	}
	return p.streamBlocks(w, prefix, v, vdi.str("SR"))
}

// streamBlocks writes a volume's blocks and their checksums under a name
// (xen-api ocaml/xapi/stream_vdi.ml, send_one): always the first and last
// block; of the others, those that are allocated if the server reads the VHD's
// map, or else those that are not all zero. Without a map, an empty entry is
// sent after a long time without a block; it takes a number and no position on
// the disk.
func (p *Pool) streamBlocks(w *tar.Writer, prefix string, v *sr.Volume, srRef string) error {
	block := func(number int64, data []byte) error {
		name := fmt.Sprintf("%s/%08d", prefix, number)
		suffix, sum := p.cfg.Version.xvaChecksum(data)
		if err := writeEntry(w, name, data); err != nil {
			return err
		}
		return writeEntry(w, name+suffix, []byte(sum))
	}
	size := v.Size()
	mapped := !v.Raw() && !p.cfg.Version.old() && !p.cfg.XVAWithoutMap
	buf := make([]byte, xvaBlock)
	number, silent, last := int64(0), 0, time.Now()
	for off := int64(0); off < size; number++ {
		n := min(size-off, xvaBlock)
		edge := off == 0 || off+n == size
		if mapped && !edge && !v.Holds(off) {
			off += n
			continue
		}
		if !mapped && !edge && (p.cfg.XVAKeepAlive > 0 && silent == p.cfg.XVAKeepAlive || p.cfg.XVAKeepAlive == 0 && time.Since(last) > p.scaled(xvaSilence)) {
			silent, last = 0, time.Now()
			if err := block(number, nil); err != nil {
				return err
			}
			continue
		}
		if _, err := v.ReadAt(buf[:n], off); err != nil {
			return srError(err, srRef)
		}
		off += n
		if !mapped && !edge && zeroBlock(buf[:n]) {
			silent++
			continue
		}
		silent, last = 0, time.Now()
		if err := block(number, buf[:n]); err != nil {
			return err
		}
	}
	return nil
}

func zeroBlock(b []byte) bool { return bytes.Equal(b, zeroes[:len(b)]) }

var zeroes [xvaBlock]byte

// addVM collects a VM and its related objects, except for the kinds of devices
// in skip, and returns the disks whose data the archive contains.
func (x *exported) addVM(vm *object, skip map[string]bool) (disks []*object) {
	p := x.p
	x.add("VM", vm.ref)
	x.add("VM_metrics", vm.str("metrics"))
	x.add("VM_guest_metrics", vm.str("guest_metrics"))
	x.add("host", vm.str("resident_on"))
	addDisk := func(vdi *object) bool {
		x.add("VDI", vdi.ref)
		x.add("SR", vdi.str("SR"))
		s := p.db.find("SR", vdi.str("SR"))
		return s != nil && s.str("content_type") != "iso"
	}
	if !skip["vbd"] {
		for _, vbd := range p.db.refs("VBD", vm.set("VBDs")) {
			x.add("VBD", vbd.ref)
			if vdi := p.db.find("VDI", vbd.str("VDI")); vdi != nil && addDisk(vdi) && vbd.str("type") != "CD" {
				disks = append(disks, vdi)
			}
		}
	}
	if image := p.db.find("VDI", vm.str("suspend_VDI")); image != nil && x.power && vm.str("power_state") == "Suspended" && addDisk(image) {
		disks = append(disks, image)
	}
	if !skip["vif"] {
		for _, vif := range p.db.refs("VIF", vm.set("VIFs")) {
			x.add("VIF", vif.ref)
			x.add("network", vif.str("network"))
		}
	}
	if !skip["vtpm"] {
		for _, vtpm := range p.db.refs("VTPM", vm.set("VTPMs")) {
			x.add("VTPM", vtpm.ref)
		}
	}
	return disks
}

// single returns the values in the record of a VM exported alone that replace
// the real ones (xen-api ocaml/xapi/export.ml, make_vm without snapshot
// metadata).
func (x *exported) single(name string) (any, bool) {
	switch name {
	case "is_a_snapshot":
		return false, true
	case "snapshot_of", "parent", "protection_policy":
		return nullRef, true
	case "snapshots", "consoles", "crash_dumps":
		return []any{}, true
	case "snapshot_time":
		return epoch, true
	case "power_state":
		return "Halted", !x.power
	case "suspend_VDI":
		return nullRef, !x.power
	}
	return nil, false
}

// known returns the value v of a field without references to objects that the
// archive does not contain: a single such reference becomes the null reference,
// and a set omits it.
func (x *exported) known(v any) any {
	switch v := v.(type) {
	case string:
		if strings.HasPrefix(v, "OpaqueRef:") && x.ids[v] == "" {
			return nullRef
		}
	case []any:
		var out = []any{}
		for _, e := range v {
			if s, ok := e.(string); !ok || !strings.HasPrefix(s, "OpaqueRef:") || x.ids[s] != "" {
				out = append(out, e)
			}
		}
		return out
	}
	return v
}
