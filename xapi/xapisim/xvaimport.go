package xapisim

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"crypto/sha1"
	"errors"
	"fmt"
	"io"
	"path"
	"sort"
	"strconv"
	"strings"

	"github.com/klauspost/compress/zstd"

	"xenkeep/xapi/xapisim/sr"
)

const forbidden = "HTTP/1.1 403 Forbidden\r\nConnection: close\r\n" + bulkNoCache + "\r\n"

// importSR returns the SR that a request names, or the pool's default SR.
func (p *Pool) importSR(r *httpRequest) (*object, error) {
	if uuid := r.param("sr_uuid"); uuid != "" {
		if o := p.db.byUUID("SR", uuid); o != nil {
			return o, nil
		}
		return nil, fail("UUID_INVALID", "SR", uuid)
	}
	if ref := r.param("sr_id"); ref != "" {
		return p.lookup("SR", ref)
	}
	ref := p.db.all("pool")[0].str("default_SR")
	if o := p.db.find("SR", ref); o != nil {
		return o, nil
	}
	return nil, fail("DEFAULT_SR_NOT_FOUND", ref)
}

// serveImportVM handles PUT /import (xen-api ocaml/xapi/import.ml, handler).
func (c *conn) serveImportVM(r *httpRequest) bool {
	p := c.pool
	t := &transfer{c: c, r: r, fault: p.takeStreamFault("/import"), total: max(0, r.contentLength)}
	p.mu.Lock()
	session, temporary, page := c.admit(r, "put_import")
	if page != "" {
		p.mu.Unlock()
		c.write(page)
		return false
	}
	if temporary {
		defer p.logoutLater(session)
	}
	srObj, err := p.importSR(r)
	if err == nil && !p.sees(c.host, srObj.ref) {
		if other := p.hostFor([]string{srObj.ref}); other != nil {
			p.mu.Unlock()
			c.write(c.redirect(r, other))
			return false
		}
		err = fail("NO_HOSTS_AVAILABLE")
	}
	if err != nil {
		p.mu.Unlock()
		c.write(internalError(asError(err).Error()))
		c.drain()
		return false
	}
	t.task = p.taskOf(r, "VM.import")
	if task := p.db.find("task", t.task); task != nil {
		p.db.put(task, "progress", float64(0))
	}
	head := "HTTP/1.1 200 OK\r\nConnection: close\r\n" + bulkNoCache + "task-id:" + t.task + "\r\ncontent-type: application/octet-stream\r\n\r\n"
	switch {
	case p.cfg.RollingUpgrade:
		head, err = badRequest, fail("NOT_SUPPORTED_DURING_UPGRADE")
	case srObj.str("content_type") == "iso":
		head, err = badRequest, fail("SR_OPERATION_NOT_SUPPORTED")
	case r.header["transfer-encoding"] != "":
		head, err = forbidden, fail("IMPORT_ERROR_CANNOT_HANDLE_CHUNKED")
	}
	p.mu.Unlock()
	c.write(head)
	if err == nil && r.contentLength == 0 { // a request that only looks for redirects
		p.finish(t.task, "", nil)
		return false
	}
	im := &importer{p: p, task: t.task, sr: srObj, restore: r.query.Get("restore") == "true", force: r.query.Get("force") == "true"}
	if err == nil {
		err = t.importVM(im, true)
	}
	return t.endImport(im, err)
}

// serveImportMetadata handles PUT /import_metadata: an archive whose disks are
// looked up.
func (c *conn) serveImportMetadata(r *httpRequest) bool {
	p := c.pool
	t := &transfer{c: c, r: r, fault: p.takeStreamFault("/import_metadata"), total: max(0, r.contentLength)}
	p.mu.Lock()
	session, temporary, page := c.admit(r, "put_import_metadata")
	if page != "" {
		p.mu.Unlock()
		c.write(page)
		return false
	}
	if temporary {
		defer p.logoutLater(session)
	}
	t.task = p.taskOf(r, "VM.metadata_import")
	p.mu.Unlock()
	c.write("HTTP/1.1 200 OK\r\nConnection: close\r\n" + bulkNoCache + "task-id:" + t.task + "\r\ncontent-type: application/octet-stream\r\n\r\n")
	im := &importer{
		p: p, task: t.task, restore: r.query.Get("restore") == "true", force: r.query.Get("force") == "true",
		dry: r.query.Get("dry_run") == "true", vdiMap: map[string]string{},
	}
	for k, v := range r.query {
		if old, ok := strings.CutPrefix(k, "vdi:"); ok && old != "" {
			im.vdiMap[old] = v[0]
		}
	}
	return t.endImport(im, t.importVM(im, false))
}

