package nbd

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// These tests use programs of other projects on both sides: nbdinfo and nbdcopy
// (libnbd) and qemu-img as clients of the server, and qemu-nbd as a server for
// the client.

func judge(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("SKIP: %s is not installed", name)
	}
	return path
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(testContext(t), judge(t, name), args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, stderr.String())
	}
	return string(out)
}

// pki writes the files that GnuTLS programs need: an authority, and a server's
// certificate and key signed by it.
func pki(t *testing.T) (dir string, conf *tls.Config, leafPEM []byte) {
	t.Helper()
	dir = t.TempDir()
	write := func(name, kind string, der []byte) []byte {
		b := pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
		return b
	}
	make1 := func(tmpl, parent *x509.Certificate, key, signer *ecdsa.PrivateKey) []byte {
		tmpl.SerialNumber = big.NewInt(time.Now().UnixNano())
		tmpl.NotBefore, tmpl.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(24*time.Hour)
		tmpl.BasicConstraintsValid = true
		der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, &key.PublicKey, signer)
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	newKey := func() *ecdsa.PrivateKey {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	caKey, key := newKey(), newKey()
	ca := &x509.Certificate{Subject: pkix.Name{CommonName: "authority"}, IsCA: true, KeyUsage: x509.KeyUsageCertSign}
	write("ca-cert.pem", "CERTIFICATE", make1(ca, ca, caKey, caKey))
	der := make1(&x509.Certificate{
		Subject: pkix.Name{CommonName: "localhost"}, DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, ca, key, caKey)
	leafPEM = write("server-cert.pem", "CERTIFICATE", der)
	pk, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	write("server-key.pem", "PRIVATE KEY", pk)
	return dir, &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}, leafPEM
}

// judged starts the servers that clients of other projects must be able to
// read.
func judged(t *testing.T) (e *memExport, dir string, all map[string]string) {
	t.Helper()
	dir, conf, _ := pki(t)
	e = newExport(9<<20 + 512)
	modernTLS := Modern()
	modernTLS.TLS, modernTLS.ForceTLS = conf, true
	newerXAPI := XAPI(nil)
	newerXAPI.GO, newerXAPI.Structured = true, true
	newerTLS := XAPI(conf)
	newerTLS.GO = true
	all = map[string]string{}
	for name, p := range map[string]Profile{
		"modern": Modern(), "modern tls": modernTLS, "simple": {GO: true},
		"xapi": XAPI(nil), "xapi tls": XAPI(conf), "newer xapi": newerXAPI, "newer xapi tls": newerTLS,
	} {
		all[name] = startServer(t, &Server{
			Open: e.open, Profile: always(p), MaxConnections: HostConnections,
			List: func(context.Context) ([]Listed, error) { return []Listed{{testName, "a disk"}}, nil },
		})
	}
	return e, dir, all
}

func nbdURI(name, addr, dir string) string {
	if strings.Contains(name, "tls") {
		return "nbds://" + addr + "/" + url.PathEscape(testName) + "?tls-certificates=" + url.QueryEscape(dir)
	}
	return "nbd://" + addr + "/" + url.PathEscape(testName)
}

func TestJudgeNBDInfo(t *testing.T) {
	judge(t, "nbdinfo")
	e, dir, all := judged(t)
	for name, addr := range all {
		t.Run(name, func(t *testing.T) {
			uri := nbdURI(name, addr, dir)
			if got := run(t, "nbdinfo", "--size", uri); got != fmt.Sprintln(e.Size()) {
				t.Errorf("size %q", got)
			}
			var info struct {
				TLS        bool
				Structured bool
				Exports    []struct {
					Name        string   `json:"export-name"`
					Size        int64    `json:"export-size"`
					ReadOnly    bool     `json:"is_read_only"`
					MultiConn   bool     `json:"can_multi_conn"`
					Description string   `json:"description"`
					Contexts    []string `json:"contexts"`
				}
			}
			if err := json.Unmarshal([]byte(run(t, "nbdinfo", "--json", uri)), &info); err != nil {
				t.Fatal(err)
			}
			modern := strings.HasPrefix(name, "modern")
			if info.TLS != strings.Contains(name, "tls") || info.Structured != (modern || name == "newer xapi") || len(info.Exports) != 1 {
				t.Fatalf("%+v", info)
			}
			if x := info.Exports[0]; x.Name != testName || x.Size != e.Size() || !x.ReadOnly || x.MultiConn != modern ||
				(len(x.Contexts) == 1) != modern {
				t.Errorf("%+v", x)
			}
			if !modern {
				return
			}
			var extents []struct {
				Offset, Length int64
				Type           int
			}
			if err := json.Unmarshal([]byte(run(t, "nbdinfo", "--map", "--json", uri)), &extents); err != nil {
				t.Fatal(err)
			}
			want := coverRange(e.holes, 0, e.Size())
			if len(extents) != len(want) {
				t.Fatalf("%d extents, want %d", len(extents), len(want))
			}
			for i, w := range want {
				if x := extents[i]; x.Offset != w.Offset || x.Length != w.Length || (x.Type == stateHole|stateZero) != w.Zero {
					t.Fatalf("extent %+v, want %+v", x, w)
				}
			}
			base, _, _ := strings.Cut(uri, "/"+url.PathEscape(testName))
			_, query, _ := strings.Cut(uri, "?")
			if got := run(t, "nbdinfo", "--list", "--json", base+"/?"+query); !strings.Contains(got, testName) {
				t.Errorf("list: %s", got)
			}
		})
	}
}

func TestJudgeNBDCopy(t *testing.T) {
	judge(t, "nbdcopy")
	e, dir, all := judged(t)
	for name, addr := range all {
		for _, args := range [][]string{{"--connections=4"}, {"--connections=4", "--requests=16", "--request-size=4194304"}, {"--synchronous"}} {
			out := filepath.Join(t.TempDir(), "copy")
			run(t, "nbdcopy", append(args, nbdURI(name, addr, dir), out)...)
			sameFile(t, name, out, e.data)
		}
	}
	eventually(t, "every detach", func() bool { return e.opened.Load() == e.closed.Load() })
}

func sameFile(t *testing.T, name, path string, want []byte) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s: %d bytes copied, differ from the export's %d", name, len(got), len(want))
	}
}

