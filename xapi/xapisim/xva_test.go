package xapisim

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha1"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"sort"
	"strconv"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
)

func TestXXH64(t *testing.T) {
	// Values of the XXH64 of other programs: python-xxhash's manual, and
	// xxhsum.
	for in, want := range map[string]uint64{
		"": 0xef46db3751d8e999, "a": 0xd24ec4f1a98c6e5b, "abc": 0x44bc2cf5ad770999,
		"Nobody inspects the spammish repetition": 0xfbcea83c8a378bf1,
	} {
		if got := xxh64([]byte(in)); got != want {
			t.Errorf("%q: %x, want %x", in, got, want)
		}
	}
}

// xva is an archive, read by the rules of the format without code of the
// simulator.
type xva struct {
	ova     map[string]any
	entries []string
	disks   map[string][]byte // by Ref:N
	order   []string
}

func readXVA(t *testing.T, r io.Reader) *xva {
	t.Helper()
	x := &xva{disks: map[string][]byte{}}
	tr := tar.NewReader(r)
	unit, last, name, block := int64(-1), int64(-1), "", []byte(nil)
	for i := 0; ; i++ {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatalf("archive: %v", err)
		}
		b, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		x.entries = append(x.entries, h.Name)
		if i == 0 {
			v, err := decodeXMLAnswer([]byte("<methodResponse><params><param>" + string(b) + "</param></params></methodResponse>"))
			if err != nil || h.Name != "ova.xml" {
				t.Fatalf("%s: %v", h.Name, err)
			}
			x.ova = v.(map[string]any)
			continue
		}
		disk, number, _ := strings.Cut(h.Name, "/")
		if i%2 == 0 { // each block is followed by its checksum
			want := map[string]string{".xxhash": fmt.Sprintf("%016X", xxh64(block)), ".checksum": fmt.Sprintf("%x", sha1.Sum(block))}[filepath.Ext(h.Name)]
			if h.Name != name+filepath.Ext(h.Name) || string(b) != want {
				t.Errorf("checksum %s: %s, want %s", h.Name, b, want)
			}
			continue
		}
		name, block = h.Name, b
		n, err := strconv.ParseInt(number, 10, 64)
		if err != nil || len(number) != 8 || len(b) > 1<<20 {
			t.Fatalf("block %s of %d bytes", h.Name, len(b))
		}
		if _, ok := x.disks[disk]; !ok {
			x.disks[disk], last = nil, -1
			x.order = append(x.order, disk)
		}
		if unit < 0 {
			unit = int64(len(b))
		}
		x.disks[disk] = append(x.disks[disk], make([]byte, (n-last-1)*unit)...)
		x.disks[disk] = append(x.disks[disk], b...)
		last = n
	}
	return x
}

// objects returns the snapshots of a class by the archive's names.
func (x *xva) objects(cls string) map[string]map[string]any {
	out := map[string]map[string]any{}
	for _, o := range x.ova["objects"].([]any) {
		if m := o.(map[string]any); m["class"] == cls {
			out[m["id"].(string)] = m["snapshot"].(map[string]any)
		}
	}
	return out
}

// exportVM reads a whole VM with a task.
func (c *client) exportVM(vm string, kv ...string) ([]byte, map[string]any) {
	c.t.Helper()
	task := c.must("task.create", "export", "").(string)
	resp := c.get(c.url("/export", append([]string{"ref", vm, "task_id", task}, kv...)...))
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		c.t.Fatal(err)
	}
	if resp.StatusCode == 200 && (resp.Proto != "HTTP/1.0" || resp.ContentLength >= 0 || resp.Header.Get("Task-Id") != task) {
		c.t.Errorf("head: %s %v", resp.Proto, resp.Header)
	}
	return b, c.finished(task)
}

