package vhd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"xenkeep/internal/disk"
	"xenkeep/internal/disk/disktest"
)

// page returns the page that xapi appends to a stream that failed, as recorded
// from the real one (xen-api e2ee48d6).
func page(info string) string {
	body := "<html><body><h1>HTTP 500 internal server error</h1>An unexpected error occurred; please wait a while and try again. " +
		"If the problem persists, please contact your support representative.<h1> Additional information </h1>" + info + "</body></html>"
	return fmt.Sprintf("HTTP/1.1 500 Internal Error\r\ncontent-length: %d\r\ncontent-type: text/html\r\n"+
		"connection: close\r\ncache-control: no-cache, no-store\r\n\r\n%s", len(body), body)
}

const ioError = "VDI_IO_ERROR: [ Device I/O errors ]"

// readAll reads a stream to its end into a disk.
func readAll(r io.Reader, opts Options) (*disktest.Mem, error) {
	src, err := NewReader(r, opts)
	if err != nil {
		return nil, err
	}
	m := disktest.NewMem(src.Size())
	_, err = apply(src, m)
	return m, err
}

func noiseFill() func(n int64) []byte {
	seed := uint64(0)
	return func(n int64) []byte {
		seed++
		return noise(seed, n)
	}
}

// httpFill returns a function that generates blocks full of the beginning of an
// embedded response.
func httpFill(text string) func(n int64) []byte {
	return func(n int64) []byte {
		return []byte(strings.Repeat(text, int(n)/len(text)+1))[:n]
	}
}

// edges are the byte positions next to each boundary in a stream's structure,
// some positions between them, and the last positions of the stream.
func edges(length int64) []int64 {
	var at []int64
	for _, e := range []int64{0, 512, 1536, 2048, 2560, 3072, 2560 + blockBytes, 3072 + blockBytes, 2560 + 2*blockBytes, 2560 + 3*blockBytes, length} {
		for d := int64(-3); d <= 3; d++ {
			at = append(at, e+d)
		}
	}
	for d := int64(0); d < 1200; d += 7 {
		at = append(at, length-d, 2560+blockBytes-d, d)
	}
	slices.Sort(at)
	return slices.DeleteFunc(slices.Compact(at), func(p int64) bool { return p < 0 || p > length })
}

func TestTruncated(t *testing.T) {
	stream, raw := streamOf(t, noiseFill())
	length := int64(len(stream))
	if m, err := readAll(iotest.HalfReader(bytes.NewReader(stream)), Options{}); err != nil || !bytes.Equal(contents(t, m, int64(len(raw))), raw) {
		t.Fatalf("the whole stream: %v", err)
	}
	for _, at := range edges(length - 1) {
		if at == length {
			continue
		}
		if _, err := readAll(bytes.NewReader(stream[:at]), Options{}); !errors.Is(err, ErrTruncated) {
			t.Errorf("cut at %d of %d: %v", at, length, err)
		}
	}
}

func TestEmbeddedResponse(t *testing.T) {
	text := page(ioError)
	for _, fill := range []struct {
		name string
		fill func(int64) []byte
	}{{"noise", noiseFill()}, {"text", httpFill("HTTP/1.1 500 Internal Error\r\n")}, {"page", httpFill(text + "\r\n")}} {
		t.Run(fill.name, func(t *testing.T) {
			stream, _ := streamOf(t, fill.fill)
			length := int64(len(stream))
			for _, at := range edges(length) {
				in := io.MultiReader(bytes.NewReader(stream[:at]), strings.NewReader(text))
				_, err := readAll(in, Options{})
				if at+int64(len(text)) == length {
					// The length is correct, so no search takes place.
					if !errors.Is(err, ErrCorrupt) {
						t.Errorf("at %d, the length being right: %v", at, err)
					}
					continue
				}
				var e *EmbeddedError
				if !errors.As(err, &e) || e.Status != 500 || e.Code != "VDI_IO_ERROR" || !slices.Equal(e.Params, []string{"Device I/O errors"}) {
					t.Errorf("at %d of %d: %v", at, length, err)
				}
			}
		})
	}
}

// TestGuestOfHTTP: a disk full of the text of error responses is read as a
// disk.
func TestGuestOfHTTP(t *testing.T) {
	for _, text := range []string{"HTTP/1.1 500 Internal Error\r\n", "HTTP/1.1 500 Internal Error", page(ioError)} {
		stream, raw := streamOf(t, httpFill(text))
		// The very end of the last block is a complete response, too.
		copy(stream[len(stream)-footerSize-len(text):], text)
		copy(raw[4*BlockSize-len(text):], text)
		m, err := readAll(bytes.NewReader(stream), Options{})
		if err != nil || !bytes.Equal(contents(t, m, int64(len(raw))), raw) {
			t.Fatalf("%.30q: %v", text, err)
		}
		// A stream that is cut within such data is truncated; this is not a
		// failure of the server.
		for _, cut := range []int{1, 600, 1500, BlockSize / 2} {
			_, err := readAll(bytes.NewReader(stream[:len(stream)-footerSize-len(text)-cut]), Options{})
			if !errors.Is(err, ErrTruncated) && text != page(ioError) {
				t.Errorf("%.30q cut by %d: %v", text, cut, err)
			}
		}
		// A footer damaged in transit: the length is correct.
		stream[len(stream)-1] ^= 1
		if _, err := readAll(bytes.NewReader(stream), Options{}); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%.30q, footer spoilt: %v", text, err)
		}
	}
}