func TestJudgeQemuImg(t *testing.T) {
	judge(t, "qemu-img")
	e, dir, all := judged(t)
	for name, addr := range all {
		host, port, _ := net.SplitHostPort(addr)
		image := fmt.Sprintf("driver=nbd,server.type=inet,server.host=%s,server.port=%s,export=%s", host, port, testName)
		creds := []string{"--object", "tls-creds-x509,id=tls0,endpoint=client,verify-peer=on,dir=" + dir}
		if strings.Contains(name, "tls") {
			image += ",tls-creds=tls0"
		}
		if strings.HasPrefix(name, "xapi") {
			// Without GO, qemu requests the list of exports and treats the
			// answer POLICY, which xapi-nbd sends, as fatal.
			args := append(append([]string{"info"}, creds...), "--image-opts", image)
			out, err := exec.CommandContext(testContext(t), "qemu-img", args...).CombinedOutput()
			if err == nil || !strings.Contains(string(out), "list") {
				t.Errorf("%s: qemu-img no longer minds the list: %s, %v", name, out, err)
			}
			continue
		}
		out := filepath.Join(t.TempDir(), "copy")
		run(t, "qemu-img", append([]string{"convert"}, append(creds, "--image-opts", image, "-O", "raw", out)...)...)
		sameFile(t, name, out, e.data)
		var info struct {
			Size int64 `json:"virtual-size"`
		}
		s := run(t, "qemu-img", append([]string{"info", "--output=json"}, append(creds, "--image-opts", image)...)...)
		if err := json.Unmarshal([]byte(s), &info); err != nil || info.Size != e.Size() {
			t.Errorf("%s: info %s, %v", name, s, err)
		}
	}
}

// qemuNBD serves path until the test ends and returns the socket's path.
func qemuNBD(t *testing.T, path string, args ...string) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "nbd") // socket paths must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "s")
	args = append(args, "--read-only", "--persistent", "--shared=8", "-f", "raw", "-x", testName, "-k", socket, path)
	cmd := exec.Command(judge(t, "qemu-nbd"), args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Log(stderr.String())
		}
	})
	eventually(t, "qemu-nbd", func() bool {
		c, err := net.Dial("unix", socket)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	return socket
}

// TestJudgeQemuNBD reads a sparse file from qemu-nbd.
func TestJudgeQemuNBD(t *testing.T) {
	judge(t, "qemu-nbd")
	e := newExport(9<<20 + 512)
	path := filepath.Join(t.TempDir(), "disk")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range coverRange(e.holes, 0, e.Size()) {
		if !x.Zero {
			if _, err := f.WriteAt(e.data[x.Offset:x.End()], x.Offset); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := f.Truncate(e.Size()); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	dir, _, leaf := pki(t)
	for _, secure := range []bool{false, true} {
		t.Run(fmt.Sprintf("tls=%v", secure), func(t *testing.T) {
			var args []string
			o := Options{Network: "unix"}
			if secure {
				args = []string{"--object", "tls-creds-x509,id=tls0,endpoint=server,verify-peer=off,dir=" + dir, "--tls-creds=tls0"}
				o.PinnedCertPEM = leaf
			}
			o.Address = qemuNBD(t, path, args...)
			for _, basic := range []bool{false, true} {
				o.Basic = basic
				c := mustDial(t, o)
				i := c.Info()
				if i.Structured == basic || i.Allocation == basic || !i.ReadOnly || i.TLS != secure {
					t.Errorf("info %+v", i)
				}
				readAll(t, c, e.data, 70_001, 4)
				readAll(t, c, e.data, 1<<20, 8)
				if !basic {
					got, err := c.Extents(testContext(t), 0, e.Size())
					if err != nil {
						t.Fatal(err)
					}
					zero, at := 0, int64(0)
					for _, x := range got {
						if x.Offset != at {
							t.Fatalf("gap before %v", x)
						}
						at = x.End()
						if x.Zero {
							zero++
							if len(bytes.Trim(e.data[x.Offset:x.End()], "\x00")) != 0 {
								t.Fatalf("%v is not zero", x)
							}
						}
					}
					if at != e.Size() || zero == 0 {
						t.Errorf("%d extents, %d of them zero, up to %d", len(got), zero, at)
					}
				}
				c.Close()
			}
			d, err := Open(testContext(t), DiskOptions{Endpoints: []Endpoint{{
				Network: "unix", Address: o.Address, ExportName: testName, PinnedCertPEM: o.PinnedCertPEM,
			}}})
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			readAll(t, d, e.data, 100<<10, 8)
			if n := d.Connections(); n < 2 {
				t.Errorf("%d connections", n)
			}
			p := make([]byte, 1000)
			if n, err := d.ReadAt(testContext(t), p, e.Size()-10); n != 10 || err != io.EOF || !bytes.Equal(p[:10], e.data[e.Size()-10:]) {
				t.Errorf("read across the end: %d, %v", n, err)
			}
			o.ExportName, o.Basic = "nobody", false
			if c, err := Dial(testContext(t), o); err == nil {
				c.Close()
				t.Error("an export that is not there")
			}
		})
	}
}