// sparse adds a third disk to the VM: 16 MiB with data at 5 and 6 MiB.
func sparse(cfg *Config) {
	path := filepath.Join(filepath.Dir(cfg.VMs[0].Disks[0]), "sparse.raw")
	f, err := os.Create(path)
	if err != nil {
		panic(err)
	}
	defer f.Close()
	if err := f.Truncate(16 * mib); err != nil {
		panic(err)
	}
	if _, err := f.WriteAt(pattern(9, 2*mib), 5*mib); err != nil {
		panic(err)
	}
	cfg.VMs[0].Disks = append(cfg.VMs[0].Disks, path)
}

func sparseContent() []byte {
	b := make([]byte, 16*mib)
	copy(b[5*mib:], pattern(9, 2*mib))
	return b
}

func TestXVAExport(t *testing.T) {
	for _, v := range []struct {
		version Version
		config  func(*Config)
		suffix  string
		sparse  []string // numbers of the third disk's blocks
	}{
		// With the VHD's map, blocks are sent in pairs, one pair per VHD block,
		// including zeros.
		{VersionCurrent, nil, ".xxhash", []string{"00000000", "00000004", "00000005", "00000006", "00000007", "00000015"}},
		{Version82, nil, ".xxhash", []string{"00000000", "00000005", "00000006", "00000015"}},
		{Version80, nil, ".checksum", []string{"00000000", "00000005", "00000006", "00000015"}},
		{VersionCurrent, func(cfg *Config) { cfg.XVAWithoutMap, cfg.XVAKeepAlive = true, 3 }, ".xxhash",
			// Entry 4 is empty, so 5 MiB has the number 6; the entries 11 and
			// 15 are empty too.
			[]string{"00000000", "00000004", "00000006", "00000007", "00000011", "00000015", "00000018"}},
	} {
		c := start(t, func(cfg *Config) {
			sparse(cfg)
			cfg.Version, cfg.XVAKeepAlive = v.version, -1
			if v.config != nil {
				v.config(cfg)
			}
		})
		snap := c.must("VM.snapshot", c.vm(), "s").(string)
		b, task := c.exportVM(snap)
		c.status(task, "success")
		x := readXVA(t, bytes.NewReader(b))
		if len(x.order) != 3 || !sort.StringsAreSorted(x.order) {
			t.Fatalf("%s: disks %v", v.version, x.order)
		}
		want := [][]byte{pattern(1, 8*mib), pattern(2, 8*mib), sparseContent()}
		for id, vbd := range x.objects("VBD") {
			if vbd["type"] != "Disk" {
				continue
			}
			n, _ := strconv.Atoi(fmt.Sprint(vbd["userdevice"]))
			if !bytes.Equal(x.disks[vbd["VDI"].(string)], want[min(n, 2)]) {
				t.Errorf("%s: %s holds another disk than xvd%c", v.version, id, 'a'+n)
			}
			if n < 2 {
				continue
			}
			var numbers []string
			for _, e := range x.entries {
				if d, number, _ := strings.Cut(e, "/"); d == vbd["VDI"] && len(number) == 8 {
					numbers = append(numbers, number)
				}
			}
			if !slices.Equal(numbers, v.sparse) {
				t.Errorf("%s: blocks %v, want %v", v.version, numbers, v.sparse)
			}
		}
		if !slices.ContainsFunc(x.entries, func(e string) bool { return strings.HasSuffix(e, v.suffix) }) {
			t.Errorf("%s: no entry ends in %s", v.version, v.suffix)
		}
		for _, vm := range x.objects("VM") {
			if vm["is_a_snapshot"] != false || vm["is_a_template"] != true || vm["snapshot_of"] != nullRef || vm["power_state"] != "Halted" || len(vm["VBDs"].([]any)) != 4 {
				t.Errorf("%s: the VM: %v %v %v", v.version, vm["is_a_snapshot"], vm["snapshot_of"], vm["VBDs"])
			}
		}
		if len(x.objects("VM")) != 1 || len(x.objects("SR")) != 1 || x.ova["version"].(map[string]any)["export_vsn"] == nil {
			t.Errorf("%s: objects", v.version)
		}
		again, _ := c.exportVM(snap)
		if y := readXVA(t, bytes.NewReader(again)); y.order[0] == x.order[0] {
			t.Error("the counter of names was reset")
		}
		eventually(t, "all is detached", func() bool { return c.dom0VBDs() == 0 })
	}
}

