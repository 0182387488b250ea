package object_test

import (
	"context"
	"errors"
	"io"
	"math"
	"strings"
	"testing"

	"xenkeep/chunkstore/object"
)

func TestCheckName(t *testing.T) {
	good := []string{"config", "slots/a/0f", "packs/ab/" + strings.Repeat("ab", 32), "a.b/c_d/e-f", strings.Repeat("x", 128)}
	for _, name := range good {
		if err := object.CheckName("put", name); err != nil {
			t.Error(err)
		}
		for i := range len(name) + 1 {
			if prefix := name[:i]; object.CheckPrefix("list", prefix) != nil {
				t.Errorf("prefix %q of a name is refused", prefix)
			}
		}
	}
	for _, name := range []string{"", "a/", "/a", "a//b", "..", "a/../b", ".x", "A", "a b", "ü", strings.Repeat("x", 129), strings.Repeat("a/", 300) + "a"} {
		if err := object.CheckName("put", name); !errors.Is(err, object.ErrName) {
			t.Errorf("%q is allowed: %v", name, err)
		}
	}
}

func TestSpan(t *testing.T) {
	for _, tt := range []struct{ size, offset, length, from, n int64 }{
		{10, 0, -1, 0, 10}, {10, 3, 4, 3, 4}, {10, 10, -1, 10, 0}, {10, 10, 0, 10, 0},
		{10, -3, -1, 7, 3}, {10, -11, -1, 0, 10}, {0, -1, -1, 0, 0}, {10, math.MinInt64, -1, 0, 10},
	} {
		from, n, err := object.Span("get", "x", tt.size, tt.offset, tt.length)
		if err != nil || from != tt.from || n != tt.n {
			t.Errorf("%+v: %d+%d, %v", tt, from, n, err)
		}
	}
	for _, tt := range [][3]int64{{10, 11, -1}, {10, 11, 0}, {10, 5, 6}, {0, 0, 1}} {
		if _, _, err := object.Span("get", "x", tt[0], tt[1], tt[2]); !errors.Is(err, object.ErrShort) || !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%v: %v", tt, err)
		}
	}
	for _, tt := range [][2]int64{{-1, 0}, {-1, 5}, {1, math.MaxInt64}} {
		if err := object.CheckRange("get", "x", tt[0], tt[1]); !errors.Is(err, object.ErrName) {
			t.Errorf("range %v: %v", tt, err)
		}
	}
}

// TestCauseIsNoClass shows that a broken connection is not mistaken for a short
// object.
func TestCauseIsNoClass(t *testing.T) {
	err := error(&object.Error{Op: "get", Name: "config", Class: object.ErrUnavailable, Cause: io.ErrUnexpectedEOF})
	if errors.Is(err, object.ErrShort) || errors.Is(err, io.ErrUnexpectedEOF) || !object.Retriable(err) {
		t.Errorf("%v is of the wrong class", err)
	}
	if want := "get config: storage not available: unexpected EOF"; err.Error() != want {
		t.Errorf("%q, want %q", err, want)
	}
	ended := &object.Error{Op: "get", Name: "config", Class: context.Canceled, Cause: err}
	if object.Retriable(ended) {
		t.Error("what the user ended is tried again")
	}
}
