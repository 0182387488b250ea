package xapisim

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"xenkeep/nbd"
)

// nbdInfo returns a disk's endpoints.
func (c *client) nbdInfo(vdi string) []nbd.Options {
	c.t.Helper()
	var out []nbd.Options
	for _, v := range c.must("VDI.get_nbd_info", vdi).([]any) {
		r := v.(map[string]any)
		o := nbd.Options{
			Address: net.JoinHostPort(r["address"].(string), fmt.Sprint(r["port"])), ExportName: r["exportname"].(string),
			Stall: 10 * time.Second,
		}
		if c.p.cfg.NBD == NBDTLS {
			o.PinnedCertPEM, o.ServerName = []byte(r["cert"].(string)), r["subject"].(string)
		}
		out = append(out, o)
	}
	return out
}

func nbdMode(m NBDMode) func(*Config) { return func(cfg *Config) { cfg.NBD = m } }

func (c *client) dialNBD(o nbd.Options) *nbd.Conn {
	c.t.Helper()
	conn, err := nbd.Dial(c.t.Context(), o)
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { conn.Close() })
	return conn
}

func TestNBDServesDisks(t *testing.T) {
	for _, mode := range []NBDMode{NBDTLS, NBDPlain} {
		t.Run(string(mode), func(t *testing.T) {
			c := start(t, nbdMode(mode))
			snap := c.snapshotDisk(0)
			infos := c.nbdInfo(snap)
			ready := c.p.Ready().NBD
			if len(infos) != 2 || len(ready) != 2 || infos[0].Address != fmt.Sprintf("%s:%d", ready[0].Address, ready[0].Port) {
				t.Fatalf("%d endpoints, ready %v", len(infos), ready)
			}
			for _, o := range infos { // every host that can reach the SR serves it
				if !strings.HasPrefix(o.ExportName, "/"+c.uuid("VDI", snap)+"?session_id="+c.session) {
					t.Errorf("export name %q", o.ExportName)
				}
				conn := c.dialNBD(o)
				got := make([]byte, conn.Size())
				if _, err := conn.ReadAt(t.Context(), got, 0); err != nil || !bytes.Equal(got, pattern(1, 8*mib)) {
					t.Fatalf("data of %s: %v", o.Address, err)
				}
				conn.Close()
			}
			eventually(t, "the control domains let go", func() bool { return c.dom0VBDs() == 0 })
			if n := len(c.nbdInfo(c.newDisk(c.sr("lvm"), 4*mib, map[string]any{}))); n != 1 {
				t.Errorf("a disk on local storage has %d endpoints", n)
			}
		})
	}
}

func TestNBDHoldsTheDisk(t *testing.T) {
	c := start(t, nbdMode(NBDPlain))
	snap := c.snapshotDisk(0)
	conn := c.dialNBD(c.nbdInfo(snap)[1])
	if c.dom0VBDs() != 1 {
		t.Errorf("%d attachments", c.dom0VBDs())
	}
	c.refused([]string{"VDI_IN_USE", snap, "destroy"}, "VDI.destroy", snap)
	conn.Close()
	eventually(t, "the disk can be destroyed", func() bool { _, err := c.call("VDI.destroy", snap); return err == nil })
}

func TestNBDRefusals(t *testing.T) {
	c := start(t, nbdMode(NBDTLS))
	snap := c.snapshotDisk(0)
	good := c.nbdInfo(snap)[0]
	refused := func(what string, change func(*nbd.Options)) {
		t.Helper()
		o := good
		change(&o)
		if conn, err := nbd.Dial(t.Context(), o); err == nil {
			conn.Close()
			t.Errorf("%s: served", what)
		}
	}
	refused("another session", func(o *nbd.Options) { o.ExportName = "/" + c.uuid("VDI", snap) + "?session_id=OpaqueRef:x" })
	refused("no session", func(o *nbd.Options) { o.ExportName = "/" + c.uuid("VDI", snap) })
	refused("unknown disk", func(o *nbd.Options) { o.ExportName = "/" + newUUID() + "?session_id=" + c.session })
	refused("without TLS", func(o *nbd.Options) { o.PinnedCertPEM = nil })
	refused("another host's certificate", func(o *nbd.Options) { o.PinnedCertPEM = c.nbdInfo(snap)[1].PinnedCertPEM })
	if c.dom0VBDs() != 0 {
		t.Errorf("%d attachments are left", c.dom0VBDs())
	}
	c.must("VDI.enable_cbt", c.disk(0))
	meta := c.snapshotDisk(0)
	c.must("VDI.data_destroy", meta)
	c.refused([]string{"VDI_INCOMPATIBLE_TYPE", meta, "CBT metadata"}, "VDI.get_nbd_info", meta)
	c.must("session.logout")
	refused("a session that ended", func(*nbd.Options) {})
}