func TestExportTar(t *testing.T) {
	c := start(t, sparse)
	snap := c.must("VDI.snapshot", c.disk(2)).(string)
	b, task := c.export(snap, "format", "tar")
	c.status(task, "success")
	// After a first entry, the rules are those of whole VMs.
	var with bytes.Buffer
	w := tar.NewWriter(&with)
	ova := "<value><struct/></value>"
	w.WriteHeader(&tar.Header{Name: "ova.xml", Size: int64(len(ova))})
	io.WriteString(w, ova)
	w.Flush()
	x := readXVA(t, io.MultiReader(&with, bytes.NewReader(b)))
	if !bytes.Equal(x.disks["vdi"], sparseContent()) || len(x.entries) != 13 {
		t.Errorf("%d entries, or another content", len(x.entries))
	}
}

func TestXVACompression(t *testing.T) {
	c := start(t, nil)
	snap := c.must("VM.snapshot", c.vm(), "s").(string)
	for kind, open := range map[string]func(io.Reader) (io.Reader, error){
		"true": func(r io.Reader) (io.Reader, error) { return gzip.NewReader(r) },
		"gzip": func(r io.Reader) (io.Reader, error) { return gzip.NewReader(r) },
		"zstd": func(r io.Reader) (io.Reader, error) {
			z, err := zstd.NewReader(r)
			return z.IOReadCloser(), err
		},
		"none": func(r io.Reader) (io.Reader, error) { return r, nil },
	} {
		b, task := c.exportVM(snap, "use_compression", kind)
		c.status(task, "success")
		r, err := open(bytes.NewReader(b))
		if err != nil {
			t.Fatalf("%s: %v", kind, err)
		}
		if x := readXVA(t, r); len(x.disks) != 2 {
			t.Errorf("%s: %d disks", kind, len(x.disks))
		}
	}
}

func TestXVAExportFails(t *testing.T) {
	c := start(t, nil)
	vm := c.vm()
	b, task := c.exportVM(vm)
	c.status(task, "failure", "VM_BAD_POWER_STATE", vm, "halted, suspended", "running")
	if !bytes.Contains(b, []byte("VM_BAD_POWER_STATE")) {
		t.Errorf("page %q", b)
	}
	if resp := c.get(c.url("/export/", "ref", "OpaqueRef:x")); resp.StatusCode != 500 {
		t.Errorf("unknown VM: %s", resp.Status)
	}
	if resp := c.get(c.base + "/export?ref=" + vm); resp.StatusCode != 401 {
		t.Errorf("no session: %s", resp.Status)
	}
	snap := c.must("VM.snapshot", vm, "s").(string)
	c.p.Fault(Fault{On: "/export", Cut: true, CutAt: 3 * mib, Embedded: true})
	b, task = c.exportVM(snap)
	c.status(task, "failure", "VDI_IO_ERROR", "Device I/O errors")
	if data, page := embedded(b); len(data) != 3*mib || !strings.Contains(page, "VDI_IO_ERROR") {
		t.Errorf("%d bytes, page %q", len(data), page)
	}
	// Local storage on the member: the master redirects the client there.
	c2 := start(t, func(cfg *Config) { cfg.VMs[0].SR = "Local storage on member" })
	if resp := c2.get(c2.url("/export", "ref", c2.must("VM.snapshot", c2.vm(), "s").(string))); resp.StatusCode != 302 {
		t.Errorf("redirect: %s", resp.Status)
	}
}

func TestXVAOfSuspendedVM(t *testing.T) {
	c := start(t, nil)
	c.must("VM.hard_shutdown", c.vm())
	c.must("VM.set_memory_limits", c.vm(), mib, 4*mib, 4*mib, 4*mib) // the size of its image
	c.must("VM.start", c.vm(), false, false)
	c.must("VM.suspend", c.vm())
	for keep, disks := range map[string]int{"false": 2, "true": 3} {
		b, task := c.exportVM(c.vm(), "preserve_power_state", keep)
		c.status(task, "success")
		x := readXVA(t, bytes.NewReader(b))
		state := map[string]string{"false": "Halted", "true": "Suspended"}[keep]
		for _, vm := range x.objects("VM") {
			if vm["power_state"] != state || len(x.order) != disks {
				t.Errorf("preserve=%s: %v, %d disks", keep, vm["power_state"], len(x.order))
			}
		}
	}
}