// endImport reports the outcome of an import, and undoes a failed one.
func (t *transfer) endImport(im *importer, err error) bool {
	c, p := t.c, t.c.pool
	if f := t.fault; err != nil && f != nil && f.Cut && t.moved >= f.CutAt {
		err = errCut
	}
	p.mu.Lock()
	var result []any
	if err != nil {
		im.undo()
	} else {
		result = im.complete()
	}
	p.mu.Unlock()
	if t.cut(err) {
		return false
	}
	if err == nil {
		p.finish(t.task, string(appendXML(nil, append([]any{}, result...))), nil)
		c.drain()
		return false
	}
	var e *Error
	switch {
	case errors.Is(err, errCut):
		err = t.faultError()
	case errors.As(err, &e):
		err = e
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		err = fail("IMPORT_ERROR_PREMATURE_EOF")
	case errors.Is(err, sr.ErrIO):
		err = fail("VDI_IO_ERROR", "Device I/O error")
	default:
		err = fail("IMPORT_ERROR", failure(err.Error()).Error())
	}
	p.finish(t.task, "", err)
	c.write(internalError(asError(err).Error()))
	c.drain()
	return false
}

// importVM reads an archive, creates its objects, and streams its disks.
func (t *transfer) importVM(im *importer, disks bool) error {
	if f := t.fault; f != nil && f.Code != "" && !f.Cut {
		return t.faultError()
	}
	var in io.Reader = t
	if t.r.contentLength >= 0 {
		in = io.LimitReader(t, t.r.contentLength)
	}
	a, ova, err := openArchive(in)
	if err != nil {
		return err
	}
	p := t.c.pool
	p.mu.Lock()
	if err = im.open(ova); err == nil {
		err = im.run()
	}
	if err == nil && disks {
		if task := p.db.find("task", t.task); task != nil {
			p.db.put(task, "other_config", with(task.mapv("other_config"), "object_creation", "complete"))
		}
	}
	p.mu.Unlock()
	if err != nil || !disks {
		return err
	}
	return t.receiveDisks(im, a)
}

// openArchive reads up to the end of ova.xml. An archive that does not begin
// with it is treated as compressed: with zstd if it has zstd's magic number,
// otherwise with gzip.
func openArchive(in io.Reader) (*tar.Reader, []byte, error) {
	br := bufio.NewReaderSize(in, 1<<20)
	first, err := br.Peek(512)
	if err != nil {
		return nil, nil, io.ErrUnexpectedEOF
	}
	var src io.Reader = br
	if h, err := tar.NewReader(bytes.NewReader(first)).Next(); err != nil || h.Name != "ova.xml" {
		if bytes.HasPrefix(first, []byte("\x28\xb5\x2f\xfd")) {
			z, err := zstd.NewReader(br, zstd.WithDecoderConcurrency(1))
			if err != nil {
				return nil, nil, io.ErrUnexpectedEOF
			}
			src = z.IOReadCloser()
		} else if src, err = gzip.NewReader(br); err != nil {
			return nil, nil, io.ErrUnexpectedEOF // the tool that decompresses ends without an error message
		}
	}
	a := tar.NewReader(src)
	h, err := a.Next()
	if err != nil {
		return nil, nil, io.ErrUnexpectedEOF
	}
	if h.Name != "ova.xml" {
		return nil, nil, fail("IMPORT_ERROR_UNEXPECTED_FILE", "ova.xml", h.Name)
	}
	ova, err := io.ReadAll(io.LimitReader(a, 64<<20))
	return a, ova, err
}

