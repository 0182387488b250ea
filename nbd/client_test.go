package nbd

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	mrand "math/rand/v2"
	"strings"
	"testing"
	"time"
)

// profiles returns all combinations of features that a server may support.
func profiles(id *identity) map[string]Profile {
	all := map[string]Profile{}
	for _, secure := range []bool{false, true} {
		for _, xapi := range []bool{false, true} {
			for bits := range 8 {
				p := Profile{LikeXAPI: xapi, GO: bits&1 != 0, Structured: bits&2 != 0, NoZeroes: bits&4 != 0}
				p.BlockStatus = p.Structured && !xapi
				if secure {
					p.TLS, p.ForceTLS = id.conf, true
				}
				all[fmt.Sprintf("tls=%v xapi=%v go=%v structured=%v nozeroes=%v", secure, xapi, p.GO, p.Structured, p.NoZeroes)] = p
			}
		}
	}
	return all
}

func TestEveryCombination(t *testing.T) {
	id := newIdentity(t)
	for name, p := range profiles(id) {
		t.Run(name, func(t *testing.T) {
			e := newExport(1<<20 + 3*512)
			addr := startServer(t, &Server{Open: e.open, Profile: always(p)})
			o := Options{Address: addr}
			if p.ForceTLS {
				o.PinnedCertPEM = id.pem
			}
			c := mustDial(t, o)
			i := c.Info()
			if i.Structured != p.Structured || i.TLS != p.ForceTLS || i.Allocation != p.BlockStatus || !i.ReadOnly {
				t.Errorf("info %+v", i)
			}
			if want := !p.GO && !p.Structured; i.Basic != want {
				t.Errorf("basic %v, want %v", i.Basic, want)
			}
			readAll(t, c, e.data, 100<<10, 4)
			readAll(t, c, e.data, 33333, 3)
			readAll(t, c, e.data, len(e.data), 1)
			if i.Allocation {
				checkExtents(t, c, e)
			} else if _, err := c.Extents(testContext(t), 0, 512); !errors.Is(err, ErrNoAllocation) {
				t.Errorf("extents: %v", err)
			}
			c.Close()
			eventually(t, "the export's close", func() bool { return e.closed.Load() == 1 && e.opened.Load() == 1 })
			if _, err := c.ReadAt(testContext(t), make([]byte, 512), 0); !errors.Is(err, ErrClosed) {
				t.Errorf("read after close: %v", err)
			}
		})
	}
}

func checkExtents(t *testing.T, c *Conn, e *memExport) {
	t.Helper()
	for _, r := range [][2]int64{{0, e.Size()}, {1, e.Size() - 1}, {130 << 10, 1000}, {e.Size() - 1, 1}, {5, 0}} {
		got, err := c.Extents(testContext(t), r[0], r[1])
		if err != nil {
			t.Fatal(err)
		}
		said, _ := e.Extents(r[0], r[1])
		want := coverRange(said, r[0], r[1])
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("extents of %v: %v, want %v", r, got, want)
		}
	}
	if _, err := c.Extents(testContext(t), 1, e.Size()); err == nil {
		t.Error("extents beyond the end were given")
	}
}

func TestUnalignedReads(t *testing.T) {
	for _, size := range []int{4096 * 5, 4096*5 + 512, 10_000} {
		e := newExport(size)
		p := Modern()
		c := mustDial(t, Options{Address: startServer(t, &Server{Open: e.open, Profile: always(p)})})
		rnd := mrand.New(mrand.NewPCG(1, uint64(size)))
		for range 500 {
			off := rnd.IntN(size + 1)
			p := make([]byte, rnd.IntN(size-off+1))
			if n, err := c.ReadAt(testContext(t), p, int64(off)); err != nil || n != len(p) || !bytes.Equal(p, e.data[off:off+n]) {
				t.Fatalf("read %d at %d: %d, %v", len(p), off, n, err)
			}
		}
		p2 := make([]byte, 700)
		if n, err := c.ReadAt(testContext(t), p2, int64(size-300)); n != 300 || err != io.EOF || !bytes.Equal(p2[:300], e.data[size-300:]) {
			t.Fatalf("read across the end: %d, %v", n, err)
		}
		if _, err := c.ReadAt(testContext(t), p2, int64(size+1)); err == nil {
			t.Fatal("read behind the end")
		}
		if _, err := c.ReadAt(testContext(t), p2, -1); err == nil {
			t.Fatal("read before the beginning")
		}
	}
}