// importVM sends an archive with a task.
func (c *client) importVM(body []byte, kv ...string) (said string, task map[string]any) {
	c.t.Helper()
	ref := c.must("task.create", "import", "").(string)
	said = c.put(c.url("/import", append([]string{"task_id", ref}, kv...)...), "", body)
	return said, c.finished(ref)
}

// imported returns the VM in a task's result.
func (c *client) imported(task map[string]any) string {
	c.t.Helper()
	m := refPattern.FindString(fmt.Sprint(task["result"]))
	if m == "" {
		c.t.Fatalf("no VM: %v %v", task["result"], task["error_info"])
	}
	return m
}

func TestXVAImport(t *testing.T) {
	c := start(t, sparse)
	vm := c.vm()
	c.must("VM.hard_shutdown", vm)
	before := c.record("VM", vm)
	mac := func(vm string) any { return c.record("VIF", c.record("VM", vm)["VIFs"].([]any)[0])["MAC"] }
	for _, kind := range []string{"none", "gzip", "zstd"} {
		b, _ := c.exportVM(vm, "use_compression", kind)
		said, task := c.importVM(b, "sr_id", c.sr("ext"))
		c.status(task, "success")
		if !strings.HasPrefix(said, "HTTP/1.1 200 OK") || task["other_config"].(map[string]any)["object_creation"] != "complete" {
			t.Errorf("%s: %q, %v", kind, said, task["other_config"])
		}
		n := c.imported(task)
		rec := c.record("VM", n)
		if rec["uuid"] == before["uuid"] || mac(n) == mac(vm) || rec["generation_id"] == before["generation_id"] || rec["name_label"] != "web" ||
			rec["is_a_template"] != false || len(rec["current_operations"].(map[string]any)) != 0 ||
			!reflect.DeepEqual(rec["HVM_boot_params"], before["HVM_boot_params"]) {
			t.Errorf("%s: the VM: %v", kind, rec)
		}
		disks := c.disks(n)
		if c.record("VDI", disks["2"])["SR"] != c.sr("ext") || c.cbt(disks["0"]) {
			t.Error("the disks are elsewhere, or tracked")
		}
		if !bytes.Equal(c.content(disks["0"]), pattern(1, 8*mib)) || !bytes.Equal(c.content(disks["2"]), sparseContent()) {
			t.Errorf("%s: another content", kind)
		}
		c.must("VM.start", n, false, false)
		c.must("VM.hard_shutdown", n)
	}
}

func TestXVARestore(t *testing.T) {
	c := start(t, nil)
	vm := c.vm()
	c.must("VM.hard_shutdown", vm)
	before := c.record("VM", vm)
	mac := c.record("VIF", before["VIFs"].([]any)[0])["MAC"]
	b, _ := c.exportVM(vm)
	c.must("VM.start", vm, false, false)
	_, task := c.importVM(b, "restore", "true")
	c.status(task, "failure", "VM_BAD_POWER_STATE", vm, "halted", "running")
	c.must("VM.hard_shutdown", vm)
	_, task = c.importVM(b, "restore", "true")
	c.status(task, "failure", "VM_TO_IMPORT_IS_NOT_NEWER_VERSION", vm, "0", "0")
	c.must("VM.destroy", vm)
	_, task = c.importVM(b, "restore", "true")
	c.status(task, "success")
	c.refused([]string{"HANDLE_INVALID", "VM", vm}, "VM.get_record", vm)
	n := c.imported(task)
	rec := c.record("VM", n)
	if rec["uuid"] != before["uuid"] || c.record("VIF", rec["VIFs"].([]any)[0])["MAC"] != mac || rec["version"] != 1.0 {
		t.Errorf("restored: %v %v", rec["uuid"], rec["version"])
	}
	// A clone with the same MAC seed prevents the import.
	other := c.must("VM.clone", n, "other")
	c.must("VM.set_other_config", other, rec["other_config"])
	_, task = c.importVM(b, "restore", "true")
	c.status(task, "failure", "DUPLICATE_MAC_SEED", rec["other_config"].(map[string]any)["mac_seed"].(string))
}