// receiveDisks streams the disks in the order of their names as strings
// (xen-api ocaml/xapi/stream_vdi.ml, recv_all_vdi).
func (t *transfer) receiveDisks(im *importer, a *tar.Reader) error {
	onDisk := map[string]bool{}
	for _, o := range im.objects {
		if o.cls == "VBD" && im.str(o, "type") != "CD" {
			onDisk[im.str(o, "VDI")] = true
		}
	}
	var disks []archived
	for _, o := range im.objects {
		if s, ok := im.find(im.str(o, "SR")); o.cls != "VDI" || !onDisk[o.id] && im.str(o, "type") != "suspend" || im.table[o.id] == "" ||
			ok && im.str(s, "content_type") == "iso" {
			continue
		}
		disks = append(disks, o)
	}
	sort.Slice(disks, func(i, j int) bool { return disks[i].id < disks[j].id })
	x := &disksIn{t: t, a: a, force: im.force, unit: -1}
	p := t.c.pool
	for _, o := range disks {
		p.mu.Lock()
		size, _ := o.get(im.class("VDI"), "virtual_size").(int64)
		vdi := p.db.find("VDI", im.table[o.id])
		if vdi == nil {
			p.mu.Unlock()
			return fail("HANDLE_INVALID", "VDI", im.table[o.id])
		}
		vbd, err := p.plugDom0(t.c.host, vdi, "RW")
		if err != nil {
			p.mu.Unlock()
			return err
		}
		v, err := p.volume(vdi)
		thick := v != nil && v.Raw() && p.stores[vdi.str("SR")].sr.LVM()
		p.mu.Unlock()
		if err == nil {
			err = x.receive(o.id, v, size, thick)
		}
		p.unplugDom0([]*object{vbd})
		p.sync(vdi.uuid())
		if err != nil {
			return err
		}
	}
	return nil
}

// disksIn holds the state of the disks of an archive during an import.
type disksIn struct {
	t     *transfer
	a     *tar.Reader
	force bool
	unit  int64 // size of the archive's first block, which is also assumed for each missing one
}

func (x *disksIn) next() (*tar.Header, []byte, error) {
	h, err := x.a.Next()
	if err != nil {
		if errors.Is(err, tar.ErrHeader) {
			return nil, nil, failure("Invalid XVA file")
		}
		return nil, nil, err
	}
	if h.Size > 1<<30 {
		return nil, nil, serverText("Invalid XVA file")
	}
	b := make([]byte, h.Size)
	_, err = io.ReadFull(x.a, b)
	return h, b, err
}

// receive reads blocks until the disk is full. Their numbers must increase as
// strings; gaps between them are blocks of zeros.
func (x *disksIn) receive(prefix string, v *sr.Volume, size int64, thick bool) error {
	last, off := "-1", int64(0)
	for off < size {
		h, data, err := x.next()
		if err != nil {
			return err
		}
		if x.unit < 0 {
			x.unit = int64(len(data))
		}
		number, ok := strings.CutPrefix(h.Name, prefix+"/")
		n, errN := strconv.ParseInt(number, 10, 32)
		if !ok || number <= last || errN != nil {
			return serverText("Invalid XVA file")
		}
		prev, _ := strconv.ParseInt(last, 10, 32)
		last = number
		skipped := max(0, n-prev-1) * x.unit
		if thick && skipped > 0 {
			if err := writeZeros(v, off, min(skipped, v.Size()-off)); err != nil {
				return err
			}
		}
		off += skipped
		if _, err := v.WriteAt(data, off); err != nil {
			return fmt.Errorf("%w: %v", sr.ErrIO, err)
		}
		off += int64(len(data))
		if err := x.checksum(h.Name, data); err != nil {
			return err
		}
	}
	return nil
}

// checksum reads the entry that follows a block.
func (x *disksIn) checksum(name string, data []byte) error {
	h, said, err := x.next()
	if err != nil {
		return err
	}
	old := x.t.c.pool.cfg.Version == Version80
	sum := ""
	switch ext := path.Ext(h.Name); {
	case ext == ".checksum":
		sum = fmt.Sprintf("%x", sha1.Sum(data))
	case ext == ".xxhash" && !old:
		sum = fmt.Sprintf("%016X", xxh64(data))
	case old:
		return errors.New("Expected to find an inline checksum, found file called: " + h.Name)
	default:
		return errors.New("Found unsupported checksum file: " + h.Name)
	}
	if strings.TrimSuffix(h.Name, path.Ext(h.Name)) != name {
		return fail("IMPORT_ERROR", "Not_found")
	}
	if sum != string(said) && !x.force {
		return fail("IMPORT_ERROR", fmt.Sprintf("Stream_vdi.Invalid_checksum(%q)",
			fmt.Sprintf("Block %s checksum failed: original = %s; recomputed = %s", name, said, sum)))
	}
	return nil
}

func writeZeros(v *sr.Volume, off, n int64) error {
	for n > 0 {
		k := min(n, xvaBlock)
		if _, err := v.WriteAt(zeroes[:k], off); err != nil {
			return fmt.Errorf("%w: %v", sr.ErrIO, err)
		}
		off, n = off+k, n-k
	}
	return nil
}

// serverText is an error with the server's own text.
type serverText string

func (s serverText) Error() string { return string(s) }
