package cpu

import (
	"testing"
	"time"
)

func TestParse(t *testing.T) {
	before := parse([]byte("cpu  100 0 50 800 50 0 0 0 0 0\ncpu0 1 2 3 4\n"))
	if before != (Times{Idle: 8500 * time.Millisecond, Total: 10 * time.Second}) {
		t.Fatalf("%+v", before)
	}
	after := parse([]byte("cpu  160 0 60 820 60 0 0 0 60 0\n"))
	if busy, ok := after.Busy(before); !ok || busy < 0.69 || busy > 0.71 {
		t.Errorf("busy %v, %v", busy, ok)
	}
	for _, text := range []string{"", "cpu", "cpu a b c d e", "intr 1 2 3 4 5"} {
		if got := parse([]byte(text)); got != (Times{}) {
			t.Errorf("%q: %+v", text, got)
		}
	}
	if _, ok := after.Busy(Times{}); ok {
		t.Error("busy since an unknown time")
	}
	if Read().Total <= 0 {
		t.Error("this machine's times are not known")
	}
}