// edited returns an archive whose entries have been passed through change,
// which may drop an entry by returning an empty name.
func edited(t *testing.T, b []byte, change func(i int, name string, data []byte) (string, []byte)) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	tr := tar.NewReader(bytes.NewReader(b))
	for i := 0; ; i++ {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		data, err2 := io.ReadAll(tr)
		if err != nil || err2 != nil {
			t.Fatal(err, err2)
		}
		name, data := change(i, h.Name, data)
		if name == "" {
			continue
		}
		if err := w.WriteHeader(&tar.Header{Name: name, Size: int64(len(data)), Mode: 0o400}); err != nil {
			t.Fatal(err)
		}
		w.Write(data)
	}
	w.Close()
	return out.Bytes()
}

func TestXVAImportFails(t *testing.T) {
	c := start(t, nil)
	snap := c.must("VM.snapshot", c.vm(), "s").(string)
	good, _ := c.exportVM(snap)
	before := c.p.Dump()
	same := func(i int, name string, data []byte) (string, []byte) { return name, data }
	var zipped bytes.Buffer
	z := gzip.NewWriter(&zipped)
	z.Write(edited(t, good, func(i int, name string, data []byte) (string, []byte) {
		if i == 0 {
			return "other.xml", data
		}
		return name, data
	}))
	z.Close()
	for name, x := range map[string]struct {
		body []byte
		want []string // code, and parts of its first parameter
		kv   []string
	}{
		"cut in a block": {good[:len(good)/2], []string{"IMPORT_ERROR_PREMATURE_EOF"}, nil},
		"cut at once":    {good[:100], []string{"IMPORT_ERROR_PREMATURE_EOF"}, nil},
		"no archive":     {bytes.Repeat([]byte("x"), 4096), []string{"IMPORT_ERROR_PREMATURE_EOF"}, nil},
		"another first":  {zipped.Bytes(), []string{"IMPORT_ERROR_UNEXPECTED_FILE", "ova.xml"}, nil},
		"another block": {edited(t, good, func(i int, name string, data []byte) (string, []byte) {
			if i == 5 {
				data[17] ^= 1
			}
			return name, data
		}), []string{"IMPORT_ERROR", "checksum failed"}, nil},
		"no checksums": {edited(t, good, func(i int, name string, data []byte) (string, []byte) {
			return strings.Replace(name, ".xxhash", ".md5", 1), data
		}), []string{"IMPORT_ERROR", "unsupported checksum file"}, nil},
		"order": {edited(t, good, func(i int, name string, data []byte) (string, []byte) {
			return strings.Replace(name, "00000003", "00000001", 1), data
		}), []string{"IMPORT_ERROR", "Invalid XVA file"}, nil},
		"newer": {edited(t, good, func(i int, name string, data []byte) (string, []byte) {
			return name, bytes.Replace(data, []byte("<name>xapi_major</name><value>26"), []byte("<name>xapi_major</name><value>27"), 1)
		}), []string{"IMPORT_INCOMPATIBLE_VERSION"}, nil},
		"no text": {edited(t, good, func(i int, name string, data []byte) (string, []byte) {
			if i == 0 {
				return name, []byte("<value>x</value>")
			}
			return name, data
		}), []string{"IMPORT_ERROR", "no version"}, nil},
		"beyond the end": {edited(t, good, func(i int, name string, data []byte) (string, []byte) {
			return strings.Replace(name, "00000007", "00000070", 1), data
		}), []string{"VDI_IO_ERROR", "Device"}, nil},
		"VM not exported": {edited(t, good, func(i int, name string, data []byte) (string, []byte) {
			return name, bytes.ReplaceAll(data, []byte("<name>class</name><value>VM</value>"), []byte("<name>class</name><value>XX</value>"))
		}), []string{"IMPORT_ERROR_FAILED_TO_FIND_OBJECT", "Ref:"}, nil},
		"ISO library": {edited(t, good, same), []string{"SR_OPERATION_NOT_SUPPORTED"}, []string{"sr_id", c.isoSR()}},
	} {
		said, task := c.importVM(x.body, x.kv...)
		info := stringsOf(task["error_info"].([]any))
		if task["status"] != "failure" || info[0] != x.want[0] || len(x.want) > 1 && !strings.Contains(info[1], x.want[1]) {
			t.Errorf("%s: %v %q, want %q", name, task["status"], info, x.want)
		}
		if head := strings.HasPrefix(said, "HTTP/1.1 400"); head != (name == "ISO library") || !strings.Contains(said, "500 Internal") {
			t.Errorf("%s: said %.100q", name, said)
		}
		c.p.GC()
		if name != "ISO library" && !reflect.DeepEqual(before, c.dumpWithoutISO()) {
			t.Errorf("%s: something is left behind", name)
		}
	}
	// With force, a wrong checksum is ignored.
	bad := edited(t, good, func(i int, name string, data []byte) (string, []byte) {
		if i == 5 {
			data[17] ^= 1
		}
		return name, data
	})
	_, task := c.importVM(bad, "force", "true")
	c.status(task, "success")
	// Encodings, no default SR, an upgrade, a request that only looks for
	// redirects.
	ref := c.must("task.create", "import", "").(string)
	said := c.put(c.url("/import/", "task_id", ref), "Transfer-Encoding: chunked\r\n", nil)
	c.status(c.finished(ref), "failure", "IMPORT_ERROR_CANNOT_HANDLE_CHUNKED")
	if !strings.HasPrefix(said, "HTTP/1.1 403") {
		t.Errorf("chunked: %.100q", said)
	}
	vms := len(c.must("VM.get_all").([]any))
	if said := c.put(c.url("/import/"), "", nil); !strings.HasPrefix(said, "HTTP/1.1 200") || len(c.must("VM.get_all").([]any)) != vms {
		t.Errorf("probe: %.100q", said)
	}
	c.must("pool.set_default_SR", c.must("pool.get_all").([]any)[0], nullRef)
	if said := c.put(c.url("/import"), "", good); !strings.HasPrefix(said, "HTTP/1.1 500") || !strings.Contains(said, "DEFAULT_SR_NOT_FOUND") {
		t.Errorf("no default SR: %.300q", said)
	}
	c2 := start(t, func(cfg *Config) { cfg.RollingUpgrade = true })
	_, task = c2.importVM(good)
	c2.status(task, "failure", "NOT_SUPPORTED_DURING_UPGRADE")
	// Servers before 8.1 do not support the new checksums.
	c3 := start(t, func(cfg *Config) { cfg.Version = Version80 })
	_, task = c3.importVM(edited(t, good, func(i int, name string, data []byte) (string, []byte) {
		data = bytes.Replace(data, []byte("<name>xapi_major</name><value>26"), []byte("<name>xapi_major</name><value>1"), 1)
		return name, data
	}))
	if info := stringsOf(task["error_info"].([]any)); len(info) != 2 || info[0] != "IMPORT_ERROR" || !strings.Contains(info[1], "inline checksum") {
		t.Errorf("8.0: %v", info)
	}
}

