package xapisim

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"
)

func TestImport(t *testing.T) {
	c := start(t, nil)
	full, _ := c.export(c.snapshotDisk(0), "format", "vhd")
	vdi := c.newDisk(c.sr("nfs"), 8*mib, map[string]any{})
	said, task := c.importTask(vdi, "", full, "format", "vhd")
	if !strings.HasPrefix(said, "HTTP/1.1 200 OK\r\n") || !strings.Contains(said, "content-type: application/octet-stream\r\n") ||
		!strings.HasSuffix(said, "\r\n\r\n") {
		t.Errorf("said %q", said)
	}
	c.status(task, "success")
	if task["result"] != "<value>"+vdi+"</value>" {
		t.Errorf("result %q", task["result"])
	}
	if !bytes.Equal(c.content(vdi), pattern(1, 8*mib)) {
		t.Error("the disk is not what was sent")
	}
	if c.dom0VBDs() != 0 {
		t.Error("attachment left")
	}
}

func TestAnswerComesBeforeBody(t *testing.T) {
	c := start(t, nil)
	vdi := c.newDisk(c.sr("nfs"), 2*mib, map[string]any{})
	conn := c.dial(strings.TrimPrefix(c.base, "https://"))
	defer conn.Close()
	fmt.Fprintf(conn, "PUT %s HTTP/1.1\r\nContent-Length: 1048576\r\n\r\n", strings.TrimPrefix(c.url("/import_raw_vdi/", "vdi", vdi), c.base))
	b := make([]byte, 15)
	conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.ReadFull(conn, b); err != nil || string(b) != "HTTP/1.1 200 OK" {
		t.Errorf("%q, %v", b, err)
	}
}

func TestDeltasAreApplied(t *testing.T) {
	c := start(t, nil)
	base := c.snapshotDisk(0)
	full, _ := c.export(base, "format", "vhd")
	live := c.guestWrites(5 * mib)
	delta, _ := c.export(c.snapshotDisk(0), "format", "vhd", "base", base)
	vdi := c.newDisk(c.sr("nfs"), 8*mib, map[string]any{})
	for _, s := range [][]byte{full, delta} {
		_, task := c.importTask(vdi, "", s, "format", "vhd")
		c.status(task, "success")
	}
	if !bytes.Equal(c.content(vdi), live) {
		t.Error("full and delta do not make the disk")
	}
}

func TestAbsentBlocksAreNotZeroed(t *testing.T) {
	c := start(t, nil)
	empty, _ := c.export(c.newDisk(c.sr("nfs"), 8*mib, map[string]any{}), "format", "vhd")
	full, _ := c.export(c.snapshotDisk(0), "format", "vhd")
	vdi := c.newDisk(c.sr("nfs"), 8*mib, map[string]any{})
	for _, s := range [][]byte{full, empty} {
		_, task := c.importTask(vdi, "", s, "format", "vhd")
		c.status(task, "success")
	}
	if !bytes.Equal(c.content(vdi), pattern(1, 8*mib)) {
		t.Error("absent blocks changed the disk")
	}
}

func TestImportRefusals(t *testing.T) {
	c := start(t, nil)
	vdi := c.newDisk(c.sr("nfs"), 2*mib, map[string]any{})
	for name, tc := range map[string]struct {
		kv, info []string
		vdi      string
		head     string
		status   string
	}{
		"transfer encoding":   {[]string{"format", "raw"}, []string{"INTERNAL_ERROR", "Cannot handle encoding: chunked"}, vdi, "Transfer-Encoding: chunked\r\n", "HTTP/1.0 404 Not Found"},
		"chunked VHD":         {[]string{"format", "vhd", "chunked", ""}, []string{"INTERNAL_ERROR", "Cannot handle chunked VHD"}, vdi, "", "HTTP/1.0 404 Not Found"},
		"unknown format":      {[]string{"format", "vmdk"}, []string{"INTERNAL_ERROR", "Unknown format vmdk"}, vdi, "", "HTTP/1.0 404 Not Found"},
		"neither disk nor SR": {nil, []string{"VDI_MISSING"}, "", "", "HTTP/1.1 400 Bad Request"},
		"VHD into an SR":      {[]string{"format", "vhd", "sr_id", c.sr("nfs")}, []string{"INTERNAL_ERROR", "Direct import of vhd into an SR is not supported"}, "", "", "HTTP/1.1 400 Bad Request"},
	} {
		said, task := c.importTask(tc.vdi, tc.head, nil, tc.kv...)
		if first, _, _ := strings.Cut(said, "\r\n"); first != tc.status {
			t.Errorf("%s: %q, want %q", name, first, tc.status)
		}
		c.status(task, "failure", tc.info...)
	}
}

func TestImportRawLengths(t *testing.T) {
	c := start(t, nil)
	old := pattern(7, 4*mib)
	for name, tc := range map[string]struct {
		head string
		send []byte
		want string
		keep int // offset at which the old content continues
	}{
		"shorter than the disk":  {"", pattern(2, mib), "success", mib},
		"no length":              {"none\r\n", pattern(2, 4*mib), "success", 4 * mib},
		"longer than the disk":   {"", pattern(2, 5*mib), "failure", 4 * mib},
		"shorter than announced": {"Content-Length: 3145728\r\n", pattern(2, mib), "failure", mib},
	} {
		vdi := c.newDisk(c.sr("nfs"), 4*mib, map[string]any{})
		_, task := c.importTask(vdi, "", old)
		c.status(task, "success")
		if name == "shorter than announced" {
			id := c.must("task.create", "x", "").(string)
			conn := c.dial(strings.TrimPrefix(c.base, "https://"))
			fmt.Fprintf(conn, "PUT %s HTTP/1.1\r\n%s\r\n", strings.TrimPrefix(c.url("/import_raw_vdi", "vdi", vdi, "task_id", id), c.base), tc.head)
			conn.Write(tc.send)
			conn.Close()
			task = c.finished(id)
		} else {
			_, task = c.importTask(vdi, tc.head, tc.send)
		}
		if task["status"] != tc.want {
			t.Errorf("%s: %v %v", name, task["status"], task["error_info"])
		}
		if tc.want == "failure" {
			c.status(task, "failure", "VDI_IO_ERROR", "Device I/O errors")
		}
		got := c.content(vdi)
		if tc.want == "success" && !bytes.Equal(got[:tc.keep], tc.send[:tc.keep]) || !bytes.Equal(got[tc.keep:], old[tc.keep:]) {
			t.Errorf("%s: content is wrong", name)
		}
	}
}