func TestNBDPurposes(t *testing.T) {
	c := start(t, nil)
	snap := c.snapshotDisk(0)
	if got := c.nbdInfo(snap); len(got) != 0 || len(c.p.Ready().NBD) != 0 {
		t.Fatalf("endpoints %v without a purpose", got)
	}
	network := c.record("PIF", c.must("PIF.get_all").([]any)[0])["network"]
	other := ""
	for _, n := range c.must("network.get_all").([]any) {
		if n != network {
			other = n.(string)
		}
	}
	c.must("network.add_purpose", network, "insecure_nbd")
	c.must("network.add_purpose", network, "insecure_nbd") // adding the same purpose again succeeds
	c.refused([]string{"NETWORK_INCOMPATIBLE_PURPOSES", "nbd", "insecure_nbd"}, "network.add_purpose", other, "nbd")
	plain := c.nbdInfo(snap)[0]
	c.dialNBD(plain).Close()
	c.must("network.remove_purpose", network, "insecure_nbd")
	if _, err := nbd.Dial(t.Context(), plain); err == nil {
		t.Error("served without a purpose")
	}
	c.must("network.add_purpose", network, "nbd")
	c.refused([]string{"NETWORK_INCOMPATIBLE_PURPOSES", "insecure_nbd", "nbd"}, "network.add_purpose", network, "insecure_nbd")
	if _, err := nbd.Dial(t.Context(), plain); err == nil {
		t.Error("served in the clear where TLS is demanded")
	}
}

func TestNBDConnectionCap(t *testing.T) {
	c := start(t, nbdMode(NBDPlain))
	o := c.nbdInfo(c.snapshotDisk(0))[0]
	var first *nbd.Conn
	for range maxNBD {
		first = c.dialNBD(o)
	}
	if conn, err := nbd.Dial(t.Context(), o); err == nil {
		conn.Close()
		t.Error("the seventeenth connection is served")
	}
	first.Close()
	eventually(t, "a place is free again", func() bool {
		conn, err := nbd.Dial(t.Context(), o)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
}

// rawNBD performs the EXPORT_NAME negotiation without the client package.
func (c *client) rawNBD(o nbd.Options) net.Conn {
	c.t.Helper()
	conn, err := net.Dial("tcp", o.Address)
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	var greeting [18]byte
	if _, err := io.ReadFull(conn, greeting[:]); err != nil || string(greeting[:16]) != "NBDMAGICIHAVEOPT" || binary.BigEndian.Uint16(greeting[16:]) != 1 {
		c.t.Fatalf("greeting %q, %v", greeting, err)
	}
	b := binary.BigEndian.AppendUint32(nil, 1)
	b = binary.BigEndian.AppendUint32(append(b, "IHAVEOPT"...), 1)
	b = binary.BigEndian.AppendUint32(b, uint32(len(o.ExportName)))
	conn.Write(append(b, o.ExportName...))
	var answer [134]byte
	if _, err := io.ReadFull(conn, answer[:]); err != nil || !bytes.Equal(answer[10:], make([]byte, 124)) {
		c.t.Fatalf("answer % x, %v", answer, err)
	}
	if size, flags := binary.BigEndian.Uint64(answer[:]), binary.BigEndian.Uint16(answer[8:]); size != 8*mib || flags != 3 {
		c.t.Errorf("size %d, flags %d", size, flags)
	}
	return conn
}

func TestNBDOldClients(t *testing.T) {
	c := start(t, nbdMode(NBDPlain))
	o := c.nbdInfo(c.snapshotDisk(0))[0]
	read := func(cookie, off uint64, n uint32) []byte {
		b := binary.BigEndian.AppendUint32(nil, 0x25609513)
		b = binary.BigEndian.AppendUint64(append(b, 0, 0, 0, 0), cookie)
		return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint64(b, off), n)
	}
	// Several connections, each with several reads in flight, answered in
	// order.
	var all sync.WaitGroup
	for i := range uint64(3) {
		conn := c.rawNBD(o)
		all.Go(func() {
			for k := range uint64(4) {
				conn.Write(read(k, (i+k)*mib, mib))
			}
			for k := range uint64(4) {
				got := make([]byte, 16+mib)
				if _, err := io.ReadFull(conn, got); err != nil {
					t.Error(err)
					return
				}
				if binary.BigEndian.Uint32(got[4:]) != 0 || binary.BigEndian.Uint64(got[8:]) != k || !bytes.Equal(got[16:], pattern(1, 8*mib)[(i+k)*mib:][:mib]) {
					t.Errorf("connection %d: answer %d is wrong", i, k)
				}
			}
		})
	}
	all.Wait()
	// A request that is not a multiple of 512 ends the session.
	conn := c.rawNBD(o)
	conn.Write(read(9, 1, 512))
	got, _ := io.ReadAll(conn)
	if len(got) != 16 || binary.BigEndian.Uint32(got[4:]) != 22 {
		t.Errorf("unaligned read: % x", got)
	}
}

// TestNBDAfterHeadOfExport opens a VHD export, reads its beginning, closes the
// connection, and reads the data over NBD.
func TestNBDAfterHeadOfExport(t *testing.T) {
	c := start(t, nbdMode(NBDPlain))
	snap := c.snapshotDisk(0)
	resp := c.get(c.url("/export_raw_vdi", "vdi", snap, "format", "vhd"))
	if _, err := io.ReadFull(resp.Body, make([]byte, 2560)); err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	got := make([]byte, mib)
	if _, err := c.dialNBD(c.nbdInfo(snap)[0]).ReadAt(t.Context(), got, 4*mib); err != nil || !bytes.Equal(got, pattern(1, 8*mib)[4*mib:5*mib]) {
		t.Errorf("data: %v", err)
	}
}

func TestNBDFaults(t *testing.T) {
	c := start(t, nbdMode(NBDPlain))
	o := c.nbdInfo(c.snapshotDisk(0))[0]
	buf := make([]byte, mib)
	c.p.Fault(Fault{On: "/nbd", Cut: true, CutAt: 2 * mib})
	conn := c.dialNBD(o)
	var err error
	for off := int64(0); off < 4*mib && err == nil; off += mib {
		_, err = conn.ReadAt(t.Context(), buf, off)
	}
	if err == nil {
		t.Error("the connection was not cut")
	}
	c.p.Fault(Fault{On: "/nbd", Cut: true, Stall: true})
	stalled := o
	stalled.Stall = 50 * time.Millisecond
	conn = c.dialNBD(stalled)
	if _, err := conn.ReadAt(t.Context(), buf, 0); err == nil {
		t.Error("a stalled read came back")
	}
	conn.Close()
	c.p.Fault(Fault{On: "/nbd", Code: "SR_BACKEND_FAILURE_46"})
	if _, err := nbd.Dial(t.Context(), o); err == nil {
		t.Error("a disk that cannot be attached is served")
	}
	eventually(t, "all is detached", func() bool { return c.dom0VBDs() == 0 })

	conn = c.dialNBD(o)
	c.p.Restart()
	// The host's connections are closed by goroutines of their own.
	eventually(t, "the restart ends the connection", func() bool {
		_, err := conn.ReadAt(t.Context(), buf, 0)
		return err != nil
	})
	if _, err := nbd.Dial(t.Context(), o); err == nil {
		t.Error("the session survived the restart")
	}
}

func foreign(t *testing.T, name string, args ...string) (string, error) {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("SKIP: %s is not installed", name)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, path, args...).CombinedOutput()
	return string(out), err
}