// isoSR returns an ISO library, which it creates at the first call.
func (c *client) isoSR() string {
	for ref, s := range c.must("SR.get_all_records").(map[string]any) {
		if s.(map[string]any)["type"] == "iso" {
			return ref
		}
	}
	return c.must("SR.create", c.must("host.get_all").([]any)[0], map[string]any{}, 1<<30, "isos", "", "iso", "iso", true, map[string]any{}).(string)
}

// dumpWithoutISO returns the dump of the pool without the ISO library.
func (c *client) dumpWithoutISO() map[string]map[string]map[string]any {
	out := c.p.Dump()
	iso := c.isoSR()
	delete(out["SR"], iso)
	for ref, pbd := range out["PBD"] {
		if pbd["SR"] == iso {
			delete(out["PBD"], ref)
			for _, h := range out["host"] {
				h["PBDs"] = without(h["PBDs"].([]any), ref)
			}
		}
	}
	return out
}

func TestImportMetadata(t *testing.T) {
	c := start(t, nil)
	vm := c.vm()
	c.must("VM.snapshot", vm, "s")
	resp := c.get(c.url("/export_metadata", "ref", vm))
	meta, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	send := func(kv ...string) map[string]any {
		t.Helper()
		task := c.must("task.create", "import", "").(string)
		if said := c.put(c.url("/import_metadata", append([]string{"task_id", task}, kv...)...), "", meta); !strings.HasPrefix(said, "HTTP/1.1 200") {
			t.Errorf("said %.100q", said)
		}
		return c.finished(task)
	}
	before := c.p.Dump()
	c.status(send("dry_run", "true"), "success")
	if !reflect.DeepEqual(before, c.p.Dump()) {
		t.Error("a dry run changed the pool")
	}
	task := send()
	c.status(task, "success")
	n := c.imported(task)
	if !reflect.DeepEqual(c.disks(n), c.disks(vm)) {
		t.Errorf("disks %v, want %v", c.disks(n), c.disks(vm))
	}
	if snaps := c.record("VM", n)["snapshots"].([]any); len(snaps) != 1 {
		t.Errorf("%d snapshots came along", len(snaps))
	}
	// With a map, and without the original disks.
	other := c.newDisk(c.sr("ext"), 8*mib, map[string]any{})
	first := c.uuid("VDI", c.disk(0))
	task = send("vdi:"+first, c.uuid("VDI", other), "export_snapshots", "false")
	if got := c.disks(c.imported(task))["0"]; got != other {
		t.Errorf("the mapped disk is %v, want %v", got, other)
	}
	c.must("VM.hard_shutdown", vm)
	location := c.record("VDI", c.disk(0))["location"].(string)
	c.must("VDI.destroy", c.disk(0))
	before = c.p.Dump()
	c.status(send(), "failure", "VDI_LOCATION_MISSING", c.sr("nfs"), location)
	if !reflect.DeepEqual(before, c.p.Dump()) {
		t.Error("the failed import left something behind")
	}
}