func TestImportVHDFailures(t *testing.T) {
	c := start(t, nil)
	full, _ := c.export(c.snapshotDisk(0), "format", "vhd")
	bad := bytes.Clone(full)
	bad[70] ^= 1 // covered by the footer's checksum
	for name, tc := range map[string]struct {
		size int64
		send []byte
		kv   []string
		sr   string
		sm   map[string]any
		want string
	}{
		"larger than the disk":    {4 * mib, full, []string{"format", "vhd"}, "nfs", nil, "failure"},
		"smaller than the disk":   {16 * mib, full, []string{"format", "vhd"}, "nfs", nil, "success"},
		"not a VHD":               {8 * mib, pattern(1, mib), []string{"format", "vhd"}, "nfs", nil, "failure"},
		"bad checksum":            {8 * mib, bad, []string{"format", "vhd"}, "nfs", nil, "failure"},
		"length 512 too large":    {8 * mib, append(bytes.Clone(full), make([]byte, 512)...), []string{"format", "vhd"}, "nfs", nil, "failure"},
		"length 512 too small":    {8 * mib, full[:len(full)-512], []string{"format", "vhd"}, "nfs", nil, "failure"},
		"into a raw LVM disk":     {8 * mib, full, []string{"format", "vhd"}, "lvmoiscsi", map[string]any{"type": "raw"}, "failure"},
		"raw into a raw LVM disk": {8 * mib, pattern(4, 8*mib), nil, "lvmoiscsi", map[string]any{"type": "raw"}, "success"},
	} {
		vdi := c.newDisk(c.sr(tc.sr), tc.size, map[string]any{"x": "y"})
		if tc.sm != nil {
			vdi = c.newDisk(c.sr(tc.sr), tc.size, tc.sm)
		}
		_, task := c.importTask(vdi, "", tc.send, tc.kv...)
		if task["status"] != tc.want {
			t.Errorf("%s: %v %v", name, task["status"], task["error_info"])
		}
		if tc.want == "failure" {
			c.status(task, "failure", "VDI_IO_ERROR", "Device I/O errors")
		}
	}
}

func TestImportProbe(t *testing.T) {
	c := start(t, nil)
	vdi := c.newDisk(c.sr("nfs"), 4*mib, map[string]any{})
	_, task := c.importTask(vdi, "", pattern(5, 4*mib))
	c.status(task, "success")
	for _, format := range []string{"raw", "vhd"} {
		said := c.put(c.url("/import_raw_vdi/", "vdi", vdi, "format", format), "", nil)
		if !strings.HasPrefix(said, "HTTP/1.1 200 OK\r\n") || strings.Contains(said, "500") {
			t.Errorf("%s: %q", format, said)
		}
	}
	if !bytes.Equal(c.content(vdi), pattern(5, 4*mib)) {
		t.Error("the probe changed the disk")
	}
}

func TestImportChunked(t *testing.T) {
	c := start(t, nil)
	vdi := c.newDisk(c.sr("nfs"), 4*mib, map[string]any{})
	old := pattern(5, 4*mib)
	c.importTask(vdi, "", old)
	var b []byte
	chunk := func(off uint64, data []byte) {
		b = binary.LittleEndian.AppendUint64(b, off)
		b = binary.LittleEndian.AppendUint32(b, uint32(len(data)))
		b = append(b, data...)
	}
	chunk(mib, pattern(8, 4096))
	chunk(3*mib, pattern(9, 512))
	chunk(0, nil)
	_, task := c.importTask(vdi, "", b, "format", "raw", "chunked", "")
	c.status(task, "success")
	copy(old[mib:], pattern(8, 4096))
	copy(old[3*mib:], pattern(9, 512))
	if !bytes.Equal(c.content(vdi), old) {
		t.Error("content is wrong")
	}
}

func TestImportIntoSR(t *testing.T) {
	c := start(t, nil)
	_, task := c.importTask("", "", pattern(6, 4*mib), "sr_uuid", c.uuid("SR", c.sr("nfs")))
	c.status(task, "success")
	vdi := strings.TrimSuffix(strings.TrimPrefix(task["result"].(string), "<value>"), "</value>")
	if !bytes.Equal(c.content(vdi), pattern(6, 4*mib)) {
		t.Error("content is wrong")
	}
}

func TestImportFailsHalfway(t *testing.T) {
	c := start(t, nil)
	vdi := c.newDisk(c.sr("nfs"), 4*mib, map[string]any{})
	c.p.Fault(Fault{On: "/import_raw_vdi", Cut: true, CutAt: 2 * mib, Embedded: true})
	_, task := c.importTask(vdi, "", pattern(5, 4*mib))
	c.status(task, "failure", "VDI_IO_ERROR", "Device I/O errors")
	got := c.content(vdi)
	if !bytes.Equal(got[:mib], pattern(5, mib)) || !bytes.Equal(got[3*mib:], make([]byte, mib)) {
		t.Error("what came before the failure must stay, and no more")
	}
}
