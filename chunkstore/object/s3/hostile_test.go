package s3_test

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"

	"xenkeep/chunkstore/object"
	"xenkeep/chunkstore/object/s3"
)

// endless writes a body until the client closes the connection.
func endless(w io.Writer, text string) {
	p := []byte(strings.Repeat(text, 1000))
	for {
		if _, err := w.Write(p); err != nil {
			return
		}
	}
}

// Row S8 of the fault list: whatever a server answers, no more memory is used
// than an object of that kind, or a page of a listing, can need.
func TestHostileServer(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Query().Has("list-type"):
			fmt.Fprint(w, `<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>`)
			endless(w, "a long name ")
		case strings.HasSuffix(r.URL.Path, "/notes/error"):
			w.WriteHeader(http.StatusForbidden)
			fmt.Fprint(w, "<Error><Code>")
			endless(w, "a long code ")
		case strings.HasSuffix(r.URL.Path, "/snapshots/chunked"):
			endless(w, "no length ")
		default: // 4 GiB, whatever range is requested
			w.Header().Set("Content-Length", fmt.Sprint(int64(4<<30)))
			w.Header().Set("Last-Modified", "Mon, 02 Nov 2026 15:04:05 GMT")
			if r.Method == http.MethodGet {
				endless(w, "too much ")
			}
		}
	}))
	t.Cleanup(server.Close)
	c := s3.Config{Endpoint: strings.TrimPrefix(server.URL, "http://"), Bucket: "bucket", AccessKey: "a", SecretKey: "b", Region: "us-east-1"}
	s, err := s3.Connect(c)
	if err != nil {
		t.Fatal(err)
	}
	whole := func(name string) func() error {
		return func() error {
			_, err := s.Get(t.Context(), name, 0, -1)
			return err
		}
	}
	for _, a := range []struct {
		what string
		do   func() error
		want error // nil: any
	}{
		{"a snapshot of 4 GiB", whole("snapshots/aa"), object.ErrTooLarge},
		{"a slot of 4 GiB", whole("slots/a/00"), object.ErrTooLarge},
		{"a pack of 4 GiB", whole("packs/aa/aa"), object.ErrTooLarge},
		{"an index object of 4 GiB", whole("index/aa"), object.ErrTooLarge},
		{"a body without length", whole("snapshots/chunked"), object.ErrUnavailable},
		{"an endless error", whole("notes/error"), nil},
		{"an endless listing", func() error { return s.List(t.Context(), "packs/", func(object.Info) error { return nil }) }, nil},
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		err := a.do()
		runtime.ReadMemStats(&after)
		if used := after.TotalAlloc - before.TotalAlloc; err == nil || a.want != nil && !errors.Is(err, a.want) || used > 128<<20 {
			t.Errorf("%s: %v, %d bytes allocated", a.what, err, used)
		}
	}
	// A server that ignores the range from the start of an object is read no
	// further than the range.
	if p, err := s.Get(t.Context(), "config", 0, 9); err != nil || string(p) != "too much " {
		t.Errorf("a range: %q, %v", p, err)
	}
}
