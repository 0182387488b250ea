package browse_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"xenkeep/job/browse"
	"xenkeep/job/jobtest"
	"xenkeep/nbd"
	"xenkeep/repo"
)

// authority writes a CA and a certificate for this machine, in the form that GnuTLS
// programs expect, and returns the server's configuration.
func authority(t *testing.T) (dir string, conf *tls.Config) {
	t.Helper()
	dir = t.TempDir()
	sign := func(name string, c, parent *x509.Certificate, key, by *ecdsa.PrivateKey) []byte {
		c.SerialNumber, c.Subject = big.NewInt(time.Now().UnixNano()), pkix.Name{CommonName: name}
		c.NotBefore, c.NotAfter, c.BasicConstraintsValid = time.Now().Add(-time.Hour), time.Now().Add(time.Hour), true
		der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, by)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name+"-cert.pem"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ca := &x509.Certificate{IsCA: true, KeyUsage: x509.KeyUsageCertSign}
	sign("ca", ca, ca, caKey, caKey)
	der := sign("server", &x509.Certificate{
		DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, ca, key, caKey)
	return dir, &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
}

// serveNBD serves until the test ends.
func serveNBD(t *testing.T, r *repo.Repository, o browse.NBDOptions) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	over := make(chan error)
	go func() { over <- browse.ServeNBD(ctx, r, l, o) }()
	t.Cleanup(func() {
		cancel()
		if err := <-over; !errors.Is(err, context.Canceled) {
			t.Errorf("ended with %v", err)
		}
	})
	return l.Addr().String()
}

// qemu-img, nbdcopy and nbdfuse read snapshots, over TLS, too.
func TestServeNBD(t *testing.T) {
	r := jobtest.NewRepository(t)
	file := jobtest.Image(t, filepath.Join(t.TempDir(), "a.raw"), 20*jobtest.MiB, 5, 30)
	s := jobtest.ImageBackup(t, r, file)
	dir, conf := authority(t)
	addr := serveNBD(t, r, browse.NBDOptions{TLS: conf})
	plain := serveNBD(t, r, browse.NBDOptions{Snapshot: s})
	host, port, _ := net.SplitHostPort(addr)
	name := s.Short() + "/image"
	tool := func(name string, args ...string) {
		t.Helper()
		path, err := exec.LookPath(name)
		if err != nil {
			t.Logf("SKIP: no %s", name)
			return
		}
		if out, err := exec.Command(path, args...).CombinedOutput(); err != nil {
			t.Errorf("%s %s: %v: %s", name, args, err, out)
		}
	}
	tool("qemu-img", "compare", "--object", "tls-creds-x509,id=t,dir="+dir+",endpoint=client,verify-peer=yes", "--image-opts",
		"driver=raw,file.driver=file,file.filename="+file, fmt.Sprintf("driver=nbd,server.type=inet,server.host=%s,server.port=%s,export=%s,tls-creds=t", host, port, name))
	tool("qemu-img", "compare", "-f", "raw", "-F", "raw", file, "nbd://"+plain)
	out := filepath.Join(t.TempDir(), "out.raw")
	tool("nbdcopy", "nbds://"+addr+"/latest:image%2fimage?tls-certificates="+dir, out)
	if jobtest.FileSum(t, out) != jobtest.FileSum(t, file) {
		t.Error("nbdcopy's copy differs")
	}
	if path, err := exec.LookPath("nbdinfo"); err == nil {
		said, err := exec.Command(path, "--list", "nbd://"+plain).CombinedOutput()
		if err != nil || !bytes.Contains(said, []byte(`export="image"`)) || !bytes.Contains(said, []byte("is_read_only: true")) {
			t.Errorf("nbdinfo: %v: %s", err, said)
		}
		said, err = exec.Command(path, "--map", "--totals", "nbd://"+plain).CombinedOutput()
		if err != nil || !bytes.Contains(said, []byte("hole,zero")) {
			t.Errorf("nbdinfo --map: %v: %s", err, said)
		}
	}
	nbdfuse(t, "nbd://"+plain+"/image", file)
	dial := func(addr, export string, conf *tls.Config) error {
		c, err := nbd.Dial(t.Context(), nbd.Options{Address: addr, ExportName: export, TLS: conf})
		if err == nil {
			_ = c.Close()
		}
		return err
	}
	for _, bad := range []string{"", "image", "nosuch1/image", name + "x", "latest:q/image"} {
		if err := dial(addr, bad, &tls.Config{InsecureSkipVerify: true}); !errors.Is(err, nbd.ErrRefused) {
			t.Errorf("export %q: %v", bad, err)
		}
	}
	if err := dial(addr, name, nil); !errors.Is(err, nbd.ErrTLS) {
		t.Errorf("without TLS: %v", err)
	}
	if err := dial(serveNBD(t, r, browse.NBDOptions{Snapshot: s, Disk: "image"}), "", nil); err != nil {
		t.Errorf("the only disk: %v", err)
	}
}

// nbdfuse mounts an export as a file, which must be equal to want.
func nbdfuse(t *testing.T, uri, want string) {
	t.Helper()
	path, err := exec.LookPath("nbdfuse")
	if err != nil {
		t.Log("SKIP: no nbdfuse")
		return
	}
	dir, err := os.MkdirTemp("", "nbdfuse-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.Remove(dir)
	pid := filepath.Join(t.TempDir(), "pid")
	var said bytes.Buffer
	cmd := exec.Command(path, "-r", "-P", pid, filepath.Join(dir, "disk"), uri)
	cmd.Stderr = &said
	if err := os.WriteFile(filepath.Join(dir, "disk"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(filepath.Join(dir, "disk"))
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	over := make(chan error, 1)
	go func() { over <- cmd.Wait() }()
	for range 1000 {
		if _, err := os.Stat(pid); err == nil {
			break
		}
		select {
		case <-over:
			if text := said.String(); strings.Contains(text, "fuse") {
				t.Logf("SKIP: kernel: nbdfuse: %s", text)
				return
			}
			t.Fatalf("nbdfuse: %s", said.String())
		case <-time.After(5 * time.Millisecond):
		}
	}
	if jobtest.FileSum(t, filepath.Join(dir, "disk")) != jobtest.FileSum(t, want) {
		t.Error("through nbdfuse it differs")
	}
	if out, err := exec.Command("fusermount3", "-u", filepath.Join(dir, "disk")).CombinedOutput(); err != nil {
		t.Errorf("fusermount3: %v: %s", err, out)
		_ = cmd.Process.Kill()
	}
	<-over
}