func TestTLSIsNeverGivenUp(t *testing.T) {
	id, other := newIdentity(t), newIdentity(t)
	e := newExport(4096)
	forced := Modern()
	forced.TLS, forced.ForceTLS = id.conf, true
	secure := startServer(t, &Server{Open: e.open, Profile: always(forced)})
	plain := startServer(t, &Server{Open: e.open})
	xapiPlain := startServer(t, &Server{Open: e.open, Profile: always(XAPI(nil))})
	xapiTLS := startServer(t, &Server{Open: e.open, Profile: always(XAPI(id.conf))})
	for name, tc := range map[string]struct {
		o    Options
		want error
	}{
		"another certificate":  {Options{Address: secure, PinnedCertPEM: other.pem}, ErrTLS},
		"no pinned one":        {Options{Address: secure, PinnedCertPEM: []byte("nothing")}, ErrTLS},
		"unknown authority":    {Options{Address: secure, TLS: &tls.Config{}}, ErrTLS},
		"server without":       {Options{Address: plain, PinnedCertPEM: id.pem}, ErrTLS},
		"xapi without":         {Options{Address: xapiPlain, PinnedCertPEM: id.pem}, ErrTLS},
		"server demands":       {Options{Address: secure}, ErrTLS},
		"xapi demands":         {Options{Address: xapiTLS}, ErrTLS},
		"xapi demands, basic":  {Options{Address: xapiTLS, Basic: true}, ErrRefused},
		"xapi, another":        {Options{Address: xapiTLS, PinnedCertPEM: other.pem}, ErrTLS},
		"name not there":       {Options{Address: plain, ExportName: "nobody"}, ErrRefused},
		"name not there, tls":  {Options{Address: xapiTLS, PinnedCertPEM: id.pem, ExportName: "nobody"}, ErrRefused},
		"name not there, xapi": {Options{Address: xapiPlain, ExportName: "nobody"}, ErrRefused},
	} {
		if tc.o.ExportName == "" {
			tc.o.ExportName = testName
		}
		c, err := Dial(testContext(t), tc.o)
		if err == nil {
			c.Close()
		}
		if !errors.Is(err, tc.want) {
			t.Errorf("%s: %v", name, err)
		} else if strings.Contains(err.Error(), tc.o.ExportName) {
			t.Errorf("%s: error shows the export's name: %v", name, err)
		}
	}
	if n := e.opened.Load(); n != 0 {
		t.Errorf("export opened %d times", n)
	}
	both := append(bytes.Clone(other.pem), id.pem...)
	c := mustDial(t, Options{Address: xapiTLS, PinnedCertPEM: both, ServerName: "whatever"})
	if v := c.nc.(*tls.Conn).ConnectionState().Version; v != tls.VersionTLS12 {
		t.Errorf("tls version %x", v)
	}
}

// TestPipelining shows that several requests are in flight on one connection:
// the export answers none of them before it has received all.
func TestPipelining(t *testing.T) {
	const n = 6
	e := newExport(n * 4096)
	all := make(chan struct{})
	arrived := make(chan struct{}, n)
	e.fail = func(int64, int) error {
		arrived <- struct{}{}
		<-all
		return nil
	}
	go func() {
		for range n {
			<-arrived
		}
		close(all)
	}()
	c := mustDial(t, Options{Address: startServer(t, &Server{Open: e.open, Profile: always(Profile{GO: true})})})
	readAll(t, c, e.data, 4096, n)
}

func TestRemoteErrorsLeaveTheConnection(t *testing.T) {
	for _, structured := range []bool{false, true} {
		e := newExport(8 << 20)
		e.fail = func(off int64, n int) error {
			if off <= 1<<20 && off+int64(n) > 1<<20 {
				return errors.New("bad sector")
			}
			return nil
		}
		c := mustDial(t, Options{Address: startServer(t, &Server{Open: e.open, Profile: always(Profile{GO: true, Structured: structured})})})
		_, err := c.ReadAt(testContext(t), make([]byte, 4096), 1<<20)
		var re *RemoteError
		if !errors.As(err, &re) || !errors.Is(err, EIO) {
			t.Fatalf("structured %v: %v", structured, err)
		}
		p := make([]byte, 4096)
		if _, err := c.ReadAt(testContext(t), p, 0); err != nil || !bytes.Equal(p, e.data[:4096]) {
			t.Fatalf("structured %v: next read: %v", structured, err)
		}
		// After the first piece of a long simple reply, the reply can no longer
		// become an error.
		e.fail = func(off int64, _ int) error {
			if off >= 4<<20 {
				return errors.New("bad sector")
			}
			return nil
		}
		_, err = c.ReadAt(testContext(t), make([]byte, 8<<20), 0)
		if structured && !errors.Is(err, EIO) || !structured && !errors.Is(err, ErrLost) {
			t.Fatalf("structured %v: late error: %v", structured, err)
		}
	}
}

// TestCancelledReads cancels reads before and within their answers; other reads
// on the connection must stay correct, and the buffers must not be written to.
func TestCancelledReads(t *testing.T) {
	e := newExport(4 << 20)
	gate := make(chan struct{})
	e.fail = func(off int64, _ int) error {
		if off == 0 {
			<-gate
		}
		return nil
	}
	c := mustDial(t, Options{Address: startServer(t, &Server{Open: e.open})})
	ctx, cancel := context.WithCancel(testContext(t))
	p := make([]byte, 4096)
	result := make(chan error)
	go func() {
		_, err := c.ReadAt(ctx, p, 0)
		result <- err
	}()
	eventually(t, "the request", func() bool { return e.reads.Load() == 1 })
	cancel()
	if err := <-result; !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	for i := range p {
		p[i] = 0xaa
	}
	close(gate)
	readAll(t, c, e.data, 64<<10, 4)
	if !bytes.Equal(p, bytes.Repeat([]byte{0xaa}, len(p))) {
		t.Fatal("an abandoned buffer was written to")
	}
	if _, err := c.ReadAt(ctx, p, 0); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if len(c.free) != cap(c.free) {
		t.Errorf("%d of %d places free", len(c.free), cap(c.free))
	}
	// At random moments, many of them within an answer.
	rnd := mrand.New(mrand.NewPCG(2, 2))
	for range 200 {
		ctx, cancel := context.WithTimeout(testContext(t), time.Duration(rnd.IntN(1500))*time.Microsecond)
		_, err := c.ReadAt(ctx, make([]byte, 2<<20), 2<<20)
		cancel()
		if err != nil && !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(err)
		}
	}
	readAll(t, c, e.data, 64<<10, 4)
}

func TestDialCancelled(t *testing.T) {
	l := newScript(t, func(*wire) {}) // accepts, sends nothing, and waits
	ctx, cancel := context.WithCancel(testContext(t))
	time.AfterFunc(20*time.Millisecond, cancel)
	if _, err := Dial(ctx, Options{Address: l}); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if _, err := Dial(testContext(t), Options{Address: l, Stall: 20 * time.Millisecond}); !errors.Is(err, ErrStalled) {
		t.Fatal(err)
	}
}
