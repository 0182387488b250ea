package nbd

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
)

// flatExport returns bytes at the cost of a copy.
type flatExport struct {
	size int64
	page []byte
}

func (e flatExport) Size() int64 { return e.size }

func (e flatExport) ReadAt(p []byte, _ int64) (int, error) { return copy(p, e.page), nil }

// BenchmarkRead reads in blocks of 2 MiB over loopback, with client and server
// in this process.
func BenchmarkRead(b *testing.B) {
	id := newIdentity(b)
	e := flatExport{size: 1 << 30, page: make([]byte, servePiece)}
	modernTLS := Modern()
	modernTLS.TLS, modernTLS.ForceTLS = id.conf, true
	for _, bc := range []struct {
		name string
		p    Profile
	}{{"modern", Modern()}, {"modern-tls", modernTLS}, {"xapi", XAPI(nil)}, {"xapi-tls", XAPI(id.conf)}} {
		for _, conns := range []int{1, 4} {
			b.Run(fmt.Sprintf("%s/connections=%d", bc.name, conns), func(b *testing.B) {
				addr := startServer(b, &Server{Open: func(context.Context, string) (Export, error) { return e, nil }, Profile: always(bc.p)})
				ep := Endpoint{Address: addr}
				if bc.p.ForceTLS {
					ep.PinnedCertPEM = id.pem
				}
				d, err := Open(testContext(b), DiskOptions{Endpoints: []Endpoint{ep}, Connections: conns})
				if err != nil {
					b.Fatal(err)
				}
				defer d.Close()
				ctx := testContext(b)
				const piece = 2 << 20
				b.SetBytes(piece)
				b.ReportAllocs()
				b.ResetTimer()
				var next atomic.Int64
				var wg sync.WaitGroup
				for range 2 * conns {
					wg.Go(func() {
						p := make([]byte, piece)
						for {
							n := next.Add(1) - 1
							if n >= int64(b.N) {
								return
							}
							if _, err := d.ReadAt(ctx, p, n*piece%e.size); err != nil {
								b.Error(err)
								return
							}
						}
					})
				}
				wg.Wait()
			})
		}
	}
}

// BenchmarkSmallReads measures the cost of a request.
func BenchmarkSmallReads(b *testing.B) {
	e := flatExport{size: 1 << 30, page: make([]byte, servePiece)}
	addr := startServer(b, &Server{Open: func(context.Context, string) (Export, error) { return e, nil }})
	c := mustDial(b, Options{Address: addr})
	ctx := testContext(b)
	p := make([]byte, 4096)
	b.ReportAllocs()
	b.ResetTimer()
	for i := range b.N {
		if _, err := c.ReadAt(ctx, p, int64(i)*4096%e.size); err != nil {
			b.Fatal(err)
		}
	}
}