func TestGoesOn(t *testing.T) {
	stream, _ := streamOf(t, noiseFill())
	for _, n := range []int64{1, 511, 512, 16 << 10, 16<<10 + 1, 1 << 20} {
		in := io.MultiReader(bytes.NewReader(stream), bytes.NewReader(make([]byte, n)))
		if _, err := readAll(in, Options{}); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%d bytes more: %v", n, err)
		}
	}
}

// TestReadsNoFurther: garbage after the head is an error, and does not cause
// gigabytes of reading.
func TestReadsNoFurther(t *testing.T) {
	endless := iotest.HalfReader(readerFunc(func(p []byte) (int, error) {
		clear(p)
		return len(p), nil
	}))
	if _, err := NewReader(endless, Options{}); !errors.Is(err, ErrNotVHD) {
		t.Errorf("endless zeros: %v", err)
	}
	stream, _ := streamOf(t, noiseFill())
	if _, err := readAll(io.MultiReader(bytes.NewReader(stream), endless), Options{}); !errors.Is(err, ErrCorrupt) {
		t.Errorf("a VHD and endless zeros: %v", err)
	}
}

type readerFunc func(p []byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// TestReadError: the errors of the transport are returned, but an earlier error
// message of the server takes precedence. A missing TLS close_notify after a
// complete stream is not an error.
func TestReadError(t *testing.T) {
	stream, raw := streamOf(t, noiseFill())
	reset := errors.New("connection reset")
	broken := func(parts ...io.Reader) error {
		_, err := readAll(io.MultiReader(append(parts, iotest.ErrReader(reset))...), Options{})
		return err
	}
	for _, at := range []int{0, 100, 512, 2000, 3000, 1 << 20, len(stream)} {
		if err := broken(bytes.NewReader(stream[:at])); !errors.Is(err, reset) {
			t.Errorf("at %d: %v", at, err)
		}
		var e *EmbeddedError
		if err := broken(bytes.NewReader(stream[:at]), strings.NewReader(page(ioError))); !errors.As(err, &e) {
			t.Errorf("page and error at %d: %v", at, err)
		}
	}
	unclosed := iotest.ErrReader(io.ErrUnexpectedEOF)
	m, err := readAll(io.MultiReader(bytes.NewReader(stream), unclosed), Options{})
	if err != nil || !bytes.Equal(contents(t, m, int64(len(raw))), raw) {
		t.Errorf("no closing alert: %v", err)
	}
	if _, err := readAll(io.MultiReader(bytes.NewReader(stream[:1<<20]), unclosed), Options{}); !errors.Is(err, ErrTruncated) {
		t.Errorf("no closing alert midway: %v", err)
	}
}

func TestErrorStays(t *testing.T) {
	stream, _ := streamOf(t, noiseFill())
	r, err := NewReader(bytes.NewReader(stream[:3<<20]), Options{})
	if err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, disk.BlockSize)
	if _, err := r.Next(context.Background(), buf); err != nil {
		t.Fatal(err)
	}
	_, first := r.Next(context.Background(), buf)
	if _, second := r.Next(context.Background(), buf); first == nil || first != second {
		t.Errorf("%v, then %v", first, second)
	}
}

// TestRemember: regardless of the sizes of the pieces, the last 16 KiB are
// kept.
func TestRemember(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 4))
	for range 50 {
		var all []byte
		s := newStream(nil)
		for range 40 {
			p := noise(rnd.Uint64(), rnd.Int64N(1<<(1+rnd.IntN(17))))
			all = append(all, p...)
			s.remember(p)
			want := all[max(0, len(all)-tailSize):]
			if got := s.tail; len(got) > 2*tailSize || !bytes.HasSuffix(got, want) {
				t.Fatalf("after %d bytes, %d are kept, and not the last", len(all), len(got))
			}
		}
	}
}

func TestParsePage(t *testing.T) {
	for _, c := range []struct {
		info   string
		code   string
		params []string
	}{
		{ioError, "VDI_IO_ERROR", []string{"Device I/O errors"}},
		{"HOST_BROKEN: [  ]", "HOST_BROKEN", nil},
		{"VDI_IN_USE: [ OpaqueRef:1; destroy ]", "VDI_IN_USE", []string{"OpaqueRef:1", "destroy"}},
		{"SR_BACKEND_FAILURE_1200: [ ; ['/usr/sbin/tap-ctl', 'list', '-f', '/run/x.vhd'] failed: errno=2;  ]", "SR_BACKEND_FAILURE_1200",
			[]string{"", "['/usr/sbin/tap-ctl', 'list', '-f', '/run/x.vhd'] failed: errno=2", ""}},
		{"SR_BACKEND_FAILURE_46: [ ; two\nlines ]", "SR_BACKEND_FAILURE_46", []string{"", "two\nlines"}},
		{"Not_found", "", nil},
		{"", "", nil},
	} {
		e := findEmbedded([]byte(page(c.info)), false)
		if e == nil || e.Code != c.code || !slices.Equal(e.Params, c.params) || e.Status != 500 {
			t.Errorf("%q: %+v", c.info, e)
		}
	}
	for _, s := range []string{
		"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
		"HTTP/1.1 500 Internal Error\r\ncontent-length: 5\r\n\r\nbody",
		"HTTP/1.1 500 Internal Error\r\n\r\n",
		"HTTP/1.1 500", "HTTP/1.1", "",
	} {
		if e := findEmbedded([]byte(s), false); e != nil {
			t.Errorf("%q: %+v", s, e)
		}
	}
	// At byte 0 there can be nothing else, even if it is cut.
	cut := page(ioError)[:60]
	var e *EmbeddedError
	if _, err := NewReader(strings.NewReader(cut), Options{}); !errors.As(err, &e) || e.Status != 500 {
		t.Errorf("cut page at byte 0: %v", err)
	}
}