// TestNBDForeignClients reads a disk with libnbd and qemu, in both modes and
// from servers with and without GO.
func TestNBDForeignClients(t *testing.T) {
	for _, mode := range []NBDMode{NBDPlain, NBDTLS} {
		for _, modern := range []bool{false, true} {
			c := start(t, func(cfg *Config) { cfg.NBD, cfg.NBDServer = mode, map[bool]NBDServer{true: NBDServerXAPINew}[modern] })
			o := c.nbdInfo(c.snapshotDisk(0))[0]
			dir := t.TempDir()
			scheme, query := "nbd", ""
			host, port, _ := net.SplitHostPort(o.Address)
			qemu := fmt.Sprintf("driver=raw,file.driver=nbd,file.server.type=inet,file.server.host=%s,file.server.port=%s,file.export=%s", host, port, o.ExportName)
			qemuArgs := []string{"convert", "-O", "raw"}
			if mode == NBDTLS {
				if err := os.WriteFile(filepath.Join(dir, "ca-cert.pem"), o.PinnedCertPEM, 0o600); err != nil {
					t.Fatal(err)
				}
				scheme, query = "nbds", "?tls-certificates="+url.QueryEscape(dir)
				qemuArgs = append(qemuArgs, "--object", "tls-creds-x509,id=tls0,endpoint=client,dir="+dir)
				qemu += ",file.tls-creds=tls0"
			}
			// The export's name itself begins with a slash.
			uri := scheme + "://" + o.Address + "/" + url.PathEscape(o.ExportName) + query
			name := fmt.Sprintf("%s modern=%v", mode, modern)
			if out, err := foreign(t, "nbdinfo", "--size", uri); err != nil || strings.TrimSpace(out) != fmt.Sprint(8*mib) {
				t.Errorf("%s: nbdinfo: %q, %v", name, out, err)
			}
			for i, cmd := range [][]string{
				{"nbdcopy", "--connections=4", uri, filepath.Join(dir, "copy0")},
				append(append([]string{"qemu-img"}, qemuArgs...), "--image-opts", qemu, filepath.Join(dir, "copy1")),
			} {
				if i == 1 && !modern {
					continue // qemu asks servers without GO for a list of exports, which xapi-nbd forbids
				}
				if out, err := foreign(t, cmd[0], cmd[1:]...); err != nil {
					t.Errorf("%s: %s: %v: %s", name, cmd[0], err, out)
					continue
				}
				got, err := os.ReadFile(filepath.Join(dir, fmt.Sprint("copy", i)))
				if err != nil || !bytes.Equal(got, pattern(1, 8*mib)) {
					t.Errorf("%s: %s made another disk: %v", name, cmd[0], err)
				}
			}
		}
	}
}
