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
	"encoding/pem"
	"errors"
	"io/fs"
	"math/big"
	mrand "math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"xenkeep/internal/disk"
)

// memExport is an in-memory disk with holes; it counts how often it is opened
// and closed.
type memExport struct {
	data   []byte
	holes  []Extent
	opened atomic.Int32
	closed atomic.Int32
	reads  atomic.Int64
	fail   func(off int64, n int) error
}

// newExport generates size bytes from a seed; every third 64 KiB is a hole.
func newExport(size int) *memExport {
	e := &memExport{data: make([]byte, size)}
	src := mrand.NewChaCha8([32]byte{1})
	const step = 64 << 10
	for off := 0; off < size; off += step {
		n := min(step, size-off)
		if off/step%3 == 2 {
			e.holes = append(e.holes, Extent{disk.Extent{Offset: int64(off), Length: int64(n)}, true, true})
			continue
		}
		_, _ = src.Read(e.data[off : off+n])
	}
	return e
}

func (e *memExport) Size() int64 { return int64(len(e.data)) }

func (e *memExport) ReadAt(p []byte, off int64) (int, error) {
	e.reads.Add(1)
	if e.fail != nil {
		if err := e.fail(off, len(p)); err != nil {
			return 0, err
		}
	}
	return copy(p, e.data[off:]), nil
}

func (e *memExport) Extents(off, length int64) ([]Extent, error) {
	var out []Extent
	for _, h := range e.holes {
		if h.End() > off && h.Offset < off+length {
			if h.Offset < off {
				h.Length -= off - h.Offset
				h.Offset = off
			}
			out = append(out, h)
		}
	}
	return out, nil
}

func (e *memExport) Close() error { e.closed.Add(1); return nil }

const testName = "/f00d?session_id=OpaqueRef:secret"

// open serves e under testName.
func (e *memExport) open(_ context.Context, name string) (Export, error) {
	if name != testName {
		return nil, fs.ErrNotExist
	}
	e.opened.Add(1)
	return e, nil
}

// startServer serves on a port of its own until the test ends.
func startServer(t testing.TB, s *Server) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	serveOn(t, s, l)
	return l.Addr().String()
}

func serveOn(t testing.TB, s *Server, l net.Listener) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Serve(ctx, l)
	}()
	var once sync.Once
	stop = func() { once.Do(func() { cancel(); <-done }) }
	t.Cleanup(stop)
	return stop
}

// always returns a function that chooses the same profile for all connections.
func always(p Profile) func(context.Context, net.Conn) Profile {
	return func(context.Context, net.Conn) Profile { return p }
}

type identity struct {
	conf *tls.Config
	pem  []byte
	key  []byte
}

var newIdentity = func() func(t testing.TB) *identity {
	var mu sync.Mutex
	serial := int64(1)
	return func(t testing.TB) *identity {
		t.Helper()
		mu.Lock()
		serial++
		n := serial
		mu.Unlock()
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		tmpl := &x509.Certificate{
			SerialNumber: big.NewInt(n), Subject: pkix.Name{CommonName: "localhost"},
			NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
			DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
			IsCA: true, BasicConstraintsValid: true,
			KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		}
		der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
		if err != nil {
			t.Fatal(err)
		}
		pk, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		return &identity{
			conf: &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}},
			pem:  pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
			key:  pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pk}),
		}
	}
}()

func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func mustDial(t testing.TB, o Options) *Conn {
	t.Helper()
	if o.ExportName == "" {
		o.ExportName = testName
	}
	c, err := Dial(testContext(t), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

type reader interface {
	ReadAt(ctx context.Context, p []byte, off int64) (int, error)
	Size() int64
}

// readAll reads r with several goroutines and compares the result with want.
func readAll(t testing.TB, r reader, want []byte, piece, workers int) {
	t.Helper()
	if r.Size() != int64(len(want)) {
		t.Fatalf("size %d, want %d", r.Size(), len(want))
	}
	ctx := testContext(t)
	got := make([]byte, len(want))
	var next atomic.Int64
	var wg sync.WaitGroup
	errs := make([]error, workers)
	for i := range workers {
		wg.Go(func() {
			for {
				off := next.Add(int64(piece)) - int64(piece)
				if off >= int64(len(got)) {
					return
				}
				end := min(off+int64(piece), int64(len(got)))
				if _, err := r.ReadAt(ctx, got[off:end], off); err != nil {
					errs[i] = err
					return
				}
			}
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Fatal("bytes read differ")
	}
}

// eventually waits for a condition that another goroutine will establish.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("never came: " + what)
		}
	}
}
