package nbd

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"
	"time"

	"xenkeep/internal/disk"
)

func TestSource(t *testing.T) {
	e := newExport(2*disk.BlockSize + 70_000)
	for name, p := range map[string]Profile{"modern": Modern(), "xapi": XAPI(nil)} {
		d, err := Open(testContext(t), DiskOptions{Endpoints: []Endpoint{{Address: startServer(t, &Server{Open: e.open, Profile: always(p)}), ExportName: testName}}})
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		if name == "xapi" { // whole sectors only
			d.Close()
			e = newExport(2*disk.BlockSize + 512*77)
			if d, err = Open(testContext(t), DiskOptions{Endpoints: []Endpoint{{Address: startServer(t, &Server{Open: e.open, Profile: always(p)}), ExportName: testName}}}); err != nil {
				t.Fatal(err)
			}
			defer d.Close()
		}
		held, err := d.Held(testContext(t))
		if err != nil {
			t.Fatal(err)
		}
		want := 1
		if name == "modern" {
			want = 0
			for _, x := range coverRange(e.holes, 0, e.Size()) {
				if !x.Zero {
					want++
				}
			}
		}
		if len(held) != want {
			t.Errorf("%s: held %v", name, held)
		}
		got := make([]byte, e.Size())
		for _, want := range [][]disk.Extent{held, {{Offset: 7, Length: 0}, {Offset: 10, Length: 3 << 20}, {Offset: 3<<20 + 10, Length: 100}}, nil} {
			clear(got)
			s, err := d.Source(want, 3)
			if err != nil {
				t.Fatal(err)
			}
			buf := make([]byte, disk.BlockSize)
			at, n := int64(0), int64(0)
			for {
				x, err := s.Next(testContext(t), buf)
				if errors.Is(err, io.EOF) {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				if x.Offset < at || x.Length == 0 || x.Offset/disk.BlockSize != (x.End()-1)/disk.BlockSize {
					t.Fatalf("%s: extent %v", name, x)
				}
				at = x.End()
				n += x.Length
				copy(got[x.Offset:], buf[:x.Length])
				if !bytes.Equal(buf[:x.Length], e.data[x.Offset:x.End()]) {
					t.Fatalf("%s: bytes of %v differ", name, x)
				}
			}
			if _, err := s.Next(testContext(t), buf); err != io.EOF {
				t.Errorf("after the end: %v", err)
			}
			s.Close()
			var all int64
			for _, w := range want {
				all += w.Length
			}
			if n != all {
				t.Errorf("%s: %d bytes of %d", name, n, all)
			}
		}
		for _, bad := range [][]disk.Extent{{{Offset: 0, Length: e.Size() + 1}}, {{Offset: -1, Length: 1}}, {{Offset: 5, Length: 5}, {Offset: 9, Length: 1}}} {
			if _, err := d.Source(bad, 0); err == nil {
				t.Errorf("ranges %v were taken", bad)
			}
		}
	}
}

func TestSourceEndsWithItsContext(t *testing.T) {
	e := newExport(4 * disk.BlockSize)
	gate := make(chan struct{})
	e.fail = func(int64, int) error { <-gate; return nil }
	addr := startServer(t, &Server{Open: e.open})
	t.Cleanup(func() { close(gate) })
	d, err := Open(testContext(t), DiskOptions{Endpoints: []Endpoint{{Address: addr, ExportName: testName}}})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	s, err := d.Source([]disk.Extent{{Length: d.Size()}}, 0)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(testContext(t), 20*time.Millisecond)
	defer cancel()
	buf := make([]byte, disk.BlockSize)
	if _, err := s.Next(ctx, buf); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
	s.Close()
	if _, err := s.Next(testContext(t), buf); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
}