func TestDatabaseDump(t *testing.T) {
	c := start(t, nil)
	c.must("VM.set_name_label", c.vm(), "a <b> & \"c\"")
	task := c.must("task.create", "dump", "").(string)
	resp := c.get(c.url("/pool/xmldbdump", "task_id", task))
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != 200 || resp.ContentLength >= 0 {
		t.Fatalf("%s, length %d, %v", resp.Status, resp.ContentLength, err)
	}
	c.status(c.finished(task), "success")
	for _, want := range []string{
		`<pair key="schema_major_vsn" value="5"/>`, `<table name="VM">`, `name__label="a%.&lt;b&gt;%.&amp;%.&#34;c&#34;"`,
		`<table name="session"></table>`, `uuid="` + c.p.Ready().VMs[0].UUID + `"`, `snapshots="()"`,
	} {
		if !bytes.Contains(b, []byte(want)) {
			t.Errorf("the dump lacks %s", want)
		}
	}
	if resp := c.get(c.base + "/pool/xmldbdump"); resp.StatusCode != 401 {
		t.Errorf("no session: %s", resp.Status)
	}
	c2 := start(t, func(cfg *Config) { cfg.RollingUpgrade = true })
	b, err = io.ReadAll(c2.get(c2.url("/pool/xmldbdump")).Body)
	if err != nil || !bytes.Contains(b, []byte(`<pair key="schema_minor_vsn" value="35"/>`)) || !bytes.Contains(b, []byte(`<table name="VM"/>`)) || len(b) > 4096 {
		t.Errorf("the dump of an upgrade: %d bytes, %v", len(b), err)
	}
}
